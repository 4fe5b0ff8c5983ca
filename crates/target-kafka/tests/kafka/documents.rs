//! The published mapping table is what the code does.

use anyhow::Result;
use pgferry_model::TypeKind;
use pgferry_target_kafka::{DecimalMode, KafkaConfig, TimeMode, map_type};
use pgferry_testkit::published_types::{data_type, verify, words};

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
    let fidelity = words(mapping.fidelity);
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

#[test]
fn the_published_table_is_what_the_code_does() -> Result<()> {
    verify("kafka", &generated())
}
