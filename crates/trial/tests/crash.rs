//! The part of the crash matrix that runs with every change: as many seeds as there are failpoints.
#![allow(clippy::panic, reason = "tests stop at the first surprise")]

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, ensure};
use pgferry_pipeline::failpoint;
use pgferry_testkit::databend::DatabendServer;
use pgferry_testkit::kafka::Broker;
use pgferry_trial::crash::{Matrix, Tally};

/// Rounds of other seeds for a failpoint at which no seed's run has ended: where a run is when it is held up depends on the machine, too.
const ROUNDS_MAX: u64 = 5;

/// kill -9 at every failpoint and at random moments of every phase, under load; then the same task file again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_failpoint_and_at_random_nothing_is_lost_or_doubled_or_left() -> Result<()> {
    let names = failpoint::NAMES.len() as u64;
    let mut tally = tried(0..names).await?;
    ensure!(tally.kills() > 2 * names, "too few kills to mean anything:\n{tally}");
    for round in 1..ROUNDS_MAX {
        for missing in tally.never_met() {
            let at = failpoint::NAMES.iter().position(|&name| name == missing).unwrap_or_default() as u64;
            let seed = round * names + at;
            tally.add(&tried(seed..seed + 1).await?);
        }
    }
    ensure!(tally.never_met().is_empty(), "no run has ended at {:?}\n{tally}", tally.never_met());
    Ok(())
}

/// The same on topics, which a consumer of committed records rebuilds. Fewer: every start asks the broker for its leases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_writes_topics_a_consumer_of_committed_records_rebuilds_every_table() -> Result<()> {
    if let Err(missing) = Broker::shared()? {
        use std::io::Write;
        // Not with a macro: those the test runner shows of failed tests only.
        return Ok(writeln!(std::io::stderr().lock(), "NOT RUN: the crash matrix on Kafka: {}", missing.0)?);
    }
    let tally = tried_on("kafka", 0..8).await?;
    ensure!(tally.kills() >= 8, "too few kills to mean anything:\n{tally}");
    Ok(())
}

/// The same into Databend, staged and merged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_stages_and_merges_nothing_is_lost_or_doubled_or_left() -> Result<()> {
    tried_on_databend("databend", 0..8).await
}

/// The same into histories, of which the present rows are made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_appends_every_change_nothing_is_lost_or_doubled_or_left() -> Result<()> {
    tried_on_databend("databend-history", 100..106).await
}

async fn tried_on_databend(kind: &str, seeds: Range<u64>) -> Result<()> {
    if let Err(missing) = DatabendServer::shared()? {
        use std::io::Write;
        let mut terminal = std::io::stderr().lock();
        return Ok(writeln!(terminal, "NOT RUN: the crash matrix on {kind}: {}", missing.0)?);
    }
    let count = seeds.end - seeds.start;
    let tally = tried_on(kind, seeds).await?;
    ensure!(tally.kills() >= count, "too few kills to mean anything:\n{tally}");
    Ok(())
}

async fn tried(seeds: Range<u64>) -> Result<Tally> {
    tried_on("duckdb", seeds).await
}

async fn tried_on(target: &str, seeds: Range<u64>) -> Result<Tally> {
    let matrix = Matrix {
        target: target.to_owned(),
        seeds,
        load: Duration::from_secs(1),
        parallel: 2,
        keep: std::env::temp_dir().join(format!("pgferry-crash-{target}-{}", std::process::id())),
    };
    let mut failures = Vec::new();
    let tally = matrix
        .run(std::future::pending(), |ended| {
            if let Some(failure) = &ended.failure {
                let kept = ended.kept.as_ref().map(|kept| kept.display().to_string()).unwrap_or_default();
                failures.push(format!("{failure:#}\nagain: {}\nkept: {kept}", matrix.again(ended.plan.seed)));
            }
        })
        .await?;
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(tally)
}
