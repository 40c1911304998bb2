//! One download of the list: where it stands, and which host is asked next.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use alloy_primitives::B256;
use pool_types::ByteSize;
use tokio::{
    task::{AbortHandle, Id},
    time::Instant,
};

use super::{
    Download, DownloadId, DownloadOptions, DownloadState, DownloadStatus,
    error::{HostError, Verdict},
    leash::{Ended, Held, Leash},
    progress::Meter,
    work::{Link, SharedRun, Work, lock},
};
use crate::{
    cache::{Cache, CacheError, Claim, Lease},
    manifest::{Content, Manifest},
    plan::{PiecePlace, Plan, Run, Wanted},
};

/// So often may a host send wrong bytes for one piece: once may be the line's fault.
const MOST_STRIKES: u8 = 2;

/// What a download is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing has been looked at, or must be looked at again.
    New,
    /// Something outside was in the way: it is looked at again at that time.
    Later(Instant),
    /// Looking at what is there.
    Preparing,
    /// Asking for room, now or at that time.
    Room(Option<Instant>),
    Fetching,
    /// Hashing whole files.
    Checking,
    Done,
    Failed,
}

/// A task of a download.
pub(super) struct Doing {
    pub(super) abort: AbortHandle,
    pub(super) what: What,
}

/// What a task of a download does.
pub(super) enum What {
    Preparing,
    AskingForRoom,
    Checking,
    /// A connection: which host, and its run.
    Fetching(usize, SharedRun),
}

impl What {
    fn fetching(&self) -> Option<(usize, &SharedRun)> {
        match self {
            Self::Fetching(host, run) => Some((*host, run)),
            _ => None,
        }
    }
}

/// What is known of a part before anything is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// The manifest's hash.
    pub(super) hash: B256,
    /// Whether every byte can be checked against it.
    pub(super) hashed: bool,
    /// Bytes wanted.
    pub(super) total: u64,
    /// Bytes of them that are here, as far as that can be told without reading them.
    pub(super) done: u64,
    /// All of it is here.
    pub(super) whole: bool,
}

impl Facts {
    /// Blocks on the disk.
    pub(super) fn of(cache: &Cache, manifest: &Manifest, hash: B256, wanted: Wanted) -> Result<Self, CacheError> {
        let contents = cache.contents(hash, manifest.piece_bytes);
        let mut facts = Self { hash, hashed: manifest.is_hashed(), total: 0, done: 0, whole: true };
        for item in manifest.items(wanted) {
            let length = item.content.length;
            facts.total = facts.total.saturating_add(length);
            facts.done = facts.done.saturating_add(contents.bytes_here(&item.content)?.min(length));
            facts.whole &= contents.has(&item.content)?;
        }
        Ok(facts)
    }
}

pub(super) struct Host {
    pub(super) link: Arc<Link>,
    failures: u32,
    /// Not to be asked before.
    until: Option<Instant>,
    /// Files it is not asked for any more.
    barred: Vec<usize>,
    /// Pieces (item, piece) it sent wrong bytes for.
    strikes: HashMap<(usize, u32), u8>,
    in_flight: usize,
}

pub(super) struct Job {
    pub(super) id: DownloadId,
    pub(super) download: Download,
    pub(super) facts: Facts,
    pub(super) phase: Phase,
    pub(super) paused: bool,
    /// Its model is being removed.
    pub(super) held: bool,
    pub(super) message: Option<String>,
    pub(super) work: Option<Arc<Work>>,
    pub(super) hosts: Vec<Host>,
    pub(super) tasks: HashMap<Id, Doing>,
    /// Runs that somebody else is writing, and when to look again.
    pub(super) deferred: Vec<(Instant, Run)>,
    pub(super) lease: Option<Lease>,
    pub(super) meter: Meter,
    leash: Leash,
    /// What it did before it was stopped, which may go on for a piece.
    before: Ended,
}

/// Who may be asked for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Ask(usize),
    /// Nobody now, somebody later.
    Later,
    /// Nobody, ever.
    Nobody,
}

impl Job {
    pub(super) fn new(id: DownloadId, download: Download, facts: Facts) -> Self {
        let mut job = Self {
            id,
            facts,
            phase: Phase::New,
            paused: false,
            held: false,
            message: None,
            work: None,
            hosts: Vec::new(),
            tasks: HashMap::new(),
            deferred: Vec::new(),
            lease: None,
            meter: Meter::default(),
            leash: Leash::new(),
            before: Ended::default(),
            download,
        };
        job.reset_hosts();
        job
    }

    /// Whether it is this part of that model.
    pub(super) fn is_of(&self, hash: B256, wanted: Wanted) -> bool {
        self.facts.hash == hash && self.download.wanted == wanted
    }

    /// Whether it will do nothing until somebody tells it to.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Done | Phase::Failed)
    }

    /// Whether time alone changes something for it.
    pub(super) fn goes_on_by_itself(&self) -> bool {
        !self.paused && !self.held && !self.has_ended()
    }

    /// Gives every host another chance.
    pub(super) fn reset_hosts(&mut self) {
        let fresh = |mirror: &super::Mirror| Host {
            link: Arc::new(Link::new(mirror.clone())),
            failures: 0,
            until: None,
            barred: Vec::new(),
            strikes: HashMap::new(),
            in_flight: 0,
        };
        self.hosts = self.download.mirrors.iter().map(fresh).collect();
    }

    /// Stops whatever it is doing. What is on the disk is looked at again before it goes on.
    pub(super) fn halt(&mut self) -> Ended {
        // What is in flight is lost.
        self.facts.done = self.done(0);
        self.tasks.drain().for_each(|(_, doing)| doing.abort.abort());
        self.hosts.iter_mut().for_each(|host| host.in_flight = 0);
        self.deferred.clear();
        (self.work, self.lease) = (None, None);
        self.before = std::mem::replace(&mut self.leash, Leash::new()).end(&self.before);
        self.meter.rest(0);
        if !self.has_ended() {
            self.phase = Phase::New;
        }
        self.before.clone()
    }

    /// Begins anew, with every host.
    pub(super) fn retry(&mut self) {
        self.halt();
        self.reset_hosts();
        (self.phase, self.message) = (Phase::New, None);
    }

    /// For new work, which must end with all other work; and the work before it, which must have ended.
    pub(super) fn hold(&self) -> (Held, Ended) {
        (self.leash.hold(), self.before.clone())
    }

    /// Waits for whatever was in the way, and says what it is.
    pub(super) fn wait(&mut self, until: Instant, message: String) {
        self.halt();
        (self.phase, self.message) = (Phase::Later(until), Some(message));
    }

    pub(super) fn fail(&mut self, message: String) {
        self.phase = Phase::Failed;
        self.message = Some(message);
        self.halt();
    }

    /// Takes what `prepare` found, and asks for room next.
    pub(super) fn prepared(&mut self, work: Work, lease: Lease) {
        self.facts.total = work.plan.wanted_bytes();
        self.message = None;
        (self.work, self.lease) = (Some(Arc::new(work)), Some(lease));
        self.meter.rest(0);
        self.phase = Phase::Room(None);
    }

    /// Bytes still to come.
    pub(super) fn remaining(&self) -> u64 {
        self.work.as_ref().map_or(0, |work| work.plan.missing_bytes().saturating_sub(work.come().0))
    }

    /// Bytes that are there, with so many that are arriving.
    fn done(&self, arriving: u64) -> u64 {
        match (self.phase, &self.work) {
            (Phase::Done, _) => self.facts.total,
            (_, Some(_)) => self.facts.total.saturating_sub(self.remaining().saturating_sub(arriving)),
            (_, None) => self.facts.done,
        }
    }

    /// Connections of it under way.
    pub(super) fn in_flight(&self) -> usize {
        self.tasks.values().filter(|doing| doing.what.fetching().is_some()).count()
    }

    /// Bytes that it may write without asking again for room.
    pub(super) fn promised(&self) -> u64 {
        let granted = matches!(self.phase, Phase::Fetching | Phase::Checking) || self.in_flight() > 0;
        if granted { self.remaining() } else { 0 }
    }

    pub(super) fn is_asking_for_room(&self) -> bool {
        self.tasks.values().any(|doing| matches!(doing.what, What::AskingForRoom))
    }

    /// The first run that a host can be asked for now, by its number in the queue, and the host; or the verdict on all
    /// of them.
    fn next(&self, queue: &VecDeque<Run>, now: Instant) -> Result<(usize, usize), Choice> {
        for (number, run) in queue.iter().enumerate() {
            match self.choose(run, now) {
                Choice::Ask(host) => return Ok((host, number)),
                Choice::Nobody => return Err(Choice::Nobody),
                Choice::Later => {}
            }
        }
        Err(Choice::Later)
    }

    /// As [`Self::next`], with the run taken out of the queue.
    pub(super) fn next_run(&mut self, now: Instant) -> Result<(usize, Run), Choice> {
        let Some(work) = self.work.clone() else { return Err(Choice::Later) };
        let mut queue = lock(&work.queue);
        let (host, number) = self.next(&queue, now)?;
        queue.remove(number).map(|run| (host, run)).ok_or(Choice::Later)
    }

    /// Whether it could use a further connection now.
    pub(super) fn can_ask(&self, now: Instant) -> bool {
        self.work.as_ref().is_some_and(|work| self.next(&lock(&work.queue), now).is_ok())
    }

    fn choose(&self, run: &Run, now: Instant) -> Choice {
        let possible = |host: &&(usize, &Host)| {
            let struck = |piece: &PiecePlace| host.1.strikes_for(piece) >= MOST_STRIKES;
            !host.1.barred.contains(&run.file) && !run.pieces.iter().any(struck)
        };
        let hosts: Vec<(usize, &Host)> = self.hosts.iter().enumerate().collect();
        let possible: Vec<&(usize, &Host)> = hosts.iter().filter(possible).collect();
        if possible.is_empty() {
            return Choice::Nobody;
        }
        let sends_parts = |host: &Host| !host.link.whole.load(Ordering::Relaxed);
        let somebody_sends_parts = possible.iter().any(|(_, host)| sends_parts(host));
        let ready = possible.into_iter().filter(|(number, host)| {
            let rested = host.until.is_none_or(|until| until <= now);
            // One connection finds out whether a host answers ranges with ranges, so that the others do not all get
            // the whole file.
            let known = host.link.ranged.load(Ordering::Relaxed) || host.in_flight == 0;
            let fit =
                if sends_parts(host) { known } else { !somebody_sends_parts && !self.is_asked(*number, run.file) };
            rested && fit
        });
        let load = |host: &Host| {
            let strikes: u32 = run.pieces.iter().map(|piece| u32::from(host.strikes_for(piece))).sum();
            (strikes, host.failures, host.in_flight)
        };
        let best = ready.min_by_key(|(number, host)| (load(host), *number));
        best.map_or(Choice::Later, |(number, _)| Choice::Ask(*number))
    }

    fn is_asked(&self, host: usize, file: usize) -> bool {
        let mut fetching = self.tasks.values().filter_map(|doing| doing.what.fetching());
        fetching.any(|(number, run)| number == host && lock(run).file == file)
    }

    /// Notes that a connection to a host began.
    pub(super) fn began(&mut self, host: usize) {
        if let Some(host) = self.hosts.get_mut(host) {
            host.in_flight += 1;
        }
    }

    /// Notes that a connection to a host ended, and what the host did wrong.
    pub(super) fn ended(
        &mut self,
        number: usize,
        file: usize,
        failure: Option<(HostError, Option<PiecePlace>)>,
        now: Instant,
        options: &DownloadOptions,
    ) {
        let Some(host) = self.hosts.get_mut(number) else { return };
        host.in_flight = host.in_flight.saturating_sub(1);
        // A host that brings pieces is no failing host, however its answers end.
        if host.link.brought.swap(false, Ordering::Relaxed) {
            host.failures = 0;
        }
        let Some((error, piece)) = failure else {
            self.message = None;
            return;
        };
        self.message = Some(error.to_string());
        match (error.verdict(), piece) {
            (Verdict::Later(after), _) => {
                host.failures = host.failures.saturating_add(1);
                // A host may ask for a longer pause than ours, never for a shorter one.
                host.until = Some(now + pause(host.failures, options).max(after.unwrap_or_default()));
            }
            (Verdict::AnotherForThisPiece, Some(piece)) => {
                *host.strikes.entry((piece.item, piece.piece)).or_default() += 1;
                host.until = Some(now + options.pause.min(Duration::from_secs(1)));
            }
            (Verdict::NeverThisFile | Verdict::AnotherForThisPiece, _) => host.barred.push(file),
        }
    }

    /// What the list shows.
    pub(super) fn status(&self, all_paused: bool, path: std::path::PathBuf) -> DownloadStatus {
        let fetching = self.in_flight() > 0;
        let state = match self.phase {
            Phase::Done => DownloadState::Done,
            Phase::Failed => DownloadState::Failed,
            _ if self.paused || all_paused => DownloadState::Paused,
            Phase::New | Phase::Preparing => DownloadState::Preparing,
            Phase::Checking => DownloadState::Verifying,
            Phase::Fetching if fetching => DownloadState::Downloading,
            Phase::Room(_) if self.message.is_none() => DownloadState::Preparing,
            Phase::Fetching if self.message.is_none() && self.deferred.is_empty() => DownloadState::Queued,
            Phase::Fetching | Phase::Room(_) | Phase::Later(_) => DownloadState::Waiting,
        };
        let downloading = state == DownloadState::Downloading;
        let message = match state {
            DownloadState::Waiting => {
                let other = || {
                    "another download on this machine is fetching the same tensors; this one waits for it".to_owned()
                };
                Some(self.message.clone().unwrap_or_else(other))
            }
            DownloadState::Failed => self.message.clone(),
            _ => None,
        };
        let arriving = self.work.as_ref().map_or(0, |work| work.come().1);
        let remaining = self.remaining().saturating_sub(arriving);
        DownloadStatus {
            id: self.id,
            name: self.download.manifest.name.clone(),
            manifest: self.facts.hash,
            wanted: self.download.wanted,
            path,
            state,
            priority: self.download.priority,
            done: ByteSize(self.done(arriving)),
            total: ByteSize(self.facts.total),
            speed: ByteSize(if downloading { self.meter.speed() } else { 0 }),
            left: self.meter.left(remaining).filter(|_| downloading),
            hashed: self.facts.hashed,
            message,
        }
    }
}

impl Host {
    fn strikes_for(&self, piece: &PiecePlace) -> u8 {
        self.strikes.get(&(piece.item, piece.piece)).copied().unwrap_or(0)
    }
}

/// The pause after a host's `failures`-th failure in a row.
fn pause(failures: u32, options: &DownloadOptions) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    options.pause.saturating_mul(1 << doublings).min(options.longest_pause)
}

/// What of a part is there, and what keeps it there. In this order it is let go of, where nobody takes it.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) lease: Lease,
    pub(super) held: Held,
}

/// Looks at what of a part is there, hashing again what is there in part, and plans the rest. Blocks on the disk.
pub(super) fn prepare(
    cache: &Cache,
    manifest: &Manifest,
    hash: B256,
    wanted: Wanted,
    held: Held,
) -> Result<Prepared, CacheError> {
    let lease = cache.hold(hash)?;
    let contents = cache.contents(hash, manifest.piece_bytes);
    let items = manifest.items(wanted);
    let mut pieces: HashMap<B256, Vec<bool>> = HashMap::new();
    for item in &items {
        held.stop_flag().check()?;
        let count = item.content.piece_count(manifest.piece_bytes);
        let whole = contents.has(&item.content)?;
        let mut has = vec![whole; count as usize];
        if !whole
            && contents.is_begun(&item.content)?
            && let Claim::Open(partial) = contents.claim(&item.content)?
        {
            partial.verify(held.stop_flag())?;
            has = (0..count).map(|piece| partial.has(piece)).collect();
        }
        pieces.insert(item.content.key, has);
    }
    let has = |content: &Content, piece: u32| {
        pieces.get(&content.key).and_then(|has| has.get(piece as usize)).copied().unwrap_or(false)
    };
    Ok(Prepared { plan: Plan::of_items(manifest, wanted, items, &has), lease, held })
}
