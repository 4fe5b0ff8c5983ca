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
        stream.slices_lost = delivery.slice != Slice::Whole;
    })
}

/// Drops the slices of an unfinished transaction.
pub(crate) fn discard(stream: &mut Stream) {
    stream.producer.abort();
    stream.continued = None;
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
    send(stream, delivery, &batches, &lanes, &routes).inspect_err(|failure| {
        if let Some(table) = failure.table() {
            holder.forget_lane(table);
        }
    })?;
    if delivery.slice == Slice::Part {
        stream.producer.settle(&routes)?;
        failpoint::pass("target.slice_kept");
        return Ok(Receipt::Accepted);
    }
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
    let Stream { producer, scratch, .. } = stream;
    while let Some(Reverse((at, table, row))) = next.pop() {
        // As long as no other table's change comes before it, the table's next row is next.
        let until = next.peek().map_or(u32::MAX, |Reverse((other, ..))| *other);
        let (mut at, mut row) = (at, row);
        let mut sender = Sender { producer: &mut *producer, routes, number: table };
        while let Some(change) = batches[table].row(row) {
            lanes[table].encoder.change(&change, &transactions.origin(at), scratch, &mut sender)?;
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
    /// The last change's number.
    last: u64,
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
            last: 0,
        }
    }

    fn origin(&mut self, sequence: u32) -> Origin {
        while self.marks.get(self.at + 1).is_some_and(|next| next.first_sequence <= sequence) {
            self.at += 1;
        }
        let mark = self.marks.get(self.at);
        let first = mark.map_or(0, |mark| mark.first_sequence);
        let before = if self.at == 0 { self.before } else { 0 };
        self.last = before + u64::from(sequence.saturating_sub(first));
        Origin {
            snapshot: false,
            lsn: mark.map_or(self.through, |mark| mark.commit_record).lsn(),
            order: self.last,
            xid: mark.map_or(0, |mark| mark.xid),
            committed_at_ms: mark.map_or(self.now_ms, |mark| mark.committed_at_us.div_euclid(1_000)),
            now_ms: self.now_ms,
        }
    }

    /// The transaction that a slice leaves open.
    fn continued(&self, slice: Slice) -> Option<(u32, u64)> {
        let open = self.marks.last().filter(|_| slice == Slice::Part)?;
        Some((open.xid, self.last + 1))
    }
}
