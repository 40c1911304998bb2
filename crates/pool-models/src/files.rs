//! The [`TensorSource`] over local files.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use pool_types::ModelId;
use sha2::{Digest, Sha256};

use crate::{
    config::ModelConfig,
    mapping::Mapping,
    names::Naming,
    open::OpenError,
    source::{TensorError, TensorInfo, TensorName, TensorSource, TensorType},
};

/// A tensor as a file's index has it, before anybody knows what it is for.
pub(crate) struct Listed {
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: Result<TensorType, String>,
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A model's files, mapped, with an index by place.
pub(crate) struct Files {
    names: Vec<String>,
    mappings: Vec<Mapping>,
    tensors: BTreeMap<TensorName, TensorInfo>,
    read: AtomicU64,
}

impl Files {
    /// Finds every tensor the configuration asks for.
    pub(crate) fn new(
        files: Vec<(String, Mapping)>,
        config: &ModelConfig,
        naming: Naming,
        listed: BTreeMap<String, Listed>,
    ) -> Result<Self, OpenError> {
        let tensors = find(config, naming, listed)?;
        let (names, mappings) = files.into_iter().unzip();
        Ok(Self { names, mappings, tensors, read: AtomicU64::new(0) })
    }

    pub(crate) fn id(&self) -> ModelId {
        index_id(self.tensors.values())
    }
}

/// Every tensor the configuration asks for, each in the right shape and of a known type; others (such as stored
/// rotary frequencies) are left aside.
pub(crate) fn find(
    config: &ModelConfig,
    naming: Naming,
    mut listed: BTreeMap<String, Listed>,
) -> Result<BTreeMap<TensorName, TensorInfo>, OpenError> {
    let mut tensors = BTreeMap::new();
    for (name, expected) in config.tensors() {
        let mut file_name = naming.file_name(name);
        let mut found = listed.remove(&file_name);
        if found.is_none()
            && let Some(bare) = file_name.strip_prefix("model.").map(str::to_owned)
            && naming == Naming::HuggingFace
        {
            // Saved from the bare model, without its head: no `model.` before the names.
            found = listed.remove(&bare);
            if found.is_some() {
                file_name = bare;
            }
        }
        let Some(found) = found else { return Err(OpenError::MissingTensor(file_name)) };
        if found.shape != expected {
            return Err(OpenError::Shape { tensor: file_name, expected, found: found.shape });
        }
        let kind = found.kind.map_err(|kind| OpenError::TensorType { tensor: file_name.clone(), kind })?;
        let Listed { shape, file, offset, length, .. } = found;
        tensors.insert(name, TensorInfo { file_name, kind, shape, file, offset, length });
    }
    Ok(tensors)
}

/// SHA-256 over the index: each tensor's name in the file, type, shape, file number, offset and length, in the order
/// of [`TensorName`].
pub(crate) fn index_id<'a>(tensors: impl Iterator<Item = &'a TensorInfo>) -> ModelId {
    let mut hash = Sha256::new();
    hash.update(b"computepool model index 1\n");
    for info in tensors {
        hash.update((info.file_name.len() as u64).to_le_bytes());
        hash.update(info.file_name.as_bytes());
        hash.update(info.kind.to_string().as_bytes());
        hash.update((info.shape.len() as u64).to_le_bytes());
        let place = [info.file as u64, info.offset, info.length];
        for number in info.shape.iter().map(|&n| n as u64).chain(place) {
            hash.update(number.to_le_bytes());
        }
    }
    let digest: [u8; 32] = hash.finalize().into();
    ModelId(digest.into())
}

impl TensorSource for Files {
    fn info(&self, name: TensorName) -> Option<&TensorInfo> {
        self.tensors.get(&name)
    }

    fn bytes(&self, name: TensorName) -> Result<Cow<'_, [u8]>, TensorError> {
        let info = self.tensors.get(&name).ok_or(TensorError::Missing(name))?;
        let (Some(mapping), Some(file)) = (self.mappings.get(info.file), self.names.get(info.file)) else {
            return Err(TensorError::Missing(name));
        };
        let bytes = mapping.tensor(info, info.offset, || file.clone())?;
        self.read.fetch_add(info.length, Ordering::Relaxed);
        Ok(Cow::Borrowed(bytes))
    }

    fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    fn names(&self) -> Vec<TensorName> {
        self.tensors.keys().copied().collect()
    }

    fn files(&self) -> Vec<String> {
        self.names.clone()
    }
}
