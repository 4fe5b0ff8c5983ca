//! What pgferry costs, side by side with the floor under it, in one run: rows or changes per second, CPU of both sides, peak memory.
//!
//! ```text
//!   data ──> PostgreSQL (its own, thrown away) ──┬─ drain: reads COPY and throws it away     the floor of a snapshot
//!                                                ├─ pg_recvlogical to /dev/null              the floor of a change stream
//!                                                └─ ferry: pgferry's engine, null target
//! ```
//!
//! Invariant: every contestant is a process of its own, run in turns; what is printed was measured in this run.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool for developers: it prints")]

mod cdc;
mod contestant;
mod data;
mod databend;
mod drain;
mod duckdb;
mod effort;
mod ferry;
mod idle;
mod kafka;
mod latency;
mod measure;
mod memory;
mod null_target;
mod observed;
mod report;
mod running;
mod server;
mod snapshot;
mod tables;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "pgferry-bench", about = "Measures pgferry beside the floor under it")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A table's snapshot into the null target, beside readers that throw the rows away
    Snapshot(snapshot::Options),
    /// A backlog of changes into the null target, beside `pg_recvlogical`
    Cdc(cdc::Options),
    /// A snapshot and a backlog into DuckDB, beside DuckDB's own extension for PostgreSQL
    Duckdb(duckdb::Options),
    /// Peak memory for large tables, transactions and values, many tables and many workers
    Memory(memory::Options),
    /// Many tables beside one with as many rows
    Tables(tables::Options),
    /// What an idle source costs
    Idle(idle::Options),
    /// From commit to visible in DuckDB
    Latency(latency::Options),
    /// A backlog into Kafka and the latency there, beside Debezium
    Kafka(kafka::Options),
    /// A snapshot and merges into Databend, beside what its engine alone needs
    Databend(databend::Options),
    /// All of them, one after the other
    All(effort::Effort),
    /// One contestant: the engine into the null target, a DuckDB file, Kafka topics or Databend
    Ferry(Box<ferry::Options>),
    /// One contestant: COPY read and thrown away
    Drain(drain::Options),
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Snapshot(options) => snapshot::run(&options).await?,
        Command::Cdc(options) => cdc::run(&options).await?,
        Command::Duckdb(options) => duckdb::run(&options).await?,
        Command::Memory(options) => memory::run(&options).await?,
        Command::Tables(options) => tables::run(&options).await?,
        Command::Idle(options) => idle::run(&options).await?,
        Command::Latency(options) => latency::run(&options).await?,
        Command::Kafka(options) => kafka::run(&options).await?,
        Command::Databend(options) => databend::run(&options).await?,
        Command::All(effort) => all(&effort).await?,
        Command::Ferry(options) => ferry::run(&options).await?,
        Command::Drain(options) => drain::run(&options)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Each as a process of its own, so that none measures what another left behind.
async fn all(effort: &effort::Effort) -> Result<()> {
    let (scale, rounds, major) =
        (effort.scale.to_string(), effort.rounds.to_string(), effort.major.to_string());
    for name in ["snapshot", "cdc", "duckdb", "memory", "tables", "idle", "latency", "kafka", "databend"] {
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        command.args([name, "--scale", &scale, "--rounds", &rounds, "--major", &major]);
        if effort.print_only {
            command.arg("--print-only");
        }
        let ended = command.status().await?;
        ensure!(ended.success(), "{name} ended with {ended}");
    }
    Ok(())
}
