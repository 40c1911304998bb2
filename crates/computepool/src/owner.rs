//! `computepool node --policy`, what the owner asks of it (`computepool pause`, `resume`), and what it did (`status`, `log`).

mod diagnostics;
mod downloads;
mod earnings;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use jiff::tz::TimeZone;
use pool_api::{
    Access, ErrorAnswer, GivenBack, GpuState, OwnerCommand, OwnerState, PastDecision, Server, Sources, Until,
};
use pool_chain::{AddressBook, Chain, ChainConfig};
use pool_node::{NodeConfig, NodeModel, income::Income, owner};
use pool_policy::{Decision, Settings};
use pool_sense::{Presence, Senses, Surroundings};
use pool_store::Store;
use reqwest::Method;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{diagnostics::diagnostics, downloads::downloads, earnings::earnings};
use crate::{
    arguments::{
        ChainArguments, NodeArguments, OwnerLogArguments, OwnerPauseArguments, OwnerResumeArguments,
        OwnerStateArguments,
    },
    network, serving,
    state::StateFolder,
    when::utc,
};

/// A node on this machine answers within this,
const INTERFACE: Duration = Duration::from_secs(10);
/// and a change of its downloads within this: a model that is verified is read from end to end.
const DOWNLOADS: Duration = Duration::from_secs(3600);

/// The first decision waits this long for the sensors: one that was not read yet looks like one that fails, and a node
/// that was started again would take that for an input.
const FIRST_READINGS: Duration = Duration::from_secs(5);

/// How often a node that follows a chain asks it for news.
const POLL: Duration = Duration::from_secs(5);

/// What goes with a question.
const NOTHING: Option<&()> = None;

/// Blocks on top of one before what it holds is booked.
const CONFIRMATIONS: u64 = 3;

/// The node's memory of itself, in its state folder.
fn database(state: &Path) -> PathBuf {
    state.join("node.db")
}

/// The node's log, in its state folder.
pub(crate) fn log_file(state: &Path) -> PathBuf {
    state.join("log.jsonl")
}

/// When to share, as the command line says it.
pub(crate) struct Wishes {
    /// From the owner's file; without one, what was in force last.
    settings: Option<Settings>,
    share_cpu: bool,
}

/// Reads the owner's file, before anything runs.
pub(crate) fn wishes(arguments: &NodeArguments) -> Result<Wishes> {
    let settings = match &arguments.settings {
        None => None,
        Some(file) => {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            let read = serde_json::from_str(&text);
            Some(read.with_context(|| format!("{} holds no usable settings", file.display()))?)
        }
    };
    Ok(Wishes { settings, share_cpu: arguments.share_cpu })
}

/// The chain to follow, if one is named: its book is read at once, and its node may come later.
pub(crate) fn chain(arguments: &ChainArguments) -> Result<Option<(ChainConfig, AddressBook)>> {
    let Some(rpc) = &arguments.rpc else { return Ok(None) };
    Ok(Some((ChainConfig { poll: POLL, ..ChainConfig::new(rpc) }, network::book(arguments)?)))
}

/// Runs an owner's node with the real sensors until `shutdown`.
pub(crate) async fn run(
    node: NodeConfig,
    state: &Path,
    wishes: Wishes,
    chain: Option<(ChainConfig, AddressBook)>,
    shutdown: CancellationToken,
) -> Result<()> {
    // Two nodes of one owner would each believe that the machine is theirs to give back.
    let folder = StateFolder::lock(state)?;
    let store = open_or_create(&database(folder.path())).await?;
    let mut settings = match wishes.settings {
        Some(settings) => settings,
        None => {
            let kept = owner::kept_settings(&store).await?;
            if let Some(why) = kept.unreadable {
                eprintln!(
                    "The settings that were kept cannot be used ({why}). They are kept aside, and the defaults hold."
                );
            }
            kept.settings.unwrap_or_default()
        }
    };
    settings.share_cpu |= wishes.share_cpu;
    let senses = Arc::new(Senses::start(&Surroundings::of_this_process())?);
    senses.set_programs(settings.wait_for_programs.clone());
    let reading = senses.clone();
    tokio::task::spawn_blocking(move || reading.wait_for_first_readings(FIRST_READINGS)).await?;
    let downloads = match &node.model {
        NodeModel::Local(_) => None,
        NodeModel::Fetched(fetch) => Some(fetch.downloads().clone()),
    };
    let model_name = match &node.model {
        NodeModel::Local(path) => path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        NodeModel::Fetched(fetch) => fetch.name().to_owned(),
    };
    let clock = owner::Clock::system();
    let closing = CancellationToken::new();
    let income = match chain {
        Some((config, book)) => {
            // Nobody takes blocks of a local chain back, and it may make none for long.
            let confirmations = if book.network == "local" { 0 } else { CONFIRMATIONS };
            let chain = Chain::unchecked(config, book)?;
            Some(Income::follow(chain, node.wallet.address(), store.clone(), confirmations, closing.clone()).await?)
        }
        None => None,
    };
    let config = owner::OwnerConfig {
        node,
        model_name,
        presence: senses,
        settings,
        clock: clock.clone(),
        zone: TimeZone::system(),
        store: store.clone(),
    };
    let (view, mut seen) = watch::channel(None);
    let (asks, asked) = mpsc::channel(16);
    let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    server.access().write(folder.path())?;
    let sources = Sources {
        view: seen.clone(),
        asks,
        store: store.clone(),
        downloads,
        income,
        clock,
        zone: TimeZone::system(),
        log: log_file(folder.path()),
    };
    let interface = tokio::spawn(server.serve(sources, closing.clone()));
    let tell = tokio::spawn(async move {
        let mut last: Option<Decision> = None;
        while seen.changed().await.is_ok() {
            let Some(owner::OwnerView { decision, sentence, .. }) = seen.borrow_and_update().clone() else { continue };
            // What only counts on is not repeated.
            if last.as_ref().is_none_or(|last| decision.is_transition_from(last)) {
                eprintln!("{sentence}");
            }
            last = Some(decision);
        }
    });
    let ended = owner::run(config, asked, view, shutdown).await;
    Access::remove(folder.path());
    closing.cancel();
    let (told, served) = tokio::join!(tell, interface);
    store.close().await;
    // Why the node ended comes first.
    ended?;
    told.context("what the node says could not be shown")?;
    Ok(served.context("the interface crashed")??)
}

/// `computepool pause`.
pub(crate) fn pause(arguments: &OwnerPauseArguments) -> Result<ExitCode> {
    let until = match (arguments.until_tomorrow, arguments.minutes) {
        (true, _) => Until::Tomorrow,
        (false, Some(minutes)) => Until::For { seconds: 60 * minutes },
        (false, None) => Until::Told,
    };
    let wish = if arguments.finish { OwnerCommand::FinishThenPause } else { OwnerCommand::Pause { until } };
    ask(&arguments.state, wish)
}

/// `computepool resume`.
pub(crate) fn resume(arguments: &OwnerResumeArguments) -> Result<ExitCode> {
    let until = arguments.minutes.map_or(Until::Told, |minutes| Until::For { seconds: 60 * minutes });
    ask(&arguments.state, if arguments.now { OwnerCommand::ShareNow { until } } else { OwnerCommand::Resume })
}

/// Asks for something, and prints what the node does then.
fn ask(folder: &Path, command: OwnerCommand) -> Result<ExitCode> {
    serving::runtime(1)?.block_on(async {
        let state: OwnerState = interface(folder, Method::POST, "commands", Some(&command)).await?;
        println!("{}", state.sentence);
        Ok(ExitCode::SUCCESS)
    })
}

/// Asks the node that runs with this state folder.
async fn interface<T: DeserializeOwned>(
    folder: &Path,
    method: Method,
    what: &str,
    command: Option<&(impl Serialize + Sync)>,
) -> Result<T> {
    let access = Access::read(folder)?;
    let limit = if what == downloads::COMMANDS { DOWNLOADS } else { INTERFACE };
    let client = reqwest::Client::builder().no_proxy().timeout(limit).build()?;
    let request = client.request(method, format!("http://{}/v1/owner/{what}", access.address));
    let request = request.bearer_auth(&access.token);
    let request = if let Some(command) = command { request.json(command) } else { request };
    let answer = request.send().await;
    let answer = answer.with_context(|| format!("no node answers for {}; does it still run?", folder.display()))?;
    if !answer.status().is_success() {
        let error: ErrorAnswer = answer.json().await.context("the node's answer is not understood")?;
        bail!("{} {}", error.message, error.next_action);
    }
    answer.json().await.context("the node's answer is not understood")
}

/// Whether a node runs with this state folder and can be asked.
fn runs(state: &Path) -> Result<bool> {
    Ok(StateFolder::holder(state)?.is_some() && Access::path(state).exists())
}

/// `computepool status`: what a running node says of itself, or what one that has ended said last.
pub(crate) fn status(arguments: &OwnerStateArguments) -> Result<ExitCode> {
    let runs = runs(&arguments.state)?;
    serving::runtime(1)?.block_on(async {
        let (state, last, given_back) = if runs {
            let state: OwnerState = interface(&arguments.state, Method::GET, "state", NOTHING).await?;
            let given_back = state.given_back;
            (Some(state), None, given_back)
        } else {
            let store = open(&arguments.state).await?;
            let last = store.decisions(1).await?.pop().map(PastDecision::from);
            let given_back = GivenBack::from(store.yield_times().await?);
            store.close().await;
            (None, last, given_back)
        };
        if arguments.json {
            println!("{}", json!({ "runs": runs, "state": state, "last": last, "given_back": given_back }));
            return Ok(ExitCode::SUCCESS);
        }
        match (&state, &last) {
            (Some(state), _) => {
                println!("{}", state.sentence);
                state.gpus.iter().for_each(|gpu| println!("{}: {}", gpu.name, card(gpu)));
            }
            (None, Some(last)) => {
                println!("The node does not run. At last, {}: {}", utc(last.at / 1000), last.sentence);
            }
            (None, None) => println!("The node does not run, and has decided nothing yet."),
        }
        let GivenBack { count, p50, p95, longest } = given_back;
        if count == 1 {
            println!("The machine was given back once, within {longest} ms.");
        } else if count > 1 {
            println!(
                "The machine was given back {count} times: half of them within {p50} ms, 95 of 100 within {p95} ms, at most \
                 {longest} ms."
            );
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn card(gpu: &GpuState) -> &str {
    match (&gpu.because, gpu.in_use, gpu.may_use) {
        (Some(because), ..) => because,
        (None, true, _) => "shared",
        (None, false, true) => "free; it joins at a quiet moment",
        (None, false, false) => "not shared at the moment",
    }
}

/// `computepool log`.
pub(crate) fn log(arguments: &OwnerLogArguments) -> Result<ExitCode> {
    let runs = runs(&arguments.state)?;
    serving::runtime(1)?.block_on(async {
        let mut past: Vec<PastDecision> = if runs {
            let what = format!("decisions?last={}", arguments.last);
            interface(&arguments.state, Method::GET, &what, NOTHING).await?
        } else {
            let store = open(&arguments.state).await?;
            let past = store.decisions(arguments.last).await?;
            store.close().await;
            past.into_iter().map(PastDecision::from).collect()
        };
        past.reverse();
        for decision in past {
            if arguments.json {
                println!("{}", serde_json::to_string(&decision)?);
            } else {
                println!("{}  {}", utc(decision.at / 1000), decision.sentence);
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The books of a node that does not run.
async fn open(state: &Path) -> Result<Store> {
    let database = database(state);
    if !database.exists() {
        bail!("{} is not the state folder of a `computepool node --policy`", state.display());
    }
    open_or_create(&database).await
}

async fn open_or_create(database: &Path) -> Result<Store> {
    let store = Store::open(database).await?;
    if let Some(aside) = store.set_aside() {
        eprintln!("The node's database could not be read; it was kept as {}.", aside.display());
    }
    Ok(store)
}
