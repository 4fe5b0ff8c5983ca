//! The replication slot: found, made, verified. Never made anew in silence.
//!
//! Invariant: a slot whose confirmed position is ahead of what the target holds means lost changes, always: an idle position is stored
//! in the target before it is confirmed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pgferry_model::{Error, Position, Result};
use pgferry_pipeline::failpoint;
use pgferry_postgres::{Session, quote_identifier, quote_literal};

use crate::control::{PostgresControl, column, optional, position};
use crate::error;
use crate::refused;

/// How long another holder of the slot may take to let go: our own old connection, after a crash.
pub(crate) const RELEASE_WITHIN: Duration = Duration::from_secs(15);
pub(crate) const RELEASE_POLL: Duration = Duration::from_millis(250);
/// How often a blocked creation says what it waits for.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// From here on it says besides that it keeps waiting.
const LONG_WAIT: Duration = Duration::from_secs(300);

/// What the server says of a slot.
#[derive(Clone, Debug)]
pub(crate) struct SlotState {
    pub(crate) plugin: Option<String>,
    pub(crate) database: Option<String>,
    pub(crate) active_pid: Option<String>,
    pub(crate) confirmed: Option<Position>,
    /// `wal_status` (13+); `None` below.
    pub(crate) wal_status: Option<String>,
    pub(crate) this_database: bool,
}

/// Asks for a slot.
pub(crate) async fn find(control: &PostgresControl, name: &str) -> Result<Option<SlotState>> {
    let status = if control.server_version_num().await? >= 130_000 { "s.wal_status" } else { "NULL" };
    let rows = control
        .ask(&format!(
            "SELECT s.plugin, s.database, s.active_pid, s.confirmed_flush_lsn, {status}, \
             s.database = pg_catalog.current_database() \
             FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = {}",
            quote_literal(name)
        ))
        .await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let confirmed = optional(&rows, 0, 3).map(|text| position(&text)).transpose()?;
    Ok(Some(SlotState {
        plugin: optional(&rows, 0, 0),
        database: optional(&rows, 0, 1),
        active_pid: optional(&rows, 0, 2),
        confirmed,
        wal_status: optional(&rows, 0, 4),
        this_database: optional(&rows, 0, 5).as_deref() == Some("t"),
    }))
}

/// The error for a slot that another process reads from, with who that is.
pub(crate) async fn active(control: &PostgresControl, name: &str) -> Error {
    let asked = control
        .ask(&format!(
            "SELECT s.active_pid, a.usename, a.application_name, coalesce(a.client_addr::pg_catalog.text, 'a local socket') \
             FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
             WHERE s.slot_name = {} AND s.active_pid IS NOT NULL",
            quote_literal(name)
        ))
        .await;
    let rows = asked.unwrap_or_default();
    let part = |at| optional(&rows, 0, at);
    let who = match (part(1), part(2), part(3)) {
        (Some(user), Some(application), Some(address)) => {
            format!(" (role {user}, application {application:?}, from {address})")
        }
        _ => String::new(),
    };
    error::slot_active(name, part(0).as_deref(), &who)
}

/// Ends the process that read the slot for us before, where the server has not noticed yet that its client is gone: after a network's
/// failure it would hold the slot for `wal_sender_timeout`.
pub(crate) async fn end_stale(control: &PostgresControl, name: &str, walsender: i32) -> Result<()> {
    let sql = format!(
        "SELECT pg_catalog.pg_terminate_backend(s.active_pid) FROM pg_catalog.pg_replication_slots s \
         WHERE s.slot_name = {} AND s.active_pid = {walsender}",
        quote_literal(name)
    );
    if !control.ask(&sql).await?.is_empty() {
        tracing::warn!(
            slot = name,
            pid = walsender,
            "the slot's old connection was still open at the server; it was ended"
        );
    }
    Ok(())
}

/// The task's slot once nobody is making it any more. A slot that is being made is there already, and gone again when its maker finds that its
/// client has left: what is told of it before that means nothing. Our own maker is ended, another one is waited for.
pub(crate) async fn find_made(control: &PostgresControl, name: &str) -> Result<Option<SlotState>> {
    let deadline = tokio::time::Instant::now() + RELEASE_WITHIN;
    let maker = control.slot_maker.load(Ordering::Relaxed).to_string();
    loop {
        let found = find(control, name).await?;
        let ours = |slot: &SlotState| slot.active_pid.as_ref() == Some(&maker);
        match &found {
            Some(slot) if ours(slot) => {
                end_stale(control, name, control.slot_maker.load(Ordering::Relaxed)).await?;
            }
            Some(slot) if slot.active_pid.is_some() && slot.confirmed.is_none() => {}
            _ => return Ok(found),
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(active(control, name).await);
        }
        tokio::time::sleep(RELEASE_POLL).await;
    }
}

/// Whether a process reads from the slot and works: it neither waits for the client, nor for more log with everything sent. One that only
/// waits would have answered our questions; without `wal_sender_timeout` it waits for ever.
pub(crate) async fn works_for(control: &PostgresControl, name: &str, walsender: i32) -> Result<bool> {
    let rows = control
        .ask(&format!(
            "SELECT FROM pg_catalog.pg_replication_slots s JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
             WHERE s.slot_name = {} AND a.pid = {walsender} AND coalesce(a.wait_event, '') NOT IN \
             ('ClientRead', 'ClientWrite', 'WalSenderMain', 'WalSenderWaitForWAL', 'WalSenderWaitForWal', 'WalSenderWriteData')",
            quote_literal(name)
        ))
        .await?;
    Ok(!rows.is_empty())
}

impl SlotState {
    /// Refuses a slot that cannot be streamed from, whatever its position.
    pub(crate) fn verify_usable(&self, name: &str) -> Result<()> {
        if self.plugin.as_deref() != Some("pgoutput") {
            return Err(error::slot_other_plugin(name, self.plugin.as_deref()));
        }
        if !self.this_database {
            return Err(error::slot_other_database(name, self.database.as_deref().unwrap_or("?")));
        }
        if self.wal_status.as_deref() == Some("lost") {
            return Err(error::slot_invalidated(name, "wal_status is lost"));
        }
        Ok(())
    }
}

/// Makes a slot on a replication connection and exports its snapshot. Returns the snapshot's name and the consistent point.
/// While it waits for old transactions, it says for which.
pub(crate) async fn create(
    control: &PostgresControl,
    session: &mut Session,
    name: &str,
    temporary: bool,
) -> Result<(String, Position)> {
    let temporary_word = if temporary { " TEMPORARY" } else { "" };
    let export =
        if session.server_version_num() >= 150_000 { "(SNAPSHOT 'export')" } else { "EXPORT_SNAPSHOT" };
    let statement = format!(
        "CREATE_REPLICATION_SLOT {}{temporary_word} LOGICAL pgoutput {export}",
        quote_identifier(name)
    );
    let (pid, started) = (session.backend_pid(), tokio::time::Instant::now());
    if !temporary {
        control.slot_maker.store(pid, Ordering::Relaxed);
    }
    let creating = session.simple_query(&statement);
    tokio::pin!(creating);
    let rows = loop {
        tokio::select! {
            rows = &mut creating => match rows {
                Ok(rows) => break rows,
                Err(failure) => return Err(refused::creating(control, failure, name).await),
            },
            () = tokio::time::sleep(SAY_EVERY) => say_blocked(control, pid, started.elapsed()).await,
        }
    };
    failpoint::pass(if temporary { "source.after_cut_created" } else { "source.after_slot_created" });
    Ok((column(&rows, 0, 2)?, position(&column(&rows, 0, 1)?)?))
}

/// The transactions that a slot's creation waits for.
async fn say_blocked(control: &PostgresControl, pid: i32, waited: Duration) {
    let asked = control
        .ask(&format!(
            "SELECT 'SELECT pg_terminate_backend(' || a.pid || ')', a.usename, pg_catalog.date_trunc('second', pg_catalog.now() - a.xact_start), \
             a.xact_start FROM pg_catalog.pg_stat_activity a WHERE a.pid = ANY (pg_catalog.pg_blocking_pids({pid})) \
             OR (a.backend_xid IS NOT NULL AND a.pid <> {pid}) UNION ALL \
             SELECT 'ROLLBACK PREPARED ' || pg_catalog.quote_literal(p.gid), p.owner, \
             pg_catalog.date_trunc('second', pg_catalog.now() - p.prepared), p.prepared FROM pg_catalog.pg_prepared_xacts p \
             ORDER BY 4 LIMIT 1"
        ))
        .await;
    let Ok(rows) = asked else { return };
    if rows.is_empty() {
        return;
    }
    let part = |at| optional(&rows, 0, at).unwrap_or_default();
    tracing::warn!(
        code = error::SLOT_CREATION_BLOCKED.as_str(),
        end = part(0),
        user = part(1),
        open_for = part(2),
        waited_s = waited.as_secs(),
        "{}; commit it, or end it: {}",
        if waited < LONG_WAIT {
            "the slot waits for an open transaction"
        } else {
            "the slot still waits for an open transaction and keeps waiting; meanwhile it holds back the log"
        },
        part(0)
    );
}
