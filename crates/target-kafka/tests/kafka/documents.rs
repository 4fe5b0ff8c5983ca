//! The published mapping table is what the code does.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pgferry_model::{DataType, TypeKind};
use pgferry_pipeline::Fidelity;
use pgferry_target_kafka::{DecimalMode, KafkaConfig, TimeMode, map_type};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/type-mapping-kafka.md");
const START: &str = "<!-- table: written by the test `documents` of target-kafka -->\n";
const END: &str = "<!-- end of table -->";

fn data_type(name: &str, kind: TypeKind) -> DataType {
    DataType { oid: 1, name: name.into(), kind, sends_binary: true, output_function: Arc::from("x") }
}

fn kinds() -> Vec<(&'static str, TypeKind)> {
    let numeric = |precision_and_scale| TypeKind::Numeric { precision_and_scale };
    let array = |kind, dimensions| TypeKind::Array(Box::new(data_type("x", kind)), dimensions);
    vec![
        ("boolean", TypeKind::Bool),
        ("smallint", TypeKind::Int2),
        ("integer", TypeKind::Int4),
        ("bigint", TypeKind::Int8),
        ("oid", TypeKind::Oid),
        ("real", TypeKind::Float4),
        ("double precision", TypeKind::Float8),
        ("numeric(10,2)", numeric(Some((10, 2)))),
        ("numeric(5,-3)", numeric(Some((5, -3)))),
        ("numeric", numeric(None)),
        ("text, character varying, name", TypeKind::Text),
        ("character(n)", TypeKind::FixedText),
        ("\"char\"", TypeKind::SingleByte),
        ("bytea", TypeKind::Bytes),
        ("date", TypeKind::Date),
        ("time(3)", TypeKind::Time),
        ("time", TypeKind::Time),
        ("time with time zone", TypeKind::TimeTz),
        ("timestamp(3)", TypeKind::Timestamp),
        ("timestamp", TypeKind::Timestamp),
        ("timestamp with time zone", TypeKind::TimestampTz),
        ("interval", TypeKind::Interval),
        ("uuid", TypeKind::Uuid),
        ("json", TypeKind::Json),
        ("jsonb", TypeKind::Jsonb),
        ("xml", TypeKind::Xml),
        ("bit, bit varying", TypeKind::Bits),
        ("money", TypeKind::Money),
        ("inet, cidr, macaddr, macaddr8", TypeKind::Network),
        ("enum", TypeKind::Enum),
        ("composite", TypeKind::Composite),
        ("range, multirange", TypeKind::Range),
        ("integer[] (and arrays of other types)", array(TypeKind::Int4, 1)),
        ("integer[][]", array(TypeKind::Int4, 2)),
        ("everything else (geometry, tsvector, hstore, vector, reg types)", TypeKind::Other),
    ]
}

fn line(config: &KafkaConfig, setting: &str, name: &str, kind: TypeKind) -> String {
    let mapping = map_type(config, &data_type(name, kind));
    let fidelity = match mapping.fidelity {
        Fidelity::Exact => "exact",
        Fidelity::ExactAsText => "exact, as text",
        Fidelity::Equal => "equal",
        Fidelity::Guarded => "exact or refused",
        Fidelity::Rounded => "rounded",
    };
    format!("| {name}{setting} | {} | {fidelity} | {} |\n", mapping.name, mapping.note)
}

fn generated() -> String {
    let config = KafkaConfig::new("");
    let mut out = String::from("| PostgreSQL | record | values | note |\n|---|---|---|---|\n");
    for (name, kind) in kinds() {
        out.push_str(&line(&config, "", name, kind));
    }
    let numeric = || TypeKind::Numeric { precision_and_scale: Some((10, 2)) };
    for (decimals, word) in [(DecimalMode::String, "string"), (DecimalMode::Double, "double")] {
        let config = KafkaConfig { decimals, ..config.clone() };
        let setting = format!(", `decimal_handling_mode = \"{word}\"`");
        out.push_str(&line(&config, &setting, "numeric(10,2)", numeric()));
    }
    let connect = KafkaConfig { times: TimeMode::Connect, ..config };
    for (name, kind) in [("time", TypeKind::Time), ("timestamp", TypeKind::Timestamp)] {
        out.push_str(&line(&connect, ", `time_precision_mode = \"connect\"`", name, kind));
    }
    out
}

/// With `PGFERRY_WRITE_DOCS=1` it writes the page instead.
#[test]
fn the_published_table_is_what_the_code_does() -> Result<()> {
    let page = std::fs::read_to_string(PAGE)?;
    let (before, rest) = page.split_once(START).context("the table's start")?;
    let (table, after) = rest.split_once(END).context("the table's end")?;
    if std::env::var_os("PGFERRY_WRITE_DOCS").is_some() {
        std::fs::write(PAGE, format!("{before}{START}{}{END}{after}", generated()))?;
    } else {
        ensure!(table == generated(), "the page's table is not what the code does");
    }
    Ok(())
}
