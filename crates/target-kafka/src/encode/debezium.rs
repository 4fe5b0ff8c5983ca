//! Debezium's envelope: `before`, `after`, `source`, `op`, `ts_ms` (Debezium docs, "Data change events" of the PostgreSQL connector).
//!
//! What differs is said in `docs/reference/kafka-records.md`: `source.lsn` is the commit's, one for all changes of a transaction, and
//! `source.sequence` has their order; values that the source did not send are left out instead of a placeholder.

use pgferry_model::{Result, Table, TaskId};
use serde_json::{Value, json};

use super::{ColumnEncoder, Encoder, Event, Origin, TABLE_IN_KEY, Tuples};
use crate::config::KafkaConfig;
use crate::mapping::{Encoding, primitive_name, semantic_name};
use crate::schema::is_shared;

/// One table's part of every record.
pub(super) struct Envelope {
    key_start: Vec<u8>,
    value_start: Vec<u8>,
    end: &'static [u8],
    /// From `"source":{` up to `"ts_ms":`.
    source_start: Vec<u8>,
    /// `"db":…,"schema":…,"table":…`
    source_table: Vec<u8>,
}

impl Envelope {
    pub(super) fn new(
        config: &KafkaConfig,
        task: &TaskId,
        table: &Table,
        columns: &[ColumnEncoder],
        schemas: bool,
    ) -> Self {
        let start = |schema: Value| format!("{{\"schema\":{schema},\"payload\":").into_bytes();
        let (key_start, value_start) = if schemas {
            (start(key_schema(config, table, columns)), start(value_schema(config, table, columns)))
        } else {
            (Vec::new(), Vec::new())
        };
        let text = |text: &str| Value::from(text).to_string();
        let source_start = format!(
            "\"source\":{{\"version\":{},\"connector\":\"postgresql\",\"name\":{},\"ts_ms\":",
            text(env!("CARGO_PKG_VERSION")),
            text(task.as_str())
        );
        let source_table = format!(
            "\"db\":{},\"schema\":{},\"table\":{}",
            text(&config.source_database),
            text(&table.name.schema),
            text(&table.name.name)
        );
        Envelope {
            key_start,
            value_start,
            end: if schemas { b"}" } else { b"" },
            source_start: source_start.into_bytes(),
            source_table: source_table.into_bytes(),
        }
    }

    pub(super) fn key_start(&self) -> &[u8] {
        &self.key_start
    }

    pub(super) fn end(&self) -> &[u8] {
        self.end
    }

    pub(super) fn write(
        &self,
        encoder: &Encoder,
        event: Event,
        tuples: Tuples<'_>,
        origin: &Origin,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        out.extend_from_slice(&self.value_start);
        out.extend_from_slice(b"{\"before\":");
        match tuples.before {
            Some(before) => encoder.object(before, tuples, out)?,
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"after\":");
        match tuples.after {
            Some(after) => encoder.object(after, tuples, out)?,
            None => out.extend_from_slice(b"null"),
        }
        out.push(b',');
        self.source(origin, out);
        out.extend_from_slice(b",\"op\":\"");
        out.extend_from_slice(event.letter().as_bytes());
        out.extend_from_slice(b"\",\"ts_ms\":");
        number(origin.now_ms, out);
        out.extend_from_slice(b",\"transaction\":");
        match tuples.place {
            Some(place) => {
                out.extend_from_slice(b"{\"id\":\"");
                out.extend_from_slice(origin.transaction_id().as_bytes());
                out.extend_from_slice(b"\",\"total_order\":");
                number(place.total, out);
                out.extend_from_slice(b",\"data_collection_order\":");
                number(place.of_table, out);
                out.extend_from_slice(b"}}");
            }
            None => out.extend_from_slice(b"null}"),
        }
        out.extend_from_slice(self.end);
        Ok(())
    }

    fn source(&self, origin: &Origin, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.source_start);
        number(origin.committed_at_ms, out);
        out.extend_from_slice(if origin.snapshot {
            b",\"snapshot\":\"true\","
        } else {
            b",\"snapshot\":\"false\","
        });
        out.extend_from_slice(&self.source_table);
        out.extend_from_slice(b",\"sequence\":\"[\\\"");
        number(origin.lsn, out);
        out.extend_from_slice(b"\\\",\\\"");
        number(origin.order, out);
        out.extend_from_slice(b"\\\"]\",\"txId\":");
        if origin.snapshot {
            out.extend_from_slice(b"null");
        } else {
            number(origin.xid, out);
        }
        out.extend_from_slice(b",\"lsn\":");
        number(origin.lsn, out);
        out.extend_from_slice(b",\"xmin\":null}");
    }
}

fn number(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn field(encoding: &Encoding, optional: bool) -> Value {
    let mut schema = json!({ "type": primitive_name(encoding), "optional": optional });
    let mut add = |name: &str, value: Value| {
        if let Some(fields) = schema.as_object_mut() {
            fields.insert(name.to_owned(), value);
        }
    };
    if let Some(name) = semantic_name(encoding) {
        add("name", name.into());
        add("version", 1.into());
    }
    match encoding {
        Encoding::Decimal { precision, scale } => add(
            "parameters",
            json!({ "scale": scale.to_string(), "connect.decimal.precision": precision.to_string() }),
        ),
        Encoding::VariableDecimal => add(
            "fields",
            json!([
                { "type": "int32", "optional": false, "field": "scale" },
                { "type": "bytes", "optional": false, "field": "value" },
            ]),
        ),
        Encoding::Array(element) => add("items", field(element, true)),
        _ => {}
    }
    schema
}

fn named(mut schema: Value, name: &str) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("field".to_owned(), name.into());
    }
    schema
}

fn record_name(config: &KafkaConfig, table: &Table, part: &str) -> String {
    format!("{}.{}.{}.{part}", config.source_database, table.name.schema, table.name.name)
}

fn key_schema(config: &KafkaConfig, table: &Table, columns: &[ColumnEncoder]) -> Value {
    let mut fields: Vec<Value> = table
        .key
        .iter()
        .filter_map(|&at| columns.get(at))
        .map(|column| named(field(&column.kind.encoding, false), &column.name))
        .collect();
    if is_shared(config, &table.name) {
        fields.push(json!({ "type": "string", "optional": false, "field": TABLE_IN_KEY }));
    }
    json!({ "type": "struct", "fields": fields, "optional": false, "name": record_name(config, table, "Key") })
}

fn value_schema(config: &KafkaConfig, table: &Table, columns: &[ColumnEncoder]) -> Value {
    // Also columns that are never NULL: what the source does not send of an old row is missing.
    let fields: Vec<Value> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| named(field(&column.kind.encoding, !table.key.contains(&at)), &column.name))
        .collect();
    let row = |name: &str| {
        json!({ "type": "struct", "fields": fields, "optional": true,
            "name": record_name(config, table, "Value"), "field": name })
    };
    let plain =
        |kind: &str, optional: bool, name: &str| json!({ "type": kind, "optional": optional, "field": name });
    let source = json!({ "type": "struct", "optional": false,
        "name": "io.debezium.connector.postgresql.Source", "field": "source",
        "fields": [
            plain("string", false, "version"), plain("string", false, "connector"), plain("string", false, "name"),
            plain("int64", false, "ts_ms"), plain("string", true, "snapshot"), plain("string", false, "db"),
            plain("string", false, "schema"), plain("string", false, "table"), plain("string", true, "sequence"),
            plain("int64", true, "txId"), plain("int64", true, "lsn"), plain("int64", true, "xmin"),
        ] });
    let transaction = json!({ "type": "struct", "optional": true, "name": "event.block", "version": 1, "field": "transaction",
        "fields": [
            plain("string", false, "id"), plain("int64", false, "total_order"), plain("int64", false, "data_collection_order"),
        ] });
    json!({ "type": "struct", "optional": false, "name": record_name(config, table, "Envelope"), "version": 1,
        "fields": [
            row("before"), row("after"), source, plain("string", false, "op"), plain("int64", true, "ts_ms"), transaction,
        ] })
}
