//! `pgferry preview`: what the target would hold.

use pgferry_model::{Cure, Error};
use pgferry_pipeline::Fidelity;
use pgferry_task::build::select;
use pgferry_task::preview::{Previewed, preview};
use pgferry_task::spec;
use pgferry_task::spec::scalar::parse_table_name;
use serde_json::{Value, json};

use super::Ended;
use crate::arguments::PreviewArguments;
use crate::errors::{Failure, UNKNOWN_NAME};
use crate::exit_code::ExitCode;
use crate::figures::{plural, table};
use crate::output::Output;
use crate::place::Place;

/// Characters of a value that are shown; programs get all of it.
const CELL_CHARACTERS_MAX: usize = 40;

pub(super) async fn run(arguments: &PreviewArguments, output: &Output) -> Ended {
    let spec = spec::read_file(&arguments.selection.file)?;
    let only = match &arguments.table {
        None => None,
        Some(text) => Some(parse_table_name(text, "public").ok_or_else(|| unknown(text))?),
    };
    let mut results = Vec::new();
    for task in select(&spec, &arguments.selection.tasks)? {
        let at = |failure| Failure::from(failure).at(Place::task(&spec, task));
        for table in preview(&spec, task, only.as_ref(), arguments.rows).await.map_err(at)? {
            output.data(&text(&table, output));
            results.push(json(task.id.as_str(), &table));
        }
    }
    match (results.is_empty(), &arguments.table) {
        (true, Some(name)) => Err(unknown(name).into()),
        _ => {
            output.result(true, &plural(results.len() as u64, "table"), &Value::Array(results));
            Ok(ExitCode::Success)
        }
    }
}

fn unknown(name: &str) -> Error {
    let cure = Cure::advice("leave --table out to see every table that the tasks select");
    Error::task_broken(UNKNOWN_NAME, format!("no task selects a table `{name}`"))
        .with_cause("it is mistyped (upper and lower case count), or include and tables of the task file leave it out")
        .with_cure(cure)
}

fn fidelity(fidelity: Fidelity) -> &'static str {
    match fidelity {
        Fidelity::Exact => "exact",
        Fidelity::Equal => "equal",
        Fidelity::ExactAsText => "exact, as text",
        Fidelity::Guarded => "guarded",
        Fidelity::Rounded => "rounded",
    }
}

fn text(previewed: &Previewed, output: &Output) -> String {
    let paint = output.paint_data;
    let key = if previewed.key.is_empty() {
        "no key".to_owned()
    } else {
        format!("key {}", previewed.key.join(", "))
    };
    let title = format!("{} → {}", previewed.source, previewed.target);
    let mut text = format!("{}  {}\n", paint.strong(&title), paint.faint(&key));
    let columns = previewed.columns.iter().map(|column| {
        let note = column.note.clone();
        vec![
            column.column.clone(),
            column.source_type.clone(),
            column.target_type.clone(),
            fidelity(column.fidelity).to_owned(),
            note,
        ]
    });
    text.push_str(&table(&["column", "source", "target", "values", "note"], columns.collect(), 2));
    if !previewed.rows.is_empty() {
        let header: Vec<&str> = previewed.columns.iter().map(|column| column.column.as_str()).collect();
        let rows = previewed.rows.iter().map(|row| row.iter().map(|cell| shown(cell.as_deref())).collect());
        text.push_str("\n\n");
        text.push_str(&table(&header, rows.collect(), 2));
    }
    text.push('\n');
    text
}

/// A value on one line, without control characters that a terminal would act on.
pub(super) fn shown(cell: Option<&str>) -> String {
    let Some(cell) = cell else { return "NULL".to_owned() };
    let mut text: String =
        cell.chars().take(CELL_CHARACTERS_MAX).map(|c| if c.is_control() { '·' } else { c }).collect();
    if cell.chars().nth(CELL_CHARACTERS_MAX).is_some() {
        text.push('…');
    }
    text
}

fn json(task: &str, previewed: &Previewed) -> Value {
    let columns = previewed.columns.iter().map(|column| {
        json!({
            "column": column.column, "source_type": column.source_type, "target_type": column.target_type,
            "values": fidelity(column.fidelity), "note": column.note,
        })
    });
    json!({
        "task": task, "source": previewed.source.to_string(), "target": previewed.target,
        "key": previewed.key, "columns": columns.collect::<Vec<_>>(), "rows": previewed.rows,
    })
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn a_value_cannot_act_on_the_terminal() {
        assert_eq!(shown(Some("a\x1b[2Jb\n")), "a·[2Jb·");
        assert_eq!(shown(None), "NULL");
        assert_eq!(shown(Some(&"x".repeat(50))).chars().count(), 41);
    }
}
