//! Copies: rows of chunks as records, and the record that a chunk is done in the same transaction.
//!
//! Records cannot be taken back. A copy that begins again after rows were written tells so: with a truncate in every partition, or, where
//! others' records are in the topic, with a delete of every key that the task has written. `docs/decisions/005-kafka.md` has the reasons.

use std::sync::Arc;

use pgferry_model::{Result, Table, TableName, TableState};
use pgferry_pipeline::{Chunk, ChunkRows, CopyMark, RowReceiver, failpoint};

use crate::encode::{Scratch, snapshot_rows};
use crate::error::topic_exists;
use crate::holder::{Holder, Lane, snapshot_origin};
use crate::inspect::written_keys;
use crate::progress::{Entry, StateRecord, chunk_record, position_record, table_record};
use crate::schema::topic_of;
use crate::target::carries_deletes;
use crate::write::{Producer, Route, Sender};

/// Begins copies of tables under one mark, in one commit.
pub(crate) fn begin(holder: &Holder, tables: &[Arc<Table>], mark: CopyMark) -> Result<()> {
    let mut records: Vec<StateRecord> = Vec::new();
    let mut entries: Vec<(TableName, Entry)> = Vec::new();
    let mut again: Vec<(Arc<Lane>, Vec<Vec<u8>>)> = Vec::new();
    for table in tables {
        let lane = holder.lane(table)?;
        let known = holder.view.lock().held.tables.get(&table.name).cloned();
        let mut entry = known.ok_or_else(|| topic_exists(&table.name, &topic_of(&holder.config, table)))?;
        if entry.written && carries_deletes(holder, &table.name) {
            let keys = if entry.own_from.is_empty() {
                Vec::new()
            } else {
                written_keys(holder, &lane, &entry.own_from)?
            };
            again.push((lane, keys));
        }
        for number in entry.chunks.drain(..) {
            records.push(chunk_record(&holder.task, &table.name, number, None));
        }
        entry.set_state(&TableState::Copying);
        entry.set_cut(Some(mark.cut));
        entry.written = true;
        records.push(table_record(&holder.task, &table.name, Some(&entry)));
        entries.push((table.name.clone(), entry));
    }
    let start = mark.stream_start.filter(|_| holder.view.lock().held.position.is_none());
    records.extend(start.map(|start| position_record(&holder.task, Some(start))));
    let routes: Vec<Route> = again.iter().map(|(lane, _)| lane.route.clone()).collect();
    failpoint::pass("target.begin_before_commit");
    holder.store_with(&records, &routes, |producer| take_back(holder, producer, &routes, &again, mark))?;
    let mut view = holder.view.lock();
    view.held.tables.extend(entries);
    if start.is_some() {
        view.held.position = start;
    }
    Ok(())
}

/// Tells that what earlier copies have written does not count any more.
fn take_back(
    holder: &Holder,
    producer: &mut Producer,
    routes: &[Route],
    again: &[(Arc<Lane>, Vec<Vec<u8>>)],
    mark: CopyMark,
) -> Result<()> {
    let (origin, mut scratch) = (snapshot_origin(mark.cut.lsn()), Scratch::default());
    for (number, (lane, keys)) in again.iter().enumerate() {
        let mut sender = Sender { producer: &mut *producer, routes, number };
        let entry = holder.view.lock().held.tables.get(&lane.route.table).cloned().unwrap_or_default();
        if entry.own_from.is_empty() {
            lane.encoder.truncate(&origin, &mut scratch, &mut sender)?;
        }
        for key in keys {
            lane.encoder.take_back(key, &origin, &mut scratch, &mut sender)?;
        }
    }
    Ok(())
}

/// Loads one chunk.
pub(crate) fn load(holder: &Holder, chunk: ChunkRows) -> Result<u64> {
    let ChunkRows { chunk, mut rows } = chunk;
    if is_done(holder, &chunk) {
        return drain(&mut rows);
    }
    let (number, mut producer) = holder.loader()?;
    // A producer that was made anew has read what became of the last commit.
    let loaded = if is_done(holder, &chunk) {
        drain(&mut rows)
    } else {
        write(holder, &mut producer, &mut [(chunk, rows, None)]).map(|rows| rows.into_iter().sum())
    };
    if loaded.is_err() {
        producer.abort();
    }
    holder.give_back(number, producer);
    loaded
}

/// Loads small tables, each with the state that it has then, in one commit.
pub(crate) fn load_tables(holder: &Holder, tables: Vec<(ChunkRows, TableState)>) -> Result<Vec<u64>> {
    let (number, mut producer) = holder.loader()?;
    let mut all: Vec<(Chunk, RowReceiver, Option<TableState>)> =
        tables.into_iter().map(|(rows, state)| (rows.chunk, rows.rows, Some(state))).collect();
    // A table whose chunk is done is loaded on its own.
    let open = all.iter().take_while(|(chunk, ..)| !is_done(holder, chunk)).count();
    all.truncate(open);
    let loaded = write(holder, &mut producer, &mut all);
    if loaded.is_err() {
        producer.abort();
    }
    holder.give_back(number, producer);
    loaded
}

fn is_done(holder: &Holder, chunk: &Chunk) -> bool {
    let view = holder.view.lock();
    view.held.tables.get(&chunk.table.name).is_some_and(|entry| entry.chunks.contains(&chunk.number))
}

fn drain(rows: &mut RowReceiver) -> Result<u64> {
    let mut count = 0;
    while let Some(batch) = rows.blocking_next()? {
        count += batch.len() as u64;
        rows.give_back(batch);
    }
    Ok(count)
}

/// Writes chunks, and that they are done, in one commit; with a state the table's, too.
fn write(
    holder: &Holder,
    producer: &mut Producer,
    chunks: &mut [(Chunk, RowReceiver, Option<TableState>)],
) -> Result<Vec<u64>> {
    let lanes: Vec<Arc<Lane>> =
        chunks.iter().map(|(chunk, ..)| holder.lane(&chunk.table)).collect::<Result<Vec<_>>>()?;
    let routes: Vec<Route> = lanes.iter().map(|lane| lane.route.clone()).collect();
    let mut counts = Vec::with_capacity(chunks.len());
    let mut scratch = Scratch::default();
    producer.begin()?;
    for (number, (chunk, rows, _)) in chunks.iter_mut().enumerate() {
        let cut = holder.view.lock().held.progress()?;
        let cut = cut.table(&chunk.table.name).and_then(|known| known.cut).map_or(0, |cut| cut.lsn());
        let mut count = 0;
        let mut sender = Sender { producer: &mut *producer, routes: &routes, number };
        while let Some(batch) = rows.blocking_next()? {
            let origin = snapshot_origin(cut);
            snapshot_rows(&lanes[number].encoder, &batch, &origin, &mut scratch, &mut sender)?;
            count += batch.len() as u64;
            rows.give_back(batch);
        }
        counts.push(count);
    }
    producer.settle(&routes)?;
    let (records, entries) = done(holder, chunks, &counts);
    if holder.exactly_once() {
        holder.send_state(producer, &records)?;
        producer.settle(&routes)?;
        failpoint::pass("target.load_before_commit");
        producer.commit()?;
    } else {
        producer.commit()?;
        failpoint::pass("target.load_before_commit");
        holder.store(&records)?;
    }
    failpoint::pass("target.load_after_commit");
    let mut view = holder.view.lock();
    for (name, state, number) in entries {
        let entry = view.held.tables.entry(name).or_default();
        match state {
            Some(state) => {
                entry.set_state(&state);
                entry.chunks.clear();
            }
            None => entry.chunks.push(number),
        }
    }
    Ok(counts)
}

type Done = (TableName, Option<TableState>, u32);

/// What is stored with the rows, and what is then known.
fn done(
    holder: &Holder,
    chunks: &[(Chunk, RowReceiver, Option<TableState>)],
    counts: &[u64],
) -> (Vec<StateRecord>, Vec<Done>) {
    let view = holder.view.lock();
    let (mut records, mut known) = (Vec::new(), Vec::new());
    for ((chunk, _, state), &count) in chunks.iter().zip(counts) {
        let name = &chunk.table.name;
        match state {
            // The only chunk of a table that is whole now needs no record of its own.
            Some(state) => {
                let mut entry = view.held.tables.get(name).cloned().unwrap_or_default();
                entry.set_state(state);
                records.push(table_record(&holder.task, name, Some(&entry)));
            }
            None => records.push(chunk_record(&holder.task, name, chunk.number, Some(count))),
        }
        known.push((name.clone(), state.clone(), chunk.number));
    }
    (records, known)
}
