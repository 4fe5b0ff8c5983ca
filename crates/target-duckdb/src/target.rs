//! The target's contract on DuckDB: every call on a thread that may block, with a connection of its own.

use std::sync::Arc;

use async_trait::async_trait;
use duckdb::{Config, Connection};
use parking_lot::Mutex;
use pgferry_model::{
    CellFormat, Class, Column, Cure, Delivery, Error, Finding, Position, Progress, Result, SourceIdentity,
    Table, TableState, TaskId,
};
use pgferry_pipeline::error::{SCHEMA_CHANGE_BLOCKED, WORKER_LOST};
use pgferry_pipeline::{
    ChangeForm, ChunkRows, ColumnMapping, CopyMark, IfTargetExists, Inspect, Receipt, SchemaChange,
    TableChanges, TablePlan, Target, Wants, failpoint,
};

use crate::config::DuckdbConfig;
use crate::error::{APPEND_INTERRUPTED, FILE, TABLE_EXISTS, TABLE_GONE, fenced, refused};
use crate::schema::{
    column_type, column_types, create_statements, existing, qualified, target_name, verify_existing,
    verify_names,
};
use crate::write::{Writer, load};
use crate::{check, progress};

/// Loads at once; more do not help, DuckDB's own threads do the rest.
const LOADS_MAX: usize = 16;

/// What is open.
struct Open {
    connection: Connection,
    writer: Option<Arc<Mutex<Writer>>>,
    task: Option<TaskId>,
    epoch: u64,
    position: Position,
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

    fn connect_file(config: &DuckdbConfig) -> Result<Connection> {
        let settings = |settings: Config| -> duckdb::Result<Config> {
            let settings = settings
                .max_memory(&config.memory_limit)?
                .with("autoinstall_known_extensions", "false")?
                .with("autoload_known_extensions", "false")?;
            if config.threads == 0 { Ok(settings) } else { settings.threads(config.threads as i64) }
        };
        let doing = format!("opening {}", config.path.display());
        let settings = settings(Config::default()).map_err(|failure| refused(&doing, failure))?;
        Connection::open_with_flags(&config.path, settings).map_err(|failure| {
            let error = refused(&doing, failure);
            if error.code() != crate::error::STATEMENT {
                return error;
            }
            Error::task_broken(FILE, format!("{doing}: it is not a DuckDB file that can be written"))
                .with_cure(Cure::advice(
                    "the folder has to exist and be writable; a file of another program, or of a newer DuckDB, cannot be used",
                ))
                .with_origin(error)
        })
    }

    /// Runs on the open file; opens it when it is not.
    fn connected<T>(&self, work: impl FnOnce(&mut Open) -> Result<T>) -> Result<T> {
        let mut open = self.open.lock();
        let open = match &mut *open {
            Some(open) => open,
            none => none.insert(Open {
                connection: DuckdbTarget::connect_file(&self.config)?,
                writer: None,
                task: None,
                epoch: 0,
                position: Position::ZERO,
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
            Err(Error::transient(WORKER_LOST, "a thread of the DuckDB target ended without a result")
                .with_origin(lost))
        })
    }

    /// A connection of its own, the task and its epoch.
    fn session(&self) -> Result<(Connection, TaskId, u64)> {
        self.connected(|open| {
            let task = open.task.clone().ok_or_else(fenced)?;
            Ok((another(&open.connection)?, task, open.epoch))
        })
    }

    pub(crate) fn reading(&self) -> Result<Connection> {
        self.connected(|open| another(&open.connection))
    }

    /// Runs in a transaction that commits only under the own epoch.
    async fn in_transaction<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Connection, &TaskId, &DuckdbConfig) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.blocking(move |target| {
            let (connection, task, epoch) = target.session()?;
            let begin =
                |statement| connection.execute_batch(statement).map_err(|failure| refused(doing, failure));
            begin("BEGIN TRANSACTION")?;
            let done = progress::verify_epoch(&connection, &task, epoch)
                .and_then(|()| work(&connection, &task, &target.config));
            let ended = match &done {
                Ok(_) => begin("COMMIT"),
                Err(_) => begin("ROLLBACK"),
            };
            let done = done?;
            ended?;
            Ok(done)
        })
        .await
    }
}

fn another(connection: &Connection) -> Result<Connection> {
    connection.try_clone().map_err(|failure| refused("opening a connection", failure))
}

fn prepare(connection: &Connection, task: &TaskId, config: &DuckdbConfig, plan: &TablePlan) -> Result<()> {
    let table = &plan.table;
    verify_names(table)?;
    let (name, types) = (target_name(config, table), column_types(config, table));
    let found = existing(connection, &name)?;
    let doing = format!("preparing {name}");
    let execute =
        |statement: &str| connection.execute_batch(statement).map_err(|failure| refused(&doing, failure));
    let ours = progress::rows_kept(connection, task, &table.name)?.is_some();
    let mut kept = false;
    match (&found, ours) {
        (Some(found), true) => return verify_existing(&name, table, &types, found),
        (None, true) => return Err(table_gone(table, &name.to_string())),
        (None, false) => {}
        (Some(found), false) => match plan.if_exists {
            IfTargetExists::Error => return Err(table_exists(table, &name.to_string())),
            IfTargetExists::Append => {
                verify_existing(&name, table, &types, found)?;
                kept = true;
            }
            IfTargetExists::Truncate => {
                verify_existing(&name, table, &types, found)?;
                execute(&format!("DELETE FROM {}", qualified(&name)))?;
            }
            IfTargetExists::Replace => execute(&format!("DROP TABLE {}", qualified(&name)))?,
        },
    }
    if found.is_none() || plan.if_exists == IfTargetExists::Replace {
        for statement in create_statements(&name, table, &types) {
            execute(&statement)?;
        }
        failpoint::pass("target.table_created");
    }
    progress::add_table(connection, task, &table.name, &name, kept)
}

fn table_exists(table: &Table, name: &str) -> Error {
    Error::table_broken(TABLE_EXISTS, table.name.clone(), format!("the DuckDB file has a table {name} already")).with_cure(
        Cure::advice("say what to do with it, in the table's entry of the task file: append, truncate or replace; or give the target another name")
            .line("if_target_exists = \"replace\""),
    )
}

fn table_gone(table: &Table, name: &str) -> Error {
    Error::table_broken(
        TABLE_GONE,
        table.name.clone(),
        format!("table {name} was dropped from the DuckDB file"),
    )
    .with_cause("the task had made it, and changes since its copy would have nowhere to go")
    .with_cure(Cure::advice(format!("copy the table again: pgferry resync FILE --table {}", table.name)))
}

fn begin_copy(
    connection: &Connection,
    task: &TaskId,
    config: &DuckdbConfig,
    table: &Table,
    mark: CopyMark,
) -> Result<()> {
    let name = target_name(config, table);
    let kept = progress::rows_kept(connection, task, &table.name)?.unwrap_or(false);
    let unfinished = progress::forget_chunks(connection, task, &table.name)?;
    if kept && unfinished {
        return Err(Error::table_broken(
            APPEND_INTERRUPTED,
            table.name.clone(),
            format!("a copy that appends to {name} was interrupted: its rows cannot be told from those that were there before"),
        )
        .with_cure(Cure::advice("empty the table, or set if_target_exists = \"truncate\" or \"replace\" and give the task another name")));
    }
    if !kept {
        connection
            .execute_batch(&format!("DELETE FROM {}", qualified(&name)))
            .map_err(|failure| refused("emptying a table", failure))?;
    }
    progress::set_state(connection, task, &table.name, &TableState::Copying, Some(mark.cut))
}

#[async_trait]
impl Target for DuckdbTarget {
    fn wants(&self) -> Wants {
        Wants { changes: ChangeForm::LatestPerKey, loads_max: LOADS_MAX, slices: true }
    }

    fn snapshot_format(&self, table: &Table, column: &Column) -> CellFormat {
        column_type(&self.config, table, column).snapshot_format(&column.data_type)
    }

    fn mapping(&self, table: &Table) -> Result<Vec<ColumnMapping>> {
        verify_names(table)?;
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
                let connection = another(&open.connection)?;
                let run = |statement| {
                    connection
                        .execute_batch(statement)
                        .map_err(|failure| refused("opening the task", failure))
                };
                run("BEGIN TRANSACTION")?;
                let opened = progress::open(&connection, &task);
                run(if opened.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
                let progress = opened?;
                open.epoch = progress.epoch;
                open.position = progress.position.unwrap_or(Position::ZERO);
                open.task = Some(task);
                if open.writer.is_none() {
                    open.writer = Some(Arc::new(Mutex::new(Writer::new(another(&open.connection)?))));
                }
                Ok(progress)
            })
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
        let plan = plan.clone();
        self.in_transaction("preparing a table", move |connection, task, config| {
            prepare(connection, task, config, &plan)
        })
        .await
    }

    async fn begin_copy(&self, table: &Arc<Table>, mark: CopyMark) -> Result<()> {
        let table = Arc::clone(table);
        let start = self
            .blocking(move |target| {
                let (connection, task, epoch) = target.session()?;
                let run = |statement| {
                    connection.execute_batch(statement).map_err(|failure| refused("starting a copy", failure))
                };
                run("BEGIN TRANSACTION")?;
                let stored = progress::read(&connection, &task)?.position;
                let start = mark.stream_start.filter(|_| stored.is_none());
                let done = progress::verify_epoch(&connection, &task, epoch)
                    .and_then(|()| begin_copy(&connection, &task, &target.config, &table, mark))
                    .and_then(|()| match start {
                        Some(start) => progress::move_position(&connection, &task, epoch, start),
                        None => Ok(()),
                    });
                run(if done.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
                done.map(|()| start)
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
            let (connection, task, epoch) = target.session()?;
            load(&connection, &target.config, &task, epoch, chunk)
        })
        .await
    }

    async fn set_state(&self, table: &Arc<Table>, state: TableState) -> Result<()> {
        let table = Arc::clone(table);
        self.in_transaction("storing a table's state", move |connection, task, _| {
            progress::set_state(connection, task, &table.name, &state, None)?;
            if state != TableState::Copying {
                progress::forget_chunks(connection, task, &table.name)?;
            }
            Ok(())
        })
        .await
    }

    async fn apply(&self, delivery: Arc<Delivery<TableChanges>>) -> Result<Receipt> {
        self.blocking(move |target| {
            let (writer, task, epoch, stored) = target.connected(|open| {
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
        ))
    }

    async fn check(&self, plans: &[TablePlan]) -> Result<Vec<Finding>> {
        let plans = plans.to_vec();
        self.blocking(move |target| check::findings(target, &plans)).await
    }

    async fn describe(&self, plan: &TablePlan) -> Result<Vec<String>> {
        let plan = plan.clone();
        self.blocking(move |target| {
            let (name, types) =
                (target_name(&target.config, &plan.table), column_types(&target.config, &plan.table));
            let found = existing(&target.reading()?, &name)?.is_some();
            Ok(match (found, plan.if_exists) {
                (true, IfTargetExists::Replace) => {
                    let mut statements = vec![format!("DROP TABLE {}", qualified(&name))];
                    statements.extend(create_statements(&name, &plan.table, &types));
                    statements
                }
                (true, IfTargetExists::Truncate) => vec![format!("DELETE FROM {}", qualified(&name))],
                (true, _) => Vec::new(),
                (false, _) => create_statements(&name, &plan.table, &types),
            })
        })
        .await
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
            open.connection
                .execute_batch("CHECKPOINT")
                .map_err(|failure| refused("writing the file's last checkpoint", failure))
        })
        .await
    }
}
