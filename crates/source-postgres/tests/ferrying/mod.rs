//! What the tests of this folder share: a source's configuration, a run into the target in memory, cures that are pasted.
#![allow(dead_code, reason = "each test program uses its part of it")]

pub(crate) mod meddling;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgferry_model::{Cure, Error, Finding, Outcome, Restart, TaskId};
use pgferry_pipeline::{Inspect, Monitor, RunEnd, Settings, Source, SyncMode, run};
use pgferry_postgres::ConnectionConfig;
use pgferry_source_postgres::{Manage, PostgresSource, PostgresSourceConfig, Replication, SelectFrom};
use pgferry_testkit::Database;
use pgferry_testkit::memory_target::MemoryTarget;
use pgferry_testkit::server::StopMode;
use tokio_util::sync::CancellationToken;

pub(crate) fn config(database: &Database) -> PostgresSourceConfig {
    PostgresSourceConfig {
        connection: ConnectionConfig::new("127.0.0.1", database.server().port(), database.name(), "postgres"),
        task: "test".into(),
        sync_mode: SyncMode::SnapshotCdc,
        include: vec!["*.*".into()],
        exclude: Vec::new(),
        tables: Vec::new(),
        replication: Replication {
            publication: "pgferry_test".into(),
            slot: format!("pgferry_{}", database.name()),
            manage: Manage::Create,
            from: SelectFrom::Tables,
        },
        workers: 2,
        spool_directory: None,
        spool_memory_bytes_max: 256 << 10,
        spool_disk_bytes_max: u64::MAX,
    }
}

pub(crate) async fn ferry(
    config: &PostgresSourceConfig,
    target: &MemoryTarget,
) -> pgferry_model::Result<RunEnd> {
    ferry_from(Arc::new(PostgresSource::new(config.clone())), config.sync_mode, 2, target).await
}

/// A run from a source of the test's own.
#[expect(clippy::expect_used, reason = "a test that hangs has failed")]
pub(crate) async fn ferry_from(
    source: Arc<dyn Source>,
    sync_mode: SyncMode,
    workers: usize,
    target: &MemoryTarget,
) -> pgferry_model::Result<RunEnd> {
    let settings = Settings {
        sync_mode,
        workers,
        sync_interval: Duration::from_millis(50),
        until_caught_up: true,
        retry_budget: Duration::from_secs(2),
        ..Settings::default()
    };
    let (task, monitor) = (TaskId::new("test"), Arc::new(Monitor::default()));
    let running =
        run(&task, source, Arc::new(target.reopened()), &settings, monitor, CancellationToken::new());
    tokio::time::timeout(Duration::from_secs(60), running).await.expect("the run takes too long")
}

pub(crate) async fn check(config: &PostgresSourceConfig) -> Result<Vec<Finding>> {
    Ok(PostgresSource::new(config.clone()).check().await?)
}

/// The findings that did not pass, as `check code`.
pub(crate) fn troubles(findings: &[Finding]) -> Vec<String> {
    let bad = findings.iter().filter(|finding| finding.outcome != Outcome::Passed);
    bad.map(|finding| format!("{} {}", finding.check, finding.code.map_or("-", |code| code.as_str())))
        .collect()
}

pub(crate) fn finding<'a>(findings: &'a [Finding], check: &str) -> Result<&'a Finding> {
    let found = findings.iter().find(|finding| finding.check == check && finding.outcome != Outcome::Passed);
    found.with_context(|| format!("no trouble of {check} in {:?}", troubles(findings)))
}

/// An error as the catalogue wants it: code, cause, cure. Returns the cure.
pub(crate) fn told(error: &Error, code: &str) -> Result<Cure> {
    let cause = error.cause().unwrap_or_default();
    ensure!(error.code().as_str() == code, "{} instead of {code}: {error}: {cause}", error.code());
    ensure!(!cause.is_empty(), "{code} says no cause");
    let cure = error.cure().with_context(|| format!("{code} has no cure"))?;
    ensure!(!cure.advice.is_empty(), "{code} gives no advice");
    Ok(cure.clone())
}

/// A finding likewise.
pub(crate) fn found(finding: &Finding, code: &str) -> Result<Cure> {
    ensure!(finding.code.map(|code| code.as_str()) == Some(code), "{finding:?} instead of {code}");
    ensure!(finding.cause.is_some(), "{finding:?} says no cause");
    finding.cure.clone().with_context(|| format!("{code} has no cure"))
}

/// Runs the cure's statements as they stand, and restarts the server where the cure says so.
pub(crate) async fn paste(database: &Database, cure: &Cure) -> Result<()> {
    ensure!(!cure.sql.is_empty(), "nothing to paste: {cure:?}");
    for statement in &cure.sql {
        database.execute(statement).await.with_context(|| format!("pasted: {statement}"))?;
    }
    match cure.restart {
        Restart::Server => database.server().restart(StopMode::Fast).await,
        Restart::Reload => database.server().reload().await,
        Restart::No => Ok(()),
    }
}

/// A run that has to fail.
pub(crate) async fn failing(config: &PostgresSourceConfig, target: &MemoryTarget) -> Result<Error> {
    match ferry(config, target).await {
        Ok(end) => anyhow::bail!("the run succeeded: {end:?}"),
        Err(failure) => Ok(failure),
    }
}

/// A run that has to end with every table carried.
pub(crate) async fn succeeding(config: &PostgresSourceConfig, target: &MemoryTarget) -> Result<()> {
    let end = ferry(config, target).await.map_err(|failure| {
        anyhow::anyhow!("{}: {failure}: {}", failure.code(), failure.cause().unwrap_or_default())
    })?;
    ensure!(end.set_aside.is_empty(), "set aside: {:?}", end.set_aside);
    Ok(())
}

/// A table's rows in the target, each as its values in text form, sorted.
pub(crate) async fn rows(
    config: &PostgresSourceConfig,
    target: &MemoryTarget,
    name: &str,
) -> Result<Vec<Vec<Option<String>>>> {
    let tables = PostgresSource::new(config.clone()).tables().await?;
    let table = tables.iter().find(|table| table.name.to_string() == name);
    let table = table.with_context(|| format!("{name} is not among {tables:?}"))?;
    let mut rows = Vec::new();
    target
        .rows(table, None, &mut |row| {
            rows.push(row);
            Ok(())
        })
        .await?;
    rows.sort();
    Ok(rows)
}

/// A run that goes on until it is stopped.
pub(crate) struct Live {
    running: tokio::task::JoinHandle<pgferry_model::Result<RunEnd>>,
    stop: CancellationToken,
    pub(crate) monitor: Arc<Monitor>,
}

impl Live {
    /// `budget_s`: how long it retries without progress.
    pub(crate) fn start(config: &PostgresSourceConfig, target: &MemoryTarget, budget_s: u64) -> Live {
        Live::from(Arc::new(PostgresSource::new(config.clone())), config.sync_mode, target, budget_s)
    }

    pub(crate) fn from(
        source: Arc<dyn Source>,
        sync_mode: SyncMode,
        target: &MemoryTarget,
        budget_s: u64,
    ) -> Live {
        Live::over(source, sync_mode, &target.reopened(), budget_s)
    }

    /// Over this very handle, with the faults that it has been given.
    pub(crate) fn over(
        source: Arc<dyn Source>,
        sync_mode: SyncMode,
        target: &MemoryTarget,
        budget_s: u64,
    ) -> Live {
        let settings = Settings {
            sync_mode,
            workers: 2,
            sync_interval: Duration::from_millis(50),
            retry_budget: Duration::from_secs(budget_s),
            retry_wait_max: Duration::from_millis(500),
            ..Settings::default()
        };
        let (stop, monitor, target) =
            (CancellationToken::new(), Arc::new(Monitor::default()), Arc::new(target.clone()));
        let running = tokio::spawn({
            let (stop, monitor) = (stop.clone(), Arc::clone(&monitor));
            async move { run(&TaskId::new("test"), source, target, &settings, monitor, stop).await }
        });
        Live { running, stop, monitor }
    }

    /// Waits, at most half a minute and not longer than the run lasts.
    pub(crate) async fn until<F: Future<Output = Result<bool>>>(
        &self,
        reached: impl Fn() -> F,
    ) -> Result<()> {
        for _ in 0..600 {
            if reached().await.unwrap_or(false) {
                return Ok(());
            }
            ensure!(!self.running.is_finished(), "the run has ended");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        reached().await?;
        anyhow::bail!("not reached in time; the last error of the run: {:?}", self.monitor.last_error())
    }

    /// Drops the run where it stands, and its connections with it.
    pub(crate) async fn abandon(self) {
        self.running.abort();
        let _ended = self.running.await;
    }

    pub(crate) async fn stop(self) -> Result<RunEnd> {
        self.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(40), self.running).await;
        ended.context("the run does not stop")??.map_err(|failure| {
            anyhow::anyhow!("{}: {failure}: {}", failure.code(), failure.cause().unwrap_or_default())
        })
    }
}
