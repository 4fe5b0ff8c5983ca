//! `pgferry version`: the version, and what this build reads and writes.

use pgferry_task::registry::{SOURCE_KINDS, TARGET_KINDS};
use serde_json::json;

use super::Ended;
use crate::exit_code::ExitCode;
use crate::output::Output;

pub(super) fn run(output: &Output) -> Ended {
    let version = env!("CARGO_PKG_VERSION");
    let kinds = format!("sources: {}; targets: {}", SOURCE_KINDS.join(", "), TARGET_KINDS.join(", "));
    output.data(&format!("pgferry {version}\n{kinds}"));
    let result = json!({ "version": version, "sources": SOURCE_KINDS, "targets": TARGET_KINDS });
    output.result(true, &format!("pgferry {version}"), &result);
    Ok(ExitCode::Success)
}
