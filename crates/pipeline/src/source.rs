//! The contract of a source. The comments here are its specification.

use std::sync::Arc;

use async_trait::async_trait;
use pgferry_model::{CellFormat, Finding, Position, Progress, Result, SourceIdentity, Table};

use crate::{Assembler, RowSender};

/// A part of a table that is copied at once, in one query and one commit of the target.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The table.
    pub table: Arc<Table>,
    /// Its number within the table's copy, dense from 0; a copy's chunks cover the table exactly once.
    pub number: u32,
    /// How many chunks the table's copy has.
    pub count: u32,
    /// What the source needs to read exactly this part; only the source understands it.
    pub range: String,
    /// Bytes that the part is expected to have, for the order of work and for progress.
    pub bytes: u64,
}

/// What a snapshot is needed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotNeed {
    /// Rows only: the task ends with the snapshot, no slot is made.
    RowsOnly,
    /// The first snapshot of a stream: the slot may be made now, and its own consistent point is then the snapshot's.
    /// Where the slot is there already, its snapshot is gone: then as [`SnapshotNeed::AfterStart`].
    StreamStart,
    /// The stream was started before: a second, temporary slot gives the snapshot together with its position.
    AfterStart,
}

/// Where the change stream begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamStart {
    /// Transactions that end at or before it are not wanted again.
    pub after: Position,
}

/// A source of tables and changes.
///
/// Order of calls: `tables`, then (where something is to be copied) `snapshot`, `copy` for every chunk, then `changes`.
#[async_trait]
pub trait Source: Send + Sync {
    /// The tables that the task selects, with ids dense from 0 in the list's order. The same list for a run's whole life.
    async fn tables(&self) -> Result<Vec<Arc<Table>>>;

    /// Which cluster and slot positions belong to.
    async fn identity(&self) -> Result<SourceIdentity>;

    /// Refuses, with its cure, a start from what the target holds: a missing or lost slot, a slot that has passed the stored
    /// position (changes would be missing), another cluster. Called once before anything is copied or streamed.
    async fn verify_start(&self, progress: &Progress) -> Result<()>;

    /// Makes what the stream needs, where the task lets it: publication first, then slot. Returns the position from which
    /// changes will come when nothing was copied (`cdc_only`): the slot's.
    async fn prepare_stream(&self) -> Result<Position>;

    /// Opens a consistent snapshot: every commit at or before its cut, nothing later.
    async fn snapshot(&self, need: SnapshotNeed) -> Result<Box<dyn Snapshot>>;

    /// Opens the change stream: every transaction that ends after the start, in commit order, without a gap.
    async fn changes(&self, start: StreamStart) -> Result<Box<dyn ChangeStream>>;

    /// The source's current end of log: what was committed before this call lies at or before it.
    async fn current_position(&self) -> Result<Position>;

    /// How many chunks a copy of the table would have by now, for plans; `None` where only a snapshot can tell.
    async fn chunks_estimated(&self, _table: &Table) -> Result<Option<usize>> {
        Ok(None)
    }

    /// Looks at everything that a run will need; findings, in the order of work.
    async fn check(&self) -> Result<Vec<Finding>>;
}

/// A consistent snapshot that many workers read at once.
#[async_trait]
pub trait Snapshot: Send + Sync {
    /// The snapshot holds every commit at or before it and nothing later.
    fn cut(&self) -> Position;

    /// Splits a table into chunks that cover it exactly once, for this snapshot; at least one, also for an empty table.
    async fn plan(&self, table: &Arc<Table>) -> Result<Vec<Chunk>>;

    /// Sends every row of the chunk, in batches, then the end mark with the number of rows. Idempotent: a chunk may be copied
    /// again while the snapshot lives. `formats` says per column in which form the target wants values; a column whose type
    /// has no binary form comes as text. Returns the number of rows.
    async fn copy(&self, chunk: &Chunk, formats: &[CellFormat], out: RowSender) -> Result<u64>;

    /// Ends the snapshot and everything that was made for it alone. Dropping it without this has the same effect, later.
    async fn close(self: Box<Self>) -> Result<()>;
}

/// How a call of [`ChangeStream::fill`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// What was at hand is in the assembler; more may come.
    Drained,
    /// The assembler asked to stop (full, or a cut is due).
    Stopped,
}

/// The stream of changes.
///
/// Obligations: it answers the source's keepalives by itself, also while `fill` is not called; it reports as durable only
/// what [`ChangeStream::confirm`] was told; a transaction that rolls back leaves nothing in the assembler.
#[async_trait]
pub trait ChangeStream: Send {
    /// Waits until there is something, then puts what is at hand into the assembler until that asks to stop. Cancel-safe:
    /// a dropped call loses nothing.
    async fn fill(&mut self, assembler: &mut Assembler) -> Result<Filled>;

    /// Everything at or before it is durable in the target: the source may forget it. Monotone; may repeat; never waits.
    fn confirm(&mut self, durable: Position);

    /// The source's end of log as last heard, for lag.
    fn source_end(&self) -> Position;

    /// Tells the source the last confirmed position and ends. Bounded in time; the slot stays.
    async fn close(self: Box<Self>) -> Result<()>;
}
