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
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// What one run took.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) wall: Duration,
    pub(crate) own_cpu: Duration,
    pub(crate) server_cpu: Duration,
    pub(crate) peak_kib: u64,
    /// The peak of what no file stands behind.
    pub(crate) anonymous_kib: u64,
    /// What it printed.
    pub(crate) said: String,
}

impl Run {
    /// A figure of what it printed: `name=number`.
    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        let figures = self.said.split_whitespace().filter_map(|word| word.split_once('='));
        figures.filter(|(known, _)| *known == name).find_map(|(_, number)| number.parse().ok())
    }
}

/// Ticks per second of `/proc/PID/stat`; the same on every Linux that Rust runs on.
const TICKS: u64 = 100;
const SAMPLED_EVERY: Duration = Duration::from_millis(5);
const RUN_MAX: Duration = Duration::from_secs(1800);

/// Runs a program to its end.
pub(crate) async fn measure(program: &Path, arguments: &[String], postmaster: u32) -> Result<Run> {
    let (server, children, started) = (server_cpu(postmaster)?, children_cpu()?, Instant::now());
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    let status = format!("/proc/{}/status", child.id().context("it has ended at once")?);
    let mut printed = child.stdout.take().context("its output is not read")?;
    let reading = tokio::spawn(async move {
        let mut said = String::new();
        printed.read_to_string(&mut said).await.map(|_| said)
    });
    let (mut peak_kib, mut anonymous_kib) = (0, 0);
    let mut ticks = tokio::time::interval(SAMPLED_EVERY);
    let ended = loop {
        tokio::select! {
            ended = child.wait() => break ended?,
            _ = ticks.tick() => {
                let text = fs::read_to_string(&status).unwrap_or_default();
                peak_kib = kib(&text, "VmHWM:").max(peak_kib);
                anonymous_kib = kib(&text, "RssAnon:").max(anonymous_kib);
            }
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
    Ok(Run {
        wall,
        own_cpu: children_cpu()?.saturating_sub(children),
        server_cpu,
        peak_kib,
        anonymous_kib,
        said: reading.await??,
    })
}

pub(crate) fn kib(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
}

fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros.try_into()?))
}

/// CPU of a server: its first process with all children that have ended, and those that live.
pub(crate) fn server_cpu(postmaster: u32) -> Result<Duration> {
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
    (sorted[last / 2].clone(), sorted[0].wall, sorted[last].wall)
}

/// The median run of the fastest among the contestants whose names start with `kind`; `None` where none does.
pub(crate) fn fastest(runs: &HashMap<String, Vec<Run>>, kind: &str) -> Option<Run> {
    let named = runs.iter().filter(|(name, _)| name.starts_with(kind));
    named.map(|(_, runs)| median(runs).0).min_by_key(|run| run.wall)
}
