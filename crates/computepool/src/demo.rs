//! `computepool demo`: the whole of it on one machine, with figures.

mod paid;

use std::{
    io::{Write, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use pool_orchestrator::control::{CoalitionView, ServingWishes};
use pool_types::{ByteSize, FlowRate};
use serde_json::json;

use self::paid::{Closed, Payer};
use crate::{
    api_client::{Answer, ApiClient, AskOptions, Turn},
    arguments::DemoArguments,
    cluster::{Cluster, ClusterOptions},
    logs,
    paying::PayOptions,
    processes::descendants,
    serving,
    state::{StateFolder, start_of},
    stop,
    table::Table,
    up::{show_progress, spinner},
};

const QUESTIONS: [&str; 3] = ["What is ComputePool?", "How does ComputePool work?", "What is a hidden state?"];
/// Units of 10^-6 USDC a second, and seconds of linger.
const RATE: u64 = 100;
const LINGER: u64 = 2;
const BUNDLED: &str = "models/tiny";
const STARTUP: Duration = Duration::from_secs(120);
/// Shards report their counters every second.
const REPORTS: Duration = Duration::from_millis(1300);

pub(crate) fn run(arguments: DemoArguments) -> Result<ExitCode> {
    let model = match &arguments.model {
        Some(path) => path.clone(),
        None => bundled_model()?,
    };
    let temporary = tempfile::Builder::new().prefix("computepool-demo-").tempdir().context("no temporary folder")?;
    let mut folder = StateFolder::lock(temporary.path())?;
    logs::start(Some(&folder.log()), arguments.verbose).context("cannot write a log")?;
    let options = ClusterOptions {
        model,
        model_name: None,
        shards: arguments.shards,
        api: "127.0.0.1:0".to_owned(),
        threads: None,
        cpus: Vec::new(),
        wishes: ServingWishes { shards: Some(arguments.shards), ..ServingWishes::default() },
        api_key: None,
        pay: (!arguments.free).then(|| PayOptions {
            rpc: None,
            websocket: None,
            network: "local".to_owned(),
            address_book: None,
            rate: FlowRate::from_units_per_second(RATE),
            linger: LINGER,
            keep_chain: false,
        }),
        verbose: arguments.verbose,
    };
    serving::runtime(2)?.block_on(async {
        let stop = stop::on_signal()?;
        let spinner = spinner("starting an orchestrator and its nodes");
        let mut cluster = Cluster::start(&mut folder, options).await?;
        show_progress(&spinner, &cluster);
        let outcome = tokio::select! {
            outcome = show(&mut cluster, &arguments, &spinner, temporary.path()) => outcome,
            () = stop.cancelled() => Err(anyhow::anyhow!("stopped before the end")),
        };
        spinner.finish_and_clear();
        let processes = descendants();
        cluster.stop().await;
        let left = processes.iter().filter(|(process, started)| start_of(**process) == Some(**started)).count();
        outcome?;
        if left > 0 {
            bail!("{left} of the demo's processes are still running");
        }
        if !arguments.json {
            println!("\nAll {} processes of the demo have ended; none is left.", processes.len());
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn show(
    cluster: &mut Cluster,
    arguments: &DemoArguments,
    spinner: &indicatif::ProgressBar,
    folder: &Path,
) -> Result<()> {
    cluster.ready(STARTUP).await?;
    spinner.finish_and_clear();
    let base = format!("http://{}", cluster.address());
    let free = ApiClient::new(&base, None)?;
    let model = cluster.view().borrow().model.clone();
    if !arguments.json {
        println!("{model} is served by {} shard processes at http://{}/v1", arguments.shards, cluster.address());
    }
    let payer = match cluster.devnet() {
        Some(devnet) => Some(Payer::open(&free, devnet, folder, &model).await?),
        None => None,
    };
    if let (Some(payer), false) = (&payer, arguments.json) {
        let view = payer.view().await?;
        println!(
            "a session was opened with one voucher on a local chain: {} test USDC paid in, {} of it always come back",
            view.paid, view.returned
        );
    }
    let api = match &payer {
        Some(payer) => payer.client()?,
        None => ApiClient::new(&base, None)?,
    };
    let mut answers = Vec::new();
    for question in QUESTIONS {
        if !arguments.json {
            println!("\n> {question}");
        }
        let turn = Turn { role: "user", content: question.to_owned() };
        let options = AskOptions { temperature: Some(0.0), max_tokens: Some(96), seed: None };
        let answer = api
            .ask(&model, &[turn], options, |piece| {
                if !arguments.json {
                    print!("{piece}");
                    let _ = stdout().flush();
                }
            })
            .await?;
        if !arguments.json {
            println!();
        }
        answers.push(answer);
    }
    if !arguments.json {
        println!();
    }
    let coalition = cluster.view().borrow().clone();
    let closed = match payer {
        Some(payer) => {
            payer.watch(&coalition, arguments.json).await?;
            Some(payer.close().await?)
        }
        None => None,
    };
    tokio::time::sleep(REPORTS).await;
    let view = free.coalition().await?;
    if arguments.json {
        let payment = closed.as_ref().map(Closed::json);
        let told = json!({ "answers": answers, "coalition": view, "payment": payment });
        println!("{}", serde_json::to_string_pretty(&told)?);
    } else {
        print_tables(&view, &answers);
    }
    if let Some(closed) = closed {
        closed.show(&view, arguments.json)?;
    }
    if !arguments.json {
        println!("\n{}", view.privacy);
    }
    Ok(())
}

fn print_tables(view: &CoalitionView, answers: &[Answer]) {
    println!("\nWho held what");
    let mut nodes =
        Table::new(&["node", ">layers", ">bytes read", ">bytes of these layers", ">tokens computed", ">busy"]);
    for member in &view.members {
        let read = member.footprint.map_or(0, |footprint| footprint.bytes_read);
        let stats = member.stats.clone().unwrap_or_default();
        nodes.row([
            member.name.clone(),
            member.layers.to_string(),
            ByteSize(read).to_string(),
            ByteSize(member.layer_bytes).to_string(),
            stats.rows.to_string(),
            format!("{:.2} s", stats.busy_seconds),
        ]);
    }
    print!("{nodes}");

    println!("\nWhat crossed");
    let mut links = Table::new(&["from", "to", ">hidden states", ">prompts and tokens", ">hop p50", ">hop p99"]);
    // A hop is half a round trip.
    let hop = |micros: Option<u64>| micros.map_or("-".to_owned(), |micros| format!("{:.2} ms", micros as f64 / 2e3));
    for link in view.links.iter().filter(|link| link.hidden_bytes + link.token_bytes > 0) {
        links.row([
            link.from.clone(),
            link.to.clone(),
            ByteSize(link.hidden_bytes).to_string(),
            ByteSize(link.token_bytes).to_string(),
            hop(link.round_trip_p50_micros),
            hop(link.round_trip_p99_micros),
        ]);
    }
    print!("{links}");

    println!("\nHow fast");
    let mut speed = Table::new(&[">answer", ">tokens", ">first token", ">tokens/s"]);
    for (answer, number) in answers.iter().zip(1..) {
        speed.row([
            number.to_string(),
            answer.tokens.to_string(),
            format!("{:.0} ms", answer.first_token_seconds * 1e3),
            answer.tokens_per_second.map_or("-".to_owned(), |speed| format!("{speed:.1}")),
        ]);
    }
    print!("{speed}");
}

/// `models/tiny` in this folder or one above it, or above this program.
fn bundled_model() -> Result<PathBuf> {
    let start = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let found = start
        .iter()
        .flatten()
        .flat_map(|start| start.ancestors())
        .map(|folder| folder.join(BUNDLED))
        .find(|path| path.is_dir());
    match found {
        Some(path) => Ok(path),
        None => bail!("the bundled model {BUNDLED} is not here; run this inside the repository, or name a --model"),
    }
}
