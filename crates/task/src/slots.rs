//! The replication slots of a server: what is there, what is ours, and dropping one that nobody reads.

use pgferry_model::{Code, Cure, Error, Result};
use pgferry_postgres::{Purpose, Session, quote_literal};

use crate::connect::connection_config;
use crate::spec::{PostgresConnection, Spec};

/// No slot of that name.
pub const SLOT_UNKNOWN: Code = Code::new("slot.unknown");
/// Somebody reads from the slot.
pub const SLOT_IN_USE: Code = Code::new("slot.in_use");

/// A slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Its database; empty for a physical slot.
    pub database: String,
    /// Its output plugin; empty for a physical slot.
    pub plugin: String,
    /// The process that reads from it, if any.
    pub active_pid: Option<i32>,
    /// Bytes of log that it keeps on the server's disk.
    pub retained_bytes: u64,
    /// `reserved`, `extended`, `unreserved` or `lost` (PostgreSQL 13 and later; empty below).
    pub wal_status: String,
    /// Who it belongs to.
    pub owner: SlotOwner,
}

/// Who a slot belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotOwner {
    /// A task of the file.
    Task(String),
    /// pgferry, by its name; no task of the file.
    Prefix,
    /// Somebody else.
    Other,
}

/// Every slot of the server.
pub async fn list(spec: &Spec, connection: &PostgresConnection) -> Result<Vec<Slot>> {
    let mut session = open(connection).await?;
    let slots = read(&mut session, spec, connection).await?;
    session.close().await?;
    Ok(slots)
}

/// Drops a slot. One that is in use is refused; with `force`, its reader is ended first.
pub async fn drop(spec: &Spec, connection: &PostgresConnection, name: &str, force: bool) -> Result<Slot> {
    let mut session = open(connection).await?;
    let slots = read(&mut session, spec, connection).await?;
    let Some(slot) = slots.iter().find(|slot| slot.name == name) else {
        let known: Vec<&str> = slots.iter().map(|slot| slot.name.as_str()).collect();
        let known = if known.is_empty() { "the server has none".to_owned() } else { known.join(", ") };
        let problem = format!("{} has no slot `{name}`", connection.name);
        return Err(Error::task_broken(SLOT_UNKNOWN, problem)
            .with_cause("it is mistyped, dropped already, or on another server")
            .with_cure(Cure::advice(format!("its slots: {known}"))));
    };
    if let Some(pid) = slot.active_pid {
        if !force {
            let cure = Cure::advice("stop the task that reads from it, or end its reader with --force");
            return Err(Error::task_broken(SLOT_IN_USE, format!("slot `{name}` is in use by process {pid}"))
                .with_cause("a slot that is read from cannot be dropped")
                .with_cure(cure));
        }
        session.simple_query(&format!("SELECT pg_catalog.pg_terminate_backend({pid})")).await?;
        wait_until_free(&mut session, name).await?;
    }
    session
        .simple_query(&format!("SELECT pg_catalog.pg_drop_replication_slot({})", quote_literal(name)))
        .await?;
    session.close().await?;
    Ok(slot.clone())
}

/// How often a reader that was ended is looked for before the drop is tried anyway.
const RELEASE_POLLS: u32 = 40;
const RELEASE_POLL: std::time::Duration = std::time::Duration::from_millis(250);

async fn wait_until_free(session: &mut Session, name: &str) -> Result<()> {
    let question = format!(
        "SELECT active FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
        quote_literal(name)
    );
    for _ in 0..RELEASE_POLLS {
        let rows = session.simple_query(&question).await?;
        if rows.first().and_then(|row| row.first()?.as_deref()) != Some("t") {
            return Ok(());
        }
        tokio::time::sleep(RELEASE_POLL).await;
    }
    Ok(())
}

async fn open(connection: &PostgresConnection) -> Result<Session> {
    Session::connect(&connection_config(connection, "slot")?, Purpose::Query).await
}

async fn read(session: &mut Session, spec: &Spec, connection: &PostgresConnection) -> Result<Vec<Slot>> {
    let wal_status = if session.server_version_num() >= 130_000 { "wal_status" } else { "NULL" };
    let rows = session
        .simple_query(&format!(
            "SELECT slot_name, database, plugin, active_pid, \
             pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
             ELSE pg_catalog.pg_current_wal_lsn() END, restart_lsn), {wal_status} \
             FROM pg_catalog.pg_replication_slots ORDER BY slot_name"
        ))
        .await?;
    let text = |row: &[Option<String>], column: usize| row.get(column).cloned().flatten().unwrap_or_default();
    let slot = |row: &Vec<Option<String>>| Slot {
        name: text(row, 0),
        database: text(row, 1),
        plugin: text(row, 2),
        active_pid: text(row, 3).parse().ok(),
        retained_bytes: text(row, 4).parse().unwrap_or(0),
        wal_status: text(row, 5),
        owner: owner(spec, connection, &text(row, 0)),
    };
    Ok(rows.iter().map(slot).collect())
}

fn owner(spec: &Spec, connection: &PostgresConnection, name: &str) -> SlotOwner {
    let task = spec.tasks.iter().find(|task| task.source == connection.name && task.replication.slot == name);
    match task {
        Some(task) => SlotOwner::Task(task.id.to_string()),
        None if name.starts_with("pgferry_") => SlotOwner::Prefix,
        None => SlotOwner::Other,
    }
}
