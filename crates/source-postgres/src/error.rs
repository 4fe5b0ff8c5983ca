//! The source's error codes, and what PostgreSQL's own errors mean for a slot, a publication or a snapshot.

use pgferry_model::{Code, Cure, Error, Position, Restart, TableName};
use pgferry_postgres::{quote_identifier, quote_literal};

use crate::config::{Manage, Replication};
use crate::refused::{grant, raise};
use crate::replication::publication::qualified;

pub use crate::decode::PROTOCOL;
pub use crate::replication::spool::SPOOL_FAILED;
pub use crate::replication::transaction::PARTITION_TRUNCATED;
pub use pgferry_postgres::error::{NO_REPLICATION_ROLE, PERMISSION, VERSION, WALSENDERS_EXHAUSTED};

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
/// A slot of that name was made by someone else meanwhile.
pub const SLOT_EXISTS: Code = Code::new("source.slot_exists");
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
/// The publication leaves operations out.
pub const PUBLICATION_OPERATIONS: Code = Code::new("source.publication_operations");
/// The server has too few connections left.
pub const CONNECTIONS_SHORT: Code = Code::new("source.connections_short");
/// Row-level security would hide rows from the role.
pub const ROW_SECURITY: Code = Code::new("source.row_security");
/// The server is a standby that cannot decode.
pub const STANDBY: Code = Code::new("source.standby");
/// The slot may lose its log, or fill the disk, before the copy is done.
pub const SLOT_HEADROOM: Code = Code::new("source.slot_headroom");
/// A named key is not unique or may be NULL.
pub const KEY_NOT_ENFORCED: Code = Code::new("source.key_not_enforced");
/// A part of a table's changes or columns is not in the stream.
pub const NOT_IN_STREAM: Code = Code::new("source.not_in_stream");
/// A setting of the server that makes trouble for a change stream.
pub const SETTING: Code = Code::new("source.setting");
/// Logical decoding is off.
pub const WAL_LEVEL: Code = Code::new("source.wal_level");
/// A selected table, column or pattern does not exist.
pub const TABLE_MISSING: Code = Code::new("source.table_missing");
/// A relation of a kind that cannot be carried.
pub const TABLE_KIND: Code = Code::new("source.table_kind");
/// The position belongs to another cluster or database.
pub const IDENTITY_CHANGED: Code = Code::new("source.identity_changed");
/// The server has lost what the target holds: it was put back, or promoted without its predecessor's last transactions.
pub const HISTORY_LOST: Code = Code::new("source.history_lost");
/// The server cannot decode its own log from where the slot stands.
pub const DECODING_FAILED: Code = Code::new("source.decoding_failed");
/// The snapshot's condition is not valid.
pub const SNAPSHOT_WHERE: Code = Code::new("source.snapshot_where");
/// The server ended the stream.
pub const STREAM_ENDED: Code = Code::new("source.stream_ended");
/// Workers do not see the same snapshot.
pub const SNAPSHOT_DIFFERS: Code = Code::new("source.snapshot_differs");

/// The slot is gone.
pub(crate) fn slot_missing(replication: &Replication, stored: Option<Position>) -> Error {
    let slot = &replication.slot;
    let error = Error::task_broken(SLOT_MISSING, format!("replication slot {slot} does not exist"));
    let by_dba =
        |cure: Cure| cure.sql(create_slot(slot)).run_as("a role with REPLICATION, in the task's database");
    let Some(position) = stored else {
        let advice = "make the slot after the publication, or set manage = \"create\" in the task file";
        return error
            .with_cause("the task uses a slot that a DBA makes (manage = \"never\")")
            .with_cure(by_dba(Cure::advice(advice)));
    };
    let failover = "on PostgreSQL 17 and later a failover slot survives a failover";
    let cure = match replication.manage {
        Manage::Create | Manage::CreateAndDrop => Cure::advice(format!(
            "copy the tables again: the next run makes a new slot and a new snapshot; {failover}"
        )),
        Manage::Never => {
            by_dba(Cure::advice(format!("make a new slot and copy the tables again; {failover}")))
        }
    };
    error
        .with_cause(format!(
            "it was dropped, or the server failed over to a standby without it; changes after {position} are gone from the slot"
        ))
        .with_cure(cure.resync())
}

fn create_slot(slot: &str) -> String {
    format!("SELECT pg_create_logical_replication_slot({}, 'pgoutput')", quote_literal(slot))
}

fn drop_slot(slot: &str) -> String {
    format!("SELECT pg_drop_replication_slot({})", quote_literal(slot))
}

/// The slot has moved past what the target holds.
pub(crate) fn slot_ahead(slot: &str, confirmed: Position, stored: Position) -> Error {
    Error::task_broken(
        SLOT_AHEAD,
        format!("slot {slot} stands at {confirmed}, after the {stored} that the target holds: changes between are missing"),
    )
    .with_cause("the slot was dropped and made again, or something else has read from it")
    .with_cure(Cure::advice("copy the tables again").resync())
}

/// The server's log ends before what the target holds.
pub(crate) fn log_behind(stored: Position, end: Position) -> Error {
    Error::task_broken(
        HISTORY_LOST,
        format!("the server's log ends at {end}, before the {stored} that the target holds"),
    )
    .with_cause("the server was put back to an earlier time, from a backup or a copy of its disk: the target holds changes that it has lost")
    .with_cure(Cure::advice("copy the tables again").resync())
}

/// The position is not in the history of the server's timeline. `left`: where the stored one was left, if it is an ancestor.
pub(crate) fn other_timeline(position: Position, stored: u32, now: u32, left: Option<Position>) -> Error {
    let cause = match left {
        Some(left) => format!(
            "the server was promoted at {left} (timeline {now}), before all that its predecessor had written arrived there: the target holds \
             changes that it has lost"
        ),
        None => format!(
            "its timeline {now} does not descend from {stored}: it was put back to an earlier time, or is another copy"
        ),
    };
    Error::task_broken(
        HISTORY_LOST,
        format!("the server's history does not have {position} on timeline {stored}, up to which the target holds its changes"),
    )
    .with_cause(cause)
    .with_cure(Cure::advice("copy the tables again").resync())
}

/// The server meets a row of its log whose table it does not find. It would meet it again from the same slot, at every start.
pub(crate) fn decoding_failed(slot: &str, message: &str) -> Error {
    Error::task_broken(DECODING_FAILED, format!("the server cannot decode its log for slot {slot} ({message})"))
        .with_cause("a fault of the server's logical decoding, known where tables are truncated or rewritten while a slot is made")
        .with_cure(
            Cure::advice("drop the slot and copy the tables again; a newer minor version of PostgreSQL may have the fault mended")
                .sql(drop_slot(slot))
                .run_as("the replication role or superuser")
                .resync(),
        )
}

/// The slot lost its log.
pub(crate) fn slot_invalidated(slot: &str, reason: &str) -> Error {
    Error::task_broken(SLOT_INVALIDATED, format!("replication slot {slot} has lost the log that it needs ({reason})"))
        .with_cause("the task was behind by more than max_slot_wal_keep_size allows, or was away for longer than idle_replication_slot_timeout")
        .with_cure(
            Cure::advice("raise the limit, then copy the tables again (raising it alone cannot revive a slot, so the lost one is dropped)")
                .sql("ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'")
                .sql("SELECT pg_reload_conf()")
                .sql(drop_slot(slot))
                .run_as("superuser")
                .restart(Restart::Reload)
                .resync(),
        )
}

/// Another process reads from the slot. `pid` where it is known.
pub(crate) fn slot_active(slot: &str, pid: Option<&str>, who: &str) -> Error {
    let by = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}{who}"));
    let cure = Cure::advice(
        "stop the other task or program; the statement ends a session that hangs. Two tasks need a slot each: give one of them another (slot \
         under [tasks.NAME.replication])",
    )
    .run_as("superuser, or the same role");
    let sql = pid.map_or_else(
        || {
            format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = {}",
                quote_literal(slot)
            )
        },
        |pid| format!("SELECT pg_terminate_backend({pid})"),
    );
    Error::task_broken(SLOT_ACTIVE, format!("replication slot {slot} is in use by {by}"))
        .with_cause("another task shares the slot, or an old session hangs")
        .with_cure(cure.sql(sql))
}

/// Slot names have 63 characters at most (PostgreSQL docs, "Replication Slots").
fn another_name(slot: &str) -> Cure {
    let kept: String = slot.chars().take(61).collect();
    Cure::advice(
        "choose a slot name that the statement does not list, such as the one below; it stands under [tasks.NAME.replication] of the task file",
    )
    .line(format!("slot = \"{kept}_2\""))
}

/// The slot decodes another database.
pub(crate) fn slot_other_database(slot: &str, other: &str) -> Error {
    Error::task_broken(SLOT_OTHER_DATABASE, format!("replication slot {slot} belongs to database {other}"))
        .with_cause("a logical slot belongs to the database that it was made in, and slot names are unique in the whole cluster")
        .with_cure(
            another_name(slot)
                .sql("SELECT slot_name, database FROM pg_replication_slots")
                .run_as("any role"),
        )
}

/// The slot speaks another language.
pub(crate) fn slot_other_plugin(slot: &str, plugin: Option<&str>) -> Error {
    let plugin = plugin.unwrap_or("none: it is a physical slot");
    Error::task_broken(
        SLOT_OTHER_PLUGIN,
        format!("replication slot {slot} has the output plugin {plugin}, not pgoutput"),
    )
    .with_cause("the slot was made for another program or by hand with another plugin")
    .with_cure(
        another_name(slot)
            .sql("SELECT slot_name, plugin, slot_type FROM pg_replication_slots")
            .run_as("any role"),
    )
}

/// A slot of that name came into being meanwhile.
pub(crate) fn slot_exists(slot: &str) -> Error {
    Error::task_broken(SLOT_EXISTS, format!("replication slot {slot} exists already"))
        .with_cause("it was made between the look-up and now: another copy of this task is starting, or two tasks have the same slot name")
        .with_cure(
            Cure::advice("stop the other copy, or choose another slot name; a left-over one goes with the statement")
                .sql(drop_slot(slot))
                .run_as("a role with REPLICATION"),
        )
}

/// Every slot is used. `inactive`: names and what they hold.
pub(crate) fn slots_exhausted(inactive: &[(String, String)]) -> Error {
    let cure = match inactive.first() {
        Some((name, _)) => Cure::advice(
            "drop a slot that nobody needs any more, as the statement does; or allow more by the line, as superuser, and restart the server",
        )
        .sql(drop_slot(name))
        .run_as("a role with REPLICATION, once nobody needs that slot")
        .line("ALTER SYSTEM SET max_replication_slots = 20;"),
        None => raise("allow more slots and restart the server", "max_replication_slots", "20"),
    };
    let list: Vec<String> = inactive.iter().map(|(name, held)| format!("{name} holding {held}")).collect();
    let cause = if list.is_empty() {
        "all of them are active".to_owned()
    } else {
        format!("inactive: {}", list.join(", "))
    };
    Error::task_broken(SLOTS_EXHAUSTED, "every replication slot of the server is used")
        .with_cause(cause)
        .with_cure(cure)
}

/// Every walsender is used.
pub(crate) fn walsenders_exhausted() -> Error {
    Error::task_broken(WALSENDERS_EXHAUSTED, "every walsender of the server is used")
        .with_cause(
            "standbys, base backups and change streams have one each, and max_wal_senders allows no more",
        )
        .with_cure(raise("allow more and restart the server", "max_wal_senders", "20"))
}

/// The role may not replicate.
pub(crate) fn no_replication_role(user: &str) -> Error {
    Error::task_broken(NO_REPLICATION_ROLE, format!("role {user} may not open a replication connection"))
        .with_cause(
            "reading changes takes the REPLICATION attribute, on Amazon RDS membership in rds_replication",
        )
        .with_cure(
            Cure::advice("give the role the attribute; on Amazon RDS run the line in place of it")
                .sql(format!("ALTER ROLE {} WITH REPLICATION", quote_identifier(user)))
                .run_as("superuser")
                .line(format!("GRANT rds_replication TO {};", quote_identifier(user))),
        )
}

/// Logical decoding is off.
pub(crate) fn wal_level() -> Error {
    Error::task_broken(WAL_LEVEL, "logical decoding is off: wal_level is not logical")
        .with_cause("the log holds what changes are read from only with wal_level = logical")
        .with_cure(raise(
            "turn it on and restart the server; on Amazon RDS set rds.logical_replication = 1 in the parameter group and reboot",
            "wal_level",
            "logical",
        ))
}

/// Logical decoding is off on a standby's primary.
pub(crate) fn standby_wal_level() -> Error {
    Error::task_broken(WAL_LEVEL, "logical decoding is off: wal_level of the primary is not logical")
        .with_cause(
            "a standby decodes the primary's log, which holds changes only with wal_level = logical on both",
        )
        .with_cure(raise(
            "turn it on at the primary and at the standby, and restart both",
            "wal_level",
            "logical",
        ))
}

/// A standby below PostgreSQL 16.
pub(crate) fn standby_cannot_decode() -> Error {
    Error::task_broken(STANDBY, "the server is a standby and cannot decode its log")
        .with_cause("standbys decode from PostgreSQL 16 on")
        .with_cure(Cure::advice("connect to the primary: its host and port in the task file's connection"))
}

/// A standby would have to write.
pub(crate) fn standby_read_only(statement: &str) -> Error {
    Error::task_broken(STANDBY, "the server is a standby: it cannot make or complete the publication")
        .with_cause("a standby is read-only; its publications are the primary's")
        .with_cure(
            Cure::advice("run the statement on the primary")
                .sql(statement)
                .run_as("owner of the tables, on the primary"),
        )
}

/// The publication does not exist, nor does the slot.
pub(crate) fn publication_missing(replication: &Replication, statement: &str) -> Error {
    Error::task_broken(PUBLICATION_MISSING, format!("publication {} does not exist", replication.publication))
        .with_cause("a publication says which tables the change stream has; the task does not make it (manage = \"never\"), or its role may not")
        .with_cure(
            Cure::advice("make it before the slot, then start the task")
                .sql(statement)
                .run_as("owner of the tables, with CREATE on the database"),
        )
}

/// The publication does not exist, but the slot does: the log between cannot be decoded with a new one.
pub(crate) fn publication_gone(replication: &Replication, statement: &str) -> Error {
    let (name, slot) = (&replication.publication, &replication.slot);
    let cure = Cure::advice(
        "make both anew, as the statements do; where the target holds rows already, copy them again",
    )
    .sql(drop_slot(slot))
    .sql(statement);
    let cure = if replication.manage == Manage::Never { cure.sql(create_slot(slot)) } else { cure }.resync();
    Error::task_broken(PUBLICATION_MISSING, format!("publication {name} does not exist, but slot {slot} does"))
        .with_cause("the publication was dropped, or the slot was made first; log from before a publication cannot be decoded with it")
        .with_cure(cure.run_as("owner of the tables, with CREATE on the database and REPLICATION"))
}

/// The stream stands in log from before the publication.
pub(crate) fn publication_after_slot(replication: &Replication) -> Error {
    let (name, slot) = (&replication.publication, &replication.slot);
    let cure = Cure::advice("make the slot anew; where the target holds rows already, copy them again")
        .sql(drop_slot(slot))
        .run_as("a role with REPLICATION");
    let cure = if replication.manage == Manage::Never { cure.sql(create_slot(slot)) } else { cure };
    Error::task_broken(
        PUBLICATION_AFTER_SLOT,
        format!("publication {name} does not exist at the place in the log where slot {slot} stands"),
    )
    .with_cause("the publication was dropped, or it was made after the slot, or anew; the log in between cannot be decoded with it")
    .with_cure(cure.resync())
}

/// Tables that follow the stream have left the publication.
pub(crate) fn left_publication(error: Error) -> Error {
    let cure = error.cure().cloned().unwrap_or_default();
    error
        .with_cause("the tables were taken out of the publication since they were copied: what changed since then is not in the stream")
        .with_cure(
            Cure {
                advice: "publish them again, then copy them again; or take them out of the task file".to_owned(),
                ..cure
            }
            .resync(),
        )
}

/// The role may not read a table.
pub(crate) fn permission(table: &TableName, user: &str) -> Error {
    Error::task_broken(PERMISSION, format!("role {user} may not read {table}"))
        .with_cause("the copy needs SELECT on the table and USAGE on its schema")
        .with_cure(grant(table, user))
}

/// Rows would be hidden from the role.
pub(crate) fn row_security(table: &TableName, user: &str) -> Error {
    Error::task_broken(ROW_SECURITY, format!("row-level security of {table} hides rows from role {user}"))
        .with_cause("the copy would lack rows, while the change stream has all of them")
        .with_cure(
            Cure::advice("let the role see every row")
                .sql(format!("ALTER ROLE {} WITH BYPASSRLS", quote_identifier(user)))
                .run_as("superuser"),
        )
}

/// A condition that the server refuses.
pub(crate) fn snapshot_where(table: &TableName, condition: &str) -> Error {
    Error::task_broken(SNAPSHOT_WHERE, format!("the condition snapshot_where of {table} is not valid"))
        .with_cause("the server refuses a query with it")
        .with_cure(
            Cure::advice("correct snapshot_where in the task file; the statement tries it (functions outside pg_catalog need their schema)")
                .sql(format!("EXPLAIN SELECT * FROM {} WHERE {condition}", qualified(table))),
        )
}

/// A worker's connection went somewhere else.
pub(crate) fn snapshot_differs() -> Error {
    Error::task_broken(SNAPSHOT_DIFFERS, "a worker's connection does not see the exported snapshot")
        .with_cause("the address leads to more than one server: a load balancer or a reader endpoint")
        .with_cure(Cure::advice("connect to one server: the primary's own address"))
}

/// A table without a key that the stream can use.
pub(crate) fn no_replica_identity(table: &TableName, why: &str) -> Error {
    Error::task_broken(NO_REPLICA_IDENTITY, format!("{table} is carried by snapshot only: {why}"))
        .with_cause(
            "an update or a delete in the stream says which row it means by the replica identity only",
        )
        .with_cure(identity_cure(table))
}

/// The way out where nothing is known of the table's columns.
pub(crate) fn identity_cure(table: &TableName) -> Cure {
    Cure::advice(
        "best is a primary key; else a unique NOT NULL index with REPLICA IDENTITY USING INDEX; the statement is the last resort (slow, more log), \
         together with primary_key in the task file",
    )
    .sql(format!("ALTER TABLE {} REPLICA IDENTITY FULL", qualified(table)))
    .run_as(format!("owner of {table}"))
}
