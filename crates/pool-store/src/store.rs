//! The database file: opening, migrating, and keeping a broken one aside.

use std::{
    ffi::OsString,
    fs::{OpenOptions, rename},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, SqlitePool,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use thiserror::Error;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Why the store could not do what it was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file or its directory cannot be made or renamed.
    #[error("cannot prepare the database {path}: {source}")]
    File {
        /// The database file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// SQLite refused.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the database cannot be brought to this version's form: {0}")]
    Migration(MigrateError),
    /// It went through steps that this version does not know.
    #[error(
        "the database was written by a newer version of ComputePool; install that version again. Nothing was changed."
    )]
    Newer,
    /// A row holds what this version cannot read.
    #[error("a stored {what} cannot be read: {source}")]
    Row {
        /// Which kind of row.
        what: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// An open database. Cheap to clone; all clones share one small pool of connections.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) pool: SqlitePool,
    set_aside: Option<PathBuf>,
}

impl Store {
    /// Opens the database at `path`, or makes it (mode 0600), and brings its schema up to date.
    ///
    /// A file that is no sound SQLite database is renamed to `<name>.corrupt-1` (or the next free number) together
    /// with its write-ahead log, and a new one takes its place.
    pub async fn open(path: impl AsRef<Path>) -> Result<Store, StoreError> {
        let path = path.as_ref();
        match connect(path).await {
            Ok(pool) => Ok(Store { pool, set_aside: None }),
            Err(error) if is_corrupt(&error) => {
                let aside = keep_aside(path)?;
                let pool = connect(path).await?;
                Ok(Store { pool, set_aside: Some(aside) })
            }
            Err(error) => Err(error),
        }
    }

    /// Where a broken database was moved when this one was opened.
    pub fn set_aside(&self) -> Option<&Path> {
        self.set_aside.as_deref()
    }

    /// The store's connections, for a crate that keeps tables of its own in this file (the journal does). It brings
    /// its own migrations under a name of its own, and leaves the store's tables alone.
    pub fn connections(&self) -> &SqlitePool {
        &self.pool
    }

    /// Writes everything out and closes the connections.
    pub async fn close(self) {
        self.pool.close().await;
    }
}

async fn connect(path: &Path) -> Result<SqlitePool, StoreError> {
    create_private(path).map_err(|source| StoreError::File { path: path.to_owned(), source })?;
    let options = SqliteConnectOptions::new().filename(path).disable_statement_logging();
    check(&options).await?;
    let options = options
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY)
        .foreign_keys(true);
    let pool = SqlitePoolOptions::new()
        .max_connections(4)
        .acquire_timeout(Duration::from_secs(10))
        .connect_with(options)
        .await?;
    match migrate(&pool).await {
        Ok(()) => Ok(pool),
        Err(error) => {
            pool.close().await;
            Err(error)
        }
    }
}

/// Whether the file is a sound database. The connection for it is closed before this returns, as one that fails while
/// it is set up is not: at its end it would remove the write-ahead log of the database that has taken this one's place.
async fn check(options: &SqliteConnectOptions) -> Result<(), StoreError> {
    let mut connection = options.clone().busy_timeout(BUSY).connect().await?;
    let verdict = sqlx::query_scalar::<_, String>("PRAGMA quick_check(1)").fetch_one(&mut connection).await;
    let closed = connection.close().await;
    let verdict = verdict?;
    if verdict != "ok" {
        return Err(StoreError::Database(sqlx::Error::Protocol(format!("{DAMAGED}: {verdict}"))));
    }
    Ok(closed?)
}

async fn migrate(pool: &SqlitePool) -> Result<(), StoreError> {
    MIGRATIONS.run(pool).await.map_err(|error| match error {
        MigrateError::Execute(error) => StoreError::Database(error),
        MigrateError::VersionMissing(_) => StoreError::Newer,
        other => StoreError::Migration(other),
    })
}

/// A database that another connection writes is waited for this long.
const BUSY: Duration = Duration::from_secs(5);

const DAMAGED: &str = "quick_check found damage";

/// SQLite makes its log and index files with the database's own mode.
fn create_private(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

/// SQLITE_CORRUPT (11) and SQLITE_NOTADB (26), in the low byte of an extended code.
fn is_corrupt(error: &StoreError) -> bool {
    let error = match error {
        StoreError::Database(error) => error,
        StoreError::Migration(MigrateError::Execute(error)) => error,
        _ => return false,
    };
    if matches!(error, sqlx::Error::Protocol(text) if text.starts_with(DAMAGED)) {
        return true;
    }
    let code = error.as_database_error().and_then(|error| error.code()).and_then(|code| code.parse::<u32>().ok());
    matches!(code.map(|code| code & 0xff), Some(11 | 26))
}

fn keep_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let with = |suffix: &str| {
        let mut name: OsString = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let number = (1..).find(|n| !with(&format!(".corrupt-{n}")).exists()).unwrap_or(1);
    let aside = format!(".corrupt-{number}");
    for part in ["", "-wal", "-shm"] {
        let (from, to) = (with(part), with(&format!("{aside}{part}")));
        match rename_in_use(&from, &to) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::File { path: from, source });
            }
            _ => {}
        }
    }
    Ok(with(&aside))
}

/// Renames a file that somebody may be about to close: Windows refuses until they have (our own connection a moment ago,
/// or a program that looks for viruses).
fn rename_in_use(from: &Path, to: &Path) -> io::Result<()> {
    const SHARING_VIOLATION: i32 = 32;
    let mut tries = 0;
    loop {
        match rename(from, to) {
            Err(error) if cfg!(windows) && error.raw_os_error() == Some(SHARING_VIOLATION) && tries < 40 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(50));
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_database_is_private_and_opens_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let store = Store::open(&path).await.unwrap();
        assert!(store.set_aside().is_none());
        store.set_setting("colour", "blue").await.unwrap();
        #[cfg(unix)]
        for file in std::fs::read_dir(directory.path()).unwrap().flatten() {
            let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
            assert_eq!(mode & 0o077, 0, "{} is for its owner alone", file.path().display());
        }
        store.close().await;
        let store = Store::open(&path).await.unwrap();
        assert_eq!(store.setting("colour").await.unwrap().as_deref(), Some("blue"));
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_kept_aside_and_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        for round in 1..=2 {
            let rubbish = format!("this is not a database, round {round}. ").repeat(200);
            std::fs::write(&path, &rubbish).unwrap();
            let store = Store::open(&path).await.unwrap();
            let aside = store.set_aside().expect("the store says where the old file went").to_owned();
            assert_eq!(aside, directory.path().join(format!("state.db.corrupt-{round}")));
            assert_eq!(std::fs::read_to_string(&aside).unwrap(), rubbish, "nothing of the old file is lost");
            store.set_setting("a", "b").await.unwrap();
            store.close().await;
        }
    }

    #[tokio::test]
    async fn a_database_with_damaged_pages_is_kept_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let store = Store::open(&path).await.unwrap();
        for i in 0..200 {
            store.set_setting(&format!("key {i}"), &"v".repeat(500)).await.unwrap();
        }
        store.close().await;
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 4;
        bytes[middle..].fill(0xa5);
        std::fs::write(&path, &bytes).unwrap();
        let store = Store::open(&path).await.unwrap();
        assert!(store.set_aside().is_some(), "damage is found when opening, not at some later query");
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_written_is_an_error_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let error = Store::open(directory.path().join("missing/state.db")).await.unwrap_err();
        assert!(error.to_string().contains("missing/state.db"), "{error}");
    }
}
