//! The shard process: starting it, talking to it over its standard input and output, and noticing its end.

use std::{
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use pool_wire::control::{FromShard, ToShard, decode, encode, length};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::NodeError;

/// What one line of a shard's log may be.
const MAX_LOG_LINE: usize = 4 << 10;
/// Lines of a shard's log that are kept per second; what is above is counted.
const MAX_LOG_LINES_PER_SECOND: u32 = 100;
/// A process that closed its output is given this long to end by itself.
const END: Duration = Duration::from_millis(300);
/// After [`ToShard::Shutdown`] a shard may take this long.
const GRACE: Duration = Duration::from_secs(1);

/// How to start a shard.
#[derive(Clone, Debug)]
pub(crate) struct ShardCommand {
    pub(crate) program: PathBuf,
    pub(crate) threads: u32,
    pub(crate) cpus: Vec<usize>,
    /// The GPUs that it may see; all of them without a list.
    pub(crate) gpus: Option<Vec<String>>,
}

/// What a shard process does.
pub(crate) enum ShardEvent {
    /// It said something.
    Message(FromShard),
    /// It is gone; the sentence says how.
    Exited(String),
}

/// A running shard process. Its inbox holds 64 messages; it ends on [`ShardProcess::kill`],
/// [`ShardProcess::shut_down`], by itself, or when this is dropped.
pub(crate) struct ShardProcess {
    id: Option<u32>,
    commands: mpsc::Sender<ToShard>,
    stop: CancellationToken,
    /// Cancelled when the process has been reaped.
    gone: CancellationToken,
}

impl ShardProcess {
    /// Starts the program. Its events arrive in `events` marked with `incarnation`, [`ShardEvent::Exited`] last.
    pub(crate) fn start(
        command: &ShardCommand,
        incarnation: u64,
        events: mpsc::Sender<(u64, ShardEvent)>,
    ) -> Result<Self, NodeError> {
        let wrap = |source| NodeError::ShardProgram { path: command.program.clone(), source };
        let threads = command.threads.max(1).to_string();
        let mut program = Command::new(&command.program);
        program.args(["--threads", &threads]);
        if !command.cpus.is_empty() {
            let cpus: Vec<String> = command.cpus.iter().map(usize::to_string).collect();
            program.args(["--cpus", &cpus.join(",")]);
        }
        // candle sizes its pools from these at first use; see pool-engine's `threads` module.
        program.env("CANDLE_NUM_THREADS", &threads).env("RAYON_NUM_THREADS", &threads);
        if let Some(gpus) = &command.gpus {
            // A card without a name goes by its number, which is the driver's and not CUDA's own.
            program.env("CUDA_DEVICE_ORDER", "PCI_BUS_ID").env("CUDA_VISIBLE_DEVICES", gpus.join(","));
        }
        program.env_remove(crate::identity::PASSPHRASE_VARIABLE);
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = program.spawn().map_err(wrap)?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(wrap(std::io::Error::other("its pipes are missing")));
        };
        let id = child.id();
        info!(process = id, incarnation, "started a shard");
        let (commands, outgoing) = mpsc::channel(64);
        let stop = CancellationToken::new();
        tokio::spawn(write_commands(stdin, outgoing, stop.clone()));
        tokio::spawn(forward_log(stderr));
        let gone = CancellationToken::new();
        tokio::spawn(supervise(child, stdout, incarnation, events, stop.clone(), gone.clone()));
        Ok(Self { id, commands, stop, gone })
    }

    /// The process's id.
    pub(crate) fn id(&self) -> Option<u32> {
        self.id
    }

    /// Queues a message. A shard that takes none is stuck, and is killed.
    pub(crate) fn send(&self, message: ToShard) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.commands.try_send(message) {
            warn!("the shard takes no more messages and is ended");
            self.kill();
        }
    }

    /// Ends the process at once; [`ShardEvent::Exited`] follows.
    pub(crate) fn kill(&self) {
        self.stop.cancel();
    }

    /// Ends the process at once and waits until it is gone.
    pub(crate) async fn end(self) {
        self.kill();
        self.gone.cancelled().await;
    }

    /// Asks the process to end, and ends it after a second. When this returns it is gone.
    pub(crate) async fn shut_down(self) {
        self.send(ToShard::Shutdown);
        if timeout(GRACE, self.gone.cancelled()).await.is_err() {
            warn!("the shard did not end in time and is killed");
            self.end().await;
        }
    }
}

impl Drop for ShardProcess {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn supervise(
    mut child: Child,
    stdout: impl AsyncRead + Unpin,
    incarnation: u64,
    events: mpsc::Sender<(u64, ShardEvent)>,
    stop: CancellationToken,
    gone: CancellationToken,
) {
    let why = tokio::select! {
        why = read_messages(stdout, incarnation, &events) => why,
        () = stop.cancelled() => { let _ = child.start_kill(); None }
    };
    // A process that was killed from outside has closed its pipe already and is reaped at once.
    let status = match timeout(END, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    stop.cancel();
    gone.cancel();
    let how = why.unwrap_or_else(|| describe(status));
    info!(incarnation, how, "the shard is gone");
    let _ = events.send((incarnation, ShardEvent::Exited(how))).await;
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) if status.success() => "the shard process ended".to_owned(),
        Ok(status) => format!("the shard process ended unexpectedly ({status})"),
        Err(error) => format!("the shard process is lost ({error})"),
    }
}

/// Reads until the pipe closes (`None`) or something arrives that no shard says.
async fn read_messages(
    mut stdout: impl AsyncRead + Unpin,
    incarnation: u64,
    events: &mpsc::Sender<(u64, ShardEvent)>,
) -> Option<String> {
    loop {
        let mut prefix = [0; 4];
        if stdout.read_exact(&mut prefix).await.is_err() {
            return None;
        }
        let length = match length(prefix) {
            Ok(length) => length,
            Err(error) => return Some(format!("the shard broke its protocol: {error}")),
        };
        let mut bytes = vec![0; length];
        if stdout.read_exact(&mut bytes).await.is_err() {
            return None;
        }
        match decode::<FromShard>(&bytes) {
            Ok(message) => events.send((incarnation, ShardEvent::Message(message))).await.ok()?,
            Err(error) => return Some(format!("the shard broke its protocol: {error}")),
        }
    }
}

/// Ends (and so closes the shard's input) when its sender is gone or the process is.
async fn write_commands(mut stdin: ChildStdin, mut commands: mpsc::Receiver<ToShard>, stop: CancellationToken) {
    loop {
        let message = tokio::select! {
            message = commands.recv() => message,
            () = stop.cancelled() => return,
        };
        let Some(message) = message else { return };
        let bytes = match encode(&message) {
            Ok(bytes) => bytes,
            Err(error) => {
                warn!(%error, "a message to the shard cannot be written");
                continue;
            }
        };
        let written = tokio::select! {
            written = async { stdin.write_all(&bytes).await?; stdin.flush().await } => written,
            () = stop.cancelled() => return,
        };
        if written.is_err() {
            return;
        }
    }
}

/// The shard's log, line by line, cut to [`MAX_LOG_LINE`] and [`MAX_LOG_LINES_PER_SECOND`].
async fn forward_log(mut stderr: impl AsyncRead + Unpin) {
    let mut lines = LogLines::default();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        lines.take(&buffer[..count], |line| info!(target: "pool_shard", "{line}"));
    }
    lines.finish(|line| info!(target: "pool_shard", "{line}"));
}

#[derive(Default)]
struct LogLines {
    line: Vec<u8>,
    cut: bool,
    second: Option<Instant>,
    shown: u32,
    dropped: u64,
}

impl LogLines {
    fn take(&mut self, bytes: &[u8], mut show: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            let room = MAX_LOG_LINE - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            self.cut |= text.len() > room;
            if ends {
                self.emit(&mut show);
            }
        }
    }

    fn finish(&mut self, mut show: impl FnMut(&str)) {
        if !self.line.is_empty() {
            self.emit(&mut show);
        }
    }

    fn emit(&mut self, show: &mut impl FnMut(&str)) {
        let now = Instant::now();
        if self.second.is_none_or(|start| now.duration_since(start) >= Duration::from_secs(1)) {
            if self.dropped > 0 {
                show(&format!("({} lines of its log were left out)", self.dropped));
            }
            (self.second, self.shown, self.dropped) = (Some(now), 0, 0);
        }
        if self.shown < MAX_LOG_LINES_PER_SECOND {
            self.shown += 1;
            let text = String::from_utf8_lossy(&self.line);
            show(&if self.cut { format!("{text} (cut)") } else { text.into_owned() });
        } else {
            self.dropped += 1;
        }
        self.line.clear();
        self.cut = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let (mut log, mut shown) = (LogLines::default(), Vec::new());
        for piece in pieces {
            log.take(piece, |line| shown.push(line.to_owned()));
        }
        log.finish(|line| shown.push(line.to_owned()));
        shown
    }

    #[test]
    fn a_log_is_cut_into_lines_wherever_its_pieces_end() {
        assert_eq!(lines(&[b"one\ntw", b"o\nthree"]), ["one", "two", "three"]);
    }

    #[test]
    fn an_endless_line_and_a_flood_of_lines_take_bounded_space() {
        let long = lines(&[&vec![b'x'; 100_000]]);
        assert_eq!(long.len(), 1);
        assert!(long[0].len() < MAX_LOG_LINE + 10 && long[0].ends_with("(cut)"), "{} bytes", long[0].len());
        let flood = lines(&[&b"again\n".repeat(10_000)]);
        assert!(flood.len() <= 2 * MAX_LOG_LINES_PER_SECOND as usize, "{} lines were shown", flood.len());
    }

    #[tokio::test]
    async fn garbage_on_the_pipe_ends_the_shard_with_a_reason() {
        let (events, _keep) = mpsc::channel(8);
        for garbage in [&b"\xff\xff\xff\xff"[..], &b"\x02\0\0\0{}"[..], &b"\x03\0\0\0abc"[..]] {
            let why = read_messages(garbage, 1, &events).await.expect("garbage has a reason");
            assert!(why.contains("broke its protocol"), "{why}");
        }
        assert_eq!(read_messages(&b"\x05\0\0\0{"[..], 1, &events).await, None, "a cut message is a closed pipe");
    }
}
