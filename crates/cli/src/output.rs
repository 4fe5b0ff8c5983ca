//! The only place that writes: data to stdout, everything else to stderr, for people or for programs.
//!
//! ```text
//!   one-shot     {"command", "ok", "summary", "result", "error"}            one object
//!   streaming    {"type": "progress" | "state", ...}  ...  {"type": "result", ...}   one object a line, the result last
//! ```

use std::io::{self, IsTerminal as _, Write};

use indicatif::MultiProgress;
use pgferry_model::{Cure, Error, shell_word};
use serde_json::{Value, json};

use crate::arguments::Global;
use crate::errors::{Failure, NOT_CONFIRMED, Paint};

/// Writes for one command.
pub(crate) struct Output {
    /// Whether stdout takes JSON.
    pub json: bool,
    /// Whether only errors are shown.
    pub quiet: bool,
    /// Whether stderr is a terminal that shows progress.
    pub terminal: bool,
    /// Colours of stderr.
    pub paint: Paint,
    /// Colours of stdout.
    pub paint_data: Paint,
    /// Lines that stay at the bottom of the terminal; logs and notes are written above them.
    pub lines: MultiProgress,
    command: &'static str,
    streaming: bool,
    yes: bool,
    may_ask: bool,
}

impl Output {
    /// For a command, as its settings and the terminal say.
    pub(crate) fn new(global: &Global, command: &'static str) -> Self {
        let plain = global.no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let terminal = io::stderr().is_terminal();
        let lines = MultiProgress::new();
        if global.json || global.quiet || !terminal {
            lines.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        Output {
            json: global.json,
            quiet: global.quiet,
            terminal: terminal && !global.json && !global.quiet,
            paint: Paint(terminal && !plain),
            paint_data: Paint(io::stdout().is_terminal() && !plain),
            lines,
            command,
            streaming: matches!(command, "run" | "demo"),
            yes: global.yes,
            may_ask: !global.no_input && !global.json && terminal && io::stdin().is_terminal(),
        }
    }

    /// Data for people, to stdout; nothing with `--json`.
    pub(crate) fn data(&self, text: &str) {
        if !self.json {
            self.write_data(text);
        }
    }

    /// Data as it is, also with `--json`: completions, the schema.
    pub(crate) fn raw(&self, text: &str) {
        self.write_data(text);
    }

    /// A line for people, to stderr; nothing with `--quiet` or `--json`.
    pub(crate) fn say(&self, text: &str) {
        if !self.quiet && !self.json {
            self.note(text);
        }
    }

    /// A line to stderr, always.
    pub(crate) fn note(&self, text: &str) {
        self.lines.suspend(|| {
            // Nobody reads stderr any more: there is nobody to tell.
            let _ = writeln!(io::stderr().lock(), "{text}");
        });
    }

    /// A line of a stream, with `--json`.
    pub(crate) fn event(&self, kind: &str, mut body: Value) {
        if self.json {
            if let Some(object) = body.as_object_mut() {
                object.insert("type".to_owned(), kind.into());
            }
            self.write_data(&body.to_string());
        }
    }

    /// The command's result, with `--json`.
    pub(crate) fn result(&self, ok: bool, summary: &str, result: &Value) {
        self.envelope(ok, summary, result, &Value::Null);
    }

    /// The error that the command ends with.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json {
            self.envelope(false, &failure.problem(), &Value::Null, &failure.json());
        } else {
            self.note(&failure.text(&self.paint));
        }
    }

    fn envelope(&self, ok: bool, summary: &str, result: &Value, error: &Value) {
        let body = json!({
            "command": self.command, "ok": ok, "summary": summary, "result": result, "error": error,
        });
        match (self.json, self.streaming) {
            (true, true) => self.event("result", body),
            (true, false) => self.write_data(&body.to_string()),
            (false, _) => {}
        }
    }

    /// Asks for a yes. Without somebody who can answer it is an error, unless `--yes` was given.
    pub(crate) fn confirm(&self, question: &str) -> Result<bool, Failure> {
        if self.yes {
            return Ok(true);
        }
        if !self.may_ask {
            let typed = std::env::args().skip(1).map(|word| shell_word(&word)).collect::<Vec<_>>().join(" ");
            let cure =
                Cure::advice("add --yes when that is what you want").line(format!("pgferry {typed} --yes"));
            let problem = format!("not done without a yes: {question}");
            let cause =
                "it cannot be undone, and nobody can be asked here: no terminal, --json or --no-input";
            return Err(Error::task_broken(NOT_CONFIRMED, problem).with_cause(cause).with_cure(cure).into());
        }
        let _ = write!(io::stderr().lock(), "{question} [y/N] ");
        let mut answer = String::new();
        let read = io::stdin().read_line(&mut answer);
        Ok(read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }

    fn write_data(&self, text: &str) {
        let mut written = Ok(());
        self.lines.suspend(|| {
            let mut stdout = io::stdout().lock();
            written = writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush());
        });
        // A reader such as `head` has seen enough. That is no error, and nothing else is left to say to it.
        if written.is_err_and(|failure| failure.kind() == io::ErrorKind::BrokenPipe) && !self.streaming {
            std::process::exit(0);
        }
    }
}
