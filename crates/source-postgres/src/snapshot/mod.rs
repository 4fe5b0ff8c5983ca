//! The consistent snapshot: an exported point, chunks, and the workers that copy them.

pub(crate) mod copy_binary;
mod copy_reader;
pub(crate) mod export;
pub(crate) mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use pgferry_model::{CellFormat, Cure, Error, Position, Result, Table, TableId};
use pgferry_pipeline::{Chunk, RowSender, Snapshot};

use pgferry_pipeline::error::SNAPSHOT_LOST;
use pgferry_postgres::{ResultRow, quote_literal};

use crate::control::{PostgresControl, optional};
use crate::error;
use crate::refused;
use crate::snapshot::copy_reader::{copy_rows, copy_statement, relation};
use crate::snapshot::export::{Exported, GIVE_LOCKS_BACK, Worker};
use crate::snapshot::plan::{Heap, PageRange, split};

/// What a snapshot needs to know of each table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extent {
    /// The relations that hold its rows.
    pub(crate) heaps: Vec<Heap>,
    /// Conditions on its rows: the publication's row filter, the task's `snapshot_where`.
    pub(crate) filters: Vec<String>,
    /// Whether it has generated columns, which COPY reads out of a query only.
    pub(crate) generates: bool,
}

/// An open snapshot.
pub(crate) struct ConsistentSnapshot {
    pub(crate) control: Arc<PostgresControl>,
    pub(crate) exported: Exported,
    /// As of the snapshot: every relation that it sees rows of, of tables that are the same as at the start.
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
        let copy = copy_statement(table, heap, &range, &formats, &filters, extent.generates);
        let statements = format!("{copy}; {}; {GIVE_LOCKS_BACK}", look_at(heap));
        let Worker { thread, mut session } = self.exported.worker(&self.control).await?;
        let (table_read, rows_out) = (Arc::clone(table), out.clone());
        let reading = async move {
            let rows = copy_rows(&mut session, &statements, &table_read, formats, &rows_out).await;
            (session, rows)
        };
        let (session, copied) = thread.run(reading).await?;
        let (rows, answers) =
            copied.map_err(|failure| refused::copying(failure, table, &self.control.config))?;
        verify_unmoved(&answers, table)?;
        out.end(rows).await?;
        self.exported.put_back(Worker { thread, session });
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

/// Prepares the question whether rows were read from the relation that the snapshot means, for [`look_at`]. Prepared, because
/// planning it anew takes longer than the COPY of a small table.
///
/// The snapshot does not protect from either: a name leads to what has it now; and a rewrite gives rows new places, which no chunk or
/// two of them may cover, or makes new rows of them, which an older snapshot does not see (PostgreSQL docs, "Caveats" of chapter
/// "Concurrency Control"). The catalog's row is read as of the snapshot, the function tells what is so now.
pub(crate) const PREPARE_LOOK: &str = "PREPARE pgferry_look (text, oid) AS \
    SELECT coalesce(pg_catalog.to_regclass($1)::pg_catalog.oid = $2, false), \
    coalesce((SELECT c.relfilenode FROM pg_catalog.pg_class c WHERE c.oid = $2) = pg_catalog.pg_relation_filenode($2), true)";

/// Asks it, while the COPY's lock still keeps everything as it is.
fn look_at(heap: &Heap) -> String {
    format!("EXECUTE pgferry_look ({}, {})", quote_literal(&relation(heap)), heap.oid)
}

/// Refuses rows by the answer to [`look_at`].
fn verify_unmoved(answers: &[ResultRow], table: &Table) -> Result<()> {
    let yes = |at| optional(answers, 0, at).as_deref() == Some("t");
    match (yes(0), yes(1)) {
        (true, true) => Ok(()),
        (true, false) => Err(rewritten(table)),
        (false, _) => Err(unknown(table)),
    }
}

/// With its table named, it costs the engine that table's copy only.
fn rewritten(table: &Table) -> Error {
    Error::transient(SNAPSHOT_LOST, format!("the consistent snapshot no longer shows {}", table.name))
        .with_table(table.name.clone())
        .with_cause("the table was rewritten or truncated while it was copied: ALTER TABLE, VACUUM FULL, CLUSTER, TRUNCATE")
        .with_cure(Cure::advice("nothing: the table is copied again under a new snapshot"))
}

fn unknown(table: &Table) -> Error {
    Error::table_broken(
        error::TABLE_MISSING,
        table.name.clone(),
        format!("{} is no longer the table that the task started with", table.name),
    )
    .with_cause("it was dropped, renamed, replaced by another one of its name, or its columns were changed before it was copied")
    .with_cure(
        Cure::advice("copy the table again; where it has another name now, the task file has to say that one")
            .resync_table(&table.name),
    )
}
