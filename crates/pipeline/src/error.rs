//! The engine's own error codes, and those that targets share.

use pgferry_model::{Code, Cure, Error};

/// The reader of a chunk went away before its end mark.
pub const COPY_INTERRUPTED: Code = Code::new("pipeline.copy_interrupted");
/// The loader of a chunk went away before its end mark.
pub const LOAD_ABANDONED: Code = Code::new("pipeline.load_abandoned");
/// A row's cells do not fit its table: a decoder's mistake, never the user's.
pub const ROW_MALFORMED: Code = Code::new("pipeline.row_malformed");
/// A table's columns changed in a way that the task does not apply.
pub const SCHEMA_CHANGE_BLOCKED: Code = Code::new("schema.change_blocked");
/// The same transient error came back for longer than the retry budget.
pub const RETRIES_EXHAUSTED: Code = Code::new("pipeline.retries_exhausted");
/// A transaction does not fit the memory limit and the target cannot take it in slices.
pub const TRANSACTION_TOO_LARGE: Code = Code::new("pipeline.transaction_too_large");
/// Every table of the task is set aside.
pub const NO_TABLE_LEFT: Code = Code::new("pipeline.no_table_left");
/// A graceful stop took longer than its limit.
pub const STOP_TIMED_OUT: Code = Code::new("pipeline.stop_timed_out");
/// A worker thread ended without a result.
pub const WORKER_LOST: Code = Code::new("pipeline.worker_lost");
/// The consistent snapshot that chunks are read from is gone; unfinished tables are copied again under a new one.
pub const SNAPSHOT_LOST: Code = Code::new("pipeline.snapshot_lost");
/// Another process has taken the task over.
pub const FENCED: Code = Code::new("target.fenced");
/// The target has a table of that name already.
pub const TABLE_EXISTS: Code = Code::new("target.table_exists");
/// The target's table has other columns.
pub const SCHEMA_INCOMPATIBLE: Code = Code::new("target.schema_incompatible");
/// Two tables would go to one of the target.
pub const NAME_COLLISION: Code = Code::new("target.name_collision");
/// A table that the task has made is gone.
pub const TABLE_GONE: Code = Code::new("target.table_gone");
/// A value does not fit the target's type.
pub const NOT_REPRESENTABLE: Code = Code::new("value.not_representable");
/// The target lacks a row, or a value of it, that is needed.
pub const ROW_MISSING: Code = Code::new("target.row_missing");
/// Rows of an unfinished copy cannot be told from those that were there.
pub const APPEND_INTERRUPTED: Code = Code::new("target.append_interrupted");
/// Slices of a transaction were dropped after an error.
pub const SLICES_LOST: Code = Code::new("target.slices_lost");

/// An error of class `Transient`: a task or a thread went away without having said anything. `problem` names it.
pub fn worker_lost(problem: impl Into<String>) -> Error {
    Error::transient(WORKER_LOST, problem)
        .with_cause("a mistake in pgferry ended it, or the process is being stopped")
        .with_cure(Cure::advice(
            "start the task again: it goes on where it stopped. If this comes back, report it with the log before it",
        ))
}
