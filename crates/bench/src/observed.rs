//! A target that is another one, with a clock: how long each delivery takes, and how old each transaction is when it is durable.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use pgferry_model::{
    CellFormat, Column, Delivery, Error, Finding, Progress, Result, SourceIdentity, Table, TableName,
    TableState, TaskId,
};
use pgferry_pipeline::{
    ChunkRows, ColumnMapping, CopyMark, Inspect, Receipt, SchemaChange, TableChanges, TablePlan, Target,
    Wants,
};

/// What the clock showed.
#[derive(Default)]
pub(crate) struct Seen {
    /// From the commit in the source until the transaction was durable and visible in the target, in microseconds.
    pub(crate) ages_us: Vec<i64>,
    /// In `apply`, all deliveries together.
    pub(crate) applying: Duration,
    /// In `prepare_all`.
    pub(crate) preparing: Duration,
    /// In `begin_copies`.
    pub(crate) beginning: Duration,
    /// In `load_tables`, all of them together.
    pub(crate) loading: Duration,
    /// In `close`, with its checkpoint.
    pub(crate) closing: Duration,
}

pub(crate) struct Observed {
    inner: Arc<dyn Target>,
    pub(crate) seen: Arc<Mutex<Seen>>,
}

impl Observed {
    pub(crate) fn new(inner: Arc<dyn Target>) -> Self {
        Observed { inner, seen: Arc::default() }
    }
}

fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

#[async_trait]
impl Target for Observed {
    fn wants(&self) -> Wants {
        self.inner.wants()
    }

    fn snapshot_format(&self, table: &Table, column: &Column) -> CellFormat {
        self.inner.snapshot_format(table, column)
    }

    fn place_of(&self, table: &Table) -> String {
        self.inner.place_of(table)
    }

    fn mapping(&self, table: &Table) -> Result<Vec<ColumnMapping>> {
        self.inner.mapping(table)
    }

    async fn open(&self, task: &TaskId) -> Result<Progress> {
        self.inner.open(task).await
    }

    async fn held(&self, task: &TaskId) -> Result<Option<Progress>> {
        self.inner.held(task).await
    }

    async fn identify(&self, source: &SourceIdentity) -> Result<()> {
        self.inner.identify(source).await
    }

    async fn prepare(&self, plan: &TablePlan) -> Result<()> {
        self.inner.prepare(plan).await
    }

    async fn prepare_all(&self, plans: &[TablePlan]) -> Result<()> {
        let started = Instant::now();
        let prepared = self.inner.prepare_all(plans).await;
        self.seen.lock().preparing += started.elapsed();
        prepared
    }

    async fn begin_copies(&self, tables: &[Arc<Table>], mark: CopyMark) -> Result<()> {
        let started = Instant::now();
        let begun = self.inner.begin_copies(tables, mark).await;
        self.seen.lock().beginning += started.elapsed();
        begun
    }

    async fn load_tables(&self, tables: Vec<(ChunkRows, TableState)>) -> Result<Vec<u64>> {
        let started = Instant::now();
        let loaded = self.inner.load_tables(tables).await;
        self.seen.lock().loading += started.elapsed();
        loaded
    }

    async fn set_states(&self, tables: &[Arc<Table>], state: TableState) -> Result<()> {
        self.inner.set_states(tables, state).await
    }

    async fn begin_copy(&self, table: &Arc<Table>, mark: CopyMark) -> Result<()> {
        self.inner.begin_copy(table, mark).await
    }

    async fn load(&self, chunk: ChunkRows) -> Result<u64> {
        self.inner.load(chunk).await
    }

    async fn set_state(&self, table: &Arc<Table>, state: TableState) -> Result<()> {
        self.inner.set_state(table, state).await
    }

    async fn forget(&self, table: Option<&TableName>) -> Result<()> {
        self.inner.forget(table).await
    }

    async fn apply(&self, delivery: Arc<Delivery<TableChanges>>) -> Result<Receipt> {
        let started = Instant::now();
        let receipt = self.inner.apply(Arc::clone(&delivery)).await?;
        let now = now_us();
        let mut seen = self.seen.lock();
        seen.applying += started.elapsed();
        if let Receipt::Durable(_) = receipt {
            seen.ages_us.extend(delivery.transactions.iter().map(|mark| now - mark.committed_at_us));
        }
        Ok(receipt)
    }

    async fn discard(&self) -> Result<()> {
        self.inner.discard().await
    }

    async fn evolve(&self, change: &SchemaChange) -> Result<()> {
        self.inner.evolve(change).await
    }

    async fn check(&self, plans: &[TablePlan]) -> Result<Vec<Finding>> {
        self.inner.check(plans).await
    }

    async fn describe(&self, plan: &TablePlan) -> Result<Vec<String>> {
        self.inner.describe(plan).await
    }

    fn inspect(&self) -> &dyn Inspect {
        self.inner.inspect()
    }

    fn outcome_unknown(&self, error: &Error) -> bool {
        self.inner.outcome_unknown(error)
    }

    async fn close(&self) -> Result<()> {
        let started = Instant::now();
        let closed = self.inner.close().await;
        self.seen.lock().closing += started.elapsed();
        closed
    }
}
