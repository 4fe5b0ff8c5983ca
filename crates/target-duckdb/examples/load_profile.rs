//! Where the time of a load goes: a wide table of 20 columns, encoded only, then loaded; rows per second and CPU.
//!
//! `cargo run --release -p pgferry-target-duckdb --example load_profile -- ROWS CHUNK_ROWS LOADS FILE`

use std::sync::Arc;
use std::time::Instant;

use pgferry_columnar::encode_column;
use pgferry_model::{
    Batch, CellFormat, Column, DataType, Delivery, Error, Op, Position, Result, Slice, Table, TableId,
    TableName, TaskId, TypeKind,
};
use pgferry_pipeline::{
    Chunk, ChunkRows, CopyMark, DeletePolicy, IfTargetExists, TableChanges, TablePlan, Target, compact,
    rows_between,
};
use pgferry_target_duckdb::{DuckdbConfig, DuckdbTarget, map_type};

const BATCH_ROWS: usize = 16_384;

fn kinds() -> Vec<TypeKind> {
    let numeric = TypeKind::Numeric { precision_and_scale: Some((12, 2)) };
    let mut kinds = vec![TypeKind::Int8];
    for _ in 0..3 {
        kinds.extend([
            TypeKind::Int4,
            TypeKind::Text,
            TypeKind::Float8,
            numeric.clone(),
            TypeKind::TimestampTz,
        ]);
    }
    kinds.extend([TypeKind::Bool, TypeKind::Uuid, TypeKind::Date, TypeKind::Text]);
    kinds
}

fn table() -> Arc<Table> {
    let columns = kinds().into_iter().enumerate().map(|(at, kind)| Column {
        name: format!("c{at}").into(),
        data_type: DataType {
            oid: 0,
            name: "x".into(),
            kind,
            sends_binary: true,
            output_function: "x".into(),
        },
        nullable: true,
    });
    let name = TableName::new("public", "wide");
    Arc::new(Table {
        id: TableId(0),
        target_name: name.clone(),
        name,
        columns: columns.collect(),
        key: vec![0],
        key_enforced: true,
        full_identity: false,
        rows_estimated: 0,
        bytes: 0,
    })
}

fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

fn value(kind: &TypeKind, id: u64, seed: &mut u64) -> Vec<u8> {
    let any = random(seed);
    match kind {
        TypeKind::Int8 => id.to_be_bytes().to_vec(),
        TypeKind::Int4 => (any as i32).to_be_bytes().to_vec(),
        TypeKind::Float8 => ((any % 1_000_000) as f64 / 7.0).to_be_bytes().to_vec(),
        TypeKind::Numeric { .. } => {
            let words =
                [3, 1, 0, 2, (any % 9999) as u16, (any / 9999 % 10_000) as u16, (any % 100) as u16 * 100];
            words.iter().flat_map(|word| word.to_be_bytes()).collect()
        }
        TypeKind::TimestampTz => ((any % 700_000_000_000_000) as i64).to_be_bytes().to_vec(),
        TypeKind::Date => ((any % 9000) as i32).to_be_bytes().to_vec(),
        TypeKind::Bool => vec![(any % 2) as u8],
        TypeKind::Uuid => [any, random(seed)].iter().flat_map(|half| half.to_be_bytes()).collect(),
        _ => format!("value {any:x} of row {}", id % 1000).into_bytes(),
    }
}

fn batch(table: &Arc<Table>, from: u64, rows: usize, seed: &mut u64) -> Batch {
    let mut batch = Batch::with_capacity(Arc::clone(table), rows, rows * 200);
    for row in 0..rows as u64 {
        batch.start_row(Op::Insert, row as u32);
        batch.start_new();
        for column in &table.columns {
            batch.push_value(CellFormat::Binary, &value(&column.data_type.kind, from + row, seed));
        }
    }
    batch
}

/// Processor seconds of this process so far, and its peak memory in MiB.
fn used() -> (f64, u64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: f64 = after.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let peak = peak.split_whitespace().next().and_then(|peak| peak.parse::<u64>().ok()).unwrap_or(0);
    (ticks / 100.0, peak / 1024)
}

fn tell(what: &str, rows: u64, started: Instant, cpu: f64) {
    let (seconds, now) = (started.elapsed().as_secs_f64(), used());
    let million = rows as f64 / 1e6;
    let line = format!(
        "{what}: {rows} rows in {seconds:.2} s, {:.0}k rows/s, {:.2} CPU s per million, peak {} MiB\n",
        rows as f64 / seconds / 1000.0,
        (now.0 - cpu) / million,
        now.1
    );
    let _ = std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes());
}

fn encode(table: &Arc<Table>, batch: &Batch, repeats: u64) -> Result<()> {
    let tuples: Vec<u32> = (0..batch.len()).filter_map(|row| batch.new_tuple_at(row)).collect();
    let (started, cpu) = (Instant::now(), used().0);
    for _ in 0..repeats {
        for (at, column) in table.columns.iter().enumerate() {
            let encoding = map_type(&column.data_type, None).encoding;
            encode_column(batch, &tuples, at, &encoding).map_err(|_| stopped("a value does not fit"))?;
        }
    }
    tell("encode", repeats * batch.len() as u64, started, cpu);
    Ok(())
}

fn stopped(what: &str) -> Error {
    Error::task_broken(pgferry_pipeline::error::WORKER_LOST, what)
}

async fn load(target: &DuckdbTarget, batches: &[Batch], chunk: Chunk, rows: usize) -> Result<u64> {
    let (sender, receiver) = rows_between();
    let sending = async {
        let mut sent = 0;
        for batch in batches.iter().cycle() {
            if sent >= rows {
                break;
            }
            sent += batch.len();
            sender.send(batch.clone()).await?;
        }
        sender.end(sent as u64).await
    };
    let (loaded, sent) = tokio::join!(target.load(ChunkRows { chunk, rows: receiver }), sending);
    sent?;
    loaded
}

async fn loads(
    target: &Arc<DuckdbTarget>,
    table: &Arc<Table>,
    batches: Arc<Vec<Batch>>,
    plan: [usize; 3],
) -> Result<()> {
    let [rows, chunk_rows, at_once] = plan;
    let count = rows.div_ceil(chunk_rows) as u32;
    let (started, cpu) = (Instant::now(), used().0);
    let mut running = tokio::task::JoinSet::new();
    let mut total = 0;
    for number in 0..count {
        if running.len() == at_once {
            let loaded = running.join_next().await;
            total += loaded.ok_or_else(|| stopped("no load"))?.map_err(|_| stopped("a load panicked"))??;
        }
        let chunk = Chunk { table: Arc::clone(table), number, count, range: String::new(), bytes: 0 };
        let (target, batches) = (Arc::clone(target), Arc::clone(&batches));
        running.spawn(async move { load(&target, &batches, chunk, chunk_rows).await });
    }
    while let Some(loaded) = running.join_next().await {
        total += loaded.map_err(|_| stopped("a load panicked"))??;
    }
    tell("load", total, started, cpu);
    Ok(())
}

async fn deliveries(target: &DuckdbTarget, table: &Arc<Table>, rows: usize, repeats: u64) -> Result<()> {
    let (mut seed, base) = (7, rows as u64 * 1000);
    let (started, cpu) = (Instant::now(), used().0);
    for at in 0..repeats {
        let mut changes = Batch::new(Arc::clone(table));
        for row in 0..rows as u64 {
            changes.start_row(Op::Update, row as u32);
            changes.start_new();
            let id = random(&mut seed) % 100_000;
            for column in &table.columns {
                changes.push_value(CellFormat::Binary, &value(&column.data_type.kind, id, &mut seed));
            }
        }
        let delivery = Delivery {
            after: Position::from_lsn(base + at),
            through: Position::from_lsn(base + at + 1),
            tables: vec![TableChanges::Latest(compact(changes, DeletePolicy::Carry)?)],
            transactions: Vec::new(),
            slice: Slice::Whole,
        };
        target.apply(Arc::new(delivery)).await?;
    }
    tell(&format!("apply, {rows} updates each, {repeats} deliveries"), rows as u64 * repeats, started, cpu);
    Ok(())
}

async fn profile(arguments: &[String]) -> Result<()> {
    let number = |at: usize, or: usize| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(or);
    let (rows, chunk_rows, at_once) = (number(1, 2_000_000), number(2, 245_760), number(3, 4));
    let file = arguments.get(4).cloned().unwrap_or_else(|| "load_profile.duckdb".to_owned());
    let table = table();
    let mut seed = 42;
    let batches: Vec<Batch> =
        (0..8).map(|at| batch(&table, at * BATCH_ROWS as u64, BATCH_ROWS, &mut seed)).collect();
    encode(&table, &batches[0], 64)?;
    let target = Arc::new(DuckdbTarget::connect(DuckdbConfig::new(file))?);
    target.open(&TaskId::new("profile")).await?;
    let plan = TablePlan {
        table: Arc::clone(&table),
        if_exists: IfTargetExists::Replace,
        deletes: DeletePolicy::Carry,
    };
    target.prepare(&plan).await?;
    let start = Position::from_lsn(100);
    target.begin_copy(&table, CopyMark { cut: start, stream_start: Some(start) }).await?;
    loads(&target, &table, Arc::new(batches), [rows, chunk_rows, at_once]).await?;
    for (rows, repeats) in [(1, 100), (100, 50), (10_000, 10)] {
        deliveries(&target, &table, rows, repeats).await?;
    }
    let (started, cpu) = (Instant::now(), used().0);
    target.close().await?;
    tell("close", rows as u64, started, cpu);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    profile(&std::env::args().collect::<Vec<_>>()).await
}
