//! A delivery: every table's final changes and the position, in one transaction.
//!
//! ```text
//!   rows with unchanged cells ──> staged ──(join the target's rows by origin key)──> filled ┐
//!   keys of deletes and replaced rows ──> keys ──> DELETE FROM t USING keys                 │   1. fill  2. delete
//!   whole rows ──────────────────────────────────────────────> appended to t                │   3. append
//!                                                              INSERT INTO t SELECT filled <┘
//! ```
//!
//! Why not all rows through a staging table: the target has no index that an append would have to maintain, so whole rows
//! go straight into it, once; only keys, and rows that need the target's own values, are staged. Rows are filled before
//! anything is deleted, so rows that swap or take over keys find their values.
//!
//! The log is checkpointed by DuckDB at 64 MB instead of 16 MB: a checkpoint after a scattered delete rewrites every row
//! group that it touched, whatever the size of the delivery, so it should be rare; 64 MB of log are replayed in about a
//! second after a crash.

use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::record_batch::RecordBatch;
use pgferry_columnar::Tuples;
use pgferry_model::{Batch, Cure, Delivery, Error, Position, Result, Slice, Table};
use pgferry_pipeline::error::ROW_MALFORMED;
use pgferry_pipeline::{Compacted, Receipt, TableChanges, failpoint};

use super::{Destined, appender};
use crate::database::{Lease, Session};
use crate::encode::{Columns, record_batch};
use crate::error;
use crate::progress;
use crate::schema::{column_names, quoted, quoted_list, quoted_table};

/// The one writer of deliveries: its session, and the slices that its open transaction holds.
pub(crate) struct Writer {
    session: Session,
    /// The stored position.
    position: Option<Position>,
    /// Where the kept slices begin; their transaction is open.
    kept: Option<Position>,
    /// Slices were dropped after an error: what follows of their transaction cannot stand alone.
    slices_lost: bool,
}

impl Writer {
    pub(crate) fn new(session: Session, position: Option<Position>) -> Self {
        Writer { session, position, kept: None, slices_lost: false }
    }

    /// Drops kept slices.
    pub(crate) fn discard(&mut self) {
        self.session.rollback();
        self.kept = None;
        self.slices_lost = false;
    }

    /// A position was stored by another way, as a copy's first mark does.
    pub(crate) fn position_is(&mut self, position: Option<Position>) {
        self.position = position;
    }

    /// Applies a delivery. `destined` tells where a table's rows go.
    pub(crate) fn apply(
        &mut self,
        lease: &Lease,
        delivery: &Delivery<TableChanges>,
        destined: impl Fn(&Arc<Table>) -> Result<Arc<Destined>>,
    ) -> Result<Receipt> {
        let slice = delivery.slice;
        if slice == Slice::Whole || self.kept.is_some_and(|after| after != delivery.after) {
            self.discard();
        }
        if self.slices_lost {
            return Err(Error::transient(error::SLICES_LOST, "a transaction's earlier slices were dropped"));
        }
        if slice != Slice::Part
            && let Some(stored) = self.position.filter(|&stored| delivery.through <= stored)
        {
            self.discard();
            return Ok(Receipt::Durable(stored));
        }
        let applied = self.write(lease, delivery, destined);
        if applied.is_err() {
            self.session.rollback();
            self.slices_lost = slice != Slice::Whole;
            self.kept = None;
        }
        applied
    }

    fn write(
        &mut self,
        lease: &Lease,
        delivery: &Delivery<TableChanges>,
        destined: impl Fn(&Arc<Table>) -> Result<Arc<Destined>>,
    ) -> Result<Receipt> {
        if self.kept.is_none() {
            self.session.begin()?;
        }
        for changes in &delivery.tables {
            let to = destined(changes.table())?;
            match changes {
                TableChanges::Latest(compacted) => apply_table(&self.session, compacted, &to)?,
                TableChanges::Every(batch) => {
                    let name = batch.table().name.clone();
                    let problem = format!("{name}: changes came in a form that this target does not take");
                    return Err(Error::table_broken(ROW_MALFORMED, name, problem));
                }
            }
        }
        if delivery.slice == Slice::Part {
            self.kept = Some(delivery.after);
            failpoint::pass("target.slice_kept");
            return Ok(Receipt::Accepted);
        }
        progress::set_position(&self.session, lease, delivery.through)?;
        failpoint::pass("target.before_commit");
        self.session.commit(lease)?;
        failpoint::pass("target.after_commit");
        self.kept = None;
        self.position = Some(delivery.through);
        Ok(Receipt::Durable(delivery.through))
    }
}

/// The temporary table of keys to remove.
const KEYS: &str = "pgferry_keys";
/// The temporary table of rows that lack values.
const STAGED: &str = "pgferry_staged";
/// The temporary table of those rows with their values.
const FILLED: &str = "pgferry_filled";

fn apply_table(session: &Session, changes: &Compacted, to: &Destined) -> Result<()> {
    let batch = changes.batch();
    let name = quoted_table(&to.target);
    let what = format!("applying changes to {}", to.target);
    let partial: Vec<(u32, u32)> =
        changes.upserts.iter().filter_map(|upsert| upsert.origin.map(|origin| (upsert.tuple, origin.0))).collect();
    let whole: Vec<u32> =
        changes.upserts.iter().filter(|upsert| upsert.origin.is_none()).map(|upsert| upsert.tuple).collect();
    let replaced = changes.upserts.iter().filter(|upsert| !upsert.new_to_target).map(|upsert| upsert.tuple);
    let removed: Vec<u32> = changes.deletes.iter().map(|key| key.0).chain(replaced).collect();
    if !partial.is_empty() {
        fill(session, batch, to, &partial)?;
    }
    if changes.truncate {
        session.run(&format!("DELETE FROM {name}"), &what)?;
    }
    if !removed.is_empty() {
        remove(session, batch, to, &removed)?;
    }
    if !whole.is_empty() {
        let rows = record_batch(batch, Tuples::At(&whole), &to.columns)?;
        let mut appender = appender(session, batch.table(), to)?;
        appender
            .append_record_batch(rows)
            .and_then(|()| appender.flush())
            .map_err(|failure| session.database.failed(&failure, &what))?;
    }
    if !partial.is_empty() {
        let names = quoted_list(column_names(batch.table()), "");
        let columns = prefixed(0..to.columns.len(), "c");
        session.run(&format!("INSERT INTO {name} ({names}) SELECT {columns} FROM temp.{FILLED}"), &what)?;
        session.run(&format!("DROP TABLE temp.{FILLED}"), &what)?;
    }
    Ok(())
}

/// Removes the rows under the tuples' keys.
fn remove(session: &Session, batch: &Batch, to: &Destined, tuples: &[u32]) -> Result<()> {
    let table = batch.table();
    let mut columns = Columns::default();
    columns.encode(batch, Tuples::At(tuples), &to.columns, table.key.iter().copied())?;
    let definition = definitions(to, &table.key, "c");
    stage(session, KEYS, &definition, columns.finish()?)?;
    let matches: Vec<String> = table
        .key
        .iter()
        .map(|&column| format!("t.{} = k.c{column}", quoted(&table.columns[column].name)))
        .collect();
    let sql = format!(
        "DELETE FROM {} AS t USING temp.{KEYS} AS k WHERE {}",
        quoted_table(&to.target),
        matches.join(" AND ")
    );
    session.run(&sql, &format!("deleting from {}", to.target))
}

/// Makes whole rows of those that lack unchanged values: the values of the target's row under the origin's key.
fn fill(session: &Session, batch: &Batch, to: &Destined, partial: &[(u32, u32)]) -> Result<()> {
    let table = batch.table();
    let tuples: Vec<u32> = partial.iter().map(|&(tuple, _)| tuple).collect();
    let origins: Vec<u32> = partial.iter().map(|&(_, origin)| origin).collect();
    let lacking: Vec<usize> = (0..to.columns.len())
        .filter(|&column| tuples.iter().any(|&tuple| batch.is_unchanged(tuple, column)))
        .collect();
    let mut columns = Columns::default();
    columns.encode(batch, Tuples::At(&tuples), &to.columns, 0..to.columns.len())?;
    columns.encode(batch, Tuples::At(&origins), &to.columns, table.key.iter().copied())?;
    for &column in &lacking {
        let flags: Vec<bool> = tuples.iter().map(|&tuple| batch.is_unchanged(tuple, column)).collect();
        columns.push("u", Arc::new(BooleanArray::from(flags)));
    }
    let all: Vec<usize> = (0..to.columns.len()).collect();
    let mut definition = definitions(to, &all, "c");
    definition.push_str(", ");
    definition.push_str(&definitions(to, &table.key, "k"));
    for column in &lacking {
        definition.push_str(&format!(", u{column} BOOLEAN"));
    }
    stage(session, STAGED, &definition, columns.finish()?)?;
    let values: Vec<String> = (0..to.columns.len())
        .map(|column| match lacking.contains(&column) {
            true => {
                let name = quoted(&table.columns[column].name);
                format!("CASE WHEN s.u{column} THEN t.{name} ELSE s.c{column} END AS c{column}")
            }
            false => format!("s.c{column}"),
        })
        .collect();
    let matches: Vec<String> = table
        .key
        .iter()
        .map(|&column| format!("t.{} = s.k{column}", quoted(&table.columns[column].name)))
        .collect();
    let sql = format!(
        "CREATE OR REPLACE TEMP TABLE {FILLED} AS SELECT {} FROM temp.{STAGED} AS s JOIN {} AS t ON {}",
        values.join(", "),
        quoted_table(&to.target),
        matches.join(" AND ")
    );
    let what = format!("completing rows of {}", to.target);
    session.run(&sql, &what)?;
    session.run(&format!("DROP TABLE temp.{STAGED}"), &what)?;
    let filled: usize = session
        .connection
        .query_row(&format!("SELECT count(*) FROM temp.{FILLED}"), [], |row| row.get(0))
        .map_err(|failure| session.database.failed(&failure, &what))?;
    if filled == partial.len() { Ok(()) } else { Err(drifted(table, filled < partial.len())) }
}

fn drifted(table: &Table, lacks: bool) -> Error {
    let what = if lacks { "lacks a row" } else { "has several rows under one key" };
    let problem = format!("{}: the target {what} whose long values an update leaves as they are", table.name);
    Error::table_broken(error::ROW_MISSING, table.name.clone(), problem)
        .with_cause("PostgreSQL does not send unchanged long values, and the target's own cannot be found")
        .with_cure(Cure::advice("copy the table again; do not change its rows in the target"))
}

/// Makes a temporary table anew with these rows. Anew, because rows deleted from a temporary table keep their memory.
fn stage(session: &Session, name: &str, definition: &str, rows: RecordBatch) -> Result<()> {
    session.run(&format!("CREATE OR REPLACE TEMP TABLE {name} ({definition})"), "making a staging table")?;
    let mut appender = session
        .connection
        .appender_to_catalog_and_db(name, "temp", "main")
        .map_err(|failure| session.database.failed(&failure, "staging rows"))?;
    appender
        .append_record_batch(rows)
        .and_then(|()| appender.flush())
        .map_err(|failure| session.database.failed(&failure, "staging rows"))
}

fn definitions(to: &Destined, columns: &[usize], prefix: &str) -> String {
    let all: Vec<String> =
        columns.iter().map(|&column| format!("{prefix}{column} {}", to.columns[column].sql_type)).collect();
    all.join(", ")
}

fn prefixed(columns: impl Iterator<Item = usize>, prefix: &str) -> String {
    columns.map(|column| format!("{prefix}{column}")).collect::<Vec<_>>().join(", ")
}
