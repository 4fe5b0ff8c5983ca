//! The null target: everything a columnar target does up to the Arrow batch, which is then dropped.
//!
//! A real target, not a shortcut past the engine: it asks for binary cells where an Arrow column takes them, encodes every row and
//! every final change with the types of the DuckDB target, and keeps its progress in memory. Nothing can be read back.

use std::sync::Arc;

use async_trait::async_trait;
use pgferry_columnar::{Encoding, encode_column};
use pgferry_model::{
    Batch, CellFormat, Code, Column, Delivery, Error, Finding, Position, Progress, Result, Slice,
    SourceIdentity, Table, TableName, TableProgress, TableState, TaskId,
};
use pgferry_pipeline::{
    ChangeForm, ChunkRows, ColumnMapping, CopyMark, Fidelity, Inspect, Receipt, SchemaChange, TableChanges,
    TablePlan, Target, TextRow, Wants,
};
use pgferry_target_duckdb::map_type;
use tokio::sync::Mutex;

const UNFIT: Code = pgferry_pipeline::error::ROW_MALFORMED;

/// The target.
#[derive(Default)]
pub(crate) struct NullTarget {
    progress: Mutex<Progress>,
}

fn encodings(table: &Table) -> Vec<Encoding> {
    table.columns.iter().map(|column| map_type(&column.data_type, None).encoding).collect()
}

fn encode(batch: &Batch, tuples: &[u32], columns: &[usize], encodings: &[Encoding]) -> Result<()> {
    for &column in columns {
        let array = encode_column(batch, tuples, column, &encodings[column])
            .map_err(|unfit| Error::task_broken(UNFIT, unfit.reason))?;
        std::hint::black_box(array);
    }
    Ok(())
}

fn encode_changes(changes: &TableChanges) -> Result<()> {
    let TableChanges::Latest(compacted) = changes else {
        return Err(Error::task_broken(UNFIT, "every change was not asked for"));
    };
    let batch = compacted.batch();
    let table = batch.table();
    let encodings = encodings(table);
    let all: Vec<usize> = (0..table.columns.len()).collect();
    let deletes: Vec<u32> = compacted.deletes.iter().map(|delete| delete.0).collect();
    let upserts: Vec<u32> = compacted.upserts.iter().map(|upsert| upsert.tuple).collect();
    encode(batch, &deletes, &table.key, &encodings)?;
    encode(batch, &upserts, &all, &encodings)
}

fn load_rows(mut chunk: ChunkRows) -> Result<u64> {
    let mut rows = 0;
    while let Some(batch) = chunk.rows.blocking_next()? {
        let table = Arc::clone(batch.table());
        let tuples: Vec<u32> = (0..batch.len()).filter_map(|row| batch.new_tuple_at(row)).collect();
        encode(&batch, &tuples, &(0..table.columns.len()).collect::<Vec<_>>(), &encodings(&table))?;
        rows += tuples.len() as u64;
        chunk.rows.give_back(batch);
    }
    Ok(rows)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|failure| Error::transient(UNFIT, "the encoder's thread ended").with_origin(failure))?
}

impl NullTarget {
    async fn known<T>(&self, table: &Table, change: impl FnOnce(&mut TableProgress) -> T) -> T {
        let mut progress = self.progress.lock().await;
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
        change(&mut progress.tables[at])
    }
}

#[async_trait]
impl Target for NullTarget {
    fn wants(&self) -> Wants {
        Wants { changes: ChangeForm::LatestPerKey, loads_max: 16, slices: true, atomic: true }
    }

    fn snapshot_format(&self, _table: &Table, column: &Column) -> CellFormat {
        map_type(&column.data_type, None).snapshot_format(&column.data_type)
    }

    fn mapping(&self, table: &Table) -> Result<Vec<ColumnMapping>> {
        let mapping = |column: &Column| ColumnMapping {
            column: column.name.to_string(),
            source_type: column.data_type.name.to_string(),
            target_type: map_type(&column.data_type, None).name,
            fidelity: Fidelity::Exact,
            note: String::new(),
        };
        Ok(table.columns.iter().map(mapping).collect())
    }

    async fn open(&self, _task: &TaskId) -> Result<Progress> {
        let mut progress = self.progress.lock().await;
        progress.epoch += 1;
        Ok(progress.clone())
    }

    async fn held(&self, _task: &TaskId) -> Result<Option<Progress>> {
        Ok(Some(self.progress.lock().await.clone()))
    }

    async fn identify(&self, source: &SourceIdentity) -> Result<()> {
        self.progress.lock().await.source = Some(source.clone());
        Ok(())
    }

    async fn prepare(&self, plan: &TablePlan) -> Result<()> {
        self.known(&plan.table, |_| ()).await;
        Ok(())
    }

    async fn begin_copy(&self, table: &Arc<Table>, mark: CopyMark) -> Result<()> {
        self.known(table, |known| {
            known.state = TableState::Copying;
            known.cut = Some(mark.cut);
            known.chunks_done.clear();
        })
        .await;
        let mut progress = self.progress.lock().await;
        progress.position = progress.position.or(mark.stream_start);
        Ok(())
    }

    async fn load(&self, chunk: ChunkRows) -> Result<u64> {
        let (table, number) = (Arc::clone(&chunk.chunk.table), chunk.chunk.number);
        let rows = blocking(|| load_rows(chunk)).await?;
        self.known(&table, |known| known.chunks_done.push(number)).await;
        Ok(rows)
    }

    async fn set_state(&self, table: &Arc<Table>, state: TableState) -> Result<()> {
        self.known(table, |known| known.state = state).await;
        Ok(())
    }

    async fn forget(&self, _table: Option<&TableName>) -> Result<()> {
        *self.progress.lock().await = Progress::default();
        Ok(())
    }

    async fn apply(&self, delivery: Arc<Delivery<TableChanges>>) -> Result<Receipt> {
        let (through, slice) = (delivery.through, delivery.slice);
        blocking(move || delivery.tables.iter().try_for_each(encode_changes)).await?;
        if slice == Slice::Part {
            return Ok(Receipt::Accepted);
        }
        let mut progress = self.progress.lock().await;
        let reached = progress.position.unwrap_or(Position::ZERO).max(through);
        progress.position = Some(reached);
        Ok(Receipt::Durable(reached))
    }

    async fn discard(&self) -> Result<()> {
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
impl Inspect for NullTarget {
    async fn count(&self, _table: &Table) -> Result<u64> {
        Ok(0)
    }

    async fn rows(
        &self,
        _table: &Table,
        _limit: Option<u64>,
        _each: &mut (dyn FnMut(TextRow) -> Result<()> + Send),
    ) -> Result<()> {
        Ok(())
    }
}
