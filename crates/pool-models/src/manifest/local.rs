//! A manifest from the files on this machine.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::{Content, Manifest, ManifestError, ManifestTensor, WeightFile, WordFile, finish};
use crate::open::{Model, OpenError, layout};

/// What a manifest says that the files do not.
#[derive(Clone, Debug)]
pub struct ManifestOptions {
    /// What to call the model; the files' own name by default.
    pub name: Option<String>,
    /// Which revision of its source the files are.
    pub revision: String,
    /// Bytes of a piece: [`Manifest::PIECE_BYTES`] by default.
    pub piece_bytes: u32,
}

impl Default for ManifestOptions {
    fn default() -> Self {
        Self { name: None, revision: String::new(), piece_bytes: Manifest::PIECE_BYTES }
    }
}

impl Manifest {
    /// The manifest of a local model: a Hugging Face directory or a GGUF file. Reads and hashes every byte of it.
    pub fn of(path: &Path, options: &ManifestOptions) -> Result<Self, ManifestError> {
        let unusable = |error: OpenError| ManifestError::Open(Box::new(error));
        let model = Model::open(path).map_err(unusable)?;
        let layout = layout(path).map_err(unusable)?;
        let piece = options.piece_bytes;
        let mut files: Vec<WeightFile> = Vec::with_capacity(layout.files.len());
        let mut tensors = Vec::with_capacity(layout.listed.len());
        for (number, (name, mapping)) in layout.files.iter().enumerate() {
            let bytes = mapping.bytes();
            let mut inside: Vec<_> = layout.listed.iter().filter(|(_, listed)| listed.file == number).collect();
            inside.sort_by_key(|(_, listed)| listed.offset);
            let header_end = inside.iter().map(|(_, listed)| listed.offset).min().unwrap_or(bytes.len() as u64);
            let mut covered = header_end;
            let mut only_zeros_between = true;
            for (tensor, listed) in inside {
                let end = listed.offset.saturating_add(listed.length);
                let (Some(content), true) = (slice(bytes, listed.offset, end), end >= listed.offset) else {
                    return Err(ManifestError::Extent(tensor.clone()));
                };
                only_zeros_between &= slice(bytes, covered, listed.offset).is_none_or(is_zero);
                covered = covered.max(end);
                tensors.push(ManifestTensor {
                    name: tensor.clone(),
                    kind: match &listed.kind {
                        Ok(kind) => kind.to_string(),
                        Err(kind) => kind.clone(),
                    },
                    shape: listed.shape.iter().map(|&n| n as u64).collect(),
                    file: u32::try_from(number).unwrap_or(u32::MAX),
                    offset: listed.offset,
                    content: Content::of(content, piece),
                });
            }
            only_zeros_between &= slice(bytes, covered, bytes.len() as u64).is_none_or(is_zero);
            let mut whole = Sha256::new();
            whole.update(bytes);
            files.push(WeightFile {
                path: name.clone(),
                length: bytes.len() as u64,
                sha256: only_zeros_between.then(|| finish(whole)),
                etag: None,
                header: Content::of(slice(bytes, 0, header_end).unwrap_or_default(), piece),
            });
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let words = layout
            .words
            .iter()
            .map(|(path, bytes)| WordFile { path: path.clone(), content: Content::of(bytes, piece) });
        let manifest = Self {
            version: Self::VERSION,
            name: options.name.clone().unwrap_or(model.name),
            revision: options.revision.clone(),
            format: model.format,
            piece_bytes: piece,
            config: model.config.as_ref().clone(),
            files,
            tensors,
            words: words.collect(),
        };
        manifest.validate()?;
        Ok(manifest)
    }
}

fn slice(bytes: &[u8], start: u64, end: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}
