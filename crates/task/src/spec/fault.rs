//! What is wrong in a task file: every fault with its line, its path and its cure, all of a file at once.

use std::fmt;
use std::path::PathBuf;

use pgferry_model::{Code, Cure, Error};

/// The file cannot be read.
pub const UNREADABLE: Code = Code::new("config.unreadable");
/// The text is not TOML.
pub const SYNTAX: Code = Code::new("config.syntax");
/// A key that no task file has.
pub const UNKNOWN_KEY: Code = Code::new("config.unknown_key");
/// A value of the wrong form or outside its range.
pub const INVALID_VALUE: Code = Code::new("config.invalid_value");
/// A key that must be there is not.
pub const MISSING_KEY: Code = Code::new("config.missing_key");
/// A key or value that this build cannot serve.
pub const UNSUPPORTED: Code = Code::new("config.unsupported");
/// Two settings exclude each other, or a name leads nowhere.
pub const CONFLICT: Code = Code::new("config.conflict");
/// A password stands in the file itself.
pub const SECRET_IN_FILE: Code = Code::new("config.secret_in_file");
/// A secret's environment variable or file is not there.
pub const SECRET_MISSING: Code = Code::new("config.secret_missing");
/// A task is asked for that the file does not have.
pub const UNKNOWN_TASK: Code = Code::new("config.unknown_task");

/// One thing that is wrong. Values of secrets are never part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind of fault.
    pub code: Code,
    /// Line in the file, from 1; 0 where the fault has no place.
    pub line: usize,
    /// Where in the file, such as `tasks.orders.sync_interval`; empty for the file as a whole.
    pub path: String,
    /// What is wrong, one line.
    pub problem: String,
    /// What to do about it.
    pub cure: Option<String>,
}

impl Fault {
    pub(crate) fn new(code: Code, path: impl Into<String>, problem: impl Into<String>) -> Self {
        Fault { code, line: 0, path: path.into(), problem: problem.into(), cure: None }
    }

    pub(crate) fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }
}

/// Everything that is wrong in one file, in the order of its lines.
#[derive(Debug)]
pub struct Faults {
    /// The file.
    pub file: PathBuf,
    /// At least one.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.faults.len();
        match self.faults.first() {
            Some(first) if count == 1 => write!(f, "{}: {}", self.file.display(), first.problem),
            _ => write!(f, "{} has {count} faults", self.file.display()),
        }
    }
}

impl std::error::Error for Faults {}

impl From<Faults> for Error {
    fn from(faults: Faults) -> Self {
        let code = faults.faults.first().map_or(INVALID_VALUE, |fault| fault.code);
        let mut cure = Cure::default();
        for fault in &faults.faults {
            let place = if fault.line == 0 { String::new() } else { format!("line {}: ", fault.line) };
            cure = cure.line(format!("{place}{}: {}", fault.path, fault.problem));
        }
        cure.advice = faults
            .faults
            .iter()
            .find_map(|fault| fault.cure.clone())
            .unwrap_or_else(|| "correct the file and try again".to_owned());
        Error::task_broken(code, faults.to_string())
            .with_cause("the task file does not say what pgferry can do; each line of the cure names a place")
            .with_cure(cure)
    }
}
