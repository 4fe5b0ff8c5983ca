//! What the server's own refusals mean: its SQLSTATE, and the words where one state means several things.
//!
//! Invariant: an error that is not understood passes unchanged; nothing is guessed from a text in another language.
//!
//! Texts are PostgreSQL's own (PostgreSQL source, `slot.c`, `logical.c`, `pgoutput.c`, `walsender.c`, `postinit.c`) from 10 to 18.

use pgferry_model::{Class, Cure, Error, Position, Restart, Table};
use pgferry_postgres::error::ServerError;
use pgferry_postgres::{quote_identifier, quote_literal};

use crate::config::{PostgresSourceConfig, Replication};
use crate::control::PostgresControl;
use crate::error;
use crate::replication::publication::qualified;

/// The server's own words, somewhere in an error's chain.
pub(crate) fn words(failure: &Error) -> Option<&ServerError> {
    let mut next = std::error::Error::source(failure);
    while let Some(origin) = next {
        if let Some(words) = origin.downcast_ref::<ServerError>() {
            return Some(words);
        }
        next = origin.source();
    }
    None
}

fn state_and_message(failure: &Error) -> (String, String) {
    words(failure).map(|words| (words.sqlstate.clone(), words.message.clone())).unwrap_or_default()
}

/// A replication connection was refused.
pub(crate) fn connecting(failure: Error, user: &str) -> Error {
    let (state, message) = state_and_message(&failure);
    match state.as_str() {
        "42501" => error::no_replication_role(user).with_origin(failure),
        "53300" if message.contains("max_wal_senders") => {
            error::walsenders_exhausted().with_class(Class::Transient).with_origin(failure)
        }
        _ => failure,
    }
}

/// A slot was not made.
pub(crate) async fn creating(control: &PostgresControl, failure: Error, name: &str) -> Error {
    let (state, message) = state_and_message(&failure);
    match state.as_str() {
        "53400" => error::slots_exhausted(&inactive_slots(control).await).with_origin(failure),
        "55000" if message.contains("wal_level") => wal_level(control).await.with_origin(failure),
        // Below 16: "logical decoding cannot be used while in recovery".
        "0A000" if message.contains("recovery") => error::standby_cannot_decode().with_origin(failure),
        "42710" => error::slot_exists(name).with_origin(failure),
        "42501" => error::no_replication_role(&control.config.connection.user).with_origin(failure),
        _ => failure,
    }
}

async fn wal_level(control: &PostgresControl) -> Error {
    let standby = control.ask("SELECT pg_catalog.pg_is_in_recovery()").await;
    let standby = standby.is_ok_and(|rows| crate::control::optional(&rows, 0, 0).as_deref() == Some("t"));
    if standby { error::standby_wal_level() } else { error::wal_level() }
}

/// Inactive slots and what they hold, largest first.
async fn inactive_slots(control: &PostgresControl) -> Vec<(String, String)> {
    let now = "CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
               ELSE pg_catalog.pg_current_wal_lsn() END";
    let asked = control
        .ask(&format!(
            "SELECT s.slot_name, pg_catalog.pg_size_pretty(pg_catalog.pg_wal_lsn_diff({now}, s.restart_lsn)) \
             FROM pg_catalog.pg_replication_slots s WHERE NOT s.active \
             ORDER BY s.restart_lsn NULLS LAST LIMIT 10"
        ))
        .await;
    let pair = |row: Vec<Option<String>>| {
        let mut row = row.into_iter();
        Some((row.next()??, row.next()?.unwrap_or_else(|| "nothing".to_owned())))
    };
    asked.unwrap_or_default().into_iter().filter_map(pair).collect()
}

/// The change stream was not started, or ended with an error.
pub(crate) fn streaming(failure: Error, replication: &Replication, stored: Position) -> Error {
    let (state, message) = state_and_message(&failure);
    let slot = &replication.slot;
    match state.as_str() {
        "42704" if message.contains("publication") => {
            error::publication_after_slot(replication).with_origin(failure)
        }
        "42704" => error::slot_missing(replication, Some(stored)).with_origin(failure),
        "55000" if lost(&message) => {
            let (_, message) = state_and_message(&failure);
            error::slot_invalidated(slot, &message).with_origin(failure)
        }
        "55000" if message.contains("not created in this database") => {
            error::slot_other_database(slot, "another").with_origin(failure)
        }
        "55000" if message.contains("wal_level") => error::wal_level().with_origin(failure),
        // The segment is gone although the slot should hold it: the slot's files were copied or restored.
        "58P01" => error::slot_invalidated(slot, &message).with_origin(failure),
        "42501" => error::no_replication_role("the task's role").with_origin(failure),
        // PostgreSQL source, `reorderbuffer.c`, `ReorderBufferProcessTXN`: an internal error, so it has no state of its own.
        // "could not map filenode" to 15, "filenumber" from 16 on.
        "XX000" if message.starts_with("could not map file") => {
            error::decoding_failed(slot, &message).with_origin(failure)
        }
        _ => failure,
    }
}

/// 13 to 17: "can no longer get changes from", 14 to 16 "cannot read from logical replication slot" with "has been invalidated" as its
/// detail, 18: "can no longer access replication slot".
fn lost(message: &str) -> bool {
    [
        "can no longer get changes",
        "has been invalidated",
        "can no longer access",
        "cannot read from logical replication slot",
    ]
    .iter()
    .any(|text| message.contains(text))
}

/// From 18 on, a publication that is missing where the stream stands is a warning, and changes are left out.
pub(crate) fn warned(body: &[u8], replication: &Replication) -> Option<Error> {
    let words = ServerError::parse(body);
    (words.severity == "WARNING" && words.sqlstate == "55000")
        .then(|| error::publication_after_slot(replication).with_origin(words))
}

/// A table's COPY was refused: that belongs to the table.
pub(crate) fn copying(failure: Error, table: &Table, config: &PostgresSourceConfig) -> Error {
    if failure.class() == Class::Transient {
        return failure;
    }
    let (state, message) = state_and_message(&failure);
    let condition = config
        .tables
        .iter()
        .find(|options| options.source.as_ref() == Some(&table.name))
        .and_then(|options| options.snapshot_where.as_deref());
    let error = match (state.as_str(), condition) {
        ("42501", _) if message.contains("row-level security") => {
            error::row_security(&table.name, &config.connection.user)
        }
        ("42501", _) => error::permission(&table.name, &config.connection.user),
        ("42P01", _) => Error::task_broken(error::TABLE_MISSING, format!("table {} is gone", table.name))
            .with_cause("it was dropped or renamed while it was copied")
            .with_cure(Cure::advice(
                "start the task again, after correcting the task file where the table has a new name",
            )),
        (state, Some(condition)) if state.starts_with("42") || state.starts_with("22") => {
            error::snapshot_where(&table.name, condition)
        }
        _ => return failure.with_class(Class::TableBroken).with_table(table.name.clone()),
    };
    let cure = error.cure().cloned().unwrap_or_default().resync_table(&table.name);
    error.with_cure(cure).with_class(Class::TableBroken).with_table(table.name.clone()).with_origin(failure)
}

/// Statements that raise a limit which counts after a restart.
pub(crate) fn raise(advice: &str, setting: &str, value: &str) -> Cure {
    Cure::advice(advice)
        .sql(format!("ALTER SYSTEM SET {setting} = {}", quote_literal(value)))
        .run_as("superuser")
        .restart(Restart::Server)
}

/// Statements that let a role read a table.
pub(crate) fn grant(table: &pgferry_model::TableName, user: &str) -> Cure {
    let (schema, user) = (quote_identifier(&table.schema), quote_identifier(user));
    Cure::advice("let the role read the table")
        .sql(format!("GRANT USAGE ON SCHEMA {schema} TO {user}"))
        .sql(format!("GRANT SELECT ON {} TO {user}", qualified(table)))
        .run_as(format!("owner of {table} and of its schema, or superuser"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Manage, SelectFrom};

    /// Seen in the crash matrix; no server makes this fault at will.
    #[test]
    fn a_server_that_cannot_decode_its_log_is_told_with_the_way_out() {
        let replication = Replication {
            publication: "p".into(),
            slot: "ferry".into(),
            manage: Manage::Create,
            from: SelectFrom::Tables,
        };
        for word in ["filenode", "filenumber"] {
            let body =
                format!("SERROR\0VERROR\0CXX000\0Mcould not map {word} \"base/1/2\" to relation OID\0\0");
            let failure = ServerError::parse(body.as_bytes()).into_error("the change stream");
            let error = streaming(failure, &replication, Position::ZERO);
            assert_eq!(error.code(), error::DECODING_FAILED);
            let cure = format!("{:?}", error.cure());
            assert!(cure.contains("pg_drop_replication_slot('ferry')"), "{cure}");
        }
    }
}
