//! A seeded stream of changes against a database: the same seed gives the same statements.
//!
//! ```text
//!   seed ──> session 0..n ──> transaction (statements, commit or roll back) ──> database
//!                 ▲                       │ deadlock, conflict: the same statements again
//!                 └───────────────────────┘
//! ```
//!
//! Invariants: statements depend on the seed, the session's number and the options, never on answers or the clock; a
//! run is bounded in transactions or time; fresh keys are unique across sessions.
//!
//! Limits: with several sessions the statements are the same, their interleaving is the server's. The partitioned table
//! exists from PostgreSQL 13, where its root can be published.

mod schema;
mod session;
mod transaction;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::random::SeededRandom;
pub use schema::Table;

/// What a workload is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Narrow tables `narrow_0…`; at least 1. The last quarter of them, at least one when there are two, is also truncated.
    pub narrow_tables: usize,
    /// Tables without rows, `empty_0…`.
    pub empty_tables: usize,
    /// Columns of the wide table.
    pub wide_columns: usize,
    /// Rows of a large transaction; with `logical_decoding_work_mem = 64kB` some 500 are enough to stream.
    pub large_rows: u64,
    /// How often each operation is chosen, relative to the others; 0: never.
    pub weights: BTreeMap<Operation, u64>,
    /// Percent of transactions that are rolled back wholly.
    pub rolled_back_percent: u64,
    /// The most operations of a transaction.
    pub operations_max: u64,
}

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    Insert,
    InsertMany,
    /// One column; TOASTed values stay as they are.
    Update,
    UpdateMany,
    Delete,
    KeyChange,
    /// Two rows exchange their keys through a third value.
    KeySwap,
    DeleteAndInsert,
    /// One key inserted, updated and deleted in one transaction.
    InsertUpdateDelete,
    SavepointRolledBack,
    SavepointReleased,
    Truncate,
    TruncateMany,
    Large,
    /// A transaction without changes.
    Empty,
    /// A logical message, transactional or not.
    Message,
}

impl Operation {
    /// Every kind with its usual weight.
    pub const USUAL: [(Self, u64); 16] = [
        (Self::Insert, 20),
        (Self::InsertMany, 8),
        (Self::Update, 30),
        (Self::UpdateMany, 6),
        (Self::Delete, 8),
        (Self::KeyChange, 4),
        (Self::KeySwap, 3),
        (Self::DeleteAndInsert, 4),
        (Self::InsertUpdateDelete, 3),
        (Self::SavepointRolledBack, 4),
        (Self::SavepointReleased, 4),
        (Self::Truncate, 1),
        (Self::TruncateMany, 1),
        (Self::Large, 1),
        (Self::Empty, 2),
        (Self::Message, 2),
    ];
}

impl Default for Options {
    fn default() -> Self {
        Self {
            narrow_tables: 4,
            empty_tables: 2,
            wide_columns: 300,
            large_rows: 1000,
            weights: Operation::USUAL.into(),
            rolled_back_percent: 5,
            operations_max: 6,
        }
    }
}

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// After this many transactions of each session.
    Count(u64),
    /// After this time.
    After(Duration),
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations of committed transactions.
    pub operations: BTreeMap<Operation, u64>,
    pub committed: u64,
    /// Rolled back because the workload wanted it.
    pub rolled_back: u64,
    /// Begun again after a deadlock or a conflict with another session.
    pub retried: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        for (operation, count) in &other.operations {
            *self.operations.entry(*operation).or_default() += count;
        }
        self.committed += other.committed;
        self.rolled_back += other.rolled_back;
        self.retried += other.retried;
    }
}

/// A seeded workload. Make its schema, fill it, then run it, as often as wanted.
#[derive(Clone, Debug)]
pub struct Workload {
    seed: u64,
    options: Options,
    tables: Vec<Table>,
    filled: u64,
    runs: u64,
}

impl Workload {
    /// The workload of `seed`; nothing happens yet.
    pub fn new(seed: u64, options: Options) -> Self {
        Self { seed, options, tables: Vec::new(), filled: 0, runs: 0 }
    }

    /// Makes the tables that this server can have.
    pub async fn create_schema(&mut self, client: &Client) -> Result<()> {
        let row = client.query_one("SELECT current_setting('server_version_num')::int", &[]).await?;
        let version = row.get::<_, i32>(0) as u32;
        self.tables = schema::tables(&self.options, version);
        client
            .batch_execute(&schema::create_sql(&self.tables, version))
            .await
            .context("cannot make the workload's tables")
    }

    /// The tables of [`Workload::create_schema`].
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// Puts keys 1 to `rows` into every table that is not to stay empty; a tenth of it, at most 1000, into the large ones.
    pub async fn fill(&mut self, client: &Client, rows: u64) -> Result<()> {
        let mut random = SeededRandom::member(self.seed, u64::MAX);
        for table in self.tables.iter().filter(|table| table.kind.filled()) {
            let most = if table.kind.large() { (rows / 10).clamp(1, 1000) } else { rows };
            let step = if table.kind.large() { 20 } else { 500 };
            for first in (1..=most).step_by(step as usize) {
                let keys: Vec<u64> = (first..=most.min(first + step - 1)).collect();
                for sql in table.insert_sql(&keys, &mut random) {
                    client
                        .batch_execute(&sql)
                        .await
                        .with_context(|| format!("cannot fill {}", table.name))?;
                }
            }
        }
        self.filled = rows;
        Ok(())
    }

    /// One DELETE per table that leaves of its fresh keys the `keep` last ones: data that is written for long stays as large as it is.
    pub fn trim_statements(&self, keep: u64) -> Vec<String> {
        let filled = self.tables.iter().filter(|table| table.kind.filled());
        filled.map(|table| table.trim_sql(transaction::FRESH_FROM..transaction::ASIDE, keep)).collect()
    }

    /// The statements of the first `count` transactions that session `session` of the next run will send.
    pub fn statements(&self, session: u64, concurrency: u64, count: u64) -> Vec<Vec<String>> {
        let mut source = self.transactions(session, concurrency);
        (0..count).map(|_| source.next().statements).collect()
    }

    fn transactions(&self, session: u64, concurrency: u64) -> transaction::Transactions {
        let lane =
            transaction::Lane { run: self.runs, session, sessions: concurrency.max(1), filled: self.filled };
        transaction::Transactions::new(self.seed, lane, self.options.clone(), self.tables.clone())
    }

    /// Runs `concurrency` sessions against the database at `url` until `stop`.
    pub async fn run(&mut self, url: &str, stop: Stop, concurrency: u64) -> Result<Counts> {
        self.start(url, stop, concurrency)?.join().await
    }

    /// Starts a run in the background; it is bounded by `stop` also when nobody waits for it.
    pub fn start(&mut self, url: &str, stop: Stop, concurrency: u64) -> Result<RunningWorkload> {
        anyhow::ensure!(!self.tables.is_empty(), "make the workload's schema first");
        let config: tokio_postgres::Config = url.parse().context("not a connection URL")?;
        let (halt, _) = watch::channel(false);
        let (halt, config) = (Arc::new(halt), Arc::new(config));
        let until = match stop {
            Stop::Count(count) => session::Until { transactions: count, instant: None },
            Stop::After(time) => {
                session::Until { transactions: u64::MAX, instant: Some(Instant::now() + time) }
            }
        };
        let sessions = (0..concurrency.max(1))
            .map(|number| {
                let source = self.transactions(number, concurrency);
                tokio::spawn(session::run(Arc::clone(&config), source, until, halt.subscribe()))
            })
            .collect();
        self.runs += 1;
        Ok(RunningWorkload { sessions, halt })
    }
}

/// A run in the background; dropping it stops it.
#[derive(Debug)]
pub struct RunningWorkload {
    sessions: Vec<JoinHandle<Result<Counts>>>,
    halt: Arc<watch::Sender<bool>>,
}

impl RunningWorkload {
    /// Ends every session after the transaction it is in, and counts.
    pub async fn stop(self) -> Result<Counts> {
        self.halt.send_replace(true);
        self.join().await
    }

    /// Waits for the end of the run.
    pub async fn join(mut self) -> Result<Counts> {
        let mut counts = Counts::default();
        for session in std::mem::take(&mut self.sessions) {
            counts.add(&session.await.context("a session of the workload panicked")??);
        }
        Ok(counts)
    }
}

impl Drop for RunningWorkload {
    fn drop(&mut self) {
        self.halt.send_replace(true);
    }
}
