//! One file per command. A command reads its arguments, asks the crates below, and prints through [`Output`].

mod check;
mod completions;
mod demo;
mod explain;
mod init;
mod plan;
mod preview;
mod resync;
mod run;
mod schema;
mod slot;
mod validate;
mod version;

use std::sync::Arc;

use crate::arguments::{Arguments, Command, SlotCommand};
use crate::errors::Failure;
use crate::exit_code::ExitCode;
use crate::logs;
use crate::output::Output;

/// How a command ends.
pub(crate) type Ended = Result<ExitCode, Failure>;

/// Runs the command that was typed.
pub(crate) async fn run(arguments: &Arguments, output: &Arc<Output>) -> Ended {
    logs::start(&arguments.global, output, matches!(arguments.command, Command::Run(_)));
    match &arguments.command {
        Command::Run(arguments) => Box::pin(run::run(arguments, output)).await,
        Command::Check(selection) => Box::pin(check::run(selection, output)).await,
        Command::Preview(arguments) => Box::pin(preview::run(arguments, output)).await,
        Command::Plan(selection) => Box::pin(plan::run(selection, output)).await,
        Command::Resync(arguments) => Box::pin(resync::run(arguments, output)).await,
        Command::Demo(arguments) => Box::pin(demo::run(arguments, output)).await,
        Command::Init(arguments) => init::run(arguments, output),
        Command::Validate { file } => validate::run(file, output),
        Command::Schema => schema::run(output),
        Command::Slot(SlotCommand::List { connection, file }) => {
            slot::list(connection.as_deref(), file, output).await
        }
        Command::Slot(SlotCommand::Drop { connection, slot, file, force }) => {
            slot::drop(connection, slot, file, *force, output).await
        }
        Command::Explain { code } => explain::run(code.as_deref(), output),
        Command::Completions { shell } => completions::run(*shell, output),
        Command::Version => version::run(output),
    }
}
