//! Copies what is not copied yet, and hands the tables over to the stream without a gap or an overlap.
//!
//! ```text
//!   slot made, snapshot exported at L0 ──> chunks, largest table first, N workers ──> stream from L0
//!   after a crash: temporary slot, snapshot at L1 > L0 ──> unfinished tables only ──> stream from the stored position;
//!                  their transactions at or before L1 are skipped (assemble.rs), those of finished tables are not
//! ```
//!
//! Invariants: a table's cut is stored before its first row; a chunk and its record are one commit; a table takes changes only
//! when all of its chunks are durable; a table that breaks, or that this snapshot no longer shows, stops neither the other tables nor
//! its workers: the one is set aside, the other is copied again under the next snapshot.
//!
//! Small tables are loaded many at a time: a commit costs the same for a thousand rows as for a million.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use parking_lot::Mutex;
use pgferry_model::{CellFormat, Class, Error, Position, Progress, Result, Table, TableId, TableState};
use tokio_util::sync::CancellationToken;

use crate::deliver::Courier;
use crate::retry::Retry;
use crate::{
    Chunk, ChunkRows, CopyMark, Phase, RowSender, Snapshot, SnapshotNeed, Source, SyncMode, budget, error,
    failpoint, rows_between,
};

/// A table of at most so many bytes, in one chunk, is loaded together with others.
const SMALL_BYTES_MAX: u64 = 1 << 20;
/// How much is loaded together: so many bytes, so many tables.
const TOGETHER_BYTES_MAX: u64 = 8 << 20;
const TOGETHER_TABLES_MAX: usize = 64;

/// What a copy was.
pub(crate) struct Copied {
    /// The snapshot's position; `None` when nothing had to be copied.
    pub(crate) cut: Option<Position>,
    /// Tables that broke and are stored as such.
    pub(crate) set_aside: Vec<(Arc<Table>, Error)>,
    /// Whether it was asked to stop before it was done.
    pub(crate) stopped: bool,
}

/// The chunks still to be loaded and what is open per table.
struct Work {
    chunks: Vec<Chunk>,
    open: HashMap<TableId, usize>,
    broken: HashMap<TableId, Error>,
    /// Tables that the snapshot no longer shows; they stay unfinished, and the next snapshot is theirs.
    postponed: HashMap<TableId, Error>,
}

struct Copy<'a> {
    courier: &'a Courier,
    snapshot: &'a dyn Snapshot,
    work: Mutex<Work>,
    stop: &'a CancellationToken,
    batch_bytes_max: usize,
}

/// Copies every table of `tables` that the target does not hold whole.
pub(crate) async fn copy_tables(
    courier: &Courier,
    source: &dyn Source,
    tables: &[Arc<Table>],
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<Copied> {
    let unfinished: Vec<&Arc<Table>> = tables.iter().filter(|table| to_be_copied(table, progress)).collect();
    let mut copied = Copied { cut: None, set_aside: Vec::new(), stopped: false };
    if unfinished.is_empty() {
        return Ok(copied);
    }
    courier.monitor.set_phase(Phase::ExportingSnapshot);
    let snapshot = tokio::select! {
        snapshot = source.snapshot(need(courier, progress)) => snapshot?,
        () = stop.cancelled() => {
            copied.stopped = true;
            return Ok(copied);
        }
    };
    copied.cut = Some(snapshot.cut());
    let outcome = copy_under(courier, snapshot.as_ref(), &unfinished, progress, stop).await;
    let closed = snapshot.close().await;
    copied.set_aside = outcome?;
    if let Err(failure) = closed {
        tracing::warn!(code = failure.code().as_str(), "the snapshot did not end cleanly: {failure}");
    }
    copied.stopped = stop.is_cancelled();
    Ok(copied)
}

fn need(courier: &Courier, progress: &Progress) -> SnapshotNeed {
    match (courier.settings.sync_mode, progress.position) {
        (SyncMode::Snapshot, _) => SnapshotNeed::RowsOnly,
        (_, None) => SnapshotNeed::StreamStart,
        (_, Some(_)) => SnapshotNeed::AfterStart,
    }
}

fn to_be_copied(table: &Table, progress: &Progress) -> bool {
    match progress.table(&table.name).map(|known| &known.state) {
        None | Some(TableState::Waiting | TableState::Copying) => true,
        Some(
            TableState::Copied
            | TableState::CatchingUp
            | TableState::Live
            | TableState::Paused
            | TableState::Broken { .. },
        ) => false,
    }
}

async fn copy_under(
    courier: &Courier,
    snapshot: &dyn Snapshot,
    tables: &[&Arc<Table>],
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<Vec<(Arc<Table>, Error)>> {
    courier.monitor.set_phase(Phase::Snapshotting);
    let work = begin(courier, snapshot, tables, progress).await?;
    let workers = courier.settings.workers.min(courier.target.wants().loads_max).max(1);
    let copy = Copy {
        courier,
        snapshot,
        work: Mutex::new(work),
        stop,
        batch_bytes_max: budget::snapshot_batch_bytes(&courier.settings, workers),
    };
    let ends = join_all((0..workers).map(|_| copy.worker())).await;
    for end in ends {
        end?;
    }
    let Work { mut broken, postponed, .. } = copy.work.into_inner();
    if let Some(failure) = postponed.into_values().next() {
        return Err(failure);
    }
    Ok(tables
        .iter()
        .filter_map(|table| broken.remove(&table.id).map(|failure| (Arc::clone(table), failure)))
        .collect())
}

/// Stores every table's cut, then plans its chunks: largest table first, so that no worker is left with a giant at the end.
async fn begin(
    courier: &Courier,
    snapshot: &dyn Snapshot,
    tables: &[&Arc<Table>],
    progress: &Progress,
) -> Result<Work> {
    let stream_start = match (courier.settings.sync_mode, progress.position) {
        (SyncMode::Snapshot, _) | (_, Some(_)) => None,
        (_, None) => Some(snapshot.cut()),
    };
    let mark = CopyMark { cut: snapshot.cut(), stream_start };
    let mut planned: Vec<Vec<Chunk>> = Vec::with_capacity(tables.len());
    let mut broken = HashMap::new();
    let all: Vec<Arc<Table>> = tables.iter().map(|table| Arc::clone(table)).collect();
    failpoint::pass("handover.before_begin_copy");
    courier.target.begin_copies(&all, mark).await?;
    failpoint::pass("handover.after_begin_copy");
    for table in tables {
        let chunks = match snapshot.plan(table).await {
            Ok(chunks) => chunks,
            Err(failure)
                if failure.class() == Class::TableBroken && !courier.settings.stop_on_table_error =>
            {
                courier.set_aside(table, &failure).await?;
                broken.insert(table.id, failure);
                continue;
            }
            Err(failure) => return Err(failure),
        };
        if let Some(monitor) = courier.monitor.table(table.id.index()) {
            monitor.rows_copied.store(0, Ordering::Relaxed);
            monitor.bytes_copied.store(0, Ordering::Relaxed);
            monitor.chunks_done.store(0, Ordering::Relaxed);
            monitor.chunks_planned.store(chunks.len() as u64, Ordering::Relaxed);
            monitor.bytes_planned.store(chunks.iter().map(|chunk| chunk.bytes).sum(), Ordering::Relaxed);
        }
        planned.push(chunks);
    }
    planned.sort_by_key(|chunks| chunks.iter().map(|chunk| chunk.bytes).sum::<u64>());
    let open = planned.iter().filter_map(|chunks| Some((chunks.first()?.table.id, chunks.len()))).collect();
    let chunks = planned.into_iter().flat_map(|chunks| chunks.into_iter().rev()).collect();
    Ok(Work { chunks, open, broken, postponed: HashMap::new() })
}

fn is_small(chunk: &Chunk) -> bool {
    chunk.count == 1 && chunk.bytes <= SMALL_BYTES_MAX
}

impl Copy<'_> {
    /// Loads chunks until there is none left, someone asks to stop, or one fails for good.
    async fn worker(&self) -> Result<()> {
        let mut retry = Retry::new(&self.courier.settings);
        loop {
            let mut chunks = self.next_chunks();
            if chunks.is_empty() {
                return Ok(());
            }
            if chunks.len() > 1 {
                chunks = self.load_together(chunks).await?;
            }
            for chunk in chunks {
                self.load_alone(&chunk, &mut retry).await?;
            }
        }
    }

    /// Loads a chunk until it is loaded, its table is set aside or postponed, or someone asks to stop.
    async fn load_alone(&self, chunk: &Chunk, retry: &mut Retry) -> Result<()> {
        while !self.stop.is_cancelled() {
            let Err(failure) = self.load(chunk).await else {
                return Ok(());
            };
            if self.stop.is_cancelled() {
                return Ok(());
            }
            if failure.class() == Class::TableBroken && !self.courier.settings.stop_on_table_error {
                return self.set_aside(&chunk.table, failure).await;
            }
            let lost = failure.code() == error::SNAPSHOT_LOST;
            if lost && failure.table().is_some() {
                self.work.lock().postponed.insert(chunk.table.id, failure);
                return Ok(());
            }
            let wait = if lost { Err(failure) } else { retry.after(failure, self.chunks_done()) };
            let wait = match wait {
                Ok(wait) => wait,
                Err(failure) => {
                    self.work.lock().chunks.clear();
                    return Err(failure);
                }
            };
            self.courier.monitor.retries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    /// The next chunk, or small tables that are loaded together. None: there is nothing left, or someone asks to stop.
    fn next_chunks(&self) -> Vec<Chunk> {
        let mut work = self.work.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        if self.stop.is_cancelled() {
            return taken;
        }
        while let Some(next) = work.chunks.last() {
            let fits = bytes + next.bytes <= TOGETHER_BYTES_MAX && taken.len() < TOGETHER_TABLES_MAX;
            let together = fits && is_small(next) && taken.iter().all(is_small);
            if !taken.is_empty() && !together {
                break;
            }
            let Some(chunk) = work.chunks.pop() else { break };
            let id = chunk.table.id;
            if !work.broken.contains_key(&id) && !work.postponed.contains_key(&id) {
                bytes += chunk.bytes;
                taken.push(chunk);
            }
        }
        taken
    }

    fn chunks_done(&self) -> u64 {
        self.work.lock().chunks.len() as u64
    }

    async fn load(&self, chunk: &Chunk) -> Result<()> {
        let (sender, rows) = self.way(chunk);
        let loading = self.courier.target.load(rows);
        let (read, loaded) = tokio::join!(self.read(chunk, sender), loading);
        let rows = match (read, loaded) {
            (Ok(_), Ok(rows)) => rows,
            // The loader's own failure is the cause where the reader only lost its other end, and the other way round.
            (Err(read), Err(loaded)) if read.code() == error::LOAD_ABANDONED => return Err(loaded),
            (Err(read), _) => return Err(read),
            (Ok(_), Err(loaded)) => return Err(loaded),
        };
        failpoint::pass("handover.after_chunk");
        self.chunk_done(chunk, rows).await
    }

    fn way(&self, chunk: &Chunk) -> (RowSender, ChunkRows) {
        let (sender, rows) = rows_between();
        let sender = sender.limited(self.courier.settings.batch_rows_max, self.batch_bytes_max);
        (sender, ChunkRows { chunk: chunk.clone(), rows })
    }

    async fn read(&self, chunk: &Chunk, sender: RowSender) -> Result<u64> {
        self.set_state(&chunk.table, TableState::Copying);
        let format = |column| self.courier.target.snapshot_format(&chunk.table, column);
        let formats: Vec<CellFormat> = chunk.table.columns.iter().map(format).collect();
        tokio::select! {
            copied = self.snapshot.copy(chunk, &formats, sender) => copied,
            () = self.stop.cancelled() => Ok(0),
        }
    }

    /// Loads small tables and their states together. Returns those that have to be loaded on their own, where their errors are seen to.
    async fn load_together(&self, mut chunks: Vec<Chunk>) -> Result<Vec<Chunk>> {
        let (mut senders, mut tables) = (Vec::new(), Vec::new());
        for chunk in &chunks {
            let (sender, rows) = self.way(chunk);
            senders.push(sender);
            tables.push((rows, self.state_after(&chunk.table)));
        }
        let copying = async {
            for (chunk, sender) in chunks.iter().zip(senders) {
                // What comes after a failure has no sender any more, so nothing of it is loaded.
                self.read(chunk, sender).await?;
            }
            Ok::<(), Error>(())
        };
        let (read, loaded) = tokio::join!(copying, self.courier.target.load_tables(tables));
        let loaded = match (read, loaded) {
            (_, Ok(loaded)) => loaded,
            (Err(failure), Err(_)) | (Ok(()), Err(failure)) => {
                tracing::debug!(code = failure.code().as_str(), "tables are loaded one by one: {failure}");
                return Ok(chunks);
            }
        };
        failpoint::pass("handover.after_chunk");
        failpoint::pass("handover.before_copied");
        let rest = chunks.split_off(loaded.len().min(chunks.len()));
        for (chunk, rows) in chunks.iter().zip(loaded) {
            if self.count(chunk, rows) {
                self.set_state(&chunk.table, self.state_after(&chunk.table));
            }
        }
        failpoint::pass("handover.after_copied");
        Ok(rest)
    }

    /// A table's state when all of its chunks are durable.
    fn state_after(&self, table: &Table) -> TableState {
        let follows = self.courier.settings.sync_mode != SyncMode::Snapshot && !table.key.is_empty();
        if follows { TableState::CatchingUp } else { TableState::Copied }
    }

    async fn chunk_done(&self, chunk: &Chunk, rows: u64) -> Result<()> {
        if self.count(chunk, rows) {
            let state = self.state_after(&chunk.table);
            failpoint::pass("handover.before_copied");
            self.courier.target.set_state(&chunk.table, state.clone()).await?;
            failpoint::pass("handover.after_copied");
            self.set_state(&chunk.table, state);
        }
        Ok(())
    }

    /// Counts a durable chunk. Returns whether it was its table's last.
    fn count(&self, chunk: &Chunk, rows: u64) -> bool {
        if let Some(monitor) = self.courier.monitor.table(chunk.table.id.index()) {
            monitor.rows_copied.fetch_add(rows, Ordering::Relaxed);
            monitor.bytes_copied.fetch_add(chunk.bytes, Ordering::Relaxed);
            monitor.chunks_done.fetch_add(1, Ordering::Relaxed);
        }
        metrics::counter!("pgferry_snapshot_rows_total", "task" => self.courier.task.to_string())
            .increment(rows);
        let mut work = self.work.lock();
        let open = work.open.entry(chunk.table.id).or_insert(1);
        *open = open.saturating_sub(1);
        *open == 0 && !work.broken.contains_key(&chunk.table.id)
    }

    async fn set_aside(&self, table: &Arc<Table>, failure: Error) -> Result<()> {
        let first = !self.work.lock().broken.contains_key(&table.id);
        if first {
            self.courier.set_aside(table, &failure).await?;
            self.work.lock().broken.insert(table.id, failure);
        }
        Ok(())
    }

    fn set_state(&self, table: &Table, state: TableState) {
        self.courier.monitor.set_state(table.id.index(), state);
    }
}
