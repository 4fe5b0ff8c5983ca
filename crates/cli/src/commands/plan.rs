//! `pgferry plan`: what a run would make on both sides, and how much it would copy.

use pgferry_task::build::select;
use pgferry_task::plan::{Planned, plan};
use pgferry_task::spec;
use serde_json::{Value, json};

use super::Ended;
use crate::arguments::FileAndTasks;
use crate::errors::Failure;
use crate::exit_code::ExitCode;
use crate::figures::{bytes, count, plural, table};
use crate::output::Output;
use crate::place::Place;

pub(super) async fn run(selection: &FileAndTasks, output: &Output) -> Ended {
    let spec = spec::read_file(&selection.file)?;
    let mut results = Vec::new();
    let mut changes = 0;
    for task in select(&spec, &selection.tasks)? {
        let planned =
            plan(&spec, task).await.map_err(|failure| Failure::from(failure).at(Place::task(&spec, task)))?;
        changes += u64::from(planned.changes());
        output.data(&text(&planned, output));
        results.push(json(&planned));
    }
    let summary = format!("{} would make something new", plural(changes, "task"));
    output.result(true, &summary, &Value::Array(results));
    Ok(ExitCode::Success)
}

fn text(planned: &Planned, output: &Output) -> String {
    let paint = output.paint_data;
    let mut lines = vec![paint.strong(&planned.task)];
    for object in &planned.objects {
        let does = match (object.exists, object.creates) {
            (true, _) => "is there",
            (false, true) => "would be made",
            (false, false) => "is missing",
        };
        lines.push(format!("  {:<11} {}  {does}", object.kind, object.name));
    }
    let (mut rows, mut size, mut chunks) = (0, 0, 0);
    let tables = planned.tables.iter().map(|table| {
        rows += table.rows;
        size += table.bytes;
        chunks += table.chunks.unwrap_or(1) as u64;
        let way = if table.streams { "snapshot, changes" } else { "snapshot" };
        let target = if table.ddl.is_empty() { "is there" } else { "would be made" };
        vec![
            table.source.to_string(),
            table.target.clone(),
            if table.rows == 0 && table.bytes > 0 {
                "?".to_owned()
            } else {
                format!("~{}", count(table.rows))
            },
            bytes(table.bytes),
            table.chunks.map_or_else(|| "-".to_owned(), |chunks| count(chunks as u64)),
            way.to_owned(),
            target.to_owned(),
        ]
    });
    // A table without statistics: the server's autovacuum or ANALYZE counts.
    let uncounted = planned.tables.iter().any(|table| table.rows == 0 && table.bytes > 0);
    let header = ["source", "target", "rows", "bytes", "chunks", "carried by", "in the target"];
    lines.push(table(&header, tables.collect(), 2));
    lines.push(format!(
        "  {} rows, {}, in {}, {} at once",
        if uncounted { "?".to_owned() } else { format!("~{}", count(rows)) },
        bytes(size),
        plural(chunks, "chunk"),
        count((planned.workers as u64).min(chunks))
    ));
    let mut shown: Vec<&String> = Vec::new();
    for statement in planned.tables.iter().flat_map(|table| &table.ddl) {
        // Tables of one schema have the schema's statement each.
        if shown.contains(&statement) {
            continue;
        }
        shown.push(statement);
        lines.push(format!("\n  {};", statement.trim_end_matches(';').replace('\n', "\n  ")));
    }
    for note in &planned.notes {
        lines.push(format!("\n  {} {note}", paint.warning("note:")));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn json(planned: &Planned) -> Value {
    let object = |object: &pgferry_task::plan::SourceObject| json!({ "kind": object.kind, "name": object.name, "exists": object.exists, "creates": object.creates });
    let table = |table: &pgferry_task::plan::PlannedTable| {
        json!({
            "source": table.source.to_string(), "target": table.target, "rows_estimated": table.rows,
            "bytes": table.bytes, "chunks": table.chunks, "streams": table.streams, "ddl": table.ddl,
        })
    };
    json!({
        "task": planned.task, "changes": planned.changes(), "workers": planned.workers, "notes": planned.notes,
        "objects": planned.objects.iter().map(object).collect::<Vec<_>>(),
        "tables": planned.tables.iter().map(table).collect::<Vec<_>>(),
    })
}
