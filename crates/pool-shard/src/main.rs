//! `pool-shard`: started by a node, never by hand.

use std::{io::Write, path::PathBuf};

use clap::{Parser, ValueEnum};
use pool_engine::synthetic::{SyntheticQuant, SyntheticShape, write_gguf};
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
    /// Instead of serving, write a model of random weights for `computepool bench`, and print how far it is.
    #[arg(long, hide = true, value_name = "FILE", requires_all = ["shape", "quant"])]
    write_synthetic: Option<PathBuf>,
    #[arg(long, hide = true)]
    shape: Option<Shape>,
    #[arg(long, hide = true)]
    quant: Option<Quant>,
    #[arg(long, hide = true, default_value_t = 1)]
    seed: u64,
}

/// Shapes of [`SyntheticShape`].
#[derive(Clone, Copy, ValueEnum)]
enum Shape {
    Tiny,
    HalfBillion,
    OneBillion,
}

impl From<Shape> for SyntheticShape {
    fn from(shape: Shape) -> Self {
        match shape {
            Shape::Tiny => SyntheticShape::tiny(),
            Shape::HalfBillion => SyntheticShape::half_billion(),
            Shape::OneBillion => SyntheticShape::one_billion(),
        }
    }
}

/// Types of [`SyntheticQuant`].
#[derive(Clone, Copy, ValueEnum)]
enum Quant {
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_k")]
    Q4K,
}

impl From<Quant> for SyntheticQuant {
    fn from(quant: Quant) -> Self {
        match quant {
            Quant::Q8_0 => SyntheticQuant::Q8_0,
            Quant::Q4K => SyntheticQuant::Q4K,
        }
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    process::end_with_parent()?;
    if let (Some(file), Some(shape), Some(quant)) = (&arguments.write_synthetic, arguments.shape, arguments.quant) {
        // Whoever reads the progress may be gone; the file is what counts.
        let say = |done, all| drop(writeln!(std::io::stdout(), "{done} {all}"));
        return Ok(write_gguf(file, &shape.into(), quant.into(), arguments.seed, say)?);
    }
    process::pin_to(&arguments.cpus)?;
    let threads = pool_engine::configure_threads(arguments.threads);
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "info,webrtc=error,rtc=error".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    // The links' work is small beside the engine's: one thread carries it, this one. It must not wait long for a core.
    if let Err(error) = pool_link::turns::short() {
        tracing::debug!(%error, "the links' thread runs in ordinary turns");
    }
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
