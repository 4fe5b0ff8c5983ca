//! The snapshot of one table: floors with binary and text on several connections, and pgferry with as many workers.

use std::collections::HashMap;
use std::env::current_exe;

use anyhow::Result;
use clap::Args;

use crate::data;
use crate::effort::Effort;
use crate::measure::measure;
use crate::report::Report;
use crate::server::Scene;

const METHOD: &str = "One table's snapshot: connections that send COPY and throw away what comes (the floor) beside pgferry's engine into a \
    null target, which encodes every row. `wide` has 20 columns of mixed types, `accounts` 4 narrow ones.";

/// Of the fastest reader that throws the rows away.
const TIMES_MIN: f64 = 0.9;
const CPU_SECONDS_MAX: f64 = 1.0;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) effort: Effort,
    /// Over TCP only, or also over a Unix socket
    #[arg(long)]
    tcp_only: bool,
}

/// COPY statements that together read a table, by ranges of its pages.
pub(crate) async fn copies(
    scene: &Scene,
    table: &str,
    connections: u64,
    format: &str,
) -> Result<Vec<String>> {
    let row = scene
        .database
        .client()
        .await?
        .query_one(
            "SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::int",
            &[&table],
        )
        .await?;
    let pages = u64::try_from(row.get::<_, i64>(0))?;
    let range = |at: u64| {
        let (low, high) = (pages * at / connections, pages * (at + 1) / connections);
        let high = if at + 1 == connections { String::new() } else { format!(" AND ctid < '({high},0)'") };
        format!("COPY (SELECT * FROM {table} WHERE ctid >= '({low},0)'{high}) TO STDOUT (FORMAT {format})")
    };
    Ok((0..connections).map(range).collect())
}

async fn contestants(scene: &Scene, table: &str, socket: bool) -> Result<Vec<(String, Vec<String>)>> {
    let way = if socket { "unix" } else { "tcp" };
    let mut found = Vec::new();
    for (format, connections) in [("binary", 1), ("binary", 2), ("binary", 4), ("text", 2)] {
        let mut arguments = vec!["drain".to_owned()];
        arguments.extend(scene.place(socket));
        for copy in copies(scene, table, connections, format).await? {
            arguments.extend(["--copy".to_owned(), copy]);
        }
        found.push((format!("floor {way} {format} x{connections}"), arguments));
    }
    for workers in ["1", "2", "4"] {
        let mut arguments = vec!["ferry".to_owned()];
        arguments.extend(scene.place(socket));
        arguments.extend(["--include", &format!("public.{table}"), "--workers", workers].map(str::to_owned));
        found.push((format!("pgferry {way} x{workers}"), arguments));
    }
    Ok(found)
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let (program, effort) = (current_exe()?, &options.effort);
    let (wide, narrow) = (effort.of(2_000_000), effort.of(5_000_000));
    let mut report = Report::new("snapshot", effort, METHOD);
    let scene = Scene::new(effort.major).await?;
    data::make_wide(&scene.database, wide).await?;
    data::make_accounts(&scene.database, narrow).await?;
    for (table, rows) in [("wide", wide), ("accounts", narrow)] {
        for socket in if options.tcp_only { vec![false] } else { vec![true, false] } {
            let contestants = contestants(&scene, table, socket).await?;
            let mut runs: HashMap<String, Vec<_>> = HashMap::new();
            for _ in 0..effort.rounds {
                for (name, arguments) in &contestants {
                    let run = measure(&program, arguments, scene.postmaster()?).await?;
                    runs.entry(name.clone()).or_default().push(run);
                }
            }
            let names: Vec<String> = contestants.into_iter().map(|(name, _)| name).collect();
            report.runs(&format!("snapshot of {table}"), "rows", rows, &names, &runs);
            let what = format!("{table} over {}", if socket { "a Unix socket" } else { "TCP" });
            report.faster(&format!("{what}, of the fastest floor"), &runs, "pgferry", "floor", TIMES_MIN);
            report.cpu_at_most(&what, &runs, "pgferry", rows, CPU_SECONDS_MAX);
        }
    }
    report.finish(effort)
}
