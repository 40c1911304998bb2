//! Running in the background: `up --detach`, `down`, and the same for the local chain.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
    process::{Command, ExitCode, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use pool_node::identity::make_private_directory;

use crate::{
    arguments::{DownArguments, UpArguments},
    state::{Holder, StateFolder},
};

/// How long a cluster may take to end; twice its own deadlines.
const DOWN: Duration = Duration::from_secs(15);

pub(crate) fn up(arguments: &UpArguments) -> Result<ExitCode> {
    start(&arguments.state)
}

/// Starts the same command in the background, without `--detach`, and returns when it has said that it is ready.
pub(crate) fn start(state: &Path) -> Result<ExitCode> {
    make_private_directory(state)?;
    let log = state.join("up.log");
    let errors = open_log(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let words = std::env::args_os().skip(1).filter(|word| word != "--detach");
    let mut child = Command::new(program)
        .args(words)
        .arg("--detached")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .context("cannot start the background process")?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line).context("the background process cannot be read")?;
    }
    if line.starts_with("ready ") || line.starts_with('{') {
        print!("{line}");
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait().context("the background process is lost")?;
    match last_line(&log) {
        Some(reason) => bail!("{}", reason.trim_start_matches("computepool: ")),
        None => bail!("the background process ended ({status}); see {}", log.display()),
    }
}

fn open_log(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// The last line of a file's last 4 KiB.
fn last_line(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
}

pub(crate) fn down(arguments: &DownArguments) -> Result<ExitCode> {
    if stop(&arguments.state, DOWN)? {
        eprintln!("Stopped.");
    } else {
        eprintln!("Nothing runs in {}.", arguments.state.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops what runs in the state folder and waits until it is gone; false where nothing runs.
pub(crate) fn stop(state: &Path, limit: Duration) -> Result<bool> {
    let Some(holder) = StateFolder::holder(state)? else { return Ok(false) };
    if !holder.runs() {
        bail!("{} is in use by another process than the one it names; nothing was stopped", state.display());
    }
    terminate(&holder)?;
    let began = Instant::now();
    while holder.runs() {
        if began.elapsed() > limit {
            bail!("process {} did not end within {} seconds", holder.process, limit.as_secs());
        }
        sleep(Duration::from_millis(50));
    }
    Ok(true)
}

#[cfg(unix)]
fn terminate(holder: &Holder) -> Result<()> {
    use nix::{sys::signal, unistd::Pid};
    let process = Pid::from_raw(i32::try_from(holder.process).context("the process number is not one")?);
    signal::kill(process, signal::Signal::SIGTERM).with_context(|| format!("cannot stop process {}", holder.process))
}

#[cfg(not(unix))]
fn terminate(_: &Holder) -> Result<()> {
    bail!("`down` is not available on this system; close the window of `up`")
}
