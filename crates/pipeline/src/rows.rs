//! The way of a chunk's rows from the source's reader to the target's loader, bounded in batches.
//!
//! ```text
//!   Snapshot::copy ──RowSender──> [ batch | batch | end ] ──RowReceiver──> Target::load
//! ```
//!
//! Invariant: rows are complete only with their end mark; a sender that goes away without one makes the receiver fail, so
//! that a broken copy can never be committed as a whole one.

use pgferry_model::{Batch, Error, Result};
use tokio::sync::mpsc;

use crate::{Chunk, error};

/// Batches that may wait between reader and loader: one being encoded, one ready, one being read.
const BATCHES_WAITING_MAX: usize = 2;

enum Message {
    Rows(Batch),
    End { rows: u64 },
}

/// The reader's end.
#[derive(Clone)]
pub struct RowSender(mpsc::Sender<Message>);

/// The loader's end.
pub struct RowReceiver {
    messages: mpsc::Receiver<Message>,
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
    (RowSender(sender), RowReceiver { messages, ended: false, rows_seen: 0 })
}

impl RowSender {
    /// Hands over a batch; waits while the loader is behind. Fails when the loader has given up.
    pub async fn send(&self, batch: Batch) -> Result<()> {
        self.0.send(Message::Rows(batch)).await.map_err(|_| abandoned())
    }

    /// The end mark: all rows were sent, `rows` of them.
    pub async fn end(self, rows: u64) -> Result<()> {
        self.0.send(Message::End { rows }).await.map_err(|_| abandoned())
    }
}

fn abandoned() -> Error {
    Error::transient(error::LOAD_ABANDONED, "the target stopped taking rows of a chunk")
}

impl RowReceiver {
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
            Some(Message::End { .. }) | None => {
                Err(Error::transient(error::COPY_INTERRUPTED, "a chunk's rows ended before their end mark"))
            }
        }
    }
}
