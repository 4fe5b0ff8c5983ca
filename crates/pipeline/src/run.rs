//! The one loop.

use std::sync::Arc;

use pgferry_model::{Error, Position, Result, TableName, TaskId};
use tokio_util::sync::CancellationToken;

use crate::{Monitor, Settings, Source, Target};

/// Why a run ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The task ends with the snapshot, and that is durable.
    SnapshotDone,
    /// The position that was to be reached is durable.
    CaughtUp,
    /// It was asked to stop.
    Stopped,
}

/// How a run ended.
#[derive(Debug)]
pub struct RunEnd {
    /// Why.
    pub ended: Ended,
    /// What is durable.
    pub position: Option<Position>,
    /// The tables that were set aside, with their errors.
    pub set_aside: Vec<(TableName, Error)>,
}

/// Runs a task until it ends, is asked to stop, or breaks.
pub async fn run(
    _task: &TaskId,
    _source: Arc<dyn Source>,
    _target: Arc<dyn Target>,
    _settings: &Settings,
    _monitor: Arc<Monitor>,
    _stop: CancellationToken,
) -> Result<RunEnd> {
    Ok(RunEnd { ended: Ended::Stopped, position: None, set_aside: Vec::new() })
}
