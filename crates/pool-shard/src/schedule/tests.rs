//! A coalition of schedulers with scripted engines and links that deliver in order but at random moments.

use std::collections::HashMap;

use pool_types::{Activation, Epoch, Sampling};
use pool_wire::frame::{message, parse};
use pool_wire::{Assembler, frame};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const HIDDEN: u32 = 8;
const VOCABULARY: u32 = 1000;

fn place(index: usize, shards: usize) -> Place {
    Place {
        epoch: Epoch(1),
        index,
        shards,
        hidden: HIDDEN,
        wire: Activation::F16,
        prefill_chunk: 8,
        vocabulary: VOCABULARY,
    }
}

/// The token that follows when `position` tokens are known.
fn token_at(request: RequestId, position: u32) -> u32 {
    ((request.0 as u32) * 31 + position * 7) % VOCABULARY
}

struct World {
    shards: Vec<Scheduler>,
    /// Cache length per shard and request, as the engine would keep it.
    caches: Vec<HashMap<RequestId, u32>>,
    /// Ordered link per (from, to); `usize::MAX` is the gateway.
    links: HashMap<(usize, usize), VecDeque<Frame>>,
    delivered: HashMap<RequestId, Vec<Token>>,
    failed: HashMap<RequestId, Failure>,
    largest_decode_batch: usize,
    duplicate: bool,
}

const GATEWAY: usize = usize::MAX;

impl World {
    fn new(shards: usize) -> Self {
        World {
            shards: (0..shards).map(|i| Scheduler::new(place(i, shards))).collect(),
            caches: vec![HashMap::new(); shards],
            links: HashMap::new(),
            delivered: HashMap::new(),
            failed: HashMap::new(),
            largest_decode_batch: 0,
            duplicate: false,
        }
    }

    fn last(&self) -> usize {
        self.shards.len() - 1
    }

    fn start(&mut self, id: RequestId, prompt: &Prompt) {
        let frames = prompt.frames(Epoch(1), id).unwrap();
        for to in if self.last() == 0 { vec![0] } else { vec![0, self.last()] } {
            self.links.entry((GATEWAY, to)).or_default().extend(frames.clone());
        }
    }

    fn cancel(&mut self, id: RequestId) {
        for to in [0, self.last()] {
            self.links.entry((GATEWAY, to)).or_default().push_back(Frame::new(Kind::Release, Epoch(1), id));
        }
    }

    fn seen_as(&self, from: usize, to: usize) -> Peer {
        match (from, to) {
            (GATEWAY, _) => Peer::Gateway,
            (from, to) if from + 1 == to => Peer::Previous,
            (from, to) if from == to + 1 => Peer::Next,
            (0, _) => Peer::Entry,
            _ => Peer::Exit,
        }
    }

    fn address(&self, me: usize, peer: Peer) -> usize {
        match peer {
            Peer::Gateway => GATEWAY,
            Peer::Previous => me - 1,
            Peer::Next => me + 1,
            Peer::Entry => 0,
            Peer::Exit => self.last(),
        }
    }

    fn carry_out(&mut self, me: usize) {
        for effect in self.shards[me].take_effects() {
            match effect {
                Effect::Send(peer, frames) => {
                    let to = self.address(me, peer);
                    self.links.entry((me, to)).or_default().extend(frames);
                }
                Effect::Open { request, .. } => assert!(self.caches[me].insert(request, 0).is_none(), "opened once"),
                Effect::Close(request) => assert!(self.caches[me].remove(&request).is_some(), "closed once"),
            }
        }
    }

    fn deliver(&mut self, link: (usize, usize)) {
        let Some(frame) = self.links.get_mut(&link).and_then(VecDeque::pop_front) else { return };
        // Every frame crosses as bytes.
        let frame = parse(message(&[frame])).next().unwrap().unwrap();
        let (from, to) = link;
        if to == GATEWAY {
            match frame.kind {
                Kind::Token => {
                    self.delivered.entry(frame.request).or_default().push(Token::parse(frame.payload).unwrap())
                }
                Kind::Fail => drop(self.failed.insert(frame.request, frame.failure())),
                kind => panic!("{kind:?} must not reach the gateway"),
            }
            return;
        }
        let peer = self.seen_as(from, to);
        if self.duplicate {
            self.shards[to].on_frame(peer, frame.clone());
        }
        self.shards[to].on_frame(peer, frame);
        self.carry_out(to);
    }

    fn compute(&mut self, me: usize) -> bool {
        let batch = self.shards[me].next_batch();
        if batch.is_empty() {
            return false;
        }
        // At the entry the last row of a prompt may come alone, and is prefill.
        let decoding = batch.iter().filter(|w| me > 0 && w.sample && w.rows() == 1).count();
        self.largest_decode_batch = self.largest_decode_batch.max(decoding);
        let outcomes = batch
            .iter()
            .map(|work| {
                let cache = self.caches[me].get_mut(&work.request).expect("only open requests are worked");
                assert_eq!(*cache, work.position, "steps are worked in order");
                *cache += work.rows();
                if me < self.shards.len() - 1 {
                    Outcome::Hidden(vec![0; (work.rows() * HIDDEN * 2) as usize])
                } else if work.sample {
                    let token = token_at(work.request, work.position + work.rows());
                    Outcome::Token(TokenChoice { token, logprob: f32::NAN, top: vec![] })
                } else {
                    Outcome::Nothing
                }
            })
            .collect();
        self.shards[me].complete(batch, outcomes);
        self.carry_out(me);
        true
    }

    /// Random moves until nothing is left to do.
    fn run(&mut self, rng: &mut StdRng, mut midway: impl FnMut(&mut Self, usize)) {
        let mut moves = 0;
        loop {
            let mut links: Vec<_> = self.links.iter().filter(|(_, q)| !q.is_empty()).map(|(k, _)| *k).collect();
            links.sort_unstable();
            let choice = rng.random_range(0..links.len() + self.shards.len());
            if let Some(link) = links.get(choice) {
                self.deliver(*link);
            } else {
                self.compute(choice - links.len());
            }
            moves += 1;
            midway(self, moves);
            let idle = self.links.values().all(VecDeque::is_empty) && (0..self.shards.len()).all(|i| !self.compute(i));
            if idle && self.links.values().all(VecDeque::is_empty) {
                return;
            }
            assert!(moves < 100_000, "the ring is stuck");
        }
    }

    fn assert_empty(&self) {
        for (i, shard) in self.shards.iter().enumerate() {
            assert_eq!(shard.live(), 0, "shard {i} still holds a request");
            assert!(self.caches[i].is_empty(), "shard {i} still holds cache");
        }
    }
}

fn prompt(length: u32, max_new_tokens: u32) -> Prompt {
    Prompt { tokens: (0..length).collect(), sampling: Sampling::greedy(), max_new_tokens, stop_tokens: vec![] }
}

fn expected(id: RequestId, length: u32, new: u32) -> Vec<u32> {
    (0..new).map(|i| token_at(id, length + i)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_arrives_whole_in_order_and_once(
        seed in any::<u64>(),
        shards in 1usize..5,
        lengths in proptest::collection::vec((1u32..60, 1u32..12), 1..9),
        duplicate in any::<bool>(),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new(shards);
        for (i, (length, new)) in lengths.iter().enumerate() {
            world.start(RequestId(i as u64 + 1), &prompt(*length, *new));
        }
        // Hidden frames that repeat are dropped; credits and releases are exactly once on real links.
        world.duplicate = duplicate && shards == 1;
        world.run(&mut rng, |_, _| {});
        for (i, (length, new)) in lengths.iter().enumerate() {
            let id = RequestId(i as u64 + 1);
            let tokens: Vec<u32> = world.delivered[&id].iter().map(|t| t.choice.token).collect();
            prop_assert_eq!(tokens, expected(id, *length, *new));
            prop_assert_eq!(world.delivered[&id].last().unwrap().finish, Some(FinishReason::Length));
        }
        prop_assert!(world.failed.is_empty());
        prop_assert!(world.largest_decode_batch <= lengths.len().div_ceil(shards), "a cohort is at most ceil(active / N)");
        world.assert_empty();
    }

    #[test]
    fn a_cancelled_request_is_freed_everywhere_and_the_others_finish(seed in any::<u64>(), shards in 1usize..5, at in 1usize..200) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new(shards);
        for i in 1..=4 {
            world.start(RequestId(i), &prompt(30, 10));
        }
        world.run(&mut rng, |world, moves| if moves == at { world.cancel(RequestId(2)) });
        prop_assert!(world.failed.is_empty(), "{:?}", world.failed);
        for i in [1, 3, 4] {
            let tokens: Vec<u32> = world.delivered[&RequestId(i)].iter().map(|t| t.choice.token).collect();
            prop_assert_eq!(tokens, expected(RequestId(i), 30, 10));
        }
        let got = world.delivered.get(&RequestId(2)).map_or(0, Vec::len);
        prop_assert!(got <= 10);
        world.assert_empty();
    }
}

fn run_alone(world: &mut World) {
    world.run(&mut StdRng::seed_from_u64(1), |_, _| {});
}

#[test]
fn a_stop_token_ends_the_answer() {
    let mut world = World::new(2);
    let id = RequestId(5);
    world.start(id, &Prompt { stop_tokens: vec![token_at(id, 12)], ..prompt(10, 50) });
    run_alone(&mut world);
    let tokens = &world.delivered[&id];
    assert_eq!(tokens.len(), 3, "the third token is the stop token");
    assert_eq!(tokens[2].finish, Some(FinishReason::Stop));
    world.assert_empty();
}

#[test]
fn a_repeated_step_is_dropped_and_a_gap_fails_the_request_only() {
    let mut exit = Scheduler::new(place(1, 2));
    let id = RequestId(1);
    for frame in prompt(4, 3).frames(Epoch(1), id).unwrap() {
        exit.on_frame(Peer::Gateway, frame);
    }
    exit.on_frame(Peer::Previous, Frame { tokens: 7, ..Frame::new(Kind::Open, Epoch(1), id) });
    let step = |step, position| Hidden { request: id, step, position, tokens: 2, hidden: HIDDEN, ..Hidden::default() };
    let frame = step(0, 0).frames(Epoch(1), [0; 32]).remove(0);
    exit.on_frame(Peer::Previous, frame.clone());
    exit.on_frame(Peer::Previous, frame);
    assert_eq!(exit.counters().dropped, 1);
    assert_eq!(exit.next_batch().len(), 1, "the step is worked once");
    exit.on_frame(Peer::Previous, step(2, 4).frames(Epoch(1), [0; 32]).remove(0));
    assert_eq!(exit.live(), 0);
    let told: Vec<Peer> = exit
        .take_effects()
        .into_iter()
        .filter_map(|e| match e {
            Effect::Send(peer, frames) if frames[0].kind == Kind::Fail => Some(peer),
            _ => None,
        })
        .collect();
    assert_eq!(told, [Peer::Gateway, Peer::Previous], "gateway and earlier shards learn of the failure");
}

#[test]
fn wrong_rows_types_positions_and_senders_fail_the_request() {
    let id = RequestId(1);
    let good = Hidden { request: id, step: 0, position: 0, tokens: 2, hidden: HIDDEN, ..Hidden::default() };
    let wrong = [
        (Peer::Previous, Hidden { hidden: HIDDEN * 2, ..good }, 64),
        (Peer::Previous, Hidden { dtype: Activation::F32, ..good }, 64),
        (Peer::Previous, Hidden { tokens: 3, ..good }, 32),
        (Peer::Previous, Hidden { position: 5, ..good }, 32),
        (Peer::Previous, Hidden { tokens: 0, ..good }, 0),
        (Peer::Next, good, 32),
        (Peer::Gateway, good, 32),
    ];
    for (from, hidden, bytes) in wrong {
        let mut middle = Scheduler::new(place(1, 3));
        middle.on_frame(Peer::Previous, Frame { tokens: 4, ..Frame::new(Kind::Open, Epoch(1), id) });
        assert_eq!(middle.live(), 1);
        middle.on_frame(from, hidden.frames(Epoch(1), vec![0; bytes]).remove(0));
        assert_eq!(middle.live(), 0, "{from:?} {hidden:?}");
    }
}

#[test]
fn frames_of_another_epoch_or_an_ended_request_are_dropped() {
    let mut entry = Scheduler::new(place(0, 2));
    let id = RequestId(9);
    let frames = prompt(4, 2).frames(Epoch(7), id).unwrap();
    entry.on_frame(Peer::Gateway, frames[0].clone());
    assert_eq!((entry.live(), entry.counters().dropped), (0, 1));
    entry.on_frame(Peer::Gateway, Frame::new(Kind::Release, Epoch(1), id));
    entry.on_frame(Peer::Gateway, prompt(4, 2).frames(Epoch(1), id).unwrap().remove(0));
    assert_eq!(entry.live(), 0, "a prompt that comes after its own release is not served");
}

#[test]
fn a_stalled_request_is_given_up() {
    let mut entry = Scheduler::new(place(0, 2));
    entry.on_frame(Peer::Gateway, prompt(4, 2).frames(Epoch(1), RequestId(1)).unwrap().remove(0));
    entry.tick(STALLED);
    assert_eq!(entry.live(), 1);
    entry.tick(STALLED + Duration::from_secs(1));
    assert_eq!(entry.live(), 0);
}

#[test]
fn no_more_prefill_chunks_are_sent_than_the_credits_allow() {
    let mut entry = Scheduler::new(place(0, 2));
    let id = RequestId(1);
    entry.on_frame(Peer::Gateway, prompt(100, 2).frames(Epoch(1), id).unwrap().remove(0));
    let mut sent = 0;
    loop {
        let batch = entry.next_batch();
        if batch.is_empty() {
            break;
        }
        sent += batch.len() as u32;
        let outcomes = batch.iter().map(|w| Outcome::Hidden(vec![0; (w.rows() * HIDDEN * 2) as usize])).collect();
        entry.complete(batch, outcomes);
    }
    assert_eq!(sent, PREFILL_CREDITS);
    entry.on_frame(Peer::Next, Frame::new(Kind::Credit, Epoch(1), id));
    assert_eq!(entry.next_batch().len(), 1, "a credit allows one more");
}

#[test]
fn a_chunked_step_is_put_together_before_it_is_scheduled() {
    let rows = vec![1u8; frame::MAX_PAYLOAD + 100];
    let frames = Hidden { tokens: 1, hidden: 1, ..Hidden::default() }.frames(Epoch(1), &rows);
    let mut assembler = Assembler::new(1 << 20);
    assert!(assembler.push(frames[0].clone()).unwrap().is_none());
    assert_eq!(assembler.push(frames[1].clone()).unwrap().unwrap().payload, rows);
}

/// A step of hidden states, as an exit among two gets it: here before any prompt.
fn unprompted_step(request: RequestId, step: u32, rows: u32) -> Frame {
    let hidden =
        frame::Hidden { request, step, position: step * rows, tokens: rows, hidden: HIDDEN, ..Default::default() };
    let mut frames = hidden.frames(Epoch(1), vec![0; (rows * HIDDEN * 2) as usize]);
    frames.remove(0)
}

#[test]
fn a_step_longer_than_a_chunk_costs_its_request_only() {
    let mut exit = Scheduler::new(place(1, 2));
    for id in [1, 2] {
        let open = Frame { tokens: 100, ..Frame::new(Kind::Open, Epoch(1), RequestId(id)) };
        exit.on_frame(Peer::Previous, open);
    }
    exit.on_frame(Peer::Previous, unprompted_step(RequestId(1), 0, 9));
    exit.on_frame(Peer::Previous, unprompted_step(RequestId(2), 0, 8));
    assert_eq!(exit.live(), 1, "nine rows are more than a chunk of eight; the other request goes on");
}

#[test]
fn what_waits_at_the_exit_for_prompts_is_bounded_in_bytes() {
    let rows = 1 << 16;
    let mut exit = Scheduler::new(Place { prefill_chunk: rows, ..place(1, 2) });
    let bytes = (rows * HIDDEN * 2) as usize;
    let fit = UNPROMPTED / bytes;
    for id in 0..fit as u64 + 3 {
        let open = Frame { tokens: u32::MAX, ..Frame::new(Kind::Open, Epoch(1), RequestId(id)) };
        exit.on_frame(Peer::Previous, open);
        let hidden = frame::Hidden { request: RequestId(id), tokens: rows, hidden: HIDDEN, ..Default::default() };
        let whole = Frame { payload: vec![0; bytes].into(), chunks: 1, ..hidden.frames(Epoch(1), []).remove(0) };
        exit.on_frame(Peer::Previous, whole);
    }
    assert_eq!(exit.live(), fit, "the rest was refused, not held");
    let late = prompt(1, 1).frames(Epoch(1), RequestId(0)).unwrap().remove(0);
    exit.on_frame(Peer::Gateway, late);
    assert_eq!(exit.next_batch().len(), 1, "a prompt that comes sets its steps going");
}
