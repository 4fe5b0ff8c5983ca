//! A memory target with one fault: what it is handed or what it answers is changed on the way.

use std::sync::Arc;

use async_trait::async_trait;
use pgferry_model::{
    Batch, Cell, CellFormat, Class, Column, Delivery, Error, Finding, Op, Position, Progress, Result, Row,
    Slice, SourceIdentity, Table, TableName, TableState, TaskId,
};
use pgferry_pipeline::{
    ChunkRows, ColumnMapping, Compacted, CopyMark, DeletePolicy, IfTargetExists, Inspect, Receipt,
    SchemaChange, TableChanges, TablePlan, Target, TextRow, Wants, compact, rows_between,
};
use pgferry_testkit::memory_target::MemoryTarget;
use tokio::sync::Mutex;

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// Rows are stored with a position before their own.
    PositionLeftBehind,
    /// Rows are stored after their receipt.
    DurableTooEarly,
    /// The last table of a delivery is left out.
    TableLeftOut,
    /// A delivery at or before the stored position is applied.
    AppliedTwice,
    /// A chunk is not recorded.
    ChunkNotRecorded,
    /// A chunk is recorded apart from its rows, which are not there.
    ChunkWithoutRows,
    /// What came of a chunk counts as the whole.
    EndMarkIgnored,
    /// Everybody may write.
    Unfenced,
    /// Opening tells of a position that nobody stored.
    PositionInvented,
    /// Opening does not raise the epoch.
    EpochNotRaised,
    /// Looking raises the epoch.
    LookTakesLease,
    /// Slices are applied as they come.
    SlicesVisible,
    /// Kept slices are not dropped when they have to be.
    SlicesNotDiscarded,
    /// A copy that is begun again keeps what is there.
    OldCopyKept,
    /// A copy that is begun drops every row, whosever it is.
    EverythingDropped,
    /// A table of others is replaced, whatever the user said.
    ForeignTableReplaced,
    /// Telling what would be done does it.
    ToldAndDone,
    /// Preparing a table empties it.
    EmptiedWhenPrepared,
    /// Deletes are not applied.
    DeletesIgnored,
    /// Unchanged values become NULL.
    UnchangedLost,
    /// A value that does not fit is made to fit.
    MisfitChanged,
    /// A table's error stops the task.
    WrongClass,
    /// States are not stored.
    StateNotStored,
    /// What positions belong to is not stored.
    SourceNotStored,
    /// Forgetting one table forgets all, and forgetting all forgets the tables only.
    ForgetsWrongly,
    /// Rows are shown in the wrong order.
    OrderReversed,
    /// Only the first row is shown.
    RowsHidden,
    /// Evolving says that it is done.
    EvolveNotDone,
    /// Every task is one.
    TasksMixed,
    /// It cannot be closed twice.
    CloseFails,
    /// Texts lose what is not ASCII.
    Ascii,
    /// What was loaded last is shown with another mapping.
    MappingChanges,
}

/// A handle. `newest` is the handle that was opened last, of all.
pub(crate) struct Broken {
    pub(crate) fault: Fault,
    pub(crate) inner: Arc<MemoryTarget>,
    pub(crate) newest: Arc<Mutex<Option<Arc<MemoryTarget>>>>,
    late: Mutex<Option<Arc<Delivery<TableChanges>>>>,
    closed: Mutex<bool>,
}

impl Broken {
    pub(crate) fn new(
        fault: Fault,
        inner: MemoryTarget,
        newest: Arc<Mutex<Option<Arc<MemoryTarget>>>>,
    ) -> Self {
        Broken { fault, inner: Arc::new(inner), newest, late: Mutex::default(), closed: Mutex::default() }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// Who writes.
    async fn writer(&self) -> Arc<MemoryTarget> {
        let newest = self.newest.lock().await.clone();
        newest.filter(|_| self.is(Fault::Unfenced)).unwrap_or_else(|| Arc::clone(&self.inner))
    }

    fn told<T>(&self, answer: Result<T>) -> Result<T> {
        answer.map_err(|failure| {
            if self.is(Fault::WrongClass) { failure.with_class(Class::TaskBroken) } else { failure }
        })
    }

    async fn stored(&self) -> Position {
        self.inner.progress().await.position.unwrap_or(Position::ZERO)
    }

    /// The delivery as the fault leaves it.
    async fn spoilt(&self, delivery: &Delivery<TableChanges>) -> Delivery<TableChanges> {
        let mut spoilt = delivery.clone();
        let after_stored = Position::from_lsn(self.stored().await.lsn() + 1);
        match self.fault {
            Fault::PositionLeftBehind if delivery.through > after_stored => spoilt.through = after_stored,
            Fault::AppliedTwice if delivery.through < after_stored => spoilt.through = after_stored,
            Fault::TableLeftOut if spoilt.tables.len() > 1 => drop(spoilt.tables.pop()),
            Fault::SlicesVisible if delivery.slice != Slice::Whole => {
                spoilt.slice = Slice::Whole;
                spoilt.through = spoilt.through.max(after_stored);
            }
            Fault::SlicesNotDiscarded if delivery.slice == Slice::Whole => spoilt.slice = Slice::Last,
            Fault::DeletesIgnored | Fault::UnchangedLost | Fault::MisfitChanged | Fault::Ascii => {
                spoilt.tables = spoilt.tables.iter().map(|changes| self.changes(changes)).collect();
            }
            _ => {}
        }
        spoilt
    }

    fn changes(&self, changes: &TableChanges) -> TableChanges {
        let TableChanges::Latest(compacted) = changes else { return changes.clone() };
        if self.is(Fault::DeletesIgnored) {
            let mut kept: Compacted = compacted.clone();
            (kept.deletes, kept.truncate) = (Vec::new(), false);
            return TableChanges::Latest(kept);
        }
        let batch = compacted.batch();
        let mut again = Batch::new(Arc::clone(batch.table()));
        if compacted.truncate {
            again.start_row(Op::Truncate, 0);
        }
        for key in &compacted.deletes {
            again.start_row(Op::Delete, 0);
            again.start_old(false);
            self.push(&mut again, batch.tuple(key.0).unwrap());
        }
        for upsert in &compacted.upserts {
            let op = if upsert.new_to_target { Op::Insert } else { Op::Update };
            again.start_row(op, 0);
            again.start_new();
            self.push(&mut again, batch.tuple(upsert.tuple).unwrap());
        }
        // A batch that cannot be made again stays as it is.
        compact(again, DeletePolicy::Carry).map_or_else(|_| changes.clone(), TableChanges::Latest)
    }

    fn push(&self, batch: &mut Batch, row: Row<'_>) {
        for cell in row.cells() {
            match cell {
                Cell::Unchanged if !self.is(Fault::UnchangedLost) => batch.push_unchanged(),
                Cell::Null | Cell::Unchanged => batch.push_null(),
                Cell::Text(bytes) | Cell::Binary(bytes) => {
                    let text = String::from_utf8_lossy(bytes);
                    let kept: String = match self.fault {
                        Fault::MisfitChanged => text.replace('\0', ""),
                        Fault::Ascii => text.chars().filter(char::is_ascii).collect(),
                        _ => text.into_owned(),
                    };
                    batch.push_value(CellFormat::Text, kept.as_bytes());
                }
            }
        }
    }

    /// Loads what came, with an end mark of its own, under a number.
    async fn load_what_came(&self, mut chunk: ChunkRows) -> Result<u64> {
        let (sender, rows) = rows_between();
        let mut batches = Vec::new();
        let failure = loop {
            match chunk.rows.next().await {
                Ok(Some(batch)) => batches.push(batch),
                Ok(None) => break None,
                Err(failure) => break Some(failure),
            }
        };
        if let Some(failure) = failure.filter(|_| !self.is(Fault::EndMarkIgnored)) {
            return Err(failure);
        }
        let known = self.inner.progress().await;
        let chunks =
            known.table(&chunk.chunk.table.name).map(|known| known.chunks_done.clone()).unwrap_or_default();
        let again = chunks.contains(&chunk.chunk.number);
        let number = if self.is(Fault::ChunkNotRecorded) && again {
            1000 + chunks.len() as u32
        } else {
            chunk.chunk.number
        };
        let count = batches.iter().map(|batch| batch.len() as u64).sum();
        let answer = if self.is(Fault::ChunkWithoutRows) { 0 } else { count };
        let sending = async move {
            for batch in batches.into_iter().filter(|_| answer > 0) {
                let mut sent = Batch::new(Arc::clone(batch.table()));
                for row in batch.rows() {
                    sent.start_row(Op::Insert, 0);
                    sent.start_new();
                    self.push(&mut sent, row.new.unwrap());
                }
                sender.send(sent).await?;
            }
            sender.end(answer).await
        };
        let mut chunk = ChunkRows { rows, ..chunk };
        chunk.chunk.number = number;
        let target = self.writer().await;
        let (loaded, _) = tokio::join!(target.load(chunk), sending);
        loaded.map(|loaded| if self.is(Fault::ChunkWithoutRows) { count } else { loaded })
    }

    fn task(&self, task: &TaskId) -> TaskId {
        if self.is(Fault::TasksMixed) { TaskId::new("all") } else { task.clone() }
    }
}

#[async_trait]
impl Target for Broken {
    fn wants(&self) -> Wants {
        self.inner.wants()
    }

    fn snapshot_format(&self, table: &Table, column: &Column) -> CellFormat {
        self.inner.snapshot_format(table, column)
    }

    fn mapping(&self, table: &Table) -> Result<Vec<ColumnMapping>> {
        let mut mapping = self.inner.mapping(table)?;
        if self.is(Fault::MappingChanges) {
            mapping.reverse();
        }
        Ok(mapping)
    }

    async fn open(&self, task: &TaskId) -> Result<Progress> {
        let mut progress = self.inner.open(&self.task(task)).await?;
        *self.newest.lock().await = Some(Arc::clone(&self.inner));
        if self.is(Fault::EpochNotRaised) {
            progress.epoch = 1;
        }
        if self.is(Fault::PositionInvented) {
            progress.position = progress.position.or(Some(Position::ZERO));
        }
        Ok(progress)
    }

    async fn held(&self, task: &TaskId) -> Result<Option<Progress>> {
        if self.is(Fault::LookTakesLease) {
            self.inner.reopened().open(task).await?;
        }
        self.inner.held(&self.task(task)).await
    }

    async fn identify(&self, source: &SourceIdentity) -> Result<()> {
        if self.is(Fault::SourceNotStored) {
            return Ok(());
        }
        self.writer().await.identify(source).await
    }

    async fn prepare(&self, plan: &TablePlan) -> Result<()> {
        let mut plan = plan.clone();
        if self.is(Fault::ForeignTableReplaced) {
            plan.if_exists = IfTargetExists::Replace;
        }
        let target = self.writer().await;
        self.told(target.prepare(&plan).await)?;
        if self.is(Fault::EmptiedWhenPrepared) {
            target.put_foreign(&plan.table, &[]).await;
        }
        Ok(())
    }

    async fn begin_copy(&self, table: &Arc<Table>, mark: CopyMark) -> Result<()> {
        let begun = self.inner.progress().await.table(&table.name).is_some_and(|known| known.cut.is_some());
        if self.is(Fault::OldCopyKept) && begun {
            return Ok(());
        }
        if self.is(Fault::EverythingDropped) {
            self.inner.put_foreign(table, &[]).await;
        }
        self.told(self.writer().await.begin_copy(table, mark).await)
    }

    async fn load(&self, chunk: ChunkRows) -> Result<u64> {
        self.told(self.load_what_came(chunk).await)
    }

    async fn set_state(&self, table: &Arc<Table>, state: TableState) -> Result<()> {
        let seen = state == TableState::Live || state == TableState::CatchingUp;
        if self.is(Fault::StateNotStored) && !seen {
            return Ok(());
        }
        self.writer().await.set_state(table, state).await
    }

    async fn forget(&self, table: Option<&TableName>) -> Result<()> {
        let target = self.writer().await;
        if !self.is(Fault::ForgetsWrongly) {
            return target.forget(table).await;
        }
        match table {
            Some(_) => target.forget(None).await,
            None => {
                for known in self.inner.progress().await.tables {
                    target.forget(Some(&known.name)).await?;
                }
                Ok(())
            }
        }
    }

    async fn apply(&self, delivery: Arc<Delivery<TableChanges>>) -> Result<Receipt> {
        let target = self.writer().await;
        if self.is(Fault::DurableTooEarly) && delivery.slice == Slice::Whole {
            let before = self.late.lock().await.replace(Arc::clone(&delivery));
            if let Some(before) = before {
                target.apply(before).await?;
            }
            return Ok(Receipt::Durable(delivery.through));
        }
        let spoilt = self.spoilt(&delivery).await;
        let receipt = self.told(target.apply(Arc::new(spoilt)).await)?;
        Ok(match (self.fault, delivery.slice) {
            (Fault::SlicesVisible, Slice::Part) => Receipt::Accepted,
            (Fault::PositionLeftBehind, Slice::Whole | Slice::Last) => Receipt::Durable(delivery.through),
            _ => receipt,
        })
    }

    async fn discard(&self) -> Result<()> {
        if self.is(Fault::SlicesNotDiscarded) { Ok(()) } else { self.inner.discard().await }
    }

    async fn evolve(&self, change: &SchemaChange) -> Result<()> {
        if self.is(Fault::EvolveNotDone) { Ok(()) } else { self.writer().await.evolve(change).await }
    }

    async fn check(&self, plans: &[TablePlan]) -> Result<Vec<Finding>> {
        self.inner.check(plans).await
    }

    async fn describe(&self, plan: &TablePlan) -> Result<Vec<String>> {
        let told = self.inner.describe(plan).await?;
        if self.is(Fault::ToldAndDone) {
            self.inner.prepare(plan).await?;
        }
        Ok(told)
    }

    fn inspect(&self) -> &dyn Inspect {
        self
    }

    async fn close(&self) -> Result<()> {
        let closed = std::mem::replace(&mut *self.closed.lock().await, true);
        if self.is(Fault::CloseFails) && closed {
            return Err(Error::transient(pgferry_pipeline::error::WORKER_LOST, "closed already"));
        }
        self.inner.close().await
    }
}

#[async_trait]
impl Inspect for Broken {
    async fn count(&self, table: &Table) -> Result<u64> {
        self.inner.count(table).await
    }

    async fn rows(
        &self,
        table: &Table,
        limit: Option<u64>,
        each: &mut (dyn FnMut(TextRow) -> Result<()> + Send),
    ) -> Result<()> {
        let mut all = Vec::new();
        let mut keep = |row: TextRow| {
            all.push(row);
            Ok(())
        };
        self.inner.rows(table, limit, &mut keep).await?;
        match self.fault {
            Fault::OrderReversed => all.reverse(),
            Fault::RowsHidden => all.truncate(1),
            _ => {}
        }
        all.into_iter().try_for_each(each)
    }
}
