//! The actor that owns the list of downloads. Its doc is that of [`super`].

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use alloy_primitives::B256;
use pool_types::ByteSize;
use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinError, JoinSet, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    AccessToken, DiskTotals, DownloadError, DownloadId, DownloadOptions, DownloadsOverview, QueueHealth,
    bandwidth::Bandwidth,
    commands::Command,
    host::Http,
    job::{Choice, Doing, Job, Phase, Prepared, What, prepare},
    queue::{Entry, Left, Queue, Restored, Stranded, restore_all},
    work::{Stop, Work, lock},
};
use crate::{
    cache::{Cache, CacheError, Checking, DiskUse, NoRoom, Space},
    plan::Run,
};

const TICK: Duration = Duration::from_millis(250);
/// How soon a download that found something in its way, such as a full disk, tries again; and how soon the queue is
/// written again where that failed, or is tried to be taken over.
const WAIT: Duration = Duration::from_secs(5);
/// How soon a run that somebody else is writing is looked at again.
const BUSY_WAIT: Duration = Duration::from_millis(300);
/// How old the measure of the disk may be while bytes come.
const MEASURE: Duration = Duration::from_secs(1);

/// How a task ended.
enum End {
    Prepared(Result<Prepared, CacheError>),
    Room(Result<DiskUse, NoRoom>),
    Fetched(Result<(), Stop>),
    /// Whether everything is there indeed.
    Checked(Result<bool, DownloadError>),
    Measured(Result<DiskUse, CacheError>),
    /// Our own code broke off.
    Broken,
}

pub(super) struct Actor {
    cache: Cache,
    http: Http,
    pub(super) options: DownloadOptions,
    space: Arc<dyn Space>,
    tokens: BTreeMap<String, AccessToken>,
    pub(super) bandwidth: Arc<Bandwidth>,
    pub(super) jobs: Vec<Job>,
    pub(super) stranded: Vec<Stranded>,
    /// When those are tried again.
    stranded_again: Option<Instant>,
    pub(super) checking: BTreeMap<B256, Checking>,
    next_id: u64,
    pub(super) all_paused: bool,
    tasks: JoinSet<End>,
    /// `None` while another process keeps it.
    queue: Option<Arc<Queue>>,
    health: QueueHealth,
    /// The queue says something else than the list.
    pub(super) unsaved: bool,
    /// When to try again to take the queue over or to write it.
    again: Option<Instant>,
    disk: DiskUse,
    measured: Option<Instant>,
    measuring: Option<Id>,
    pub(super) remeasure: bool,
    out: watch::Sender<DownloadsOverview>,
}

impl Actor {
    pub(super) fn new(
        cache: Cache,
        http: Http,
        options: DownloadOptions,
        space: Arc<dyn Space>,
        tokens: BTreeMap<String, AccessToken>,
        out: watch::Sender<DownloadsOverview>,
    ) -> Self {
        Self {
            cache,
            http,
            options,
            space,
            tokens,
            bandwidth: Arc::new(Bandwidth::new(options.bandwidth.map(|cap| cap.0))),
            jobs: Vec::new(),
            stranded: Vec::new(),
            stranded_again: None,
            checking: BTreeMap::new(),
            next_id: 1,
            all_paused: options.paused,
            tasks: JoinSet::new(),
            queue: None,
            health: QueueHealth::default(),
            unsaved: false,
            again: None,
            disk: DiskUse::default(),
            measured: None,
            measuring: None,
            remeasure: true,
            out,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // When the speeds were last measured; nothing ticks while nothing is going on.
        let mut last = None;
        self.take_queue().await;
        loop {
            self.proceed(Instant::now());
            self.publish();
            let busy = self.again.is_some() || (!self.all_paused && self.jobs.iter().any(Job::goes_on_by_itself));
            last = last.filter(|_| busy);
            let mut reply = None;
            let again_at = self.stranded_again.filter(|_| !self.stranded.is_empty());
            tokio::select! {
                command = inbox.recv() => match command {
                    None | Some(Command::Stop) => break,
                    Some(command) => reply = Some(self.obey(command)),
                },
                Some(end) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.finish(end),
                () = sleep_until(again_at.unwrap_or_else(Instant::now)), if again_at.is_some() => self.try_stranded().await,
                now = tick.tick(), if busy => {
                    let elapsed = last.replace(now).map(|last| now.duration_since(last));
                    self.measure_speeds(elapsed.unwrap_or_default());
                }
            }
            self.keep_queue().await;
            if let Some(reply) = reply {
                // What is answered can be seen.
                self.publish();
                reply();
            }
        }
        let ended: Vec<_> = self.jobs.iter_mut().map(Job::halt).collect();
        self.tasks.shutdown().await;
        for ended in ended {
            ended.wait().await;
        }
    }

    pub(super) fn next_id(&mut self) -> DownloadId {
        let id = DownloadId(self.next_id);
        self.next_id += 1;
        id
    }

    /// Takes over what an earlier process left, unless another one is at it.
    async fn take_queue(&mut self) {
        let (cache, tokens) = (self.cache.clone(), self.tokens.clone());
        let taken = spawn_blocking(move || Queue::take(&cache, &tokens)).await;
        self.again = Some(Instant::now() + WAIT);
        match taken {
            Ok(Ok(Some(left))) => self.go_on_with(left),
            Ok(Ok(None)) => {
                let other = "another program on this machine keeps the queue of downloads; these end with this program";
                self.health.problem = Some(other.to_owned());
            }
            Ok(Err(error)) => self.health.problem = Some(error.to_string()),
            Err(_) => self.health.problem = Some(DownloadError::Broken.to_string()),
        }
    }

    fn go_on_with(&mut self, left: Left) {
        let Left { queue, restored, stranded, set_aside } = left;
        (self.queue, self.again) = (Some(Arc::new(queue)), None);
        self.health = QueueHealth { set_aside, problem: None };
        self.unsaved = true;
        self.adopt(restored);
        let known = |left: &Stranded| self.jobs.iter().any(|job| left.entry.is_of(job.facts.hash, job.download.wanted));
        self.stranded = stranded.into_iter().filter(|left| !known(left)).collect();
        self.stranded_again = Some(Instant::now() + self.options.longest_pause);
    }

    /// What was in the way of an entry may have passed: a disk that was not there, a file that nobody could open.
    async fn try_stranded(&mut self) {
        let (cache, tokens) = (self.cache.clone(), self.tokens.clone());
        let entries: Vec<Entry> = self.stranded.iter().map(|left| left.entry.clone()).collect();
        self.stranded_again = Some(Instant::now() + self.options.longest_pause);
        let Ok((restored, stranded)) = spawn_blocking(move || restore_all(&cache, entries, &tokens)).await else {
            return;
        };
        self.unsaved |= !restored.is_empty() || stranded.len() != self.stranded.len();
        self.stranded = stranded;
        self.adopt(restored);
    }

    fn adopt(&mut self, restored: Vec<Restored>) {
        for Restored { download, facts, paused, done } in restored {
            if self.jobs.iter().any(|job| job.is_of(facts.hash, download.wanted)) {
                continue;
            }
            let mut job = Job::new(self.next_id(), download, facts);
            job.paused = paused;
            if done {
                job.phase = Phase::Done;
            }
            self.jobs.push(job);
        }
    }

    /// Writes the queue where it has changed.
    async fn keep_queue(&mut self) {
        let due = self.again.is_none_or(|again| again <= Instant::now());
        let Some(queue) = self.queue.clone() else {
            if due {
                self.take_queue().await;
            }
            return;
        };
        if !self.unsaved || !due {
            return;
        }
        self.sort();
        let stranded = self.stranded.iter().map(|left| left.entry.clone());
        let entries = self.jobs.iter().map(Entry::of).chain(stranded).collect();
        let problem = match spawn_blocking(move || queue.write(entries)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(DownloadError::Broken.to_string()),
        };
        self.unsaved = problem.is_some();
        self.again = problem.as_ref().map(|_| Instant::now() + WAIT);
        self.health.problem = problem.map(|why| format!("the queue of downloads could not be written: {why}"));
    }

    fn measure_speeds(&mut self, elapsed: Duration) {
        for job in &mut self.jobs {
            if let Some(work) = &job.work {
                job.meter.read(work.received.load(Ordering::Relaxed), elapsed);
            }
        }
    }

    fn publish(&self) {
        let statuses = self.jobs.iter().map(|job| job.status(self.all_paused, self.cache.model_path(job.facts.hash)));
        let overview = DownloadsOverview {
            downloads: statuses.collect(),
            stranded: self.stranded.iter().map(Stranded::shown).collect(),
            all_paused: self.all_paused,
            checking: self.checking.values().cloned().collect(),
            disk: DiskTotals {
                measured: self.disk,
                promised: ByteSize(self.promised(None)),
                budget: self.options.budget,
            },
            queue: self.health.clone(),
        };
        self.out.send_if_modified(|published| {
            let changed = *published != overview;
            *published = overview;
            changed
        });
    }

    /// Bytes that downloads under way may still write, but for one of them.
    fn promised(&self, but: Option<usize>) -> u64 {
        let others = self.jobs.iter().enumerate().filter(|(number, _)| Some(*number) != but);
        others.fold(0, |sum, (_, job)| sum.saturating_add(job.promised()))
    }

    fn finish(&mut self, end: Result<(Id, End), JoinError>) {
        let now = Instant::now();
        let (task, end) = end.unwrap_or_else(|error| (error.id(), End::Broken));
        if self.measuring == Some(task) {
            (self.measuring, self.measured) = (None, Some(now));
            if let End::Measured(Ok(disk)) = end {
                self.disk = disk;
            }
            return;
        }
        // A task that was stopped belongs to nobody any more.
        let Some(job) = self.jobs.iter_mut().find(|job| job.tasks.contains_key(&task)) else { return };
        let Some(doing) = job.tasks.remove(&task) else { return };
        match end {
            End::Prepared(Ok(Prepared { plan, lease, held })) => {
                let manifest = job.download.manifest.clone();
                let contents = self.cache.contents(job.facts.hash, manifest.piece_bytes);
                let (http, bandwidth) = (self.http.clone(), self.bandwidth.clone());
                job.prepared(Work::new(held, contents, (manifest, job.facts.hashed), plan, http, bandwidth), lease);
            }
            End::Prepared(Err(error)) | End::Checked(Err(DownloadError::Cache(error))) if waits(&error) => {
                job.wait(now + WAIT, waiting_for(&error));
            }
            End::Prepared(Err(error)) => job.fail(error.to_string()),
            End::Checked(Err(error)) => job.fail(error.to_string()),
            // Somebody took something away, or died just before its last step: look again.
            End::Checked(Ok(false)) => drop(job.halt()),
            End::Checked(Ok(true)) => {
                (job.phase, job.message) = (Phase::Done, None);
                job.halt();
                (self.unsaved, self.remeasure) = (true, true);
            }
            End::Room(Ok(disk)) => {
                (job.phase, job.message) = (Phase::Fetching, None);
                self.disk = disk;
            }
            End::Room(Err(NoRoom::Cache(error))) if !waits(&error) => job.fail(error.to_string()),
            End::Room(Err(NoRoom::Cache(error))) => no_room(job, now, waiting_for(&error)),
            End::Room(Err(error)) => no_room(job, now, error.to_string()),
            End::Fetched(result) => {
                if let What::Fetching(host, run) = doing.what {
                    fetched(job, host, lock(&run).clone(), result, now, &self.options);
                }
            }
            End::Broken | End::Measured(_) => job.fail(DownloadError::Broken.to_string()),
        }
    }

    /// What goes first stands first; equals in the order in which they came.
    fn sort(&mut self) {
        self.jobs.sort_by_key(|job| (std::cmp::Reverse(job.download.priority), job.id));
    }

    /// Begins whatever can begin.
    fn proceed(&mut self, now: Instant) {
        self.sort();
        for number in 0..self.jobs.len() {
            if self.all_paused || self.jobs.get(number).is_none_or(|job| job.paused || job.held) {
                continue;
            }
            self.step(number, now);
        }
        self.share_connections(now);
        let coming = self.jobs.iter().any(|job| job.in_flight() > 0);
        let old = self.measured.is_none_or(|measured| measured + MEASURE <= now);
        if self.measuring.is_none() && (self.remeasure || (coming && old)) {
            let (cache, space) = (self.cache.clone(), self.space.clone());
            let measuring = self.tasks.spawn(async move {
                let measured = spawn_blocking(move || cache.disk_use(space.as_ref())).await;
                measured.map_or(End::Broken, End::Measured)
            });
            (self.measuring, self.remeasure) = (Some(measuring.id()), false);
        }
    }

    fn step(&mut self, number: usize, now: Instant) {
        let others = self.promised(Some(number));
        let room_is_being_made = self.jobs.iter().any(Job::is_asking_for_room);
        // Room goes to what goes first, even if it takes longer to look at what is there.
        let looks = |job: &Job| job.goes_on_by_itself() && matches!(job.phase, Phase::New | Phase::Preparing);
        let first_is_looking = self.jobs.iter().take(number).any(looks);
        let Some(job) = self.jobs.get_mut(number) else { return };
        let cache = self.cache.clone();
        let (hash, wanted) = (job.facts.hash, job.download.wanted);
        if matches!(job.phase, Phase::Later(when) if when <= now) {
            job.phase = Phase::New;
        }
        match job.phase {
            Phase::New if job.tasks.is_empty() => {
                job.phase = Phase::Preparing;
                let manifest = job.download.manifest.clone();
                let (held, before) = job.hold();
                let abort = self.tasks.spawn(async move {
                    // What it did before may still be writing.
                    before.wait().await;
                    let found = spawn_blocking(move || prepare(&cache, &manifest, hash, wanted, held)).await;
                    found.map_or(End::Broken, End::Prepared)
                });
                job.tasks.insert(abort.id(), Doing { abort, what: What::Preparing });
            }
            Phase::Room(_) if job.remaining() == 0 => job.phase = Phase::Fetching,
            // One at a time, or two would be promised the same room.
            Phase::Room(when) if when.is_none_or(|when| when <= now) && !room_is_being_made && !first_is_looking => {
                let needed = job.remaining().saturating_add(others);
                let (budget, space) = (self.options.budget, self.space.clone());
                let (held, _) = job.hold();
                let abort = self.tasks.spawn(async move {
                    let room = spawn_blocking(move || {
                        let _held = held;
                        cache.make_room(needed, budget, space.as_ref())?;
                        Ok(cache.disk_use(space.as_ref())?)
                    });
                    room.await.map_or(End::Broken, End::Room)
                });
                job.tasks.insert(abort.id(), Doing { abort, what: What::AskingForRoom });
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
                        let checked = spawn_blocking(move || check(&cache, hash, &work)).await;
                        checked.map_or(End::Broken, End::Checked)
                    });
                    job.tasks.insert(abort.id(), Doing { abort, what: What::Checking });
                }
            }
            _ => {}
        }
    }

    /// Gives free connections to the downloads that go first.
    fn share_connections(&mut self, now: Instant) {
        let most = self.options.connections.max(1);
        if self.disk.free.is_some_and(|free| free < self.options.budget.keep_free) {
            // Somebody eats the owner's free space. Who fetches lets go after the piece in flight, and asks for room.
            for job in self.jobs.iter_mut().filter(|job| job.phase == Phase::Fetching && job.remaining() > 0) {
                job.work.iter().for_each(|work| work.yielding.store(true, Ordering::Relaxed));
                job.phase = Phase::Room(None);
            }
            return;
        }
        for number in 0..self.jobs.len() {
            loop {
                let free = self.jobs.iter().map(Job::in_flight).sum::<usize>() < most;
                let Some(job) = self.jobs.get_mut(number) else { return };
                if job.paused || job.held || self.all_paused || job.phase != Phase::Fetching {
                    break;
                }
                let Some(work) = job.work.clone() else { break };
                if !free {
                    // Those that come later let go of a connection each after the piece they are at.
                    let wants_more = job.in_flight() < most && job.can_ask(now);
                    let priority = job.download.priority;
                    for later in self.jobs.iter().skip(number + 1).filter(|later| later.download.priority < priority) {
                        if let (true, Some(work)) = (wants_more, &later.work) {
                            work.yielding.store(true, Ordering::Relaxed);
                        }
                    }
                    break;
                }
                work.yielding.store(false, Ordering::Relaxed);
                match job.next_run(now) {
                    Err(Choice::Nobody) => {
                        let message = job.message.take();
                        job.fail(message.unwrap_or_else(|| DownloadError::NoMirror.to_string()));
                        break;
                    }
                    Err(_) => break,
                    Ok((host, run)) => {
                        let Some(link) = job.hosts.get(host).map(|host| host.link.clone()) else { break };
                        let run = Arc::new(Mutex::new(run));
                        let shared = run.clone();
                        let abort = self.tasks.spawn(async move { End::Fetched(work.fetch(link, shared).await) });
                        job.tasks.insert(abort.id(), Doing { abort, what: What::Fetching(host, run) });
                        job.began(host);
                    }
                }
            }
        }
    }
}

/// Whether the cause passes by itself, as when somebody frees space.
fn waits(error: &CacheError) -> bool {
    matches!(error, CacheError::DiskFull(_) | CacheError::Busy(_))
}

/// What a download that waits for it says.
fn waiting_for(error: &CacheError) -> String {
    match error {
        CacheError::Busy(_) => {
            "another program is tidying the model cache; the download goes on by itself when it is done".to_owned()
        }
        error => error.to_string(),
    }
}

fn no_room(job: &mut Job, now: Instant, message: String) {
    job.phase = Phase::Room(Some(now + WAIT));
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
            no_room(job, now, waiting_for(&error));
        }
        Err(Stop::Cache(error)) => job.fail(error.to_string()),
        Err(Stop::Broken) => job.fail(DownloadError::Broken.to_string()),
    }
}

/// Whether everything is there, and the files of which every byte is there hash to what they should. Blocks on the disk.
fn check(cache: &Cache, hash: B256, work: &Work) -> Result<bool, DownloadError> {
    for item in &work.plan.items {
        if !work.contents.has(&item.content)? {
            return Ok(false);
        }
    }
    // Where every piece was hashed when it came, there is nothing that a second reading could tell.
    let files = work.plan.whole_files.iter().filter(|_| !work.hashed);
    for &file in files {
        if cache.check_file_until(hash, &work.manifest, file, work.held.stop_flag())? == Some(false) {
            cache.discard_file(hash, &work.manifest, file)?;
            return Err(DownloadError::WrongFile { path: work.manifest.path(file).to_owned() });
        }
    }
    Ok(true)
}
