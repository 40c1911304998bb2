//! Our data channels against WebRTC stacks by others: a megabyte goes out and comes back unchanged.
//!
//! `make interop` installs the foreign stacks and runs this; without them it fails. The peers know nothing of our
//! signatures, so the links are made below them.

#![allow(clippy::unwrap_used, reason = "a test, helpers included")]

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use pool_link::{
    Lane, Transport,
    webrtc::{LinkSettings, WebRtcLink, interop},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

const MEGABYTE: usize = 1 << 20;
const PIECE: usize = 60 << 10;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Starts a foreign peer, exchanges descriptions over its standard input and output, and connects.
async fn connect(program: PathBuf, script: &str) -> (WebRtcLink, Child) {
    // Foreign peers send no signs of life: what they echo of ours has to do. They know ordinary packets only.
    let settings = LinkSettings {
        packet_size: Some(1191),
        silent_after: Duration::from_secs(30),
        connect_deadline: Duration::from_secs(20),
        ..LinkSettings::default()
    };
    let mut peer = Command::new(&program)
        .arg(root().join("tests/interop").join(script))
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{} must run: {error}", program.display()));
    let (pending, sdp) = interop::offer(settings).await.unwrap();
    let offer = format!("{}\n", json!({ "type": "offer", "sdp": sdp }));
    peer.stdin.as_mut().unwrap().write_all(offer.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(peer.stdout.as_mut().unwrap()).lines();
    let answer = timeout(Duration::from_secs(20), lines.next_line()).await;
    let answer = answer.expect("the peer must answer in time").unwrap().expect("the peer ended without an answer");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["type"], "answer");
    let link = pending.accept(answer["sdp"].as_str().unwrap()).await.unwrap();
    (link, peer)
}

/// Sends a megabyte on `lane` and expects it back.
async fn echo(link: &WebRtcLink, lane: Lane) {
    let sent: Vec<u8> = (0..MEGABYTE).map(|i| (i * 31 + i / 253) as u8).collect();
    let send = async {
        for piece in sent.chunks(PIECE) {
            link.send(lane, Bytes::copy_from_slice(piece)).await.unwrap();
        }
    };
    let receive = async {
        let mut received = Vec::with_capacity(MEGABYTE);
        while received.len() < MEGABYTE {
            let (from, message) = link.receive().await.unwrap();
            assert_eq!(from, lane, "the echo comes by the same lane");
            received.extend_from_slice(&message);
        }
        received
    };
    let both = async { tokio::join!(send, receive).1 };
    let received = timeout(Duration::from_secs(60), both).await.expect("a megabyte each way in a minute");
    assert!(received == sent, "every byte must come back, in order");
}

async fn a_megabyte_each_way(program: PathBuf, script: &str) {
    let (link, mut peer) = connect(program, script).await;
    echo(&link, Lane::Act).await;
    echo(&link, Lane::Ctl).await;
    link.send(Lane::Beat, Bytes::from_static(b"unordered")).await.unwrap();
    let (lane, message) = timeout(Duration::from_secs(5), link.receive()).await.unwrap().unwrap();
    assert_eq!((lane, &message[..]), (Lane::Beat, &b"unordered"[..]));
    let stats = link.stats();
    assert_eq!(stats.act.bytes_sent, stats.act.bytes_received);
    link.close().await;
    drop(peer.stdin.take());
    timeout(Duration::from_secs(10), peer.wait()).await.expect("the peer ends with its input").unwrap();
}

#[tokio::test]
async fn aiortc_echoes_a_megabyte_each_way() {
    a_megabyte_each_way(root().join(".venv/bin/python"), "aiortc-echo.py").await;
}

#[tokio::test]
async fn node_datachannel_echoes_a_megabyte_each_way() {
    a_megabyte_each_way("node".into(), "node-datachannel-echo.mjs").await;
}
