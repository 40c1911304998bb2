//! Single contents: whole ones, and those that are being put together.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use alloy_primitives::B256;
use pool_types::ByteSize;

use super::{
    CacheError, OBJECTS, PARTIAL, StopFlag, UNHASHED,
    error::failed,
    files::{lock_file, make_folder, metadata, plain, remove_if_there, replace, sync_folder},
};
use crate::manifest::{Content, Item, hash_of};

/// An entry of a record: the piece's number, its hash, and the first bytes of the hash of both.
const ENTRY: usize = 4 + 32 + 4;

/// The contents of one model in a cache. Those with a hash are shared with every model that names the same; those
/// without are this model's own, so that no host's word is ever taken for another model's bytes.
#[derive(Clone, Debug)]
pub(crate) struct Contents {
    root: Arc<PathBuf>,
    model: B256,
    piece_bytes: u32,
}

/// The files of a content.
pub(super) struct Paths {
    /// The content, once it is whole.
    pub(super) whole: PathBuf,
    /// As long as it is not.
    pub(super) part: PathBuf,
    /// The hashes of its pieces that are there. Kept beside a whole content that no manifest knows the hashes of.
    pub(super) record: PathBuf,
}

impl Paths {
    /// Of a content that every model may name.
    pub(super) fn shared(root: &Path, key: B256) -> Self {
        let name = plain(key);
        let partial = root.join(PARTIAL).join(&name);
        Self {
            whole: root.join(OBJECTS).join(&name[..2]).join(&name),
            part: partial.with_extension("part"),
            record: partial.with_extension("done"),
        }
    }

    /// Of a content that is one model's alone.
    pub(super) fn own(root: &Path, model: B256, key: B256) -> Self {
        let whole = root.join(UNHASHED).join(plain(model)).join(plain(key));
        Self { part: whole.with_extension("part"), record: whole.with_extension("pieces"), whole }
    }
}

/// What became of the wish to write a content.
pub(crate) enum Claim<P = Partial> {
    /// It is whole already.
    Whole,
    /// Somebody else is writing it.
    Busy,
    /// It is ours to write until this is dropped.
    Open(P),
}

/// A content that is being put together; others are kept from it by a lock on its file.
pub(crate) struct Partial {
    paths: Paths,
    content: Content,
    piece_bytes: u32,
    state: Mutex<State>,
}

struct State {
    /// `None` once the content is whole.
    file: Option<File>,
    record: Option<File>,
    record_length: u64,
    done: BTreeMap<u32, B256>,
}

impl Contents {
    pub(super) fn new(root: Arc<PathBuf>, model: B256, piece_bytes: u32) -> Self {
        Self { root, model, piece_bytes }
    }

    fn paths(&self, content: &Content) -> Paths {
        match content.is_hashed() {
            true => Paths::shared(&self.root, content.key),
            false => Paths::own(&self.root, self.model, content.key),
        }
    }

    /// Where a content lies once it is whole.
    pub(crate) fn path(&self, content: &Content) -> PathBuf {
        self.paths(content).whole
    }

    /// Whether a content is whole. Its bytes were checked before it got its name.
    pub(crate) fn has(&self, content: &Content) -> Result<bool, CacheError> {
        let whole = metadata(&self.path(content))?;
        Ok(whole.is_some_and(|metadata| metadata.len() == content.length))
    }

    /// Whether there is a part of a content that is not whole.
    #[cfg(feature = "downloads")]
    pub(crate) fn is_begun(&self, content: &Content) -> Result<bool, CacheError> {
        Ok(metadata(&self.paths(content).part)?.is_some())
    }

    /// Bytes of a content that are here, by the pieces that are recorded of one that is not whole.
    pub(crate) fn bytes_here(&self, content: &Content) -> Result<u64, CacheError> {
        if self.has(content)? {
            return Ok(content.length);
        }
        if !self.is_begun(content)? {
            return Ok(0);
        }
        let (pieces, _) = read_record(&self.paths(content).record)?;
        Ok(pieces.keys().map(|piece| u64::from(content.piece_place(*piece, self.piece_bytes).1)).sum())
    }

    /// A whole content's bytes, or `None` where it is not here.
    pub(crate) fn read(&self, content: &Content) -> Result<Option<Vec<u8>>, CacheError> {
        if content.length == 0 {
            return Ok(Some(Vec::new()));
        }
        if !self.has(content)? {
            return Ok(None);
        }
        let path = self.path(content);
        fs::read(&path).map(Some).map_err(failed("read", &path))
    }

    /// Deletes a whole content. The caller holds the cache exclusively.
    pub(super) fn delete(&self, content: &Content) -> Result<(), CacheError> {
        let paths = self.paths(content);
        remove_if_there(&paths.whole)?;
        remove_if_there(&paths.record)
    }

    /// Hashes a whole content again; `None` where it is not here.
    pub(super) fn check(&self, content: &Content, stop: &StopFlag) -> Result<Option<bool>, CacheError> {
        let paths = self.paths(content);
        let mut file = match File::open(&paths.whole) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed("open", &paths.whole))?,
        };
        if file.metadata().map_err(failed("open", &paths.whole))?.len() != content.length {
            return Ok(Some(false));
        }
        let known = if content.pieces.is_empty() { read_record(&paths.record)?.0 } else { BTreeMap::new() };
        for piece in 0..content.piece_count(self.piece_bytes) {
            stop.check()?;
            let expected = content.pieces.get(piece as usize).or(known.get(&piece));
            let (_, length) = content.piece_place(piece, self.piece_bytes);
            let mut bytes = vec![0; length as usize];
            match file.read_exact(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Some(false)),
                // A disk that cannot read says nothing about the bytes.
                read => read.map_err(failed("read", &paths.whole))?,
            }
            // Where neither a manifest nor a record knows it, only the length can be checked.
            if expected.is_some_and(|expected| *expected != hash_of(&bytes)) {
                return Ok(Some(false));
            }
        }
        Ok(Some(true))
    }

    /// Takes a content to write its pieces.
    pub(crate) fn claim(&self, content: &Content) -> Result<Claim, CacheError> {
        if self.has(content)? {
            return Ok(Claim::Whole);
        }
        let paths = self.paths(content);
        // The file can become whole, or be evicted, between opening and locking it: look again until it is the same.
        for _ in 0..8 {
            if let Some(folder) = paths.part.parent() {
                make_folder(folder)?;
            }
            let file = lock_file(&paths.part)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Claim::Busy),
                Err(TryLockError::Error(source)) => return Err(failed("lock", &paths.part)(source)),
            }
            if self.has(content)? {
                if is_same(&paths.part, &file) {
                    remove_if_there(&paths.part)?;
                }
                return Ok(Claim::Whole);
            }
            if !is_same(&paths.part, &file) {
                continue;
            }
            if file.metadata().map_err(failed("open", &paths.part))?.len() != content.length {
                // A part that begins anew has none of its pieces, whatever a record from before says.
                remove_if_there(&paths.record)?;
                file.set_len(content.length).map_err(|error| match error.kind() {
                    io::ErrorKind::FileTooLarge => {
                        CacheError::FileTooLarge { path: paths.part.clone(), size: ByteSize(content.length) }
                    }
                    _ => failed("make", &paths.part)(error),
                })?;
            }
            let (mut done, record_length) = read_record(&paths.record)?;
            done.retain(|piece, hash| {
                *piece < content.piece_count(self.piece_bytes)
                    && content.pieces.get(*piece as usize).is_none_or(|expected| expected == hash)
            });
            let state = Mutex::new(State { file: Some(file), record: None, record_length, done });
            let (content, piece_bytes) = (content.clone(), self.piece_bytes);
            return Ok(Claim::Open(Partial { paths, content, piece_bytes, state }));
        }
        Ok(Claim::Busy)
    }

    /// Puts bytes that are here already into the cache. Returns how many were not there.
    pub(super) fn store(&self, item: &Item, bytes: &[u8]) -> Result<u64, CacheError> {
        let partial = match self.claim(&item.content)? {
            Claim::Whole => return Ok(0),
            Claim::Busy => return Err(CacheError::InUse(item.name.clone())),
            Claim::Open(partial) => partial,
        };
        partial.verify(&StopFlag::default())?;
        let mut taken = 0;
        for (piece, bytes) in (0u32..).zip(bytes.chunks(self.piece_bytes as usize)) {
            if !partial.has(piece) {
                partial.write(piece, bytes, &item.name)?;
                taken += bytes.len() as u64;
            }
        }
        Ok(taken)
    }
}

impl Partial {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves at worst a piece that is written and not counted.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has(&self, piece: u32) -> bool {
        let state = self.state();
        state.file.is_none() || state.done.contains_key(&piece)
    }

    /// Hashes every recorded piece again and forgets those that are not what was recorded, as after a power loss.
    pub(crate) fn verify(&self, stop: &StopFlag) -> Result<(), CacheError> {
        let mut state = self.state();
        let State { file: Some(file), done, .. } = &mut *state else { return Ok(()) };
        let mut broken = Vec::new();
        for (&piece, hash) in done.iter() {
            stop.check()?;
            let (start, length) = self.content.piece_place(piece, self.piece_bytes);
            let mut bytes = vec![0; length as usize];
            let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut bytes));
            read.map_err(failed("read", &self.paths.part))?;
            if hash_of(&bytes) != *hash {
                broken.push(piece);
            }
        }
        if !broken.is_empty() {
            done.retain(|piece, _| !broken.contains(piece));
            let entries: Vec<u8> = done.iter().flat_map(|(piece, hash)| entry(*piece, *hash)).collect();
            replace(&self.paths.record, &entries)?;
            (state.record, state.record_length) = (None, entries.len() as u64);
        }
        // All pieces may be there, and only the last step have been missing.
        self.finish(&mut state)
    }

    /// Checks a piece, writes it, and records it once it is on the disk.
    pub(crate) fn write(&self, piece: u32, bytes: &[u8], name: &str) -> Result<(), CacheError> {
        let hash = hash_of(bytes);
        let (start, length) = self.content.piece_place(piece, self.piece_bytes);
        let expected = self.content.pieces.get(piece as usize);
        if bytes.len() != length as usize || expected.is_some_and(|expected| *expected != hash) {
            return Err(CacheError::WrongBytes(name.to_owned()));
        }
        let mut state = self.state();
        if state.done.contains_key(&piece) {
            return Ok(());
        }
        let Some(file) = &mut state.file else { return Ok(()) };
        let written = file.seek(SeekFrom::Start(start)).and_then(|_| file.write_all(bytes));
        written.and_then(|()| file.sync_data()).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => {
                CacheError::FileTooLarge { path: self.paths.part.clone(), size: ByteSize(self.content.length) }
            }
            _ => failed("write", &self.paths.part)(error),
        })?;
        // A content of one piece needs no record: it gets its name at once.
        if self.content.piece_count(self.piece_bytes) > 1 || self.content.pieces.is_empty() {
            self.record(&mut state, piece, hash)?;
        }
        state.done.insert(piece, hash);
        self.finish(&mut state)
    }

    fn record(&self, state: &mut State, piece: u32, hash: B256) -> Result<(), CacheError> {
        let path = &self.paths.record;
        let record = match &mut state.record {
            Some(record) => record,
            none => {
                let record = lock_file(path)?;
                // Both names, the part's and the record's, must be there after a power loss for the piece to count.
                sync_folder(path.parent().unwrap_or(path))?;
                none.insert(record)
            }
        };
        // From where the last whole entry ended: whatever a full disk or a power loss left after it is overwritten.
        let written = record
            .seek(SeekFrom::Start(state.record_length))
            .and_then(|_| record.write_all(&entry(piece, hash)))
            .and_then(|()| record.sync_data());
        written.map_err(failed("write", path))?;
        state.record_length += ENTRY as u64;
        Ok(())
    }

    /// Gives the content its name once all pieces are there.
    fn finish(&self, state: &mut State) -> Result<(), CacheError> {
        let whole = state.done.len() as u64 == u64::from(self.content.piece_count(self.piece_bytes));
        let (true, Some(file)) = (whole, &state.file) else { return Ok(()) };
        let Paths { whole, part, record } = &self.paths;
        file.sync_all().map_err(failed("synchronise", part))?;
        let folder = whole.parent().unwrap_or(whole);
        make_folder(folder)?;
        fs::rename(part, whole).map_err(failed("rename", part))?;
        sync_folder(folder)?;
        (state.file, state.record) = (None, None);
        if self.content.pieces.is_empty() { Ok(()) } else { remove_if_there(record) }
    }
}

fn entry(piece: u32, hash: B256) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..4].copy_from_slice(&piece.to_le_bytes());
    entry[4..36].copy_from_slice(hash.as_slice());
    let check = hash_of(&entry[..36]);
    entry[36..].copy_from_slice(&check[..4]);
    entry
}

/// The whole entries at a record's beginning, and how many bytes they take.
fn read_record(path: &Path) -> Result<(BTreeMap<u32, B256>, u64), CacheError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        bytes => bytes.map_err(failed("read", path))?,
    };
    let mut done = BTreeMap::new();
    let mut length = 0;
    for bytes in bytes.chunks_exact(ENTRY) {
        let Some((number, rest)) = bytes.split_first_chunk::<4>() else { break };
        let (piece, hash) = (u32::from_le_bytes(*number), B256::from_slice(&rest[..32]));
        if entry(piece, hash) != bytes {
            break;
        }
        done.insert(piece, hash);
        length += ENTRY as u64;
    }
    Ok((done, length))
}

/// Whether the path still names the open file.
#[cfg(unix)]
fn is_same(path: &Path, file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    fs::metadata(path).is_ok_and(|named| file.metadata().is_ok_and(|open| same(&named, &open)))
}

/// Where files have no numbers: an open file cannot be replaced under its name there.
#[cfg(not(unix))]
fn is_same(path: &Path, _file: &File) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;

    const PIECE: u32 = 4096;

    fn bytes() -> Vec<u8> {
        (0..10_000u32).flat_map(|n| n.to_le_bytes()).collect()
    }

    fn cache() -> (tempfile::TempDir, Contents) {
        let folder = tempfile::tempdir().expect("a folder");
        let contents = Cache::open(folder.path()).expect("a cache").contents(B256::repeat_byte(1), PIECE);
        (folder, contents)
    }

    fn open(contents: &Contents, content: &Content) -> Partial {
        match contents.claim(content).expect("the cache works") {
            Claim::Open(partial) => partial,
            Claim::Whole => panic!("it is whole"),
            Claim::Busy => panic!("it is busy"),
        }
    }

    fn verified(contents: &Contents, content: &Content) -> Partial {
        let partial = open(contents, content);
        partial.verify(&StopFlag::default()).expect("it can be read");
        partial
    }

    fn write(partial: &Partial, bytes: &[u8], pieces: impl IntoIterator<Item = usize>) {
        for piece in pieces {
            let part = bytes.chunks(PIECE as usize).nth(piece).expect("there is such a piece");
            partial.write(piece as u32, part, "it").expect("it is the right piece");
        }
    }

    fn is_right(contents: &Contents, content: &Content) -> Option<bool> {
        contents.check(content, &StopFlag::default()).expect("it can be read")
    }

    #[test]
    fn whatever_step_a_kill_comes_before_the_next_process_ends_the_work() {
        let (_folder, contents) = cache();
        let bytes = bytes();
        for content in [Content::of(&bytes, PIECE), Content::unhashed_for_tests(bytes.len() as u64)] {
            let Paths { whole, part, record } = contents.paths(&content);
            // Killed in the middle, and in the middle of an entry of the record.
            let partial = open(&contents, &content);
            write(&partial, &bytes, [2, 0]);
            drop(partial);
            let entries = fs::read(&record).expect("two are recorded");
            assert_eq!(entries.len(), 2 * ENTRY);
            fs::write(&record, [&entries[..], &[9; 11]].concat()).expect("half an entry");
            let partial = verified(&contents, &content);
            let has: Vec<u32> = (0..10).filter(|piece| partial.has(*piece)).collect();
            assert_eq!(has, [0, 2], "what was recorded whole counts");
            assert!(matches!(contents.claim(&content), Ok(Claim::Busy)), "one writes at a time");
            write(&partial, &bytes, (0..10).filter(|piece| *piece != 2));
            assert_eq!(contents.read(&content).expect("it can be read").as_deref(), Some(&bytes[..]));
            assert!(matches!(contents.claim(&content), Ok(Claim::Whole)));
            assert_eq!(is_right(&contents, &content), Some(true));

            // Killed when every piece was recorded, before it got its name.
            let all: Vec<u8> = (0..10u32)
                .flat_map(|n| entry(n, hash_of(bytes.chunks(PIECE as usize).nth(n as usize).unwrap_or_default())))
                .collect();
            fs::rename(&whole, &part).expect("it was not named");
            fs::write(&record, &all).expect("all are recorded");
            verified(&contents, &content);
            assert!(contents.has(&content).expect("it can be read"), "looking at it is enough");

            // Killed when it had got its name, before its record was put away.
            fs::write(&record, &all).expect("it still lies there");
            assert_eq!(is_right(&contents, &content), Some(true));
            contents.delete(&content).expect("it can be removed");
            assert!(!record.exists(), "and its record goes with it");
        }
    }

    #[test]
    fn a_wrong_piece_is_never_written() {
        let (_folder, contents) = cache();
        let (bytes, content) = (bytes(), Content::of(&bytes(), PIECE));
        let partial = open(&contents, &content);
        let wrong = partial.write(1, &bytes[..PIECE as usize], "a.weight").expect_err("it is the first piece");
        assert_eq!(wrong.to_string(), "the bytes of `a.weight` are not those of the manifest");
        assert!(partial.write(0, &bytes[..100], "a.weight").is_err(), "a piece is whole or none");
        assert!(!partial.has(0) && !partial.has(1));
    }

    #[test]
    fn a_content_without_a_hash_that_borrows_a_hashed_ones_name_spoils_nothing() {
        let (_folder, contents) = cache();
        let bytes = bytes();
        let hashed = Content::of(&bytes, PIECE);
        let borrowed = Content { pieces: Vec::new(), ..hashed.clone() };
        write(&open(&contents, &borrowed), &vec![7; bytes.len()], 0..10);
        assert!(contents.has(&borrowed).expect("it can be read"), "it is there for its own model");
        assert!(!contents.has(&hashed).expect("it can be read"), "nobody takes it for the bytes of that hash");
        let others = Contents { model: B256::repeat_byte(2), ..contents.clone() };
        assert!(!others.has(&borrowed).expect("it can be read"), "nor for another model's");
        write(&open(&contents, &hashed), &bytes, 0..10);
        assert_eq!(contents.read(&hashed).expect("it can be read").as_deref(), Some(&bytes[..]));
    }

    #[test]
    fn work_that_was_told_to_stop_stops_between_two_pieces() {
        let (_folder, contents) = cache();
        let (bytes, content) = (bytes(), Content::of(&bytes(), PIECE));
        let partial = open(&contents, &content);
        write(&partial, &bytes, 0..3);
        let stop = StopFlag::default();
        stop.stop();
        assert!(matches!(partial.verify(&stop), Err(CacheError::Stopped)));
        write(&partial, &bytes, 3..10);
        assert!(matches!(contents.check(&content, &stop), Err(CacheError::Stopped)));
    }

    #[cfg(unix)]
    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_missing() {
        let (folder, contents) = cache();
        let content = Content::of(&bytes(), PIECE);
        // A file where a folder should be is what a sick file system looks like.
        let folder = folder.path().join(OBJECTS).join(&plain(content.key)[..2]);
        fs::write(&folder, "x").expect("it can be written");
        assert!(matches!(contents.has(&content), Err(CacheError::Io { .. })));
        assert!(matches!(contents.check(&content, &StopFlag::default()), Err(CacheError::Io { .. })));
    }
}
