//! What the tests have in common: a folder with a store, workflows from a few words, actions from closures.

use std::{future::Future, path::Path, pin::Pin, sync::Arc, time::Duration};

use alloy_primitives::{Address, Bytes, U256};
use async_trait::async_trait;
use pool_journal::{
    Action, Actions, ChainAccess, ChainPort, Clock, Graph, Graphs, Intent, Journal, OutboxSettings, RunId, RunOutcome,
    Runner, RunnerSetup, Step, StepError, SystemClock, TransactionSigner,
};
use pool_store::Store;
use serde_json::{Value, json};

use crate::chain::CHAIN_ID;

/// What an action gives back.
pub(crate) type Giving = Pin<Box<dyn Future<Output = Result<Value, StepError>> + Send>>;

struct Closure<F>(F);

#[async_trait]
impl<F: Fn(Step, Value) -> Giving + Send + Sync + 'static> Action for Closure<F> {
    async fn run(&self, step: &Step, input: Value) -> Result<Value, StepError> {
        (self.0)(step.clone(), input).await
    }
}

/// An action from a closure.
pub(crate) fn action<W>(act: impl Fn(Step, Value) -> W + Send + Sync + 'static) -> Arc<dyn Action>
where
    W: Future<Output = Result<Value, StepError>> + Send + 'static,
{
    Arc::new(Closure(move |step, input| -> Giving { Box::pin(act(step, input)) }))
}

/// A node: its id, its action, its configuration and its policy.
pub(crate) fn node(id: &str, action: &str, config: Value, policy: Value) -> Value {
    let mut config = config;
    config["actionType"] = json!(action);
    let data = json!({"type": "action", "label": id, "config": config, "policy": policy});
    json!({"id": id, "type": "action", "data": data})
}

/// A workflow from its nodes and edges such as `a b` or `a failure b`.
pub(crate) fn graph(name: &str, nodes: &[Value], edges: &[&str]) -> Graph {
    let trigger =
        json!({"id": "trigger", "type": "trigger", "data": {"type": "trigger", "label": "trigger", "config": {}}});
    let nodes: Vec<Value> = std::iter::once(trigger).chain(nodes.iter().cloned()).collect();
    let edges: Vec<Value> = edges
        .iter()
        .map(|edge| {
            let words: Vec<&str> = edge.split(' ').collect();
            match words[..] {
                [from, to] => json!({"id": edge, "source": from, "target": to}),
                [from, handle, to] => json!({"id": edge, "source": from, "target": to, "sourceHandle": handle}),
                _ => panic!("{edge} is no edge"),
            }
        })
        .collect();
    let known: Vec<String> =
        nodes.iter().filter_map(|node| node["data"]["config"]["actionType"].as_str().map(str::to_owned)).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    Graph::parse(&json!({"name": name, "nodes": nodes, "edges": edges}).to_string(), &known).unwrap()
}

/// A store and a journal in a folder.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) journal: Journal,
}

impl World {
    pub(crate) async fn open(folder: &Path, graphs: impl IntoIterator<Item = Graph>, clock: Arc<dyn Clock>) -> World {
        let store = Store::open(folder.join("state.db")).await.unwrap();
        let journal = Journal::open(&store, Graphs::new(graphs).unwrap(), clock).await.unwrap();
        World { store, journal }
    }

    /// On the machine's clock.
    pub(crate) async fn now(folder: &Path, graphs: impl IntoIterator<Item = Graph>) -> World {
        World::open(folder, graphs, Arc::new(SystemClock)).await
    }

    pub(crate) async fn runner(&self, actions: Actions) -> Runner {
        Runner::start(&self.journal, RunnerSetup { actions, ..RunnerSetup::default() }).await.unwrap()
    }

    /// A runner with the simulated chain.
    pub(crate) async fn runner_on(
        &self,
        actions: Actions,
        port: Arc<dyn ChainPort>,
        signers: Vec<Arc<dyn TransactionSigner>>,
        settings: OutboxSettings,
    ) -> Runner {
        let chains = vec![ChainAccess { port, signers, settings }];
        Runner::start(&self.journal, RunnerSetup { actions, chains, ..RunnerSetup::default() }).await.unwrap()
    }

    /// Waits for a run on the machine's clock.
    pub(crate) async fn outcome(&self, run: RunId) -> RunOutcome {
        ended(&self.journal, run).await
    }

    /// Exports the log, checks it, and gives its kinds with their steps, in order.
    pub(crate) async fn log(&self) -> Vec<String> {
        let mut export = Vec::new();
        self.journal.export(&mut export).await.unwrap();
        pool_journal::verify_export(&export[..]).unwrap();
        entries(&export)
            .iter()
            .map(|entry| {
                let subject = entry["step"].as_str().or(entry["body"]["key"].as_str()).unwrap_or_default();
                format!("{} {subject}", entry["kind"].as_str().unwrap()).trim_end().to_owned()
            })
            .collect()
    }
}

pub(crate) async fn ended(journal: &Journal, run: RunId) -> RunOutcome {
    let deadline = journal.clock().now().after(Duration::from_secs(60));
    journal.wait(run, deadline).await.unwrap()
}

/// The entries of an export.
pub(crate) fn entries(export: &[u8]) -> Vec<Value> {
    let lines: Vec<&str> = std::str::from_utf8(export).unwrap().lines().collect();
    lines[1..lines.len() - 1].iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A transaction for the simulated chain.
pub(crate) fn intent(key: &str, signer: Address, lane: &str, data: &str) -> Intent {
    Intent {
        key: key.to_owned(),
        chain: CHAIN_ID,
        signer,
        lane: lane.to_owned(),
        supersedable: false,
        to: Address::repeat_byte(0xcc),
        value: U256::ZERO,
        data: Bytes::from(data.to_owned().into_bytes()),
        gas_limit: 100_000,
        deadline: None,
    }
}

/// Settings for a chain whose blocks come every few milliseconds.
pub(crate) fn quick() -> OutboxSettings {
    OutboxSettings {
        bump_after: Duration::from_millis(120),
        rebroadcast_after: Duration::from_millis(60),
        look_after: Duration::from_millis(20),
        max_fee: 1_000_000,
        ..OutboxSettings::default()
    }
}

/// Looks again and again until it is as it should be.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(std::time::Instant::now() < give_up, "{what} did not come about in 30 seconds");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
