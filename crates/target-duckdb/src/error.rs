//! This target's error codes, and what DuckDB's own errors mean.
//!
//! DuckDB tells the kind of an error by the words its message starts with (`IO Error:`, `Out of Memory Error:`, ...). Messages
//! of the kinds that can quote a value (conversion, constraint, invalid input) are never passed on.

use std::path::Path;

use pgferry_columnar::Unfit;
use pgferry_model::{Class, Code, Cure, Error, Table};

/// Another process has the file open.
pub const LOCKED: Code = Code::new("target.locked");
/// The file or its folder cannot be written.
pub const FILE_NOT_WRITABLE: Code = Code::new("target.file_not_writable");
/// The file is not a DuckDB database.
pub const FILE_NOT_DUCKDB: Code = Code::new("target.file_not_duckdb");
/// The file's checksums do not fit its content.
pub const FILE_CORRUPT: Code = Code::new("target.file_corrupt");
/// The file was written by a newer DuckDB.
pub const FILE_VERSION: Code = Code::new("target.file_version");
/// The task was opened again elsewhere: this holder may not write any more.
pub const FENCED: Code = Code::new("target.fenced");
/// The target was closed, or not opened yet.
pub const NOT_OPEN: Code = Code::new("target.not_open");
/// The target has a table of that name that the task has not made.
pub const TABLE_EXISTS: Code = Code::new("target.table_exists");
/// A table that the task has made is gone.
pub const TABLE_MISSING: Code = Code::new("target.table_missing");
/// The target's table has other columns than the task needs.
pub const SCHEMA_INCOMPATIBLE: Code = Code::new("target.schema_incompatible");
/// Two names are one name in DuckDB, or a name is pgferry's own.
pub const NAME_COLLISION: Code = Code::new("target.name_collision");
/// The target lacks a row that a change needs.
pub const ROW_MISSING: Code = Code::new("target.row_missing");
/// The disk is full.
pub const DISK_FULL: Code = Code::new("target.disk_full");
/// DuckDB's memory limit is too low.
pub const OUT_OF_MEMORY: Code = Code::new("target.out_of_memory");
/// DuckDB was interrupted, or two transactions met.
pub const INTERRUPTED: Code = Code::new("target.interrupted");
/// A commit failed in a way that does not tell whether it is durable.
pub const COMMIT_UNKNOWN: Code = Code::new("target.commit_unknown");
/// Slices of a transaction were dropped after an error.
pub const SLICES_LOST: Code = Code::new("target.slices_lost");
/// A column's wanted type is not known or not possible.
pub const TYPE_UNKNOWN: Code = Code::new("target.type_unknown");
/// DuckDB failed in another way.
pub const FAILED: Code = Code::new("target.failed");
/// A value does not fit its column's type.
pub const NOT_REPRESENTABLE: Code = Code::new("value.not_representable");

/// Every code of this crate, for its pages.
pub const CODES: &[Code] = &[
    LOCKED,
    FILE_NOT_WRITABLE,
    FILE_NOT_DUCKDB,
    FILE_CORRUPT,
    FILE_VERSION,
    FENCED,
    NOT_OPEN,
    TABLE_EXISTS,
    TABLE_MISSING,
    SCHEMA_INCOMPATIBLE,
    NAME_COLLISION,
    ROW_MISSING,
    DISK_FULL,
    OUT_OF_MEMORY,
    INTERRUPTED,
    COMMIT_UNKNOWN,
    SLICES_LOST,
    TYPE_UNKNOWN,
    FAILED,
    NOT_REPRESENTABLE,
];

/// DuckDB's message, where it has one.
fn message(failure: &duckdb::Error) -> String {
    match failure {
        duckdb::Error::DuckDBFailure(_, Some(message)) => message.clone(),
        other => other.to_string(),
    }
}

/// Whether DuckDB has given up the whole database after this error: it has to be opened anew.
pub(crate) fn is_fatal(failure: &duckdb::Error) -> bool {
    let text = message(failure);
    text.starts_with("FATAL Error") || text.contains("database has been invalidated")
}

/// An error while running statements, while doing `what`.
pub(crate) fn from_duckdb(failure: &duckdb::Error, what: &str) -> Error {
    let text = message(failure);
    let low = text.to_ascii_lowercase();
    if low.contains("no space left") || low.contains("enospc") || low.contains("disk quota") {
        let cure = Cure::advice("free space on the volume of the database file; the task goes on by itself");
        return Error::transient(DISK_FULL, format!("the disk is full: {what}")).with_cause(shown(&text)).with_cure(cure);
    }
    // The appender passes messages on without their kind.
    if text.starts_with("Out of Memory Error") || low.contains("could not allocate block") {
        let cure = Cure::advice("raise the connection's memory limit, or load fewer chunks at once")
            .line("memory_limit = \"4GB\"");
        return Error::task_broken(OUT_OF_MEMORY, format!("DuckDB's memory limit is too low: {what}"))
            .with_cause(text.lines().next().unwrap_or_default())
            .with_cure(cure);
    }
    if text.starts_with("INTERRUPT") || low.contains("conflict") {
        return Error::transient(INTERRUPTED, format!("DuckDB was interrupted: {what}")).with_cause(shown(&text));
    }
    if is_fatal(failure) || text.starts_with("IO Error") {
        return Error::transient(FAILED, format!("DuckDB cannot go on: {what}")).with_cause(shown(&text));
    }
    Error::task_broken(FAILED, format!("DuckDB refused: {what}")).with_cause(shown(&text))
}

/// An error while opening the file.
pub(crate) fn at_open(failure: &duckdb::Error, path: &Path) -> Error {
    let text = message(failure);
    let low = text.to_ascii_lowercase();
    let path = path.display();
    if low.contains("could not set lock") || low.contains("conflicting lock") {
        let holder = holder(&text).map(|holder| format!(" ({holder})")).unwrap_or_default();
        return Error::task_broken(LOCKED, format!("{path} is in use by another process{holder}"))
            .with_cause("DuckDB lets one process at a time write a file")
            .with_cure(Cure::advice(
                "close that process, or let it read a copy of the file; then start the task again",
            ));
    }
    if low.contains("not a valid duckdb database") || low.contains("magic bytes") {
        return Error::task_broken(FILE_NOT_DUCKDB, format!("{path} is not a DuckDB database"))
            .with_cure(Cure::advice("name another file in the connection's `path`; pgferry makes it"));
    }
    if low.contains("corrupt database file") {
        return Error::task_broken(FILE_CORRUPT, format!("{path} is damaged"))
            .with_cause("a checksum in the file does not fit what it covers")
            .with_cure(Cure::advice("put a copy of the file back, or name another file and copy the tables again"));
    }
    if low.contains("newer version") || low.contains("version number") || low.contains("storage version") {
        return Error::task_broken(FILE_VERSION, format!("{path} was written by another version of DuckDB"))
            .with_cause(shown(&text))
            .with_cure(Cure::advice(
                "copy it with the newer DuckDB into a file of storage version v1.5 or older, or name another file",
            ));
    }
    if low.contains("no space left") {
        return from_duckdb(failure, &format!("opening {path}"));
    }
    not_writable(&path.to_string(), shown(&text))
}

pub(crate) fn not_writable(path: &str, cause: impl Into<String>) -> Error {
    Error::task_broken(FILE_NOT_WRITABLE, format!("{path} cannot be opened for writing"))
        .with_cause(cause)
        .with_cure(Cure::advice(
            "make the folder, and let the user that runs pgferry write to the folder and to the file",
        ))
}

/// What DuckDB tells about who holds the lock: `… is held in /usr/bin/python3 (PID 1234) …`.
fn holder(text: &str) -> Option<String> {
    let at = text.find("(PID ")?;
    let end = text[at..].find(')')? + at;
    Some(text[at + 1..end].to_owned())
}

/// The first line of a message, without those that can quote a value.
fn shown(text: &str) -> String {
    let kind = text.split(':').next().unwrap_or_default();
    match kind {
        "IO Error" | "Out of Memory Error" | "Catalog Error" | "Binder Error" | "Parser Error" | "INTERRUPT Error"
        | "TransactionContext Error" | "FATAL Error" | "Permission Error" | "Serialization Error" => {
            text.lines().next().unwrap_or_default().to_owned()
        }
        _ if kind.ends_with("Error") && kind.len() < 40 => format!("{kind} of DuckDB"),
        _ => "an error of DuckDB without a kind".to_owned(),
    }
}

/// A value that does not fit its column; the table is set aside.
pub(crate) fn unfit(table: &Table, unfit: Unfit) -> Error {
    let column = table.columns.get(unfit.column).map_or("?", |column| &column.name);
    let name = table.name.clone();
    Error::table_broken(NOT_REPRESENTABLE, name, format!("{}: a value of column {column} does not fit", table.name))
        .with_cause(unfit.reason.to_string())
        .with_cure(
            Cure::advice("take the column as text in the table's section of the task file, then copy the table again")
                .line(format!("columns.{column} = {{ type = \"string\" }}")),
        )
}

/// An older holder tries to write.
pub(crate) fn fenced(task: &str) -> Error {
    Error::task_broken(FENCED, format!("task {task} was started again elsewhere; this one may not write any more"))
        .with_cause("every start of a task raises its epoch in the target, and a write under an older epoch is refused")
        .with_cure(Cure::advice("let one process run the task; stop the other, then start again"))
}

pub(crate) fn not_open() -> Error {
    Error::new(NOT_OPEN, Class::TaskBroken, "the target is not open")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(text: &str) -> duckdb::Error {
        duckdb::Error::DuckDBFailure(duckdb::ffi::Error::new(1), Some(text.to_owned()))
    }

    #[test]
    fn duckdbs_words_become_codes_and_classes() {
        for (text, code, class) in [
            ("IO Error: Could not write: No space left on device", DISK_FULL, Class::Transient),
            ("Out of Memory Error: failed to allocate", OUT_OF_MEMORY, Class::TaskBroken),
            ("INTERRUPT Error: Interrupted!", INTERRUPTED, Class::Transient),
            ("TransactionContext Error: Conflict on update!", INTERRUPTED, Class::Transient),
            ("IO Error: read failed", FAILED, Class::Transient),
            ("Binder Error: no such column", FAILED, Class::TaskBroken),
        ] {
            let error = from_duckdb(&failure(text), "writing");
            assert_eq!((error.code(), error.class()), (code, class), "{text}");
        }
    }

    #[test]
    fn a_message_that_can_quote_a_value_is_not_passed_on() {
        let error = from_duckdb(&failure("Conversion Error: Could not convert string 'secret' to INT32"), "writing");
        assert_eq!(error.cause().as_deref(), Some("Conversion Error of DuckDB"));
        let error = from_duckdb(&failure("duplicate key \"secret\""), "writing");
        assert!(!error.cause().unwrap_or_default().contains("secret"));
    }

    #[test]
    fn the_holder_of_a_lock_is_told() {
        let text = "IO Error: Could not set lock on file \"x\": Conflicting lock is held in /usr/bin/python3 (PID 4711).";
        let error = at_open(&failure(text), Path::new("/x.duckdb"));
        assert_eq!(error.code(), LOCKED);
        assert!(error.problem().contains("PID 4711"), "{error}");
    }
}
