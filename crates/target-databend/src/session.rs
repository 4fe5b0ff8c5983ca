//! A session with the server: statements one after the other, and files into the stage.
//!
//! Invariant: a session whose transaction has ended in an unknown way is not used again; its end is the server's to see to.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use databend_client::{APIClient, Error as Failure};
use pgferry_model::{Class, Result};

use crate::error::{CONFLICT, refused};
use crate::settings::Settings;

/// A statement's answer: rows of texts; `None` is NULL.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

/// The first wait after a conflict with another transaction; each one after it is twice as long.
const CONFLICT_WAIT: Duration = Duration::from_millis(50);
/// A wait that is not begun any more.
const CONFLICT_WAIT_MAX: Duration = Duration::from_secs(10);
/// The longest that the upload of one file may take.
const UPLOAD_WITHIN: Duration = Duration::from_secs(600);
/// How often a file is sent at most: the client itself tries once.
const UPLOADS_MAX: u32 = 4;

/// One session.
pub(crate) struct Session {
    client: Arc<APIClient>,
}

impl Session {
    pub(crate) async fn connect(settings: &Settings) -> Result<Session> {
        let name = format!("pgferry/{}", env!("CARGO_PKG_VERSION"));
        let client = APIClient::new(&settings.dsn, Some(name)).await;
        let client = client
            .map_err(|failure| refused(&format!("connecting to Databend at {}", settings.place), &failure))?;
        Ok(Session { client })
    }

    /// Runs a statement.
    pub(crate) async fn run(&self, statement: &str) -> std::result::Result<Rows, Failure> {
        tracing::trace!(target: "databend", "{statement}");
        self.client.query_all(statement, None).await.map(|page| page.data)
    }

    /// [`Session::run`], with its error told as one of doing something.
    pub(crate) async fn ask(&self, doing: &str, statement: &str) -> Result<Rows> {
        self.run(statement).await.map_err(|failure| refused(doing, &failure))
    }

    /// [`Session::ask`] for a statement that is a transaction of its own: one that conflicts with another one is tried again.
    pub(crate) async fn ask_again(&self, doing: &str, statement: &str) -> Result<Rows> {
        despite_conflicts(|| self.ask(doing, statement)).await
    }

    /// Puts a file into a stage, under a name that is used once.
    pub(crate) async fn upload(&self, place: &str, file: Bytes) -> Result<()> {
        let doing = "uploading a file";
        let mut tries = 0;
        loop {
            tries += 1;
            let reader = Box::new(Cursor::new(file.clone()));
            let sending = self.client.upload_to_stage(place, reader, file.len() as u64);
            let sent = match tokio::time::timeout(UPLOAD_WITHIN, sending).await {
                Ok(sent) => sent.map_err(|failure| refused(doing, &failure)),
                Err(_) => {
                    Err(refused(doing, &Failure::IO(format!("no end after {} s", UPLOAD_WITHIN.as_secs()))))
                }
            };
            match sent {
                Err(failure) if failure.class() == Class::Transient && tries < UPLOADS_MAX => {
                    tracing::debug!("a file is sent again: {failure}");
                    tokio::time::sleep(Duration::from_millis(200 * u64::from(tries))).await;
                }
                sent => return sent,
            }
        }
    }
}

/// Tries again what conflicts with another transaction, until the waits in between have become long.
pub(crate) async fn despite_conflicts<T, F: Future<Output = Result<T>>>(
    mut attempt: impl FnMut() -> F,
) -> Result<T> {
    let mut wait = CONFLICT_WAIT;
    loop {
        match attempt().await {
            Err(failure) if failure.code() == CONFLICT && wait < CONFLICT_WAIT_MAX => {
                tracing::debug!("tried again: {failure}");
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
            done => return done,
        }
    }
}

/// The first number of an answer: a count, or how many rows a statement has written.
pub(crate) fn first_number(rows: &Rows) -> u64 {
    number(rows.first().and_then(|row| row.first()))
}

/// A cell that is a number; 0 where it is NULL or is not there.
pub(crate) fn number(cell: Option<&Option<String>>) -> u64 {
    cell.and_then(Option::as_deref).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A cell's text; empty where it is NULL or is not there.
pub(crate) fn text(row: &[Option<String>], at: usize) -> String {
    row.get(at).cloned().flatten().unwrap_or_default()
}
