//! `pgferry schema`: the JSON Schema of task files, for editors.

use super::Ended;
use crate::exit_code::ExitCode;
use crate::output::Output;

pub(super) fn run(output: &Output) -> Ended {
    output.raw(&pgferry_task::spec::schema::json_schema());
    Ok(ExitCode::Success)
}
