//! What a run would make, and what it would cost: nothing is changed by asking.

use std::sync::Arc;

use pgferry_model::{Result, Table, TableName};
use pgferry_pipeline::SyncMode;
use pgferry_postgres::{Purpose, Session, quote_literal};

use crate::check::plans;
use crate::connect::connection_config;
use crate::registry;
use crate::spec::{Manage, PostgresConnection, Spec, TaskSpec};

/// An object of the source that the task needs.
#[derive(Debug)]
pub struct SourceObject {
    /// `publication` or `slot`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub exists: bool,
    /// Whether the run would make it.
    pub creates: bool,
}

/// A table, as the run would carry it.
#[derive(Debug)]
pub struct PlannedTable {
    /// Its name in the source.
    pub source: TableName,
    /// What holds it in the target.
    pub target: String,
    /// Estimated rows.
    pub rows: u64,
    /// Bytes of heap and TOAST.
    pub bytes: u64,
    /// Chunks that its copy would have; `None` where the source cannot tell before.
    pub chunks: Option<usize>,
    /// Whether it follows the stream; without a key it is carried by snapshot only.
    pub streams: bool,
    /// The statements that would make it in the target.
    pub ddl: Vec<String>,
}

/// A task's plan.
#[derive(Debug)]
pub struct Planned {
    /// The task.
    pub task: String,
    /// Publication and slot; empty for a task that ends with the snapshot.
    pub objects: Vec<SourceObject>,
    /// The tables.
    pub tables: Vec<PlannedTable>,
    /// Parts of tables that are copied at once.
    pub workers: usize,
    /// What to know before the start.
    pub notes: Vec<String>,
}

impl Planned {
    /// Whether the run would make anything that is not there.
    pub fn changes(&self) -> bool {
        self.objects.iter().any(|object| object.creates)
            || self.tables.iter().any(|table| !table.ddl.is_empty())
    }
}

/// Plans a task.
pub async fn plan(spec: &Spec, task: &TaskSpec) -> Result<Planned> {
    let source = registry::source(spec, task)?;
    let tables = source.tables().await?;
    let streams = task.settings.sync_mode != SyncMode::Snapshot;
    let objects = match spec.source_of(task) {
        Some(connection) if streams => objects(connection, task).await?,
        _ => Vec::new(),
    };
    let target = registry::target(spec, task).await?;
    let mut planned = Vec::new();
    for plan in plans(task, &tables) {
        planned.push(PlannedTable {
            source: plan.table.name.clone(),
            target: target.place_of(&plan.table),
            rows: plan.table.rows_estimated,
            bytes: plan.table.bytes,
            chunks: source.chunks_estimated(&plan.table).await?,
            streams: streams && !plan.table.key.is_empty(),
            ddl: target.describe(&plan).await?,
        });
    }
    target.close().await?;
    let notes = notes(task, &tables, &objects);
    Ok(Planned { task: task.id.to_string(), objects, tables: planned, workers: task.settings.workers, notes })
}

async fn objects(connection: &PostgresConnection, task: &TaskSpec) -> Result<Vec<SourceObject>> {
    let mut session = Session::connect(&connection_config(connection, "plan")?, Purpose::Query).await?;
    let (publication, slot) = (&task.replication.publication, &task.replication.slot);
    let rows = session
        .simple_query(&format!(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = {}), \
             EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = {})",
            quote_literal(publication),
            quote_literal(slot)
        ))
        .await?;
    session.close().await?;
    let there = |column: usize| {
        rows.first().and_then(|row| row.get(column)).is_some_and(|v| v.as_deref() == Some("t"))
    };
    let object = |kind, name: &String, exists: bool| SourceObject {
        kind,
        name: name.clone(),
        exists,
        creates: !exists && task.replication.manage == Manage::Create,
    };
    Ok(vec![object("publication", publication, there(0)), object("slot", slot, there(1))])
}

fn notes(task: &TaskSpec, tables: &[Arc<Table>], objects: &[SourceObject]) -> Vec<String> {
    let mut notes = Vec::new();
    for object in objects.iter().filter(|object| !object.exists && !object.creates) {
        let why = "and the task makes nothing (manage = \"never\")";
        notes.push(format!("{} {} is not there, {why}", object.kind, object.name));
    }
    if task.settings.sync_mode == SyncMode::SnapshotCdc {
        notes.push(
            "while the snapshot is copied, the slot keeps the server's log: what is written meanwhile stays on its disk"
                .to_owned(),
        );
    }
    if task.settings.sync_mode != SyncMode::Snapshot {
        for table in tables.iter().filter(|table| table.key.is_empty()) {
            notes.push(format!(
                "{} has no key: its rows are copied once, its changes are not followed",
                table.name
            ));
        }
    }
    notes
}
