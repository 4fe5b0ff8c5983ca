//! A target in memory: the contract of `pgferry_pipeline::Target` in its plainest form, with its invariants asserted.
//!
//! For tests of the engine and of sources: a broken promise of theirs (a row loaded twice, an insert of a key that is there, a position
//! that moves back, a change at or before a cut) is an error here, where a real target would hide it. The content outlives
//! the handle: [`MemoryTarget::reopened`] is what a restarted process finds. [`MemoryTarget::fail`] scripts faults.

mod content;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use pgferry_model::{
    CellFormat, Class, Code, Column, Delivery, Error, Finding, Outcome, Position, Progress, Result, Slice,
    SourceIdentity, Table, TableName, TableState, TaskId,
};
use pgferry_pipeline::{
    ChangeForm, ChunkRows, ColumnMapping, CopyMark, Fidelity, IfTargetExists, Inspect, Receipt, SchemaChange,
    TableChanges, TablePlan, Target, TextRow, Wants,
};
use tokio::sync::Mutex;

use content::{Content, Held, State};

const BROKEN_PROMISE: Code = pgferry_pipeline::error::ROW_MALFORMED;

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

/// What is kept of an unfinished sliced delivery.
#[derive(Clone, Debug)]
enum Slices {
    /// The touched tables as they will be.
    Kept(BTreeMap<TableName, Content>),
    /// Dropped after an error: the rest cannot stand alone.
    Lost,
}

/// The target. Clones share the content.
#[derive(Clone, Default)]
pub struct MemoryTarget {
    state: Arc<Mutex<State>>,
    slices: Arc<Mutex<Option<Slices>>>,
    lease: Arc<Mutex<Option<(TaskId, u64)>>>,
    faults: Arc<Mutex<VecDeque<(u64, Fault)>>>,
    applies: Arc<Mutex<u64>>,
}

impl MemoryTarget {
    /// The same content behind a new handle, as after a crash.
    #[must_use]
    pub fn reopened(&self) -> Self {
        MemoryTarget { state: Arc::clone(&self.state), ..MemoryTarget::default() }
    }

    /// A copy of the content, and of the lease, that can be tried things on.
    pub async fn copied(&self) -> Self {
        let (state, lease) = (self.state.lock().await.clone(), self.lease.lock().await.clone());
        MemoryTarget {
            state: Arc::new(Mutex::new(state)),
            lease: Arc::new(Mutex::new(lease)),
            ..MemoryTarget::default()
        }
    }

    /// The `nth` call of `apply` (from 1) goes wrong.
    pub async fn fail(&self, nth: u64, fault: Fault) {
        self.faults.lock().await.push_back((nth, fault));
    }

    /// What the target holds of the task that it was opened for; where it was not, of its first task.
    pub async fn progress(&self) -> Progress {
        let state = self.state.lock().await;
        let held = match &*self.lease.lock().await {
            Some((task, _)) => state.tasks.get(task),
            None => state.tasks.values().next(),
        };
        held.map(|held| held.progress.clone()).unwrap_or_default()
    }

    /// How often `apply` was called.
    pub async fn applies(&self) -> u64 {
        *self.applies.lock().await
    }

    /// Puts a table with rows there that belongs to no task.
    pub async fn put_foreign(&self, table: &Table, rows: &[TextRow]) {
        let mut content = Content::of(table);
        for row in rows {
            content.put(table, row.clone());
        }
        self.state.lock().await.tables.insert(table.target_name.clone(), content);
    }

    /// Removes a table behind the tasks' back.
    pub async fn remove_table(&self, table: &Table) {
        self.state.lock().await.tables.remove(&table.target_name);
    }

    /// Changes everything or nothing, and only as the newest holder.
    async fn write<T>(&self, work: impl FnOnce(&mut State, &TaskId) -> Result<T>) -> Result<T> {
        let lease = self.lease.lock().await.clone();
        let mut state = self.state.lock().await;
        let Some((task, epoch)) = lease else { return Err(taken_over()) };
        if state.tasks.get(&task).is_none_or(|held| held.progress.epoch != epoch) {
            return Err(taken_over());
        }
        let mut next = state.clone();
        let done = work(&mut next, &task)?;
        *state = next;
        Ok(done)
    }

    async fn write_held<T>(&self, work: impl FnOnce(&mut Held) -> Result<T>) -> Result<T> {
        self.write(|state, task| work(state.tasks.entry(task.clone()).or_default())).await
    }

    async fn next_fault(&self) -> Option<Fault> {
        let nth = {
            let mut applies = self.applies.lock().await;
            *applies += 1;
            *applies
        };
        self.faults.lock().await.iter().find(|(at, _)| *at == nth).map(|&(_, fault)| fault)
    }

    async fn apply_unfaulted(&self, delivery: &Delivery<TableChanges>) -> Result<Receipt> {
        let kept = {
            let mut slices = self.slices.lock().await;
            match (delivery.slice, slices.take()) {
                (Slice::Whole, _) | (_, None) => BTreeMap::new(),
                (_, Some(Slices::Kept(kept))) => kept,
                (_, Some(Slices::Lost)) => {
                    *slices = Some(Slices::Lost);
                    return Err(Error::transient(BROKEN_PROMISE, "earlier slices were dropped"));
                }
            }
        };
        let written = self.write(|state, task| apply(state, task, kept, delivery)).await;
        match written {
            Ok((Receipt::Accepted, kept)) => {
                *self.slices.lock().await = Some(Slices::Kept(kept));
                Ok(Receipt::Accepted)
            }
            Ok((receipt, _)) => Ok(receipt),
            Err(failure) => {
                *self.slices.lock().await = (delivery.slice != Slice::Whole).then_some(Slices::Lost);
                Err(failure)
            }
        }
    }
}

fn taken_over() -> Error {
    Error::task_broken(BROKEN_PROMISE, "another process has taken the task over")
}

fn promise(table: &TableName, what: &str) -> Error {
    Error::task_broken(BROKEN_PROMISE, format!("{table}: {what}"))
}

fn unfit(table: &Table, column: &str) -> Error {
    let problem = format!("a value of {}.{column} cannot be kept as text", table.name);
    Error::table_broken(BROKEN_PROMISE, table.name.clone(), problem)
}

type Applied = (Receipt, BTreeMap<TableName, Content>);

/// Applies a delivery, or the next slice of one onto what is kept of it.
fn apply(
    state: &mut State,
    task: &TaskId,
    mut kept: BTreeMap<TableName, Content>,
    delivery: &Delivery<TableChanges>,
) -> Result<Applied> {
    let stored = state.held_position(task);
    if delivery.slice != Slice::Part && stored.is_some_and(|stored| delivery.through <= stored) {
        return Ok((Receipt::Durable(stored.unwrap_or(Position::ZERO)), BTreeMap::new()));
    }
    for changes in &delivery.tables {
        let TableChanges::Latest(compacted) = changes else {
            return Err(promise(&changes.table().name, "every change was not asked for"));
        };
        let table = changes.table();
        let (held, content) = state.held(task, table)?;
        if !held.known(&table.name).state.takes_changes() {
            return Err(promise(&table.name, "changes for a table that takes none"));
        }
        kept.entry(table.target_name.clone()).or_insert_with(|| content.clone()).apply(compacted)?;
    }
    if delivery.slice == Slice::Part {
        return Ok((Receipt::Accepted, kept));
    }
    state.tables.extend(kept);
    state.tasks.entry(task.clone()).or_default().progress.position = Some(delivery.through);
    Ok((Receipt::Durable(delivery.through), BTreeMap::new()))
}

#[async_trait]
impl Target for MemoryTarget {
    fn wants(&self) -> Wants {
        Wants { changes: ChangeForm::LatestPerKey, loads_max: 8, slices: true, atomic: true }
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

    async fn open(&self, task: &TaskId) -> Result<Progress> {
        let mut state = self.state.lock().await;
        let progress = &mut state.tasks.entry(task.clone()).or_default().progress;
        progress.epoch += 1;
        *self.lease.lock().await = Some((task.clone(), progress.epoch));
        *self.slices.lock().await = None;
        Ok(progress.clone())
    }

    async fn held(&self, task: &TaskId) -> Result<Option<Progress>> {
        Ok(self.state.lock().await.tasks.get(task).map(|held| held.progress.clone()))
    }

    async fn identify(&self, source: &SourceIdentity) -> Result<()> {
        let source = source.clone();
        self.write_held(|held| {
            held.progress.source = Some(source);
            Ok(())
        })
        .await
    }

    async fn prepare(&self, plan: &TablePlan) -> Result<()> {
        self.write(|state, task| state.prepare(task, plan)).await
    }

    async fn begin_copy(&self, table: &Arc<Table>, mark: CopyMark) -> Result<()> {
        self.write(|state, task| {
            let (held, content) = state.held(task, table)?;
            if held.progress.position.is_none() {
                held.progress.position = mark.stream_start;
            }
            let known = held.known(&table.name);
            known.state = TableState::Copying;
            known.cut = Some(mark.cut);
            known.chunks_done.clear();
            content.remove_copied();
            Ok(())
        })
        .await
    }

    async fn load(&self, mut chunk: ChunkRows) -> Result<u64> {
        let mut batches = Vec::new();
        while let Some(batch) = chunk.rows.next().await? {
            batches.push(batch);
        }
        let (table, number) = (&chunk.chunk.table, chunk.chunk.number);
        self.write(|state, task| {
            let (held, content) = state.held(task, table)?;
            let done = &mut held.known(&table.name).chunks_done;
            if done.contains(&number) {
                return Ok(0);
            }
            done.push(number);
            batches.iter().map(|batch| content.load(batch)).sum()
        })
        .await
    }

    async fn set_state(&self, table: &Arc<Table>, new: TableState) -> Result<()> {
        self.write_held(|held| {
            held.known(&table.name).state = new;
            Ok(())
        })
        .await
    }

    async fn forget(&self, table: Option<&TableName>) -> Result<()> {
        self.write_held(|held| {
            let progress = &mut held.progress;
            for known in
                progress.tables.iter_mut().filter(|known| table.is_none_or(|name| *name == known.name))
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
        let fault = self.next_fault().await;
        let failure = |class| Error::new(BROKEN_PROMISE, class, "a scripted fault");
        if let Some(Fault::Slow(time)) = fault {
            tokio::time::sleep(time).await;
        }
        if let Some(Fault::Before(class)) = fault {
            *self.slices.lock().await = None;
            return Err(failure(class));
        }
        let receipt = self.apply_unfaulted(&delivery).await?;
        match fault {
            Some(Fault::After(class)) if receipt != Receipt::Accepted => Err(failure(class)),
            _ => Ok(receipt),
        }
    }

    async fn discard(&self) -> Result<()> {
        *self.slices.lock().await = None;
        Ok(())
    }

    async fn evolve(&self, change: &SchemaChange) -> Result<()> {
        self.write(|state, task| {
            let held = state.tasks.entry(task.clone()).or_default();
            let name = held.tables.get(&change.before.name).cloned();
            match name.and_then(|name| state.tables.get_mut(&name)) {
                Some(content) => {
                    content.reshape(&change.after);
                    Ok(())
                }
                None => Err(promise(&change.before.name, "a change of a table that the task has not")),
            }
        })
        .await
    }

    async fn check(&self, plans: &[TablePlan]) -> Result<Vec<Finding>> {
        let mut state = self.state.lock().await.clone();
        let task = self.lease.lock().await.as_ref().map(|(task, _)| task.clone());
        let task = task.unwrap_or_else(|| TaskId::new(""));
        let finding = |plan: &TablePlan| {
            let subject = plan.table.name.to_string();
            match state.prepare(&task, plan) {
                Ok(()) => Finding::passed("target.table", subject, "can be prepared"),
                Err(failure) => Finding::from_error("target.table", subject, Outcome::Failed, &failure),
            }
        };
        Ok(plans.iter().map(finding).collect())
    }

    async fn describe(&self, plan: &TablePlan) -> Result<Vec<String>> {
        let state = self.state.lock().await;
        let name = &plan.table.target_name;
        let ours = state.tasks.values().any(|held| held.tables.get(&plan.table.name) == Some(name));
        let there = state.tables.contains_key(name);
        Ok(match (there, plan.if_exists) {
            (true, _) if ours => Vec::new(),
            (true, IfTargetExists::Error | IfTargetExists::Append) => Vec::new(),
            (true, IfTargetExists::Truncate) => vec![format!("empty {name}")],
            (true, IfTargetExists::Replace) => vec![format!("make {name} anew")],
            (false, _) => vec![format!("make {name}")],
        })
    }

    fn inspect(&self) -> &dyn Inspect {
        self
    }

    async fn close(&self) -> Result<()> {
        *self.slices.lock().await = None;
        Ok(())
    }
}

#[async_trait]
impl Inspect for MemoryTarget {
    async fn count(&self, table: &Table) -> Result<u64> {
        let state = self.state.lock().await;
        Ok(state.tables.get(&table.target_name).map_or(0, |content| content.rows.len() as u64))
    }

    async fn rows(
        &self,
        table: &Table,
        limit: Option<u64>,
        each: &mut (dyn FnMut(TextRow) -> Result<()> + Send),
    ) -> Result<()> {
        let state = self.state.lock().await;
        let Some(content) = state.tables.get(&table.target_name) else { return Ok(()) };
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
