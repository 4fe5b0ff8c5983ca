//! Brings the frames of the stream into commit order and puts committed changes into the assembler.
//!
//! ```text
//!   B ── rows ── C ───────────────────────────────────────> assembler        (a committed transaction, as it comes)
//!   S ── rows ── E   S ── rows ── E  ...  c ── replay ─────> assembler        (in progress: waits in its spool)
//!        └──────> spool of the top-level transaction ─ A ──> dropped, or the rows of a subtransaction marked
//! ```
//!
//! ```text
//!              B                          S
//!   Open <───────── Between ─────────────────────> Block
//!     └────── C ──────> ^ <──────────── E ───────────┘
//!                       └── c ──> Replaying ── end of the spool ──> Between
//! ```
//!
//! Invariants: a row is checked to its last byte before anything of it is in the assembler; nothing of an in-progress
//! transaction is there before its commit; descriptions of tables inside a streamed transaction count from its commit on;
//! positions come from commits only, never from rows or logical messages. A transaction that the assembler does not want, and
//! a row of a table that is not the task's, cost a look-up and no more.
//!
//! Why one replay at a time, in pieces: a transaction can be larger than memory; the assembler says when it is full.
//!
//! Order of calls: [`Transactions::frame`] for each frame; after [`Flow::SchemaChanged`] the answer to
//! [`RelationCache::question`]; while [`Transactions::pending`], the answer to [`Transactions::in_doubt`], then
//! [`Transactions::resume`], instead of the next frame.
//!
//! Why the doubt: a server does not send the A of a subtransaction whose changes it had to write to its disk before it could
//! stream them, where those were more than it reads back at once (4,096: a value of 8 MB), because it then does not count it as
//! streamed (14 to at least 18; `ReorderBufferTruncateTXN` in `src/backend/replication/logical/reorderbuffer.c`).
//!
//! Limits: two-phase messages are refused, as they are never asked for: without that option a prepared transaction comes as
//! an ordinary one when it is committed. Streaming: servers 14 and later.

use bytes::Bytes;
use pgferry_model::{APART_BYTES_MIN, Code, Cure, Error, Position, Result, TableId};
use pgferry_pipeline::{Assembler, TransactionStart};

use super::project::write_row;
use super::spool::{Replay, SpoolSettings, Spools};
use crate::decode::pgoutput::{Commit, Message, RowMessage, TruncateMessage, decode};
use crate::decode::protocol_error;
use crate::decode::relation_cache::{Known, RelationCache};

/// A partition was emptied, and with it only a part of the table that the task carries its rows into.
///
/// Of class `TableBroken`: emptying the whole target table would lose rows, doing nothing would keep some too many.
pub const PARTITION_TRUNCATED: Code = Code::new("source.partition_truncated");

/// Records that one call of [`Transactions::resume`] replays at most, so that the caller gets to its other duties.
const REPLAY_RECORDS_MAX: u32 = 16_384;

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Goes on: with [`Transactions::resume`] while [`Transactions::pending`], else with the next frame.
    Continue,
    /// Stops filling: the assembler is full or a cut is due.
    Stop,
    /// Answers [`RelationCache::question`], then goes on.
    SchemaChanged,
}

/// What was done since the start; not reset by [`Transactions::reset`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Transactions that were committed, wanted or not.
    pub transactions: u64,
    /// Those of them that were streamed while in progress.
    pub streamed: u64,
    /// Transactions that were not wanted: delivered before.
    pub unwanted: u64,
    /// Streamed transactions that were rolled back as a whole.
    pub rolled_back: u64,
    /// Transactions that came from elsewhere (with an origin).
    pub with_origin: u64,
    /// Changes that were put into the assembler.
    pub changes: u64,
    /// Bytes of frames that were spooled, in memory or on disk.
    pub spooled_bytes: u64,
}

#[derive(Debug)]
enum State {
    Between,
    Open { commit_lsn: u64, wanted: bool },
    Block { xid: u32 },
    Replaying(Box<Replaying>),
}

#[derive(Debug)]
struct Replaying {
    replay: Replay,
    end: Position,
    wanted: bool,
    in_doubt: Vec<u32>,
}

/// The stream's transactions.
pub struct Transactions {
    relations: RelationCache,
    spools: Spools,
    spool_settings: SpoolSettings,
    state: State,
    statistics: Statistics,
}

impl Transactions {
    /// For the tables that the cache knows.
    pub fn new(relations: RelationCache, spool: SpoolSettings) -> Self {
        Transactions {
            relations,
            spools: Spools::new(spool.clone()),
            spool_settings: spool,
            state: State::Between,
            statistics: Statistics::default(),
        }
    }

    /// Takes one frame: the payload of a `w` message after its 25-byte header. It is taken whole whatever the flow is, never
    /// to be given again.
    ///
    /// Errors: `source.protocol`, `source.spool_failed`, `source.partition_truncated`.
    #[inline]
    pub fn frame(&mut self, payload: &[u8], assembler: &mut Assembler) -> Result<Flow> {
        match &self.state {
            State::Open { wanted: false, .. }
                if matches!(payload.first(), Some(b'I' | b'U' | b'D' | b'T')) =>
            {
                Ok(Flow::Continue)
            }
            State::Open { .. } => match decode(payload, false)?.message {
                Message::Row(row) => self.row(&row, assembler),
                other => self.message(other, assembler),
            },
            State::Block { xid } => {
                let top = *xid;
                self.block_frame(top, payload)
            }
            State::Between => self.message(decode(payload, false)?.message, assembler),
            State::Replaying(_) => {
                Err(protocol_error("a frame was given while a transaction is being replayed"))
            }
        }
    }

    /// The same of a large frame, in whose memory its large values stay.
    pub fn large_frame(&mut self, payload: &Bytes, assembler: &mut Assembler) -> Result<Flow> {
        assembler.lend(Some(payload.clone()));
        let taken = self.frame(payload, assembler);
        assembler.lend(None);
        taken
    }

    /// Goes on with the transaction that is being replayed, a limited number of changes.
    pub fn resume(&mut self, assembler: &mut Assembler) -> Result<Flow> {
        if self.asked() == Flow::SchemaChanged {
            return Ok(Flow::SchemaChanged);
        }
        if !self.in_doubt().is_empty() {
            return Err(protocol_error(
                "a transaction was to be replayed of which it is not known what counts",
            ));
        }
        let State::Replaying(mut replaying) = std::mem::replace(&mut self.state, State::Between) else {
            return Ok(Flow::Continue);
        };
        match self.replay(&mut replaying, assembler) {
            Ok(Some(flow)) => {
                self.state = State::Replaying(replaying);
                Ok(flow)
            }
            Ok(None) => {
                let Replaying { replay, end, .. } = *replaying;
                self.spools.release(replay.into_spool());
                Ok(self.committed(end, assembler))
            }
            Err(error) => {
                // The record that failed is behind; where one table's trouble is set aside, the others go on.
                self.state = State::Replaying(replaying);
                Err(error)
            }
        }
    }

    /// Whether a transaction is being replayed: [`Transactions::resume`] comes before the next frame.
    pub fn pending(&self) -> bool {
        matches!(self.state, State::Replaying(_))
    }

    /// Subtransactions of the one that is to be replayed that may have been rolled back: the server knows.
    pub fn in_doubt(&self) -> &[u32] {
        match &self.state {
            State::Replaying(replaying) => &replaying.in_doubt,
            _ => &[],
        }
    }

    /// The answer for the last `count` of [`Transactions::in_doubt`]: those that were rolled back.
    pub fn settle(&mut self, count: usize, rolled_back: &[u32]) {
        if let State::Replaying(replaying) = &mut self.state {
            replaying.in_doubt.truncate(replaying.in_doubt.len().saturating_sub(count));
            replaying.replay.leave_out(rolled_back);
        }
    }

    /// Whether a transaction is open in the assembler: what comes between is no idle position.
    pub fn in_transaction(&self) -> bool {
        matches!(self.state, State::Open { .. } | State::Replaying(_))
    }

    /// Whether what comes next goes on with something: a transaction, or a part of one that is not committed yet.
    pub fn amid(&self) -> bool {
        !matches!(self.state, State::Between)
    }

    /// The tables and their columns, and the questions about them.
    pub fn relations(&mut self) -> &mut RelationCache {
        &mut self.relations
    }

    /// What was done since the start.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// The transactions in progress and where their changes are kept.
    pub fn spools(&self) -> &Spools {
        &self.spools
    }

    /// After a reconnect: the server sends everything from the confirmed position again, descriptions included.
    ///
    /// What a transaction that was cut off has put into the assembler is the caller's to undo.
    pub fn reset(&mut self) {
        if let State::Replaying(replaying) = std::mem::replace(&mut self.state, State::Between) {
            self.spools.release(replaying.replay.into_spool());
        }
        self.spools.clear();
        self.relations.reset();
    }

    #[inline]
    fn row(&mut self, row: &RowMessage<'_>, assembler: &mut Assembler) -> Result<Flow> {
        match self.relations.get(row.oid) {
            Some(Known::Bound(binding)) => {
                self.statistics.changes += u64::from(write_row(row, binding, assembler)?);
                Ok(if assembler.full() { Flow::Stop } else { Flow::Continue })
            }
            Some(Known::Skipped) => Ok(Flow::Continue),
            Some(Known::Undecided) => Err(protocol_error(format!(
                "a row of relation {} came before it was decided what becomes of its changed columns",
                row.oid
            ))),
            None => Err(protocol_error(format!("a row of relation {}, which was never described", row.oid))),
        }
    }

    /// A message other than a row, outside of stream blocks.
    fn message(&mut self, message: Message<'_>, assembler: &mut Assembler) -> Result<Flow> {
        let open = matches!(self.state, State::Open { .. });
        match message {
            Message::Begin { final_lsn, committed_at_us, xid } if !open => {
                let commit_record = Position::from_lsn(final_lsn);
                let wanted = assembler.begin(TransactionStart { xid, commit_record, committed_at_us });
                self.state = State::Open { commit_lsn: final_lsn, wanted };
                self.statistics.unwanted += u64::from(!wanted);
                Ok(self.asked())
            }
            Message::Commit(commit) if open => self.commit(commit, assembler),
            Message::Relation(relation) => {
                self.relations.describe(&relation);
                Ok(self.asked())
            }
            Message::Truncate(truncate) if open => self.truncate(&truncate, assembler),
            Message::Origin { .. } if open => {
                self.statistics.with_origin += 1;
                Ok(Flow::Continue)
            }
            Message::Logical { transactional, .. } if !transactional || open => Ok(Flow::Continue),
            Message::Type { .. } => Ok(Flow::Continue),
            Message::StreamStart { xid, first } if !open => self.stream_start(xid, first),
            Message::StreamCommit { xid, commit } if !open => self.stream_commit(xid, commit, assembler),
            Message::StreamAbort { xid, subxid, .. } if !open => {
                self.stream_abort(xid, subxid);
                Ok(Flow::Continue)
            }
            other => {
                Err(unexpected(&other, if open { "inside a transaction" } else { "between transactions" }))
            }
        }
    }

    /// Questions matter only where rows follow: descriptions in a transaction that is not wanted may be old. Those stay open
    /// and are asked at the next transaction that is wanted.
    fn asked(&self) -> Flow {
        let wanted = match &self.state {
            State::Open { wanted, .. } => *wanted,
            State::Replaying(replaying) => replaying.wanted,
            State::Between | State::Block { .. } => false,
        };
        if wanted && self.relations.question().is_some() { Flow::SchemaChanged } else { Flow::Continue }
    }

    fn commit(&mut self, commit: Commit, assembler: &mut Assembler) -> Result<Flow> {
        if let State::Open { commit_lsn, .. } = self.state
            && commit_lsn != commit.commit_lsn
        {
            return Err(protocol_error("a commit is not that of the transaction that began"));
        }
        self.state = State::Between;
        Ok(self.committed(Position::from_lsn(commit.end_lsn), assembler))
    }

    fn committed(&mut self, end: Position, assembler: &mut Assembler) -> Flow {
        self.statistics.transactions += 1;
        if assembler.commit(end) || assembler.full() { Flow::Stop } else { Flow::Continue }
    }

    fn truncate(&mut self, truncate: &TruncateMessage<'_>, assembler: &mut Assembler) -> Result<Flow> {
        let mut emptied: Vec<TableId> = Vec::new();
        let mut leaves: Vec<TableId> = Vec::new();
        for oid in truncate.oids() {
            match self.relations.get(oid) {
                Some(Known::Bound(binding)) if binding.leaf => leaves.push(binding.table),
                Some(Known::Bound(binding)) => emptied.push(binding.table),
                Some(Known::Skipped) => {}
                Some(Known::Undecided) | None => {
                    return Err(protocol_error(format!("relation {oid} is emptied but was never described")));
                }
            }
        }
        let mut in_part = None;
        leaves.sort_unstable();
        for of_one in leaves.chunk_by(|a, b| a == b) {
            let table = of_one[0];
            if of_one.len() < self.relations.leaves_of(table) {
                in_part = Some(table);
            } else {
                emptied.push(table);
            }
        }
        self.statistics.changes += emptied.len() as u64;
        assembler.truncate(&emptied);
        // A table that takes no changes of this transaction has no trouble with them either.
        if let Some(table) = in_part.filter(|&table| assembler.takes(table)) {
            return Err(partition_truncated(table, assembler));
        }
        Ok(if assembler.full() { Flow::Stop } else { Flow::Continue })
    }

    /// Replays until the assembler is full, a question opens or enough is done for one call; `None`: to the end.
    fn replay(&mut self, replaying: &mut Replaying, assembler: &mut Assembler) -> Result<Option<Flow>> {
        for _ in 0..REPLAY_RECORDS_MAX {
            if assembler.full() {
                return Ok(Some(Flow::Stop));
            }
            let Some(record) = replaying.replay.next_frame()? else { return Ok(None) };
            let flow = if record.len() < APART_BYTES_MIN {
                self.record(record, replaying.wanted, assembler)?
            } else {
                let record = replaying.replay.take_frame();
                assembler.lend(Some(record.clone()));
                let flow = self.record(&record, replaying.wanted, assembler);
                assembler.lend(None);
                flow?
            };
            if flow == Flow::SchemaChanged {
                return Ok(Some(flow));
            }
        }
        Ok(Some(Flow::Continue))
    }

    #[inline]
    fn record(&mut self, record: &[u8], wanted: bool, assembler: &mut Assembler) -> Result<Flow> {
        match decode(record, true)?.message {
            Message::Relation(relation) => {
                self.relations.describe(&relation);
                let asked = wanted && self.relations.question().is_some();
                Ok(if asked { Flow::SchemaChanged } else { Flow::Continue })
            }
            _ if !wanted => Ok(Flow::Continue),
            Message::Row(row) => self.row(&row, assembler),
            Message::Truncate(truncate) => self.truncate(&truncate, assembler),
            other => Err(unexpected(&other, "in a spool")),
        }
    }

    fn stream_start(&mut self, xid: u32, first: bool) -> Result<Flow> {
        if first {
            self.spools.start(xid);
        } else if !self.spools.contains(xid) {
            return Err(protocol_error("a later part of a streamed transaction came without its first part"));
        }
        self.state = State::Block { xid };
        Ok(Flow::Continue)
    }

    fn stream_abort(&mut self, xid: u32, subxid: u32) {
        if xid == subxid {
            self.statistics.rolled_back += u64::from(self.spools.contains(xid));
            self.spools.drop_spool(xid);
        } else if let Some(spool) = self.spools.get_mut(xid) {
            spool.abort(subxid);
        }
    }

    fn stream_commit(&mut self, xid: u32, commit: Commit, assembler: &mut Assembler) -> Result<Flow> {
        let Some(spool) = self.spools.take(xid) else {
            return Err(protocol_error("a streamed transaction is committed of which nothing came before"));
        };
        self.statistics.streamed += 1;
        let commit_record = Position::from_lsn(commit.commit_lsn);
        let start = TransactionStart { xid, commit_record, committed_at_us: commit.committed_at_us };
        let end = Position::from_lsn(commit.end_lsn);
        let wanted = assembler.begin(start);
        self.statistics.unwanted += u64::from(!wanted);
        // Of one that is not wanted the descriptions still count: the server does not repeat them.
        let in_doubt = if wanted { spool.in_doubt() } else { Vec::new() };
        let certain = in_doubt.is_empty();
        let replay = Replay::new(spool, &self.spool_settings)?;
        self.state = State::Replaying(Box::new(Replaying { replay, end, wanted, in_doubt }));
        if certain { self.resume(assembler) } else { Ok(Flow::Continue) }
    }

    /// A frame of a stream block: into the spool, except what no replay needs.
    fn block_frame(&mut self, top: u32, payload: &[u8]) -> Result<Flow> {
        let decoded = decode(payload, true)?;
        let Some(spool) = self.spools.get_mut(top) else {
            return Err(protocol_error("a stream block is open without its transaction"));
        };
        match decoded.message {
            Message::Row(row) if spool.skips(row.oid) => return Ok(Flow::Continue),
            Message::Row(_) | Message::Truncate(_) if decoded.xid == top => {}
            Message::Row(_) | Message::Truncate(_) => spool.keeps(decoded.xid),
            Message::Relation(relation) => {
                spool.skip_relation(relation.oid, !self.relations.wants(&relation));
            }
            Message::Type { .. } | Message::Logical { .. } => return Ok(Flow::Continue),
            Message::Origin { .. } => {
                self.statistics.with_origin += 1;
                return Ok(Flow::Continue);
            }
            Message::StreamStop => {
                self.state = State::Between;
                return Ok(Flow::Continue);
            }
            other => return Err(unexpected(&other, "inside a stream block")),
        }
        self.statistics.spooled_bytes += payload.len() as u64;
        self.spools.append(top, payload)?;
        Ok(Flow::Continue)
    }
}

#[cold]
fn partition_truncated(table: TableId, assembler: &Assembler) -> Error {
    let advice = Cure::advice(
        "copy the table again; or let its publication send changes under the partitioned table's own name \
         (publish_via_partition_root), which leaves truncated partitions out",
    );
    let error = Error::task_broken(PARTITION_TRUNCATED, "a partition was truncated, but not the whole table")
        .with_cause("the rows of all partitions go to one table in the target, which cannot tell them apart")
        .with_cure(advice.clone());
    match assembler.table(table) {
        Some(table) => error
            .with_class(pgferry_model::Class::TableBroken)
            .with_table(table.name.clone())
            .with_cure(advice.resync_table(&table.name)),
        None => error,
    }
}

#[cold]
fn unexpected(message: &Message<'_>, place: &str) -> Error {
    let name = match message {
        Message::Begin { .. } => "a begin",
        Message::Commit(_) => "a commit",
        Message::Origin { .. } => "an origin",
        Message::Relation(_) => "a table's description",
        Message::Type { .. } => "a type's description",
        Message::Row(_) => "a row",
        Message::Truncate(_) => "a truncate",
        Message::Logical { .. } => "a logical message",
        Message::StreamStart { .. } => "the start of a stream block",
        Message::StreamStop => "the end of a stream block",
        Message::StreamCommit { .. } => "the commit of a streamed transaction",
        Message::StreamAbort { .. } => "the rollback of a streamed transaction",
        Message::BeginPrepare(_)
        | Message::Prepare(_)
        | Message::CommitPrepared(_)
        | Message::RollbackPrepared(_)
        | Message::StreamPrepare(_) => "a two-phase message, which was not asked for,",
    };
    protocol_error(format!("{name} came {place}"))
}

#[cfg(test)]
#[path = "transaction_tests.rs"]
mod tests;
