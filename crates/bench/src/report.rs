//! Figures for people: printed, and put into their section of docs/reference/benchmarks.md.
//!
//! Invariant: a section is replaced as a whole, between its own markers; no other is touched.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::effort::Effort;
use crate::measure::{Run, fastest, median};

/// A goal beside what was measured.
#[derive(Clone, Debug)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) measured: String,
    pub(crate) met: bool,
}

/// One section's text, as it grows.
pub(crate) struct Report {
    name: &'static str,
    text: String,
    goals: Vec<Goal>,
}

impl Report {
    pub(crate) fn new(name: &'static str, effort: &Effort, method: &str) -> Self {
        let mut text = format!("## {name}\n\n{method}\n\n{}\n", circumstances());
        let _ = writeln!(
            text,
            "PostgreSQL {}, scale {}, {} rounds. Repeat: `cargo xtask bench {name} --scale {} --rounds {}`.",
            effort.major, effort.scale, effort.rounds, effort.scale, effort.rounds
        );
        println!("{text}");
        Report { name, text, goals: Vec::new() }
    }

    fn add(&mut self, text: &str) {
        println!("{text}");
        self.text += text;
        self.text += "\n";
    }

    pub(crate) fn note(&mut self, text: &str) {
        self.add(&format!("\n{text}"));
    }

    /// A table; its first line holds the names of the columns.
    pub(crate) fn table(&mut self, title: &str, lines: &[Vec<String>]) {
        let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..lines.first().map_or(0, Vec::len)).map(width).collect();
        let mut text = format!("\n### {title}\n\n");
        for (number, line) in lines.iter().enumerate() {
            let cells: Vec<String> =
                line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            let _ = writeln!(text, "| {} |", cells.join(" | "));
            if number == 0 {
                let rule: Vec<String> = widths.iter().map(|width| "-".repeat((*width).max(3))).collect();
                let _ = writeln!(text, "| {} |", rule.join(" | "));
            }
        }
        self.add(text.trim_end());
    }

    /// Contestants' medians, in the order given; ratios are against the fastest of those whose names start with `floor`, else
    /// against the first.
    pub(crate) fn runs(
        &mut self,
        title: &str,
        unit: &str,
        count: u64,
        names: &[String],
        runs: &HashMap<String, Vec<Run>>,
    ) {
        let wall = |name: &String| median(&runs[name]).0.wall;
        let floors = names.iter().filter(|name| name.starts_with("floor")).map(wall).min();
        let Some(base) = floors.or_else(|| names.first().map(wall)) else { return };
        let heads = ["", "wall s [min-max]", "k/s", "ratio", "own CPU s/M", "server CPU s/M", "peak MiB"];
        let mut lines = vec![heads.map(str::to_owned).to_vec()];
        for name in names {
            let (run, low, high) = median(&runs[name]);
            let per_million =
                |cpu: std::time::Duration| format!("{:.2}", cpu.as_secs_f64() * 1e6 / count as f64);
            lines.push(vec![
                name.clone(),
                format!("{:.2} [{:.2}-{:.2}]", run.wall.as_secs_f64(), low.as_secs_f64(), high.as_secs_f64()),
                format!("{:.0}", count as f64 / run.wall.as_secs_f64() / 1e3),
                format!("{:.2}", base.as_secs_f64() / run.wall.as_secs_f64()),
                per_million(run.own_cpu),
                per_million(run.server_cpu),
                format!("{}", run.peak_kib >> 10),
            ]);
        }
        self.table(&format!("{title}: {count} {unit}"), &lines);
    }

    pub(crate) fn goal(&mut self, what: impl Into<String>, measured: impl Into<String>, met: bool) {
        self.goals.push(Goal { what: what.into(), measured: measured.into(), met });
    }

    /// How much faster the fastest contestant of `ours` has to be than the fastest of `theirs`.
    pub(crate) fn faster(
        &mut self,
        what: &str,
        runs: &HashMap<String, Vec<Run>>,
        ours: &str,
        theirs: &str,
        times_min: f64,
    ) {
        let (Some(ours), Some(theirs)) = (fastest(runs, ours), fastest(runs, theirs)) else { return };
        let times = theirs.wall.as_secs_f64() / ours.wall.as_secs_f64();
        self.goal(format!("{what}: at least {times_min} x"), format!("{times:.2} x"), times >= times_min);
    }

    /// Own CPU of the fastest contestant of `ours`, for `count` rows or changes.
    pub(crate) fn cpu_at_most(
        &mut self,
        what: &str,
        runs: &HashMap<String, Vec<Run>>,
        ours: &str,
        count: u64,
        max: f64,
    ) {
        let Some(run) = fastest(runs, ours) else { return };
        let cpu = run.own_cpu.as_secs_f64() * 1e6 / count as f64;
        self.goal(format!("{what}: own CPU at most {max} s per million"), format!("{cpu:.2} s"), cpu <= max);
    }

    /// Writes the section, unless told to print only.
    pub(crate) fn finish(mut self, effort: &Effort) -> Result<()> {
        if !self.goals.is_empty() {
            let mut lines = vec![["goal", "measured", ""].map(str::to_owned).to_vec()];
            for goal in std::mem::take(&mut self.goals) {
                let met = if goal.met { "met" } else { "short" };
                lines.push(vec![goal.what, goal.measured, met.to_owned()]);
            }
            let title = format!("{}: goals", self.name);
            self.table(&title, &lines);
        }
        if effort.print_only {
            return Ok(());
        }
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/benchmarks.md");
        let before = std::fs::read_to_string(&page).with_context(|| format!("reading {}", page.display()))?;
        std::fs::write(&page, replaced(&before, self.name, self.text.trim()))?;
        println!("\nwritten into {}", page.display());
        Ok(())
    }
}

/// The page with a section in place of the one before, or at the end.
fn replaced(page: &str, name: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- bench: {name} -->"), format!("<!-- end: {name} -->"));
    let section = format!("{begin}\n{text}\n{end}");
    match (page.split_once(&begin), page.split_once(&end)) {
        (Some((before, _)), Some((_, after))) => format!("{before}{section}{after}"),
        _ => format!("{}\n\n{section}\n", page.trim_end()),
    }
}

/// Machine, system and commit.
fn circumstances() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    let memory = read("/proc/meminfo");
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 = kib.and_then(|text| text.trim().split(' ').next()?.parse().ok()).unwrap_or(0);
    let system = read("/etc/os-release");
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M"]).output();
    let date = date.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let load = read("/proc/loadavg");
    format!(
        "{} UTC, commit {}, {count} x {}, {} GiB, {}, load before {}.",
        date.unwrap_or_default(),
        commit.unwrap_or_default(),
        model.trim_start_matches([' ', '\t', ':']),
        kib.div_ceil(1 << 20),
        system.trim_matches('"'),
        load.split(' ').next().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn a_section_is_replaced_as_a_whole_and_alone() {
        let page = replaced("# Page\n", "one", "first");
        let page = replaced(&page, "two", "second");
        assert_eq!(
            page,
            "# Page\n\n<!-- bench: one -->\nfirst\n<!-- end: one -->\n\n<!-- bench: two -->\nsecond\n<!-- end: two -->\n"
        );
        assert_eq!(replaced(&page, "one", "new"), page.replace("first", "new"));
    }
}
