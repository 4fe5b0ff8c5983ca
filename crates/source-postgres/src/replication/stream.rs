//! The change stream: frames off the replication connection, into the assembler.
//!
//! ```text
//!   socket ──read ahead──> pieces ──frames──> transactions ──rows──> Assembler
//!                                    └── keepalives ──> feedback
//! ```
//!
//! Invariants: `fill` is cancel-safe, it awaits nothing but the read and the catalog's word on an unknown relation; every frame
//! at hand is taken before the next read; an idle position is given to the assembler only between transactions.
//!
//! Reading, on a thread of its own, is in `pgferry_postgres::ReadAhead`: one piece brings hundreds of messages.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pgferry_model::{Cure, Error, Position, Result, TableId};
use pgferry_pipeline::{Assembler, ChangeStream, Filled, failpoint};
use pgferry_postgres::ReadAhead;

use super::feedback::Feedback;
use super::transaction::{Flow, Transactions};
use super::watch::Watch;
use crate::control::PostgresControl;
use crate::decode::protocol_error;
use crate::decode::relation_cache::Question;
use crate::error;
use crate::refused;

/// How long the server may take to end its side.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);
const DATA_HEADER_BYTES: usize = 25;
const KEEPALIVE_BYTES: usize = 18;

/// Subtransactions that one question names.
const SUBTRANSACTIONS_MAX: usize = 10_000;
/// How often it is asked whether others see a commit already.
const COMMIT_POLL: Duration = Duration::from_millis(20);
/// The shortest and the longest silence after which it is asked whether the other side still lives.
const SILENCE_MIN: Duration = Duration::from_secs(2);
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// What the stream needs besides its connection: whom to ask, and what to notice.
pub(crate) struct Surroundings {
    pub(crate) control: Arc<PostgresControl>,
    pub(crate) watch: Watch,
    /// The tables by the OIDs of their relations, for partitions that come later.
    pub(crate) roots: HashMap<u32, TableId>,
    /// The server's process at the other end.
    pub(crate) walsender: i32,
    /// The server's `wal_sender_timeout`; zero: it has none.
    pub(crate) timeout: Duration,
    /// The connection's `probe_after`.
    pub(crate) probe_after: Duration,
}

impl Surroundings {
    /// How long nothing may come before it is asked whether the other side still works.
    pub(crate) fn silence_max(&self) -> Duration {
        let of_server = if self.timeout.is_zero() { SILENCE_MAX } else { self.timeout * 3 / 4 };
        of_server.clamp(SILENCE_MIN, SILENCE_MAX).min(self.probe_after)
    }
}

/// An open stream.
pub(crate) struct PostgresStream {
    reader: ReadAhead,
    feedback: Feedback,
    transactions: Transactions,
    surroundings: Surroundings,
    after: Position,
    source_end: Position,
    /// An unknown relation has to be placed before anything more is taken; the transaction that speaks of it.
    unknown: Option<u32>,
}

impl PostgresStream {
    pub(crate) fn new(
        reader: ReadAhead,
        feedback: Feedback,
        transactions: Transactions,
        surroundings: Surroundings,
        after: Position,
        source_end: Position,
    ) -> Self {
        PostgresStream { reader, feedback, transactions, surroundings, after, source_end, unknown: None }
    }

    /// Takes every complete frame at hand. `None`: all taken.
    fn drain(&mut self, assembler: &mut Assembler) -> Result<Option<Filled>> {
        if let Some(filled) = self.replay(assembler)? {
            return Ok(Some(filled));
        }
        while let Some(frame) = self.reader.peek_frame()? {
            let large = frame.is_large();
            match frame.tag {
                b'd' => match replicated(frame.body)? {
                    Replicated::Data(data) => {
                        // Taken, whatever comes of it: a table's trouble must not come again with the same frame.
                        let taken = if large {
                            let data = self.reader.take_frame().slice(DATA_HEADER_BYTES..);
                            self.transactions.large_frame(&data, assembler)
                        } else {
                            let taken = self.transactions.frame(data, assembler);
                            self.reader.consume_frame();
                            taken
                        };
                        if self.stops(taken?, assembler) {
                            return Ok(Some(Filled::Stopped));
                        }
                        if let Some(filled) = self.replay(assembler)? {
                            return Ok(Some(filled));
                        }
                        continue;
                    }
                    Replicated::Keepalive { end, reply_wanted } => {
                        self.source_end = self.source_end.max(end);
                        // Before 14 the server tells of its next position only after it has heard of this one.
                        if self.feedback.received(end) || reply_wanted {
                            self.feedback.reply_now();
                        }
                        if !self.transactions.in_transaction() {
                            assembler.idle(end);
                        }
                    }
                },
                b'c' | b'C' | b'Z' => return Err(ended()),
                b'E' => {
                    let failure = self.reader.server_error(frame.body, "the change stream");
                    return Err(refused::streaming(
                        failure,
                        &self.surroundings.control.config.replication,
                        self.after,
                    ));
                }
                b'N' => {
                    if let Some(failure) =
                        refused::warned(frame.body, &self.surroundings.control.config.replication)
                    {
                        return Err(failure);
                    }
                }
                _ => {}
            }
            self.reader.consume_frame();
        }
        Ok(None)
    }

    /// Goes on with a transaction that is being replayed, one piece at a time, so that the caller gets to its other duties.
    fn replay(&mut self, assembler: &mut Assembler) -> Result<Option<Filled>> {
        if !self.transactions.pending() {
            return Ok(None);
        }
        if !self.transactions.in_doubt().is_empty() {
            // The next fill asks.
            return Ok(Some(Filled::Stopped));
        }
        let flow = self.transactions.resume(assembler)?;
        failpoint::pass("source.spool_replayed");
        let stops = self.stops(flow, assembler) || self.transactions.pending();
        Ok(stops.then_some(Filled::Stopped))
    }

    /// Whether filling stops. A table whose columns changed is skipped from here on; the engine is told its new columns.
    fn stops(&mut self, flow: Flow, assembler: &mut Assembler) -> bool {
        if flow != Flow::SchemaChanged {
            return flow == Flow::Stop;
        }
        while let Some(question) = self.transactions.relations().question().cloned() {
            match question {
                // The catalog knows, and asking it takes a wait: the next fill begins with it.
                Question::Unknown(_) => {
                    self.unknown = assembler.transaction().map(|transaction| transaction.xid);
                    return true;
                }
                // Older than the table's copy, or of one that is set aside: its rows are skipped whatever their columns are.
                Question::Changed(diff) if !assembler.takes(diff.table) => {
                    self.transactions.relations().tolerate(diff.table);
                }
                Question::Changed(diff) => {
                    self.transactions.relations().set_aside(diff.table);
                    if let Some(table) = assembler.table(diff.table) {
                        assembler.schema_changed(Arc::clone(table));
                    }
                }
            }
        }
        assembler.stop()
    }

    /// Asks the catalog what an unknown relation is: a partition, made since the start, of a table of the task, or none of its business.
    /// Cancel-safe: the question stays open until it is answered.
    ///
    /// A commit is sent as soon as it is in the log, a moment before others see it; where it waits for a synchronous standby, long before.
    /// The catalog is asked when the transaction has given its own lock back: then what it made is seen.
    async fn place_unknown(&mut self, xid: u32) -> Result<()> {
        let ending = format!(
            "SELECT FROM pg_catalog.pg_locks l WHERE l.locktype = 'transactionid' AND l.granted \
             AND l.transactionid::pg_catalog.text = '{xid}' LIMIT 1"
        );
        while !self.surroundings.control.ask(&ending).await?.is_empty() {
            tokio::time::sleep(COMMIT_POLL).await;
        }
        let mut asked = false;
        while let Some(Question::Unknown(described)) = self.transactions.relations().question() {
            let oid = described.oid;
            let rows = self
                .surroundings
                .control
                .ask(&format!(
                    "WITH RECURSIVE up(oid) AS (SELECT {oid}::pg_catalog.oid UNION ALL SELECT i.inhparent FROM up \
                     JOIN pg_catalog.pg_inherits i ON i.inhrelid = up.oid \
                     JOIN pg_catalog.pg_class c ON c.oid = i.inhparent AND c.relkind = 'p') SELECT oid FROM up"
                ))
                .await?;
            asked = true;
            let parents = rows.iter().filter_map(|row| row.first()?.as_deref()?.parse::<u32>().ok());
            let root = parents.filter_map(|parent| self.surroundings.roots.get(&parent)).next().copied();
            match root {
                Some(table) => self.transactions.relations().map_leaf(oid, table),
                None => self.transactions.relations().ignore(oid),
            }
        }
        if asked {
            self.surroundings.control.release().await;
        }
        Ok(())
    }

    /// Asks which parts of a streamed transaction were rolled back. Cancel-safe: what is not answered stays open.
    ///
    /// A transaction that is committed but not yet gone is in progress, with all that counts of it; of one whose status is
    /// forgotten (its log was read more than `autovacuum_freeze_max_age` transactions late) everything counts.
    async fn settle_doubt(&mut self) -> Result<()> {
        while !self.transactions.in_doubt().is_empty() {
            let asked: Vec<u32> =
                self.transactions.in_doubt().iter().rev().take(SUBTRANSACTIONS_MAX).copied().collect();
            let ids: Vec<String> = asked.iter().map(u32::to_string).collect();
            // The stream has the lower half of an id only: the nearest whole one to the newest.
            let rows = self
                .surroundings
                .control
                .ask(&format!(
                    "WITH newest(id) AS (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint) \
                     SELECT s.id FROM newest, unnest('{{{}}}'::bigint[]) s(id) WHERE pg_xact_status((newest.id - 2147483648 + \
                     (s.id - (newest.id & 4294967295) + 6442450944) % 4294967296)::text::xid8) = 'aborted'",
                    ids.join(",")
                ))
                .await?;
            let rolled_back: Vec<u32> =
                rows.iter().filter_map(|row| row.first()?.as_deref()?.parse().ok()).collect();
            self.transactions.settle(asked.len(), &rolled_back);
        }
        self.surroundings.control.release().await;
        Ok(())
    }

    /// Reads what comes. Feedback asks for an answer every few seconds, so silence has a reason: the server decodes something large that is
    /// none of ours, or the connection is dead and nobody told. The server knows which: its process works, or it waits. Cancel-safe.
    async fn read(&mut self) -> Result<usize> {
        let silence_max = self.surroundings.silence_max();
        loop {
            let read = tokio::select! {
                read = tokio::time::timeout(silence_max, self.reader.read_some()) => read,
                trouble = self.surroundings.watch.next() => return Err(trouble),
            };
            match read {
                Ok(read) => return read,
                Err(_) => {
                    let slot = &self.surroundings.control.config.replication.slot;
                    let works =
                        super::slot::works_for(&self.surroundings.control, slot, self.surroundings.walsender)
                            .await?;
                    self.surroundings.control.release().await;
                    if !works {
                        return Err(silent(silence_max));
                    }
                }
            }
        }
    }
}

#[async_trait]
impl ChangeStream for PostgresStream {
    async fn fill(&mut self, assembler: &mut Assembler) -> Result<Filled> {
        let asked = self.unknown.is_some() || !self.transactions.in_doubt().is_empty();
        if let Some(xid) = self.unknown {
            self.place_unknown(xid).await?;
            self.unknown = None;
            if self.stops(Flow::SchemaChanged, assembler) {
                return Ok(Filled::Stopped);
            }
        }
        if !self.transactions.in_doubt().is_empty() {
            self.settle_doubt().await?;
        }
        if let Some(filled) = self.drain(assembler)? {
            if self.transactions.pending() {
                // A long replay lets others have their turn.
                tokio::task::yield_now().await;
            }
            return Ok(filled);
        }
        if asked {
            // What was taken after the answer is due before the next wait.
            return Ok(Filled::Drained);
        }
        if self.transactions.amid() {
            failpoint::pass("source.mid_transaction");
        }
        if let Some(trouble) = self.surroundings.watch.take() {
            return Err(trouble);
        }
        if self.feedback.ended() {
            return Err(ended());
        }
        if self.read().await? == 0 {
            return Err(ended());
        }
        Ok(self.drain(assembler)?.unwrap_or(Filled::Drained))
    }

    fn confirm(&mut self, durable: Position) {
        self.feedback.confirm(durable);
    }

    fn source_end(&self) -> Position {
        self.source_end
    }

    async fn close(self: Box<Self>) -> Result<()> {
        let mut this = *self;
        let said = this.feedback.close().await;
        // The server lets go of the slot before it closes the connection: the next start must find it free.
        let gone = async { while this.reader.read_some().await.is_ok_and(|bytes| bytes > 0) {} };
        if tokio::time::timeout(RELEASE_WITHIN, gone).await.is_err() {
            tracing::warn!("the server has not closed the replication connection yet");
        }
        said
    }
}

/// A message of the change stream, within CopyData.
pub(crate) enum Replicated<'a> {
    /// One of pgoutput's.
    Data(&'a [u8]),
    /// The server's end of log, and whether it wants an answer.
    Keepalive { end: Position, reply_wanted: bool },
}

/// Tells the messages apart (PostgreSQL docs, "Streaming Replication Protocol").
pub(crate) fn replicated(body: &[u8]) -> Result<Replicated<'_>> {
    match body.first() {
        Some(b'w') => match body.get(DATA_HEADER_BYTES..) {
            Some(data) => Ok(Replicated::Data(data)),
            None => Err(malformed("a short data header")),
        },
        Some(b'k') => match (body.get(1..).and_then(<[u8]>::first_chunk), body.get(KEEPALIVE_BYTES - 1)) {
            (Some(&end), Some(&reply)) => Ok(Replicated::Keepalive {
                end: Position::from_lsn(u64::from_be_bytes(end)),
                reply_wanted: reply == 1,
            }),
            _ => Err(malformed("a short keepalive")),
        },
        _ => Err(malformed("an unknown replication message")),
    }
}

fn ended() -> Error {
    Error::transient(error::STREAM_ENDED, "the server ended the change stream")
        .with_cause("it was restarted, or the session was ended by a person, a timeout or the network")
        .with_cure(Cure::advice("nothing: the task connects again and goes on where the target stands"))
}

fn silent(silence: Duration) -> Error {
    Error::transient(
        error::STREAM_ENDED,
        format!("the change stream is dead: nothing came for {:.1} s", silence.as_secs_f32()),
    )
    .with_cause(
        "the server's process waits or has ended, and its answers do not arrive: the way between is cut",
    )
    .with_cure(Cure::advice("nothing: the task connects again and goes on where the target stands"))
}

fn malformed(what: &str) -> Error {
    protocol_error(format!("the replication stream is malformed: {what}"))
}
