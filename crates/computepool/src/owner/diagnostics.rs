//! `computepool diagnostics`.

use std::{
    env,
    fs::OpenOptions,
    io::{ErrorKind, Write},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use pool_api::Diagnostics;
use reqwest::Method;
use serde_json::{Map, Value};

use super::{NOTHING, interface, log_file, open, runs};
use crate::{arguments::OwnerDiagnosticsArguments, serving};

/// Writes the bundle of a node, whether it runs or not.
pub(crate) fn diagnostics(arguments: &OwnerDiagnosticsArguments) -> Result<ExitCode> {
    let state = &arguments.state;
    let runs = runs(state)?;
    let bundle: Value = serving::runtime(1)?.block_on(async {
        if runs {
            return interface(state, Method::GET, "diagnostics", NOTHING).await;
        }
        let store = open(state).await?;
        let home = env::home_dir();
        let (log, running) = (log_file(state), Map::new());
        let parts = Diagnostics { store: &store, log: &log, home: home.as_deref(), running, secrets: &[] };
        let bundle = parts.collect().await?;
        store.close().await;
        Ok(bundle)
    })?;
    let out = &arguments.out;
    let mut options = OpenOptions::new();
    options.create_new(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = match options.open(out) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{} is there already; say another --out", out.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {}", out.display())),
    };
    let text = serde_json::to_string_pretty(&bundle)?;
    writeln!(file, "{text}").with_context(|| format!("cannot write {}", out.display()))?;
    println!("Written to {}. It holds no keys and no tokens; read it before you send it.", out.display());
    Ok(ExitCode::SUCCESS)
}
