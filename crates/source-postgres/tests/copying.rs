//! What happens to a table while it is copied: rewrites, swaps, partitions, locks. No row is lost, doubled or taken from elsewhere.

mod ferrying;

use std::sync::Arc;

use anyhow::{Result, ensure};
use ferrying::meddling::{MeddledSource, Meddling};
use ferrying::{config, ferry_from, rows};
use pgferry_pipeline::{RunEnd, SyncMode};
use pgferry_source_postgres::PostgresSourceConfig;
use pgferry_testkit::memory_target::MemoryTarget;
use pgferry_testkit::{Database, Server};

/// 250 rows in the back half of a table of two chunks: the front half is deleted, so that a rewrite moves every row.
const MOVABLE: &str = "CREATE TABLE t(id int PRIMARY KEY, filler char(500), pad text); \
    ALTER TABLE t ALTER pad SET STORAGE EXTERNAL, ALTER filler SET STORAGE PLAIN; \
    INSERT INTO t SELECT g, 'x', repeat('x', 100000) FROM generate_series(1, 500) g; DELETE FROM t WHERE id <= 250";

async fn database(major: u32, sql: &str) -> Result<Arc<Database>> {
    let database = Server::shared(major).await?.create_database().await?;
    database.execute(sql).await?;
    Ok(Arc::new(database))
}

async fn run(
    database: &Arc<Database>,
    config: &PostgresSourceConfig,
    workers: usize,
    what: Meddling,
    target: &MemoryTarget,
) -> Result<(RunEnd, usize)> {
    let source = Arc::new(MeddledSource::new(config.clone(), database, what));
    let end = ferry_from(Arc::clone(&source) as _, SyncMode::SnapshotCdc, workers, target).await;
    let end = end.map_err(|failure| {
        anyhow::anyhow!("{}: {failure}: {}", failure.code(), failure.cause().unwrap_or_default())
    })?;
    Ok((end, source.snapshots()))
}

async fn ids(config: &PostgresSourceConfig, target: &MemoryTarget, name: &str) -> Result<Vec<String>> {
    let rows = rows(config, target, name).await?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

async fn source_ids(database: &Database, name: &str) -> Result<Vec<String>> {
    let client = database.client().await?;
    let rows =
        client.query(&format!("SELECT id::text FROM {name} ORDER BY id::text COLLATE \"C\""), &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_rewritten_between_two_chunks_is_copied_again() -> Result<()> {
    for rewrite in [
        "VACUUM FULL t",
        "CLUSTER t USING t_pkey",
        "ALTER TABLE t ADD note float DEFAULT random();; ALTER TABLE t DROP note",
        "TRUNCATE t;; INSERT INTO t VALUES (7, 'y', 'z')",
    ] {
        let database = database(15, MOVABLE).await?;
        let (config, target) = (config(&database), MemoryTarget::default());
        let what = Meddling { before_chunk: vec![(1, rewrite.into())], ..Meddling::default() };
        let (end, snapshots) = run(&database, &config, 1, what, &target).await?;
        let (got, wanted) = (ids(&config, &target, "public.t").await?, source_ids(&database, "t").await?);
        println!("{rewrite}: {} of {}, {snapshots} snapshots, {end:?}", got.len(), wanted.len());
        ensure!(got == wanted, "{rewrite}: {} rows instead of {}: {end:?}", got.len(), wanted.len());
        ensure!(end.set_aside.is_empty(), "{rewrite}: {end:?}");
    }
    Ok(())
}

/// The idle worker's session ends between two chunks, as a firewall or a DBA would end it, and the next one sees a table that moved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrite_after_a_worker_was_ended_loses_nothing() -> Result<()> {
    let database = database(15, MOVABLE).await?;
    let (config, target) = (config(&database), MemoryTarget::default());
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
               AND application_name LIKE '% snapshot';; SELECT pg_sleep(0.3);; VACUUM FULL t";
    let what = Meddling { before_chunk: vec![(1, sql.into())], ..Meddling::default() };
    let (end, _) = run(&database, &config, 1, what, &target).await?;
    let (got, wanted) = (ids(&config, &target, "public.t").await?, source_ids(&database, "t").await?);
    ensure!(got == wanted, "{} rows instead of {}: {end:?}", got.len(), wanted.len());
    Ok(())
}

/// A rewrite by ALTER TABLE makes the rows new ones, which an older snapshot does not see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_rewritten_before_its_first_chunk_is_not_empty() -> Result<()> {
    let database =
        database(15, "CREATE TABLE t(id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)")
            .await?;
    let (config, target) = (config(&database), MemoryTarget::default());
    let rewrite = "ALTER TABLE t ADD note float DEFAULT random();; ALTER TABLE t DROP note";
    let what = Meddling { after_export: vec![rewrite.into()], ..Meddling::default() };
    let (end, _) = run(&database, &config, 2, what, &target).await?;
    let (got, wanted) = (ids(&config, &target, "public.t").await?, source_ids(&database, "t").await?);
    ensure!(got == wanted, "{} rows instead of {}: {end:?}", got.len(), wanted.len());
    Ok(())
}

/// One table takes the place of another under its name while the copy goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_another_table_are_never_taken_for_a_tables_own() -> Result<()> {
    for swap in [
        "BEGIN; ALTER TABLE t RENAME TO t_old; ALTER TABLE other RENAME TO t; COMMIT",
        "BEGIN; DROP TABLE t; ALTER TABLE other RENAME TO t; COMMIT",
        "DROP TABLE t",
    ] {
        let database = database(
            15,
            "CREATE TABLE t(id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 10); \
             CREATE TABLE other(id int PRIMARY KEY); INSERT INTO other SELECT generate_series(100, 900); \
             CREATE TABLE neighbour(id int PRIMARY KEY); INSERT INTO neighbour SELECT generate_series(1, 10)",
        )
        .await?;
        let (mut config, target) = (config(&database), MemoryTarget::default());
        config.include = vec!["public.t".into(), "public.neighbour".into()];
        let what = Meddling { after_export: vec![swap.into()], ..Meddling::default() };
        let (end, _) = run(&database, &config, 2, what, &target).await?;
        let broken: Vec<String> =
            end.set_aside.iter().map(|aside| format!("{} {}", aside.table, aside.code)).collect();
        ensure!(broken == ["public.t source.table_missing"], "{swap}: {end:?}");
        let neighbours = ids(&config, &target, "public.neighbour").await;
        if swap.starts_with("BEGIN") {
            ensure!(neighbours?.len() == 10, "{swap}");
        }
    }
    Ok(())
}

/// A partition that comes between the start and a second snapshot has rows that are older than the cut: the copy has to have them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_made_while_the_copy_is_repeated_is_copied_too() -> Result<()> {
    let database = database(
        15,
        "CREATE TABLE p(id int PRIMARY KEY, n int) PARTITION BY RANGE (id); \
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000); INSERT INTO p SELECT g, g FROM generate_series(1, 10) g",
    )
    .await?;
    let (config, target) = (config(&database), MemoryTarget::default());
    let lose = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
                AND (application_name LIKE '% snapshot' OR application_name LIKE '% replication');; SELECT pg_sleep(0.3);; \
                CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (1000) TO (2000); INSERT INTO p SELECT g, g FROM generate_series(1001, 1010) g";
    let what = Meddling { before_chunk: vec![(0, lose.into())], ..Meddling::default() };
    let (end, snapshots) = run(&database, &config, 2, what, &target).await?;
    let (got, wanted) = (ids(&config, &target, "public.p").await?, source_ids(&database, "p").await?);
    ensure!(
        snapshots == 2 && got == wanted,
        "{snapshots} snapshots, {} rows instead of {}: {end:?}",
        got.len(),
        wanted.len()
    );
    Ok(())
}

/// A worker that is done with its part of a table no longer holds it: who wants the table for himself need not wait for the whole copy,
/// and no other worker queues up behind him for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_not_held_between_two_chunks() -> Result<()> {
    let database =
        database(15, &format!("{MOVABLE}; CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1)"))
            .await?;
    let (mut config, target) = (config(&database), MemoryTarget::default());
    config.include = vec!["public.t".into(), "public.a".into()];
    let lock = "SELECT pg_sleep(1);; BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE; COMMIT";
    let what = Meddling { before_chunk: vec![(1, lock.into())], ..Meddling::default() };
    let (end, _) = run(&database, &config, 2, what, &target).await?;
    ensure!(end.set_aside.is_empty(), "{end:?}");
    ensure!(ids(&config, &target, "public.t").await? == source_ids(&database, "t").await?);
    Ok(())
}
