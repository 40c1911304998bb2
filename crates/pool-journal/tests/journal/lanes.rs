//! Transactions of one lane happen one after the other, and an old start never lands after a stop.

use std::{sync::Arc, time::Duration};

use pool_journal::{Actions, Intent, IntentState, OutboxSettings, Outcome, TransactionSigner};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    chain::{Key, Node, Shared},
    world::{World, intent, quick, until},
};

fn rate(key: &str, lane: &str) -> Intent {
    Intent { supersedable: true, ..intent(key, Key::new(1).address, lane, &format!("do {key}")) }
}

async fn bench(key: Key, settings: OutboxSettings) -> (tempfile::TempDir, World, Node, pool_journal::Runner) {
    let folder = tempfile::tempdir().unwrap();
    let world = World::now(folder.path(), []).await;
    let node = Node::new(Shared::new(), 1);
    let signers = vec![Arc::new(key) as Arc<dyn TransactionSigner>];
    let runner = world.runner_on(Actions::new(), Arc::new(node.clone()), signers, settings).await;
    (folder, world, node, runner)
}

async fn state(world: &World, key: &str) -> (IntentState, Option<Outcome>) {
    let view = world.journal.transaction(key).await.unwrap().unwrap();
    (view.state, view.outcome)
}

async fn drained(world: &World, node: &Node, keys: &[String]) {
    for key in keys {
        until("the end of every transaction", async || {
            node.chain.with(|chain| chain.mine());
            state(world, key).await.0.has_ended().then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_start_that_waits_is_dropped_when_a_stop_comes() {
    let (_folder, world, node, _runner) = bench(Key::new(1), quick()).await;
    world.journal.submit(rate("first", "vault/1")).await.unwrap();
    until("the first in the mempool", async || (node.chain.with(|c| c.mempool.len()) == 1).then_some(())).await;
    world.journal.submit(rate("start", "vault/1")).await.unwrap();
    world.journal.submit(rate("other", "vault/2")).await.unwrap();
    world.journal.submit(rate("stop", "vault/1")).await.unwrap();
    assert_eq!(
        state(&world, "start").await,
        (IntentState::Dropped, Some(Outcome::Superseded { by: "stop".to_owned() })),
        "it is dropped in the instant in which the stop is taken"
    );
    until("the other lane's", async || (node.chain.with(|c| c.mempool.len()) == 2).then_some(())).await;
    assert_eq!(state(&world, "stop").await.0, IntentState::Queued, "one of a lane at a time");
    drained(&world, &node, &["first".to_owned(), "stop".to_owned(), "other".to_owned()]).await;
    let effects = node.chain.with(|c| c.effects().join(" "));
    assert!(!effects.contains("start") && effects.ends_with("stop"), "{effects}");
}

#[tokio::test]
async fn a_start_that_is_signed_already_lands_before_the_stop() {
    let (_folder, world, node, _runner) = bench(Key::new(1), quick()).await;
    world.journal.submit(rate("start", "vault/1")).await.unwrap();
    until("the start's signature", async || (state(&world, "start").await.0 == IntentState::Signed).then_some(()))
        .await;
    world.journal.submit(rate("stop", "vault/1")).await.unwrap();
    drained(&world, &node, &["start".to_owned(), "stop".to_owned()]).await;
    assert_eq!(node.chain.with(|c| c.effects().join(" ")), "start stop");
}

#[tokio::test]
async fn a_start_that_is_being_signed_when_the_stop_comes_is_thrown_away() {
    let slow = Key { slow: Duration::from_millis(150), ..Key::new(1) };
    let (_folder, world, node, _runner) = bench(slow, quick()).await;
    world.journal.submit(rate("start", "vault/1")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(state(&world, "start").await.0, IntentState::Queued, "the signer still thinks");
    world.journal.submit(rate("stop", "vault/1")).await.unwrap();
    assert!(matches!(state(&world, "start").await.1, Some(Outcome::Superseded { .. })));
    drained(&world, &node, &["stop".to_owned()]).await;
    assert_eq!(node.chain.with(|c| c.effects().join(" ")), "stop", "the bytes of the start were never sent");
}

#[tokio::test]
async fn what_may_not_be_superseded_keeps_its_place() {
    let (_folder, world, node, _runner) = bench(Key::new(1), quick()).await;
    let keys: Vec<String> = (0..5).map(|n| format!("step {n}")).collect();
    for key in &keys {
        world.journal.submit(Intent { supersedable: false, ..rate(key, "vault/1") }).await.unwrap();
    }
    drained(&world, &node, &keys).await;
    assert_eq!(node.chain.with(|c| c.effects().join(", ")), keys.join(", "));
}

#[tokio::test]
async fn lanes_run_beside_each_other_up_to_a_bound() {
    let (_folder, world, node, _runner) = bench(Key::new(1), OutboxSettings { in_flight: 7, ..quick() }).await;
    let keys: Vec<String> = (0..20).map(|n| format!("rate {n}")).collect();
    for (n, key) in keys.iter().enumerate() {
        world.journal.submit(rate(key, &format!("vault/{n}"))).await.unwrap();
    }
    until("seven in flight", async || (node.chain.with(|c| c.mempool.len()) == 7).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(node.chain.with(|c| c.mempool.len()), 7, "and no more");
    drained(&world, &node, &keys).await;
    assert_eq!(node.chain.with(|c| c.effects().len()), 20);
}

/// Starts, changes and stops of four vaults in a random order at random times: what a vault was told last is what
/// stands at the end, and what landed landed in the order in which it was told.
#[tokio::test]
async fn the_last_word_stands() {
    for seed in 0..4u64 {
        println!("seed {seed}");
        let mut die = StdRng::seed_from_u64(seed);
        let slow = Key { slow: Duration::from_millis(3), ..Key::new(1) };
        let (_folder, world, node, runner) = bench(slow, quick()).await;
        let mut told: Vec<Vec<String>> = vec![Vec::new(); 4];
        for n in 0..60 {
            let vault = die.random_range(0..4);
            let key = format!("{vault}: rate {n}");
            world.journal.submit(rate(&key, &format!("vault/{vault}"))).await.unwrap();
            told[vault].push(key);
            if die.random_bool(0.3) {
                node.chain.with(|chain| chain.mine());
            }
            tokio::time::sleep(Duration::from_millis(die.random_range(0..6))).await;
        }
        let last: Vec<String> = told.iter().filter_map(|keys| keys.last().cloned()).collect();
        drained(&world, &node, &last).await;
        runner.stop().await.unwrap();
        let effects: Vec<String> = node.chain.with(|c| c.effects().into_iter().map(str::to_owned).collect());
        for (vault, told) in told.iter().enumerate() {
            let landed: Vec<&String> = effects.iter().filter(|e| e.starts_with(&format!("{vault}:"))).collect();
            assert_eq!(landed.last().copied(), told.last(), "seed {seed}, vault {vault}");
            let places: Vec<usize> = landed.iter().filter_map(|e| told.iter().position(|t| t == *e)).collect();
            assert!(places.is_sorted(), "seed {seed}, vault {vault}: {landed:?}");
        }
        world.log().await;
    }
}
