//! The stream's one loop: fill, cut, deliver, confirm.
//!
//! ```text
//!   stream.fill ──> assembler ──cut──> deliverer (one in flight) ──receipt──> checkpoint ──> stream.confirm
//!                      ^ stops when memory is used up                              │ goal reached: end
//! ```
//!
//! Invariants: nothing is confirmed that is not durable; a stop never cuts a transaction apart; an idle position is written to the target
//! before it is confirmed, at most once a minute or once per segment of log, so that an idle source causes no writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgferry_model::{Class, Cure, Error, Position, Result, Slice, Table, TableState, TaskCommand};
use tokio_util::sync::CancellationToken;

use crate::assemble::Gate;
use crate::checkpoint::Checkpoint;
use crate::deliver::{Courier, Delivered, Deliverer};
use crate::run::Ended;
use crate::{Assembler, ChangeStream, Phase, budget, error, evolve, failpoint};

/// The source frees its log in segments of this size (PostgreSQL's default): confirming an idle position more often frees nothing.
const IDLE_BYTES: u64 = 16 << 20;
/// An idle position that has moved at all is stored at least this often.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);

/// What the loop needs.
pub(crate) struct Follow<'a> {
    pub(crate) courier: &'a Arc<Courier>,
    pub(crate) stream: Box<dyn ChangeStream>,
    pub(crate) gates: Vec<(Arc<Table>, Gate)>,
    pub(crate) after: Position,
    /// End as soon as this is durable.
    pub(crate) goal: Option<Position>,
    pub(crate) stop: &'a CancellationToken,
    pub(crate) set_aside: &'a mut Vec<(Arc<Table>, Error)>,
}

struct Loop<'a> {
    courier: &'a Arc<Courier>,
    stream: Box<dyn ChangeStream>,
    assembler: Assembler,
    deliverer: Deliverer,
    checkpoint: Checkpoint,
    goal: Option<Position>,
    idle_stored_at: Instant,
    tables_open: usize,
    cuts: Vec<(usize, Position)>,
    /// A table whose columns change right after what is in flight; nothing more is read until that is settled.
    changed: Option<Arc<Table>>,
    set_aside: &'a mut Vec<(Arc<Table>, Error)>,
}

/// Follows the stream until the goal is durable, someone asks to stop, or it fails.
pub(crate) async fn follow(follow: Follow<'_>) -> Result<Ended> {
    let Follow { courier, stream, gates, after, goal, stop, set_aside } = follow;
    let cuts: Vec<(usize, Position)> = gates
        .iter()
        .filter_map(|(table, gate)| match gate {
            Gate::After(cut) => Some((table.id.index(), *cut)),
            Gate::Closed => None,
        })
        .collect();
    let mut this = Loop {
        courier,
        stream,
        tables_open: cuts.len(),
        cuts,
        assembler: Assembler::new(budget::stream_limits(&courier.settings), gates, after),
        deliverer: Deliverer::new(Arc::clone(courier)),
        checkpoint: Checkpoint::new(after),
        goal,
        changed: None,
        idle_stored_at: Instant::now(),
        set_aside,
    };
    courier.monitor.set_phase(Phase::CatchingUp);
    courier.monitor.set_durable(after, None);
    this.mark_live();
    let followed = this.run(stop).await;
    this.end(followed).await
}

impl Loop<'_> {
    async fn run(&mut self, stop: &CancellationToken) -> Result<Ended> {
        loop {
            if self.goal.is_some_and(|goal| self.checkpoint.durable() >= goal) {
                return Ok(Ended::CaughtUp);
            }
            if !self.deliverer.busy() && self.cut_now() {
                self.cut()?;
            }
            self.assembler.allow_cut(!self.deliverer.busy());
            let fill = !self.assembler.stop() && self.changed.is_none();
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Ended::Stopped),
                delivered = self.deliverer.done(), if self.deliverer.busy() => self.delivered(delivered?).await?,
                filled = self.stream.fill(&mut self.assembler), if fill => match filled {
                    Ok(_) => self.heard(),
                    Err(failure) => self.stream_failed(failure).await?,
                },
                () = tokio::time::sleep_until(deadline.into()) => self.assembler.want_cut(),
            }
        }
    }

    /// Whether what is gathered should be written now.
    fn cut_now(&self) -> bool {
        let assembler = &self.assembler;
        if assembler.full() {
            return true;
        }
        if assembler.mid_transaction() {
            return false;
        }
        if assembler.has_rows() {
            return assembler.stop()
                || assembler.oldest().is_some_and(|oldest| self.is_old(oldest))
                || self.goal_heard();
        }
        let moved = assembler.through().bytes_since(self.checkpoint.durable());
        moved > 0
            && (moved >= IDLE_BYTES || self.goal_heard() || self.idle_stored_at.elapsed() >= IDLE_INTERVAL)
    }

    fn goal_heard(&self) -> bool {
        self.goal.is_some_and(|goal| self.assembler.through() >= goal)
    }

    fn is_old(&self, oldest: Instant) -> bool {
        oldest.elapsed() >= self.courier.settings.sync_interval
    }

    fn deadline(&self) -> Instant {
        match self.assembler.oldest() {
            Some(oldest) if !self.deliverer.busy() && !self.is_old(oldest) => {
                oldest + self.courier.settings.sync_interval
            }
            _ => Instant::now() + IDLE_INTERVAL,
        }
    }

    fn cut(&mut self) -> Result<()> {
        if self.assembler.mid_transaction() && !self.courier.target.wants().slices {
            return Err(too_large(self.assembler.bytes()));
        }
        self.changed = self.assembler.take_schema_change();
        self.idle_stored_at = Instant::now();
        self.deliverer.start(self.assembler.take());
        Ok(())
    }

    async fn delivered(&mut self, delivered: Delivered) -> Result<()> {
        for (table, failure) in delivered.set_aside {
            self.close(table, failure);
        }
        if delivered.slice != Slice::Part && self.checkpoint.receipt(delivered.receipt) {
            self.mark_live();
        }
        self.note_delivered();
        failpoint::pass("run.before_confirm");
        self.checkpoint.confirm(self.stream.as_mut());
        failpoint::pass("run.after_confirm");
        if let Some(table) = self.changed.take() {
            evolve::block(self.courier, &table, delivered.slice).await?;
            let failure = evolve::blocked(&table);
            self.close(table, failure);
        }
        self.verify_any_left()
    }

    /// A table whose changes the source cannot bring is set aside, and the others go on; any other failure ends the stream.
    async fn stream_failed(&mut self, failure: Error) -> Result<()> {
        if failure.class() != Class::TableBroken || self.courier.settings.stop_on_table_error {
            return Err(failure);
        }
        let named = failure.table().and_then(|name| self.assembler.named(name)).cloned();
        let Some(table) = named else { return Err(failure.with_class(Class::TaskBroken)) };
        // The target is written by one at a time.
        if self.deliverer.busy() {
            let delivered = self.deliverer.done().await?;
            self.delivered(delivered).await?;
        }
        self.courier.set_aside(&table, &failure).await?;
        if self.assembler.sliced() {
            // Slices with its rows are kept: they are dropped, and the stream starts over without the table.
            return Err(failure.with_class(Class::Transient));
        }
        self.close(table, failure);
        self.verify_any_left()
    }

    fn close(&mut self, table: Arc<Table>, failure: Error) {
        self.tables_open -= usize::from(self.assembler.close_table(table.id));
        self.set_aside.push((table, failure));
    }

    fn verify_any_left(&self) -> Result<()> {
        if self.tables_open == 0 && !self.set_aside.is_empty() { Err(no_table_left()) } else { Ok(()) }
    }

    /// A table is live as soon as everything up to its cut is durable.
    fn mark_live(&mut self) {
        let (durable, monitor) = (self.checkpoint.durable(), &self.courier.monitor);
        self.cuts.retain(|&(index, cut)| {
            if cut <= durable {
                monitor.set_state(index, TableState::Live);
            }
            cut > durable
        });
    }

    fn heard(&mut self) {
        let monitor = &self.courier.monitor;
        let end = self.stream.source_end();
        monitor.set_source_end(end);
        if self.assembler.through() >= end {
            monitor.set_phase(Phase::Streaming);
        }
        self.note_delivered();
        metrics::gauge!("pgferry_buffer_bytes", "task" => self.courier.task.to_string())
            .set(self.assembler.bytes() as f64);
    }

    /// While nothing is gathered or in flight, an idle position has nothing that waits, stored or not.
    fn note_delivered(&self) {
        if !self.deliverer.busy() && !self.assembler.has_rows() && !self.assembler.mid_transaction() {
            self.courier.monitor.set_delivered(self.assembler.through());
        }
    }

    /// The end in its order: intake stopped; what is whole is written; what is in flight is awaited; confirmed; closed.
    async fn end(mut self, followed: Result<Ended>) -> Result<Ended> {
        let within = self.courier.settings.stop_within;
        if matches!(followed, Ok(Ended::Stopped)) {
            self.courier.monitor.set_phase(Phase::Stopping);
        }
        let settled = tokio::time::timeout(within, self.settle(followed.is_ok())).await;
        let settled = settled.unwrap_or_else(|_| Err(stop_timed_out(within)));
        if let Err(failure) = self.courier.target.discard().await {
            tracing::warn!(code = failure.code().as_str(), "slices were not dropped cleanly: {failure}");
        }
        self.checkpoint.confirm(self.stream.as_mut());
        if let Err(failure) = self.stream.close().await {
            tracing::debug!(code = failure.code().as_str(), "the stream did not end cleanly: {failure}");
        }
        failpoint::pass("run.stream_ended");
        let ended = followed?;
        settled?;
        Ok(ended)
    }

    async fn settle(&mut self, write_rest: bool) -> Result<()> {
        if self.deliverer.busy() {
            let delivered = self.deliverer.done().await?;
            self.delivered(delivered).await?;
        }
        let moved = self.assembler.through() > self.checkpoint.durable();
        if write_rest && moved && !self.assembler.mid_transaction() && !self.assembler.full() {
            self.cut()?;
            let delivered = self.deliverer.done().await?;
            self.delivered(delivered).await?;
        }
        Ok(())
    }
}

fn too_large(bytes: usize) -> Error {
    Error::task_broken(
        error::TRANSACTION_TOO_LARGE,
        format!(
            "a transaction has more than {bytes} bytes of changes, and the target cannot take it in parts"
        ),
    )
    .with_cause(
        "the changes of a transaction become visible together, so all of them are held until its commit",
    )
    .with_cure(
        Cure::advice("let the task hold more at once: the line belongs to the task in its file").line(
            format!("limits.memory = \"{} MiB\"", (bytes as u64).saturating_mul(8).div_ceil(1 << 20).max(1)),
        ),
    )
}

fn no_table_left() -> Error {
    Error::task_broken(error::NO_TABLE_LEFT, "every table of the task is set aside")
        .with_cause("each has an error of its own, which the target keeps: resync lists them")
        .with_cure(Cure::advice("mend what the tables' errors name, then copy them again").resync())
}

fn stop_timed_out(within: Duration) -> Error {
    Error::transient(
        error::STOP_TIMED_OUT,
        format!("stopping took longer than {} s; what was open is left for the next start", within.as_secs()),
    )
    .with_cause("the source or the target did not answer in time; nothing is lost, the position moves only with its data")
    .with_cure(
        Cure::advice("see whether both answer, then start the task again: it goes on where it stopped")
            .command(TaskCommand::Run(None)),
    )
}
