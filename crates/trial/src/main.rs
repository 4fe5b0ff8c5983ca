//! `pgferry-trial`: long trials of the built program, for those who change pgferry. `cargo xtask` builds and starts it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool for developers: it prints")]

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use pgferry_trial::crash::{Ended, Matrix};
use pgferry_trial::soak::{Sample, Soak};
use pgferry_trial::target_place::KINDS;

#[derive(Parser)]
#[command(name = "pgferry-trial", about = "Tries the built pgferry against real servers")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Kill pgferry again and again while others write, then compare; a seed decides what happens
    Crash(CrashArguments),
    /// Run pgferry for long under a mixed load, see that nothing grows, then compare
    Soak(SoakArguments),
}

#[derive(Args)]
struct SoakArguments {
    /// The target's kind
    #[arg(long, default_value = "duckdb", value_parser = KINDS.to_vec())]
    target: String,
    /// What decides the load
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long others write
    #[arg(long, default_value_t = 20.0)]
    minutes: f64,
    /// How many of them
    #[arg(long, default_value_t = 2)]
    sessions: u64,
}

#[derive(Args)]
struct CrashArguments {
    /// The target's kind
    #[arg(long, default_value = "duckdb", value_parser = KINDS.to_vec())]
    target: String,
    /// First seed, and the first one no more: 0..300
    #[arg(long, default_value = "0..40", value_parser = seeds)]
    seeds: Range<u64>,
    /// How long others write in each seed
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Seeds at a time
    #[arg(long, default_value_t = 2)]
    parallel: u64,
    /// Where folders of failed seeds are kept [default: a folder of its own below the system's for temporary files]
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let (first, end) = text.split_once("..").ok_or("write them as 0..300")?;
    let number = |text: &str| text.parse::<u64>().map_err(|failure| format!("{text}: {failure}"));
    let seeds = number(first)?..number(end)?;
    if seeds.is_empty() { Err("there is no seed in it".to_owned()) } else { Ok(seeds) }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Crash(arguments) => crash(arguments).await,
        Command::Soak(arguments) => soak(arguments).await,
    }
}

async fn soak(arguments: SoakArguments) -> anyhow::Result<ExitCode> {
    let SoakArguments { target, seed, minutes, sessions } = arguments;
    let soak = Soak { target, seed, time: Duration::from_secs_f64(minutes * 60.0), sessions };
    let started = Instant::now();
    let mut told = Instant::now();
    println!("seconds  memory MiB  open files  threads  held log MiB");
    let soaked = soak
        .run(|&Sample { memory, files, threads, held_log }| {
            if told.elapsed() >= Duration::from_secs(30) {
                told = Instant::now();
                let seconds = started.elapsed().as_secs();
                println!("{seconds:>7}{:>12}{files:>12}{threads:>9}{:>14}", memory >> 20, held_log >> 20);
            }
        })
        .await?;
    println!("\n{soaked}");
    Ok(ExitCode::SUCCESS)
}

async fn crash(arguments: CrashArguments) -> anyhow::Result<ExitCode> {
    let keep = arguments
        .keep
        .unwrap_or_else(|| std::env::temp_dir().join(format!("pgferry-crash-{}", std::process::id())));
    let matrix = Matrix {
        target: arguments.target,
        seeds: arguments.seeds,
        load: Duration::from_secs_f64(arguments.seconds),
        parallel: arguments.parallel,
        keep,
    };
    let started = Instant::now();
    let whole = matrix.seeds.end - matrix.seeds.start;
    let tally = matrix.run(interrupted(), |ended| line(&matrix, ended)).await?;
    println!("\n{tally}");
    let never = tally.never_met();
    println!("wall clock: {} s", started.elapsed().as_secs());
    // As many seeds as there are names try each of them.
    let all_tried = tally.seeds == whole && whole >= pgferry_pipeline::failpoint::NAMES.len() as u64;
    if !never.is_empty() {
        println!("never met: {}", never.join(", "));
    }
    let good = tally.failed == 0 && (never.is_empty() || !all_tried);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ctrl-C: what has begun is finished and summed up. Once more ends at once, and everything started with it.
async fn interrupted() {
    let _no_signals = tokio::signal::ctrl_c().await;
    eprintln!("no further seed begins; once more ends at once");
    tokio::spawn(async {
        let _no_signals = tokio::signal::ctrl_c().await;
        std::process::exit(130);
    });
}

fn line(matrix: &Matrix, ended: &Ended) {
    let Ended { plan, tally, failure, kept } = ended;
    println!(
        "seed {:>5}  PostgreSQL {:>2}  {:>2} starts  {:>2} kills  {:>7} rows compared  {:>5.1} s  {}",
        plan.seed,
        plan.major,
        tally.starts,
        tally.kills(),
        tally.rows_compared,
        tally.took.as_secs_f64(),
        if failure.is_some() { "FAILED" } else { "ok" }
    );
    if let Some(failure) = failure {
        println!("  {}", format!("{failure:#}").replace('\n', "\n  "));
        println!("  again: {}", matrix.again(plan.seed));
        if let Some(kept) = kept {
            println!("  kept:  {}", kept.display());
        }
    }
}
