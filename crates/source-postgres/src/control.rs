//! The connection for questions: catalog, settings, slots, positions. Opened when needed, kept, opened anew when lost.

use std::sync::atomic::AtomicI32;

use pgferry_model::{Class, Error, Position, Result};
use pgferry_postgres::{Purpose, ResultRow, Session};
use tokio::sync::Mutex;

use crate::config::PostgresSourceConfig;
use crate::decode::protocol_error;
use crate::refused;

/// Connects for one source.
pub(crate) struct PostgresControl {
    pub(crate) config: PostgresSourceConfig,
    /// The server's process that was last told to make the task's slot; 0 before.
    pub(crate) slot_maker: AtomicI32,
    session: Mutex<Option<Session>>,
}

impl PostgresControl {
    pub(crate) fn new(config: PostgresSourceConfig) -> Self {
        PostgresControl { config, slot_maker: AtomicI32::new(0), session: Mutex::new(None) }
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self, purpose: Purpose) -> Result<Session> {
        let user = &self.config.connection.user;
        Session::connect(&self.config.connection, purpose).await.map_err(|failure| match purpose {
            Purpose::Replication => refused::connecting(failure, user),
            Purpose::Query | Purpose::Copy => failure,
        })
    }

    /// Asks on the shared connection. A connection that was lost since the last question is opened anew, once.
    pub(crate) async fn ask(&self, sql: &str) -> Result<Vec<ResultRow>> {
        let mut shared = self.session.lock().await;
        if let Some(mut session) = shared.take() {
            match session.simple_query(sql).await {
                Ok(rows) => {
                    *shared = Some(session);
                    return Ok(rows);
                }
                Err(failure) if failure.class() == Class::Transient => {}
                Err(failure) => {
                    *shared = Some(session);
                    return Err(failure);
                }
            }
        }
        let mut session = self.connect(Purpose::Query).await?;
        let rows = session.simple_query(sql).await;
        *shared = Some(session);
        rows
    }

    /// The server's version, such as 150018.
    pub(crate) async fn server_version_num(&self) -> Result<u32> {
        if let Some(session) = self.session.lock().await.as_ref() {
            return Ok(session.server_version_num());
        }
        let rows = self.ask("SHOW server_version_num").await?;
        column(&rows, 0, 0)?.parse().map_err(|_| unexpected())
    }

    /// Ends the shared connection, so that nothing is left open between phases.
    pub(crate) async fn release(&self) {
        if let Some(session) = self.session.lock().await.take()
            && let Err(failure) = session.close().await
        {
            tracing::debug!(code = failure.code().as_str(), "a connection did not end cleanly: {failure}");
        }
    }
}

/// Asks on a connection of the caller's.
pub(crate) async fn query(session: &mut Session, sql: &str) -> Result<Vec<ResultRow>> {
    session.simple_query(sql).await
}

/// A value that has to be there.
pub(crate) fn column(rows: &[ResultRow], row: usize, column: usize) -> Result<String> {
    optional(rows, row, column).ok_or_else(unexpected)
}

/// A value that may be NULL or missing.
pub(crate) fn optional(rows: &[ResultRow], row: usize, column: usize) -> Option<String> {
    rows.get(row)?.get(column)?.clone()
}

/// A `pg_lsn`.
pub(crate) fn position(text: &str) -> Result<Position> {
    text.parse().map_err(|_| unexpected())
}

fn unexpected() -> Error {
    protocol_error("the server's answer to a question has another shape than expected")
}
