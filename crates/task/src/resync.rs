//! What a task has to copy again: looked at first, forgotten when that is wanted; the next run copies.
//!
//! ```text
//!   look ──> what the target holds, whether the slot still serves it ──> (a yes) ──> forget ──> `pgferry run`
//! ```
//!
//! Invariants: looking changes no table, no position and no slot; a position is forgotten only together with every table, and only
//! where the slot can no longer go on from it; a slot is dropped only where the task makes slots. The rows stay in the target
//! until the next run replaces them.

use std::collections::BTreeSet;

use pgferry_model::{Code, Cure, Error, Position, Result, TableName, TableState, TaskCommand};
use pgferry_pipeline::{SyncMode, failpoint};
use pgferry_source_postgres::error::{
    HISTORY_LOST, PUBLICATION_AFTER_SLOT, PUBLICATION_MISSING, SLOT_AHEAD, SLOT_INVALIDATED, SLOT_MISSING,
};

use crate::registry;
use crate::slots::{self, Slot};
use crate::spec::{CONFLICT, Connection, Manage, Spec, TaskSpec};

/// The target holds nothing of the task.
pub const NOTHING_HELD: Code = Code::new("resync.nothing_held");

/// What says that the log cannot go on from the position: only everything anew helps.
const LOST: [Code; 6] =
    [SLOT_MISSING, SLOT_INVALIDATED, SLOT_AHEAD, HISTORY_LOST, PUBLICATION_MISSING, PUBLICATION_AFTER_SLOT];

/// A table that the next run would copy again.
#[derive(Clone, Debug)]
pub struct HeldTable {
    /// Its name in the source.
    pub name: TableName,
    /// What the target says of it.
    pub state: TableState,
    /// The position of its last copy's snapshot.
    pub cut: Option<Position>,
}

/// A position that no slot can go on from, or that the server has lost.
#[derive(Debug)]
pub struct LostPosition {
    /// What the target holds; `None`: none any more.
    pub position: Option<Position>,
    /// Why it is lost.
    pub why: Error,
    /// The old slot, where it is still there and the task makes slots.
    pub slot: Option<Slot>,
    /// Whether the next run makes the slot.
    pub makes_slot: bool,
}

/// What a resync of one task would do.
#[derive(Debug)]
pub struct Resync {
    /// The task.
    pub task: String,
    /// The tables, by name.
    pub tables: Vec<HeldTable>,
    /// Wanted tables that the target does not know.
    pub unknown: Vec<TableName>,
    /// The position, where it has to go too.
    pub lost: Option<LostPosition>,
    everything: bool,
}

/// Looks at a task. `wanted`: only these tables; empty: all of them.
pub async fn look(spec: &Spec, task: &TaskSpec, wanted: &[TableName]) -> Result<Resync> {
    if task.settings.sync_mode == SyncMode::CdcOnly {
        return Err(copies_nothing(task));
    }
    if let Some(Connection::Duckdb(file)) = spec.connections.get(&task.target)
        && !file.path.exists()
    {
        return Err(nothing_held(task, &format!("{} is not there yet", file.path.display())));
    }
    let target = registry::target(spec, task).await?;
    let progress = target.open(&task.id).await;
    target.close().await?;
    let progress = progress?;
    let lost = match registry::source(spec, task)?.verify_start(&progress).await {
        Ok(()) => None,
        Err(why) if wanted.is_empty() && LOST.contains(&why.code()) => {
            let slot = old_slot(spec, task).await?;
            let makes_slot = task.replication.manage == Manage::Create;
            Some(LostPosition { position: progress.position, why, slot, makes_slot })
        }
        Err(why) => return Err(why),
    };
    if progress.tables.is_empty() && lost.is_none() {
        return Err(nothing_held(task, "the target holds nothing of it"));
    }
    let names: BTreeSet<&TableName> = wanted.iter().collect();
    let mut tables: Vec<HeldTable> = progress
        .tables
        .iter()
        .filter(|table| names.is_empty() || names.contains(&table.name))
        .map(|table| HeldTable { name: table.name.clone(), state: table.state.clone(), cut: table.cut })
        .collect();
    tables.sort_by(|one, other| one.name.cmp(&other.name));
    let unknown = names.into_iter().filter(|name| progress.table(name).is_none()).cloned().collect();
    Ok(Resync { task: task.id.to_string(), tables, unknown, lost, everything: wanted.is_empty() })
}

/// Forgets what was looked at. The slot goes first: where it is in use, nothing is forgotten.
pub async fn forget(spec: &Spec, task: &TaskSpec, resync: &Resync) -> Result<()> {
    let slot = resync.lost.as_ref().and_then(|lost| lost.slot.as_ref());
    if let (Some(slot), Some(connection)) = (slot, spec.source_of(task)) {
        slots::drop(spec, connection, &slot.name, false).await?;
    }
    let target = registry::target(spec, task).await?;
    let forgotten = async {
        target.open(&task.id).await?;
        if resync.everything && resync.lost.is_some() {
            return target.forget(None).await;
        }
        for table in &resync.tables {
            failpoint::pass("resync.before_forget");
            target.forget(Some(&table.name)).await?;
            failpoint::pass("resync.after_forget");
        }
        Ok(())
    };
    let forgotten = forgotten.await;
    let closed = target.close().await;
    forgotten?;
    closed
}

async fn old_slot(spec: &Spec, task: &TaskSpec) -> Result<Option<Slot>> {
    match spec.source_of(task) {
        Some(connection) if task.replication.manage == Manage::Create => {
            let slots = slots::list(spec, connection).await?;
            Ok(slots.into_iter().find(|slot| slot.name == task.replication.slot))
        }
        _ => Ok(None),
    }
}

fn nothing_held(task: &TaskSpec, why: &str) -> Error {
    Error::task_broken(NOTHING_HELD, format!("task {} has nothing to copy again: {why}", task.id))
        .with_cause("tables can be copied again once a run has copied them")
        .with_cure(Cure::advice("start it: the first run copies every table").command(TaskCommand::Run(None)))
}

fn copies_nothing(task: &TaskSpec) -> Error {
    Error::task_broken(
        CONFLICT,
        format!("task {} copies no tables (sync_mode = \"cdc_only\"), so none can be copied again", task.id),
    )
    .with_cause("it carries changes only; the rows from before came by another way")
    .with_cure(
        Cure::advice(
            "let it copy, in the task file, then resync again; the rows that the target holds are replaced",
        )
        .line("sync_mode = \"snapshot_cdc\"")
        .resync(),
    )
}
