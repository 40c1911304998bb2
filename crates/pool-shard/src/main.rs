//! `pool-shard`: started by a node, never by hand.

use clap::Parser;
use pool_shard::{process, service};

/// Computes one layer range of one model for the node that started it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Compute threads; never more than the cores.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Run on these cores only, for example 0,1.
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    process::end_with_parent()?;
    process::pin_to(&arguments.cpus)?;
    let threads = pool_engine::configure_threads(arguments.threads);
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info,webrtc=off,rtc=off".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    // The links' work is small beside the engine's: one thread carries it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let options = service::ShardOptions { threads };
    let served = runtime.block_on(async {
        let (orders, replies) = control_pipe()?;
        service::run(options, orders, replies).await
    });
    // Whatever still runs belongs to links that are over.
    runtime.shutdown_background();
    served
}

/// Standard input and output, as the node connected them.
#[cfg(unix)]
fn control_pipe() -> anyhow::Result<(tokio::net::unix::pipe::Receiver, tokio::net::unix::pipe::Sender)> {
    use std::os::fd::AsFd;

    use anyhow::Context;
    use tokio::net::unix::pipe::{Receiver, Sender};

    let started_by_hand = "pool-shard is started by a node, over pipes; use `computepool up` or `computepool node`";
    let orders = Receiver::from_owned_fd(std::io::stdin().as_fd().try_clone_to_owned()?).context(started_by_hand)?;
    let replies = Sender::from_owned_fd(std::io::stdout().as_fd().try_clone_to_owned()?).context(started_by_hand)?;
    Ok((orders, replies))
}

/// Standard input and output, as the node connected them.
#[cfg(windows)]
fn control_pipe() -> anyhow::Result<(tokio::io::Stdin, tokio::io::Stdout)> {
    Ok((tokio::io::stdin(), tokio::io::stdout()))
}
