//! One record, read back: whose it is, and what it does to a row.

use std::collections::HashSet;

use pgferry_model::{Result, TableName};
use rdkafka::message::{BorrowedHeaders, Headers};
use serde_json::{Map, Value};

use crate::broker::Read;
use crate::encode::{LSN, NEW_KEY, OLD_KEY, OP, ORDER, SCHEMA, TABLE, UNCHANGED};
use crate::schema_registry::SchemaRegistry;

use super::avro;

/// What a record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Truncate,
    Delete,
    Put,
}

/// A record of one table.
pub(super) struct Event {
    pub(super) partition: i32,
    /// Commit, number in its transaction, and of one change with two records the delete first.
    pub(super) order: (u64, u64, What),
    pub(super) key: Option<Vec<u8>>,
    pub(super) what: What,
    pub(super) fields: Map<String, Value>,
    pub(super) unchanged: Vec<String>,
    pub(super) new_key: Option<Vec<u8>>,
    pub(super) old_key: Option<Vec<u8>>,
}

fn header<'a>(headers: Option<&'a BorrowedHeaders>, name: &str) -> Option<&'a [u8]> {
    headers?.iter().find(|header| header.key == name)?.value
}

/// The event of a table that a record is; `None`: another table's, or nothing to a row. `registry`: of records in Avro.
pub(super) fn of(
    table: &TableName,
    registry: Option<&SchemaRegistry>,
    read: &Read<'_>,
    of_others: &mut HashSet<Vec<u8>>,
) -> Result<Option<Event>> {
    let envelope = match (registry, read.value) {
        (Some(registry), Some(value)) => avro::decoded(registry, value)?,
        (_, value) => value.and_then(|value| serde_json::from_slice(value).ok()),
    };
    Ok(event(table, read, envelope, of_others))
}

fn event(
    table: &TableName,
    read: &Read<'_>,
    value: Option<Value>,
    of_others: &mut HashSet<Vec<u8>>,
) -> Option<Event> {
    let &Read { partition, key, headers, .. } = read;
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    let text = |name| header(headers, name).and_then(|value| std::str::from_utf8(value).ok());
    let number = |name| text(name).and_then(|text| text.parse::<u64>().ok());
    let unchanged = header(headers, UNCHANGED).and_then(|names| serde_json::from_slice(names).ok());
    let mut event = Event {
        partition,
        order: (0, 0, What::Put),
        key: owned(key),
        what: What::Put,
        fields: Map::new(),
        unchanged: unchanged.unwrap_or_default(),
        new_key: owned(header(headers, NEW_KEY)),
        old_key: owned(header(headers, OLD_KEY)),
    };
    if let Some(op) = text(OP) {
        // Plain: what happened is in the headers.
        if text(SCHEMA) != Some(&*table.schema) || text(TABLE) != Some(&*table.name) {
            return None;
        }
        event.what = what(op)?;
        if let Some(Value::Object(fields)) = value {
            event.fields = fields;
        }
        event.order = (number(LSN).unwrap_or(0), number(ORDER).unwrap_or(0), event.what);
        return Some(event);
    }
    if read.value.is_none() {
        // A tombstone: its delete came before, unless that is compacted away.
        let other = key.is_some_and(|key| of_others.contains(key));
        event.what = What::Delete;
        event.order = (0, 0, What::Delete);
        return (!other).then_some(event);
    }
    debezium(table, event, value?, of_others)
}

fn what(op: &str) -> Option<What> {
    match op {
        "r" | "c" | "u" => Some(What::Put),
        "d" => Some(What::Delete),
        "t" => Some(What::Truncate),
        _ => None,
    }
}

fn debezium(
    table: &TableName,
    mut event: Event,
    mut envelope: Value,
    of_others: &mut HashSet<Vec<u8>>,
) -> Option<Event> {
    if let Some(payload) = envelope.get_mut("payload") {
        envelope = payload.take();
    }
    let source = envelope.get("source")?;
    let text = |name: &str| source.get(name).and_then(Value::as_str);
    if text("schema") != Some(&*table.schema) || text("table") != Some(&*table.name) {
        of_others.extend(event.key);
        return None;
    }
    event.what = what(envelope.get("op")?.as_str()?)?;
    let order = text("sequence").and_then(|sequence| serde_json::from_str::<Vec<String>>(sequence).ok());
    let order = order.and_then(|parts| parts.get(1)?.parse().ok()).unwrap_or(0);
    event.order = (source.get("lsn").and_then(Value::as_u64).unwrap_or(0), order, event.what);
    if let Some(Value::Object(fields)) = envelope.get_mut("after").map(Value::take) {
        event.fields = fields;
    }
    Some(event)
}
