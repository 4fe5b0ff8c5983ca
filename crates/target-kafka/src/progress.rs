//! What the cluster holds of a task: records of a compacted topic, written in the transactions of the data.
//!
//! ```text
//!   ["epoch", task]                          who may write, and how many transactional ids it uses
//!   ["position", task]   ["source", task]    up to where the changes are there, and of which cluster and slot
//!   ["table", task, schema, table]           state, cut, topic, columns, the error that set it aside
//!   ["chunk", task, schema, table, number]   one per loaded chunk of an unfinished copy
//! ```
//!
//! A task's records are in one partition of the topic, by the hash of its name. Keys and values are JSON, for people too.
//!
//! Invariants: what is read is what is committed; a task's own open transactions are over before its records are read, as taking over
//! its transactional ids aborts them.

use std::collections::BTreeMap;
use std::time::Duration;

use pgferry_model::{
    Position, Progress, Result, SourceIdentity, Table, TableName, TableProgress, TableState, TaskId,
};
use rdkafka::error::RDKafkaErrorCode;
use serde::{Deserialize, Serialize};

use crate::broker::{Cluster, Read};
use crate::error::{by_code, state_damaged};

/// The form of the records; a newer one is refused.
const FORMAT: u32 = 1;
/// How long records of other tasks may stay undecided.
const DECIDED_WITHIN: Duration = Duration::from_secs(20 * 60);

/// What is known of a task.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    pub(crate) epoch: Epoch,
    pub(crate) position: Option<Position>,
    pub(crate) source: Option<SourceIdentity>,
    pub(crate) tables: BTreeMap<TableName, Entry>,
}

/// Who may write.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Epoch {
    format: u32,
    pub(crate) epoch: u64,
    /// Transactional ids that any holder so far has used.
    pub(crate) producers: usize,
}

impl Epoch {
    pub(crate) fn raised(self, producers: usize) -> Epoch {
        Epoch { format: FORMAT, epoch: self.epoch + 1, producers: self.producers.max(producers) }
    }
}

/// What is known of a table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cut: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// Empty: the task has not taken it over; the topic, if there is one, is somebody else's.
    pub(crate) topic: String,
    /// Name and type of each column whose records are in the topic.
    #[serde(default)]
    pub(crate) columns: Vec<(String, String)>,
    /// Offsets by partition at which the task's own records begin, where others' are before them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) own_from: Vec<i64>,
    /// Rows of it have been written since it was last begun or made.
    #[serde(default)]
    pub(crate) written: bool,
    /// Loaded chunks of the current copy, from records of their own.
    #[serde(skip)]
    pub(crate) chunks: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
struct Source {
    system_id: String,
    timeline: u32,
    database: String,
    slot: String,
}

impl Entry {
    pub(crate) fn state(&self) -> TableState {
        match self.state.as_str() {
            "copying" => TableState::Copying,
            "copied" => TableState::Copied,
            "catching_up" => TableState::CatchingUp,
            "live" => TableState::Live,
            "paused" => TableState::Paused,
            "broken" => TableState::Broken {
                code: self.code.clone().unwrap_or_default(),
                problem: self.problem.clone().unwrap_or_default(),
            },
            _ => TableState::Waiting,
        }
    }

    pub(crate) fn set_state(&mut self, state: &TableState) {
        state.word().clone_into(&mut self.state);
        (self.code, self.problem) = match state {
            TableState::Broken { code, problem } => (Some(code.clone()), Some(problem.clone())),
            _ => (None, None),
        };
    }

    pub(crate) fn set_cut(&mut self, cut: Option<Position>) {
        self.cut = cut.map(|cut| cut.to_string());
    }
}

/// Name and type of each column.
pub(crate) fn columns_of(table: &Table) -> Vec<(String, String)> {
    table.columns.iter().map(|column| (column.name.to_string(), column.data_type.name.to_string())).collect()
}

impl Held {
    pub(crate) fn progress(&self) -> Result<Progress> {
        let table = |(name, entry): (&TableName, &Entry)| {
            let cut = entry.cut.as_deref().map(parse).transpose()?;
            Ok(TableProgress {
                name: name.clone(),
                state: entry.state(),
                cut,
                chunks_done: entry.chunks.clone(),
            })
        };
        Ok(Progress {
            epoch: self.epoch.epoch,
            position: self.position,
            source: self.source.clone(),
            tables: self.tables.iter().map(table).collect::<Result<Vec<_>>>()?,
        })
    }
}

fn parse(text: &str) -> Result<Position> {
    text.parse()
        .map_err(|wrong| state_damaged("of the task's state", "a position is damaged").with_origin(wrong))
}

/// A record of the topic.
#[derive(Clone, Debug)]
pub(crate) struct StateRecord {
    /// Whose it is: it is in this task's partition.
    pub(crate) task: TaskId,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

fn record(task: &TaskId, key: &serde_json::Value, value: Option<serde_json::Value>) -> StateRecord {
    StateRecord {
        task: task.clone(),
        key: key.to_string().into_bytes(),
        value: value.map(|value| value.to_string().into_bytes()),
    }
}

fn value_of(value: &impl Serialize) -> Option<serde_json::Value> {
    // Texts and numbers only: writing them cannot fail.
    serde_json::to_value(value).ok()
}

pub(crate) fn epoch_record(task: &TaskId, epoch: Epoch) -> StateRecord {
    record(task, &serde_json::json!(["epoch", task.as_str()]), value_of(&epoch))
}

pub(crate) fn position_record(task: &TaskId, position: Option<Position>) -> StateRecord {
    let value = position.map(|position| serde_json::json!({ "position": position.to_string() }));
    record(task, &serde_json::json!(["position", task.as_str()]), value)
}

pub(crate) fn source_record(task: &TaskId, source: Option<&SourceIdentity>) -> StateRecord {
    let value = source.and_then(|source| {
        value_of(&Source {
            system_id: source.system_id.clone(),
            timeline: source.timeline,
            database: source.database.clone(),
            slot: source.slot.clone(),
        })
    });
    record(task, &serde_json::json!(["source", task.as_str()]), value)
}

pub(crate) fn table_record(task: &TaskId, name: &TableName, entry: Option<&Entry>) -> StateRecord {
    record(
        task,
        &serde_json::json!(["table", task.as_str(), *name.schema, *name.name]),
        entry.and_then(value_of),
    )
}

pub(crate) fn chunk_record(task: &TaskId, name: &TableName, number: u32, rows: Option<u64>) -> StateRecord {
    record(
        task,
        &serde_json::json!(["chunk", task.as_str(), *name.schema, *name.name, number]),
        rows.map(|rows| serde_json::json!({ "rows": rows })),
    )
}

/// What all tasks hold, as far as it is decided; of `task` itself everything is.
#[derive(Debug, Default)]
pub(crate) struct Tasks(pub(crate) BTreeMap<TaskId, Held>);

impl Tasks {
    /// Reads the topic; `task`: the one that must be whole. A topic that is not there holds nothing.
    pub(crate) fn read(cluster: &Cluster, topic: &str, partitions: i32, own: Option<i32>) -> Result<Tasks> {
        let mut tasks = Tasks::default();
        if let Some(own) = own
            && !cluster.await_decided(topic, own, DECIDED_WITHIN)?
        {
            let doing = "waiting for another task's transaction";
            return Err(by_code(doing, RDKafkaErrorCode::OperationTimedOut));
        }
        cluster.read(topic, &vec![0; partitions as usize], None, &mut |read| tasks.take(topic, &read))?;
        Ok(tasks)
    }

    fn take(&mut self, topic: &str, read: &Read<'_>) -> Result<()> {
        let foreign = || state_damaged(topic, "it holds records that pgferry has not written");
        let key: Vec<serde_json::Value> =
            read.key.and_then(|key| serde_json::from_slice(key).ok()).ok_or_else(foreign)?;
        let text = |at: usize| key.get(at).and_then(serde_json::Value::as_str).ok_or_else(foreign);
        let held = self.0.entry(TaskId::new(text(1)?)).or_default();
        match text(0)? {
            "epoch" => {
                held.epoch = decoded(read.value, topic)?.unwrap_or_default();
                if held.epoch.format > FORMAT {
                    return Err(state_damaged(topic, "it was written by a newer pgferry"));
                }
            }
            "position" => {
                let value: Option<serde_json::Value> = decoded(read.value, topic)?;
                held.position = value
                    .and_then(|value| value.get("position").and_then(|text| text.as_str().map(parse)))
                    .transpose()?;
            }
            "source" => {
                let source: Option<Source> = decoded(read.value, topic)?;
                held.source = source.map(|source| SourceIdentity {
                    system_id: source.system_id,
                    timeline: source.timeline,
                    database: source.database,
                    slot: source.slot,
                });
            }
            "table" => {
                let name = TableName::new(text(2)?, text(3)?);
                match decoded::<Entry>(read.value, topic)? {
                    Some(entry) => {
                        let chunks =
                            held.tables.remove(&name).map(|before| before.chunks).unwrap_or_default();
                        held.tables.insert(name, Entry { chunks, ..entry });
                    }
                    None => {
                        held.tables.remove(&name);
                    }
                }
            }
            "chunk" => {
                let name = TableName::new(text(2)?, text(3)?);
                let number = key.get(4).and_then(serde_json::Value::as_u64).ok_or_else(foreign)? as u32;
                if let Some(entry) = held.tables.get_mut(&name) {
                    entry.chunks.retain(|&known| known != number);
                    if read.value.is_some() {
                        entry.chunks.push(number);
                    }
                }
            }
            _ => return Err(foreign()),
        }
        Ok(())
    }

    /// Another task, or another table of this one, that has taken a topic over.
    pub(crate) fn holder<'a>(
        &'a self,
        topic: &'a str,
    ) -> impl Iterator<Item = (&'a TaskId, &'a TableName)> + 'a {
        self.0.iter().flat_map(move |(task, held)| {
            let holds = held.tables.iter().filter(move |(_, entry)| entry.topic == topic);
            holds.map(move |(name, _)| (task, name))
        })
    }
}

fn decoded<T: for<'d> Deserialize<'d>>(value: Option<&[u8]>, topic: &str) -> Result<Option<T>> {
    value.map(serde_json::from_slice).transpose().map_err(|wrong| {
        state_damaged(topic, "a record is not in the form that pgferry writes").with_origin(wrong)
    })
}
