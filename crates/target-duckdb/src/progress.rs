//! What the file holds of tasks: position, epoch, tables, chunks; in the schema `pgferry` of the same file.
//!
//! Invariants: every write here happens in the transaction of the data it belongs to; the position is written only where
//! the epoch is the holder's. No indexes: the tables are tiny, and an index would make concurrent loads conflict.

use duckdb::params;
use pgferry_model::{
    Error, Position, Progress, Result, SourceIdentity, Table, TableName, TableProgress, TableState,
};

use crate::database::{Lease, Session};
use crate::error;

/// The schema of pgferry's own tables.
pub(crate) const SCHEMA: &str = "pgferry";

const CREATE: &str = "\
CREATE SCHEMA IF NOT EXISTS pgferry;
CREATE TABLE IF NOT EXISTS pgferry.tasks (task VARCHAR NOT NULL, epoch UBIGINT NOT NULL, position VARCHAR, \
system_id VARCHAR, timeline UINTEGER, database_name VARCHAR, slot VARCHAR, updated_at TIMESTAMP WITH TIME ZONE);
CREATE TABLE IF NOT EXISTS pgferry.tables (task VARCHAR NOT NULL, source_schema VARCHAR NOT NULL, \
source_table VARCHAR NOT NULL, target_schema VARCHAR NOT NULL, target_table VARCHAR NOT NULL, state VARCHAR NOT NULL, \
cut VARCHAR, code VARCHAR, problem VARCHAR, rows_before UBIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS pgferry.chunks (task VARCHAR NOT NULL, source_schema VARCHAR NOT NULL, \
source_table VARCHAR NOT NULL, number UINTEGER NOT NULL, row_count UBIGINT NOT NULL);";

const READING: &str = "reading the task's progress";
const WRITING: &str = "writing the task's progress";

fn unreadable(what: &str) -> Error {
    Error::task_broken(error::FAILED, format!("the file's own record of the task cannot be read: {what}"))
}

/// Raises the task's epoch in its own commit and reads what the file holds. Older holders cannot commit from here on.
pub(crate) fn take_lease(session: &Session, task: &str) -> Result<Progress> {
    let mut fence = session.database.fence.write();
    let raise = || -> Result<u64> {
        session.run(CREATE, "making pgferry's own tables")?;
        session.begin()?;
        let touched = session.execute(
            "UPDATE pgferry.tasks SET epoch = epoch + 1, updated_at = now() WHERE task = ?",
            params![task],
            WRITING,
        )?;
        if touched == 0 {
            session.execute(
                "INSERT INTO pgferry.tasks (task, epoch, updated_at) VALUES (?, 1, now())",
                params![task],
                WRITING,
            )?;
        }
        let epoch = session
            .connection
            .query_row("SELECT epoch FROM pgferry.tasks WHERE task = ?", params![task], |row| row.get(0))
            .map_err(|failure| session.database.failed(&failure, READING))?;
        session.commit_unfenced()?;
        Ok(epoch)
    };
    let epoch = raise().inspect_err(|_| session.rollback())?;
    fence.insert(task.to_owned(), epoch);
    drop(fence);
    read(session, task)
}

/// What the file holds of the task; empty where it holds nothing.
pub(crate) fn read(session: &Session, task: &str) -> Result<Progress> {
    let failed = |failure: duckdb::Error| session.database.failed(&failure, READING);
    let mut progress = Progress::default();
    let mut statement = session
        .connection
        .prepare("SELECT epoch, position, system_id, timeline, database_name, slot FROM pgferry.tasks WHERE task = ?")
        .map_err(failed)?;
    let mut rows = statement.query(params![task]).map_err(failed)?;
    if let Some(row) = rows.next().map_err(failed)? {
        progress.epoch = row.get(0).map_err(failed)?;
        progress.position = position(row.get(1).map_err(failed)?)?;
        let system_id: Option<String> = row.get(2).map_err(failed)?;
        if let Some(system_id) = system_id {
            progress.source = Some(SourceIdentity {
                system_id,
                timeline: row.get::<_, Option<u32>>(3).map_err(failed)?.unwrap_or_default(),
                database: row.get::<_, Option<String>>(4).map_err(failed)?.unwrap_or_default(),
                slot: row.get::<_, Option<String>>(5).map_err(failed)?.unwrap_or_default(),
            });
        }
    }
    progress.tables = tables(session, task)?;
    Ok(progress)
}

fn position(text: Option<String>) -> Result<Option<Position>> {
    text.map(|text| text.parse().map_err(|_| unreadable("a position"))).transpose()
}

fn tables(session: &Session, task: &str) -> Result<Vec<TableProgress>> {
    let failed = |failure: duckdb::Error| session.database.failed(&failure, READING);
    let mut statement = session
        .connection
        .prepare(
            "SELECT source_schema, source_table, state, cut, code, problem FROM pgferry.tables WHERE task = ? \
             ORDER BY source_schema, source_table",
        )
        .map_err(failed)?;
    let mut rows = statement.query(params![task]).map_err(failed)?;
    let mut tables: Vec<TableProgress> = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let text = |at: usize| row.get::<_, Option<String>>(at).map(Option::unwrap_or_default).map_err(failed);
        let name = TableName::new(text(0)?, text(1)?);
        let state = state(&text(2)?, text(4)?, text(5)?)?;
        let cut = position(row.get(3).map_err(failed)?)?;
        tables.push(TableProgress { name, state, cut, chunks_done: Vec::new() });
    }
    let mut statement = session
        .connection
        .prepare("SELECT source_schema, source_table, number FROM pgferry.chunks WHERE task = ? ORDER BY number")
        .map_err(failed)?;
    let mut rows = statement.query(params![task]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let (schema, table): (String, String) = (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
        let number = row.get(2).map_err(failed)?;
        let known = tables.iter_mut().find(|known| *known.name.schema == *schema && *known.name.name == *table);
        if let Some(known) = known {
            known.chunks_done.push(number);
        }
    }
    Ok(tables)
}

fn state(word: &str, code: String, problem: String) -> Result<TableState> {
    let plain =
        [TableState::Waiting, TableState::Copying, TableState::Copied, TableState::CatchingUp, TableState::Live, TableState::Paused];
    match plain.into_iter().find(|state| state.word() == word) {
        Some(state) => Ok(state),
        None if word == "broken" => Ok(TableState::Broken { code, problem }),
        None => Err(unreadable("a table's state")),
    }
}

/// Stores what positions belong to.
pub(crate) fn identify(session: &Session, lease: &Lease, source: &SourceIdentity) -> Result<()> {
    session.execute(
        "UPDATE pgferry.tasks SET system_id = ?, timeline = ?, database_name = ?, slot = ?, updated_at = now() \
         WHERE task = ? AND epoch = ?",
        params![source.system_id, source.timeline, source.database, source.slot, lease.task, lease.epoch],
        WRITING,
    )?;
    Ok(())
}

/// Stores the position, where the epoch is still the lease's.
pub(crate) fn set_position(session: &Session, lease: &Lease, position: Position) -> Result<()> {
    let touched = session.execute(
        "UPDATE pgferry.tasks SET position = ?, updated_at = now() WHERE task = ? AND epoch = ?",
        params![position.to_string(), lease.task, lease.epoch],
        WRITING,
    )?;
    if touched == 1 { Ok(()) } else { Err(error::fenced(&lease.task)) }
}

/// Stores where the stream starts, where the file holds no position yet.
pub(crate) fn set_first_position(session: &Session, lease: &Lease, position: Position) -> Result<()> {
    session.execute(
        "UPDATE pgferry.tasks SET position = ? WHERE task = ? AND epoch = ? AND position IS NULL",
        params![position.to_string(), lease.task, lease.epoch],
        WRITING,
    )?;
    Ok(())
}

/// Whether the task has made or taken over the table.
pub(crate) fn is_recorded(session: &Session, task: &str, table: &Table) -> Result<bool> {
    count(
        session,
        "SELECT count(*) FROM pgferry.tables WHERE task = ? AND source_schema = ? AND source_table = ?",
        params![task, &*table.name.schema, &*table.name.name],
    )
    .map(|count| count > 0)
}

/// Another source table that goes to the same target table, of any task.
pub(crate) fn other_owner(session: &Session, task: &str, table: &Table, target: &TableName) -> Result<Option<String>> {
    let found = session.connection.query_row(
        "SELECT task || ': ' || source_schema || '.' || source_table FROM pgferry.tables \
         WHERE lower(target_schema) = lower(?) AND lower(target_table) = lower(?) \
         AND NOT (task = ? AND source_schema = ? AND source_table = ?) LIMIT 1",
        params![&*target.schema, &*target.name, task, &*table.name.schema, &*table.name.name],
        |row| row.get::<_, String>(0),
    );
    match found {
        Ok(owner) => Ok(Some(owner)),
        Err(duckdb::Error::QueryReturnedNoRows) => Ok(None),
        Err(failure) => Err(session.database.failed(&failure, READING)),
    }
}

/// Records the table as the task's.
pub(crate) fn record_table(
    session: &Session,
    task: &str,
    table: &Table,
    target: &TableName,
    rows_before: u64,
) -> Result<()> {
    session.execute(
        "INSERT INTO pgferry.tables VALUES (?, ?, ?, ?, ?, 'waiting', NULL, NULL, NULL, ?)",
        params![task, &*table.name.schema, &*table.name.name, &*target.schema, &*target.name, rows_before],
        WRITING,
    )?;
    Ok(())
}

/// Rows that the table had before the task.
pub(crate) fn rows_before(session: &Session, task: &str, table: &Table) -> Result<u64> {
    count(
        session,
        "SELECT coalesce(max(rows_before), 0) FROM pgferry.tables \
         WHERE task = ? AND source_schema = ? AND source_table = ?",
        params![task, &*table.name.schema, &*table.name.name],
    )
}

/// Stores a table's state; of a table that is not recorded yet too.
pub(crate) fn set_state(
    session: &Session,
    task: &str,
    table: &Table,
    target: &TableName,
    state: &TableState,
) -> Result<()> {
    let (code, problem) = match state {
        TableState::Broken { code, problem } => (Some(code), Some(problem)),
        _ => (None, None),
    };
    let update = "UPDATE pgferry.tables SET state = ?, code = ?, problem = ? \
                  WHERE task = ? AND source_schema = ? AND source_table = ?";
    let values = params![state.word(), code, problem, task, &*table.name.schema, &*table.name.name];
    if session.execute(update, values, WRITING)? == 0 {
        record_table(session, task, table, target, 0)?;
        session.execute(update, values, WRITING)?;
    }
    Ok(())
}

/// Stores the start of a copy: the cut, no chunk done.
pub(crate) fn set_copying(session: &Session, task: &str, table: &Table, cut: Position) -> Result<()> {
    let (schema, name) = (&*table.name.schema, &*table.name.name);
    session.execute(
        "DELETE FROM pgferry.chunks WHERE task = ? AND source_schema = ? AND source_table = ?",
        params![task, schema, name],
        WRITING,
    )?;
    session.execute(
        "UPDATE pgferry.tables SET state = 'copying', cut = ?, code = NULL, problem = NULL \
         WHERE task = ? AND source_schema = ? AND source_table = ?",
        params![cut.to_string(), task, schema, name],
        WRITING,
    )?;
    Ok(())
}

/// Whether the chunk is recorded as done.
pub(crate) fn chunk_is_done(session: &Session, task: &str, table: &Table, number: u32) -> Result<bool> {
    count(
        session,
        "SELECT count(*) FROM pgferry.chunks WHERE task = ? AND source_schema = ? AND source_table = ? AND number = ?",
        params![task, &*table.name.schema, &*table.name.name, number],
    )
    .map(|count| count > 0)
}

/// Records the chunk as done.
pub(crate) fn record_chunk(session: &Session, task: &str, table: &Table, number: u32, rows: u64) -> Result<()> {
    session.execute(
        "INSERT INTO pgferry.chunks VALUES (?, ?, ?, ?, ?)",
        params![task, &*table.name.schema, &*table.name.name, number, rows],
        WRITING,
    )?;
    Ok(())
}

fn count(session: &Session, sql: &str, parameters: impl duckdb::Params) -> Result<u64> {
    session
        .connection
        .query_row(sql, parameters, |row| row.get(0))
        .map_err(|failure| session.database.failed(&failure, READING))
}
