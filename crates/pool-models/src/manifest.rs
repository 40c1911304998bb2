//! What a model is, to the byte: every tensor with its name, type, shape, place and hash, and the small files beside
//! them. The hash of a manifest names a model in a coalition's proposal, and the pool's owner signs it
//! ([`SignedManifest`]).
//!
//! All hashes are SHA-256. It is what Hugging Face publishes for whole files, the crate has it already, and processors
//! compute it faster than disks and lines deliver. A tensor is hashed in *pieces* (8 MiB), so that a download is
//! verified and resumed piece by piece: its hash is that of the list of its pieces' hashes, which no second pass over
//! the bytes is needed for.

mod check;
mod local;
mod signed;

use std::collections::BTreeMap;

use alloy_primitives::B256;
use pool_types::ModelId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use check::ManifestError;
pub use local::ManifestOptions;
pub use signed::{SignedManifest, SigningError};

use crate::{
    config::ModelConfig,
    files::{Listed, find, index_id},
    names::Naming,
    open::{ModelFormat, OpenError},
    source::{TensorInfo, TensorName, TensorType},
};

/// A model to the byte. One that was made here or parsed has been checked: extents lie inside their files, sizes agree
/// with types and shapes, no path leaves the model's folder, and every tensor the configuration asks for is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The form of the file; [`Manifest::VERSION`].
    pub version: u32,
    /// What people call the model.
    pub name: String,
    /// Which revision of its source it was made from, such as a commit; may be empty.
    pub revision: String,
    /// What its files are.
    pub format: ModelFormat,
    /// Bytes of a piece: the last of a tensor may be shorter. A power of two.
    pub piece_bytes: u32,
    /// The model's shape, so that a shard needs nothing but its tensors.
    pub config: ModelConfig,
    /// The files that hold weights.
    pub files: Vec<WeightFile>,
    /// Every tensor of these files, by name.
    pub tensors: Vec<ManifestTensor>,
    /// The small files of a Hugging Face directory: configuration, tokenizer, templates. Empty for GGUF, whose header
    /// holds all that.
    pub words: Vec<WordFile>,
}

/// A file that holds weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightFile {
    /// Where it lies, relative to the model's folder, parts separated by `/`.
    pub path: String,
    /// Its length in bytes.
    pub length: u64,
    /// SHA-256 of the whole file. Absent where bytes between tensors are not zero, so that it could not be put
    /// together again from header and tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<B256>,
    /// The ETag a host gave it, or for want of one the date of its last change, where the manifest was made from a
    /// host's headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Everything before the first tensor.
    pub header: Content,
}

/// A tensor, where it lies and what its bytes hash to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestTensor {
    /// The name in the file.
    pub name: String,
    /// Element type, as its format writes it: `BF16`, `Q4_K`.
    pub kind: String,
    /// Row-major shape, outermost first.
    pub shape: Vec<u64>,
    /// Which of the manifest's files, from 0.
    pub file: u32,
    /// First byte in that file.
    pub offset: u64,
    /// Its bytes.
    pub content: Content,
}

/// A small file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WordFile {
    /// Its name in the model's folder.
    pub path: String,
    /// Its bytes.
    pub content: Content,
}

/// Bytes, known by their hash: what the cache keeps as one file, whichever models and shards share it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// SHA-256 of `computepool content 1`, a line feed, the length and the size of a piece (both 8 bytes, little
    /// endian) and the pieces' hashes. Where no hash is known (see [`Manifest::is_hashed`]), a name made of the place
    /// the bytes come from.
    pub key: B256,
    /// How many bytes.
    pub length: u64,
    /// SHA-256 of each piece in order; empty where no hash is known.
    #[serde(with = "joined")]
    pub pieces: Vec<B256>,
}

impl Content {
    /// The content of these bytes.
    pub fn of(bytes: &[u8], piece_bytes: u32) -> Self {
        let pieces = bytes.chunks(piece_bytes.max(1) as usize).map(hash_of).collect();
        Self::of_pieces(bytes.len() as u64, piece_bytes, pieces)
    }

    /// The content of bytes whose pieces' hashes are known.
    pub fn of_pieces(length: u64, piece_bytes: u32, pieces: Vec<B256>) -> Self {
        Self { key: key_of(length, piece_bytes, &pieces), length, pieces }
    }

    /// Whether its bytes can be checked against hashes; what is empty needs none.
    pub(crate) fn is_hashed(&self) -> bool {
        self.length == 0 || !self.pieces.is_empty()
    }

    /// Bytes whose hash nobody has told: named after where they come from, so that the same place under the same
    /// ETag is the same content.
    #[cfg(feature = "downloads")]
    pub(crate) fn unhashed(host: &str, path: &str, etag: Option<&str>, offset: u64, length: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"computepool unhashed content 1\n");
        for part in [host, path, etag.unwrap_or_default()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(offset.to_le_bytes());
        hash.update(length.to_le_bytes());
        Self { key: finish(hash), length, pieces: Vec::new() }
    }

    /// Some bytes of that length that nobody knows the hash of.
    #[cfg(test)]
    pub(crate) fn unhashed_for_tests(length: u64) -> Self {
        Self { key: hash_of(b"some place"), length, pieces: Vec::new() }
    }

    /// How many pieces it has.
    pub fn piece_count(&self, piece_bytes: u32) -> u32 {
        u32::try_from(self.length.div_ceil(u64::from(piece_bytes.max(1)))).unwrap_or(u32::MAX)
    }

    /// Where piece `piece` lies in it: first byte and length. Beyond the last piece the length is 0.
    pub fn piece_place(&self, piece: u32, piece_bytes: u32) -> (u64, u32) {
        let start = u64::from(piece) * u64::from(piece_bytes);
        let length = self.length.saturating_sub(start).min(u64::from(piece_bytes));
        (start, u32::try_from(length).unwrap_or(piece_bytes))
    }
}

/// The key of a content whose pieces' hashes are known; see [`Content::key`].
fn key_of(length: u64, piece_bytes: u32, pieces: &[B256]) -> B256 {
    let mut hash = Sha256::new();
    hash.update(b"computepool content 1\n");
    hash.update(length.to_le_bytes());
    hash.update(u64::from(piece_bytes).to_le_bytes());
    pieces.iter().for_each(|piece| hash.update(piece));
    finish(hash)
}

/// SHA-256.
pub(crate) fn hash_of(bytes: &[u8]) -> B256 {
    let mut hash = Sha256::new();
    hash.update(bytes);
    finish(hash)
}

pub(crate) fn finish(hash: Sha256) -> B256 {
    let digest: [u8; 32] = hash.finalize().into();
    digest.into()
}

/// Which bytes of which file something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The tensor's or the file's name, for messages.
    pub name: String,
    /// Which file: [`Manifest::path`] says where it lies.
    pub file: usize,
    /// First byte in that file.
    pub offset: u64,
    /// The bytes.
    pub content: Content,
}

impl Manifest {
    /// The form this version writes and reads.
    pub const VERSION: u32 = 1;
    /// The longest manifest that is read: that of a model of a trillion parameters takes some 20 MB.
    pub const MAX_BYTES: usize = 64 << 20;
    /// Bytes of a piece, unless chosen otherwise.
    pub const PIECE_BYTES: u32 = 8 << 20;
    /// The most pieces of all contents together: what is kept of each piece must fit into memory. At 8 MiB a piece these
    /// are 32 TiB.
    pub const MOST_PIECES: u64 = 1 << 22;

    /// Reads the canonical form and checks every rule. Never panics, whatever the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > Self::MAX_BYTES {
            return Err(ManifestError::TooLong(bytes.len()));
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        manifest.validate()?;
        if manifest.to_bytes() != bytes {
            return Err(ManifestError::NotCanonical);
        }
        Ok(manifest)
    }

    /// The canonical form: JSON without spaces, fields in the order of these structures, hashes in lower case.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Nothing in the structure can fail to become JSON: no map has keys that are not text.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// SHA-256 of the canonical form: what a proposal names and the pool's owner signs.
    pub fn hash(&self) -> B256 {
        hash_of(&self.to_bytes())
    }

    /// Whether every byte can be checked. A manifest made from a plain host's headers has no hashes: what comes of
    /// it must be shown as not verified.
    pub fn is_hashed(&self) -> bool {
        self.contents().all(|content| content.pieces.len() as u64 == u64::from(content.piece_count(self.piece_bytes)))
    }

    /// The id that [`crate::Model::open`] gives this model.
    pub fn model_id(&self) -> Result<ModelId, ManifestError> {
        Ok(index_id(self.index()?.values()))
    }

    /// The path of a file that an [`Item`] names: weights first, small files after them.
    pub fn path(&self, file: usize) -> &str {
        let words = file.checked_sub(self.files.len()).and_then(|number| self.words.get(number));
        let weights = self.files.get(file).map(|file| file.path.as_str());
        weights.or(words.map(|word| word.path.as_str())).unwrap_or_default()
    }

    /// The length of such a file.
    pub fn length(&self, file: usize) -> u64 {
        let words = file.checked_sub(self.files.len()).and_then(|number| self.words.get(number));
        self.files.get(file).map(|file| file.length).or(words.map(|word| word.content.length)).unwrap_or(0)
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.content.length))
    }

    /// Every content it names: headers, tensors, small files.
    pub fn contents(&self) -> impl Iterator<Item = &Content> {
        let headers = self.files.iter().map(|file| &file.header);
        headers.chain(self.tensors.iter().map(|tensor| &tensor.content)).chain(self.words.iter().map(|w| &w.content))
    }

    /// The tensors that the configuration asks for, by place in the model.
    pub(crate) fn index(&self) -> Result<BTreeMap<TensorName, TensorInfo>, OpenError> {
        let naming = match self.format {
            ModelFormat::Safetensors => Naming::HuggingFace,
            ModelFormat::Gguf => Naming::Gguf,
        };
        find(&self.config, naming, self.listed())
    }

    fn listed(&self) -> BTreeMap<String, Listed> {
        let listed = |tensor: &ManifestTensor| Listed {
            shape: tensor.shape.iter().map(|&n| usize::try_from(n).unwrap_or(usize::MAX)).collect(),
            kind: TensorType::from_name(&tensor.kind).ok_or_else(|| tensor.kind.clone()),
            file: tensor.file as usize,
            offset: tensor.offset,
            length: tensor.content.length,
        };
        self.tensors.iter().map(|tensor| (tensor.name.clone(), listed(tensor))).collect()
    }
}

/// Hashes as one text: `0x` and 64 digits for each.
mod joined {
    use alloy_primitives::{B256, Bytes};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(hashes: &[B256], serializer: S) -> Result<S::Ok, S::Error> {
        Bytes::from(hashes.concat()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<B256>, D::Error> {
        let bytes = Bytes::deserialize(deserializer)?;
        if !bytes.len().is_multiple_of(32) {
            return Err(D::Error::custom("a list of hashes is not whole"));
        }
        Ok(bytes.chunks_exact(32).map(B256::from_slice).collect())
    }
}
