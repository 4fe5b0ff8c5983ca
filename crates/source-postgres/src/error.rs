//! The source's error codes, and what PostgreSQL's own errors mean for a slot, a publication or a snapshot.

use pgferry_model::{Code, Cure, Error, Position};

pub use crate::decode::PROTOCOL;
pub use crate::replication::spool::SPOOL_FAILED;
pub use crate::replication::transaction::PARTITION_TRUNCATED;

/// The slot does not exist.
pub const SLOT_MISSING: Code = Code::new("source.slot_missing");
/// The slot lost the log that it needs.
pub const SLOT_INVALIDATED: Code = Code::new("source.slot_invalidated");
/// Another process reads from the slot.
pub const SLOT_ACTIVE: Code = Code::new("source.slot_active");
/// The slot belongs to another database.
pub const SLOT_OTHER_DATABASE: Code = Code::new("source.slot_other_database");
/// The slot has another output plugin, or is a physical one.
pub const SLOT_OTHER_PLUGIN: Code = Code::new("source.slot_other_plugin");
/// The slot has passed what the target holds: changes are missing.
pub const SLOT_AHEAD: Code = Code::new("source.slot_ahead");
/// Every slot of the server is used.
pub const SLOTS_EXHAUSTED: Code = Code::new("source.slots_exhausted");
/// A slot's creation waits for an old transaction.
pub const SLOT_CREATION_BLOCKED: Code = Code::new("source.slot_creation_blocked");
/// The publication does not exist.
pub const PUBLICATION_MISSING: Code = Code::new("source.publication_missing");
/// The publication was made after the slot's position.
pub const PUBLICATION_AFTER_SLOT: Code = Code::new("source.publication_after_slot");
/// A table is not in the publication.
pub const TABLE_NOT_IN_PUBLICATION: Code = Code::new("source.table_not_in_publication");
/// A table has no usable key.
pub const NO_REPLICA_IDENTITY: Code = Code::new("source.no_replica_identity");
/// Logical decoding is off.
pub const WAL_LEVEL: Code = Code::new("source.wal_level");
/// A selected table, column or pattern does not exist.
pub const TABLE_MISSING: Code = Code::new("source.table_missing");
/// A relation of a kind that cannot be carried.
pub const TABLE_KIND: Code = Code::new("source.table_kind");
/// The position belongs to another cluster or database.
pub const IDENTITY_CHANGED: Code = Code::new("source.identity_changed");
/// The snapshot's condition is not valid.
pub const SNAPSHOT_WHERE: Code = Code::new("source.snapshot_where");
/// The server ended the stream.
pub const STREAM_ENDED: Code = Code::new("source.stream_ended");
/// Workers do not see the same snapshot.
pub const SNAPSHOT_DIFFERS: Code = Code::new("source.snapshot_differs");

/// The slot is gone.
pub(crate) fn slot_missing(slot: &str, stored: Option<Position>) -> Error {
    let error = Error::task_broken(SLOT_MISSING, format!("replication slot {slot} does not exist"));
    match stored {
        Some(position) => error
            .with_cause(format!(
                "it was dropped, or the server failed over to a standby without it; changes after {position} are gone from the slot"
            ))
            .with_cure(Cure::advice(
                "copy the tables again: pgferry resync FILE makes a new slot and a new snapshot; on PostgreSQL 17 and later a failover slot survives a failover",
            )),
        None => error
            .with_cause("the task uses a slot that a DBA makes (manage = \"never\")")
            .with_cure(
                Cure::advice("make the slot after the publication, or set manage = \"create\" in the task file")
                    .sql(format!(
                        "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
                        slot.replace('\'', "''")
                    ))
                    .run_as("a role with REPLICATION"),
            ),
    }
}

/// The slot has moved past what the target holds.
pub(crate) fn slot_ahead(slot: &str, confirmed: Position, stored: Position) -> Error {
    Error::task_broken(
        SLOT_AHEAD,
        format!("slot {slot} stands at {confirmed}, after the {stored} that the target holds: changes between are missing"),
    )
    .with_cause("the slot was dropped and made again, or something else has read from it")
    .with_cure(Cure::advice("copy the tables again: pgferry resync FILE"))
}

/// The slot lost its log.
pub(crate) fn slot_invalidated(slot: &str, reason: &str) -> Error {
    Error::task_broken(SLOT_INVALIDATED, format!("replication slot {slot} has lost the log that it needs ({reason})"))
        .with_cause("the task was behind by more than max_slot_wal_keep_size allows, or was away for longer than idle_replication_slot_timeout")
        .with_cure(
            Cure::advice("raise the limit, then copy the tables again with: pgferry resync FILE (raising it alone cannot revive a slot)")
                .sql("ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'")
                .sql("SELECT pg_reload_conf()")
                .run_as("superuser")
                .restart(pgferry_model::Restart::Reload),
        )
}
