//! The chain's node dies, comes back, and changes its mind about its newest blocks, in the middle of paid requests.

#![allow(clippy::unwrap_used, reason = "tests")]
#![cfg(unix)]

mod paying;
mod support;

use std::time::{Duration, Instant};

use paying::{Bought, Town};
use pool_types::{FlowRate, Usdc, Usdcx};
use support::PATIENCE;

const RATE: FlowRate = FlowRate::from_units_per_second(100);

async fn until_rate(town: &Town, session: &Bought, wanted: FlowRate) {
    let begun = Instant::now();
    loop {
        let vault = town.local.chain().vault(session.vault).await;
        if vault.is_ok_and(|vault| vault.rate == wanted) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "the stream comes to {wanted}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_served_while_the_chain_is_away_and_paid_for_when_it_is_back() {
    let mut town = Town::build(2).await;
    let before = town.purses().await;
    let session = town.buy(0, 120).await.unwrap();

    // The node is away: an open session is served at once all the same, and its stream is set when the node is back.
    town.local.devnet().stop().await.unwrap();
    assert_eq!(
        town.ask(&session, 50, PATIENCE).await,
        Some(200),
        "no transaction is waited for before the first token"
    );
    let refused = town.buy(1, 60).await;
    assert!(refused.is_none(), "no session is sold while nobody can tell whether it was paid");
    tokio::time::sleep(Duration::from_secs(3)).await;
    town.local.devnet().restart().await.unwrap();
    let (answered, ()) = tokio::join!(town.ask(&session, 2000, PATIENCE), until_rate(&town, &session, RATE));
    assert_eq!(answered, Some(200));
    until_rate(&town, &session, FlowRate::ZERO).await;

    let closed = town.close(&session).await.unwrap();
    let streamed = closed["receipt"]["streamed"].as_str().unwrap_or_default();
    assert!(streamed.len() > 12, "what was served was paid: {closed}");

    // The newest three blocks are replaced by empty ones: what was in them (that close, and the opening and the start
    // of another session) is sent again, the same bytes.
    let other = town.buy(2, 60).await.unwrap();
    let (answered, ()) = tokio::join!(town.ask(&other, 2000, PATIENCE), until_rate(&town, &other, RATE));
    assert_eq!(answered, Some(200));
    town.local.control().reorganise(3, Vec::new()).await.unwrap();
    until_rate(&town, &other, FlowRate::ZERO).await;
    town.close(&other).await.unwrap();
    let begun = Instant::now();
    while town.show(&other).await.unwrap()["state"] != "closed" {
        assert!(begun.elapsed() < PATIENCE, "it closes");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    town.verify_log().await;
    town.stop();
    town.close_what_is_left().await;
    let (opened, streamed) = town.audit(&before).await;
    assert_eq!(opened, 2);
    assert!(streamed > Usdcx::ZERO, "what was served was paid");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sentinel_stops_a_stream_that_the_orchestrator_cannot_stop() {
    let mut town = Town::build(2).await;
    let before = town.purses().await;
    let session = town.buy(0, 10).await.unwrap();
    let (answered, ()) = tokio::join!(town.ask(&session, 2000, PATIENCE), until_rate(&town, &session, RATE));
    assert_eq!(answered, Some(200));

    // The orchestrator has no gas left: neither its stop nor its close can be sent.
    town.local.control().fund(town.orchestrator(), 0, Usdc::ZERO).await.unwrap();
    town.local.control().advance(45).await.unwrap();
    until_rate(&town, &session, FlowRate::ZERO).await;
    let vault = town.local.chain().vault(session.vault).await.unwrap();
    let buffer_and_most_of_the_guard = Usdc::from_units((600 + 100) * 100).unwrap().to_usdcx();
    assert!(vault.available > buffer_and_most_of_the_guard, "long before anybody could take the buffer: {vault:?}");
    assert!(!vault.closed, "the sentinel can stop and nothing else");

    // With gas again, what waited is sent.
    town.fund().await;
    let closed = town.close(&session).await.unwrap();
    assert_eq!(closed["state"], "closed", "{closed}");
    town.stop();
    town.close_what_is_left().await;
    assert_eq!(town.audit(&before).await.0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payer_who_stops_the_stream_is_not_served_any_more() {
    let mut town = Town::build(2).await;
    let before = town.purses().await;
    let session = town.buy(0, 60).await.unwrap();
    let asked = town.ask(&session, 4000, PATIENCE);
    let stopped = async {
        until_rate(&town, &session, RATE).await;
        let payer = &town.local.accounts().payers[0];
        town.local.send(payer, &pool_chain::calls::stop(session.vault)).await.unwrap();
    };
    tokio::join!(asked, stopped);
    let begun = Instant::now();
    while town.show(&session).await.unwrap()["state"] != "closed" {
        assert!(begun.elapsed() < PATIENCE, "the orchestrator notices and closes the session");
        // A session that idles is stopped by us, and then there is nothing to notice: keep it busy.
        town.ask(&session, 1000, PATIENCE).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    town.stop();
    town.close_what_is_left().await;
    assert_eq!(town.audit(&before).await.0, 1);
}
