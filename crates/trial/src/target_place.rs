//! What a kind of target gives to be tried; all the rest of a trial is the same for every kind.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use pgferry_model::{Progress, TableName};
use pgferry_task::{registry, spec};

use crate::databend_databases::{DatabendDatabases, Mode};
use crate::duckdb_file::DuckdbFile;
use crate::kafka_topics::KafkaTopics;

/// The kinds of targets that can be tried; one that holds tables in two ways is two.
pub const KINDS: &[&str] = &["databend", "databend-history", "duckdb", "kafka"];

/// One task's fresh place in a target: a file, a database, a set of topics. What it made is gone when it is dropped.
#[async_trait]
pub trait TargetPlace: Send + Sync {
    /// The lines of its connection in the task file, `kind = …` first. Paths are relative to the scene's folder.
    fn connection(&self) -> String;

    /// More lines of it that keep the target's own memory small, for trials that watch the process's.
    fn small_memory(&self) -> String {
        String::new()
    }

    /// Sections of the task `all`: its own settings of this kind of target, and entries for the workload's tables, where the target holds
    /// some of their values only in another type.
    fn sections(&self, _major: u32) -> String {
        String::new()
    }

    /// The shortest `sync_interval` that a task of this kind of target may have, in milliseconds.
    fn sync_interval_min_ms(&self) -> u64 {
        0
    }

    /// Whether two different texts of a cell name one value of the target.
    fn same_value(&self, _source: &str, _target: &str) -> bool {
        false
    }

    /// What the target holds of the scene's task while no pgferry runs. It must leave the place as it is: what a killed process left
    /// is for the next one to find.
    async fn held(&self, folder: &Path) -> Result<Option<Progress>> {
        held(&folder.join("task.toml")).await
    }

    /// What is beside the tables of a task that has ended well and should not be there, a line each. `tables`: all that it carries,
    /// as the target names them.
    async fn leftovers(&self, folder: &Path, tables: &[TableName]) -> Result<Vec<String>>;
}

/// A new place in a target of a kind.
pub async fn place(kind: &str) -> Result<Arc<dyn TargetPlace>> {
    match kind {
        "databend" => Ok(Arc::new(DatabendDatabases::new(Mode::Latest).await?)),
        "databend-history" => Ok(Arc::new(DatabendDatabases::new(Mode::History).await?)),
        "duckdb" => Ok(Arc::new(DuckdbFile)),
        "kafka" => Ok(Arc::new(KafkaTopics::new()?)),
        other => bail!("no target of kind {other} can be tried; kinds: {}", KINDS.join(", ")),
    }
}

/// What the target of a task file's only task holds of it.
pub async fn held(task_file: &Path) -> Result<Option<Progress>> {
    let spec = spec::read_file(task_file).map_err(|faults| anyhow::anyhow!("{faults:?}"))?;
    let task = spec.tasks.first().context("the task file has a task")?;
    let target = registry::target(&spec, task).await?;
    let held = target.held(&task.id).await;
    target.close().await?;
    Ok(held?)
}
