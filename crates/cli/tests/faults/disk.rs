//! A full disk under the target's file and under the spool: a file system of a few megabytes, mounted for the test and always unmounted.
//!
//! Limit: takes the right to mount. Without it the tests say loudly that they have shown nothing, and pass.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use pgferry_testkit::{Server, ServerOptions};

use crate::voyage::{Voyage, told};

/// A small file system in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where this user may not mount.
    fn new(at: &Path, megabytes: u32) -> Result<Option<SmallDisk>> {
        std::fs::create_dir_all(at)?;
        let size = format!("size={megabytes}m,mode=0777");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output()?;
        if output.status.success() {
            return Ok(Some(SmallDisk(at.to_owned())));
        }
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        let _ = writeln!(std::io::stderr(), "\n*** NOT SHOWN: a full disk; this user may not mount: {why}\n");
        Ok(None)
    }

    /// Leaves so many kilobytes free.
    fn fill(&self, kilobytes_free: u64) -> Result<()> {
        let output = Command::new("df").args(["--output=avail", "-k"]).arg(&self.0).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let free: u64 = text.lines().last().unwrap_or_default().trim().parse().context(text)?;
        let size = free.saturating_sub(kilobytes_free) * 1024;
        std::fs::write(self.filling(), vec![1; usize::try_from(size)?]).context("filling the disk")
    }

    fn empty(&self) -> Result<()> {
        std::fs::remove_file(self.filling()).context("making room")
    }

    fn filling(&self) -> PathBuf {
        self.0.join("filling")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is still ending may have a file open.
        let _gone = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

const FILE: &str = "path = \"copy.duckdb\"";
const LARGE: &str =
    "INSERT INTO t SELECT -1000000 - g, repeat(md5(random()::text), 20) FROM generate_series(1, 20000) g";

/// The program and the comparison both find the file on the small disk.
async fn on_disk(voyage: &mut Voyage) -> Result<()> {
    voyage.edit(FILE, "path = \"disk/copy.duckdb\"")?;
    let direct = std::fs::read_to_string(voyage.scene.task_file())?;
    std::fs::write(voyage.scene.task_file(), direct.replacen(FILE, "path = \"disk/copy.duckdb\"", 1))?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_target_is_told_and_cured() -> Result<()> {
    let server = Server::shared(15).await?;
    for copying in [true, false] {
        let mut voyage = Voyage::new(&server).await?;
        let Some(disk) = SmallDisk::new(&voyage.folder().join("disk"), 96)? else { return Ok(()) };
        on_disk(&mut voyage).await?;
        let ended = if copying {
            disk.fill(700)?;
            voyage.run().await?
        } else {
            let ferry = voyage.following().await?;
            disk.fill(300)?;
            voyage.sql(LARGE).await?;
            told(&ferry.wait().await?)?
        };
        ended.error("target.disk_full").with_context(|| format!("copying: {copying}"))?;
        ensure!(ended.exit == Some(1), "{ended:?}");
        // Nothing gets better by itself.
        voyage.run().await?.error("target.disk_full").context("a second run")?;
        disk.empty()?;
        voyage.finished().await?;
        let more = voyage.following().await?;
        voyage.arrived(more).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_spool_is_told_and_cured() -> Result<()> {
    let server = Server::start(ServerOptions::new(15).small_decoding_memory()).await?;
    let more = "limits = { retry_wait = \"500ms\", memory = \"4MiB\", spool_directory = \"spool\" }\n";
    let voyage = Voyage::with(&server, more).await?;
    let Some(disk) = SmallDisk::new(&voyage.folder().join("spool"), 16)? else { return Ok(()) };
    let ferry = voyage.following().await?;
    disk.fill(64)?;
    voyage.sql(LARGE).await?;
    let ended = told(&ferry.wait().await?)?;
    ended.error("source.spool_failed")?;
    ensure!(ended.exit == Some(1), "{ended:?}");
    voyage.run().await?.error("source.spool_failed").context("a second run")?;
    disk.empty()?;
    voyage.finished().await
}
