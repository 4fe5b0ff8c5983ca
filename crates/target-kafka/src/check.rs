//! What a run will need of the cluster: findings, in the order of work.

use pgferry_model::{Class, Error, Finding, Outcome, Result, TaskId};
use pgferry_pipeline::{Fidelity, TablePlan, Target};

use crate::KafkaTarget;
use crate::broker::Isolation;
use crate::encode::columns;
use crate::error::NOT_REPRESENTABLE;
use crate::holder::look;
use crate::progress::Tasks;
use crate::schema::{self, Step, There, TopicPlan};
use crate::schema_registry::SchemaRegistry;

/// Looks at the cluster and at every table's topic.
pub(crate) fn findings(target: &KafkaTarget, plans: &[TablePlan]) -> Result<Vec<Finding>> {
    let place = target.place();
    let brokers = match target.cluster().brokers() {
        Ok(brokers) => brokers,
        Err(failure) => {
            return Ok(vec![Finding::from_error("target.cluster", place, Outcome::Failed, &failure)]);
        }
    };
    let mut findings = vec![Finding::passed(
        "target.cluster",
        place,
        format!("{} brokers: {}", brokers.len(), brokers.join(", ")),
    )];
    let (tasks, topics) = look(target.config(), target.cluster())?;
    let state = &target.config().state_topic;
    findings.push(Finding::passed(
        "target.state",
        state.clone(),
        if topics.contains_key(state) { "is there" } else { "will be made" },
    ));
    findings.extend(target.registry().map(|registry| match registry.reach() {
        Ok(()) => Finding::passed("target.schema_registry", registry.place(), "answers"),
        Err(failure) => {
            Finding::from_error("target.schema_registry", registry.place(), Outcome::Failed, &failure)
        }
    }));
    let registry =
        target.registry().filter(|_| findings.iter().all(|found| found.outcome != Outcome::Failed));
    let holds = |topic: &str| holds_records(target, topic, topics.get(topic).copied().unwrap_or(0));
    let there = There { topics: &topics, holds: &holds, tasks: &tasks };
    let mut planned: Vec<(String, &TablePlan)> = Vec::new();
    for plan in plans {
        let subject = plan.table.name.to_string();
        findings.extend(mapping(target, plan, &subject));
        if let Some(Err(failure)) = registry.map(|registry| would_take(target, registry, plan)) {
            findings.push(Finding::from_error("target.schema", &*subject, Outcome::Failed, &failure));
        }
        let found = topic_plan(target, plan, &there).and_then(|found| {
            let shared = schema::is_shared(target.config(), &plan.table.name);
            match planned.iter().find(|(topic, _)| *topic == found.topic).filter(|_| !shared) {
                Some((topic, other)) => {
                    let holder = format!("table {}", other.table.name);
                    Err(crate::error::topic_taken(&plan.table.name, topic, &holder))
                }
                None => Ok(found),
            }
        });
        findings.push(match found {
            Ok(found) => {
                let detail = told(&found);
                planned.push((found.topic, plan));
                Finding::passed("target.table", subject, detail)
            }
            // What belongs to the table is a finding; what keeps from looking is not.
            Err(failure) if failure.class() == Class::TableBroken => {
                Finding::from_error("target.table", subject, Outcome::Failed, &failure)
            }
            Err(failure) => return Err(failure),
        });
    }
    Ok(findings)
}

/// Whether the registry takes the table's schemas.
fn would_take(target: &KafkaTarget, registry: &SchemaRegistry, plan: &TablePlan) -> Result<()> {
    let config = target.config();
    registry.would_take(config, &plan.table, &columns(config, &plan.table)?)
}

fn told(plan: &TopicPlan) -> String {
    let topic = &plan.topic;
    match plan.step {
        Step::Keep => format!("topic {topic} is the task's own"),
        Step::Make => format!("topic {topic} will be made"),
        Step::TakeOver => format!("topic {topic} is there, and will be added to"),
        Step::Empty => format!("topic {topic} is there, and will be emptied"),
        Step::Replace => format!("topic {topic} will be made anew"),
    }
}

/// Whether a topic holds records.
pub(crate) fn holds_records(target: &KafkaTarget, topic: &str, partitions: i32) -> Result<bool> {
    for partition in 0..partitions {
        let (first, next) = target.cluster().offsets(topic, partition, Isolation::Committed)?;
        if next > first {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What `prepare` would do; of a task that is not open, what any task of that table would.
pub(crate) fn topic_plan(target: &KafkaTarget, plan: &TablePlan, there: &There<'_>) -> Result<TopicPlan> {
    let task =
        target.task().or_else(|| holder_of(there.tasks, plan, target)).unwrap_or_else(|| TaskId::new(""));
    let own = there.tasks.0.get(&task).and_then(|held| held.tables.get(&plan.table.name));
    schema::plan(target.config(), &task, plan, own, there)
}

fn holder_of(tasks: &Tasks, plan: &TablePlan, target: &KafkaTarget) -> Option<TaskId> {
    let topic = schema::topic_of(target.config(), &plan.table);
    let holder = tasks.holder(&topic).find(|(_, table)| **table == plan.table.name);
    holder.map(|(task, _)| task.clone())
}

/// The commands that `prepare` stands for.
pub(crate) fn statements(target: &KafkaTarget, plan: &TablePlan) -> Result<Vec<String>> {
    let (tasks, topics) = look(target.config(), target.cluster())?;
    let holds = |topic: &str| holds_records(target, topic, topics.get(topic).copied().unwrap_or(0));
    match topic_plan(target, plan, &There { topics: &topics, holds: &holds, tasks: &tasks }) {
        Ok(found) => Ok(schema::describe(target.config(), &found)),
        // `check` tells why nothing would be done.
        Err(failure) if failure.class() == Class::TableBroken => Ok(Vec::new()),
        Err(failure) => Err(failure),
    }
}

/// Columns whose form in records does not hold every value of the source's.
fn mapping(target: &KafkaTarget, plan: &TablePlan, subject: &str) -> Vec<Finding> {
    let columns = match target.mapping(&plan.table) {
        Ok(columns) => columns,
        Err(failure) => {
            return vec![Finding::from_error("target.mapping", subject, Outcome::Failed, &failure)];
        }
    };
    let noted = |fidelity: Fidelity| -> Vec<String> {
        let of = columns.iter().filter(|column| column.fidelity == fidelity);
        of.map(|column| format!("{} {} ({})", column.column, column.target_type, column.note)).collect()
    };
    let (guarded, rounded) = (noted(Fidelity::Guarded), noted(Fidelity::Rounded));
    let mut findings = Vec::new();
    if !rounded.is_empty() {
        findings.push(Finding {
            outcome: Outcome::Warning,
            code: Some(NOT_REPRESENTABLE),
            ..Finding::passed(
                "target.mapping",
                subject,
                format!("values lose digits, as the task file says: {}", rounded.join("; ")),
            )
        });
    }
    if !guarded.is_empty() {
        findings.push(Finding {
            code: Some(NOT_REPRESENTABLE),
            ..Finding::passed(
                "target.mapping",
                subject,
                format!("a value that does not fit would set the table aside: {}", guarded.join("; ")),
            )
        });
    }
    if findings.is_empty() {
        let detail = format!("{} columns, every value fits", columns.len());
        findings.push(Finding::passed("target.mapping", subject, detail));
    }
    findings
}

/// An error that stands for a lost thread.
pub(crate) fn lost_thread(lost: tokio::task::JoinError) -> Error {
    pgferry_pipeline::error::worker_lost("a thread of the Kafka target ended without a result")
        .with_origin(lost)
}
