//! `computepool up`.

use std::{io::Write, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    arguments::UpArguments,
    cluster::{Cluster, ClusterOptions},
    logs, serving,
    state::StateFolder,
    stop,
};

pub(crate) fn run(arguments: Box<UpArguments>) -> Result<ExitCode> {
    if arguments.detached {
        // Out of the terminal's session, so that closing it does not end the cluster.
        #[cfg(unix)]
        nix::unistd::setsid().context("cannot leave the terminal's session")?;
    }
    let mut folder = StateFolder::lock(&arguments.state)?;
    logs::start(Some(&folder.log()), arguments.verbose)
        .with_context(|| format!("cannot write a log in {}", arguments.state.display()))?;
    let options = ClusterOptions {
        model: arguments.model.clone(),
        model_name: arguments.model_name.clone(),
        shards: arguments.shards,
        api: arguments.api.clone(),
        threads: arguments.threads,
        cpus: arguments.cpus.clone(),
        wishes: arguments.serving.wishes(Some(arguments.shards)),
        api_key: arguments.api_key.clone(),
        pay: arguments.pay.options(true),
        verbose: arguments.verbose,
    };
    serving::runtime(2)?.block_on(async {
        let stop = stop::on_signal()?;
        let spinner = spinner("starting");
        let mut cluster = tokio::select! {
            cluster = Cluster::start(&mut folder, options) => cluster?,
            () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
        };
        show_progress(&spinner, &cluster);
        let ready = tokio::select! {
            ready = cluster.ready(Duration::from_secs(arguments.startup_seconds)) => Some(ready),
            () = stop.cancelled() => None,
        };
        spinner.finish_and_clear();
        let outcome = match ready {
            Some(Ok(())) => {
                say_ready(&cluster)?;
                cluster.run_until(&stop).await
            }
            Some(Err(error)) => Err(error),
            None => Ok(()),
        };
        cluster.stop().await;
        outcome.map(|()| ExitCode::SUCCESS)
    })
}

/// The one line on standard output.
fn say_ready(cluster: &Cluster) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready http://{}/v1", cluster.address()).and_then(|()| out.flush()).context("cannot print")
}

/// A spinner on standard error, when that is a terminal.
pub(crate) fn spinner(message: &'static str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

/// Says in the spinner what is being waited for, until it is cleared.
pub(crate) fn show_progress(spinner: &ProgressBar, cluster: &Cluster) {
    let (spinner, mut view) = (spinner.clone(), cluster.view());
    tokio::spawn(async move {
        while !spinner.is_finished() {
            let reason = view.borrow_and_update().reason.clone();
            spinner.set_message(reason.unwrap_or_else(|| "ready".to_owned()));
            if view.changed().await.is_err() {
                return;
            }
        }
    });
}
