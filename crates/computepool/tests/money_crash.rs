//! `kill -9` of the orchestrator at random moments while customers buy, ask and leave: nothing is lost, nothing happens
//! twice, nobody is left unpaid.
//!
//! `COMPUTEPOOL_KILLS` sets how often (`make soak`: 200), `COMPUTEPOOL_SEED` the moments.

#![allow(clippy::unwrap_used, reason = "tests")]
#![cfg(unix)]

mod paying;
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use paying::{Bought, Town};
use rand::{Rng, SeedableRng, rngs::StdRng};
use support::PATIENCE;
use tokio::sync::{Mutex, RwLock};

fn number(variable: &str, usually: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usually)
}

/// Buys, asks and closes until told to go. Whatever the orchestrator's deaths do to it, it tries again.
async fn customer(town: Arc<RwLock<Town>>, seed: u64, go: Arc<AtomicBool>, bought: Arc<Mutex<Vec<Bought>>>) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let mut answered = 0;
    while !go.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(random.random_range(10..400))).await;
        let session = town.read().await.buy(random.random_range(0..4), random.random_range(10..60)).await;
        let Some(session) = session else { continue };
        bought.lock().await.push(session.clone());
        for _ in 0..random.random_range(1..3) {
            let patience = Duration::from_millis(random.random_range(100..1200));
            let status = town.read().await.ask(&session, random.random_range(1..300), patience).await;
            answered += usize::from(status == Some(200));
        }
        if random.random_bool(0.5) {
            let _ = tokio::time::timeout(Duration::from_secs(2), town.read().await.close(&session)).await;
        }
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orchestrator_that_is_killed_again_and_again_keeps_its_books() {
    let (kills, seed) = (number("COMPUTEPOOL_KILLS", 20), number("COMPUTEPOOL_SEED", 20_261_125));
    println!("{kills} kills, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let town = Arc::new(RwLock::new(Town::build(2).await));
    let before = town.read().await.purses().await;
    let (go, bought) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let customers: Vec<_> =
        (0..3).map(|n| tokio::spawn(customer(town.clone(), seed + n, go.clone(), bought.clone()))).collect();

    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(random.random_range(100..2_500))).await;
        // The lock waits for the customers' requests, which would make every death a polite one: a second handle on the
        // process kills it in the middle of them.
        town.read().await.kill_now();
        let mut town = town.write().await;
        town.kill();
        town.start();
    }
    town.read().await.until_selling(PATIENCE).await;
    go.store(true, Ordering::Relaxed);
    let answered = AtomicUsize::new(0);
    for customer in customers {
        answered.fetch_add(customer.await.unwrap(), Ordering::Relaxed);
    }

    let mut town = Arc::into_inner(town).expect("all customers have gone").into_inner();
    let bought = bought.lock().await.clone();
    assert!(!bought.is_empty(), "sessions were sold between the deaths");
    // Every session that a customer knows comes to a right end through the orchestrator.
    for session in &bought {
        town.close(session).await;
        let begun = Instant::now();
        loop {
            let view = town.show(session).await.expect("it is known");
            match view["state"].as_str() {
                Some("closed") => {
                    let wei = |field: &str| view["receipt"][field].as_str().unwrap().parse::<u128>().unwrap();
                    let unit = 1_000_000_000_000;
                    assert_eq!(wei("paid") * unit, wei("streamed") + wei("refunded") * unit, "{view}");
                    break;
                }
                Some("failed") => break,
                _ => assert!(begun.elapsed() < PATIENCE, "it ends: {view}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let entries = town.verify_log().await;
    town.stop();
    // Those whose customers never heard the answer are closed by their payers.
    town.close_what_is_left().await;
    let (opened, streamed) = town.audit(&before).await;
    println!(
        "{kills} kills: {} vouchers signed, {opened} sessions opened, {} known to customers, {} answers, {streamed} USDCx \
         streamed, {entries} entries in the log",
        town.signed().len(),
        bought.len(),
        answered.into_inner(),
    );
}
