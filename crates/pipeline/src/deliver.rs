//! Hands deliveries to the target: one is written while the next is filled.
//!
//! ```text
//!   idle ──start──> in flight (compact, apply, retry) ──done──> idle
//! ```
//!
//! Invariants: at most one delivery is in flight; a table that breaks is stored as broken before a position passes its changes;
//! a slice is never retried alone, because the target has dropped the slices before it.

use std::sync::Arc;
use std::time::Instant;

use pgferry_model::{Batch, Class, Delivery, Error, Position, Result, Slice, Table, TableState, TaskId};
use tokio::task::JoinHandle;

use crate::retry::Retry;
use crate::{
    ChangeForm, Compacted, DeletePolicy, Monitor, Receipt, Settings, TableChanges, Target, compact, error,
    failpoint,
};

/// What writing needs besides the delivery.
pub(crate) struct Courier {
    pub(crate) task: TaskId,
    pub(crate) target: Arc<dyn Target>,
    pub(crate) settings: Settings,
    pub(crate) monitor: Arc<Monitor>,
}

/// What became of a delivery.
pub(crate) struct Delivered {
    pub(crate) receipt: Receipt,
    pub(crate) slice: Slice,
    /// Tables that broke and are stored as such.
    pub(crate) set_aside: Vec<(Arc<Table>, Error)>,
}

/// The window of one.
pub(crate) struct Deliverer {
    courier: Arc<Courier>,
    in_flight: Option<JoinHandle<Result<Delivered>>>,
}

struct Weight {
    changes: u64,
    per_table: Vec<(usize, u64)>,
    transactions: u64,
    committed_at_us: Option<i64>,
    through: Position,
    started: Instant,
}

impl Deliverer {
    pub(crate) fn new(courier: Arc<Courier>) -> Self {
        Deliverer { courier, in_flight: None }
    }

    pub(crate) fn busy(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Starts writing. The caller has made sure that nothing is in flight.
    pub(crate) fn start(&mut self, delivery: Delivery<Batch>) {
        debug_assert!(self.in_flight.is_none(), "one delivery at a time");
        let courier = Arc::clone(&self.courier);
        self.in_flight = Some(tokio::spawn(async move { courier.deliver(delivery).await }));
    }

    /// Waits for what is in flight. Cancel-safe. Pending for ever when nothing is.
    pub(crate) async fn done(&mut self) -> Result<Delivered> {
        let Some(handle) = &mut self.in_flight else {
            return std::future::pending().await;
        };
        let joined = handle.await;
        self.in_flight = None;
        joined.unwrap_or_else(|lost| {
            Err(error::worker_lost("the delivery's worker ended without a result").with_origin(lost))
        })
    }
}

/// What is still in flight belongs to nobody any more: the next start's higher epoch refuses its commit.
impl Drop for Deliverer {
    fn drop(&mut self) {
        if let Some(handle) = self.in_flight.take() {
            handle.abort();
        }
    }
}

impl Courier {
    async fn deliver(&self, delivery: Delivery<Batch>) -> Result<Delivered> {
        let weight = Weight::of(&delivery);
        let slice = delivery.slice;
        let (delivery, mut set_aside) = self.form(delivery).await?;
        for (table, failure) in &set_aside {
            self.set_aside(table, failure).await?;
        }
        let receipt = self.apply(delivery, &mut set_aside).await?;
        self.count(&weight, slice, receipt);
        Ok(Delivered { receipt, slice, set_aside })
    }

    /// Brings the changes into the form that the target wants; tables whose changes cannot be compacted are taken out.
    async fn form(
        &self,
        delivery: Delivery<Batch>,
    ) -> Result<(Delivery<TableChanges>, Vec<(Arc<Table>, Error)>)> {
        let Delivery { after, through, tables, transactions, slice } = delivery;
        let (form, deletes) = (self.target.wants().changes, self.settings.deletes);
        let formed = tokio::task::spawn_blocking(move || form_tables(tables, form, deletes));
        let (tables, broken) = formed.await.map_err(|lost| {
            error::worker_lost("the compaction's worker ended without a result").with_origin(lost)
        })?;
        let mut set_aside = Vec::new();
        for (table, failure) in broken {
            if failure.class() != Class::TableBroken || self.settings.stop_on_table_error {
                return Err(failure.with_class(Class::TaskBroken));
            }
            set_aside.push((table, failure));
        }
        Ok((Delivery { after, through, tables, transactions, slice }, set_aside))
    }

    async fn apply(
        &self,
        delivery: Delivery<TableChanges>,
        set_aside: &mut Vec<(Arc<Table>, Error)>,
    ) -> Result<Receipt> {
        let mut delivery = Arc::new(delivery);
        let mut retry = Retry::new(&self.settings);
        loop {
            failpoint::pass("run.before_apply");
            let failure = match self.target.apply(Arc::clone(&delivery)).await {
                Ok(receipt) => {
                    failpoint::pass("run.after_apply");
                    return Ok(receipt);
                }
                Err(failure) => failure,
            };
            if failure.class() == Class::TableBroken {
                delivery = self.without_broken(delivery, failure, set_aside).await?;
                continue;
            }
            if delivery.slice != Slice::Whole {
                return Err(failure);
            }
            let unknown = self.target.outcome_unknown(&failure);
            let wait = retry.after(failure, self.progress())?;
            tokio::time::sleep(wait).await;
            if unknown {
                let progress = self.target.open(&self.task).await?;
                if let Some(position) = progress.position.filter(|&position| position >= delivery.through) {
                    return Ok(Receipt::Durable(position));
                }
            }
        }
    }

    /// Stores a table as broken and takes its changes out. A broken slice gives up the whole sliced delivery: the caller
    /// restarts the stream, and the table's gate is closed then.
    async fn without_broken(
        &self,
        delivery: Arc<Delivery<TableChanges>>,
        failure: Error,
        set_aside: &mut Vec<(Arc<Table>, Error)>,
    ) -> Result<Arc<Delivery<TableChanges>>> {
        let named = failure.table().cloned();
        let found = delivery.tables.iter().find(|changes| Some(&changes.table().name) == named.as_ref());
        let Some(table) = found.map(|changes| Arc::clone(changes.table())) else {
            return Err(failure.with_class(Class::TaskBroken));
        };
        if self.settings.stop_on_table_error {
            return Err(failure.with_class(Class::TaskBroken));
        }
        self.set_aside(&table, &failure).await?;
        if delivery.slice != Slice::Whole {
            return Err(failure.with_class(Class::Transient));
        }
        let mut rest = Arc::try_unwrap(delivery).unwrap_or_else(|shared| (*shared).clone());
        rest.tables.retain(|changes| changes.table().name != table.name);
        set_aside.push((table, failure));
        Ok(Arc::new(rest))
    }

    /// Stores a table as broken in the target, or stops the task where the user wants that.
    pub(crate) async fn set_aside(&self, table: &Arc<Table>, failure: &Error) -> Result<()> {
        let state = TableState::Broken { code: failure.code().to_string(), problem: failure.to_string() };
        failpoint::pass("run.before_set_aside");
        self.target.set_state(table, state.clone()).await?;
        failpoint::pass("run.after_set_aside");
        self.monitor.set_state(table.id.index(), state);
        metrics::counter!("pgferry_errors_total", "task" => self.task.to_string(), "code" => failure.code().as_str()).increment(1);
        tracing::error!(
            code = failure.code().as_str(),
            table = %table.name,
            cause = failure.cause().unwrap_or_default(),
            "table set aside: {failure}"
        );
        Ok(())
    }

    fn progress(&self) -> u64 {
        self.monitor.deliveries.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn count(&self, weight: &Weight, slice: Slice, receipt: Receipt) {
        use std::sync::atomic::Ordering::Relaxed;
        let monitor = &self.monitor;
        monitor.changes.fetch_add(weight.changes, Relaxed);
        monitor.transactions.fetch_add(weight.transactions, Relaxed);
        for &(index, changes) in &weight.per_table {
            if let Some(table) = monitor.table(index) {
                table.changes.fetch_add(changes, Relaxed);
            }
        }
        metrics::counter!("pgferry_changes_total", "task" => self.task.to_string()).increment(weight.changes);
        metrics::counter!("pgferry_transactions_total", "task" => self.task.to_string())
            .increment(weight.transactions);
        metrics::histogram!("pgferry_batch_rows", "task" => self.task.to_string())
            .record(weight.changes as f64);
        metrics::histogram!("pgferry_stage_duration_seconds", "task" => self.task.to_string(), "stage" => "apply")
            .record(weight.started.elapsed().as_secs_f64());
        if slice != Slice::Part {
            monitor.deliveries.fetch_add(1, Relaxed);
        }
        if let Receipt::Durable(position) = receipt {
            monitor.set_durable(position, weight.committed_at_us);
        }
        tracing::debug!(through = %weight.through, changes = weight.changes, ?slice, "delivered");
    }
}

impl Weight {
    fn of(delivery: &Delivery<Batch>) -> Weight {
        let per_table: Vec<(usize, u64)> =
            delivery.tables.iter().map(|batch| (batch.table().id.index(), batch.len() as u64)).collect();
        Weight {
            changes: per_table.iter().map(|&(_, changes)| changes).sum(),
            per_table,
            transactions: (delivery.transactions.len() - usize::from(delivery.slice == Slice::Part)) as u64,
            committed_at_us: delivery.transactions.last().map(|mark| mark.committed_at_us),
            through: delivery.through,
            started: Instant::now(),
        }
    }
}

type Formed = (Vec<TableChanges>, Vec<(Arc<Table>, Error)>);

fn form_tables(batches: Vec<Batch>, form: ChangeForm, deletes: DeletePolicy) -> Formed {
    let mut tables = Vec::with_capacity(batches.len());
    let mut broken = Vec::new();
    for batch in batches {
        let table = Arc::clone(batch.table());
        match form {
            ChangeForm::EveryChange => tables.push(TableChanges::Every(batch)),
            ChangeForm::LatestPerKey => match compact(batch, deletes) {
                Ok(compacted) if is_nothing(&compacted) => {}
                Ok(compacted) => tables.push(TableChanges::Latest(compacted)),
                Err(failure) => broken.push((table, failure)),
            },
        }
    }
    (tables, broken)
}

fn is_nothing(compacted: &Compacted) -> bool {
    !compacted.truncate && compacted.deletes.is_empty() && compacted.upserts.is_empty()
}
