//! The work on one download that its connections share, and what one connection does.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use alloy_primitives::B256;
use tokio::task::spawn_blocking;

use super::{
    bandwidth::Bandwidth,
    error::HostError,
    host::{Ask, Http, Mirror, Reply},
    leash::Held,
};
use crate::{
    cache::{CacheError, Claim, Contents, Partial},
    manifest::Manifest,
    plan::{PiecePlace, Plan, Run},
};

/// Bytes between two pieces are thrown away up to this many; beyond it they are worth a request of their own.
const SKIP_BYTES: u64 = 4 << 10;

/// Why a connection stopped before its run was done.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The host failed, at this piece where it is one's fault.
    Host(HostError, Option<PiecePlace>),
    /// The cache failed.
    Cache(CacheError),
    /// Somebody else is writing what is left of the run.
    Busy,
    /// The connection is wanted by a download that goes first.
    Yielded,
    /// Our own code broke off.
    Broken,
}

impl From<CacheError> for Stop {
    fn from(error: CacheError) -> Self {
        Self::Cache(error)
    }
}

/// What connections know of a host.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) mirror: Mirror,
    /// ETags by file, from the first answer about it.
    etags: Mutex<HashMap<usize, String>>,
    /// It has answered a range with the range.
    pub(crate) ranged: AtomicBool,
    /// It has answered a range with the whole file.
    pub(crate) whole: AtomicBool,
    /// It has brought a piece since this was last looked at.
    pub(crate) brought: AtomicBool,
}

impl Link {
    pub(crate) fn new(mirror: Mirror) -> Self {
        let etags = Mutex::default();
        let [ranged, whole, brought] = [false; 3].map(AtomicBool::new);
        Self { mirror, etags, ranged, whole, brought }
    }
}

/// A run as a connection works on it; a host that sends the whole file makes it longer.
pub(crate) type SharedRun = Arc<Mutex<Run>>;

/// What the connections of one download share.
pub(crate) struct Work {
    /// As long as anybody works on it, the download has not ended.
    pub(crate) held: Held,
    pub(crate) contents: Contents,
    pub(crate) manifest: Arc<Manifest>,
    /// Every byte is checked against the manifest.
    pub(crate) hashed: bool,
    pub(crate) plan: Plan,
    pub(crate) http: Http,
    pub(crate) bandwidth: Arc<Bandwidth>,
    /// Runs nobody works on.
    pub(crate) queue: Mutex<VecDeque<Run>>,
    /// Bytes that came, whatever became of them.
    pub(crate) received: AtomicU64,
    /// A download that goes first wants the connections: stop after the piece in flight.
    pub(crate) yielding: AtomicBool,
    partials: Mutex<HashMap<B256, Weak<Partial>>>,
    progress: Mutex<Progress>,
}

/// How far it is.
#[derive(Debug, Default)]
struct Progress {
    finished: HashSet<(usize, u32)>,
    /// Bytes of finished pieces of the plan.
    done: u64,
    /// Bytes of pieces that are not whole yet. They are lost where their connection ends.
    arriving: u64,
}

impl Progress {
    fn finish(&mut self, place: PiecePlace) {
        if self.finished.insert((place.item, place.piece)) {
            self.done += u64::from(place.length);
        }
    }
}

/// The bytes of a piece that one connection has so far.
struct Arriving {
    work: Arc<Work>,
    bytes: u64,
}

impl Arriving {
    fn come(&mut self, bytes: u64) {
        self.bytes += bytes;
        lock(&self.work.progress).arriving += bytes;
    }

    /// The piece is whole, and on the disk.
    fn finish(&mut self, place: PiecePlace) {
        let mut progress = lock(&self.work.progress);
        progress.arriving -= std::mem::take(&mut self.bytes);
        progress.finish(place);
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        lock(&self.work.progress).arriving -= self.bytes;
    }
}

/// A missing piece and where it is put together.
type Missing = (PiecePlace, Arc<Partial>);

impl Work {
    pub(crate) fn new(
        held: Held,
        contents: Contents,
        (manifest, hashed): (Arc<Manifest>, bool),
        mut plan: Plan,
        http: Http,
        bandwidth: Arc<Bandwidth>,
    ) -> Self {
        let queue = Mutex::new(std::mem::take(&mut plan.runs).into());
        Self {
            held,
            contents,
            manifest,
            hashed,
            plan,
            http,
            bandwidth,
            queue,
            received: AtomicU64::new(0),
            yielding: AtomicBool::new(false),
            partials: Mutex::default(),
            progress: Mutex::default(),
        }
    }

    /// Fetches a run from a host. Pieces that are there already are not asked for.
    pub(crate) async fn fetch(self: Arc<Self>, link: Arc<Link>, run: SharedRun) -> Result<(), Stop> {
        let file = lock(&run).file;
        loop {
            let (missing, busy) = self.missing(&run).await?;
            let Some(group) = first_group(&missing) else {
                return if busy { Err(Stop::Busy) } else { Ok(()) };
            };
            let (Some((first, _)), Some((last, _))) = (group.first(), group.last()) else { return Ok(()) };
            let range = first.start..last.end();
            let etag = lock(&link.etags).get(&file).cloned();
            let known = self.manifest.files.get(file).and_then(|weights| weights.etag.clone());
            let ask = Ask {
                path: self.manifest.path(file),
                range: range.clone(),
                length: Some(self.manifest.length(file)),
                etag: etag.as_deref().or(known.as_deref()),
                dated: !self.hashed,
            };
            let mut reply = self.http.ask(&link.mirror, &ask).await.map_err(|error| Stop::Host(error, None))?;
            if let Some(etag) = &reply.etag {
                lock(&link.etags).entry(file).or_insert_with(|| etag.clone());
            }
            if reply.range.end > range.end || reply.range.start < range.start {
                // The host ignores ranges. Asking again would bring the whole file again, so everything that is still
                // wanted of it is taken from this one answer.
                link.whole.store(true, Ordering::Relaxed);
                self.take_file(file, &run);
                let (missing, busy) = self.missing(&run).await?;
                self.receive(&link, &mut reply, &missing).await?;
                return if busy { Err(Stop::Busy) } else { Ok(()) };
            }
            if reply.partial {
                link.ranged.store(true, Ordering::Relaxed);
            }
            self.receive(&link, &mut reply, group).await?;
        }
    }

    /// Reads an answer into the pieces it covers, which are sorted by place. An answer may be the beginning of what
    /// was asked for, but it must bring at least one piece.
    async fn receive(self: &Arc<Self>, link: &Link, reply: &mut Reply, missing: &[Missing]) -> Result<(), Stop> {
        let mut at = reply.range.start;
        let mut pieces = missing.iter();
        let Some(mut piece) = pieces.next() else { return Ok(()) };
        let mut bytes = Vec::with_capacity(piece.0.length as usize);
        let mut arriving = Arriving { work: self.clone(), bytes: 0 };
        let mut brought_any = false;
        loop {
            let Some(chunk) = reply.chunk().await.map_err(|error| Stop::Host(error, None))? else {
                // Less than was asked for is allowed when the host said so beforehand, and if it is a piece at least.
                return match at == reply.range.end {
                    true if brought_any => Ok(()),
                    true => Err(Stop::Host(reply.too_little(), None)),
                    false => Err(Stop::Host(reply.cut(), None)),
                };
            };
            self.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            self.bandwidth.take(chunk.len() as u64).await;
            let mut chunk = chunk.as_slice();
            while !chunk.is_empty() {
                let skip = piece.0.start.saturating_sub(at).min(chunk.len() as u64);
                chunk = chunk.split_at(usize::try_from(skip).unwrap_or(chunk.len())).1;
                at += skip;
                let wanted = (piece.0.length as usize - bytes.len()).min(chunk.len());
                let (taken, rest) = chunk.split_at(wanted);
                bytes.extend_from_slice(taken);
                arriving.come(wanted as u64);
                (chunk, at) = (rest, at + wanted as u64);
                if bytes.len() < piece.0.length as usize {
                    continue;
                }
                self.keep(piece, std::mem::take(&mut bytes), reply).await?;
                arriving.finish(piece.0);
                link.brought.store(true, Ordering::Relaxed);
                brought_any = true;
                if self.yielding.load(Ordering::Relaxed) {
                    return Err(Stop::Yielded);
                }
                let Some(next) = pieces.next() else { return Ok(()) };
                piece = next;
                bytes.reserve_exact(piece.0.length as usize);
            }
        }
    }

    async fn keep(self: &Arc<Self>, (place, partial): &Missing, bytes: Vec<u8>, reply: &Reply) -> Result<(), Stop> {
        let (place, partial) = (*place, partial.clone());
        let name = self.plan.items.get(place.item).map(|item| item.name.clone()).unwrap_or_default();
        let held = self.held.clone();
        let write = move || {
            let written = partial.write(place.piece, &bytes, &name);
            drop((partial, held));
            written
        };
        let written = spawn_blocking(write).await;
        match written.map_err(|_| Stop::Broken)? {
            Ok(()) => Ok(()),
            Err(CacheError::WrongBytes(name)) => {
                Err(Stop::Host(HostError::WrongBytes { host: reply.host().to_owned(), name }, Some(place)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What of a run is not there yet, by place, and whether somebody else is writing some of it.
    async fn missing(self: &Arc<Self>, run: &SharedRun) -> Result<(Vec<Missing>, bool), Stop> {
        let (work, pieces) = (self.clone(), lock(run).pieces.clone());
        let found = spawn_blocking(move || {
            let (mut missing, mut busy) = (Vec::new(), false);
            for place in pieces {
                work.held.stop_flag().check()?;
                if lock(&work.progress).finished.contains(&(place.item, place.piece)) {
                    continue;
                }
                match work.partial(place)? {
                    Claim::Whole => work.finish(place),
                    Claim::Busy => busy = true,
                    Claim::Open(partial) if partial.has(place.piece) => work.finish(place),
                    Claim::Open(partial) => missing.push((place, partial)),
                }
            }
            // What is claimed is let go of before the work counts as ended, should nobody take this any more.
            Ok::<_, CacheError>((missing, busy, work.held.clone()))
        });
        let (missing, busy, _held) = found.await.map_err(|_| Stop::Broken)??;
        Ok((missing, busy))
    }

    /// The part that a piece belongs to, shared by all connections.
    fn partial(&self, place: PiecePlace) -> Result<Claim<Arc<Partial>>, CacheError> {
        let Some(item) = self.plan.items.get(place.item) else { return Ok(Claim::Whole) };
        let mut partials = lock(&self.partials);
        if let Some(partial) = partials.get(&item.content.key).and_then(Weak::upgrade) {
            return Ok(Claim::Open(partial));
        }
        partials.retain(|_, partial| partial.strong_count() > 0);
        Ok(match self.contents.claim(&item.content)? {
            Claim::Whole => Claim::Whole,
            Claim::Busy => Claim::Busy,
            Claim::Open(partial) => {
                let partial = Arc::new(partial);
                partials.insert(item.content.key, Arc::downgrade(&partial));
                Claim::Open(partial)
            }
        })
    }

    fn finish(&self, place: PiecePlace) {
        lock(&self.progress).finish(place);
    }

    /// Bytes of the plan that are on the disk now, and bytes of pieces that are not whole yet.
    pub(crate) fn come(&self) -> (u64, u64) {
        let progress = lock(&self.progress);
        (progress.done, progress.arriving)
    }

    /// Moves everything of a file that nobody works on to a run.
    fn take_file(&self, file: usize, run: &SharedRun) {
        let mut queue = lock(&self.queue);
        let mut run = lock(run);
        for other in queue.iter().filter(|other| other.file == file) {
            run.pieces.extend(&other.pieces);
        }
        queue.retain(|other| other.file != file);
        run.pieces.sort_by_key(|piece| piece.start);
    }
}

/// The first missing pieces that one request is worth.
fn first_group(missing: &[Missing]) -> Option<&[Missing]> {
    missing.chunk_by(|(a, _), (b, _)| b.start.saturating_sub(a.end()) <= SKIP_BYTES).next()
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these hold is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
