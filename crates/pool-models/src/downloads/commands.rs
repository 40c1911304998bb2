//! What a handle asks of the actor, and what the actor does about it.

use alloy_primitives::B256;
use pool_types::ByteSize;
use tokio::sync::oneshot;

use super::{
    Download, DownloadError, DownloadId, Downloads,
    actor::Actor,
    job::{Facts, Job, Phase},
    leash::Ended,
};
use crate::{
    cache::{Budget, Checking},
    plan::Wanted,
};

/// Tells whoever asked that it holds now, or that it cannot be.
type Answer<T> = oneshot::Sender<Result<T, DownloadError>>;

/// What a handle asks for.
pub(super) enum Command {
    Add {
        download: Box<Download>,
        facts: Facts,
        reply: Answer<DownloadId>,
    },
    Pause {
        id: DownloadId,
        reply: Answer<()>,
    },
    Resume {
        id: DownloadId,
        reply: Answer<()>,
    },
    Cancel {
        id: DownloadId,
        reply: Answer<(B256, Wanted)>,
    },
    /// Of every other part of the model.
    CancelOthers {
        hash: B256,
        wanted: Wanted,
        reply: oneshot::Sender<()>,
    },
    Priority {
        id: DownloadId,
        priority: i32,
        reply: Answer<()>,
    },
    Front {
        id: DownloadId,
        reply: Answer<()>,
    },
    /// How far the verification of the model is; `None` once it has ended.
    Checking {
        hash: B256,
        progress: Option<Checking>,
        reply: oneshot::Sender<()>,
    },
    /// Everything of the model that is said to be done, or is under way.
    LookAgain {
        hash: B256,
        reply: oneshot::Sender<Vec<DownloadId>>,
    },
    /// All downloads of the model.
    Hold {
        hash: B256,
        reply: oneshot::Sender<()>,
    },
    /// Ends `Hold`; the model has been removed, or not.
    LetGo {
        hash: B256,
        removed: bool,
        reply: oneshot::Sender<()>,
    },
    All {
        paused: bool,
        reply: oneshot::Sender<()>,
    },
    Bandwidth {
        cap: Option<ByteSize>,
        reply: oneshot::Sender<()>,
    },
    Budget {
        budget: Budget,
        reply: oneshot::Sender<()>,
    },
    Stop,
}

/// What is left to do once the list is shown and the queue is written: a handle that did not wait for its answer is no
/// concern of ours.
pub(super) type Reply = Box<dyn FnOnce() + Send>;

/// Answers.
fn now<T: Send + 'static>(reply: oneshot::Sender<T>, answer: T) -> Reply {
    Box::new(move || drop(reply.send(answer)))
}

/// Answers when the work has ended.
fn after<T: Send + 'static>(ended: Vec<Ended>, reply: oneshot::Sender<T>, answer: T) -> Reply {
    Box::new(move || {
        // It ends with the work, which ends within a piece.
        drop(tokio::spawn(async move {
            for ended in ended {
                ended.wait().await;
            }
            let _ = reply.send(answer);
        }));
    })
}

impl Actor {
    pub(super) fn obey(&mut self, command: Command) -> Reply {
        match command {
            Command::Add { download, facts, reply } => {
                let added = self.add(*download, facts);
                now(reply, added)
            }
            Command::Pause { id, reply } => match self.pause(id) {
                Ok(ended) => after(vec![ended], reply, Ok(())),
                Err(error) => now(reply, Err(error)),
            },
            Command::Resume { id, reply } => {
                let resumed = self.change(id, |job| {
                    job.paused = false;
                    if job.phase == Phase::Failed {
                        job.retry();
                    }
                });
                now(reply, resumed)
            }
            Command::Cancel { id, reply } => {
                match self.job(id).map(|job| (job.halt(), (job.facts.hash, job.download.wanted))) {
                    Ok((ended, part)) => {
                        self.jobs.retain(|job| job.id != id);
                        self.unsaved = true;
                        after(vec![ended], reply, Ok(part))
                    }
                    Err(error) => now(reply, Err(error)),
                }
            }
            Command::CancelOthers { hash, wanted, reply } => {
                let others = |job: &Job| job.facts.hash == hash && job.download.wanted != wanted;
                let ended = self.jobs.iter_mut().filter(|job| others(job)).map(Job::halt).collect();
                self.jobs.retain(|job| !others(job));
                self.stranded.retain(|left| left.entry.hash() != hash || left.entry.is_of(hash, wanted));
                self.unsaved = true;
                after(ended, reply, ())
            }
            Command::Priority { id, priority, reply } => {
                let changed = self.change(id, |job| job.download.priority = priority);
                now(reply, changed)
            }
            Command::Front { id, reply } => {
                let highest = self.jobs.iter().filter(|job| job.id != id).map(|job| job.download.priority).max();
                let first = highest.map(|highest| highest.saturating_add(1));
                let changed = self.change(id, |job| {
                    job.download.priority =
                        first.map_or(job.download.priority, |first| first.max(job.download.priority));
                });
                now(reply, changed)
            }
            Command::Checking { hash, progress, reply } => {
                match progress {
                    Some(progress) => drop(self.checking.insert(hash, progress)),
                    None => drop(self.checking.remove(&hash)),
                }
                now(reply, ())
            }
            Command::LookAgain { hash, reply } => {
                let again = self.jobs.iter_mut().filter(|job| job.facts.hash == hash && job.phase != Phase::Failed);
                let again = again.map(|job| {
                    job.retry();
                    job.id
                });
                let again = again.collect();
                self.unsaved = true;
                now(reply, again)
            }
            Command::Hold { hash, reply } => {
                let ended = self.jobs.iter_mut().filter(|job| job.facts.hash == hash).map(|job| {
                    job.held = true;
                    job.halt()
                });
                let ended = ended.collect();
                after(ended, reply, ())
            }
            Command::LetGo { hash, removed, reply } => {
                if removed {
                    self.jobs.retain(|job| job.facts.hash != hash);
                    self.stranded.retain(|left| left.entry.hash() != hash);
                    (self.unsaved, self.remeasure) = (true, true);
                }
                self.jobs.iter_mut().filter(|job| job.facts.hash == hash).for_each(|job| job.held = false);
                now(reply, ())
            }
            Command::All { paused, reply } => {
                self.all_paused = paused;
                let ended = if paused { self.jobs.iter_mut().map(Job::halt).collect() } else { Vec::new() };
                after(ended, reply, ())
            }
            Command::Bandwidth { cap, reply } => {
                self.bandwidth.set(cap.map(|cap| cap.0));
                now(reply, ())
            }
            Command::Budget { budget, reply } => {
                self.options.budget = budget;
                let running = self.jobs.iter_mut().filter(|job| matches!(job.phase, Phase::Fetching | Phase::Room(_)));
                running.for_each(|job| job.phase = Phase::Room(None));
                self.remeasure = true;
                now(reply, ())
            }
            Command::Stop => Box::new(|| ()),
        }
    }

    fn job(&mut self, id: DownloadId) -> Result<&mut Job, DownloadError> {
        self.jobs.iter_mut().find(|job| job.id == id).ok_or(DownloadError::Unknown)
    }

    /// Changes what the queue keeps of a download.
    fn change(&mut self, id: DownloadId, change: impl FnOnce(&mut Job)) -> Result<(), DownloadError> {
        change(self.job(id)?);
        self.unsaved = true;
        Ok(())
    }

    fn pause(&mut self, id: DownloadId) -> Result<Ended, DownloadError> {
        let job = self.job(id)?;
        if job.has_ended() {
            return Err(DownloadError::Ended);
        }
        job.paused = true;
        let ended = job.halt();
        self.unsaved = true;
        Ok(ended)
    }

    fn add(&mut self, download: Download, facts: Facts) -> Result<DownloadId, DownloadError> {
        self.unsaved = true;
        let wanted = download.wanted;
        self.stranded.retain(|left| !left.entry.is_of(facts.hash, wanted));
        if let Some(job) = self.jobs.iter_mut().find(|job| job.is_of(facts.hash, wanted)) {
            let same_hosts = job.download.mirrors == download.mirrors;
            job.download = Download { priority: job.download.priority, ..download };
            if job.has_ended() || !same_hosts {
                job.retry();
                job.facts = facts;
            }
            return Ok(job.id);
        }
        if self.jobs.len() >= Downloads::MOST {
            let ended = self.jobs.iter().position(|job| job.phase == Phase::Done);
            let Some(ended) = ended else { return Err(DownloadError::TooMany(self.jobs.len())) };
            self.jobs.remove(ended);
        }
        let id = self.next_id();
        self.jobs.push(Job::new(id, download, facts));
        Ok(id)
    }
}
