//! The way of a chunk's rows from the source's reader to the target's loader, bounded in batches.
//!
//! ```text
//!   Snapshot::copy ──RowSender──> [ batch | batch | end ] ──RowReceiver──> Target::load
//!         ^──────────────── emptied batches ────────────────────┘
//! ```
//!
//! Invariant: rows are complete only with their end mark; a sender that goes away without one makes the receiver fail, so
//! that a broken copy can never be committed as a whole one.

use std::sync::Arc;

use parking_lot::Mutex;
use pgferry_model::{Batch, CellRef, Cure, Error, Result, SIZE_OF_ROW_ENTRY, Table};
use tokio::sync::mpsc;

use crate::{Chunk, error};

/// Batches that may wait between reader and loader: one being encoded, one ready, one being read.
const BATCHES_WAITING_MAX: usize = 2;

/// Rows per batch where nothing else is set; a power of two that engines like.
const BATCH_ROWS_MAX: usize = 16_384;
/// Bytes per batch where nothing else is set.
const BATCH_BYTES_MAX: usize = 4 << 20;

enum Message {
    Rows(Batch),
    End { rows: u64 },
}

/// Emptied batches on their way back to the reader.
type Spare = Arc<Mutex<Vec<Batch>>>;

/// The reader's end.
#[derive(Clone)]
pub struct RowSender {
    messages: mpsc::Sender<Message>,
    spare: Spare,
    batch_rows_max: usize,
    batch_bytes_max: usize,
}

/// The loader's end.
pub struct RowReceiver {
    messages: mpsc::Receiver<Message>,
    spare: Spare,
    ended: bool,
    rows_seen: u64,
}

/// A chunk on its way into a target.
pub struct ChunkRows {
    /// What is loaded.
    pub chunk: Chunk,
    /// Its rows.
    pub rows: RowReceiver,
}

/// A bounded way for one chunk's rows.
pub fn rows_between() -> (RowSender, RowReceiver) {
    let (sender, messages) = mpsc::channel(BATCHES_WAITING_MAX);
    let spare = Spare::default();
    let sender = RowSender {
        messages: sender,
        spare: Arc::clone(&spare),
        batch_rows_max: BATCH_ROWS_MAX,
        batch_bytes_max: BATCH_BYTES_MAX,
    };
    (sender, RowReceiver { messages, spare, ended: false, rows_seen: 0 })
}

impl RowSender {
    /// The same way with other limits per batch.
    #[must_use]
    pub fn limited(mut self, batch_rows_max: usize, batch_bytes_max: usize) -> Self {
        self.batch_rows_max = batch_rows_max.max(1);
        self.batch_bytes_max = batch_bytes_max.max(1);
        self
    }

    /// Rows at which the reader hands a batch over.
    pub fn batch_rows_max(&self) -> usize {
        self.batch_rows_max
    }

    /// Bytes at which the reader hands a batch over; one row may exceed it.
    pub fn batch_bytes_max(&self) -> usize {
        self.batch_bytes_max
    }

    /// An empty batch: one that the loader has given back, or a new one with the room that it will take. One that grows step by step
    /// leaves the memory of every step behind, in each thread.
    pub fn empty_batch(&self, table: &Arc<Table>) -> Batch {
        let spare = self.spare.lock().pop();
        spare.map_or_else(|| self.new_batch(table), |batch| batch.emptied(Arc::clone(table)))
    }

    fn new_batch(&self, table: &Arc<Table>) -> Batch {
        let row_bytes = table.bytes.checked_div(table.rows_estimated).unwrap_or(0) as usize;
        let with_cells = row_bytes + table.columns.len() * size_of::<CellRef>() + SIZE_OF_ROW_ENTRY;
        let rows = (self.batch_bytes_max / with_cells).min(self.batch_rows_max) + 1;
        let rows = rows.min(usize::try_from(table.rows_estimated).unwrap_or(usize::MAX));
        // Estimates may be far off: of a table that was emptied row by row the bytes are still there.
        Batch::with_capacity(Arc::clone(table), rows, (rows * row_bytes).min(self.batch_bytes_max))
    }

    /// Hands over a batch; waits while the loader is behind. Fails when the loader has given up.
    pub async fn send(&self, batch: Batch) -> Result<()> {
        self.messages.send(Message::Rows(batch)).await.map_err(|_| abandoned())
    }

    /// The end mark: all rows were sent, `rows` of them.
    pub async fn end(self, rows: u64) -> Result<()> {
        self.messages.send(Message::End { rows }).await.map_err(|_| abandoned())
    }
}

fn interrupted() -> Error {
    Error::transient(error::COPY_INTERRUPTED, "a chunk's rows ended before their end mark")
        .with_cause("the source failed first; its own error is told before or beside this one")
        .with_cure(Cure::advice("mend what the source's error names; the chunk is copied again"))
}

fn abandoned() -> Error {
    Error::transient(error::LOAD_ABANDONED, "the target stopped taking rows of a chunk")
        .with_cause("the target failed first; its own error is told before or beside this one")
        .with_cure(Cure::advice("mend what the target's error names; the chunk is copied again"))
}

impl RowReceiver {
    /// Gives a batch back whose rows are taken: the next rows go into it. The memory of a batch that is let go is new again for the next
    /// one, and the kernel clears it every time.
    pub fn give_back(&self, batch: Batch) {
        let mut spare = self.spare.lock();
        // One that a large value has blown up is not kept.
        if spare.len() < BATCHES_WAITING_MAX && batch.room_bytes() <= 4 * BATCH_BYTES_MAX {
            spare.push(batch);
        }
    }

    /// The next batch, or `None` after the end mark. Fails when the reader went away without one.
    pub async fn next(&mut self) -> Result<Option<Batch>> {
        if self.ended {
            return Ok(None);
        }
        let message = self.messages.recv().await;
        self.take(message)
    }

    /// [`RowReceiver::next`] for a thread that may block; never from within the async runtime.
    pub fn blocking_next(&mut self) -> Result<Option<Batch>> {
        if self.ended {
            return Ok(None);
        }
        let message = self.messages.blocking_recv();
        self.take(message)
    }

    fn take(&mut self, message: Option<Message>) -> Result<Option<Batch>> {
        match message {
            Some(Message::Rows(batch)) => {
                self.rows_seen += batch.len() as u64;
                Ok(Some(batch))
            }
            Some(Message::End { rows }) if rows == self.rows_seen => {
                self.ended = true;
                Ok(None)
            }
            Some(Message::End { .. }) | None => Err(interrupted()),
        }
    }
}

#[cfg(test)]
mod tests {
    use pgferry_model::{TableId, TableName};

    use super::*;

    #[test]
    fn a_new_batch_takes_no_more_room_than_a_batch_may_have_whatever_the_estimates_say() {
        let (sender, _receiver) = rows_between();
        let sender = sender.limited(usize::MAX, 1 << 20);
        for (rows_estimated, bytes) in
            [(0, 0), (0, 1 << 40), (1, 1 << 40), (1 << 40, 1), (1_000_000, 570_000_000)]
        {
            let name = TableName::new("public", "t");
            let table = Arc::new(Table {
                id: TableId(0),
                target_name: name.clone(),
                name,
                columns: Vec::new(),
                key: Vec::new(),
                key_enforced: false,
                full_identity: false,
                rows_estimated,
                bytes,
            });
            let room = sender.empty_batch(&table).room_bytes();
            assert!(room <= 2 << 20, "{rows_estimated} rows of {bytes} bytes: room for {room}");
        }
    }
}
