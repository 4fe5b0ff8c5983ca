//! Standby status updates: the one thing that the source is told while changes flow.
//!
//! ```text
//!   reader ── reply wanted, position received ──> this task ──> 'r' written, flushed, applied
//!   engine ── confirmed ────────────────────────>     │
//! ```
//!
//! A status that is sent because time has passed asks the server for an answer, so that a dead connection is told from an idle one.
//!
//! Invariants: what is reported as flushed was confirmed by the engine, nothing else; a reply is sent at once when the server asks, and
//! otherwise well within `wal_sender_timeout`, whatever the target does: this task waits for nothing but its timer and its socket.
//!
//! Format of the message: PostgreSQL docs, chapter "Streaming Replication Protocol", "Standby status update".

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use pgferry_model::{Position, Result};
use pgferry_pipeline::failpoint;
use pgferry_postgres::SessionWriter;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// Status updates are sent at least this often, even if the server would wait longer.
const INTERVAL_MAX: Duration = Duration::from_secs(10);
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Microseconds between 1970-01-01 and 2000-01-01 UTC, the protocol's epoch.
const EPOCH_OFFSET_US: i64 = 946_684_800_000_000;
/// How long the farewell may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

struct Shared {
    received: AtomicU64,
    reply_now: Notify,
}

/// The engine's and the reader's side.
pub(crate) struct Feedback {
    shared: Arc<Shared>,
    confirmed: watch::Sender<u64>,
    closing: watch::Sender<bool>,
    task: JoinHandle<Result<()>>,
}

impl Feedback {
    /// Starts the task. `timeout` is the server's `wal_sender_timeout`; zero: it has none. `silence` is how long nothing may come: within it
    /// an answer is asked for.
    pub(crate) fn start(
        writer: SessionWriter,
        timeout: Duration,
        silence: Duration,
        confirmed: Position,
    ) -> Self {
        let shared = Arc::new(Shared { received: AtomicU64::new(confirmed.lsn()), reply_now: Notify::new() });
        let (confirmed, heard) = watch::channel(confirmed.lsn());
        let (closing, ending) = watch::channel(false);
        let task =
            tokio::spawn(report(writer, Arc::clone(&shared), heard, ending, interval(timeout, silence)));
        Feedback { shared, confirmed, closing, task }
    }

    /// Everything up to here was received. Whether that is news.
    pub(crate) fn received(&self, position: Position) -> bool {
        self.shared.received.fetch_max(position.lsn(), Ordering::Relaxed) < position.lsn()
    }

    /// The server asks for a reply.
    pub(crate) fn reply_now(&self) {
        self.shared.reply_now.notify_one();
    }

    /// Everything up to here is durable in the target.
    pub(crate) fn confirm(&self, position: Position) {
        self.confirmed.send_if_modified(|confirmed| {
            let newer = position.lsn() > *confirmed;
            if newer {
                *confirmed = position.lsn();
            }
            newer
        });
    }

    /// Whether the task has ended, because its socket did.
    pub(crate) fn ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Sends the last confirmed position and ends the stream. Bounded in time.
    pub(crate) async fn close(self) -> Result<()> {
        self.closing.send_replace(true);
        let mut task = self.task;
        match tokio::time::timeout(CLOSE_WITHIN, &mut task).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) | Err(_) => {
                task.abort();
                Ok(())
            }
        }
    }
}

fn interval(timeout: Duration, silence: Duration) -> Duration {
    let of_server = if timeout.is_zero() { INTERVAL_MAX } else { timeout / 4 };
    of_server.min(silence / 3).clamp(INTERVAL_MIN, INTERVAL_MAX)
}

async fn report(
    mut writer: SessionWriter,
    shared: Arc<Shared>,
    mut confirmed: watch::Receiver<u64>,
    mut closing: watch::Receiver<bool>,
    interval: Duration,
) -> Result<()> {
    let (mut answer_wanted, mut told) = (false, *confirmed.borrow());
    loop {
        let flushed = *confirmed.borrow_and_update();
        let received = shared.received.load(Ordering::Relaxed).max(flushed);
        let news = flushed > told;
        if news {
            failpoint::pass("source.before_status");
        }
        writer.write_copy_data(&status(received, flushed, answer_wanted)).await?;
        if news {
            failpoint::pass("source.after_status");
            told = flushed;
        }
        answer_wanted = false;
        tokio::select! {
            changed = closing.changed() => {
                let flushed = *confirmed.borrow();
                let received = shared.received.load(Ordering::Relaxed).max(flushed);
                writer.write_copy_data(&status(received, flushed, false)).await?;
                if changed.is_ok() {
                    writer.finish_copy().await?;
                }
                return writer.terminate().await;
            }
            changed = confirmed.changed() => {
                if changed.is_err() {
                    return writer.terminate().await;
                }
            }
            () = shared.reply_now.notified() => {}
            () = tokio::time::sleep(interval) => answer_wanted = true,
        }
    }
}

fn status(received: u64, flushed: u64, answer_wanted: bool) -> [u8; 34] {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now_us = now.as_micros() as i64 - EPOCH_OFFSET_US;
    let mut message = [0u8; 34];
    message[0] = b'r';
    message[1..9].copy_from_slice(&received.to_be_bytes());
    message[9..17].copy_from_slice(&flushed.to_be_bytes());
    message[17..25].copy_from_slice(&flushed.to_be_bytes());
    message[25..33].copy_from_slice(&now_us.to_be_bytes());
    message[33] = u8::from(answer_wanted);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_stays_well_within_the_servers_timeout() {
        let long = Duration::from_secs(45);
        assert_eq!(interval(Duration::ZERO, long), INTERVAL_MAX);
        assert_eq!(interval(Duration::from_secs(60), long), INTERVAL_MAX);
        assert_eq!(interval(Duration::from_secs(1), long), Duration::from_millis(250));
        assert_eq!(interval(Duration::from_millis(10), long), INTERVAL_MIN);
        assert_eq!(interval(Duration::ZERO, Duration::from_secs(3)), Duration::from_secs(1));
    }

    #[test]
    fn a_status_update_has_the_protocols_shape() {
        let message = status(0x0102_0304_0506_0708, 0x11, false);
        assert_eq!(message[0], b'r');
        assert_eq!(&message[1..9], &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!((message[16], message[24], message[33]), (0x11, 0x11, 0));
        let at = i64::from_be_bytes(message[25..33].try_into().expect("eight bytes"));
        assert!(at > 0, "after the year 2000");
    }
}
