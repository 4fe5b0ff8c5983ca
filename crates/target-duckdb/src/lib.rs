//! DuckDB as a target: one file, no server; data, positions and receipts in the same transaction.
//!
//! ```text
//!   load  (N at once)  rows ──encode──> Arrow ──appender──> table    + chunk record      one commit
//!   apply (one)        final changes ──> DELETE USING keys, append   + position, epoch   one commit
//! ```
//!
//! Invariants: every commit compares the task's epoch (`database`); values are exact or refused (`pgferry_columnar`); the
//! schema `pgferry` in the file is the only record (`progress`). Everything that calls DuckDB runs on a blocking thread.
//!
//! Limits: one process at a time has the file open; DECIMAL has 38 digits; names differ by more than case.

mod check;
mod config;
mod database;
mod encode;
pub mod error;
mod inspect;
mod mapping;
mod progress;
mod schema;
mod write;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use pgferry_model::{
    CellFormat, Column, Delivery, Error, Finding, Progress, Result, SourceIdentity, Table, TableName, TableState,
    TaskId,
};
use pgferry_pipeline::error::WORKER_LOST;
use pgferry_pipeline::{
    ChangeForm, ChunkRows, ColumnMapping, CopyMark, Inspect, Receipt, SchemaChange, TableChanges, TablePlan, Target,
    TextRow, Wants, failpoint,
};

pub use config::DuckdbConfig;
use database::{Database, Lease, Session};
use mapping::{WantedTypes, map_table};
use schema::{Found, quoted_table};
use write::Destined;
use write::apply::Writer;

/// Batches of rows that may wait between DuckDB and who inspects them.
const INSPECTED_WAITING_MAX: usize = 2;

/// A DuckDB file as a target.
pub struct DuckdbTarget {
    inner: Arc<Inner>,
}

/// A version of a table, and where its rows go.
type Known = (Arc<Table>, Arc<Destined>);

pub(crate) struct Inner {
    pub(crate) config: DuckdbConfig,
    pub(crate) wanted: WantedTypes,
    database: Mutex<Option<Arc<Database>>>,
    lease: Mutex<Option<Lease>>,
    writer: Mutex<Option<Writer>>,
    /// Where tables' rows go, for the version of the table that was asked last.
    destined: Mutex<HashMap<TableName, Known>>,
}

impl DuckdbTarget {
    /// A target for the file; nothing is opened yet. Fails when a wanted type is not known.
    pub fn connect(config: DuckdbConfig) -> Result<Arc<DuckdbTarget>> {
        let wanted = WantedTypes::read(&config.column_types)?;
        let inner = Inner {
            config,
            wanted,
            database: Mutex::new(None),
            lease: Mutex::new(None),
            writer: Mutex::new(None),
            destined: Mutex::new(HashMap::new()),
        };
        Ok(Arc::new(DuckdbTarget { inner: Arc::new(inner) }))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        let ended = tokio::task::spawn_blocking(move || work(&inner)).await;
        ended.unwrap_or_else(|failure| {
            Err(Error::task_broken(WORKER_LOST, "a thread of the DuckDB target ended early").with_origin(failure))
        })
    }
}

impl Inner {
    /// The file, opened where it is not yet.
    pub(crate) fn database(&self) -> Result<Arc<Database>> {
        let mut database = self.database.lock();
        match &*database {
            Some(open) if !open.is_dead() => Ok(Arc::clone(open)),
            _ => {
                // A dead instance has to be gone before the file can be opened again.
                *database = None;
                let open = Database::open(&self.config)?;
                *database = Some(Arc::clone(&open));
                Ok(open)
            }
        }
    }

    fn session(&self) -> Result<Session> {
        self.database()?.session()
    }

    fn lease(&self) -> Result<Lease> {
        self.lease.lock().clone().ok_or_else(error::not_open)
    }

    /// The table's name in the file.
    pub(crate) fn target_name(&self, table: &Table) -> TableName {
        match &self.config.schema {
            Some(schema) => TableName::new(schema.as_str(), Arc::clone(&table.target_name.name)),
            None => table.target_name.clone(),
        }
    }

    /// Where a table's rows go.
    fn destined(&self, table: &Arc<Table>) -> Result<Arc<Destined>> {
        if let Some((known, destined)) = self.destined.lock().get(&table.name)
            && (Arc::ptr_eq(known, table) || known == table)
        {
            return Ok(Arc::clone(destined));
        }
        let target = self.target_name(table);
        let columns = map_table(table, &self.wanted)?;
        let in_order = match schema::find(&self.session()?, &target)? {
            Found::Table(held) => schema::in_order(table, &held),
            _ => return Err(missing(table, &target)),
        };
        let destined = Arc::new(Destined { target, columns, in_order });
        self.destined.lock().insert(table.name.clone(), (Arc::clone(table), Arc::clone(&destined)));
        Ok(destined)
    }

    fn open(&self, task: &TaskId) -> Result<Progress> {
        // An open transaction of the last holder ends here, also when the instance is dead.
        *self.writer.lock() = None;
        self.destined.lock().clear();
        let session = self.session()?;
        let progress = progress::take_lease(&session, task.as_str())?;
        *self.lease.lock() = Some(Lease { task: task.as_str().to_owned(), epoch: progress.epoch });
        *self.writer.lock() = Some(Writer::new(session, progress.position));
        Ok(progress)
    }

    /// The statements that make a plan's table ready, for what is there now.
    fn statements(&self, session: &Session, plan: &TablePlan, recorded: bool) -> Result<Vec<String>> {
        let columns = map_table(&plan.table, &self.wanted)?;
        let target = self.target_name(&plan.table);
        schema::statements(plan, &target, &columns, &schema::find(session, &target)?, recorded)
    }

    pub(crate) fn describe(&self, plan: &TablePlan) -> Result<Vec<String>> {
        if !self.config.path.exists() {
            let columns = map_table(&plan.table, &self.wanted)?;
            return Ok(schema::create(&plan.table, &self.target_name(&plan.table), &columns));
        }
        let session = self.session()?;
        let lease = self.lease.lock().clone();
        let recorded = match lease {
            Some(lease) => progress::is_recorded(&session, &lease.task, &plan.table)?,
            None => false,
        };
        self.statements(&session, plan, recorded)
    }

    fn prepare(&self, plan: &TablePlan) -> Result<()> {
        let (session, lease) = (self.session()?, self.lease()?);
        let (table, target) = (&plan.table, self.target_name(&plan.table));
        self.destined.lock().remove(&table.name);
        if let Some(owner) = progress::other_owner(&session, &lease.task, table, &target)? {
            let problem = format!("{}: {target} in the target belongs to {owner} already", table.name);
            return Err(Error::table_broken(error::NAME_COLLISION, table.name.clone(), problem).with_cure(
                pgferry_model::Cure::advice("give the table another name in the target, or exclude it from one task"),
            ));
        }
        session.transaction(&lease, || {
            let recorded = progress::is_recorded(&session, &lease.task, table)?;
            for statement in self.statements(&session, plan, recorded)? {
                session.run(&statement, &format!("making {target}"))?;
            }
            if !recorded {
                let counted = format!("SELECT count(*) FROM {}", quoted_table(&target));
                let rows_before = session
                    .connection
                    .query_row(&counted, [], |row| row.get(0))
                    .map_err(|failure| session.database.failed(&failure, &format!("counting {target}")))?;
                progress::record_table(&session, &lease.task, table, &target, rows_before)?;
            }
            Ok(())
        })?;
        failpoint::pass("target.table_created");
        Ok(())
    }

    fn begin_copy(&self, table: &Arc<Table>, mark: CopyMark) -> Result<()> {
        let (session, lease) = (self.session()?, self.lease()?);
        let to = self.destined(table)?;
        session.transaction(&lease, || {
            let rows_before = progress::rows_before(&session, &lease.task, table)?;
            remove_copied(&session, &to, rows_before)?;
            progress::set_copying(&session, &lease.task, table, mark.cut)?;
            match mark.stream_start {
                Some(start) => progress::set_first_position(&session, &lease, start),
                None => Ok(()),
            }
        })?;
        let position = progress::read(&session, &lease.task)?.position;
        if let Some(writer) = &mut *self.writer.lock() {
            writer.position_is(position);
        }
        Ok(())
    }

    fn evolve(&self, change: &SchemaChange) -> Result<()> {
        let (session, lease) = (self.session()?, self.lease()?);
        let target = self.target_name(&change.after);
        let before = map_table(&change.before, &self.wanted)?;
        let after = map_table(&change.after, &self.wanted)?;
        self.destined.lock().remove(&change.after.name);
        let Found::Table(held) = schema::find(&session, &target)? else {
            return Err(missing(&change.after, &target));
        };
        let statements = schema::alter(change, &target, &before, &after, &held)?;
        session.transaction(&lease, || {
            statements.iter().try_for_each(|statement| session.run(statement, &format!("altering {target}")))
        })
    }

    fn close(&self) -> Result<()> {
        *self.writer.lock() = None;
        *self.lease.lock() = None;
        self.destined.lock().clear();
        let Some(database) = self.database.lock().take() else { return Ok(()) };
        // Others in this process may still write; then their close checkpoints.
        if Arc::strong_count(&database) == 1 {
            database.session()?.run("CHECKPOINT", "writing the log into the file")?;
        }
        Ok(())
    }
}

/// Removes what a copy has left: every row after those that the table had before the task. DuckDB keeps rows in the order in
/// which they came, and nothing else has been written to a table whose copy is not done.
fn remove_copied(session: &Session, to: &Destined, rows_before: u64) -> Result<()> {
    let name = quoted_table(&to.target);
    let what = format!("emptying {}", to.target);
    if rows_before == 0 {
        return session.run(&format!("DELETE FROM {name}"), &what);
    }
    session.run(
        &format!(
            "DELETE FROM {name} WHERE rowid > (SELECT max(rowid) FROM \
             (SELECT rowid FROM {name} ORDER BY rowid LIMIT {rows_before}))"
        ),
        &what,
    )
}

fn missing(table: &Table, target: &TableName) -> Error {
    let problem = format!("{}: the target has no table {target} any more", table.name);
    Error::table_broken(error::TABLE_MISSING, table.name.clone(), problem)
        .with_cause("it was dropped or renamed outside of pgferry")
        .with_cure(pgferry_model::Cure::advice("copy the table again"))
}

#[async_trait]
impl Target for DuckdbTarget {
    fn wants(&self) -> Wants {
        Wants { changes: ChangeForm::LatestPerKey, loads_max: self.inner.config.loads_max.max(1), slices: true }
    }

    fn snapshot_format(&self, column: &Column) -> CellFormat {
        mapping::snapshot_format(column, &self.inner.wanted)
    }

    fn mapping(&self, table: &Table) -> Result<Vec<ColumnMapping>> {
        mapping::column_mappings(table, &self.inner.wanted)
    }

    async fn open(&self, task: &TaskId) -> Result<Progress> {
        let task = task.clone();
        self.blocking(move |inner| inner.open(&task)).await
    }

    async fn identify(&self, source: &SourceIdentity) -> Result<()> {
        let source = source.clone();
        self.blocking(move |inner| {
            let (session, lease) = (inner.session()?, inner.lease()?);
            session.transaction(&lease, || progress::identify(&session, &lease, &source))
        })
        .await
    }

    async fn prepare(&self, plan: &TablePlan) -> Result<()> {
        let plan = plan.clone();
        self.blocking(move |inner| inner.prepare(&plan)).await
    }

    async fn begin_copy(&self, table: &Arc<Table>, mark: CopyMark) -> Result<()> {
        let table = Arc::clone(table);
        self.blocking(move |inner| inner.begin_copy(&table, mark)).await
    }

    async fn load(&self, chunk: ChunkRows) -> Result<u64> {
        self.blocking(move |inner| {
            let (session, lease) = (inner.session()?, inner.lease()?);
            let to = inner.destined(&chunk.chunk.table)?;
            write::load::load(&session, &lease, chunk, &to)
        })
        .await
    }

    async fn set_state(&self, table: &Arc<Table>, state: TableState) -> Result<()> {
        let table = Arc::clone(table);
        self.blocking(move |inner| {
            let (session, lease) = (inner.session()?, inner.lease()?);
            let target = inner.target_name(&table);
            session.transaction(&lease, || progress::set_state(&session, &lease.task, &table, &target, &state))
        })
        .await
    }

    async fn apply(&self, delivery: Arc<Delivery<TableChanges>>) -> Result<Receipt> {
        self.blocking(move |inner| {
            let lease = inner.lease()?;
            let mut writer = inner.writer.lock();
            let writer = writer.as_mut().ok_or_else(error::not_open)?;
            writer.apply(&lease, &delivery, |table| inner.destined(table))
        })
        .await
    }

    async fn discard(&self) -> Result<()> {
        self.blocking(|inner| {
            if let Some(writer) = &mut *inner.writer.lock() {
                writer.discard();
            }
            Ok(())
        })
        .await
    }

    async fn evolve(&self, change: &SchemaChange) -> Result<()> {
        let change = change.clone();
        self.blocking(move |inner| inner.evolve(&change)).await
    }

    async fn check(&self, plans: &[TablePlan]) -> Result<Vec<Finding>> {
        let plans = plans.to_vec();
        self.blocking(move |inner| check::check(inner, &plans)).await
    }

    async fn describe(&self, plan: &TablePlan) -> Result<Vec<String>> {
        let plan = plan.clone();
        self.blocking(move |inner| inner.describe(&plan)).await
    }

    fn inspect(&self) -> &dyn Inspect {
        self
    }

    fn outcome_unknown(&self, failure: &Error) -> bool {
        failure.code() == error::COMMIT_UNKNOWN
    }

    async fn close(&self) -> Result<()> {
        self.blocking(Inner::close).await
    }
}

#[async_trait]
impl Inspect for DuckdbTarget {
    async fn count(&self, table: &Table) -> Result<u64> {
        let table = Arc::new(table.clone());
        self.blocking(move |inner| inspect::count(&inner.session()?, &*inner.destined(&table)?)).await
    }

    async fn rows(
        &self,
        table: &Table,
        limit: Option<u64>,
        each: &mut (dyn FnMut(TextRow) -> Result<()> + Send),
    ) -> Result<()> {
        let table = Arc::new(table.clone());
        let (sender, mut batches) = tokio::sync::mpsc::channel(INSPECTED_WAITING_MAX);
        let reading = self.blocking(move |inner| {
            let to = inner.destined(&table)?;
            inspect::rows(&inner.session()?, &table, &to, limit, |batch| sender.blocking_send(batch).is_ok())
        });
        let taking = async {
            while let Some(batch) = batches.recv().await {
                for row in batch {
                    if let Err(failure) = each(row) {
                        // The reader stops when nobody takes its rows any more.
                        batches.close();
                        return Err(failure);
                    }
                }
            }
            Ok(())
        };
        let (read, taken) = tokio::join!(reading, taking);
        taken.and(read)
    }
}
