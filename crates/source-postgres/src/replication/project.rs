//! Puts a row's cells into the assembler in the order of the task's columns.
//!
//! Invariants: the row is checked to its last byte, and its cells are counted, before the assembler hears of it; every tuple
//! gets one cell per column of the table; nothing is allocated.

use pgferry_model::{Cell, CellFormat, Op, Result};
use pgferry_pipeline::{Assembler, RowWriter};

use crate::decode::pgoutput::{RowMessage, TupleData};
use crate::decode::protocol_error;
use crate::decode::relation_cache::{Binding, Projection};

/// Returns whether the assembler took the row.
#[inline]
pub(super) fn write_row(row: &RowMessage<'_>, binding: &Binding, assembler: &mut Assembler) -> Result<bool> {
    let tuples = row.tuples()?;
    let whole = |tuple: Option<TupleData<'_>>| tuple.is_none_or(|tuple| tuple.columns() == binding.cells);
    if !whole(tuples.new) || !whole(tuples.old.map(|old| old.tuple)) {
        return Err(miscounted(row.oid, binding.cells));
    }
    let Some(mut writer) = assembler.row(binding.table, row.op) else { return Ok(false) };
    if let Some(old) = tuples.old {
        writer.start_old(old.full && binding.projection.complete());
        write_tuple(old.tuple, &binding.projection, Cell::Null, &mut writer);
    }
    if let Some(new) = tuples.new {
        let missing = if row.op == Op::Update { Cell::Unchanged } else { Cell::Null };
        writer.start_new();
        write_tuple(new, &binding.projection, missing, &mut writer);
    }
    Ok(true)
}

#[cold]
fn miscounted(oid: u32, cells: usize) -> pgferry_model::Error {
    protocol_error(format!(
        "a row of relation {oid} has not the {cells} cells that its description announced"
    ))
}

#[inline]
fn write_cell(cell: Cell<'_>, writer: &mut RowWriter<'_>) {
    match cell {
        Cell::Null => writer.null(),
        Cell::Unchanged => writer.unchanged(),
        Cell::Text(bytes) => writer.value(CellFormat::Text, bytes),
        Cell::Binary(bytes) => writer.value(CellFormat::Binary, bytes),
    }
}

#[inline]
fn write_tuple(
    tuple: TupleData<'_>,
    projection: &Projection,
    missing: Cell<'static>,
    writer: &mut RowWriter<'_>,
) {
    match projection {
        Projection::Identity => tuple.cells().for_each(|cell| write_cell(cell, writer)),
        Projection::Some(carried) => {
            for (cell, _) in tuple.cells().zip(carried).filter(|&(_, &carried)| carried) {
                write_cell(cell, writer);
            }
        }
        Projection::Scattered(cells) => write_scattered(tuple, cells, missing, writer),
    }
}

/// Walks the tuple again only where a column stands before the one that was written last.
fn write_scattered(
    tuple: TupleData<'_>,
    cells: &[Option<u16>],
    missing: Cell<'static>,
    writer: &mut RowWriter<'_>,
) {
    let (mut walk, mut next) = (tuple.cells(), 0);
    for cell in cells {
        let Some(at) = cell.map(usize::from) else {
            write_cell(missing, writer);
            continue;
        };
        if at < next {
            (walk, next) = (tuple.cells(), 0);
        }
        write_cell(walk.nth(at - next).unwrap_or(missing), writer);
        next = at + 1;
    }
}
