//! Tells a server that is silent because it works from one of which nothing comes any more.
//!
//! ```text
//!   session ──silent──> a connection of its own: what does that process do?
//!                         works ──> wait on        waits for a lock ──> say for whose, wait on
//!                         waits for us, or gone ──> a last look, then: lost; the process is ended, so that it holds nothing
//! ```
//!
//! Invariants: a server that works is never given up, however long it says nothing (a sort, a filter that no row passes, a lock); a
//! session of which nothing comes is given up within `probe_after` and the time that connecting may take; a process is told by its id and
//! its start, so that no other one is taken for it.
//!
//! Why not a time limit: no limit is longer than every silence with a reason. Why not TCP's own probes alone: a proxy, a balancer or a
//! firewall answers them for a server that is gone.
//!
//! Facts: PostgreSQL docs, "The Cumulative Statistics System", `pg_stat_activity` and its wait events; `ClientRead` is a process that waits
//! for the client's next message, `ClientWrite` one whose client takes nothing. A role sees its own sessions whatever else it may see.

use std::io;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use pgferry_model::{Cure, Error, Result};

use crate::config::ConnectionConfig;
use crate::error::{LOCK_WAIT, UNREACHABLE};
use crate::session::{Purpose, ResultRow, Session, lost};

/// The longest time between two questions about one silence.
const ASK_MAX: Duration = Duration::from_secs(60);
/// An answer that was on its way while the question was asked.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Whom to ask about a session.
pub(crate) struct Liveness {
    config: ConnectionConfig,
    /// The server's process, and when it was started, as the server writes it.
    pub(crate) pid: String,
    pub(crate) started: String,
}

/// What the server says of a process.
#[derive(Debug, PartialEq, Eq)]
enum Doing {
    Works,
    /// The relation, and who holds it.
    WaitsForLock(String, String),
    WaitsForUs,
    Gone,
}

impl Liveness {
    pub(crate) fn new(config: &ConnectionConfig, pid: String, started: String) -> Liveness {
        Liveness { config: config.clone(), pid, started }
    }

    /// Waits for a read. Fails where nothing can come of it any more.
    pub(crate) async fn watch(&self, reading: impl Future<Output = io::Result<usize>>) -> Result<usize> {
        let mut reading = pin!(reading);
        let (silent_since, mut wait) = (Instant::now(), self.config.probe_after);
        loop {
            if let Ok(read) = tokio::time::timeout(wait, &mut reading).await {
                return read.map_err(lost);
            }
            let verdict = tokio::select! {
                biased;
                read = &mut reading => return read.map_err(lost),
                verdict = self.verdict(silent_since) => verdict,
            };
            if let Err(failure) = verdict {
                return match tokio::time::timeout(LAST_LOOK, &mut reading).await {
                    Ok(read) => read.map_err(lost),
                    Err(_) => {
                        self.end().await;
                        Err(failure)
                    }
                };
            }
            wait = (wait * 2).min(ASK_MAX.max(self.config.probe_after));
        }
    }

    async fn verdict(&self, silent_since: Instant) -> Result<()> {
        let silent = silent_since.elapsed();
        match self.doing().await {
            Ok(Doing::Works) => {
                tracing::debug!(
                    pid = self.pid,
                    silent_s = silent.as_secs(),
                    "the server still works on an answer"
                );
                Ok(())
            }
            Ok(Doing::WaitsForLock(what, holders)) => {
                tracing::warn!(
                    code = LOCK_WAIT.as_str(),
                    pid = self.pid,
                    waited_s = silent.as_secs(),
                    "the server waits for a lock on {what}, held by {holders}; it goes on when that transaction ends"
                );
                Ok(())
            }
            Ok(Doing::WaitsForUs) => {
                Err(silent_for(silent, "its process has answered, and nothing of that arrives"))
            }
            Ok(Doing::Gone) => Err(silent_for(silent, "its process has ended, and nobody told")),
            // Who has no free connection is there. A server that nobody reaches is not.
            Err(failure) if failure.code() == UNREACHABLE => {
                let cause = failure
                    .cause()
                    .map_or_else(|| failure.to_string(), |cause| format!("{failure}: {cause}"));
                Err(silent_for(silent, &format!("nor does it answer a new connection: {cause}"))
                    .with_origin(failure))
            }
            Err(failure) => {
                tracing::debug!(
                    code = failure.code().as_str(),
                    "a silent session was not asked about: {failure}"
                );
                Ok(())
            }
        }
    }

    async fn doing(&self) -> Result<Doing> {
        let rows = self
            .ask(format!(
                "SELECT coalesce(a.wait_event_type, ''), coalesce(a.wait_event, ''), \
                 (SELECT l.relation::pg_catalog.regclass::pg_catalog.text FROM pg_catalog.pg_locks l \
                 WHERE l.pid = a.pid AND NOT l.granted AND l.relation IS NOT NULL LIMIT 1), \
                 (SELECT pg_catalog.string_agg('process ' || b.pid || coalesce(' of role ' || b.usename, ''), ', ') \
                 FROM pg_catalog.pg_stat_activity b WHERE b.pid = ANY (pg_catalog.pg_blocking_pids(a.pid))) \
                 FROM pg_catalog.pg_stat_activity a WHERE {}",
                self.is_it("a")
            ))
            .await?;
        Ok(doing(&rows))
    }

    /// Ends the process, where the server has not noticed either: it would keep its locks, its snapshot and its slot until the server's own
    /// probes fail, two hours by default.
    async fn end(&self) {
        let sql = format!(
            "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a WHERE {}",
            self.is_it("a")
        );
        if let Err(failure) = self.ask(sql).await {
            tracing::debug!(code = failure.code().as_str(), "a session's process was not ended: {failure}");
        }
    }

    fn is_it(&self, of: &str) -> String {
        format!("{of}.pid = {} AND {of}.backend_start = '{}'", self.pid, self.started)
    }

    /// Asks on a connection of its own, which takes no longer than connecting may.
    fn ask(&self, sql: String) -> Pin<Box<dyn Future<Output = Result<Vec<ResultRow>>> + Send + '_>> {
        let asking = async move {
            let mut session = Session::connect(&self.config, Purpose::Query).await?;
            session.reader.liveness = None;
            let rows = session.simple_query(&sql).await?;
            session.close().await?;
            Ok(rows)
        };
        Box::pin(async move {
            let within = self.config.connect_timeout * 2;
            tokio::time::timeout(within, asking).await.unwrap_or_else(|_| {
                Err(Error::transient(UNREACHABLE, "a question about the session was not answered")
                    .with_cause(format!("the time was up after {} s", within.as_secs())))
            })
        })
    }
}

fn doing(rows: &[ResultRow]) -> Doing {
    let Some(row) = rows.first() else { return Doing::Gone };
    let part = |at: usize| row.get(at).and_then(Option::as_deref);
    match (part(0), part(1), part(2)) {
        (Some("Client"), Some("ClientRead" | "ClientWrite"), _) => Doing::WaitsForUs,
        // One that waits for another transaction's end makes a slot, and its maker says for whose.
        (Some("Lock"), _, Some(relation)) => {
            Doing::WaitsForLock(relation.into(), part(3).unwrap_or("another session").into())
        }
        _ => Doing::Works,
    }
}

fn silent_for(silent: Duration, why: &str) -> Error {
    let problem = format!("the connection to the server is dead: nothing came for {} s", silent.as_secs());
    Error::transient(UNREACHABLE, problem).with_cause(why).with_cure(Cure::advice(
        "it is tried again; if it stays so, see what a proxy, balancer or firewall on the way does with long connections",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(parts: [Option<&str>; 4]) -> Vec<ResultRow> {
        vec![parts.map(|part| part.map(str::to_owned)).to_vec()]
    }

    #[test]
    fn only_a_process_that_waits_for_us_or_is_gone_is_given_up() {
        assert_eq!(doing(&[]), Doing::Gone);
        assert_eq!(doing(&row([Some("Client"), Some("ClientWrite"), Some("x"), None])), Doing::WaitsForUs);
        assert_eq!(doing(&row([Some("Client"), Some("ClientRead"), Some("x"), None])), Doing::WaitsForUs);
        assert_eq!(doing(&row([Some("Client"), Some("WalSenderWaitForWAL"), Some("x"), None])), Doing::Works);
        assert_eq!(doing(&row([Some(""), Some(""), Some("x"), None])), Doing::Works);
        assert_eq!(doing(&row([Some("Lock"), Some("transactionid"), None, Some("process 1")])), Doing::Works);
        assert_eq!(
            doing(&row([Some("Lock"), Some("relation"), Some("t"), None])),
            Doing::WaitsForLock("t".into(), "another session".into())
        );
    }
}
