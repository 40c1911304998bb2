//! A local chain in a process of its own, and orchestrators that do not keep their word.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::{
    future::Future,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use nix::{sys::signal, unistd::Pid};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{PATIENCE, computepool, wait};

/// The program under test, without what the environment says about money.
pub fn money(words: &[&str]) -> Command {
    let mut command = computepool();
    command.env_remove("COMPUTEPOOL_RPC").env_remove("COMPUTEPOOL_WALLET").stdin(Stdio::null());
    command.args(words);
    command
}

/// Runs it, and returns its status, what it printed and what it said on standard error.
pub fn run(words: &[&str]) -> (Option<i32>, String, String) {
    said(money(words).output().unwrap())
}

pub fn said(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Runs it, and returns what it printed; it must succeed.
pub fn good(words: &[&str]) -> String {
    let (status, out, errors) = run(words);
    assert_eq!(status, Some(0), "{words:?}: {errors}");
    out
}

/// The same with `--json`.
pub fn json(words: &[&str]) -> Value {
    let out = good(&[words, &["--json"]].concat());
    serde_json::from_str(&out).unwrap_or_else(|_| panic!("{words:?} prints JSON: {out}"))
}

/// Runs what must be refused, and returns the sentence.
pub fn refused(words: &[&str]) -> String {
    let (status, out, errors) = run(words);
    assert_eq!(status, Some(2), "{words:?} is refused: {out}{errors}");
    assert_eq!(out, "", "{words:?} prints nothing");
    errors
}

/// A running `computepool devnet up`. Dropped, it is killed.
pub struct DevnetProcess {
    pub child: Child,
    pub line: String,
    pub rpc: String,
    /// Kept open: the node's process says no more, and must not fail when it does.
    _out: BufReader<ChildStdout>,
}

impl DevnetProcess {
    pub fn start(state: &Path, more: &[&str]) -> Self {
        let mut command = money(&["devnet", "up", "--port", "0", "--state"]);
        command.arg(state).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let Some(rest) = line.strip_prefix("ready ") else {
            let mut errors = String::new();
            child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            panic!("not ready: {line:?} {errors}");
        };
        let rpc = rest.split(' ').next().unwrap().to_owned();
        Self { child, line: line.trim().to_owned(), rpc, _out: out }
    }

    /// Sends a signal and waits for the end.
    pub fn stop(mut self, signal: signal::Signal) -> std::process::ExitStatus {
        signal::kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        wait(&mut self.child, PATIENCE)
    }
}

impl Drop for DevnetProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request as an orchestrator gets it.
pub struct Asked {
    pub method: String,
    pub path: String,
    pub payment: Option<Vec<u8>>,
    pub body: Value,
}

/// What an orchestrator answers: a status, the value of PAYMENT-REQUIRED, a body. `None` hangs up.
pub type Answer = Option<(u16, Option<String>, Value)>;

/// An orchestrator of a test's own making: `answer` is asked for each request, one at a time.
pub struct FakeOrchestrator {
    pub url: String,
    /// How many payments it was sent.
    pub payments: Arc<Mutex<u32>>,
}

impl FakeOrchestrator {
    pub async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Asked) -> R + Send + Sync + 'static,
        R: Future<Output = Answer> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let payments = Arc::new(Mutex::new(0));
        let count = payments.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                while let Some(asked) = read(&mut stream).await {
                    *count.lock().unwrap() += u32::from(asked.payment.is_some());
                    let Some((status, required, body)) = answer(asked).await else { break };
                    let body = body.to_string();
                    let required = required.map(|value| format!("PAYMENT-REQUIRED: {value}\r\n")).unwrap_or_default();
                    let head = format!(
                        "HTTP/1.1 {status} Any\r\nContent-Type: application/json\r\n{required}Content-Length: {}\r\n\r\n",
                        body.len()
                    );
                    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
                }
            }
        });
        Self { url, payments }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let header = |name: &str| {
        let named = |line: &str| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        };
        lines.clone().find_map(named)
    };
    let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let payment = header("payment-signature").map(String::into_bytes);
    Some(Asked { method, path, payment, body: serde_json::from_slice(&body).unwrap_or_default() })
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder for a wallet.
pub fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let wallet = folder.path().join("payer");
    (folder, wallet)
}
