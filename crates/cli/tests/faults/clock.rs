//! The wall clock jumps by a day, forth and back, under a running program: nothing stalls, nothing spins, nothing differs.
//!
//! The program sees a moved clock by a small library that is loaded before libc (`clock.c`); waits and timers run on the monotonic clock, which
//! nobody moves. Time is used by nobody to decide anything: the wall clock goes into status updates, where the server shows it
//! (`pg_stat_replication.reply_time`), and into logs and metrics.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgferry_testkit::{Server, ServerOptions};

use crate::voyage::Voyage;

const DAY_S: i64 = 86_400;

fn build(folder: &Path) -> Result<PathBuf> {
    let (library, source) = (folder.join("clock.so"), folder.join("clock.c"));
    std::fs::write(&source, include_str!("clock.c"))?;
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(&source)
        .arg("-ldl")
        .output()?;
    ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(library)
}

/// Processor time that a process has used, all threads, by the kernel's count.
fn used(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(") ").context("a stat line")?.1;
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // A tick is a hundredth of a second on every Linux that there is (`sysconf(_SC_CLK_TCK)`).
    Ok(Duration::from_millis(ticks * 10))
}

/// What the server saw on the program's clock, in seconds ahead of its own.
async fn ahead(voyage: &Voyage) -> Result<f64> {
    let sql = "SELECT extract(epoch FROM r.reply_time - clock_timestamp())::float8 FROM pg_stat_replication r \
               JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE s.slot_name = $1";
    Ok(voyage.database().client().await?.query_one(sql, &[&voyage.slot()]).await?.get(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_by_a_day_neither_stalls_nor_spins_the_program() -> Result<()> {
    let server = Server::start(ServerOptions::new(15).set("wal_sender_timeout", "2s")).await?;
    let mut voyage = Voyage::new(&server).await?;
    let folder = voyage.folder();
    let (library, moved) = (build(&folder)?, folder.join("moved"));
    std::fs::write(&moved, "0")?;
    voyage.env("LD_PRELOAD", &library.to_string_lossy());
    voyage.env("MOVED_CLOCK", &moved.to_string_lossy());
    let mut ferry = voyage.following().await?;
    for days in [1, -1, 0] {
        std::fs::write(&moved, (days * DAY_S).to_string())?;
        let (begun, before) = (Instant::now(), used(ferry.pid())?);
        // Longer than the server waits for a status update, and than a silence is left alone.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (idle, spent) = (begun.elapsed(), used(ferry.pid())? - before);
        ensure!(spent < idle / 3, "{days} days: {spent:?} of processor in {idle:?} of nothing to do");
        let seen = ahead(&voyage).await?;
        ensure!((seen - (days * DAY_S) as f64).abs() < 60.0, "the clock was not moved: {seen} s");
        voyage.change().await?;
        let took = voyage.delivered(&mut ferry).await?;
        ensure!(took < Duration::from_secs(15), "{days} days: delivered after {took:?}");
        println!("{days:2} days: idle {spent:?} of processor in {idle:?}, a change delivered after {took:?}");
    }
    // A broken connection and a retry under a moved clock, too.
    std::fs::write(&moved, (-DAY_S).to_string())?;
    voyage.proxy.reset();
    std::fs::write(&moved, DAY_S.to_string())?;
    voyage.change().await?;
    voyage.arrived(ferry).await?;
    Ok(())
}
