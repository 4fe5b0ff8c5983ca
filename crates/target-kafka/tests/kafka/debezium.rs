//! What a consumer of Debezium's records understands of pgferry's: `ForeignReader.java` reads them with Kafka's and Debezium's own classes
//! only, and what it prints has to be what the source had.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pgferry_model::{
    Batch, CellFormat, Column, DataType, Delivery, Op, Position, Slice, Table, TableId, TableName,
    TableState, TaskId, TransactionMark, TypeKind,
};
use pgferry_pipeline::{Chunk, ChunkRows, CopyMark, TableChanges, Target, rows_between};
use pgferry_target_kafka::{Format, Guarantee, KafkaConfig, KafkaTarget};
use pgferry_testkit::kafka::{Broker, debezium};
use serde_json::{Map, Value, json};

use crate::making::{broker, config, or_said, plan};

const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/ForeignReader.java");
const COMMITTED_AT_US: i64 = 1_709_210_096_789_012;

/// A column; two values as the source has them, each with what a consumer should see; lists are of arrays.
struct Sample {
    name: &'static str,
    declared: &'static str,
    kind: TypeKind,
    values: [(&'static str, Value); 2],
}

fn numeric(precision_and_scale: Option<(u16, i16)>) -> TypeKind {
    TypeKind::Numeric { precision_and_scale }
}

fn array(kind: TypeKind) -> TypeKind {
    TypeKind::Array(Box::new(data_type("element", kind)), 1)
}

fn data_type(name: &str, kind: TypeKind) -> DataType {
    DataType { oid: 0, name: name.into(), kind, sends_binary: true, output_function: "textout".into() }
}

/// What a consumer sees is the source's own text, but for what `seen` says.
fn sample(name: &'static str, kind: TypeKind, values: [&'static str; 2], seen: [Option<Value>; 2]) -> Sample {
    let [first, second] = seen;
    let values = [
        (values[0], first.unwrap_or_else(|| values[0].into())),
        (values[1], second.unwrap_or_else(|| values[1].into())),
    ];
    Sample { name, declared: "x", kind, values }
}

fn same() -> [Option<Value>; 2] {
    [None, None]
}

fn seen(first: &str, second: &str) -> [Option<Value>; 2] {
    [Some(first.into()), Some(second.into())]
}

fn samples() -> Vec<Sample> {
    let mut samples = numbers_and_texts();
    samples.extend(times());
    samples.extend(arrays());
    samples
}

fn numbers_and_texts() -> Vec<Sample> {
    vec![
        sample("flag", TypeKind::Bool, ["t", "f"], seen("true", "false")),
        sample("small", TypeKind::Int2, ["-32768", "32767"], same()),
        sample("amount", TypeKind::Int4, ["2147483647", "-2147483648"], same()),
        sample("large", TypeKind::Int8, ["-9223372036854775808", "9223372036854775807"], same()),
        sample("counter", TypeKind::Oid, ["4294967295", "0"], same()),
        sample("share", TypeKind::Float4, ["0.1", "-3.4028235e+38"], [None, Some("-3.4028235E38".into())]),
        sample("ratio", TypeKind::Float8, ["5e-324", "0.30000000000000004"], [Some("4.9E-324".into()), None]),
        sample("price", numeric(Some((10, 2))), ["-12345678.90", "0.00"], same()),
        sample(
            "total",
            numeric(Some((38, 10))),
            ["1234567890123456789012345678.0123456789", "-0.0000000001"],
            same(),
        ),
        sample(
            "exact",
            numeric(None),
            ["-123456789012345678901234567890123456789012345678.5000", "0.000000000000000000000000000001"],
            same(),
        ),
        sample("name", TypeKind::Text, ["Käse \"x\"\n\\ €😀\u{1}", ""], same()),
        sample("code", TypeKind::FixedText, ["ab  ", "null"], same()),
        sample("document", TypeKind::Json, ["{ \"a\" : 1.0 }", "[]"], same()),
        sample("binary_document", TypeKind::Jsonb, ["{\"b\": [1, 2.50]}", "\"x\""], same()),
        sample("mood", TypeKind::Enum, ["glad", "sad"], same()),
        sample("address", TypeKind::Network, ["10.0.0.1/8", "::1"], same()),
        sample("span", TypeKind::Interval, ["1 mon -2 days 03:04:05.6", "00:00:00"], same()),
        sample("payload", TypeKind::Bytes, ["\\x00ff10", "\\x"], seen("00ff10", "")),
        sample(
            "token",
            TypeKind::Uuid,
            ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"],
            same(),
        ),
    ]
}

/// Columns whose names end with `_ms` hold milliseconds.
fn times() -> Vec<Sample> {
    let mut samples = vec![
        sample("day", TypeKind::Date, ["1969-12-31", "0044-03-15 BC"], [None, Some("-0043-03-15".into())]),
        sample("clock", TypeKind::Time, ["12:34:56.789012", "00:00:00"], [None, Some("00:00".into())]),
        sample("clock_ms", TypeKind::Time, ["23:59:59.999", "01:02:03.004"], same()),
        sample(
            "made_at",
            TypeKind::Timestamp,
            ["1969-12-31 23:59:59.999999", "99999-01-01 00:00:00"],
            seen("1969-12-31T23:59:59.999999Z", "+99999-01-01T00:00:00Z"),
        ),
        sample(
            "made_ms",
            TypeKind::Timestamp,
            ["1600-02-29 12:00:00.001", "2024-02-29 23:59:59.999"],
            seen("1600-02-29T12:00:00.001Z", "2024-02-29T23:59:59.999Z"),
        ),
        sample(
            "happened_at",
            TypeKind::TimestampTz,
            ["2024-02-29 12:34:56.789012+00", "0044-03-15 12:00:00+00 BC"],
            seen("2024-02-29T12:34:56.789012Z", "-0043-03-15T12:00:00Z"),
        ),
    ];
    for sample in &mut samples {
        if sample.name.ends_with("_ms") {
            sample.declared = "x(3) without time zone";
        }
    }
    samples
}

fn arrays() -> Vec<Sample> {
    vec![
        sample(
            "numbers",
            array(TypeKind::Int4),
            ["{1,NULL,-3}", "{}"],
            [Some(json!(["1", null, "-3"])), Some(json!([]))],
        ),
        sample(
            "words",
            array(TypeKind::Text),
            ["{a,NULL,\"b,\\\"c\\\"\",\"NULL\"}", "{\"\"}"],
            [Some(json!(["a", null, "b,\"c\"", "NULL"])), Some(json!([""]))],
        ),
        sample(
            "prices",
            array(numeric(Some((10, 2)))),
            ["{1.50,-0.01}", "{NULL}"],
            [Some(json!(["1.50", "-0.01"])), Some(json!([null]))],
        ),
    ]
}

/// A table of `id` (the key) and a column for each sample.
fn table(samples: &[Sample]) -> Arc<Table> {
    let column = |name: &str, data_type| Column { name: name.into(), data_type, nullable: true };
    let mut columns = vec![column("id", data_type("bigint", TypeKind::Int8))];
    columns.extend(samples.iter().map(|each| column(each.name, data_type(each.declared, each.kind.clone()))));
    let name = TableName::new("public", "everything");
    Arc::new(Table {
        id: TableId(0),
        target_name: name.clone(),
        name,
        columns,
        key: vec![0],
        key_enforced: true,
        full_identity: true,
        rows_estimated: 0,
        bytes: 0,
    })
}

/// A row's values; `None`: every column but the key is NULL.
type Values = Option<usize>;

fn push(batch: &mut Batch, samples: &[Sample], id: i64, values: Values) {
    batch.push_value(CellFormat::Text, id.to_string().as_bytes());
    for sample in samples {
        match values {
            Some(which) => batch.push_value(CellFormat::Text, sample.values[which].0.as_bytes()),
            None => batch.push_null(),
        }
    }
}

/// What a consumer should see of a row.
fn row(samples: &[Sample], id: i64, values: Values) -> Map<String, Value> {
    let mut row = Map::from_iter([("id".to_owned(), Value::from(id.to_string()))]);
    for sample in samples {
        let seen = values.map_or(Value::Null, |which| sample.values[which].1.clone());
        row.insert(sample.name.to_owned(), seen);
    }
    row
}

/// One change of every kind, and the snapshot's row before them.
async fn write(config: KafkaConfig, table: &Arc<Table>, samples: &[Sample]) -> Result<()> {
    let target = KafkaTarget::connect(config)?;
    target.open(&TaskId::new("shop")).await?;
    target.prepare(&plan(table)).await?;
    target.begin_copy(table, CopyMark { cut: Position::from_lsn(7), stream_start: None }).await?;
    let mut snapshot = Batch::new(Arc::clone(table));
    snapshot.start_row(Op::Insert, 0);
    snapshot.start_new();
    push(&mut snapshot, samples, 1, Some(0));
    let (sender, receiver) = rows_between();
    let chunk = Chunk { table: Arc::clone(table), number: 0, count: 1, range: String::new(), bytes: 0 };
    let sending = async move {
        sender.send(snapshot).await?;
        sender.end(1).await
    };
    let (loaded, sent) = tokio::join!(target.load(ChunkRows { chunk, rows: receiver }), sending);
    sent?;
    loaded?;
    target.set_state(table, TableState::Live).await?;
    let mark = TransactionMark {
        first_sequence: 0,
        xid: 4_000_000_000,
        commit_record: Position::from_lsn(0x1_0000_0001),
        position: Position::from_lsn(0x1_0000_0100),
        committed_at_us: COMMITTED_AT_US,
    };
    let delivery = Delivery {
        after: Position::from_lsn(7),
        through: mark.position,
        tables: vec![TableChanges::Every(changes(table, samples))],
        transactions: vec![mark],
        slice: Slice::Whole,
    };
    target.apply(Arc::new(delivery)).await?;
    target.close().await?;
    Ok(())
}

fn changes(table: &Arc<Table>, samples: &[Sample]) -> Batch {
    let mut batch = Batch::new(Arc::clone(table));
    for (sequence, id, values) in [(0, 2, Some(1)), (1, 3, None)] {
        batch.start_row(Op::Insert, sequence);
        batch.start_new();
        push(&mut batch, samples, id, values);
    }
    for (sequence, old, new, before) in [(2, 1, 1, Some(0)), (3, 2, 4, Some(1))] {
        batch.start_row(Op::Update, sequence);
        batch.start_old(true);
        push(&mut batch, samples, old, before);
        batch.start_new();
        push(&mut batch, samples, new, Some(1));
    }
    // Of the old row the source sends its key only.
    batch.start_row(Op::Delete, 4);
    batch.start_old(false);
    batch.push_value(CellFormat::Text, b"3");
    samples.iter().for_each(|_| batch.push_unchanged());
    // A large value that has not changed.
    batch.start_row(Op::Update, 5);
    batch.start_new();
    batch.push_value(CellFormat::Text, b"4");
    for sample in samples {
        match sample.name {
            "name" => batch.push_unchanged(),
            _ => batch.push_value(CellFormat::Text, sample.values[0].0.as_bytes()),
        }
    }
    batch.start_row(Op::Truncate, 6);
    batch
}

/// A record as a consumer should see it.
struct Expected {
    op: &'static str,
    key: Option<i64>,
    before: Option<Map<String, Value>>,
    after: Option<Map<String, Value>>,
    /// Its number in the transaction.
    order: u64,
    headers: Value,
    /// The header with the other key of a row that moved, and that key.
    other_key: Option<(&'static str, i64)>,
}

/// What has to be read, in this order; an `op` of "" is a tombstone.
fn expected(samples: &[Sample]) -> Vec<Expected> {
    let record = |op, key, before, after, order| Expected {
        op,
        key,
        before,
        after,
        order,
        headers: json!({}),
        other_key: None,
    };
    let full = |id, values| Some(row(samples, id, values));
    let mut key_only = row(samples, 3, None);
    key_only.retain(|name, _| name == "id");
    let mut partly = row(samples, 4, Some(0));
    partly.remove("name");
    let mut records = vec![
        record("r", Some(1), None, full(1, Some(0)), 0),
        record("c", Some(2), None, full(2, Some(1)), 0),
        record("c", Some(3), None, full(3, None), 1),
        record("u", Some(1), full(1, Some(0)), full(1, Some(1)), 2),
        record("d", Some(2), full(2, Some(1)), None, 3),
        record("", Some(2), None, None, 3),
        record("c", Some(4), full(2, Some(1)), full(4, Some(1)), 3),
        record("d", Some(3), Some(key_only), None, 4),
        record("", Some(3), None, None, 4),
        record("u", Some(4), None, Some(partly), 5),
        record("t", None, None, None, 6),
    ];
    records[4].other_key = Some(("__debezium.newkey", 4));
    records[6].other_key = Some(("__debezium.oldkey", 2));
    records[9].headers = json!({ "pgferry.unchanged": "[\"name\"]" });
    records
}

/// What the foreign classes read of the topic.
fn read(jars: &Path, broker: &Broker, form: &str, topic: &str) -> Result<Vec<Value>> {
    let mut java = Command::new("java");
    java.args([
        "-Xmx256m",
        "-XX:TieredStopAtLevel=1",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
        "-cp",
    ]);
    java.arg(jars.join("*")).args([READER, &broker.bootstrap_servers(), form, topic]);
    let output = java.output().context("cannot start java")?;
    ensure!(output.status.success(), "the reader failed: {}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout)?;
    lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Where the source has nothing or did not send it, a consumer with a schema sees NULL.
fn with_nulls(samples: &[Sample], row: Option<&Map<String, Value>>) -> Value {
    let Some(row) = row else { return Value::Null };
    let mut filled = row.clone();
    for sample in samples {
        filled.entry(sample.name).or_insert(Value::Null);
    }
    Value::Object(filled)
}

/// A moved row has its other key in a header, in the form that keys have.
fn check_headers(record: &Value, expected: &Expected) -> Result<()> {
    let Some((name, id)) = expected.other_key else {
        ensure!(record["headers"] == expected.headers, "headers {}", record["headers"]);
        return Ok(());
    };
    let header = record["headers"][name].as_str().context("no header with the other key")?;
    let key: Value = serde_json::from_str(header)?;
    let row = key.get("payload").unwrap_or(&key);
    ensure!(*row == json!({ "id": id }), "{name} is {header}");
    Ok(())
}

async fn scene(schemas: bool, guarantee: Guarantee) -> Result<Option<(Vec<Sample>, Vec<Value>)>> {
    let (Some(broker), Some(jars)) = (broker()?, or_said(debezium()?)?) else { return Ok(None) };
    let mut config = config(&broker);
    (config.partitions, config.guarantee, config.format) = (1, guarantee, Format::Debezium { schemas });
    let topic = config.topic_rule.replace("#{source_schema_name}", "public");
    let topic = topic.replace("#{source_table_name}", "everything");
    let samples = samples();
    write(config, &table(&samples), &samples).await?;
    let form = if schemas { "schemas" } else { "plain" };
    let records = tokio::task::spawn_blocking(move || read(&jars, &broker, form, &topic)).await??;
    Ok(Some((samples, records)))
}

/// What every record says of where it comes from.
fn check_source(source: &Value, expected: &Expected) -> Result<()> {
    let plain = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
    let snapshot = expected.op == "r";
    let lsn = if snapshot { 7 } else { 0x1_0000_0001u64 };
    let sequence = format!("[\"{lsn}\",\"{}\"]", expected.order);
    for (name, value) in [
        ("connector", "postgresql"),
        ("name", "shop"),
        ("db", "shop"),
        ("schema", "public"),
        ("table", "everything"),
        ("lsn", &lsn.to_string()),
        ("sequence", &sequence),
        ("txId", if snapshot { "null" } else { "4000000000" }),
        ("snapshot", if snapshot { "true" } else { "false" }),
    ] {
        ensure!(plain(&source[name]) == value, "source.{name} is {} instead of {value}", source[name]);
    }
    let committed_at = (COMMITTED_AT_US / 1_000).to_string();
    ensure!(snapshot || plain(&source["ts_ms"]) == committed_at, "source.ts_ms is {}", source["ts_ms"]);
    Ok(())
}

fn operation(op: &str) -> &'static str {
    match op {
        "r" => "READ",
        "c" => "CREATE",
        "u" => "UPDATE",
        "d" => "DELETE",
        _ => "TRUNCATE",
    }
}

fn check_with_schema(samples: &[Sample], record: &Value, expected: &Expected) -> Result<()> {
    let key = expected.key.map_or(Value::Null, |id| json!({ "id": id.to_string() }));
    ensure!(record["key"] == key, "key {} instead of {key}", record["key"]);
    if expected.op.is_empty() {
        ensure!(record["value"].is_null() && record["flat"].is_null(), "no tombstone");
        return Ok(());
    }
    let value = &record["value"];
    ensure!(record["envelope"] == true && record["operation"] == operation(expected.op), "not its operation");
    let (before, after) =
        (with_nulls(samples, expected.before.as_ref()), with_nulls(samples, expected.after.as_ref()));
    ensure!(value["before"] == before, "before {:#} instead of {before:#}", value["before"]);
    ensure!(value["after"] == after, "after {:#} instead of {after:#}", value["after"]);
    check_source(&value["source"], expected)?;
    if expected.op == "t" {
        ensure!(record["dropped"] == true, "a truncate has no row");
        return Ok(());
    }
    // The row itself, as targets of others see it: a delete as the old row.
    let mut flat = record["flat"].as_object().context("no flat row")?.clone();
    let mut added = |name: &str| flat.remove(name).unwrap_or_default();
    let deleted = if expected.op == "d" { "true" } else { "false" };
    ensure!(added("__deleted") == deleted && added("__op") == expected.op, "not its operation");
    let source = ["lsn", "sequence", "txId", "ts_ms", "snapshot", "table"];
    let source = source.map(|name| (name.to_owned(), added(&format!("__source_{name}"))));
    let mut source = Value::Object(Map::from_iter(source));
    for name in ["connector", "name", "db", "schema"] {
        source[name] = value["source"][name].clone();
    }
    check_source(&source, expected)?;
    let row = if expected.op == "d" { before } else { after };
    ensure!(Value::Object(flat.clone()) == row, "flat {flat:#?} instead of {row:#}");
    Ok(())
}

/// `JsonConverter` of Kafka Connect, and Debezium's `ExtractNewRecordState` over what it gives.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_connect_understands_records_with_schemas() -> Result<()> {
    let Some((samples, records)) = scene(true, Guarantee::ExactlyOnce).await? else { return Ok(()) };
    let expected = expected(&samples);
    ensure!(records.len() == expected.len(), "{} records: {records:#?}", records.len());
    for (number, (record, expected)) in records.iter().zip(&expected).enumerate() {
        let of = || format!("record {number}");
        check_with_schema(&samples, record, expected).with_context(of)?;
        check_headers(record, expected).with_context(of)?;
    }
    Ok(())
}

/// Debezium's own deserialiser of records without schemas.
#[tokio::test(flavor = "multi_thread")]
async fn debeziums_serde_understands_records_without_schemas() -> Result<()> {
    let Some((samples, records)) = scene(false, Guarantee::AtLeastOnce).await? else { return Ok(()) };
    let expected = expected(&samples);
    ensure!(records.len() == expected.len(), "{} records: {records:#?}", records.len());
    for (number, (record, expected)) in records.iter().zip(&expected).enumerate() {
        let of = || format!("record {number}: {record:#}");
        let key = expected.key.map_or(Value::Null, |id| id.to_string().into());
        ensure!(record["key"] == key, "key {key}: {}", of());
        let (before, after) =
            (with_nulls(&samples, expected.before.as_ref()), with_nulls(&samples, expected.after.as_ref()));
        ensure!(record["before"] == before, "before {before:#}: {}", of());
        ensure!(record["after"] == after, "after {after:#}: {}", of());
        check_headers(record, expected).with_context(of)?;
        if !expected.op.is_empty() {
            ensure!(record["op"] == expected.op, "op {}: {}", expected.op, of());
            check_source(&record["source"], expected).with_context(of)?;
        }
    }
    Ok(())
}
