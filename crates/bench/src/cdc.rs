//! A backlog of changes, section by section: `pg_recvlogical` to `/dev/null` beside pgferry, each on its copy of one slot.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::contestant::{Contestant, Runs, note};
use crate::data::{self, SECTIONS, Section, scaled};
use crate::effort::Effort;
use crate::report::Report;
use crate::server::Scene;

const METHOD: &str = "A backlog of changes, section by section: `pg_recvlogical` to `/dev/null` (the floor) beside pgferry's engine into a \
    null target, which encodes every row. Each run reads a copy of one slot.";

/// How much faster than `pg_recvlogical`, both with protocol 1: what it can do on every server.
const TIMES_MIN_UNIX: f64 = 1.1;
const TIMES_MIN_TCP: f64 = 2.0;
const TIMES_MIN_LARGE: f64 = 1.4;
/// Of batched changes.
const CPU_SECONDS_MAX: f64 = 1.0;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) effort: Effort,
    /// Only this section; the others are written, not measured
    #[arg(long)]
    section: Option<String>,
    /// Over TCP only, or also over a Unix socket
    #[arg(long)]
    tcp_only: bool,
    /// The folder of `pg_recvlogical`
    #[arg(long, default_value = "/usr/lib/postgresql/15/bin")]
    programs: PathBuf,
}

fn floor(scene: &Scene, programs: &Path, socket: bool, version: u32, end: &str) -> Contestant {
    let way = if socket { "unix" } else { "tcp" };
    let port = scene.server.port().to_string();
    let mut arguments: Vec<String> =
        ["--start", "--no-loop", "--file=/dev/null", "--slot=contestant", "--username=postgres", "--host"]
            .map(str::to_owned)
            .to_vec();
    arguments.extend([
        scene.host(socket),
        format!("--port={port}"),
        format!("--dbname={}", scene.database.name()),
    ]);
    arguments.push(format!("--endpos={end}"));
    arguments
        .extend(["--option=publication_names=bench".to_owned(), format!("--option=proto_version={version}")]);
    if version > 1 {
        arguments.push("--option=streaming=on".to_owned());
    }
    Contestant {
        name: format!("floor {way} p{version}"),
        program: programs.join("pg_recvlogical"),
        arguments,
    }
}

fn ferry(scene: &Scene, socket: bool) -> Result<Contestant> {
    let name = format!("pgferry {}", if socket { "unix" } else { "tcp" });
    Contestant::ferry_over(scene, socket, &name, "public.*", &["--slot", "contestant"])
}

async fn section(scene: &Scene, options: &Options, section: &Section, report: &mut Report) -> Result<()> {
    let client = scene.database.client().await?;
    client.execute("SELECT pg_create_logical_replication_slot('backlog', 'pgoutput')", &[]).await?;
    data::write_section(&scene.database, section, options.effort.scale).await?;
    let end: String = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
    // What was written without waiting is flushed by the next transaction that waits.
    client.batch_execute("CHECKPOINT").await?;
    for socket in if options.tcp_only { vec![false] } else { vec![true, false] } {
        let contestants = [
            floor(scene, &options.programs, socket, 1, &end),
            floor(scene, &options.programs, socket, 2, &end),
            ferry(scene, socket)?,
        ];
        let mut runs = Runs::new();
        for _ in 0..options.effort.rounds {
            for contestant in &contestants {
                let copy = "SELECT pg_copy_logical_replication_slot('backlog', 'contestant')";
                client.execute(copy, &[]).await?;
                note(&mut runs, &contestant.name, contestant.run(scene).await?);
                drop_slot(&client, "contestant").await?;
            }
        }
        let names: Vec<String> = contestants.into_iter().map(|contestant| contestant.name).collect();
        let kind = if section.batched { "batched" } else { "one per transaction" };
        let (title, count) =
            (format!("{} ({kind})", section.name), scaled(section.changes, options.effort.scale));
        report.runs(&title, "changes", count, &names, &runs);
        goals(section, socket, &runs, count, report);
    }
    drop_slot(&client, "backlog").await
}

fn goals(section: &Section, socket: bool, runs: &Runs, count: u64, report: &mut Report) {
    let (way, floor) = if socket { ("a Unix socket", "floor unix p1") } else { ("TCP", "floor tcp p1") };
    let times = match (section.name, socket) {
        ("large-update", _) => TIMES_MIN_LARGE,
        (_, true) => TIMES_MIN_UNIX,
        (_, false) => TIMES_MIN_TCP,
    };
    let what = format!("{} over {way}", section.name);
    report.faster(&format!("{what}, of `pg_recvlogical`"), runs, "pgferry", floor, times);
    if section.batched {
        report.cpu_at_most(&what, runs, "pgferry", count, CPU_SECONDS_MAX);
    }
}

/// Drops a slot; its reader may need a moment to leave.
pub(crate) async fn drop_slot(client: &tokio_postgres::Client, slot: &str) -> Result<()> {
    for _ in 0..100 {
        let idle = "SELECT 1 FROM pg_replication_slots WHERE slot_name = $1 AND active";
        if client.query_opt(idle, &[&slot]).await?.is_none() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    client.execute("SELECT pg_drop_replication_slot($1)", &[&slot]).await?;
    Ok(())
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let mut report = Report::new("cdc", &options.effort, METHOD);
    let scene = Scene::new(options.effort.major).await?;
    data::make_backlog_tables(&scene.database, options.effort.scale).await?;
    for wanted in &SECTIONS {
        if options.section.as_deref().is_none_or(|name| name == wanted.name) {
            section(&scene, options, wanted, &mut report).await?;
        } else {
            data::write_section(&scene.database, wanted, options.effort.scale).await?;
        }
    }
    report.finish(&options.effort)
}
