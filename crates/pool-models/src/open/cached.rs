//! A model in the cache of single tensors, opened by the path of its folder there.

use std::{path::Path, sync::Arc};

use super::{Model, OpenError, Words, directory::Folder, gguf_file};
use crate::{
    cache::{Cache, CachedTensors, Contents},
    files::index_id,
    gguf::{Gguf, GgufError},
    manifest::{Content, Manifest},
    open::ModelFormat,
};

pub(super) fn open(path: &Path) -> Result<Model, OpenError> {
    let (cache, hash) = Cache::of_model(path)?;
    let lease = cache.lease(hash)?;
    let manifest = cache.manifest(hash)?;
    let unusable = |source| OpenError::Manifest { path: path.to_owned(), source: Box::new(source) };
    let index = manifest.index().map_err(|error| unusable(error.into()))?;
    let contents = cache.contents(hash, manifest.piece_bytes);
    let Words { tokenizer, chat_template } = words(path, &contents, &manifest)?;
    Ok(Model {
        id: index_id(index.values()),
        name: manifest.name.clone(),
        config: Arc::new(manifest.config.clone()),
        source: Arc::new(CachedTensors::new(&contents, &manifest, index, lease.clone())?),
        tokenizer,
        chat_template,
        format: manifest.format,
        lease: Some(lease),
    })
}

/// The tokenizer and the template, where they have been downloaded: a shard needs neither.
fn words(path: &Path, contents: &Contents, manifest: &Manifest) -> Result<Words, OpenError> {
    let read = |content: &Content| contents.read(content).map_err(OpenError::from);
    match manifest.format {
        ModelFormat::Safetensors => {
            let by_name = |name: &str| match manifest.words.iter().find(|word| word.path == name) {
                Some(word) => read(&word.content),
                None => Ok(None),
            };
            Folder { path, read: &by_name }.words()
        }
        ModelFormat::Gguf => {
            let Some(file) = manifest.files.first() else { return Ok(Words::default()) };
            let Some(header) = read(&file.header)? else { return Ok(Words::default()) };
            let unusable = |source: GgufError| OpenError::Gguf { path: path.to_owned(), source };
            let gguf = Gguf::parse_prefix(&header, file.length).map_err(unusable)?;
            gguf_file::words(path, &gguf, manifest.config.bos_token)
        }
    }
}
