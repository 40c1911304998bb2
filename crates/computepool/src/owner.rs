//! `computepool node --policy`, and what it did: `computepool status` and `log`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use jiff::tz::TimeZone;
use pool_node::{NodeConfig, owner};
use pool_policy::Settings;
use pool_sense::{Senses, Surroundings};
use pool_store::Store;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    arguments::{NodeArguments, OwnerLogArguments, OwnerStateArguments},
    serving,
    state::StateFolder,
    when::utc,
};

/// The node's memory of itself, in its state folder.
fn database(state: &Path) -> PathBuf {
    state.join("node.db")
}

/// When to share, from the owner's file and flags.
pub(crate) fn settings(arguments: &NodeArguments) -> Result<Settings> {
    let mut settings = match &arguments.settings {
        None => Settings::default(),
        Some(file) => {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            serde_json::from_str(&text).with_context(|| format!("{} holds no usable settings", file.display()))?
        }
    };
    settings.share_cpu |= arguments.share_cpu;
    Ok(settings)
}

/// Runs an owner's node with the real sensors until `shutdown`.
pub(crate) async fn run(node: NodeConfig, state: &Path, settings: Settings, shutdown: CancellationToken) -> Result<()> {
    // Two nodes of one owner would each believe that the machine is theirs to give back.
    let folder = StateFolder::lock(state)?;
    let store = Store::open(database(folder.path())).await?;
    if let Some(aside) = store.set_aside() {
        eprintln!("The node's database could not be read; it was kept as {}.", aside.display());
    }
    let senses = Arc::new(Senses::start(&Surroundings::of_this_process())?);
    senses.set_programs(settings.wait_for_programs.clone());
    let ours = senses.clone();
    let model_name = node.model.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let config = owner::OwnerConfig {
        node,
        model_name,
        presence: senses,
        own_processes: Box::new(move |processes| ours.set_own_processes(processes)),
        settings,
        zone: TimeZone::system(),
        store: store.clone(),
    };
    let (view, mut seen) = watch::channel(None);
    let tell = tokio::spawn(async move {
        let mut last = String::new();
        while seen.changed().await.is_ok() {
            let sentence = seen.borrow_and_update().as_ref().map(|view: &owner::OwnerView| view.sentence.clone());
            // Sentences that only count on are not repeated.
            let Some(sentence) = sentence else { continue };
            let kind = sentence.split(|letter: char| letter.is_ascii_digit()).next().unwrap_or_default().to_owned();
            if kind != last {
                eprintln!("{sentence}");
                last = kind;
            }
        }
    });
    // The tray and the window will ask for things; a headless node is asked for nothing.
    let (_nobody, commands) = mpsc::channel(1);
    let ended = owner::run(config, commands, view, shutdown).await;
    let _ = tell.await;
    store.close().await;
    Ok(ended?)
}

/// `computepool status`.
pub(crate) fn status(arguments: &OwnerStateArguments) -> Result<ExitCode> {
    let runs = StateFolder::holder(&arguments.state)?.is_some();
    serving::runtime(1)?.block_on(async {
        let store = open(&arguments.state).await?;
        let last = store.decisions(1).await?.pop();
        let yields = store.yield_times().await?;
        store.close().await;
        if arguments.json {
            let decision = last.as_ref().map(|last| json!({ "at": last.at, "state": last.state, "sentence": last.sentence, "decision": last.decision }));
            let given_back = json!({ "count": yields.count, "p50": yields.p50, "p95": yields.p95, "longest": yields.longest });
            println!("{}", json!({ "runs": runs, "last": decision, "given_back_milliseconds": given_back }));
            return Ok(ExitCode::SUCCESS);
        }
        match (&last, runs) {
            (Some(last), true) => println!("{}\n(since {})", last.sentence, utc(last.at / 1000)),
            (Some(last), false) => println!("The node does not run. At last, {}: {}", utc(last.at / 1000), last.sentence),
            (None, _) => println!("The node has decided nothing yet."),
        }
        if yields.count > 0 {
            println!(
                "The machine was given back {} times: half of them within {} ms, 95 of 100 within {} ms, at most {} ms.",
                yields.count, yields.p50, yields.p95, yields.longest
            );
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// `computepool log`.
pub(crate) fn log(arguments: &OwnerLogArguments) -> Result<ExitCode> {
    serving::runtime(1)?.block_on(async {
        let store = open(&arguments.state).await?;
        let mut decisions = store.decisions(arguments.last).await?;
        store.close().await;
        decisions.reverse();
        for decision in decisions {
            if arguments.json {
                println!(
                    "{}",
                    json!({
                        "at": decision.at, "state": decision.state, "sentence": decision.sentence,
                        "decision": decision.decision, "signals": decision.signals,
                    })
                );
            } else {
                println!("{}  {}", utc(decision.at / 1000), decision.sentence);
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn open(state: &Path) -> Result<Store> {
    let database = database(state);
    if !database.exists() {
        bail!("{} is not the state folder of a `computepool node --policy`", state.display());
    }
    Ok(Store::open(database).await?)
}
