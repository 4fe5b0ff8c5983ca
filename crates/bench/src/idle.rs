//! What an idle source costs: CPU of pgferry, writes to the target's file, and whether the slot moves on while others write.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
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
    /// Seconds of each phase
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

const METHOD: &str = "pgferry follows a source in which nothing that it carries changes, into a DuckDB file: first nobody writes, then others write \
    64 MB of log of tables that it does not carry. CPU and bytes written are the process's own, from `/proc`; a write of the file is \
    a change of the size or time of the file or its log, looked at every 50 ms. Each phase is measured once.";
const CPU_PERCENT_MAX: f64 = 0.5;

/// What a phase cost.
struct Phase {
    cpu_percent: f64,
    written_bytes: u64,
    file_writes: u64,
    slot_moved_bytes: i64,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let effort = &options.effort;
    let mut report = Report::new("idle", effort, METHOD);
    let (scene, folder) = (Scene::new(effort.major).await?, Folder::new()?);
    data::make_accounts(&scene.database, effort.of(100_000)).await?;
    scene
        .database
        .execute("CREATE TABLE others (id bigint, note text); CREATE PUBLICATION bench FOR TABLE accounts")
        .await?;
    let client = scene.database.client().await?;
    client.execute("SELECT pg_create_logical_replication_slot('contestant', 'pgoutput')", &[]).await?;
    let (file, follow) = (folder.file("idle.duckdb"), (options.seconds * 2 + 30).to_string());
    let more = ["--slot", "contestant", "--copy-first", "--duckdb", &file, "--follow", &follow];
    let running = Running::start(&Contestant::ferry(&scene, "pgferry", "public.accounts", &more)?)?;
    let mut running = running.until("streaming").await?;
    // What the start left behind is settled.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let silent = phase(&mut running, &client, &file, options.seconds, false).await?;
    let others = phase(&mut running, &client, &file, options.seconds, true).await?;
    running.end().await?;
    let heads = ["", "CPU %", "written kB", "writes of the file", "slot moved MB"];
    let line = |name: &str, phase: &Phase| {
        vec![
            name.to_owned(),
            format!("{:.2}", phase.cpu_percent),
            format!("{}", phase.written_bytes / 1000),
            phase.file_writes.to_string(),
            format!("{:.1}", phase.slot_moved_bytes as f64 / 1e6),
        ]
    };
    let lines =
        [heads.map(str::to_owned).to_vec(), line("nobody writes", &silent), line("others write", &others)];
    report.table(&format!("{} s each", options.seconds), &lines);
    let cpu = silent.cpu_percent;
    report.goal(
        format!("idle: at most {CPU_PERCENT_MAX} % of a CPU"),
        format!("{cpu:.2} %"),
        cpu <= CPU_PERCENT_MAX,
    );
    let moved = others.slot_moved_bytes;
    report.goal("the slot moves on while others write", format!("{:.1} MB", moved as f64 / 1e6), moved > 0);
    report.finish(effort)
}

async fn confirmed(client: &Client) -> Result<i64> {
    let sql = "SELECT (confirmed_flush_lsn - '0/0'::pg_lsn)::bigint FROM pg_replication_slots WHERE slot_name = 'contestant'";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

async fn phase(
    running: &mut Running,
    client: &Client,
    file: &str,
    seconds: u64,
    others: bool,
) -> Result<Phase> {
    let (cpu, written, slot) = (running.cpu_seconds()?, running.written_bytes()?, confirmed(client).await?);
    let (mut file_writes, mut stamp) = (0, stamp(file));
    for tick in 0..seconds * 20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        // 64 MB in all, a 40th of it at a time.
        if others && tick % (seconds / 2).max(1) == 0 {
            let insert =
                "INSERT INTO others SELECT i, repeat(md5(i::text), 4) FROM generate_series(1, 8000) AS i";
            client.batch_execute(insert).await?;
        }
        let now = self::stamp(file);
        file_writes += u64::from(now != stamp);
        stamp = now;
    }
    Ok(Phase {
        cpu_percent: (running.cpu_seconds()? - cpu) / seconds as f64 * 100.0,
        written_bytes: running.written_bytes()? - written,
        file_writes,
        slot_moved_bytes: confirmed(client).await? - slot,
    })
}

/// Size and time of the file and of its log.
fn stamp(file: &str) -> Vec<Option<(u64, std::time::SystemTime)>> {
    let of = |path: String| {
        let metadata = fs::metadata(path).context("not there").ok()?;
        Some((metadata.len(), metadata.modified().ok()?))
    };
    vec![of(file.to_owned()), of(format!("{file}.wal"))]
}
