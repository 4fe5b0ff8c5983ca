//! What the tests are told with: a server, settings of a task whose databases nobody else uses, tables and changes.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pgferry_model::{
    Batch, CellFormat, Column, DataType, Delivery, Op, Position, Slice, Table, TableId, TableName,
    TableState, TaskId, TypeKind,
};
use pgferry_pipeline::{
    Chunk, ChunkRows, CopyMark, DeletePolicy, IfTargetExists, Inspect, Receipt, TableChanges, TablePlan,
    Target, compact, rows_between,
};
use pgferry_target_databend::{DatabendConfig, DatabendTarget, Server};
use pgferry_testkit::databend::{DatabendServer, DatabendSettings};

/// The server that all tests share; `None`, said on the terminal, where it is not installed.
pub(crate) fn server() -> Result<Option<DatabendServer>> {
    match DatabendServer::shared()? {
        Ok(server) => Ok(Some(server)),
        Err(missing) => {
            // Not with a macro: those the test runner shows of failed tests only.
            writeln!(std::io::stderr().lock(), "NOT RUN: a test on Databend: {}", missing.0)?;
            Ok(None)
        }
    }
}

/// A server of the test's own; `None`, said on the terminal, where none is installed.
pub(crate) fn own_server(settings: &DatabendSettings) -> Result<Option<DatabendServer>> {
    if server()?.is_none() {
        return Ok(None);
    }
    match DatabendServer::start(settings)? {
        Ok(server) => Ok(Some(server)),
        Err(missing) => bail!("it was installed a moment ago: {}", missing.0),
    }
}

/// Settings whose databases nobody else uses.
pub(crate) fn config(server: &DatabendServer) -> DatabendConfig {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut config = DatabendConfig::new(Server::Dsn(server.dsn("")));
    config.database = Some(format!("d{number}"));
    config.staging = format!("s{number}");
    config.merge_interval = Duration::from_millis(200);
    config
}

/// Settings with which nothing is merged by itself while a test runs.
pub(crate) fn unhurried(server: &DatabendServer) -> DatabendConfig {
    DatabendConfig { merge_interval: Duration::from_secs(3_600), ..config(server) }
}

pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Asks the server behind the target's back.
pub(crate) async fn ask(server: &DatabendServer, statement: &str) -> Result<Vec<Vec<Option<String>>>> {
    let (server, statement) = (server.clone(), statement.to_owned());
    tokio::task::spawn_blocking(move || server.query(&statement)).await?
}

/// The raw table of a table of schema `public`.
pub(crate) fn raw(config: &DatabendConfig, table: &str) -> String {
    format!("{}.\"raw.shop.public.{table}\"", config.staging)
}

/// A table's name where the settings put it.
pub(crate) fn place(config: &DatabendConfig, table: &str) -> String {
    format!("{}.{}", config.database.as_deref().unwrap_or("public"), quoted(table))
}

pub(crate) fn table(name: &str, columns: &[(&str, TypeKind)], key: &[usize]) -> Arc<Table> {
    let column = |(name, kind): &(&str, TypeKind)| Column {
        name: (*name).into(),
        data_type: DataType {
            oid: 0,
            name: "x".into(),
            kind: kind.clone(),
            sends_binary: true,
            output_function: "pg_catalog.textout".into(),
        },
        nullable: true,
    };
    Arc::new(Table {
        id: TableId(0),
        name: TableName::new("public", name),
        target_name: TableName::new("public", name),
        columns: columns.iter().map(column).collect(),
        key: key.to_vec(),
        key_enforced: true,
        full_identity: false,
        rows_estimated: 0,
        bytes: 0,
    })
}

/// `people`: id (the key), body and note, which may be large, and n.
pub(crate) fn people() -> Arc<Table> {
    let text = TypeKind::Text;
    table(
        "people",
        &[("id", TypeKind::Int4), ("body", text.clone()), ("note", text), ("n", TypeKind::Int8)],
        &[0],
    )
}

/// A value that the source did not send.
pub(crate) const KEPT: &str = "<kept>";
/// NULL.
pub(crate) const NULL: &str = "<null>";

/// One table's changes, in commit order.
pub(crate) struct Changes(pub(crate) Batch, u32);

impl Changes {
    pub(crate) fn of(table: &Arc<Table>) -> Changes {
        Changes(Batch::new(Arc::clone(table)), 0)
    }

    fn start(&mut self, op: Op) {
        self.0.start_row(op, self.1);
        self.1 += 1;
    }

    fn push(&mut self, cells: &[&str]) {
        for cell in cells {
            match *cell {
                NULL => self.0.push_null(),
                KEPT => self.0.push_unchanged(),
                text => self.0.push_value(CellFormat::Text, text.as_bytes()),
            }
        }
    }

    pub(crate) fn insert(mut self, row: &[&str]) -> Self {
        self.start(Op::Insert);
        self.0.start_new();
        self.push(row);
        self
    }

    pub(crate) fn update(mut self, row: &[&str]) -> Self {
        self.start(Op::Update);
        self.0.start_new();
        self.push(row);
        self
    }

    /// An update that changes the first column, which is the key.
    pub(crate) fn moved(mut self, key: &str, row: &[&str]) -> Self {
        self = self.update(row);
        self.old(key);
        self
    }

    pub(crate) fn delete(mut self, key: &str) -> Self {
        self.start(Op::Delete);
        self.old(key);
        self
    }

    pub(crate) fn truncate(mut self) -> Self {
        self.start(Op::Truncate);
        self
    }

    fn old(&mut self, key: &str) {
        let mut cells = vec![NULL; self.0.table().columns.len()];
        cells[0] = key;
        self.0.start_old(false);
        self.push(&cells);
    }
}

pub(crate) fn at(lsn: u64) -> Position {
    Position::from_lsn(lsn)
}

pub(crate) fn task() -> TaskId {
    TaskId::new("shop")
}

pub(crate) fn plan(table: &Arc<Table>) -> TablePlan {
    TablePlan { table: Arc::clone(table), if_exists: IfTargetExists::Error, deletes: DeletePolicy::Carry }
}

pub(crate) fn delivery(through: u64, changes: Vec<Changes>) -> Result<Arc<Delivery<TableChanges>>> {
    let mut tables = Vec::new();
    for Changes(batch, _) in changes {
        tables.push(TableChanges::Latest(compact(batch, DeletePolicy::Carry)?));
    }
    let (after, through) = (at(through - 1), at(through));
    Ok(Arc::new(Delivery { after, through, tables, transactions: Vec::new(), slice: Slice::Whole }))
}

/// Applies a delivery, which has to be durable then.
pub(crate) async fn deliver(target: &DatabendTarget, through: u64, changes: Vec<Changes>) -> Result<()> {
    let receipt = target.apply(delivery(through, changes)?).await?;
    ensure!(receipt == Receipt::Durable(at(through)), "{receipt:?}");
    Ok(())
}

/// Loads rows as a chunk.
pub(crate) async fn load(
    target: &DatabendTarget,
    table: &Arc<Table>,
    number: u32,
    rows: &[&[&str]],
) -> pgferry_model::Result<u64> {
    let mut all = Changes::of(table);
    for row in rows {
        all = all.insert(row);
    }
    let (sender, receiver) = rows_between();
    let count = rows.len() as u64;
    let sending = async move {
        sender.send(all.0).await?;
        sender.end(count).await
    };
    let chunk = Chunk { table: Arc::clone(table), number, count: 1, range: String::new(), bytes: 0 };
    let (loaded, _sent) = tokio::join!(target.load(ChunkRows { chunk, rows: receiver }), sending);
    loaded
}

/// An open target with a table that follows the stream since position 100.
pub(crate) async fn live(
    config: &DatabendConfig,
    table: &Arc<Table>,
    rows: &[&[&str]],
) -> Result<Arc<DatabendTarget>> {
    follows(config, table, rows, TableState::Live).await
}

/// The same, in a state of those that follow a copy.
pub(crate) async fn follows(
    config: &DatabendConfig,
    table: &Arc<Table>,
    rows: &[&[&str]],
    state: TableState,
) -> Result<Arc<DatabendTarget>> {
    let target = Arc::new(DatabendTarget::connect(config.clone())?);
    target.open(&task()).await?;
    target.prepare(&plan(table)).await.context("prepare")?;
    target.begin_copy(table, CopyMark { cut: at(100), stream_start: Some(at(100)) }).await?;
    load(&target, table, 0, rows).await?;
    target.set_state(table, state).await?;
    Ok(target)
}

/// Every row, cells joined by `|`.
pub(crate) async fn rows(target: &DatabendTarget, table: &Table) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let mut each = |row: Vec<Option<String>>| {
        let cells: Vec<String> =
            row.into_iter().map(|cell| cell.unwrap_or_else(|| NULL.to_owned())).collect();
        all.push(cells.join("|"));
        Ok(())
    };
    Inspect::rows(target, table, None, &mut each).await?;
    Ok(all)
}
