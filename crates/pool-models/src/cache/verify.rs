//! Reading again what is here, and whole files made of it.

use std::{
    fs::File,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use alloy_primitives::B256;
use pool_types::ByteSize;
use sha2::{Digest, Sha256};

use super::{Cache, CacheError, error::failed};
use crate::{
    manifest::{Manifest, finish},
    plan::Wanted,
};

/// Ends blocking work between two pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    #[cfg(any(test, feature = "downloads"))]
    pub(crate) fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// An error once it has been told to stop.
    pub(crate) fn check(&self) -> Result<(), CacheError> {
        if self.0.load(Ordering::Relaxed) { Err(CacheError::Stopped) } else { Ok(()) }
    }
}

/// How far a verification is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checking {
    /// The hash of the model's manifest.
    pub manifest: B256,
    /// The model's name.
    pub name: String,
    /// Bytes that are right so far.
    pub done: ByteSize,
    /// Bytes that are here.
    pub total: ByteSize,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Contents that are whole and right.
    pub whole: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Those that were not, and have been removed so that the next download fetches them again.
    pub broken: Vec<String>,
    /// Those that are not here.
    pub missing: usize,
}

impl Cache {
    /// Reads everything that is here of a model again, and removes what is not as it should be. A disk that cannot read
    /// is an error, and removes nothing.
    pub fn verify(&self, hash: B256) -> Result<Verified, CacheError> {
        self.verify_until(hash, &StopFlag::default(), |_| ())
    }

    /// As [`Self::verify`], until it is told to stop; tells how far it is.
    pub(crate) fn verify_until(
        &self,
        hash: B256,
        stop: &StopFlag,
        mut tell: impl FnMut(Checking),
    ) -> Result<Verified, CacheError> {
        let _lease = self.lease(hash)?;
        let manifest = self.manifest(hash)?;
        let contents = self.contents(hash, manifest.piece_bytes);
        let items = manifest.items(Wanted::everything(&manifest.config));
        let mut total = 0_u64;
        for item in &items {
            total = total.saturating_add(if contents.has(&item.content)? { item.content.length } else { 0 });
        }
        let (name, total) = (manifest.name.clone(), ByteSize(total));
        let (mut result, mut done) = (Verified::default(), 0_u64);
        for item in items {
            tell(Checking { manifest: hash, name: name.clone(), done: ByteSize(done), total });
            match contents.check(&item.content, stop)? {
                None => result.missing += 1,
                Some(true) => {
                    result.whole += 1;
                    result.bytes = result.bytes.saturating_add(item.content.length);
                    done = result.bytes.min(total.0);
                }
                Some(false) => {
                    let _guard = self.guard(true)?;
                    // Somebody may have put it right in the meantime.
                    if contents.check(&item.content, stop)? == Some(false) {
                        contents.delete(&item.content)?;
                        result.broken.push(item.name);
                    }
                }
            }
        }
        Ok(result)
    }

    /// Whether header and tensors, put together as they lie in the file, hash to what is known of the whole file.
    /// `None` where nothing is known, or where something of it is not here.
    pub fn check_file(&self, manifest: &Manifest, file: usize) -> Result<Option<bool>, CacheError> {
        self.check_file_until(manifest.hash(), manifest, file, &StopFlag::default())
    }

    pub(crate) fn check_file_until(
        &self,
        hash: B256,
        manifest: &Manifest,
        file: usize,
        stop: &StopFlag,
    ) -> Result<Option<bool>, CacheError> {
        let Some((weights, expected)) = manifest.files.get(file).and_then(|f| Some((f, f.sha256?))) else {
            return Ok(None);
        };
        let contents = self.contents(hash, manifest.piece_bytes);
        let tensors = manifest.tensors.iter().filter(|tensor| tensor.file as usize == file);
        let mut parts: Vec<_> = tensors.map(|tensor| (tensor.offset, &tensor.content)).collect();
        parts.push((0, &weights.header));
        parts.retain(|(_, content)| content.length > 0);
        parts.sort_by_key(|(offset, _)| *offset);
        parts.dedup_by_key(|(offset, _)| *offset);
        let mut whole = Sha256::new();
        let mut at = 0;
        let mut buffer = vec![0; 1 << 20];
        for (offset, content) in parts {
            if !contents.has(content)? {
                return Ok(None);
            }
            hash_zeros(&mut whole, offset.saturating_sub(at), stop)?;
            let path = contents.path(content);
            let mut object = File::open(&path).map_err(failed("open", &path))?;
            loop {
                stop.check()?;
                let read = object.read(&mut buffer).map_err(failed("read", &path))?;
                if read == 0 {
                    break;
                }
                whole.update(&buffer[..read]);
            }
            at = offset.saturating_add(content.length);
        }
        hash_zeros(&mut whole, weights.length.saturating_sub(at), stop)?;
        Ok(Some(finish(whole) == expected))
    }

    /// Deletes everything that is here of one file of a model.
    #[cfg(feature = "downloads")]
    pub(crate) fn discard_file(&self, hash: B256, manifest: &Manifest, file: usize) -> Result<(), CacheError> {
        let _guard = self.guard(true)?;
        let contents = self.contents(hash, manifest.piece_bytes);
        let tensors = manifest.tensors.iter().filter(|tensor| tensor.file as usize == file);
        let all = tensors.map(|tensor| &tensor.content).chain(manifest.files.get(file).map(|file| &file.header));
        for content in all {
            if contents.has(content)? {
                contents.delete(content)?;
            }
        }
        Ok(())
    }
}

/// The padding between tensors.
fn hash_zeros(hash: &mut Sha256, mut count: u64, stop: &StopFlag) -> Result<(), CacheError> {
    const ZEROS: [u8; 4096] = [0; 4096];
    while count > 0 {
        stop.check()?;
        let now = count.min(ZEROS.len() as u64);
        hash.update(&ZEROS[..now as usize]);
        count -= now;
    }
    Ok(())
}
