//! The consistent snapshot: an exported point, chunks, and the workers that copy them.

mod copy_binary;
mod copy_reader;
pub(crate) mod export;
pub(crate) mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use pgferry_model::{CellFormat, Cure, Error, Position, Result, Table, TableId};
use pgferry_pipeline::{Chunk, RowSender, Snapshot};

use crate::control::PostgresControl;
use crate::error;
use crate::refused;
use crate::snapshot::copy_reader::{copy_rows, copy_statement};
use crate::snapshot::export::Exported;
use crate::snapshot::plan::{Heap, PageRange, split};

/// What a snapshot needs to know of each table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extent {
    /// The relations that hold its rows.
    pub(crate) heaps: Vec<Heap>,
    /// Conditions on its rows: the publication's row filter, the task's `snapshot_where`.
    pub(crate) filters: Vec<String>,
}

/// An open snapshot.
pub(crate) struct ConsistentSnapshot {
    pub(crate) control: Arc<PostgresControl>,
    pub(crate) exported: Exported,
    pub(crate) extents: Arc<HashMap<TableId, Extent>>,
    pub(crate) workers: usize,
}

#[async_trait]
impl Snapshot for ConsistentSnapshot {
    fn cut(&self) -> Position {
        self.exported.cut()
    }

    async fn plan(&self, table: &Arc<Table>) -> Result<Vec<Chunk>> {
        let extent = self.extent(table)?;
        let ranges = split(&extent.heaps, self.workers);
        let count = ranges.len() as u32;
        let chunk = |(number, (range, bytes)): (usize, (PageRange, u64))| Chunk {
            table: Arc::clone(table),
            number: number as u32,
            count,
            range: range.to_string(),
            bytes,
        };
        Ok(ranges.into_iter().enumerate().map(chunk).collect())
    }

    async fn copy(&self, chunk: &Chunk, formats: &[CellFormat], out: RowSender) -> Result<u64> {
        let table = &chunk.table;
        let extent = self.extent(table)?;
        let range: PageRange = chunk.range.parse().map_err(|_| unknown(table))?;
        let heap = extent.heaps.iter().find(|heap| heap.oid == range.oid).ok_or_else(|| unknown(table))?;
        let formats: Vec<CellFormat> = table
            .columns
            .iter()
            .zip(formats)
            .map(|(column, &wanted)| if column.data_type.sends_binary { wanted } else { CellFormat::Text })
            .collect();
        let filters: Vec<&str> = extent.filters.iter().chain(&heap.filter).map(String::as_str).collect();
        let statement = copy_statement(table, heap, &range, &formats, &filters);
        let mut session = self.exported.worker(&self.control).await?;
        let rows = copy_rows(&mut session, &statement, table, formats, out)
            .await
            .map_err(|failure| refused::copying(failure, table, &self.control.config))?;
        self.exported.put_back(session);
        Ok(rows)
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.exported.close().await
    }
}

impl ConsistentSnapshot {
    fn extent(&self, table: &Table) -> Result<&Extent> {
        self.extents.get(&table.id).ok_or_else(|| unknown(table))
    }
}

fn unknown(table: &Table) -> Error {
    Error::table_broken(
        error::TABLE_MISSING,
        table.name.clone(),
        format!("{} is not in the snapshot's plan", table.name),
    )
    .with_cause("the table was replaced by another one of the same name while the snapshot was open")
    .with_cure(Cure::advice("start the task again"))
}
