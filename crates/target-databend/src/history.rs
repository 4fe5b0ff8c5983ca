//! Tables that hold every change: what a copy and a delivery become, row by row.
//!
//! ```text
//!   copy      copy │ snapshot snapshot snapshot …           all of them with the copy's one number
//!   changes   insert │ update │ delete │ truncate           a number each
//!             delete (old key), update (new key)            an update that changes the key
//! ```
//!
//! Numbers (`_pgferry_seq`) grow over all tables of a task, in the order in which the source committed. A row's present state is its last
//! row since the last `copy` or `truncate`; what is before is history, and stays.
//!
//! Invariants: nothing is merged and nothing removed but the rows of a copy that was cut off; a row and the position that covers
//! it are one commit.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arrow::array::{
    ArrayRef, ListBuilder, StringArray, StringBuilder, TimestampMicrosecondArray, UInt64Array,
};
use arrow::record_batch::RecordBatch;
use pgferry_model::{Batch, Cell, Delivery, Op, Position, Result, Row, Table, TableName, TransactionMark};
use pgferry_pipeline::{DeletePolicy, TableChanges};

use crate::encode::{Encoder, FileWriter};
use crate::holder::{Holder, Step};
use crate::schema::{COMMITTED_AT, LSN, OP, SEQ, literal, qualified, quote, target_name};
use crate::write::{Files, row_parts};

/// What a row of a history tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HistoryOp {
    Copy,
    Snapshot,
    Insert,
    Update,
    Delete,
    Truncate,
}

impl HistoryOp {
    pub(crate) fn word(self) -> &'static str {
        match self {
            HistoryOp::Copy => "copy",
            HistoryOp::Snapshot => "snapshot",
            HistoryOp::Insert => "insert",
            HistoryOp::Update => "update",
            HistoryOp::Delete => "delete",
            HistoryOp::Truncate => "truncate",
        }
    }
}

/// The words of rows after which everything is told anew, as a list of literals.
pub(crate) fn beginnings() -> String {
    [HistoryOp::Copy, HistoryOp::Truncate].map(|op| literal(op.word())).join(", ")
}

/// An unfinished copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copying {
    /// The number of its rows.
    pub(crate) seq: u64,
    pub(crate) cut: Position,
    /// When it began, in microseconds since 1970-01-01 UTC, by this machine's clock.
    pub(crate) began_us: i64,
}

/// A row to be written.
#[derive(Clone, Copy, Debug)]
struct HistoryRow {
    op: HistoryOp,
    seq: u64,
    /// Its transaction's place among the stamps.
    stamp: usize,
    /// Its values; of a truncate none.
    tuple: Option<u32>,
    /// The tuple has the key's values only.
    key_only: bool,
    /// The row as it was, and whether all of it is known: it has what the source did not send.
    before: Option<(u32, bool)>,
    /// The old key, where it has changed.
    old_key: Option<u32>,
}

/// What rows of one transaction, or of one copy, share.
struct Stamp {
    lsn: String,
    /// In microseconds since 1970-01-01 UTC.
    committed_at_us: i64,
}

/// The copy that rows of a table belong to; where none is under way they follow what was told last.
pub(crate) fn copying(holder: &Holder, table: &TableName) -> Copying {
    let view = holder.view.lock();
    let last = || Copying { seq: view.seq, cut: view.position, began_us: now_us() };
    view.copying.get(table).copied().unwrap_or_else(last)
}

/// Microseconds since 1970-01-01 UTC, by this machine's clock.
pub(crate) fn now_us() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

/// What starts a copy: the rows of one that was cut off go, and a row tells that everything is told anew.
pub(crate) fn begin_steps(
    holder: &Holder,
    table: &Table,
    cut_off: Option<Copying>,
    begun: Copying,
) -> Vec<Step> {
    let target = qualified(&target_name(&holder.settings, table));
    let (op, seq, lsn, at) = (quote(OP), quote(SEQ), quote(LSN), quote(COMMITTED_AT));
    let removed = cut_off.map(|cut_off| {
        let own = [HistoryOp::Copy, HistoryOp::Snapshot].map(|op| literal(op.word())).join(", ");
        format!("DELETE FROM {target} WHERE {seq} = {} AND {op} IN ({own})", cut_off.seq)
    });
    let told = format!(
        "INSERT INTO {target} ({op}, {seq}, {lsn}, {at}) VALUES ({}, {}, {}, to_timestamp({}))",
        literal(HistoryOp::Copy.word()),
        begun.seq,
        literal(&begun.cut.to_string()),
        begun.began_us
    );
    removed.into_iter().chain([told]).map(|statement| Step::on(&table.name, statement)).collect()
}

/// A copy's rows.
pub(crate) fn snapshot_rows(
    encoder: &Encoder,
    batch: &Batch,
    tuples: &[u32],
    copying: Copying,
) -> Result<RecordBatch> {
    let stamp = Stamp { lsn: copying.cut.to_string(), committed_at_us: copying.began_us };
    let row = |&tuple: &u32| HistoryRow {
        op: HistoryOp::Snapshot,
        seq: copying.seq,
        stamp: 0,
        tuple: Some(tuple),
        key_only: false,
        before: None,
        old_key: None,
    };
    let rows: Vec<HistoryRow> = tuples.iter().map(row).collect();
    encode(encoder, batch, &rows, &[stamp])
}

/// How many numbers a delivery takes: two for each of its changes, as a key that changes makes two rows.
pub(crate) fn numbers(delivery: &Delivery<TableChanges>) -> u64 {
    let last = |changes: &TableChanges| match changes {
        TableChanges::Every(batch) => batch.row(batch.len().saturating_sub(1)).map(|row| row.sequence),
        TableChanges::Latest(_) => None,
    };
    let last = delivery.tables.iter().filter_map(last).max();
    last.map_or(0, |last| 2 * (u64::from(last) + 1))
}

/// Puts a table's changes into files in the stage; `after` is the last number before the delivery's.
pub(crate) async fn stage(
    holder: &Holder,
    encoder: &Encoder,
    batch: &Batch,
    marks: &[TransactionMark],
    after: u64,
    files: &mut Files,
) -> Result<()> {
    let deletes = holder.view.lock().deletes.get(&batch.table().name).copied().unwrap_or_default();
    let rows = rows_of(batch, marks, after, deletes);
    let stamp = |mark: &TransactionMark| Stamp {
        lsn: mark.commit_record.to_string(),
        committed_at_us: mark.committed_at_us,
    };
    let stamps: Vec<Stamp> = marks.iter().map(stamp).collect();
    let mut writer = FileWriter::new(&batch.table().name, encoder.history_schema());
    for part in row_parts(&rows, batch.value_bytes()) {
        let full = writer.write(&encode(encoder, batch, part, &stamps)?)?;
        files.add(holder, full).await?;
    }
    let last = writer.finish()?;
    files.add(holder, last).await
}

/// The rows that a table's changes become.
fn rows_of(batch: &Batch, marks: &[TransactionMark], after: u64, deletes: DeletePolicy) -> Vec<HistoryRow> {
    let carried = deletes == DeletePolicy::Carry;
    let (mut rows, mut stamp) = (Vec::with_capacity(batch.len()), 0);
    for (index, change) in batch.rows().enumerate() {
        while marks.get(stamp + 1).is_some_and(|next| next.first_sequence <= change.sequence) {
            stamp += 1;
        }
        let (new, old) = (batch.new_tuple_at(index), batch.old_tuple_at(index));
        let seq = after + 1 + 2 * u64::from(change.sequence);
        let row =
            |op, tuple| HistoryRow { op, seq, stamp, tuple, key_only: false, before: None, old_key: None };
        let removed = HistoryRow { key_only: !change.old_is_full, ..row(HistoryOp::Delete, old) };
        match change.op {
            Op::Insert => rows.push(row(HistoryOp::Insert, new)),
            Op::Update => {
                let moved = old.filter(|_| is_moved(batch.table(), change.new.as_ref(), change.old.as_ref()));
                rows.extend(moved.map(|_| removed));
                let before = old.map(|old| (old, change.old_is_full));
                let seq = seq + 1;
                rows.push(HistoryRow { seq, before, old_key: moved, ..row(HistoryOp::Update, new) });
            }
            Op::Delete if carried => rows.push(removed),
            Op::Truncate if carried => rows.push(row(HistoryOp::Truncate, None)),
            Op::Delete | Op::Truncate => {}
        }
    }
    rows
}

/// Whether an update gives its row another key. A value of the key that was not sent is the old one.
fn is_moved(table: &Table, new: Option<&Row<'_>>, old: Option<&Row<'_>>) -> bool {
    let (Some(new), Some(old)) = (new, old) else { return false };
    table.key.iter().any(|&at| new.cell(at) != Cell::Unchanged && new.cell(at) != old.cell(at))
}

/// The tuple that has a row's value of a column: its own, or the row as it was where the source did not send it.
fn place(batch: &Batch, row: &HistoryRow, at: usize, in_key: bool) -> Option<u32> {
    let own = row.tuple.filter(|_| in_key || !row.key_only)?;
    if !batch.is_unchanged(own, at) {
        return Some(own);
    }
    let before = row.before.filter(|(_, whole)| *whole || in_key).map(|(before, _)| before);
    before.filter(|&before| !batch.is_unchanged(before, at))
}

fn encode(encoder: &Encoder, batch: &Batch, rows: &[HistoryRow], stamps: &[Stamp]) -> Result<RecordBatch> {
    let table = encoder.table();
    let mut arrays = Vec::with_capacity(encoder.history_schema().fields().len());
    for at in 0..table.columns.len() {
        let in_key = table.key.contains(&at);
        let places: Vec<Option<u32>> = rows.iter().map(|row| place(batch, row, at, in_key)).collect();
        arrays.push(encoder.scattered(batch, &places, at)?);
    }
    let stamp = |row: &HistoryRow| stamps.get(row.stamp);
    arrays.push(Arc::new(rows.iter().map(|row| Some(row.op.word())).collect::<StringArray>()) as ArrayRef);
    arrays.push(Arc::new(rows.iter().map(|row| row.seq).collect::<UInt64Array>()));
    let lsns = rows.iter().map(|row| Some(stamp(row).map_or("", |stamp| stamp.lsn.as_str())));
    arrays.push(Arc::new(lsns.collect::<StringArray>()));
    let times = rows.iter().map(|row| stamp(row).map(|stamp| stamp.committed_at_us));
    arrays.push(Arc::new(times.collect::<TimestampMicrosecondArray>().with_timezone("UTC")));
    arrays.push(unchanged(table, batch, rows));
    arrays.push(old_keys(table, batch, rows));
    encoder.batch(encoder.history_schema(), arrays)
}

/// The names of the columns whose values are not known.
fn unchanged(table: &Table, batch: &Batch, rows: &[HistoryRow]) -> ArrayRef {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for row in rows {
        let lacking = row.tuple.filter(|_| row.op == HistoryOp::Update).and_then(|own| batch.tuple(own));
        let lacking = lacking.is_some_and(|own| own.has_unchanged());
        let mut named = false;
        for (at, column) in table.columns.iter().enumerate().filter(|_| lacking) {
            if place(batch, row, at, table.key.contains(&at)).is_none() {
                lists.values().append_value(&column.name);
                named = true;
            }
        }
        lists.append(named);
    }
    Arc::new(lists.finish())
}

/// The texts of old keys.
fn old_keys(table: &Table, batch: &Batch, rows: &[HistoryRow]) -> ArrayRef {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for row in rows {
        let old = row.old_key.and_then(|old| batch.tuple(old));
        for &at in table.key.iter().filter(|_| old.is_some()) {
            match old.map(|old| old.cell(at)) {
                // The stream's values are texts.
                Some(Cell::Text(text) | Cell::Binary(text)) => {
                    lists.values().append_value(String::from_utf8_lossy(text));
                }
                _ => lists.values().append_null(),
            }
        }
        lists.append(old.is_some());
    }
    Arc::new(lists.finish())
}
