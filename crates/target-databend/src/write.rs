//! Rows leave here: chunks straight into tables, changes into raw tables, each in one transaction with its record.
//!
//! ```text
//!   chunk      batches ─> Parquet files ─> stage ─┐
//!   delivery   changes ─> Parquet files ─> stage ─┴─> BEGIN ─> COPY per table ─> chunk record or position ─> COMMIT
//! ```
//!
//! Invariants: files are uploaded before the transaction begins, under names that are used once; slices wait in the stage until the last
//! one, and one transaction copies all of them; a delivery or a chunk that fails leaves nothing in a table.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::Schema;
use pgferry_model::{Delivery, Error, Position, Result, Slice, Table, TableName, TableState};
use pgferry_pipeline::{ChunkRows, Compacted, Receipt, TableChanges, Upsert, failpoint};

use crate::encode::{Encoder, FileWriter, ParquetFile, RawOp, RawRows};
use crate::error::{REFUSED, mistake, slices_lost, table_gone};
use crate::history;
use crate::holder::{Commit, Holder, Staged, Step};
use crate::progress::{self, Moved, copy_is_whole};
use crate::schema::{among, copy_name, literal, qualified, quote, raw_name, target_name};
use crate::session::{first_number, text};

/// Files of one table that wait in the stage.
#[derive(Default)]
pub(crate) struct Files {
    names: Vec<String>,
    rows: u64,
}

impl Files {
    pub(crate) async fn add(&mut self, holder: &Holder, file: Option<ParquetFile>) -> Result<()> {
        let Some(file) = file else { return Ok(()) };
        self.rows += file.rows;
        self.names.push(holder.upload(file.bytes).await?);
        Ok(())
    }

    /// The statement that loads them; none where there are none.
    fn copy(
        &self,
        holder: &Holder,
        source: &TableName,
        into: &TableName,
        columns: &[String],
    ) -> Option<Step> {
        if self.names.is_empty() {
            return None;
        }
        let names: Vec<String> = self.names.iter().map(|name| literal(name)).collect();
        let statement = format!(
            "COPY INTO {} ({}) FROM {} FILES = ({}) FILE_FORMAT = (TYPE = PARQUET) COLUMN_MATCH_MODE = CASE_SENSITIVE PURGE = TRUE",
            qualified(into),
            columns.join(", "),
            holder.folder(),
            names.join(", ")
        );
        Some(Step::on(source, statement).loading(self.rows))
    }
}

fn quoted_columns(table: &Table) -> Vec<String> {
    table.columns.iter().map(|column| quote(&column.name)).collect()
}

fn quoted_fields(schema: &Schema) -> Vec<String> {
    schema.fields().iter().map(|field| quote(field.name())).collect()
}

/// Loads a chunk.
pub(crate) async fn load(holder: &Holder, mut chunk: ChunkRows) -> Result<u64> {
    let table = Arc::clone(&chunk.chunk.table);
    let doing = format!("loading {}", table.name);
    let done = is_done(holder, &chunk, &doing).await?;
    let files = stage_chunk(holder, &mut chunk, done).await?;
    if done {
        return Ok(files.rows);
    }
    let mut steps: Vec<Step> = copy_of_chunk(holder, &table, &files).into_iter().collect();
    steps.push(Step::new(progress::add_chunk(
        &holder.settings,
        &holder.task,
        &table.name,
        chunk.chunk.number,
        files.rows,
    )));
    let points = ["target.load_before_commit", "target.load_after_commit"];
    holder.commit(&Commit { doing: &doing, steps, moved: Moved::default(), points }).await?;
    Ok(files.rows)
}

/// Loads tables that are one chunk each, and stores their states, in one transaction.
pub(crate) async fn load_tables(holder: &Holder, tables: Vec<(ChunkRows, TableState)>) -> Result<Vec<u64>> {
    let doing = format!("loading {} tables", tables.len());
    let (mut loaded, mut steps) = (Vec::with_capacity(tables.len()), Vec::new());
    let mut states: Vec<(TableState, Vec<Arc<Table>>)> = Vec::new();
    for (mut chunk, state) in tables {
        let table = Arc::clone(&chunk.chunk.table);
        let done = is_done(holder, &chunk, &doing).await?;
        let files = stage_chunk(holder, &mut chunk, done).await?;
        steps.extend(copy_of_chunk(holder, &table, &files));
        loaded.push(files.rows);
        match states.iter_mut().find(|(known, _)| *known == state) {
            Some((_, tables)) => tables.push(table),
            None => states.push((state, vec![table])),
        }
    }
    for (state, tables) in &states {
        steps.extend(state_steps(holder, tables, state));
    }
    let points = ["target.load_before_commit", "target.load_after_commit"];
    holder.commit(&Commit { doing: &doing, steps, moved: Moved::default(), points }).await?;
    for (state, tables) in &states {
        note_states(holder, tables, state);
    }
    Ok(loaded)
}

/// Whether a chunk is recorded as loaded.
async fn is_done(holder: &Holder, chunk: &ChunkRows, doing: &str) -> Result<bool> {
    let chunk = &chunk.chunk;
    let asked = progress::chunk_done(&holder.settings, &holder.task, &chunk.table.name, chunk.number);
    Ok(first_number(&holder.ask(doing, &asked).await?) > 0)
}

/// Puts a chunk's rows into files in the stage, or drains them where the chunk is done.
async fn stage_chunk(holder: &Holder, chunk: &mut ChunkRows, done: bool) -> Result<Files> {
    let table = Arc::clone(&chunk.chunk.table);
    let encoder = holder.encoder(&table);
    let copying = history::copying(holder, &table.name);
    let mut writer = FileWriter::new(&table.name, chunk_schema(holder, &encoder));
    let mut files = Files::default();
    while let Some(batch) = chunk.rows.next().await? {
        if done {
            continue;
        }
        let tuples: Vec<u32> = (0..batch.len()).filter_map(|row| batch.new_tuple_at(row)).collect();
        let rows = if holder.settings.keeps_history() {
            history::snapshot_rows(&encoder, &batch, &tuples, copying)?
        } else {
            encoder.rows(&batch, &tuples)?
        };
        chunk.rows.give_back(batch);
        let full = writer.write(&rows)?;
        files.add(holder, full).await?;
    }
    let last = writer.finish()?;
    files.add(holder, last).await?;
    Ok(files)
}

/// The columns of a chunk's files.
fn chunk_schema<'e>(holder: &Holder, encoder: &'e Encoder) -> &'e Arc<Schema> {
    if holder.settings.keeps_history() { encoder.history_schema() } else { encoder.schema() }
}

fn copy_of_chunk(holder: &Holder, table: &Arc<Table>, files: &Files) -> Option<Step> {
    let appending = holder.view.lock().appending.contains(&table.name);
    let into = if appending {
        copy_name(&holder.settings, &holder.task, &table.name)
    } else {
        target_name(&holder.settings, table)
    };
    let encoder = holder.encoder(table);
    files.copy(holder, &table.name, &into, &quoted_fields(chunk_schema(holder, &encoder)))
}

/// What stores tables' state. A copy beside rows from before the task joins them when it ends.
pub(crate) fn state_steps(holder: &Holder, tables: &[Arc<Table>], state: &TableState) -> Vec<Step> {
    let (settings, task) = (&holder.settings, &holder.task);
    let names = || tables.iter().map(|table| &table.name);
    let mut steps = vec![Step::new(progress::set_states(settings, task, names(), state, None))];
    if *state == TableState::Copying {
        return steps;
    }
    steps.push(Step::new(progress::forget_chunks(settings, task, names())));
    for table in tables {
        if !holder.view.lock().appending.contains(&table.name) || !copy_is_whole(state) {
            continue;
        }
        let columns = quoted_columns(table).join(", ");
        let (into, from) = (target_name(settings, table), copy_name(settings, task, &table.name));
        let (into, from) = (qualified(&into), qualified(&from));
        let join = format!("INSERT INTO {into} ({columns}) SELECT {columns} FROM {from}");
        steps.push(Step::on(&table.name, join));
        steps.push(Step::on(&table.name, format!("DELETE FROM {from}")));
    }
    steps
}

/// Takes note of stored states.
pub(crate) fn note_states(holder: &Holder, tables: &[Arc<Table>], state: &TableState) {
    let mut view = holder.view.lock();
    for table in tables {
        view.made.remove(&table.name);
        if copy_is_whole(state) {
            view.appending.remove(&table.name);
            view.copying.remove(&table.name);
        }
        // The copy ends in one of them: with changes to come, or without.
        if matches!(state, TableState::Copied | TableState::CatchingUp) {
            view.unordered.insert(table.name.clone(), Arc::clone(table));
        }
    }
}

/// Slices that wait in the stage, and what a transaction of them has to know.
#[derive(Default)]
pub(crate) struct Waiting {
    tables: Vec<(Arc<Table>, Files)>,
    seq: u64,
    open: bool,
    /// Slices were dropped after an error: what follows of their transaction cannot stand alone.
    lost: bool,
}

impl Waiting {
    /// A number that follows all that were given out; what comes next follows it.
    pub(crate) fn next_number(&mut self, holder: &Holder) -> u64 {
        self.seq = self.seq.max(holder.view.lock().seq) + 1;
        self.seq
    }

    /// Drops the kept slices; a transaction may begin again from its first one.
    pub(crate) fn discard(&mut self) {
        *self = Waiting::default();
    }
}

/// Applies a delivery or a slice of one.
pub(crate) async fn apply(
    holder: &Holder,
    waiting: &mut Waiting,
    delivery: &Delivery<TableChanges>,
) -> Result<Receipt> {
    if delivery.slice == Slice::Whole {
        waiting.discard();
    }
    if waiting.lost {
        return Err(slices_lost());
    }
    let stored = holder.view.lock().position;
    if delivery.slice != Slice::Part && delivery.through <= stored {
        waiting.discard();
        return Ok(Receipt::Durable(stored));
    }
    let written = write(holder, waiting, delivery).await;
    written.inspect_err(|_| {
        waiting.discard();
        waiting.lost = delivery.slice != Slice::Whole;
    })
}

async fn write(holder: &Holder, waiting: &mut Waiting, delivery: &Delivery<TableChanges>) -> Result<Receipt> {
    if !waiting.open {
        waiting.open = true;
        waiting.seq = holder.view.lock().seq;
    }
    tell_failed(holder, delivery)?;
    let history = holder.settings.keeps_history();
    for changes in &delivery.tables {
        let table = changes.table();
        let encoder = holder.encoder(table);
        let mut files = Files::default();
        match changes {
            TableChanges::Every(batch) if history => {
                let marks = &delivery.transactions;
                history::stage(holder, &encoder, batch, marks, waiting.seq, &mut files).await?;
            }
            TableChanges::Latest(compacted) if !history => {
                // A truncate comes before what the delivery puts into the table.
                let seq = waiting.seq + 1;
                stage_changes(holder, &encoder, compacted, seq, delivery.through, &mut files).await?;
            }
            _ => return Err(wrong_form(table)),
        }
        waiting.tables.push((Arc::clone(table), files));
    }
    waiting.seq += match (history, delivery.tables.is_empty()) {
        (true, _) => history::numbers(delivery),
        (false, false) => 2,
        (false, true) => 0,
    };
    if delivery.slice == Slice::Part {
        failpoint::pass("target.slice_kept");
        return Ok(Receipt::Accepted);
    }
    commit(holder, waiting, delivery.through).await
}

/// One transaction for all that waits, and the position.
async fn commit(holder: &Holder, waiting: &mut Waiting, through: Position) -> Result<Receipt> {
    let Waiting { tables, seq, .. } = std::mem::take(waiting);
    verify_there(holder, &tables).await?;
    // One statement per table, also where it has come in several slices.
    let mut merged: Vec<(Arc<Table>, Files)> = Vec::new();
    let mut places: HashMap<TableName, usize> = HashMap::new();
    for (table, files) in tables {
        match places.get(&table.name) {
            Some(&at) if Arc::ptr_eq(&merged[at].0, &table) => {
                merged[at].1.rows += files.rows;
                merged[at].1.names.extend(files.names);
            }
            _ => {
                places.insert(table.name.clone(), merged.len());
                merged.push((table, files));
            }
        }
    }
    let steps = merged.iter().filter_map(|(table, files)| {
        let encoder = holder.encoder(table);
        let (into, schema) = if holder.settings.keeps_history() {
            (target_name(&holder.settings, table), encoder.history_schema())
        } else {
            (raw_name(&holder.settings, &holder.task, &table.name), encoder.raw_schema())
        };
        files.copy(holder, &table.name, &into, &quoted_fields(schema))
    });
    let moved = Moved { position: Some(through), seq: (!merged.is_empty()).then_some(seq) };
    let points = ["target.before_commit", "target.after_commit"];
    let steps: Vec<Step> = steps.collect();
    holder.commit(&Commit { doing: "applying changes", steps, moved, points }).await?;
    let mut view = holder.view.lock();
    view.position = view.position.max(through);
    view.seq = view.seq.max(seq);
    for (table, files) in merged {
        if files.names.is_empty() || holder.settings.keeps_history() {
            continue;
        }
        view.made.remove(&table.name);
        let now = Instant::now();
        let due = now + holder.settings.merge_interval;
        let due = view.rested.get(&table.name).map_or(due, |&rested| due.max(rested));
        let (due, since) = view.staged.get(&table.name).map_or((due, now), |known| (known.due, known.since));
        view.staged.insert(table.name.clone(), Staged { table, seq, due, since });
    }
    drop(view);
    holder.wake.notify_one();
    Ok(Receipt::Durable(through))
}

/// Tells the error of a merge that fails for good, as that of the delivery that has changes of its table.
fn tell_failed(holder: &Holder, delivery: &Delivery<TableChanges>) -> Result<()> {
    let mut view = holder.view.lock();
    let found = delivery.tables.iter().find_map(|changes| view.failed.remove(&changes.table().name));
    found.map_or(Ok(()), Err)
}

fn wrong_form(table: &Table) -> Error {
    Error::task_broken(REFUSED, format!("{}: the changes have another form than was asked for", table.name))
        .with_cause("a mistake in pgferry: a table takes one final change per key, a history every change")
        .with_cure(mistake())
}

/// Refuses changes of a table that is not there any more: what is staged for it could never be merged.
async fn verify_there(holder: &Holder, tables: &[(Arc<Table>, Files)]) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    let targets: Vec<TableName> =
        tables.iter().map(|(table, _)| target_name(&holder.settings, table)).collect();
    let asked = format!("SELECT database, name FROM system.tables WHERE {}", among(&targets, "name"));
    let rows = holder.ask("looking for the tables", &asked).await?;
    let there: Vec<TableName> = rows.iter().map(|row| TableName::new(text(row, 0), text(row, 1))).collect();
    match targets.iter().zip(tables).find(|(target, _)| !there.contains(target)) {
        Some((target, (table, _))) => Err(table_gone(&table.name, target)),
        None => Ok(()),
    }
}

/// Puts a table's changes into files in the stage.
async fn stage_changes(
    holder: &Holder,
    encoder: &Encoder,
    compacted: &Compacted,
    seq: u64,
    through: Position,
    files: &mut Files,
) -> Result<()> {
    let batch = compacted.batch();
    let lsn = through.to_string();
    let mut writer = FileWriter::new(&batch.table().name, encoder.raw_schema());
    let rows = |op, seq| RawRows { op, seq, lsn: &lsn, tuples: &[], origins: None };
    if compacted.truncate {
        let full = writer.write(&encoder.raw_rows(batch, &rows(RawOp::Truncate, seq))?)?;
        files.add(holder, full).await?;
    }
    let deletes: Vec<u32> = compacted.deletes.iter().map(|key| key.0).collect();
    for tuples in row_parts(&deletes, batch.value_bytes()) {
        let deletes = RawRows { tuples, ..rows(RawOp::Delete, seq + 1) };
        let full = writer.write(&encoder.raw_rows(batch, &deletes)?)?;
        files.add(holder, full).await?;
    }
    let (partial, complete): (Vec<&Upsert>, Vec<&Upsert>) =
        compacted.upserts.iter().partition(|upsert| upsert.origin.is_some());
    let complete: Vec<u32> = complete.iter().map(|upsert| upsert.tuple).collect();
    for tuples in row_parts(&complete, batch.value_bytes()) {
        let upserts = RawRows { tuples, ..rows(RawOp::Upsert, seq + 1) };
        let full = writer.write(&encoder.raw_rows(batch, &upserts)?)?;
        files.add(holder, full).await?;
    }
    if !partial.is_empty() {
        let tuples: Vec<u32> = partial.iter().map(|upsert| upsert.tuple).collect();
        let origins: Vec<Option<u32>> = partial.iter().map(|upsert| upsert.origin.map(|key| key.0)).collect();
        let upserts = RawRows { tuples: &tuples, origins: Some(&origins), ..rows(RawOp::Upsert, seq + 1) };
        let full = writer.write(&encoder.raw_rows(batch, &upserts)?)?;
        files.add(holder, full).await?;
    }
    let last = writer.finish()?;
    files.add(holder, last).await
}

/// Bytes of values that are encoded at once: what is encoded is one more copy of them.
const ENCODED_BYTES_MAX: usize = 16 << 20;

/// Rows in parts of some megabytes each.
pub(crate) fn row_parts<T>(rows: &[T], bytes: usize) -> impl Iterator<Item = &[T]> {
    let parts = bytes / ENCODED_BYTES_MAX + 1;
    rows.chunks(rows.len().div_ceil(parts).max(1))
}
