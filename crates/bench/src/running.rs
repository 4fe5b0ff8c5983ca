//! A contestant that is watched while it runs.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::contestant::Contestant;
use crate::measure::kib;

/// The longest wait for a line or the end.
const WAIT_MAX: Duration = Duration::from_secs(900);
const TICKS: f64 = 100.0;

pub(crate) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    process: u32,
}

impl Running {
    pub(crate) fn start(contestant: &Contestant) -> Result<Self> {
        let mut child = Command::new(&contestant.program)
            .args(&contestant.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let process = child.id().context("it has ended at once")?;
        let lines = BufReader::new(child.stdout.take().context("its output is not read")?).lines();
        Ok(Running { child, lines, process })
    }

    /// Waits until it prints a line with that beginning.
    pub(crate) async fn until(mut self, beginning: &str) -> Result<Self> {
        let reading = async {
            while let Some(line) = self.lines.next_line().await? {
                if line.starts_with(beginning) {
                    return Ok(self);
                }
            }
            anyhow::bail!("it ended before it said {beginning}")
        };
        tokio::time::timeout(WAIT_MAX, reading).await?
    }

    /// Waits for its end; what else it printed.
    pub(crate) async fn end(mut self) -> Result<String> {
        let reading = async {
            let mut said = String::new();
            while let Some(line) = self.lines.next_line().await? {
                said += &line;
                said += "\n";
            }
            let ended = self.child.wait().await?;
            ensure!(ended.success(), "it ended with {ended}");
            Ok(said)
        };
        tokio::time::timeout(WAIT_MAX, reading).await?
    }

    /// CPU of all its threads so far.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process))?;
        let (_, fields) = stat.rsplit_once(')').context("no fields in its stat file")?;
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<u64>().ok()).sum();
        Ok(ticks as f64 / TICKS)
    }

    /// The peak of its memory so far.
    pub(crate) fn peak_kib(&self) -> Result<u64> {
        Ok(kib(&fs::read_to_string(format!("/proc/{}/status", self.process))?, "VmHWM:"))
    }

    /// Bytes that it has had written to files so far.
    pub(crate) fn written_bytes(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/io", self.process))?;
        let line = text.lines().find_map(|line| line.strip_prefix("write_bytes:"));
        line.and_then(|text| text.trim().parse().ok()).context("no write_bytes in its io file")
    }
}
