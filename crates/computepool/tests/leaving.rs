//! Owners who want their machines back in the middle of an answer: at once, or after it.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod support;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use alloy_signer_local::PrivateKeySigner;
use pool_coalition::{Roster, RosterRole};
use pool_node::{Activity, Ended, Manner, NodeError, Shift};
use pool_orchestrator::Orchestrator;
use pool_store::Store;
use serde_json::Value;
use support::{
    Files, PATIENCE, Stream, ask, ask_until_served, coalition, member, node_config, orchestrator_config, request, runs,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// The machine is the owner's again within this.
const GIVEN_BACK: Duration = Duration::from_millis(1500);

struct Owner {
    wallet: PrivateKeySigner,
    leave: watch::Sender<Option<Manner>>,
    shift: Shift,
    task: JoinHandle<Result<Ended, NodeError>>,
}

impl Owner {
    fn serves(&self) -> bool {
        matches!(self.shift.activity(), Activity::Serving { members: 2, .. })
    }
}

/// An orchestrator for a coalition of two, and the nodes of three owners.
struct Pool {
    url: String,
    database: PathBuf,
    owners: Vec<Owner>,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
    _files: Files,
}

impl Pool {
    async fn start() -> Self {
        let files = Files::new();
        std::fs::create_dir_all(files.state()).unwrap();
        let gateway = PrivateKeySigner::random();
        let wallets: Vec<PrivateKeySigner> = (0..3).map(|_| PrivateKeySigner::random()).collect();
        let nodes = wallets.iter().zip(1..);
        let nodes = nodes.map(|(wallet, n)| member(wallet.address(), &format!("owner-{n}"), RosterRole::Node));
        let members = std::iter::once(member(gateway.address(), "gateway", RosterRole::Gateway)).chain(nodes);
        let roster = Roster::new(gateway.address(), members.collect(), 0).unwrap();
        let config = orchestrator_config(&files, gateway, &roster, 2);
        let orchestrator = Orchestrator::bind(config).await.unwrap();
        let address = orchestrator.address();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let server = tokio::spawn(async move { orchestrator.serve(stop).await.unwrap() });
        let owners = wallets.into_iter().map(|wallet| {
            let config = node_config(address, &roster, wallet.clone(), files.model());
            let ((leave, asked), shift) = (watch::channel(None), Shift::default());
            let task = tokio::spawn(pool_node::serve(config, shutdown.clone(), asked, shift.clone()));
            Owner { wallet, leave, shift, task }
        });
        let pool = Self {
            url: format!("http://{address}/v1"),
            database: files.state().join("state.db"),
            owners: owners.collect(),
            shutdown: shutdown.clone(),
            server,
            _files: files,
        };
        ask_until_served(&pool.url, PATIENCE).await;
        pool
    }

    /// Takes an owner who serves out of the pool's list.
    fn who_serves(&mut self) -> Owner {
        let place = self.owners.iter().position(Owner::serves).expect("two of three serve");
        self.owners.remove(place)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        for owner in self.owners {
            owner.task.await.unwrap().unwrap();
        }
        self.server.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_who_comes_back_has_the_machine_at_once_and_the_client_is_told_why() {
    let mut pool = Pool::start().await;
    let mut stream = Stream::open(&pool.url, &request("tell me everything", 3000, true)).await;
    stream.pieces(20).await;
    let owner = pool.who_serves();
    let shard = owner.shift.process().expect("who serves has a shard");
    let stays = pool.owners.iter().position(Owner::serves).expect("two serve");
    let other = pool.owners[stays].shift.process().expect("and so has the other one");
    let back = Instant::now();
    owner.leave.send(Some(Manner::Yield)).unwrap();
    let message = stream.error().await;
    let told = back.elapsed();
    assert!(told < GIVEN_BACK, "the client waited {told:?} for its error");
    let ended = owner.task.await.unwrap().unwrap();
    let Ended::Yielded(Some(gone)) = ended else { panic!("{ended:?}") };
    assert!(gone < GIVEN_BACK && !runs(shard), "the shard was gone after {gone:?}");
    let served = ask_until_served(&pool.url, Duration::from_secs(20)).await;
    println!("shard gone after {gone:?}, client told after {told:?} ({message}), served again after {served:?}");
    assert!(message.contains("gave its computer back"), "the reason, in plain words: {message}");
    let (stays, newcomer) = (&pool.owners[stays], &pool.owners[1 - stays]);
    assert!(stays.serves() && newcomer.serves(), "the third one takes the free place");
    assert_eq!(stays.shift.process(), Some(other), "who stays loads nothing again");

    let store = Store::open(&pool.database).await.unwrap();
    let words = store.stand_downs(owner.wallet.address(), 10).await.unwrap();
    assert_eq!(words.len(), 1, "its signed word is kept: who leaves so is not to blame");
    assert_eq!(words[0].stand_down.manner, Manner::Yield);
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_who_lets_it_finish_ends_no_answer() {
    let mut pool = Pool::start().await;
    let mut stream = Stream::open(&pool.url, &request("tell me everything", 400, true)).await;
    stream.pieces(20).await;
    let owner = pool.who_serves();
    owner.leave.send(Some(Manner::Drain)).unwrap();
    // As soon as it is known, nothing new begins.
    let refused = loop {
        let (status, answer) = ask(&pool.url, &request("and me?", 4, false)).await;
        if status != 200 {
            break (status, answer);
        }
    };
    assert_eq!(refused.0, 503, "{}", refused.1);
    assert!(!owner.task.is_finished(), "what runs goes on");
    let mut tokens = 0;
    loop {
        let event = stream.next().await.expect("the stream ends in order");
        if event == "[DONE]" {
            break;
        }
        let event: Value = serde_json::from_str(&event).unwrap();
        assert!(event.get("error").is_none(), "{event}");
        tokens += 1;
    }
    assert!(tokens > 0, "the answer went on to its end");
    let ended = tokio::time::timeout(Duration::from_secs(10), owner.task).await.expect("then it leaves");
    assert_eq!(ended.unwrap().unwrap(), Ended::Drained);
    ask_until_served(&pool.url, Duration::from_secs(20)).await;
    pool.stop().await;
}

/// The most seconds that a shard of the coalition has computed, once two reports in a row agree: nothing runs then.
async fn worked(pool: &Pool) -> f64 {
    let busy = async || {
        let view = coalition(&pool.url).await;
        let members = view["members"].as_array().unwrap();
        members.iter().map(|member| member["stats"]["busy_seconds"].as_f64().unwrap_or(0.0)).fold(0.0, f64::max)
    };
    let (mut last, began) = (busy().await, Instant::now());
    loop {
        assert!(began.elapsed() < PATIENCE, "the shards' work does not come to rest: {}", coalition(&pool.url).await);
        // Shards report every second.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let now = busy().await;
        if now > 0.0 && now == std::mem::replace(&mut last, now) {
            return now;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_node_rests_between_steps_and_answers_the_same() {
    let pool = Pool::start().await;
    let question = request("tell me everything", 300, false);
    let (_, fast) = ask(&pool.url, &question).await;
    pool.owners.iter().for_each(|owner| owner.shift.set_duty(10));
    let (before, began) = (worked(&pool).await, Instant::now());
    let (status, quiet) = ask(&pool.url, &question).await;
    let took = began.elapsed().as_secs_f64();
    assert_eq!((status, &quiet["choices"]), (200, &fast["choices"]), "resting changes no answer: {quiet}");
    let worked = worked(&pool).await - before;
    println!("at a duty of 10 %: {worked:.3} s of work in {took:.3} s");
    assert!(worked > 0.0 && worked < 0.25 * took, "{worked} s of work in {took} s is no tenth of the time");
    pool.stop().await;
}
