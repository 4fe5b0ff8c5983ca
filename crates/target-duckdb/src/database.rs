//! The open file: one instance per file and process, its connections, and the fence in front of every commit.
//!
//! ```text
//!   DuckdbTarget ─┐                       ┌─ Session (writer)
//!   DuckdbTarget ─┴─> Database (one file) ┼─ Session (load) ...
//!                        fence: task -> epoch
//! ```
//!
//! Invariants: two targets on one file in one process share one instance: DuckDB's file lock does not separate them, and two
//! instances would overwrite each other's blocks. A session keeps its database alive. A commit happens under the fence's read
//! lock and only with the task's newest epoch, so no commit of an older holder can follow a raised one. The task's row is changed
//! under that lock, too, so that raising the epoch never conflicts with a commit under way. A thread takes the lock once.
//!
//! Why the fence is in memory: other processes are kept out by the file's lock; what is left are two holders in one process,
//! and a transaction that began before the epoch was raised still reads the old one.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use duckdb::{Config, Connection};
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
use pgferry_model::{Cure, Error, Result, TaskId};
use pgferry_pipeline::failpoint;

use crate::config::DuckdbConfig;
use crate::error::{FILE, STATEMENT, fenced, refused};

/// What the file's name ends with while the file is being made.
const ASIDE: &str = ".new";
/// How many full row groups DuckDB keeps before it compresses and writes them. One: with its own limit of five a chunk would keep all of
/// its rows until the commit, and commits take turns.
const ROW_GROUPS_KEPT_SETTING: &str = "write_buffer_row_group_count";
/// How many parts of a table a checkpoint may write anew to close the gaps that deleted rows and unfilled row groups leave.
const COMPACTION_SETTING: &str = "max_vacuum_tasks";
/// While changes are applied. Each part gives back at least a row group (122,880 rows); with DuckDB's own limit of 100 a checkpoint
/// after a large copy would hold up commits for as long as that copy took.
const COMPACTED_PARTS_MAX: u32 = 4;

static OPEN: Mutex<BTreeMap<PathBuf, Weak<Database>>> = Mutex::new(BTreeMap::new());

/// The open file.
pub(crate) struct Database {
    path: PathBuf,
    root: Mutex<Option<Connection>>,
    /// Per task the epoch that may commit.
    pub(crate) fence: RwLock<HashMap<TaskId, u64>>,
    /// Loads that go on.
    loads: Mutex<usize>,
    memory_limit: String,
    /// Length of the log beside the file after the last commit.
    log_bytes: AtomicU64,
}

/// A load that goes on: DuckDB's threads stay out of it.
pub(crate) struct Loading<'d> {
    database: &'d Database,
}

/// A connection to the open file.
pub(crate) struct Session {
    // Dropped before the database: the last connection closes the file.
    connection: Connection,
    pub(crate) database: Arc<Database>,
}

/// That the own epoch is the task's newest.
pub(crate) struct Newest<'d> {
    _fence: RwLockReadGuard<'d, HashMap<TaskId, u64>>,
}

impl Deref for Session {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Database {
    /// Opens the file, or shares it with who has it open in this process: its settings are then those of the first.
    pub(crate) fn open(config: &DuckdbConfig) -> Result<Arc<Database>> {
        let doing = format!("opening {}", config.path.display());
        let path =
            resolved(&config.path).map_err(|failure| unusable(&doing, &config.path).with_origin(failure))?;
        let mut open = OPEN.lock();
        while let Some(database) = open.get(&path) {
            if let Some(database) = database.upgrade() {
                return Ok(database);
            }
            // Its last holder is closing it, and takes it off the list when it is closed.
            MutexGuard::unlocked(&mut open, || std::thread::sleep(Duration::from_millis(1)));
        }
        if !path.exists() {
            make(&path, config, &doing)?;
        }
        let root = connect(&path, config).map_err(|failure| {
            let error = refused(&doing, failure);
            if error.code() == STATEMENT { unusable(&doing, &path).with_origin(error) } else { error }
        })?;
        let database = Arc::new(Database {
            path: path.clone(),
            root: Mutex::new(Some(root)),
            fence: RwLock::new(HashMap::new()),
            loads: Mutex::new(0),
            memory_limit: config.memory_limit.clone(),
            log_bytes: AtomicU64::new(0),
        });
        open.insert(path, Arc::downgrade(&database));
        Ok(database)
    }

    /// A new connection.
    pub(crate) fn session(self: &Arc<Self>) -> Result<Session> {
        let root = self.root.lock();
        let root = root.as_ref().ok_or_else(fenced)?;
        let connection = root.try_clone().map_err(|failure| refused("opening a connection", failure))?;
        Ok(Session { connection, database: Arc::clone(self) })
    }

    /// While rows are loaded, every loader works for itself and DuckDB has no threads of its own: a loader whose rows one of them has
    /// taken up waits in a loop that never sleeps, and a fifth of a copy's time went into that.
    pub(crate) fn loading(&self) -> Result<Loading<'_>> {
        let mut loads = self.loads.lock();
        if *loads == 0 {
            self.set_callers("current_setting('threads')")?;
        }
        *loads += 1;
        Ok(Loading { database: self })
    }

    /// After a commit: where it was followed by a checkpoint, which empties the log, what DuckDB freed goes back to the system. DuckDB's
    /// own allocator keeps several hundred MB for a later use otherwise; it lets go of them when its limit is set.
    fn give_back(&self) -> Result<()> {
        let mut log = self.path.as_os_str().to_owned();
        log.push(".wal");
        let bytes = fs::metadata(&log).map_or(0, |log| log.len());
        if bytes >= self.log_bytes.swap(bytes, Ordering::Relaxed) {
            return Ok(());
        }
        self.set("memory_limit", &format!("'{}'", self.memory_limit))
    }

    fn set(&self, setting: &str, value: &str) -> Result<()> {
        let root = self.root.lock();
        let root = root.as_ref().ok_or_else(fenced)?;
        root.execute_batch(&format!("SET GLOBAL {setting} = {value}"))
            .map_err(|failure| refused("changing a setting", failure))
    }

    /// How many of DuckDB's threads are those of its callers.
    fn set_callers(&self, count: &str) -> Result<()> {
        self.set("external_threads", count)
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut loads = self.database.loads.lock();
        *loads -= 1;
        if *loads == 0
            && let Err(failure) = self.database.set_callers("1")
        {
            tracing::debug!(code = failure.code().as_str(), "DuckDB's threads stay away: {failure}");
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Under the list's lock: nobody opens the file while it is being closed.
        let mut open = OPEN.lock();
        self.root.lock().take();
        open.remove(&self.path);
    }
}

impl Session {
    /// Keeps the epoch from being raised as long as the answer is held. Refused where it is not the task's newest any more.
    pub(crate) fn newest(&self, task: &TaskId, epoch: u64) -> Result<Newest<'_>> {
        let fence = self.database.fence.read();
        if fence.get(task) == Some(&epoch) { Ok(Newest { _fence: fence }) } else { Err(fenced()) }
    }

    /// Commits the open transaction; else nothing of it stays.
    pub(crate) fn commit(&self, _newest: &Newest<'_>, doing: &str) -> Result<()> {
        self.connection.execute_batch("COMMIT").map_err(|failure| {
            self.roll_back();
            refused(doing, failure)
        })?;
        if let Err(failure) = self.database.give_back() {
            tracing::debug!(code = failure.code().as_str(), "memory is kept: {failure}");
        }
        Ok(())
    }

    /// From now on checkpoints compact. Not before: every chunk of a copy ends with a row group that is not filled, and joining those
    /// writes the whole copy a second time.
    pub(crate) fn compact_from_now_on(&self) -> Result<()> {
        self.database.set(COMPACTION_SETTING, &COMPACTED_PARTS_MAX.to_string())
    }

    /// Rolls back what failed, and says why it did.
    pub(crate) fn abandoned(&self, task: &TaskId, epoch: u64, failure: Error) -> Error {
        self.roll_back();
        self.explained(task, epoch, failure)
    }

    /// The error of a statement under an epoch: where another holder has raised it, DuckDB tells a conflict between the two, which
    /// looks like one that a retry would mend.
    pub(crate) fn explained(&self, task: &TaskId, epoch: u64, failure: Error) -> Error {
        if self.database.fence.read().get(task) == Some(&epoch) { failure } else { fenced() }
    }

    /// A transaction that DuckDB has ended by itself cannot be rolled back again; that is no trouble.
    pub(crate) fn roll_back(&self) {
        if let Err(failure) = self.connection.execute_batch("ROLLBACK") {
            tracing::debug!(cause = %failure, "nothing to roll back");
        }
    }
}

fn unusable(doing: &str, path: &Path) -> Error {
    let error = Error::task_broken(FILE, format!("{doing}: it is not a DuckDB file that can be written"));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return error.with_cause(format!("the folder {} does not exist", folder.display())).with_cure(
            Cure::advice("make the folder, or correct the path of the connection in the task file")
                .shell("mkdir -p", &folder.to_string_lossy()),
        );
    }
    if path.is_file() {
        return error
            .with_cause("this user may not write it, or it is another program's or a newer DuckDB's")
            .with_cure(
                Cure::advice(
                    "let this user write it, or name another file: path of the connection in the task file",
                )
                .shell("ls -l", &path.to_string_lossy()),
            );
    }
    error
        .with_cure(Cure::advice(
            "make the folder, let this user write to it, or name another file: path of the connection in the task file",
        ))
}

/// Makes the file aside and gives it its name when it is whole. DuckDB writes a new file in several steps, and a process that
/// dies between them would leave one that DuckDB refuses to open.
fn make(path: &Path, config: &DuckdbConfig, doing: &str) -> Result<()> {
    let failed = |failure: std::io::Error| unusable(doing, path).with_origin(failure);
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut aside = path.as_os_str().to_owned();
    aside.push(ASIDE);
    // One process at a time; where the file system has no such lock, the window is as small as the file.
    let held = File::open(folder).map_err(failed)?;
    let _unsupported = held.lock();
    if path.exists() {
        return Ok(());
    }
    match fs::remove_file(&aside) {
        Err(failure) if failure.kind() != ErrorKind::NotFound => return Err(failed(failure)),
        // What a process left that died while it made it.
        Ok(()) | Err(_) => {}
    }
    let made = connect(Path::new(&aside), config).map_err(|failure| {
        let error = refused(doing, failure);
        if error.code() == STATEMENT { unusable(doing, path).with_origin(error) } else { error }
    })?;
    made.close().map_err(|(_, failure)| refused(doing, failure))?;
    failpoint::pass("target.file_made");
    fs::rename(&aside, path).map_err(failed)
}

fn connect(path: &Path, config: &DuckdbConfig) -> duckdb::Result<Connection> {
    Connection::open_with_flags(path, settings(config)?)
}

fn settings(config: &DuckdbConfig) -> duckdb::Result<Config> {
    let settings = Config::default()
        .max_memory(&config.memory_limit)?
        .with("autoinstall_known_extensions", "false")?
        .with("autoload_known_extensions", "false")?
        .with(COMPACTION_SETTING, "0")?
        .with(ROW_GROUPS_KEPT_SETTING, "1")?;
    if config.threads == 0 { Ok(settings) } else { settings.threads(config.threads as i64) }
}

/// The file's path with links and folders resolved, so that two ways to one file are seen as one.
fn resolved(path: &Path) -> std::io::Result<PathBuf> {
    if path.exists() {
        return path.canonicalize();
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| std::io::Error::other("the path names no file"))?;
    Ok(folder.canonicalize()?.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_the_limit_again_leaves_it_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = DuckdbConfig {
            memory_limit: "300MB".into(),
            ..DuckdbConfig::new(folder.path().join("m.duckdb"))
        };
        let session = Database::open(&config).expect("a file").session().expect("a connection");
        let limit = || -> String {
            let asked = "SELECT current_setting('memory_limit')";
            session.query_row(asked, [], |row| row.get(0)).expect("a text")
        };
        let before = limit();
        session.database.log_bytes.store(1, Ordering::Relaxed);
        session.database.give_back().expect("a setting");
        assert_eq!((limit(), session.database.log_bytes.load(Ordering::Relaxed)), (before, 0));
    }

    #[test]
    fn checkpoints_do_not_rewrite_a_copy_and_compact_once_changes_are_applied() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = DuckdbConfig::new(folder.path().join("copy.duckdb"));
        let session = Database::open(&config).expect("a file").session().expect("a connection");
        let row_groups = || -> u32 {
            let count = "SELECT count(DISTINCT row_group_id) FROM pragma_storage_info('t')";
            session.query_row(count, [], |row| row.get(0)).expect("a number")
        };
        let run = |statement: &str| session.execute_batch(statement).expect("a statement");
        run("CREATE TABLE t (a INTEGER)");
        for _ in 0..8 {
            run("INSERT INTO t SELECT range FROM range(125000)");
        }
        run("CHECKPOINT");
        let unfilled = row_groups();
        session.compact_from_now_on().expect("a setting");
        for _ in 0..8 {
            run("INSERT INTO t VALUES (1); CHECKPOINT");
        }
        assert!(unfilled > row_groups(), "{unfilled} row groups are still {}", row_groups());
    }
}
