//! What comes next in a run: a pure function of the graph and of how its nodes ended.
//!
//! - A node waits until every source of its edges has ended.
//! - It is *ready* if one of its sources leads to it, and none is in its way.
//! - A source is *in its way* if it failed (or was blocked itself) and has no edge to the node that is followed on
//!   failure. So a node after two branches needs both, unless a condition had switched one off.
//! - It is *blocked* if a source is in its way, and *skipped* if none leads to it.
//! - The run has ended when every node has. It completed if no node failed; otherwise it failed, and what its failure
//!   edges led to was its clean-up.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::{Graph, Handle};

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Well. A condition decided something.
    Succeeded(Option<bool>),
    /// Not well.
    Failed,
    /// No source led to it.
    Skipped,
    /// A source before it failed.
    Blocked,
}

/// What follows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Nodes that can begin.
    pub(crate) ready: Vec<String>,
    /// Nodes that ended by what came before them: skipped or blocked.
    pub(crate) passed_over: BTreeMap<String, Blocked>,
    /// How the run ended, if it did.
    pub(crate) finished: Option<Finish>,
}

/// Why a node was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// A source failed.
    ByFailure,
    /// No source led to it.
    ByDecision,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    Completed,
    Failed,
}

/// How a source bears on a node: of several edges between the two, the best counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Bearing {
    InTheWay,
    LeadsElsewhere,
    LeadsHere,
}

fn bearing(handle: Handle, source: Ending) -> Bearing {
    match (handle, source) {
        (Handle::Success, Ending::Succeeded(_)) | (Handle::Failure, Ending::Failed) => Bearing::LeadsHere,
        (Handle::Decision(on), Ending::Succeeded(Some(decided))) if on == decided => Bearing::LeadsHere,
        (Handle::Success | Handle::Decision(_), Ending::Failed | Ending::Blocked) => Bearing::InTheWay,
        _ => Bearing::LeadsElsewhere,
    }
}

/// What follows, given the nodes that have ended and those that are under way.
pub(crate) fn progress(graph: &Graph, ended: &BTreeMap<String, Ending>, under_way: &BTreeSet<String>) -> Progress {
    let mut ended = ended.clone();
    ended.insert(graph.trigger.clone(), Ending::Succeeded(None));
    let mut progress = Progress::default();
    loop {
        let before = ended.len();
        for node in graph.nodes.keys() {
            if ended.contains_key(node) || under_way.contains(node) || progress.ready.contains(node) {
                continue;
            }
            let Some(bearings) = bearings(graph, &ended, node) else { continue };
            if bearings.contains(&Bearing::InTheWay) {
                ended.insert(node.clone(), Ending::Blocked);
                progress.passed_over.insert(node.clone(), Blocked::ByFailure);
            } else if bearings.contains(&Bearing::LeadsHere) {
                progress.ready.push(node.clone());
            } else {
                ended.insert(node.clone(), Ending::Skipped);
                progress.passed_over.insert(node.clone(), Blocked::ByDecision);
            }
        }
        if ended.len() == before {
            break;
        }
    }
    if ended.len() == graph.nodes.len() {
        let failed = ended.values().any(|ending| *ending == Ending::Failed);
        progress.finished = Some(if failed { Finish::Failed } else { Finish::Completed });
    }
    progress
}

/// How each source of a node bears on it, or `None` while one of them has not ended.
fn bearings(graph: &Graph, ended: &BTreeMap<String, Ending>, node: &str) -> Option<Vec<Bearing>> {
    let mut by_source: BTreeMap<&str, Bearing> = BTreeMap::new();
    for edge in graph.edges_into(node) {
        let this = bearing(edge.handle, *ended.get(&edge.source)?);
        let best = by_source.entry(&edge.source).or_insert(this);
        *best = this.max(*best);
    }
    Some(by_source.into_values().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// A graph of plain actions (and conditions, whose names begin with `if`) from edges such as `a -failure> b`.
    fn graph(edges: &[(&str, &str, &str)]) -> Graph {
        let names: BTreeSet<&str> = edges.iter().flat_map(|(from, _, to)| [*from, *to]).collect();
        let nodes: Vec<Value> = names
            .into_iter()
            .map(|name| {
                let (kind, config) = match name {
                    "trigger" => ("trigger", json!({})),
                    name if name.starts_with("if") => {
                        ("action", json!({"actionType": "Condition", "condition": "{{trigger.x}} === true"}))
                    }
                    _ => ("action", json!({"actionType": "do/it"})),
                };
                json!({"id": name, "type": kind, "data": {"type": kind, "label": name, "config": config}})
            })
            .collect();
        let edges: Vec<Value> = edges
            .iter()
            .map(|(from, handle, to)| match *handle {
                "" => json!({"id": "e", "source": from, "target": to}),
                handle => json!({"id": "e", "source": from, "target": to, "sourceHandle": handle}),
            })
            .collect();
        let file = json!({"name": "test", "nodes": nodes, "edges": edges});
        Graph::parse(&file.to_string(), &["do/it"]).unwrap()
    }

    /// Runs a graph to its end with the endings given (success where none is), and says what ran and how it ended.
    fn played(graph: &Graph, endings: &[(&str, Ending)]) -> (Vec<String>, Finish) {
        let mut ended = BTreeMap::new();
        let mut ran = Vec::new();
        loop {
            let next = progress(graph, &ended, &BTreeSet::new());
            if let Some(finish) = next.finished {
                return (ran, finish);
            }
            assert!(!next.ready.is_empty(), "a run that has not ended can go on");
            for (node, why) in next.passed_over {
                ended.insert(node, if why == Blocked::ByFailure { Ending::Blocked } else { Ending::Skipped });
            }
            for node in next.ready {
                let ending = endings.iter().find(|(name, _)| *name == node).map(|(_, ending)| *ending);
                ended.insert(node.clone(), ending.unwrap_or(Ending::Succeeded(None)));
                ran.push(node);
            }
        }
    }

    #[test]
    fn a_failure_takes_its_own_way_and_the_run_ends_as_failed() {
        let graph = graph(&[("trigger", "", "open"), ("open", "", "serve"), ("open", "failure", "refund")]);
        assert_eq!(played(&graph, &[]), (vec!["open".to_owned(), "serve".to_owned()], Finish::Completed));
        assert_eq!(
            played(&graph, &[("open", Ending::Failed)]),
            (vec!["open".to_owned(), "refund".to_owned()], Finish::Failed)
        );
    }

    #[test]
    fn a_condition_switches_one_way_off_and_the_ways_meet_again() {
        let graph = graph(&[
            ("trigger", "", "close"),
            ("close", "", "if-late"),
            ("if-late", "true", "refund"),
            ("if-late", "false", "receipt"),
            ("refund", "", "receipt"),
        ]);
        let decided = |on| [("if-late", Ending::Succeeded(Some(on)))];
        assert_eq!(played(&graph, &decided(true)).0, ["close", "if-late", "refund", "receipt"]);
        assert_eq!(played(&graph, &decided(false)).0, ["close", "if-late", "receipt"]);
        let refund_failed = [("if-late", Ending::Succeeded(Some(true))), ("refund", Ending::Failed)];
        assert_eq!(
            played(&graph, &refund_failed),
            (vec!["close".to_owned(), "if-late".to_owned(), "refund".to_owned()], Finish::Failed),
            "no receipt is written for a refund that did not happen"
        );
    }

    #[test]
    fn a_node_after_two_branches_needs_both() {
        let graph =
            graph(&[("trigger", "", "a"), ("trigger", "", "b"), ("b", "", "c"), ("a", "", "join"), ("c", "", "join")]);
        assert_eq!(played(&graph, &[]).0, ["a", "b", "c", "join"]);
        assert_eq!(played(&graph, &[("b", Ending::Failed)]), (vec!["a".to_owned(), "b".to_owned()], Finish::Failed));
    }

    #[test]
    fn an_edge_for_either_ending_makes_a_node_that_always_runs() {
        let graph = graph(&[("trigger", "", "drain"), ("drain", "", "dissolve"), ("drain", "failure", "dissolve")]);
        assert_eq!(played(&graph, &[]).1, Finish::Completed);
        assert_eq!(played(&graph, &[("drain", Ending::Failed)]).0, ["drain", "dissolve"]);
    }

    proptest! {
        /// Whatever the graph and however its nodes end: the run ends, and no node runs twice or before its sources.
        #[test]
        fn every_run_ends_and_keeps_the_order(
            edges in prop::collection::btree_set((0usize..9, 1usize..10, 0u8..2), 1..30),
            failing in prop::collection::btree_set(1usize..10, 0..4),
        ) {
            let name = |n: usize| if n == 0 { "trigger".to_owned() } else { format!("n{n}") };
            let mut list: Vec<(String, &str, String)> = Vec::new();
            for (from, to, kind) in &edges {
                if from < to {
                    list.push((name(*from), if *kind == 1 && *from > 0 { "failure" } else { "" }, name(*to)));
                }
            }
            for n in 1..10 {
                list.push((name(0), "", name(n)));
            }
            list.sort();
            list.dedup();
            let borrowed: Vec<(&str, &str, &str)> = list.iter().map(|(a, h, b)| (a.as_str(), *h, b.as_str())).collect();
            let graph = graph(&borrowed);
            let failing: Vec<String> = failing.into_iter().map(name).collect();
            let endings: Vec<(&str, Ending)> = failing.iter().map(|n| (n.as_str(), Ending::Failed)).collect();
            let (ran, finish) = played(&graph, &endings);
            let once: BTreeSet<&String> = ran.iter().collect();
            prop_assert_eq!(once.len(), ran.len(), "no node runs twice");
            for (place, node) in ran.iter().enumerate() {
                for edge in graph.edges_into(node) {
                    prop_assert!(!ran[place..].contains(&edge.source), "{} runs before its source", node);
                }
            }
            let failed = ran.iter().any(|node| failing.contains(node));
            prop_assert_eq!(finish == Finish::Failed, failed);
        }
    }
}
