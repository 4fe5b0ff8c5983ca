//! The open file: one instance per file and process, its connections, and the fence in front of every commit.
//!
//! ```text
//!   DuckdbTarget ─┐                       ┌─ Session (writer)
//!   DuckdbTarget ─┴─> Database (one file) ┼─ Session (load) ...
//!                        fence: task -> epoch
//! ```
//!
//! Invariants: two targets on one file in one process share one instance (the operating system's file lock does not
//! separate them, and two instances would destroy the file); a session keeps its database alive; a commit happens under
//! the fence's read lock and only with the task's newest epoch, so that a raised epoch has no older commit behind it.
//!
//! Why the fence is in memory: other processes are kept out by the file's lock; what is left are two holders in one process.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use duckdb::{Config, Connection};
use parking_lot::{Mutex, RwLock};
use pgferry_model::{Error, Result};

use crate::DuckdbConfig;
use crate::error;

/// WAL size at which DuckDB checkpoints by itself: see the module `write::apply` for the measurement.
const CHECKPOINT_THRESHOLD: &str = "64MB";

static OPEN: Mutex<BTreeMap<PathBuf, Weak<Database>>> = Mutex::new(BTreeMap::new());

/// A task's right to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) task: String,
    pub(crate) epoch: u64,
}

/// The open file.
pub(crate) struct Database {
    path: PathBuf,
    root: Mutex<Option<Connection>>,
    /// Per task the epoch that may commit.
    pub(crate) fence: RwLock<HashMap<String, u64>>,
    dead: AtomicBool,
}

/// A connection to the open file.
pub(crate) struct Session {
    // Dropped before the database: the file is closed by the last connection.
    pub(crate) connection: Connection,
    pub(crate) database: Arc<Database>,
    /// Whether a transaction is open; the library's own flag does not tell.
    open: Cell<bool>,
}

/// The file's path with its folder resolved, so that two ways to one file are seen as one.
pub(crate) fn resolved(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        return path.canonicalize().map_err(|failure| error::not_writable(&path.display().to_string(), failure.to_string()));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| error::not_writable(&path.display().to_string(), "it names no file"))?;
    let folder = folder
        .canonicalize()
        .map_err(|failure| error::not_writable(&path.display().to_string(), format!("its folder: {failure}")))?;
    Ok(folder.join(name))
}

impl Database {
    /// Opens the file, or shares it with who has it open in this process.
    pub(crate) fn open(config: &DuckdbConfig) -> Result<Arc<Database>> {
        let path = resolved(&config.path)?;
        let mut open = OPEN.lock();
        if let Some(database) = open.get(&path).and_then(Weak::upgrade) {
            return Ok(database);
        }
        let settings = settings(config).map_err(|failure| error::from_duckdb(&failure, "reading the settings"))?;
        let root = Connection::open_with_flags(&path, settings).map_err(|failure| error::at_open(&failure, &path))?;
        let database = Arc::new(Database {
            path: path.clone(),
            root: Mutex::new(Some(root)),
            fence: RwLock::new(HashMap::new()),
            dead: AtomicBool::new(false),
        });
        open.insert(path, Arc::downgrade(&database));
        Ok(database)
    }

    /// A new connection.
    pub(crate) fn session(self: &Arc<Self>) -> Result<Session> {
        let root = self.root.lock();
        let connection = root.as_ref().ok_or_else(error::not_open)?.try_clone();
        let connection = connection.map_err(|failure| self.failed(&failure, "connecting"))?;
        Ok(Session { connection, database: Arc::clone(self), open: Cell::new(false) })
    }

    /// Translates an error, and remembers when DuckDB has given up.
    pub(crate) fn failed(&self, failure: &duckdb::Error, what: &str) -> Error {
        if error::is_fatal(failure) {
            self.dead.store(true, Ordering::Release);
        }
        error::from_duckdb(failure, what)
    }

    /// Whether DuckDB has given up this instance.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Under the list's lock: nobody opens the file while it is being closed.
        let mut open = OPEN.lock();
        self.root.lock().take();
        if open.get(&self.path).is_some_and(|database| database.strong_count() == 0) {
            open.remove(&self.path);
        }
    }
}

fn settings(config: &DuckdbConfig) -> duckdb::Result<Config> {
    let mut settings = Config::default()
        .with("autoinstall_known_extensions", "false")?
        .with("autoload_known_extensions", "false")?
        .with("checkpoint_threshold", CHECKPOINT_THRESHOLD)?
        .max_memory(&config.memory_limit)?;
    if let Some(threads) = config.threads {
        settings = settings.threads(i64::from(threads.max(1)))?;
    }
    Ok(settings)
}

impl Session {
    /// Runs statements without parameters.
    pub(crate) fn run(&self, sql: &str, what: &str) -> Result<()> {
        self.connection.execute_batch(sql).map_err(|failure| self.database.failed(&failure, what))
    }

    /// Runs a statement; returns how many rows it touched.
    pub(crate) fn execute(&self, sql: &str, parameters: impl duckdb::Params, what: &str) -> Result<usize> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(parameters))
            .map_err(|failure| self.database.failed(&failure, what))
    }

    pub(crate) fn begin(&self) -> Result<()> {
        self.run("BEGIN", "beginning a transaction")?;
        self.open.set(true);
        Ok(())
    }

    /// Ends the open transaction without a trace; where there is none, nothing happens.
    pub(crate) fn rollback(&self) {
        if self.open.replace(false)
            && let Err(failure) = self.connection.execute_batch("ROLLBACK")
        {
            let failure = self.database.failed(&failure, "rolling back");
            tracing::debug!(cause = failure.cause().unwrap_or_default(), "a rollback failed");
        }
    }

    /// Commits where the lease is still the newest.
    pub(crate) fn commit(&self, lease: &Lease) -> Result<()> {
        let fence = self.database.fence.read();
        if fence.get(&lease.task) != Some(&lease.epoch) {
            self.rollback();
            return Err(error::fenced(&lease.task));
        }
        self.commit_unfenced()
    }

    /// Commits whoever holds the lease; for raising the epoch itself, and for [`Session::commit`].
    pub(crate) fn commit_unfenced(&self) -> Result<()> {
        let committed = self.connection.execute_batch("COMMIT").map_err(|failure| {
            let plain = self.database.failed(&failure, "committing");
            self.rollback();
            if plain.code() == error::INTERRUPTED { plain } else { unknown(&plain) }
        });
        self.open.set(false);
        committed
    }

    /// Runs `work` in one transaction, under the lease.
    pub(crate) fn transaction<T>(&self, lease: &Lease, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.begin()?;
        match work() {
            Ok(value) => self.commit(lease).map(|()| value),
            Err(failure) => {
                self.rollback();
                Err(failure)
            }
        }
    }
}

/// A failed commit: whether it is durable is not known until the file is read again.
fn unknown(plain: &Error) -> Error {
    let error = Error::transient(error::COMMIT_UNKNOWN, "a commit failed; whether it is durable is not known yet")
        .with_cause(plain.cause().unwrap_or_else(|| plain.problem().to_owned()));
    match plain.cure() {
        Some(cure) => error.with_cure(cure.clone()),
        None => error,
    }
}
