//! An owner's node: it shares when the policy says so, and gives the machine back at once when the policy says that.
//!
//! The actor looks four times a second, and at once when somebody touches the machine; it owns the policy's memory, at
//! most one running shift, and stops when told to. Every change of what it does, with its reason and the signals that
//! caused it, is kept in the store for seven days; so is how long each return of the machine took.

mod books;
mod clock;
mod disk;
mod energy;
mod settings;
mod shift;
mod signals;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::tz::TimeZone;
use pool_coalition::stand_down::Manner;
use pool_models::Budget;
use pool_policy::{
    Action, Command, Decision, Downloads, GpuId, Memory, Moment, Percent, Problem, Settings, Signals, decide,
};
use pool_sense::Presence;
use pool_store::{DecisionRecord, Store, StoreError, YieldTimes};
use pool_types::Reading;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{
    books::Books,
    clock::unix_milliseconds,
    disk::DiskWatch,
    energy::Meters,
    shift::{Finished, News, Running},
};
pub use self::{
    clock::Clock,
    settings::{KeptSettings, kept_settings},
};
use crate::{
    backoff::Backoff,
    config::{NodeConfig, NodeModel},
    node::Activity,
};

/// How long decisions are kept.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often old ones are forgotten.
const TIDY: Duration = Duration::from_secs(3600);
/// After a shift that ended in a problem, the owner is told of it for this long before the next try.
const PROBLEMS: [Duration; 4] =
    [Duration::from_secs(15), Duration::from_secs(60), Duration::from_secs(300), Duration::from_secs(900)];
/// Where the policy's memory is kept among the settings, so that a pause survives a restart.
const MEMORY: &str = "owner.memory";

/// What an owner's node is told when it starts.
pub struct OwnerConfig {
    /// How it serves.
    pub node: NodeConfig,
    /// The model's name for people.
    pub model_name: String,
    /// What is known of the owner and the machine.
    pub presence: Arc<dyn Presence>,
    /// What the owner has set.
    pub settings: Settings,
    /// The time.
    pub clock: Clock,
    /// The owner's time of day.
    pub zone: TimeZone,
    /// Where decisions and yields are kept.
    pub store: Store,
}

/// What the owner asks of a running node.
#[derive(Debug)]
pub struct Ask {
    /// What for.
    pub wish: Wish,
    /// Hears what the node does then.
    pub answer: oneshot::Sender<OwnerView>,
}

/// What an owner may want.
#[derive(Clone, Debug)]
pub enum Wish {
    /// To pause, to go on, to share now.
    Command(Command),
    /// To share by other settings from now on.
    Settings(Box<Settings>),
    /// To be told what holds now, looked at anew.
    Look,
}

/// What an owner's node does and why, for whoever shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnerView {
    /// The decision.
    pub decision: Decision,
    /// It, in plain words.
    pub sentence: String,
    /// The reason alone, as a row of a menu.
    pub row: String,
    /// What the owner has set.
    pub settings: Settings,
    /// What the node does.
    pub activity: Activity,
    /// The GPUs that it does that on.
    pub gpus: Vec<GpuId>,
    /// How long giving the machine back took so far.
    pub yields: YieldTimes,
}

/// Why an owner's node ended.
#[derive(Debug, Error)]
pub enum OwnerError {
    /// Its memory of itself failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Runs an owner's node until `shutdown`; then the machine is the owner's again. `asked` is what the owner asks for
/// meanwhile, `view` shows what happens.
pub async fn run(
    config: OwnerConfig,
    mut asked: mpsc::Receiver<Ask>,
    view: watch::Sender<Option<OwnerView>>,
    shutdown: CancellationToken,
) -> Result<(), OwnerError> {
    let mut keeper = Keeper::new(config, view).await?;
    // Whatever went wrong with the books, the machine is the owner's again.
    let kept = keeper.keep_watch(&mut asked, &shutdown).await;
    let ended = keeper.end().await;
    kept.and(ended)
}

impl Keeper {
    async fn keep_watch(
        &mut self,
        asked: &mut mpsc::Receiver<Ask>,
        shutdown: &CancellationToken,
    ) -> Result<(), OwnerError> {
        let mut input = self.config.presence.input();
        let mut clock = self.config.clock.clone();
        let mut input_works = true;
        let mut somebody_asks = true;
        loop {
            self.decide_and_act(&input).await?;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                // The first touch: nothing is waited for.
                changed = input.changed(), if input_works => input_works = changed.is_ok(),
                news = shift::news(&mut self.running, &self.config.clock) => match news {
                    News::Changed => {}
                    News::Finished(finished) => self.finish(finished).await?,
                },
                ask = asked.recv(), if somebody_asks => match ask {
                    Some(ask) => self.obey(ask).await?,
                    None => somebody_asks = false,
                },
                () = clock.look() => {}
            }
        }
    }
}

struct Keeper {
    config: OwnerConfig,
    view: watch::Sender<Option<OwnerView>>,
    memory: Memory,
    last: Option<Decision>,
    running: Option<Running>,
    books: Books,
    meters: Meters,
    /// Where models are fetched.
    disk: Option<DiskWatch>,
    /// What went wrong, and until when (on the steady clock) the owner is told of it.
    problem: Option<(Problem, Duration)>,
    problems: Backoff,
    yields: YieldTimes,
    tidied: Option<Duration>,
    /// Those who asked for something and wait for what the node does then.
    waiting: Vec<oneshot::Sender<OwnerView>>,
}

impl Keeper {
    async fn new(config: OwnerConfig, view: watch::Sender<Option<OwnerView>>) -> Result<Self, OwnerError> {
        let kept = config.store.setting(MEMORY).await?;
        let memory = kept.and_then(|text| {
            let read = serde_json::from_str(&text);
            read.inspect_err(|error| warn!(%error, "what was remembered cannot be read; a pause may be forgotten")).ok()
        });
        let yields = config.store.yield_times().await?;
        let disk = match &config.node.model {
            NodeModel::Local(_) => None,
            NodeModel::Fetched(fetch) => Some(DiskWatch::new(fetch.downloads().clone())),
        };
        let books = Books::open(&config.store, config.model_name.clone()).await?;
        let keeper = Self {
            config,
            view,
            memory: memory.unwrap_or_default(),
            last: None,
            running: None,
            books,
            meters: Meters::default(),
            disk,
            problem: None,
            problems: Backoff::new(&PROBLEMS),
            yields,
            tidied: None,
            waiting: Vec::new(),
        };
        keeper.set_in_force().await?;
        Ok(keeper)
    }

    async fn decide_and_act(&mut self, input: &watch::Receiver<Reading<Instant>>) -> Result<(), OwnerError> {
        let now = self.config.clock.now();
        if self.problem.as_ref().is_some_and(|(_, until)| now.steady >= *until) {
            self.problem = None;
        }
        self.look_for_trouble(now);
        let activity = self.running.as_ref().map_or(Activity::Idle, |running| running.shift.activity());
        let signals = signals::of(
            &self.config.presence.snapshot(),
            &activity,
            &self.config.model_name,
            self.problem.as_ref().map(|(problem, _)| problem.clone()),
            self.disk.as_mut().map(|disk| disk.read(now.steady)),
        );
        let (decision, memory) = decide(&self.config.settings, &self.memory, now, &self.config.zone, &signals);
        self.memory = memory;
        // First the owner's machine, then the books.
        self.act(&decision, now, input);
        self.steer_downloads(&decision).await;
        let ours = self.running.iter().filter_map(|running| running.shift.process());
        self.config.presence.set_own_processes(ours.collect());
        self.count(now, &activity).await?;
        if self.last.as_ref().is_none_or(|last| decision.is_transition_from(last)) {
            self.keep(&decision, now, &signals).await?;
        }
        self.show(&decision, now, activity);
        self.last = Some(decision);
        Ok(())
    }

    /// A shift that cannot load what it is given is a problem: it is given up, and tried again after a while.
    fn look_for_trouble(&mut self, now: Moment) {
        let Some(running) = &mut self.running else { return };
        running.served |= matches!(running.shift.activity(), Activity::Serving { .. });
        if self.problem.is_none()
            && let Some(trouble) = running.shift.trouble()
        {
            let problem = shift::cannot_load(&trouble);
            warn!(what = problem.what, "the node cannot serve");
            self.problem = Some((problem, now.steady + self.problems.next()));
        }
    }

    fn act(&mut self, decision: &Decision, now: Moment, input: &watch::Receiver<Reading<Instant>>) {
        match decision.action {
            Action::Share | Action::ShareGently(_) => {
                if self.running.is_none() && self.problem.is_none() {
                    let cards = decision.gpus.iter().filter(|gpu| gpu.may_use).map(|gpu| gpu.id.clone()).collect();
                    let (node, presence) = (self.config.node.clone(), self.config.presence.clone());
                    self.running = Some(Running::start(node, cards, presence));
                }
                if let Some(running) = &mut self.running {
                    running.follow_cards(&decision.gpus, now.steady);
                }
                let duty = if let Action::ShareGently(Percent(duty)) = decision.action { duty } else { 100 };
                self.running.iter().for_each(|running| running.shift.set_duty(duty));
            }
            Action::Drain(Percent(duty)) => {
                if let Some(running) = &mut self.running {
                    running.shift.set_duty(duty);
                    running.leave(Manner::Drain, Instant::now(), String::new());
                }
            }
            Action::Stay | Action::Yield => {
                let Some(running) = &mut self.running else { return };
                // What asked for it: the input, where it was one.
                let touched = input.borrow().known().copied();
                let looked = Instant::now();
                let recent = |at: &Instant| looked.saturating_duration_since(*at) < Duration::from_secs(2);
                let event = touched.filter(recent).unwrap_or(looked);
                running.leave(Manner::Yield, event, decision.sentence(now, &self.config.zone).row());
            }
        }
    }

    /// Lets downloads run, or wait, as was decided.
    async fn steer_downloads(&self, decision: &Decision) {
        let NodeModel::Fetched(fetch) = &self.config.node.model else { return };
        if self.last.as_ref().is_some_and(|last| last.downloads == decision.downloads) {
            return;
        }
        let downloads = fetch.downloads();
        let steered = match decision.downloads {
            Downloads::Run { at_most } => match downloads.set_bandwidth(at_most).await {
                Ok(()) => downloads.resume_all().await,
                Err(error) => Err(error),
            },
            Downloads::Wait(_) => downloads.pause_all().await,
        };
        if let Err(error) = steered {
            warn!(%error, "the downloads do not obey");
        }
    }

    /// A shift has ended: keep how long the return took, or tell what went wrong.
    async fn finish(&mut self, finished: Finished) -> Result<(), OwnerError> {
        // What it did until now is booked while it can still be asked.
        let counted = self.count(self.config.clock.now(), &Activity::Idle).await;
        if self.running.take().is_some_and(|running| running.served) {
            self.problems.reset();
        }
        match finished {
            Finished::GaveBack(record) => {
                info!(milliseconds = record.given_back(), reason = record.reason, "the machine was given back");
                self.config.store.gave_back(&record).await?;
                self.yields = self.config.store.yield_times().await?;
            }
            Finished::Left => {}
            Finished::Problem(problem) => {
                warn!(what = problem.what, "the node cannot serve");
                self.problem = Some((problem, self.config.clock.now().steady + self.problems.next()));
            }
        }
        counted
    }

    async fn obey(&mut self, ask: Ask) -> Result<(), OwnerError> {
        self.waiting.push(ask.answer);
        match ask.wish {
            Wish::Command(command) => {
                info!(?command, "the owner asks");
                self.memory =
                    self.memory.obey(command, &self.config.settings, self.config.clock.now(), &self.config.zone);
                self.remember().await
            }
            Wish::Settings(settings) => {
                info!("the owner has changed the settings");
                self.config.settings = *settings;
                self.set_in_force().await
            }
            Wish::Look => Ok(()),
        }
    }

    /// Keeps the settings, and tells those who go by a part of them.
    async fn set_in_force(&self) -> Result<(), OwnerError> {
        let Settings { wait_for_programs, disk_budget, disk_reserve, .. } = &self.config.settings;
        self.config.presence.set_programs(wait_for_programs.clone());
        if let NodeModel::Fetched(fetch) = &self.config.node.model {
            let budget = Budget { most: Some(*disk_budget), keep_free: *disk_reserve };
            if let Err(error) = fetch.downloads().set_budget(budget).await {
                warn!(%error, "the downloads do not obey");
            }
        }
        Ok(settings::keep(&self.config.store, &self.config.settings).await?)
    }

    /// Books what was worked since the last look.
    async fn count(&mut self, now: Moment, activity: &Activity) -> Result<(), OwnerError> {
        let tokens = self.running.as_ref().map_or(0, |running| running.shift.tokens());
        let cards = self.running.as_ref().map(|running| running.gpus.as_slice());
        let used = self.meters.read(&self.config.presence.snapshot(), cards);
        let price = self.config.settings.electricity_price;
        let time = (now.steady, unix_milliseconds(now));
        Ok(self.books.count(&self.config.store, time, activity, tokens, used, price).await?)
    }

    async fn keep(&mut self, decision: &Decision, now: Moment, signals: &Signals) -> Result<(), OwnerError> {
        let sentence = decision.sentence(now, &self.config.zone).to_string();
        info!(%sentence, "decided");
        let json = |value: Result<serde_json::Value, serde_json::Error>| {
            value.inspect_err(|error| error!(%error, "a decision cannot be written")).unwrap_or_default()
        };
        let state = json(serde_json::to_value(decision.state));
        let record = DecisionRecord {
            at: unix_milliseconds(now),
            state: state.as_str().unwrap_or_default().to_owned(),
            sentence,
            decision: json(serde_json::to_value(decision)),
            signals: json(serde_json::to_value(signals)),
        };
        self.config.store.decided(&record).await?;
        if self.tidied.is_none_or(|at| now.steady.saturating_sub(at) >= TIDY) {
            self.tidied = Some(now.steady);
            self.config.store.forget_decisions(record.at.saturating_sub(KEEP.as_millis() as u64)).await?;
        }
        self.remember().await
    }

    async fn remember(&self) -> Result<(), OwnerError> {
        match serde_json::to_string(&self.memory) {
            Ok(text) => self.config.store.set_setting(MEMORY, &text).await?,
            Err(error) => error!(%error, "what is to be remembered cannot be written"),
        }
        Ok(())
    }

    fn show(&mut self, decision: &Decision, now: Moment, activity: Activity) {
        let sentence = decision.sentence(now, &self.config.zone);
        let view = OwnerView {
            decision: decision.clone(),
            sentence: sentence.to_string(),
            row: sentence.row(),
            settings: self.config.settings.clone(),
            activity,
            gpus: self.running.as_ref().map(|running| running.gpus.clone()).unwrap_or_default(),
            yields: self.yields,
        };
        for waiting in self.waiting.drain(..) {
            // Who has stopped waiting misses nothing.
            let _ = waiting.send(view.clone());
        }
        self.view.send_if_modified(|shown| {
            let changed = shown.as_ref() != Some(&view);
            if changed {
                *shown = Some(view);
            }
            changed
        });
    }

    /// Gives the machine back and remembers.
    async fn end(mut self) -> Result<(), OwnerError> {
        if let Some(running) = &mut self.running {
            running.leave(Manner::Yield, Instant::now(), "the node ends".to_owned());
            let finished = shift::finished(&mut self.running, &self.config.clock).await;
            self.finish(finished).await?;
        }
        self.remember().await
    }
}
