//! Errors for people and for programs: code, problem, cause, cure with statements that can be pasted.

use std::fmt::Write as _;

use pgferry_model::{Class, Code, Cure, Error, Finding, Outcome, Restart};
use pgferry_task::spec::Faults;
use serde_json::{Value, json};

use crate::exit_code::ExitCode;

/// A question needs an answer that nobody can give.
pub(crate) const NOT_CONFIRMED: Code = Code::new("cli.not_confirmed");
/// A file is in the way.
pub(crate) const FILE_EXISTS: Code = Code::new("cli.file_exists");
/// A file cannot be written.
pub(crate) const FILE_UNWRITABLE: Code = Code::new("cli.file_unwritable");
/// The operating system refuses what the program needs to start.
pub(crate) const START_FAILED: Code = Code::new("cli.start_failed");
/// Metrics cannot be served where they were asked for.
pub(crate) const METRICS_ADDRESS: Code = Code::new("cli.metrics_address");
/// A name that was typed leads nowhere.
pub(crate) const UNKNOWN_NAME: Code = Code::new("cli.unknown_name");

/// Why a command ended without its result.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An error of the program.
    Error(Error),
    /// Faults of the task file.
    Faults(Faults),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

impl From<Faults> for Failure {
    fn from(faults: Faults) -> Self {
        Failure::Faults(faults)
    }
}

impl Failure {
    /// How the program ends with it.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Error(error) => ExitCode::of_error(error),
            Failure::Faults(_) => ExitCode::Usage,
        }
    }

    /// The problem in one line.
    pub(crate) fn problem(&self) -> String {
        match self {
            Failure::Error(error) => error.problem().to_owned(),
            Failure::Faults(faults) => faults.to_string(),
        }
    }

    /// As part of a JSON envelope.
    pub(crate) fn json(&self) -> Value {
        match self {
            Failure::Error(error) => error_json(error),
            Failure::Faults(faults) => faults_json(faults),
        }
    }

    /// As text for a terminal.
    pub(crate) fn text(&self, paint: &Paint) -> String {
        match self {
            Failure::Error(error) => error_text(error, paint),
            Failure::Faults(faults) => faults_text(faults, paint),
        }
    }
}

/// Colours, or none. They never carry a meaning that the words do not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint(pub bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// For what is wrong.
    pub(crate) fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }

    /// For what may become wrong.
    pub(crate) fn warning(self, text: &str) -> String {
        self.with("33", text)
    }

    /// For what is right.
    pub(crate) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// For what stands out.
    pub(crate) fn strong(self, text: &str) -> String {
        self.with("1", text)
    }

    /// For what stands back.
    pub(crate) fn faint(self, text: &str) -> String {
        self.with("2", text)
    }
}

/// An error in lines, the last without a line break.
pub(crate) fn error_text(error: &Error, paint: &Paint) -> String {
    let code = error.code().as_str();
    let mut text = format!("{} {}", paint.bad(&format!("error[{code}]:")), error.problem());
    if let Some(table) = error.table().filter(|table| !error.problem().contains(&table.to_string())) {
        let _ = write!(text, "\n  table: {table}");
    }
    if let Some(cause) = error.cause() {
        let _ = write!(text, "\n  cause: {cause}");
    }
    if let Some(cure) = error.cure() {
        let _ = write!(text, "\n  {}", cure_text(cure, "  ", "cure: "));
    }
    let _ = write!(text, "\n  {}", paint.faint(&format!("more:  pgferry explain {code}")));
    text
}

/// A cure in lines; those after the first are indented.
pub(crate) fn cure_text(cure: &Cure, indent: &str, label: &str) -> String {
    let mut text = String::new();
    if !cure.advice.is_empty() {
        let _ = write!(text, "{label}{}", cure.advice);
    }
    let mut line = |line: &str| {
        let start = if text.is_empty() { String::new() } else { format!("\n{indent}") };
        let _ = write!(text, "{start}{line}");
    };
    if !cure.sql.is_empty() {
        let who = cure.run_as.as_ref().map(|who| format!("run as {who}"));
        let restart = match cure.restart {
            Restart::No => "no restart",
            Restart::Reload => "reload only",
            Restart::Server => "then restart the server",
        };
        line(&who.map_or_else(|| restart.to_owned(), |who| format!("{who} · {restart}")));
        for statement in &cure.sql {
            line(&format!("  {statement};"));
        }
    }
    for shell in &cure.lines {
        line(&format!("  {shell}"));
    }
    text
}

fn faults_text(faults: &Faults, paint: &Paint) -> String {
    let file = faults.file.display();
    let mut text = String::new();
    for fault in &faults.faults {
        let place = if fault.line == 0 { file.to_string() } else { format!("{file}:{}", fault.line) };
        let label = paint.bad(&format!("error[{}]:", fault.code));
        let _ = writeln!(text, "{label} {}", fault.problem);
        if fault.path.is_empty() {
            let _ = writeln!(text, "  at {place}");
        } else {
            let _ = writeln!(text, "  at {place}, {}", fault.path);
        }
        if let Some(cure) = &fault.cure {
            let _ = writeln!(text, "  cure: {cure}");
        }
    }
    let mut codes: Vec<&str> = faults.faults.iter().map(|fault| fault.code.as_str()).collect();
    codes.sort_unstable();
    codes.dedup();
    let more = codes.iter().map(|code| format!("pgferry explain {code}")).collect::<Vec<_>>().join(", ");
    let _ = write!(text, "{}", paint.faint(&format!("more: {more}")));
    text
}

/// A finding in lines, the last without a line break.
pub(crate) fn finding_text(finding: &Finding, paint: &Paint) -> String {
    let sign = match finding.outcome {
        Outcome::Passed => paint.good("✓"),
        Outcome::Warning => paint.warning("⚠"),
        Outcome::Failed => paint.bad("✗"),
    };
    let mut text = format!("{sign} {:<24} {}: {}", finding.check, finding.subject, finding.detail);
    if let Some(cause) = &finding.cause {
        let _ = write!(text, "\n      {}", paint.faint(cause));
    }
    if let Some(cure) = &finding.cure {
        let _ = write!(text, "\n      {}", cure_text(cure, "      ", "cure: "));
    }
    text
}

/// An error for programs.
pub(crate) fn error_json(error: &Error) -> Value {
    json!({
        "code": error.code().as_str(),
        "problem": error.problem(),
        "cause": error.cause(),
        "table": error.table().map(ToString::to_string),
        "retryable": error.class() == Class::Transient,
        "cure": error.cure().map(cure_json),
    })
}

/// A finding for programs.
pub(crate) fn finding_json(finding: &Finding) -> Value {
    json!({
        "check": finding.check,
        "subject": finding.subject,
        "outcome": match finding.outcome {
            Outcome::Passed => "passed",
            Outcome::Warning => "warning",
            Outcome::Failed => "failed",
        },
        "code": finding.code.map(Code::as_str),
        "detail": finding.detail,
        "cause": finding.cause,
        "cure": finding.cure.as_ref().map(cure_json),
    })
}

fn cure_json(cure: &Cure) -> Value {
    json!({
        "advice": cure.advice,
        "sql": cure.sql,
        "run_as": cure.run_as,
        "restart": match cure.restart {
            Restart::No => "no",
            Restart::Reload => "reload",
            Restart::Server => "server",
        },
        "lines": cure.lines,
    })
}

fn faults_json(faults: &Faults) -> Value {
    let fault = |fault: &pgferry_task::spec::Fault| {
        json!({
            "code": fault.code.as_str(), "line": fault.line, "path": fault.path,
            "problem": fault.problem, "cure": fault.cure,
        })
    };
    json!({
        "code": faults.faults.first().map(|fault| fault.code.as_str()),
        "problem": faults.to_string(),
        "retryable": false,
        "file": faults.file.display().to_string(),
        "errors": faults.faults.iter().map(fault).collect::<Vec<_>>(),
    })
}
