//! Which step of which request a shard works next. Pure: frames and results go in, [`Effect`]s come out;
//! the [`worker`](crate::worker) owns the engine and the links and carries them out.
//!
//! A step is known by (request, attempt, step) and steps are worked strictly in order. Prefill is cut into
//! chunks; each chunk's hidden states leave at once. A shard may have [`PREFILL_CREDITS`] chunks of a request
//! on their way to the next one; a `Credit` comes back for each worked. A step that samples needs no credit:
//! the next one can only begin when its token has come back.
//!
//! Decode goes before prefill, and a coalition of N shards keeps N cohorts in flight: a batch takes at most
//! `ceil(active / N)` decoding requests. What is left of the batch's row budget goes to prefill, so that
//! neither starves.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use pool_types::{Attempt, Failure, FinishReason, ReasonCode, RequestId, TokenChoice};
use pool_wire::frame::{Frame, Hidden, Kind};
use pool_wire::{Prompt, Token};

mod step;

pub use step::{Effect, Outcome, Peer, Place, Work, WorkInput};

/// Prefill chunks of one request that may be on their way to the next shard.
pub const PREFILL_CREDITS: u32 = 4;
/// Requests a shard holds at most, whatever the KV budget says.
pub const MAX_REQUESTS: usize = 1024;
/// A request that makes no progress for this long is given up.
pub const STALLED: Duration = Duration::from_secs(120);
/// Bytes of hidden states that may wait at the exit for prompts that have not come yet. A gateway sends the prompt to
/// the exit as it does to the entry, so next to nothing waits long.
pub const UNPROMPTED: usize = 64 << 20;
/// Ended requests remembered so that their late frames are dropped quietly.
const REMEMBERED: usize = 4096;

#[derive(Debug)]
struct Request {
    capacity: u32,
    attempt: Attempt,
    prompt: Option<Prompt>,
    open: bool,
    /// Next step to begin here.
    next_step: u32,
    /// Length of the sequence once every begun step is worked.
    position: u32,
    /// Entry: prompt tokens fed so far.
    fed: usize,
    /// Entry: the token to feed next.
    pending: Option<u32>,
    /// Entry: a step that samples is on its way round.
    awaiting: Option<u32>,
    /// Not entry: steps received, not yet worked.
    inbox: VecDeque<Work>,
    /// Not entry: the step expected next from the previous shard.
    expected: u32,
    credits: u32,
    /// Exit: tokens sampled so far.
    sampled: u32,
    resume_from: u32,
    touched: Duration,
    queued: bool,
}

/// Counters for the stats message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that repeat, are late, or belong to another epoch.
    pub dropped: u64,
    /// Tokens sampled here.
    pub tokens: u64,
}

/// The state of every live request at this shard.
#[derive(Debug)]
pub struct Scheduler {
    place: Place,
    requests: BTreeMap<RequestId, Request>,
    decode: VecDeque<RequestId>,
    prefill: VecDeque<RequestId>,
    ended: HashSet<RequestId>,
    ended_order: VecDeque<RequestId>,
    effects: Vec<Effect>,
    counters: Counters,
    now: Duration,
}

impl Scheduler {
    /// A shard at `place` with no requests.
    pub fn new(place: Place) -> Self {
        Scheduler {
            place,
            requests: BTreeMap::new(),
            decode: VecDeque::new(),
            prefill: VecDeque::new(),
            ended: HashSet::new(),
            ended_order: VecDeque::new(),
            effects: Vec::new(),
            counters: Counters::default(),
            now: Duration::ZERO,
        }
    }

    /// Live requests.
    pub fn live(&self) -> usize {
        self.requests.len()
    }

    /// Counters since the start of the epoch.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What to do now, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Notes the time (since any fixed moment) and gives up requests that stalled.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        let stalled: Vec<RequestId> =
            self.requests.iter().filter(|(_, r)| now.saturating_sub(r.touched) > STALLED).map(|(id, _)| *id).collect();
        for request in stalled {
            self.fail(request, Failure::new(ReasonCode::Timeout, "the request made no progress for two minutes"));
        }
    }

    /// Forgets every request without a word to anybody: the epoch is over. Gives those that hold cache.
    pub fn abandon(&mut self) -> Vec<RequestId> {
        self.effects.clear();
        self.decode.clear();
        self.prefill.clear();
        let requests = std::mem::take(&mut self.requests);
        requests.into_iter().filter(|(_, request)| request.open).map(|(id, _)| id).collect()
    }

    /// Takes a whole body (chunks already put together) from a peer.
    pub fn on_frame(&mut self, from: Peer, frame: Frame) {
        let known = self.requests.get(&frame.request).map(|r| r.attempt);
        if frame.epoch != self.place.epoch
            || self.ended.contains(&frame.request)
            || known.is_some_and(|attempt| attempt != frame.attempt)
        {
            self.counters.dropped += 1;
            return;
        }
        let request = frame.request;
        let result = match (frame.kind, from) {
            (Kind::Prompt, Peer::Gateway) => self.on_prompt(frame),
            (Kind::Open, Peer::Previous) => self.on_open(frame),
            (Kind::Hidden, Peer::Previous) => self.on_hidden(frame),
            (Kind::Token, peer) if self.place.is_entry() && peer == self.place.exit_seen_from_entry() => {
                self.on_token(frame)
            }
            (Kind::Credit, Peer::Next) => self.on_credit(frame),
            (Kind::Release, Peer::Gateway | Peer::Previous) => {
                self.end(request);
                Ok(())
            }
            (Kind::Fail, Peer::Next | Peer::Exit) => {
                self.fail(request, frame.failure());
                Ok(())
            }
            (kind, peer) => Err(format!("{peer:?} may not send {kind:?} frames")),
        };
        if let Err(reason) = result {
            self.fail(request, Failure::new(ReasonCode::Protocol, reason));
        }
    }

    fn admit(&mut self, frame: &Frame) -> Result<&mut Request, String> {
        if self.requests.len() >= MAX_REQUESTS && !self.requests.contains_key(&frame.request) {
            return Err(format!("more than {MAX_REQUESTS} requests at once"));
        }
        let now = self.now;
        Ok(self.requests.entry(frame.request).or_insert_with(|| Request {
            capacity: frame.tokens,
            attempt: frame.attempt,
            prompt: None,
            open: false,
            next_step: 0,
            position: 0,
            fed: 0,
            pending: None,
            awaiting: None,
            inbox: VecDeque::new(),
            expected: 0,
            credits: PREFILL_CREDITS,
            sampled: 0,
            resume_from: frame.resume_from,
            touched: now,
            queued: false,
        }))
    }

    fn on_prompt(&mut self, frame: Frame) -> Result<(), String> {
        let prompt = Prompt::parse(frame.payload.clone()).map_err(|e| e.to_string())?;
        if let Some(token) = prompt.tokens.iter().find(|t| **t >= self.place.vocabulary) {
            return Err(format!("token {token} is outside the vocabulary of {}", self.place.vocabulary));
        }
        let place = self.place;
        let request = self.admit(&frame)?;
        if request.prompt.is_some() {
            self.counters.dropped += 1;
            return Ok(());
        }
        request.capacity = prompt.capacity();
        let capacity = request.capacity;
        let sampler = place.is_exit().then(|| (prompt.sampling.clone(), prompt.tokens.clone()));
        request.prompt = Some(prompt);
        if place.is_entry() {
            request.open = true;
            self.effects.push(Effect::Open { request: frame.request, capacity, sampler });
            if !place.is_exit() {
                let open = Frame {
                    kind: Kind::Open,
                    tokens: capacity,
                    payload: Bytes::new(),
                    chunk: 0,
                    chunks: 1,
                    ..frame.clone()
                };
                self.effects.push(Effect::Send(Peer::Next, vec![open]));
            }
        } else if !place.is_exit() {
            return Err("a prompt came to a shard that is neither entry nor exit".into());
        } else if request.open {
            self.effects.push(Effect::Open { request: frame.request, capacity, sampler });
        }
        self.enqueue(frame.request);
        Ok(())
    }

    fn on_open(&mut self, frame: Frame) -> Result<(), String> {
        let is_exit = self.place.is_exit();
        let request = self.admit(&frame)?;
        if request.open {
            self.counters.dropped += 1;
            return Ok(());
        }
        request.open = true;
        let prompt = request.prompt.as_ref();
        let sampler = prompt.map(|prompt| (prompt.sampling.clone(), prompt.tokens.clone()));
        if !is_exit || sampler.is_some() {
            let capacity = request.capacity;
            self.effects.push(Effect::Open { request: frame.request, capacity, sampler });
        }
        if !is_exit {
            self.effects.push(Effect::Send(Peer::Next, vec![frame]));
        }
        Ok(())
    }

    fn on_hidden(&mut self, frame: Frame) -> Result<(), String> {
        let (hidden, wire) = (self.place.hidden, self.place.wire);
        let now = self.now;
        let unprompted = self.place.is_exit() && self.requests.get(&frame.request).is_some_and(|r| r.prompt.is_none());
        if unprompted && self.unprompted_bytes() + frame.payload.len() > UNPROMPTED {
            return Err("too much waits for prompts that have not come".into());
        }
        let Some(request) = self.requests.get_mut(&frame.request).filter(|r| r.open) else {
            return Err("hidden states came before the request was opened".into());
        };
        if frame.step < request.expected {
            self.counters.dropped += 1;
            return Ok(());
        }
        if frame.step > request.expected {
            return Err(format!("step {} came where step {} was due", frame.step, request.expected));
        }
        if request.inbox.len() > PREFILL_CREDITS as usize {
            return Err("more steps in flight than the credits allow".into());
        }
        if frame.hidden != hidden || frame.dtype != Some(wire) {
            return Err(format!(
                "hidden states of {} {:?} where {hidden} {wire:?} were due",
                frame.hidden, frame.dtype
            ));
        }
        let bytes = u64::from(frame.tokens) * u64::from(hidden) * wire.size() as u64;
        if frame.tokens > self.place.prefill_chunk {
            return Err(format!("a step of {} rows where {} are the most", frame.tokens, self.place.prefill_chunk));
        }
        if frame.tokens == 0 || bytes != frame.payload.len() as u64 {
            return Err(format!("{} rows of hidden states in {} bytes", frame.tokens, frame.payload.len()));
        }
        let expected_position = frame.truncate_to.unwrap_or(request.position);
        if frame.position != expected_position
            || u64::from(frame.position) + u64::from(frame.tokens) > request.capacity.into()
        {
            return Err(format!("rows at position {} where {expected_position} was due", frame.position));
        }
        request.expected += 1;
        request.position = frame.position + frame.tokens;
        request.touched = now;
        request.inbox.push_back(Work {
            request: frame.request,
            step: frame.step,
            position: frame.position,
            truncate_to: frame.truncate_to,
            input: WorkInput::Hidden { rows: frame.tokens, dtype: wire, data: frame.payload },
            sample: frame.sample,
        });
        self.enqueue(frame.request);
        Ok(())
    }

    /// Bytes that wait here for prompts.
    fn unprompted_bytes(&self) -> usize {
        let waiting = self.requests.values().filter(|request| request.prompt.is_none());
        waiting.flat_map(|request| &request.inbox).map(Work::bytes).sum()
    }

    fn on_credit(&mut self, frame: Frame) -> Result<(), String> {
        let now = self.now;
        if let Some(request) = self.requests.get_mut(&frame.request) {
            if request.credits >= PREFILL_CREDITS {
                return Err("a credit came for a step that was not sent".into());
            }
            request.credits += 1;
            request.touched = now;
            self.enqueue(frame.request);
        }
        Ok(())
    }

    fn on_token(&mut self, frame: Frame) -> Result<(), String> {
        let token = Token::parse(frame.payload.clone()).map_err(|e| e.to_string())?;
        let Some(request) = self.requests.get(&frame.request) else { return Ok(()) };
        if request.awaiting != Some(frame.step) {
            self.counters.dropped += 1;
            return Ok(());
        }
        if token.choice.token >= self.place.vocabulary {
            return Err(format!("token {} is outside the vocabulary", token.choice.token));
        }
        self.accept_token(frame.request, token.choice.token, token.finish.is_some());
        Ok(())
    }

    /// At the entry: the next token is known.
    fn accept_token(&mut self, id: RequestId, token: u32, finished: bool) {
        let now = self.now;
        if finished {
            self.end(id);
        } else if let Some(request) = self.requests.get_mut(&id) {
            request.awaiting = None;
            request.pending = Some(token);
            request.touched = now;
            self.enqueue(id);
        }
    }

    /// Ends a request here and, through the links, on every later shard.
    fn end(&mut self, id: RequestId) {
        if let Some(request) = self.forget(id)
            && !self.place.is_exit()
        {
            let release = Frame { attempt: request.attempt, ..Frame::new(Kind::Release, self.place.epoch, id) };
            self.effects.push(Effect::Send(Peer::Next, vec![release]));
        }
    }

    /// Ends a request with a failure: earlier shards and the gateway are told, later ones release it.
    pub fn fail(&mut self, id: RequestId, failure: Failure) {
        if self.ended.contains(&id) {
            return;
        }
        let attempt = self.requests.get(&id).map_or(Attempt(0), |r| r.attempt);
        self.end(id);
        self.remember(id);
        let frame = Frame { attempt, ..Frame::fail(self.place.epoch, id, &failure) };
        let mut told = Vec::new();
        if self.place.is_entry() || self.place.is_exit() {
            told.push(Peer::Gateway);
        }
        if !self.place.is_entry() {
            told.push(Peer::Previous);
        }
        if self.place.is_exit() && self.place.shards > 2 {
            told.push(Peer::Entry);
        }
        self.effects.extend(told.into_iter().map(|peer| Effect::Send(peer, vec![frame.clone()])));
    }

    fn forget(&mut self, id: RequestId) -> Option<Request> {
        let request = self.requests.remove(&id);
        self.remember(id);
        // The exit opens a cache when both have come, the word to open and the prompt to sample by.
        let has_cache = |request: &Request| request.open && (!self.place.is_exit() || request.prompt.is_some());
        if request.as_ref().is_some_and(has_cache) {
            self.effects.push(Effect::Close(id));
        }
        request
    }

    fn remember(&mut self, id: RequestId) {
        if self.ended.insert(id) {
            self.ended_order.push_back(id);
            if self.ended_order.len() > REMEMBERED
                && let Some(oldest) = self.ended_order.pop_front()
            {
                self.ended.remove(&oldest);
            }
        }
    }

    /// What the request could do next: `Some(true)` a step that samples on one row (decode), `Some(false)` prefill.
    fn ready(&self, id: RequestId) -> Option<bool> {
        let request = self.requests.get(&id)?;
        let may_send = self.place.is_exit() || request.credits > 0;
        if self.place.is_entry() {
            let prompt = request.prompt.as_ref()?;
            if request.fed < prompt.tokens.len() {
                let last = prompt.tokens.len() - request.fed <= self.place.prefill_chunk as usize;
                return (may_send || last).then_some(false);
            }
            return request.pending.map(|_| true);
        }
        if self.place.is_exit() && request.prompt.is_none() {
            return None;
        }
        let work = request.inbox.front()?;
        let decode = work.sample && work.rows() == 1;
        (may_send || work.sample).then_some(decode)
    }

    fn enqueue(&mut self, id: RequestId) {
        let Some(decode) = self.ready(id) else { return };
        let Some(request) = self.requests.get_mut(&id) else { return };
        if request.queued {
            return;
        }
        request.queued = true;
        if decode { self.decode.push_back(id) } else { self.prefill.push_back(id) }
    }

    fn begin(&mut self, id: RequestId, rows: u32) -> Option<Work> {
        let place = self.place;
        let request = self.requests.get_mut(&id)?;
        let work = if place.is_entry() {
            let prompt = request.prompt.as_ref()?;
            let tokens = match request.pending.take() {
                Some(token) => vec![token],
                None => {
                    let end = prompt.tokens.len().min(request.fed + rows as usize);
                    if end < prompt.tokens.len() && request.credits == 0 && !place.is_exit() {
                        return None;
                    }
                    let tokens = prompt.tokens[request.fed..end].to_vec();
                    request.fed = end;
                    tokens
                }
            };
            let sample = request.fed == prompt.tokens.len();
            let work = Work {
                request: id,
                step: request.next_step,
                position: request.position,
                truncate_to: None,
                input: WorkInput::Tokens(tokens),
                sample,
            };
            request.position += work.rows();
            if sample {
                request.awaiting = Some(work.step);
            }
            work
        } else {
            request.inbox.pop_front()?
        };
        request.next_step = work.step + 1;
        if !work.sample && !place.is_exit() {
            request.credits -= 1;
        }
        Some(work)
    }

    /// The next batch, empty when there is nothing to do. Its order is the order of the outcomes to give back.
    pub fn next_batch(&mut self) -> Vec<Work> {
        let cohort = self.requests.len().div_ceil(self.place.shards).max(1);
        let mut batch = Vec::new();
        while batch.len() < cohort {
            let Some(id) = self.decode.pop_front() else { break };
            self.unqueue(id);
            if self.ready(id) == Some(true) {
                batch.extend(self.begin(id, 1));
            }
        }
        let mut rows = self.place.prefill_chunk;
        while rows > 0 {
            let Some(id) = self.prefill.front().copied() else { break };
            if self.ready(id) != Some(false) {
                self.prefill.pop_front();
                self.unqueue(id);
                continue;
            }
            let fits = self.requests[&id].inbox.front().is_none_or(|work| work.rows() <= rows);
            let untouched = rows == self.place.prefill_chunk;
            if (!fits && !untouched) || batch.iter().any(|work: &Work| work.request == id) {
                break;
            }
            self.prefill.pop_front();
            self.unqueue(id);
            let Some(work) = self.begin(id, rows) else { continue };
            rows = rows.saturating_sub(work.rows());
            batch.push(work);
        }
        batch
    }

    fn unqueue(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.queued = false;
        }
    }

    /// The engine has worked a batch: `outcomes[i]` belongs to `batch[i]`.
    pub fn complete(&mut self, batch: Vec<Work>, outcomes: Vec<Outcome>) {
        for (work, outcome) in batch.into_iter().zip(outcomes) {
            let id = work.request;
            let now = self.now;
            let Some(request) = self.requests.get_mut(&id) else { continue };
            request.touched = now;
            let (attempt, resume_from) = (request.attempt, request.resume_from);
            if !self.place.is_entry() && !work.sample {
                let credit = Frame { attempt, step: work.step, ..Frame::new(Kind::Credit, self.place.epoch, id) };
                self.effects.push(Effect::Send(Peer::Previous, vec![credit]));
            }
            match outcome {
                Outcome::Hidden(rows) => {
                    let hidden = Hidden {
                        request: id,
                        attempt,
                        step: work.step,
                        position: work.position,
                        tokens: work.rows(),
                        truncate_to: work.truncate_to,
                        hidden: self.place.hidden,
                        dtype: self.place.wire,
                        sample: work.sample,
                        resume_from,
                    };
                    let frames = hidden.frames_owned(self.place.epoch, rows);
                    self.effects.push(Effect::Send(Peer::Next, frames));
                }
                Outcome::Token(choice) => self.sampled(&work, attempt, choice),
                Outcome::Nothing => {}
            }
            self.enqueue(id);
        }
    }

    /// At the exit: a token was sampled; the gateway and the entry learn it at the same moment.
    fn sampled(&mut self, work: &Work, attempt: Attempt, choice: TokenChoice) {
        let id = work.request;
        let Some(request) = self.requests.get_mut(&id) else { return };
        let Some(prompt) = &request.prompt else { return };
        request.sampled += 1;
        self.counters.tokens += 1;
        let finish = if prompt.stop_tokens.contains(&choice.token) {
            Some(FinishReason::Stop)
        } else if request.sampled >= prompt.max_new_tokens {
            Some(FinishReason::Length)
        } else {
            None
        };
        let token = Token { choice, finish };
        let template = Frame {
            attempt,
            step: work.step,
            position: work.position + work.rows(),
            ..Frame::new(Kind::Token, self.place.epoch, id)
        };
        self.effects.push(Effect::Send(Peer::Gateway, vec![token.frame(template.clone(), true)]));
        if self.place.is_entry() {
            self.accept_token(id, token.choice.token, finish.is_some());
            return;
        }
        let entry = self.place.entry_seen_from_exit();
        self.effects.push(Effect::Send(entry, vec![token.frame(template, false)]));
        if finish.is_some() {
            self.forget(id);
        }
    }
}

#[cfg(test)]
mod tests;
