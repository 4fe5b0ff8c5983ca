//! Decodes one message of the plugin pgoutput, protocol versions 1 to 4, text and binary cells.
//!
//! ```text
//!   'I' [xid] oid 'N' n (kind len bytes)*   ──>  Message::Row { oid, op, ... }  ── tuples() ──>  old and new cells
//!       └ inside a stream block only
//! ```
//!
//! Invariants: messages borrow from the frame and nothing is copied; a row's tuples are not looked at before
//! [`RowMessage::tuples`] is called, and are checked to their last byte before it returns, so that no caller ever stops in
//! the middle of a row; a frame with bytes left over is malformed.
//!
//! Why not decode tuples at once: rows of tables that a task does not carry must cost next to nothing.
//!
//! Layouts: PostgreSQL docs, chapter "Logical Replication Message Formats"; `src/backend/replication/logical/proto.c`.
//! Limits: servers 10 (version 1), 14 (2), 15 (3), 16 (4). Names are UTF-8: the session pins `client_encoding`.

use pgferry_model::{Cell, Error, Op, Result, VALUE_BYTES_MAX};

use super::protocol_error;

/// Microseconds from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
const EPOCH_SHIFT_US: i64 = 946_684_800_000_000;

/// A message with the transaction that made it.
#[derive(Clone, Copy, Debug)]
pub struct Decoded<'a> {
    /// Inside a stream block the (sub)transaction's id of R, Y, I, U, D, T and M; else 0.
    pub xid: u32,
    /// The message.
    pub message: Message<'a>,
}

/// A commit: of a transaction (C) or of a streamed one (c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Where its commit record begins.
    pub commit_lsn: u64,
    /// Where its commit record ends: the position to go on from.
    pub end_lsn: u64,
    /// When it was committed, in microseconds since 1970-01-01 UTC.
    pub committed_at_us: i64,
}

/// A message of two-phase commit (b, P, K, p); times in microseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwoPhase<'a> {
    /// Where the prepare (or commit) record begins.
    pub lsn: u64,
    /// Where it ends.
    pub end_lsn: u64,
    /// When.
    pub at_us: i64,
    /// The transaction's id.
    pub xid: u32,
    /// The user's name for the prepared transaction.
    pub gid: &'a str,
}

/// One message.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// B: a committed transaction begins.
    Begin {
        /// Where its commit record begins; the same as in its C.
        final_lsn: u64,
        /// When it was committed, in microseconds since 1970-01-01 UTC.
        committed_at_us: i64,
        /// Its id.
        xid: u32,
    },
    /// C: it ends.
    Commit(Commit),
    /// O: the transaction came from elsewhere; after B or S.
    Origin {
        /// Its commit's LSN there.
        lsn: u64,
        /// The origin's name.
        name: &'a str,
    },
    /// R: a table's name, identity and columns, before its first row and after changes.
    Relation(RelationMessage<'a>),
    /// Y: a type that is not built in, before the R that uses it.
    Type {
        /// The type's OID.
        oid: u32,
        /// Its schema; empty for `pg_catalog`.
        schema: &'a str,
        /// Its name; of a domain, the base type's.
        name: &'a str,
    },
    /// I, U, D: a row.
    Row(RowMessage<'a>),
    /// T: tables are emptied (servers 11 and later).
    Truncate(TruncateMessage<'a>),
    /// M: `pg_logical_emit_message` (servers 14 and later, where asked for).
    Logical {
        /// Whether it belongs to a transaction; else it stands outside of any and comes also when that rolls back.
        transactional: bool,
        /// Where it is in the log.
        lsn: u64,
        /// The user's prefix.
        prefix: &'a str,
        /// The user's bytes.
        content: &'a [u8],
    },
    /// S: a block of an in-progress transaction begins.
    StreamStart {
        /// The top-level transaction.
        xid: u32,
        /// Whether it is its first block.
        first: bool,
    },
    /// E: the block ends.
    StreamStop,
    /// c: a streamed transaction is committed.
    StreamCommit {
        /// The top-level transaction.
        xid: u32,
        /// Where and when.
        commit: Commit,
    },
    /// A: a streamed transaction or a part of it is rolled back.
    StreamAbort {
        /// The top-level transaction.
        xid: u32,
        /// What is rolled back; the same as `xid`: all of it.
        subxid: u32,
        /// Where and when (microseconds since 1970-01-01 UTC); with `streaming 'parallel'` only.
        abort: Option<(u64, i64)>,
    },
    /// b: a prepared transaction begins.
    BeginPrepare(TwoPhase<'a>),
    /// P: it is prepared.
    Prepare(TwoPhase<'a>),
    /// K: it is committed.
    CommitPrepared(TwoPhase<'a>),
    /// r: it is rolled back; `lsn` is the end of its prepare, `at_us` the time of the rollback.
    RollbackPrepared(TwoPhase<'a>),
    /// p: a streamed transaction is prepared.
    StreamPrepare(TwoPhase<'a>),
}

/// Reads a frame from left to right.
#[derive(Clone, Copy)]
struct Reader<'a> {
    frame: &'a [u8],
    at: usize,
}

#[cold]
#[inline(never)]
fn malformed(frame: &[u8], at: usize, expected: &str) -> Error {
    let kind = frame.first().copied().unwrap_or(0).escape_ascii().to_string();
    protocol_error(format!(
        "malformed replication message '{kind}' of {} bytes: {expected} expected at byte {at}",
        frame.len()
    ))
}

impl<'a> Reader<'a> {
    #[inline]
    fn array<const N: usize>(&mut self, expected: &str) -> Result<[u8; N]> {
        match self.frame.get(self.at..).and_then(|rest| rest.first_chunk::<N>()) {
            Some(&bytes) => {
                self.at += N;
                Ok(bytes)
            }
            None => Err(malformed(self.frame, self.at, expected)),
        }
    }

    #[inline]
    fn u8(&mut self, expected: &str) -> Result<u8> {
        self.array::<1>(expected).map(|[byte]| byte)
    }

    #[inline]
    fn u16(&mut self, expected: &str) -> Result<u16> {
        self.array(expected).map(u16::from_be_bytes)
    }

    #[inline]
    fn u32(&mut self, expected: &str) -> Result<u32> {
        self.array(expected).map(u32::from_be_bytes)
    }

    fn u64(&mut self, expected: &str) -> Result<u64> {
        self.array(expected).map(u64::from_be_bytes)
    }

    /// A time, moved from PostgreSQL's epoch to that of Unix.
    fn time(&mut self) -> Result<i64> {
        self.array("a time").map(|bytes| i64::from_be_bytes(bytes).saturating_add(EPOCH_SHIFT_US))
    }

    fn text(&mut self, expected: &str) -> Result<&'a str> {
        let rest = self.frame.get(self.at..).unwrap_or_default();
        let Some(end) = memchr::memchr(0, rest) else {
            return Err(malformed(self.frame, self.at, expected));
        };
        let text = std::str::from_utf8(&rest[..end]).map_err(|_| malformed(self.frame, self.at, expected))?;
        self.at += end + 1;
        Ok(text)
    }

    fn bytes(&mut self, len: usize, expected: &str) -> Result<&'a [u8]> {
        let rest = self.frame.get(self.at..).unwrap_or_default();
        let Some(bytes) = rest.get(..len) else {
            return Err(malformed(self.frame, self.at, expected));
        };
        self.at += len;
        Ok(bytes)
    }

    fn end(self) -> Result<()> {
        if self.at == self.frame.len() { Ok(()) } else { Err(malformed(self.frame, self.at, "the end")) }
    }
}

/// Decodes one frame: the payload of a `w` message after its 25-byte header.
///
/// `streamed`: whether a stream block is open (an S without its E): then R, Y, I, U, D, T and M carry a transaction id.
pub fn decode(frame: &[u8], streamed: bool) -> Result<Decoded<'_>> {
    let mut reader = Reader { frame, at: 0 };
    let kind = reader.u8("a message kind")?;
    let xid = match kind {
        b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' if streamed => reader.u32("a transaction id")?,
        _ => 0,
    };
    let message = match kind {
        b'I' => Message::Row(row(&mut reader, Op::Insert)?),
        b'U' => Message::Row(row(&mut reader, Op::Update)?),
        b'D' => Message::Row(row(&mut reader, Op::Delete)?),
        b'R' => Message::Relation(relation(&mut reader)?),
        b'T' => Message::Truncate(truncate(&mut reader)?),
        _ => {
            let message = control(kind, &mut reader)?;
            reader.end()?;
            message
        }
    };
    Ok(Decoded { xid, message })
}

fn control<'a>(kind: u8, reader: &mut Reader<'a>) -> Result<Message<'a>> {
    Ok(match kind {
        b'B' => Message::Begin {
            final_lsn: reader.u64("an LSN")?,
            committed_at_us: reader.time()?,
            xid: reader.u32("a transaction id")?,
        },
        b'C' => Message::Commit(commit(reader)?),
        b'O' => Message::Origin { lsn: reader.u64("an LSN")?, name: reader.text("a name")? },
        b'Y' => Message::Type {
            oid: reader.u32("a type's OID")?,
            schema: reader.text("a schema")?,
            name: reader.text("a name")?,
        },
        b'M' => logical(reader)?,
        b'S' => Message::StreamStart {
            xid: reader.u32("a transaction id")?,
            first: reader.u8("a first-segment flag")? == 1,
        },
        b'E' => Message::StreamStop,
        b'c' => Message::StreamCommit { xid: reader.u32("a transaction id")?, commit: commit(reader)? },
        b'A' => stream_abort(reader)?,
        b'b' => Message::BeginPrepare(two_phase(reader)?),
        b'P' => Message::Prepare(two_phase_flagged(reader)?),
        b'K' => Message::CommitPrepared(two_phase_flagged(reader)?),
        b'p' => Message::StreamPrepare(two_phase_flagged(reader)?),
        b'r' => Message::RollbackPrepared(rollback_prepared(reader)?),
        _ => return Err(malformed(reader.frame, 0, "a known message kind")),
    })
}

fn commit(reader: &mut Reader<'_>) -> Result<Commit> {
    reader.u8("flags")?;
    Ok(Commit {
        commit_lsn: reader.u64("an LSN")?,
        end_lsn: reader.u64("an LSN")?,
        committed_at_us: reader.time()?,
    })
}

fn logical<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>> {
    let transactional = reader.u8("flags")? & 1 == 1;
    let lsn = reader.u64("an LSN")?;
    let prefix = reader.text("a prefix")?;
    let len = reader.u32("a length")? as usize;
    Ok(Message::Logical { transactional, lsn, prefix, content: reader.bytes(len, "content")? })
}

fn stream_abort<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>> {
    let xid = reader.u32("a transaction id")?;
    let subxid = reader.u32("a transaction id")?;
    let abort =
        if reader.at == reader.frame.len() { None } else { Some((reader.u64("an LSN")?, reader.time()?)) };
    Ok(Message::StreamAbort { xid, subxid, abort })
}

fn two_phase<'a>(reader: &mut Reader<'a>) -> Result<TwoPhase<'a>> {
    Ok(TwoPhase {
        lsn: reader.u64("an LSN")?,
        end_lsn: reader.u64("an LSN")?,
        at_us: reader.time()?,
        xid: reader.u32("a transaction id")?,
        gid: reader.text("a name")?,
    })
}

fn two_phase_flagged<'a>(reader: &mut Reader<'a>) -> Result<TwoPhase<'a>> {
    reader.u8("flags")?;
    two_phase(reader)
}

fn rollback_prepared<'a>(reader: &mut Reader<'a>) -> Result<TwoPhase<'a>> {
    reader.u8("flags")?;
    let (lsn, end_lsn) = (reader.u64("an LSN")?, reader.u64("an LSN")?);
    reader.time()?;
    Ok(TwoPhase {
        lsn,
        end_lsn,
        at_us: reader.time()?,
        xid: reader.u32("a transaction id")?,
        gid: reader.text("a name")?,
    })
}

/// How a table identifies its old rows (`pg_class.relreplident`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// By its primary key.
    Default,
    /// Not at all.
    Nothing,
    /// By whole rows.
    Full,
    /// By a unique index.
    Index,
}

/// A column of an R message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Whether it belongs to the identity.
    pub identity: bool,
    /// Its name.
    pub name: &'a str,
    /// Its type's OID.
    pub type_oid: u32,
    /// Its type's modifier (`pg_attribute.atttypmod`); -1: none.
    pub modifier: i32,
}

/// A table's description. Its columns were checked when it was decoded.
#[derive(Clone, Copy, Debug)]
pub struct RelationMessage<'a> {
    /// The table's OID.
    pub oid: u32,
    /// Its schema; `pg_catalog`, which the protocol sends as an empty name, is spelled out.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// How it identifies its old rows.
    pub identity: Identity,
    /// The message from the OID on, to compare descriptions by their bytes.
    pub bytes: &'a [u8],
    count: u16,
    columns_at: usize,
}

impl<'a> RelationMessage<'a> {
    /// The columns in the order of row messages.
    pub fn columns(&self) -> impl Iterator<Item = RelationColumn<'a>> + use<'a> {
        let mut reader = Reader { frame: self.bytes, at: self.columns_at };
        (0..self.count).map_while(move |_| column(&mut reader).ok())
    }

    /// From [`RelationMessage::bytes`] as they were kept.
    pub(crate) fn again(bytes: &'a [u8]) -> Option<Self> {
        relation(&mut Reader { frame: bytes, at: 0 }).ok()
    }

    /// How many columns row messages have.
    pub fn column_count(&self) -> usize {
        usize::from(self.count)
    }
}

fn column<'a>(reader: &mut Reader<'a>) -> Result<RelationColumn<'a>> {
    Ok(RelationColumn {
        identity: reader.u8("a column's flags")? & 1 == 1,
        name: reader.text("a column's name")?,
        type_oid: reader.u32("a type's OID")?,
        modifier: reader.u32("a type's modifier")? as i32,
    })
}

fn relation<'a>(reader: &mut Reader<'a>) -> Result<RelationMessage<'a>> {
    let bytes = reader.frame.get(reader.at..).unwrap_or_default();
    let from = reader.at;
    let oid = reader.u32("a table's OID")?;
    let schema = reader.text("a schema")?;
    let name = reader.text("a name")?;
    let identity = match reader.u8("a replica identity")? {
        b'd' => Identity::Default,
        b'n' => Identity::Nothing,
        b'f' => Identity::Full,
        b'i' => Identity::Index,
        _ => return Err(malformed(reader.frame, reader.at - 1, "a replica identity")),
    };
    let count = reader.u16("a number of columns")?;
    let columns_at = reader.at - from;
    for _ in 0..count {
        column(reader)?;
    }
    reader.end()?;
    let schema = if schema.is_empty() { "pg_catalog" } else { schema };
    Ok(RelationMessage { oid, schema, name, identity, bytes, count, columns_at })
}

/// Tables that are emptied together.
#[derive(Clone, Copy, Debug)]
pub struct TruncateMessage<'a> {
    /// Whether it was said to empty referencing tables as well; those are listed too.
    pub cascade: bool,
    /// Whether sequences start anew.
    pub restart_identity: bool,
    oids: &'a [u8],
}

impl<'a> TruncateMessage<'a> {
    /// The tables' OIDs.
    pub fn oids(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.oids.as_chunks::<4>().0.iter().map(|&bytes| u32::from_be_bytes(bytes))
    }
}

fn truncate<'a>(reader: &mut Reader<'a>) -> Result<TruncateMessage<'a>> {
    let count = reader.u32("a number of tables")? as usize;
    let flags = reader.u8("flags")?;
    let oids = reader.frame.get(reader.at..).unwrap_or_default();
    if count.checked_mul(4) != Some(oids.len()) {
        return Err(malformed(reader.frame, reader.at, "as many OIDs as announced"));
    }
    Ok(TruncateMessage { cascade: flags & 1 != 0, restart_identity: flags & 2 != 0, oids })
}

/// A row's change; its tuples are not yet looked at.
#[derive(Clone, Copy, Debug)]
pub struct RowMessage<'a> {
    /// The table's OID.
    pub oid: u32,
    /// Insert, update or delete.
    pub op: Op,
    frame: &'a [u8],
    at: usize,
}

#[inline]
fn row<'a>(reader: &mut Reader<'a>, op: Op) -> Result<RowMessage<'a>> {
    let oid = reader.u32("a table's OID")?;
    Ok(RowMessage { oid, op, frame: reader.frame, at: reader.at })
}

/// The tuples of a row's change.
#[derive(Clone, Copy, Debug)]
pub struct Tuples<'a> {
    /// Of an update whose identity changed, of any update under full identity, of a delete.
    pub old: Option<OldTuple<'a>>,
    /// Of an insert or update.
    pub new: Option<TupleData<'a>>,
}

/// The old tuple.
#[derive(Clone, Copy, Debug)]
pub struct OldTuple<'a> {
    /// Whether every column is there ('O'); else columns outside of the identity are NULL and mean nothing ('K').
    pub full: bool,
    /// Its cells.
    pub tuple: TupleData<'a>,
}

/// A tuple's cells, checked.
#[derive(Clone, Copy, Debug)]
pub struct TupleData<'a> {
    columns: u16,
    bytes: &'a [u8],
}

impl<'a> TupleData<'a> {
    /// Number of cells.
    #[inline]
    pub fn columns(&self) -> usize {
        usize::from(self.columns)
    }

    /// The cells in the order of the table's R message.
    #[inline]
    pub fn cells(&self) -> Cells<'a> {
        Cells { rest: self.bytes }
    }
}

/// Walks a tuple.
#[derive(Clone, Debug)]
pub struct Cells<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    #[inline]
    fn next(&mut self) -> Option<Cell<'a>> {
        let (&kind, rest) = self.rest.split_first()?;
        match kind {
            b'n' => {
                self.rest = rest;
                Some(Cell::Null)
            }
            b'u' => {
                self.rest = rest;
                Some(Cell::Unchanged)
            }
            kind => {
                let (len, rest) = rest.split_first_chunk::<4>()?;
                let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
                self.rest = rest;
                Some(if kind == b'b' { Cell::Binary(value) } else { Cell::Text(value) })
            }
        }
    }
}

impl<'a> RowMessage<'a> {
    /// Checks the tuples to the last byte and returns them.
    #[inline]
    pub fn tuples(&self) -> Result<Tuples<'a>> {
        let mut reader = Reader { frame: self.frame, at: self.at };
        let mut marker = reader.u8("a tuple marker")?;
        let mut old = None;
        if self.op != Op::Insert && (marker == b'O' || marker == b'K') {
            old = Some(OldTuple { full: marker == b'O', tuple: tuple(&mut reader)? });
            if self.op == Op::Delete {
                reader.end()?;
                return Ok(Tuples { old, new: None });
            }
            marker = reader.u8("a tuple marker")?;
        }
        if marker != b'N' || self.op == Op::Delete {
            return Err(malformed(self.frame, reader.at - 1, "a tuple marker"));
        }
        let new = tuple(&mut reader)?;
        reader.end()?;
        Ok(Tuples { old, new: Some(new) })
    }
}

#[inline]
fn tuple<'a>(reader: &mut Reader<'a>) -> Result<TupleData<'a>> {
    let columns = reader.u16("a number of cells")?;
    let frame = reader.frame;
    let from = reader.at;
    let mut at = from;
    for _ in 0..columns {
        match frame.get(at) {
            Some(b'n' | b'u') => at += 1,
            Some(b't' | b'b') => {
                let Some(&len) = frame.get(at + 1..).and_then(|rest| rest.first_chunk::<4>()) else {
                    return Err(malformed(frame, at + 1, "a length"));
                };
                let len = u32::from_be_bytes(len) as usize;
                at += 5;
                if len > VALUE_BYTES_MAX || len > frame.len() - at {
                    return Err(malformed(frame, at, "as many bytes as announced"));
                }
                at += len;
            }
            _ => return Err(malformed(frame, at, "a cell kind")),
        }
    }
    reader.at = at;
    Ok(TupleData { columns, bytes: frame.get(from..at).unwrap_or_default() })
}
