//! Wires a validated task: spec to source, target and settings. It only wires.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgferry_model::{Cure, Error, Result, TaskCommand, TaskId};
use pgferry_pipeline::{Settings, Source, Target};

use crate::registry;
use crate::spec::{CONFLICT, Connection, Spec, TaskSpec, UNKNOWN_TASK};

/// A task that can run.
pub struct Built {
    /// Its name.
    pub id: TaskId,
    /// Where it reads.
    pub source: Arc<dyn Source>,
    /// Where it writes.
    pub target: Arc<dyn Target>,
    /// How.
    pub settings: Settings,
}

/// Builds a task.
pub async fn build(spec: &Spec, task: &TaskSpec) -> Result<Built> {
    Ok(Built {
        id: task.id.clone(),
        source: registry::source(spec, task)?,
        target: registry::target(spec, task).await?,
        settings: task.settings.clone(),
    })
}

/// The named tasks in the file's order; all of them where none is named.
pub fn select<'a>(spec: &'a Spec, names: &[String]) -> Result<Vec<&'a TaskSpec>> {
    if let Some(name) = names.iter().find(|name| spec.task(name).is_none()) {
        let known: Vec<&str> = spec.tasks.iter().map(|task| task.id.as_str()).collect();
        let problem = format!("{} has no task `{name}`", spec.file.display());
        let cure = Cure::advice(format!("its tasks are: {}", known.join(", ")));
        return Err(Error::task_broken(UNKNOWN_TASK, problem)
            .with_cause("a task's name is what stands after `tasks.` in its section")
            .with_cure(cure));
    }
    let wanted = |task: &&TaskSpec| names.is_empty() || names.iter().any(|name| name == task.id.as_str());
    Ok(spec.tasks.iter().filter(wanted).collect())
}

/// Refuses tasks that cannot run in one process at the same time: a DuckDB file takes one writer.
pub fn verify_together(spec: &Spec, tasks: &[&TaskSpec]) -> Result<()> {
    let mut writers: Vec<(PathBuf, &TaskSpec)> = Vec::new();
    for task in tasks {
        let Some(Connection::Duckdb(connection)) = spec.connections.get(&task.target) else { continue };
        let path = resolved(&connection.path);
        if let Some((_, other)) = writers.iter().find(|(known, _)| *known == path) {
            let problem =
                format!("tasks {} and {} write the same DuckDB file, {}", other.id, task.id, path.display());
            let cure = Cure::advice("give each task a file of its own, or run them one after the other")
                .command(TaskCommand::Run(Some(other.id.clone())))
                .command(TaskCommand::Run(Some(task.id.clone())));
            return Err(Error::task_broken(CONFLICT, problem)
                .with_cause("a DuckDB file takes one writer at a time")
                .with_cure(cure));
        }
        writers.push((path, task));
    }
    Ok(())
}

/// The file's real path, also where the file is not there yet.
fn resolved(path: &Path) -> PathBuf {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    match (path.canonicalize(), folder.canonicalize(), path.file_name()) {
        (Ok(real), _, _) => real,
        (Err(_), Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}
