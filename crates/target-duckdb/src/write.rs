//! Rows leave here: chunks into tables, deliveries into tables, each in one transaction with its record.
//!
//! ```text
//!   delivery   per table:  truncate? ─> partial rows staged and filled from the target ─> keys staged
//!              ─> DELETE USING keys ─> append complete rows, INSERT staged ones ─> position ─> COMMIT
//! ```
//!
//! Invariants: an unchanged value is read under the row's key before the delivery, before anything is deleted; a delivery or a chunk
//! that fails leaves nothing; slices stay in one open transaction until the last.
//!
//! Why not MERGE: it rewrites the row groups it touches; deleting by key and appending is 3 to 11 times faster. Why no staging for
//! complete rows: they are appended to the table itself, in the same transaction, after the deletes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int16Array, Int32Array, Int64Array};
use arrow::datatypes::{Field, Schema};
use arrow::record_batch::RecordBatch;
use duckdb::{Appender, Connection};
use pgferry_model::{
    Batch, Cell, Cure, Delivery, Error, Position, Result, Slice, Table, TableId, TableName, TableState,
    TaskId,
};
use pgferry_pipeline::{ChunkRows, Compacted, Receipt, TableChanges, Upsert, failpoint};

use crate::config::DuckdbConfig;
use crate::database::Session;
use crate::encode::Encoder;
use crate::error::{ROW_MISSING, SLICES_LOST, STATEMENT, mistake, refused};
use crate::progress;
use crate::schema::{column_types, in_order, qualified, quote, target_name};

/// Bytes of values that an appender may hold. By itself it hands rows over by their number (204,800), and what it holds is outside of
/// DuckDB's memory limit.
const PENDING_BYTES_MAX: usize = 16 << 20;

/// Loads a chunk on a connection of its own.
pub(crate) fn load(
    session: &Session,
    config: &DuckdbConfig,
    task: &TaskId,
    epoch: u64,
    mut chunk: ChunkRows,
) -> Result<u64> {
    let table = Arc::clone(&chunk.chunk.table);
    let doing = format!("loading {}", table.name);
    loading(session, task, epoch, &doing, || {
        progress::verify_epoch(session, task, epoch)?;
        let done = !progress::chunks_done(session, task, &[&table.name], chunk.chunk.number)?.is_empty();
        let rows = load_rows(session, config, &mut chunk, done, &doing)?;
        if !done {
            progress::add_chunk(session, task, &table.name, chunk.chunk.number, rows)?;
        }
        progress::verify_epoch(session, task, epoch)?;
        Ok(rows)
    })
}

/// Loads tables that are one chunk each, and stores their states, in one transaction.
pub(crate) fn load_tables(
    session: &Session,
    config: &DuckdbConfig,
    task: &TaskId,
    epoch: u64,
    tables: Vec<(ChunkRows, TableState)>,
) -> Result<Vec<u64>> {
    let doing = format!("loading {} tables", tables.len());
    loading(session, task, epoch, &doing, || {
        progress::verify_epoch(session, task, epoch)?;
        let names: Vec<&TableName> = tables.iter().map(|(chunk, _)| &chunk.chunk.table.name).collect();
        // Each has one chunk.
        let done = progress::chunks_done(session, task, &names, 0)?;
        let mut loaded = Vec::with_capacity(tables.len());
        let mut states: Vec<(TableState, Vec<Arc<Table>>)> = Vec::new();
        for (mut chunk, state) in tables {
            let table = Arc::clone(&chunk.chunk.table);
            loaded.push(load_rows(session, config, &mut chunk, done.contains(&table.name), &doing)?);
            match states.iter_mut().find(|(known, _)| *known == state) {
                Some((_, tables)) => tables.push(table),
                None => states.push((state, vec![table])),
            }
        }
        states.iter().try_for_each(|(state, tables)| store_states(session, task, tables, state))?;
        Ok(loaded)
    })
}

/// Runs what loads in one transaction, and commits it under the own epoch.
fn loading<T>(
    session: &Session,
    task: &TaskId,
    epoch: u64,
    doing: &str,
    load: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let _loading = session.database.loading()?;
    execute(session, "BEGIN TRANSACTION", doing)?;
    let loaded = load().map_err(|failure| session.abandoned(task, epoch, failure))?;
    failpoint::pass("target.load_before_commit");
    let newest = session.newest(task, epoch).inspect_err(|_| session.roll_back())?;
    session.commit(&newest, doing)?;
    failpoint::pass("target.load_after_commit");
    Ok(loaded)
}

/// Stores tables' state; their chunks are of no use any more when they are not being copied.
pub(crate) fn store_states(
    connection: &Connection,
    task: &TaskId,
    tables: &[Arc<Table>],
    state: &TableState,
) -> Result<()> {
    progress::set_states(connection, task, tables, state, None)?;
    if *state == TableState::Copying {
        return Ok(());
    }
    progress::forget_chunks_of(connection, task, tables)
}

/// Puts a chunk's rows into its table, or none where the chunk was recorded as done before. Returns their number.
fn load_rows(
    connection: &Connection,
    config: &DuckdbConfig,
    chunk: &mut ChunkRows,
    done: bool,
    doing: &str,
) -> Result<u64> {
    let table = &chunk.chunk.table;
    let name = target_name(config, table);
    let encoder = Encoder::new(table, column_types(config, table), in_order(connection, &name, table)?);
    let (mut rows, mut pending) = (0, 0);
    {
        let mut appender = appender(connection, table, &name, encoder.in_order)
            .map_err(|failure| refused(doing, failure))?;
        while let Some(batch) = chunk.rows.blocking_next()? {
            if done {
                continue;
            }
            let tuples: Vec<u32> = (0..batch.len()).filter_map(|row| batch.new_tuple_at(row)).collect();
            let encoded = encoder.rows(&batch, &tuples)?;
            rows += encoded.num_rows() as u64;
            pending += batch.value_bytes();
            chunk.rows.give_back(batch);
            appender.append_record_batch(encoded).map_err(|failure| refused(doing, failure))?;
            if pending >= PENDING_BYTES_MAX {
                appender.flush().map_err(|failure| refused(doing, failure))?;
                pending = 0;
            }
        }
        appender.flush().map_err(|failure| refused(doing, failure))?;
    }
    Ok(rows)
}

/// An appender that puts values into the columns of their names, whatever the order in the target is.
fn appender<'a>(
    connection: &'a Connection,
    table: &Table,
    name: &TableName,
    in_order: bool,
) -> duckdb::Result<Appender<'a>> {
    if in_order {
        return connection.appender_to_db(&name.name, &name.schema);
    }
    let columns: Vec<&str> = table.columns.iter().map(|column| &*column.name).collect();
    connection.appender_with_columns_to_db(&name.name, &name.schema, &columns)
}

fn execute(connection: &Connection, statement: &str, doing: &str) -> Result<()> {
    connection.execute_batch(statement).map_err(|failure| refused(doing, failure))
}

/// The connection that applies deliveries, with the transaction of an unfinished sliced one.
pub(crate) struct Writer {
    session: Session,
    open: bool,
    /// Slices were dropped after an error: what follows of their transaction cannot stand alone.
    slices_lost: bool,
    compacts: bool,
    encoders: HashMap<TableId, (Arc<Table>, Arc<Encoder>)>,
}

impl Writer {
    pub(crate) fn new(session: Session) -> Self {
        Writer { session, open: false, slices_lost: false, compacts: false, encoders: HashMap::new() }
    }

    /// Drops the kept slices; a transaction may begin again from its first one.
    pub(crate) fn discard(&mut self) {
        self.slices_lost = false;
        if self.open {
            self.session.roll_back();
            self.open = false;
        }
    }

    /// Applies a delivery or a slice of one.
    pub(crate) fn apply(
        &mut self,
        config: &DuckdbConfig,
        task: &TaskId,
        epoch: u64,
        delivery: &Delivery<TableChanges>,
        stored: Position,
    ) -> Result<Receipt> {
        if delivery.slice == Slice::Whole {
            self.discard();
        }
        if self.slices_lost {
            return Err(Error::transient(
                SLICES_LOST,
                "earlier slices of a transaction were dropped after an error",
            )
            .with_cause("the rest of a transaction is never written without its beginning")
            .with_cure(Cure::advice(
                "nothing: the transaction is read and written again from its beginning",
            )));
        }
        if delivery.slice != Slice::Part && delivery.through <= stored {
            self.discard();
            return Ok(Receipt::Durable(stored));
        }
        self.write(config, task, epoch, delivery).map_err(|failure| {
            self.discard();
            self.slices_lost = delivery.slice != Slice::Whole;
            self.session.explained(task, epoch, failure)
        })
    }

    fn write(
        &mut self,
        config: &DuckdbConfig,
        task: &TaskId,
        epoch: u64,
        delivery: &Delivery<TableChanges>,
    ) -> Result<Receipt> {
        let doing = "applying changes";
        if !self.compacts {
            self.session.compact_from_now_on()?;
            self.compacts = true;
        }
        if !self.open {
            execute(&self.session, "BEGIN TRANSACTION", doing)?;
            self.open = true;
        }
        self.tables(config, delivery)?;
        if delivery.slice == Slice::Part {
            failpoint::pass("target.slice_kept");
            return Ok(Receipt::Accepted);
        }
        let newest = self.session.newest(task, epoch)?;
        progress::move_position(&self.session, task, epoch, delivery.through)?;
        failpoint::pass("target.before_commit");
        self.open = false;
        self.session.commit(&newest, doing)?;
        failpoint::pass("target.after_commit");
        Ok(Receipt::Durable(delivery.through))
    }

    fn tables(&mut self, config: &DuckdbConfig, delivery: &Delivery<TableChanges>) -> Result<()> {
        for changes in &delivery.tables {
            match changes {
                TableChanges::Latest(compacted) => self.table(config, compacted)?,
                TableChanges::Every(batch) => {
                    return Err(Error::task_broken(
                        STATEMENT,
                        format!("{}: a DuckDB table takes one final change per key", batch.table().name),
                    )
                    .with_cause("a mistake in pgferry: the engine did not bring the changes into that form")
                    .with_cure(mistake()));
                }
            }
        }
        Ok(())
    }

    fn encoder(&mut self, config: &DuckdbConfig, table: &Arc<Table>) -> Result<Arc<Encoder>> {
        match self.encoders.get(&table.id) {
            Some((known, encoder)) if Arc::ptr_eq(known, table) => Ok(Arc::clone(encoder)),
            _ => {
                let in_order = in_order(&self.session, &target_name(config, table), table)?;
                let encoder = Arc::new(Encoder::new(table, column_types(config, table), in_order));
                self.encoders.insert(table.id, (Arc::clone(table), Arc::clone(&encoder)));
                Ok(encoder)
            }
        }
    }

    fn table(&mut self, config: &DuckdbConfig, compacted: &Compacted) -> Result<()> {
        let batch = compacted.batch();
        let table = Arc::clone(batch.table());
        let encoder = self.encoder(config, &table)?;
        let work = Work {
            connection: &self.session,
            doing: format!("applying changes to {}", table.name),
            qualified: qualified(&target_name(config, &table)),
            name: target_name(config, &table),
            encoder: &encoder,
            table: &table,
        };
        if compacted.truncate {
            work.execute(&format!("DELETE FROM {}", work.qualified))?;
        }
        let (partial, complete): (Vec<&Upsert>, Vec<&Upsert>) =
            compacted.upserts.iter().partition(|upsert| upsert.origin.is_some());
        if !partial.is_empty() {
            work.stage_partial(batch, &partial)?;
        }
        let keys: Vec<u32> = compacted
            .deletes
            .iter()
            .map(|key| key.0)
            .chain(compacted.upserts.iter().filter(|upsert| !upsert.new_to_target).map(|upsert| upsert.tuple))
            .collect();
        if !keys.is_empty() && !compacted.truncate {
            work.delete(batch, &keys)?;
        }
        let complete: Vec<u32> = complete.iter().map(|upsert| upsert.tuple).collect();
        if !complete.is_empty() {
            work.append_complete(batch, &complete)?;
        }
        if !partial.is_empty() {
            work.insert_partial()?;
        }
        Ok(())
    }
}

/// One table's part of a delivery.
struct Work<'a> {
    connection: &'a Connection,
    doing: String,
    qualified: String,
    name: TableName,
    encoder: &'a Encoder,
    table: &'a Table,
}

/// More keys are staged: a statement's text would cost more than the table.
const LISTED_KEYS_MAX: usize = 256;

/// Temporary tables; their names are their own schema's, no user table can collide.
const KEYS: &str = "pgferry_keys";
const STAGED: &str = "pgferry_staged";

impl Work<'_> {
    fn execute(&self, statement: &str) -> Result<()> {
        execute(self.connection, statement, &self.doing)
    }

    /// Appends to a temporary table.
    fn stage(&self, name: &str, rows: RecordBatch) -> Result<()> {
        let refused = |failure| refused(&self.doing, failure);
        let mut appender =
            self.connection.appender_to_catalog_and_db(name, "temp", "main").map_err(refused)?;
        appender.append_record_batch(rows).map_err(refused)?;
        appender.flush().map_err(refused)
    }

    /// Appends to the target's table, in parts: what is encoded and what the appender holds are two more copies of the rows.
    fn append_complete(&self, batch: &Batch, tuples: &[u32]) -> Result<()> {
        let refused = |failure| refused(&self.doing, failure);
        let parts = batch.value_bytes() / PENDING_BYTES_MAX + 1;
        let mut appender =
            appender(self.connection, self.table, &self.name, self.encoder.in_order).map_err(refused)?;
        for part in tuples.chunks(tuples.len().div_ceil(parts)) {
            appender.append_record_batch(self.encoder.rows(batch, part)?).map_err(refused)?;
            appender.flush().map_err(refused)?;
        }
        Ok(())
    }

    fn delete(&self, batch: &Batch, keys: &[u32]) -> Result<()> {
        let rows = self.encoder.keys(batch, keys)?;
        if let (Some(list), &[at]) = (listed(&rows), &self.table.key[..]) {
            let column = quote(&self.table.columns[at].name);
            return self.execute(&format!("DELETE FROM {} WHERE {column} IN ({list})", self.qualified));
        }
        let columns: Vec<String> =
            self.key_types().iter().enumerate().map(|(at, kind)| format!("k{at} {kind}")).collect();
        self.execute(&format!("CREATE OR REPLACE TEMP TABLE {KEYS} ({})", columns.join(", ")))?;
        self.stage(KEYS, rows)?;
        let matching = self.matching("t", "k", "k");
        self.execute(&format!(
            "DELETE FROM {} AS t USING temp.main.{KEYS} AS k WHERE {matching}",
            self.qualified
        ))?;
        self.execute(&format!("DROP TABLE temp.main.{KEYS}"))
    }

    fn key_types(&self) -> Vec<&str> {
        self.table.key.iter().map(|&at| self.encoder.types()[at].name.as_str()).collect()
    }

    /// The target's key columns against `alias.prefixN`.
    fn matching(&self, target: &str, alias: &str, prefix: &str) -> String {
        let pairs: Vec<String> = self
            .table
            .key_columns()
            .enumerate()
            .map(|(at, column)| format!("{target}.{} = {alias}.{prefix}{at}", quote(&column.name)))
            .collect();
        pairs.join(" AND ")
    }

    /// Stages rows with unchanged values, and fills those from the rows that the target holds under their old keys.
    fn stage_partial(&self, batch: &Batch, partial: &[&Upsert]) -> Result<()> {
        let types = self.encoder.types();
        let columns = types.iter().enumerate().map(|(at, kind)| format!("c{at} {}", kind.name));
        let origins = self.key_types().into_iter().enumerate().map(|(at, kind)| format!("o{at} {kind}"));
        let all: Vec<String> = columns.chain(origins).chain(["g INTEGER".to_owned()]).collect();
        self.execute(&format!("CREATE OR REPLACE TEMP TABLE {STAGED} ({})", all.join(", ")))?;
        let mut groups: BTreeMap<Vec<usize>, i32> = BTreeMap::new();
        let group_of: Vec<i32> = partial
            .iter()
            .map(|upsert| {
                let next = groups.len() as i32;
                *groups.entry(unchanged_columns(batch, upsert.tuple)).or_insert(next)
            })
            .collect();
        self.stage(STAGED, self.staged_rows(batch, partial, group_of.clone())?)?;
        for (columns, group) in &groups {
            let fills: Vec<String> = columns
                .iter()
                .map(|&at| format!("c{at} = t.{}", quote(&self.table.columns[at].name)))
                .collect();
            let filled = self
                .connection
                .execute(
                    &format!(
                        "UPDATE temp.main.{STAGED} AS s SET {} FROM {} AS t WHERE s.g = {group} AND {}",
                        fills.join(", "),
                        self.qualified,
                        self.matching("t", "s", "o")
                    ),
                    [],
                )
                .map_err(|failure| refused(&self.doing, failure))?;
            let wanted = group_of.iter().filter(|&&of| of == *group).count();
            if filled != wanted {
                return Err(self.row_missing());
            }
        }
        Ok(())
    }

    fn staged_rows(&self, batch: &Batch, partial: &[&Upsert], groups: Vec<i32>) -> Result<RecordBatch> {
        let tuples: Vec<u32> = partial.iter().map(|upsert| upsert.tuple).collect();
        let origins: Vec<u32> = partial.iter().filter_map(|upsert| upsert.origin.map(|key| key.0)).collect();
        let rows = self.encoder.rows(batch, &tuples)?;
        let keys = self.encoder.keys(batch, &origins)?;
        let mut fields: Vec<Field> = Vec::new();
        let mut arrays: Vec<ArrayRef> = Vec::new();
        for part in [&rows, &keys] {
            fields.extend(part.schema().fields().iter().map(|field| field.as_ref().clone()));
            arrays.extend(part.columns().iter().cloned());
        }
        fields.push(Field::new("g", arrow::datatypes::DataType::Int32, false));
        arrays.push(Arc::new(Int32Array::from(groups)));
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|failure| {
            Error::task_broken(STATEMENT, format!("{}: rows do not make a batch", self.doing))
                .with_cure(mistake())
                .with_origin(failure)
        })
    }

    fn insert_partial(&self) -> Result<()> {
        let columns: Vec<String> = self.table.columns.iter().map(|column| quote(&column.name)).collect();
        let staged: Vec<String> = (0..columns.len()).map(|at| format!("c{at}")).collect();
        self.execute(&format!(
            "INSERT INTO {} ({}) SELECT {} FROM temp.main.{STAGED}",
            self.qualified,
            columns.join(", "),
            staged.join(", ")
        ))?;
        self.execute(&format!("DROP TABLE temp.main.{STAGED}"))
    }

    fn row_missing(&self) -> Error {
        let table = &self.table.name;
        Error::table_broken(
            ROW_MISSING,
            table.clone(),
            format!(
                "an update of {table} leaves a large value as it was, but the DuckDB table lacks the row"
            ),
        )
        .with_cause("something else deleted or changed rows of the DuckDB table, or snapshot_where left the row out of the copy")
        .with_cure(
            Cure::advice(
                "stop the task, copy the table again, start it. With snapshot_where, first have the source send whole rows: REPLICA IDENTITY FULL",
            )
            .resync_table(table),
        )
    }
}

/// A few keys of one whole number as a list: one statement instead of four, which counts where a delivery has many tables.
fn listed(keys: &RecordBatch) -> Option<String> {
    let [column] = keys.columns() else { return None };
    if column.len() > LISTED_KEYS_MAX || column.null_count() > 0 {
        return None;
    }
    let numbers: Vec<i64> = if let Some(numbers) = column.as_any().downcast_ref::<Int64Array>() {
        numbers.values().to_vec()
    } else if let Some(numbers) = column.as_any().downcast_ref::<Int32Array>() {
        numbers.values().iter().copied().map(i64::from).collect()
    } else {
        let numbers = column.as_any().downcast_ref::<Int16Array>()?;
        numbers.values().iter().copied().map(i64::from).collect()
    };
    Some(numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", "))
}

fn unchanged_columns(batch: &Batch, tuple: u32) -> Vec<usize> {
    batch.tuple(tuple).map_or_else(Vec::new, |row| {
        row.cells().enumerate().filter(|(_, cell)| *cell == Cell::Unchanged).map(|(at, _)| at).collect()
    })
}
