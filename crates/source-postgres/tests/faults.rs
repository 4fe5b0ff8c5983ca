//! Connections that end, stall or half die in every phase, on real servers behind a proxy: nothing is lost or doubled, nothing hangs.

mod ferrying;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferrying::meddling::{MeddledSource, Meddling};
use ferrying::{Live, config, rows};
use pgferry_pipeline::SyncMode;
use pgferry_source_postgres::{PostgresSource, PostgresSourceConfig};
use pgferry_testkit::memory_target::MemoryTarget;
use pgferry_testkit::proxy::{Direction, Fault, Proxy};
use pgferry_testkit::{Database, Server, ServerOptions};

type Rows = Vec<Vec<Option<String>>>;

const BUDGET_S: u64 = 60;
const END_OURS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
     AND application_name LIKE 'pgferry %'";
const TABLES: &str = "CREATE TABLE t(id int PRIMARY KEY, pad text); INSERT INTO t SELECT g, repeat('x', 300) FROM generate_series(1, 5000) g; \
     CREATE TABLE u(id int PRIMARY KEY); INSERT INTO u SELECT generate_series(1, 100)";

async fn asked(database: &Database, sql: &str) -> Result<Rows> {
    let client = database.client().await?;
    let found = client.query(sql, &[]).await?;
    let mut rows: Rows = found.iter().map(|row| (0..row.len()).map(|at| row.get(at)).collect()).collect();
    rows.sort();
    Ok(rows)
}

async fn equal(database: &Database, config: &PostgresSourceConfig, target: &MemoryTarget) -> Result<bool> {
    Ok(rows(config, target, "public.t").await? == asked(database, "SELECT id::text, pad FROM t").await?
        && rows(config, target, "public.u").await? == asked(database, "SELECT id::text FROM u").await?)
}

async fn change(database: &Database, round: usize) -> Result<()> {
    database
        .execute(&format!(
            "BEGIN; UPDATE t SET pad = 'round {round}' WHERE id % 50 = {round} % 50; DELETE FROM u WHERE id = {round}; \
             INSERT INTO u VALUES (1000 + {round}); COMMIT; INSERT INTO t VALUES (10000 + {round}, 'new')"
        ))
        .await
}

/// Ends our sessions as soon as there is one: between two tries the task has none.
async fn end_ours(database: &Database) -> Result<()> {
    let count = format!("SELECT count(*)::text FROM ({END_OURS}) AS ended");
    for _ in 0..600 {
        if asked(database, &count).await? != [[Some("0".to_owned())]] {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("there is no session to end")
}

/// Every connection of ours is ended, again and again, while the task copies and while it follows: far more often than five times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_ended_in_every_phase_lose_nothing() -> Result<()> {
    for major in [10, 15, 18] {
        let server = Server::start(ServerOptions::new(major)).await?;
        let database = Arc::new(server.create_database().await?);
        database.execute(TABLES).await?;
        let (config, target) = (config(&database), MemoryTarget::default());
        let end = || format!("{END_OURS};; SELECT pg_sleep(0.1)");
        let what = Meddling {
            after_export: vec![end(), end(), String::new()],
            before_chunk: vec![(1, end()), (3, end()), (4, end())],
            before_stream: vec![end(), end()],
        };
        let source = Arc::new(MeddledSource::new(config.clone(), &database, what));
        let live = Live::from(source, SyncMode::SnapshotCdc, &target, BUDGET_S);
        live.until(|| async { equal(&database, &config, &target).await }).await.context("copied")?;
        for round in 0..8 {
            change(&database, round).await?;
            end_ours(&database).await?;
            change(&database, round + 8).await?;
            if round % 4 == 3 {
                live.until(|| async { equal(&database, &config, &target).await })
                    .await
                    .with_context(|| format!("{major}: round {round}"))?;
            }
        }
        ensure!(
            live.monitor.retries.load(std::sync::atomic::Ordering::Relaxed) > 5,
            "{major}: the sessions were not ended"
        );
        live.stop().await?;
    }
    Ok(())
}

struct Scene {
    database: Database,
    proxy: Proxy,
    /// Over the proxy.
    config: PostgresSourceConfig,
    target: MemoryTarget,
}

impl Scene {
    async fn new(server: &Server) -> Result<Scene> {
        let database = server.create_database().await?;
        database.execute(TABLES).await?;
        let proxy = Proxy::to(server).await?;
        let mut config = config(&database);
        config.connection.port = proxy.port();
        config.connection.connect_timeout = Duration::from_secs(3);
        Ok(Scene { database, proxy, config, target: MemoryTarget::default() })
    }

    async fn equal(&self) -> Result<bool> {
        equal(&self.database, &config(&self.database), &self.target).await
    }
}

/// The network breaks after so many bytes, wherever that is: in a login, in a query, in a COPY, in the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_breaks_anywhere_loses_nothing() -> Result<()> {
    let server = Server::start(ServerOptions::new(15)).await?;
    for fault in [Fault::Cut, Fault::Reset] {
        let scene = Scene::new(&server).await?;
        let live = Live::start(&scene.config, &scene.target, BUDGET_S);
        for step in 0..8_u64 {
            scene.proxy.after_bytes(Direction::ToClient, 40_000 + step * 170_000, fault);
            tokio::time::sleep(Duration::from_millis(150)).await;
            change(&scene.database, step as usize).await?;
        }
        scene.proxy.flow();
        live.until(|| scene.equal()).await.with_context(|| format!("{fault:?} while copying"))?;
        for step in 0..10_u64 {
            scene.proxy.after_bytes(Direction::ToClient, 1 + step * 577, fault);
            change(&scene.database, 20 + step as usize).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        scene.proxy.flow();
        live.until(|| scene.equal()).await.with_context(|| format!("{fault:?} while following"))?;
        live.stop().await?;
    }
    Ok(())
}

/// Nothing says that the connection is dead: no end, no reset, no byte. It is noticed, and the slot is got back from the old session,
/// however long the server would hold it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_falls_silent_is_noticed() -> Result<()> {
    let server = Server::start(ServerOptions::new(15).set("wal_sender_timeout", "4s")).await?;
    let scene = Scene::new(&server).await?;
    let live = Live::start(&scene.config, &scene.target, BUDGET_S);
    live.until(|| scene.equal()).await?;
    for round in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        scene.proxy.inject(Direction::ToClient, Fault::Silence);
        change(&scene.database, round).await?;
        live.until(|| scene.equal()).await.with_context(|| format!("round {round}"))?;
    }
    live.stop().await?;
    Ok(())
}

/// Our side of the connection ends, and the server hears nothing of it: it would hold the slot for `wal_sender_timeout`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_our_own_dead_connection_holds_is_taken_back() -> Result<()> {
    let server = Server::start(ServerOptions::new(15).set("wal_sender_timeout", "5min")).await?;
    let scene = Scene::new(&server).await?;
    let source = Arc::new(PostgresSource::new(scene.config.clone()));
    let live = Live::from(Arc::clone(&source) as _, SyncMode::SnapshotCdc, &scene.target, BUDGET_S);
    change(&scene.database, 1).await?;
    live.until(|| scene.equal()).await?;
    let active = "SELECT active_pid::text FROM pg_replication_slots WHERE active";
    let before = asked(&scene.database, active).await?;
    ensure!(before.len() == 1);
    scene.proxy.inject(Direction::ToClient, Fault::Silence);
    live.abandon().await;
    ensure!(asked(&scene.database, active).await? == before, "the server has noticed");
    change(&scene.database, 2).await?;
    let live = Live::from(source, SyncMode::SnapshotCdc, &scene.target, BUDGET_S);
    live.until(|| scene.equal()).await?;
    ensure!(asked(&scene.database, active).await? != before, "the old session is still there");
    live.stop().await?;
    Ok(())
}
