//! Shows what running tasks do: lines at the bottom of a terminal, a line now and then elsewhere, JSON for programs.
//!
//! Problems and running tables come first; what does not fit in a few lines becomes counts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pgferry_model::TableState;
use pgferry_pipeline::{Monitor, Phase, TableView};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::figures::{bytes, count, duration};
use crate::output::Output;

const TERMINAL_EVERY: Duration = Duration::from_millis(250);
const LINE_EVERY: Duration = Duration::from_secs(10);
const JSON_EVERY: Duration = Duration::from_secs(1);
/// Lines of tables on a terminal, for all tasks together.
const TABLE_LINES_MAX: usize = 10;
const BAR_CELLS: usize = 20;
/// A rate is the mean over about this long.
const RATE_OVER: Duration = Duration::from_secs(5);

/// A task that is shown.
pub(crate) struct Shown {
    /// Its name.
    pub task: String,
    /// Its counters.
    pub monitor: Arc<Monitor>,
}

/// Shows tasks until it is dropped.
pub(crate) struct Progress {
    shower: JoinHandle<()>,
    lines: Arc<Mutex<Vec<ProgressBar>>>,
}

impl Progress {
    /// Starts to show.
    pub(crate) fn start(output: &Arc<Output>, tasks: Vec<Shown>) -> Progress {
        let every = if output.json {
            JSON_EVERY
        } else if output.terminal {
            TERMINAL_EVERY
        } else {
            LINE_EVERY
        };
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (shown_lines, output) = (Arc::clone(&lines), Arc::clone(output));
        let shower = tokio::spawn(async move {
            let mut rates: Vec<Rate> = tasks.iter().map(|_| Rate::default()).collect();
            let mut phases: Vec<Option<Phase>> = vec![None; tasks.len()];
            let mut ticks = tokio::time::interval(every);
            loop {
                ticks.tick().await;
                for ((task, rate), phase) in tasks.iter().zip(&mut rates).zip(&mut phases) {
                    rate.note(&task.monitor);
                    let now = task.monitor.phase();
                    if output.json && *phase != Some(now) {
                        output.event("state", json!({ "task": task.task, "phase": now.word() }));
                    }
                    *phase = Some(now);
                }
                if output.json {
                    tasks.iter().for_each(|task| output.event("progress", snapshot(task)));
                } else if output.terminal {
                    draw(&output, &shown_lines, &tasks, &rates);
                } else {
                    for (task, rate) in tasks.iter().zip(&rates) {
                        output.say(&headline(task, rate));
                    }
                }
            }
        });
        Progress { shower, lines }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.shower.abort();
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .for_each(ProgressBar::finish_and_clear);
    }
}

/// Shows texts in as many lines as there are; a line is written only when it says something else than before.
fn draw(output: &Output, lines: &Mutex<Vec<ProgressBar>>, tasks: &[Shown], rates: &[Rate]) {
    let mut texts: Vec<String> = Vec::new();
    let budget = (TABLE_LINES_MAX / tasks.len().max(1)).max(1);
    for (task, rate) in tasks.iter().zip(rates) {
        texts.push(headline(task, rate));
        texts.extend(table_lines(&task.monitor.tables(), budget));
    }
    let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
    while lines.len() < texts.len() {
        // The template cuts what does not fit into the terminal's width.
        let style =
            ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        lines.push(output.lines.add(ProgressBar::new_spinner().with_style(style)));
    }
    let mut texts = texts.into_iter();
    for line in lines.iter() {
        let text = texts.next().unwrap_or_default();
        if line.message() != text {
            line.set_message(text);
        }
    }
}

/// `orders  snapshotting  2/5 tables · 61.4 GB/98.0 GB · 412 MB/s`.
fn headline(task: &Shown, rate: &Rate) -> String {
    let monitor = &task.monitor;
    let tables = monitor.tables();
    let mut parts: Vec<String> = Vec::new();
    let phase = monitor.phase();
    match phase {
        Phase::Snapshotting => {
            let done = tables.iter().filter(|table| copied(&table.state)).count();
            let (bytes_done, bytes_planned) = copied_bytes(&tables);
            parts.push(format!("{done}/{} tables", tables.len()));
            parts.push(format!("{}/{}", bytes(bytes_done), bytes(bytes_planned)));
            parts.push(format!("{}/s", bytes(rate.bytes_per_second as u64)));
            let left = bytes_planned.saturating_sub(bytes_done) as f64;
            if rate.bytes_per_second > 1.0 && left > 0.0 {
                parts
                    .push(format!("ETA {}", duration(Duration::from_secs_f64(left / rate.bytes_per_second))));
            }
        }
        Phase::CatchingUp | Phase::Streaming => {
            parts.push(format!("{} changes", count(changes(monitor))));
            parts.push(format!("{}/s", count(rate.changes_per_second as u64)));
            parts.push(lag(monitor));
        }
        Phase::Retrying => parts.extend(monitor.last_error()),
        Phase::Starting | Phase::ExportingSnapshot | Phase::Stopping | Phase::Ended => {}
    }
    let broken = tables.iter().filter(|table| matches!(table.state, TableState::Broken { .. })).count();
    if broken > 0 {
        parts.push(format!("{broken} set aside"));
    }
    format!("{}  {}  {}", task.task, phase.word(), parts.join(" · ")).trim_end().to_owned()
}

fn lag(monitor: &Monitor) -> String {
    let waiting = monitor.lag_bytes();
    if waiting == 0 {
        return "up to date".to_owned();
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let behind = now.as_micros() as i64 - monitor.committed_at_us();
    match monitor.committed_at_us() {
        0 => format!("{} waiting", bytes(waiting)),
        _ => format!(
            "{} waiting, last change {} ago",
            bytes(waiting),
            duration(Duration::from_micros(behind.max(0) as u64))
        ),
    }
}

/// A line per table, problems first, then what runs; the rest as counts.
fn table_lines(tables: &[TableView], budget: usize) -> Vec<String> {
    let urgency = |table: &&TableView| match &table.state {
        TableState::Broken { .. } => 0,
        TableState::Copying => 1,
        TableState::CatchingUp => 2,
        TableState::Live | TableState::Paused => 3,
        TableState::Waiting | TableState::Copied => 4,
    };
    let mut order: Vec<&TableView> = tables.iter().collect();
    order.sort_by_key(urgency);
    let fits = if order.len() > budget { budget.saturating_sub(1) } else { order.len() };
    let width =
        order.iter().take(fits).map(|table| table.table.name.to_string().chars().count()).max().unwrap_or(0);
    let mut lines: Vec<String> = order.iter().take(fits).map(|table| table_line(table, width)).collect();
    let rest = order.get(fits..).unwrap_or_default();
    if !rest.is_empty() {
        let mut words: Vec<&str> = rest.iter().map(|table| table.state.word()).collect();
        words.sort_unstable();
        let counts = words.chunk_by(|a, b| a == b).map(|same| format!("{} {}", same.len(), same[0]));
        lines.push(format!("  … {} more tables: {}", rest.len(), counts.collect::<Vec<_>>().join(", ")));
    }
    lines
}

fn table_line(table: &TableView, width: usize) -> String {
    let name = table.table.name.to_string();
    let state = table.state.word();
    let rest = match &table.state {
        TableState::Broken { code, problem } => format!("{code}: {problem}"),
        TableState::Copying => {
            let percent = percent(table);
            let filled = (percent / 100.0 * BAR_CELLS as f64) as usize;
            let bar = format!("{}{}", "━".repeat(filled), "─".repeat(BAR_CELLS - filled.min(BAR_CELLS)));
            let rows = format!("{}/~{} rows", count(table.rows_copied), count(table.table.rows_estimated));
            format!("{bar} {percent:>5.1}%  {rows}")
        }
        TableState::Waiting => bytes(table.table.bytes),
        _ => format!("{} rows copied · {} changes", count(table.rows_copied), count(table.changes)),
    };
    format!("  {name:<width$}  {state:<11}  {rest}")
}

/// Never 100 before everything is durable.
fn percent(table: &TableView) -> f64 {
    if copied(&table.state) {
        return 100.0;
    }
    let planned = table.bytes_planned.max(1) as f64;
    (table.bytes_copied as f64 * 100.0 / planned).min(99.9)
}

fn copied(state: &TableState) -> bool {
    matches!(state, TableState::Copied | TableState::CatchingUp | TableState::Live)
}

fn copied_bytes(tables: &[TableView]) -> (u64, u64) {
    let planned = |table: &TableView| {
        table.bytes_planned.max(if table.chunks_planned == 0 { table.table.bytes } else { 0 })
    };
    let done = |table: &TableView| table.bytes_copied;
    (tables.iter().map(done).sum(), tables.iter().map(planned).sum())
}

fn changes(monitor: &Monitor) -> u64 {
    monitor.changes.load(std::sync::atomic::Ordering::Relaxed)
}

/// A task's counters for programs.
pub(crate) fn snapshot(task: &Shown) -> Value {
    let monitor = &task.monitor;
    let table = |table: &TableView| {
        json!({
            "table": table.table.name.to_string(), "state": table.state.word(),
            "rows_copied": table.rows_copied, "rows_estimated": table.table.rows_estimated,
            "bytes_copied": table.bytes_copied, "bytes_planned": table.bytes_planned,
            "percent": (percent(table) * 10.0).round() / 10.0, "changes": table.changes,
        })
    };
    json!({
        "task": task.task, "phase": monitor.phase().word(), "changes": changes(monitor),
        "position": monitor.durable().to_string(), "lag_bytes": monitor.lag_bytes(),
        "retrying": monitor.last_error(),
        "tables": monitor.tables().iter().map(table).collect::<Vec<_>>(),
    })
}

/// Rates over the last seconds.
#[derive(Default)]
struct Rate {
    last: Option<(Instant, u64, u64)>,
    bytes_per_second: f64,
    changes_per_second: f64,
}

impl Rate {
    fn note(&mut self, monitor: &Monitor) {
        let now = Instant::now();
        let (bytes, changes) = (copied_bytes(&monitor.tables()).0, changes(monitor));
        if let Some((at, bytes_before, changes_before)) = self.last {
            let seconds = (now - at).as_secs_f64();
            if seconds <= 0.0 {
                return;
            }
            let weight = (seconds / RATE_OVER.as_secs_f64()).min(1.0);
            let blend = |old: f64, new: u64| old + weight * (new as f64 / seconds - old);
            self.bytes_per_second = blend(self.bytes_per_second, bytes.saturating_sub(bytes_before));
            self.changes_per_second = blend(self.changes_per_second, changes.saturating_sub(changes_before));
        }
        self.last = Some((now, bytes, changes));
    }
}

#[cfg(test)]
mod tests {
    use pgferry_model::{Table, TableId, TableName};

    use super::*;

    fn view(name: &str, state: TableState) -> TableView {
        let table = Table {
            id: TableId(0),
            name: TableName::new("public", name),
            target_name: TableName::new("public", name),
            columns: Vec::new(),
            key: Vec::new(),
            key_enforced: true,
            full_identity: false,
            rows_estimated: 1000,
            bytes: 1_000_000,
        };
        TableView {
            table: Arc::new(table),
            state,
            rows_copied: 500,
            bytes_copied: 2_000_000,
            bytes_planned: 1_000_000,
            chunks_done: 1,
            chunks_planned: 2,
            changes: 7,
        }
    }

    #[test]
    fn problems_and_running_tables_come_first_and_the_rest_is_counted() {
        let broken = TableState::Broken { code: "a.b".into(), problem: "no".into() };
        let mut tables: Vec<TableView> =
            (0..20).map(|i| view(&format!("w{i}"), TableState::Waiting)).collect();
        tables.push(view("running", TableState::Copying));
        tables.push(view("bad", broken));
        let lines = table_lines(&tables, 4);
        assert_eq!(lines.len(), 4);
        assert!(lines[0].contains("bad") && lines[0].contains("a.b: no"), "{lines:?}");
        assert!(lines[1].contains("running"), "{lines:?}");
        assert_eq!(lines[3], "  … 19 more tables: 19 waiting");
    }

    #[test]
    fn a_table_is_never_at_100_percent_before_it_is_copied() {
        assert!(percent(&view("a", TableState::Copying)) < 100.0);
        assert!((percent(&view("a", TableState::Live)) - 100.0).abs() < f64::EPSILON);
        assert!(table_line(&view("a", TableState::Copying), 8).contains(" 99.9%"));
    }
}
