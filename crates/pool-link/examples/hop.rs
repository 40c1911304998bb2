//! What one hop costs between two processes of this machine: half the round trip of a 16 KiB message, the processor
//! time of each side, and bulk throughput, over WebRTC and over plain TCP. Prints one JSON object.
//!
//! `cargo run --release -p pool-link --example hop [-- --messages 2000 --bulk-mib 128 --threads 0 --packet 8000
//! --reactors 0]`

use std::{
    collections::BTreeSet,
    error::Error,
    io::{BufRead, Write},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use alloy_primitives::B256;
use alloy_signer_local::PrivateKeySigner;
use bytes::{Bytes, BytesMut};
use pool_link::{
    Delegation, Description, Lane, LinkIdentity, Transport, VerifyContext,
    webrtc::{LinkSettings, WebRtcLink},
};
use pool_types::{CoalitionId, Epoch};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const HOP: usize = 16 << 10;
const PIECE: usize = 60 << 10;
const WARM_UP: usize = 300;
const COALITION: CoalitionId = CoalitionId(B256::repeat_byte(7));

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What a message asks of the far side, by its first byte.
const ECHO: u8 = 1;
const COUNT: u8 = 2;
/// Asks for the bytes counted and the processor time used since the last report.
const REPORT: u8 = 3;

/// A way to carry messages: the two things compared.
enum Carrier {
    WebRtc(WebRtcLink),
    Tcp(TcpStream),
}

impl Carrier {
    async fn send(&mut self, message: Bytes) -> Fallible<()> {
        match self {
            Carrier::WebRtc(link) => link.send(Lane::Act, message).await?,
            Carrier::Tcp(stream) => {
                let mut framed = BytesMut::with_capacity(message.len() + 4);
                framed.extend_from_slice(&(message.len() as u32).to_le_bytes());
                framed.extend_from_slice(&message);
                stream.write_all(&framed).await?;
            }
        }
        Ok(())
    }

    async fn receive(&mut self) -> Fallible<Bytes> {
        match self {
            Carrier::WebRtc(link) => Ok(link.receive().await?.1),
            Carrier::Tcp(stream) => {
                let length = stream.read_u32_le().await? as usize;
                let mut message = BytesMut::zeroed(length);
                stream.read_exact(&mut message).await?;
                Ok(message.freeze())
            }
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Processor time of all threads of this process (Linux's schedstat; zero elsewhere).
fn processor_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.filter_map(of).sum())
}

/// The value after a flag on the command line.
fn flag<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::args().skip_while(|argument| argument != name).nth(1)?.parse().ok()
}

fn settings(mode: &str) -> LinkSettings {
    let packet_size = if mode == "webrtc_standard_packets" { Some(1191) } else { flag("--packet") };
    LinkSettings { packet_size, reactor_threads: flag("--reactors").unwrap_or(0), ..LinkSettings::loopback() }
}

async fn identity(n: u8) -> Fallible<(LinkIdentity, VerifyContext)> {
    let wallet = |n| PrivateKeySigner::from_bytes(&B256::repeat_byte(n));
    let (mine, theirs) = (wallet(n)?, wallet(3 - n)?);
    let key = LinkIdentity::new_key();
    let delegation = Delegation::sign(&mine, key.address(), COALITION, 0, now() + 600).await?;
    let members = BTreeSet::from([mine.address(), theirs.address()]);
    let context =
        VerifyContext { members, me: mine.address(), coalition: COALITION, chain: 0, epoch: Epoch(0), now: now() };
    Ok((key.with_delegation(delegation)?, context))
}

/// The far side: echoes, counts and reports until its parent is gone.
async fn far_side(mode: &str) -> Fallible<()> {
    let mut carrier = if mode == "tcp" {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        Carrier::Tcp(stream)
    } else {
        let (identity, context) = identity(2).await?;
        let mut offer = String::new();
        std::io::stdin().lock().read_line(&mut offer)?;
        let offer: Description = serde_json::from_str(&offer)?;
        let (answer, pending) = WebRtcLink::answer(&identity, &offer, &context, settings(mode)).await?;
        println!("{}", serde_json::to_string(&answer)?);
        Carrier::WebRtc(pending.established().await?)
    };
    let (mut counted, mut since) = (0u64, processor_time());
    while let Ok(message) = carrier.receive().await {
        match message.first() {
            Some(&ECHO) => carrier.send(message).await?,
            Some(&REPORT) => {
                let used = processor_time() - since;
                let mut report = BytesMut::from(&counted.to_le_bytes()[..]);
                report.extend_from_slice(&(used.as_nanos() as u64).to_le_bytes());
                carrier.send(report.freeze()).await?;
                (counted, since) = (0, processor_time());
            }
            _ => counted += message.len() as u64,
        }
    }
    Ok(())
}

/// Starts the far side and connects to it.
async fn near_side(mode: &str) -> Fallible<(Carrier, Child)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--far-side", mode])
        .args(std::env::args().skip(1))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (mut input, output) = (child.stdin.take().ok_or("no pipe")?, child.stdout.take().ok_or("no pipe")?);
    let mut line = String::new();
    let mut output = std::io::BufReader::new(output);
    if mode == "tcp" {
        output.read_line(&mut line)?;
        let stream = TcpStream::connect(line.trim()).await?;
        stream.set_nodelay(true)?;
        return Ok((Carrier::Tcp(stream), child));
    }
    let (identity, context) = identity(1).await?;
    let peer = *context.members.iter().find(|member| **member != context.me).ok_or("no peer")?;
    let (pending, offer) = WebRtcLink::offer(&identity, peer, &context, settings(mode)).await?;
    writeln!(input, "{}", serde_json::to_string(&offer)?)?;
    output.read_line(&mut line)?;
    let answer: Description = serde_json::from_str(&line)?;
    Ok((Carrier::WebRtc(pending.accept(&answer, now()).await?), child))
}

/// Asks for (bytes counted, processor time in nanoseconds) of the far side.
async fn report(carrier: &mut Carrier) -> Fallible<(u64, u64)> {
    carrier.send(Bytes::from_static(&[REPORT, 0])).await?;
    let report = carrier.receive().await?;
    let word =
        |at: usize| -> Fallible<u64> { Ok(u64::from_le_bytes(report.get(at..at + 8).ok_or("short")?.try_into()?)) };
    Ok((word(0)?, word(8)?))
}

async fn measure(mode: &str, messages: usize, bulk_mib: usize) -> Fallible<Value> {
    let (mut carrier, mut child) = near_side(mode).await?;
    let message = Bytes::from(vec![ECHO; HOP]);
    let mut halves = Vec::with_capacity(messages);
    let mut used = Duration::ZERO;
    for n in 0..WARM_UP + messages {
        if n == WARM_UP {
            report(&mut carrier).await?;
            used = processor_time();
        }
        let start = Instant::now();
        carrier.send(message.clone()).await?;
        let echoed = carrier.receive().await?;
        if echoed.len() != HOP {
            return Err("the echo differs".into());
        }
        if n >= WARM_UP {
            halves.push(start.elapsed() / 2);
        }
    }
    let here = processor_time() - used;
    let (_, there) = report(&mut carrier).await?;
    halves.sort_unstable();
    let millis = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;

    let pieces = (bulk_mib << 20).div_ceil(PIECE);
    let piece = Bytes::from(vec![COUNT; PIECE]);
    let (start, used) = (Instant::now(), processor_time());
    for _ in 0..pieces {
        carrier.send(piece.clone()).await?;
    }
    let (counted, bulk_there) = report(&mut carrier).await?;
    let (took, bulk_here) = (start.elapsed(), processor_time() - used);
    if counted != (pieces * PIECE) as u64 {
        return Err("bulk bytes were lost".into());
    }
    drop(carrier);
    child.kill()?;
    child.wait()?;
    let per_message = |here: Duration, there: u64, n: usize| {
        ((here.as_nanos() as f64 + there as f64) / n as f64 / 100.0).round() / 10.0
    };
    Ok(json!({
        "half_round_trip_ms": { "p50": millis(halves[(messages - 1) / 2]), "p99": millis(halves[(messages - 1) * 99 / 100]) },
        // Both sides together: one message costs its sender and its receiver this much.
        "processor_us_per_message": per_message(here, there, 2 * messages),
        "bulk_mib_per_s": (counted as f64 / (1 << 20) as f64 / took.as_secs_f64()).round(),
        "bulk_processor_us_per_60_kib": per_message(bulk_here, bulk_there, pieces),
    }))
}

fn main() -> Fallible<()> {
    let threads = flag("--threads").unwrap_or(0);
    let runtime = match threads {
        0 => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).enable_all().build()?,
    };
    if let Some(mode) = flag::<String>("--far-side") {
        return runtime.block_on(far_side(&mode));
    }
    let (messages, bulk) = (flag("--messages").unwrap_or(2000).max(1), flag("--bulk-mib").unwrap_or(128));
    let mut result = json!({ "message_bytes": HOP, "messages": messages, "bulk_mib": bulk, "threads": threads });
    for mode in ["tcp", "webrtc", "webrtc_standard_packets"] {
        result[mode] = runtime.block_on(measure(mode, messages, bulk))?;
    }
    println!("{result:#}");
    Ok(())
}
