//! The contestant: pgferry's source and engine, as the command line runs them, into the null target, a DuckDB file, Kafka topics or
//! Databend.
//!
//! Prints `streaming seconds=N` when it first follows the source's end, and its figures as `name=number` at the end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use pgferry_model::TaskId;
use pgferry_pipeline::{Monitor, Phase, Settings, SyncMode, Target, run as run_task};
use pgferry_postgres::ConnectionConfig;
use pgferry_source_postgres::{Manage, PostgresSource, PostgresSourceConfig, Replication, SelectFrom};
use pgferry_target_databend::{DatabendConfig, DatabendTarget, Server};
use pgferry_target_duckdb::{DuckdbConfig, DuckdbTarget};
use pgferry_target_kafka::{Guarantee, KafkaConfig, KafkaTarget};
use tokio_util::sync::CancellationToken;

use crate::null_target::NullTarget;
use crate::observed::{Observed, Seen};
use crate::server::Place;

/// As the program has it for tasks into Kafka.
const SYNC_INTERVAL_KAFKA: Duration = Duration::from_millis(20);

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// Tables, as patterns
    #[arg(long)]
    include: Vec<String>,
    /// How many chunks are copied at once
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// Memory for rows in bytes; what pgferry takes if left out
    #[arg(long)]
    memory: Option<usize>,
    /// The slot whose backlog is read; without one the tables are copied
    #[arg(long)]
    slot: Option<String>,
    /// Copy the tables before the slot's changes
    #[arg(long)]
    copy_first: bool,
    /// A DuckDB file instead of nothing
    #[arg(long)]
    duckdb: Option<PathBuf>,
    /// DuckDB's own memory
    #[arg(long, default_value = "1GB")]
    memory_limit: String,
    /// A Kafka cluster's brokers instead of nothing
    #[arg(long)]
    kafka: Option<String>,
    /// What the names of the topics begin with
    #[arg(long, default_value = "bench")]
    topics: String,
    /// Records and position in one Kafka transaction
    #[arg(long)]
    exactly_once: bool,
    /// A Databend server's address instead of nothing
    #[arg(long)]
    databend: Option<String>,
    /// Databend's database for the tables, and with `_own` behind it for what pgferry keeps for itself
    #[arg(long, default_value = "bench")]
    into: String,
    /// Seconds between two merges of a table, at least
    #[arg(long, default_value_t = 3)]
    merge_seconds: u64,
    /// Follow the stream for so many seconds instead of ending when it has caught up
    #[arg(long)]
    follow: Option<u64>,
}

impl Options {
    fn mode(&self) -> SyncMode {
        match (&self.slot, self.copy_first) {
            (None, _) => SyncMode::Snapshot,
            (Some(_), false) => SyncMode::CdcOnly,
            (Some(_), true) => SyncMode::SnapshotCdc,
        }
    }

    fn source(&self) -> PostgresSource {
        PostgresSource::new(PostgresSourceConfig {
            connection: ConnectionConfig::new(
                &self.place.host,
                self.place.port,
                &self.place.database,
                "postgres",
            ),
            task: "bench".into(),
            sync_mode: self.mode(),
            include: self.include.clone(),
            exclude: Vec::new(),
            tables: Vec::new(),
            replication: Replication {
                publication: "bench".into(),
                slot: self.slot.clone().unwrap_or_default(),
                manage: Manage::Never,
                from: SelectFrom::Tables,
            },
            workers: self.workers,
            spool_directory: None,
            spool_memory_bytes_max: 16 << 20,
            spool_disk_bytes_max: u64::MAX,
        })
    }

    fn target(&self) -> Result<Arc<dyn Target>> {
        if let Some(servers) = &self.kafka {
            return Ok(Arc::new(KafkaTarget::connect(self.kafka_config(servers))?));
        }
        if let Some(dsn) = &self.databend {
            return Ok(Arc::new(DatabendTarget::connect(self.databend_config(dsn))?));
        }
        let Some(file) = &self.duckdb else { return Ok(Arc::new(NullTarget::default())) };
        let config = DuckdbConfig { memory_limit: self.memory_limit.clone(), ..DuckdbConfig::new(file) };
        Ok(Arc::new(DuckdbTarget::connect(config)?))
    }

    fn databend_config(&self, dsn: &str) -> DatabendConfig {
        DatabendConfig {
            database: Some(self.into.clone()),
            staging: format!("{}_own", self.into),
            merge_interval: Duration::from_secs(self.merge_seconds),
            ..DatabendConfig::new(Server::Dsn(dsn.to_owned()))
        }
    }

    /// The defaults, under names of this run.
    fn kafka_config(&self, servers: &str) -> KafkaConfig {
        let topics = &self.topics;
        KafkaConfig {
            topic_rule: format!("{topics}.#{{source_schema_name}}.#{{source_table_name}}"),
            source_database: self.place.database.clone(),
            guarantee: if self.exactly_once { Guarantee::ExactlyOnce } else { Guarantee::AtLeastOnce },
            transactional_id_prefix: topics.clone(),
            state_topic: format!("{topics}.state"),
            ..KafkaConfig::new(servers)
        }
    }
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    // As the program does.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_thp_disable(true)?;
    let mode = options.mode();
    let usual = Settings::default();
    let settings = Settings {
        sync_mode: mode,
        workers: options.workers,
        until_caught_up: options.follow.is_none(),
        buffer_bytes_max: options.memory.unwrap_or(usual.buffer_bytes_max),
        sync_interval: if options.kafka.is_some() { SYNC_INTERVAL_KAFKA } else { usual.sync_interval },
        ..usual
    };
    let (monitor, stop) = (Arc::new(Monitor::default()), CancellationToken::new());
    let target = Arc::new(Observed::new(options.target()?));
    let seen = Arc::clone(&target.seen);
    let watching = tokio::spawn(watch(Arc::clone(&monitor), options.follow, stop.clone()));
    let task = TaskId::new("bench");
    let end =
        run_task(&task, Arc::new(options.source()), target, &settings, Arc::clone(&monitor), stop).await?;
    watching.abort();
    ensure!(end.set_aside.is_empty(), "tables were set aside: {:?}", end.set_aside);
    let rows: u64 = monitor.tables().iter().map(|table| table.rows_copied).sum();
    println!("rows={rows} changes={}", monitor.changes.load(Ordering::Relaxed));
    print(&mut seen.lock());
    Ok(())
}

/// Says when the stream is followed, and ends the run when its time is over.
async fn watch(monitor: Arc<Monitor>, follow: Option<u64>, stop: CancellationToken) {
    let started = Instant::now();
    while monitor.phase() != Phase::Streaming {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("streaming seconds={:.3}", started.elapsed().as_secs_f64());
    if let Some(seconds) = follow {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        stop.cancel();
    }
}

fn print(seen: &mut Seen) {
    for (name, time) in [
        ("preparing", seen.preparing),
        ("beginning", seen.beginning),
        ("loading", seen.loading),
        ("applying", seen.applying),
        ("closing", seen.closing),
    ] {
        println!("{name}={:.4}", time.as_secs_f64());
    }
    seen.ages_us.sort_unstable();
    let ages = &seen.ages_us;
    let at = |part: f64| {
        let last = ages.len().saturating_sub(1);
        ages.get((last as f64 * part).round() as usize).map_or(0.0, |age| *age as f64 / 1e3)
    };
    println!(
        "transactions={} p50={:.1} p90={:.1} p99={:.1} max={:.1}",
        ages.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
}
