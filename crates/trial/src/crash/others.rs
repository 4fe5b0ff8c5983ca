//! The others: what goes on at the source while the program is killed, and what can be seen of the program from there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pgferry_model::Position;
use pgferry_testkit::random::SeededRandom;
use pgferry_testkit::workload::{Counts, Options, RunningWorkload, Stop, Workload};
use pgferry_testkit::{Database, Server};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::plan::Plan;
use crate::scene::{options, slot};

/// Rows of a large transaction have numbers of their own below this.
const ROOM: u64 = 1_000_000;

/// What the program does, seen from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Activity {
    /// Sessions that copy rows.
    pub copying: bool,
    /// The change stream is open.
    pub streaming: bool,
}

/// The workload, and transactions that are larger than everything that decodes them holds in memory.
pub(super) struct Others {
    workload: Workload,
    load: Option<RunningWorkload>,
    large: Vec<JoinHandle<Result<()>>>,
    sessions: u64,
    large_rows: u64,
    large_made: u64,
    random: SeededRandom,
    /// No load is started after it.
    until: Instant,
    /// Sessions may have been cut off by a server that ended.
    pub cut_off: bool,
    /// Transactions that are known to be committed.
    pub committed: u64,
}

fn workload_options(plan: &Plan) -> Options {
    Options { narrow_tables: plan.narrow_tables, wide_columns: 40, large_rows: 600, ..options(plan.major) }
}

impl Others {
    /// Makes the tables and their first rows, and begins to write.
    pub(super) async fn start(plan: &Plan, database: &Database, seconds: Duration) -> Result<Others> {
        let client = database.client().await?;
        let mut workload = Workload::new(plan.seed, workload_options(plan));
        workload.create_schema(&client).await?;
        client
            .batch_execute(
                "CREATE TABLE public.bulk (id bigint PRIMARY KEY, filler text); \
                 CREATE TABLE public.changing (id bigint PRIMARY KEY, filler text); \
                 INSERT INTO public.bulk SELECT n, repeat(md5(n::text), 4) FROM generate_series(1, 3000) n; \
                 INSERT INTO public.changing SELECT n, md5(n::text) FROM generate_series(1, 500) n",
            )
            .await?;
        if plan.major >= 13 {
            // Small enough to stream every larger transaction, so that spools and slices are met.
            let name = database.name();
            let set = format!("ALTER DATABASE \"{name}\" SET logical_decoding_work_mem = '64kB'");
            client.batch_execute(&set).await?;
        }
        workload.fill(&client, plan.rows).await?;
        let mut others = Others {
            workload,
            load: None,
            large: Vec::new(),
            sessions: plan.sessions,
            large_rows: plan.large_rows,
            large_made: 0,
            random: SeededRandom::member(plan.seed, 0x6f74_6865_7273),
            until: Instant::now() + seconds,
            cut_off: false,
            committed: 0,
        };
        others.begin(database)?;
        Ok(others)
    }

    /// Writes until the time is up; when it is, only as much as one more disturbed run needs.
    fn begin(&mut self, database: &Database) -> Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        let stop = if left.is_zero() { Stop::Count(8) } else { Stop::After(left) };
        let sessions = if left.is_zero() { 1 } else { self.sessions };
        self.load = Some(self.workload.start(&database.url(), stop, sessions)?);
        Ok(())
    }

    /// Something goes on while the next run is disturbed. `streamed`: a large transaction surely does.
    pub(super) async fn go_on(&mut self, database: &Database, streamed: bool) -> Result<()> {
        if Instant::now() >= self.until || self.load.is_none() {
            self.settle().await?;
            self.begin(database)?;
        }
        if streamed || self.random.chance(40) {
            self.large_transaction(database, streamed);
        }
        Ok(())
    }

    /// A transaction that is streamed while it is open.
    pub(super) fn large_transaction(&mut self, database: &Database, commits: bool) {
        self.large_made += 1;
        let (first, rows) = (self.large_made * ROOM, self.large_rows);
        let insert = |from: u64, rows: u64| {
            format!(
                "INSERT INTO public.bulk SELECT {first} + n, repeat(md5(n::text), 4) FROM generate_series({}, {}) n",
                from + 1,
                from + rows
            )
        };
        let more = match self.random.below(4) {
            0 => format!("SAVEPOINT part; {}; ROLLBACK TO part", insert(rows, rows / 2)),
            1 => format!("UPDATE public.bulk SET filler = 'short' WHERE id % 7 = 3 AND id > {first}"),
            2 => format!("SAVEPOINT part; {}; RELEASE part", insert(rows, rows / 4)),
            _ => "SELECT 1".to_owned(),
        };
        let rolled_back = self.random.chance(15) && !commits;
        let end = if rolled_back { "ROLLBACK" } else { "COMMIT" };
        let gone = first.saturating_sub(2 * ROOM);
        let wait = self.random.below(400);
        let sql =
            format!("BEGIN; DELETE FROM public.bulk WHERE id < {gone}; {}; {more}; {end}", insert(0, rows));
        let (server, name) = (database.server().clone(), database.name().to_owned());
        self.large.push(tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            server.client(&name).await?.batch_execute(&sql).await.context("a large transaction")
        }));
    }

    /// Waits until nobody writes any more.
    pub(super) async fn settle(&mut self) -> Result<()> {
        let mut counts = Counts::default();
        let cut_off = std::mem::take(&mut self.cut_off);
        if let Some(load) = self.load.take() {
            match load.join().await {
                Ok(done) => counts = done,
                Err(_) if cut_off => {}
                Err(failure) => return Err(failure),
            }
        }
        for large in std::mem::take(&mut self.large) {
            match large.await? {
                Err(failure) if !cut_off => return Err(failure),
                Ok(()) => counts.committed += 1,
                Err(_) => {}
            }
        }
        self.committed += counts.committed;
        Ok(())
    }
}

/// What the program of a database does.
pub(super) async fn activity(client: &Client) -> Result<Activity> {
    let row = client
        .query_one(
            "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() \
             AND application_name LIKE 'pgferry%' AND state = 'active' AND query LIKE 'COPY%'), \
             EXISTS (SELECT 1 FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid \
             WHERE s.database = current_database() AND r.state IN ('catchup', 'streaming'))",
            &[],
        )
        .await?;
    Ok(Activity { copying: row.get(0), streaming: row.get(1) })
}

/// The slot's confirmed position, where there is a slot.
pub(super) async fn confirmed(database: &Database) -> Result<Option<Position>> {
    let row = database
        .client()
        .await?
        .query_opt(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1",
            &[&slot(database)],
        )
        .await?;
    row.and_then(|row| row.get::<_, Option<String>>(0)).map(|text| Ok(text.parse()?)).transpose()
}

/// Rows that were inserted, updated and deleted, as the server counts them; what it counted before it ended at once is lost.
pub(super) async fn rows_changed(database: &Database) -> Result<u64> {
    let sum = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint FROM pg_stat_user_tables";
    Ok(database.client().await?.query_one(sum, &[]).await?.get::<_, i64>(0).unsigned_abs())
}

/// A server for a plan.
pub(super) async fn server(plan: &Plan) -> Result<Server> {
    if plan.own_server {
        Server::start(pgferry_testkit::ServerOptions::new(plan.major)).await
    } else {
        Server::shared(plan.major).await
    }
}
