//! The rules a manifest must keep, whoever wrote it.

use std::{
    collections::{HashMap, HashSet},
    path::{Component, Path},
};

use thiserror::Error;

use super::{Content, Manifest, key_of};
use crate::{config::ConfigError, open::OpenError, source::TensorType};

const MOST_FILES: usize = 4096;
const MOST_TENSORS: usize = 262_144;
const MOST_WORDS: usize = 16;
const LONGEST_NAME: usize = 512;
const LONGEST_PATH: usize = 255;
const MOST_DIMENSIONS: usize = 8;
/// A header or a small file beyond this is no model's: the largest vocabularies take some 30 MB.
const LARGEST_SMALL: u64 = 256 << 20;
const LEAST_PIECE: u32 = 4 << 10;
const LARGEST_PIECE: u32 = 64 << 20;

/// Why a manifest cannot be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Longer than any manifest is.
    #[error("the manifest is {0} bytes long; at most {max} are read", max = Manifest::MAX_BYTES)]
    TooLong(usize),
    /// Not JSON of the expected form.
    #[error("the manifest cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// The same content written in another way: its hash would be another.
    #[error(
        "the manifest is not in its canonical form, so its hash cannot be trusted; ask the pool's owner for the original file"
    )]
    NotCanonical,
    /// Written by another version of ComputePool.
    #[error("the manifest has form {0}; this version reads form {expected}", expected = Manifest::VERSION)]
    Version(u32),
    /// More of something than any model has, or none at all.
    #[error("the manifest lists {count} {what}; 1 to {most} are allowed")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// The most allowed.
        most: usize,
    },
    /// More pieces than anybody can keep account of.
    #[error("the manifest cuts its tensors into {0} pieces; at most {most} are allowed", most = Manifest::MOST_PIECES)]
    ManyPieces(u64),
    /// A name that is empty, too long, or has control characters.
    #[error("the manifest has an empty, overlong or unprintable name: `{0}`")]
    Name(String),
    /// A name that occurs twice.
    #[error("`{0}` stands in the manifest twice")]
    Twice(String),
    /// A path that does not stay inside the model's folder.
    #[error("the manifest names the file `{0}`, which is not inside the model's folder")]
    Path(String),
    /// A size of pieces that no manifest uses.
    #[error(
        "the manifest cuts tensors into pieces of {0} bytes; a power of two from {LEAST_PIECE} to {LARGEST_PIECE} is allowed"
    )]
    Piece(u32),
    /// A tensor outside its file.
    #[error("tensor `{0}` does not lie inside its file")]
    Extent(String),
    /// Two tensors that share some bytes but not all.
    #[error("tensors `{0}` and `{1}` overlap")]
    Overlap(String, String),
    /// A tensor whose bytes do not fit its type and shape.
    #[error("tensor `{tensor}` of type {kind} and shape {shape:?} cannot take {length} bytes")]
    Size {
        /// The tensor.
        tensor: String,
        /// Its type.
        kind: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes the manifest gives it.
        length: u64,
    },
    /// A header or small file larger than any real one.
    #[error("`{0}` has {1} bytes, more than {LARGEST_SMALL}")]
    Large(String, u64),
    /// Not one hash for each piece.
    #[error("`{0}` does not have one hash for each of its pieces")]
    Pieces(String),
    /// The pieces' hashes do not give the content's.
    #[error("the hash of `{0}` does not follow from the hashes of its pieces")]
    Key(String),
    /// Two contents of one key differ.
    #[error("`{0}` names two contents that are not the same")]
    Collision(String),
    /// The configuration breaks a rule.
    #[error("the manifest's configuration cannot be used: {0}")]
    Config(#[from] ConfigError),
    /// A tensor the configuration asks for is missing or of another shape.
    #[error("the manifest does not describe a whole model: {0}")]
    Index(#[source] Box<OpenError>),
    /// A local model of which no manifest can be made.
    #[error("no manifest can be made: {0}")]
    Open(#[source] Box<OpenError>),
    /// Nothing can be checked against it, so nobody may sign it.
    #[error(
        "the manifest was made from a host's headers and has no hashes; make it from the downloaded files before signing it"
    )]
    NotHashed,
    /// The signature is malformed.
    #[error("the manifest's signature is not one")]
    Signature,
    /// Somebody else signed it.
    #[error("the manifest is signed by {found}, not by the pool's owner {expected}")]
    Signer {
        /// Who signed.
        found: alloy_primitives::Address,
        /// Who should have.
        expected: alloy_primitives::Address,
    },
}

impl From<OpenError> for ManifestError {
    fn from(error: OpenError) -> Self {
        Self::Index(Box::new(error))
    }
}

impl Manifest {
    /// Checks every rule.
    pub fn validate(&self) -> Result<(), ManifestError> {
        if self.version != Self::VERSION {
            return Err(ManifestError::Version(self.version));
        }
        if !self.piece_bytes.is_power_of_two() || !(LEAST_PIECE..=LARGEST_PIECE).contains(&self.piece_bytes) {
            return Err(ManifestError::Piece(self.piece_bytes));
        }
        for (what, count, most) in
            [("files", self.files.len(), MOST_FILES), ("tensors", self.tensors.len(), MOST_TENSORS)]
        {
            if count == 0 || count > most {
                return Err(ManifestError::Count { what, count, most });
            }
        }
        if self.words.len() > MOST_WORDS {
            return Err(ManifestError::Count { what: "small files", count: self.words.len(), most: MOST_WORDS });
        }
        name(&self.name)?;
        if !self.revision.is_empty() {
            name(&self.revision)?;
        }
        let pieces = self
            .contents()
            .fold(0u64, |sum, content| sum.saturating_add(content.length.div_ceil(u64::from(self.piece_bytes))));
        if pieces > Self::MOST_PIECES {
            return Err(ManifestError::ManyPieces(pieces));
        }
        self.config.validate()?;
        self.validate_files()?;
        self.validate_tensors()?;
        self.validate_keys()?;
        self.index()?;
        Ok(())
    }

    fn validate_files(&self) -> Result<(), ManifestError> {
        let mut paths = HashSet::new();
        for path in self.files.iter().map(|file| &file.path).chain(self.words.iter().map(|word| &word.path)) {
            inside(path)?;
            if !paths.insert(path) {
                return Err(ManifestError::Twice(path.clone()));
            }
        }
        for file in &self.files {
            if let Some(etag) = &file.etag {
                name(etag)?;
            }
            if file.header.length > file.length {
                return Err(ManifestError::Extent(file.path.clone()));
            }
            self.small(&file.path, &file.header)?;
        }
        self.words.iter().try_for_each(|word| self.small(&word.path, &word.content))
    }

    fn small(&self, path: &str, content: &Content) -> Result<(), ManifestError> {
        if content.length > LARGEST_SMALL {
            return Err(ManifestError::Large(path.to_owned(), content.length));
        }
        self.content(path, content)
    }

    fn validate_tensors(&self) -> Result<(), ManifestError> {
        let mut names = HashSet::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            name(&tensor.name)?;
            name(&tensor.kind)?;
            if !names.insert(&tensor.name) {
                return Err(ManifestError::Twice(tensor.name.clone()));
            }
            let end = tensor.offset.checked_add(tensor.content.length);
            let file = self.files.get(tensor.file as usize);
            let lies_inside =
                file.zip(end).is_some_and(|(file, end)| tensor.offset >= file.header.length && end <= file.length);
            if !lies_inside {
                return Err(ManifestError::Extent(tensor.name.clone()));
            }
            let elements = tensor.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
            let fits = match TensorType::from_name(&tensor.kind) {
                Some(kind) => elements.and_then(|n| kind.byte_length(n)) == Some(tensor.content.length),
                // The engine reads none of these; their bytes only count as part of a whole file.
                None => elements.is_some(),
            };
            if !fits || tensor.shape.len() > MOST_DIMENSIONS {
                return Err(ManifestError::Size {
                    tensor: tensor.name.clone(),
                    kind: tensor.kind.clone(),
                    shape: tensor.shape.clone(),
                    length: tensor.content.length,
                });
            }
            self.content(&tensor.name, &tensor.content)?;
        }
        let place = |tensor: &super::ManifestTensor| (tensor.file, tensor.offset, tensor.content.length);
        let mut by_place: Vec<_> = self.tensors.iter().filter(|tensor| tensor.content.length > 0).collect();
        by_place.sort_by_key(|tensor| place(tensor));
        for pair in by_place.windows(2) {
            let [first, second] = pair else { continue };
            let tied = place(first) == place(second) && first.content == second.content;
            let apart = first.file != second.file || first.offset + first.content.length <= second.offset;
            if !tied && !apart {
                return Err(ManifestError::Overlap(first.name.clone(), second.name.clone()));
            }
        }
        Ok(())
    }

    fn content(&self, what: &str, content: &Content) -> Result<(), ManifestError> {
        let expected = content.length.div_ceil(u64::from(self.piece_bytes));
        if content.pieces.is_empty() && expected > 0 {
            return Ok(()); // Not hashed; either all contents are or none is, see `validate_keys`.
        }
        if content.pieces.len() as u64 != expected {
            return Err(ManifestError::Pieces(what.to_owned()));
        }
        if key_of(content.length, self.piece_bytes, &content.pieces) != content.key {
            return Err(ManifestError::Key(what.to_owned()));
        }
        Ok(())
    }

    fn validate_keys(&self) -> Result<(), ManifestError> {
        let mut with_bytes = self.contents().filter(|content| content.length > 0);
        let first = with_bytes.next().is_some_and(Content::is_hashed);
        if with_bytes.any(|content| content.is_hashed() != first) {
            return Err(ManifestError::Pieces(self.name.clone()));
        }
        let mut lengths = HashMap::new();
        for content in self.contents() {
            if lengths.insert(content.key, content.length).is_some_and(|length| length != content.length) {
                return Err(ManifestError::Collision(content.key.to_string()));
            }
        }
        if first { Ok(()) } else { self.validate_places() }
    }

    /// Where no hash tells contents apart, only their place does: no two places may have the same key.
    fn validate_places(&self) -> Result<(), ManifestError> {
        let headers = self.files.iter().enumerate().map(|(file, weights)| ((file, 0), &weights.header));
        let tensors = self.tensors.iter().map(|tensor| ((tensor.file as usize, tensor.offset), &tensor.content));
        let words = (self.files.len()..).zip(&self.words).map(|(file, word)| ((file, 0), &word.content));
        let mut places = HashMap::new();
        for (place, content) in headers.chain(tensors).chain(words).filter(|(_, content)| content.length > 0) {
            if places.insert(content.key, place).is_some_and(|other| other != place) {
                return Err(ManifestError::Collision(content.key.to_string()));
            }
        }
        Ok(())
    }
}

fn name(text: &str) -> Result<(), ManifestError> {
    if text.is_empty() || text.len() > LONGEST_NAME || text.chars().any(char::is_control) {
        return Err(ManifestError::Name(text.chars().filter(|c| !c.is_control()).take(80).collect()));
    }
    Ok(())
}

/// Names of files that mean the same on every system, and stay below the folder they are joined to.
fn inside(path: &str) -> Result<(), ManifestError> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let portable = !path.contains(['\\', ':']) && !path.split('/').any(|part| part.is_empty() || part == ".");
    if path.len() > LONGEST_PATH || path.chars().any(char::is_control) || !plain || !portable || path.is_empty() {
        return Err(ManifestError::Path(path.chars().filter(|c| !c.is_control()).take(80).collect()));
    }
    Ok(())
}
