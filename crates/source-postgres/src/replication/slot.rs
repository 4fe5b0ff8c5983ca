//! The replication slot: found, made, verified. Never made anew in silence.
//!
//! Invariant: a slot whose confirmed position is ahead of what the target holds means lost changes, always: an idle position is stored
//! in the target before it is confirmed.

use std::time::Duration;

use pgferry_model::{Error, Position, Result};
use pgferry_pipeline::failpoint;
use pgferry_postgres::{Session, quote_identifier, quote_literal, server_error, sqlstate};

use crate::control::{PostgresControl, column, optional, position};
use crate::error;

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

impl SlotState {
    /// Refuses a slot that cannot be streamed from, whatever its position.
    pub(crate) fn verify_usable(&self, name: &str) -> Result<()> {
        if self.plugin.as_deref() != Some("pgoutput") {
            let plugin = self.plugin.as_deref().unwrap_or("none: it is a physical slot");
            return Err(Error::task_broken(
                error::SLOT_OTHER_PLUGIN,
                format!("replication slot {name} has the output plugin {plugin}, not pgoutput"),
            )
            .with_cure(pgferry_model::Cure::advice(
                "choose another slot name in the task file: replication.slot",
            )));
        }
        if !self.this_database {
            let other = self.database.as_deref().unwrap_or("?");
            return Err(Error::task_broken(
                error::SLOT_OTHER_DATABASE,
                format!("replication slot {name} belongs to database {other}"),
            )
            .with_cure(
                pgferry_model::Cure::advice("choose another slot name in the task file: replication.slot")
                    .sql("SELECT slot_name, database FROM pg_replication_slots"),
            ));
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
    let pid = session.backend_pid();
    let creating = session.simple_query(&statement);
    tokio::pin!(creating);
    let rows = loop {
        tokio::select! {
            rows = &mut creating => break rows.map_err(|failure| explain_create(failure, name))?,
            () = tokio::time::sleep(Duration::from_secs(5)) => say_blocked(control, pid).await,
        }
    };
    if !temporary {
        failpoint::pass("source.after_slot_created");
    }
    Ok((column(&rows, 0, 2)?, position(&column(&rows, 0, 1)?)?))
}

/// The transactions that a slot's creation waits for.
async fn say_blocked(control: &PostgresControl, pid: i32) {
    let asked = control
        .ask(&format!(
            "SELECT a.pid, a.usename, pg_catalog.date_trunc('second', pg_catalog.now() - a.xact_start) \
             FROM pg_catalog.pg_stat_activity a WHERE a.pid = ANY (pg_catalog.pg_blocking_pids({pid})) \
             OR (a.backend_xid IS NOT NULL AND a.pid <> {pid}) ORDER BY a.xact_start LIMIT 1"
        ))
        .await;
    let Ok(rows) = asked else { return };
    if rows.is_empty() {
        return;
    }
    let part = |at| optional(&rows, 0, at).unwrap_or_default();
    tracing::warn!(
        code = error::SLOT_CREATION_BLOCKED.as_str(),
        pid = part(0),
        user = part(1),
        open_for = part(2),
        "the slot waits for an open transaction; commit it, or run SELECT pg_terminate_backend({})",
        part(0)
    );
}

fn explain_create(failure: Error, name: &str) -> Error {
    let cure = pgferry_model::Cure::advice;
    if sqlstate(&failure) == Some("53400") {
        return Error::task_broken(error::SLOTS_EXHAUSTED, "every replication slot of the server is used")
            .with_cure(
                cure("drop a slot that nobody needs (pgferry slot list shows them), or allow more")
                    .sql("ALTER SYSTEM SET max_replication_slots = 20")
                    .run_as("superuser")
                    .restart(pgferry_model::Restart::Server),
            )
            .with_origin(failure);
    }
    if server_error(&failure).is_some_and(|server| server.message.contains("wal_level")) {
        return Error::task_broken(error::WAL_LEVEL, "logical decoding is off: wal_level is not logical")
            .with_cure(
                cure("turn it on and restart the server; on Amazon RDS set rds.logical_replication = 1 in the parameter group")
                    .sql("ALTER SYSTEM SET wal_level = 'logical'")
                    .run_as("superuser")
                    .restart(pgferry_model::Restart::Server),
            )
            .with_origin(failure);
    }
    tracing::debug!(slot = name, "slot not created");
    failure
}
