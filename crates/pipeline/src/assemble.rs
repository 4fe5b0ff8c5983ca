//! Gathers decoded changes into per-table batches and cuts them into deliveries at commits.
//!
//! ```text
//!   begin ─ row ─ row ─ commit ─ begin ─ row ...        the source's decoder pushes cells straight into the batches
//!      └──────────── at most one transaction open ────────────┘
//!   cut: bytes, rows, age or the engine's wish, at the next commit; past the hard limit inside a transaction: a slice
//! ```
//!
//! Invariants: a whole delivery holds whole transactions only; a table's changes at or before its cut are dropped here, and
//! nowhere else; sequence numbers rise by one per change over all tables. No lock, no clock and no allocation per row.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use pgferry_model::{
    APART_BYTES_MIN, Batch, CellFormat, Delivery, Op, Position, Slice, Table, TableId, TableName,
    TransactionMark,
};

/// A value that is a smaller part of the memory in which it came is copied out of it.
const SHARED_PART_MIN: usize = 4;

/// When to cut.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of changes at which a delivery is due.
    pub batch_bytes_max: usize,
    /// Changes at which a delivery is due.
    pub batch_rows_max: usize,
    /// Bytes of changes at which nothing more is taken, not even of an open transaction.
    pub buffer_bytes_max: usize,
}

/// The start of a transaction.
#[derive(Clone, Copy, Debug)]
pub struct TransactionStart {
    /// The source's transaction id.
    pub xid: u32,
    /// Where its commit record begins. A commit is covered by a position exactly when its record begins before it.
    pub commit_record: Position,
    /// When the source committed it, in microseconds since 1970-01-01 UTC.
    pub committed_at_us: i64,
}

/// Whether a table takes changes, and from where on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gate {
    /// It takes none: no key, paused, or set aside.
    Closed,
    /// It takes those of transactions that the position does not cover.
    After(Position),
}

struct Lane {
    table: Arc<Table>,
    gate: Gate,
    batch: Option<Batch>,
}

struct OpenTransaction {
    start: TransactionStart,
    first_sequence: u32,
}

impl OpenTransaction {
    fn mark(&self, position: Position) -> TransactionMark {
        TransactionMark {
            first_sequence: self.first_sequence,
            xid: self.start.xid,
            commit_record: self.start.commit_record,
            position,
            committed_at_us: self.start.committed_at_us,
        }
    }
}

/// What was gathered since the last cut.
pub struct Assembler {
    limits: Limits,
    lanes: Vec<Lane>,
    touched: Vec<TableId>,
    after: Position,
    through: Position,
    sequence: u32,
    bytes: usize,
    open: Option<OpenTransaction>,
    transactions: Vec<TransactionMark>,
    oldest: Option<Instant>,
    sliced: bool,
    cut_wanted: bool,
    cut_allowed: bool,
    changed: Option<Arc<Table>>,
    lent: Option<Bytes>,
}

/// Puts one change into its table's batch. Every tuple gets exactly one cell per column of the table.
pub struct RowWriter<'a> {
    batch: &'a mut Batch,
    bytes: &'a mut usize,
    before: usize,
    lent: Option<&'a Bytes>,
}

impl RowWriter<'_> {
    /// Starts the new tuple.
    #[inline]
    pub fn start_new(&mut self) {
        self.batch.start_new();
    }

    /// Starts the old tuple; `full`: every column is there, not only the identity's.
    #[inline]
    pub fn start_old(&mut self, full: bool) {
        self.batch.start_old(full);
    }

    /// A NULL cell.
    #[inline]
    pub fn null(&mut self) {
        self.batch.push_null();
    }

    /// An unchanged TOAST value.
    #[inline]
    pub fn unchanged(&mut self) {
        self.batch.push_unchanged();
    }

    /// A value of at most [`pgferry_model::VALUE_BYTES_MAX`] bytes.
    #[inline]
    pub fn value(&mut self, format: CellFormat, bytes: &[u8]) {
        if bytes.len() < APART_BYTES_MIN {
            self.batch.push_value(format, bytes);
        } else {
            self.large_value(format, bytes);
        }
    }

    #[cold]
    fn large_value(&mut self, format: CellFormat, bytes: &[u8]) {
        let within = |lent: &&Bytes| {
            let (lent, value) = (lent.as_ptr_range(), bytes.as_ptr_range());
            lent.start <= value.start && value.end <= lent.end
        };
        // Of memory that is mostly something else (a column that is not carried) only the value would be counted.
        let most_of_it = |lent: &&Bytes| bytes.len() >= lent.len() / SHARED_PART_MIN;
        match self.lent.filter(within).filter(most_of_it) {
            Some(lent) => self.batch.push_apart(format, lent.slice_ref(bytes)),
            None => self.batch.push_value(format, bytes),
        }
    }
}

impl Drop for RowWriter<'_> {
    fn drop(&mut self) {
        debug_assert!(self.batch.last_row_is_whole(), "a tuple has not one cell per column");
        *self.bytes += self.batch.bytes() - self.before;
    }
}

impl Assembler {
    /// Starts after a position, with the tables of the run and their gates.
    pub(crate) fn new(limits: Limits, tables: Vec<(Arc<Table>, Gate)>, after: Position) -> Self {
        let lanes = tables.into_iter().map(|(table, gate)| Lane { table, gate, batch: None }).collect();
        Assembler {
            limits,
            lanes,
            touched: Vec::new(),
            after,
            through: after,
            sequence: 0,
            bytes: 0,
            open: None,
            transactions: Vec::new(),
            oldest: None,
            sliced: false,
            cut_wanted: false,
            cut_allowed: true,
            changed: None,
            lent: None,
        }
    }

    /// For tests and measurements of sources: every table takes every change.
    pub fn open_to_all(limits: Limits, tables: Vec<Arc<Table>>, after: Position) -> Self {
        let tables = tables.into_iter().map(|table| (table, Gate::After(after))).collect();
        Assembler::new(limits, tables, after)
    }

    /// Large values of the rows that follow may stay in this memory, where they lie in it; `None`: they are copied.
    pub fn lend(&mut self, memory: Option<Bytes>) {
        self.lent = memory;
    }

    /// A transaction begins. Returns whether it is wanted: it ends after where the delivery starts. The source may skip the
    /// rows of one that is not wanted, but reports its commit.
    pub fn begin(&mut self, start: TransactionStart) -> bool {
        let wanted = start.commit_record >= self.after;
        self.open = Some(OpenTransaction { start, first_sequence: self.sequence });
        wanted
    }

    /// The open transaction.
    pub fn transaction(&self) -> Option<TransactionStart> {
        self.open.as_ref().map(|open| open.start)
    }

    /// The table as the assembler has it, for a decoder that maps columns.
    pub fn table(&self, id: TableId) -> Option<&Arc<Table>> {
        self.lanes.get(id.index()).map(|lane| &lane.table)
    }

    /// Whether the open transaction's changes of a table are wanted. Of those that are not, the columns do not matter either.
    pub fn takes(&self, id: TableId) -> bool {
        let gate = self.lanes.get(id.index()).map(|lane| lane.gate);
        match (&self.open, gate) {
            (Some(open), Some(Gate::After(cut))) => open.start.commit_record >= cut.max(self.after),
            _ => false,
        }
    }

    /// A change of a table. `None`: not wanted, the source skips it.
    #[inline]
    pub fn row(&mut self, id: TableId, op: Op) -> Option<RowWriter<'_>> {
        let open = self.open.as_ref()?;
        let lane = self.lanes.get_mut(id.index())?;
        match lane.gate {
            Gate::After(cut) if open.start.commit_record >= cut && open.start.commit_record >= self.after => {
            }
            _ => return None,
        }
        let batch = match &mut lane.batch {
            Some(batch) => batch,
            none => {
                self.touched.push(id);
                none.insert(Batch::new(Arc::clone(&lane.table)))
            }
        };
        if self.oldest.is_none() {
            self.oldest = Some(Instant::now());
        }
        let before = batch.bytes();
        batch.start_row(op, self.sequence);
        self.sequence = self.sequence.wrapping_add(1);
        Some(RowWriter { batch, bytes: &mut self.bytes, before, lent: self.lent.as_ref() })
    }

    /// Tables are emptied.
    pub fn truncate(&mut self, ids: &[TableId]) {
        for &id in ids {
            drop(self.row(id, Op::Truncate));
        }
    }

    /// The open transaction ends at `position`. Returns whether the source should stop here: a cut is due.
    pub fn commit(&mut self, position: Position) -> bool {
        if let Some(open) = self.open.take()
            && (self.sequence != open.first_sequence || self.sliced)
        {
            self.transactions.push(open.mark(position));
        }
        self.through = self.through.max(position);
        self.stop()
    }

    /// Everything at or before `position` has been sent and no transaction is open: the source is idle there.
    pub fn idle(&mut self, position: Position) {
        if self.open.is_none() {
            self.through = self.through.max(position);
        }
    }

    /// A table's columns have changed: from the next row on they are as in `after`. The source stops filling; the engine
    /// delivers what is there, evolves the target, and goes on.
    pub fn schema_changed(&mut self, after: Arc<Table>) {
        self.changed = Some(after);
    }

    /// Whether nothing more is taken for now: the memory limit is reached, or a schema change waits.
    #[inline]
    pub fn full(&self) -> bool {
        self.bytes >= self.limits.buffer_bytes_max || self.changed.is_some() || self.sequence > u32::MAX / 2
    }

    /// Whether the batch's size asks for a cut.
    #[inline]
    pub fn due(&self) -> bool {
        self.bytes >= self.limits.batch_bytes_max || self.sequence as usize >= self.limits.batch_rows_max
    }

    /// Whether a source should stop filling now: full, or a cut is due and no transaction is open.
    #[inline]
    pub fn stop(&self) -> bool {
        self.full() || (self.cut_allowed && self.open.is_none() && (self.cut_wanted || self.due()))
    }

    /// Asks for a cut at the next commit.
    pub(crate) fn want_cut(&mut self) {
        self.cut_wanted = true;
    }

    /// Whether a cut is of use: while a delivery is being written, what comes is gathered on until memory ends.
    pub(crate) fn allow_cut(&mut self, allowed: bool) {
        self.cut_allowed = allowed;
    }

    pub(crate) fn has_rows(&self) -> bool {
        self.sequence > 0
    }

    pub(crate) fn mid_transaction(&self) -> bool {
        self.open.is_some()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether slices of the open transaction have been taken already.
    pub(crate) fn sliced(&self) -> bool {
        self.sliced
    }

    pub(crate) fn named(&self, name: &TableName) -> Option<&Arc<Table>> {
        self.lanes.iter().map(|lane| &lane.table).find(|table| table.name == *name)
    }

    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.oldest
    }

    pub(crate) fn through(&self) -> Position {
        self.through
    }

    pub(crate) fn take_schema_change(&mut self) -> Option<Arc<Table>> {
        self.changed.take()
    }

    /// The table takes nothing more, and what was gathered of it is dropped. Returns whether it took changes so far.
    pub(crate) fn close_table(&mut self, id: TableId) -> bool {
        let Some(lane) = self.lanes.get_mut(id.index()) else { return false };
        let open = matches!(lane.gate, Gate::After(_));
        lane.gate = Gate::Closed;
        if let Some(batch) = lane.batch.take() {
            self.bytes = self.bytes.saturating_sub(batch.bytes());
            self.touched.retain(|&other| other != id);
        }
        open
    }

    /// Takes what was gathered: whole where no transaction is open, else a slice.
    pub fn take(&mut self) -> Delivery<Batch> {
        let slice = match (self.open.is_some(), self.sliced) {
            (true, _) => Slice::Part,
            (false, true) => Slice::Last,
            (false, false) => Slice::Whole,
        };
        let mut tables = Vec::with_capacity(self.touched.len());
        self.touched.sort_unstable();
        for id in self.touched.drain(..) {
            if let Some(batch) = self.lanes.get_mut(id.index()).and_then(|lane| lane.batch.take()) {
                tables.push(batch);
            }
        }
        self.transactions.extend(self.open.as_ref().map(|open| open.mark(open.start.commit_record)));
        let delivery = Delivery {
            after: self.after,
            through: self.through,
            tables,
            transactions: std::mem::take(&mut self.transactions),
            slice,
        };
        self.sliced = slice == Slice::Part;
        if slice != Slice::Part {
            self.after = self.through;
        }
        if let Some(open) = &mut self.open {
            open.first_sequence = 0;
        }
        self.sequence = 0;
        self.bytes = 0;
        self.oldest = None;
        self.cut_wanted = false;
        delivery
    }
}

#[cfg(test)]
mod tests {
    use pgferry_model::{Column, DataType, TypeKind};

    use super::*;

    #[test]
    fn a_value_stays_in_lent_memory_only_where_it_is_a_good_part_of_it() {
        let data_type = DataType {
            oid: 25,
            name: "text".into(),
            kind: TypeKind::Text,
            sends_binary: true,
            output_function: "pg_catalog.textout".into(),
        };
        let name = TableName::new("public", "t");
        let table = Arc::new(Table {
            id: TableId(0),
            target_name: name.clone(),
            name,
            columns: vec![Column { name: "v".into(), data_type, nullable: true }],
            key: vec![0],
            key_enforced: true,
            full_identity: false,
            rows_estimated: 0,
            bytes: 0,
        });
        let frame = Bytes::from(vec![b'x'; 8 * APART_BYTES_MIN]);
        let elsewhere = vec![b'x'; 4 * APART_BYTES_MIN];
        for (value, shared) in [
            (&frame[100..100 + 4 * APART_BYTES_MIN], true),
            (&frame[100..100 + APART_BYTES_MIN], false),
            (&elsewhere[..], false),
        ] {
            let limits = Limits { batch_bytes_max: 1 << 30, batch_rows_max: 10, buffer_bytes_max: 1 << 30 };
            let mut assembler = Assembler::open_to_all(limits, vec![Arc::clone(&table)], Position::ZERO);
            let commit_record = Position::from_lsn(8);
            assembler.begin(TransactionStart { xid: 1, commit_record, committed_at_us: 0 });
            assembler.lend(Some(frame.clone()));
            let mut row = assembler.row(TableId(0), Op::Insert).expect("wanted");
            row.start_new();
            row.value(CellFormat::Text, value);
            drop(row);
            assembler.lend(None);
            assert!(assembler.bytes() >= value.len());
            assembler.commit(Position::from_lsn(16));
            let delivery = assembler.take();
            let new = delivery.tables[0].row(0).and_then(|row| row.new).expect("a row");
            assert_eq!(new.shared(0).is_some(), shared);
            assert_eq!(new.cell(0), pgferry_model::Cell::Text(value));
        }
    }
}
