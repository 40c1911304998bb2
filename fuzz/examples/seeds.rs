//! Writes the seeds that our own code makes; run it again when a format changes:
//! `cargo run -p computepool-fuzz --example seeds`. The model files among the seeds come from pool-models' fixtures.
#![allow(clippy::unwrap_used, reason = "a chore that may stop where it stands")]

use std::{fs, path::Path, sync::Arc};

use alloy_primitives::{Address, B256};
use alloy_signer_local::PrivateKeySigner;
use pool_chain::{Authorization, TokenDomain, x402::parse_payment};
use pool_coalition::{Roster, RosterMember, RosterRole};
use pool_journal::{Graphs, Journal, SystemClock};
use pool_link::{Delegation, Description, DescriptionRole, LinkIdentity, VerifyContext};
use pool_store::Store;
use pool_types::{Activation, CoalitionId, Epoch, Failure, ReasonCode, RequestId, Sampling, TokenChoice};
use pool_wire::{
    Prompt, Token,
    control::{FromShard, Signal, ToNode, ToOrchestrator, ToShard, to_text},
    frame::{self, Frame, Hidden, Kind},
};
use serde_json::{Value, json};

fn write(target: &str, name: &str, bytes: impl AsRef<[u8]>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), bytes).unwrap();
}

fn key(byte: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(byte)).unwrap()
}

fn frames() {
    let (epoch, request) = (Epoch(3), RequestId(7));
    let step = Hidden { request, tokens: 2, hidden: 4, dtype: Activation::F16, sample: true, ..Hidden::default() };
    write("frames", "hidden", frame::message(&step.frames(epoch, [0x3c; 16])));
    let prompt =
        Prompt { tokens: vec![1, 2, 3], sampling: Sampling::default(), max_new_tokens: 8, stop_tokens: vec![2] };
    write("frames", "prompt", frame::message(&prompt.frames(epoch, request).unwrap()));
    let choice = TokenChoice { token: 5, logprob: -0.5, top: vec![(5, -0.5), (6, -1.0)] };
    let token = Token { choice, finish: None }.frame(Frame::new(Kind::Token, epoch, request), true);
    let failure = Frame::fail(epoch, request, &Failure::new(ReasonCode::PeerLost, "gone"));
    write("frames", "token-and-failure", frame::message(&[token, failure]));
}

async fn signalling() -> Signal {
    let (wallet, peer) = (key(1), key(2).address());
    let coalition = CoalitionId(B256::repeat_byte(9));
    let link_key = LinkIdentity::new_key();
    let delegation = Delegation::sign(&wallet, link_key.address(), coalition, 0, 1_800_000_000).await.unwrap();
    let identity = link_key.with_delegation(delegation).unwrap();
    let context = VerifyContext {
        members: [wallet.address(), peer].into(),
        me: wallet.address(),
        coalition,
        chain: 0,
        epoch: Epoch(3),
        now: 1_799_990_000,
    };
    let fingerprint = ["AB"; 32].join(":");
    let sdp = format!("v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=fingerprint:sha-256 {fingerprint}\r\n");
    let nonce = B256::repeat_byte(5);
    let offer = Description::sign(&identity, &context, peer, DescriptionRole::Offer, nonce, sdp, 60).unwrap();
    write("signalling", "offer.json", serde_json::to_vec(&offer).unwrap());
    let description = serde_json::to_string(&offer).unwrap();
    Signal { epoch: Epoch(3), from: wallet.address(), to: peer, description }
}

fn control(signal: Signal) {
    write("control", "heartbeat.json", to_text(&ToNode::Heartbeat).unwrap());
    let challenge = ToNode::Challenge { nonce: B256::repeat_byte(1), version: 1 };
    write("control", "challenge.json", to_text(&challenge).unwrap());
    write("control", "signal.json", to_text(&ToOrchestrator::Signal(signal)).unwrap());
    write("control", "leave.json", to_text(&ToShard::Leave { epoch: Epoch(3) }).unwrap());
    let failed =
        FromShard::Failed { epoch: Epoch(3), failure: Failure::new(ReasonCode::Engine, "the layers do not fit") };
    write("control", "failed.json", to_text(&failed).unwrap());
}

fn roster() {
    let member =
        |byte: u8, name: &str, role| RosterMember { address: key(byte).address(), name: name.to_owned(), role };
    let roster = Roster {
        version: Roster::VERSION,
        chain: 0,
        gateway: key(3).address(),
        members: vec![
            member(1, "first", RosterRole::Node),
            member(2, "second", RosterRole::Node),
            member(3, "gateway", RosterRole::Gateway),
        ],
        created: 1_790_000_000,
    };
    write("roster", "roster.json", serde_json::to_vec_pretty(&roster).unwrap());
}

/// The payment as JSON: the target reads it bare and in base64.
fn voucher() {
    let payer = key(1);
    let vault = Address::repeat_byte(0x55);
    let asset = Address::repeat_byte(5);
    let authorization = Authorization {
        from: payer.address(),
        to: vault,
        value: "2.5".parse().unwrap(),
        valid_after: 1_700_000_000,
        valid_before: 1_800_000_000,
        nonce: B256::repeat_byte(0x66),
    };
    let token = TokenDomain { name: "USD Coin".to_owned(), version: "1".to_owned(), chain_id: 16602, token: asset };
    let payload = serde_json::to_value(authorization.sign(&token, &payer).unwrap()).unwrap();
    let terms = json!({
        "payer": payer.address(), "orchestrator": key(2).address(), "pool": Address::repeat_byte(7), "maxRate": "100000000000000",
        "expiry": "1800000000", "session": B256::repeat_byte(4),
    });
    let payment = |terms: Value| {
        json!({
            "x402Version": 2,
            "payload": payload,
            "resource": { "url": "http://127.0.0.1/v1/sessions", "description": "session", "mimeType": "application/json" },
            "accepted": {
                "scheme": "exact", "network": "eip155:16602", "amount": "2500000", "asset": asset, "payTo": vault,
                "maxTimeoutSeconds": 120, "extra": { "name": "USD Coin", "version": "1", "terms": terms },
            },
        })
    };
    for (name, terms) in [("with-terms.json", terms), ("other-terms.json", json!([1, 2, 3]))] {
        let json = payment(terms).to_string();
        let header = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &json);
        parse_payment(header.as_bytes()).unwrap();
        write("voucher", name, json);
    }
}

async fn audit() {
    let path = std::env::temp_dir().join(format!("computepool-seeds-{}.db", std::process::id()));
    let store = Store::open(&path).await.unwrap();
    let journal = Journal::open(&store, Graphs::built_in().unwrap(), Arc::new(SystemClock)).await.unwrap();
    for number in 0..3 {
        journal.start("coalition-dissolve", &format!("run-{number}"), json!({ "number": number })).await.unwrap();
    }
    let mut export = Vec::new();
    journal.export(&mut export).await.unwrap();
    write("audit", "export.jsonl", export);
    let _ = fs::remove_file(path);
}

fn workflows() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../workflows");
    for name in ["session-open.json", "session-rate.json"] {
        write("workflow", name, fs::read(folder.join(name)).unwrap());
    }
}

#[tokio::main]
async fn main() {
    frames();
    control(signalling().await);
    roster();
    voucher();
    audit().await;
    workflows();
}
