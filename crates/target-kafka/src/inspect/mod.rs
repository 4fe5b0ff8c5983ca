//! The read side: a topic's records folded into the rows that a consumer would hold, as PostgreSQL's own text.
//!
//! ```text
//!   partition 0 ─┐
//!   partition 1 ─┼─ smallest (commit, number) next ──> rows by key ──> text, sorted
//!   partition 2 ─┘
//! ```
//!
//! Invariant: what is folded is what a consumer of committed records reads, up to the first transaction that is open for longer than
//! half a minute.
//!
//! Limits: every row of the table is held in memory; floats are written as PostgreSQL 12 and later write them.

mod avro;
mod event;
mod text;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pgferry_model::{Cure, Error, Result, Table, TableName};
use pgferry_pipeline::{Inspect, TextRow};
use serde_json::{Map, Value};

use crate::KafkaTarget;
use crate::broker::{Cluster, Reader};
use crate::encode::field_names;
use crate::error::{ROW_MISSING, topic_gone};
use crate::holder::{Holder, Lane};
use crate::mapping::map_column;
use crate::schema::topic_of;
use crate::schema_registry::SchemaRegistry;
use event::{Event, What};

#[async_trait]
impl Inspect for KafkaTarget {
    async fn count(&self, table: &Table) -> Result<u64> {
        let table = table.clone();
        self.blocking(move |target| Ok(fold(target, &table)?.len() as u64)).await
    }

    async fn rows(
        &self,
        table: &Table,
        limit: Option<u64>,
        each: &mut (dyn FnMut(TextRow) -> Result<()> + Send),
    ) -> Result<()> {
        let reading = table.clone();
        let mut rows = self.blocking(move |target| text_rows(target, &reading)).await?;
        let order: Vec<usize> =
            if table.key.is_empty() { (0..table.columns.len()).collect() } else { table.key.clone() };
        rows.sort_by_cached_key(|row| {
            order.iter().map(|&at| (row[at].is_none(), row[at].clone())).collect::<Vec<_>>()
        });
        rows.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
        rows.into_iter().try_for_each(each)
    }
}

/// A row as its records have left it.
#[derive(Clone, Default)]
struct Folded {
    fields: Map<String, Value>,
    partition: i32,
    /// A value that the source did not send, and that no earlier record has.
    unknown: bool,
}

/// Rows of one table.
#[derive(Default)]
struct Rows {
    by_key: HashMap<Vec<u8>, Folded>,
    without_key: Vec<Folded>,
    /// Rows whose key has changed, by the old and the new one: what the source did not send is taken from them.
    moved: HashMap<(Vec<u8>, Vec<u8>), Folded>,
}

impl Rows {
    fn take(&mut self, event: Event) {
        let Event { partition, key, what, fields, unchanged, new_key, old_key, .. } = event;
        match what {
            What::Truncate => {
                self.by_key.retain(|_, row| row.partition != partition);
                self.without_key.retain(|row| row.partition != partition);
            }
            What::Delete => {
                let Some(key) = key else { return };
                let gone = self.by_key.remove(&key);
                if let (Some(row), Some(new_key)) = (gone, new_key) {
                    self.moved.insert((key, new_key), row);
                }
            }
            What::Put => {
                let Some(key) = key else {
                    self.without_key.push(Folded { fields, partition, unknown: false });
                    return;
                };
                let base = match old_key {
                    Some(old_key) => self.moved.remove(&(old_key, key.clone())),
                    None => self.by_key.remove(&key),
                };
                let mut row = Folded { fields, partition, unknown: false };
                for name in unchanged {
                    match base.as_ref().and_then(|base| base.fields.get(&name)) {
                        Some(value) => {
                            row.fields.insert(name, value.clone());
                        }
                        None => row.unknown = true,
                    }
                }
                self.by_key.insert(key, row);
            }
        }
    }

    fn into_rows(self) -> Vec<Folded> {
        self.by_key.into_values().chain(self.without_key).collect()
    }
}

fn fold(target: &KafkaTarget, table: &Table) -> Result<Vec<Folded>> {
    let topic = topic_of(target.config(), table);
    let topics = target.cluster().topics()?;
    let Some(&partitions) = topics.get(&topic) else { return Err(topic_gone(&table.name, &topic)) };
    await_decided(target.cluster(), target.holder().ok().as_deref(), &topic, partitions)?;
    let registry = target.registry().map(Arc::clone);
    let mut events = Ordered::new(target.cluster(), registry, &table.name, &topic, partitions)?;
    let mut rows = Rows::default();
    while let Some(event) = events.next()? {
        rows.take(event);
    }
    events.reader.end();
    Ok(rows.into_rows())
}

/// How long the end of a transaction is waited for, in each partition.
const DECIDED_WITHIN: Duration = Duration::from_secs(30);

/// Waits until what was written before now is readable. A transaction that this process has open itself is not waited for.
fn await_decided(cluster: &Cluster, holder: Option<&Holder>, topic: &str, partitions: i32) -> Result<()> {
    if holder.is_some_and(|holder| holder.stream.lock().producer.has_begun()) {
        return Ok(());
    }
    for partition in 0..partitions {
        cluster.await_decided(topic, partition, DECIDED_WITHIN)?;
    }
    Ok(())
}

fn text_rows(target: &KafkaTarget, table: &Table) -> Result<Vec<TextRow>> {
    let kinds: Vec<_> =
        table.columns.iter().map(|column| map_column(target.config(), table, column)).collect();
    let fields = field_names(target.config(), table)?;
    let text_row = |row: Folded| {
        if row.unknown {
            return Err(value_missing(&table.name));
        }
        let cells = table.columns.iter().zip(&fields).zip(&kinds).map(|((column, field), kind)| {
            let value = row.fields.get(field).unwrap_or(&Value::Null);
            text::of(&kind.encoding, value).ok_or_else(|| unreadable(&table.name, &column.name))
        });
        cells.collect::<Result<TextRow>>()
    };
    fold(target, table)?.into_iter().map(text_row).collect()
}

/// Keys that records from these offsets on have left with a row, in the task's own topic.
pub(crate) fn written_keys(holder: &Holder, lane: &Arc<Lane>, from: &[i64]) -> Result<Vec<Vec<u8>>> {
    let route = &lane.route;
    let mut keys = BTreeSet::new();
    let mut of_others = HashSet::new();
    let mut first = from.to_vec();
    first.resize(route.partitions as usize, 0);
    await_decided(&holder.cluster, Some(holder), &route.topic, route.partitions)?;
    holder.cluster.read(&route.topic, &first, Some(&route.table), &mut |read| {
        match event::of(&route.table, holder.registry(), &read, &mut of_others)? {
            Some(Event { what: What::Put, partition, key: Some(key), .. }) => {
                keys.insert((partition, key));
            }
            Some(Event { what: What::Delete, partition, key: Some(key), .. }) => {
                keys.remove(&(partition, key));
            }
            // It is in every partition, and those are not read at the same pace.
            Some(Event { what: What::Truncate, partition, .. }) => {
                keys.retain(|(other, _)| *other != partition)
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(keys.into_iter().map(|(_, key)| key).collect())
}

/// Events of one partition that wait for those of others before more of them are held back, and when they come again.
const WAITING_MAX: usize = 8_192;
const WAITING_MIN: usize = 1_024;

/// A topic's events, in the order of commits over all partitions.
struct Ordered<'a> {
    reader: Reader<'a>,
    registry: Option<Arc<SchemaRegistry>>,
    table: TableName,
    heads: Vec<VecDeque<Event>>,
    held: Vec<bool>,
    /// Keys that belong to other tables of the topic.
    of_others: HashSet<Vec<u8>>,
}

impl<'a> Ordered<'a> {
    fn new(
        cluster: &'a Cluster,
        registry: Option<Arc<SchemaRegistry>>,
        table: &TableName,
        topic: &str,
        partitions: i32,
    ) -> Result<Ordered<'a>> {
        let from = vec![0; partitions as usize];
        Ok(Ordered {
            reader: Reader::new(cluster, topic, &from, Some(table))?,
            registry,
            table: table.clone(),
            heads: from.iter().map(|_| VecDeque::new()).collect(),
            held: vec![false; from.len()],
            of_others: HashSet::new(),
        })
    }

    fn next(&mut self) -> Result<Option<Event>> {
        // The smallest is known when every partition shows its next one, or has ended.
        while let Some(waited) =
            (0..self.heads.len()).find(|&at| self.heads[at].is_empty() && self.reader.is_open(at))
        {
            if std::mem::take(&mut self.held[waited]) {
                self.reader.hold(waited, false)?;
            }
            let Ordered { reader, registry, table, heads, of_others, .. } = self;
            let mut full = None;
            reader.next(&mut |read| {
                let partition = read.partition as usize;
                let event = event::of(table, registry.as_deref(), &read, of_others)?;
                if let (Some(head), Some(event)) = (heads.get_mut(partition), event) {
                    head.push_back(event);
                    full = (head.len() == WAITING_MAX).then_some(partition);
                }
                Ok(())
            })?;
            if let Some(partition) = full {
                self.reader.hold(partition, true)?;
                self.held[partition] = true;
            }
        }
        let heads = self.heads.iter().enumerate();
        let next = heads.filter_map(|(at, queue)| Some((queue.front()?.order, at))).min();
        let Some((_, at)) = next else { return Ok(None) };
        let event = self.heads[at].pop_front();
        if self.held[at] && self.heads[at].len() < WAITING_MIN {
            self.held[at] = false;
            self.reader.hold(at, false)?;
        }
        Ok(event)
    }
}

fn value_missing(table: &TableName) -> Error {
    Error::table_broken(
        ROW_MISSING,
        table.clone(),
        format!("a row of {table} has a value that no record of its topic holds"),
    )
    .with_cause("the source does not send an unchanged large value again, and the record that had it was removed from the topic")
    .with_cure(
        Cure::advice("keep records for longer (retention.ms), or give the table full replica identity; then copy it again")
            .resync_table(table),
    )
}

fn unreadable(table: &TableName, column: &str) -> Error {
    Error::table_broken(
        ROW_MISSING,
        table.clone(),
        format!("a record of {table} has a value of {column} in another form than the task writes"),
    )
    .with_cause("it was written by something else, or with other settings")
    .with_cure(Cure::advice("copy the table again, into a topic of its own").resync_table(table))
}
