//! The target's error codes, and what DuckDB's own errors mean.

use pgferry_model::{Class, Code, Cure, Error, TableName};

/// Another process has the file open.
pub const LOCKED: Code = Code::new("target.locked");
/// The file cannot be opened or made.
pub const FILE: Code = Code::new("target.file");
/// Another process has taken the task over.
pub const FENCED: Code = Code::new("target.fenced");
/// The target has a table of that name already.
pub const TABLE_EXISTS: Code = Code::new("target.table_exists");
/// The target's table has other columns.
pub const SCHEMA_INCOMPATIBLE: Code = Code::new("target.schema_incompatible");
/// Two names are the same to DuckDB, which ignores case.
pub const NAME_COLLISION: Code = Code::new("target.name_collision");
/// A table that the task has made is gone.
pub const TABLE_GONE: Code = Code::new("target.table_gone");
/// A value does not fit the target's type.
pub const NOT_REPRESENTABLE: Code = Code::new("value.not_representable");
/// The target lacks a row that a change needs.
pub const ROW_MISSING: Code = Code::new("target.row_missing");
/// Rows of an unfinished copy cannot be told from those that were there.
pub const APPEND_INTERRUPTED: Code = Code::new("target.append_interrupted");
/// Slices of a transaction were dropped after an error.
pub const SLICES_LOST: Code = Code::new("target.slices_lost");
/// The disk is full.
pub const DISK_FULL: Code = Code::new("target.disk_full");
/// DuckDB's memory limit is reached.
pub const OUT_OF_MEMORY: Code = Code::new("target.out_of_memory");
/// DuckDB refused a statement.
pub const STATEMENT: Code = Code::new("target.statement_refused");

/// An error of DuckDB while doing something.
pub(crate) fn refused(doing: &str, failure: duckdb::Error) -> Error {
    let text = failure.to_string();
    let has = |part: &str| text.contains(part);
    let problem = |what: &str| format!("{doing}: {what}");
    let error = if has("Could not set lock on file") || has("Conflicting lock") {
        Error::task_broken(LOCKED, problem("another process has the DuckDB file open"))
            .with_cure(Cure::advice("close the process that the cause names; DuckDB lets one process write a file, and readers wait meanwhile"))
    } else if has("No space left") {
        Error::task_broken(DISK_FULL, problem("the disk is full"))
            .with_cure(Cure::advice("make room, then start the task again: it goes on where it stopped"))
    } else if has("Out of Memory")
        || has("could not allocate")
        || has("failed to allocate")
        || has("failed to pin block")
    {
        Error::task_broken(OUT_OF_MEMORY, problem("DuckDB needs more than its memory limit"))
            .with_cure(Cure::advice("raise memory_limit of the DuckDB connection"))
    } else if has("Conflict on") || has("TransactionContext Error: Conflict") || has("write-write conflict") {
        Error::new(STATEMENT, Class::Transient, problem("a conflict with another transaction"))
    } else {
        Error::task_broken(STATEMENT, problem("DuckDB refused a statement"))
    };
    error.with_origin(failure)
}

/// A value that its column cannot hold.
pub(crate) fn unfit(table: &TableName, column: &str, target_type: &str, reason: &str) -> Error {
    Error::table_broken(
        NOT_REPRESENTABLE,
        table.clone(),
        format!("a value of {table}.{column} {reason}, and does not fit {target_type}"),
    )
    .with_cause("values are never changed to make them fit")
    .with_cure(
        Cure::advice("carry the column as text, then copy the table again: add the line to its entry under [[tasks.NAME.tables]]")
            .line(format!("columns.{column} = {{ type = \"string\" }}")),
    )
}

/// A table that the task has made is not there any more.
pub(crate) fn table_gone(table: &TableName, name: &TableName) -> Error {
    Error::table_broken(TABLE_GONE, table.clone(), format!("table {name} was dropped from the DuckDB file"))
        .with_cause("the task had made it, and changes since its copy would have nowhere to go")
        .with_cure(Cure::advice(format!("copy the table again: pgferry resync FILE --table {table}")))
}

/// The file has a table of that name that the task has neither made nor been told to take over.
pub(crate) fn table_exists(table: &TableName, name: &TableName) -> Error {
    Error::table_broken(TABLE_EXISTS, table.clone(), format!("the DuckDB file has a table {name} already")).with_cure(
        Cure::advice("say what to do with it, in the table's entry of the task file: append, truncate or replace; or give the target another name")
            .line("if_target_exists = \"replace\""),
    )
}

/// Another process has raised the epoch.
pub(crate) fn fenced() -> Error {
    Error::task_broken(FENCED, "another process runs this task: nothing of this one is written any more")
        .with_cure(Cure::advice("let one process run a task; stop one of the two"))
}
