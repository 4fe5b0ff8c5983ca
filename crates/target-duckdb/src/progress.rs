//! What the file holds of a task, in the same file and the same commits as the data.
//!
//! ```text
//!   pgferry.task         one row per task: epoch, position, what the position belongs to
//!   pgferry.table_state  one row per table: state, cut, the error that set it aside
//!   pgferry.chunk        one row per loaded chunk of an unfinished copy
//! ```
//!
//! Invariants: a delivery's commit updates the task's row only where the epoch is its own; the position never moves back.

use std::collections::HashSet;
use std::sync::Arc;

use duckdb::{Connection, params};
use pgferry_model::{
    Cure, Error, Position, Progress, Result, SourceIdentity, Table, TableName, TableProgress, TableState,
    TaskId,
};

use crate::error::{STATEMENT, fenced, refused};

const CREATE: &str = "CREATE SCHEMA IF NOT EXISTS pgferry;
CREATE TABLE IF NOT EXISTS pgferry.task (
    task VARCHAR NOT NULL, format INTEGER NOT NULL, epoch UBIGINT NOT NULL, position VARCHAR, system_id VARCHAR,
    timeline UINTEGER, source_database VARCHAR, slot VARCHAR, updated_at TIMESTAMP NOT NULL);
CREATE TABLE IF NOT EXISTS pgferry.table_state (
    task VARCHAR NOT NULL, source_schema VARCHAR NOT NULL, source_table VARCHAR NOT NULL,
    target_schema VARCHAR NOT NULL, target_table VARCHAR NOT NULL, rows_before UBIGINT NOT NULL,
    state VARCHAR NOT NULL, cut VARCHAR, code VARCHAR, problem VARCHAR);
CREATE TABLE IF NOT EXISTS pgferry.chunk (
    task VARCHAR NOT NULL, source_schema VARCHAR NOT NULL, source_table VARCHAR NOT NULL, number UINTEGER NOT NULL,
    rows UBIGINT NOT NULL);";

/// The layout's version; a newer one in the file is refused.
const FORMAT: i32 = 1;

fn asking(failure: duckdb::Error) -> Error {
    refused("reading the task's progress", failure)
}

fn storing(failure: duckdb::Error) -> Error {
    refused("storing the task's progress", failure)
}

/// Raises the epoch and reads everything; in a transaction of the caller's.
pub(crate) fn open(connection: &Connection, task: &TaskId) -> Result<Progress> {
    connection.execute_batch(CREATE).map_err(storing)?;
    let raised = connection
        .execute(
            "UPDATE pgferry.task SET epoch = epoch + 1, updated_at = now()::TIMESTAMP WHERE task = ?",
            [task.as_str()],
        )
        .map_err(storing)?;
    if raised == 0 {
        connection
            .execute(
                "INSERT INTO pgferry.task (task, format, epoch, updated_at) VALUES (?, ?, 1, now()::TIMESTAMP)",
                params![task.as_str(), FORMAT],
            )
            .map_err(storing)?;
    }
    read(connection, task)
}

/// Reads everything, where there is something.
pub(crate) fn held(connection: &Connection, task: &TaskId) -> Result<Option<Progress>> {
    let count =
        |sql: &str, name: &str| connection.query_row(sql, [name], |row| row.get::<_, i64>(0)).map_err(asking);
    let layout = "SELECT count(*) FROM duckdb_tables() WHERE schema_name = 'pgferry' AND table_name = ?";
    if count(layout, "task")? == 0
        || count("SELECT count(*) FROM pgferry.task WHERE task = ?", task.as_str())? == 0
    {
        return Ok(None);
    }
    read(connection, task).map(Some)
}

/// Reads everything.
pub(crate) fn read(connection: &Connection, task: &TaskId) -> Result<Progress> {
    type TaskRow = (i32, u64, Option<String>, Option<String>, Option<u32>, Option<String>, Option<String>);
    let row: TaskRow = connection
        .query_row(
            "SELECT format, epoch, position, system_id, timeline, source_database, slot FROM pgferry.task WHERE task = ?",
            [task.as_str()],
            |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?))
            },
        )
        .map_err(asking)?;
    let (format, epoch, position, system_id, timeline, database, slot) = row;
    if format > FORMAT {
        return Err(Error::task_broken(STATEMENT, "the file was written by a newer pgferry")
            .with_cause(format!(
                "what it holds of the task is in form {format}; this version knows {FORMAT} at most"
            ))
            .with_cure(Cure::advice("use that version or a later one, or name another file")));
    }
    let source = system_id.map(|system_id| SourceIdentity {
        system_id,
        timeline: timeline.unwrap_or(0),
        database: database.unwrap_or_default(),
        slot: slot.unwrap_or_default(),
    });
    let position = position.map(|text| parse(&text)).transpose()?;
    Ok(Progress { epoch, position, source, tables: read_tables(connection, task)? })
}

fn read_tables(connection: &Connection, task: &TaskId) -> Result<Vec<TableProgress>> {
    let mut statement = connection
        .prepare(
            "SELECT s.source_schema, s.source_table, s.state, s.cut, s.code, s.problem, \
             (SELECT list(c.number) FROM pgferry.chunk c WHERE c.task = s.task AND c.source_schema = s.source_schema \
             AND c.source_table = s.source_table)::VARCHAR FROM pgferry.table_state s WHERE s.task = ?",
        )
        .map_err(asking)?;
    let rows = statement
        .query_map([task.as_str()], |row| {
            let text = |at: usize| row.get::<_, Option<String>>(at);
            Ok([text(0)?, text(1)?, text(2)?, text(3)?, text(4)?, text(5)?, text(6)?])
        })
        .map_err(asking)?;
    let mut tables = Vec::new();
    for row in rows {
        let [schema, name, state, cut, code, problem, chunks] = row.map_err(asking)?;
        let numbers = chunks.unwrap_or_default();
        tables.push(TableProgress {
            name: TableName::new(schema.unwrap_or_default(), name.unwrap_or_default()),
            state: state_of(&state.unwrap_or_default(), code, problem),
            cut: cut.map(|text| parse(&text)).transpose()?,
            chunks_done: numbers
                .trim_matches(['[', ']'])
                .split(',')
                .filter_map(|number| number.trim().parse().ok())
                .collect(),
        });
    }
    Ok(tables)
}

fn state_of(word: &str, code: Option<String>, problem: Option<String>) -> TableState {
    match word {
        "copying" => TableState::Copying,
        "copied" => TableState::Copied,
        "catching_up" => TableState::CatchingUp,
        "live" => TableState::Live,
        "paused" => TableState::Paused,
        "broken" => {
            TableState::Broken { code: code.unwrap_or_default(), problem: problem.unwrap_or_default() }
        }
        _ => TableState::Waiting,
    }
}

fn parse(text: &str) -> Result<Position> {
    text.parse().map_err(|wrong| {
        Error::task_broken(STATEMENT, "the stored position is damaged")
            .with_cure(Cure::advice(
                "restore the file from a backup, or start with a new file: every table is copied again",
            ))
            .with_origin(wrong)
    })
}

/// Refuses when the epoch is another's. Reads only: commits that store no position use it.
pub(crate) fn verify_epoch(connection: &Connection, task: &TaskId, epoch: u64) -> Result<()> {
    let stored: u64 = connection
        .query_row("SELECT epoch FROM pgferry.task WHERE task = ?", [task.as_str()], |row| row.get(0))
        .map_err(asking)?;
    if stored == epoch { Ok(()) } else { Err(fenced()) }
}

/// The position alone.
pub(crate) fn position(connection: &Connection, task: &TaskId) -> Result<Option<Position>> {
    let stored: Option<String> = connection
        .query_row("SELECT position FROM pgferry.task WHERE task = ?", [task.as_str()], |row| row.get(0))
        .map_err(asking)?;
    stored.map(|text| parse(&text)).transpose()
}

/// Moves the position; conflicts with every other commit that does, and with a raised epoch.
pub(crate) fn move_position(
    connection: &Connection,
    task: &TaskId,
    epoch: u64,
    position: Position,
) -> Result<()> {
    let moved = connection
        .execute(
            "UPDATE pgferry.task SET position = ?, updated_at = now()::TIMESTAMP WHERE task = ? AND epoch = ?",
            params![position.to_string(), task.as_str(), epoch],
        )
        .map_err(storing)?;
    if moved == 1 { Ok(()) } else { Err(fenced()) }
}

/// Stores what positions belong to.
pub(crate) fn identify(connection: &Connection, task: &TaskId, source: &SourceIdentity) -> Result<()> {
    connection
        .execute(
            "UPDATE pgferry.task SET system_id = ?, timeline = ?, source_database = ?, slot = ? WHERE task = ?",
            params![source.system_id, source.timeline, source.database, source.slot, task.as_str()],
        )
        .map_err(storing)?;
    Ok(())
}

/// A table that the task has made or taken over.
pub(crate) struct Taken {
    pub(crate) source: TableName,
    /// Empty: the task has not taken it over; the table in the file, if any, is somebody else's.
    pub(crate) target: TableName,
    /// Rows that it held before.
    pub(crate) rows_before: u64,
}

/// Notes tables, in place of what was noted of them.
pub(crate) fn add_tables(connection: &Connection, task: &TaskId, tables: &[Taken]) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    let named = one_of(tables.iter().map(|table| &table.source));
    connection
        .execute(&format!("DELETE FROM pgferry.table_state WHERE task = ? AND {named}"), [task.as_str()])
        .map_err(storing)?;
    let row = |table: &Taken| {
        let [schema, name] = [&table.source.schema, &table.source.name].map(|text| literal(text));
        let [to_schema, to_name] = [&table.target.schema, &table.target.name].map(|text| literal(text));
        format!(
            "({}, {schema}, {name}, {to_schema}, {to_name}, {}, 'waiting')",
            literal(task.as_str()),
            table.rows_before
        )
    };
    let rows: Vec<String> = tables.iter().map(row).collect();
    let insert = format!(
        "INSERT INTO pgferry.table_state (task, source_schema, source_table, target_schema, target_table, rows_before, state) \
         VALUES {}",
        rows.join(", ")
    );
    connection.execute(&insert, []).map_err(storing)?;
    Ok(())
}

/// Stores the state of tables; a cut where there is a new one.
pub(crate) fn set_states(
    connection: &Connection,
    task: &TaskId,
    tables: &[Arc<Table>],
    state: &TableState,
    cut: Option<Position>,
) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    let (code, problem) = match state {
        TableState::Broken { code, problem } => (Some(code.as_str()), Some(problem.as_str())),
        _ => (None, None),
    };
    let statement = format!(
        "UPDATE pgferry.table_state SET state = ?, code = ?, problem = ?, cut = coalesce(?, cut) WHERE task = ? AND {}",
        one_of(tables.iter().map(|table| &table.name))
    );
    let store = || {
        let cut = cut.map(|cut| cut.to_string());
        connection
            .execute(&statement, params![state.word(), code, problem, cut, task.as_str()])
            .map_err(storing)
    };
    if store()? < tables.len() {
        let noted: HashSet<TableName> =
            read_tables(connection, task)?.into_iter().map(|known| known.name).collect();
        let unknown = tables.iter().map(|table| table.name.clone()).filter(|name| !noted.contains(name));
        let unknown: Vec<Taken> =
            unknown.map(|source| Taken { source, target: TableName::new("", ""), rows_before: 0 }).collect();
        add_tables(connection, task, &unknown)?;
        store()?;
    }
    Ok(())
}

/// The condition that a row is one of those tables'.
fn one_of<'a>(tables: impl Iterator<Item = &'a TableName>) -> String {
    let names: Vec<String> =
        tables.map(|name| format!("({}, {})", literal(&name.schema), literal(&name.name))).collect();
    format!("(source_schema, source_table) IN ({})", names.join(", "))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Forgets a table's copy, or with `None` every table's, and the position and what it belongs to. A table that still waits for its
/// first copy keeps the note of the rows that were there before.
pub(crate) fn forget(connection: &Connection, task: &TaskId, table: Option<&TableName>) -> Result<()> {
    let Some(table) = table else {
        for statement in [
            "UPDATE pgferry.task SET position = NULL, system_id = NULL, timeline = NULL, source_database = NULL, slot = NULL, \
             updated_at = now()::TIMESTAMP WHERE task = ?",
            "UPDATE pgferry.table_state SET state = 'waiting', cut = NULL, code = NULL, problem = NULL, \
             rows_before = CASE WHEN state = 'waiting' THEN rows_before ELSE 0 END WHERE task = ?",
            "DELETE FROM pgferry.chunk WHERE task = ?",
        ] {
            connection.execute(statement, [task.as_str()]).map_err(storing)?;
        }
        return Ok(());
    };
    connection
        .execute(
            "UPDATE pgferry.table_state SET state = 'waiting', cut = NULL, code = NULL, problem = NULL, \
             rows_before = CASE WHEN state = 'waiting' THEN rows_before ELSE 0 END \
             WHERE task = ? AND source_schema = ? AND source_table = ?",
            params![task.as_str(), &*table.schema, &*table.name],
        )
        .map_err(storing)?;
    forget_chunks(connection, task, table)?;
    Ok(())
}

/// The tables that hold rows from before the task, of `table` or of all: their names in the source and in the target.
pub(crate) fn kept(
    connection: &Connection,
    task: &TaskId,
    table: Option<&TableName>,
) -> Result<Vec<(TableName, TableName)>> {
    let mut statement = connection
        .prepare(
            "SELECT source_schema, source_table, target_schema, target_table FROM pgferry.table_state \
             WHERE task = ? AND rows_before > 0 AND state <> 'waiting'",
        )
        .map_err(asking)?;
    let name = |row: &duckdb::Row<'_>, at: usize| -> duckdb::Result<TableName> {
        Ok(TableName::new(row.get::<_, String>(at)?, row.get::<_, String>(at + 1)?))
    };
    let rows =
        statement.query_map([task.as_str()], |row| Ok((name(row, 0)?, name(row, 2)?))).map_err(asking)?;
    let mut all = rows.collect::<duckdb::Result<Vec<_>>>().map_err(asking)?;
    all.retain(|(source, _)| table.is_none_or(|wanted| wanted == source));
    Ok(all)
}

/// A source table whose rows go to a table of the file.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) task: TaskId,
    pub(crate) source: TableName,
    pub(crate) target: TableName,
    pub(crate) state: TableState,
    /// Rows that the table held before the task.
    pub(crate) rows_before: u64,
}

impl Owner {
    /// Whether it is that source table, of that task where one is open.
    pub(crate) fn is(&self, task: Option<&TaskId>, source: &TableName) -> bool {
        self.source == *source && task.is_none_or(|task| self.task == *task)
    }
}

/// The source tables, of all tasks, whose rows go to tables of the file.
pub(crate) fn owners(connection: &Connection) -> Result<Vec<Owner>> {
    let mut statement = connection
        .prepare(
            "SELECT task, source_schema, source_table, target_schema, target_table, state, rows_before \
             FROM pgferry.table_state WHERE target_table <> ''",
        )
        .map_err(asking)?;
    let owner = |row: &duckdb::Row<'_>| {
        let text = |at: usize| row.get::<_, String>(at);
        Ok(Owner {
            task: TaskId::new(text(0)?),
            source: TableName::new(text(1)?, text(2)?),
            target: TableName::new(text(3)?, text(4)?),
            state: state_of(&text(5)?, None, None),
            rows_before: row.get(6)?,
        })
    };
    let rows = statement.query_map([], owner).map_err(asking)?;
    rows.collect::<duckdb::Result<Vec<_>>>().map_err(asking)
}

/// Takes a table from a task: that one does not know it any more, and is told so when it runs again.
pub(crate) fn take_from(connection: &Connection, owner: &TaskId, table: &TableName) -> Result<()> {
    forget_chunks(connection, owner, table)?;
    connection
        .execute(
            "DELETE FROM pgferry.table_state WHERE task = ? AND source_schema = ? AND source_table = ?",
            params![owner.as_str(), &*table.schema, &*table.name],
        )
        .map_err(storing)?;
    Ok(())
}

/// Which of the tables have this chunk loaded.
pub(crate) fn chunks_done(
    connection: &Connection,
    task: &TaskId,
    tables: &[&TableName],
    number: u32,
) -> Result<HashSet<TableName>> {
    let named = one_of(tables.iter().copied());
    let mut statement = connection
        .prepare(&format!(
            "SELECT source_schema, source_table FROM pgferry.chunk WHERE task = ? AND number = ? AND {named}"
        ))
        .map_err(asking)?;
    let name = |row: &duckdb::Row<'_>| Ok(TableName::new(row.get::<_, String>(0)?, row.get::<_, String>(1)?));
    let rows = statement.query_map(params![task.as_str(), number], name).map_err(asking)?;
    rows.collect::<duckdb::Result<HashSet<_>>>().map_err(asking)
}

/// Notes a loaded chunk.
pub(crate) fn add_chunk(
    connection: &Connection,
    task: &TaskId,
    table: &TableName,
    number: u32,
    rows: u64,
) -> Result<()> {
    connection
        .execute(
            "INSERT INTO pgferry.chunk VALUES (?, ?, ?, ?, ?)",
            params![task.as_str(), &*table.schema, &*table.name, number, rows],
        )
        .map_err(storing)?;
    Ok(())
}

/// Forgets a table's chunks.
pub(crate) fn forget_chunks(connection: &Connection, task: &TaskId, table: &TableName) -> Result<()> {
    connection
        .execute(
            "DELETE FROM pgferry.chunk WHERE task = ? AND source_schema = ? AND source_table = ?",
            params![task.as_str(), &*table.schema, &*table.name],
        )
        .map_err(storing)?;
    Ok(())
}

/// Forgets the chunks of tables.
pub(crate) fn forget_chunks_of(connection: &Connection, task: &TaskId, tables: &[Arc<Table>]) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    let named = one_of(tables.iter().map(|table| &table.name));
    let statement = format!("DELETE FROM pgferry.chunk WHERE task = ? AND {named}");
    connection.execute(&statement, [task.as_str()]).map_err(storing)?;
    Ok(())
}
