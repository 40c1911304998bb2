//! Model files mapped into memory: the only unsafe call of this crate.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use crate::source::{TensorError, TensorInfo};

/// A file mapped read-only, with what it takes to notice that it shrank.
#[derive(Debug)]
pub(crate) struct Mapping {
    origin: Origin,
    map: memmap2::Mmap,
}

/// Where a mapping's length is asked for.
#[derive(Debug)]
enum Origin {
    /// The open file.
    Handle(File),
    /// Its path: a cache maps hundreds of files, and a process may hold only so many open.
    Path(PathBuf),
}

impl Mapping {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let (file, map) = map(path)?;
        Ok(Self { origin: Origin::Handle(file), map })
    }

    /// As [`Self::open`], without holding the file open.
    pub(crate) fn open_by_path(path: &Path) -> io::Result<Self> {
        let (_, map) = map(path)?;
        Ok(Self { origin: Origin::Path(path.to_owned()), map })
    }

    /// All bytes, as long as the file was when it was opened.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The bytes of a tensor that begins at `start`; `file` says where, for messages.
    pub(crate) fn tensor(
        &self,
        info: &TensorInfo,
        start: u64,
        file: impl Fn() -> String,
    ) -> Result<&[u8], TensorError> {
        let end = start.saturating_add(info.length);
        let length = self.length().map_err(|source| TensorError::Read { file: file(), source })?;
        let place = || Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?);
        let bytes = place().filter(|_| end <= length).and_then(|place| self.bytes().get(place));
        let truncated = || TensorError::Truncated { file: file(), tensor: info.file_name.clone(), start, end, length };
        bytes.ok_or_else(truncated)
    }

    /// The file's length now. A file that was deleted keeps its bytes for as long as it is mapped.
    pub(crate) fn length(&self) -> io::Result<u64> {
        match &self.origin {
            Origin::Handle(file) => Ok(file.metadata()?.len()),
            Origin::Path(path) => match std::fs::metadata(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(self.map.len() as u64),
                metadata => Ok(metadata?.len()),
            },
        }
    }
}

fn map(path: &Path) -> io::Result<(File, memmap2::Mmap)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    #[allow(unsafe_code, reason = "memory-mapping a file has no safe form")]
    // SAFETY: the mapping is read-only and private. Another process could change the file under it; then the
    // numbers read are wrong but no Rust invariant breaks, since the bytes are only ever copied or parsed as
    // plain numbers, never as text or references. A file that shrinks would raise SIGBUS: model files are not
    // written in place, `length` is checked before each tensor is read, and headers are parsed right after
    // opening.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok((file, map))
}
