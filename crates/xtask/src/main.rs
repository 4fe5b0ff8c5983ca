//! `cargo xtask`: the repository's own commands, for those who change pgferry.
//!
//! Each subcommand is one module. Nothing here is shipped to users.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool for developers: it prints")]

mod bench;
mod fuzz;
mod tidy;
mod trial;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The repository's own commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check the rules that compiler and clippy cannot: floors, words, sizes, paths, error pages, absences, text
    Tidy {
        /// The repository to check; this one if left out
        #[arg(long, value_name = "FOLDER")]
        root: Option<PathBuf>,
    },
    /// Kill pgferry again and again while others write, then compare: --seeds A..B, --seconds N and more, see --help after --
    Crash {
        /// Build and run with the release profile
        #[arg(long)]
        release: bool,
        /// Arguments of `pgferry-trial crash`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run pgferry for long under a mixed load and see that nothing grows: --minutes N and more, see --help after --
    Soak {
        /// Build and run with the release profile
        #[arg(long)]
        release: bool,
        /// Arguments of `pgferry-trial soak`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Feed decoders, the wire and the task file with inputs that nobody would send
    Fuzz(fuzz::Options),
    /// Measure pgferry side by side with what else there is (all arguments go to pgferry-bench)
    Bench(bench::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Crash { release, arguments } => trial::run(&repository(), "crash", release, &arguments),
        Command::Soak { release, arguments } => trial::run(&repository(), "soak", release, &arguments),
        Command::Tidy { root } => tidy::run(&root.unwrap_or_else(repository)),
        Command::Fuzz(options) => fuzz::run(&repository(), &options),
        Command::Bench(options) => bench::run(&repository(), &options),
    }
}

/// The folder of the workspace this binary was built from.
fn repository() -> PathBuf {
    let mut folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    folder.pop();
    folder.pop();
    folder
}
