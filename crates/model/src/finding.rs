//! What a check found: passed, a warning or a failure, with its cause and its cure.
//!
//! A check returns findings; it returns an error only when it could not look.

use crate::{Code, Cure, Error};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// The task can start; something may hurt later.
    Warning,
    /// The task cannot start, or would lose data.
    Failed,
}

/// One result of a check.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Short dotted name of the check, such as `publication.tables`; stable, usable with `check --only`.
    pub check: &'static str,
    /// What was looked at: a connection, a table, a column.
    pub subject: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The error code whose page tells more; `None` when it passed or when there is none.
    pub code: Option<Code>,
    /// What was seen, in one line.
    pub detail: String,
    /// Why that matters.
    pub cause: Option<String>,
    /// What to do about it.
    pub cure: Option<Cure>,
}

impl Finding {
    /// A check that passed.
    pub fn passed(check: &'static str, subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Finding {
            check,
            subject: subject.into(),
            outcome: Outcome::Passed,
            code: None,
            detail: detail.into(),
            cause: None,
            cure: None,
        }
    }

    /// A check that did not pass, told by the error that the run would stop with.
    pub fn from_error(
        check: &'static str,
        subject: impl Into<String>,
        outcome: Outcome,
        error: &Error,
    ) -> Self {
        Finding {
            check,
            subject: subject.into(),
            outcome,
            code: Some(error.code()),
            detail: error.problem().to_owned(),
            cause: error.cause(),
            cure: error.cure().cloned(),
        }
    }
}
