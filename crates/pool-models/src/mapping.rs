//! Model files mapped into memory: the only unsafe call of this crate.

use std::{fs::File, io, path::Path};

/// A file mapped read-only, with the handle kept to notice that it shrank.
#[derive(Debug)]
pub(crate) struct Mapping {
    file: File,
    map: memmap2::Mmap,
}

impl Mapping {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
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
        Ok(Self { file, map })
    }

    /// All bytes, as long as the file was when it was opened.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The file's length now.
    pub(crate) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}
