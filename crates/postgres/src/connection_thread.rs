//! A thread for one connection, with a runtime that polls nothing else; and the naps that it takes while bytes gather.
//!
//! ```text
//!   ConnectionThread ──open──> socket, polled here only     ──run──> work that reads it, and naps between two small reads
//! ```
//!
//! Invariant: only work on such a thread naps; in a shared runtime a nap would stop everybody.
//!
//! Why: a server sends a walsender's change, or 8 kB of a COPY, at a time. Each one wakes the thread that polls the socket, whoever reads
//! it: measured, 86 % of all CPU in the change stream and 25 % in a snapshot, and a fifth of the server's own. While this thread naps
//! nobody polls, so neither side is woken, and one read brings what has gathered.

use std::pin::pin;
use std::time::{Duration, Instant};

use pgferry_model::{Cure, Error, Result};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::error::UNREACHABLE;

/// A read that brought less than this while the connection is busy is worth a nap.
const SMALL_READ_BYTES: usize = 32 << 10;
/// How long; measured: 200 us gives up to 2.3 times the throughput on TCP, 1 ms fills the socket's buffer.
const NAP: Duration = Duration::from_micros(200);
/// Reads that follow each other within this time mean that the connection is busy.
const BUSY_WITHIN: Duration = Duration::from_millis(1);

/// A thread that serves one connection; dropping it ends the thread, and with it what still runs there.
pub struct ConnectionThread {
    handle: Handle,
    _end: oneshot::Sender<()>,
}

impl ConnectionThread {
    /// Starts it.
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refused)?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("pgferry-read".to_owned())
            .spawn(move || {
                // Never sent to: it resolves when the other end is dropped.
                let _ = runtime.block_on(ended);
            })
            .map_err(refused)?;
        Ok(ConnectionThread { handle, _end: end })
    }

    /// Opens something that this thread's runtime shall poll.
    pub async fn open<T>(&self, opening: impl Future<Output = T>) -> T {
        let mut opening = pin!(opening);
        std::future::poll_fn(|context| {
            let _entered = self.handle.enter();
            opening.as_mut().poll(context)
        })
        .await
    }

    /// Does something on this thread. It is given up when the returned future is dropped.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        let mut work = GivenUp(self.handle.spawn(work));
        match (&mut work.0).await {
            Ok(done) => Ok(done),
            Err(failure) if failure.is_panic() => std::panic::resume_unwind(failure.into_panic()),
            Err(failure) => {
                Err(Error::transient(UNREACHABLE, "the thread of a connection ended before its work")
                    .with_cure(Cure::advice("nothing: it is tried again"))
                    .with_origin(failure))
            }
        }
    }

    /// Lets something run on this thread as long as both live.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(work);
    }
}

/// Work that ends with whoever waits for it.
struct GivenUp<T>(JoinHandle<T>);

impl<T> Drop for GivenUp<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn refused(failure: std::io::Error) -> Error {
    Error::transient(UNREACHABLE, "no thread can be started to read from the server")
        .with_cause(format!("the system refuses one more thread or file: {failure}"))
        .with_cure(Cure::advice("raise the user's limits (ulimit -u, ulimit -n), or run fewer tasks at once"))
        .with_origin(failure)
}

/// When a connection's thread naps.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When the last read was, and the bytes that it brought.
    last: Option<(Instant, usize)>,
}

impl Pace {
    /// Naps where the last read says that little has come and more is coming. Blocks the thread.
    pub(crate) fn nap(&self) {
        if let Some((at, bytes)) = self.last
            && bytes < SMALL_READ_BYTES
            && at.elapsed() < BUSY_WITHIN
        {
            std::thread::sleep(NAP);
        }
    }

    /// Takes note of a read.
    pub(crate) fn note(&mut self, bytes: usize) {
        self.last = Some((Instant::now(), bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_nobody_waits_for_is_given_up_and_the_thread_goes_on() {
        let thread = ConnectionThread::start().expect("a thread");
        let (alive, given_up) = oneshot::channel::<()>();
        let forever = thread.run(async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        assert!(tokio::time::timeout(Duration::from_millis(20), forever).await.is_err());
        given_up.await.expect_err("dropped with its work");
        assert_eq!(thread.run(async { 7 }).await.expect("the thread is there"), 7);
    }

    #[tokio::test]
    async fn what_runs_ends_with_the_thread() {
        let thread = ConnectionThread::start().expect("a thread");
        let (alive, ended) = oneshot::channel::<()>();
        thread.spawn(async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        drop(thread);
        ended.await.expect_err("dropped with its thread");
    }
}
