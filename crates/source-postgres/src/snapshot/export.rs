//! Opens a consistent point and lets many connections read at it.
//!
//! ```text
//!   exporter   CREATE_REPLICATION_SLOT … (SNAPSHOT 'export')   idle until the end: the snapshot dies with it
//!   worker 1   BEGIN … SET TRANSACTION SNAPSHOT 'name'         its snapshot compared with the first worker's
//!   worker 2   …
//! ```
//!
//! Invariants: every worker reads at the same snapshot, asserted per connection (behind a load balancer `SET TRANSACTION SNAPSHOT`
//! can reach another instance); the exporter runs no other command while the snapshot is needed; a worker holds no lock between two
//! chunks.
//!
//! Why locks are given back: a worker that kept them would block ALTER TABLE, TRUNCATE or VACUUM FULL until the whole copy ends, every
//! query of the application would queue up behind those, and so would other workers: a copy that waits for itself. Rolling back to a
//! savepoint gives locks back and keeps the snapshot (PostgreSQL docs, "ROLLBACK TO SAVEPOINT", "Table-Level Locks").
//!
//! Facts: PostgreSQL docs, "Streaming Replication Protocol" (CREATE_REPLICATION_SLOT), "SET TRANSACTION", "Snapshot Synchronization
//! Functions". The slot's consistent point is the cut: decoding skips a commit whose record begins before it.

use parking_lot::Mutex;
use pgferry_model::{Cure, Error, Position, Result};
use pgferry_postgres::{ConnectionThread, Purpose, Session, quote_literal};

use crate::control::{PostgresControl, column, query};
use crate::error;
use crate::replication::slot;
use crate::snapshot::PREPARE_LOOK;
use pgferry_pipeline::error::SNAPSHOT_LOST;

/// The exporting connection and the snapshot's name.
pub(crate) struct Exported {
    /// Idle while the snapshot is needed; it holds the temporary slot, if there is one.
    exporter: Session,
    name: String,
    cut: Position,
    /// `pg_current_snapshot()` as the first worker saw it.
    seen: Mutex<Option<String>>,
    idle: Mutex<Vec<Worker>>,
}

/// Gives a chunk's locks back: the last statement of each.
pub(crate) const GIVE_LOCKS_BACK: &str = "ROLLBACK TO SAVEPOINT chunk";

/// A connection that reads at the snapshot, and the thread that it is read on.
pub(crate) struct Worker {
    pub(crate) thread: ConnectionThread,
    pub(crate) session: Session,
}

/// How the snapshot is opened.
pub(crate) enum Export {
    /// No slot: rows only.
    Plain,
    /// The task's slot is made, and its snapshot is used.
    WithSlot(String),
    /// A slot that goes away with its connection.
    WithTemporarySlot,
}

impl Exported {
    /// Opens the consistent point.
    pub(crate) async fn open(control: &PostgresControl, export: Export) -> Result<Exported> {
        let purpose = if matches!(export, Export::Plain) { Purpose::Copy } else { Purpose::Replication };
        let mut exporter = control.connect(purpose).await?;
        let (name, cut) = match export {
            Export::Plain => plain(&mut exporter).await?,
            Export::WithSlot(name) => slot::create(control, &mut exporter, &name, false).await?,
            Export::WithTemporarySlot => {
                let name = format!("pgferry_cut_{}", exporter.backend_pid());
                slot::create(control, &mut exporter, &name, true).await?
            }
        };
        Ok(Exported { exporter, name, cut, seen: Mutex::new(None), idle: Mutex::new(Vec::new()) })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn cut(&self) -> Position {
        self.cut
    }

    /// A connection that reads at the snapshot; give it back with [`Exported::put_back`] when it is whole.
    pub(crate) async fn worker(&self, control: &PostgresControl) -> Result<Worker> {
        if let Some(worker) = self.idle.lock().pop() {
            return Ok(worker);
        }
        let thread = ConnectionThread::start()?;
        let mut session = thread.open(control.connect(Purpose::Copy)).await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        query(&mut session, begin).await?;
        let import = format!("SET TRANSACTION SNAPSHOT {}", quote_literal(&self.name));
        query(&mut session, &import).await.map_err(lost)?;
        let function = if session.server_version_num() >= 130_000 {
            "pg_current_snapshot"
        } else {
            "txid_current_snapshot"
        };
        let question = format!("SELECT pg_catalog.{function}(), pg_catalog.pg_backend_pid()");
        let rows = query(&mut session, &question).await?;
        session.verify_process(&column(&rows, 0, 1)?)?;
        self.verify_same(&column(&rows, 0, 0)?)?;
        query(&mut session, &format!("{PREPARE_LOOK}; SAVEPOINT chunk")).await?;
        Ok(Worker { thread, session })
    }

    fn verify_same(&self, seen: &str) -> Result<()> {
        let mut first = self.seen.lock();
        if *first.get_or_insert_with(|| seen.to_owned()) == seen {
            Ok(())
        } else {
            Err(error::snapshot_differs())
        }
    }

    /// Keeps a connection whose chunk was read whole for the next one.
    pub(crate) fn put_back(&self, worker: Worker) {
        self.idle.lock().push(worker);
    }

    /// Ends the snapshot; a temporary slot goes with it.
    pub(crate) async fn close(self) -> Result<()> {
        for worker in self.idle.into_inner() {
            worker.session.close().await?;
        }
        self.exporter.close().await
    }
}

async fn plain(session: &mut Session) -> Result<(String, Position)> {
    query(session, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let rows = query(
        session,
        "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
         ELSE pg_catalog.pg_current_wal_insert_lsn() END, pg_catalog.pg_export_snapshot()",
    )
    .await?;
    let cut = crate::control::position(&column(&rows, 0, 0)?)?;
    Ok((column(&rows, 0, 1)?, cut))
}

fn lost(failure: Error) -> Error {
    Error::transient(SNAPSHOT_LOST, "the consistent snapshot is gone")
        .with_cause(
            "the connection that exported it ended: a restart, a timeout of a firewall, an ended session",
        )
        .with_cure(Cure::advice("nothing: unfinished tables are copied again under a new snapshot"))
        .with_origin(failure)
}
