//! A chunk of a snapshot: rows to Arrow to the appender, and the record that it is done, in one transaction.
//!
//! Concurrent loads do not conflict: appends to one table never do, and the chunk's record is an insert. DuckDB writes full
//! row groups (122,880 rows) to the file while the transaction is open, so a large chunk costs little memory and log.

use pgferry_columnar::Tuples;
use pgferry_model::{Batch, Result};
use pgferry_pipeline::{ChunkRows, failpoint};

use super::{Destined, appender};
use crate::database::{Lease, Session};
use crate::encode::record_batch;
use crate::progress;

/// Rows and bytes that the appender may keep before they go to the table: a row group, or what a few long values make.
const PENDING_ROWS_MAX: usize = 122_880;
const PENDING_BYTES_MAX: usize = 32 << 20;

/// Loads a chunk; returns its rows. One that is recorded as done is only drained.
pub(crate) fn load(session: &Session, lease: &Lease, mut chunk: ChunkRows, to: &Destined) -> Result<u64> {
    let table = chunk.chunk.table.clone();
    let number = chunk.chunk.number;
    if progress::chunk_is_done(session, &lease.task, &table, number)? {
        let mut rows = 0;
        while let Some(batch) = chunk.rows.blocking_next()? {
            rows += batch.len() as u64;
        }
        return Ok(rows);
    }
    session.begin()?;
    let written = write_rows(session, &mut chunk, to).and_then(|rows| {
        progress::record_chunk(session, &lease.task, &table, number, rows)?;
        Ok(rows)
    });
    match written {
        Ok(rows) => {
            failpoint::pass("target.load_before_commit");
            session.commit(lease)?;
            failpoint::pass("target.load_after_commit");
            Ok(rows)
        }
        Err(failure) => {
            session.rollback();
            Err(failure)
        }
    }
}

fn write_rows(session: &Session, chunk: &mut ChunkRows, to: &Destined) -> Result<u64> {
    let table = chunk.chunk.table.clone();
    let what = || format!("loading {}", to.target);
    let failed = |failure: duckdb::Error| session.database.failed(&failure, &what());
    let mut appender = appender(session, &table, to)?;
    let (mut rows, mut pending_rows, mut pending_bytes) = (0u64, 0, 0);
    while let Some(batch) = chunk.rows.blocking_next()? {
        let encoded = record_batch(&batch, Tuples::New, &to.columns)?;
        let (batch_rows, batch_bytes) = (encoded.num_rows(), Batch::value_bytes(&batch));
        drop(batch);
        appender.append_record_batch(encoded).map_err(failed)?;
        rows += batch_rows as u64;
        pending_rows += batch_rows;
        pending_bytes += batch_bytes;
        if pending_rows >= PENDING_ROWS_MAX || pending_bytes >= PENDING_BYTES_MAX {
            appender.flush().map_err(failed)?;
            (pending_rows, pending_bytes) = (0, 0);
        }
    }
    appender.flush().map_err(failed)?;
    Ok(rows)
}
