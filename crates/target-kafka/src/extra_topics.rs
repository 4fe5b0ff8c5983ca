//! Topics beside the tables' own, each only where the user names it: transactions, columns, signs of life, records that were too large.
//!
//! ```text
//!   transaction_topic   BEGIN and END of each transaction, with the number of its events      key {"id": …}
//!   ddl_topic           the columns of a table, when they are first written and when they change
//!   heartbeat_topic     every heartbeat_interval: the time, and the position that is stored
//!   dead_letter_topic   a record that is larger than its topic takes, with the reason in headers
//! ```
//!
//! Invariants: the first two and the last are written in the transaction of the data that they tell of; each has one partition.
//! Their records are JSON in every format.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};

use pgferry_model::{Result, Table, TableName, TaskId};
use serde_json::{Value, json};

use crate::config::KafkaConfig;
use crate::encode::{Origin, Place, Record};
use crate::holder::{Holder, now_ms};
use crate::mapping::{map_column, primitive_name};
use crate::write::{NO_ROUTE, Producer};

/// The topics that the user names.
pub(crate) fn named(config: &KafkaConfig) -> impl Iterator<Item = &str> {
    let heartbeat = config.heartbeat.as_ref().map(|(topic, _)| topic);
    let others = [&config.transaction_topic, &config.ddl_topic, &config.dead_letter_topic];
    others.into_iter().filter_map(Option::as_ref).chain(heartbeat).map(String::as_str)
}

fn send(producer: &mut Producer, topic: &str, key: &Value, value: &Value) -> Result<()> {
    let (key, value) = (key.to_string().into_bytes(), value.to_string().into_bytes());
    let record = Record { key: Some(&key), value: Some(&value), headers: &[], everywhere: false };
    let sent = producer.send(topic, 0, &record, NO_ROUTE);
    sent.map_err(|failure| producer.failed(&format!("writing to topic {topic}"), failure))
}

/// The events of the transaction that is being written.
#[derive(Default)]
pub(crate) struct Tally {
    open: Option<Origin>,
    total: u64,
    of_tables: BTreeMap<TableName, u64>,
}

impl Tally {
    /// Where the next event of a table stands; a transaction that ends before it, and the one that it begins, are told.
    pub(crate) fn before(
        &mut self,
        config: &KafkaConfig,
        origin: &Origin,
        table: &TableName,
        producer: &mut Producer,
    ) -> Result<Option<Place>> {
        let Some(topic) = &config.transaction_topic else { return Ok(None) };
        if self.open.is_none_or(|open| (open.xid, open.lsn) != (origin.xid, origin.lsn)) {
            self.end(config, producer)?;
            let id = origin.transaction_id();
            let begin = json!({ "status": "BEGIN", "id": id, "ts_ms": origin.committed_at_ms,
                "event_count": null, "data_collections": null });
            send(producer, topic, &json!({ "id": id }), &begin)?;
            self.open = Some(*origin);
        }
        let of_table = self.of_tables.get(table).copied().unwrap_or(0);
        Ok(Some(Place { total: self.total, of_table }))
    }

    /// Takes note of what was written since.
    pub(crate) fn after(&mut self, table: &TableName, place: Option<Place>) {
        let Some(place) = place else { return };
        self.total = place.total;
        match self.of_tables.get_mut(table) {
            Some(known) => *known = place.of_table,
            None => {
                self.of_tables.insert(table.clone(), place.of_table);
            }
        }
    }

    /// Tells that the open transaction has ended, where there is one.
    pub(crate) fn end(&mut self, config: &KafkaConfig, producer: &mut Producer) -> Result<()> {
        let Tally { open, total, of_tables } = std::mem::take(self);
        let (Some(origin), Some(topic)) = (open, &config.transaction_topic) else { return Ok(()) };
        let id = origin.transaction_id();
        let counts = of_tables.iter().map(|(table, count)| {
            json!({ "data_collection": format!("{}.{}", table.schema, table.name), "event_count": count })
        });
        let end = json!({ "status": "END", "id": id, "ts_ms": origin.committed_at_ms, "event_count": total,
            "data_collections": counts.collect::<Vec<_>>() });
        send(producer, topic, &json!({ "id": id }), &end)
    }
}

/// Tells the columns that a table's records have from now on.
pub(crate) fn tell_columns(
    config: &KafkaConfig,
    task: &TaskId,
    tables: &[(Arc<Table>, bool)],
    producer: &mut Producer,
) -> Result<()> {
    let Some(topic) = &config.ddl_topic else { return Ok(()) };
    for (table, new) in tables {
        let key = json!({ "databaseName": config.source_database });
        send(producer, topic, &key, &columns_record(config, task, table, *new))?;
    }
    Ok(())
}

/// Debezium's form of a schema change; the stream of changes has no statement's text, so `ddl` is null.
fn columns_record(config: &KafkaConfig, task: &TaskId, table: &Table, new: bool) -> Value {
    let now = now_ms();
    let columns = table.columns.iter().enumerate().map(|(at, column)| {
        let kind = map_column(config, table, column);
        json!({ "name": *column.name, "typeName": *column.data_type.name, "position": at + 1,
            "optional": !table.key.contains(&at), "recordType": primitive_name(&kind.encoding),
            "recordTypeName": kind.name })
    });
    let key: Vec<&str> =
        table.key.iter().filter_map(|&at| table.columns.get(at)).map(|column| &*column.name).collect();
    let name = &table.name;
    json!({
        "source": { "connector": "postgresql", "name": task.as_str(), "ts_ms": now, "db": config.source_database,
            "schema": *name.schema, "table": *name.name },
        "ts_ms": now, "databaseName": config.source_database, "schemaName": *name.schema, "ddl": null,
        "tableChanges": [{
            "type": if new { "CREATE" } else { "ALTER" },
            "id": format!("\"{}\".\"{}\".\"{}\"", config.source_database, name.schema, name.name),
            "table": { "primaryKeyColumnNames": key, "columns": columns.collect::<Vec<_>>() },
        }],
    })
}

/// Ends the signs of life with the holder.
pub(crate) struct Heart {
    _beating: Sender<()>,
}

impl Heart {
    /// Begins them, where the user wants them.
    pub(crate) fn begin(holder: &Arc<Holder>) -> Option<Heart> {
        let (topic, interval) = holder.config.heartbeat.clone()?;
        let (beating, ended) = channel::<()>();
        let holder: Weak<Holder> = Arc::downgrade(holder);
        std::thread::spawn(move || {
            while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                let Some(holder) = holder.upgrade() else { return };
                // What keeps a sign of life from being written keeps the data, too, and is told there.
                if let Err(failure) = beat(&holder, &topic) {
                    tracing::debug!(code = failure.code().as_str(), "no sign of life was written: {failure}");
                }
            }
        });
        Some(Heart { _beating: beating })
    }
}

fn beat(holder: &Holder, topic: &str) -> Result<()> {
    let position = holder.view.lock().held.position.map(|position| position.to_string());
    let key = json!({ "serverName": holder.task.as_str() });
    let value = json!({ "ts_ms": now_ms(), "position": position });
    holder.store_with(&[], &[], |producer| send(producer, topic, &key, &value))
}

/// Names the error that a dead letter was set aside for.
const CODE: &str = "pgferry.error.code";
/// The topic that it was meant for.
const TOPIC: &str = "pgferry.error.topic";
/// Bytes of its value, where even this topic does not take it.
const OMITTED: &str = "pgferry.error.value_bytes";

/// What a broker counts beside keys, values and headers: the batch's own header (61 bytes) and a record's lengths (Apache Kafka docs,
/// "Message Format").
const FRAME_BYTES: usize = 61 + 6 * 5;

/// Where a table's too large records go.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetters {
    pub(crate) topic: String,
    /// The largest batch of the table's topic, in bytes.
    pub(crate) limit: usize,
    /// The largest batch of the topic for dead letters, in bytes.
    pub(crate) own_limit: usize,
}

impl DeadLetters {
    /// Whether the table's topic does not take the record, before compression.
    pub(crate) fn takes(&self, record: &Record<'_>) -> bool {
        bytes(record) > self.limit
    }

    /// The record as a dead letter of a topic: its headers, and whether the value goes with it.
    pub(crate) fn letter(&self, topic: &str, record: &Record<'_>) -> (Vec<(&'static str, Vec<u8>)>, bool) {
        let mut headers = record.headers.to_vec();
        headers.push((CODE, crate::error::RECORD_TOO_LARGE.as_str().as_bytes().to_vec()));
        headers.push((TOPIC, topic.as_bytes().to_vec()));
        let spare = TOPIC.len() + CODE.len() + OMITTED.len() + topic.len() + 64;
        let whole = bytes(record) + spare <= self.own_limit;
        if !whole {
            let length = record.value.map_or(0, <[u8]>::len);
            headers.push((OMITTED, length.to_string().into_bytes()));
        }
        (headers, whole)
    }
}

fn bytes(record: &Record<'_>) -> usize {
    let headers: usize = record.headers.iter().map(|(key, value)| key.len() + value.len() + 10).sum();
    FRAME_BYTES + record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_tells_what_it_is_and_leaves_out_what_does_not_fit() {
        let letters = DeadLetters { topic: "dead".to_owned(), limit: 200, own_limit: 1_000 };
        let (small, large, huge) = (vec![b'x'; 50], vec![b'x'; 300], vec![b'x'; 3_000]);
        let record = |value| Record { key: Some(b"k"), value: Some(value), headers: &[], everywhere: false };
        assert!(!letters.takes(&record(&small)) && letters.takes(&record(&large)));
        let (headers, whole) = letters.letter("orders", &record(&large));
        assert!(whole && headers.contains(&(TOPIC, b"orders".to_vec())), "{headers:?}");
        let (headers, whole) = letters.letter("orders", &record(&huge));
        assert!(!whole && headers.contains(&(OMITTED, b"3000".to_vec())), "{headers:?}");
    }
}
