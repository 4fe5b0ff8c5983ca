//! A source that lets the test change the database at a chosen moment of a run: before the n-th chunk is read, and before the stream
//! begins.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use pgferry_model::{CellFormat, Error, Finding, Position, Progress, Result, SourceIdentity, Table};
use pgferry_pipeline::{ChangeStream, Chunk, RowSender, Snapshot, SnapshotNeed, Source, StreamStart};
use pgferry_source_postgres::{PostgresSource, PostgresSourceConfig};
use pgferry_testkit::Database;

/// What is run, on the superuser's own session.
#[derive(Clone, Default)]
pub(crate) struct Meddling {
    /// Right after a snapshot was opened, per snapshot.
    pub(crate) after_export: Vec<String>,
    /// Before a chunk is read, counted over the whole run.
    pub(crate) before_chunk: Vec<(usize, String)>,
    /// Before the stream begins, per beginning.
    pub(crate) before_stream: Vec<String>,
}

#[derive(Clone)]
struct Moments {
    database: Arc<Database>,
    what: Arc<Meddling>,
    chunks: Arc<AtomicUsize>,
}

pub(crate) struct MeddledSource {
    inner: PostgresSource,
    moments: Moments,
    snapshots: AtomicUsize,
    streams: AtomicUsize,
}

impl MeddledSource {
    pub(crate) fn new(config: PostgresSourceConfig, database: &Arc<Database>, what: Meddling) -> Self {
        let moments = Moments {
            database: Arc::clone(database),
            what: Arc::new(what),
            chunks: Arc::new(AtomicUsize::new(0)),
        };
        MeddledSource {
            inner: PostgresSource::new(config),
            moments,
            snapshots: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
        }
    }

    pub(crate) fn snapshots(&self) -> usize {
        self.snapshots.load(Ordering::SeqCst)
    }
}

impl Moments {
    async fn run(&self, sql: Option<&String>) -> Result<()> {
        let Some(sql) = sql else { return Ok(()) };
        // What blocks is seen, and does not hang the test.
        for statement in sql.split(";;") {
            let client = self.database.client().await.map_err(failed)?;
            client.batch_execute("SET lock_timeout = '5s'").await.map_err(failed)?;
            client.batch_execute(statement).await.map_err(failed)?;
        }
        Ok(())
    }
}

fn failed(failure: impl Into<anyhow::Error>) -> Error {
    let failure: anyhow::Error = failure.into();
    Error::task_broken(pgferry_source_postgres::error::PROTOCOL, format!("the test's own SQL: {failure:#}"))
}

#[async_trait]
impl Source for MeddledSource {
    async fn tables(&self) -> Result<Vec<Arc<Table>>> {
        self.inner.tables().await
    }

    async fn identity(&self) -> Result<SourceIdentity> {
        self.inner.identity().await
    }

    async fn verify_start(&self, progress: &Progress) -> Result<()> {
        self.inner.verify_start(progress).await
    }

    async fn prepare_stream(&self) -> Result<Position> {
        self.inner.prepare_stream().await
    }

    async fn snapshot(&self, need: SnapshotNeed) -> Result<Box<dyn Snapshot>> {
        let inner = self.inner.snapshot(need).await?;
        let number = self.snapshots.fetch_add(1, Ordering::SeqCst);
        self.moments.run(self.moments.what.after_export.get(number)).await?;
        Ok(Box::new(MeddledSnapshot { inner, moments: self.moments.clone() }))
    }

    async fn changes(&self, start: StreamStart) -> Result<Box<dyn ChangeStream>> {
        let number = self.streams.fetch_add(1, Ordering::SeqCst);
        self.moments.run(self.moments.what.before_stream.get(number)).await?;
        self.inner.changes(start).await
    }

    async fn current_position(&self) -> Result<Position> {
        self.inner.current_position().await
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        self.inner.check().await
    }
}

struct MeddledSnapshot {
    inner: Box<dyn Snapshot>,
    moments: Moments,
}

#[async_trait]
impl Snapshot for MeddledSnapshot {
    fn cut(&self) -> Position {
        self.inner.cut()
    }

    async fn plan(&self, table: &Arc<Table>) -> Result<Vec<Chunk>> {
        self.inner.plan(table).await
    }

    async fn copy(&self, chunk: &Chunk, formats: &[CellFormat], out: RowSender) -> Result<u64> {
        let number = self.moments.chunks.fetch_add(1, Ordering::SeqCst);
        let meddle = self.moments.what.before_chunk.iter().find(|(at, _)| *at == number);
        self.moments.run(meddle.map(|(_, sql)| sql)).await?;
        self.inner.copy(chunk, formats, out).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}
