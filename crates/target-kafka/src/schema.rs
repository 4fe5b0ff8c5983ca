//! Topics: which one a table goes to, and what is to be done before the first record.
//!
//! A topic's name has letters, digits, `.`, `_` and `-` (Apache Kafka source, `Topic.validate`): every other character of a name becomes
//! `_`. Tables whose names become the same topic are refused, unless the rule leaves the table out.

use std::collections::HashMap;

use pgferry_model::{Result, Table, TableName, TableState, TaskId};
use pgferry_pipeline::{IfTargetExists, TablePlan};

use crate::config::KafkaConfig;
use crate::error::{columns_differ, topic_exists, topic_gone, topic_taken};
use crate::extra_topics;
use crate::progress::{Entry, Tasks, columns_of};

/// The longest name of a topic.
const NAME_BYTES_MAX: usize = 249;
const DATABASE: &str = "#{source_db_name}";
const SCHEMA: &str = "#{source_schema_name}";
const TABLE: &str = "#{source_table_name}";

/// The topic of a table.
pub(crate) fn topic_of(config: &KafkaConfig, table: &Table) -> String {
    let name = match config.topics.get(&table.name) {
        Some(topic) => topic.clone(),
        None => config
            .topic_rule
            .replace(DATABASE, &config.source_database)
            .replace(SCHEMA, &table.target_name.schema)
            .replace(TABLE, &table.target_name.name),
    };
    legal(&name)
}

fn legal(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
    let name: String = name.chars().map(legal).take(NAME_BYTES_MAX).collect();
    // Names that a file system knows already.
    if matches!(name.as_str(), "" | "." | "..") { "_".repeat(name.len().max(1)) } else { name }
}

/// Whether tables may share the topic: the rule does not name the table, or the user has given the topic.
pub(crate) fn is_shared(config: &KafkaConfig, table: &TableName) -> bool {
    config.topics.contains_key(table) || !config.topic_rule.contains(TABLE)
}

/// What a table's topic needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: it is the task's own.
    Keep,
    /// It is made.
    Make,
    /// It is taken over, with what is in it.
    TakeOver,
    /// It is taken over; its records are removed.
    Empty,
    /// It is removed and made.
    Replace,
}

/// What is to be done for a table, and whom the topic is taken from.
pub(crate) struct TopicPlan {
    pub(crate) topic: String,
    pub(crate) step: Step,
    pub(crate) taken_from: Vec<(TaskId, TableName)>,
}

/// What the cluster has.
pub(crate) struct There<'a> {
    /// Topics, and their number of partitions.
    pub(crate) topics: &'a HashMap<String, i32>,
    /// Whether a topic holds records.
    pub(crate) holds: &'a dyn Fn(&str) -> Result<bool>,
    pub(crate) tasks: &'a Tasks,
}

/// Plans a table's topic; an error of the table where it cannot have it.
pub(crate) fn plan(
    config: &KafkaConfig,
    task: &TaskId,
    plan: &TablePlan,
    own: Option<&Entry>,
    there: &There<'_>,
) -> Result<TopicPlan> {
    let table = &plan.table;
    let topic = topic_of(config, table);
    let known = there.topics.contains_key(&topic);
    if topic == config.state_topic || extra_topics::named(config).any(|extra| extra == topic) {
        return Err(topic_taken(&table.name, &topic, "the task itself"));
    }
    if let Some(entry) = own.filter(|entry| entry.topic == topic) {
        let waits = entry.state() == TableState::Waiting;
        if !known {
            return if waits { Ok(step(topic, Step::Make)) } else { Err(topic_gone(&table.name, &topic)) };
        }
        if !waits && !entry.columns.is_empty() && entry.columns != columns_of(table) {
            return Err(columns_differ(&table.name, &topic));
        }
        return Ok(step(topic, Step::Keep));
    }
    let shared = is_shared(config, &table.name);
    let mut taken_from = Vec::new();
    let takes = matches!(plan.if_exists, IfTargetExists::Truncate | IfTargetExists::Replace);
    let mut own_already = false;
    for (holder, held) in there.tasks.holder(&topic) {
        match (holder == task, shared, takes) {
            (true, true, _) => own_already = true,
            (true, false, _) => return Err(topic_taken(&table.name, &topic, &format!("table {held}"))),
            (false, _, false) => return Err(topic_taken(&table.name, &topic, &format!("task {holder}"))),
            (false, _, true) => taken_from.push((holder.clone(), held.clone())),
        }
    }
    if own_already {
        return Ok(step(topic, Step::Keep));
    }
    let step = match (known, plan.if_exists) {
        (false, _) => Step::Make,
        (true, IfTargetExists::Replace) => Step::Replace,
        (true, IfTargetExists::Truncate) => Step::Empty,
        (true, _) if !(there.holds)(&topic)? => Step::TakeOver,
        (true, IfTargetExists::Append) => Step::TakeOver,
        (true, IfTargetExists::Error) => return Err(topic_exists(&table.name, &topic)),
    };
    Ok(TopicPlan { topic, step, taken_from })
}

fn step(topic: String, step: Step) -> TopicPlan {
    TopicPlan { topic, step, taken_from: Vec::new() }
}

/// What would be done, for people: commands of Kafka's own tools.
pub(crate) fn describe(config: &KafkaConfig, plan: &TopicPlan) -> Vec<String> {
    let topic = &plan.topic;
    let copies =
        config.replication_factor.map_or(String::new(), |copies| format!(" --replication-factor {copies}"));
    let make = format!("kafka-topics.sh --create --topic {topic} --partitions {}{copies}", config.partitions);
    match plan.step {
        Step::Keep | Step::TakeOver => Vec::new(),
        Step::Make => vec![make],
        Step::Empty => vec![format!("kafka-delete-records.sh: every record of {topic}")],
        Step::Replace => vec![format!("kafka-topics.sh --delete --topic {topic}"), make],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_legal() {
        assert_eq!(legal("cdc.Käse \"x\".orders-1_a"), "cdc.K_se__x_.orders-1_a");
        assert_eq!((legal(".."), legal(""), legal("...")), ("__".into(), "_".into(), "...".into()));
        assert_eq!(legal(&"x".repeat(300)).len(), NAME_BYTES_MAX);
    }
}
