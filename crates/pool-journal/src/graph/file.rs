//! The JSON form of a graph. Fields that only an editor needs are allowed and not looked at; unknown fields are
//! refused, for a misspelled `sourceHandle` would change what happens to money.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Edge, Graph, GraphError, Handle, Node, NodeKind, Policy};
use crate::{canonical::canonical, condition::Condition};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default, rename = "description")]
    _description: String,
    nodes: Vec<NodeInFile>,
    edges: Vec<EdgeInFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeInFile {
    id: String,
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(default, rename = "position")]
    _position: Value,
    data: Data,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Trigger,
    Action,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    #[serde(rename = "type")]
    kind: Kind,
    label: String,
    #[serde(default, rename = "description")]
    _description: String,
    #[serde(default, rename = "status")]
    _status: String,
    config: Map<String, Value>,
    #[serde(default)]
    policy: PolicyInFile,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct PolicyInFile {
    attempts: u32,
    first_delay_ms: u64,
    factor: u32,
    ceiling_ms: u64,
    deadline_ms: u64,
}

impl Default for PolicyInFile {
    fn default() -> Self {
        PolicyInFile { attempts: 5, first_delay_ms: 500, factor: 2, ceiling_ms: 60_000, deadline_ms: 3_600_000 }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EdgeInFile {
    #[serde(rename = "id")]
    _id: String,
    source: String,
    target: String,
    source_handle: Option<HandleInFile>,
    #[serde(default, rename = "type")]
    _type: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum HandleInFile {
    Failure,
    True,
    False,
}

const CONDITION: &str = "Condition";
const LONGEST_DEADLINE_MS: u64 = 31 * 24 * 3_600_000;

/// Reads the file and each node by itself; how nodes hang together is checked by [`super::rules`].
pub(super) fn read(json: &str) -> Result<Graph, GraphError> {
    if json.len() > Graph::MAX_BYTES {
        return Err(GraphError::TooLong(json.len()));
    }
    let File { name, nodes, edges, .. } = serde_json::from_str(json)?;
    check_name(&name)?;
    if nodes.len() > Graph::MAX_NODES || edges.len() > Graph::MAX_EDGES {
        return Err(GraphError::TooLarge { nodes: nodes.len(), edges: edges.len() });
    }
    let triggers: Vec<&str> =
        nodes.iter().filter(|node| node.kind == Kind::Trigger).map(|node| node.id.as_str()).collect();
    let &[trigger] = triggers.as_slice() else { return Err(GraphError::Triggers(triggers.len())) };
    let trigger = trigger.to_owned();
    let mut by_id = BTreeMap::new();
    for node in nodes {
        check_name(&node.id)?;
        let id = node.id.clone();
        if by_id.insert(id.clone(), read_node(node)?).is_some() {
            return Err(GraphError::DuplicateNode(id));
        }
    }
    let edges = edges.into_iter().map(|EdgeInFile { source, target, source_handle, .. }| {
        let handle = match source_handle {
            None => Handle::Success,
            Some(HandleInFile::Failure) => Handle::Failure,
            Some(HandleInFile::True) => Handle::Decision(true),
            Some(HandleInFile::False) => Handle::Decision(false),
        };
        Edge { source, target, handle }
    });
    let edges = edges.collect();
    let value: Value = serde_json::from_str(json)?;
    let text = canonical(&value).map_err(|_| GraphError::Node {
        node: trigger.clone(),
        problem: "or another one holds a fraction, or is nested too deep",
    })?;
    Ok(Graph { name, trigger, nodes: by_id, edges, text })
}

fn read_node(node: NodeInFile) -> Result<Node, GraphError> {
    let NodeInFile { id, kind, data: Data { kind: inner, label, mut config, policy, .. }, .. } = node;
    let wrong = |problem| GraphError::Node { node: id.clone(), problem };
    if kind != inner {
        return Err(wrong("has a type that differs from the type of its data"));
    }
    if label.is_empty() || label.chars().count() > 64 || label.chars().any(|letter| ".:{}".contains(letter)) {
        return Err(wrong("needs a label of 1 to 64 characters without . : { and }"));
    }
    let kind = match kind {
        Kind::Trigger if config.contains_key("actionType") => return Err(wrong("is a trigger and names an action")),
        Kind::Trigger => NodeKind::Trigger,
        Kind::Action => {
            let Some(Value::String(name)) = config.remove("actionType") else {
                return Err(wrong("names no action: config.actionType is missing"));
            };
            if name == CONDITION {
                let Some(Value::String(text)) = config.get("condition") else {
                    return Err(wrong("has no condition: config.condition is missing"));
                };
                let condition =
                    Condition::parse(text).map_err(|error| GraphError::Condition { node: id.clone(), error })?;
                NodeKind::Condition(condition)
            } else {
                NodeKind::Action { name, input: config }
            }
        }
    };
    Ok(Node { label, kind, policy: read_policy(&id, &policy)? })
}

fn read_policy(node: &str, policy: &PolicyInFile) -> Result<Policy, GraphError> {
    let bounds = [
        ("attempts must be 1 to 1000", (1..=1000).contains(&policy.attempts)),
        ("firstDelayMs must be at least 1", policy.first_delay_ms >= 1),
        ("factor must be 1 to 10", (1..=10).contains(&policy.factor)),
        ("ceilingMs must be at least firstDelayMs", policy.ceiling_ms >= policy.first_delay_ms),
        ("ceilingMs must not be longer than deadlineMs", policy.ceiling_ms <= policy.deadline_ms),
        ("deadlineMs must be at most 31 days", policy.deadline_ms <= LONGEST_DEADLINE_MS),
    ];
    if let Some((field, _)) = bounds.into_iter().find(|(_, kept)| !kept) {
        return Err(GraphError::Policy { node: node.to_owned(), field });
    }
    Ok(Policy {
        attempts: policy.attempts,
        first_delay: Duration::from_millis(policy.first_delay_ms),
        factor: policy.factor,
        ceiling: Duration::from_millis(policy.ceiling_ms),
        deadline: Duration::from_millis(policy.deadline_ms),
    })
}

fn check_name(name: &str) -> Result<(), GraphError> {
    let good = (1..=64).contains(&name.len())
        && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-');
    if good { Ok(()) } else { Err(GraphError::Name(name.chars().take(80).collect())) }
}
