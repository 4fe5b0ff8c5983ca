//! Deliveries: every change of all tables in commit order, and the position with them.
//!
//! ```text
//!   tables' batches ──smallest sequence next──> records ──> acknowledged ──> position ──> COMMIT
//! ```
//!
//! Invariant: what a `Part` has sent becomes visible with its `Last`, in one transaction, or not at all (exactly once); an error takes
//! the whole transaction along.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use pgferry_model::{Batch, Delivery, Position, Result, Slice, TransactionMark};
use pgferry_pipeline::{Receipt, TableChanges, failpoint};

use crate::encode::Origin;
use crate::error::slices_lost;
use crate::extra_topics::Tally;
use crate::holder::{Holder, Lane, Stream, now_ms};
use crate::progress::position_record;
use crate::target::stored_position;
use crate::write::{Route, Sender};

pub(crate) fn apply(holder: &Holder, delivery: &Delivery<TableChanges>) -> Result<Receipt> {
    let mut stream = holder.stream.lock();
    if delivery.slice == Slice::Whole {
        discard(&mut stream);
    }
    if stream.slices_lost {
        return Err(slices_lost());
    }
    let stored = stored_position(holder);
    if delivery.slice != Slice::Part && delivery.through <= stored && stored > Position::ZERO {
        discard(&mut stream);
        return Ok(Receipt::Durable(stored));
    }
    write(holder, &mut stream, delivery).inspect_err(|_| {
        stream.producer.abort();
        stream.continued = None;
        stream.tally = Tally::default();
        stream.slices_lost = delivery.slice != Slice::Whole;
    })
}

/// Drops the slices of an unfinished transaction.
pub(crate) fn discard(stream: &mut Stream) {
    stream.producer.abort();
    stream.continued = None;
    stream.tally = Tally::default();
    stream.slices_lost = false;
}

fn write(holder: &Holder, stream: &mut Stream, delivery: &Delivery<TableChanges>) -> Result<Receipt> {
    if !stream.producer.has_begun() {
        stream.producer.begin()?;
    }
    let batches: Vec<&Batch> = delivery.tables.iter().map(changes).collect();
    let lanes: Vec<Arc<Lane>> =
        batches.iter().map(|batch| holder.lane(batch.table())).collect::<Result<Vec<_>>>()?;
    let routes: Vec<Route> = lanes.iter().map(|lane| lane.route.clone()).collect();
    send(holder, stream, delivery, &batches, &lanes, &routes).inspect_err(|failure| {
        if let Some(table) = failure.table() {
            holder.forget_lane(table);
        }
    })?;
    if delivery.slice == Slice::Part {
        stream.producer.settle(&routes)?;
        failpoint::pass("target.slice_kept");
        return Ok(Receipt::Accepted);
    }
    let Stream { tally, producer, .. } = &mut *stream;
    tally.end(&holder.config, producer)?;
    let position = position_record(&holder.task, Some(delivery.through));
    if holder.exactly_once() {
        holder.send_state(&mut stream.producer, &[position])?;
        stream.producer.settle(&routes)?;
        failpoint::pass("target.before_commit");
        stream.producer.commit()?;
    } else {
        stream.producer.settle(&routes)?;
        stream.producer.commit()?;
        failpoint::pass("target.before_commit");
        holder.store(&[position])?;
    }
    stream.continued = None;
    holder.view.lock().held.position = Some(delivery.through);
    failpoint::pass("target.after_commit");
    Ok(Receipt::Durable(delivery.through))
}

fn changes(changes: &TableChanges) -> &Batch {
    match changes {
        TableChanges::Every(batch) => batch,
        // Never asked for: the rows of a compacted batch are the changes, too.
        TableChanges::Latest(compacted) => compacted.batch(),
    }
}

fn send(
    holder: &Holder,
    stream: &mut Stream,
    delivery: &Delivery<TableChanges>,
    batches: &[&Batch],
    lanes: &[Arc<Lane>],
    routes: &[Route],
) -> Result<()> {
    let mut transactions = Transactions::new(delivery, stream.continued.take());
    let sequence = |table: usize, row: usize| batches[table].row(row).map(|row| row.sequence);
    let first = (0..batches.len()).filter_map(|table| Some(Reverse((sequence(table, 0)?, table, 0))));
    let mut next: BinaryHeap<Reverse<(u32, usize, usize)>> = first.collect();
    let Stream { producer, tally, scratch, .. } = stream;
    while let Some(Reverse((at, table, row))) = next.pop() {
        // As long as no other table's change comes before it, the table's next row is next.
        let until = next.peek().map_or(u32::MAX, |Reverse((other, ..))| *other);
        let (mut at, mut row) = (at, row);
        while let Some(change) = batches[table].row(row) {
            let origin = transactions.origin(at);
            let name = &routes[table].table;
            scratch.place = tally.before(&holder.config, &origin, name, producer)?;
            let mut sender = Sender { producer: &mut *producer, routes, number: table };
            lanes[table].encoder.change(&change, &origin, scratch, &mut sender)?;
            tally.after(name, scratch.place);
            row += 1;
            match sequence(table, row) {
                Some(following) if following <= until => at = following,
                Some(following) => {
                    next.push(Reverse((following, table, row)));
                    break;
                }
                None => break,
            }
        }
    }
    stream.continued = transactions.continued(delivery.slice);
    Ok(())
}

/// Which transaction a change belongs to; asked in ascending order.
struct Transactions<'a> {
    marks: &'a [TransactionMark],
    /// Of the first one, changes that earlier slices have brought.
    before: u64,
    at: usize,
    through: Position,
    now_ms: i64,
    /// The last change's number; `None` before the first.
    last: Option<u64>,
}

impl<'a> Transactions<'a> {
    fn new(delivery: &'a Delivery<TableChanges>, continued: Option<(u32, u64)>) -> Self {
        let marks = delivery.transactions.as_slice();
        let same = continued.filter(|(xid, _)| marks.first().is_some_and(|first| first.xid == *xid));
        Transactions {
            marks,
            before: same.map_or(0, |(_, next)| next),
            at: 0,
            through: delivery.through,
            now_ms: now_ms(),
            last: None,
        }
    }

    fn origin(&mut self, sequence: u32) -> Origin {
        while self.marks.get(self.at + 1).is_some_and(|next| next.first_sequence <= sequence) {
            self.at += 1;
        }
        let mark = self.marks.get(self.at);
        let first = mark.map_or(0, |mark| mark.first_sequence);
        let before = if self.at == 0 { self.before } else { 0 };
        let order = before + u64::from(sequence.saturating_sub(first));
        self.last = Some(order);
        Origin {
            snapshot: false,
            lsn: mark.map_or(self.through, |mark| mark.commit_record).lsn(),
            order,
            xid: mark.map_or(0, |mark| mark.xid),
            committed_at_ms: mark.map_or(self.now_ms, |mark| mark.committed_at_us.div_euclid(1_000)),
            now_ms: self.now_ms,
        }
    }

    /// The transaction that a slice leaves open.
    fn continued(&self, slice: Slice) -> Option<(u32, u64)> {
        let open = self.marks.last().filter(|_| slice == Slice::Part)?;
        // Its first change may be still to come.
        let next = match self.last {
            Some(last) if self.at + 1 == self.marks.len() => last + 1,
            None if self.marks.len() == 1 => self.before,
            _ => 0,
        };
        Some((open.xid, next))
    }
}

#[cfg(test)]
mod tests {
    use pgferry_model::Delivery;

    use super::*;

    fn delivery(marks: &[(u32, u32)], slice: Slice) -> Delivery<TableChanges> {
        let mark = |&(first_sequence, xid): &(u32, u32)| TransactionMark {
            first_sequence,
            xid,
            commit_record: Position::from_lsn(u64::from(xid) * 10),
            position: Position::from_lsn(u64::from(xid) * 10 + 5),
            committed_at_us: 0,
        };
        Delivery {
            after: Position::ZERO,
            through: Position::from_lsn(1_000),
            tables: Vec::new(),
            transactions: marks.iter().map(mark).collect(),
            slice,
        }
    }

    #[test]
    fn a_transactions_changes_are_numbered_through_its_slices() {
        let part = delivery(&[(0, 7), (2, 8)], Slice::Part);
        let mut transactions = Transactions::new(&part, None);
        let seen: Vec<(u32, u64, u64)> = (0..5)
            .map(|sequence| transactions.origin(sequence))
            .map(|origin| (origin.xid, origin.order, origin.lsn))
            .collect();
        assert_eq!(seen, [(7, 0, 70), (7, 1, 70), (8, 0, 80), (8, 1, 80), (8, 2, 80)]);
        let continued = transactions.continued(Slice::Part);
        assert_eq!(continued, Some((8, 3)));
        // A slice without a change of it, and the end with the next transaction behind it.
        let empty = delivery(&[(0, 8)], Slice::Part);
        let continued = Transactions::new(&empty, continued).continued(Slice::Part);
        assert_eq!(continued, Some((8, 3)));
        let last = delivery(&[(0, 8), (1, 9)], Slice::Last);
        let mut transactions = Transactions::new(&last, continued);
        assert_eq!((transactions.origin(0).order, transactions.origin(1).order), (3, 0));
        assert_eq!(transactions.continued(Slice::Last), None);
    }

    #[test]
    fn a_transaction_that_has_begun_and_changed_nothing_yet_starts_at_zero() {
        let part = delivery(&[(0, 7), (2, 8)], Slice::Part);
        let mut transactions = Transactions::new(&part, Some((6, 40)));
        assert_eq!((transactions.origin(0).order, transactions.origin(1).order), (0, 1));
        assert_eq!(transactions.continued(Slice::Part), Some((8, 0)));
    }
}
