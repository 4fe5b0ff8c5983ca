//! Rows of one table in wire form: PostgreSQL's own bytes in one arena, with a flat list of cell references.
//!
//! ```text
//!   rows    [ insert seq 7, new @0 ] [ update seq 9, new @3, old @6 ] ...
//!   cells   [ a b c | a b c | a - - | ... ]      8 bytes each: offset, length, form (or NULL, or unchanged)
//!   arena   "42" "Ada" "2024-01-01 ..." ...      the bytes as they came
//!   apart   [ "a value of megabytes" ] ...       large ones stay in the memory in which they came
//! ```
//!
//! Invariants: every tuple has exactly as many cells as the table has columns; a reference never points outside the arena or past the last value apart;
//! a value's bytes are never interpreted here. No allocation per row, no per-value enum on the heap.
//!
//! Limits: 1 GiB - 3 per value (PostgreSQL's own limit is lower), 4 GiB per arena.

use std::sync::Arc;

use bytes::Bytes;

use crate::Table;

/// The largest value that a cell can refer to, in bytes; PostgreSQL's largest field is smaller (1 GiB - 1 with its header).
pub const VALUE_BYTES_MAX: usize = (1 << 30) - 3;

/// A value of this many bytes is better kept apart than copied into the arena, where its memory can be shared.
pub const APART_BYTES_MIN: usize = 1 << 20;

/// Bytes that one row costs besides its cells and values.
pub const SIZE_OF_ROW_ENTRY: usize = size_of::<RowEntry>();

const NULL: u32 = u32::MAX;
const UNCHANGED: u32 = u32::MAX - 1;
const BINARY_BIT: u32 = 1 << 31;
/// The offset is the place of a value apart. Set in [`NULL`] and [`UNCHANGED`], too: what is in the arena is told by one test.
const NOT_IN_ARENA_BIT: u32 = 1 << 30;
const LENGTH_MASK: u32 = (1 << 30) - 1;
const NO_TUPLE: u32 = u32::MAX;

/// The form of a value's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellFormat {
    /// The type's output function's text, in the source's pinned session settings, as UTF-8.
    Text,
    /// The type's send function's bytes.
    Binary,
}

/// Where a cell's bytes are, or that there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellRef {
    offset: u32,
    tag: u32,
}

impl CellRef {
    /// SQL NULL.
    pub const NULL: CellRef = CellRef { offset: 0, tag: NULL };
    /// An unchanged TOAST value that the source did not send.
    pub const UNCHANGED: CellRef = CellRef { offset: 0, tag: UNCHANGED };

    /// Whether this is an unchanged TOAST value.
    #[inline]
    pub fn is_unchanged(self) -> bool {
        self.tag == UNCHANGED
    }

    /// Whether this is SQL NULL.
    #[inline]
    pub fn is_null(self) -> bool {
        self.tag == NULL
    }

    fn apart_at(self) -> Option<usize> {
        let apart = self.tag & NOT_IN_ARENA_BIT != 0 && self.tag != NULL && self.tag != UNCHANGED;
        apart.then_some(self.offset as usize)
    }
}

/// A cell's content: one of three states, the value in one of two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// SQL NULL.
    Null,
    /// An unchanged TOAST value: the target's value stays.
    Unchanged,
    /// A value in text form.
    Text(&'a [u8]),
    /// A value in binary form.
    Binary(&'a [u8]),
}

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A new row, or a row of a snapshot.
    Insert,
    /// A row's new values; the old tuple is there when its key changed or its identity is full.
    Update,
    /// A row is gone; the old tuple holds at least its identity columns.
    Delete,
    /// Every row is gone; no tuples.
    Truncate,
}

#[derive(Clone, Copy, Debug)]
struct RowEntry {
    sequence: u32,
    new: u32,
    old: u32,
    op: Op,
    old_is_full: bool,
}

/// A tuple of a batch: as many cells as the table has columns.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    cells: &'a [CellRef],
    arena: &'a [u8],
    apart: &'a [Bytes],
}

impl<'a> Row<'a> {
    /// The cell of a column; [`Cell::Null`] past the last column.
    #[inline]
    pub fn cell(&self, column: usize) -> Cell<'a> {
        match self.cells.get(column) {
            Some(&cell) => resolve(cell, self.arena, self.apart),
            None => Cell::Null,
        }
    }

    /// The memory of a column's value, where it is kept apart: to share it.
    pub fn shared(&self, column: usize) -> Option<&'a Bytes> {
        self.cells.get(column).and_then(|cell| self.apart.get(cell.apart_at()?))
    }

    /// Number of cells.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there are no cells.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The cells in column order.
    pub fn cells(&self) -> impl Iterator<Item = Cell<'a>> + '_ {
        self.cells.iter().map(|&cell| resolve(cell, self.arena, self.apart))
    }

    /// Whether any cell is an unchanged TOAST value.
    pub fn has_unchanged(&self) -> bool {
        self.cells.iter().any(|cell| cell.is_unchanged())
    }
}

#[inline]
fn resolve<'a>(cell: CellRef, arena: &'a [u8], apart: &'a [Bytes]) -> Cell<'a> {
    let start = cell.offset as usize;
    let bytes = match cell.tag {
        tag if tag & NOT_IN_ARENA_BIT == 0 => &arena[start..start + (tag & LENGTH_MASK) as usize],
        NULL => return Cell::Null,
        UNCHANGED => return Cell::Unchanged,
        _ => &apart[start],
    };
    if cell.tag & BINARY_BIT == 0 { Cell::Text(bytes) } else { Cell::Binary(bytes) }
}

/// One change of a batch.
#[derive(Clone, Copy, Debug)]
pub struct RowRef<'a> {
    /// What it does.
    pub op: Op,
    /// Its place in commit order within the delivery; 0 in a snapshot's batch.
    pub sequence: u32,
    /// The new tuple: of an insert or update.
    pub new: Option<Row<'a>>,
    /// The old tuple: of a delete, of an update whose key changed, of any update under full identity. Under an identity
    /// that is not full, columns outside of it are NULL here and mean nothing.
    pub old: Option<Row<'a>>,
    /// Whether the old tuple holds every column.
    pub old_is_full: bool,
}

/// Rows of one table, under one version of its schema.
#[derive(Clone, Debug)]
pub struct Batch {
    table: Arc<Table>,
    width: usize,
    arena: Vec<u8>,
    apart: Vec<Bytes>,
    apart_bytes: usize,
    cells: Vec<CellRef>,
    rows: Vec<RowEntry>,
}

impl Batch {
    /// An empty batch of a table.
    pub fn new(table: Arc<Table>) -> Self {
        let width = table.columns.len();
        Batch {
            table,
            width,
            arena: Vec::new(),
            apart: Vec::new(),
            apart_bytes: 0,
            cells: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// An empty batch with room for `rows` rows and `bytes` bytes of values.
    pub fn with_capacity(table: Arc<Table>, rows: usize, bytes: usize) -> Self {
        let mut batch = Batch::new(table);
        batch.arena.reserve_exact(bytes);
        batch.cells.reserve_exact(rows * batch.width);
        batch.rows.reserve_exact(rows);
        batch
    }

    /// Its memory as an empty batch of a table.
    #[must_use]
    pub fn emptied(mut self, table: Arc<Table>) -> Self {
        self.width = table.columns.len();
        self.table = table;
        self.arena.clear();
        self.apart.clear();
        self.apart_bytes = 0;
        self.cells.clear();
        self.rows.clear();
        self
    }

    /// The table, in the version that the rows have.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Number of changes (or of rows, in a snapshot's batch).
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of memory that the content takes.
    pub fn bytes(&self) -> usize {
        self.value_bytes() + self.cells.len() * size_of::<CellRef>() + self.rows.len() * SIZE_OF_ROW_ENTRY
    }

    /// Bytes of memory that it holds, used or not.
    pub fn room_bytes(&self) -> usize {
        self.arena.capacity()
            + self.apart_bytes
            + self.cells.capacity() * size_of::<CellRef>()
            + self.rows.capacity() * SIZE_OF_ROW_ENTRY
    }

    /// Bytes of values.
    pub fn value_bytes(&self) -> usize {
        self.arena.len() + self.apart_bytes
    }

    /// Starts a row without tuples; the caller then starts each tuple and pushes one cell per column.
    #[inline]
    pub fn start_row(&mut self, op: Op, sequence: u32) {
        self.rows.push(RowEntry { sequence, new: NO_TUPLE, old: NO_TUPLE, op, old_is_full: false });
    }

    /// Starts the new tuple of the last row.
    #[inline]
    pub fn start_new(&mut self) {
        let first = self.cells.len() as u32;
        if let Some(row) = self.rows.last_mut() {
            row.new = first;
        }
    }

    /// Starts the old tuple of the last row; `full`: every column is there, not only the identity's.
    #[inline]
    pub fn start_old(&mut self, full: bool) {
        let first = self.cells.len() as u32;
        if let Some(row) = self.rows.last_mut() {
            row.old = first;
            row.old_is_full = full;
        }
    }

    /// Pushes a NULL cell.
    #[inline]
    pub fn push_null(&mut self) {
        self.cells.push(CellRef::NULL);
    }

    /// Pushes an unchanged TOAST value.
    #[inline]
    pub fn push_unchanged(&mut self) {
        self.cells.push(CellRef::UNCHANGED);
    }

    /// Pushes a value. The caller has made sure that it has at most [`VALUE_BYTES_MAX`] bytes.
    #[inline]
    pub fn push_value(&mut self, format: CellFormat, bytes: &[u8]) {
        debug_assert!(bytes.len() <= VALUE_BYTES_MAX);
        let offset = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        self.cells.push(reference(offset, bytes.len(), format));
    }

    /// Pushes a value of at most [`VALUE_BYTES_MAX`] bytes with the memory in which it came.
    pub fn push_apart(&mut self, format: CellFormat, value: Bytes) {
        debug_assert!(value.len() <= VALUE_BYTES_MAX);
        let mut cell = reference(self.apart.len() as u32, value.len(), format);
        cell.tag |= NOT_IN_ARENA_BIT;
        self.cells.push(cell);
        self.apart_bytes += value.len();
        self.apart.push(value);
    }

    /// Copies a run of bytes into the arena and returns its offset there; cells are pushed with [`Batch::push_at`].
    /// For readers whose frame holds a whole tuple: one copy per row instead of one per cell.
    #[inline]
    pub fn push_bytes(&mut self, bytes: &[u8]) -> u32 {
        let offset = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        offset
    }

    /// Pushes a value whose bytes are already in the arena at `offset`.
    #[inline]
    pub fn push_at(&mut self, format: CellFormat, offset: u32, len: usize) {
        debug_assert!(offset as usize + len <= self.arena.len() && len <= VALUE_BYTES_MAX);
        self.cells.push(reference(offset, len, format));
    }

    /// Whether the last row's tuples have as many cells as the table has columns.
    pub fn last_row_is_whole(&self) -> bool {
        let Some(row) = self.rows.last() else {
            return true;
        };
        let tuples = usize::from(row.new != NO_TUPLE) + usize::from(row.old != NO_TUPLE);
        let first = if row.new == NO_TUPLE { row.old } else { row.new.min(row.old) };
        tuples == 0 || self.cells.len() - first as usize == tuples * self.width
    }

    /// A change by its index.
    pub fn row(&self, index: usize) -> Option<RowRef<'_>> {
        self.rows.get(index).map(|entry| self.view(entry))
    }

    /// The changes in commit order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = RowRef<'_>> + '_ {
        self.rows.iter().map(|entry| self.view(entry))
    }

    fn view(&self, entry: &RowEntry) -> RowRef<'_> {
        RowRef {
            op: entry.op,
            sequence: entry.sequence,
            new: self.tuple(entry.new),
            old: self.tuple(entry.old),
            old_is_full: entry.old_is_full,
        }
    }

    /// Index of the first cell of a change's new tuple, for [`Batch::tuple`].
    pub fn new_tuple_at(&self, index: usize) -> Option<u32> {
        self.rows.get(index).map(|row| row.new).filter(|&first| first != NO_TUPLE)
    }

    /// Index of the first cell of a change's old tuple, for [`Batch::tuple`].
    pub fn old_tuple_at(&self, index: usize) -> Option<u32> {
        self.rows.get(index).map(|row| row.old).filter(|&first| first != NO_TUPLE)
    }

    /// The tuple whose first cell has the index `first`.
    #[inline]
    pub fn tuple(&self, first: u32) -> Option<Row<'_>> {
        let first = first as usize;
        let cells = self.cells.get(first..first.checked_add(self.width)?)?;
        Some(Row { cells, arena: &self.arena, apart: &self.apart })
    }

    /// Lets a column of the tuple at `into` refer to the value that the tuple at `from` has: both share the bytes.
    pub fn share_cell(&mut self, from: u32, into: u32, column: usize) {
        let (from, into) = (from as usize + column, into as usize + column);
        if column < self.width && from < self.cells.len() && into < self.cells.len() {
            self.cells[into] = self.cells[from];
        }
    }

    /// Whether the column of the tuple at `first` is an unchanged TOAST value.
    pub fn is_unchanged(&self, first: u32, column: usize) -> bool {
        self.cells.get(first as usize + column).is_some_and(|cell| cell.is_unchanged())
    }
}

#[inline]
fn reference(offset: u32, len: usize, format: CellFormat) -> CellRef {
    let length = len as u32 & LENGTH_MASK;
    CellRef { offset, tag: if format == CellFormat::Binary { length | BINARY_BIT } else { length } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Column, DataType, TableId, TableName, TypeKind};

    fn table(width: usize) -> Arc<Table> {
        let data_type = DataType {
            oid: 25,
            name: "text".into(),
            kind: TypeKind::Text,
            sends_binary: true,
            output_function: "pg_catalog.textout".into(),
        };
        let column = |index: usize| Column {
            name: format!("c{index}").into(),
            data_type: data_type.clone(),
            nullable: true,
        };
        Arc::new(Table {
            id: TableId(0),
            name: TableName::new("public", "t"),
            target_name: TableName::new("public", "t"),
            columns: (0..width).map(column).collect(),
            key: vec![0],
            key_enforced: true,
            full_identity: false,
            rows_estimated: 0,
            bytes: 0,
        })
    }

    #[test]
    fn cells_come_back_as_they_were_pushed() {
        let mut batch = Batch::new(table(3));
        batch.start_row(Op::Update, 7);
        batch.start_new();
        batch.push_value(CellFormat::Text, b"42");
        batch.push_unchanged();
        batch.push_null();
        batch.start_old(false);
        let offset = batch.push_bytes(b"....41");
        batch.push_at(CellFormat::Binary, offset + 4, 2);
        batch.push_null();
        batch.push_value(CellFormat::Text, b"");
        assert!(batch.last_row_is_whole());
        let row = batch.row(0).expect("one row");
        assert_eq!((row.op, row.sequence, row.old_is_full), (Op::Update, 7, false));
        let new: Vec<_> = row.new.expect("new").cells().collect();
        assert_eq!(new, [Cell::Text(b"42"), Cell::Unchanged, Cell::Null]);
        let old: Vec<_> = row.old.expect("old").cells().collect();
        assert_eq!(old, [Cell::Binary(b"41"), Cell::Null, Cell::Text(b"")]);
        let (new_at, old_at) = (batch.new_tuple_at(0).expect("new"), batch.old_tuple_at(0).expect("old"));
        batch.share_cell(old_at, new_at, 2);
        assert_eq!(batch.tuple(new_at).expect("new").cell(2), Cell::Text(b""));
        assert!(batch.is_unchanged(new_at, 1));
    }

    #[test]
    fn a_value_apart_keeps_its_memory_and_counts() {
        let frame = Bytes::from(b"frame: value".to_vec());
        let mut batch = Batch::new(table(2));
        batch.start_row(Op::Insert, 0);
        batch.start_new();
        batch.push_value(CellFormat::Text, b"key");
        batch.push_apart(CellFormat::Binary, frame.slice(7..));
        assert_eq!(batch.value_bytes(), 8);
        let first = batch.new_tuple_at(0).expect("new");
        let row = batch.tuple(first).expect("new");
        assert_eq!(row.cells().collect::<Vec<_>>(), [Cell::Text(b"key"), Cell::Binary(b"value")]);
        assert_eq!(row.shared(1).expect("apart").as_ptr(), frame[7..].as_ptr());
        assert!(row.shared(0).is_none() && row.shared(2).is_none() && !row.has_unchanged());
        batch.share_cell(first, first, 1);
        assert_eq!(batch.emptied(table(2)).value_bytes(), 0);
        assert!(frame.is_unique(), "an emptied batch holds nothing");
    }

    #[test]
    fn a_short_tuple_is_noticed() {
        let mut batch = Batch::new(table(2));
        batch.start_row(Op::Delete, 0);
        batch.start_old(false);
        batch.push_null();
        assert!(!batch.last_row_is_whole());
        batch.push_null();
        assert!(batch.last_row_is_whole());
        batch.start_row(Op::Truncate, 1);
        assert!(batch.last_row_is_whole());
    }
}
