//! How the nodes of a graph must hang together.

use std::collections::{BTreeMap, BTreeSet};

use super::{Graph, GraphError, Handle, NodeKind};
use crate::template::{Reference, references};

/// Checks that every action is known, every edge leads somewhere, nothing goes round in circles, every node can be
/// reached, and every template refers to a node that comes before.
pub(super) fn check(graph: &Graph, known: &[&str]) -> Result<(), GraphError> {
    for (node, definition) in &graph.nodes {
        if let NodeKind::Action { name, .. } = &definition.kind
            && !known.contains(&name.as_str())
        {
            return Err(GraphError::UnknownAction { node: node.clone(), action: name.clone() });
        }
    }
    check_edges(graph)?;
    let before = ancestors(graph)?;
    for (node, ancestors) in &before {
        if *node != graph.trigger && !ancestors.contains(graph.trigger.as_str()) {
            return Err(GraphError::Unreachable((*node).to_owned()));
        }
    }
    check_references(graph, &before)
}

fn check_edges(graph: &Graph) -> Result<(), GraphError> {
    let mut seen = BTreeSet::new();
    for edge in &graph.edges {
        for end in [&edge.source, &edge.target] {
            if !graph.nodes.contains_key(end) {
                return Err(GraphError::EdgeToNowhere(end.clone()));
            }
        }
        let from_condition = matches!(graph.nodes[&edge.source].kind, NodeKind::Condition(_));
        let from_trigger = edge.source == graph.trigger;
        let problem = match edge.handle {
            _ if edge.source == edge.target => Some("leads back to where it starts"),
            _ if edge.target == graph.trigger => Some("leads into the trigger"),
            _ if !seen.insert(edge) => Some("is there twice"),
            Handle::Decision(_) if !from_condition => Some("has a handle that only a Condition has"),
            Handle::Success if from_condition => Some("leaves a Condition and needs the handle true, false or failure"),
            Handle::Failure if from_trigger => Some("follows a failure of the trigger, which cannot fail"),
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(GraphError::Edge { from: edge.source.clone(), to: edge.target.clone(), problem });
        }
    }
    Ok(())
}

/// For each node the nodes that come before it on some way. Nodes are taken in an order in which all sources of a
/// node come first; if no such order exists, there is a circle.
fn ancestors(graph: &Graph) -> Result<BTreeMap<&str, BTreeSet<&str>>, GraphError> {
    let mut before: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    while before.len() < graph.nodes.len() {
        let next = graph.nodes.keys().find(|node| {
            !before.contains_key(node.as_str())
                && graph.edges_into(node).all(|edge| before.contains_key(edge.source.as_str()))
        });
        let Some(next) = next else {
            let left = graph.nodes.keys().find(|node| !before.contains_key(node.as_str()));
            return Err(GraphError::Circle(left.cloned().unwrap_or_default()));
        };
        let mut ancestors = BTreeSet::new();
        for edge in graph.edges_into(next) {
            ancestors.insert(edge.source.as_str());
            ancestors.extend(before[edge.source.as_str()].iter().copied());
        }
        before.insert(next, ancestors);
    }
    Ok(before)
}

fn check_references(graph: &Graph, before: &BTreeMap<&str, BTreeSet<&str>>) -> Result<(), GraphError> {
    for (node, definition) in &graph.nodes {
        let found: Vec<Reference> = match &definition.kind {
            NodeKind::Trigger => continue,
            NodeKind::Condition(condition) => condition.references().cloned().collect(),
            NodeKind::Action { input, .. } => input
                .values()
                .map(references)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| GraphError::Template { node: node.clone(), error })?
                .concat(),
        };
        for reference in found {
            let not_before = |hint| GraphError::NotBefore { node: node.clone(), to: reference.node.clone(), hint };
            if !before[node.as_str()].contains(reference.node.as_str()) {
                return Err(not_before(""));
            }
            if reference.label.as_ref().is_some_and(|label| *label != graph.nodes[&reference.node].label) {
                return Err(not_before(" under the label that the template gives"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Graph, GraphError};

    const KNOWN: [&str; 2] = ["session/open", "session/close"];

    fn action(id: &str, name: &str) -> Value {
        json!({"id": id, "type": "action", "data": {"type": "action", "label": id, "config": {"actionType": name}}})
    }

    fn trigger() -> Value {
        json!({"id": "trigger", "type": "trigger", "data": {"type": "trigger", "label": "Start", "config": {}}})
    }

    fn edge(source: &str, target: &str) -> Value {
        json!({"id": format!("{source}-{target}"), "source": source, "target": target})
    }

    fn good() -> Value {
        json!({
            "name": "good",
            "nodes": [trigger(), action("open", "session/open"), action("close", "session/close")],
            "edges": [edge("trigger", "open"), edge("open", "close")],
        })
    }

    fn refusal(change: impl FnOnce(&mut Value)) -> String {
        let mut graph = good();
        change(&mut graph);
        Graph::parse(&graph.to_string(), &KNOWN).expect_err("this graph is refused").to_string()
    }

    fn push(list: &str, value: Value) -> impl FnOnce(&mut Value) {
        let list = list.to_owned();
        move |graph| graph[list].as_array_mut().unwrap().push(value)
    }

    #[test]
    fn a_sound_graph_is_taken() {
        let graph = Graph::parse(&good().to_string(), &KNOWN).unwrap();
        assert_eq!(graph.actions().collect::<Vec<_>>(), ["session/close", "session/open"]);
    }

    #[test]
    fn a_graph_that_could_not_run_to_its_end_is_refused_with_the_reason() {
        let condition = |text: &str| {
            let config = json!({"actionType": "Condition", "condition": text});
            json!({"id": "late", "type": "action", "data": {"type": "action", "label": "Late", "config": config}})
        };
        let with_handle =
            |handle: &str| json!({"id": "e", "source": "open", "target": "close", "sourceHandle": handle});
        for (refused, says) in [
            (refusal(push("edges", edge("close", "open"))), "part of a circle"),
            (refusal(push("edges", edge("open", "open"))), "leads back to where it starts"),
            (refusal(push("edges", edge("close", "trigger"))), "leads into the trigger"),
            (refusal(push("edges", edge("open", "nobody"))), "nobody, which is not there"),
            (refusal(push("edges", edge("open", "close"))), "is there twice"),
            (refusal(push("edges", with_handle("true"))), "only a Condition has"),
            (refusal(push("edges", with_handle("maybe"))), "unknown variant"),
            (
                refusal(push(
                    "edges",
                    json!({"id": "e", "source": "open", "target": "close", "sourcehandle": "failure"}),
                )),
                "unknown field",
            ),
            (refusal(push("nodes", action("alone", "session/open"))), "alone cannot be reached"),
            (refusal(push("nodes", action("open", "session/open"))), "two nodes are called open"),
            (refusal(push("nodes", action("Open!", "session/open"))), "is no name"),
            (refusal(push("nodes", action("pay", "session/pay"))), "\"session/pay\", which is not known"),
            (
                refusal(push(
                    "nodes",
                    json!({"id": "second", "type": "trigger", "data": {"type": "trigger", "label": "x", "config": {}}}),
                )),
                "2 triggers",
            ),
            (
                refusal(|graph| {
                    graph["nodes"].as_array_mut().unwrap().remove(0);
                }),
                "0 triggers",
            ),
            (
                refusal(|graph| graph["nodes"][1]["data"]["config"]["amount"] = json!("{{close.amount}}")),
                "does not come before",
            ),
            (
                refusal(|graph| graph["nodes"][2]["data"]["config"]["amount"] = json!("{{open.amount")),
                "not of the form",
            ),
            (refusal(|graph| graph["nodes"][2]["data"]["config"]["amount"] = json!("{{@open:Other.amount}}")), "label"),
            (refusal(|graph| graph["nodes"][1]["data"]["policy"] = json!({"attempts": 0})), "attempts must be"),
            (
                refusal(|graph| graph["nodes"][1]["data"]["policy"] = json!({"deadlineMs": 10})),
                "ceilingMs must not be longer",
            ),
            (refusal(|graph| graph["nodes"][1]["data"]["policy"] = json!({"retries": 3})), "unknown field"),
            (refusal(|graph| graph["name"] = json!("")), "is no name"),
            (refusal(|graph| graph["nodes"][1]["data"]["type"] = json!("trigger")), "type that differs"),
            (
                refusal(|graph| {
                    graph["nodes"].as_array_mut().unwrap().push(condition("{{open.late}} === true"));
                    graph["edges"].as_array_mut().unwrap().extend([edge("open", "late"), edge("late", "close")]);
                }),
                "needs the handle true, false or failure",
            ),
            (refusal(push("nodes", condition("{{open.late}} = true"))), "is not of the form"),
            (
                refusal(|graph| {
                    let nodes = graph["nodes"].as_array_mut().unwrap();
                    nodes.extend((0..100).map(|n| action(&format!("n{n}"), "session/open")));
                }),
                "at most 64",
            ),
            (refusal(|graph| graph["description"] = json!("x".repeat(70_000))), "bytes long"),
        ] {
            assert!(refused.contains(says), "{refused:?} should say {says:?}");
        }
        assert!(matches!(Graph::parse("[]", &KNOWN), Err(GraphError::Json(_))));
    }
}
