//! Stories of nodes that come, serve, fail and return. No socket, no clock.

use pool_coalition::{
    RosterMember,
    stand_down::{Manner, StandDown},
};
use pool_types::{CoalitionId, Holdings, ModelId, ReasonCode};
use pool_wire::control::{Capabilities, LinkReport, ShardFootprint, ShardStats};

use super::*;

const MS: Duration = Duration::from_millis(1);

fn address(byte: u8) -> Address {
    Address::repeat_byte(byte)
}

fn gateway() -> Address {
    address(0xaa)
}

fn roster(nodes: u8) -> Roster {
    let node = |n| RosterMember { address: address(n), name: format!("node {n}"), role: RosterRole::Node };
    let gateway = RosterMember { address: gateway(), name: "gateway".to_owned(), role: RosterRole::Gateway };
    Roster::new(gateway.address, std::iter::once(gateway).chain((1..=nodes).map(node)).collect(), 0).unwrap()
}

/// A registry with a clock that the test turns.
struct Story {
    registry: Registry,
    now: Instant,
    connections: u64,
    formed: Vec<Assignment>,
    ended: Vec<(Epoch, Failure)>,
}

impl Story {
    fn new(nodes: u8, shards: Option<u32>) -> Self {
        let now = Instant::now();
        let serving = Serving::for_tests(12, shards);
        let registry = Registry::new(roster(nodes), serving, Timing::default(), Epoch(1), now);
        Self { registry, now, connections: 0, formed: Vec::new(), ended: Vec::new() }
    }

    fn give(&mut self, input: Input) -> Vec<Output> {
        let out = self.registry.handle(self.now, input);
        for output in &out {
            match output {
                Output::Record(Record::Formed(assignment)) => self.formed.push((**assignment).clone()),
                Output::Record(Record::Ended(epoch, failure)) => self.ended.push((*epoch, failure.clone())),
                _ => {}
            }
        }
        out
    }

    fn pass(&mut self, time: Duration) -> Vec<Output> {
        self.now += time;
        self.give(Input::Tick)
    }

    fn arrive(&mut self, node: u8) -> ConnectionId {
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        self.give(Input::Registered { connection, registration: registration(node) });
        connection
    }

    /// It says that it has the whole model on its disk.
    fn arrive_with_all(&mut self, node: u8) -> ConnectionId {
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        let registration = Box::new(Registration { holds: Some(Holdings::of_all(12)), ..*registration(node) });
        self.give(Input::Registered { connection, registration });
        connection
    }

    fn say(&mut self, connection: ConnectionId, message: ToOrchestrator) -> Vec<Output> {
        self.give(Input::Said { connection, message })
    }

    fn stage(&self) -> Stage {
        self.registry.coalition().map_or(Stage::Waiting, |coalition| coalition.stage)
    }

    fn epoch(&self) -> Epoch {
        self.registry.coalition().expect("a coalition is forming").assignment.epoch
    }

    /// From an assignment to an active coalition.
    fn serve(&mut self, connections: &[ConnectionId]) {
        let epoch = self.epoch();
        for connection in connections {
            self.say(*connection, ToOrchestrator::Loaded { epoch, footprint: ShardFootprint::default() });
        }
        assert_eq!(self.stage(), Stage::Linking, "all have loaded");
        for connection in connections {
            self.say(*connection, ToOrchestrator::Joined { epoch });
        }
        assert_eq!(self.stage(), Stage::Linking, "the gateway's links count too");
        self.give(Input::GatewayJoined(epoch));
        assert_eq!(self.stage(), Stage::Active);
    }
}

fn registration(node: u8) -> Box<Registration> {
    Box::new(Registration {
        version: 1,
        address: address(node),
        name: format!("node {node}"),
        signature: String::new(),
        capabilities: Capabilities {
            device: "cpu".to_owned(),
            memory_bytes: 1 << 30,
            bandwidth_bytes_per_second: 10_000_000_000,
            threads: 1,
            uplink_bytes_per_second: None,
        },
        models: vec![ModelId::default()],
        holds: None,
    })
}

fn signal(epoch: Epoch, from: Address, to: Address) -> Signal {
    Signal { epoch, from, to, description: "signed elsewhere".into() }
}

fn refusals(out: &[Output]) -> Vec<ReasonCode> {
    out.iter()
        .filter_map(|output| match output {
            Output::Send { message: ToNode::Refused { failure }, .. } => Some(failure.code),
            _ => None,
        })
        .collect()
}

fn leaves(story: &mut Story, connection: ConnectionId, node: u8, manner: Manner) -> Vec<Output> {
    let stand_down = StandDown {
        operator: address(node),
        coalition: CoalitionId::default(),
        chain: 0,
        epoch: Epoch(1),
        manner,
        at: 0,
    };
    let word = Box::new(SignedStandDown { stand_down, signature: Default::default() });
    story.give(Input::StandsDown { connection, word })
}

#[test]
fn a_member_that_yields_ends_its_coalition_and_the_others_go_on_without_it() {
    let mut story = Story::new(3, Some(2));
    let nodes: Vec<ConnectionId> = (1..=3).map(|node| story.arrive(node)).collect();
    story.serve(&nodes[..2]);
    let out = leaves(&mut story, nodes[0], 1, Manner::Yield);
    assert!(matches!(&out[0], Output::Record(Record::StoodDown(_))), "its word is kept first: {out:?}");
    let ended = |output: &Output| matches!(output, Output::LeaveGateway(_, why) if why.code == ReasonCode::StandDown);
    assert!(out.iter().any(ended), "clients are told at once");
    assert!(story.ended[0].1.message.contains("node 1 gave its computer back"), "{:?}", story.ended);
    assert_eq!(story.registry.failures(), 0, "nobody failed");
    // It is still connected, but gets no layers again.
    story.pass(Timing::default().settle);
    let members: Vec<Address> = story.formed[1].members.iter().map(|member| member.address).collect();
    assert_eq!(members, [address(2), address(3)]);
    story.give(Input::Disconnected { connection: nodes[0] });
    story.serve(&nodes[1..]);
}

#[test]
fn who_stays_keeps_its_layers_and_whoever_takes_the_free_place_loads_those_that_are_missing() {
    let mut story = Story::new(3, Some(2));
    let nodes: Vec<ConnectionId> = (1..=3).map(|node| story.arrive_with_all(node)).collect();
    let before = story.formed[0].members.clone();
    assert_eq!([before[0].address, before[1].address], [address(1), address(2)], "who offers the same comes in order");
    story.serve(&nodes[..2]);
    leaves(&mut story, nodes[0], 1, Manner::Yield);
    story.pass(Timing::default().settle);
    let after = &story.formed[1].members;
    assert_eq!((after[0].address, after[0].layers), (address(3), before[0].layers));
    assert_eq!(after[1], before[1], "its shard goes on with what it has in memory");
    // The other one leaves as well, and the first is back: again only the free place changes.
    story.serve(&[nodes[2], nodes[1]]);
    let back = story.arrive_with_all(1);
    leaves(&mut story, nodes[1], 2, Manner::Yield);
    story.pass(Timing::default().settle);
    let last = story.formed[2].members.clone();
    assert_eq!((last[0].address, last[1].address), (address(3), address(1)));
    assert_eq!(last[0].layers, before[0].layers);
    story.serve(&[nodes[2], back]);
}

#[test]
fn a_member_that_drains_leaves_after_the_last_request_or_when_its_time_is_over() {
    for ends_by_itself in [true, false] {
        let mut story = Story::new(2, Some(1));
        let nodes = [story.arrive(1), story.arrive(2)];
        let member = story.formed[0].members[0].address;
        let (leaver, number) = if member == address(1) { (nodes[0], 1) } else { (nodes[1], 2) };
        story.serve(&[leaver]);
        let epoch = story.epoch();
        let out = leaves(&mut story, leaver, number, Manner::Drain);
        assert!(out.iter().any(|output| matches!(output, Output::DrainGateway(drained) if *drained == epoch)));
        assert_eq!(story.stage(), Stage::Active, "what runs goes on");
        let again = leaves(&mut story, leaver, number, Manner::Drain);
        assert!(again.is_empty(), "said once, kept once: {again:?}");
        if ends_by_itself {
            story.give(Input::GatewayDrained(Epoch(epoch.0 + 1)));
            assert!(story.ended.is_empty(), "another epoch's news");
            story.give(Input::GatewayDrained(epoch));
        } else {
            story.pass(Timing::default().drain - MS);
            assert!(story.ended.is_empty(), "it has its time");
            story.pass(MS);
        }
        assert!(story.ended[0].1.message.contains("after its last request"), "{:?}", story.ended);
        story.pass(Timing::default().settle);
        assert_ne!(story.formed[1].members[0].address, member, "the other one serves now");
    }
}

#[test]
fn layers_that_come_from_far_have_time_while_more_of_them_comes() {
    let mut story = Story::new(1, None);
    let node = story.arrive(1);
    let epoch = story.epoch();
    let load = Timing::default().load;
    for minute in 1..=30 {
        story.pass(load / 2);
        story.say(node, ToOrchestrator::Fetching { epoch, done: minute, size: 100 });
    }
    assert!(story.ended.is_empty(), "five hours, and it still grows");
    story.pass(load / 2);
    story.say(node, ToOrchestrator::Fetching { epoch, done: 30, size: 100 });
    story.pass(load / 2);
    assert_eq!(story.ended[0].1.code, ReasonCode::Timeout, "words without bytes give no time: {:?}", story.ended);

    // Nor do bytes that drip for ever.
    story.pass(60_000 * MS);
    let (epoch, began) = (story.epoch(), story.now);
    let mut drops = 0;
    while story.ended.len() < 2 {
        drops += 1;
        story.say(node, ToOrchestrator::Fetching { epoch, done: drops, size: 1_000_000 });
        story.pass(load / 2);
        assert!(drops < 1_000, "a day is enough");
    }
    let lasted = story.now.duration_since(began);
    assert!(lasted >= Duration::from_secs(24 * 3600), "a slow link has its day: {lasted:?}");
}

#[test]
fn who_only_says_that_it_leaves_has_failed_and_is_waited_for_like_any_other() {
    let mut story = Story::new(1, None);
    let node = story.arrive(1);
    let epoch = story.epoch();
    let failure = Failure::new(ReasonCode::StandDown, "not signed");
    story.say(node, ToOrchestrator::Failed { epoch, failure });
    assert_eq!((story.registry.failures(), story.formed.len()), (1, 1), "the next attempt has its pause");
}

#[test]
fn the_last_node_that_leaves_leaves_nobody_to_form_with_until_it_comes_again() {
    let mut story = Story::new(1, None);
    let node = story.arrive(1);
    leaves(&mut story, node, 1, Manner::Drain);
    assert!(story.ended[0].1.message.contains("before the coalition served"), "{:?}", story.ended);
    story.pass(60_000 * MS);
    assert_eq!((story.stage(), story.formed.len()), (Stage::Waiting, 1));
    assert_eq!(story.registry.wake_at(), None, "nothing to wake for");
    let node = story.arrive(1);
    story.serve(&[node]);
}

#[test]
fn two_nodes_become_a_coalition_as_soon_as_both_are_here() {
    let mut story = Story::new(2, Some(2));
    let first = story.arrive(1);
    assert_eq!(story.stage(), Stage::Waiting, "one of two");
    let second = story.arrive(2);
    assert_eq!(story.stage(), Stage::Loading, "nothing to wait for when everybody is here");
    let members = &story.formed[0].members;
    assert_eq!(members.len(), 2);
    assert_eq!((members[0].layers.start(), members[1].layers.end()), (0, 12));
    assert_eq!(members[0].layers.end(), members[1].layers.start());
    assert_eq!(members[0].layers.len(), 6, "equal nodes hold equal parts");
    assert_eq!(members[0].address, address(1), "and take their places in the roster's order");
    story.serve(&[first, second]);
    assert_eq!(story.registry.reason(), None);
}

#[test]
fn an_incomplete_roster_serves_after_a_while_if_what_is_here_suffices() {
    let mut story = Story::new(3, None);
    story.arrive(1);
    story.pass(Duration::from_millis(1400));
    story.arrive(2);
    story.pass(Duration::from_millis(1400));
    assert_eq!(story.stage(), Stage::Waiting, "each arrival starts the wait anew");
    assert!(story.registry.wake_at().is_some_and(|at| at <= story.now + 200 * MS));
    story.pass(200 * MS);
    assert_eq!(story.stage(), Stage::Loading);
}

#[test]
fn too_few_nodes_wait_with_a_reason_and_without_spinning() {
    let mut story = Story::new(3, Some(3));
    story.arrive(1);
    story.arrive(2);
    story.pass(Duration::from_secs(2));
    assert_eq!(story.stage(), Stage::Waiting);
    assert_eq!(story.registry.wake_at(), None, "only another node can change this");
    let reason = story.registry.reason().unwrap();
    assert!(reason.contains("2 of 3 nodes"), "{reason}");
    story.arrive(3);
    assert_eq!(story.stage(), Stage::Loading, "the third node was all that was missing");
}

#[test]
fn a_shard_that_dies_ends_requests_first_and_the_next_epoch_follows_at_once() {
    let mut story = Story::new(2, Some(2));
    let connections = [story.arrive(1), story.arrive(2)];
    story.serve(&connections);
    let epoch = story.epoch();
    let failure = Failure::new(ReasonCode::PeerLost, "the shard process ended unexpectedly (signal: 9 (SIGKILL))");
    let out = story.say(connections[1], ToOrchestrator::Failed { epoch, failure });
    assert!(matches!(&out[0], Output::LeaveGateway(left, _) if *left == epoch), "clients hear first: {out:?}");
    let dissolved = out.iter().filter(|o| matches!(o, Output::Send { message: ToNode::Dissolve { .. }, .. })).count();
    assert_eq!(dissolved, 2, "both members let go");
    assert!(story.ended[0].1.message.starts_with("node 2: the shard process ended"), "{:?}", story.ended);
    assert_eq!(story.stage(), Stage::Waiting);
    story.pass(200 * MS);
    assert_eq!(story.stage(), Stage::Loading);
    assert!(story.epoch() > epoch);
    story.serve(&connections);
}

#[test]
fn a_coalition_that_keeps_failing_is_tried_ever_less_often() {
    let mut story = Story::new(1, None);
    let connection = story.arrive(1);
    let mut waits = Vec::new();
    for _ in 0..8 {
        let epoch = story.epoch();
        let failure = Failure::new(ReasonCode::Model, "no such file");
        story.say(connection, ToOrchestrator::Failed { epoch, failure });
        let wait = story.registry.wake_at().unwrap() - story.now;
        waits.push(wait.as_millis());
        story.pass(wait);
    }
    assert_eq!(waits, [200, 200, 500, 1000, 3000, 10_000, 10_000, 10_000]);
    story.serve(&[connection]);
    story.pass(Duration::from_secs(60));
    let epoch = story.epoch();
    story.say(connection, ToOrchestrator::Failed { epoch, failure: Failure::new(ReasonCode::Engine, "broke") });
    let wait = story.registry.wake_at().unwrap() - story.now;
    assert_eq!(wait.as_millis(), 200, "a minute of service wipes the slate clean");
}

#[test]
fn a_lost_connection_ends_the_coalition_and_its_return_heals_it() {
    let mut story = Story::new(2, Some(2));
    let connections = [story.arrive(1), story.arrive(2)];
    story.serve(&connections);
    let out = story.give(Input::Disconnected { connection: connections[0] });
    assert!(matches!(&out[0], Output::LeaveGateway(..)), "{out:?}");
    assert!(story.ended[0].1.message.contains("node 1"), "{:?}", story.ended);
    story.pass(Duration::from_secs(5));
    assert_eq!(story.stage(), Stage::Waiting, "one node cannot be two shards");
    let back = story.arrive(1);
    assert_eq!(story.stage(), Stage::Loading);
    story.serve(&[back, connections[1]]);
}

#[test]
fn a_newer_connection_of_the_same_node_replaces_the_older() {
    let mut story = Story::new(1, None);
    let old = story.arrive(1);
    story.serve(&[old]);
    story.connections += 1;
    let new = ConnectionId(story.connections);
    let out = story.give(Input::Registered { connection: new, registration: registration(1) });
    assert_eq!(refusals(&out), [ReasonCode::StandDown]);
    assert!(out.iter().any(|o| matches!(o, Output::Close { connection } if *connection == old)));
    assert!(out.iter().any(|o| matches!(o, Output::LeaveGateway(..))), "the old shard's links are void");
    story.give(Input::Disconnected { connection: old });
    story.pass(200 * MS);
    story.serve(&[new]);
}

#[test]
fn strangers_and_nodes_with_other_files_are_turned_away() {
    let mut story = Story::new(2, None);
    let register = |node, models| {
        let registration = Box::new(Registration { models, ..*registration(node) });
        Input::Registered { connection: ConnectionId(99), registration }
    };
    assert_eq!(refusals(&story.give(register(7, vec![ModelId::default()]))), [ReasonCode::Unauthorised]);
    let other = ModelId([3; 32].into());
    assert_eq!(refusals(&story.give(register(1, vec![other]))), [ReasonCode::Model]);
    assert!(story.registry.nodes().is_empty());
}

#[test]
fn descriptions_travel_only_along_planned_links() {
    let mut story = Story::new(3, Some(3));
    let connections = [story.arrive(1), story.arrive(2), story.arrive(3)];
    let epoch = story.epoch();
    let order: Vec<Address> = story.formed[0].members.iter().map(|member| member.address).collect();
    let connection_of = |address: Address| connections[usize::from(address.as_slice()[0]) - 1];
    let (entry, middle, exit) = (order[0], order[1], order[2]);

    let early = story.say(connection_of(entry), ToOrchestrator::Signal(signal(epoch, entry, middle)));
    assert!(early.is_empty(), "nobody links before all have loaded");
    for connection in connections {
        story.say(connection, ToOrchestrator::Loaded { epoch, footprint: ShardFootprint::default() });
    }
    let out = story.say(connection_of(entry), ToOrchestrator::Signal(signal(epoch, entry, middle)));
    assert!(
        matches!(&out[..], [Output::Send { connection, message: ToNode::Signal(_) }] if *connection == connection_of(middle)),
        "{out:?}"
    );
    let out = story.say(connection_of(exit), ToOrchestrator::Signal(signal(epoch, exit, gateway())));
    assert!(matches!(&out[..], [Output::SignalGateway(_)]), "{out:?}");
    let out = story.give(Input::GatewaySignal(signal(epoch, gateway(), entry)));
    assert!(matches!(&out[..], [Output::Send { message: ToNode::Signal(_), .. }]), "{out:?}");
    assert!(story.give(Input::GatewaySignal(signal(epoch, gateway(), middle))).is_empty(), "no link is planned there");
    let stale = story.say(connection_of(entry), ToOrchestrator::Signal(signal(Epoch(0), entry, middle)));
    assert!(stale.is_empty(), "an old epoch is nobody's business");

    let out = story.say(connection_of(middle), ToOrchestrator::Signal(signal(epoch, entry, exit)));
    assert!(out.iter().any(|o| matches!(o, Output::LeaveGateway(..))), "speaking for another member ends it: {out:?}");
    assert_eq!(story.ended[0].1.code, ReasonCode::Protocol);
}

#[test]
fn members_that_take_too_long_are_named() {
    let mut story = Story::new(2, Some(2));
    let connections = [story.arrive(1), story.arrive(2)];
    let epoch = story.epoch();
    story.say(connections[0], ToOrchestrator::Loaded { epoch, footprint: ShardFootprint::default() });
    story.pass(Timing::default().load);
    assert_eq!(story.ended[0].1.code, ReasonCode::Timeout);
    assert!(story.ended[0].1.message.contains("node 2 did not load"), "{:?}", story.ended);
    story.pass(200 * MS);
    let epoch = story.epoch();
    for connection in connections {
        story.say(connection, ToOrchestrator::Loaded { epoch, footprint: ShardFootprint::default() });
        story.say(connection, ToOrchestrator::Joined { epoch });
    }
    story.say(connections[0], ToOrchestrator::Joined { epoch });
    story.pass(Timing::default().link);
    assert!(
        story.ended[1].1.message.contains("node 1 did not link up") || story.ended[1].1.message.contains("gateway")
    );
}

#[test]
fn only_members_statistics_of_this_epoch_are_kept_and_they_are_bounded() {
    let mut story = Story::new(1, None);
    let connection = story.arrive(1);
    story.serve(&[connection]);
    let epoch = story.epoch();
    let link = LinkReport {
        peer: gateway(),
        act_bytes_sent: 0,
        act_bytes_received: 0,
        ctl_bytes_sent: 1,
        ctl_bytes_received: 1,
        round_trip_p50_micros: None,
        round_trip_p99_micros: None,
    };
    let stats = ShardStats { rows: 7, links: vec![link; 5000], ..ShardStats::default() };
    story.say(connection, ToOrchestrator::Stats { epoch: Epoch(99), stats: stats.clone() });
    assert!(story.registry.nodes()[&address(1)].stats.is_none());
    story.say(connection, ToOrchestrator::Stats { epoch, stats });
    let kept = story.registry.nodes()[&address(1)].stats.as_ref().unwrap();
    assert_eq!((kept.rows, kept.links.len()), (7, MAX_LINKS));
}

#[test]
fn shutting_down_lets_everybody_go_and_forms_nothing_new() {
    let mut story = Story::new(2, Some(2));
    let connections = [story.arrive(1), story.arrive(2)];
    story.serve(&connections);
    let out = story.give(Input::ShutDown);
    assert!(matches!(&out[0], Output::LeaveGateway(_, failure) if failure.code == ReasonCode::StandDown));
    assert!(story.pass(Duration::from_secs(60)).is_empty());
    assert_eq!(story.stage(), Stage::Waiting);
}

/// Random lives: whatever happens, epochs grow, members are connected, layers are covered, nothing panics.
#[test]
fn any_order_of_events_keeps_the_invariants() {
    for seed in 0..300u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut story = Story::new(3, if seed % 2 == 0 { Some(2) } else { None });
        for _ in 0..120 {
            let connection = ConnectionId(next(story.connections.max(1)) + 1);
            let epoch = Epoch(next(story.formed.len() as u64 + 2));
            let (from, to) = (address(next(4) as u8 + 1), address(next(4) as u8 + 1));
            let failure = Failure::new(ReasonCode::Engine, "random");
            match next(11) {
                0 => drop(story.arrive(next(4) as u8 + 1)),
                1 => drop(story.give(Input::Disconnected { connection })),
                2 => {
                    let footprint = ShardFootprint::default();
                    story.say(connection, ToOrchestrator::Loaded { epoch, footprint });
                }
                3 => drop(story.say(connection, ToOrchestrator::Joined { epoch })),
                4 => drop(story.say(connection, ToOrchestrator::Signal(signal(epoch, from, to)))),
                5 => drop(story.give(Input::GatewayJoined(epoch))),
                6 if next(3) == 0 => drop(story.give(Input::GatewayLost(epoch, failure))),
                7 if next(3) == 0 => drop(story.say(connection, ToOrchestrator::Failed { epoch, failure })),
                8 => drop(story.give(Input::GatewaySignal(signal(epoch, gateway(), to)))),
                _ => drop(story.pass(Duration::from_millis(next(3000)))),
            }
            if let Some(coalition) = story.registry.coalition() {
                let members = &coalition.assignment.members;
                assert!(
                    members.iter().all(|member| story.registry.nodes().contains_key(&member.address)),
                    "seed {seed}: a member is not connected"
                );
                assert_eq!(members[0].layers.start(), 0, "seed {seed}");
                assert_eq!(members[members.len() - 1].layers.end(), 12, "seed {seed}");
                assert!(members.windows(2).all(|pair| pair[0].layers.end() == pair[1].layers.start()), "seed {seed}");
            }
        }
        assert!(story.formed.windows(2).all(|pair| pair[0].epoch < pair[1].epoch), "seed {seed}: epochs grow");
        let ended = story.ended.len();
        assert!(story.formed.len() - ended <= 1, "seed {seed}: at most one coalition lives");
    }
}
