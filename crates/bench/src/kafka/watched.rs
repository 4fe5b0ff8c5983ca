//! A contestant under way: it runs until it is ended, and is watched from outside only.
//!
//! CPU comes from `/proc/PID/stat` in ticks of 10 ms, the peak of its memory from `/proc/PID/status`.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::Client;

use super::topics::Cluster;
use crate::contestant::Contestant;

const TICKS: f64 = 100.0;
const LOOK_EVERY: Duration = Duration::from_millis(10);
const START_WITHIN: Duration = Duration::from_secs(120);
const RUN_WITHIN: Duration = Duration::from_secs(900);
const END_WITHIN: Duration = Duration::from_secs(30);
/// Nothing more comes after so long.
const QUIET: Duration = Duration::from_millis(1500);

pub(super) struct Watched {
    child: Child,
    process: u32,
    log: String,
    started: Instant,
}

/// What it took to bring a backlog.
#[derive(Clone, Debug)]
pub(super) struct Brought {
    /// From its start until it reads the slot.
    pub(super) starting: Duration,
    /// From then until the last record was visible.
    pub(super) streaming: Duration,
    /// CPU while streaming, and since its start.
    pub(super) cpu: f64,
    pub(super) cpu_all: f64,
    pub(super) peak_kib: u64,
}

impl Watched {
    pub(super) fn start(contestant: &Contestant, log: String) -> Result<Self> {
        let file = File::create(&log)?;
        let started = Instant::now();
        let child = Command::new(&contestant.program)
            .args(&contestant.arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("{} cannot be started", contestant.program.display()))?;
        Ok(Watched { process: child.id(), child, log, started })
    }

    fn alive(&mut self) -> Result<()> {
        let Some(ended) = self.child.try_wait()? else { return Ok(()) };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        bail!("it ended with {ended}:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"))
    }

    /// Waits until it reads the slot; how long that took since its start.
    pub(super) async fn until_streaming(&mut self, client: &Client) -> Result<Duration> {
        let reads = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'contestant' AND active";
        while client.query_opt(reads, &[]).await?.is_none() {
            self.alive()?;
            if self.started.elapsed() > START_WITHIN {
                bail!("it does not read the slot within {START_WITHIN:?}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(self.started.elapsed())
    }

    /// Waits until a topic holds that many records, and no more come.
    pub(super) async fn until_brought(
        &mut self,
        client: &Client,
        cluster: &Cluster,
        topic: &str,
        changes: u64,
    ) -> Result<Brought> {
        let starting = self.until_streaming(client).await?;
        let (streaming, cpu_before) = (Instant::now(), self.cpu_seconds()?);
        let (mut end, mut last, mut cpu_all) = (0, streaming, cpu_before);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = tokio::task::block_in_place(|| cluster.end(topic))?;
            if now > end {
                (end, last, cpu_all) = (now, Instant::now(), self.cpu_seconds()?);
            } else if end >= changes && last.elapsed() > QUIET {
                break;
            }
            self.alive()?;
            if streaming.elapsed() > RUN_WITHIN {
                bail!("{end} of {changes} changes within {RUN_WITHIN:?}");
            }
        }
        Ok(Brought {
            starting,
            streaming: last - streaming,
            cpu: cpu_all - cpu_before,
            cpu_all,
            peak_kib: self.peak_kib()?,
        })
    }

    /// CPU of all its threads so far.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process))?;
        let (_, fields) = stat.rsplit_once(')').context("no fields in its stat file")?;
        let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<u64>().ok());
        Ok(ticks.sum::<u64>() as f64 / TICKS)
    }

    pub(super) fn peak_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
    }

    /// Ends it.
    pub(super) async fn end(mut self) -> Result<()> {
        self.alive()?;
        kill(Pid::from_raw(i32::try_from(self.process)?), Signal::SIGTERM)?;
        let asked = Instant::now();
        while self.child.try_wait()?.is_none() && asked.elapsed() < END_WITHIN {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
