//! Into DuckDB: a table's snapshot beside DuckDB's own extension for PostgreSQL, a backlog by section, and one delivery of 100,000 changes.
//!
//! ```text
//!   base file: copy of the tables ──┐
//!   slot at the section's start ────┴─ copied for each run ──> pgferry ──> file, checkpoint
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use tokio_postgres::Client;

use crate::cdc::drop_slot;
use crate::contestant::{Contestant, Folder, Runs, figures, note, remove};
use crate::data::{self, SECTIONS, Section, scaled};
use crate::effort::Effort;
use crate::measure::median;
use crate::report::Report;
use crate::server::Scene;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) effort: Effort,
    /// Only this part: snapshot, cdc or delivery
    #[arg(long)]
    part: Option<String>,
}

const METHOD: &str = "Into a DuckDB file, its last checkpoint included, with DuckDB's memory_limit at 1 GB on both sides. Snapshot of `wide`: \
    pgferry beside DuckDB's own postgres extension (`CREATE TABLE AS`, PyPI `duckdb-extension-postgres-scanner`), over TCP. Changes: \
    each run starts from a copy of one file and one slot, so the tables hold the rows that are updated and deleted.";

/// How much faster than DuckDB's own extension a snapshot has to be.
const TIMES_MIN: f64 = 1.3;
/// Over the whole backlog.
const CHANGES_PER_SECOND_MIN: f64 = 100_000.0;
/// What a delivery of 100,000 changes may take, with its checkpoint.
const DELIVERY_SECONDS_MAX: f64 = 0.25;

pub(crate) async fn run(options: &Options) -> Result<()> {
    let mut report = Report::new("duckdb", &options.effort, METHOD);
    let wanted = |part: &str| options.part.as_deref().is_none_or(|only| only == part);
    if wanted("snapshot") {
        snapshot(&options.effort, &mut report).await?;
    }
    if wanted("cdc") {
        changes(&options.effort, &mut report).await?;
    }
    if wanted("delivery") {
        delivery(&options.effort, &mut report).await?;
    }
    report.finish(&options.effort)
}

/// Where `scripts/setup --bench` put the Python packages.
fn peer() -> Option<PathBuf> {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cache = Command::new(repo.join("scripts/cache-dir")).output().ok()?;
    let folder = Path::new(String::from_utf8_lossy(&cache.stdout).trim()).join("duckdb-peer-1.5.5");
    folder.is_dir().then_some(folder)
}

async fn snapshot(effort: &Effort, report: &mut Report) -> Result<()> {
    let (scene, folder, rows) = (Scene::new(effort.major).await?, Folder::new()?, effort.of(2_000_000));
    data::make_wide(&scene.database, rows).await?;
    let file = folder.file("snapshot.duckdb");
    let mut contestants = Vec::new();
    match peer() {
        Some(packages) => contestants.push(peer_contestant(&scene, &packages, &file)),
        None => report.note("DuckDB's own extension: NOT RUN: `scripts/setup --bench` has not installed it."),
    }
    for workers in ["1", "2", "4"] {
        let more = ["--workers", workers, "--duckdb", &file];
        contestants.push(Contestant::ferry(&scene, &format!("pgferry x{workers}"), "public.wide", &more)?);
    }
    let mut runs = Runs::new();
    for _ in 0..effort.rounds {
        for contestant in &contestants {
            remove(&file);
            note(&mut runs, &contestant.name, contestant.run(&scene).await?);
        }
    }
    remove(&file);
    let names: Vec<String> = contestants.into_iter().map(|contestant| contestant.name).collect();
    report.runs("snapshot of wide into DuckDB", "rows", rows, &names, &runs);
    let what = "snapshot, of DuckDB's own extension";
    report.faster(what, &runs, "pgferry", "DuckDB's", TIMES_MIN);
    Ok(())
}

fn peer_contestant(scene: &Scene, packages: &Path, file: &str) -> Contestant {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peer/duckdb_scan.py");
    let port = scene.server.port().to_string();
    let arguments = [
        &format!("PYTHONPATH={}", packages.display()),
        "python3",
        &script.display().to_string(),
        &scene.host(false),
        &port,
        scene.database.name(),
        "wide",
        file,
    ];
    Contestant {
        name: "DuckDB's postgres extension".to_owned(),
        program: "/usr/bin/env".into(),
        arguments: arguments.map(str::to_owned).to_vec(),
    }
}

/// A backlog that is read again and again, each time into a copy of one file.
pub(crate) struct Backlog<'a> {
    pub(crate) scene: &'a Scene,
    pub(crate) client: &'a Client,
    pub(crate) folder: &'a Folder,
    pub(crate) include: &'a str,
}

impl Backlog<'_> {
    /// Copies the tables, as they are now, into the base file; changes from now on are the backlog.
    pub(crate) async fn begin(&self) -> Result<()> {
        self.client.execute("SELECT pg_create_logical_replication_slot('backlog', 'pgoutput')", &[]).await?;
        let base = self.folder.file("base.duckdb");
        remove(&base);
        let more = ["--slot", "backlog", "--copy-first", "--duckdb", &base];
        Contestant::ferry(self.scene, "base", self.include, &more)?.run(self.scene).await?;
        Ok(())
    }

    /// Reads the backlog once.
    pub(crate) async fn read(&self, name: &str, runs: &mut Runs) -> Result<()> {
        self.read_with(name, &[], runs).await
    }

    pub(crate) async fn read_with(&self, name: &str, more: &[&str], runs: &mut Runs) -> Result<()> {
        let (base, file) = (self.folder.file("base.duckdb"), self.folder.file("run.duckdb"));
        std::fs::copy(&base, &file).context("copying the base file")?;
        let copy = "SELECT pg_copy_logical_replication_slot('backlog', 'contestant')";
        self.client.execute(copy, &[]).await?;
        let reading = [&["--slot", "contestant", "--copy-first", "--duckdb", file.as_str()], more].concat();
        let contestant = Contestant::ferry(self.scene, name, self.include, &reading)?;
        note(runs, name, contestant.run(self.scene).await?);
        drop_slot(self.client, "contestant").await?;
        remove(&file);
        Ok(())
    }

    pub(crate) async fn end(&self) -> Result<()> {
        remove(&self.folder.file("base.duckdb"));
        drop_slot(self.client, "backlog").await
    }
}

async fn changes(effort: &Effort, report: &mut Report) -> Result<()> {
    let (scene, folder) = (Scene::new(effort.major).await?, Folder::new()?);
    data::make_backlog_tables(&scene.database, effort.scale).await?;
    let client = scene.database.client().await?;
    let backlog = Backlog { scene: &scene, client: &client, folder: &folder, include: "public.*" };
    let heads =
        ["section", "changes", "wall s [min-max]", "k/s", "own CPU s/M", "server CPU s/M", "peak MiB"];
    let mut lines = vec![heads.map(str::to_owned).to_vec()];
    let (mut all_changes, mut all_seconds) = (0, 0.0);
    for section in &SECTIONS {
        backlog.begin().await?;
        data::write_section(&scene.database, section, effort.scale).await?;
        client.batch_execute("CHECKPOINT").await?;
        let mut runs = Runs::new();
        for _ in 0..effort.rounds {
            backlog.read(section.name, &mut runs).await?;
        }
        backlog.end().await?;
        let (line, seconds) = section_line(section, effort, &runs);
        lines.push(line);
        all_changes += scaled(section.changes, effort.scale);
        all_seconds += seconds;
    }
    let per_second = all_changes as f64 / all_seconds;
    let rate = format!("{:.0}", per_second / 1e3);
    let none = String::new;
    lines.push(vec![
        "all".to_owned(),
        all_changes.to_string(),
        format!("{all_seconds:.2}"),
        rate,
        none(),
        none(),
        none(),
    ]);
    report.table("changes into DuckDB", &lines);
    report.goal(
        format!("changes: at least {CHANGES_PER_SECOND_MIN:.0} a second over the backlog"),
        format!("{per_second:.0}"),
        per_second >= CHANGES_PER_SECOND_MIN,
    );
    Ok(())
}

fn section_line(section: &Section, effort: &Effort, runs: &Runs) -> (Vec<String>, f64) {
    let (run, low, high) = median(&runs[section.name]);
    let (changes, seconds) = (scaled(section.changes, effort.scale), run.wall.as_secs_f64());
    let per_million = |cpu: std::time::Duration| format!("{:.2}", cpu.as_secs_f64() * 1e6 / changes as f64);
    let line = vec![
        section.name.to_owned(),
        changes.to_string(),
        format!("{seconds:.2} [{:.2}-{:.2}]", low.as_secs_f64(), high.as_secs_f64()),
        format!("{:.0}", changes as f64 / seconds / 1e3),
        per_million(run.own_cpu),
        per_million(run.server_cpu),
        (run.peak_kib >> 10).to_string(),
    ];
    (line, seconds)
}

async fn delivery(effort: &Effort, report: &mut Report) -> Result<()> {
    let (scene, folder) = (Scene::new(effort.major).await?, Folder::new()?);
    let (rows, changes) = (effort.of(5_000_000), effort.of(100_000));
    data::make_ledger(&scene.database, rows).await?;
    let client = scene.database.client().await?;
    let backlog = Backlog { scene: &scene, client: &client, folder: &folder, include: "public.ledger" };
    backlog.begin().await?;
    data::change_ledger(&scene.database, rows, changes).await?;
    let (mut runs, name) = (Runs::new(), "delivery");
    for _ in 0..effort.rounds {
        backlog.read(name, &mut runs).await?;
    }
    backlog.end().await?;
    let shown = |figure: &str| -> Result<String> {
        let (middle, low, high) = figures(&runs[name], figure)?;
        Ok(format!("{middle:.3} [{low:.3}-{high:.3}]"))
    };
    let (run, ..) = median(&runs[name]);
    let line = vec![
        shown("applying")?,
        shown("closing")?,
        format!("{:.2}", run.wall.as_secs_f64()),
        format!("{:.2}", run.own_cpu.as_secs_f64()),
        (run.peak_kib >> 10).to_string(),
    ];
    let heads = ["apply, with commit s", "checkpoint and close s", "process s", "own CPU s", "peak MiB"];
    let title = format!("one transaction of {changes} changes (80/10/10, scattered keys) into {rows} rows");
    report.table(&title, &[heads.map(str::to_owned).to_vec(), line]);
    let total = figures(&runs[name], "applying")?.0 + figures(&runs[name], "closing")?.0;
    report.goal(
        format!(
            "a delivery of {changes} changes durable, with its checkpoint, within {DELIVERY_SECONDS_MAX} s"
        ),
        format!("{total:.3} s"),
        total <= DELIVERY_SECONDS_MAX,
    );
    Ok(())
}
