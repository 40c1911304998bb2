use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use super::{Model, ModelFormat, OpenError, stem};
use crate::{
    config::ModelConfig,
    files::{Files, Listed},
    mapping::Mapping,
    names::Naming,
    safetensors::parse_safetensors,
    template::ChatTemplate,
    tokenizer::Tokenizer,
};

/// Tokenizers of 250,000 words take some 30 MB of JSON.
const LARGEST_JSON: u64 = 256 << 20;
const MOST_FILES: usize = 4096;

pub(super) fn open(path: &Path) -> Result<Model, OpenError> {
    let config_path = path.join("config.json");
    if !config_path.exists() {
        return Err(OpenError::NotAModel(path.to_owned()));
    }
    let json = read_json(&config_path)?.unwrap_or(Value::Null);
    let generation = read_json(&path.join("generation_config.json"))?;
    let config = ModelConfig::from_hugging_face(&json, generation.as_ref())
        .map_err(|source| OpenError::Config { path: config_path, source })?;

    let (files, listed) = weights(path)?;
    let files = Files::new(files, &config, Naming::HuggingFace, listed)?;

    let tokenizer_path = path.join("tokenizer.json");
    let tokenizer = match read(&tokenizer_path)? {
        Some(bytes) => {
            let tokenizer =
                Tokenizer::from_json(&bytes).map_err(|source| OpenError::Tokenizer { path: tokenizer_path, source })?;
            Some(Arc::new(tokenizer))
        }
        None => None,
    };
    Ok(Model {
        id: files.id(),
        name: stem(path),
        config: Arc::new(config),
        source: Arc::new(files),
        tokenizer,
        chat_template: template(path)?.map(Arc::new),
        format: ModelFormat::Safetensors,
    })
}

type Weights = (Vec<(String, Mapping)>, BTreeMap<String, Listed>);

fn weights(path: &Path) -> Result<Weights, OpenError> {
    let index_path = path.join("model.safetensors.index.json");
    let names = if path.join("model.safetensors").exists() {
        vec!["model.safetensors".to_owned()]
    } else if let Some(index) = read_json(&index_path)? {
        shard_names(&index_path, &index)?
    } else {
        let pytorch = path.join("pytorch_model.bin").exists() || path.join("pytorch_model.bin.index.json").exists();
        return Err(OpenError::NoWeights(path.to_owned(), pytorch));
    };
    let mut files = Vec::with_capacity(names.len());
    let mut listed = BTreeMap::new();
    for (number, name) in names.into_iter().enumerate() {
        let file = path.join(&name);
        let mapping = Mapping::open(&file).map_err(|source| OpenError::Read { path: file.clone(), source })?;
        let tensors =
            parse_safetensors(mapping.bytes()).map_err(|source| OpenError::Safetensors { path: file, source })?;
        for (tensor, entry) in tensors {
            let (shape, kind) = (entry.shape, entry.kind);
            listed.insert(tensor, Listed { shape, kind, file: number, offset: entry.offset, length: entry.length });
        }
        files.push((name, mapping));
    }
    Ok((files, listed))
}

/// The files an index names, each inside the model's directory.
fn shard_names(path: &Path, index: &Value) -> Result<Vec<String>, OpenError> {
    let unusable = |reason: String| OpenError::Json { path: path.to_owned(), reason };
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| unusable("it has no `weight_map`".to_owned()))?;
    let mut names = BTreeSet::new();
    for file in map.values() {
        let name = file.as_str().unwrap_or_default();
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(unusable(format!("it names the file `{name}`, which is not beside it")));
        }
        names.insert(name.to_owned());
    }
    if names.is_empty() || names.len() > MOST_FILES {
        return Err(unusable(format!("it names {} files", names.len())));
    }
    Ok(names.into_iter().collect())
}

fn template(path: &Path) -> Result<Option<ChatTemplate>, OpenError> {
    let config_path = path.join("tokenizer_config.json");
    let config = read_json(&config_path)?.unwrap_or(Value::Null);
    let alone = path.join("chat_template.jinja");
    let (source, from) = match read(&alone)? {
        Some(bytes) => (Some(String::from_utf8_lossy(&bytes).into_owned()), alone),
        None => (embedded_template(config.get("chat_template")), config_path),
    };
    let Some(source) = source else { return Ok(None) };
    // Older repositories keep some tokens in a file of their own.
    let map = read_json(&path.join("special_tokens_map.json"))?.unwrap_or(Value::Null);
    let token = |name: &str| {
        let token = config.get(name).or_else(|| map.get(name))?;
        token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
    };
    let template = ChatTemplate::new(&source, token("bos_token"), token("eos_token"))
        .map_err(|source| OpenError::Template { path: from, source })?;
    Ok(Some(template))
}

/// One template, or the one called `default` of a list of named ones (else the first).
fn embedded_template(value: Option<&Value>) -> Option<String> {
    let value = value?;
    if let Some(template) = value.as_str() {
        return Some(template.to_owned());
    }
    let named = value.as_array()?;
    let is_default = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
    let chosen = named.iter().find(is_default).or_else(|| named.first())?;
    chosen.get("template")?.as_str().map(str::to_owned)
}

fn read_json(path: &Path) -> Result<Option<Value>, OpenError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes).map_err(|error| OpenError::Json {
        path: path.to_owned(),
        reason: format!("it is not valid JSON ({error})"),
    })?;
    Ok(Some(value))
}

/// A whole small file, or `None` where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    let failed = |source| OpenError::Read { path: PathBuf::from(path), source };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if metadata.len() > LARGEST_JSON => {
            let reason = format!("it has {} bytes, more than {LARGEST_JSON}", metadata.len());
            return Err(OpenError::Json { path: path.to_owned(), reason });
        }
        Ok(_) => {}
    }
    std::fs::read(path).map(Some).map_err(failed)
}
