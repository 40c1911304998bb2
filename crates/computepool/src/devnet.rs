//! `computepool devnet`: a local chain with the real contracts.

use std::{
    fs,
    io::Write,
    path::Path,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use pool_chain::{
    AddressBook, Chain, ChainConfig, ChainError,
    devnet::{Devnet, DevnetControl, DevnetOptions},
};
use pool_node::identity::write_private;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    arguments::{
        DevnetAdvanceArguments, DevnetCommand, DevnetDownArguments, DevnetFundArguments, DevnetTarget,
        DevnetTimeCommand, DevnetUpArguments,
    },
    detach,
    paying::address_books,
    serving,
    state::{StateFolder, start_of},
    stop,
    up::spinner,
    wallet::coin_text,
    when::utc,
};

/// The chain, as anvil keeps it.
const CHAIN_FILE: &str = "chain.json";
/// Where everything is on it.
const BOOK_FILE: &str = "addresses.json";
/// How often it is looked whether the node still runs.
const LOOK: Duration = Duration::from_millis(500);
/// The node writes its chain before it ends.
const DOWN: Duration = Duration::from_secs(30);
/// JSON-RPC: there is no such method.
const NO_SUCH_METHOD: i64 = -32601;

pub(crate) fn run(command: DevnetCommand) -> Result<ExitCode> {
    match command {
        DevnetCommand::Up(arguments) if arguments.detach => {
            refuse_a_second(&arguments.state)?;
            detach::start(&arguments.state)
        }
        DevnetCommand::Up(arguments) => up(&arguments),
        DevnetCommand::Down(arguments) => down(&arguments),
        DevnetCommand::Fund(arguments) => fund(&arguments),
        DevnetCommand::Time(DevnetTimeCommand::Advance(arguments)) => advance(&arguments),
        DevnetCommand::Time(DevnetTimeCommand::Show(target)) => show_time(&target),
    }
}

fn up(arguments: &DevnetUpArguments) -> Result<ExitCode> {
    if arguments.detached {
        // Out of the terminal's session, so that closing it does not end the chain.
        #[cfg(unix)]
        nix::unistd::setsid().context("cannot leave the terminal's session")?;
    }
    refuse_a_second(&arguments.state)?;
    let mut folder = StateFolder::lock(&arguments.state)?;
    let kept = folder.path().join(CHAIN_FILE);
    if arguments.fresh && kept.exists() {
        fs::remove_file(&kept).with_context(|| format!("cannot forget {}", kept.display()))?;
    }
    serving::runtime(1)?.block_on(async {
        let stop = stop::on_signal()?;
        let spinner = spinner("starting a local chain");
        let options = DevnetOptions {
            port: arguments.port,
            block_time: arguments.block_time,
            state: Some(kept),
            ..DevnetOptions::default()
        };
        let mut devnet = tokio::select! {
            devnet = Devnet::start(options) => devnet?,
            () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
        };
        spinner.finish_and_clear();
        let outcome = serve(&devnet, &mut folder, arguments, &stop).await;
        let stopped = devnet.stop().await;
        outcome?;
        stopped?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Says that it is there, and stays until it is to stop.
async fn serve(
    devnet: &Devnet,
    folder: &mut StateFolder,
    arguments: &DevnetUpArguments,
    stop: &CancellationToken,
) -> Result<()> {
    match devnet.chain().await {
        Err(ChainError::WrongContract { name, .. }) => bail!(
            "the chain kept in {} is of other contracts than this checkout's ({name} differs); begin anew with --fresh",
            folder.path().display()
        ),
        checked => drop(checked?),
    }
    let book = folder.path().join(BOOK_FILE);
    write_private(&book, serde_json::to_string_pretty(devnet.book())?.as_bytes())?;
    let rpc = devnet.http();
    folder.write_holder(Some(rpc.trim_start_matches("http://").to_owned()))?;
    let AddressBook { network, chain_id, .. } = devnet.book();
    let line = match arguments.json {
        true => json!({ "rpc": rpc, "chain": chain_id, "network": network, "address_book": book }).to_string(),
        false => format!("ready {rpc} chain {chain_id}"),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot print")?;
    drop(out);
    let node = devnet.process();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
        // Ctrl-C in a terminal is the node's as well: it may end a moment before we hear of it.
        if node.is_some_and(|node| start_of(node).is_none()) && !stop.is_cancelled() {
            tokio::time::sleep(LOOK).await;
            if !stop.is_cancelled() {
                bail!("the local chain's node ended by itself; start it again with `computepool devnet up`");
            }
        }
    }
}

/// The lock would refuse as well; this says what is meant.
fn refuse_a_second(state: &Path) -> Result<()> {
    let Some(holder) = StateFolder::holder(state)? else { return Ok(()) };
    let place = holder.api.map(|api| format!(" at http://{api}")).unwrap_or_default();
    bail!(
        "a local chain runs in {} already{place} (process {}); stop it with `computepool devnet down`, or choose another \
         --state",
        state.display(),
        holder.process
    )
}

fn down(arguments: &DevnetDownArguments) -> Result<ExitCode> {
    let stopped = detach::stop(&arguments.state, DOWN)?;
    if arguments.json {
        println!("{}", json!({ "stopped": stopped }));
    } else if stopped {
        eprintln!("Stopped. Its chain is kept in {}.", arguments.state.display());
    } else {
        eprintln!("No local chain runs in {}.", arguments.state.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn fund(arguments: &DevnetFundArguments) -> Result<ExitCode> {
    let address = arguments.address;
    let (usdc, coin) = serving::runtime(1)?.block_on(async {
        let (chain, control) = reach(&arguments.target).await?;
        let has = chain.native_balance(address).await?;
        let coin = has.checked_add(arguments.coin.0).context("the account would have more coin than there can be")?;
        control.fund(address, coin, arguments.usdc).await.map_err(not_local)?;
        Ok::<_, anyhow::Error>(tokio::try_join!(chain.usdc(address), chain.native_balance(address))?)
    })?;
    if arguments.target.json {
        println!("{}", json!({ "address": address, "usdc": usdc, "coin": coin.to_string() }));
    } else {
        println!("{address} has {usdc} USDC, and {} of the chain's coin", coin_text(coin));
    }
    Ok(ExitCode::SUCCESS)
}

fn advance(arguments: &DevnetAdvanceArguments) -> Result<ExitCode> {
    serving::runtime(1)?.block_on(async {
        let (chain, control) = reach(&arguments.target).await?;
        control.advance(arguments.seconds).await.map_err(not_local)?;
        tell_time(&chain, arguments.target.json).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn show_time(target: &DevnetTarget) -> Result<ExitCode> {
    serving::runtime(1)?.block_on(async {
        let (chain, _) = reach(target).await?;
        tell_time(&chain, target.json).await
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn tell_time(chain: &Chain, as_json: bool) -> Result<()> {
    let (head, time) = tokio::try_join!(chain.head(), chain.time())?;
    let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if as_json {
        println!("{}", json!({ "time": time, "here": here, "block": head.number, "block_time": head.timestamp }));
        return Ok(());
    }
    let apart = match time.abs_diff(here) {
        0..=2 => "as on this machine".to_owned(),
        seconds if time > here => format!("{seconds} s ahead of this machine"),
        seconds => format!("{seconds} s behind this machine"),
    };
    println!("{} ({time}), {apart}; the newest block is {} of {}", utc(time), head.number, utc(head.timestamp));
    Ok(())
}

/// The local chain that is meant, and how to give it orders.
async fn reach(target: &DevnetTarget) -> Result<(Chain, DevnetControl)> {
    let (rpc, book) = match &target.rpc {
        Some(rpc) => (rpc.clone(), AddressBook::load(&address_books()?, "local")?),
        None => {
            let api = StateFolder::holder(&target.state)?.and_then(|holder| holder.api).with_context(|| {
                let state = target.state.display();
                format!("no local chain runs in {state}; start one with `computepool devnet up`, or name its node with --rpc")
            })?;
            (format!("http://{api}"), AddressBook::read(&target.state.join(BOOK_FILE))?)
        }
    };
    let chain = Chain::connect(ChainConfig::new(&rpc), book.clone()).await?;
    let control = DevnetControl::connect(&rpc, book).await?;
    Ok((chain, control))
}

/// What only a local chain can do, another one refuses.
fn not_local(error: ChainError) -> anyhow::Error {
    match error {
        ChainError::Refused { code: NO_SUCH_METHOD, .. } => {
            anyhow::anyhow!("the node takes no such orders: it is not that of a local chain")
        }
        error => error.into(),
    }
}
