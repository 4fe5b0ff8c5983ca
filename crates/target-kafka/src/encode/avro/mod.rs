//! Debezium's envelope as Avro, in the form that schema registries' clients read: a zero byte, the schema's id, the data (Confluent docs,
//! "Wire format").
//!
//! What differs from the JSON form: a field cannot be left out, so that a value which the source did not send is null; the header
//! that names it tells it from NULL.

mod cell;
pub(crate) mod schema;

use pgferry_model::{Cell, Result, Row, Table, TaskId};
use serde_json::Value;

use super::{ColumnEncoder, Encoder, Event, Origin, Tuples};
use crate::config::KafkaConfig;
use crate::schema::is_shared;
use crate::schema_registry::Ids;
use cell::{bytes, long, null, some};

/// Begins every key and value.
const MAGIC: u8 = 0;

/// One table's part of every record.
pub(super) struct Envelope {
    key_id: [u8; 4],
    value_id: [u8; 4],
    /// The fields `version`, `connector` and `name` of `source`.
    source_start: Vec<u8>,
    /// The fields `db`, `schema` and `table` of `source`.
    source_table: Vec<u8>,
    /// The last field of a key in a topic that several tables share.
    key_end: Vec<u8>,
}

/// The schemas of a table's keys and values.
pub(crate) fn schemas(
    config: &KafkaConfig,
    table: &Table,
    columns: &[ColumnEncoder],
) -> (Option<Value>, Value) {
    let key = (!table.key.is_empty()).then(|| schema::key(config, table, columns));
    (key, schema::value(config, table, columns))
}

impl Envelope {
    pub(super) fn new(config: &KafkaConfig, task: &TaskId, table: &Table, ids: Ids) -> Self {
        let texts = |texts: [&str; 3]| {
            let mut out = Vec::new();
            texts.iter().for_each(|text| bytes(text.as_bytes(), &mut out));
            out
        };
        let mut key_end = Vec::new();
        if is_shared(config, &table.name) {
            let name = format!("{}.{}.{}", config.source_database, table.name.schema, table.name.name);
            bytes(name.as_bytes(), &mut key_end);
        }
        Envelope {
            key_id: ids.key.to_be_bytes(),
            value_id: ids.value.to_be_bytes(),
            source_start: texts([env!("CARGO_PKG_VERSION"), "postgresql", task.as_str()]),
            source_table: texts([&config.source_database, &table.name.schema, &table.name.name]),
            key_end,
        }
    }

    pub(super) fn key_start(&self, out: &mut Vec<u8>) {
        out.push(MAGIC);
        out.extend_from_slice(&self.key_id);
    }

    pub(super) fn key_column(
        column: &ColumnEncoder,
        value: Cell<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), &'static str> {
        cell::write(&column.kind.encoding, value, out)
    }

    pub(super) fn key_end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key_end);
    }

    pub(super) fn write(
        &self,
        encoder: &Encoder,
        event: Event,
        tuples: Tuples<'_>,
        origin: &Origin,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        out.push(MAGIC);
        out.extend_from_slice(&self.value_id);
        row(encoder, tuples.before, tuples, out)?;
        row(encoder, tuples.after, tuples, out)?;
        self.source(origin, out);
        bytes(event.letter().as_bytes(), out);
        some(out);
        long(origin.now_ms, out);
        match tuples.place {
            Some(place) => {
                some(out);
                bytes(origin.transaction_id().as_bytes(), out);
                long(place.total as i64, out);
                long(place.of_table as i64, out);
            }
            None => null(out),
        }
        Ok(())
    }

    fn source(&self, origin: &Origin, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.source_start);
        long(origin.committed_at_ms, out);
        some(out);
        bytes(if origin.snapshot { b"true" } else { b"false" }, out);
        out.extend_from_slice(&self.source_table);
        some(out);
        bytes(format!("[\"{}\",\"{}\"]", origin.lsn, origin.order).as_bytes(), out);
        if origin.snapshot {
            null(out);
        } else {
            some(out);
            long(origin.xid.into(), out);
        }
        some(out);
        long(origin.lsn as i64, out);
        null(out);
    }
}

/// A tuple as `["null", Value]`.
fn row(encoder: &Encoder, tuple: Option<Row<'_>>, tuples: Tuples<'_>, out: &mut Vec<u8>) -> Result<()> {
    let Some(tuple) = tuple else {
        null(out);
        return Ok(());
    };
    some(out);
    for ((at, value), column) in tuple.cells().enumerate().zip(&encoder.columns) {
        let value = tuples.filled(at, value, column.in_key);
        let written = if column.in_key {
            cell::write(&column.kind.encoding, value, out)
        } else {
            cell::write_optional(&column.kind.encoding, value, out)
        };
        written.map_err(|reason| encoder.unfit(column, reason))?;
    }
    Ok(())
}
