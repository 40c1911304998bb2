//! One transaction and everything that can happen to it.

use std::{sync::Arc, time::Duration};

use pool_journal::{
    Actions, Clock, Intent, IntentState, IntentView, OutboxSettings, Outcome, Runner, StepError, Submission,
    SubmitError, SystemClock, TransactionSigner,
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    chain::{Faults, Key, Node, Shared, Transaction},
    world::{World, action, graph, intent, node, quick, until},
};

/// A journal, a chain without faults, and a runner with the keys 1 and 2.
struct Bench {
    _folder: TempDir,
    world: World,
    node: Node,
    settings: OutboxSettings,
    runner: Option<Runner>,
}

impl Bench {
    async fn new(settings: OutboxSettings) -> Bench {
        let mut bench = Bench::idle(settings).await;
        bench.start(vec![Key::new(1), Key::new(2)]).await;
        bench
    }

    /// Without a runner yet.
    async fn idle(settings: OutboxSettings) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let world = World::now(folder.path(), []).await;
        Bench { _folder: folder, world, node: Node::new(Shared::new(), 1), settings, runner: None }
    }

    async fn start(&mut self, keys: Vec<Key>) {
        let signers = keys.into_iter().map(|key| Arc::new(key) as Arc<dyn TransactionSigner>).collect();
        let port = Arc::new(self.node.clone());
        self.runner = Some(self.world.runner_on(Actions::new(), port, signers, self.settings).await);
    }

    async fn stop(&mut self) {
        self.runner.take().unwrap().stop().await.unwrap();
    }

    fn mine(&self) {
        self.node.chain.with(|chain| chain.mine());
    }

    /// What has happened on the chain, in order.
    fn effects(&self) -> Vec<String> {
        self.node.chain.with(|chain| chain.effects().into_iter().map(str::to_owned).collect())
    }

    async fn submit(&self, intent: Intent) {
        assert_eq!(self.world.journal.submit(intent).await.unwrap(), Submission::Pending);
    }

    async fn view(&self, key: &str) -> IntentView {
        self.world.journal.transaction(key).await.unwrap().unwrap()
    }

    /// Waits until the mempool holds so many transactions.
    async fn waiting(&self, count: usize) -> Vec<Transaction> {
        until(&format!("{count} transactions in the mempool"), async || {
            let mempool = self.node.chain.with(|chain| chain.mempool.clone());
            (mempool.len() == count).then_some(mempool)
        })
        .await
    }

    /// Mines until the transaction has ended.
    async fn outcome(&self, key: &str) -> Outcome {
        let view = until("the outcome", async || {
            let view = self.view(key).await;
            if !view.state.has_ended() {
                self.mine();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            view.state.has_ended().then_some(view)
        })
        .await;
        view.outcome.unwrap()
    }
}

fn key(n: u8) -> alloy_primitives::Address {
    Key::new(n).address
}

#[tokio::test]
async fn a_transaction_happens_once_however_often_it_is_submitted() {
    let mut bench = Bench::new(quick()).await;
    let wanted = || intent("open", key(1), "vault/1", "do open");
    bench.submit(wanted()).await;
    bench.submit(wanted()).await;
    assert!(bench.outcome("open").await.happened());
    let Submission::Ended(Outcome::Confirmed { receipt }) = bench.world.journal.submit(wanted()).await.unwrap() else {
        panic!("the outcome is told again")
    };
    assert!(receipt.succeeded);
    let other = Intent { gas_limit: 99_999, ..wanted() };
    assert!(matches!(bench.world.journal.submit(other).await, Err(SubmitError::KeyTaken(_))));
    for invalid in [
        Intent { key: String::new(), ..wanted() },
        Intent { lane: "a\u{7}".to_owned(), ..wanted() },
        Intent { gas_limit: 20_999, ..wanted() },
        Intent { gas_limit: u64::MAX, ..wanted() },
        Intent { chain: u64::MAX, ..wanted() },
        Intent { data: vec![0; 70_000].into(), ..wanted() },
        Intent { key: "filler/1".to_owned(), ..wanted() },
    ] {
        assert!(matches!(bench.world.journal.submit(invalid).await, Err(SubmitError::Invalid { .. })));
    }
    assert_eq!(bench.effects(), ["open"]);
    bench.stop().await;
    assert_eq!(
        bench.world.log().await,
        [
            "runner-began",
            "transaction-queued open",
            "transaction-signed open",
            "transaction-broadcast open",
            "transaction-included open",
            "transaction-confirmed open",
        ]
    );
}

#[tokio::test]
async fn a_reverted_transaction_is_an_outcome_and_is_not_tried_again() {
    let bench = Bench::new(quick()).await;
    bench.submit(intent("open", key(1), "vault/1", "revert open")).await;
    bench.submit(intent("next", key(1), "vault/1", "do next")).await;
    let Outcome::Reverted { receipt } = bench.outcome("open").await else { panic!("it was reverted") };
    assert!(!receipt.succeeded);
    assert!(bench.outcome("next").await.happened(), "its lane goes on");
    assert_eq!(bench.node.chain.with(|chain| chain.sentences().len()), 2);
}

#[tokio::test]
async fn an_outcome_needs_its_confirmations() {
    let bench = Bench::new(OutboxSettings { confirmations: 3, ..quick() }).await;
    bench.submit(intent("open", key(1), "vault/1", "do open")).await;
    bench.waiting(1).await;
    bench.mine();
    until("the block's being seen", async || (bench.view("open").await.state == IntentState::Included).then_some(()))
        .await;
    bench.mine();
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(bench.view("open").await.outcome, None, "two blocks are not three");
    bench.mine();
    until("the outcome", async || bench.view("open").await.outcome).await;
}

#[tokio::test]
async fn a_transaction_that_waits_too_long_pays_more_under_the_same_nonce() {
    let bench = Bench::new(quick()).await;
    bench.submit(intent("open", key(1), "vault/1", "do open")).await;
    let first = bench.waiting(1).await;
    bench.node.chain.with(|chain| chain.base_fee = 5_000);
    bench.mine();
    let view = until("a second variant", async || {
        bench.mine();
        let view = bench.view("open").await;
        (view.variants.len() > 1).then_some(view)
    })
    .await;
    assert_eq!((view.nonce, view.variants[0]), (Some(0), first[0].hash()));
    let Outcome::Confirmed { receipt } = bench.outcome("open").await else { panic!("it was confirmed") };
    assert_ne!(receipt.transaction, first[0].hash());
    assert_eq!(bench.effects(), ["open"]);
}

#[tokio::test]
async fn the_receipt_of_an_older_variant_ends_the_transaction_as_well() {
    let bench = Bench::new(quick()).await;
    bench.submit(intent("open", key(1), "vault/1", "do open")).await;
    let first = bench.waiting(1).await.remove(0);
    bench.node.chain.with(|chain| chain.base_fee = 5_000);
    until("a second variant", async || (bench.view("open").await.variants.len() > 1).then_some(())).await;
    bench.node.chain.with(|chain| {
        // Another miner never heard of the second variant.
        chain.base_fee = 100;
        chain.mempool = vec![first.clone()];
        chain.mine();
    });
    let Outcome::Confirmed { receipt } = bench.outcome("open").await else { panic!("it was confirmed") };
    assert_eq!(receipt.transaction, first.hash());
    assert_eq!(bench.effects(), ["open"]);
}

#[tokio::test]
async fn fees_stop_at_the_ceiling_and_the_transaction_waits_for_cheaper_gas() {
    let bench = Bench::new(OutboxSettings { max_fee: 400, ..quick() }).await;
    bench.node.chain.with(|chain| chain.base_fee = 5_000);
    bench.submit(intent("open", key(1), "vault/1", "do open")).await;
    bench.waiting(1).await;
    let trouble = until("the trouble's being told", async || bench.view("open").await.trouble).await;
    assert!(trouble.contains("ceiling"), "{trouble}");
    bench.node.chain.with(|chain| chain.base_fee = 100);
    assert!(bench.outcome("open").await.happened());
}

#[tokio::test]
async fn a_node_that_forgets_its_mempool_is_given_the_same_bytes_again() {
    let bench = Bench::new(OutboxSettings { bump_after: Duration::from_secs(60), ..quick() }).await;
    bench.submit(intent("open", key(1), "vault/1", "do open")).await;
    let first = bench.waiting(1).await;
    bench.node.chain.with(|chain| chain.mempool.clear());
    assert_eq!(bench.waiting(1).await, first);
    assert!(bench.outcome("open").await.happened());
    assert_eq!(bench.view("open").await.variants.len(), 1);
}

#[tokio::test]
async fn a_block_that_is_taken_back_brings_its_transactions_back_before_and_after_their_outcome() {
    let mut bench = Bench::new(OutboxSettings { confirmations: 2, ..quick() }).await;
    bench.submit(intent("before", key(1), "vault/1", "do before")).await;
    bench.waiting(1).await;
    bench.mine();
    until("inclusion", async || (bench.view("before").await.state == IntentState::Included).then_some(())).await;
    bench.node.chain.with(|chain| chain.reorganise(1, true));
    until("its coming back", async || (bench.view("before").await.reopened == 1).then_some(())).await;
    assert!(bench.outcome("before").await.happened());

    bench.submit(intent("after", key(1), "vault/1", "do after")).await;
    let told = bench.outcome("after").await;
    let hash = bench.view("after").await.variants[0];
    bench.node.chain.with(|chain| {
        chain.reorganise(3, true);
        chain.mine();
    });
    until("its coming back", async || (bench.view("after").await.reopened == 1).then_some(())).await;
    assert_eq!(bench.view("after").await.outcome, Some(told), "what was told stays readable");
    assert!(bench.outcome("after").await.happened());
    let view = bench.view("after").await;
    assert_eq!((view.variants.len(), view.variants[0]), (1, hash), "the same bytes");
    let mut effects = bench.effects();
    effects.sort();
    assert_eq!(effects, ["after", "before"]);
    bench.stop().await;
    let log = bench.world.log().await;
    assert!(log.contains(&"transaction-vanished after".to_owned()), "{log:?}");
}

#[tokio::test]
async fn a_re_organisation_that_changes_an_outcome_is_told() {
    let mut bench = Bench::new(quick()).await;
    bench.submit(intent("open", key(1), "vault/1", "do open")).await;
    assert!(bench.outcome("open").await.happened());
    bench.node.chain.with(|chain| {
        chain.reverting.push("open".to_owned());
        chain.reorganise(2, false);
        chain.mine();
    });
    until("the other outcome", async || {
        bench.mine();
        let view = bench.view("open").await;
        (view.state.has_ended() && matches!(view.outcome, Some(Outcome::Reverted { .. }))).then_some(())
    })
    .await;
    let event = bench.world.journal.event("transaction-changed/open").await.unwrap().unwrap();
    assert_eq!((&event["before"]["outcome"], &event["after"]["outcome"]), (&json!("confirmed"), &json!("reverted")));
    bench.stop().await;
    assert!(bench.world.log().await.contains(&"transaction-changed open".to_owned()));
}

#[tokio::test]
async fn a_chain_that_is_set_back_and_makes_blocks_only_when_asked_is_given_its_transactions_again() {
    let bench = Bench::new(OutboxSettings { lag_after: Duration::from_millis(200), ..quick() }).await;
    bench.mine();
    bench.submit(intent("open", key(1), "vault/1", "do open")).await;
    assert!(bench.outcome("open").await.happened());
    bench.node.chain.with(|chain| chain.blocks.truncate(1));
    bench.waiting(1).await;
    assert!(bench.outcome("open").await.happened());
    assert_eq!((bench.effects(), bench.view("open").await.variants.len()), (vec!["open".to_owned()], 1));
}

/// A node that is ahead tells of a receipt; one that is behind tells the head. Blocks between the two are taken back.
#[tokio::test]
async fn a_block_that_only_some_nodes_knew_is_missed_when_it_goes() {
    let bench = Bench::new(quick()).await;
    for n in 0..12 {
        bench.node.set(Faults { lag: 2, ..Faults::default() });
        let name = format!("{n}");
        bench.submit(intent(&name, key(1), "vault/1", &format!("do {n}"))).await;
        assert!(bench.outcome(&name).await.happened());
        bench.node.chain.with(|chain| chain.reorganise(n % 3 + 1, true));
        bench.node.set(Faults::default());
        bench.submit(intent(&format!("after {n}"), key(1), "vault/2", &format!("do after {n}"))).await;
        assert!(bench.outcome(&format!("after {n}")).await.happened(), "nothing waits for a nonce that was lost");
        assert!(bench.outcome(&name).await.happened());
        assert!(bench.effects().contains(&name), "{name} is there again");
    }
}

#[tokio::test]
async fn what_is_buried_deep_is_let_go() {
    let bench = Bench::new(OutboxSettings { settled_after: 4, ..quick() }).await;
    bench.submit(intent("open", key(1), "vault/1", "do open")).await;
    assert!(bench.outcome("open").await.happened());
    until("its burial", async || {
        bench.mine();
        (bench.view("open").await.state == IntentState::Settled).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_key_without_money_says_so_goes_on_later_and_holds_up_no_other_key() {
    let bench = Bench::new(quick()).await;
    bench.node.chain.with(|chain| chain.poor.push(key(1)));
    bench.submit(intent("poor", key(1), "vault/1", "do poor")).await;
    bench.submit(intent("sentinel", key(2), "vault/2", "do sentinel")).await;
    assert!(bench.outcome("sentinel").await.happened());
    let trouble = until("the trouble's being told", async || bench.view("poor").await.trouble).await;
    assert!(trouble.contains("too little"), "{trouble}");
    bench.node.chain.with(|chain| chain.poor.clear());
    assert!(bench.outcome("poor").await.happened());
    assert_eq!(bench.view("poor").await.trouble, None);
}

#[tokio::test]
async fn a_nonce_used_by_another_program_with_our_key_is_noticed_and_replaced() {
    let mut bench = Bench::new(OutboxSettings { foreign_after: 4, ..quick() }).await;
    bench.submit(intent("ours", key(1), "vault/1", "do ours")).await;
    bench.waiting(1).await;
    bench.node.chain.with(|chain| {
        let foreign = Transaction { data: "do theirs".to_owned(), ..chain.mempool.remove(0) };
        chain.mempool.push(foreign);
        chain.mine();
    });
    assert!(bench.outcome("ours").await.happened());
    assert_eq!(bench.view("ours").await.nonce, Some(1));
    assert_eq!(bench.effects(), ["theirs", "ours"]);
    bench.stop().await;
    let log = bench.world.log().await;
    assert!(log.contains(&"nonce-taken ours".to_owned()), "{log:?}");

    // And while the journal was away, from the start.
    bench.node.chain.with(|chain| {
        let like = chain.blocks.iter().flat_map(|block| &block.transactions).next().unwrap().transaction.clone();
        for nonce in 2..5 {
            chain.mempool.push(Transaction { nonce, data: format!("do theirs {nonce}"), ..like.clone() });
        }
        chain.base_fee = 1;
        chain.mine();
    });
    bench.start(vec![Key::new(1)]).await;
    bench.submit(intent("later", key(1), "vault/1", "do later")).await;
    assert!(bench.outcome("later").await.happened());
    assert_eq!(bench.view("later").await.nonce, Some(5));
    bench.stop().await;
    assert!(bench.world.log().await.contains(&"nonce-moved".to_owned()));
}

#[tokio::test]
async fn a_gap_in_the_nonces_is_filled() {
    let mut bench = Bench::idle(quick()).await;
    // Transactions of this key that no journal knows wait in the mempool, and are lost with it.
    let foreign = |nonce| Transaction {
        from: key(1),
        nonce,
        max_fee: 1_000,
        priority_fee: 10,
        gas_limit: 21_000,
        to: key(9),
        data: format!("do foreign {nonce}"),
    };
    bench.node.chain.with(|chain| chain.mempool.extend([foreign(0), foreign(1)]));
    bench.start(vec![Key::new(1)]).await;
    bench.submit(intent("ours", key(1), "vault/1", "do ours")).await;
    bench.waiting(3).await;
    assert_eq!(bench.view("ours").await.nonce, Some(2), "what waits in the mempool is not ours to replace");
    bench.node.chain.with(|chain| chain.mempool.clear());
    assert!(bench.outcome("ours").await.happened());
    assert_eq!(bench.effects(), ["ours"]);
    bench.stop().await;
    let log = bench.world.log().await;
    assert_eq!(log.iter().filter(|line| line.starts_with("nonce-filled")).count(), 2, "{log:?}");
}

#[tokio::test]
async fn a_transaction_that_every_node_refuses_gives_its_nonce_to_nothing_and_the_rest_goes_on() {
    let bench = Bench::new(quick()).await;
    bench.node.set(Faults { refuse: true, ..Faults::default() });
    bench.submit(intent("refused", key(1), "vault/1", "do refused")).await;
    until("its being cancelled", async || {
        bench.mine();
        let view = bench.view("refused").await;
        view.state.has_ended().then_some(())
    })
    .await;
    bench.node.set(Faults::default());
    let Outcome::Refused { reason } = bench.outcome("refused").await else { panic!("it was refused") };
    assert!(reason.contains("exceeds block gas limit"), "{reason}");
    bench.submit(intent("next", key(1), "vault/1", "do next")).await;
    assert!(bench.outcome("next").await.happened());
    assert_eq!(bench.effects(), ["next"]);
    assert_eq!(bench.view("next").await.nonce, Some(1));
}

#[tokio::test]
async fn what_the_signer_refuses_never_had_a_nonce() {
    let mut bench = Bench::idle(quick()).await;
    bench.submit(intent("bad", key(1), "vault/1", "do bad")).await;
    bench.submit(intent("good", key(1), "vault/1", "do good")).await;
    bench.start(vec![Key { refuses: Some("do bad".to_owned()), ..Key::new(1) }]).await;
    assert!(matches!(bench.outcome("bad").await, Outcome::Refused { .. }));
    assert!(bench.outcome("good").await.happened());
    assert_eq!((bench.view("bad").await.nonce, bench.view("good").await.nonce), (None, Some(0)));
}

#[tokio::test]
async fn what_is_not_signed_in_time_is_dropped_and_what_is_signed_is_not() {
    let bench = Bench::new(quick()).await;
    let soon = || Some(SystemClock.now().after(Duration::from_millis(150)));
    bench.submit(Intent { deadline: soon(), ..intent("first", key(1), "vault/1", "do first") }).await;
    bench.waiting(1).await;
    bench.submit(Intent { deadline: soon(), ..intent("second", key(1), "vault/1", "do second") }).await;
    let deadline = SystemClock.now().after(Duration::from_secs(20));
    let second = bench.world.journal.wait_transaction("second", deadline).await.unwrap().unwrap();
    assert_eq!(second.outcome, Some(Outcome::Expired), "its lane was busy for too long");
    assert!(bench.outcome("first").await.happened(), "what may be on its way is driven to its end");
    assert_eq!(bench.effects(), ["first"]);
}

#[tokio::test]
async fn a_signer_without_a_driver_expires_too() {
    let bench = Bench::new(quick()).await;
    let deadline = Some(SystemClock.now().after(Duration::from_millis(50)));
    bench.submit(Intent { deadline, ..intent("nobody", key(7), "vault/1", "do nothing") }).await;
    let deadline = SystemClock.now().after(Duration::from_secs(20));
    let view = bench.world.journal.wait_transaction("nobody", deadline).await.unwrap().unwrap();
    assert_eq!(view.outcome, Some(Outcome::Expired));
}

#[tokio::test]
async fn a_step_is_not_failed_while_its_transaction_may_still_land() {
    let folder = tempfile::tempdir().unwrap();
    let policy = json!({"ceilingMs": 500, "deadlineMs": 500});
    let nodes = [node("open", "x/open", json!({}), policy), node("refund", "x/refund", json!({}), json!({}))];
    let world = World::now(folder.path(), [graph("w", &nodes, &["trigger open", "open failure refund"])]).await;
    let chain = Node::new(Shared::new(), 1);
    let open = action(async |step: pool_journal::Step, _| {
        let wanted = intent(&step.key(), key(1), "vault/1", &format!("do {}", step.run()));
        match (step.transact(wanted).await, step.outputs()["trigger"]["hasty"] == json!(true)) {
            // An action that gives up although it has just asked for a transaction.
            (Err(StepError::Waiting(_)), true) => Err(StepError::failed("hasty", "given up")),
            (other, _) => Ok(json!({"happened": other?.happened()})),
        }
    });
    let actions = Actions::new().with("x/open", open).with("x/refund", action(async |_, input| Ok(input)));
    let port = Arc::new(chain.clone());
    let runner = world.runner_on(actions, port, vec![Arc::new(Key::new(1))], quick()).await;
    let hasty = world.journal.start("w", "hasty", json!({"hasty": true})).await.unwrap();
    let patient = world.journal.start("w", "patient", json!({})).await.unwrap();
    until("a transaction in the mempool", async || (chain.chain.with(|c| c.mempool.len()) >= 1).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    // The deadline of both steps is over. Whatever was signed can land; whatever was not was withdrawn.
    until("both ends", async || {
        chain.chain.with(|chain| chain.mine());
        let ended = world.journal.outcome(hasty).await.unwrap().is_some()
            && world.journal.outcome(patient).await.unwrap().is_some();
        ended.then_some(())
    })
    .await;
    runner.stop().await.unwrap();
    let effects = chain.chain.with(|c| c.effects().into_iter().map(str::to_owned).collect::<Vec<_>>());
    for run in [hasty, patient] {
        let outcome = world.outcome(run).await;
        let landed = effects.contains(&run.to_string());
        let told = outcome.outputs["open"]["happened"] == json!(true);
        assert_eq!(told, landed, "what the run says of {run} is what the chain says: {outcome:?}");
        assert!(landed || outcome.failure.is_some() || outcome.outputs["open"]["happened"] == json!(false));
    }
    assert!(!effects.is_empty(), "at least one of them was signed");
}
