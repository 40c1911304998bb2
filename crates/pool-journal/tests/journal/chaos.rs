//! Many transactions on a chain where everything goes wrong that can, by a seeded die: nodes that are silent, that do
//! what they say they did not, that lag, that forget; blocks that are taken back, three at a time; gas that gets
//! forty times dearer. The chain itself judges that no nonce and no effect comes twice.
//!
//! `JOURNAL_SEEDS=100 cargo nextest run -p pool-journal chaos` plays more games; `JOURNAL_SEED=7` plays one.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use pool_journal::{Actions, Intent, OutboxSettings, Outcome, TransactionSigner};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    chain::{Chain, Faults, Key, Node, Shared},
    world::{World, intent, quick, until},
};

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("JOURNAL_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("JOURNAL_SEEDS").unwrap_or(8)).collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_chain_does_every_transaction_happens_once_or_is_told_not_to_have() {
    for seed in seeds() {
        println!("seed {seed}");
        play(seed).await;
    }
}

/// One move of the chain.
fn disturb(die: &mut StdRng, chain: &mut Chain) {
    match die.random_range(0..100) {
        0..60 => chain.mine(),
        60..66 => chain.reorganise(die.random_range(1..=3), die.random_bool(0.5)),
        66..72 => chain.mempool.clear(),
        72..78 => chain.base_fee = die.random_range(50..4_000),
        78..80 => chain.least_priority = die.random_range(1..14),
        _ => {}
    }
}

async fn play(seed: u64) {
    let mut die = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let node = Node::new(Shared::new(), seed);
    let keys = [Key::new(1), Key::new(2), Key::new(3)];
    let settings = OutboxSettings {
        confirmations: die.random_range(1..4),
        in_flight: die.random_range(1..9),
        variants: 60,
        ..quick()
    };
    node.set(Faults {
        unreachable: die.random_range(0..200),
        unsaid: die.random_range(0..200),
        lag: die.random_range(0..4),
        underpriced: die.random_range(0..100),
        refuse: false,
    });

    let mut wanted: Vec<Intent> = Vec::new();
    for n in 0..50 {
        let vault = die.random_range(0..6);
        let key = format!("{n}");
        let verb = if die.random_bool(0.15) { "revert" } else { "do" };
        // A vault belongs to one key, as sessions do to their orchestrator.
        let signer = keys[vault % keys.len()].address;
        let supersedable = die.random_bool(0.3);
        let data = format!("{verb} {vault}/{n}");
        wanted.push(Intent { supersedable, ..intent(&key, signer, &format!("vault/{vault}"), &data) });
    }

    // Two lives: the first runner is stopped in the middle of it.
    let mut submitted = 0;
    for life in 0..2 {
        let world = World::now(folder.path(), []).await;
        let signers = keys.iter().map(|key| Arc::new(key.clone()) as Arc<dyn TransactionSigner>).collect();
        let runner = world.runner_on(Actions::new(), Arc::new(node.clone()), signers, settings).await;
        for _ in 0..25 {
            world.journal.submit(wanted[submitted].clone()).await.unwrap();
            submitted += 1;
            for _ in 0..die.random_range(0..4) {
                node.chain.with(|chain| disturb(&mut die, chain));
                tokio::time::sleep(Duration::from_millis(die.random_range(0..8))).await;
            }
        }
        if life == 1 {
            calm_down(&world, &node, &wanted).await;
            judge(&world, &node, &wanted, seed).await;
        }
        runner.stop().await.unwrap();
        world.log().await;
        world.store.close().await;
    }
}

/// Good weather until everything has ended; one last re-organisation; and good weather again.
async fn calm_down(world: &World, node: &Node, wanted: &[Intent]) {
    node.set(Faults::default());
    for last in [false, true] {
        node.chain.with(|chain| {
            chain.base_fee = 100;
            chain.least_priority = 1;
            if last {
                chain.reorganise(3, true);
            }
        });
        // Long enough that a block which is gone has been noticed.
        tokio::time::sleep(Duration::from_millis(if last { 150 } else { 0 })).await;
        for intent in wanted {
            let started = Instant::now();
            until("the end of every transaction", async || {
                node.chain.with(|chain| chain.mine());
                let view = world.journal.transaction(&intent.key).await.unwrap().unwrap();
                if view.state.has_ended() {
                    return Some(());
                }
                if started.elapsed() > Duration::from_secs(20) {
                    let mempool = node.chain.with(|chain| chain.mempool.clone());
                    panic!("this does not end: {view:?}\nthe mempool: {mempool:?}\n{:#?}", world.log().await);
                }
                None
            })
            .await;
        }
    }
}

async fn judge(world: &World, node: &Node, wanted: &[Intent], seed: u64) {
    let sentences: Vec<String> = node.chain.with(|chain| chain.sentences().into_iter().map(str::to_owned).collect());
    let mut in_lane: HashMap<&str, usize> = HashMap::new();
    for intent in wanted {
        let sentence = String::from_utf8(intent.data.to_vec()).unwrap();
        let places: Vec<usize> =
            sentences.iter().enumerate().filter(|(_, s)| **s == sentence).map(|(place, _)| place).collect();
        let view = world.journal.transaction(&intent.key).await.unwrap().unwrap();
        let reverts = sentence.starts_with("revert");
        match view.outcome.as_ref().unwrap() {
            Outcome::Confirmed { .. } => assert!(!reverts && places.len() == 1, "seed {seed}: {sentence} {places:?}"),
            Outcome::Reverted { .. } => assert!(reverts && places.len() == 1, "seed {seed}: {sentence} {places:?}"),
            Outcome::Superseded { by } => {
                assert!(intent.supersedable && places.is_empty(), "seed {seed}: {sentence} was superseded by {by}");
                continue;
            }
            other => panic!("seed {seed}: {sentence} ended as {other}"),
        }
        let before = in_lane.insert(&intent.lane, places[0]);
        assert!(before < Some(places[0]), "seed {seed}: {sentence} keeps its place in {}", intent.lane);
    }
}
