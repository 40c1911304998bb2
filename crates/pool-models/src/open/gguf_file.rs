use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{Model, ModelFormat, OpenError, stem};
use crate::{
    config::ModelConfig,
    files::{Files, Listed},
    gguf::{Gguf, GgufError},
    mapping::Mapping,
    names::Naming,
    template::ChatTemplate,
    tokenizer::Tokenizer,
};

pub(super) fn open(path: &Path) -> Result<Model, OpenError> {
    let owned = || path.to_owned();
    let mapping = Mapping::open(path).map_err(|source| OpenError::Read { path: owned(), source })?;
    let gguf = Gguf::parse(mapping.bytes()).map_err(|source| match source {
        GgufError::Magic => OpenError::NotAModel(owned()),
        source => OpenError::Gguf { path: owned(), source },
    })?;
    if let Some(parts) = gguf.unsigned("split.count").filter(|&parts| parts > 1) {
        let part = gguf.unsigned("split.no").unwrap_or(0).saturating_add(1);
        return Err(OpenError::Split { path: owned(), part, parts });
    }
    let config = ModelConfig::from_gguf(&gguf).map_err(|source| OpenError::Config { path: owned(), source })?;
    let tokenizer =
        Tokenizer::from_gguf(&gguf).map_err(|source| OpenError::Tokenizer { path: owned(), source })?.map(Arc::new);
    let template = gguf.text("tokenizer.chat_template").map(|source| {
        let token = |id: Option<u32>| id.and_then(|id| tokenizer.as_ref()?.token_text(id));
        let eos = gguf.unsigned("tokenizer.ggml.eos_token_id").and_then(|id| u32::try_from(id).ok());
        ChatTemplate::new(source, token(config.bos_token), token(eos))
    });
    let chat_template =
        template.transpose().map_err(|source| OpenError::Template { path: owned(), source })?.map(Arc::new);

    let listed: BTreeMap<String, Listed> = gguf
        .tensors
        .iter()
        .map(|tensor| {
            let kind = tensor.kind.map_err(str::to_owned);
            let shape = tensor.shape.clone();
            (tensor.name.clone(), Listed { shape, kind, file: 0, offset: tensor.offset, length: tensor.length })
        })
        .collect();
    let file_name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let files = Files::new(vec![(file_name, mapping)], &config, Naming::Gguf, listed)?;
    let name = gguf.text("general.name").map(str::trim).filter(|name| !name.is_empty());
    Ok(Model {
        id: files.id(),
        name: name.map_or_else(|| stem(path), str::to_owned),
        config: Arc::new(config),
        source: Arc::new(files),
        tokenizer,
        chat_template,
        format: ModelFormat::Gguf,
    })
}
