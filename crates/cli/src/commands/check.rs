//! `pgferry check`: every finding of every task, with statements ready to paste.

use pgferry_model::Outcome;
use pgferry_task::build::select;
use pgferry_task::check::{Checked, check};
use pgferry_task::spec;
use serde_json::{Value, json};

use super::Ended;
use crate::arguments::FileAndTasks;
use crate::errors::{finding_json, finding_text};
use crate::exit_code::ExitCode;
use crate::figures::plural;
use crate::output::Output;
use crate::place::Place;

pub(super) async fn run(selection: &FileAndTasks, output: &Output) -> Ended {
    let spec = spec::read_file(&selection.file)?;
    let mut code = ExitCode::Success;
    let mut results = Vec::new();
    let mut counts = [0; 3];
    for task in select(&spec, &selection.tasks)? {
        let checked = check(&spec, task).await;
        let outcomes = [Outcome::Passed, Outcome::Warning, Outcome::Failed];
        for (total, outcome) in counts.iter_mut().zip(outcomes) {
            *total += checked.count(outcome);
        }
        code = code.worse(ExitCode::of_findings(checked.findings.iter()));
        let place = Place::task(&spec, task);
        output.data(&text(&checked, &format!("{} → {}", task.source, task.target), &place, output));
        results.push(json(&checked, &place));
    }
    let [passed, warnings, failed] = counts;
    let summary = format!("{passed} passed · {} · {failed} failed", plural(warnings as u64, "warning"));
    output.data(&format!("\nSummary: {summary}"));
    output.result(code == ExitCode::Success, &summary, &Value::Array(results));
    Ok(code)
}

fn text(checked: &Checked, way: &str, place: &Place, output: &Output) -> String {
    let paint = output.paint_data;
    let mut lines = vec![format!("{}  {way}", paint.strong(&checked.task))];
    // What needs a person comes last: that is where the eye is when the command has ended.
    let mut findings: Vec<_> = checked.findings.iter().collect();
    findings.sort_by_key(|finding| finding.outcome);
    lines.extend(findings.iter().map(|finding| format!("  {}", finding_text(finding, place, &paint))));
    lines.join("\n")
}

fn json(checked: &Checked, place: &Place) -> Value {
    let findings: Vec<Value> = checked.findings.iter().map(|finding| finding_json(finding, place)).collect();
    json!({ "task": checked.task, "findings": findings })
}
