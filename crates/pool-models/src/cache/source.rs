//! The [`TensorSource`] over the cache: each tensor mapped from its own file, when it is first read.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{Contents, Lease};
use crate::{
    manifest::{Content, Manifest},
    mapping::Mapping,
    open::OpenError,
    source::{TensorError, TensorInfo, TensorName, TensorSource},
};

/// A model's tensors in the cache. Each has the place it has in the original files, so that the index and its id are
/// the same.
pub(crate) struct CachedTensors {
    tensors: BTreeMap<TensorName, Slot>,
    files: Vec<String>,
    read: AtomicU64,
    /// What has not been read yet may be read later, by whoever has this alone.
    _lease: Lease,
}

struct Slot {
    info: TensorInfo,
    object: PathBuf,
    mapping: OnceLock<Mapping>,
}

impl CachedTensors {
    /// The tensors of a manifest's index.
    pub(crate) fn new(
        contents: &Contents,
        manifest: &Manifest,
        index: BTreeMap<TensorName, TensorInfo>,
        lease: Lease,
    ) -> Result<Self, OpenError> {
        let named: HashMap<&str, &Content> = manifest.tensors.iter().map(|t| (t.name.as_str(), &t.content)).collect();
        let mut tensors = BTreeMap::new();
        for (name, info) in index {
            let content = named.get(info.file_name.as_str());
            let Some(content) = content else { return Err(OpenError::MissingTensor(info.file_name)) };
            let object = contents.path(content);
            tensors.insert(name, Slot { info, object, mapping: OnceLock::new() });
        }
        let files = manifest.files.iter().map(|file| file.path.clone()).collect();
        Ok(Self { tensors, files, read: AtomicU64::new(0), _lease: lease })
    }
}

impl Slot {
    fn mapping(&self) -> Result<&Mapping, TensorError> {
        if let Some(mapping) = self.mapping.get() {
            return Ok(mapping);
        }
        let mapping = Mapping::open_by_path(&self.object).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => TensorError::NotDownloaded(self.info.file_name.clone()),
            _ => TensorError::Read { file: self.object.display().to_string(), source },
        })?;
        Ok(self.mapping.get_or_init(|| mapping))
    }
}

impl TensorSource for CachedTensors {
    fn info(&self, name: TensorName) -> Option<&TensorInfo> {
        self.tensors.get(&name).map(|slot| &slot.info)
    }

    fn bytes(&self, name: TensorName) -> Result<Cow<'_, [u8]>, TensorError> {
        let slot = self.tensors.get(&name).ok_or(TensorError::Missing(name))?;
        let bytes = slot.mapping()?.tensor(&slot.info, 0, || slot.object.display().to_string())?;
        self.read.fetch_add(slot.info.length, Ordering::Relaxed);
        Ok(Cow::Borrowed(bytes))
    }

    fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    fn names(&self) -> Vec<TensorName> {
        self.tensors.keys().copied().collect()
    }

    fn files(&self) -> Vec<String> {
        self.files.clone()
    }
}
