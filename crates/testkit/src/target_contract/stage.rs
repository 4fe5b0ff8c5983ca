//! What the promises are told with: tables, rows as text, changes, and a handle that is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgferry_model::{
    Batch, CellFormat, Class, Column, DataType, Delivery, Error, Op, Position, Progress, Slice, Table,
    TableId, TableName, TableState, TaskId, TypeKind,
};
use pgferry_pipeline::{
    ChangeForm, Chunk, ChunkRows, CopyMark, DeletePolicy, IfTargetExists, Receipt, RowSender, TableChanges,
    TablePlan, Target, TextRow, compact, rows_between,
};

use super::{Scene, Verdict};

/// A cell that is SQL NULL.
pub(super) const NULL: &str = "<null>";
/// A cell whose value the source did not send: the target keeps its own.
pub(super) const KEPT: &str = "<kept>";

pub(super) fn at(lsn: u64) -> Position {
    Position::from_lsn(lsn)
}

pub(super) fn task() -> TaskId {
    TaskId::new("shop")
}

pub(super) fn data_type(name: &str, kind: TypeKind) -> DataType {
    DataType {
        oid: 0,
        name: name.into(),
        kind,
        sends_binary: true,
        output_function: "pg_catalog.textout".into(),
    }
}

/// A table of schema `public`.
pub(super) fn table(name: &str, columns: &[(&str, TypeKind)], key: &[usize]) -> Table {
    let column = |(name, kind): &(&str, TypeKind)| Column {
        name: (*name).into(),
        data_type: data_type(&format!("{kind:?}").to_lowercase(), kind.clone()),
        nullable: true,
    };
    Table {
        id: TableId(0),
        name: TableName::new("public", name),
        target_name: TableName::new("public", name),
        columns: columns.iter().map(column).collect(),
        key: key.to_vec(),
        key_enforced: true,
        full_identity: false,
        rows_estimated: 0,
        bytes: 0,
    }
}

/// `people`: id (the key), name, body, n.
pub(super) fn people() -> Arc<Table> {
    let text = TypeKind::Text;
    let columns = [("id", TypeKind::Int4), ("name", text.clone()), ("body", text), ("n", TypeKind::Int8)];
    Arc::new(table("people", &columns, &[0]))
}

/// `orders`: id (the key) and a value.
pub(super) fn orders() -> Arc<Table> {
    let orders = table("orders", &[("id", TypeKind::Int8), ("item", TypeKind::Text)], &[0]);
    Arc::new(Table { id: TableId(1), ..orders })
}

pub(super) fn plan(table: &Arc<Table>, if_exists: IfTargetExists) -> TablePlan {
    TablePlan { table: Arc::clone(table), if_exists, deletes: DeletePolicy::Carry }
}

pub(super) fn text_row(cells: &[&str]) -> TextRow {
    cells.iter().map(|cell| (*cell != NULL).then(|| (*cell).to_owned())).collect()
}

pub(super) fn push(batch: &mut Batch, cells: &[&str]) {
    for cell in cells {
        match *cell {
            NULL => batch.push_null(),
            KEPT => batch.push_unchanged(),
            text => batch.push_value(CellFormat::Text, text.as_bytes()),
        }
    }
}

/// Rows as a snapshot brings them.
pub(super) fn snapshot_rows(table: &Arc<Table>, rows: &[&[&str]]) -> Batch {
    let mut batch = Batch::new(Arc::clone(table));
    for row in rows {
        batch.start_row(Op::Insert, 0);
        batch.start_new();
        push(&mut batch, row);
    }
    batch
}

/// One table's changes, in commit order.
pub(super) struct Changes {
    batch: Batch,
    sequence: u32,
}

impl Changes {
    pub(super) fn of(table: &Arc<Table>) -> Changes {
        Changes { batch: Batch::new(Arc::clone(table)), sequence: 0 }
    }

    fn start(&mut self, op: Op) {
        self.batch.start_row(op, self.sequence);
        self.sequence += 1;
    }

    fn start_new(&mut self, cells: &[&str]) {
        self.batch.start_new();
        push(&mut self.batch, cells);
    }

    /// The old tuple, from the key's cells in key order.
    fn start_old(&mut self, key: &[&str]) {
        let table = Arc::clone(self.batch.table());
        let mut cells = vec![NULL; table.columns.len()];
        for (cell, &at) in key.iter().zip(&table.key) {
            cells[at] = cell;
        }
        self.batch.start_old(false);
        push(&mut self.batch, &cells);
    }

    pub(super) fn insert(mut self, row: &[&str]) -> Self {
        self.start(Op::Insert);
        self.start_new(row);
        self
    }

    pub(super) fn update(mut self, row: &[&str]) -> Self {
        self.start(Op::Update);
        self.start_new(row);
        self
    }

    /// An update that changes the key.
    pub(super) fn moved(mut self, key: &[&str], row: &[&str]) -> Self {
        self.start(Op::Update);
        self.start_new(row);
        self.start_old(key);
        self
    }

    pub(super) fn delete(mut self, key: &[&str]) -> Self {
        self.start(Op::Delete);
        self.start_old(key);
        self
    }

    pub(super) fn truncate(mut self) -> Self {
        self.start(Op::Truncate);
        self
    }
}

/// The verdict on a promise that a target gives only where rows and what is stored with them are one commit.
pub(super) async fn not_atomic(scene: &dyn Scene) -> Result<Option<Verdict>> {
    let atomic = scene.holder().await?.wants().atomic;
    let reason = "its rows come before what is stored with them, and may come again";
    Ok((!atomic).then(|| Verdict::Untested(reason.into())))
}

/// A handle that is open, on a scene.
pub(super) struct Stage<'s> {
    pub(super) scene: &'s dyn Scene,
    pub(super) target: Arc<dyn Target>,
    deletes: DeletePolicy,
    /// The last position that was handed over.
    through: AtomicU64,
}

impl<'s> Stage<'s> {
    /// A handle of task [`task`], opened.
    pub(super) async fn open(scene: &'s dyn Scene) -> Result<Stage<'s>> {
        let target = scene.holder().await?;
        target.open(&task()).await.context("open")?;
        Ok(Stage { scene, target, deletes: DeletePolicy::Carry, through: AtomicU64::new(0) })
    }

    /// The same, with tables that are copied at position 100 and follow the stream.
    pub(super) async fn live(
        scene: &'s dyn Scene,
        tables: &[(&Arc<Table>, &[&[&str]])],
    ) -> Result<Stage<'s>> {
        let stage = Stage::open(scene).await?;
        for (table, rows) in tables {
            stage.copying(table, rows).await?;
            stage.target.set_state(table, TableState::Live).await.context("set_state")?;
        }
        Ok(stage)
    }

    pub(super) fn deletes(mut self, deletes: DeletePolicy) -> Self {
        self.deletes = deletes;
        self
    }

    /// Prepares a table, starts its copy at position 100, and loads its rows as chunk 0.
    pub(super) async fn copying(&self, table: &Arc<Table>, rows: &[&[&str]]) -> Result<()> {
        let plan = TablePlan { deletes: self.deletes, ..plan(table, IfTargetExists::Error) };
        self.target.prepare(&plan).await.context("prepare")?;
        self.target.begin_copy(table, mark(100)).await.context("begin_copy")?;
        self.through.store(100, Ordering::Relaxed);
        let loaded = self.load(table, 0, rows).await.context("load")?;
        ensure!(loaded == rows.len() as u64, "a load of {} rows was answered with {loaded}", rows.len());
        Ok(())
    }

    pub(super) async fn load(
        &self,
        table: &Arc<Table>,
        number: u32,
        rows: &[&[&str]],
    ) -> pgferry_model::Result<u64> {
        let batch = snapshot_rows(table, rows);
        load(&*self.target, number, batch).await
    }

    /// The delivery in the form that the target wants.
    pub(super) fn delivery(
        &self,
        after: u64,
        through: u64,
        slice: Slice,
        changes: Vec<Changes>,
    ) -> Result<Arc<Delivery<TableChanges>>> {
        let form = |Changes { batch, .. }: Changes| {
            Ok(match self.target.wants().changes {
                ChangeForm::EveryChange => TableChanges::Every(batch),
                ChangeForm::LatestPerKey => TableChanges::Latest(compact(batch, self.deletes)?),
            })
        };
        let tables = changes.into_iter().map(form).collect::<Result<Vec<_>>>()?;
        let (after, through) = (at(after), at(through));
        Ok(Arc::new(Delivery { after, through, tables, transactions: Vec::new(), slice }))
    }

    /// Applies a whole delivery; its own error is the inner one.
    pub(super) async fn apply(
        &self,
        through: u64,
        changes: Vec<Changes>,
    ) -> Result<pgferry_model::Result<Receipt>> {
        let delivery = self.delivery(through.saturating_sub(1), through, Slice::Whole, changes)?;
        let applied = self.target.apply(delivery).await;
        if applied.is_ok() {
            self.through.fetch_max(through, Ordering::Relaxed);
        }
        Ok(applied)
    }

    /// Applies a whole delivery and waits until it is durable.
    pub(super) async fn deliver(&self, through: u64, changes: Vec<Changes>) -> Result<()> {
        let receipt = self.apply(through, changes).await?.context("apply")?;
        self.settle(through, receipt).await
    }

    /// Waits for the durable receipt that covers a position: hands over empty deliveries, as a source that is idle does. They
    /// move the position by at most 90, which is why deliveries that follow each other are 100 apart.
    pub(super) async fn settle(&self, wanted: u64, receipt: Receipt) -> Result<()> {
        let mut receipt = receipt;
        self.through.fetch_max(wanted, Ordering::Relaxed);
        for number in 0..90u64 {
            match receipt {
                Receipt::Durable(position) if position >= at(wanted) => return Ok(()),
                Receipt::Durable(position) => {
                    anyhow::bail!("a receipt of {position} for a delivery through {}", at(wanted))
                }
                Receipt::Accepted => tokio::time::sleep(Duration::from_millis((5 * number).min(200))).await,
            }
            let next = self.through.load(Ordering::Relaxed) + 1;
            receipt = self.apply(next, Vec::new()).await?.context("an empty delivery")?;
        }
        anyhow::bail!("a delivery was accepted and did not become durable")
    }

    /// The task's progress as the newest holder finds it; raises the epoch.
    pub(super) async fn progress(&self) -> Result<Progress> {
        self.target.open(&task()).await.context("open")
    }

    /// The stored position is the last that was handed over.
    pub(super) async fn expect_position(&self, wanted: u64) -> Result<()> {
        let position = self.progress().await?.position;
        let last = at(self.through.load(Ordering::Relaxed).max(wanted));
        ensure!(
            position.is_some_and(|found| found >= at(wanted) && found <= last),
            "the stored position is {position:?}, not {}",
            at(wanted)
        );
        Ok(())
    }

    /// The table's rows as they are read back.
    pub(super) async fn rows(&self, table: &Table) -> Result<Vec<TextRow>> {
        rows(&*self.target, table, None).await
    }

    /// The table holds exactly these rows, in the order of the key's text; count and rows agree.
    pub(super) async fn expect(&self, table: &Table, wanted: &[&[&str]]) -> Result<()> {
        let found = self.rows(table).await?;
        let wanted: Vec<TextRow> = wanted.iter().map(|row| text_row(row)).collect();
        ensure!(found == wanted, "{} holds {found:?}, not {wanted:?}", table.name);
        let count = self.target.inspect().count(table).await.context("count")?;
        ensure!(count == found.len() as u64, "{} counts {count} rows and shows {}", table.name, found.len());
        Ok(())
    }

    /// The process ends without `close`, and another one opens.
    pub(super) async fn restart(self) -> Result<(Stage<'s>, Progress)> {
        let Stage { scene, target, deletes, through } = self;
        scene.crash().await.context("a crash")?;
        drop(target);
        let target = scene.holder().await?;
        let progress = target.open(&task()).await.context("open after a restart")?;
        Ok((Stage { scene, target, deletes, through }, progress))
    }
}

pub(super) fn mark(cut: u64) -> CopyMark {
    CopyMark { cut: at(cut), stream_start: Some(at(cut)) }
}

pub(super) async fn rows(target: &dyn Target, table: &Table, limit: Option<u64>) -> Result<Vec<TextRow>> {
    let mut all = Vec::new();
    let mut each = |row: TextRow| {
        all.push(row);
        Ok(())
    };
    target.inspect().rows(table, limit, &mut each).await.context("rows")?;
    Ok(all)
}

/// A chunk and the way for its rows.
pub(super) fn chunk(table: &Arc<Table>, number: u32) -> (ChunkRows, RowSender) {
    let chunk = Chunk { table: Arc::clone(table), number, count: 1, range: String::new(), bytes: 0 };
    let (sender, rows) = rows_between();
    (ChunkRows { chunk, rows }, sender)
}

/// Loads one batch as a chunk, with its end mark.
pub(super) async fn load(target: &dyn Target, number: u32, batch: Batch) -> pgferry_model::Result<u64> {
    let (rows, sender) = chunk(batch.table(), number);
    let count = batch.len() as u64;
    let sending = async move {
        sender.send(batch).await?;
        sender.end(count).await
    };
    let (loaded, _sent) = tokio::join!(target.load(rows), sending);
    loaded
}

/// The call failed, and its error belongs to that table.
pub(super) fn table_broken<T>(answer: pgferry_model::Result<T>, table: &Table, doing: &str) -> Result<Error> {
    let Err(failure) = answer else { anyhow::bail!("{doing} did not fail") };
    ensure!(
        failure.class() == Class::TableBroken && failure.table() == Some(&table.name),
        "{doing} failed as {:?} of {:?}, not as an error of {}: {failure}",
        failure.class(),
        failure.table(),
        table.name
    );
    Ok(failure)
}

/// A delivery of a holder which another one has replaced fails, at the latest where it would have become durable.
pub(super) async fn delivery_refused(stage: &Stage<'_>, through: u64, changes: Vec<Changes>) -> Result<()> {
    match stage.apply(through, changes).await? {
        Ok(receipt) => {
            ensure!(
                stage.settle(through, receipt).await.is_err(),
                "an older holder's delivery became durable"
            );
            Ok(())
        }
        failed => refused(failed, "apply"),
    }
}

/// The call failed, as that of a holder which another one has replaced.
pub(super) fn refused<T>(answer: pgferry_model::Result<T>, doing: &str) -> Result<()> {
    let Err(failure) = answer else { anyhow::bail!("an older holder's {doing} was not refused") };
    ensure!(
        failure.class() == Class::TaskBroken,
        "an older holder's {doing} failed as {:?}: {failure}",
        failure.class()
    );
    Ok(())
}
