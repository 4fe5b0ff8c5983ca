//! `pgferry demo`: a server, a shop, customers; a snapshot, then half a minute of changes; and the proof that nothing is missing.
//!
//! It leaves nothing behind but the DuckDB file, also after Ctrl-C.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgferry_model::{Cure, Error, Position};
use pgferry_pipeline::error::worker_lost;
use pgferry_pipeline::{Monitor, Phase, RunEnd};
use pgferry_task::build::{Built, build};
use pgferry_task::demo::{self, DemoServer, FILE_EXISTS, NOT_CAUGHT_UP, Proof, Traffic};
use pgferry_task::spec::{Spec, TaskSpec};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Ended;
use super::preview::shown;
use crate::arguments::DemoArguments;
use crate::errors::{FILE_UNWRITABLE, Failure};
use crate::exit_code::ExitCode;
use crate::figures::{bytes, count, duration, table};
use crate::output::Output;
use crate::place::shell_path;
use crate::progress::{Progress, Shown};
use crate::signals::stop_on_signals;

const CATCH_UP_LIMIT: Duration = Duration::from_secs(120);
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);
const SELLERS: usize = 3;

struct Ferry {
    monitor: Arc<Monitor>,
    stop: CancellationToken,
    run: JoinHandle<Result<RunEnd, Error>>,
}

/// What was carried.
struct Carried {
    rows: u64,
    changes: u64,
    transactions: u64,
    position: Position,
}

pub(super) async fn run(arguments: &DemoArguments, output: &Arc<Output>) -> Ended {
    let file = std::path::absolute(&arguments.output).unwrap_or_else(|_| arguments.output.clone());
    make_room(&file, output)?;
    step(output, 1, "start a PostgreSQL server that lives as long as this demo");
    let begun = Instant::now();
    let server = DemoServer::start().await?;
    let stopper = server.stopper();
    let stop = stop_on_signals(output, move || stopper.stop())?;
    done(output, begun, &format!("PostgreSQL {}", server.version()));
    step(output, 2, "fill a shop: customers, products, orders, order items, carts");
    let begun = Instant::now();
    let rows = demo::fill(&server.connection("shop")).await?;
    done(output, begun, &format!("{} rows", count(rows)));
    let spec = demo::spec(&server, &file)?;
    let Some(carried) = Box::pin(carry(arguments, output, &server, &spec, &stop)).await? else {
        output.data("stopped; the server is gone, the DuckDB file stays as it is");
        return Ok(ExitCode::Success);
    };
    step(output, 6, "compare every row on both sides");
    let begun = Instant::now();
    let proof = demo::prove(&server, &spec, SELLERS).await?;
    let equal = proof.tables.iter().all(|(_, sides)| sides.equal());
    done(output, begun, if equal { "the copy is exact" } else { "THE COPY DIFFERS" });
    output.data(&proof_text(&proof, &arguments.output, output));
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap_or_default();
    if equal {
        output.data(&next_steps(&arguments.output));
    }
    let summary = if equal { "source and target hold the same rows" } else { "source and target differ" };
    output.result(equal, summary, &result_json(&carried, &proof));
    Ok(if equal { ExitCode::Success } else { ExitCode::ChecksFailed })
}

/// Runs the task while customers buy, then lets both come to rest. `None` when it was asked to stop.
async fn carry(
    arguments: &DemoArguments,
    output: &Arc<Output>,
    server: &DemoServer,
    spec: &Spec,
    stop: &CancellationToken,
) -> Result<Option<Carried>, Failure> {
    let [task] = spec.tasks.as_slice() else { return Ok(None) };
    step(output, 3, "carry it into DuckDB, while two customers buy without a pause");
    let begun = Instant::now();
    let traffic = Traffic::start(&server.connection("shop"));
    let ferry = start_ferry(spec, task, stop, false).await?;
    let progress =
        Progress::start(output, vec![Shown { task: "demo".to_owned(), monitor: Arc::clone(&ferry.monitor) }]);
    let streaming = || matches!(ferry.monitor.phase(), Phase::CatchingUp | Phase::Streaming);
    if !wait(&ferry, stop, SNAPSHOT_LIMIT, streaming).await {
        return end_early(ferry, traffic, progress, stop).await;
    }
    let rows = ferry.monitor.tables().iter().map(|table| table.rows_copied).sum();
    done(output, begun, &format!("{} rows in one consistent snapshot", count(rows)));
    step(output, 4, &format!("follow the changes for {} s", arguments.seconds));
    let begun = Instant::now();
    wait(&ferry, stop, Duration::from_secs(arguments.seconds), || false).await;
    if stop.is_cancelled() || ferry.run.is_finished() {
        return end_early(ferry, traffic, progress, stop).await;
    }
    let transactions = traffic.stop().await?;
    done(output, begun, &format!("{} transactions at the source", count(transactions)));
    step(output, 5, "stop pgferry, start it again: it goes on where it was, up to the last change");
    let begun = Instant::now();
    let followed = changes(&ferry.monitor);
    drop(progress);
    ferry.stop.cancel();
    finish(ferry.run).await?;
    let Some(end) = catch_up(output, spec, task, stop).await? else { return Ok(None) };
    let changes = followed + end.1;
    done(output, begun, &format!("{} changes arrived, up to {}", count(changes), end.0));
    Ok(Some(Carried { rows, changes, transactions, position: end.0 }))
}

/// Runs the task until everything that the source has by now is in the target: an end of log that no change of ours made is
/// stored at once only when a run has it as its goal. Returns the position and the number of changes; `None` when stopped.
async fn catch_up(
    output: &Arc<Output>,
    spec: &Spec,
    task: &TaskSpec,
    stop: &CancellationToken,
) -> Result<Option<(Position, u64)>, Failure> {
    let ferry = start_ferry(spec, task, stop, true).await?;
    let shown = Shown { task: "demo".to_owned(), monitor: Arc::clone(&ferry.monitor) };
    let progress = Progress::start(output, vec![shown]);
    wait(&ferry, stop, CATCH_UP_LIMIT, || false).await;
    drop(progress);
    let reached = ferry.run.is_finished();
    ferry.stop.cancel();
    let end = finish(ferry.run).await?;
    if stop.is_cancelled() {
        return Ok(None);
    }
    if !reached {
        let problem =
            format!("the target did not reach the source's end within {}", duration(CATCH_UP_LIMIT));
        return Err(not_caught_up(problem).into());
    }
    Ok(Some((end.unwrap_or_default(), changes(&ferry.monitor))))
}

fn changes(monitor: &Monitor) -> u64 {
    monitor.changes.load(Ordering::Relaxed)
}

async fn start_ferry(
    spec: &Spec,
    task: &TaskSpec,
    stop: &CancellationToken,
    until_caught_up: bool,
) -> Result<Ferry, Failure> {
    let Built { id, source, target, mut settings } = build(spec, task).await?;
    settings.until_caught_up = until_caught_up;
    let (monitor, stop) = (Arc::new(Monitor::default()), stop.child_token());
    let (shared, token) = (Arc::clone(&monitor), stop.clone());
    let run = tokio::spawn(async move {
        Box::pin(pgferry_pipeline::run(&id, source, target, &settings, shared, token)).await
    });
    Ok(Ferry { monitor, stop, run })
}

/// Waits until something holds. False when it took too long, the run has ended, or somebody asked to stop.
async fn wait(ferry: &Ferry, stop: &CancellationToken, limit: Duration, holds: impl Fn() -> bool) -> bool {
    let until = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if stop.is_cancelled() || ferry.run.is_finished() || Instant::now() > until {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn end_early(
    ferry: Ferry,
    traffic: Traffic,
    progress: Progress,
    stop: &CancellationToken,
) -> Result<Option<Carried>, Failure> {
    drop(progress);
    ferry.stop.cancel();
    let traffic = traffic.stop().await;
    finish(ferry.run).await?;
    traffic?;
    if stop.is_cancelled() {
        return Ok(None);
    }
    Err(not_caught_up("the task ended before the demo did").into())
}

fn not_caught_up(problem: impl Into<String>) -> Error {
    Error::task_broken(NOT_CAUGHT_UP, problem)
        .with_cause("this machine is too busy for the demo, or pgferry made a mistake")
        .with_cure(
            Cure::advice("try again when the machine is idle, with a log; report it if it comes back")
                .line("pgferry demo --yes -vv"),
        )
}

/// The run's end and its position; a table that was set aside is the demo's failure.
async fn finish(run: JoinHandle<Result<RunEnd, Error>>) -> Result<Option<Position>, Failure> {
    let end = run
        .await
        .map_err(|lost| Failure::from(worker_lost("the task ended without a result").with_origin(lost)))??;
    match end.set_aside.into_iter().find_map(|aside| aside.error) {
        Some(error) => Err(error.into()),
        None => Ok(end.position),
    }
}

fn make_room(file: &Path, output: &Output) -> Result<(), Failure> {
    if let Some(folder) = file.parent().filter(|folder| !folder.is_dir()) {
        let error = Error::task_broken(FILE_UNWRITABLE, format!("cannot write {}", file.display()))
            .with_cause(format!("the folder {} does not exist", folder.display()))
            .with_cure(
                Cure::advice("make the folder, or name another file with --output")
                    .shell("mkdir -p", &folder.to_string_lossy()),
            );
        return Err(error.into());
    }
    if !file.exists() {
        return Ok(());
    }
    let refused = |cause: Option<std::io::Error>| {
        let cure = Cure::advice("name another file with --output, or replace it with --yes")
            .line(format!("pgferry demo --output {} --yes", shell_path(file)));
        let error =
            Error::task_broken(FILE_EXISTS, format!("{} is there already", file.display())).with_cure(cure);
        Failure::from(match cause {
            Some(cause) => error.with_origin(cause),
            None => error.with_cause("the demo never overwrites a file without a yes"),
        })
    };
    let replace = output.confirm(&format!("{} is there already; replace it?", file.display()));
    if !replace.unwrap_or(false) {
        return Err(refused(None));
    }
    for path in [file.to_owned(), with_ending(file, ".wal")] {
        match std::fs::remove_file(path) {
            Err(failure) if failure.kind() != std::io::ErrorKind::NotFound => {
                return Err(refused(Some(failure)));
            }
            _ => {}
        }
    }
    Ok(())
}

fn with_ending(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn step(output: &Output, number: u32, text: &str) {
    output.data(&format!("{number}. {text}"));
    output.event("step", json!({ "number": number, "text": text }));
}

fn done(output: &Output, begun: Instant, text: &str) {
    output.data(&format!("   {} {text} ({})", output.paint_data.good("✓"), duration(begun.elapsed())));
}

fn proof_text(proof: &Proof, file: &Path, output: &Output) -> String {
    let rows = proof.tables.iter().map(|(name, sides)| {
        let verdict = match sides.equal() {
            true => "equal".to_owned(),
            false => {
                let keys = |keys: &[String]| match keys {
                    [] => String::new(),
                    keys => format!(
                        " ({})",
                        keys.iter().map(|key| shown(Some(key))).collect::<Vec<_>>().join(", ")
                    ),
                };
                format!(
                    "{} only in PostgreSQL{}, {} only in DuckDB{}",
                    sides.only_source,
                    keys(&sides.keys_source),
                    sides.only_target,
                    keys(&sides.keys_target)
                )
            }
        };
        vec![name.to_string(), count(sides.source_rows), count(sides.target_rows), verdict]
    });
    let compared = table(&["table", "postgresql", "duckdb", "rows"], rows.collect(), 3);
    let sellers = proof.sellers.iter().map(|seller| {
        let turnover = format!("{}.{:02}", count((seller.cents / 100) as u64), seller.cents % 100);
        vec![seller.product.clone(), count(seller.pieces as u64), turnover]
    });
    let sellers = table(&["product", "pieces", "turnover"], sellers.collect(), 3);
    let size = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    let title = format!("The best sellers, read from {} ({}):", file.display(), bytes(size));
    format!("\n{compared}\n\n   {}\n{sellers}\n", output.paint_data.strong(&title))
}

fn next_steps(file: &Path) -> String {
    format!(
        "\nThe server is gone; {} stays. Look into it:\n\n   duckdb {} \"SELECT status, count(*) FROM orders GROUP BY 1\"\n\n\
         Carry your own database:\n\n   pgferry init      writes pgferry.toml, with comments\n   pgferry check     tells what is missing, \
         with statements to paste\n   pgferry run       starts",
        file.display(),
        file.display()
    )
}

fn result_json(carried: &Carried, proof: &Proof) -> Value {
    let table = |(name, sides): &(pgferry_model::TableName, pgferry_task::compare::Compared)| {
        json!({
            "table": name.to_string(), "equal": sides.equal(), "source_rows": sides.source_rows,
            "target_rows": sides.target_rows, "only_source": sides.only_source, "only_target": sides.only_target,
            "keys_source": sides.keys_source, "keys_target": sides.keys_target,
        })
    };
    json!({
        "rows_copied": carried.rows, "changes": carried.changes, "transactions": carried.transactions,
        "position": carried.position.to_string(), "tables": proof.tables.iter().map(table).collect::<Vec<_>>(),
    })
}
