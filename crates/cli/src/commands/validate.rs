//! `pgferry validate`: what is wrong in a task file, without connecting anywhere.

use std::path::Path;

use pgferry_task::spec;
use serde_json::json;

use super::Ended;
use crate::exit_code::ExitCode;
use crate::figures::plural;
use crate::output::Output;

pub(super) fn run(file: &Path, output: &Output) -> Ended {
    let spec = spec::read_file(file)?;
    for warning in &spec.warnings {
        let cure = warning.cure.as_deref().unwrap_or_default();
        let label = output.paint.warning(&format!("warning[{}]:", warning.code));
        output.say(&format!(
            "{label} {}:{}, {}: {}; {cure}",
            file.display(),
            warning.line,
            warning.path,
            warning.problem
        ));
    }
    let tasks: Vec<&str> = spec.tasks.iter().map(|task| task.id.as_str()).collect();
    let summary = format!("{} is valid: {}", file.display(), plural(tasks.len() as u64, "task"));
    output.data(&summary);
    let warnings = spec.warnings.iter().map(|warning| {
        json!({ "code": warning.code.as_str(), "line": warning.line, "path": warning.path, "problem": warning.problem })
    });
    output.result(true, &summary, &json!({ "tasks": tasks, "warnings": warnings.collect::<Vec<_>>() }));
    Ok(ExitCode::Success)
}
