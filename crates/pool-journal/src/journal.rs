//! The journal itself: opening it, and the one way to write to it.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pool_store::Store;
use serde_json::Value;
use sqlx::{Row, Sqlite, SqliteConnection, SqlitePool, Transaction, migrate::Migrator};
use tokio::sync::{Notify, OwnedMutexGuard, watch};

use crate::{
    Clock, ExportError, ExportReport, Graph, Graphs, JournalError, LogKind, RunId, Timestamp,
    changes::Changes,
    export,
    log::{self, Head, Subject},
};

/// The journal's tables stand in the store's file, under a list of migrations of their own: the store need not know
/// them, and the two grow apart without disturbing each other.
fn migrations() -> Migrator {
    let mut migrations = sqlx::migrate!("./migrations");
    migrations.dangerous_set_table_name("journal_migrations");
    migrations
}

/// Durable workflows and transactions on a store. Cheap to clone; clones are the same journal.
///
/// Any number of processes may open the journal of one file, start runs, signal events and look; a
/// [`Runner`](crate::Runner) in one of them does the work.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    pool: SqlitePool,
    clock: Arc<dyn Clock>,
    graphs: Graphs,
    /// Writers of this process queue here instead of in SQLite, which does not queue but polls.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Something may be due for the runner.
    work: Notify,
    /// Something may be due for the outbox.
    intents: watch::Sender<u64>,
    changes: Changes,
    /// Graphs that runs began with, by hash.
    stored_graphs: Mutex<HashMap<String, Arc<Graph>>>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("graphs", &self.inner.graphs).finish_non_exhaustive()
    }
}

impl Journal {
    /// Changes by another process are seen at the latest after this time; those of this process at once.
    const LOOK_AGAIN: Duration = Duration::from_secs(2);
    /// Versions of graphs kept in memory.
    const MAX_STORED_GRAPHS: usize = 128;

    /// Opens the journal in the store's file, or makes it, and checks the newest entry of its log.
    pub async fn open(store: &Store, graphs: Graphs, clock: Arc<dyn Clock>) -> Result<Journal, JournalError> {
        let pool = store.connections().clone();
        if migrations().run(&pool).await.is_err() {
            // SQLite's migrator takes no lock: another process may have made the tables between its look and its write.
            migrations().run(&pool).await?;
        }
        let newest =
            sqlx::query("SELECT * FROM journal_log ORDER BY sequence DESC LIMIT 1").fetch_optional(&pool).await?;
        if let Some(row) = newest {
            let entry = log::read_entry(&row)?;
            if entry.computed_hash().as_ref() != Some(&entry.hash) {
                return Err(JournalError::Tampered { sequence: entry.sequence });
            }
        }
        let inner = Inner {
            pool,
            clock,
            graphs,
            turn: Arc::default(),
            work: Notify::new(),
            intents: watch::Sender::new(0),
            changes: Changes::default(),
            stored_graphs: Mutex::default(),
        };
        Ok(Journal { inner: Arc::new(inner) })
    }

    /// Writes the whole log as JSON lines for [`verify_export`](crate::verify_export). What is logged meanwhile is not
    /// part of it. The writer is written to from the calling task; give it memory or a file.
    pub async fn export(&self, writer: &mut (impl std::io::Write + Send)) -> Result<ExportReport, ExportError> {
        export::export(self.pool(), writer).await
    }

    /// The clock it was opened with.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    /// The workflows it can start.
    pub fn graphs(&self) -> &Graphs {
        &self.inner.graphs
    }

    pub(crate) fn pool(&self) -> &SqlitePool {
        &self.inner.pool
    }

    pub(crate) fn changes(&self) -> &Changes {
        &self.inner.changes
    }

    pub(crate) fn work(&self) -> &Notify {
        &self.inner.work
    }

    pub(crate) fn intents(&self) -> watch::Receiver<u64> {
        self.inner.intents.subscribe()
    }

    /// When to look again for changes by other processes.
    pub(crate) fn look_again(&self) -> Timestamp {
        self.clock().now().after(Self::LOOK_AGAIN)
    }

    /// The file beside the database that a runner locks.
    pub(crate) fn lock_path(&self) -> PathBuf {
        let options = self.pool().connect_options();
        let mut name = options.get_filename().as_os_str().to_owned();
        name.push(".runner-lock");
        PathBuf::from(name)
    }

    /// The graph that a run began with.
    pub(crate) async fn stored_graph(
        &self,
        connection: &mut SqliteConnection,
        hash: &str,
    ) -> Result<Arc<Graph>, JournalError> {
        let cache = || self.inner.stored_graphs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(graph) = cache().get(hash) {
            return Ok(graph.clone());
        }
        let row =
            sqlx::query("SELECT text FROM journal_graphs WHERE hash = $1").bind(hash).fetch_one(connection).await?;
        let graph = Graph::parse_stored(row.try_get("text")?).map_err(|_| JournalError::Row { what: "graph" })?;
        let graph = Arc::new(graph);
        let mut cache = cache();
        if cache.len() >= Self::MAX_STORED_GRAPHS {
            cache.clear();
        }
        cache.insert(hash.to_owned(), graph.clone());
        Ok(graph)
    }

    /// Begins a write. It waits for its turn in this process and for the database's write lock among processes.
    pub(crate) async fn write(&self) -> Result<Writing, JournalError> {
        let turn = self.inner.turn.clone().lock_owned().await;
        // Immediate: a transaction that reads before it writes must not find out at its end that it was overtaken.
        let transaction = self.pool().begin_with("BEGIN IMMEDIATE").await?;
        let told = Told { journal: self.clone(), runs: BTreeSet::new(), work: false, intents: false };
        Ok(Writing { transaction, told, head: None, at: self.clock().now(), _turn: turn })
    }

    /// Begins a write of a runner; refused once a newer runner has begun.
    pub(crate) async fn write_as(&self, generation: i64) -> Result<Writing, JournalError> {
        let mut writing = self.write().await?;
        let newest: i64 = sqlx::query_scalar("SELECT generation FROM journal_runner WHERE place = 1")
            .fetch_one(writing.connection())
            .await?;
        if newest == generation { Ok(writing) } else { Err(JournalError::TakenOver) }
    }
}

/// A write under way: one database transaction, with the log entries that belong to it. Dropped without
/// [`Writing::commit`], nothing of it remains.
pub(crate) struct Writing {
    transaction: Transaction<'static, Sqlite>,
    told: Told,
    head: Option<Head>,
    at: Timestamp,
    _turn: OwnedMutexGuard<()>,
}

impl Writing {
    pub(crate) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }

    /// The instant of everything in this write.
    pub(crate) fn at(&self) -> Timestamp {
        self.at
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.told.journal
    }

    /// Something became due for the runner.
    pub(crate) fn wakes_runner(&mut self) {
        self.told.work = true;
    }

    /// Something became due for the outbox.
    pub(crate) fn wakes_outbox(&mut self) {
        self.told.intents = true;
    }

    /// Adds an entry to the log, and tells those who follow the run.
    pub(crate) async fn log(&mut self, subject: Subject, kind: LogKind, body: &Value) -> Result<(), JournalError> {
        if let Some(Ok(run)) = subject.run.as_ref().map(|run| run.parse()) {
            self.told.runs.insert(run);
        }
        let mut head = match self.head.take() {
            Some(head) => head,
            None => Head::read(&mut self.transaction).await?,
        };
        log::append(&mut self.transaction, &mut head, self.at, subject, kind, body).await?;
        self.head = Some(head);
        Ok(())
    }

    pub(crate) async fn commit(self) -> Result<(), JournalError> {
        let Writing { transaction, told, _turn, .. } = self;
        let done = transaction.commit().await;
        drop(told);
        Ok(done?)
    }
}

/// Who must look once a write is done. They are told when this is dropped: after a commit, and also when a commit
/// was begun and its caller went away, for it may have succeeded. Being told without need does no harm.
struct Told {
    journal: Journal,
    runs: BTreeSet<RunId>,
    work: bool,
    intents: bool,
}

impl Drop for Told {
    fn drop(&mut self) {
        let Inner { changes, work, intents, .. } = &*self.journal.inner;
        self.runs.iter().for_each(|run| changes.tell(*run));
        if self.work {
            work.notify_one();
        }
        if self.intents {
            intents.send_modify(|count| *count += 1);
        }
    }
}
