//! The target's contract on DuckDB: every call on a thread that may block, with a connection of its own.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use duckdb::Connection;
use parking_lot::Mutex;
use pgferry_model::{
    CellFormat, Class, Column, Cure, Delivery, Error, Finding, Position, Progress, Result, SourceIdentity,
    Table, TableName, TableState, TaskId,
};
use pgferry_pipeline::error::{SCHEMA_CHANGE_BLOCKED, worker_lost};
use pgferry_pipeline::{
    ChangeForm, ChunkRows, ColumnMapping, CopyMark, IfTargetExists, Inspect, Receipt, SchemaChange,
    TableChanges, TablePlan, Target, Wants, failpoint,
};

use crate::config::DuckdbConfig;
use crate::database::{Database, Session};
use crate::error::{APPEND_INTERRUPTED, fenced, refused, table_exists, table_gone};
use crate::progress::{Owner, Taken};
use crate::schema::{
    Entries, column_type, column_types, create_statements, existing, owner_before, qualified,
    remake_statements, target_name, verify_existing, verify_names,
};
use crate::write::{Writer, load, load_tables, store_states};
use crate::{check, progress};

/// Loads at once; more do not help, DuckDB's own threads do the rest.
const LOADS_MAX: usize = 16;

/// What is open.
struct Open {
    database: Arc<Database>,
    writer: Option<Arc<Mutex<Writer>>>,
    task: Option<TaskId>,
    epoch: u64,
    position: Position,
    /// Source tables whose table was made just now: there is nothing in it.
    made: HashSet<TableName>,
}

/// A DuckDB file as a target.
#[derive(Clone)]
pub struct DuckdbTarget {
    pub(crate) config: Arc<DuckdbConfig>,
    open: Arc<Mutex<Option<Open>>>,
}

impl DuckdbTarget {
    /// Opens the file, or makes it. Fails with `target.locked` when another process has it open, with `target.file` otherwise.
    pub fn connect(config: DuckdbConfig) -> Result<DuckdbTarget> {
        let target = DuckdbTarget { config: Arc::new(config), open: Arc::new(Mutex::new(None)) };
        target.connected(|_| Ok(()))?;
        Ok(target)
    }

    /// Runs on the open file; opens it when it is not.
    fn connected<T>(&self, work: impl FnOnce(&mut Open) -> Result<T>) -> Result<T> {
        let mut open = self.open.lock();
        let open = match &mut *open {
            Some(open) => open,
            none => none.insert(Open {
                database: Database::open(&self.config)?,
                writer: None,
                task: None,
                epoch: 0,
                position: Position::ZERO,
                made: HashSet::new(),
            }),
        };
        work(open)
    }

    /// Runs on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DuckdbTarget) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let target = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&target)).await;
        done.unwrap_or_else(|lost| {
            Err(worker_lost("a thread of the DuckDB target ended without a result").with_origin(lost))
        })
    }

    /// A connection of its own, the task and its epoch.
    fn session(&self) -> Result<(Session, TaskId, u64)> {
        self.connected(|open| {
            let task = open.task.clone().ok_or_else(fenced)?;
            Ok((open.database.session()?, task, open.epoch))
        })
    }

    /// The task that it was opened for.
    pub(crate) fn task(&self) -> Option<TaskId> {
        self.open.lock().as_ref().and_then(|open| open.task.clone())
    }

    pub(crate) fn reading(&self) -> Result<Session> {
        self.connected(|open| open.database.session())
    }

    /// Runs in a transaction that commits only under the own epoch.
    async fn in_transaction<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Connection, &TaskId, &DuckdbConfig) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.blocking(move |target| {
            let (session, task, epoch) = target.session()?;
            let newest = session.newest(&task, epoch)?;
            session.execute_batch("BEGIN TRANSACTION").map_err(|failure| refused(doing, failure))?;
            let done = progress::verify_epoch(&session, &task, epoch)
                .and_then(|()| work(&session, &task, &target.config))
                .inspect_err(|_| session.roll_back())?;
            failpoint::pass("target.record_before_commit");
            session.commit(&newest, doing)?;
            failpoint::pass("target.record_after_commit");
            Ok(done)
        })
        .await
    }
}

fn prepare(
    connection: &Connection,
    task: &TaskId,
    config: &DuckdbConfig,
    plan: &TablePlan,
    entries: &mut Entries,
) -> Result<Prepared> {
    let table = &plan.table;
    let (name, types) = (target_name(config, table), column_types(config, table));
    verify_names(table, &name)?;
    entries.verify_no_view(table, &name)?;
    let found = entries.existing(connection, &name)?;
    if let Some(owner) = owner_before(Some(task), plan, &name, entries)? {
        progress::take_from(connection, &owner.task, &owner.source)?;
        entries.remove_owner(&(owner.task, owner.source));
    }
    let doing = format!("preparing {name}");
    let execute =
        |statement: &str| connection.execute_batch(statement).map_err(|failure| refused(&doing, failure));
    let noted = entries.noted(task, &table.name);
    let ours = noted.is_some();
    let mut rows_before = 0;
    if noted.is_some_and(|noted| noted.state == TableState::Waiting) {
        let remade = remake_statements(&name, plan, &types, found.as_deref());
        if !remade.is_empty() {
            remade.iter().try_for_each(|statement| execute(statement))?;
            return Ok(Prepared { taken: None, made: true });
        }
    }
    match (&found, ours) {
        (Some(found), true) => {
            verify_existing(&name, table, &types, found)?;
            return Ok(Prepared { taken: None, made: false });
        }
        (None, true) => return Err(table_gone(&table.name, &name)),
        (None, false) => {}
        (Some(found), false) => match plan.if_exists {
            IfTargetExists::Error => return Err(table_exists(&table.name, &name)),
            IfTargetExists::Append => {
                verify_existing(&name, table, &types, found)?;
                rows_before = connection
                    .query_row(&format!("SELECT count(*) FROM {}", qualified(&name)), [], |row| row.get(0))
                    .map_err(|failure| refused(&doing, failure))?;
            }
            IfTargetExists::Truncate => {
                verify_existing(&name, table, &types, found)?;
                execute(&format!("DELETE FROM {}", qualified(&name)))?;
            }
            IfTargetExists::Replace => execute(&format!("DROP TABLE {}", qualified(&name)))?,
        },
    }
    let made = found.is_none() || plan.if_exists == IfTargetExists::Replace;
    if made {
        execute(&create_statements(&name, table, &types).join("; "))?;
        failpoint::pass("target.table_created");
    }
    let source = table.name.clone();
    entries.add_owner(Owner {
        task: task.clone(),
        source: source.clone(),
        target: name.clone(),
        state: TableState::Waiting,
        rows_before,
    });
    Ok(Prepared { taken: Some(Taken { source, target: name, rows_before }), made })
}

/// What preparing a table has done.
struct Prepared {
    /// What is to be noted of it.
    taken: Option<Taken>,
    /// It was made just now, and is empty.
    made: bool,
}

fn forget(connection: &Connection, task: &TaskId, table: Option<&TableName>) -> Result<()> {
    for (source, target) in progress::kept(connection, task, table)? {
        let counting = |failure| refused("counting a table's rows", failure);
        if existing(connection, &target)?.is_none() {
            continue;
        }
        let statement = format!("SELECT count(*) FROM {}", qualified(&target));
        let rows: i64 = connection.query_row(&statement, [], |row| row.get(0)).map_err(counting)?;
        if rows > 0 {
            return Err(Error::table_broken(
                APPEND_INTERRUPTED,
                source,
                format!("{target} holds rows from before the task, which cannot be told from those that it copied"),
            )
            .with_cause("the task took the table over with if_target_exists = \"append\"; another copy would double its rows")
            .with_cure(
                Cure::advice("keep a copy of the rows that you need, empty the table, then resync again")
                    .sql(format!("DELETE FROM {}", qualified(&target)))
                    .run_as("you, in the DuckDB file"),
            ));
        }
    }
    progress::forget(connection, task, table)
}

/// Takes out what an unfinished copy left; a table that was made just now holds nothing.
fn empty(
    connection: &Connection,
    task: &TaskId,
    config: &DuckdbConfig,
    table: &Table,
    entries: &Entries,
    made: bool,
) -> Result<()> {
    let name = target_name(config, table);
    // A table that the task has not taken over is somebody else's: not one row of it is deleted.
    let noted = entries.noted(task, &table.name).ok_or_else(|| table_exists(&table.name, &name))?;
    if made {
        return Ok(());
    }
    let emptied = match noted.rows_before {
        0 => format!("DELETE FROM {}", qualified(&name)),
        rows if untouched_since_copied(table, &noted.state) => remove_copied(&name, rows),
        _ => return Err(append_interrupted(table, &name)),
    };
    connection.execute_batch(&emptied).map_err(|failure| refused("emptying a table", failure))
}

/// Whether the table's rows are those from before the task, and after them those of an unfinished copy, in the order in which
/// they came. A column named `rowid` hides DuckDB's own.
fn untouched_since_copied(table: &Table, state: &TableState) -> bool {
    matches!(state, TableState::Waiting | TableState::Copying)
        && !table.columns.iter().any(|column| column.name.eq_ignore_ascii_case("rowid"))
}

/// The statement that leaves the first rows only. DuckDB keeps rows in the order in which they came, also when a checkpoint
/// moves them together.
fn remove_copied(name: &TableName, rows_before: u64) -> String {
    let name = qualified(name);
    format!(
        "DELETE FROM {name} WHERE rowid > (SELECT max(rowid) FROM \
         (SELECT rowid FROM {name} ORDER BY rowid LIMIT {rows_before}))"
    )
}

fn append_interrupted(table: &Table, name: &TableName) -> Error {
    let problem =
        format!("rows that were in {name} before the task cannot be told from those that it has copied");
    Error::table_broken(APPEND_INTERRUPTED, table.name.clone(), problem)
        .with_cause("changes have been applied to the table since it was appended to")
        .with_cure(Cure::advice("empty the table, or set if_target_exists = \"truncate\" or \"replace\" and give the task another name"))
}

#[async_trait]
impl Target for DuckdbTarget {
    fn wants(&self) -> Wants {
        Wants { changes: ChangeForm::LatestPerKey, loads_max: LOADS_MAX, slices: true, atomic: true }
    }

    fn snapshot_format(&self, table: &Table, column: &Column) -> CellFormat {
        column_type(&self.config, table, column).snapshot_format(&column.data_type)
    }

    fn mapping(&self, table: &Table) -> Result<Vec<ColumnMapping>> {
        verify_names(table, &target_name(&self.config, table))?;
        let types = column_types(&self.config, table);
        let mapping = |(column, kind): (&Column, crate::ColumnType)| ColumnMapping {
            column: column.name.to_string(),
            source_type: column.data_type.name.to_string(),
            target_type: kind.name,
            fidelity: kind.fidelity,
            note: kind.note.to_owned(),
        };
        Ok(table.columns.iter().zip(types).map(mapping).collect())
    }

    async fn open(&self, task: &TaskId) -> Result<Progress> {
        let task = task.clone();
        self.blocking(move |target| {
            target.connected(|open| {
                if let Some(writer) = &open.writer {
                    writer.lock().discard();
                }
                let session = open.database.session()?;
                let run = |statement| {
                    session.execute_batch(statement).map_err(|failure| refused("opening the task", failure))
                };
                // No commit of an older holder is under way while the epoch is raised, and none follows.
                let mut fence = open.database.fence.write();
                run("BEGIN TRANSACTION")?;
                let progress = progress::open(&session, &task).inspect_err(|_| session.roll_back())?;
                run("COMMIT")?;
                fence.insert(task.clone(), progress.epoch);
                drop(fence);
                open.epoch = progress.epoch;
                open.position = progress.position.unwrap_or(Position::ZERO);
                open.task = Some(task);
                if open.writer.is_none() {
                    open.writer = Some(Arc::new(Mutex::new(Writer::new(open.database.session()?))));
                }
                Ok(progress)
            })
        })
        .await
    }

    async fn held(&self, task: &TaskId) -> Result<Option<Progress>> {
        let task = task.clone();
        self.blocking(move |target| {
            let session = target.reading()?;
            progress::held(&session, &task)
        })
        .await
    }

    async fn identify(&self, source: &SourceIdentity) -> Result<()> {
        let source = source.clone();
        self.in_transaction("storing the source's identity", move |connection, task, _| {
            progress::identify(connection, task, &source)
        })
        .await
    }

    async fn prepare(&self, plan: &TablePlan) -> Result<()> {
        self.prepare_all(std::slice::from_ref(plan)).await
    }

    async fn prepare_all(&self, plans: &[TablePlan]) -> Result<()> {
        let plans = plans.to_vec();
        let made = self
            .in_transaction("preparing the tables", move |connection, task, config| {
                let mut entries = Entries::read(connection)?;
                let (mut taken, mut made) = (Vec::new(), Vec::new());
                for plan in &plans {
                    let prepared = prepare(connection, task, config, plan, &mut entries)?;
                    taken.extend(prepared.taken);
                    made.extend(prepared.made.then(|| plan.table.name.clone()));
                }
                progress::add_tables(connection, task, &taken)?;
                Ok(made)
            })
            .await?;
        self.connected(|open| {
            open.made.extend(made);
            Ok(())
        })
    }

    async fn begin_copy(&self, table: &Arc<Table>, mark: CopyMark) -> Result<()> {
        self.begin_copies(std::slice::from_ref(table), mark).await
    }

    async fn begin_copies(&self, tables: &[Arc<Table>], mark: CopyMark) -> Result<()> {
        let tables = tables.to_vec();
        let start = self
            .blocking(move |target| {
                let (session, task, epoch) = target.session()?;
                let made = target.connected(|open| Ok(std::mem::take(&mut open.made)))?;
                let doing = "starting a copy";
                let newest = session.newest(&task, epoch)?;
                session.execute_batch("BEGIN TRANSACTION").map_err(|failure| refused(doing, failure))?;
                let begin = || {
                    let stored = progress::position(&session, &task)?;
                    let start = mark.stream_start.filter(|_| stored.is_none());
                    progress::verify_epoch(&session, &task, epoch)?;
                    let entries = Entries::read(&session)?;
                    for table in &tables {
                        let made = made.contains(&table.name);
                        empty(&session, &task, &target.config, table, &entries, made)?;
                    }
                    progress::forget_chunks_of(&session, &task, &tables)?;
                    progress::set_states(&session, &task, &tables, &TableState::Copying, Some(mark.cut))?;
                    if let Some(start) = start {
                        progress::move_position(&session, &task, epoch, start)?;
                    }
                    Ok(start)
                };
                let start = begin().inspect_err(|_| session.roll_back())?;
                failpoint::pass("target.begin_before_commit");
                session.commit(&newest, doing)?;
                Ok(start)
            })
            .await?;
        if let Some(start) = start {
            self.connected(|open| {
                open.position = start;
                Ok(())
            })?;
        }
        Ok(())
    }

    async fn load(&self, chunk: ChunkRows) -> Result<u64> {
        self.blocking(move |target| {
            let (session, task, epoch) = target.session()?;
            load(&session, &target.config, &task, epoch, chunk)
        })
        .await
    }

    async fn load_tables(&self, tables: Vec<(ChunkRows, TableState)>) -> Result<Vec<u64>> {
        self.blocking(move |target| {
            let (session, task, epoch) = target.session()?;
            load_tables(&session, &target.config, &task, epoch, tables)
        })
        .await
    }

    async fn set_state(&self, table: &Arc<Table>, state: TableState) -> Result<()> {
        self.set_states(std::slice::from_ref(table), state).await
    }

    async fn set_states(&self, tables: &[Arc<Table>], state: TableState) -> Result<()> {
        let tables = tables.to_vec();
        self.in_transaction("storing the tables' state", move |connection, task, _| {
            store_states(connection, task, &tables, &state)
        })
        .await
    }

    async fn forget(&self, table: Option<&TableName>) -> Result<()> {
        let (table, everything) = (table.cloned(), table.is_none());
        self.in_transaction("forgetting what was copied", move |connection, task, _| {
            forget(connection, task, table.as_ref())
        })
        .await?;
        if everything {
            self.connected(|open| {
                open.position = Position::ZERO;
                Ok(())
            })?;
        }
        Ok(())
    }

    async fn apply(&self, delivery: Arc<Delivery<TableChanges>>) -> Result<Receipt> {
        self.blocking(move |target| {
            let (writer, task, epoch, stored) = target.connected(|open| {
                open.made.clear();
                let task = open.task.clone().ok_or_else(fenced)?;
                let writer = open.writer.clone().ok_or_else(fenced)?;
                Ok((writer, task, open.epoch, open.position))
            })?;
            let receipt = writer.lock().apply(&target.config, &task, epoch, &delivery, stored)?;
            if let Receipt::Durable(position) = receipt {
                target.connected(|open| {
                    open.position = open.position.max(position);
                    Ok(())
                })?;
            }
            Ok(receipt)
        })
        .await
    }

    async fn discard(&self) -> Result<()> {
        self.blocking(|target| {
            target.connected(|open| {
                if let Some(writer) = &open.writer {
                    writer.lock().discard();
                }
                Ok(())
            })
        })
        .await
    }

    async fn evolve(&self, change: &SchemaChange) -> Result<()> {
        let table = &change.after.name;
        Err(Error::table_broken(
            SCHEMA_CHANGE_BLOCKED,
            table.clone(),
            format!("the columns of {table} changed"),
        )
        .with_cause(
            "rows that are there already may lack the new values, so the change is not applied by itself",
        )
        .with_cure(Cure::advice("stop the task, copy the table again, start it").resync_table(table)))
    }

    async fn check(&self, plans: &[TablePlan]) -> Result<Vec<Finding>> {
        let plans = plans.to_vec();
        self.blocking(move |target| check::findings(target, &plans)).await
    }

    async fn describe(&self, plan: &TablePlan) -> Result<Vec<String>> {
        let plan = plan.clone();
        self.blocking(move |target| check::statements(target, &plan)).await
    }

    fn inspect(&self) -> &dyn Inspect {
        self
    }

    fn outcome_unknown(&self, error: &Error) -> bool {
        error.class() == Class::Transient
    }

    async fn close(&self) -> Result<()> {
        self.blocking(|target| {
            let Some(open) = target.open.lock().take() else { return Ok(()) };
            if let Some(writer) = open.writer {
                writer.lock().discard();
            }
            let session = open.database.session()?;
            drop(open.database);
            if Arc::strong_count(&session.database) > 1 {
                // Others of this process still write; the last of them leaves the file without a log.
                return Ok(());
            }
            failpoint::pass("target.before_checkpoint");
            session
                .execute_batch("CHECKPOINT")
                .map_err(|failure| refused("writing the file's last checkpoint", failure))
        })
        .await
    }
}
