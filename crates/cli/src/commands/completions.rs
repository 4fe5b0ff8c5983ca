//! `pgferry completions`: what a shell needs to complete commands and flags.

use clap::CommandFactory as _;

use super::Ended;
use crate::arguments::Arguments;
use crate::exit_code::ExitCode;
use crate::output::Output;

pub(super) fn run(shell: clap_complete::Shell, output: &Output) -> Ended {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "pgferry", &mut script);
    output.raw(&String::from_utf8_lossy(&script));
    Ok(ExitCode::Success)
}
