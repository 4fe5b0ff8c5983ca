//! One run of one contestant: its time, its CPU and peak memory, and the server's CPU meanwhile.
//!
//! CPU of the contestant is what the kernel counts for a process that was waited for (getrusage(2)); peak memory is sampled from
//! `/proc/PID/status`, so a peak in the last 5 ms may be missed.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tokio::process::Command;

/// What one run took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) wall: Duration,
    pub(crate) own_cpu: Duration,
    pub(crate) server_cpu: Duration,
    pub(crate) peak_kib: u64,
}

/// Ticks per second of `/proc/PID/stat`; the same on every Linux that Rust runs on.
const TICKS: u64 = 100;
const SAMPLED_EVERY: Duration = Duration::from_millis(5);
const RUN_MAX: Duration = Duration::from_secs(600);

/// Runs a program to its end.
pub(crate) async fn measure(program: &Path, arguments: &[String], postmaster: u32) -> Result<Run> {
    let (server, children, started) = (server_cpu(postmaster)?, children_cpu()?, Instant::now());
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    let status = format!("/proc/{}/status", child.id().context("it has ended at once")?);
    let (mut peak_kib, mut ticks) = (0, tokio::time::interval(SAMPLED_EVERY));
    let ended = loop {
        tokio::select! {
            ended = child.wait() => break ended?,
            _ = ticks.tick() => peak_kib = peak(&status).unwrap_or(0).max(peak_kib),
        }
        if started.elapsed() > RUN_MAX {
            bail!("{} takes longer than {RUN_MAX:?}", program.display());
        }
    };
    let wall = started.elapsed();
    if !ended.success() {
        bail!("{} {} ended with {ended}", program.display(), arguments.join(" "));
    }
    let server_cpu = server_cpu(postmaster)?.saturating_sub(server);
    Ok(Run { wall, own_cpu: children_cpu()?.saturating_sub(children), server_cpu, peak_kib })
}

fn peak(status: &str) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?.trim().parse().ok()
}

fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros.try_into()?))
}

/// CPU of a server: its first process with all children that have ended, and those that live.
fn server_cpu(postmaster: u32) -> Result<Duration> {
    let mut ticks = 0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process may end while the list is read; the next one sees its time in the parent.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((_, fields)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field =
            |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let own = field(14) + field(15);
        if pid == postmaster {
            ticks += own + field(16) + field(17);
        } else if field(4) == u64::from(postmaster) {
            ticks += own;
        }
    }
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

/// The middle one of an odd number of runs by wall time, with the fastest and the slowest.
pub(crate) fn median(runs: &[Run]) -> (Run, Duration, Duration) {
    let mut sorted = runs.to_vec();
    sorted.sort_by_key(|run| run.wall);
    let last = sorted.len() - 1;
    (sorted[last / 2], sorted[0].wall, sorted[last].wall)
}

/// Prints contestants' medians, in the order given; the first of `names` that starts with `floor` is 1.00.
pub(crate) fn print(title: &str, unit: &str, count: u64, names: &[String], runs: &HashMap<String, Vec<Run>>) {
    println!(
        "\n{title}: {count} {unit}, medians of {} rounds",
        runs.values().map(Vec::len).max().unwrap_or(0)
    );
    println!(
        "{:<26} {:>17} {:>9} {:>6} {:>9} {:>9} {:>7}",
        "", "wall s [min-max]", "k/s", "ratio", "own s/M", "server s/M", "MiB"
    );
    let best_floor = names
        .iter()
        .filter(|name| name.starts_with("floor"))
        .map(|name| median(&runs[name]).0.wall)
        .min()
        .unwrap_or_default();
    for name in names {
        let (run, low, high) = median(&runs[name]);
        let per_million = |cpu: Duration| cpu.as_secs_f64() * 1e6 / count as f64;
        println!(
            "{name:<26} {:>5.2} [{:.2}-{:.2}] {:>9.0} {:>6.2} {:>9.2} {:>9.2} {:>7}",
            run.wall.as_secs_f64(),
            low.as_secs_f64(),
            high.as_secs_f64(),
            count as f64 / run.wall.as_secs_f64() / 1e3,
            best_floor.as_secs_f64() / run.wall.as_secs_f64(),
            per_million(run.own_cpu),
            per_million(run.server_cpu),
            run.peak_kib >> 10,
        );
    }
}
