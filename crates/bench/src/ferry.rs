//! The contestant: pgferry's source and engine, as the command line runs them, into the null target.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use clap::Args;
use pgferry_model::TaskId;
use pgferry_pipeline::{Monitor, Settings, SyncMode, run as run_task};
use pgferry_postgres::ConnectionConfig;
use pgferry_source_postgres::{Manage, PostgresSource, PostgresSourceConfig, Replication, SelectFrom};
use tokio_util::sync::CancellationToken;

use crate::null_target::NullTarget;
use crate::server::Place;

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
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    // As the program does.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_thp_disable(true)?;
    let mode = if options.slot.is_some() { SyncMode::CdcOnly } else { SyncMode::Snapshot };
    let usual = Settings::default();
    let settings = Settings {
        sync_mode: mode,
        workers: options.workers,
        until_caught_up: true,
        buffer_bytes_max: options.memory.unwrap_or(usual.buffer_bytes_max),
        ..usual
    };
    let config = PostgresSourceConfig {
        connection: ConnectionConfig::new(
            &options.place.host,
            options.place.port,
            &options.place.database,
            "postgres",
        ),
        task: "bench".into(),
        sync_mode: mode,
        include: options.include.clone(),
        exclude: Vec::new(),
        tables: Vec::new(),
        replication: Replication {
            publication: "bench".into(),
            slot: options.slot.clone().unwrap_or_default(),
            manage: Manage::Never,
            from: SelectFrom::Tables,
        },
        workers: options.workers,
        spool_directory: None,
        spool_memory_bytes_max: 16 << 20,
        spool_disk_bytes_max: u64::MAX,
    };
    let monitor = Arc::new(Monitor::default());
    let source = Arc::new(PostgresSource::new(config));
    let target = Arc::new(NullTarget::default());
    let task = TaskId::new("bench");
    let end =
        run_task(&task, source, target, &settings, Arc::clone(&monitor), CancellationToken::new()).await?;
    ensure!(end.set_aside.is_empty(), "tables were set aside: {:?}", end.set_aside);
    let rows: u64 = monitor.tables().iter().map(|table| table.rows_copied).sum();
    println!("{rows} rows, {} changes", monitor.changes.load(Ordering::Relaxed));
    Ok(())
}
