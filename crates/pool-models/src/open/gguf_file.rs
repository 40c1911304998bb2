use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{Layout, Model, ModelFormat, OpenError, Words, stem};
use crate::{
    config::ModelConfig,
    files::{Files, Listed},
    gguf::{Gguf, GgufError, GgufTensor},
    mapping::Mapping,
    names::Naming,
    template::ChatTemplate,
    tokenizer::Tokenizer,
};

pub(super) fn open(path: &Path) -> Result<Model, OpenError> {
    let (mapping, gguf) = read(path)?;
    let config = ModelConfig::from_gguf(&gguf).map_err(|source| OpenError::Config { path: path.to_owned(), source })?;
    let Words { tokenizer, chat_template } = words(path, &gguf, config.bos_token)?;
    let files = Files::new(vec![(file_name(path), mapping)], &config, Naming::Gguf, listed(&gguf))?;
    Ok(Model {
        id: files.id(),
        name: name(&gguf).unwrap_or_else(|| stem(path)),
        config: Arc::new(config),
        source: Arc::new(files),
        tokenizer,
        chat_template,
        format: ModelFormat::Gguf,
        lease: None,
    })
}

/// What the manifest of a GGUF file is made of.
pub(super) fn layout(path: &Path) -> Result<Layout, OpenError> {
    let (mapping, gguf) = read(path)?;
    Ok(Layout { files: vec![(file_name(path), mapping)], listed: listed(&gguf), words: Vec::new() })
}

/// The tokenizer and the chat template a header describes.
pub(super) fn words(path: &Path, gguf: &Gguf, bos_token: Option<u32>) -> Result<Words, OpenError> {
    let owned = || path.to_owned();
    let tokenizer =
        Tokenizer::from_gguf(gguf).map_err(|source| OpenError::Tokenizer { path: owned(), source })?.map(Arc::new);
    let template = gguf.text("tokenizer.chat_template").map(|source| {
        let token = |id: Option<u32>| id.and_then(|id| tokenizer.as_ref()?.token_text(id));
        let eos = gguf.unsigned("tokenizer.ggml.eos_token_id").and_then(|id| u32::try_from(id).ok());
        ChatTemplate::new(source, token(bos_token), token(eos))
    });
    let chat_template =
        template.transpose().map_err(|source| OpenError::Template { path: owned(), source })?.map(Arc::new);
    Ok(Words { tokenizer, chat_template })
}

/// `general.name`, where it says something.
pub(crate) fn name(gguf: &Gguf) -> Option<String> {
    gguf.text("general.name").map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The tensors of a header by name.
pub(crate) fn listed(gguf: &Gguf) -> BTreeMap<String, Listed> {
    let listed = |tensor: &GgufTensor| Listed {
        shape: tensor.shape.clone(),
        kind: tensor.kind.map_err(str::to_owned),
        file: 0,
        offset: tensor.offset,
        length: tensor.length,
    };
    gguf.tensors.iter().map(|tensor| (tensor.name.clone(), listed(tensor))).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn read(path: &Path) -> Result<(Mapping, Gguf), OpenError> {
    let owned = || path.to_owned();
    let mapping = Mapping::open(path).map_err(|source| OpenError::Read { path: owned(), source })?;
    let gguf = Gguf::parse(mapping.bytes()).map_err(|source| match source {
        GgufError::Magic => OpenError::NotAModel(owned()),
        source => OpenError::Gguf { path: owned(), source },
    })?;
    refuse_split(path, &gguf)?;
    Ok((mapping, gguf))
}

/// One part of several is no model.
pub(crate) fn refuse_split(path: &Path, gguf: &Gguf) -> Result<(), OpenError> {
    match gguf.unsigned("split.count").filter(|&parts| parts > 1) {
        Some(parts) => {
            let part = gguf.unsigned("split.no").unwrap_or(0).saturating_add(1);
            Err(OpenError::Split { path: path.to_owned(), part, parts })
        }
        None => Ok(()),
    }
}
