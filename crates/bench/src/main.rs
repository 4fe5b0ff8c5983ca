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
mod data;
mod drain;
mod ferry;
mod measure;
mod null_target;
mod server;
mod snapshot;

use std::process::ExitCode;

use anyhow::Result;
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
    /// One contestant: the engine into the null target
    Ferry(ferry::Options),
    /// One contestant: COPY read and thrown away
    Drain(drain::Options),
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Snapshot(options) => snapshot::run(&options).await?,
        Command::Cdc(options) => cdc::run(&options).await?,
        Command::Ferry(options) => ferry::run(&options).await?,
        Command::Drain(options) => drain::run(&options)?,
    }
    Ok(ExitCode::SUCCESS)
}
