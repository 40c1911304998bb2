//! When a silent peer is a lost one, and when it is not.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU8},
    thread,
};

use tokio::runtime::Runtime;

use super::*;

/// A peer on a runtime of its own, which can be torn down without a word.
struct Doomed {
    runtime: Runtime,
    link: Arc<WebRtcLink>,
}

impl Doomed {
    fn dies(self) -> Instant {
        self.runtime.shutdown_background();
        // Dropped, the link would say farewell.
        std::mem::forget(self.link);
        Instant::now()
    }
}

/// Our link and the peer at its other end, which itself waits for us as long as it takes.
async fn linked_with_doomed() -> (WebRtcLink, Doomed) {
    let (alice, bob) = (identity(1).await, identity(2).await);
    let (ours, theirs) = (context(&alice, &bob), context(&bob, &alice));
    let (pending, offer) = WebRtcLink::offer(&alice, bob.wallet(), &ours, LinkSettings::loopback()).await.unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (answered, answer) = tokio::sync::oneshot::channel();
    let established = runtime.spawn(async move {
        let patient = LinkSettings { silent_after: Duration::from_secs(60), ..LinkSettings::loopback() };
        let answered_with = WebRtcLink::answer(&bob, &offer, &theirs, patient).await.unwrap();
        answered.send(answered_with.0).unwrap();
        answered_with.1.established().await.unwrap()
    });
    let a = pending.accept(&answer.await.unwrap(), NOW).await.unwrap();
    (a, Doomed { link: Arc::new(established.await.unwrap()), runtime })
}

async fn noticed(link: &WebRtcLink, died: Instant) {
    let reason = timeout(Duration::from_secs(5), link.shared.over()).await.expect("a dead peer is noticed");
    let after = died.elapsed();
    assert_eq!(reason, CloseReason::PeerLost);
    assert!(after >= Duration::from_millis(600), "one missed heartbeat is not a death: {after:?}");
    assert!(after <= Duration::from_millis(1600), "a second of silence is: {after:?}");
}

#[tokio::test]
async fn a_peer_that_dies_is_noticed_though_nobody_waits_for_its_messages() {
    let (a, b) = linked_with_doomed().await;
    b.link.send(Lane::Ctl, Bytes::from_static(b"last words")).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    noticed(&a, b.dies()).await;
    assert_eq!(a.send(Lane::Act, Bytes::from_static(b"gone")).await.unwrap_err(), CloseReason::PeerLost.into());
    assert_eq!(a.receive().await.unwrap().1, Bytes::from_static(b"last words"), "what had arrived is handed out");
    assert_eq!(a.receive().await.unwrap_err(), CloseReason::PeerLost.into());
}

#[tokio::test]
async fn behind_a_full_queue_a_living_peer_is_kept_and_a_dead_one_noticed() {
    let (a, b) = linked_with_doomed().await;
    let sender = b.link.clone();
    let flood = b.runtime.spawn(async move {
        let mut sent = 0;
        while sender.send(Lane::Act, piece(sent, PIECE)).await.is_ok() {
            sent += 1;
        }
    });
    // Nobody takes anything: the queues fill up, and the heartbeats are stuck behind them.
    sleep(Duration::from_millis(3500)).await;
    assert_eq!(a.shared.reason(), None, "a peer that we keep waiting is not lost");
    assert!(!flood.is_finished(), "it waits for room");
    noticed(&a, b.dies()).await;
    let mut received = 0;
    while let Ok((_, message)) = a.receive().await {
        assert!(message == piece(received, PIECE), "piece {received} must be unchanged and in its turn");
        received += 1;
    }
    assert!(received >= 100, "a full queue is handed out before the end is: {received}");
}

#[test]
fn time_in_which_this_thread_did_not_run_is_not_the_peers_silence() {
    let ours = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    ours.block_on(async {
        let (a, b) = linked_with_doomed().await;
        for pause in [900, 1600, 2500] {
            // What a machine does to us that has more to do than it can.
            thread::sleep(Duration::from_millis(pause));
            sleep(Duration::from_millis(300)).await;
            assert_eq!(a.shared.reason(), None, "the peer spoke while we slept {pause} ms");
        }
        b.link.send(Lane::Ctl, Bytes::from_static(b"still here")).await.unwrap();
        assert_eq!(a.receive().await.unwrap(), (Lane::Ctl, Bytes::from_static(b"still here")));
        noticed(&a, b.dies()).await;
    });
}

/// A network between two peers that can lose what it likes.
struct Network {
    loses: Arc<AtomicU8>,
    over: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

const NOTHING: u8 = 0;
const EVERYTHING: u8 = 1;
/// All but the questions and answers of ICE, whose first byte is below 4 (RFC 7983).
const DATA: u8 = 2;

impl Network {
    /// Carries between `a` and `b`. Gives the addresses that stand for them.
    fn between(a: SocketAddr, b: SocketAddr) -> (Self, SocketAddr, SocketAddr) {
        let open = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            socket
        };
        let (as_a, as_b) = (open(), open());
        let addresses = (as_a.local_addr().unwrap(), as_b.local_addr().unwrap());
        let (loses, over) = (Arc::new(AtomicU8::new(NOTHING)), Arc::new(AtomicBool::new(false)));
        let mut threads = Vec::new();
        for (from, through, to) in [(&as_b, &as_a, b), (&as_a, &as_b, a)] {
            let (from, through) = (from.try_clone().unwrap(), through.try_clone().unwrap());
            let (loses, over) = (loses.clone(), over.clone());
            threads.push(thread::spawn(move || {
                let mut packet = vec![0; 1 << 16];
                while !over.load(Ordering::Relaxed) {
                    let Ok(length) = from.recv(&mut packet) else { continue };
                    let lost = match loses.load(Ordering::Relaxed) {
                        NOTHING => false,
                        DATA => packet[0] > 3,
                        _ => true,
                    };
                    if !lost {
                        let _ = through.send_to(&packet[..length], to);
                    }
                }
            }));
        }
        (Self { loses, over, threads }, addresses.0, addresses.1)
    }

    fn loses(&self, what: u8) {
        self.loses.store(what, Ordering::Relaxed);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The one address in a description.
fn address(sdp: &str) -> SocketAddr {
    let line = sdp.lines().find(|line| line.starts_with("a=candidate:")).expect("an address");
    let words: Vec<&str> = line.split(' ').collect();
    format!("{}:{}", words[4], words[5]).parse().unwrap()
}

fn moved(sdp: &str, to: SocketAddr) -> String {
    let from = address(sdp);
    sdp.replace(&format!(" {} typ host", from.port()), &format!(" {} typ host", to.port()))
}

/// Two links through a [`Network`].
async fn linked_through() -> (Network, WebRtcLink, WebRtcLink) {
    let settings = LinkSettings::loopback();
    let (mut offering, offer) = Connecting::offer(&settings).await.unwrap();
    // The addresses of both are known once the answer is made, so the offer names a port that is kept free meanwhile.
    let kept = UdpSocket::bind("127.0.0.1:0").unwrap();
    let stand_in = kept.local_addr().unwrap();
    let (answering, answer) = Connecting::answer(&settings, &moved(&offer, stand_in)).await.unwrap();
    let (network, _, as_b) = Network::between(address(&offer), address(&answer));
    // ICE finds the way back by itself: it answers to where the offering side's questions come from.
    offering.take_answer(&moved(&answer, as_b)).await.unwrap();
    let (a, b) = tokio::join!(offering.connected(None), answering.connected(None));
    drop(kept);
    let start = |connected, n| WebRtcLink::start(connected, Address::repeat_byte(n), settings.clone());
    (network, start(a.unwrap(), 2), start(b.unwrap(), 1))
}

#[tokio::test]
async fn seconds_of_lost_data_are_no_death_while_the_peer_still_answers() {
    let (network, a, b) = linked_through().await;
    carry(&a, &b, 3).await;
    network.loses(DATA);
    for n in 0..4 {
        a.send(Lane::Act, piece(n, PIECE)).await.unwrap();
    }
    sleep(Duration::from_millis(2500)).await;
    assert_eq!((a.shared.reason(), b.shared.reason()), (None, None), "lost packets are the network's fault");
    network.loses(NOTHING);
    for n in 0..4 {
        assert!(b.receive().await.unwrap().1 == piece(n, PIECE), "what was lost is sent again");
    }
    carry(&b, &a, 3).await;

    network.loses(EVERYTHING);
    let gone = Instant::now();
    tokio::join!(noticed(&a, gone), noticed(&b, gone));
}
