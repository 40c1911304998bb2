//! One download of the list: where it stands, and which host is asked next.

use std::{
    collections::HashMap,
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
    Download, DownloadError, DownloadId, DownloadOptions, DownloadState, DownloadStatus,
    error::{HostError, Verdict},
    progress::Meter,
    work::{Link, SharedRun, Work, lock},
};
use crate::{
    cache::{Cache, Claim, Lease},
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

/// What a task of a download does.
pub(super) struct Doing {
    pub(super) abort: AbortHandle,
    /// For a connection: which host, and its run.
    pub(super) fetching: Option<(usize, SharedRun)>,
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
    pub(super) hash: B256,
    pub(super) phase: Phase,
    pub(super) paused: bool,
    pub(super) message: Option<String>,
    pub(super) work: Option<Arc<Work>>,
    pub(super) hosts: Vec<Host>,
    pub(super) tasks: HashMap<Id, Doing>,
    /// Runs that somebody else is writing, and when to look again.
    pub(super) deferred: Vec<(Instant, Run)>,
    pub(super) lease: Option<Lease>,
    pub(super) meter: Meter,
    total: u64,
    /// What was there when it was stopped.
    done: u64,
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
    pub(super) fn new(id: DownloadId, download: Download, hash: B256) -> Self {
        let mut job = Self {
            id,
            hash,
            phase: Phase::New,
            paused: false,
            message: None,
            work: None,
            hosts: Vec::new(),
            tasks: HashMap::new(),
            deferred: Vec::new(),
            lease: None,
            meter: Meter::default(),
            total: 0,
            done: 0,
            download,
        };
        job.reset_hosts();
        job
    }

    /// Whether time alone changes something for it.
    pub(super) fn goes_on_by_itself(&self) -> bool {
        !self.paused && !matches!(self.phase, Phase::Done | Phase::Failed)
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
    pub(super) fn halt(&mut self) {
        self.tasks.drain().for_each(|(_, doing)| doing.abort.abort());
        self.hosts.iter_mut().for_each(|host| host.in_flight = 0);
        self.deferred.clear();
        self.done = self.done();
        (self.work, self.lease) = (None, None);
        self.meter.rest(0);
        if !matches!(self.phase, Phase::Done | Phase::Failed) {
            self.phase = Phase::New;
        }
    }

    pub(super) fn fail(&mut self, message: String) {
        self.phase = Phase::Failed;
        self.message = Some(message);
        self.halt();
    }

    /// Takes what `prepare` found, and asks for room next.
    pub(super) fn prepared(&mut self, work: Work, lease: Lease) {
        self.total = work.plan.wanted_bytes();
        (self.work, self.lease) = (Some(Arc::new(work)), Some(lease));
        self.meter.rest(0);
        self.phase = Phase::Room(None);
    }

    /// Bytes still to come.
    pub(super) fn remaining(&self) -> u64 {
        let work = self.work.as_ref();
        work.map_or(0, |work| work.plan.missing_bytes().saturating_sub(work.done.load(Ordering::Relaxed)))
    }

    /// Bytes that are there.
    fn done(&self) -> u64 {
        match (self.phase, &self.work) {
            (Phase::Done, _) => self.total,
            (_, Some(_)) => self.total.saturating_sub(self.remaining()),
            (_, None) => self.done,
        }
    }

    /// The first run that a host can be asked for now, taken out of the queue; or the verdict on all of them.
    pub(super) fn next_run(&mut self, now: Instant) -> Result<(usize, Run), Choice> {
        let Some(work) = self.work.clone() else { return Err(Choice::Later) };
        let mut queue = lock(&work.queue);
        for number in 0..queue.len() {
            let Some(run) = queue.get(number) else { break };
            match self.choose(run, now) {
                Choice::Ask(host) => match queue.remove(number) {
                    Some(run) => return Ok((host, run)),
                    None => break,
                },
                Choice::Nobody => return Err(Choice::Nobody),
                Choice::Later => {}
            }
        }
        Err(Choice::Later)
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
        let fetching = self.tasks.values().filter_map(|doing| doing.fetching.as_ref());
        fetching.into_iter().any(|(number, run)| *number == host && lock(run).file == file)
    }

    /// Notes that a connection to a host began.
    pub(super) fn began(&mut self, host: usize) {
        if let Some(host) = self.hosts.get_mut(host) {
            host.in_flight += 1;
        }
    }

    /// Notes that a connection to a host ended, and how.
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
        let Some((error, piece)) = failure else {
            host.failures = 0;
            self.message = None;
            return;
        };
        self.message = Some(error.to_string());
        match (error.verdict(), piece) {
            (Verdict::Later(after), _) => {
                host.failures = host.failures.saturating_add(1);
                host.until = Some(now + after.unwrap_or_else(|| pause(host.failures, options)));
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
        let fetching = self.tasks.values().any(|doing| doing.fetching.is_some());
        let state = match self.phase {
            Phase::Done => DownloadState::Done,
            Phase::Failed => DownloadState::Failed,
            _ if self.paused || all_paused => DownloadState::Paused,
            Phase::New | Phase::Preparing => DownloadState::Preparing,
            Phase::Checking => DownloadState::Verifying,
            Phase::Fetching if fetching => DownloadState::Downloading,
            Phase::Room(_) if self.message.is_none() => DownloadState::Preparing,
            Phase::Fetching if self.message.is_none() && self.deferred.is_empty() => DownloadState::Queued,
            Phase::Fetching | Phase::Room(_) => DownloadState::Waiting,
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
        let remaining = self.remaining();
        DownloadStatus {
            id: self.id,
            name: self.download.manifest.name.clone(),
            manifest: self.hash,
            path,
            state,
            priority: self.download.priority,
            done: ByteSize(self.done()),
            total: ByteSize(self.total),
            speed: ByteSize(if downloading { self.meter.speed() } else { 0 }),
            left: self.meter.left(remaining).filter(|_| downloading),
            hashed: self.download.manifest.is_hashed(),
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

/// Looks at what of a part is there, hashing again what is there in part, and plans the rest. Blocks on the disk.
pub(super) fn prepare(
    cache: &Cache,
    manifest: &Manifest,
    hash: B256,
    wanted: Wanted,
) -> Result<(Plan, Lease), DownloadError> {
    let lease = cache.lease(hash)?;
    let mut pieces: HashMap<B256, Vec<bool>> = HashMap::new();
    for item in manifest.items(wanted) {
        let count = item.content.piece_count(manifest.piece_bytes);
        let mut has = vec![cache.has(&item.content); count as usize];
        if cache.is_begun(&item.content)
            && let Claim::Open(partial) = cache.claim(&item.content, manifest.piece_bytes)?
        {
            partial.verify()?;
            has = (0..count).map(|piece| partial.has(piece)).collect();
        }
        pieces.insert(item.content.key, has);
    }
    let has = |content: &Content, piece: u32| {
        pieces.get(&content.key).and_then(|has| has.get(piece as usize)).copied().unwrap_or(false)
    };
    Ok((Plan::new(manifest, wanted, &has), lease))
}
