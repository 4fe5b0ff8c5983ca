//! The codes of connecting and asking, and an ErrorResponse's fields; what they mean to a person is in `explain.rs`.
//!
//! Invariant: errors are told apart by SQLSTATE and by the server's routine, both of which no translation changes. A message is
//! read only for names that are never translated, such as those of settings.

use std::fmt;

use pgferry_model::{Class, Code, Error};

use crate::explain::{Place, explain};

/// The server cannot be reached.
pub const UNREACHABLE: Code = Code::new("connection.unreachable");
/// The server is starting, stopping or out of a resource.
pub const UNAVAILABLE: Code = Code::new("connection.server_unavailable");
/// All connections of the server, the database or the role are taken.
pub const TOO_MANY_CONNECTIONS: Code = Code::new("connection.too_many_connections");
/// User or password are wrong.
pub const AUTHENTICATION: Code = Code::new("connection.authentication");
/// Encryption, or one side's certificate, is not as it has to be.
pub const TLS: Code = Code::new("connection.tls");
/// The database does not exist.
pub const DATABASE_MISSING: Code = Code::new("connection.database_missing");
/// The server sent something that the protocol does not allow.
pub const PROTOCOL: Code = Code::new("connection.protocol");
/// The connection's settings are not valid.
pub const CONFIG: Code = Code::new("config.connection");
/// The role may not open a replication connection.
pub const NO_REPLICATION_ROLE: Code = Code::new("source.no_replication_role");
/// No line of `pg_hba.conf` lets us in.
pub const HBA_REJECTED: Code = Code::new("source.hba_rejected");
/// All walsenders are taken.
pub const WALSENDERS_EXHAUSTED: Code = Code::new("source.walsenders_exhausted");
/// The role lacks a privilege.
pub const PERMISSION: Code = Code::new("source.permission");
/// A pooler stands before the server and does not pass replication.
pub const POOLER: Code = Code::new("source.pooler");
/// The server is too old.
pub const VERSION: Code = Code::new("source.version");
/// A question or a copy waits for a lock that somebody holds.
pub const LOCK_WAIT: Code = Code::new("source.lock_wait");
/// The server refused a statement.
pub const STATEMENT: Code = Code::new("source.statement_refused");

/// An ErrorResponse's fields.
///
/// `Display` leaves the message out where it can quote a row's value (SQLSTATE classes 22 and 23); the detail is never shown.
#[derive(Clone, Debug, Default)]
pub struct ServerError {
    /// SQLSTATE.
    pub sqlstate: String,
    /// ERROR, FATAL, PANIC.
    pub severity: String,
    /// Primary message.
    pub message: String,
    /// Detail.
    pub detail: Option<String>,
    /// Hint.
    pub hint: Option<String>,
    /// The server's C function.
    pub routine: Option<String>,
}

impl std::error::Error for ServerError {}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.sqlstate, self.shown_message())
    }
}

impl ServerError {
    /// From an ErrorResponse's body (PostgreSQL docs, "Error and Notice Message Fields").
    pub fn parse(body: &[u8]) -> ServerError {
        let mut error = ServerError::default();
        for field in body.split(|&byte| byte == 0) {
            let Some((&kind, text)) = field.split_first() else { continue };
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                b'C' => error.sqlstate = text,
                b'V' => error.severity = text,
                b'S' if error.severity.is_empty() => error.severity = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                b'R' => error.routine = Some(text),
                _ => {}
            }
        }
        error
    }

    /// The message without what could be a row's value.
    pub fn shown_message(&self) -> &str {
        match self.sqlstate.get(..2) {
            Some("22" | "23") => "a value is not valid (the server's log has its message)",
            _ => &self.message,
        }
    }

    /// As an error of pgferry: what the world does is transient, the rest needs a person.
    pub fn into_error(self, doing: &str) -> Error {
        explain(self, doing, &Place::default(), "")
    }

    /// Whether it passes by itself: connections, locks, restarts, resources (PostgreSQL docs, appendix "Error Codes").
    pub fn class(&self) -> Class {
        let state = self.sqlstate.as_str();
        let world = match state.get(..2) {
            Some("08") => state != "08P01",
            Some("40") => true,
            Some("53") => state != "53400",
            Some("57") => state != "57P04",
            _ => matches!(state, "55P03" | "25P03" | "25P04" | "58000" | "58030"),
        };
        if world { Class::Transient } else { Class::TaskBroken }
    }
}

/// The server's own words behind an error, however deep.
pub fn server_error(error: &Error) -> Option<&ServerError> {
    let mut next = std::error::Error::source(error);
    while let Some(origin) = next {
        if let Some(found) = origin.downcast_ref::<ServerError>() {
            return Some(found);
        }
        next = origin.source();
    }
    None
}

/// The SQLSTATE behind an error; `None` where it is not the server's.
pub fn sqlstate(error: &Error) -> Option<&str> {
    server_error(error).map(|found| found.sqlstate.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(state: &str, message: &str) -> ServerError {
        ServerError::parse(format!("SFEHLER\0VERROR\0C{state}\0M{message}\0Rsome_routine\0\0").as_bytes())
    }

    #[test]
    fn the_sqlstate_is_found_under_other_errors() {
        let inner = parsed("55006", "in use").into_error("starting");
        let outer = Error::task_broken(STATEMENT, "outer").with_origin(inner);
        assert_eq!(sqlstate(&outer), Some("55006"));
        assert_eq!(server_error(&outer).map(|found| found.severity.as_str()), Some("ERROR"));
        assert_eq!(
            sqlstate(&Error::transient(UNREACHABLE, "x").with_origin(std::io::Error::other("y"))),
            None
        );
    }

    #[test]
    fn values_of_rows_stay_out_of_texts() {
        for state in ["22P02", "23505"] {
            let error = parsed(state, "invalid input: \"hunter2\"").into_error("asking");
            let text = format!("{error} {:?}", error.cause());
            assert!(!text.contains("hunter2") && text.contains(state), "{text}");
        }
    }

    #[test]
    fn what_passes_is_transient() {
        for state in ["57P01", "57P02", "57P03", "08006", "53300", "53200", "40001", "40P01", "55P03"] {
            assert_eq!(parsed(state, "").class(), Class::Transient, "{state}");
        }
        for state in ["42P01", "57P04", "53400", "28P01", "08P01", "", "5", "é"] {
            assert_eq!(parsed(state, "").class(), Class::TaskBroken, "{state}");
        }
    }
}
