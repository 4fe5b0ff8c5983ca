//! PostgreSQL as a source: catalog, consistent snapshot, change stream.
//!
//! ```text
//!   tables ──> selection     snapshot ──> export, plan, copy      changes ──> connection ─> decode ─> transactions ─> assembler
//! ```
//!
//! Start reading at [`PostgresSource`], then `snapshot/export.rs` and `replication/stream.rs`.

mod check;
mod config;
mod control;
pub mod decode;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
mod refused;
pub mod replication;
mod selection;
mod snapshot;
mod timeline;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pgferry_model::{
    Class, Column, Cure, DataType, Error, Finding, Position, Progress, Result, SourceIdentity, Table,
    TableId, TableName,
};
use pgferry_pipeline::{ChangeStream, Snapshot, SnapshotNeed, Source, StreamStart, SyncMode};
use pgferry_postgres::{
    ConnectionThread, Purpose, ReadAhead, catalog_is_unchanged, mark_catalog, quote_identifier,
    quote_literal, read_tables_as_of,
};
use tokio::sync::OnceCell;

pub use config::{Manage, PostgresSourceConfig, Replication, SelectFrom, TableOptions};
use control::{PostgresControl, column, position};
use replication::feedback::Feedback;
use replication::publication::{Needed, Publication, StreamBegins};
use replication::stream::{PostgresStream, Surroundings};
use replication::watch::Watch;
use replication::{publication, slot};
use selection::{Selection, Wanted, select};
use snapshot::export::{Export, Exported, Worker};
use snapshot::{ConsistentSnapshot, Extent};

/// How long the sizes that were read at the start are good enough to cut tables into chunks.
const KNOWN_SIZES_HOLD: Duration = Duration::from_secs(10);
/// Three times the default `wal_writer_delay`, and some: the longest that an asynchronous commit stays unflushed.
const FLUSHED_WITHIN: Duration = Duration::from_secs(1);
const FLUSHED_POLL: Duration = Duration::from_millis(20);
/// The size of a log page, and the sizes of its headers (PostgreSQL source, `xlog_internal.h`).
const LOG_PAGE_BYTES: u64 = 8192;
const LOG_PAGE_HEADERS: [u64; 2] = [24, 40];

/// A PostgreSQL database as a source of one task.
pub struct PostgresSource {
    control: Arc<PostgresControl>,
    selection: OnceCell<Selection>,
    /// The server's process of the last stream; 0 before the first.
    walsender: AtomicI32,
}

impl PostgresSource {
    /// Nothing is connected yet.
    pub fn new(config: PostgresSourceConfig) -> Self {
        PostgresSource {
            control: Arc::new(PostgresControl::new(config)),
            selection: OnceCell::new(),
            walsender: AtomicI32::new(0),
        }
    }

    async fn selection(&self) -> Result<&Selection> {
        let select = async {
            let selection = self.select(true, None).await?;
            for (table, why) in &selection.snapshot_only {
                tracing::warn!(%table, why, "the table is carried by snapshot only");
            }
            Ok(selection)
        };
        self.selection.get_or_try_init(|| select).await
    }

    /// What the catalog has, now or as of a snapshot. `strict`: every table that the task names has to be there.
    async fn select(&self, strict: bool, snapshot: Option<&str>) -> Result<Selection> {
        let config = &self.control.config;
        let mut session = self.control.connect(Purpose::Query).await?;
        let version = session.server_version_num();
        let mark = mark_catalog(&mut session).await?;
        let publication = self.publication().await?;
        let wanted = Wanted::new(config, publication.as_ref(), strict)?;
        let catalog = read_tables_as_of(&mut session, snapshot, |name| wanted.accepts(name)).await?;
        session.close().await?;
        let mut selection = select(config, &wanted, catalog, publication.as_ref(), version)?;
        selection.mark = Some((mark, Instant::now()));
        Ok(selection)
    }

    /// What holds the rows of the run's tables, of those that are what they were at the start. As of the snapshot, so that a partition
    /// that was made since the start, whose rows the snapshot sees, is not left out.
    async fn extents_as_of(&self, exported: &Exported) -> Result<Arc<HashMap<TableId, Extent>>> {
        let known = self.selection().await?;
        if self.is_still_known(known, exported).await? {
            return Ok(Arc::clone(&known.extents));
        }
        let now = self.select(false, Some(exported.name())).await?;
        let mut extents = Arc::unwrap_or_clone(Arc::clone(&now.extents));
        let pairs = known.tables.iter().zip(&known.bindings).filter_map(|(table, (oid, _))| {
            let same = |at: &usize| {
                let (other, (other_oid, _)) = (&now.tables[*at], &now.bindings[*at]);
                let columns = |table: &Table| -> Vec<(Arc<str>, DataType)> {
                    let of = |column: &Column| (Arc::clone(&column.name), column.data_type.clone());
                    table.columns.iter().map(of).collect()
                };
                oid == other_oid && table.name == other.name && columns(table) == columns(other)
            };
            let at = (0..now.tables.len()).find(same)?;
            Some((table.id, extents.remove(&now.tables[at].id)?))
        });
        Ok(Arc::new(pairs.collect()))
    }

    /// Whether the snapshot shows what was read at the start: most often it does, and reading it again takes long with many tables.
    async fn is_still_known(&self, known: &Selection, exported: &Exported) -> Result<bool> {
        let Some((mark, _)) = known.mark.as_ref().filter(|(_, at)| at.elapsed() < KNOWN_SIZES_HOLD) else {
            return Ok(false);
        };
        let Worker { thread, mut session } = exported.worker(&self.control).await?;
        let mark = mark.clone();
        let (session, unchanged) = thread
            .run(async move {
                let unchanged = catalog_is_unchanged(&mut session, &mark).await;
                (session, unchanged)
            })
            .await?;
        let unchanged = unchanged?;
        exported.put_back(Worker { thread, session });
        if !unchanged {
            return Ok(false);
        }
        let publication = self.publication().await?;
        let left_out =
            |needed| publication.as_ref().map(|found| found.restrictions(needed)).unwrap_or_default();
        Ok(known.restrictions.iter().all(|(needed, restrictions)| left_out(needed) == *restrictions))
    }

    fn streams(&self) -> bool {
        self.control.config.sync_mode != SyncMode::Snapshot
    }

    /// The publication, where it selects tables or restricts what the stream brings. It has to be there where it selects.
    async fn publication(&self) -> Result<Option<Publication>> {
        let replication = &self.control.config.replication;
        if !self.streams() && replication.from == SelectFrom::Tables {
            return Ok(None);
        }
        let found = publication::find(&self.control, &replication.publication).await?;
        if found.is_none() && replication.from == SelectFrom::Publication {
            let statement = publication::statement(&self.control, false, &[]).await?;
            return Err(error::publication_missing(replication, &statement));
        }
        Ok(found)
    }

    /// Makes or completes the publication.
    async fn ensure_published(&self, begins: StreamBegins) -> Result<()> {
        publication::ensure(&self.control, &self.needed().await?, begins).await
    }

    /// The tables and partitions that have to be published: of those at the start, the ones that still exist. One that was dropped since
    /// has no changes any more, and must not stop the others.
    async fn needed(&self) -> Result<Vec<Needed>> {
        publication::existing(&self.control, &self.selection().await?.published).await
    }

    /// Refuses where a table that follows the stream already has left the publication: its changes since are lost.
    async fn verify_still_published(&self, progress: &Progress) -> Result<()> {
        let live = |name: &TableName| progress.table(name).is_some_and(|known| known.state.takes_changes());
        let live: Vec<Needed> =
            self.needed().await?.into_iter().filter(|needed| live(&needed.name)).collect();
        let replication = &self.control.config.replication;
        let found = publication::find(&self.control, &replication.publication).await?;
        let missing = publication::missing(found.as_ref(), &live);
        if missing.is_empty() {
            return Ok(());
        }
        let statement = publication::statement(&self.control, found.is_some(), &missing).await?;
        Err(match found {
            None => error::publication_gone(replication, &statement),
            Some(found) => {
                let name = &replication.publication;
                error::left_publication(publication::not_published(name, &found, &missing, &statement))
            }
        })
    }

    async fn slot(&self) -> Result<Option<slot::SlotState>> {
        slot::find(&self.control, &self.control.config.replication.slot).await
    }

    async fn export_for(&self, need: SnapshotNeed) -> Result<Export> {
        if need == SnapshotNeed::RowsOnly {
            return Ok(Export::Plain);
        }
        let begins =
            if need == SnapshotNeed::StreamStart { StreamBegins::Later } else { StreamBegins::Before };
        self.ensure_published(begins).await?;
        let replication = &self.control.config.replication;
        match (need, slot::find_made(&self.control, &replication.slot).await?) {
            (SnapshotNeed::StreamStart, None) if replication.manage == Manage::Never => {
                Err(error::slot_missing(replication, None))
            }
            (SnapshotNeed::StreamStart, None) => Ok(Export::WithSlot(replication.slot.clone())),
            _ => Ok(Export::WithTemporarySlot),
        }
    }

    /// A position in the log by the name of the function that tells it; a standby's is what it has replayed.
    async fn log_position(&self, function: &str) -> Result<Position> {
        Ok(before_page_header(self.log_end(function).await?))
    }

    async fn log_end(&self, function: &str) -> Result<Position> {
        let rows = self
            .control
            .ask(&format!(
                "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                 ELSE pg_catalog.{function}() END"
            ))
            .await?;
        position(&column(&rows, 0, 0)?)
    }

    /// Waits until the log is flushed up to a position, `FLUSHED_WITHIN` at most. The stream carries flushed log only.
    async fn flushed(&self, end: Position) -> Result<bool> {
        let deadline = tokio::time::Instant::now() + FLUSHED_WITHIN;
        while self.log_position("pg_current_wal_flush_lsn").await? < end {
            if tokio::time::Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(FLUSHED_POLL).await;
        }
        Ok(true)
    }

    /// Commits a transaction without changes, so that the log before it is flushed. What open transactions wrote can stay
    /// unflushed until the next checkpoint, and up to which record the log is flushed, nobody tells: a flushed position may lie within
    /// one. A commit is flushed in time, even one without changes (PostgreSQL source, `RecordTransactionCommit`). A standby flushes
    /// what it replays.
    async fn commit_nothing(&self) -> Result<()> {
        let commit = "BEGIN READ WRITE; SELECT pg_catalog.txid_current(); COMMIT";
        let standby = self.control.ask("SELECT pg_catalog.pg_is_in_recovery()").await?;
        if control::optional(&standby, 0, 0).as_deref() != Some("t") {
            self.control.ask(commit).await?;
        }
        Ok(())
    }

    /// Refuses a stored position that the server has not reached: it was put back to an earlier time. What it writes next would take
    /// positions that count as delivered.
    async fn verify_reached(&self, stored: Position) -> Result<()> {
        let end = self.log_end("pg_current_wal_insert_lsn").await?;
        if stored <= end {
            return Ok(());
        }
        let rows = self.control.ask("SELECT pg_catalog.pg_is_in_recovery()").await?;
        let behind = error::log_behind(stored, end);
        // A standby that has just started is still on its way.
        let standby = control::optional(&rows, 0, 0).as_deref() == Some("t");
        Err(if standby { behind.with_class(Class::Transient) } else { behind })
    }

    /// The server starts a slot that is ahead where the slot stands, without a word (PostgreSQL docs, "START_REPLICATION").
    async fn verify_not_passed(&self, after: Position) -> Result<()> {
        match self.slot().await?.and_then(|slot| slot.confirmed) {
            Some(confirmed) if confirmed > after => {
                Err(error::slot_ahead(&self.control.config.replication.slot, confirmed, after))
            }
            _ => Ok(()),
        }
    }

    /// Opens the stream's connection; waits for our own old connection to let go of the slot.
    async fn start_replication(
        &self,
        after: Position,
        thread: &ConnectionThread,
    ) -> Result<pgferry_postgres::Session> {
        let replication = &self.control.config.replication;
        let deadline = tokio::time::Instant::now() + slot::RELEASE_WITHIN;
        loop {
            self.verify_not_passed(after).await?;
            let mut session = thread.open(self.control.connect(Purpose::Replication)).await?;
            let options = stream_options(session.server_version_num(), &replication.publication);
            let statement = format!(
                "START_REPLICATION SLOT {} LOGICAL {after} ({options})",
                quote_identifier(&replication.slot)
            );
            let Err(failure) = session.copy_both(&statement).await else {
                self.walsender.store(session.backend_pid(), Ordering::Relaxed);
                return Ok(session);
            };
            let active = refused::words(&failure).is_some_and(|words| words.sqlstate == "55006");
            if !active {
                return Err(refused::streaming(failure, replication, after));
            }
            slot::end_stale(&self.control, &replication.slot, self.walsender.load(Ordering::Relaxed)).await?;
            if tokio::time::Instant::now() >= deadline {
                return Err(slot::active(&self.control, &replication.slot).await.with_origin(failure));
            }
            tokio::time::sleep(slot::RELEASE_POLL).await;
        }
    }
}

/// Only what the server knows: an unknown option is an error there (PostgreSQL docs, "Logical Streaming Replication Parameters").
fn stream_options(server_version_num: u32, publication: &str) -> String {
    let (protocol, streaming) = match server_version_num {
        160_000.. => (4, Some("parallel")),
        150_000.. => (3, Some("on")),
        140_000.. => (2, Some("on")),
        _ => (1, None),
    };
    let names = quote_literal(&quote_identifier(publication));
    let streaming = streaming.map(|mode| format!(", streaming '{mode}'")).unwrap_or_default();
    format!("proto_version '{protocol}', publication_names {names}{streaming}")
}

#[async_trait]
impl Source for PostgresSource {
    async fn tables(&self) -> Result<Vec<Arc<Table>>> {
        Ok(self.selection().await?.tables.clone())
    }

    /// The timeline is that of the log which is written now: the control file's is the last checkpoint's, and a promoted server makes its first one
    /// later.
    async fn identity(&self) -> Result<SourceIdentity> {
        let rows = self
            .control
            .ask(
                "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
                 CASE WHEN pg_catalog.pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()) \
                 ELSE ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END, \
                 pg_catalog.current_database()",
            )
            .await?;
        let slot = if self.streams() { self.control.config.replication.slot.clone() } else { String::new() };
        Ok(SourceIdentity {
            system_id: column(&rows, 0, 0)?,
            timeline: column(&rows, 0, 1)?.parse().unwrap_or(0),
            database: column(&rows, 0, 2)?,
            slot,
        })
    }

    async fn verify_start(&self, progress: &Progress) -> Result<()> {
        let now = self.identity().await?;
        if let Some(stored) = &progress.source
            && (stored.system_id != now.system_id || stored.database != now.database)
        {
            return Err(identity_changed(stored, &now));
        }
        if !self.streams() {
            return Ok(());
        }
        if let Some(stored) = progress.position {
            self.verify_reached(stored).await?;
            let timeline = progress.source.as_ref().map_or(now.timeline, |source| source.timeline);
            timeline::verify_contains(&self.control, stored, timeline, now.timeline).await?;
        }
        self.verify_still_published(progress).await?;
        if self.control.config.replication.manage == Manage::Never {
            let copies =
                progress.position.is_none() && self.control.config.sync_mode == SyncMode::SnapshotCdc;
            self.ensure_published(if copies { StreamBegins::Later } else { StreamBegins::Before }).await?;
        }
        let replication = &self.control.config.replication;
        let name = &replication.slot;
        let slot = self.slot().await?;
        if let Some(slot) = &slot {
            slot.verify_usable(name)?;
        }
        match (progress.position, slot) {
            (None, Some(_)) => Ok(()),
            (None, None) if replication.manage == Manage::Never => {
                Err(error::slot_missing(replication, None))
            }
            (None, None) => Ok(()),
            (Some(stored), None) => Err(error::slot_missing(replication, Some(stored))),
            (Some(stored), Some(slot)) => match slot.confirmed {
                Some(confirmed) if confirmed > stored => Err(error::slot_ahead(name, confirmed, stored)),
                _ => Ok(()),
            },
        }
    }

    async fn prepare_stream(&self) -> Result<Position> {
        self.ensure_published(StreamBegins::Before).await?;
        let replication = &self.control.config.replication;
        if let Some(slot) = self.slot().await? {
            return slot.confirmed.ok_or_else(|| error::slot_missing(replication, None));
        }
        if replication.manage == Manage::Never {
            return Err(error::slot_missing(replication, None));
        }
        let mut session = self.control.connect(Purpose::Replication).await?;
        let (_, start) = slot::create(&self.control, &mut session, &replication.slot, false).await?;
        session.close().await?;
        Ok(start)
    }

    async fn snapshot(&self, need: SnapshotNeed) -> Result<Box<dyn Snapshot>> {
        let export = self.export_for(need).await?;
        let exported = Exported::open(&self.control, export).await?;
        let extents = self.extents_as_of(&exported).await?;
        Ok(Box::new(ConsistentSnapshot {
            control: Arc::clone(&self.control),
            exported,
            extents,
            workers: self.control.config.workers,
        }))
    }

    async fn changes(&self, start: StreamStart) -> Result<Box<dyn ChangeStream>> {
        let selection = self.selection().await?;
        self.ensure_published(StreamBegins::Before).await?;
        let rows = self
            .control
            .ask("SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'")
            .await?;
        let timeout = Duration::from_millis(column(&rows, 0, 0)?.parse().unwrap_or(60_000));
        let thread = ConnectionThread::start()?;
        let session = self.start_replication(start.after, &thread).await?;
        let source_end = self.log_position("pg_current_wal_insert_lsn").await?;
        let transactions = replication::transactions(&self.control.config, selection);
        let roots =
            selection.bindings.iter().zip(&selection.tables).map(|((oid, _), table)| (*oid, table.id));
        let surroundings = Surroundings {
            control: Arc::clone(&self.control),
            watch: Watch::start(self.control.config.clone(), self.needed().await?),
            roots: roots.collect(),
            walsender: session.backend_pid(),
            timeout,
            probe_after: self.control.config.connection.probe_after,
        };
        self.control.release().await;
        let (reader, writer) = session.into_split();
        let reader = ReadAhead::start(thread, reader);
        let feedback = Feedback::start(writer, timeout, surroundings.silence_max(), start.after);
        Ok(Box::new(PostgresStream::new(
            reader,
            feedback,
            transactions,
            surroundings,
            start.after,
            source_end,
        )))
    }

    async fn current_position(&self) -> Result<Position> {
        let end = self.log_position("pg_current_wal_insert_lsn").await?;
        if !self.flushed(end).await? {
            self.commit_nothing().await?;
            self.flushed(end).await?;
        }
        Ok(end)
    }

    async fn chunks_estimated(&self, table: &Table) -> Result<Option<usize>> {
        let selection = self.selection().await?;
        let extent = selection.extents.get(&table.id);
        Ok(extent.map(|extent| snapshot::plan::split(&extent.heaps, self.control.config.workers).len()))
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        check::check(&self.control).await
    }
}

/// The insert position skips a page's header as soon as the page before is full; the end of the last record does not.
fn before_page_header(position: Position) -> Position {
    let in_page = position.lsn() % LOG_PAGE_BYTES;
    if LOG_PAGE_HEADERS.contains(&in_page) { Position::from_lsn(position.lsn() - in_page) } else { position }
}

fn identity_changed(stored: &SourceIdentity, now: &SourceIdentity) -> Error {
    Error::task_broken(
        error::IDENTITY_CHANGED,
        format!(
            "the target holds changes of database {} in cluster {}, not of {} in {}",
            stored.database, stored.system_id, now.database, now.system_id
        ),
    )
    .with_cause("the connection leads to another server or database than before; positions of one mean nothing in the other")
    .with_cure(Cure::advice("correct the connection, or give the task another name to start anew"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_that_the_server_knows() {
        assert_eq!(stream_options(100_023, "p"), "proto_version '1', publication_names '\"p\"'");
        assert_eq!(
            stream_options(140_000, "p"),
            "proto_version '2', publication_names '\"p\"', streaming 'on'"
        );
        assert_eq!(
            stream_options(150_018, "a'b"),
            "proto_version '3', publication_names '\"a''b\"', streaming 'on'"
        );
        assert_eq!(
            stream_options(180_004, "p"),
            "proto_version '4', publication_names '\"p\"', streaming 'parallel'"
        );
    }

    #[test]
    fn a_position_right_after_a_page_header_is_the_end_of_the_page_before() {
        let at = Position::from_lsn;
        assert_eq!(before_page_header(at(8192 * 3 + 24)), at(8192 * 3));
        assert_eq!(before_page_header(at(8192 * 3 + 40)), at(8192 * 3));
        assert_eq!(before_page_header(at(8192 * 3 + 48)), at(8192 * 3 + 48));
    }
}
