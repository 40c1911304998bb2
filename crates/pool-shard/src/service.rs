//! The control pipe: reads the node's orders, loads the engine, starts the links of each epoch.
//!
//! The process ends when the pipe closes, when it is told to, when loading fails, or with its parent.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alloy_primitives::Address;
use pool_engine::{Canary, Engine, EngineOptions, Quantise};
use pool_link::mesh::{Mesh, MeshPlan};
use pool_link::webrtc::LinkSettings;
use pool_link::{Delegation, LinkIdentity, LinkKey};
use pool_models::{Lease, Model};
use pool_types::{Failure, ReasonCode};
use pool_wire::control::{self, Assignment, CONTROL_VERSION, FromShard, LoadOrder, ShardFootprint, ToShard};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use crate::process;
use crate::worker::{self, Event};

/// Events that may wait for the engine thread. Credits keep a well-behaved coalition far below.
const INBOX: usize = 8192;
/// Messages that may wait for the node.
const OUTBOX: usize = 256;

/// Layers through which a token takes longer do not serve: nobody waits for them.
const SLOWEST: Duration = Duration::from_secs(5);

/// How the process was started.
#[derive(Clone, Copy, Debug)]
pub struct ShardOptions {
    /// Compute threads.
    pub threads: usize,
}

/// Serves one node over `orders` and `replies` until the pipe closes or it is told to finish.
pub async fn run(
    options: ShardOptions,
    mut orders: impl AsyncRead + Unpin + Send + 'static,
    mut replies: impl AsyncWrite + Unpin + Send + 'static,
) -> anyhow::Result<()> {
    let (node, mut to_node) = mpsc::channel::<FromShard>(OUTBOX);
    let writer = tokio::spawn(async move {
        while let Some(message) = to_node.recv().await {
            let bytes = control::encode(&message)?;
            replies.write_all(&bytes).await?;
            replies.flush().await?;
        }
        anyhow::Ok(())
    });
    let mut service = Service { options, node, key: Some(LinkIdentity::new_key()), identity: None, loaded: None };
    service.hello().await;
    while let Some(order) = read_order(&mut orders).await? {
        match order {
            ToShard::Shutdown => break,
            order => {
                if !service.obey(order).await {
                    break;
                }
            }
        }
    }
    service.finish().await;
    drop(service);
    // Whatever the node does not read any more is not worth waiting for.
    let _ = tokio::time::timeout(std::time::Duration::from_millis(500), writer).await;
    Ok(())
}

/// The next order; `None` once the pipe is closed.
async fn read_order(orders: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<Option<ToShard>> {
    let mut prefix = [0; 4];
    match orders.read_exact(&mut prefix).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let mut message = vec![0; control::length(prefix)?];
    orders.read_exact(&mut message).await?;
    Ok(Some(control::decode(&message)?))
}

struct Loaded {
    order: LoadOrder,
    inbox: mpsc::Sender<Event>,
    thread: std::thread::JoinHandle<()>,
    ticker: tokio::task::JoinHandle<()>,
}

struct Service {
    options: ShardOptions,
    node: mpsc::Sender<FromShard>,
    key: Option<LinkKey>,
    identity: Option<Arc<LinkIdentity>>,
    loaded: Option<Loaded>,
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Service {
    async fn hello(&self) {
        let link_key = self.key.as_ref().map_or(Address::ZERO, LinkKey::address);
        self.tell(FromShard::Hello { version: CONTROL_VERSION, link_key }).await;
    }

    async fn tell(&self, message: FromShard) {
        let _ = self.node.send(message).await;
    }

    /// Carries out an order. False: nothing more can be done.
    async fn obey(&mut self, order: ToShard) -> bool {
        match order {
            ToShard::Load(order) => match self.load(*order).await {
                Ok(footprint) => self.tell(FromShard::Loaded { footprint }).await,
                Err(failure) => {
                    self.tell(FromShard::LoadFailed { failure }).await;
                    return false;
                }
            },
            ToShard::Join { assignment, delegation, roster } => {
                let epoch = assignment.epoch;
                let joined = match serde_json::from_str(&delegation) {
                    Ok(delegation) => self.join(*assignment, delegation, roster).await,
                    Err(error) => Err(Failure::new(ReasonCode::Protocol, format!("no delegation: {error}"))),
                };
                if let Err(failure) = joined {
                    self.tell(FromShard::Failed { epoch, failure }).await;
                }
            }
            ToShard::Signal(signal) => self.forward(Event::Signal(signal)).await,
            ToShard::Leave { epoch } => self.forward(Event::Leave(epoch)).await,
            ToShard::Duty { percent } => self.forward(Event::Duty(percent)).await,
            ToShard::Shutdown => return false,
        }
        true
    }

    async fn forward(&self, event: Event) {
        if let Some(loaded) = &self.loaded {
            let _ = loaded.inbox.send(event).await;
        }
    }

    async fn load(&mut self, order: LoadOrder) -> Result<ShardFootprint, Failure> {
        if self.loaded.is_some() {
            return Err(Failure::new(ReasonCode::Protocol, "this shard has loaded its layers already"));
        }
        let begun = Instant::now();
        let (inbox, events) = mpsc::channel(INBOX);
        let (loaded, outcome) = oneshot::channel();
        let (threads, task) = (self.options.threads, order.clone());
        let (node, runtime) = (self.node.clone(), tokio::runtime::Handle::current());
        // Whatever computes is started by this thread, loading included, and takes after it.
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || {
                let _fate = SharedFate;
                if let Err(error) = pool_link::turns::ordinary() {
                    tracing::debug!(%error, "the engine's thread runs in short turns");
                }
                let loading = load_engine(&task, threads);
                match loading.and_then(|(engine, lease)| Ok((tried(engine, SLOWEST)?, lease))) {
                    Ok(((engine, canary), _lease)) => {
                        let _ = loaded.send(Ok((engine.footprint(), engine.options().kv_tokens, canary)));
                        worker::run(engine, events, node, runtime);
                    }
                    Err(failure) => drop(loaded.send(Err(failure))),
                }
            })
            .map_err(|e| Failure::new(ReasonCode::Engine, format!("the engine thread cannot start: {e}")))?;
        let (cost, kv_tokens, canary) =
            outcome.await.map_err(|_| Failure::new(ReasonCode::Engine, "loading the layers failed unexpectedly"))??;
        let footprint = ShardFootprint {
            weight_bytes: cost.weight_bytes,
            bytes_read: cost.bytes_read,
            kv_bytes_per_token: cost.kv_bytes_per_token,
            kv_tokens: kv_tokens as u64,
            resident_bytes: process::resident_bytes(),
            load_seconds: begun.elapsed().as_secs_f64(),
            token_seconds: canary.token_seconds,
        };
        let ticker = tokio::spawn(tick(inbox.clone()));
        self.loaded = Some(Loaded { order, inbox, thread, ticker });
        Ok(footprint)
    }

    async fn join(
        &mut self,
        assignment: Assignment,
        delegation: Delegation,
        roster: Vec<Address>,
    ) -> Result<(), Failure> {
        let protocol = |message: String| Failure::new(ReasonCode::Protocol, message);
        let Some(loaded) = &self.loaded else {
            return Err(protocol("asked to join before the layers were loaded".into()));
        };
        let me = loaded.order.address;
        let member = assignment.index_of(me).map(|i| &assignment.members[i]);
        let Some(member) = member.filter(|m| m.layers == loaded.order.layers && assignment.wire == loaded.order.wire)
        else {
            return Err(protocol("the assignment does not fit the loaded layers".into()));
        };
        tracing::info!(epoch = %assignment.epoch, layers = %member.layers, "joining");
        let unauthorised = |e: pool_link::SignalError| Failure::new(ReasonCode::Unauthorised, e.to_string());
        let identity = match (self.key.take(), self.identity.take()) {
            (Some(key), _) => key.with_delegation(delegation).map_err(unauthorised)?,
            (None, Some(identity)) => identity.renewed(delegation).map_err(unauthorised)?,
            (None, None) => return Err(protocol("this shard has no link key left".into())),
        };
        let identity = Arc::new(identity);
        self.identity = Some(identity.clone());
        let settings =
            if loaded.order.loopback_only { LinkSettings::loopback() } else { LinkSettings::wide_area(Vec::new()) };
        let plan = MeshPlan {
            identity,
            assignment: assignment.clone(),
            roster: roster.into_iter().collect(),
            settings,
            clock: unix_seconds,
        };
        let mesh = Mesh::start(plan, loaded.inbox.clone());
        let _ = loaded.inbox.send(Event::Join { assignment, me, mesh }).await;
        Ok(())
    }

    async fn finish(&mut self) {
        if let Some(loaded) = self.loaded.take() {
            loaded.ticker.abort();
            let _ = loaded.inbox.send(Event::Stop).await;
            let _ = tokio::task::spawn_blocking(move || loaded.thread.join()).await;
        }
    }
}

/// A shard whose engine has crashed is of no use, and silent: the process ends with it, and the node hears of it at once.
struct SharedFate;

impl Drop for SharedFate {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the engine has crashed; the shard ends");
            std::process::exit(101);
        }
    }
}

/// Wakes the engine thread four times a second, and asks it for its counters once a second.
async fn tick(inbox: mpsc::Sender<Event>) {
    let mut interval = tokio::time::interval(worker::TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for turn in 0u64.. {
        interval.tick().await;
        // A full inbox means there is work enough; the next tick comes soon.
        let _ = inbox.try_send(Event::Tick);
        if turn % 4 == 3 && matches!(inbox.try_send(Event::Stats), Err(mpsc::error::TrySendError::Closed(_))) {
            return;
        }
    }
}

/// Sends the canary through the layers: what computes wrongly, or too slowly for anybody to wait for, does not serve.
fn tried(mut engine: Engine, slowest: Duration) -> Result<(Engine, Canary), Failure> {
    let failed = |why: String| Failure::new(ReasonCode::Engine, why);
    let canary = engine.canary(Instant::now).map_err(|error| failed(format!("the canary failed: {error}")))?;
    if canary.token_seconds > slowest.as_secs_f64() {
        let (taken, most) = (canary.token_seconds, slowest.as_secs_f64());
        return Err(failed(format!("the canary failed: a token takes {taken:.1} s; at most {most:.0} s are served")));
    }
    Ok((engine, canary))
}

/// The engine, and what keeps the files that it was loaded from where they are.
fn load_engine(order: &LoadOrder, threads: usize) -> Result<(Engine, Option<Lease>), Failure> {
    let unusable = |error: &dyn std::fmt::Display| Failure::new(ReasonCode::Model, error.to_string());
    let model = Model::open(Path::new(&order.path)).map_err(|e| unusable(&e))?;
    if model.id != order.model {
        return Err(unusable(&format!("{} is not the model that was agreed on", order.path.display())));
    }
    let options = EngineOptions {
        layers: order.layers,
        threads,
        quantise: order.quantise.then_some(Quantise::Q8_0),
        wire: order.wire,
        kv_tokens: order.kv_tokens as usize,
        max_context: order.max_context as usize,
    };
    let engine = Engine::load(model.config.clone(), model.source.as_ref(), options).map_err(|e| unusable(&e))?;
    let lease = model.lease.map(Lease::of_assigned).transpose().map_err(|e| unusable(&e))?;
    Ok((engine, lease))
}
