//! What a run tells Prometheus: the engine's counters as they come, and what only a look tells, once a second.
//!
//! Names follow `docs/reference/metrics.md`. Without `--metrics` nothing is recorded: the engine's calls go nowhere.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use pgferry_model::{Cure, Error, TableState};
use pgferry_pipeline::{Monitor, Phase};
use tokio::task::JoinHandle;

use crate::errors::{Failure, METRICS_ADDRESS};

const EVERY: Duration = Duration::from_secs(1);
/// Seconds; a delivery takes milliseconds, a stuck target minutes.
const DURATION_BUCKETS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0];
const ROWS_BUCKETS: [f64; 7] = [1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6];

/// Listens at the address until the process ends.
pub(crate) fn serve(address: SocketAddr) -> Result<(), Failure> {
    let buckets = PrometheusBuilder::new()
        .with_http_listener(address)
        .set_buckets_for_metric(Matcher::Full("pgferry_batch_rows".into()), &ROWS_BUCKETS)
        .and_then(|builder| builder.set_buckets(&DURATION_BUCKETS));
    // Bound here to tell the user at once; the exporter would only log it.
    let bound = std::net::TcpListener::bind(address)
        .map(drop)
        .map_err(|failure| refused(address).with_origin(failure));
    bound?;
    buckets.and_then(PrometheusBuilder::install).map_err(|failure| refused(address).with_origin(failure))?;
    describe();
    Ok(())
}

fn refused(address: SocketAddr) -> Error {
    Error::task_broken(METRICS_ADDRESS, format!("cannot serve metrics at {address}"))
        .with_cause("the address is not one of this machine, or another program listens there")
        .with_cure(Cure::advice("give --metrics a free address and port, such as 127.0.0.1:9187"))
}

fn describe() {
    describe_gauge!("pgferry_task_phase", "1 for what the task does now, 0 for what it does not");
    describe_gauge!("pgferry_task_tables", "Tables of the task by state");
    describe_gauge!(
        "pgferry_lag_bytes",
        Unit::Bytes,
        "Log of the source that may hold changes not yet durable"
    );
    describe_gauge!(
        "pgferry_replication_lag_seconds",
        Unit::Seconds,
        "Age of the newest durable commit while changes wait"
    );
    describe_gauge!("pgferry_position", "The durable position, as a number of bytes of log");
    describe_gauge!("pgferry_buffer_bytes", Unit::Bytes, "Changes gathered for the next delivery");
    describe_counter!("pgferry_snapshot_rows_total", "Rows copied");
    describe_counter!("pgferry_changes_total", "Changes delivered, before compaction");
    describe_counter!("pgferry_transactions_total", "Transactions delivered");
    describe_counter!("pgferry_retries_total", "Retries after errors that may pass");
    describe_counter!("pgferry_errors_total", "Tables set aside, by error code");
    describe_counter!("pgferry_dead_letters_total", "Records too large for their Kafka topic, set aside");
    describe_counter!("pgferry_values_nulled_total", "Values that became NULL, as the task file says");
    describe_gauge!(
        "pgferry_merge_lag_seconds",
        Unit::Seconds,
        "Age of the oldest staged change not yet merged"
    );
    describe_histogram!("pgferry_merge_seconds", Unit::Seconds, "Time per merge into a Databend table");
    describe_histogram!("pgferry_batch_rows", "Changes per delivery");
    describe_histogram!("pgferry_stage_duration_seconds", Unit::Seconds, "Time per delivery");
}

/// Ends the looking when dropped.
pub(crate) struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Looks at the tasks' monitors once a second.
pub(crate) fn watch(tasks: Vec<(String, Arc<Monitor>)>) -> Watch {
    Watch(tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        loop {
            ticks.tick().await;
            tasks.iter().for_each(|(task, monitor)| look(task, monitor));
        }
    }))
}

fn look(task: &str, monitor: &Monitor) {
    let task = task.to_owned();
    for phase in Phase::ALL {
        let now = f64::from(u8::from(monitor.phase() == phase));
        gauge!("pgferry_task_phase", "task" => task.clone(), "phase" => phase.word()).set(now);
    }
    let tables = monitor.tables();
    for state in TableState::WORDS {
        let count = tables.iter().filter(|table| table.state.word() == state).count();
        gauge!("pgferry_task_tables", "task" => task.clone(), "state" => state).set(count as f64);
    }
    let lag = monitor.lag_bytes();
    gauge!("pgferry_lag_bytes", "task" => task.clone()).set(lag as f64);
    gauge!("pgferry_replication_lag_seconds", "task" => task.clone()).set(lag_seconds(monitor, lag));
    gauge!("pgferry_position", "task" => task).set(monitor.durable().lsn() as f64);
}

fn lag_seconds(monitor: &Monitor, lag: u64) -> f64 {
    let committed = monitor.committed_at_us();
    if lag == 0 || committed == 0 {
        return 0.0;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_secs_f64() - committed as f64 / 1e6).max(0.0)
}
