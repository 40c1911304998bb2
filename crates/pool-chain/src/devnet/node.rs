//! The anvil process. One thread owns it: Linux ends a child with the *thread* that started it, so that thread lives
//! exactly as long as the node.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{sync::oneshot, time::timeout};

use super::DevnetError;

/// From the start of the process to its first answer; it loads the state before.
const LONGEST_START: Duration = Duration::from_secs(30);
/// From the request to end to the end; it writes the state before.
const LONGEST_END: Duration = Duration::from_secs(20);
/// How often the owning thread looks after the process.
const LOOK: Duration = Duration::from_millis(20);
/// The last lines that a node said in its distress are shown.
const LAST_LINES: usize = 5;

/// How a node is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It writes its chain to the state file first.
    Keep,
    /// At once.
    Now,
}

/// A running node. It is killed when this is dropped.
pub(super) struct Node {
    pub(super) port: u16,
    pub(super) process: u32,
    orders: mpsc::Sender<(Ending, oneshot::Sender<()>)>,
    owner: Option<thread::JoinHandle<()>>,
}

impl Node {
    pub(super) async fn start(
        program: &Path,
        port: u16,
        state: &Path,
        chain_id: u64,
        block_time: Option<u64>,
    ) -> Result<Self, DevnetError> {
        let mut command = Command::new(program);
        command.args(["--host", "127.0.0.1", "--accounts", "20", "--port", &port.to_string()]);
        command.args(["--chain-id", &chain_id.to_string()]).arg("--state").arg(state);
        if let Some(seconds) = block_time {
            command.args(["--block-time", &seconds.to_string()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        end_with_parent(&mut command);

        let shown = program.display().to_string();
        let (orders, inbox) = mpsc::channel();
        let (started, wait) = oneshot::channel();
        let owner =
            thread::Builder::new().name("devnet-node".to_owned()).spawn(move || own(command, inbox, started))?;
        let answer = timeout(LONGEST_START, wait).await;
        let mut node = Self { port: 0, process: 0, orders, owner: Some(owner) };
        match answer {
            Ok(Ok(Started::Listening { port, process })) => {
                node.port = port;
                node.process = process;
                Ok(node)
            }
            Ok(Ok(Started::NotAtAll(source))) => Err(DevnetError::Program { program: shown, source }),
            Ok(Ok(Started::Ended(words))) => Err(DevnetError::Start(words)),
            Ok(Err(_)) => Err(DevnetError::Start("it ended at once".to_owned())),
            Err(_) => Err(DevnetError::Start(format!("no answer after {} s", LONGEST_START.as_secs()))),
        }
    }

    /// Ends it and waits until it is gone.
    pub(super) async fn end(mut self, ending: Ending) -> Result<(), DevnetError> {
        let (gone, wait) = oneshot::channel();
        if self.orders.send((ending, gone)).is_ok() {
            // An answer that is missing means that the process had ended by itself.
            let _ = wait.await;
        }
        self.join();
        Ok(())
    }

    fn join(&mut self) {
        if let Some(owner) = self.owner.take() {
            let _ = owner.join();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The owner kills the process and reaps it; when this returns nothing is left.
        let (gone, _) = oneshot::channel();
        let _ = self.orders.send((Ending::Now, gone));
        self.join();
    }
}

enum Started {
    Listening { port: u16, process: u32 },
    NotAtAll(std::io::Error),
    Ended(String),
}

/// The life of the process.
fn own(mut command: Command, inbox: mpsc::Receiver<(Ending, oneshot::Sender<()>)>, started: oneshot::Sender<Started>) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(source) => {
            let _ = started.send(Started::NotAtAll(source));
            return;
        }
    };
    let process = child.id();
    let last_words = Arc::new(Mutex::new(VecDeque::new()));
    let started = Arc::new(Mutex::new(Some(started)));
    let readers = [
        child.stdout.take().map(|out| read_lines(out, process, started.clone(), last_words.clone())),
        child.stderr.take().map(|out| read_lines(out, process, started.clone(), last_words.clone())),
    ];
    let reply = loop {
        match inbox.recv_timeout(LOOK) {
            Ok((ending, gone)) => {
                end(&mut child, ending);
                break Some(gone);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                if !matches!(child.try_wait(), Ok(None)) {
                    break None;
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                end(&mut child, Ending::Now);
                break None;
            }
        }
    };
    for reader in readers.into_iter().flatten() {
        let _ = reader.join();
    }
    if let Some(started) = lock(&started).take() {
        let words: Vec<String> = lock(&last_words).drain(..).collect();
        let _ = started.send(Started::Ended(words.join(" / ")));
    }
    if let Some(gone) = reply {
        let _ = gone.send(());
    }
}

fn end(child: &mut Child, ending: Ending) {
    if ending == Ending::Keep {
        // Not reaped yet, so the number is still this child's.
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        let begun = Instant::now();
        while begun.elapsed() < LONGEST_END && matches!(child.try_wait(), Ok(None)) {
            thread::sleep(LOOK);
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

type Starting = Arc<Mutex<Option<oneshot::Sender<Started>>>>;

/// Reads what the node says: where it listens, and its last words. The rest (a line for each request) is dropped, but
/// it must be read, or the node would wait for somebody to do so.
fn read_lines(
    output: impl std::io::Read + Send + 'static,
    process: u32,
    started: Starting,
    last_words: Arc<Mutex<VecDeque<String>>>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let port = line.trim().strip_prefix("Listening on 127.0.0.1:").and_then(|port| port.parse().ok());
            if let Some(port) = port
                && let Some(started) = lock(&started).take()
            {
                let _ = started.send(Started::Listening { port, process });
            }
            let mut words = lock(&last_words);
            if !line.trim().is_empty() {
                words.push_back(line.chars().take(200).collect());
            }
            while words.len() > LAST_LINES {
                words.pop_front();
            }
        }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The child is killed when the thread that starts it ends, whatever ended it: a `kill -9` of a test leaves no node.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "std has no safe way to run something in a child before its program")]
fn end_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;

    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl and getppid are, and nothing here
    // allocates or locks.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have ended before the line above.
            if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(_command: &mut Command) {}
