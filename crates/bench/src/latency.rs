//! From the commit in the source until it is durable and visible in DuckDB, at a steady load.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_postgres::Client;

use crate::contestant::{Contestant, Folder};
use crate::data;
use crate::effort::Effort;
use crate::report::Report;
use crate::running::Running;
use crate::server::Scene;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) effort: Effort,
    /// Seconds of load per round
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Changes per second, one in a transaction
    #[arg(long, default_value_t = 1000)]
    rate: u64,
}

const METHOD: &str = "Single-row updates, one in a transaction, at a steady rate over 8 connections into a table of a \
    million rows, into a DuckDB file with the default sync_interval of 1 s. A transaction's age is taken when the delivery that holds \
    it is committed in DuckDB, durable and visible to every reader, less its commit time in the source; both on one clock. Commits in \
    the source wait for its disk, as they do by default.";
const SYNC_INTERVAL_MS: f64 = 1000.0;
const BEYOND_MS: f64 = 50.0;
/// Connections that share the load: one alone waits for the disk too long to keep the rate.
pub(crate) const CLIENTS: u32 = 8;

pub(crate) async fn run(options: &Options) -> Result<()> {
    let effort = &options.effort;
    let mut report = Report::new("latency", effort, METHOD);
    let (scene, folder, rows) = (Scene::new(effort.major).await?, Folder::new()?, effort.of(1_000_000));
    data::make_accounts(&scene.database, rows).await?;
    scene.database.execute("CREATE PUBLICATION bench FOR TABLE accounts").await?;
    let client = scene.database.client().await?;
    let connecting = (0..CLIENTS).map(|_| scene.database.client());
    let clients = futures_util::future::try_join_all(connecting).await?;
    let heads = ["round", "transactions", "p50 ms", "p90 ms", "p99 ms", "most ms", "CPU %"];
    let mut lines = vec![heads.map(str::to_owned).to_vec()];
    let mut all = Vec::new();
    client.execute("SELECT pg_create_logical_replication_slot('contestant', 'pgoutput')", &[]).await?;
    for round in 1..=effort.rounds {
        let (file, follow) = (folder.file("latency.duckdb"), (options.seconds + 3).to_string());
        let more = ["--slot", "contestant", "--copy-first", "--duckdb", &file, "--follow", &follow];
        let running = Running::start(&Contestant::ferry(&scene, "pgferry", "public.accounts", &more)?)?;
        let running = running.until("streaming").await?;
        let cpu = running.cpu_seconds()?;
        load(&clients, rows, options.rate, options.seconds).await?;
        let percent = (running.cpu_seconds()? - cpu) / options.seconds as f64 * 100.0;
        let said = running.end().await?;
        let figure = |name: &str| {
            let figures = said.split_whitespace().filter_map(|word| word.split_once('='));
            figures.filter(|(known, _)| *known == name).find_map(|(_, text)| text.parse::<f64>().ok())
        };
        let mut line = vec![round.to_string()];
        for (name, digits) in [("transactions", 0), ("p50", 0), ("p90", 0), ("p99", 0), ("max", 0)] {
            line.push(format!("{:.digits$}", figure(name).unwrap_or(f64::NAN)));
        }
        line.push(format!("{percent:.1}"));
        lines.push(line);
        all.push(figure("p99").unwrap_or(f64::NAN));
    }
    report.table(&format!("{} changes/s for {} s", options.rate, options.seconds), &lines);
    all.sort_by(f64::total_cmp);
    let (p99, max) = (all[(all.len() - 1) / 2], SYNC_INTERVAL_MS + BEYOND_MS);
    report.goal(
        format!("commit to visible: p99 at most sync_interval + {BEYOND_MS} ms"),
        format!("{p99:.0} ms"),
        p99 <= max,
    );
    report.finish(effort)
}

/// Commits wait for the disk, as they do by default: what the server has not flushed is in no stream yet.
pub(crate) async fn load(clients: &[Client], rows: u64, rate: u64, seconds: u64) -> Result<()> {
    let count = clients.len() as u64;
    let writers = clients.iter().zip(0..).map(|(client, first)| async move {
        client.batch_execute("SET synchronous_commit = on").await?;
        let update = "UPDATE accounts SET abalance = abalance + 1 WHERE aid = $1";
        let statement = client.prepare(update).await?;
        let every = Duration::from_secs(count) / u32::try_from(rate)?;
        let mut ticks = interval_at(Instant::now() + every * first / CLIENTS, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for change in (u64::from(first)..seconds * rate).step_by(clients.len()) {
            ticks.tick().await;
            let key = i32::try_from(1 + change * 7919 % rows)?;
            client.execute(&statement, &[&key]).await?;
        }
        anyhow::Ok(())
    });
    futures_util::future::try_join_all(writers).await?;
    Ok(())
}
