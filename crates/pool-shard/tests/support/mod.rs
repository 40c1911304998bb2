//! A real exit shard, in a process of its own, with everybody else played by the test over real links.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use alloy_primitives::Address;
use alloy_signer_local::PrivateKeySigner;
use bytes::Bytes;
use pool_engine::{
    Engine, EngineOptions, SamplerSetup, SequenceId, Step, StepInput, StepOutput,
    synthetic::{SyntheticQuant, SyntheticShape, write_gguf},
};
use pool_link::{
    Delegation, Description, Lane, LinkIdentity, Transport, VerifyContext,
    webrtc::{LinkSettings, WebRtcLink},
};
use pool_models::Model;
use pool_types::{Activation, CoalitionId, Epoch, Failure, LayerRange, RequestId, Sampling};
use pool_wire::{
    Prompt, Token,
    control::{self, Assignment, FromShard, LoadOrder, Member, ShardStats, Signal, ToShard},
    frame::{self, Frame, Hidden, Kind},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    time::timeout,
};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Rows of a prefill chunk.
pub(crate) const CHUNK: usize = 16;
const WIRE: Activation = Activation::F32;
const KV_TOKENS: u64 = 1024;

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Somebody with a wallet.
pub(crate) struct Somebody {
    pub(crate) wallet: PrivateKeySigner,
    pub(crate) identity: LinkIdentity,
}

impl Somebody {
    pub(crate) async fn new() -> Self {
        let wallet = PrivateKeySigner::random();
        let key = LinkIdentity::new_key();
        let delegation =
            Delegation::sign(&wallet, key.address(), CoalitionId::default(), 0, now() + 3600).await.unwrap();
        Self { identity: key.with_delegation(delegation).unwrap(), wallet }
    }

    pub(crate) fn address(&self) -> Address {
        self.wallet.address()
    }
}

/// Layers `layers` of the model, in this process.
fn engine(model: &Model, layers: LayerRange) -> Engine {
    let options = EngineOptions {
        layers,
        threads: 1,
        quantise: None,
        wire: WIRE,
        kv_tokens: KV_TOKENS as usize,
        max_context: KV_TOKENS as usize,
    };
    Engine::load(model.config.clone(), model.source.as_ref(), options).unwrap()
}

/// Which tokens greedy sampling gives, computed by one engine in this process.
pub(crate) fn alone(model: &Model, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut engine = engine(model, LayerRange::new(0, 2).unwrap());
    let id = SequenceId(1);
    let sampler = SamplerSetup { sampling: Sampling::greedy(), prompt: prompt.to_vec() };
    engine.open(id, prompt.len() + tokens, Some(sampler)).unwrap();
    let (mut answer, mut position, mut input) = (Vec::new(), 0, prompt.to_vec());
    while answer.len() < tokens {
        let step = Step { sequence: id, position, input: StepInput::Tokens(&input), sample: true };
        let StepOutput::Token(choice) = engine.advance(&[step]).unwrap().remove(0) else { panic!("a token was due") };
        position += input.len();
        answer.push(choice.token);
        input = vec![choice.token];
    }
    answer
}

/// A coalition of an entry and an exit. The exit is real; entry and gateway are the test's.
pub(crate) struct Coalition {
    pub(crate) entry: Somebody,
    pub(crate) gateway: Somebody,
    pub(crate) stranger: Somebody,
    exit: PrivateKeySigner,
    pub(crate) model: Model,
    pub(crate) process: Child,
    orders: ChildStdin,
    replies: mpsc::UnboundedReceiver<FromShard>,
    link_key: Address,
    /// The latest counters.
    pub(crate) stats: ShardStats,
    _files: tempfile::TempDir,
}

impl Coalition {
    /// Starts the exit shard and has it load its layer.
    pub(crate) async fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let path: PathBuf = files.path().join("noise.gguf");
        write_gguf(&path, &SyntheticShape::tiny(), SyntheticQuant::F16, 7, |_, _| {}).unwrap();
        let model = Model::open(&path).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_pool-shard"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (orders, mut pipe) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (tell, replies) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut prefix = [0; 4];
            while pipe.read_exact(&mut prefix).await.is_ok() {
                let mut message = vec![0; control::length(prefix).unwrap()];
                pipe.read_exact(&mut message).await.unwrap();
                let _ = tell.send(control::decode(&message).unwrap());
            }
        });
        let mut coalition = Self {
            entry: Somebody::new().await,
            gateway: Somebody::new().await,
            stranger: Somebody::new().await,
            exit: PrivateKeySigner::random(),
            model,
            process,
            orders,
            replies,
            link_key: Address::ZERO,
            stats: ShardStats::default(),
            _files: files,
        };
        let FromShard::Hello { link_key, .. } = coalition.reply().await else { panic!("it greets first") };
        coalition.link_key = link_key;
        coalition.load(&path).await;
        coalition
    }

    async fn load(&mut self, path: &Path) {
        let order = LoadOrder {
            address: self.exit.address(),
            path: path.to_owned(),
            model: self.model.id,
            layers: LayerRange::new(1, 2).unwrap(),
            wire: WIRE,
            kv_tokens: KV_TOKENS,
            max_context: KV_TOKENS as u32,
            quantise: false,
            loopback_only: true,
        };
        self.order(&ToShard::Load(Box::new(order))).await;
        let reply = self.reply().await;
        assert!(matches!(reply, FromShard::Loaded { .. }), "{reply:?}");
    }

    pub(crate) async fn order(&mut self, order: &ToShard) {
        self.orders.write_all(&control::encode(order).unwrap()).await.unwrap();
        self.orders.flush().await.unwrap();
    }

    /// The next thing the shard says that is not about its counters.
    pub(crate) async fn reply(&mut self) -> FromShard {
        loop {
            match timeout(PATIENCE, self.replies.recv()).await.expect("it answers in time").expect("it lives") {
                FromShard::Stats { stats, .. } => self.stats = stats,
                reply => return reply,
            }
        }
    }

    /// Waits for counters that say what `enough` wants.
    pub(crate) async fn counted(&mut self, enough: impl Fn(&ShardStats) -> bool) {
        while !enough(&self.stats) {
            match timeout(PATIENCE, self.replies.recv()).await.expect("it reports").expect("it lives") {
                FromShard::Stats { stats, .. } => self.stats = stats,
                FromShard::Failed { failure, .. } => panic!("the epoch ended: {failure}"),
                _ => {}
            }
        }
    }

    /// Tells the shard to join.
    pub(crate) async fn join(&mut self, epoch: Epoch) {
        let expires = now() + 3600;
        let delegation = Delegation::sign(&self.exit, self.link_key, CoalitionId::default(), 0, expires).await.unwrap();
        let layers = |start| LayerRange::new(start, start + 1).unwrap();
        let assignment = Assignment {
            coalition: CoalitionId::default(),
            chain: 0,
            epoch,
            model: self.model.id,
            gateway: self.gateway.address(),
            members: vec![
                Member { address: self.entry.address(), layers: layers(0) },
                Member { address: self.exit.address(), layers: layers(1) },
            ],
            wire: WIRE,
            kv_tokens: KV_TOKENS,
            max_context: KV_TOKENS as u32,
            prefill_chunk: CHUNK as u32,
        };
        let roster = vec![self.gateway.address(), self.entry.address(), self.exit.address()];
        let delegation = serde_json::to_string(&delegation).unwrap();
        self.order(&ToShard::Join { assignment: Box::new(assignment), delegation, roster }).await;
    }

    pub(crate) fn exit(&self) -> Address {
        self.exit.address()
    }

    /// How `from` sees the coalition.
    pub(crate) fn context(&self, from: &Somebody, epoch: Epoch) -> VerifyContext {
        let members = [self.gateway.address(), self.entry.address(), self.exit.address(), from.address()];
        VerifyContext {
            members: BTreeSet::from(members),
            me: from.address(),
            coalition: CoalitionId::default(),
            chain: 0,
            epoch,
            now: now(),
        }
    }

    /// Hands the shard a description in the name of `from`.
    pub(crate) async fn signal(&mut self, epoch: Epoch, from: Address, description: String) {
        let to = self.exit.address();
        self.order(&ToShard::Signal(Signal { epoch, from, to, description })).await;
    }

    /// Links `of` with the shard.
    pub(crate) async fn link(&mut self, epoch: Epoch, of: Role) -> WebRtcLink {
        let somebody = match of {
            Role::Entry => &self.entry,
            Role::Gateway => &self.gateway,
        };
        let (context, from) = (self.context(somebody, epoch), somebody.address());
        let (pending, offer) =
            WebRtcLink::offer(&somebody.identity, self.exit.address(), &context, LinkSettings::loopback())
                .await
                .unwrap();
        self.signal(epoch, from, serde_json::to_string(&offer).unwrap()).await;
        let answer: Description = loop {
            if let FromShard::Signal(signal) = self.reply().await {
                assert_eq!(signal.to, from);
                break serde_json::from_str(&signal.description).unwrap();
            }
        };
        pending.accept(&answer, now()).await.unwrap()
    }

    /// Joins, links both others, and returns their links: the gateway's and the entry's.
    pub(crate) async fn up(&mut self, epoch: Epoch) -> (Gateway, Entry) {
        self.join(epoch).await;
        let gateway = self.link(epoch, Role::Gateway).await;
        let entry = self.link(epoch, Role::Entry).await;
        let reply = self.reply().await;
        assert!(matches!(reply, FromShard::Joined { .. }), "{reply:?}");
        self.ends(gateway, entry, epoch)
    }

    /// What the test does with its two links.
    pub(crate) fn ends(&self, gateway: WebRtcLink, entry: WebRtcLink, epoch: Epoch) -> (Gateway, Entry) {
        (Gateway::new(gateway, epoch), Entry::new(entry, epoch, &self.model))
    }

    /// Bytes of memory the shard's process holds.
    pub(crate) fn resident_bytes(&self) -> usize {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.process.id().unwrap())).unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }
}

/// Whose link.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    Entry,
    Gateway,
}

/// The gateway's end: sends prompts, hears tokens and failures.
pub(crate) struct Gateway {
    pub(crate) link: Arc<WebRtcLink>,
    epoch: Epoch,
    tokens: BTreeMap<RequestId, Vec<u32>>,
    failures: BTreeMap<RequestId, Failure>,
}

impl Gateway {
    fn new(link: WebRtcLink, epoch: Epoch) -> Self {
        Self { link: Arc::new(link), epoch, tokens: BTreeMap::new(), failures: BTreeMap::new() }
    }

    pub(crate) async fn prompt(&self, request: RequestId, tokens: &[u32], answer: u32) {
        let prompt = Prompt {
            tokens: tokens.to_vec(),
            sampling: Sampling::greedy(),
            max_new_tokens: answer,
            stop_tokens: Vec::new(),
        };
        for message in frame::messages(&prompt.frames(self.epoch, request).unwrap()) {
            self.link.send(Lane::Ctl, message).await.unwrap();
        }
    }

    async fn hear(&mut self) {
        let heard = timeout(PATIENCE, self.link.receive()).await.expect("the shard answers in time");
        for frame in frame::parse(heard.expect("the gateway's link lives").1) {
            let frame = frame.unwrap();
            match frame.kind {
                Kind::Token => {
                    let token = Token::parse(frame.payload).unwrap().choice.token;
                    self.tokens.entry(frame.request).or_default().push(token);
                }
                Kind::Fail => drop(self.failures.insert(frame.request, frame.failure())),
                kind => panic!("a {kind:?} frame at the gateway"),
            }
        }
    }

    /// The tokens of an answer, once there are `most`.
    pub(crate) async fn answer(&mut self, request: RequestId, most: usize) -> Vec<u32> {
        while self.tokens.get(&request).is_none_or(|tokens| tokens.len() < most) {
            assert!(!self.failures.contains_key(&request), "{:?}", self.failures);
            self.hear().await;
        }
        self.tokens[&request].clone()
    }

    /// Why a request failed, once it has.
    pub(crate) async fn failure(&mut self, request: RequestId) -> Failure {
        while !self.failures.contains_key(&request) {
            self.hear().await;
        }
        self.failures[&request].clone()
    }
}

/// The entry's end: computes its layer as it should, and whatever else the test wants.
pub(crate) struct Entry {
    pub(crate) link: Arc<WebRtcLink>,
    pub(crate) epoch: Epoch,
    engine: Engine,
    /// Every message sent for a request, as it was sent.
    pub(crate) sent: Vec<Bytes>,
}

impl Entry {
    fn new(link: WebRtcLink, epoch: Epoch, model: &Model) -> Self {
        let engine = engine(model, LayerRange::new(0, 1).unwrap());
        Self { link: Arc::new(link), epoch, engine, sent: Vec::new() }
    }

    pub(crate) async fn send(&mut self, frames: &[Frame]) {
        for message in frame::messages(frames) {
            self.sent.push(message.clone());
            self.link.send(Lane::Act, message).await.unwrap();
        }
    }

    pub(crate) fn opening(&self, request: RequestId, capacity: usize) -> Frame {
        Frame { tokens: capacity as u32, ..Frame::new(Kind::Open, self.epoch, request) }
    }

    /// Computes one step.
    fn step(&mut self, request: RequestId, step: u32, position: usize, tokens: &[u32], sample: bool) -> Vec<Frame> {
        let input = Step { sequence: SequenceId(request.0), position, input: StepInput::Tokens(tokens), sample: false };
        let StepOutput::Hidden(rows) = self.engine.advance(&[input]).unwrap().remove(0) else {
            panic!("an entry gives hidden states")
        };
        let hidden = Hidden {
            request,
            step,
            position: position as u32,
            tokens: tokens.len() as u32,
            hidden: SyntheticShape::tiny().hidden_size as u32,
            dtype: WIRE,
            sample,
            ..Hidden::default()
        };
        hidden.frames_owned(self.epoch, rows)
    }

    /// Serves a request honestly: chunks within their credits, then a step for each token that comes back. `meanwhile`
    /// is called after every step with the number of the step.
    pub(crate) async fn serve(
        &mut self,
        request: RequestId,
        prompt: &[u32],
        answer: usize,
        mut meanwhile: impl AsyncFnMut(&mut Self, u32),
    ) {
        let capacity = prompt.len() + answer;
        self.engine.open(SequenceId(request.0), capacity, None).unwrap();
        let opening = self.opening(request, capacity);
        self.send(&[opening]).await;
        let (mut step, mut position, mut credits) = (0, 0, 4);
        for chunk in prompt.chunks(CHUNK) {
            while credits == 0 {
                credits += self.heard(request).await.iter().filter(|frame| frame.kind == Kind::Credit).count();
            }
            let last = position + chunk.len() == prompt.len();
            let frames = self.step(request, step, position, chunk, last);
            self.send(&frames).await;
            position += chunk.len();
            credits -= usize::from(!last);
            meanwhile(self, step).await;
            step += 1;
        }
        for n in 1..=answer {
            let token = loop {
                let heard = self.heard(request).await;
                if let Some(frame) = heard.into_iter().find(|frame| frame.kind == Kind::Token) {
                    break Token::parse(frame.payload).unwrap().choice.token;
                }
            };
            if n < answer {
                let frames = self.step(request, step, position, &[token], true);
                self.send(&frames).await;
                position += 1;
                meanwhile(self, step).await;
                step += 1;
            }
        }
        self.engine.release(SequenceId(request.0));
    }

    /// The frames of the next message that are about `request`.
    async fn heard(&mut self, request: RequestId) -> Vec<Frame> {
        let message = timeout(PATIENCE, self.link.receive()).await.expect("the shard answers in time");
        let frames = frame::parse(message.expect("the entry's link lives").1).map(Result::unwrap);
        let frames: Vec<Frame> = frames.filter(|frame| frame.request == request).collect();
        assert!(frames.iter().all(|frame| frame.kind != Kind::Fail), "{frames:?}");
        frames
    }
}
