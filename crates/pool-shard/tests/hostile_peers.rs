//! What a peer can do to a shard over a real link: spoil its own request, or end the coalition it is part of; never
//! another request, the process, or more memory than is set aside.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]
#![cfg(target_os = "linux")]

mod support;

use std::time::{Duration, Instant};

use alloy_primitives::B256;
use bytes::Bytes;
use pool_link::{
    Delegation, Description, DescriptionRole, Lane, LinkIdentity, Transport, VerifyContext,
    webrtc::{LinkSettings, WebRtcLink},
};
use pool_types::{Activation, CoalitionId, Epoch, ReasonCode, RequestId};
use pool_wire::{
    control::FromShard,
    frame::{self, Frame, Hidden, Kind},
};
use support::{CHUNK, Coalition, Entry, PATIENCE, alone, now};
use tokio::time::timeout;

const HONEST: RequestId = RequestId(1);
const HOSTILE: RequestId = RequestId(2);
const ANSWER: usize = 24;
/// Hidden size of the model.
const WIDTH: u32 = 256;

/// A prompt of several chunks.
fn prompt() -> Vec<u32> {
    (0..100).map(|n| (n * 37 + 11) % 250).collect()
}

/// A step with nothing in it.
fn empty_step(epoch: Epoch, request: RequestId, step: u32, rows: u32) -> Vec<Frame> {
    let hidden = Hidden {
        request,
        step,
        position: step * rows,
        tokens: rows,
        hidden: WIDTH,
        dtype: Activation::F32,
        ..Hidden::default()
    };
    hidden.frames(epoch, vec![0; (rows * WIDTH * 4) as usize])
}

#[tokio::test]
async fn a_peer_that_repeats_everything_it_ever_sent_changes_nothing() {
    let mut coalition = Coalition::new().await;
    let (mut gateway, mut entry) = coalition.up(Epoch(1)).await;
    gateway.prompt(HONEST, &prompt(), ANSWER as u32).await;
    let mut repeated = 0;
    let replay = async |entry: &mut Entry, _| {
        for message in entry.sent.clone() {
            entry.link.send(Lane::Act, message).await.unwrap();
            repeated += 1;
        }
        // And one of an epoch that is over.
        let old = Frame::new(Kind::Release, Epoch(0), HONEST);
        entry.link.send(Lane::Act, frame::message(&[old])).await.unwrap();
    };
    entry.serve(HONEST, &prompt(), ANSWER, replay).await;
    assert_eq!(
        gateway.answer(HONEST, ANSWER).await,
        alone(&coalition.model, &prompt(), ANSWER),
        "token for token what one engine says, though every frame came many times"
    );
    assert!(repeated > 300, "{repeated} messages were repeated");
    coalition.counted(|stats| stats.dropped_frames > 300 && stats.sequences == 0).await;
    let tokens = coalition.stats.tokens;
    assert_eq!(tokens, ANSWER as u64, "no token was sampled twice");
}

#[tokio::test]
async fn a_peer_that_floods_past_its_credits_costs_its_own_request_and_no_memory() {
    let mut coalition = Coalition::new().await;
    let (mut gateway, mut entry) = coalition.up(Epoch(1)).await;
    gateway.prompt(HONEST, &prompt(), ANSWER as u32).await;
    gateway.prompt(HOSTILE, &prompt(), 300).await;
    let before = coalition.resident_bytes();
    let mut flooded = 0;
    let flood = async |entry: &mut Entry, step: u32| {
        if step == 0 {
            // A request of its own, of which it sends all steps at once.
            let mut frames = vec![entry.opening(HOSTILE, 400)];
            frames.extend((0..24).flat_map(|n| empty_step(entry.epoch, HOSTILE, n, CHUNK as u32)));
            entry.send(&frames).await;
            entry.sent.clear();
        }
        // Requests that no gateway knows, as many as there is time for.
        for n in 0..60u64 {
            let request = RequestId(1000 + u64::from(step) * 100 + n);
            let mut frames = vec![entry.opening(request, 1 << 20)];
            frames.extend((0..8).flat_map(|n| empty_step(entry.epoch, request, n, CHUNK as u32)));
            for message in frame::messages(&frames) {
                flooded += message.len();
                entry.link.send(Lane::Act, message).await.unwrap();
            }
        }
    };
    entry.serve(HONEST, &prompt(), ANSWER, flood).await;
    assert_eq!(
        gateway.answer(HONEST, ANSWER).await,
        alone(&coalition.model, &prompt(), ANSWER),
        "the request beside the flood is answered token for token"
    );
    let failure = gateway.failure(HOSTILE).await;
    assert_eq!(failure.code, ReasonCode::Protocol, "{failure}");
    assert!(failure.message.contains("credits"), "a plain sentence: {failure}");
    assert!(flooded > 150 << 20, "a real flood: {flooded} bytes");
    let grown = coalition.resident_bytes().saturating_sub(before);
    eprintln!("{} MiB sent, the shard grew by {} MiB", flooded >> 20, grown >> 20);
    // 32 MiB of the link's share, 64 MiB that wait for prompts, and what the allocator keeps.
    assert!(grown < 160 << 20, "{grown} bytes more than before, for {flooded} bytes of flood");
    assert!(coalition.process.try_wait().unwrap().is_none(), "the process lives");
}

/// What ends a coalition: its bytes, and what the failure says.
fn garbage() -> Vec<(&'static str, Vec<Bytes>)> {
    let epoch = Epoch(1);
    let good = frame::message(&[Frame::new(Kind::Open, epoch, RequestId(9))]);
    let mut changed = good.to_vec();
    changed[20] ^= 1;
    let mut longer = good.to_vec();
    longer.extend_from_slice(b"more");
    let piece = Frame {
        chunks: 3,
        payload: vec![0; frame::MAX_PAYLOAD].into(),
        ..Frame::new(Kind::Hidden, epoch, RequestId(9))
    };
    let third = Frame { chunk: 2, payload: Bytes::new(), ..piece.clone() };
    // 300 pieces of 60 KiB: longer than any body may be.
    let endless = Frame { chunks: 300, ..piece.clone() };
    let message = |frame: &Frame| frame::message(std::slice::from_ref(frame));
    vec![
        ("noise", vec![Bytes::from(vec![0xA5; 60_000])]),
        ("the longest message there is", vec![Bytes::from(vec![0; pool_link::MAX_MESSAGE])]),
        ("a frame with a bit changed", vec![changed.into()]),
        ("a frame with something behind it", vec![longer.into()]),
        ("pieces of which one is missing", vec![message(&piece), message(&third)]),
        ("a body announced longer than any may be", vec![message(&endless)]),
        ("a frame cut short", vec![good.slice(..30)]),
    ]
}

#[tokio::test]
async fn garbage_ends_the_senders_coalition_with_a_sentence_and_the_next_one_is_served() {
    let mut coalition = Coalition::new().await;
    let expected = alone(&coalition.model, &prompt(), ANSWER);
    let mut epoch = Epoch(1);
    for (what, messages) in garbage() {
        let (gateway, entry) = coalition.up(epoch).await;
        gateway.prompt(HONEST, &prompt(), ANSWER as u32).await;
        for message in messages {
            entry.link.send(Lane::Act, message).await.unwrap();
        }
        let sent = Instant::now();
        let FromShard::Failed { epoch: failed, failure } = coalition.reply().await else { panic!("{what}: ignored") };
        assert_eq!((failed, failure.code), (epoch, ReasonCode::Protocol), "{what}: {failure}");
        assert!(failure.message.contains("sent what is no frame"), "{what}: {failure}");
        assert!(sent.elapsed() < Duration::from_secs(5), "{what}: heard after {:?}", sent.elapsed());
        let left = timeout(PATIENCE, async { while entry.link.receive().await.is_ok() {} });
        left.await.expect("the sender loses its link");
        epoch = Epoch(epoch.0 + 1);
    }
    let (mut gateway, mut entry) = coalition.up(epoch).await;
    gateway.prompt(HONEST, &prompt(), ANSWER as u32).await;
    entry.serve(HONEST, &prompt(), ANSWER, async |_, _| {}).await;
    assert_eq!(gateway.answer(HONEST, ANSWER).await, expected, "the same process serves the next coalition");
}

/// Offers to the shard in the entry's name or another's, none of which holds; with what is wrong with each.
async fn forged_offers(coalition: &Coalition, epoch: Epoch) -> Vec<(&'static str, String)> {
    let (entry, stranger) = (&coalition.entry, &coalition.stranger);
    let context = coalition.context(entry, epoch);
    let exit = coalition.exit();
    let (_pending, good) = WebRtcLink::offer(&entry.identity, exit, &context, LinkSettings::loopback()).await.unwrap();
    let sign = |by: &LinkIdentity, context: &VerifyContext| {
        let role = DescriptionRole::Offer;
        Description::sign(by, context, exit, role, B256::random(), good.sdp.clone(), 60).unwrap()
    };
    let resigned = |mut changed: Description, by: &LinkIdentity| {
        changed.signature = by.sign_hash(&changed.hash()).unwrap();
        changed
    };
    let other_sdp = {
        let context = coalition.context(stranger, epoch);
        WebRtcLink::offer(&stranger.identity, exit, &context, LinkSettings::loopback()).await.unwrap().1.sdp
    };
    let mut flipped = good.clone();
    flipped.nonce = B256::random();
    let stale = resigned(Description { expires: now() - 1, ..good.clone() }, &entry.identity);
    let endless = resigned(Description { expires: now() + 86_400, ..good.clone() }, &entry.identity);
    let fingerprint = resigned(Description { fingerprint: B256::repeat_byte(3), ..good.clone() }, &entry.identity);
    let swapped = Description { sdp: other_sdp, ..good.clone() };
    let posing = Description { from: entry.address(), ..sign(&stranger.identity, &coalition.context(stranger, epoch)) };
    let self_made = {
        let key = LinkIdentity::new_key();
        let expires = now() + 3600;
        let mut delegation =
            Delegation::sign(&stranger.wallet, key.address(), CoalitionId::default(), 0, expires).await.unwrap();
        delegation.wallet = entry.address();
        Description { delegation, ..good.clone() }
    };
    let answer = resigned(Description { role: DescriptionRole::Answer, ..good.clone() }, &entry.identity);
    let text = |description: &Description| serde_json::to_string(description).unwrap();
    vec![
        ("a signature over something else", text(&flipped)),
        ("expired", text(&stale)),
        ("valid for a day", text(&endless)),
        ("a fingerprint that its session does not hold", text(&fingerprint)),
        ("another session under the same signature", text(&swapped)),
        ("somebody outside the roster", text(&sign(&stranger.identity, &coalition.context(stranger, epoch)))),
        ("somebody else's key in the entry's name", text(&posing)),
        ("a delegation that the wallet did not sign", text(&self_made)),
        ("an answer where an offer was due", text(&answer)),
        ("of another epoch", text(&sign(&entry.identity, &coalition.context(entry, Epoch(epoch.0 + 5))))),
        ("no description at all", "{\"sdp\":".to_owned()),
    ]
}

#[tokio::test]
async fn forged_offers_make_no_link_and_disturb_none() {
    let mut coalition = Coalition::new().await;
    let epoch = Epoch(1);
    coalition.join(epoch).await;
    let entry = coalition.entry.address();
    for (what, forged) in forged_offers(&coalition, epoch).await {
        coalition.signal(epoch, entry, forged).await;
        // A shard that answered would say so at once.
        let answered = timeout(Duration::from_millis(150), coalition.reply()).await;
        assert!(answered.is_err(), "{what}: {answered:?}");
    }
    // The honest offers come after all that, and the links come up.
    let gateway = coalition.link(epoch, support::Role::Gateway).await;
    let link = coalition.link(epoch, support::Role::Entry).await;
    assert!(matches!(coalition.reply().await, FromShard::Joined { .. }));
    let (mut gateway, mut entry_end) = coalition.ends(gateway, link, epoch);
    gateway.prompt(HONEST, &prompt(), ANSWER as u32).await;
    // While an answer is made, the same and a good offer too many are handed in again.
    let mut late = forged_offers(&coalition, epoch).await;
    let context = coalition.context(&coalition.entry, epoch);
    let again = WebRtcLink::offer(&coalition.entry.identity, coalition.exit(), &context, LinkSettings::loopback());
    let (_second, again) = again.await.unwrap();
    late.push(("a second link", serde_json::to_string(&again).unwrap()));
    let mut late = late.into_iter();
    entry_end
        .serve(HONEST, &prompt(), ANSWER, async |_, _| {
            if let Some((_, description)) = late.next() {
                coalition.signal(epoch, entry, description).await;
            }
        })
        .await;
    assert!(late.next().is_none(), "all of them were handed in while the answer was made");
    assert_eq!(gateway.answer(HONEST, ANSWER).await, alone(&coalition.model, &prompt(), ANSWER));
    let said = timeout(Duration::from_millis(300), coalition.reply()).await;
    assert!(said.is_err(), "the shard had nothing to say about it: {said:?}");
}
