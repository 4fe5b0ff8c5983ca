//! Avro schemas of keys and values: what Kafka Connect's Avro converter makes of Debezium's.
//!
//! Names have letters, digits and `_` and do not begin with a digit (Apache Avro specification, "Names"): every other character becomes
//! `_`, as Debezium does it with `field.name.adjustment.mode=avro`.

use pgferry_model::{Result, Table};
use serde_json::{Value, json};

use crate::config::{BinaryMode, KafkaConfig};
use crate::encode::{ColumnEncoder, TABLE_IN_KEY};
use crate::error::names_collide;
use crate::mapping::{Encoding, Unit, semantic_name};
use crate::schema::is_shared;

/// A name that Avro takes.
pub(crate) fn legal(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    let name: String = name.chars().map(legal).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) || name.is_empty() { format!("_{name}") } else { name }
}

/// The names of a table's fields; refused where two columns' become the same.
pub(crate) fn field_names(table: &Table) -> Result<Vec<String>> {
    let names: Vec<String> = table.columns.iter().map(|column| legal(&column.name)).collect();
    for (at, name) in names.iter().enumerate() {
        if let Some(other) = names[..at].iter().position(|earlier| earlier == name) {
            let (one, two) = (&table.columns[other].name, &table.columns[at].name);
            return Err(names_collide(&table.name, one, two, name));
        }
    }
    Ok(names)
}

fn namespace(config: &KafkaConfig, table: &Table) -> String {
    [config.source_database.as_str(), &table.name.schema, &table.name.name].map(legal).join(".")
}

/// Adds what Kafka Connect reads back: its own name of the type.
fn named(primitive: &str, name: &str) -> Value {
    json!({ "type": primitive, "connect.version": 1, "connect.name": name })
}

fn with(mut schema: Value, key: &str, value: Value) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
    schema
}

fn primitive(encoding: &Encoding) -> &'static str {
    match encoding {
        Encoding::Bool => "boolean",
        Encoding::Int16
        | Encoding::Int32
        | Encoding::Date
        | Encoding::Time(Unit::Millis | Unit::MillisRounded) => "int",
        Encoding::Int64 | Encoding::UInt32 | Encoding::Time(Unit::Micros) | Encoding::Timestamp(_) => "long",
        Encoding::Float32 => "float",
        Encoding::Float64 | Encoding::DecimalAsDouble => "double",
        Encoding::Decimal { .. } | Encoding::Bytes(BinaryMode::Bytes) => "bytes",
        Encoding::VariableDecimal => "record",
        Encoding::Array(_) => "array",
        Encoding::Text | Encoding::Jsonb | Encoding::Bytes(_) | Encoding::ZonedTimestamp | Encoding::Uuid => {
            "string"
        }
    }
}

/// A type that is written whole only where it comes first in a schema.
fn variable_decimal(defined: &mut bool) -> Value {
    const NAME: &str = "io.debezium.data.VariableScaleDecimal";
    if std::mem::replace(defined, true) {
        return NAME.into();
    }
    json!({
        "type": "record", "name": "VariableScaleDecimal", "namespace": "io.debezium.data",
        "fields": [{ "name": "scale", "type": "int" }, { "name": "value", "type": "bytes" }],
        "connect.version": 1, "connect.name": NAME,
    })
}

fn type_of(encoding: &Encoding, defined: &mut bool) -> Value {
    let primitive = primitive(encoding);
    match (encoding, semantic_name(encoding)) {
        (Encoding::VariableDecimal, _) => variable_decimal(defined),
        (Encoding::Array(element), _) => {
            json!({ "type": "array", "items": ["null", type_of(element, defined)] })
        }
        (Encoding::Int16, _) => json!({ "type": "int", "connect.type": "int16" }),
        (Encoding::Decimal { precision, scale }, Some(name)) => {
            // Avro knows no scale beyond the precision.
            let precision = (*precision).max(*scale).max(1);
            let parameters = json!({
                "scale": scale.to_string(), "connect.decimal.precision": precision.to_string(),
            });
            let schema = with(named(primitive, name), "connect.parameters", parameters);
            let schema = with(schema, "precision", precision.into());
            with(with(schema, "scale", (*scale).into()), "logicalType", "decimal".into())
        }
        (Encoding::Time(Unit::MillisRounded), Some(name)) => {
            with(named(primitive, name), "logicalType", "time-millis".into())
        }
        (Encoding::Timestamp(Unit::MillisRounded), Some(name)) => {
            with(named(primitive, name), "logicalType", "timestamp-millis".into())
        }
        (_, Some(name)) => named(primitive, name),
        (_, None) => primitive.into(),
    }
}

fn required(name: &str, schema: Value) -> Value {
    json!({ "name": name, "type": schema })
}

fn optional(name: &str, schema: Value) -> Value {
    json!({ "name": name, "type": ["null", schema], "default": null })
}

pub(super) fn key(config: &KafkaConfig, table: &Table, columns: &[ColumnEncoder]) -> Value {
    let (namespace, mut defined) = (namespace(config, table), false);
    let columns = table.key.iter().filter_map(|&at| columns.get(at));
    let mut fields: Vec<Value> =
        columns.map(|column| required(&column.field, type_of(&column.kind.encoding, &mut defined))).collect();
    if is_shared(config, &table.name) {
        fields.push(required(TABLE_IN_KEY, "string".into()));
    }
    json!({ "type": "record", "name": "Key", "namespace": namespace, "fields": fields,
        "connect.name": format!("{namespace}.Key") })
}

pub(super) fn value(config: &KafkaConfig, table: &Table, columns: &[ColumnEncoder]) -> Value {
    let (namespace, mut defined) = (namespace(config, table), false);
    // Also columns that are never NULL are optional: what the source does not send of an old row is missing.
    let fields: Vec<Value> = columns
        .iter()
        .map(|column| {
            let kind = type_of(&column.kind.encoding, &mut defined);
            if column.in_key { required(&column.field, kind) } else { optional(&column.field, kind) }
        })
        .collect();
    let row = json!({ "type": "record", "name": "Value", "fields": fields, "connect.name": format!("{namespace}.Value") });
    json!({ "type": "record", "name": "Envelope", "namespace": namespace,
        "fields": [
            optional("before", row), optional("after", "Value".into()), required("source", source()),
            required("op", "string".into()), optional("ts_ms", "long".into()), optional("transaction", transaction()),
        ],
        "connect.version": 1, "connect.name": format!("{namespace}.Envelope") })
}

/// In the order in which the envelope writes them.
fn source() -> Value {
    const NAME: &str = "io.debezium.connector.postgresql.Source";
    let text = |name| required(name, "string".into());
    json!({ "type": "record", "name": "Source", "namespace": "io.debezium.connector.postgresql",
        "fields": [
            text("version"), text("connector"), text("name"), required("ts_ms", "long".into()),
            optional("snapshot", "string".into()), text("db"), text("schema"), text("table"),
            optional("sequence", "string".into()), optional("txId", "long".into()), optional("lsn", "long".into()),
            optional("xmin", "long".into()),
        ],
        "connect.name": NAME })
}

fn transaction() -> Value {
    let number = |name| required(name, "long".into());
    json!({ "type": "record", "name": "block", "namespace": "event",
        "fields": [required("id", "string".into()), number("total_order"), number("data_collection_order")],
        "connect.version": 1, "connect.name": "event.block" })
}
