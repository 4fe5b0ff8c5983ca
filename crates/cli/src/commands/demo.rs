//! d
use super::Ended;
use crate::arguments::DemoArguments;
use crate::exit_code::ExitCode;
use crate::output::Output;
use std::sync::Arc;
pub(super) async fn run(_arguments: &DemoArguments, _output: &Arc<Output>) -> Ended {
    Ok(ExitCode::Success)
}
