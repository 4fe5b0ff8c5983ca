//! A target in memory: the contract of `pgferry_pipeline::Target` in its plainest form, with its invariants asserted.
//!
//! For tests of the engine and of sources: a broken promise of theirs (a row loaded twice, an insert of a key that is there, a position
//! that moves back, a change at or before a cut) is an error here, where a real target would hide it. The content outlives
//! the handle: [`MemoryTarget::reopened`] is what a restarted process finds. [`MemoryTarget::fail`] scripts faults.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use pgferry_model::{
    Batch, Cell, CellFormat, Class, Code, Column, Delivery, Error, Finding, Position, Progress, Result, Row,
    Slice, SourceIdentity, Table, TableName, TableProgress, TableState, TaskId,
};
use pgferry_pipeline::{
    ChangeForm, ChunkRows, ColumnMapping, Compacted, CopyMark, Fidelity, Inspect, Receipt, SchemaChange,
    TableChanges, TablePlan, Target, TextRow, Wants,
};
use tokio::sync::Mutex;

const BROKEN_PROMISE: Code = pgferry_pipeline::error::ROW_MALFORMED;

type Key = Vec<Option<String>>;

#[derive(Clone, Debug, Default)]
struct Content {
    rows: BTreeMap<Key, TextRow>,
    /// Rows of a table without a key, and their number as part of the map's key.
    keyless: u64,
}

#[derive(Clone, Debug, Default)]
struct State {
    progress: Progress,
    tables: BTreeMap<TableName, Content>,
}

/// What a scripted fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails and nothing of it is done.
    Before(Class),
    /// The call's work is done, its answer is an error.
    After(Class),
    /// The call takes so long.
    Slow(std::time::Duration),
}

/// The target. Clones share the content.
#[derive(Clone, Default)]
pub struct MemoryTarget {
    state: Arc<Mutex<State>>,
    slices: Arc<Mutex<Option<State>>>,
    epoch: Arc<Mutex<u64>>,
    faults: Arc<Mutex<VecDeque<(u64, Fault)>>>,
    applies: Arc<Mutex<u64>>,
}

impl MemoryTarget {
    /// The same content behind a new handle, as after a crash.
    #[must_use]
    pub fn reopened(&self) -> Self {
        MemoryTarget { state: Arc::clone(&self.state), ..MemoryTarget::default() }
    }

    /// The `nth` call of `apply` (from 1) goes wrong.
    pub async fn fail(&self, nth: u64, fault: Fault) {
        self.faults.lock().await.push_back((nth, fault));
    }

    /// What the target holds of the task.
    pub async fn progress(&self) -> Progress {
        self.state.lock().await.progress.clone()
    }

    /// How often `apply` was called.
    pub async fn applies(&self) -> u64 {
        *self.applies.lock().await
    }

    async fn write<T>(&self, work: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.state.lock().await;
        if state.progress.epoch != *self.epoch.lock().await {
            return Err(Error::task_broken(BROKEN_PROMISE, "another process has taken the task over"));
        }
        let mut next = state.clone();
        let done = work(&mut next)?;
        *state = next;
        Ok(done)
    }
}

fn promise(table: &TableName, what: &str) -> Error {
    Error::task_broken(BROKEN_PROMISE, format!("{table}: {what}"))
}

fn texts(row: Row<'_>) -> Vec<Option<String>> {
    row.cells()
        .map(|cell| match cell {
            Cell::Null | Cell::Unchanged => None,
            Cell::Text(bytes) | Cell::Binary(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        })
        .collect()
}

fn key_of(table: &Table, row: &[Option<String>]) -> Key {
    table.key.iter().map(|&at| row[at].clone()).collect()
}

fn known<'a>(progress: &'a mut Progress, table: &Table) -> &'a mut TableProgress {
    let at = progress.tables.iter().position(|known| known.name == table.name);
    let at = at.unwrap_or_else(|| {
        progress.tables.push(TableProgress {
            name: table.name.clone(),
            state: TableState::Waiting,
            cut: None,
            chunks_done: Vec::new(),
        });
        progress.tables.len() - 1
    });
    &mut progress.tables[at]
}

fn load(state: &mut State, batch: &Batch) -> Result<u64> {
    let table = Arc::clone(batch.table());
    let content = state.tables.entry(table.name.clone()).or_default();
    for row in batch.rows() {
        let row = texts(row.new.ok_or_else(|| promise(&table.name, "a snapshot's row without a tuple"))?);
        let key = if table.key.is_empty() {
            content.keyless += 1;
            vec![Some(format!("{:020}", content.keyless))]
        } else {
            key_of(&table, &row)
        };
        if content.rows.insert(key, row).is_some() {
            return Err(promise(&table.name, "a row was loaded twice"));
        }
    }
    Ok(batch.len() as u64)
}

fn apply_table(state: &mut State, compacted: &Compacted) -> Result<()> {
    let batch = compacted.batch();
    let table = batch.table();
    let state_of_table = known(&mut state.progress, table).state.clone();
    if !state_of_table.takes_changes() {
        return Err(promise(&table.name, "changes for a table that takes none"));
    }
    let content = state.tables.entry(table.name.clone()).or_default();
    let tuple = |at: u32| batch.tuple(at).ok_or_else(|| promise(&table.name, "a tuple that is not there"));
    if compacted.truncate {
        content.rows.clear();
    }
    let mut staged = Vec::new();
    for upsert in &compacted.upserts {
        let row = tuple(upsert.tuple)?;
        let mut cells = texts(row);
        if let Some(origin) = upsert.origin {
            let origin = key_of(table, &texts(tuple(origin.0)?));
            let held = content
                .rows
                .get(&origin)
                .ok_or_else(|| promise(&table.name, "the origin of an unchanged value is missing"))?;
            for (at, cell) in row.cells().enumerate() {
                if cell == Cell::Unchanged {
                    cells[at].clone_from(&held[at]);
                }
            }
        }
        let key = key_of(table, &cells);
        if upsert.new_to_target && content.rows.contains_key(&key) {
            return Err(promise(&table.name, "an insert of a key that is there"));
        }
        staged.push((key, cells));
    }
    for delete in &compacted.deletes {
        if content.rows.remove(&key_of(table, &texts(tuple(delete.0)?))).is_none() && table.key_enforced {
            return Err(promise(&table.name, "a delete of a key that is not there"));
        }
    }
    content.rows.extend(staged);
    Ok(())
}

fn apply_delivery(state: &mut State, delivery: &Delivery<TableChanges>) -> Result<()> {
    for changes in &delivery.tables {
        match changes {
            TableChanges::Latest(compacted) => apply_table(state, compacted)?,
            TableChanges::Every(batch) => {
                return Err(promise(&batch.table().name, "every change was not asked for"));
            }
        }
    }
    Ok(())
}

#[async_trait]
impl Target for MemoryTarget {
    fn wants(&self) -> Wants {
        Wants { changes: ChangeForm::LatestPerKey, loads_max: 8, slices: true }
    }

    fn snapshot_format(&self, _table: &Table, _column: &Column) -> CellFormat {
        CellFormat::Text
    }

    fn mapping(&self, table: &Table) -> Result<Vec<ColumnMapping>> {
        let mapping = |column: &Column| ColumnMapping {
            column: column.name.to_string(),
            source_type: column.data_type.name.to_string(),
            target_type: "text".to_owned(),
            fidelity: Fidelity::ExactAsText,
            note: String::new(),
        };
        Ok(table.columns.iter().map(mapping).collect())
    }

    async fn open(&self, _task: &TaskId) -> Result<Progress> {
        let mut state = self.state.lock().await;
        state.progress.epoch += 1;
        *self.epoch.lock().await = state.progress.epoch;
        *self.slices.lock().await = None;
        Ok(state.progress.clone())
    }

    async fn identify(&self, source: &SourceIdentity) -> Result<()> {
        let source = source.clone();
        self.write(|state| {
            state.progress.source = Some(source);
            Ok(())
        })
        .await
    }

    async fn prepare(&self, plan: &TablePlan) -> Result<()> {
        let table = Arc::clone(&plan.table);
        self.write(|state| {
            known(&mut state.progress, &table);
            state.tables.entry(table.name.clone()).or_default();
            Ok(())
        })
        .await
    }

    async fn begin_copy(&self, table: &Arc<Table>, mark: CopyMark) -> Result<()> {
        let table = Arc::clone(table);
        self.write(|state| {
            if state.progress.position.is_none() {
                state.progress.position = mark.stream_start;
            }
            let known = known(&mut state.progress, &table);
            known.state = TableState::Copying;
            known.cut = Some(mark.cut);
            known.chunks_done.clear();
            state.tables.insert(table.name.clone(), Content::default());
            Ok(())
        })
        .await
    }

    async fn load(&self, mut chunk: ChunkRows) -> Result<u64> {
        let mut batches = Vec::new();
        while let Some(batch) = chunk.rows.next().await? {
            batches.push(batch);
        }
        self.write(|state| {
            let done = &mut known(&mut state.progress, &chunk.chunk.table).chunks_done;
            if done.contains(&chunk.chunk.number) {
                return Ok(0);
            }
            done.push(chunk.chunk.number);
            batches.iter().map(|batch| load(state, batch)).sum()
        })
        .await
    }

    async fn set_state(&self, table: &Arc<Table>, new: TableState) -> Result<()> {
        let table = Arc::clone(table);
        self.write(|state| {
            known(&mut state.progress, &table).state = new;
            Ok(())
        })
        .await
    }

    async fn forget(&self, table: Option<&TableName>) -> Result<()> {
        let table = table.cloned();
        self.write(|state| {
            let progress = &mut state.progress;
            for known in progress
                .tables
                .iter_mut()
                .filter(|known| table.as_ref().is_none_or(|name| *name == known.name))
            {
                known.state = TableState::Waiting;
                known.cut = None;
                known.chunks_done.clear();
            }
            if table.is_none() {
                progress.position = None;
                progress.source = None;
            }
            Ok(())
        })
        .await
    }

    async fn apply(&self, delivery: Arc<Delivery<TableChanges>>) -> Result<Receipt> {
        let nth = {
            let mut applies = self.applies.lock().await;
            *applies += 1;
            *applies
        };
        let fault = self.faults.lock().await.iter().find(|(at, _)| *at == nth).map(|&(_, fault)| fault);
        let failure = |class| Error::new(BROKEN_PROMISE, class, "a scripted fault");
        if let Some(Fault::Slow(time)) = fault {
            tokio::time::sleep(time).await;
        }
        if let Some(Fault::Before(class)) = fault {
            *self.slices.lock().await = None;
            return Err(failure(class));
        }
        let kept = self.slices.lock().await.take();
        let mut working = match kept {
            Some(kept) => kept,
            None => self.state.lock().await.clone(),
        };
        let stored = working.progress.position.unwrap_or(Position::ZERO);
        if delivery.slice == Slice::Whole && delivery.through <= stored {
            return Ok(Receipt::Durable(stored));
        }
        apply_delivery(&mut working, &delivery)?;
        if delivery.slice == Slice::Part {
            *self.slices.lock().await = Some(working);
            return Ok(Receipt::Accepted);
        }
        if delivery.through < stored {
            return Err(Error::task_broken(BROKEN_PROMISE, "the position would move back"));
        }
        working.progress.position = Some(delivery.through);
        self.write(|state| {
            *state = working;
            Ok(())
        })
        .await?;
        match fault {
            Some(Fault::After(class)) => Err(failure(class)),
            _ => Ok(Receipt::Durable(delivery.through)),
        }
    }

    async fn discard(&self) -> Result<()> {
        *self.slices.lock().await = None;
        Ok(())
    }

    async fn evolve(&self, _change: &SchemaChange) -> Result<()> {
        Ok(())
    }

    async fn check(&self, _plans: &[TablePlan]) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }

    async fn describe(&self, _plan: &TablePlan) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn inspect(&self) -> &dyn Inspect {
        self
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Inspect for MemoryTarget {
    async fn count(&self, table: &Table) -> Result<u64> {
        let state = self.state.lock().await;
        Ok(state.tables.get(&table.name).map_or(0, |content| content.rows.len() as u64))
    }

    async fn rows(
        &self,
        table: &Table,
        limit: Option<u64>,
        each: &mut (dyn FnMut(TextRow) -> Result<()> + Send),
    ) -> Result<()> {
        let state = self.state.lock().await;
        let Some(content) = state.tables.get(&table.name) else { return Ok(()) };
        let order: Vec<usize> =
            if table.key.is_empty() { (0..table.columns.len()).collect() } else { table.key.clone() };
        let rank = |row: &TextRow| -> Vec<(bool, Option<String>)> {
            order.iter().map(|&at| (row[at].is_none(), row[at].clone())).collect()
        };
        let mut rows: Vec<&TextRow> = content.rows.values().collect();
        rows.sort_by_key(|row| rank(row));
        for row in rows.into_iter().take(limit.map_or(usize::MAX, |limit| limit as usize)) {
            each(row.clone())?;
        }
        Ok(())
    }
}
