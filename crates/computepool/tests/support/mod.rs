//! Running the real program, and looking at its processes.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

pub mod model;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use alloy_primitives::Address;
use alloy_signer_local::PrivateKeySigner;
use nix::{sys::signal, unistd::Pid};
use pool_coalition::{Roster, RosterMember, RosterRole};
use pool_models::Model;
use pool_node::{NodeConfig, NodeModel};
use pool_orchestrator::{
    OrchestratorConfig,
    control::{ControlTap, ServingWishes, Timing},
};
use pool_wire::control::Capabilities;
use serde_json::{Value, json};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test.
pub fn computepool() -> Command {
    let shard = Path::new(env!("CARGO_BIN_EXE_computepool")).with_file_name("pool-shard");
    assert!(shard.exists(), "build pool-shard first: cargo build -p pool-shard");
    let mut command = Command::new(env!("CARGO_BIN_EXE_computepool"));
    command.env_remove("RUST_LOG").env_remove("COMPUTEPOOL_API_KEY").env_remove("COMPUTEPOOL_PASSPHRASE");
    command
}

/// What opens the keystores of the tests' own nodes.
pub const PASSPHRASE: &str = "correct horse battery staple";

/// The same program with [`PASSPHRASE`].
pub fn with_passphrase(mut command: Command) -> Command {
    command.env("COMPUTEPOOL_PASSPHRASE", PASSPHRASE).env_remove("HF_TOKEN");
    command
}

/// Nothing of the machine that runs the test: its screen, its desktop, its battery.
pub fn without_desktop(command: &mut Command) -> &mut Command {
    for variable in ["DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"] {
        command.env_remove(variable);
    }
    command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/no/such/bus")
}

/// The address of the key that a node or an orchestrator would use; made when missing.
pub fn address_of(command: Command) -> Address {
    let mut command = with_passphrase(command);
    let output = command.arg("--show-address").stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().parse().unwrap_or_else(|_| panic!("no address: {text} {}", String::from_utf8_lossy(&output.stderr)))
}

/// A member of a roster.
pub fn member(address: Address, name: &str, role: RosterRole) -> RosterMember {
    RosterMember { address, name: name.to_owned(), role }
}

/// A node of this process, with a plain machine of its own.
pub fn node_config(at: SocketAddr, roster: &Roster, wallet: PrivateKeySigner, model: PathBuf) -> NodeConfig {
    NodeConfig {
        orchestrator: format!("ws://{at}"),
        roster: roster.clone(),
        name: String::new(),
        wallet,
        model: NodeModel::Local(model),
        shard_program: Some(Path::new(env!("CARGO_BIN_EXE_computepool")).with_file_name("pool-shard")),
        capabilities: Capabilities {
            device: "cpu".to_owned(),
            memory_bytes: 1 << 30,
            bandwidth_bytes_per_second: 10_000_000_000,
            threads: 1,
            uplink_bytes_per_second: None,
        },
        cpus: Vec::new(),
        gpus: None,
        quantise: false,
        loopback_only: true,
        vote: None,
    }
}

/// An orchestrator of this process for coalitions of so many, on a free port; its database is `state.db`.
pub fn orchestrator_config(
    files: &Files,
    wallet: PrivateKeySigner,
    roster: &Roster,
    shards: u32,
) -> OrchestratorConfig {
    OrchestratorConfig {
        api: "127.0.0.1:0".to_owned(),
        database: files.state().join("state.db"),
        wallet,
        roster: roster.clone(),
        model_name: "noise".to_owned(),
        model: Arc::new(Model::open(files.model()).unwrap()),
        wishes: ServingWishes { shards: Some(shards), ..ServingWishes::default() },
        api_key: None,
        loopback_only: true,
        max_waiting: 64,
        queue_deadline: Duration::from_secs(30),
        timing: Timing { settle: Duration::from_millis(200), ..Timing::default() },
        control_tap: ControlTap::default(),
        data_tap: None,
        money: None,
    }
}

/// The coalition as the orchestrator shows it.
pub async fn coalition(url: &str) -> Value {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.get(format!("{url}/coalition")).send().await.unwrap().json().await.unwrap()
}

/// The lines a child writes, as they come.
pub fn lines(of: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (tell, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(of).lines().map_while(Result::ok) {
            let _ = tell.send(line);
        }
    });
    lines
}

/// The text after `before` in the first line that has it.
pub fn after(lines: &mpsc::Receiver<String>, before: &str, limit: Duration) -> Option<String> {
    let began = Instant::now();
    while let Some(left) = limit.checked_sub(began.elapsed()) {
        let line = lines.recv_timeout(left).ok()?;
        if let Some((_, text)) = line.split_once(before) {
            return Some(text.to_owned());
        }
    }
    None
}

/// A process that ends with its owner.
pub struct Running(pub Child);

impl Running {
    /// Starts a program of the cluster with [`PASSPHRASE`].
    pub fn start(command: Command) -> Self {
        Self(with_passphrase(command).stdin(Stdio::null()).spawn().unwrap())
    }

    /// Starts an orchestrator; where nodes connect, as `ws://...`, and the lines of its standard output.
    pub fn orchestrator(mut command: Command) -> (Self, String, mpsc::Receiver<String>) {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut server = Self::start(command);
        let (said, printed) = (lines(server.0.stderr.take().unwrap()), lines(server.0.stdout.take().unwrap()));
        let listening = after(&said, "waiting for nodes at ", PATIENCE).expect("it says where nodes connect");
        (server, listening, printed)
    }

    /// Everything it started, and itself.
    pub fn processes(&self) -> BTreeMap<u32, String> {
        let mut all = descendants(self.0.id());
        all.insert(self.0.id(), "itself".to_owned());
        all
    }

    /// Asks it to end, and sees that it does in good order.
    pub fn stop(&mut self) {
        signal::kill(Pid::from_raw(self.0.id() as i32), signal::Signal::SIGTERM).unwrap();
        let status = wait(&mut self.0, Duration::from_secs(15));
        assert_eq!(status.code(), Some(0), "an orderly end");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs it to its end.
pub fn run(arguments: &[&str]) -> Output {
    computepool().args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// A folder with a random model and room for a state.
pub struct Files(tempfile::TempDir);

impl Files {
    pub fn new() -> Self {
        Self::with(model::Shape::default())
    }

    pub fn with(shape: model::Shape) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        model::write(&files.model(), shape);
        files
    }

    pub fn model(&self) -> PathBuf {
        self.0.path().join("noise")
    }

    pub fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    /// `computepool up` on a free port, without further options.
    pub fn up_command(&self) -> Command {
        self.up_command_at("127.0.0.1:0")
    }

    pub fn up_command_at(&self, api: &str) -> Command {
        let mut command = computepool();
        command.arg("up").arg("--model").arg(self.model()).arg("--state").arg(self.state());
        command.args(["--api", api, "--threads", "1"]);
        command
    }
}

/// A running `computepool up`. Dropped without [`Up::stop`], it is killed, and its children end with it.
pub struct Up {
    child: Child,
    pub url: String,
}

impl Up {
    /// Starts it and waits for its one line.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (tell, line) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            tell.send(line).unwrap();
            // Anything more on standard output would break the promise of one line.
            let mut more = String::new();
            let _ = out.read_to_string(&mut more);
            assert!(more.is_empty(), "standard output holds one line, but also: {more}");
        });
        let line = line.recv_timeout(PATIENCE).unwrap_or_default();
        let Some(url) = line.trim().strip_prefix("ready ") else {
            let _ = child.kill();
            let mut errors = String::new();
            let _ = child.stderr.take().unwrap().read_to_string(&mut errors);
            panic!("not ready: {line:?}\n{errors}");
        };
        Self { url: url.to_owned(), child }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The endpoint without its path.
    pub fn root(&self) -> &str {
        self.url.strip_suffix("/v1").unwrap()
    }

    /// Sends a signal and waits for the end. Returns the status and what was written to standard error.
    pub fn stop(mut self, signal: signal::Signal) -> (ExitStatus, String) {
        signal::kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        let status = wait(&mut self.child, Duration::from_secs(10));
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (status, errors)
    }

    /// Everything it started, by number and command line.
    pub fn processes(&self) -> BTreeMap<u32, String> {
        descendants(self.child.id())
    }

    /// The numbers of its processes whose command line contains `text`.
    pub fn processes_with(&self, text: &str) -> Vec<u32> {
        self.processes().into_iter().filter(|(_, line)| line.contains(text)).map(|(process, _)| process).collect()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child with a limit.
pub fn wait(child: &mut Child, limit: Duration) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(began.elapsed() < limit, "process {} did not end within {limit:?}", child.id());
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn kill(process: u32) {
    signal::kill(Pid::from_raw(process as i32), signal::Signal::SIGKILL).unwrap();
}

/// Whether a process runs (a zombie does not).
pub fn runs(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Fails unless all of them end within a second.
pub fn assert_gone(processes: &BTreeMap<u32, String>) {
    let began = Instant::now();
    loop {
        let left: Vec<_> = processes.iter().filter(|(process, _)| runs(**process)).collect();
        if left.is_empty() {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(1), "still running: {left:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Every process below `of`, by number and command line.
pub fn descendants(of: u32) -> BTreeMap<u32, String> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()?;
            Some((process, parent))
        })
        .collect();
    let (mut found, mut waiting) = (BTreeMap::new(), vec![of]);
    while let Some(parent) = waiting.pop() {
        for (process, _) in parents.iter().filter(|(_, its)| *its == parent) {
            let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if found.insert(*process, line).is_none() {
                waiting.push(*process);
            }
        }
    }
    found
}

/// Every file of a folder and the folders in it, as text.
pub fn texts(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(texts(&path));
        } else {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
            found.push((path, text));
        }
    }
    found
}

/// A chat request of `tokens` tokens.
pub fn request(question: &str, tokens: u32, stream: bool) -> Value {
    json!({
        "model": "noise", "messages": [{ "role": "user", "content": question }], "temperature": 0,
        "max_tokens": tokens, "stream": stream,
    })
}

/// Asks for a whole answer.
pub async fn ask(url: &str, body: &Value) -> (u16, Value) {
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let answer = client.post(format!("{url}/chat/completions")).json(body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Asks until a whole answer comes, and returns how long that took.
pub async fn ask_until_served(url: &str, limit: Duration) -> Duration {
    let began = Instant::now();
    loop {
        let (status, answer) = ask(url, &request("again", 8, false)).await;
        if status == 200 {
            assert_eq!(answer["usage"]["completion_tokens"], 8, "{answer}");
            return began.elapsed();
        }
        assert!([500, 502, 503].contains(&status), "only a missing coalition is an excuse: {status} {answer}");
        assert!(began.elapsed() < limit, "not served within {limit:?}: {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An answer that is being streamed.
pub struct Stream {
    answer: reqwest::Response,
    buffer: Vec<u8>,
}

impl Stream {
    pub async fn open(url: &str, body: &Value) -> Self {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.post(format!("{url}/chat/completions")).json(body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        Self { answer, buffer: Vec::new() }
    }

    /// Reads until it has shown so many pieces of text that it goes on.
    pub async fn pieces(&mut self, count: usize) {
        let mut seen = 0;
        while seen < count {
            let event: Value = serde_json::from_str(&self.next().await.expect("the answer goes on")).unwrap();
            assert!(event.get("error").is_none(), "{event}");
            seen += usize::from(event.pointer("/choices/0/delta/content").is_some());
        }
    }

    /// Reads on to the error that ends it: what a person is told.
    pub async fn error(&mut self) -> String {
        loop {
            let event = self.next().await.expect("a stream that breaks says so before it ends");
            assert_ne!(event, "[DONE]", "an answer that was cut must not look whole");
            let event: Value = serde_json::from_str(&event).unwrap();
            if let Some(error) = event.get("error") {
                let message = error["message"].as_str().unwrap();
                assert!(!message.is_empty(), "{error}");
                return message.to_owned();
            }
        }
    }

    /// The next event's data; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let text = String::from_utf8(event).unwrap();
                if let Some(data) = text.trim().strip_prefix("data: ") {
                    return Some(data.to_owned());
                }
                continue;
            }
            let chunk = tokio::time::timeout(PATIENCE, self.answer.chunk()).await.expect("a stream goes on or ends");
            self.buffer.extend_from_slice(&chunk.ok()??);
        }
    }
}
