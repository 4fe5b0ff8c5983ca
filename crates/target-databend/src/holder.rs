//! Who holds a task: its lease, its sessions, what it knows, and its commits.
//!
//! ```text
//!   commit    BEGIN ─> steps ─> [ one at a time: last steps ─> UPDATE task … WHERE epoch ─> COMMIT ]      a conflict: all of it again
//! ```
//!
//! Two transactions that change one transient table conflict where the first one commits after the second one has begun with that table,
//! also where both only append to it. So what is done to pgferry's own tables is done in the turn.
//!
//! Invariants: nothing is committed but under the lease; what ends two commits is never under way at once in one process, so that they
//! conflict with other holders only; a session whose transaction failed is given back only after its rollback was answered.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use pgferry_model::{Class, Error, Position, Result, Table, TableName, TaskId};
use pgferry_pipeline::{DeletePolicy, failpoint};
use tokio::sync::Notify;

use crate::encode::Encoder;
use crate::error::{CONFLICT, REFUSED, answered, fenced, mistake, of_table, refused, server, table_gone};
use crate::history::Copying;
use crate::progress::{Lease, Moved, fence, read_lease};
use crate::schema::{column_plans, target_name};
use crate::session::{Rows, Session, despite_conflicts, first_number, number};
use crate::settings::Settings;

/// Sessions that are kept for the next statement.
const IDLE_MAX: usize = 16;

/// A statement of a transaction.
pub(crate) struct Step {
    sql: String,
    /// The table that its error belongs to.
    table: Option<TableName>,
    /// Rows that a COPY has to load, no more and no less.
    loads: Option<u64>,
    /// It is done when no other commit is being ended.
    in_turn: bool,
}

impl Step {
    /// One on pgferry's own tables, in the commit's turn.
    pub(crate) fn new(sql: String) -> Step {
        Step { sql, table: None, loads: None, in_turn: true }
    }

    /// One on a table, or what is staged of it, before the commit's turn.
    pub(crate) fn on(table: &TableName, sql: String) -> Step {
        Step { table: Some(table.clone()), in_turn: false, ..Step::new(sql) }
    }

    pub(crate) fn in_turn(self) -> Step {
        Step { in_turn: true, ..self }
    }

    pub(crate) fn loading(mut self, rows: u64) -> Step {
        self.loads = Some(rows);
        self
    }

    fn verify(&self, doing: &str, rows: &Rows) -> Result<()> {
        let Some(wanted) = self.loads else { return Ok(()) };
        // A row per file: its name, rows loaded, errors.
        let loaded: u64 = rows.iter().map(|row| number(row.get(1))).sum();
        if loaded == wanted {
            return Ok(());
        }
        Err(Error::task_broken(REFUSED, format!("{doing}: {loaded} of {wanted} rows were loaded"))
            .with_cause("a file is loaded once by its name, and whole or not at all")
            .with_cure(mistake()))
    }
}

/// A transaction.
pub(crate) struct Commit<'a> {
    pub(crate) doing: &'a str,
    pub(crate) steps: Vec<Step>,
    pub(crate) moved: Moved,
    /// Before and after its end.
    pub(crate) points: [&'static str; 2],
}

impl<'a> Commit<'a> {
    /// One that stores no position.
    pub(crate) fn of(doing: &'a str, steps: Vec<Step>) -> Self {
        let points = ["target.record_before_commit", "target.record_after_commit"];
        Commit { doing, steps, moved: Moved::default(), points }
    }
}

/// A table that has rows in its raw table.
pub(crate) struct Staged {
    pub(crate) table: Arc<Table>,
    /// The number of its last staged rows.
    pub(crate) seq: u64,
    /// When it is merged next.
    pub(crate) due: Instant,
    /// Since when its oldest rows wait, or an earlier moment.
    pub(crate) since: Instant,
}

/// What the process knows of the task.
pub(crate) struct View {
    pub(crate) position: Position,
    /// The number of the last staged rows.
    pub(crate) seq: u64,
    encoders: HashMap<TableName, Arc<Encoder>>,
    pub(crate) staged: HashMap<TableName, Staged>,
    /// When a table may be merged again.
    pub(crate) rested: HashMap<TableName, Instant>,
    /// Tables whose merge fails for good: the next delivery tells it.
    pub(crate) failed: HashMap<TableName, Error>,
    /// Tables whose copy goes beside rows from before the task.
    pub(crate) appending: HashSet<TableName>,
    /// Unfinished copies into histories.
    pub(crate) copying: HashMap<TableName, Copying>,
    /// Whether deletes and truncates of a table are carried.
    pub(crate) deletes: HashMap<TableName, DeletePolicy>,
    /// Tables that were made just now, and are empty.
    pub(crate) made: HashSet<TableName>,
    /// Tables to be put into the order of their keys before their first merge.
    pub(crate) unordered: HashMap<TableName, Arc<Table>>,
}

/// The holder of a task.
pub(crate) struct Holder {
    pub(crate) settings: Arc<Settings>,
    pub(crate) task: TaskId,
    pub(crate) lease: Lease,
    pub(crate) view: Mutex<View>,
    /// Held while a table is merged, or while merges have to keep away.
    pub(crate) merging: tokio::sync::Mutex<()>,
    /// Tells the merging task of staged rows, and of the end.
    pub(crate) wake: Notify,
    commits: tokio::sync::Mutex<()>,
    idle: Mutex<Vec<Session>>,
    files: AtomicU64,
    ended: AtomicBool,
}

impl Holder {
    pub(crate) fn new(
        settings: &Arc<Settings>,
        task: &TaskId,
        lease: Lease,
        session: Session,
        position: Option<Position>,
        seq: u64,
    ) -> Holder {
        Holder {
            settings: Arc::clone(settings),
            task: task.clone(),
            lease,
            view: Mutex::new(View {
                position: position.unwrap_or(Position::ZERO),
                seq,
                encoders: HashMap::new(),
                staged: HashMap::new(),
                rested: HashMap::new(),
                failed: HashMap::new(),
                appending: HashSet::new(),
                copying: HashMap::new(),
                deletes: HashMap::new(),
                made: HashSet::new(),
                unordered: HashMap::new(),
            }),
            merging: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            commits: tokio::sync::Mutex::default(),
            idle: Mutex::new(vec![session]),
            files: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        }
    }

    /// Takes over what another holder of this process knows of staged rows; that one merges nothing any more.
    pub(crate) fn succeed(&self, other: &Holder) {
        other.ended.store(true, Ordering::Release);
        let mut old = other.view.lock();
        let mut view = self.view.lock();
        view.staged = std::mem::take(&mut old.staged);
        view.rested = std::mem::take(&mut old.rested);
        view.failed = std::mem::take(&mut old.failed);
        view.unordered = std::mem::take(&mut old.unordered);
        view.deletes = std::mem::take(&mut old.deletes);
    }

    /// Merges nothing any more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// A session of its own, until it is given back.
    pub(crate) async fn session(&self) -> Result<Lent<'_>> {
        let idle = self.idle.lock().pop();
        let session = match idle {
            Some(session) => session,
            None => Session::connect(&self.settings).await?,
        };
        Ok(Lent { holder: self, session })
    }

    /// Asks a question outside of a transaction.
    pub(crate) async fn ask(&self, doing: &str, statement: &str) -> Result<Rows> {
        let session = self.session().await?;
        let rows = session.ask(doing, statement).await?;
        session.give_back();
        Ok(rows)
    }

    /// The encoder of a table in the version that the rows have.
    pub(crate) fn encoder(&self, table: &Arc<Table>) -> Arc<Encoder> {
        let mut view = self.view.lock();
        match view.encoders.get(&table.name) {
            Some(known) if Arc::ptr_eq(known.table(), table) => Arc::clone(known),
            _ => {
                let encoder = Arc::new(Encoder::new(&self.task, table, column_plans(&self.settings, table)));
                view.encoders.insert(table.name.clone(), Arc::clone(&encoder));
                encoder
            }
        }
    }

    /// Where a new file goes: the folder in the stage, and its name, which is used once. A table remembers for a day which names it has
    /// loaded, also where pgferry's own tables were dropped and epochs begin anew.
    fn file_name(&self) -> (String, String) {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        (self.folder(), format!("{}-{number}.parquet", self.lease.holder))
    }

    /// The task's folder in the stage.
    pub(crate) fn folder(&self) -> String {
        format!("@{}/{}", self.settings.stage(), self.task)
    }

    /// Uploads a file; gives its name.
    pub(crate) async fn upload(&self, bytes: Vec<u8>) -> Result<String> {
        let (folder, name) = self.file_name();
        let session = self.session().await?;
        session.upload(&format!("{folder}/{name}"), Bytes::from(bytes)).await?;
        session.give_back();
        Ok(name)
    }

    /// Commits a transaction under the lease; one that conflicts with another one is tried again.
    pub(crate) async fn commit(&self, commit: &Commit<'_>) -> Result<()> {
        despite_conflicts(|| self.try_commit(commit)).await
    }

    async fn try_commit(&self, commit: &Commit<'_>) -> Result<()> {
        let session = self.session().await?;
        match self.transact(&session, commit).await {
            Ok(()) => {
                session.give_back();
                Ok(())
            }
            Err(failure) => {
                // What the server does not answer now it does not do either: the session is let go.
                if failure.class() == Class::Transient && failure.code() != CONFLICT {
                    self.idle.lock().clear();
                } else if session.run("ROLLBACK").await.is_ok() {
                    let newer = failure.class() != Class::Transient && self.is_replaced(&session).await;
                    session.give_back();
                    if newer {
                        return Err(fenced());
                    }
                }
                Err(failure)
            }
        }
    }

    async fn transact(&self, session: &Session, commit: &Commit<'_>) -> Result<()> {
        let Commit { doing, steps, moved, points } = commit;
        session.ask(doing, "BEGIN").await?;
        for step in steps.iter().filter(|step| !step.in_turn) {
            self.take(session, doing, step).await?;
        }
        let _turn = self.commits.lock().await;
        for step in steps.iter().filter(|step| step.in_turn) {
            self.take(session, doing, step).await?;
        }
        let rows = session.ask(doing, &fence(&self.settings, &self.task, &self.lease, *moved)).await?;
        if first_number(&rows) != 1 {
            return Err(fenced());
        }
        failpoint::pass(points[0]);
        session.ask(doing, "COMMIT").await?;
        failpoint::pass(points[1]);
        Ok(())
    }

    async fn take(&self, session: &Session, doing: &str, step: &Step) -> Result<()> {
        let rows = session.run(&step.sql).await.map_err(|failure| self.of_step(doing, step, &failure))?;
        step.verify(doing, &rows)
    }

    /// Whether a newer holder is the reason that a statement failed: it removes what this one has put into the stage.
    async fn is_replaced(&self, session: &Session) -> bool {
        let stored = read_lease(session, &self.settings, &self.task).await;
        stored.is_ok_and(|stored| stored.is_some_and(|stored| stored != self.lease))
    }

    fn of_step(&self, doing: &str, step: &Step, failure: &databend_client::Error) -> Error {
        let Some(table) = &step.table else { return refused(doing, failure) };
        match answered(failure) {
            Some((server::UNKNOWN_TABLE | server::UNKNOWN_DATABASE, _)) => {
                let encoder = self.view.lock().encoders.get(table).cloned();
                let target =
                    encoder.map_or_else(|| table.clone(), |known| target_name(&self.settings, known.table()));
                table_gone(table, &target)
            }
            _ => of_table(refused(doing, failure), table),
        }
    }
}

/// A session that somebody uses. Dropped without being given back, it is not used again.
pub(crate) struct Lent<'h> {
    holder: &'h Holder,
    session: Session,
}

impl Lent<'_> {
    pub(crate) fn give_back(self) {
        let mut idle = self.holder.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(self.session);
        }
    }
}

impl Deref for Lent<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}
