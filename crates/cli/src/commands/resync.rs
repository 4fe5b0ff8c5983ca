//! `pgferry resync`: forgets what the target holds of tables, after it has said which and why; the next run copies them again.

use std::path::Path;

use pgferry_model::{Cure, Error, TableName, TableState, shell_word};
use pgferry_task::build::select;
use pgferry_task::resync::{HeldTable, Resync, forget, look};
use pgferry_task::spec;
use pgferry_task::spec::scalar::parse_table_name;
use serde_json::{Value, json};

use super::Ended;
use crate::arguments::ResyncArguments;
use crate::errors::{Failure, UNKNOWN_NAME};
use crate::exit_code::ExitCode;
use crate::figures::{bytes, plural, table};
use crate::output::Output;
use crate::place::{Place, shell_path};

pub(super) async fn run(arguments: &ResyncArguments, output: &Output) -> Ended {
    let spec = spec::read_file(&arguments.selection.file)?;
    let mut wanted = Vec::new();
    for text in &arguments.tables {
        wanted.push(parse_table_name(text, "public").ok_or_else(|| unknown(text))?);
    }
    let mut found = Vec::new();
    for task in select(&spec, &arguments.selection.tasks)? {
        let at = |failure| Failure::from(failure).at(Place::task(&spec, task));
        let resync = look(&spec, task, &wanted).await.map_err(at)?;
        found.push((task, resync));
    }
    let nowhere = |name: &&TableName| found.iter().all(|(_, resync)| resync.unknown.contains(name));
    if let Some(name) = wanted.iter().find(nowhere) {
        return Err(unknown(&name.to_string()).into());
    }
    found.retain(|(_, resync)| !resync.tables.is_empty() || resync.lost.is_some());
    found.iter().for_each(|(_, resync)| output.data(&text(resync, output)));
    let count = found.iter().map(|(_, resync)| resync.tables.len() as u64).sum::<u64>();
    if !output.confirm(&question(count, found.iter().map(|(_, resync)| resync)))? {
        output.say("nothing was changed");
        return Ok(ExitCode::Failure);
    }
    let mut results = Vec::new();
    for (task, resync) in &found {
        let at = |failure| Failure::from(failure).at(Place::task(&spec, task));
        forget(&spec, task, resync).await.map_err(at)?;
        results.push(json(resync));
    }
    let next = next(&arguments.selection.file, &arguments.selection.tasks);
    let copied = if count == 1 { "the next run copies it" } else { "the next run copies them" };
    let summary = format!("{} will be copied again; {copied}:\n  {next}", plural(count, "table"));
    output.data(&summary);
    output.result(true, &summary.replace("\n  ", " "), &Value::Array(results));
    Ok(ExitCode::Success)
}

fn next(file: &Path, tasks: &[String]) -> String {
    let tasks: String = tasks.iter().map(|task| format!(" --task {}", shell_word(task))).collect();
    format!("pgferry run {}{tasks}", shell_path(file))
}

fn unknown(name: &str) -> Error {
    let cure = Cure::advice("leave --table out to see every table that can be copied again");
    Error::task_broken(UNKNOWN_NAME, format!("no task holds a table `{name}` in its target"))
        .with_cause("it is mistyped (upper and lower case count), or no run has copied it yet")
        .with_cure(cure)
}

fn question<'a>(count: u64, resyncs: impl Iterator<Item = &'a Resync>) -> String {
    let slots: Vec<&str> = resyncs
        .filter_map(|resync| resync.lost.as_ref()?.slot.as_ref())
        .map(|slot| slot.name.as_str())
        .collect();
    let slots = if slots.is_empty() { String::new() } else { format!(" and drop slot {}", slots.join(", ")) };
    format!(
        "copy {} again{slots}? the rows stay in the target until the next run replaces them",
        plural(count, "table")
    )
}

fn why(held: &HeldTable) -> String {
    match (&held.state, held.cut) {
        (TableState::Broken { code, problem }, _) => format!("{code}: {problem}"),
        (TableState::Waiting, _) => "is to be copied already".to_owned(),
        (_, Some(cut)) => format!("with a snapshot at {cut}"),
        (_, None) => String::new(),
    }
}

fn text(resync: &Resync, output: &Output) -> String {
    let mut lines = vec![output.paint_data.strong(&resync.task)];
    let state = |held: &HeldTable| match held.state {
        TableState::Broken { .. } => "set aside".to_owned(),
        TableState::Copied | TableState::CatchingUp | TableState::Live => "copied".to_owned(),
        _ => held.state.word().replace('_', " "),
    };
    let rows = resync.tables.iter().map(|held| vec![held.name.to_string(), state(held), why(held)]);
    lines.push(table(&["table", "state", "why"], rows.collect(), 2));
    if let Some(lost) = &resync.lost {
        let position = lost.position.map_or_else(String::new, |position| format!(" {position}"));
        lines.push(format!("\n  the position{position} is forgotten too: {}", lost.why.problem()));
        if let Some(slot) = &lost.slot {
            lines.push(format!(
                "  slot {} is dropped; it keeps {} of log",
                slot.name,
                bytes(slot.retained_bytes)
            ));
        }
        lines.push(if lost.makes_slot {
            "  the next run makes a new slot and a new snapshot".to_owned()
        } else {
            "  the task makes no slots (manage = \"never\"): there has to be a usable one before the next run"
                .to_owned()
        });
    }
    lines.push(String::new());
    lines.join("\n")
}

fn json(resync: &Resync) -> Value {
    let table = |held: &HeldTable| json!({ "table": held.name.to_string(), "state": held.state.word(), "why": why(held) });
    let lost = resync.lost.as_ref().map(|lost| {
        json!({
            "position": lost.position.map(|position| position.to_string()), "code": lost.why.code().as_str(),
            "problem": lost.why.problem(), "slot_dropped": lost.slot.as_ref().map(|slot| &slot.name),
        })
    });
    json!({ "task": resync.task, "tables": resync.tables.iter().map(table).collect::<Vec<_>>(), "position_forgotten": lost })
}
