use std::time::Duration;

use alloy_signer_local::PrivateKeySigner;
use pool_types::{Activation, CoalitionId, LayerRange, ModelId, RequestId};
use pool_wire::control::Member;
use pool_wire::frame::{Hidden, Kind};
use tokio::time::timeout;

use super::*;
use crate::Delegation;

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

struct Event(MeshEvent);

impl From<(Epoch, MeshEvent)> for Event {
    fn from((_, event): (Epoch, MeshEvent)) -> Self {
        Event(event)
    }
}

struct Side {
    address: Address,
    mesh: Option<Mesh>,
    events: mpsc::Receiver<Event>,
}

/// A gateway and `shards` members, all in this process, with real data channels between them.
async fn coalition(shards: usize) -> Vec<Side> {
    coalition_with_room(shards, 64).await
}

/// The same, with inboxes of `events`.
async fn coalition_with_room(shards: usize, events: usize) -> Vec<Side> {
    let wallets: Vec<PrivateKeySigner> = (0..=shards).map(|_| PrivateKeySigner::random()).collect();
    let layers = LayerRange::new(0, 12).unwrap().split_evenly(shards as u32);
    let assignment = Assignment {
        coalition: CoalitionId::default(),
        chain: 0,
        epoch: Epoch(3),
        model: ModelId::default(),
        gateway: wallets[0].address(),
        members: wallets[1..].iter().zip(layers).map(|(w, layers)| Member { address: w.address(), layers }).collect(),
        wire: Activation::F16,
        kv_tokens: 64,
        max_context: 64,
        prefill_chunk: 16,
    };
    let mut sides = Vec::new();
    for wallet in &wallets {
        let key = LinkIdentity::new_key();
        let delegation =
            Delegation::sign(wallet, key.address(), CoalitionId::default(), 0, now() + 3600).await.unwrap();
        let plan = MeshPlan {
            identity: Arc::new(key.with_delegation(delegation).unwrap()),
            assignment: assignment.clone(),
            roster: wallets.iter().map(|w| w.address()).collect(),
            settings: LinkSettings::loopback(),
            clock: now,
        };
        let (tx, events) = mpsc::channel(events);
        sides.push(Side { address: wallet.address(), mesh: Some(Mesh::start(plan, tx)), events });
    }
    // The relay: descriptions go where they are addressed, until everybody has joined.
    let mut joined = 0;
    while joined < sides.len() {
        for i in 0..sides.len() {
            match timeout(Duration::from_millis(5), sides[i].events.recv()).await {
                Ok(Some(Event(MeshEvent::Signal(signal)))) => {
                    let to = sides.iter().find(|s| s.address == signal.to).expect("addressed to a member");
                    to.mesh.as_ref().unwrap().signal(&signal);
                }
                Ok(Some(Event(MeshEvent::Joined))) => joined += 1,
                Ok(Some(Event(other))) => panic!("{other:?} while joining"),
                Ok(None) | Err(_) => {}
            }
        }
    }
    sides
}

async fn next(side: &mut Side) -> MeshEvent {
    timeout(Duration::from_secs(5), side.events.recv()).await.expect("an event in time").expect("the mesh lives").0
}

#[tokio::test]
async fn three_shards_and_a_gateway_link_up_and_a_long_body_crosses_whole() {
    let mut sides = coalition(3).await;
    let rows: Vec<u8> = (0..200_000).map(|i| i as u8).collect();
    let hidden = Hidden { request: RequestId(5), tokens: 1, hidden: 100_000, ..Hidden::default() };
    let frames = hidden.frames(Epoch(3), &rows);
    let to = sides[2].address;
    sides[1].mesh.as_ref().unwrap().send(to, Lane::Act, &frames).unwrap();
    let MeshEvent::Frames { from, frames } = next(&mut sides[2]).await else { panic!("frames were due") };
    assert_eq!(from, sides[1].address);
    assert_eq!((frames.len(), frames[0].kind, &frames[0].payload[..]), (1, Kind::Hidden, &rows[..]));
    let report = sides[1].mesh.as_ref().unwrap().reports().into_iter().find(|r| r.peer == to).unwrap();
    assert!(report.act_bytes_sent > 200_000, "counted: {report:?}");
    let middle = sides[2].address;
    let gateway = sides[0].mesh.as_ref().unwrap();
    assert_eq!(gateway.send(middle, Lane::Ctl, &frames), Err(Backlogged(middle)), "no link between gateway and middle");
}

#[tokio::test]
async fn a_member_that_vanishes_is_lost_to_its_neighbours_within_a_second_and_a_half() {
    let mut sides = coalition(2).await;
    let begun = std::time::Instant::now();
    sides[2].mesh = None;
    for side in [0, 1] {
        let MeshEvent::Lost { failure, .. } = next(&mut sides[side]).await else { panic!("a loss was due") };
        assert_eq!(failure.code, ReasonCode::PeerLost);
    }
    assert!(begun.elapsed() < Duration::from_millis(1500), "took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_peer_that_floods_waits_instead_of_filling_the_owners_memory() {
    let mut sides = coalition_with_room(2, 8192).await;
    let (epoch, to) = (Epoch(3), sides[2].address);
    let flood = |n: u64| Frame {
        payload: Bytes::from(vec![n as u8; 60 << 10]),
        step: n as u32,
        ..Frame::new(Kind::Credit, epoch, RequestId(1))
    };
    // 96 MiB at once: three times what may wait.
    let frames: Vec<Frame> = (0..96 * 1024 / 60).map(flood).collect();
    sides[1].mesh.as_ref().unwrap().send(to, Lane::Ctl, &frames).unwrap();
    let taken_in = || -> usize {
        let report = sides[2].mesh.as_ref().unwrap().reports();
        report.iter().map(|link| link.ctl_bytes_received as usize).sum()
    };
    // Until nothing more is taken in for a second.
    let (mut waiting, begun) = (0, std::time::Instant::now());
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = taken_in();
        if now == std::mem::replace(&mut waiting, now) && now > 0 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it never stops: {now} bytes");
    }
    let most = UNREAD + (64 << 10);
    assert!(waiting > UNREAD / 2 && waiting <= most, "{waiting} bytes taken in, {most} are the most");
    let mut seen = 0;
    while seen < frames.len() {
        let MeshEvent::Frames { frames, .. } = next(&mut sides[2]).await else { panic!("the link lives on") };
        for frame in frames {
            assert_eq!(frame.step, seen as u32, "nothing is lost and all is in order");
            seen += 1;
        }
    }
}
