//! Looks at everything that a run will need, on both sides, and stops at nothing: every finding at once.

use std::sync::Arc;

use pgferry_model::{Error, Finding, Outcome, Table};
use pgferry_pipeline::{Source, TablePlan, Target};

use crate::registry;
use crate::spec::{Spec, TaskSpec};

/// What a check of one task found, in the order of work.
#[derive(Debug)]
pub struct Checked {
    /// The task.
    pub task: String,
    /// About the file, then the source, then the target.
    pub findings: Vec<Finding>,
}

impl Checked {
    /// Findings of an outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.findings.iter().filter(|finding| finding.outcome == outcome).count()
    }
}

/// Checks a task. An error becomes a finding too: the other side is looked at all the same.
pub async fn check(spec: &Spec, task: &TaskSpec) -> Checked {
    let mut findings: Vec<Finding> = Vec::new();
    for warning in &spec.warnings {
        let mut finding = Finding::passed("file.secrets", warning.path.clone(), warning.problem.clone());
        finding.outcome = Outcome::Warning;
        finding.code = Some(warning.code);
        finding.cure = warning.cure.clone().map(pgferry_model::Cure::advice);
        findings.push(finding);
    }
    let (source, target) = tokio::join!(read_side(spec, task), registry::target(spec, task));
    findings.extend(source.findings);
    match target {
        Ok(target) => {
            findings.extend(write_side(target.as_ref(), task, &source.tables).await);
            resumable(source.source.as_deref(), target.as_ref(), task, &mut findings).await;
            if let Err(failure) = target.close().await {
                findings.push(failed("target.close", &task.target, &failure));
            }
        }
        Err(failure) => findings.push(failed("target.open", &task.target, &failure)),
    }
    Checked { task: task.id.to_string(), findings }
}

/// Whether the source still has what the task goes on from. It changes what a missing slot means: nothing to a new task, a gap to an
/// old one.
async fn resumable(
    source: Option<&dyn Source>,
    target: &dyn Target,
    task: &TaskSpec,
    findings: &mut Vec<Finding>,
) {
    let Some(source) = source else { return };
    let held = match target.held(&task.id).await {
        Ok(held) => held,
        Err(failure) if findings.iter().any(|finding| finding.code == Some(failure.code())) => return,
        Err(failure) => return findings.push(failed("target.progress", &task.target, &failure)),
    };
    let Some(held) = held else { return };
    match source.verify_start(&held).await {
        Ok(()) => {
            let position = held.position.map_or("no position yet".to_owned(), |at| format!("position {at}"));
            findings.push(Finding::passed(
                "source.resume",
                task.source.clone(),
                format!("goes on from {position}"),
            ));
        }
        // What the source's own check has told already tells nothing new.
        Err(failure) if findings.iter().any(|finding| finding.code == Some(failure.code())) => {}
        Err(failure) => {
            findings.retain(|finding| finding.check != "slot.exists" || finding.outcome != Outcome::Passed);
            findings.push(failed("source.resume", &task.source, &failure));
        }
    }
}

struct ReadSide {
    /// `None`: its settings make no source.
    source: Option<Arc<dyn Source>>,
    tables: Vec<Arc<Table>>,
    findings: Vec<Finding>,
}

async fn read_side(spec: &Spec, task: &TaskSpec) -> ReadSide {
    let source: Arc<dyn Source> = match registry::source(spec, task) {
        Ok(source) => source,
        Err(failure) => {
            return ReadSide {
                source: None,
                tables: Vec::new(),
                findings: vec![failed("source.connect", &task.source, &failure)],
            };
        }
    };
    let mut findings = match source.check().await {
        Ok(findings) => findings,
        Err(failure) => vec![failed("source.check", &task.source, &failure)],
    };
    let tables = match source.tables().await {
        Ok(tables) => tables,
        Err(failure) => {
            // The same failure twice tells nothing new.
            if !findings.iter().any(|finding| finding.code == Some(failure.code())) {
                findings.push(failed("source.tables", &task.source, &failure));
            }
            Vec::new()
        }
    };
    ReadSide { source: Some(source), tables, findings }
}

async fn write_side(target: &dyn Target, task: &TaskSpec, tables: &[Arc<Table>]) -> Vec<Finding> {
    let mut findings = match target.check(&plans(task, tables)).await {
        Ok(findings) => findings,
        Err(failure) => vec![failed("target.check", &task.target, &failure)],
    };
    for table in tables {
        if let Err(failure) = target.mapping(table) {
            findings.push(failed("target.mapping", &table.name.to_string(), &failure));
        }
    }
    findings
}

/// What the target has to have for the tables.
pub(crate) fn plans(task: &TaskSpec, tables: &[Arc<Table>]) -> Vec<TablePlan> {
    let plan = |table: &Arc<Table>| TablePlan {
        table: Arc::clone(table),
        if_exists: task.settings.if_target_exists_for(&table.name),
        deletes: task.settings.deletes,
    };
    tables.iter().map(plan).collect()
}

fn failed(check: &'static str, subject: &str, failure: &Error) -> Finding {
    Finding::from_error(check, subject, Outcome::Failed, failure)
}
