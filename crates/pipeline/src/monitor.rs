//! What a run is doing, for people: phases, tables, rows, bytes, lag. Read at any time, never waited for.
//!
//! Counters are atomics that the engine adds to once per batch or chunk, never per row.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use pgferry_model::{Error, Position, Table, TableState};

/// What the task as a whole does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connecting, checking, preparing.
    Starting,
    /// Opening the consistent point.
    ExportingSnapshot,
    /// Copying tables.
    Snapshotting,
    /// Reading changes, the source's end not reached yet.
    CatchingUp,
    /// Following the source's end.
    Streaming,
    /// Waiting before another try after a transient error.
    Retrying,
    /// Ending gracefully.
    Stopping,
    /// Ended.
    Ended,
}

impl Phase {
    /// Every phase, in the order of their numbers.
    pub const ALL: [Phase; 8] = [
        Phase::Starting,
        Phase::ExportingSnapshot,
        Phase::Snapshotting,
        Phase::CatchingUp,
        Phase::Streaming,
        Phase::Retrying,
        Phase::Stopping,
        Phase::Ended,
    ];

    /// The word in messages and in the API.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::ExportingSnapshot => "exporting_snapshot",
            Phase::Snapshotting => "snapshotting",
            Phase::CatchingUp => "catching_up",
            Phase::Streaming => "streaming",
            Phase::Retrying => "retrying",
            Phase::Stopping => "stopping",
            Phase::Ended => "ended",
        }
    }

    fn from_number(number: u8) -> Phase {
        Phase::ALL.get(usize::from(number)).copied().unwrap_or(Phase::Ended)
    }
}

/// One table's counters.
pub struct TableMonitor {
    /// The table.
    pub table: Arc<Table>,
    state: Mutex<TableState>,
    /// Rows copied and durable.
    pub rows_copied: AtomicU64,
    /// Bytes of the source's chunks that are durable, as planned.
    pub bytes_copied: AtomicU64,
    /// Bytes of all chunks, as planned.
    pub bytes_planned: AtomicU64,
    /// Chunks durable.
    pub chunks_done: AtomicU64,
    /// Chunks planned.
    pub chunks_planned: AtomicU64,
    /// Changes delivered, before compaction.
    pub changes: AtomicU64,
}

/// One table's counters, read at once.
#[derive(Clone, Debug)]
pub struct TableView {
    /// The table.
    pub table: Arc<Table>,
    /// Where it is in its life.
    pub state: TableState,
    /// Rows copied and durable.
    pub rows_copied: u64,
    /// Bytes of the source's chunks that are durable, as planned.
    pub bytes_copied: u64,
    /// Bytes of all chunks, as planned.
    pub bytes_planned: u64,
    /// Chunks durable.
    pub chunks_done: u64,
    /// Chunks planned.
    pub chunks_planned: u64,
    /// Changes delivered, before compaction.
    pub changes: u64,
}

/// A run's counters, shared by the engine and those who show them.
pub struct Monitor {
    /// When the run began.
    pub started: Instant,
    phase: AtomicU8,
    tables: Mutex<Vec<Arc<TableMonitor>>>,
    durable: AtomicU64,
    delivered: AtomicU64,
    source_end: AtomicU64,
    committed_at_us: AtomicU64,
    /// Transactions delivered.
    pub transactions: AtomicU64,
    /// Changes delivered, before compaction.
    pub changes: AtomicU64,
    /// Deliveries committed in the target.
    pub deliveries: AtomicU64,
    /// Retries after transient errors.
    pub retries: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Default for Monitor {
    fn default() -> Self {
        Monitor {
            started: Instant::now(),
            phase: AtomicU8::new(0),
            tables: Mutex::new(Vec::new()),
            durable: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            source_end: AtomicU64::new(0),
            committed_at_us: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            deliveries: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            last_error: Mutex::new(None),
        }
    }
}

impl Monitor {
    /// What the task does.
    pub fn phase(&self) -> Phase {
        Phase::from_number(self.phase.load(Ordering::Relaxed))
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        if self.phase.swap(phase as u8, Ordering::Relaxed) != phase as u8 {
            tracing::info!(phase = phase.word(), "phase");
        }
    }

    pub(crate) fn set_tables(&self, tables: &[Arc<Table>]) {
        *self.tables.lock() =
            tables.iter().map(|table| Arc::new(TableMonitor::new(Arc::clone(table)))).collect();
    }

    pub(crate) fn table(&self, index: usize) -> Option<Arc<TableMonitor>> {
        self.tables.lock().get(index).cloned()
    }

    pub(crate) fn set_state(&self, index: usize, state: TableState) {
        if let Some(table) = self.table(index) {
            *table.state.lock() = state;
        }
    }

    pub(crate) fn set_durable(&self, position: Position, committed_at_us: Option<i64>) {
        self.durable.fetch_max(position.lsn(), Ordering::Relaxed);
        if let Some(at) = committed_at_us {
            self.committed_at_us.store(at as u64, Ordering::Relaxed);
        }
    }

    /// Every change at or before it is durable; the position itself need not be.
    pub(crate) fn set_delivered(&self, position: Position) {
        self.delivered.fetch_max(position.lsn(), Ordering::Relaxed);
    }

    pub(crate) fn set_source_end(&self, position: Position) {
        self.source_end.fetch_max(position.lsn(), Ordering::Relaxed);
    }

    pub(crate) fn set_error(&self, error: Option<&Error>) {
        *self.last_error.lock() = error.map(|error| format!("{}: {error}", error.code()));
    }

    /// The transient error that is being retried, if any.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// Everything at or before it is durable.
    pub fn durable(&self) -> Position {
        Position::from_lsn(self.durable.load(Ordering::Relaxed))
    }

    /// Bytes of the source's log that may hold changes which are not durable yet; 0 while the source is idle.
    pub fn lag_bytes(&self) -> u64 {
        let delivered = Position::from_lsn(self.delivered.load(Ordering::Relaxed)).max(self.durable());
        Position::from_lsn(self.source_end.load(Ordering::Relaxed)).bytes_since(delivered)
    }

    /// When the newest durable transaction was committed at the source, in microseconds since 1970; 0 before the first.
    pub fn committed_at_us(&self) -> i64 {
        self.committed_at_us.load(Ordering::Relaxed) as i64
    }

    /// All tables' counters.
    pub fn tables(&self) -> Vec<TableView> {
        self.tables.lock().iter().map(|table| table.view()).collect()
    }
}

impl TableMonitor {
    fn new(table: Arc<Table>) -> Self {
        TableMonitor {
            table,
            state: Mutex::new(TableState::Waiting),
            rows_copied: AtomicU64::new(0),
            bytes_copied: AtomicU64::new(0),
            bytes_planned: AtomicU64::new(0),
            chunks_done: AtomicU64::new(0),
            chunks_planned: AtomicU64::new(0),
            changes: AtomicU64::new(0),
        }
    }

    fn view(&self) -> TableView {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TableView {
            table: Arc::clone(&self.table),
            state: self.state.lock().clone(),
            rows_copied: read(&self.rows_copied),
            bytes_copied: read(&self.bytes_copied),
            bytes_planned: read(&self.bytes_planned),
            chunks_done: read(&self.chunks_done),
            chunks_planned: read(&self.chunks_planned),
            changes: read(&self.changes),
        }
    }
}
