//! Single contents: whole ones, and those that are being put together.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use alloy_primitives::B256;
use pool_types::ByteSize;

use super::{Cache, CacheError, failed, lock_file, plain, sync_folder};
use crate::manifest::{Content, Item, hash_of};

/// An entry of a record: the piece's number, its hash, and the first bytes of the hash of both.
const ENTRY: usize = 4 + 32 + 4;

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
    cache: Cache,
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

impl Cache {
    pub(crate) fn object_path(&self, key: B256) -> PathBuf {
        let name = plain(key);
        self.root.join("objects").join(&name[..2]).join(name)
    }

    /// The hashes of an object's pieces, kept only where no manifest knows them.
    fn pieces_path(&self, key: B256) -> PathBuf {
        self.object_path(key).with_extension("pieces")
    }

    pub(super) fn part_path(&self, key: B256) -> PathBuf {
        self.root.join("partial").join(plain(key)).with_extension("part")
    }

    pub(super) fn record_path(&self, key: B256) -> PathBuf {
        self.root.join("partial").join(plain(key)).with_extension("done")
    }

    /// Whether a content is whole. Its bytes were checked before it got its name.
    pub(crate) fn has(&self, content: &Content) -> bool {
        fs::metadata(self.object_path(content.key)).is_ok_and(|metadata| metadata.len() == content.length)
    }

    /// Whether there is a part of a content.
    #[cfg(feature = "downloads")]
    pub(crate) fn is_begun(&self, content: &Content) -> bool {
        !self.has(content) && self.part_path(content.key).exists()
    }

    /// Bytes of a content that are here.
    pub(crate) fn bytes_here(&self, content: &Content) -> u64 {
        if self.has(content) {
            return content.length;
        }
        fs::metadata(self.part_path(content.key)).map_or(0, |metadata| super::room::on_disk(&metadata))
    }

    /// What was recorded of an object's pieces; after a kill at the last step the record lies where it was written.
    fn recorded(&self, key: B256) -> Result<BTreeMap<u32, B256>, CacheError> {
        let (kept, _) = read_record(&self.pieces_path(key))?;
        if kept.is_empty() { Ok(read_record(&self.record_path(key))?.0) } else { Ok(kept) }
    }

    pub(super) fn delete_object(&self, key: B256) -> Result<(), CacheError> {
        let path = self.object_path(key);
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        remove_if_there(&self.pieces_path(key))?;
        remove_if_there(&self.record_path(key))
    }

    /// Hashes a whole content again; `None` where it is not here.
    pub(super) fn check_object(&self, content: &Content, piece_bytes: u32) -> Result<Option<bool>, CacheError> {
        let path = self.object_path(content.key);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed("open", &path))?,
        };
        if file.metadata().map_err(failed("open", &path))?.len() != content.length {
            return Ok(Some(false));
        }
        let known = if content.pieces.is_empty() { self.recorded(content.key)? } else { BTreeMap::new() };
        for piece in 0..content.piece_count(piece_bytes) {
            let expected = content.pieces.get(piece as usize).or(known.get(&piece));
            let (_, length) = content.piece_place(piece, piece_bytes);
            let mut bytes = vec![0; length as usize];
            file.read_exact(&mut bytes).map_err(failed("read", &path))?;
            // Where neither a manifest nor a record knows it, only the length can be checked.
            if expected.is_some_and(|expected| *expected != hash_of(&bytes)) {
                return Ok(Some(false));
            }
        }
        Ok(Some(true))
    }

    /// Takes a content to write its pieces.
    pub(crate) fn claim(&self, content: &Content, piece_bytes: u32) -> Result<Claim, CacheError> {
        if self.has(content) {
            return Ok(Claim::Whole);
        }
        let path = self.part_path(content.key);
        // The file can become whole, or be evicted, between opening and locking it: look again until it is the same.
        for _ in 0..8 {
            let file = lock_file(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Claim::Busy),
                Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
            }
            if self.has(content) {
                if is_same(&path, &file) {
                    remove_if_there(&path)?;
                }
                return Ok(Claim::Whole);
            }
            if !is_same(&path, &file) {
                continue;
            }
            if file.metadata().map_err(failed("open", &path))?.len() != content.length {
                // A part that begins anew has none of its pieces, whatever a record from before says.
                remove_if_there(&self.record_path(content.key))?;
                file.set_len(content.length).map_err(|error| match error.kind() {
                    io::ErrorKind::FileTooLarge => {
                        CacheError::FileTooLarge { path: path.clone(), size: ByteSize(content.length) }
                    }
                    _ => failed("make", &path)(error),
                })?;
            }
            let (mut done, record_length) = read_record(&self.record_path(content.key))?;
            done.retain(|piece, hash| {
                *piece < content.piece_count(piece_bytes)
                    && content.pieces.get(*piece as usize).is_none_or(|expected| expected == hash)
            });
            let state = State { file: Some(file), record: None, record_length, done };
            let state = Mutex::new(state);
            return Ok(Claim::Open(Partial { cache: self.clone(), content: content.clone(), piece_bytes, state }));
        }
        Ok(Claim::Busy)
    }

    /// Puts bytes that are here already into the cache. Returns how many were not there.
    pub(super) fn store(&self, item: &Item, piece_bytes: u32, bytes: &[u8]) -> Result<u64, CacheError> {
        let partial = match self.claim(&item.content, piece_bytes)? {
            Claim::Whole => return Ok(0),
            Claim::Busy => return Err(CacheError::InUse(item.name.clone())),
            Claim::Open(partial) => partial,
        };
        partial.verify()?;
        let mut taken = 0;
        for (piece, bytes) in (0u32..).zip(bytes.chunks(piece_bytes as usize)) {
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
    pub(crate) fn verify(&self) -> Result<(), CacheError> {
        let path = self.cache.part_path(self.content.key);
        let mut state = self.state();
        let State { file: Some(file), done, .. } = &mut *state else { return Ok(()) };
        let mut broken = Vec::new();
        for (&piece, hash) in done.iter() {
            let (start, length) = self.content.piece_place(piece, self.piece_bytes);
            let mut bytes = vec![0; length as usize];
            let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut bytes));
            read.map_err(failed("read", &path))?;
            if hash_of(&bytes) != *hash {
                broken.push(piece);
            }
        }
        if !broken.is_empty() {
            done.retain(|piece, _| !broken.contains(piece));
            let entries: Vec<u8> = done.iter().flat_map(|(piece, hash)| entry(*piece, *hash)).collect();
            super::replace(&self.cache.record_path(self.content.key), &entries)?;
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
        let path = self.cache.part_path(self.content.key);
        let mut state = self.state();
        if state.done.contains_key(&piece) {
            return Ok(());
        }
        let Some(file) = &mut state.file else { return Ok(()) };
        let written = file.seek(SeekFrom::Start(start)).and_then(|_| file.write_all(bytes));
        written.and_then(|()| file.sync_data()).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => {
                CacheError::FileTooLarge { path: path.clone(), size: ByteSize(self.content.length) }
            }
            _ => failed("write", &path)(error),
        })?;
        // A content of one piece needs no record: it gets its name at once.
        if self.content.piece_count(self.piece_bytes) > 1 || self.content.pieces.is_empty() {
            self.record(&mut state, piece, hash)?;
        }
        state.done.insert(piece, hash);
        self.finish(&mut state)
    }

    fn record(&self, state: &mut State, piece: u32, hash: B256) -> Result<(), CacheError> {
        let path = self.cache.record_path(self.content.key);
        let record = match &mut state.record {
            Some(record) => record,
            none => none.insert(lock_file(&path)?),
        };
        // From where the last whole entry ended: whatever a full disk or a power loss left after it is overwritten.
        let written = record
            .seek(SeekFrom::Start(state.record_length))
            .and_then(|_| record.write_all(&entry(piece, hash)))
            .and_then(|()| record.sync_data());
        written.map_err(failed("write", &path))?;
        state.record_length += ENTRY as u64;
        Ok(())
    }

    /// Gives the content its name once all pieces are there.
    fn finish(&self, state: &mut State) -> Result<(), CacheError> {
        let whole = state.done.len() as u64 == u64::from(self.content.piece_count(self.piece_bytes));
        let (true, Some(file)) = (whole, &state.file) else { return Ok(()) };
        let (key, part) = (self.content.key, self.cache.part_path(self.content.key));
        file.sync_all().map_err(failed("synchronise", &part))?;
        let object = self.cache.object_path(key);
        let folder = object.parent().unwrap_or(&object);
        fs::create_dir_all(folder).map_err(failed("make the folder", folder))?;
        fs::rename(&part, &object).map_err(failed("rename", &part))?;
        let record = self.cache.record_path(key);
        if self.content.pieces.is_empty() {
            fs::rename(&record, self.cache.pieces_path(key)).map_err(failed("rename", &record))?;
        }
        sync_folder(folder)?;
        (state.file, state.record) = (None, None);
        remove_if_there(&record)
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

fn remove_if_there(path: &Path) -> Result<(), CacheError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
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

    const PIECE: u32 = 4096;

    fn bytes() -> Vec<u8> {
        (0..10_000u32).flat_map(|n| n.to_le_bytes()).collect()
    }

    fn open(cache: &Cache, content: &Content) -> Partial {
        match cache.claim(content, PIECE).expect("the cache works") {
            Claim::Open(partial) => partial,
            Claim::Whole => panic!("it is whole"),
            Claim::Busy => panic!("it is busy"),
        }
    }

    fn write(partial: &Partial, bytes: &[u8], pieces: impl IntoIterator<Item = usize>) {
        for piece in pieces {
            let part = bytes.chunks(PIECE as usize).nth(piece).expect("there is such a piece");
            partial.write(piece as u32, part, "it").expect("it is the right piece");
        }
    }

    #[test]
    fn whatever_step_a_kill_comes_before_the_next_process_ends_the_work() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path()).expect("a cache");
        let bytes = bytes();
        for content in [Content::of(&bytes, PIECE), Content::unhashed_for_tests(bytes.len() as u64)] {
            // Killed in the middle, and in the middle of an entry of the record.
            let partial = open(&cache, &content);
            write(&partial, &bytes, [2, 0]);
            drop(partial);
            let record = cache.record_path(content.key);
            let entries = fs::read(&record).expect("two are recorded");
            assert_eq!(entries.len(), 2 * ENTRY);
            fs::write(&record, [&entries[..], &[9; 11]].concat()).expect("half an entry");
            let partial = open(&cache, &content);
            partial.verify().expect("it can be read");
            let has: Vec<u32> = (0..10).filter(|piece| partial.has(*piece)).collect();
            assert_eq!(has, [0, 2], "what was recorded whole counts");
            assert!(matches!(cache.claim(&content, PIECE), Ok(Claim::Busy)), "one writes at a time");
            write(&partial, &bytes, (0..10).filter(|piece| *piece != 2));
            assert_eq!(cache.read(&content).expect("it can be read").as_deref(), Some(&bytes[..]));
            assert!(matches!(cache.claim(&content, PIECE), Ok(Claim::Whole)));
            assert_eq!(cache.check_object(&content, PIECE).expect("it can be read"), Some(true));

            // Killed when every piece was recorded, before it got its name.
            let all: Vec<u8> = (0..10u32)
                .flat_map(|n| entry(n, hash_of(bytes.chunks(PIECE as usize).nth(n as usize).unwrap_or_default())))
                .collect();
            fs::rename(cache.object_path(content.key), cache.part_path(content.key)).expect("it was not named");
            let _ = fs::remove_file(cache.pieces_path(content.key));
            fs::write(&record, &all).expect("all are recorded");
            open(&cache, &content).verify().expect("it can be read");
            assert!(cache.has(&content), "looking at it is enough");

            // Killed when it had got its name, before its record was put away.
            let _ = fs::remove_file(cache.pieces_path(content.key));
            fs::write(&record, &all).expect("it still lies there");
            assert_eq!(cache.check_object(&content, PIECE).expect("it can be read"), Some(true));
            cache.delete_object(content.key).expect("it can be removed");
            assert!(!record.exists(), "and its record goes with it");
        }
    }

    #[test]
    fn a_wrong_piece_is_never_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path()).expect("a cache");
        let (bytes, content) = (bytes(), Content::of(&bytes(), PIECE));
        let partial = open(&cache, &content);
        let wrong = partial.write(1, &bytes[..PIECE as usize], "a.weight").expect_err("it is the first piece");
        assert_eq!(wrong.to_string(), "the bytes of `a.weight` are not those of the manifest");
        assert!(partial.write(0, &bytes[..100], "a.weight").is_err(), "a piece is whole or none");
        assert!(!partial.has(0) && !partial.has(1));
    }
}
