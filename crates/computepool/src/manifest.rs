//! `computepool manifest`, and models that nodes fetch by one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use alloy_signer::SignerSync;
use anyhow::{Context, Result};
use pool_models::{
    AccessToken, Cache, DownloadOptions, Downloads, Manifest, ManifestOptions, Mirror, SignedManifest, SystemSpace,
};
use pool_node::{
    ModelFetch,
    identity::{Passphrase, open_or_create},
};
use pool_types::ByteSize;

use crate::arguments::{ManifestArguments, NodeArguments};

/// The environment variable with a token for [`TOKEN_HOST`], and for nobody else.
const HOST_TOKEN: &str = "HF_TOKEN";
const TOKEN_HOST: &str = "huggingface.co";

/// Where a manifest's signature lies: beside it.
fn signature_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".signature");
    PathBuf::from(name)
}

/// `computepool manifest`.
pub(crate) fn run(arguments: &ManifestArguments) -> Result<ExitCode> {
    let manifest = Manifest::of(&arguments.model, &ManifestOptions::default())?;
    let out = &arguments.out;
    if let Some(folder) = &arguments.key {
        let passphrase = Passphrase::from_file_or_environment(arguments.passphrase_file.as_deref())?;
        let key = open_or_create(folder, &passphrase)?;
        let sign = |hash| key.sign_hash_sync(&hash).map(|signature| signature.as_bytes().to_vec());
        let signed = SignedManifest::sign(&manifest, arguments.chain, sign)?;
        let file = signature_of(out);
        fs::write(&file, serde_json::to_vec_pretty(&signed)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        println!("signed by {}", key.address());
    }
    fs::write(out, manifest.to_bytes()).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{} tensors, {}", manifest.tensors.len(), ByteSize(manifest.tensor_bytes()));
    println!("manifest {}", manifest.hash());
    Ok(ExitCode::SUCCESS)
}

/// A model to be fetched, checked as far as that can be done before anything runs.
pub(crate) struct ToFetch {
    manifest: Manifest,
    signature: Option<SignedManifest>,
    owner: Option<alloy_primitives::Address>,
    mirrors: Vec<Mirror>,
    tokens: BTreeMap<String, AccessToken>,
    cache: Cache,
}

/// Reads a manifest, and its signature where there is one.
pub(crate) fn read(file: &Path, arguments: &NodeArguments) -> Result<ToFetch> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let manifest = Manifest::parse(&bytes).with_context(|| format!("{} is no usable manifest", file.display()))?;
    let beside = signature_of(file);
    let signature = match fs::read(&beside) {
        Ok(bytes) => {
            let read = serde_json::from_slice::<SignedManifest>(&bytes);
            Some(read.with_context(|| format!("{} is no signature of a manifest", beside.display()))?)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", beside.display())),
    };
    if let Some(owner) = arguments.pool_owner {
        let signed = signature.as_ref().with_context(|| format!("{} is not there", beside.display()))?;
        signed.check(&manifest, owner)?;
    }
    let token = std::env::var(HOST_TOKEN).ok().filter(|token| !token.is_empty()).map(AccessToken::new);
    let tokens: BTreeMap<_, _> = token.transpose()?.into_iter().map(|token| (TOKEN_HOST.to_owned(), token)).collect();
    let mirror = |address: &String| {
        let mirror = Mirror::new(address)?;
        Ok(match tokens.get(&mirror.host()) {
            Some(token) => mirror.with_token(token.clone()),
            None => mirror,
        })
    };
    let mirrors = arguments.mirror.iter().map(mirror).collect::<Result<Vec<_>>>()?;
    let cache = Cache::open(arguments.cache.clone().unwrap_or_else(|| arguments.state.join("models")))?;
    Ok(ToFetch { manifest, signature, owner: arguments.pool_owner, mirrors, tokens, cache })
}

impl ToFetch {
    /// Begins to be able to fetch; `held` until somebody lets the downloads go on. Inside a runtime.
    pub(crate) fn start(self, held: bool) -> Result<ModelFetch> {
        let Self { manifest, signature, owner, mirrors, tokens, cache } = self;
        let options = DownloadOptions { paused: held, ..DownloadOptions::default() };
        let downloads = Downloads::start_with_tokens(cache, options, Arc::new(SystemSpace), tokens)?;
        Ok(ModelFetch::new(manifest, signature, owner, mirrors, downloads))
    }
}
