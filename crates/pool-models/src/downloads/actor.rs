//! The actor that owns the list of downloads. Its doc is that of [`super`].

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use alloy_primitives::B256;
use pool_types::ByteSize;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{Id, JoinError, JoinSet, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    Download, DownloadError, DownloadId, DownloadOptions, DownloadStatus, Downloads,
    bandwidth::Bandwidth,
    host::Http,
    job::{Choice, Doing, Job, Phase, prepare},
    work::{Stop, Work, lock},
};
use crate::{
    cache::{Budget, Cache, CacheError, Lease, NoRoom, Space},
    plan::{Plan, Run, Wanted},
};

const TICK: Duration = Duration::from_millis(250);
/// How soon a download that found no room asks again.
const ROOM_WAIT: Duration = Duration::from_secs(5);
/// How soon a run that somebody else is writing is looked at again.
const BUSY_WAIT: Duration = Duration::from_millis(300);

type Answer<T> = oneshot::Sender<Result<T, DownloadError>>;

/// What a handle asks for.
pub(super) enum Command {
    Add { download: Box<Download>, hash: B256, reply: Answer<DownloadId> },
    Pause { id: DownloadId, reply: Answer<()> },
    Resume { id: DownloadId, reply: Answer<()> },
    Cancel { id: DownloadId, reply: Answer<(B256, Wanted)> },
    Priority { id: DownloadId, priority: i32, reply: Answer<()> },
    All { paused: bool, reply: oneshot::Sender<()> },
    Bandwidth { cap: Option<ByteSize>, reply: oneshot::Sender<()> },
    Budget { budget: Budget, reply: oneshot::Sender<()> },
    Stop,
}

/// How a task of a download ended.
enum End {
    Prepared(Result<(Plan, Lease), DownloadError>),
    Room(Result<(), NoRoom>),
    Fetched(Result<(), Stop>),
    /// Whether everything is there indeed.
    Checked(Result<bool, DownloadError>),
}

pub(super) struct Actor {
    cache: Cache,
    http: Http,
    options: DownloadOptions,
    space: Arc<dyn Space>,
    bandwidth: Arc<Bandwidth>,
    jobs: Vec<Job>,
    next_id: u64,
    all_paused: bool,
    tasks: JoinSet<(DownloadId, End)>,
    out: watch::Sender<Vec<DownloadStatus>>,
}

impl Actor {
    pub(super) fn new(
        cache: Cache,
        http: Http,
        options: DownloadOptions,
        space: Arc<dyn Space>,
        out: watch::Sender<Vec<DownloadStatus>>,
    ) -> Self {
        let bandwidth = Arc::new(Bandwidth::new(options.bandwidth.map(|cap| cap.0)));
        let (jobs, tasks) = (Vec::new(), JoinSet::new());
        Self { cache, http, options, space, bandwidth, jobs, next_id: 1, all_paused: false, tasks, out }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // When the speeds were last measured; nothing ticks while nothing is going on.
        let mut last = None;
        loop {
            let busy = !self.all_paused && self.jobs.iter().any(Job::goes_on_by_itself);
            tokio::select! {
                command = inbox.recv() => match command {
                    None | Some(Command::Stop) => break,
                    Some(command) => self.obey(command),
                },
                Some(end) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.finish(end),
                now = tick.tick(), if busy => {
                    let elapsed = last.replace(now).map(|last| now.duration_since(last));
                    self.measure(elapsed.unwrap_or_default());
                }
            }
            last = last.filter(|_| busy);
            self.proceed(Instant::now());
            self.publish();
        }
        self.jobs.iter_mut().for_each(Job::halt);
        self.tasks.shutdown().await;
    }

    fn obey(&mut self, command: Command) {
        // A handle that did not wait for its answer is no concern of ours.
        match command {
            Command::Add { download, hash, reply } => {
                let added = self.add(*download, hash);
                self.publish();
                let _ = reply.send(added);
            }
            Command::Pause { id, reply } => {
                let paused = self.job(id).map(|job| {
                    job.paused = true;
                    job.halt();
                });
                self.publish();
                let _ = reply.send(paused);
            }
            Command::Resume { id, reply } => {
                let resumed = self.job(id).map(|job| {
                    job.paused = false;
                    if job.phase == Phase::Failed {
                        job.reset_hosts();
                        (job.phase, job.message) = (Phase::New, None);
                    }
                });
                self.publish();
                let _ = reply.send(resumed);
            }
            Command::Cancel { id, reply } => {
                let cancelled = self.job(id).map(|job| {
                    job.halt();
                    (job.hash, job.download.wanted)
                });
                self.jobs.retain(|job| job.id != id);
                self.publish();
                let _ = reply.send(cancelled);
            }
            Command::Priority { id, priority, reply } => {
                let _ = reply.send(self.job(id).map(|job| job.download.priority = priority));
            }
            Command::All { paused, reply } => {
                self.all_paused = paused;
                if paused {
                    self.jobs.iter_mut().for_each(Job::halt);
                }
                self.publish();
                let _ = reply.send(());
            }
            Command::Bandwidth { cap, reply } => {
                self.bandwidth.set(cap.map(|cap| cap.0));
                let _ = reply.send(());
            }
            Command::Budget { budget, reply } => {
                self.options.budget = budget;
                let running = self.jobs.iter_mut().filter(|job| matches!(job.phase, Phase::Fetching | Phase::Room(_)));
                running.for_each(|job| job.phase = Phase::Room(None));
                let _ = reply.send(());
            }
            Command::Stop => {}
        }
    }

    fn job(&mut self, id: DownloadId) -> Result<&mut Job, DownloadError> {
        self.jobs.iter_mut().find(|job| job.id == id).ok_or(DownloadError::Unknown)
    }

    fn add(&mut self, download: Download, hash: B256) -> Result<DownloadId, DownloadError> {
        if self.jobs.len() >= Downloads::MOST {
            let ended = self.jobs.iter().position(|job| job.phase == Phase::Done);
            let Some(ended) = ended else { return Err(DownloadError::TooMany(self.jobs.len())) };
            self.jobs.remove(ended);
        }
        let id = DownloadId(self.next_id);
        self.next_id += 1;
        self.jobs.push(Job::new(id, download, hash));
        Ok(id)
    }

    fn measure(&mut self, elapsed: Duration) {
        for job in &mut self.jobs {
            if let Some(work) = &job.work {
                job.meter.read(work.received.load(Ordering::Relaxed), elapsed);
            }
        }
    }

    fn publish(&self) {
        let list: Vec<DownloadStatus> =
            self.jobs.iter().map(|job| job.status(self.all_paused, self.cache.model_path(job.hash))).collect();
        self.out.send_if_modified(|published| {
            let changed = *published != list;
            *published = list;
            changed
        });
    }

    fn finish(&mut self, end: Result<(Id, (DownloadId, End)), JoinError>) {
        let now = Instant::now();
        let (task, end) = match end {
            Ok((task, (_, end))) => (task, Some(end)),
            Err(error) => (error.id(), None),
        };
        // A task that was stopped belongs to nobody any more.
        let Some(job) = self.jobs.iter_mut().find(|job| job.tasks.contains_key(&task)) else { return };
        let Some(doing) = job.tasks.remove(&task) else { return };
        match end {
            None => job.fail(DownloadError::Broken.to_string()),
            Some(End::Prepared(Ok((plan, lease)))) => {
                let (http, bandwidth) = (self.http.clone(), self.bandwidth.clone());
                let work = Work::new(self.cache.clone(), job.download.manifest.clone(), plan, http, bandwidth);
                job.prepared(work, lease);
            }
            Some(End::Prepared(Err(error)) | End::Checked(Err(error))) => job.fail(error.to_string()),
            // Somebody took something away, or died just before its last step: look again.
            Some(End::Checked(Ok(false))) => job.halt(),
            Some(End::Room(Ok(()))) => (job.phase, job.message) = (Phase::Fetching, None),
            Some(End::Room(Err(NoRoom::Cache(error)))) if !waits(&error) => job.fail(error.to_string()),
            Some(End::Room(Err(error))) => no_room(job, now, error.to_string()),
            Some(End::Checked(Ok(true))) => {
                (job.phase, job.message) = (Phase::Done, None);
                job.halt();
            }
            Some(End::Fetched(result)) => {
                if let Some((host, run)) = doing.fetching {
                    fetched(job, host, lock(&run).clone(), result, now, &self.options);
                }
            }
        }
    }

    /// Begins whatever can begin.
    fn proceed(&mut self, now: Instant) {
        // What goes first stands first.
        self.jobs.sort_by_key(|job| (std::cmp::Reverse(job.download.priority), job.id));
        for number in 0..self.jobs.len() {
            if self.all_paused || self.jobs.get(number).is_none_or(|job| job.paused) {
                continue;
            }
            self.step(number, now);
        }
        self.share_connections(now);
    }

    fn step(&mut self, number: usize, now: Instant) {
        let others: u64 = (self.jobs.iter().enumerate())
            .filter(|(other, job)| *other != number && job.phase == Phase::Fetching)
            .map(|(_, job)| job.remaining())
            .sum();
        let Some(job) = self.jobs.get_mut(number) else { return };
        let (id, cache, manifest) = (job.id, self.cache.clone(), job.download.manifest.clone());
        let (hash, wanted) = (job.hash, job.download.wanted);
        match job.phase {
            Phase::New if job.tasks.is_empty() => {
                job.phase = Phase::Preparing;
                let abort = self.tasks.spawn(async move {
                    let found = spawn_blocking(move || prepare(&cache, &manifest, hash, wanted)).await;
                    (id, End::Prepared(found.unwrap_or(Err(DownloadError::Broken))))
                });
                job.tasks.insert(abort.id(), Doing { abort, fetching: None });
            }
            Phase::Room(_) if job.remaining() == 0 => job.phase = Phase::Fetching,
            Phase::Room(when) if when.is_none_or(|when| when <= now) && !is_asking(job) => {
                let needed = job.remaining().saturating_add(others);
                let (budget, space) = (self.options.budget, self.space.clone());
                let abort = self.tasks.spawn(async move {
                    let room =
                        spawn_blocking(move || cache.make_room(needed, budget, space.as_ref()).map(|_| ())).await;
                    (id, End::Room(room.unwrap_or(Ok(()))))
                });
                job.tasks.insert(abort.id(), Doing { abort, fetching: None });
            }
            Phase::Fetching => {
                let Some(work) = job.work.clone() else { return };
                let (due, later) = std::mem::take(&mut job.deferred).into_iter().partition(|(when, _)| *when <= now);
                job.deferred = later;
                let due: Vec<(Instant, Run)> = due;
                lock(&work.queue).extend(due.into_iter().map(|(_, run)| run));
                if job.tasks.is_empty() && job.deferred.is_empty() && lock(&work.queue).is_empty() {
                    job.phase = Phase::Checking;
                    let abort = self.tasks.spawn(async move {
                        let checked = spawn_blocking(move || check(&work)).await;
                        (id, End::Checked(checked.unwrap_or(Err(DownloadError::Broken))))
                    });
                    job.tasks.insert(abort.id(), Doing { abort, fetching: None });
                }
            }
            _ => {}
        }
    }

    /// Gives free connections to the downloads that go first.
    fn share_connections(&mut self, now: Instant) {
        let most = self.options.connections.max(1);
        let connections = |jobs: &[Job]| -> usize { jobs.iter().map(in_flight).sum() };
        for number in 0..self.jobs.len() {
            loop {
                let free = connections(&self.jobs) < most;
                let Some(job) = self.jobs.get_mut(number) else { return };
                if job.paused || self.all_paused || job.phase != Phase::Fetching {
                    break;
                }
                let Some(work) = job.work.clone() else { break };
                if !free {
                    // Those that come later let go of a connection each after the piece they are at.
                    let wants_more = !lock(&work.queue).is_empty() && in_flight(job) < most;
                    let priority = job.download.priority;
                    for later in self.jobs.iter().skip(number + 1).filter(|later| later.download.priority < priority) {
                        if let (true, Some(work)) = (wants_more, &later.work) {
                            work.yielding.store(true, Ordering::Relaxed);
                        }
                    }
                    break;
                }
                work.yielding.store(false, Ordering::Relaxed);
                if disk_is_too_full(&self.cache, self.space.as_ref(), &self.options) {
                    job.phase = Phase::Room(None);
                    break;
                }
                match job.next_run(now) {
                    Err(Choice::Nobody) => {
                        let message = job.message.take();
                        job.fail(message.unwrap_or_else(|| DownloadError::NoMirror.to_string()));
                        break;
                    }
                    Err(_) => break,
                    Ok((host, run)) => {
                        let Some(link) = job.hosts.get(host).map(|host| host.link.clone()) else { break };
                        let run = Arc::new(std::sync::Mutex::new(run));
                        let (id, shared) = (job.id, run.clone());
                        let abort = self.tasks.spawn(async move { (id, End::Fetched(work.fetch(link, shared).await)) });
                        job.tasks.insert(abort.id(), Doing { abort, fetching: Some((host, run)) });
                        job.began(host);
                    }
                }
            }
        }
    }
}

fn in_flight(job: &Job) -> usize {
    job.tasks.values().filter(|doing| doing.fetching.is_some()).count()
}

fn is_asking(job: &Job) -> bool {
    job.tasks.values().any(|doing| doing.fetching.is_none())
}

/// Whether the owner's free space is being eaten, by whomever.
fn disk_is_too_full(cache: &Cache, space: &dyn Space, options: &DownloadOptions) -> bool {
    space.free(cache.root()).is_ok_and(|free| free < options.budget.keep_free.0)
}

/// Whether the cause passes by itself, as when somebody frees space.
fn waits(error: &CacheError) -> bool {
    matches!(error, CacheError::DiskFull(_) | CacheError::Busy(_))
}

fn no_room(job: &mut Job, now: Instant, message: String) {
    job.phase = Phase::Room(Some(now + ROOM_WAIT));
    job.message = Some(message);
}

/// Takes a connection's result.
fn fetched(job: &mut Job, host: usize, run: Run, result: Result<(), Stop>, now: Instant, options: &DownloadOptions) {
    let Some(work) = job.work.clone() else { return };
    let file = run.file;
    let again = |run: Run| lock(&work.queue).push_front(run);
    match result {
        Ok(()) => job.ended(host, file, None, now, options),
        Err(Stop::Host(error, piece)) => {
            again(run);
            job.ended(host, file, Some((error, piece)), now, options);
        }
        Err(Stop::Busy) => {
            job.ended(host, file, None, now, options);
            job.deferred.push((now + BUSY_WAIT, run));
        }
        Err(Stop::Yielded) => {
            again(run);
            job.ended(host, file, None, now, options);
        }
        Err(Stop::Cache(error)) if waits(&error) => {
            again(run);
            job.ended(host, file, None, now, options);
            no_room(job, now, error.to_string());
        }
        Err(Stop::Cache(error)) => job.fail(error.to_string()),
        Err(Stop::Broken) => job.fail(DownloadError::Broken.to_string()),
    }
}

/// Whether everything is there, and the files of which every byte is there hash to what they should. Blocks on the disk.
fn check(work: &Work) -> Result<bool, DownloadError> {
    if !work.plan.items.iter().all(|item| work.cache.has(&item.content)) {
        return Ok(false);
    }
    for &file in &work.plan.whole_files {
        if work.cache.check_file(&work.manifest, file)? == Some(false) {
            work.cache.discard_file(&work.manifest, file)?;
            return Err(DownloadError::WrongFile { path: work.manifest.path(file).to_owned() });
        }
    }
    Ok(true)
}
