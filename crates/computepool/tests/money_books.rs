//! Conservation: random sessions, random ends, and every unit accounted for by the chain's own events.
//!
//! `COMPUTEPOOL_SESSIONS` sets how many sessions each town sells (`make soak`: 200).

#![allow(clippy::unwrap_used, reason = "tests")]
#![cfg(unix)]

mod paying;
mod support;

use std::{sync::Arc, time::Duration};

use paying::Town;
use pool_types::Usdcx;
use rand::{Rng, SeedableRng, rngs::StdRng};
use support::PATIENCE;

/// What a customer does with a session.
async fn customer(town: Arc<Town>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let payer = random.random_range(0..4);
    tokio::time::sleep(Duration::from_millis(random.random_range(0..2500))).await;
    let Some(session) = town.buy(payer, random.random_range(10..120)).await else { panic!("nobody sells a session") };
    for _ in 0..random.random_range(0..3) {
        let (tokens, patience) = (random.random_range(1..600), Duration::from_millis(random.random_range(20..1500)));
        let overlap = random.random_bool(0.5);
        let second = async {
            if overlap {
                town.ask(&session, tokens, patience).await;
            }
        };
        tokio::join!(town.ask(&session, tokens, patience), second);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
    }
    // Some close through the orchestrator, some leave it open, as people do.
    if random.random_bool(0.6) {
        town.close(&session).await.unwrap();
    }
}

async fn sell(shards: u32, sessions: u64, seed: u64) {
    let town = Arc::new(Town::build(shards).await);
    let before = town.purses().await;
    let customers = (0..sessions).map(|number| tokio::spawn(customer(town.clone(), seed + number)));
    for customer in customers.collect::<Vec<_>>() {
        customer.await.unwrap();
    }
    let entries = town.verify_log().await;
    let mut town = Arc::into_inner(town).expect("all customers have gone");
    // Streams stop with the cluster; sessions that were left open are closed by their payers, without it.
    town.stop();
    town.close_what_is_left().await;
    let (opened, streamed) = town.audit(&before).await;
    assert_eq!(opened as u64, sessions, "every voucher opened a session");
    assert!(streamed > Usdcx::ZERO, "somebody asked something");
    println!("{sessions} sessions, {shards} operators: {streamed} USDCx streamed, {entries} entries in the log");
}

fn sessions(usually: u64) -> u64 {
    std::env::var("COMPUTEPOOL_SESSIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(usually)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_unit_of_random_sessions_is_accounted_for() {
    let seed = 20_261_125;
    println!("seed {seed}");
    tokio::time::timeout(4 * PATIENCE, sell(3, sessions(20), seed)).await.expect("within four minutes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_operator_and_five_are_paid_as_exactly() {
    for (shards, seed) in [(1, 7), (5, 8)] {
        tokio::time::timeout(2 * PATIENCE, sell(shards, 5, seed)).await.expect("within two minutes");
    }
}
