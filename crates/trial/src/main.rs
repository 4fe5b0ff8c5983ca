//! `pgferry-trial`: long trials of the built program, for those who change pgferry.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool for developers: it prints")]

use clap::Parser;

#[derive(Parser)]
#[command(name = "pgferry-trial", about = "Tries the built pgferry against real servers")]
struct Arguments {}

fn main() {
    Arguments::parse();
}
