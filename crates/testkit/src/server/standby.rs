//! Streaming standbys: made from a base backup, promoted on request.
//!
//! ```text
//!   primary: start backup ──> copy its data folder ──> stop backup (backup_label) ──> standby streams from the primary
//! ```
//!
//! Invariant: the primary keeps the WAL a standby needs by a physical slot, made before the backup.
//!
//! Why not `pg_basebackup`: the servers from the registry (10, 13, 18) come without it; the functions it stands on
//! (PostgreSQL docs, "Making a Base Backup Using the Low Level API") work on all of them.
//! Limits: `pg_backup_start` from 15, `pg_start_backup` below; `standby.signal` from 12, `recovery.conf` below.
//! A slot named `standby_<n>` stays on the primary, so give standbys to servers of a test's own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Server, ServerOptions, blocking, template};
use crate::run_folder;

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Server {
    /// Starts a hot standby that streams from this server, with this server's settings and `more` on top.
    pub async fn standby(&self, more: &[(&str, &str)]) -> Result<Self> {
        let mut options: ServerOptions = self.0.options.clone();
        for (name, value) in more {
            options = options.set(name, value);
        }
        let slot = format!("standby_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let primary = self.client("postgres").await?;
        primary.execute("SELECT pg_create_physical_replication_slot($1, true)", &[&slot]).await?;
        let folder = run_folder::new_folder(&format!("postgres-{}-standby", self.major()))?;
        self.0.installation.give(&folder)?;
        self.copy_data(&primary, &folder.join("data")).await?;
        let socket = self.socket_dir();
        let from = format!(
            // Slots are synchronized (17+) over a connection to a database.
            "host={} port={} user=postgres dbname=postgres application_name={slot}",
            socket.display(),
            self.port()
        );
        let installation = self.0.installation.clone();
        let follow = move |data: &Path| follow(&installation, data, &from, &slot);
        let base = ServerOptions { tls: false, ..options };
        Self::start_in(self.0.installation.clone(), folder, base.set("hot_standby", "on"), follow).await
    }

    async fn copy_data(&self, primary: &tokio_postgres::Client, to: &Path) -> Result<()> {
        let (start, stop) = if self.major() >= 15 {
            ("SELECT pg_backup_start('standby', true)", "SELECT labelfile FROM pg_backup_stop(false)")
        } else {
            (
                "SELECT pg_start_backup('standby', true, false)",
                "SELECT labelfile FROM pg_stop_backup(false, false)",
            )
        };
        primary.batch_execute(start).await?;
        let (from, target) = (self.data_dir(), to.to_owned());
        blocking(move || copy_live(&from, &target)).await?;
        let label: String = primary.query_one(stop, &[]).await?.get(0);
        fs::write(to.join("backup_label"), label)?;
        self.0.installation.give(&to.join("backup_label"))
    }

    /// Makes a standby a server of its own and waits until it takes writes.
    pub async fn promote(&self) -> Result<()> {
        let mut command = self.0.installation.command("pg_ctl");
        // Without waiting: pg_ctl's own wait is 60 s, and what it waits for is asked below.
        command.args(["promote", "-W", "-D"]).arg(self.data_dir());
        blocking(move || template::check("pg_ctl promote", &command.output()?)).await?;
        let client = self.client("postgres").await?;
        for _ in 0..1000 {
            if !client.query_one("SELECT pg_is_in_recovery()", &[]).await?.get::<_, bool>(0) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the standby did not take over within 20 s")
    }

    /// Waits until this standby has replayed what `primary` has written by now.
    pub async fn catch_up_with(&self, primary: &Server) -> Result<()> {
        let written =
            primary.client("postgres").await?.query_one("SELECT pg_current_wal_lsn()::text", &[]).await?;
        let written: String = written.get(0);
        let client = self.client("postgres").await?;
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn");
        for _ in 0..1000 {
            if client.query_one(&replayed, &[]).await?.get::<_, Option<bool>>(0) == Some(true) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the standby did not reach {written} within 20 s")
    }
}

/// Copies the folder of a running server. Files that go away meanwhile are no loss: replaying WAL removes them too.
fn copy_live(from: &Path, to: &Path) -> Result<()> {
    let output =
        Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to).env("LC_ALL", "C").output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    if text.lines().any(|line| !line.contains("No such file")) {
        bail!("cannot copy the primary's data: {text}");
    }
    for leftover in ["postmaster.pid", "postmaster.opts"] {
        let _absent = fs::remove_file(to.join(leftover));
    }
    // Slots belong to the server they were made on.
    for slot in fs::read_dir(to.join("pg_replslot"))? {
        fs::remove_dir_all(slot?.path())?;
    }
    Ok(())
}

/// Tells the server in `data` to follow another one.
fn follow(installation: &super::Installation, data: &Path, from: &str, slot: &str) -> Result<()> {
    let lines = format!("primary_conninfo = '{from}'\nprimary_slot_name = '{slot}'\n");
    if installation.major >= 12 {
        let path = data.join("postgresql.conf");
        let conf = fs::read_to_string(&path).context("the copy has no postgresql.conf")?;
        fs::write(&path, conf + &lines)?;
        fs::write(data.join("standby.signal"), "")?;
        installation.give(&data.join("standby.signal"))
    } else {
        let lines = format!("standby_mode = 'on'\nrecovery_target_timeline = 'latest'\n{lines}");
        fs::write(data.join("recovery.conf"), lines)?;
        installation.give(&data.join("recovery.conf"))
    }
}
