//! What is handed to a target at once: whole transactions of all tables between two positions.
//!
//! ```text
//!   after ──(t1)──(t2)── ... ──(tn)──> through        one commit in the target: all rows and `through`
//! ```
//!
//! Invariants: `after < through` or nothing but an idle position; transactions in commit order; a row's sequence number
//! says which transaction it belongs to. A transaction too large for memory comes as slices (`Part`, `Part`, `Last`)
//! that a target commits together; the position goes with the last.

use crate::Position;

/// Where a transaction lies within a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionMark {
    /// Sequence number of its first change; it ends where the next one begins.
    pub first_sequence: u32,
    /// The source's transaction id.
    pub xid: u32,
    /// Where its commit record begins: the same in every slice of it, and in the order of commits.
    pub commit_record: Position,
    /// Its end position; of a transaction that a `Part` leaves open, where its commit record begins.
    pub position: Position,
    /// When the source committed it, in microseconds since 1970-01-01 UTC.
    pub committed_at_us: i64,
}

/// Whether a delivery is complete in itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Slice {
    /// One commit of its own.
    #[default]
    Whole,
    /// More follows; nothing of it may become visible, and the position does not move.
    Part,
    /// The end of a sliced delivery: all slices and the position become visible in one commit.
    Last,
}

/// Changes between two positions. `C` is the form of one table's changes: a batch in commit order, or a compacted one.
#[derive(Clone, Debug)]
pub struct Delivery<C> {
    /// Everything at or before it has been delivered before.
    pub after: Position,
    /// Everything at or before it is in this delivery, in an earlier one, or (for a `Part`) still to come.
    pub through: Position,
    /// The changes, at most one entry per table.
    pub tables: Vec<C>,
    /// The transactions that ended in this delivery, in commit order; in a `Part` the one that it leaves open comes last.
    pub transactions: Vec<TransactionMark>,
    /// Whether it is complete in itself.
    pub slice: Slice,
}
