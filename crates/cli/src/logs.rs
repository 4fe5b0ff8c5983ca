//! Logs: to stderr, above the lines of progress, pretty for people and JSON for programs. No log holds a row's value.

use std::io::{self, Write};

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::arguments::{Global, LogFormat};
use crate::output::Output;

/// Starts logging. `goes_on`: where no terminal shows progress, the log does.
pub(crate) fn start(global: &Global, output: &Output, goes_on: bool) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) if goes_on && output.terminal => "warn",
        (false, 0) if goes_on => "pgferry=info,warn",
        // Commands that end by themselves say in their answer what a run would warn of; but not what they wait for.
        (false, 0) => "error,pgferry_postgres::liveness=warn",
        (false, 1) => "pgferry=debug,info",
        (false, _) => "pgferry=trace,debug",
    };
    // Crates are named pgferry_x: a directive `pgferry` covers all of them by its prefix.
    let filter = EnvFilter::try_from_env("PGFERRY_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let writer = Above(output.lines.clone());
    let pretty = match global.log_format {
        Some(format) => format == LogFormat::Pretty,
        None => io::IsTerminal::is_terminal(&io::stderr()),
    };
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    // A second start in one process is a test's; the first goes on.
    let _ = if pretty {
        logs.with_ansi(output.paint.0).with_target(false).compact().try_init()
    } else {
        logs.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    };
}

/// Writes above the lines that stay at the bottom, so that bars and logs do not tear each other.
struct Above(MultiProgress);

impl<'a> MakeWriter<'a> for Above {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { lines: &self.0, text: Vec::new() }
    }
}

struct Line<'a> {
    lines: &'a MultiProgress,
    text: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let text = std::mem::take(&mut self.text);
        self.lines.suspend(|| io::stderr().lock().write_all(&text))
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        // Nobody reads stderr any more: there is nobody to tell.
        let _ = self.flush();
    }
}
