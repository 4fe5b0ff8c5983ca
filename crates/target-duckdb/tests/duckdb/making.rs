//! Tables, batches and a target in a temporary folder.

use std::path::PathBuf;
use std::sync::Arc;

use pgferry_model::{
    Batch, CellFormat, Column, DataType, Delivery, Op, Position, Slice, Table, TableId, TableName,
    TableState, TaskId, TypeKind,
};
use pgferry_pipeline::{
    Chunk, ChunkRows, CopyMark, DeletePolicy, IfTargetExists, Inspect, Receipt, TableChanges, TablePlan,
    Target, compact, rows_between,
};
use pgferry_target_duckdb::{DuckdbConfig, DuckdbTarget};
use tempfile::TempDir;

/// A cell to push.
#[derive(Clone, Debug)]
pub(crate) enum In {
    Null,
    Unchanged,
    Text(String),
    Binary(Vec<u8>),
}

pub(crate) fn t(text: &str) -> In {
    In::Text(text.to_owned())
}

pub(crate) fn texts(cells: &[&str]) -> Vec<In> {
    cells.iter().map(|cell| if *cell == "<null>" { In::Null } else { t(cell) }).collect()
}

pub(crate) fn data_type(name: &str, kind: TypeKind) -> DataType {
    DataType { oid: 0, name: name.into(), kind, sends_binary: true, output_function: "x".into() }
}

pub(crate) fn table(name: &str, columns: &[(&str, TypeKind)], key: &[usize]) -> Arc<Table> {
    let columns = columns
        .iter()
        .map(|(name, kind)| Column {
            name: (*name).into(),
            data_type: data_type(&format!("{kind:?}"), kind.clone()),
            nullable: true,
        })
        .collect();
    Arc::new(Table {
        id: TableId(0),
        name: TableName::new("public", name),
        target_name: TableName::new("public", name),
        columns,
        key: key.to_vec(),
        key_enforced: true,
        full_identity: false,
        rows_estimated: 0,
        bytes: 0,
    })
}

/// id, name, body (long), n.
pub(crate) fn people() -> Arc<Table> {
    let columns =
        [("id", TypeKind::Int4), ("name", TypeKind::Text), ("body", TypeKind::Text), ("n", TypeKind::Int8)];
    table("people", &columns, &[0])
}

pub(crate) fn push(batch: &mut Batch, cells: &[In]) {
    for cell in cells {
        match cell {
            In::Null => batch.push_null(),
            In::Unchanged => batch.push_unchanged(),
            In::Text(text) => batch.push_value(CellFormat::Text, text.as_bytes()),
            In::Binary(bytes) => batch.push_value(CellFormat::Binary, bytes),
        }
    }
}

/// A change to make.
pub(crate) enum Change {
    Insert(Vec<In>),
    Update(Vec<In>),
    Delete(Vec<In>),
}

pub(crate) fn changes(table: &Arc<Table>, changes: &[Change]) -> Batch {
    let mut batch = Batch::new(Arc::clone(table));
    for (sequence, change) in changes.iter().enumerate() {
        let sequence = sequence as u32;
        match change {
            Change::Insert(new) => {
                batch.start_row(Op::Insert, sequence);
                batch.start_new();
                push(&mut batch, new);
            }
            Change::Update(new) => {
                batch.start_row(Op::Update, sequence);
                batch.start_new();
                push(&mut batch, new);
            }
            Change::Delete(old) => {
                batch.start_row(Op::Delete, sequence);
                batch.start_old(false);
                push(&mut batch, old);
            }
        }
        assert!(batch.last_row_is_whole());
    }
    batch
}

pub(crate) fn at(lsn: u64) -> Position {
    Position::from_lsn(lsn)
}

pub(crate) fn delivery(
    after: u64,
    through: u64,
    slice: Slice,
    batches: Vec<Batch>,
) -> Arc<Delivery<TableChanges>> {
    let tables = batches
        .into_iter()
        .map(|batch| TableChanges::Latest(compact(batch, DeletePolicy::Carry).expect("compacted")))
        .collect();
    Arc::new(Delivery { after: at(after), through: at(through), tables, transactions: Vec::new(), slice })
}

pub(crate) fn task() -> TaskId {
    TaskId::new("shop")
}

pub(crate) fn plan(table: &Arc<Table>, if_exists: IfTargetExists) -> TablePlan {
    TablePlan { table: Arc::clone(table), if_exists, deletes: DeletePolicy::Carry }
}

/// A file in a temporary folder with a target on it.
pub(crate) struct Made {
    pub(crate) folder: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) target: Arc<DuckdbTarget>,
}

pub(crate) fn config(path: &std::path::Path) -> DuckdbConfig {
    DuckdbConfig { threads: 2, memory_limit: "512MB".into(), ..DuckdbConfig::new(path) }
}

/// An open target on a new file.
pub(crate) async fn opened() -> Made {
    let folder = TempDir::new().expect("folder");
    let path = folder.path().join("x.duckdb");
    let target = Arc::new(DuckdbTarget::connect(config(&path)).expect("target"));
    target.open(&task()).await.expect("open");
    Made { folder, path, target }
}

/// An open target with a table whose copy at position 100 is under way.
pub(crate) async fn copying(table: &Arc<Table>, rows: &[Vec<In>]) -> Made {
    let made = opened().await;
    made.target.prepare(&plan(table, IfTargetExists::Error)).await.expect("prepare");
    made.target
        .begin_copy(table, CopyMark { cut: at(100), stream_start: Some(at(100)) })
        .await
        .expect("begin_copy");
    load(&made.target, table, 0, rows).await.expect("load");
    made
}

/// The same, when the copy is done and the table follows the stream.
pub(crate) async fn live(table: &Arc<Table>, rows: &[Vec<In>]) -> Made {
    let made = copying(table, rows).await;
    made.target.set_state(table, TableState::Live).await.expect("state");
    made
}

pub(crate) fn chunk(table: &Arc<Table>, number: u32) -> Chunk {
    Chunk { table: Arc::clone(table), number, count: 1, range: String::new(), bytes: 0 }
}

pub(crate) async fn load(
    target: &DuckdbTarget,
    table: &Arc<Table>,
    number: u32,
    rows: &[Vec<In>],
) -> pgferry_model::Result<u64> {
    let (sender, receiver) = rows_between();
    let mut batch = Batch::new(Arc::clone(table));
    for row in rows {
        batch.start_row(Op::Insert, 0);
        batch.start_new();
        push(&mut batch, row);
    }
    let count = rows.len() as u64;
    let sending = async move {
        sender.send(batch).await?;
        sender.end(count).await
    };
    let (loaded, _sent) =
        tokio::join!(target.load(ChunkRows { chunk: chunk(table, number), rows: receiver }), sending);
    loaded
}

pub(crate) async fn apply(
    target: &DuckdbTarget,
    through: u64,
    batch: Batch,
) -> pgferry_model::Result<Receipt> {
    target.apply(delivery(through - 1, through, Slice::Whole, vec![batch])).await
}

/// Every row, cells joined by `|`.
pub(crate) async fn rows(target: &DuckdbTarget, table: &Table) -> Vec<String> {
    let mut all = Vec::new();
    let mut each = |row: Vec<Option<String>>| {
        let cells: Vec<String> =
            row.into_iter().map(|cell| cell.unwrap_or_else(|| "<null>".to_owned())).collect();
        all.push(cells.join("|"));
        Ok(())
    };
    Inspect::rows(target, table, None, &mut each).await.expect("rows");
    all
}
