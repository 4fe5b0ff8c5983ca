//! Many tables beside one with as many rows: snapshot, changes, and how soon a task with many tables streams.

use std::env::current_exe;

use anyhow::Result;
use clap::Args;

use crate::cdc::drop_slot;
use crate::contestant::{Contestant, Folder, Runs, figures, note, remove};
use crate::data;
use crate::duckdb::Backlog;
use crate::effort::Effort;
use crate::measure::median;
use crate::report::Report;
use crate::server::Scene;
use crate::snapshot::copies;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) effort: Effort,
    /// How many tables
    #[arg(long, default_value_t = 1000)]
    tables: u64,
}

const METHOD: &str = "Tables of 5 columns, beside one table of the same columns with as many rows in all. Changes come in transactions of \
    1,000 updates: in one table, or in ten of the many. Into the null target and into a DuckDB file, its last checkpoint included.";
/// As many as pgferry has workers.
const FLOOR_CONNECTIONS: u64 = 4;
const RATIO_MAX: f64 = 1.2;
const START_SECONDS_MAX: f64 = 5.0;

struct Shape {
    tables: u64,
    rows: u64,
    changes: u64,
}

const MANY: &str = "public.many_*";
const SINGLE: &str = "public.single_*";

pub(crate) async fn run(options: &Options) -> Result<()> {
    let effort = &options.effort;
    let shape =
        Shape { tables: options.tables, rows: effort.of(2_000).max(100), changes: effort.of(500_000) };
    let mut report = Report::new("tables", effort, METHOD);
    let (scene, folder) = (Scene::new(effort.major).await?, Folder::new()?);
    data::make_many(&scene.database, "many", shape.tables, shape.rows).await?;
    data::make_many(&scene.database, "single", 1, shape.tables * shape.rows).await?;
    scene.database.execute("CREATE PUBLICATION bench FOR ALL TABLES").await?;
    snapshot(&scene, &folder, effort, &shape, &mut report).await?;
    changes(&scene, &folder, effort, &shape, &mut report).await?;
    start(&scene, &folder, effort, &shape, &mut report).await?;
    report.finish(effort)
}

fn compare(report: &mut Report, what: &str, runs: &Runs, one: &str, many: &str) {
    let wall = |name: &str| median(&runs[name]).0.wall.as_secs_f64();
    let times = wall(many) / wall(one);
    report.goal(
        format!("{what}: many tables cost at most {RATIO_MAX} x one"),
        format!("{times:.2} x"),
        times <= RATIO_MAX,
    );
}

async fn snapshot(
    scene: &Scene,
    folder: &Folder,
    effort: &Effort,
    shape: &Shape,
    report: &mut Report,
) -> Result<()> {
    let file = folder.file("snapshot.duckdb");
    let single = copies(scene, "single_1", FLOOR_CONNECTIONS, "binary").await?;
    let floors = [
        floor(scene, "floor, 1 table".to_owned(), single)?,
        floor(scene, format!("floor, {} tables", shape.tables), shares(shape.tables))?,
    ];
    for (target, more) in [("null", Vec::new()), ("DuckDB", vec!["--duckdb", &file])] {
        let names = [format!("{target}, 1 table"), format!("{target}, {} tables", shape.tables)];
        let mut contestants = vec![
            Contestant::ferry(scene, &names[0], SINGLE, &more)?,
            Contestant::ferry(scene, &names[1], MANY, &more)?,
        ];
        let mut shown = names.to_vec();
        if target == "null" {
            contestants.extend(floors.iter().cloned());
            shown.extend(floors.iter().map(|floor| floor.name.clone()));
        }
        let mut runs = Runs::new();
        for _ in 0..effort.rounds {
            for contestant in &contestants {
                remove(&file);
                note(&mut runs, &contestant.name, contestant.run(scene).await?);
            }
        }
        remove(&file);
        let title = format!("snapshot into {target}");
        report.runs(&title, "rows", shape.tables * shape.rows, &shown, &runs);
        compare(report, &title, &runs, &names[0], &names[1]);
        if target == "DuckDB" {
            parts(report, &names[1], &runs)?;
        }
    }
    Ok(())
}

/// COPY statements over several connections, read and thrown away.
fn floor(scene: &Scene, name: String, copies: Vec<String>) -> Result<Contestant> {
    let mut arguments = vec!["drain".to_owned()];
    arguments.extend(scene.place(false));
    arguments.extend(copies.into_iter().flat_map(|copy| ["--copy".to_owned(), copy]));
    Ok(Contestant { name, program: current_exe()?, arguments })
}

/// Each connection's share of the many tables, as one message.
fn shares(tables: u64) -> Vec<String> {
    let mut shares = vec![String::new(); FLOOR_CONNECTIONS as usize];
    for table in 0..tables {
        let copy = format!("COPY public.many_{} TO STDOUT (FORMAT binary); ", table + 1);
        shares[(table % FLOOR_CONNECTIONS) as usize].push_str(&copy);
    }
    shares
}

/// Where the time of many tables goes.
fn parts(report: &mut Report, name: &str, runs: &Runs) -> Result<()> {
    let mut shown = Vec::new();
    for (part, figure) in [
        ("preparing", "preparing"),
        ("starting the copies", "beginning"),
        ("loading small tables, all workers", "loading"),
        ("checkpoint and close", "closing"),
    ] {
        shown.push(format!("{part} {:.2} s", figures(&runs[name], figure)?.0));
    }
    report.note(&format!("{name}: {}.", shown.join(", ")));
    Ok(())
}

async fn changes(
    scene: &Scene,
    folder: &Folder,
    effort: &Effort,
    shape: &Shape,
    report: &mut Report,
) -> Result<()> {
    let client = scene.database.client().await?;
    let title = |target: &str| format!("changes into {target}");
    let (mut null, mut duckdb) = (Runs::new(), Runs::new());
    let names = ["1 table".to_owned(), format!("{} tables", shape.tables)];
    for (name, prefix, tables) in [(&names[0], "single", 1), (&names[1], "many", shape.tables)] {
        let include = if tables == 1 { SINGLE } else { MANY };
        let backlog = Backlog { scene, client: &client, folder, include };
        backlog.begin().await?;
        let rows = shape.tables * shape.rows / tables;
        data::change_many(&scene.database, prefix, tables, rows, shape.changes).await?;
        client.batch_execute("CHECKPOINT").await?;
        for _ in 0..effort.rounds {
            client.execute("SELECT pg_copy_logical_replication_slot('backlog', 'contestant')", &[]).await?;
            let contestant = Contestant::ferry(scene, name, include, &["--slot", "contestant"])?;
            note(&mut null, name, contestant.run(scene).await?);
            drop_slot(&client, "contestant").await?;
            backlog.read(name, &mut duckdb).await?;
        }
        backlog.end().await?;
    }
    for (target, runs) in [("null", &null), ("DuckDB", &duckdb)] {
        report.runs(&title(target), "changes", shape.changes, &names, runs);
        compare(report, &title(target), runs, &names[0], &names[1]);
    }
    Ok(())
}

/// From the start of a task whose tables are copied already until it follows the source's end.
async fn start(
    scene: &Scene,
    folder: &Folder,
    effort: &Effort,
    shape: &Shape,
    report: &mut Report,
) -> Result<()> {
    let client = scene.database.client().await?;
    let backlog = Backlog { scene, client: &client, folder, include: MANY };
    backlog.begin().await?;
    let (mut runs, name) = (Runs::new(), "start");
    for _ in 0..effort.rounds {
        backlog.read_with(name, &["--follow", "0"], &mut runs).await?;
    }
    backlog.end().await?;
    let (middle, low, high) = figures(&runs[name], "seconds")?;
    report.note(&format!(
        "Start of a task with {} copied tables, until it follows the source's end, DuckDB: {middle:.2} s [{low:.2}-{high:.2}].",
        shape.tables
    ));
    let what = format!("{} tables stream within {START_SECONDS_MAX} s of the start", shape.tables);
    report.goal(what, format!("{middle:.2} s"), middle <= START_SECONDS_MAX);
    Ok(())
}
