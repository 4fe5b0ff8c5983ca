//! A target with other wants: every change, one load at a time, no slices, and receipts that say accepted before durable.
//!
//! ```text
//!   apply ──> held back ──third apply, or close──> memory ──> durable receipt
//! ```
//!
//! It keeps the contract as well, which shows that the suite tests such a target by its own measure.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use pgferry_model::{
    CellFormat, Column, Delivery, Finding, Position, Progress, Result as Answer, Slice, SourceIdentity,
    Table, TableName, TableState, TaskId, TypeKind,
};
use pgferry_pipeline::{
    ChangeForm, ChunkRows, ColumnMapping, CopyMark, DeletePolicy, Inspect, Receipt, SchemaChange,
    TableChanges, TablePlan, Target, TextRow, Wants, compact,
};
use pgferry_testkit::memory_target::MemoryTarget;
use pgferry_testkit::target_contract::{Scene, Scenery};
use tokio::sync::Mutex;

/// Deliveries that are held back at most.
const HELD_BACK_MAX: usize = 2;

struct Deferring {
    memory: MemoryTarget,
    deletes: Mutex<HashMap<TableName, DeletePolicy>>,
    held_back: Mutex<Vec<Arc<Delivery<TableChanges>>>>,
}

impl Deferring {
    async fn latest(&self, delivery: &Delivery<TableChanges>) -> Answer<Arc<Delivery<TableChanges>>> {
        let mut formed = Delivery { tables: Vec::new(), ..delivery.clone() };
        for changes in &delivery.tables {
            let TableChanges::Every(batch) = changes else { unreachable!("every change was wanted") };
            let deletes = self.deletes.lock().await.get(&batch.table().name).copied().unwrap_or_default();
            formed.tables.push(TableChanges::Latest(compact(batch.clone(), deletes)?));
        }
        Ok(Arc::new(formed))
    }

    async fn flush(&self) -> Answer<Option<Receipt>> {
        let mut receipt = None;
        for delivery in self.held_back.lock().await.drain(..) {
            receipt = Some(self.memory.apply(delivery).await?);
        }
        Ok(receipt)
    }

    /// Refuses what memory would refuse later: on a copy of all that is held, in the order in which it came.
    async fn verify(&self, delivery: &Arc<Delivery<TableChanges>>) -> Answer<()> {
        let copy = self.memory.copied().await;
        for earlier in self.held_back.lock().await.iter().chain([delivery]) {
            copy.apply(Arc::clone(earlier)).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Target for Deferring {
    fn wants(&self) -> Wants {
        Wants { changes: ChangeForm::EveryChange, loads_max: 1, slices: false, atomic: true }
    }

    fn snapshot_format(&self, table: &Table, column: &Column) -> CellFormat {
        self.memory.snapshot_format(table, column)
    }

    fn mapping(&self, table: &Table) -> Answer<Vec<ColumnMapping>> {
        self.memory.mapping(table)
    }

    async fn open(&self, task: &TaskId) -> Answer<Progress> {
        self.held_back.lock().await.clear();
        self.memory.open(task).await
    }

    async fn held(&self, task: &TaskId) -> Answer<Option<Progress>> {
        self.memory.held(task).await
    }

    async fn identify(&self, source: &SourceIdentity) -> Answer<()> {
        self.memory.identify(source).await
    }

    async fn prepare(&self, plan: &TablePlan) -> Answer<()> {
        self.deletes.lock().await.insert(plan.table.name.clone(), plan.deletes);
        self.memory.prepare(plan).await
    }

    async fn begin_copy(&self, table: &Arc<Table>, mark: CopyMark) -> Answer<()> {
        self.flush().await?;
        self.memory.begin_copy(table, mark).await
    }

    async fn load(&self, chunk: ChunkRows) -> Answer<u64> {
        self.memory.load(chunk).await
    }

    async fn set_state(&self, table: &Arc<Table>, state: TableState) -> Answer<()> {
        self.flush().await?;
        self.memory.set_state(table, state).await
    }

    async fn forget(&self, table: Option<&TableName>) -> Answer<()> {
        self.flush().await?;
        self.memory.forget(table).await
    }

    async fn apply(&self, delivery: Arc<Delivery<TableChanges>>) -> Answer<Receipt> {
        assert_eq!(delivery.slice, Slice::Whole, "no slices were wanted");
        let stored = self.memory.progress().await.position.unwrap_or(Position::ZERO);
        if delivery.through <= stored {
            return Ok(Receipt::Durable(stored));
        }
        let delivery = self.latest(&delivery).await?;
        self.verify(&delivery).await?;
        let held_back = {
            let mut held_back = self.held_back.lock().await;
            held_back.push(delivery);
            held_back.len()
        };
        if held_back <= HELD_BACK_MAX {
            return Ok(Receipt::Accepted);
        }
        Ok(self.flush().await?.unwrap_or(Receipt::Accepted))
    }

    async fn discard(&self) -> Answer<()> {
        self.memory.discard().await
    }

    async fn evolve(&self, change: &SchemaChange) -> Answer<()> {
        self.flush().await?;
        self.memory.evolve(change).await
    }

    async fn check(&self, plans: &[TablePlan]) -> Answer<Vec<Finding>> {
        self.memory.check(plans).await
    }

    async fn describe(&self, plan: &TablePlan) -> Answer<Vec<String>> {
        self.memory.describe(plan).await
    }

    fn inspect(&self) -> &dyn Inspect {
        &self.memory
    }

    async fn close(&self) -> Answer<()> {
        self.flush().await?;
        self.memory.close().await
    }
}

struct Place(MemoryTarget);

#[async_trait]
impl Scene for Place {
    async fn fresh() -> Result<Self> {
        Ok(Place(MemoryTarget::default()))
    }

    async fn holder(&self) -> Result<Arc<dyn Target>> {
        let memory = self.0.reopened();
        Ok(Arc::new(Deferring { memory, deletes: Mutex::default(), held_back: Mutex::default() }))
    }

    async fn put_foreign(&self, table: &Table, rows: &[TextRow]) -> Result<Scenery> {
        self.0.put_foreign(table, rows).await;
        Ok(Scenery::Set)
    }

    async fn remove_table(&self, table: &Table) -> Result<Scenery> {
        self.0.remove_table(table).await;
        Ok(Scenery::Set)
    }

    fn misfit(&self) -> Option<(TypeKind, &'static str)> {
        Some((TypeKind::Text, "secret\0value"))
    }
}

pgferry_testkit::target_contract!(Place);
