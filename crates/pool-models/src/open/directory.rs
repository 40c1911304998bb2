use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use super::{Layout, Model, ModelFormat, OpenError, Words, stem};
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

/// The small files of a directory, all that is read of it beside weights.
pub(crate) const WORDS: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

pub(super) fn open(path: &Path) -> Result<Model, OpenError> {
    let config_path = path.join("config.json");
    if !config_path.exists() {
        return Err(OpenError::NotAModel(path.to_owned()));
    }
    let folder = Folder { path, read: &|name| read(&path.join(name)) };
    let json = folder.json("config.json")?.unwrap_or(Value::Null);
    let generation = folder.json("generation_config.json")?;
    let config = ModelConfig::from_hugging_face(&json, generation.as_ref())
        .map_err(|source| OpenError::Config { path: config_path, source })?;

    let (files, listed) = weights(path)?;
    let files = Files::new(files, &config, Naming::HuggingFace, listed)?;
    let Words { tokenizer, chat_template } = folder.words()?;
    Ok(Model {
        id: files.id(),
        name: stem(path),
        config: Arc::new(config),
        source: Arc::new(files),
        tokenizer,
        chat_template,
        format: ModelFormat::Safetensors,
        lease: None,
    })
}

/// What the manifest of a directory is made of.
pub(super) fn layout(path: &Path) -> Result<Layout, OpenError> {
    let (files, listed) = weights(path)?;
    let mut words = Vec::new();
    for name in WORDS {
        words.extend(read(&path.join(name))?.map(|bytes| (name.to_owned(), bytes)));
    }
    Ok(Layout { files, listed, words })
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
pub(crate) fn shard_names(path: &Path, index: &Value) -> Result<Vec<String>, OpenError> {
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

/// Reads a small file by its name; `None` where there is none.
type ReadWord<'a> = dyn Fn(&str) -> Result<Option<Vec<u8>>, OpenError> + 'a;

/// A model's small files, wherever they are kept.
pub(super) struct Folder<'a> {
    /// Where they are said to be, for messages.
    pub(super) path: &'a Path,
    /// How they are read.
    pub(super) read: &'a ReadWord<'a>,
}

impl Folder<'_> {
    /// The tokenizer and the chat template, where there are any.
    pub(super) fn words(&self) -> Result<Words, OpenError> {
        let tokenizer = match (self.read)("tokenizer.json")? {
            Some(bytes) => {
                let failed = |source| OpenError::Tokenizer { path: self.path.join("tokenizer.json"), source };
                Some(Arc::new(Tokenizer::from_json(&bytes).map_err(failed)?))
            }
            None => None,
        };
        Ok(Words { tokenizer, chat_template: self.template()?.map(Arc::new) })
    }

    fn template(&self) -> Result<Option<ChatTemplate>, OpenError> {
        let config = self.json("tokenizer_config.json")?.unwrap_or(Value::Null);
        let (source, from) = match (self.read)("chat_template.jinja")? {
            Some(bytes) => (Some(String::from_utf8_lossy(&bytes).into_owned()), "chat_template.jinja"),
            None => (embedded_template(config.get("chat_template")), "tokenizer_config.json"),
        };
        let Some(source) = source else { return Ok(None) };
        // Older repositories keep some tokens in a file of their own.
        let map = self.json("special_tokens_map.json")?.unwrap_or(Value::Null);
        let token = |name: &str| {
            let token = config.get(name).or_else(|| map.get(name))?;
            token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
        };
        let template = ChatTemplate::new(&source, token("bos_token"), token("eos_token"))
            .map_err(|source| OpenError::Template { path: self.path.join(from), source })?;
        Ok(Some(template))
    }

    fn json(&self, name: &str) -> Result<Option<Value>, OpenError> {
        let Some(bytes) = (self.read)(name)? else { return Ok(None) };
        parse_json(&self.path.join(name), &bytes).map(Some)
    }
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
    read(path)?.map(|bytes| parse_json(path, &bytes)).transpose()
}

fn parse_json(path: &Path, bytes: &[u8]) -> Result<Value, OpenError> {
    serde_json::from_slice(bytes)
        .map_err(|error| OpenError::Json { path: path.to_owned(), reason: format!("it is not valid JSON ({error})") })
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
