//! Runs a task: reads what the target holds, copies what is missing, follows the stream, and starts over after transient errors.
//!
//! ```text
//!   ┌─> open target ─> verify start ─> prepare ─> copy ─> follow ──> end
//!   └──── wait ────────────── transient error ───────────┘
//! ```
//!
//! Invariants: every attempt starts from what the target holds, never from memory; before the first success an error ends the
//! run at once, so that a wrong password is not retried for a quarter of an hour.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pgferry_model::{
    Class, Delivery, Error, Position, Progress, Result, Slice, Table, TableName, TableProgress, TableState,
    TaskId,
};
use tokio_util::sync::CancellationToken;

use crate::assemble::Gate;
use crate::deliver::Courier;
use crate::evolve;
use crate::follow::{Follow, follow};
use crate::handover::{Copied, copy_tables};
use crate::retry::Retry;
use crate::{Monitor, Phase, Receipt, Settings, Source, StreamStart, SyncMode, TablePlan, Target, failpoint};

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

/// A table that was set aside, in this run or an earlier one.
#[derive(Debug)]
pub struct SetAside {
    /// The table.
    pub table: TableName,
    /// The error's code.
    pub code: String,
    /// The error's problem line.
    pub problem: String,
    /// The error itself, where it happened in this run.
    pub error: Option<Error>,
}

/// How a run ended.
#[derive(Debug)]
pub struct RunEnd {
    /// Why.
    pub ended: Ended,
    /// What is durable.
    pub position: Option<Position>,
    /// The tables that are set aside.
    pub set_aside: Vec<SetAside>,
}

struct Run<'a> {
    task: &'a TaskId,
    source: Arc<dyn Source>,
    courier: Arc<Courier>,
    stop: CancellationToken,
    goal: Option<Position>,
    set_aside: Vec<(Arc<Table>, Error)>,
    /// Whether an attempt has got as far as the copy or the stream.
    started: bool,
}

/// Runs a task until it ends, is asked to stop, or breaks. Tables that break are set aside and told in the end.
pub async fn run(
    task: &TaskId,
    source: Arc<dyn Source>,
    target: Arc<dyn Target>,
    settings: &Settings,
    monitor: Arc<Monitor>,
    stop: CancellationToken,
) -> Result<RunEnd> {
    let courier = Courier {
        task: task.clone(),
        target: Arc::clone(&target),
        settings: settings.clone(),
        monitor: Arc::clone(&monitor),
    };
    let mut run = Run {
        task,
        source,
        courier: Arc::new(courier),
        stop,
        goal: None,
        set_aside: Vec::new(),
        started: false,
    };
    let ended = run.attempts().await;
    let ended = match ended {
        Ok(ended) => run.told(ended).await,
        Err(failure) => Err(failure),
    };
    let closed = target.close().await;
    monitor.set_phase(Phase::Ended);
    let end = ended?;
    closed?;
    Ok(end)
}

impl Run<'_> {
    async fn attempts(&mut self) -> Result<Ended> {
        let mut retry = Retry::new(&self.courier.settings);
        let monitor = Arc::clone(&self.courier.monitor);
        loop {
            let failure = match self.attempt().await {
                Ok(ended) => return Ok(ended),
                Err(failure) if !self.started => return Err(failure),
                Err(failure) => failure,
            };
            monitor.set_error(Some(&failure));
            let durable = monitor.deliveries.load(Ordering::Relaxed)
                + monitor.tables().iter().map(|table| table.chunks_done).sum::<u64>();
            let wait = retry.after(failure, durable)?;
            monitor.set_phase(Phase::Retrying);
            monitor.retries.fetch_add(1, Ordering::Relaxed);
            metrics::counter!("pgferry_retries_total", "task" => self.task.to_string()).increment(1);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => return Ok(Ended::Stopped),
            }
        }
    }

    async fn attempt(&mut self) -> Result<Ended> {
        let tables = self.source.tables().await?;
        if !self.started {
            self.courier.monitor.set_tables(&tables);
        }
        let mut progress = self.courier.target.open(self.task).await?;
        failpoint::pass("run.opened");
        self.show_states(&tables, &progress);
        self.source.verify_start(&progress).await?;
        let identity = self.source.identity().await?;
        if progress.source.as_ref().is_none_or(|stored| stored.timeline != identity.timeline) {
            self.courier.target.identify(&identity).await?;
        }
        let stream = self.courier.settings.sync_mode != SyncMode::Snapshot;
        if self.goal.is_none() && stream && self.courier.settings.until_caught_up {
            self.goal = Some(self.source.current_position().await?);
        }
        self.prepare(&tables, &mut progress).await?;
        failpoint::pass("run.prepared");
        if self.stop.is_cancelled() {
            return Ok(Ended::Stopped);
        }
        self.started = true;
        self.courier.monitor.set_error(None);
        let copied = match self.courier.settings.sync_mode {
            SyncMode::CdcOnly => self.start_without_copy(&tables, &progress).await?,
            SyncMode::Snapshot | SyncMode::SnapshotCdc => {
                copy_tables(&self.courier, self.source.as_ref(), &tables, &progress, &self.stop).await?
            }
        };
        self.set_aside.extend(copied.set_aside);
        if copied.stopped {
            return Ok(Ended::Stopped);
        }
        if !stream {
            return Ok(Ended::SnapshotDone);
        }
        if copied.cut.is_some() && self.goal.is_some() {
            self.goal = Some(self.source.current_position().await?);
        }
        if copied.cut.is_some() {
            failpoint::pass("handover.before_stream");
        }
        self.follow(&tables).await
    }

    fn show_states(&self, tables: &[Arc<Table>], progress: &Progress) {
        for table in tables {
            if let Some(known) = progress.table(&table.name) {
                self.courier.monitor.set_state(table.id.index(), known.state.clone());
            }
        }
    }

    /// Creates or takes over the target's tables; one that cannot be carried is set aside, in `progress` too: its rows may be
    /// somebody else's, and no copy may touch them.
    async fn prepare(&mut self, tables: &[Arc<Table>], progress: &mut Progress) -> Result<()> {
        let settings = self.courier.settings.clone();
        let plan = |table: &Arc<Table>| TablePlan {
            table: Arc::clone(table),
            if_exists: settings.if_target_exists_for(&table.name),
            deletes: settings.deletes,
        };
        let broken = |known: &TableProgress| matches!(known.state, TableState::Broken { .. });
        let lost = |table: &Table, progress: &Progress| {
            let follows = |known: &TableProgress| known.state.takes_changes() && table.key.is_empty();
            settings.sync_mode != SyncMode::Snapshot && progress.table(&table.name).is_some_and(follows)
        };
        let wanted: Vec<&Arc<Table>> =
            tables.iter().filter(|table| !progress.table(&table.name).is_some_and(broken)).collect();
        let plans: Vec<TablePlan> =
            wanted.iter().filter(|table| !lost(table, progress)).map(|table| plan(table)).collect();
        let together = match self.courier.target.prepare_all(&plans).await {
            Ok(()) => true,
            Err(failure) if failure.class() == Class::TableBroken => false,
            Err(failure) => return Err(failure),
        };
        for table in wanted {
            let prepared = if lost(table, progress) {
                Err(evolve::key_lost(table))
            } else if together {
                Ok(())
            } else {
                self.courier.target.prepare(&plan(table)).await
            };
            match prepared {
                Ok(()) => {}
                Err(failure) if failure.class() == Class::TableBroken && !settings.stop_on_table_error => {
                    self.courier.set_aside(table, &failure).await?;
                    note_broken(progress, table, &failure);
                    self.set_aside.push((Arc::clone(table), failure));
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// Changes only: tables that are new to the task follow the stream from where it stands.
    async fn start_without_copy(&self, tables: &[Arc<Table>], progress: &Progress) -> Result<Copied> {
        let target = &self.courier.target;
        let position = match progress.position {
            Some(position) => position,
            None => {
                let position = self.source.prepare_stream().await?;
                let nothing = Delivery {
                    after: Position::ZERO,
                    through: position,
                    tables: Vec::new(),
                    transactions: Vec::new(),
                    slice: Slice::Whole,
                };
                match target.apply(Arc::new(nothing)).await? {
                    Receipt::Durable(_) | Receipt::Accepted => position,
                }
            }
        };
        let new =
            |known: &TableProgress| known.cut.is_none() && !matches!(known.state, TableState::Broken { .. });
        let following: Vec<Arc<Table>> = tables
            .iter()
            .filter(|table| !table.key.is_empty() && progress.table(&table.name).is_none_or(new))
            .cloned()
            .collect();
        if !following.is_empty() {
            target.set_states(&following, TableState::CatchingUp).await?;
        }
        tracing::debug!(%position, "changes only");
        Ok(Copied { cut: None, set_aside: Vec::new(), stopped: false })
    }

    async fn follow(&mut self, tables: &[Arc<Table>]) -> Result<Ended> {
        let progress = self.courier.target.open(self.task).await?;
        let after = progress.position.unwrap_or(Position::ZERO);
        let gates = tables.iter().map(|table| (Arc::clone(table), gate(table, &progress, after))).collect();
        let stream = self.source.changes(StreamStart { after }).await?;
        let following = Follow {
            courier: &self.courier,
            stream,
            gates,
            after,
            goal: self.goal,
            stop: &self.stop,
            set_aside: &mut self.set_aside,
        };
        follow(following).await
    }

    async fn told(&mut self, ended: Ended) -> Result<RunEnd> {
        let progress = self.courier.target.open(self.task).await?;
        let mut set_aside = Vec::new();
        for known in &progress.tables {
            if let TableState::Broken { code, problem } = &known.state {
                let error = self.set_aside.iter().position(|(table, _)| table.name == known.name);
                set_aside.push(SetAside {
                    table: known.name.clone(),
                    code: code.clone(),
                    problem: problem.clone(),
                    error: error.map(|at| self.set_aside.swap_remove(at).1),
                });
            }
        }
        Ok(RunEnd { ended, position: progress.position, set_aside })
    }
}

fn note_broken(progress: &mut Progress, table: &Table, failure: &Error) {
    let state =
        TableState::Broken { code: failure.code().to_string(), problem: failure.problem().to_owned() };
    match progress.tables.iter_mut().find(|known| known.name == table.name) {
        Some(known) => known.state = state,
        None => {
            progress.tables.push(TableProgress {
                name: table.name.clone(),
                state,
                cut: None,
                chunks_done: Vec::new(),
            });
        }
    }
}

/// Which changes a table takes: those after its cut, or none.
fn gate(table: &Table, progress: &Progress, after: Position) -> Gate {
    match progress.table(&table.name) {
        Some(known) if known.state.takes_changes() && !table.key.is_empty() => {
            Gate::After(known.cut.unwrap_or(after).max(after))
        }
        _ => Gate::Closed,
    }
}
