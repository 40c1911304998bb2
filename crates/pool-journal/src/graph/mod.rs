//! Workflows as graphs: JSON files of KeeperHub's shape, checked before anything runs.
//!
//! A graph has one trigger, whose output is the run's input, and actions named `plugin/slug`. An edge without a
//! handle is followed when its source succeeded, one with the handle `failure` when it failed, and those with `true`
//! and `false` leave a `Condition` node. What leads where is decided in [`progress`](crate::progress).
//!
//! Beyond KeeperHub's fields a node may have `data.policy`:
//!
//! | field | meaning | default |
//! |---|---|---|
//! | `attempts` | how often the action may fail with "try again", 1-1000 | 5 |
//! | `firstDelayMs` | back-off after the first failure | 500 |
//! | `factor` | what each further back-off is multiplied by, 1-10 | 2 |
//! | `ceilingMs` | the longest back-off | 60000 |
//! | `deadlineMs` | how long after its beginning the step is given up | 3600000 |

mod file;
mod rules;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Map, Value};
use thiserror::Error;

use crate::{
    condition::{Condition, ConditionError},
    template::TemplateError,
};

/// The actions that workflows may name. Who adds one adds the code behind it where a runner is started.
pub const ACTIONS: [&str; 14] = [
    "coalition/propose",
    "coalition/vote",
    "coalition/register",
    "coalition/activate",
    "coalition/drain",
    "coalition/dissolve",
    "coalition/slash",
    "superfluid/create-pool",
    "superfluid/update-member-units",
    "superfluid/distribute-flow",
    "session/open",
    "session/close",
    "session/refund",
    "session/receipt",
];

/// The workflows of this repository: every file of `workflows/`.
const BUILT_IN: [(&str, &str); 5] = [
    ("coalition-activate.json", include_str!("../../../../workflows/coalition-activate.json")),
    ("coalition-dissolve.json", include_str!("../../../../workflows/coalition-dissolve.json")),
    ("session-open.json", include_str!("../../../../workflows/session-open.json")),
    ("session-rate.json", include_str!("../../../../workflows/session-rate.json")),
    ("session-close.json", include_str!("../../../../workflows/session-close.json")),
];

/// A workflow that can be run.
#[derive(Clone, Debug)]
pub struct Graph {
    pub(crate) name: String,
    pub(crate) trigger: String,
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) edges: Vec<Edge>,
    /// The canonical form of the file: runs keep the graph they began with.
    pub(crate) text: String,
}

/// What a node does and how long it may try.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) label: String,
    pub(crate) kind: NodeKind,
    pub(crate) policy: Policy,
}

#[derive(Clone, Debug)]
pub(crate) enum NodeKind {
    Trigger,
    Action { name: String, input: Map<String, Value> },
    Condition(Condition),
}

/// How often and how long a step is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) attempts: u32,
    pub(crate) first_delay: Duration,
    pub(crate) factor: u32,
    pub(crate) ceiling: Duration,
    pub(crate) deadline: Duration,
}

impl Policy {
    /// How long to wait after the failure of this number, counted from 1.
    pub(crate) fn delay(&self, failure: u32) -> Duration {
        let factor = self.factor.saturating_pow(failure.saturating_sub(1));
        self.first_delay.saturating_mul(factor).min(self.ceiling)
    }
}

/// When an edge is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Handle {
    /// The source succeeded.
    Success,
    /// The source failed.
    Failure,
    /// The source is a condition that decided so.
    Decision(bool),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edge {
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) handle: Handle,
}

/// Why a graph is refused.
#[derive(Debug, Error)]
pub enum GraphError {
    /// The file is too long.
    #[error("the graph is {0} bytes long; at most {max} are read", max = Graph::MAX_BYTES)]
    TooLong(usize),
    /// Not JSON of the expected shape.
    #[error("the graph cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Its own name, or a node's id or label, has letters it must not have.
    #[error("{0:?} is no name: 1 to 64 small letters, digits and hyphens")]
    Name(String),
    /// More nodes or edges than a graph may have.
    #[error("the graph has {nodes} nodes and {edges} edges; at most {max_nodes} and {max_edges} are allowed",
        max_nodes = Graph::MAX_NODES, max_edges = Graph::MAX_EDGES)]
    TooLarge {
        /// Nodes.
        nodes: usize,
        /// Edges.
        edges: usize,
    },
    /// Two nodes with one id.
    #[error("two nodes are called {0}")]
    DuplicateNode(String),
    /// No trigger, or more than one.
    #[error("the graph has {0} triggers; it needs exactly one")]
    Triggers(usize),
    /// A node has no type that is known, or its type and its configuration differ.
    #[error("node {node} {problem}")]
    Node {
        /// The node.
        node: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An action that nobody knows.
    #[error("node {node} names the action {action:?}, which is not known")]
    UnknownAction {
        /// The node.
        node: String,
        /// Its action.
        action: String,
    },
    /// A retry policy with a number out of its bounds.
    #[error("the policy of node {node} is out of bounds: {field}")]
    Policy {
        /// The node.
        node: String,
        /// Which field.
        field: &'static str,
    },
    /// An edge from or to a node that is not there.
    #[error("an edge names the node {0}, which is not there")]
    EdgeToNowhere(String),
    /// An edge that must not be: into the trigger, from a node to itself, twice the same, or with a wrong handle.
    #[error("the edge from {from} to {to} {problem}")]
    Edge {
        /// Its source.
        from: String,
        /// Its target.
        to: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Steps that wait for each other.
    #[error("node {0} is part of a circle")]
    Circle(String),
    /// A node that no run can reach.
    #[error("node {0} cannot be reached from the trigger")]
    Unreachable(String),
    /// A template of a node is broken.
    #[error("node {node}: {error}")]
    Template {
        /// The node.
        node: String,
        /// What is wrong.
        error: TemplateError,
    },
    /// A condition is broken.
    #[error("node {node}: {error}")]
    Condition {
        /// The node.
        node: String,
        /// What is wrong.
        error: ConditionError,
    },
    /// A template refers to a node that does not come before.
    #[error("node {node} refers to {to}, which does not come before it{hint}")]
    NotBefore {
        /// The node.
        node: String,
        /// The node it refers to.
        to: String,
        /// More, if there is more to say.
        hint: &'static str,
    },
    /// Two graphs with one name.
    #[error("two workflows are called {0}")]
    DuplicateGraph(String),
}

impl Graph {
    /// The longest file, in bytes.
    pub const MAX_BYTES: usize = 64 << 10;
    /// The most nodes.
    pub const MAX_NODES: usize = 64;
    /// The most edges.
    pub const MAX_EDGES: usize = 256;

    /// Reads and checks a graph whose actions are all among `known`.
    pub fn parse(json: &str, known: &[&str]) -> Result<Graph, GraphError> {
        let graph = file::read(json)?;
        rules::check(&graph, known)?;
        Ok(graph)
    }

    /// Reads a graph that was checked before it was stored.
    pub(crate) fn parse_stored(json: &str) -> Result<Graph, GraphError> {
        file::read(json)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of the actions it needs.
    pub fn actions(&self) -> impl Iterator<Item = &str> {
        self.nodes.values().filter_map(|node| match &node.kind {
            NodeKind::Action { name, .. } => Some(name.as_str()),
            _ => None,
        })
    }

    pub(crate) fn edges_into<'g>(&'g self, node: &'g str) -> impl Iterator<Item = &'g Edge> {
        self.edges.iter().filter(move |edge| edge.target == node)
    }
}

/// The workflows that a journal can start, by name.
#[derive(Clone, Debug, Default)]
pub struct Graphs {
    by_name: BTreeMap<String, Arc<Graph>>,
}

impl Graphs {
    /// The workflows of this repository.
    pub fn built_in() -> Result<Graphs, GraphError> {
        Graphs::new(BUILT_IN.iter().map(|(_, json)| Graph::parse(json, &ACTIONS)).collect::<Result<Vec<_>, _>>()?)
    }

    /// These workflows.
    pub fn new(graphs: impl IntoIterator<Item = Graph>) -> Result<Graphs, GraphError> {
        let mut by_name = BTreeMap::new();
        for graph in graphs {
            if let Some(twice) = by_name.insert(graph.name.clone(), Arc::new(graph)) {
                return Err(GraphError::DuplicateGraph(twice.name.clone()));
            }
        }
        Ok(Graphs { by_name })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Graph>> {
        self.by_name.get(name)
    }

    /// Every workflow, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = &Graph> {
        self.by_name.values().map(Arc::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workflow_of_the_repository_is_built_in_under_the_name_of_its_file() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../workflows");
        let mut files: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        files.retain(|name| name.ends_with(".json"));
        files.sort();
        let mut listed: Vec<&str> = BUILT_IN.iter().map(|(file, _)| *file).collect();
        listed.sort_unstable();
        assert_eq!(files, listed, "a graph in workflows/ is listed in BUILT_IN, and the other way round");
        let graphs = Graphs::built_in().unwrap();
        for (file, _) in BUILT_IN {
            assert!(graphs.get(file.trim_end_matches(".json")).is_some(), "{file} holds the workflow of its name");
        }
    }

    #[test]
    fn back_off_grows_to_its_ceiling() {
        let ms = Duration::from_millis;
        let policy = Policy { attempts: 9, first_delay: ms(100), factor: 3, ceiling: ms(1000), deadline: ms(60_000) };
        let delays: Vec<_> = (1..=5).map(|failure| policy.delay(failure)).collect();
        assert_eq!(delays, [ms(100), ms(300), ms(900), ms(1000), ms(1000)]);
        assert_eq!(policy.delay(u32::MAX), ms(1000), "no overflow");
    }
}
