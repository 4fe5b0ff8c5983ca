//! `pgferry run`: the tasks of a file, side by side in this process, until they end or are asked to stop.

use std::sync::Arc;
use std::time::Instant;

use pgferry_model::Error;
use pgferry_pipeline::{Ended as TaskEnded, Monitor, RunEnd};
use pgferry_task::build::{Built, build, select, verify_together};
use pgferry_task::spec::{self, SECRET_IN_FILE};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Ended;
use crate::arguments::RunArguments;
use crate::errors::{error_json, error_text};
use crate::exit_code::ExitCode;
use crate::figures::{count, duration, plural};
use crate::metrics;
use crate::output::Output;
use crate::progress::{Progress, Shown};
use crate::signals::stop_on_signals;

struct Finished {
    task: String,
    monitor: Arc<Monitor>,
    end: Result<RunEnd, Error>,
}

pub(super) async fn run(arguments: &RunArguments, output: &Arc<Output>) -> Ended {
    let spec = spec::read_file(&arguments.selection.file)?;
    let tasks = select(&spec, &arguments.selection.tasks)?;
    verify_together(&spec, &tasks)?;
    for warning in spec.warnings.iter().filter(|warning| warning.code == SECRET_IN_FILE) {
        tracing::warn!(line = warning.line, path = warning.path, "{}", warning.problem);
    }
    let stop = stop_on_signals(output, || {})?;
    let mut built = Vec::new();
    for task in tasks {
        let mut task = build(&spec, task).await?;
        task.settings.until_caught_up = arguments.until_caught_up;
        built.push(task);
    }
    let started = Instant::now();
    if let Some(address) = arguments.metrics {
        metrics::serve(address)?;
    }
    let finished = ferry(built, output, &stop).await;
    let mut code = ExitCode::Success;
    let mut results = Vec::new();
    for task in &finished {
        code = code.worse(code_of(task));
        results.push(result_json(task, started));
        output.data(&summary(task, started, output));
    }
    let ok = code == ExitCode::Success;
    let good = finished.iter().filter(|task| code_of(task) == ExitCode::Success).count();
    output.result(ok, &format!("{good} of {} tasks ended well", finished.len()), &Value::Array(results));
    Ok(code)
}

/// Runs tasks side by side. One that breaks does not stop the others.
async fn ferry(tasks: Vec<Built>, output: &Arc<Output>, stop: &CancellationToken) -> Vec<Finished> {
    let mut shown = Vec::new();
    let mut running = Vec::new();
    for task in tasks {
        let (name, monitor) = (task.id.to_string(), Arc::new(Monitor::default()));
        shown.push(Shown { task: name.clone(), monitor: Arc::clone(&monitor) });
        let run = tokio::spawn(run_one(task, Arc::clone(&monitor), stop.clone()));
        running.push((name, monitor, run));
    }
    let measured =
        metrics::watch(shown.iter().map(|shown| (shown.task.clone(), Arc::clone(&shown.monitor))).collect());
    let progress = Progress::start(output, shown);
    let mut finished = Vec::new();
    for (task, monitor, run) in running {
        let end = match run.await {
            Ok(end) => end,
            Err(lost) => {
                let problem = format!("task {task} ended without a result");
                Err(Error::task_broken(pgferry_pipeline::error::WORKER_LOST, problem).with_origin(lost))
            }
        };
        if let Err(failure) = &end {
            tracing::error!(task, code = failure.code().as_str(), "{failure}");
        }
        finished.push(Finished { task, monitor, end });
    }
    drop((progress, measured));
    finished
}

async fn run_one(task: Built, monitor: Arc<Monitor>, stop: CancellationToken) -> Result<RunEnd, Error> {
    let Built { id, source, target, settings } = task;
    Box::pin(pgferry_pipeline::run(&id, source, target, &settings, monitor, stop)).await
}

fn code_of(task: &Finished) -> ExitCode {
    match &task.end {
        Ok(end) if end.set_aside.is_empty() => ExitCode::Success,
        Ok(_) => ExitCode::TablesSetAside,
        Err(failure) => ExitCode::of_error(failure),
    }
}

fn ended_word(ended: TaskEnded) -> &'static str {
    match ended {
        TaskEnded::SnapshotDone => "snapshot done",
        TaskEnded::CaughtUp => "caught up",
        TaskEnded::Stopped => "stopped",
    }
}

fn totals(monitor: &Monitor) -> (u64, u64) {
    let changes = monitor.changes.load(std::sync::atomic::Ordering::Relaxed);
    (monitor.tables().iter().map(|table| table.rows_copied).sum(), changes)
}

fn summary(task: &Finished, started: Instant, output: &Output) -> String {
    let paint = output.paint_data;
    let (rows, changes) = totals(&task.monitor);
    let end = match &task.end {
        Ok(end) => end,
        Err(failure) => return format!("{}  {}", task.task, error_text(failure, &paint)),
    };
    let mut parts =
        vec![format!("{} rows copied", count(rows)), plural(changes, "change"), duration(started.elapsed())];
    if let Some(position) = end.position {
        parts.push(format!("position {position}"));
    }
    let word = ended_word(end.ended);
    let word = if end.set_aside.is_empty() { paint.good(word) } else { paint.warning(word) };
    let mut text = format!("{}  {word}  {}", paint.strong(&task.task), parts.join(" · "));
    for aside in &end.set_aside {
        text.push_str(&format!("\n  set aside: {}\n    ", aside.table));
        match &aside.error {
            Some(error) => text.push_str(&error_text(error, &paint).replace('\n', "\n    ")),
            None => text.push_str(&format!("{}: {} (in an earlier run)", aside.code, aside.problem)),
        }
    }
    text
}

fn result_json(task: &Finished, started: Instant) -> Value {
    let (rows, changes) = totals(&task.monitor);
    let seconds = (started.elapsed().as_secs_f64() * 1e3).round() / 1e3;
    let (ended, position, aside, error) = match &task.end {
        Ok(end) => {
            let aside = end.set_aside.iter().map(|aside| {
                json!({ "table": aside.table.to_string(), "code": aside.code, "problem": aside.problem,
                        "error": aside.error.as_ref().map(error_json) })
            });
            let position = end.position.map(|position| position.to_string());
            (Some(ended_word(end.ended).replace(' ', "_")), position, aside.collect(), Value::Null)
        }
        Err(failure) => (None, None, Vec::new(), error_json(failure)),
    };
    json!({
        "task": task.task, "ended": ended, "rows_copied": rows, "changes": changes, "seconds": seconds,
        "position": position, "set_aside": aside, "error": error,
    })
}
