//! The exit codes, and which error ends with which. Scripts depend on them: they do not change.

use pgferry_model::{Error, Finding, Outcome};
use pgferry_pipeline::error::RETRIES_EXHAUSTED;

use crate::errors::behind;

/// How the program ends. Of several, the worst is told: environment, usage, checks, the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitCode {
    /// Done.
    Success,
    /// Something broke while running.
    Failure,
    /// Wrong arguments or a wrong task file; clap's own code too.
    Usage,
    /// A server or a file cannot be reached or used.
    Environment,
    /// The command ran, and its answer is bad: checks failed, sides differ.
    ChecksFailed,
    /// The task ended with tables set aside.
    TablesSetAside,
    /// Somebody else holds what is needed.
    Conflict,
}

impl ExitCode {
    /// The number.
    pub(crate) fn number(self) -> u8 {
        match self {
            ExitCode::Success => 0,
            ExitCode::Failure => 1,
            ExitCode::Usage => 2,
            ExitCode::Environment => 3,
            ExitCode::ChecksFailed => 4,
            ExitCode::TablesSetAside => 5,
            ExitCode::Conflict => 8,
        }
    }

    fn rank(self) -> u8 {
        match self {
            ExitCode::Environment => 6,
            ExitCode::Usage => 5,
            ExitCode::Conflict => 4,
            ExitCode::ChecksFailed => 3,
            ExitCode::Failure => 2,
            ExitCode::TablesSetAside => 1,
            ExitCode::Success => 0,
        }
    }

    /// The worse of two.
    pub(crate) fn worse(self, other: ExitCode) -> ExitCode {
        if other.rank() > self.rank() { other } else { self }
    }

    /// The one of an error code.
    pub(crate) fn of_code(code: &str) -> ExitCode {
        match code {
            "source.slot_active" | "slot.in_use" | "target.locked" | "target.fenced" => ExitCode::Conflict,
            "compare.different" => ExitCode::ChecksFailed,
            "demo.no_server"
            | "config.secret_missing"
            | "source.hba_rejected"
            | "target.file"
            | "cli.file_unwritable" => ExitCode::Environment,
            "slot.unknown" => ExitCode::Usage,
            _ if code.starts_with("config.") || code.starts_with("cli.") => ExitCode::Usage,
            _ if code.starts_with("connection.") || is_out_of_reach(code) => ExitCode::Environment,
            _ => ExitCode::Failure,
        }
    }

    /// The one of an error.
    pub(crate) fn of_error(error: &Error) -> ExitCode {
        let told = if error.code() == RETRIES_EXHAUSTED { behind(error).unwrap_or(error) } else { error };
        ExitCode::of_code(told.code().as_str())
    }

    /// The one of a check's findings.
    pub(crate) fn of_findings<'a>(findings: impl Iterator<Item = &'a Finding>) -> ExitCode {
        let of = |finding: &Finding| match (finding.outcome, finding.code) {
            (Outcome::Passed | Outcome::Warning, _) => ExitCode::Success,
            (Outcome::Failed, Some(code)) => match ExitCode::of_code(code.as_str()) {
                ExitCode::Failure | ExitCode::Conflict => ExitCode::ChecksFailed,
                other => other,
            },
            (Outcome::Failed, None) => ExitCode::ChecksFailed,
        };
        findings.map(of).fold(ExitCode::Success, ExitCode::worse)
    }
}

/// Whether a server of a target's kind does not answer, or lets nobody in.
fn is_out_of_reach(code: &str) -> bool {
    code.starts_with("target.") && (code.ends_with("_unreachable") || code.ends_with("_authentication"))
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        std::process::ExitCode::from(code.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_class_wins() {
        let all = [ExitCode::Success, ExitCode::ChecksFailed, ExitCode::Environment, ExitCode::Usage];
        assert_eq!(all.into_iter().fold(ExitCode::Success, ExitCode::worse), ExitCode::Environment);
        assert_eq!(ExitCode::Failure.worse(ExitCode::ChecksFailed), ExitCode::ChecksFailed);
        assert_eq!(ExitCode::of_code("config.unknown_key").number(), 2);
        assert_eq!(ExitCode::of_code("connection.unreachable").number(), 3);
        for code in [
            "target.databend_unreachable",
            "target.kafka_authentication",
            "target.kafka_registry_unreachable",
        ] {
            assert_eq!(ExitCode::of_code(code).number(), 3, "{code}");
        }
        assert_eq!(ExitCode::of_code("source.slot_missing").number(), 1);
    }
}
