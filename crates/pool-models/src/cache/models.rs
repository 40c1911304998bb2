//! The models in a cache: which there are, what of them must stay, and taking them out again.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use alloy_primitives::{Address, B256};
use pool_types::{ByteSize, LayerRange};
use serde::{Deserialize, Serialize};

use super::{
    Cache, CacheError, LEASE, MANIFEST, PARTIAL, USE,
    error::failed,
    files::{plain, read_note, replace, sync_folder},
    tidy::REMOVED,
};
use crate::{
    manifest::{Content, Manifest},
    open::layout,
    plan::Wanted,
    source::TensorName,
};

/// What `list` says of a model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// The hash of its manifest.
    pub hash: B256,
    /// What it is called; the hash where its manifest cannot be read.
    pub name: String,
    /// The path to open it by.
    pub path: PathBuf,
    /// Bytes of the whole model.
    pub total: ByteSize,
    /// Bytes of it that are here, unfinished parts included.
    pub cached: ByteSize,
    /// What has been assigned to this machine.
    pub assigned: Vec<Wanted>,
    /// The owner asked to keep it.
    pub pinned: bool,
    /// A shard has it open or a download fills it.
    pub in_use: bool,
    /// When it was last opened or downloaded.
    pub used: SystemTime,
    /// Whose signature over this manifest it came with.
    pub signer: Option<Address>,
    /// Whether its bytes can be checked against hashes that do not come from the host.
    pub hashed: bool,
    /// One sentence where something of it cannot be read: it cannot be opened then, or must be added again.
    pub broken: Option<String>,
}

/// What the owner wants with a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Use {
    pub(super) pinned: bool,
    pub(super) assigned: Vec<Wanted>,
}

impl Use {
    /// Whether anything of the model must stay.
    pub(super) fn keeps(&self) -> bool {
        self.pinned || !self.assigned.is_empty()
    }
}

impl Cache {
    /// Assigns a part of a model to this machine: it is evicted only after it has been taken back. Returns whether it
    /// was not assigned before.
    pub fn assign(&self, hash: B256, wanted: Wanted) -> Result<bool, CacheError> {
        self.change_use(hash, |now| {
            let new = !now.assigned.contains(&wanted);
            if new {
                now.assigned.push(wanted);
            }
            new
        })
    }

    /// Takes an assigned part back. Its bytes stay until the space is needed.
    pub fn unassign(&self, hash: B256, wanted: Wanted) -> Result<(), CacheError> {
        self.change_use(hash, |now| now.assigned.retain(|other| *other != wanted))
    }

    /// Takes every assigned part of a model back but this one.
    pub fn unassign_others(&self, hash: B256, wanted: Wanted) -> Result<(), CacheError> {
        self.change_use(hash, |now| now.assigned.retain(|other| *other == wanted))
    }

    /// Keeps everything of a model, or lets it go.
    pub fn pin(&self, hash: B256, pinned: bool) -> Result<(), CacheError> {
        self.change_use(hash, |now| now.pinned = pinned)
    }

    fn change_use<T>(&self, hash: B256, change: impl FnOnce(&mut Use) -> T) -> Result<T, CacheError> {
        let path = self.model_path(hash).join(USE);
        let _guard = self.guard(true)?;
        let (mut now, broken) = self.read_use(hash)?;
        let before = now.clone();
        let changed = change(&mut now);
        if now != before || broken.is_some() {
            replace(&path, &serde_json::to_vec(&now).unwrap_or_default())?;
        }
        Ok(changed)
    }

    /// What the owner wants with a model. Where the note of it is broken, everything of the model must stay; what is
    /// wrong with the note comes along.
    pub(super) fn read_use(&self, hash: B256) -> Result<(Use, Option<CacheError>), CacheError> {
        match read_note(&self.model_path(hash).join(USE)) {
            Ok(note) => Ok((note.unwrap_or_default(), None)),
            Err(broken @ CacheError::Note { .. }) => Ok((Use { pinned: true, assigned: Vec::new() }, Some(broken))),
            Err(error) => Err(error),
        }
    }

    pub(super) fn used(&self, hash: B256) -> SystemTime {
        let modified = |name: &str| fs::metadata(self.model_path(hash).join(name)).ok()?.modified().ok();
        modified(LEASE).or_else(|| modified(MANIFEST)).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Every model, with what of it is here, broken ones included.
    pub fn list(&self) -> Result<Vec<CachedModel>, CacheError> {
        let mut models: Vec<CachedModel> = self.hashes()?.into_iter().map(|hash| self.describe(hash)).collect();
        // Looking takes the lease for a moment, so nobody may be taking one.
        let _guard = self.guard(true)?;
        for model in &mut models {
            match self.is_in_use(model.hash) {
                Ok(in_use) => model.in_use = in_use,
                Err(error) => note(&mut model.broken, &error),
            }
        }
        Ok(models)
    }

    fn describe(&self, hash: B256) -> CachedModel {
        let mut model = CachedModel {
            hash,
            name: plain(hash),
            path: self.model_path(hash),
            total: ByteSize(0),
            cached: ByteSize(0),
            assigned: Vec::new(),
            pinned: false,
            in_use: false,
            used: self.used(hash),
            signer: None,
            hashed: false,
            broken: None,
        };
        match self.read_use(hash) {
            Ok((Use { pinned, assigned }, broken)) => {
                (model.pinned, model.assigned) = (pinned, assigned);
                broken.iter().for_each(|error| note(&mut model.broken, error));
            }
            Err(error) => note(&mut model.broken, &error),
        }
        match self.manifest(hash) {
            Ok(manifest) => self.describe_contents(&mut model, &manifest),
            Err(error) => note(&mut model.broken, &error),
        }
        model
    }

    fn describe_contents(&self, model: &mut CachedModel, manifest: &Manifest) {
        model.name.clone_from(&manifest.name);
        model.hashed = manifest.is_hashed();
        let contents = self.contents(model.hash, manifest.piece_bytes);
        for content in unique(manifest) {
            model.total.0 = model.total.0.saturating_add(content.length);
            match contents.bytes_here(content) {
                Ok(bytes) => model.cached.0 = model.cached.0.saturating_add(bytes),
                Err(error) => note(&mut model.broken, &error),
            }
        }
        match self.signature(model.hash) {
            Ok(signature) => {
                let over_this = signature.map(|signature| signature.signer_over(model.hash, &manifest.name));
                match over_this.transpose() {
                    Ok(signer) => model.signer = signer,
                    Err(error) => note(&mut model.broken, &error),
                }
            }
            Err(error) => note(&mut model.broken, &error),
        }
    }

    /// Which layers of a model are here whole.
    pub fn layers_here(&self, manifest: &Manifest) -> Result<Vec<LayerRange>, CacheError> {
        let unusable =
            |source| CacheError::Manifest { path: self.model_path(manifest.hash()), source: Box::new(source) };
        let contents = self.contents(manifest.hash(), manifest.piece_bytes);
        let by_name: HashMap<&str, &Content> =
            manifest.tensors.iter().map(|tensor| (tensor.name.as_str(), &tensor.content)).collect();
        let mut here = vec![true; manifest.config.layers as usize];
        for (name, info) in manifest.index().map_err(|error| unusable(error.into()))? {
            let TensorName::Layer(layer, _) = name else { continue };
            let Some(all) = here.get_mut(layer as usize).filter(|all| **all) else { continue };
            *all = match by_name.get(info.file_name.as_str()) {
                Some(content) => contents.has(content)?,
                None => false,
            };
        }
        let mut end = 0;
        let runs = here.chunk_by(|a, b| a == b).map(|run| {
            let start = end;
            end += run.len() as u32;
            LayerRange::new(start, end).ok().filter(|_| run[0])
        });
        Ok(runs.flatten().collect())
    }

    /// Removes a model and whatever of its bytes no other model names. Returns how much space that gave.
    pub fn remove(&self, hash: B256) -> Result<ByteSize, CacheError> {
        let _guard = self.guard(true)?;
        let path = self.model_path(hash);
        self.must_be_here(hash)?;
        if self.is_in_use(hash)? {
            let name = self.manifest(hash).map_or_else(|_| plain(hash), |manifest| manifest.name);
            return Err(CacheError::InUse(name));
        }
        // Out of the list in one step: a kill leaves the whole model there or nothing of it.
        let aside = self.root.join(PARTIAL).join(plain(hash)).with_extension(REMOVED);
        fs::rename(&path, &aside).map_err(failed("remove", &path))?;
        sync_folder(path.parent().unwrap_or(&path))?;
        fs::remove_dir_all(&aside).map_err(failed("remove", &aside))?;
        self.delete_unnamed().map(ByteSize)
    }

    /// Takes what the manifest names over from files on this machine. Returns the bytes that were not here before.
    pub fn import(&self, manifest: &Manifest, files: &Path, wanted: Wanted) -> Result<ByteSize, CacheError> {
        let hash = self.put(manifest, None)?;
        let _lease = self.lease(hash)?;
        let contents = self.contents(hash, manifest.piece_bytes);
        let unusable = |error| CacheError::Import(Box::new(error));
        let layout = layout(files).map_err(unusable)?;
        let mut taken = 0;
        for item in manifest.items(wanted) {
            let wrong = || CacheError::WrongBytes(item.name.clone());
            let path = manifest.path(item.file);
            let weights = layout.files.iter().find(|(name, _)| name == path).map(|(_, mapping)| mapping.bytes());
            let words = layout.words.iter().find(|(name, _)| name == path).map(|(_, bytes)| bytes.as_slice());
            // A GGUF file may have been renamed: there is only the one.
            let only = layout.files.first().filter(|_| layout.files.len() == 1 && manifest.files.len() == 1);
            let file = weights.or(words).or(only.map(|(_, mapping)| mapping.bytes())).ok_or_else(wrong)?;
            let start = usize::try_from(item.offset).map_err(|_| wrong())?;
            let bytes = file.get(start..).ok_or_else(wrong)?;
            let length = usize::try_from(item.content.length).map_err(|_| wrong())?;
            let bytes = bytes.get(..length).ok_or_else(wrong)?;
            taken += contents.store(&item, bytes)?;
        }
        Ok(ByteSize(taken))
    }
}

/// The first thing that is wrong is said.
fn note(broken: &mut Option<String>, error: &dyn std::error::Error) {
    broken.get_or_insert_with(|| error.to_string());
}

/// Each content of a manifest once.
pub(super) fn unique(manifest: &Manifest) -> Vec<&Content> {
    let mut seen = std::collections::HashSet::new();
    manifest.contents().filter(|content| content.length > 0 && seen.insert(content.key)).collect()
}
