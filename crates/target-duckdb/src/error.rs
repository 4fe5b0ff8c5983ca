//! The target's error codes, and what DuckDB's own errors mean.

use pgferry_model::{Class, Code, Cure, Error, TableName};
pub use pgferry_pipeline::error::{
    APPEND_INTERRUPTED, FENCED, NAME_COLLISION, NOT_REPRESENTABLE, ROW_MISSING, SCHEMA_INCOMPATIBLE,
    SLICES_LOST, TABLE_EXISTS, TABLE_GONE,
};

/// Another process has the file open.
pub const LOCKED: Code = Code::new("target.locked");
/// The file cannot be opened or made.
pub const FILE: Code = Code::new("target.file");
/// The disk is full.
pub const DISK_FULL: Code = Code::new("target.disk_full");
/// DuckDB's memory limit is reached.
pub const OUT_OF_MEMORY: Code = Code::new("target.out_of_memory");
/// DuckDB's memory limit is less than what many changed tables hold.
pub const MEMORY_SHORT: Code = Code::new("target.memory_short");
/// DuckDB refused a statement.
pub const STATEMENT: Code = Code::new("target.statement_refused");

/// What to do about a mistake of our own.
pub(crate) fn mistake() -> Cure {
    Cure::advice("report it with the log and the table's definition: a mistake in pgferry, not in your data")
}

/// An error of DuckDB while doing something.
pub(crate) fn refused(doing: &str, failure: duckdb::Error) -> Error {
    let text = failure.to_string();
    let has = |part: &str| text.contains(part);
    let problem = |what: &str| format!("{doing}: {what}");
    let error = if has("Could not set lock on file") || has("Conflicting lock") {
        locked(problem("another process has the DuckDB file open"), &text)
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
            .with_cure(Cure::advice("it is tried again; let nothing else write the tables of a task"))
    } else {
        Error::task_broken(STATEMENT, problem("DuckDB refused a statement")).with_cure(Cure::advice(
            "where the cause names a table that something else altered, copy that table again; else report it with the log",
        ))
    };
    error.with_origin(failure)
}

/// DuckDB's text names the process: `Conflicting lock is held in /usr/bin/duckdb (PID 4711). See also ...`.
fn locked(problem: String, text: &str) -> Error {
    let holder = text.split_once("lock is held in ").and_then(|(_, rest)| rest.split_once(". See"));
    let error = Error::task_broken(LOCKED, problem).with_cure(Cure::advice(
        "end the process that the cause names, or wait for its end: DuckDB lets one process write a file, and no other read it meanwhile",
    ));
    match holder {
        Some((holder, _)) => error.with_cause(format!("{holder} has it open")),
        None => error,
    }
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
        Cure::advice("carry the column as text: add the line to the table's entry under [[tasks.NAME.tables]], then copy the table again")
            .line(format!("columns.{} = {{ type = \"string\" }}", toml_key(column)))
            .resync_table(table),
    )
}

/// A name as a key of the task file.
fn toml_key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !name.is_empty() && name.bytes().all(bare) { name.to_owned() } else { format!("{name:?}") }
}

/// A table that the task has made is not there any more.
pub(crate) fn table_gone(table: &TableName, name: &TableName) -> Error {
    Error::table_broken(TABLE_GONE, table.clone(), format!("table {name} was dropped from the DuckDB file"))
        .with_cause("the task had made it, and changes since its copy would have nowhere to go")
        .with_cure(Cure::advice("stop the task, copy the table again, start it").resync_table(table))
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
        .with_cause(
            "the other one was started later and has taken the task over, so that no row is written twice",
        )
        .with_cure(Cure::advice("let one process run a task; stop one of the two"))
}
