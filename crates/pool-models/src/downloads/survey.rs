//! The manifest of a model on a plain host, from the headers of its files alone.

use std::collections::BTreeMap;

use pool_types::ByteSize;
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::{
    error::{DownloadError, HostError, Unusable},
    host::{Ask, Http, Mirror, Reply},
};
use crate::{
    config::ModelConfig,
    files::Listed,
    gguf::{Gguf, GgufError},
    manifest::{Content, Manifest, ManifestTensor, WeightFile, WordFile},
    open::{ModelFormat, WORDS, gguf_listed, gguf_name, refuse_split, shard_names},
    safetensors::{SafetensorsError, parse_safetensors_prefix},
};

/// Most headers are not longer than this.
const FIRST_BYTES: u64 = 256 << 10;
/// A header that is longer than this describes no model that anybody serves.
const LARGEST_HEADER: u64 = 64 << 20;
const LARGEST_CONFIG: u64 = 4 << 20;
const LARGEST_INDEX: u64 = 32 << 20;

/// So often is a header asked for again because more of it is needed: more than doubling from [`FIRST_BYTES`] to
/// [`LARGEST_HEADER`] takes.
const MOST_ROUNDS: u32 = 12;

/// A model on a plain host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteModel {
    /// Hugging Face's layout: `config.json` and safetensors in one file or with an index.
    Folder {
        /// What to call it.
        name: String,
    },
    /// A GGUF file.
    Gguf {
        /// Its name on the host.
        path: String,
    },
}

pub(super) async fn survey(http: &Http, mirror: &Mirror, model: &RemoteModel) -> Result<Manifest, DownloadError> {
    let surveyor = Surveyor { http, mirror };
    let manifest = match model {
        RemoteModel::Folder { name } => surveyor.folder(name).await?,
        RemoteModel::Gguf { path } => surveyor.gguf(path).await?,
    };
    let (manifest, valid) = aside(move || {
        let valid = manifest.validate();
        (manifest, valid)
    })
    .await?;
    valid.map_err(|error| surveyor.unusable(error.into()))?;
    Ok(manifest)
}

/// Does what takes long where it holds up nobody.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, DownloadError> {
    spawn_blocking(work).await.map_err(|_| DownloadError::Broken)
}

struct Surveyor<'a> {
    http: &'a Http,
    mirror: &'a Mirror,
}

/// What is known of a file after its first bytes.
struct Head {
    bytes: Vec<u8>,
    length: u64,
    etag: Option<String>,
    sha256: Option<alloy_primitives::B256>,
}

impl Surveyor<'_> {
    fn unusable(&self, source: Unusable) -> DownloadError {
        DownloadError::Unusable { host: self.mirror.host(), source: Box::new(source) }
    }

    async fn ask(&self, path: &str, range: std::ops::Range<u64>, etag: Option<&str>) -> Result<Reply, HostError> {
        self.http.ask(self.mirror, &Ask { path, range, length: None, etag, dated: true }).await
    }

    /// The first `wanted` bytes of a file, or all of a shorter one.
    async fn head(&self, path: &str, wanted: u64, etag: Option<&str>) -> Result<Head, HostError> {
        let mut reply = self.ask(path, 0..wanted, etag).await?;
        let Some(length) = reply.length else {
            let said = "without saying how long the file is".to_owned();
            return Err(HostError::Range { host: reply.host().to_owned(), path: path.to_owned(), said });
        };
        let (etag, sha256) = (reply.etag.clone(), reply.sha256);
        let end = wanted.min(length);
        if reply.range.end < end {
            return Err(reply.too_little());
        }
        let mut bytes = Vec::new();
        // A host that ignores ranges is left as soon as it has sent enough.
        while (bytes.len() as u64) < end {
            let Some(chunk) = reply.chunk().await? else { return Err(reply.cut()) };
            bytes.extend_from_slice(&chunk);
        }
        bytes.truncate(usize::try_from(end).unwrap_or(usize::MAX));
        Ok(Head { bytes, length, etag, sha256 })
    }

    /// A small file, `None` where there is none.
    async fn small(&self, path: &str, most: u64) -> Result<Option<Vec<u8>>, HostError> {
        let reply = match self.ask(path, 0..most, None).await {
            Err(HostError::NotFound { .. }) => return Ok(None),
            reply => reply?,
        };
        if reply.length.is_some_and(|length| length > most) {
            let (host, path) = (reply.host().to_owned(), path.to_owned());
            return Err(HostError::TooLarge { host, path, most: ByteSize(most) });
        }
        // A part that is not known to be all of it is not taken for all of it.
        if reply.partial && reply.length.is_none_or(|length| reply.range.end < length) {
            return Err(reply.too_little());
        }
        reply.all(most).await.map(Some)
    }

    async fn json(&self, path: &str, most: u64) -> Result<Option<Value>, DownloadError> {
        let Some(bytes) = self.small(path, most).await? else { return Ok(None) };
        let parsed = aside(move || serde_json::from_slice(&bytes)).await?;
        parsed.map(Some).map_err(|source| self.unusable(Unusable::Json { path: path.to_owned(), source }))
    }

    fn content(&self, path: &str, etag: Option<&str>, offset: u64, length: u64) -> Content {
        if length == 0 {
            return Content::of(&[], Manifest::PIECE_BYTES);
        }
        Content::unhashed(self.mirror.address(), path, etag, offset, length)
    }

    async fn folder(&self, name: &str) -> Result<Manifest, DownloadError> {
        let json = self.json("config.json", LARGEST_CONFIG).await?;
        let Some(json) = json else {
            return Err(HostError::NotFound { host: self.mirror.host(), path: "config.json".to_owned() }.into());
        };
        let generation = self.json("generation_config.json", LARGEST_CONFIG).await?;
        let config =
            ModelConfig::from_hugging_face(&json, generation.as_ref()).map_err(|error| self.unusable(error.into()))?;
        let index = self.json("model.safetensors.index.json", LARGEST_INDEX).await?;
        let paths = match index {
            Some(index) => shard_names("model.safetensors.index.json".as_ref(), &index)
                .map_err(|error| self.unusable(error.into()))?,
            None => vec!["model.safetensors".to_owned()],
        };
        let (mut files, mut tensors) = (Vec::new(), BTreeMap::new());
        for (number, path) in paths.into_iter().enumerate() {
            let (weights, listed) = self.safetensors(&path, number).await?;
            files.push(weights);
            tensors.extend(listed);
        }
        let mut words = Vec::new();
        for path in WORDS {
            let head = match self.head(path, 1, None).await {
                Err(HostError::NotFound { .. }) => continue,
                head => head?,
            };
            let content = self.content(path, head.etag.as_deref(), 0, head.length);
            words.push(WordFile { path: path.to_owned(), content });
        }
        Ok(self.manifest(name.to_owned(), ModelFormat::Safetensors, config, files, tensors, words))
    }

    async fn safetensors(
        &self,
        path: &str,
        number: usize,
    ) -> Result<(WeightFile, BTreeMap<String, Listed>), DownloadError> {
        let mut head = self.head(path, FIRST_BYTES, None).await?;
        let mut rounds = 0..MOST_ROUNDS;
        let entries = loop {
            let (back, entries) = aside(move || {
                let entries = parse_safetensors_prefix(&head.bytes, head.length);
                (head, entries)
            })
            .await?;
            head = back;
            match entries {
                Err(SafetensorsError::Truncated { needed, .. })
                    if needed <= head.length && needed > head.bytes.len() as u64 && rounds.next().is_some() =>
                {
                    head = self.longer(path, &head, needed).await?;
                }
                entries => break entries.map_err(|error| self.unusable(error.into()))?,
            }
        };
        let listed = entries.into_iter().map(|(tensor, entry)| {
            let (shape, kind) = (entry.shape, entry.kind);
            (tensor, Listed { shape, kind, file: number, offset: entry.offset, length: entry.length })
        });
        let listed: BTreeMap<String, Listed> = listed.collect();
        Ok((self.weights(path, &head, &listed), listed))
    }

    async fn longer(&self, path: &str, head: &Head, needed: u64) -> Result<Head, HostError> {
        if needed > LARGEST_HEADER {
            let (host, most) = (self.mirror.host(), ByteSize(LARGEST_HEADER));
            return Err(HostError::TooLarge { host, path: path.to_owned(), most });
        }
        self.head(path, needed, head.etag.as_deref()).await
    }

    async fn gguf(&self, path: &str) -> Result<Manifest, DownloadError> {
        let mut head = self.head(path, FIRST_BYTES, None).await?;
        let mut rounds = 0..MOST_ROUNDS;
        let gguf = loop {
            let (back, gguf) = aside(move || {
                let gguf = Gguf::parse_prefix(&head.bytes, head.length);
                (head, gguf)
            })
            .await?;
            head = back;
            match gguf {
                Err(GgufError::Truncated { .. })
                    if (head.bytes.len() as u64) < head.length && rounds.next().is_some() =>
                {
                    // How much is missing, only the whole of it would tell: twice as much, then.
                    let needed = (head.bytes.len() as u64).saturating_mul(2).min(head.length);
                    head = self.longer(path, &head, needed).await?;
                }
                gguf => break gguf.map_err(|error| self.unusable(error.into()))?,
            }
        };
        refuse_split(path.as_ref(), &gguf).map_err(|error| self.unusable(error.into()))?;
        let config = ModelConfig::from_gguf(&gguf).map_err(|error| self.unusable(error.into()))?;
        let listed = gguf_listed(&gguf);
        let weights = self.weights(path, &head, &listed);
        let stem = std::path::Path::new(path).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let name = gguf_name(&gguf).or(stem).unwrap_or_else(|| "model".to_owned());
        Ok(self.manifest(name, ModelFormat::Gguf, config, vec![weights], listed, Vec::new()))
    }

    fn weights(&self, path: &str, head: &Head, listed: &BTreeMap<String, Listed>) -> WeightFile {
        let header = listed.values().map(|tensor| tensor.offset).min().unwrap_or(head.length);
        WeightFile {
            path: path.to_owned(),
            length: head.length,
            sha256: head.sha256,
            etag: head.etag.clone(),
            header: self.content(path, head.etag.as_deref(), 0, header),
        }
    }

    fn manifest(
        &self,
        name: String,
        format: ModelFormat,
        config: ModelConfig,
        files: Vec<WeightFile>,
        listed: BTreeMap<String, Listed>,
        words: Vec<WordFile>,
    ) -> Manifest {
        let tensor = |(name, listed): (String, Listed)| {
            let file = files.get(listed.file);
            let (path, etag) = file.map_or(("", None), |file| (file.path.as_str(), file.etag.as_deref()));
            ManifestTensor {
                name,
                kind: listed.kind.map_or_else(|kind| kind, |kind| kind.to_string()),
                shape: listed.shape.iter().map(|&n| n as u64).collect(),
                file: u32::try_from(listed.file).unwrap_or(u32::MAX),
                offset: listed.offset,
                content: self.content(path, etag, listed.offset, listed.length),
            }
        };
        let tensors = listed.into_iter().map(tensor).collect();
        let (version, piece_bytes) = (Manifest::VERSION, Manifest::PIECE_BYTES);
        Manifest { version, name, revision: String::new(), format, piece_bytes, config, files, tensors, words }
    }
}
