//! What a publication brings is what the copy brings: its tables, row filters, column lists and partitions, on every major that has them.

mod ferrying;

use anyhow::{Context, Result, ensure};
use ferrying::{check, config, finding, rows, succeeding, troubles};
use pgferry_model::Outcome;
use pgferry_pipeline::Source;
use pgferry_source_postgres::{Manage, PostgresSource, PostgresSourceConfig, SelectFrom};
use pgferry_testkit::memory_target::MemoryTarget;
use pgferry_testkit::{Database, Server};

type Rows = Vec<Vec<Option<String>>>;

async fn asked(database: &Database, sql: &str) -> Result<Rows> {
    let client = database.client().await?;
    let found = client.query(sql, &[]).await?;
    let mut rows: Rows = found.iter().map(|row| (0..row.len()).map(|at| row.get(at)).collect()).collect();
    rows.sort();
    Ok(rows)
}

async fn names(config: &PostgresSourceConfig) -> Result<Vec<String>> {
    let tables = PostgresSource::new(config.clone()).tables().await?;
    Ok(tables.iter().map(|table| table.name.to_string()).collect())
}

/// Rows outside the filter never arrive, neither copied nor streamed; columns outside the list are no columns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_and_column_lists_hold_for_the_copy_and_the_stream_alike() -> Result<()> {
    for major in [15, 18] {
        for from in [SelectFrom::Tables, SelectFrom::Publication] {
            let database = Server::shared(major).await?.create_database().await?;
            database
                .execute(
                    "CREATE TABLE orders(id int PRIMARY KEY, region text, secret text, double int GENERATED ALWAYS AS (id * 2) STORED); \
                     INSERT INTO orders SELECT g, CASE WHEN g % 3 = 0 THEN 'eu' WHEN g % 3 = 1 THEN 'us' END, 'hidden' \
                     FROM generate_series(1, 300) g; ALTER TABLE orders REPLICA IDENTITY FULL; CREATE TABLE other(id int PRIMARY KEY); \
                     CREATE TABLE plain(id int PRIMARY KEY, n int); INSERT INTO plain VALUES (1, 1); \
                     ALTER TABLE orders REPLICA IDENTITY DEFAULT; CREATE UNIQUE INDEX u ON orders(id, region); \
                     UPDATE orders SET region = 'none' WHERE region IS NULL; ALTER TABLE orders ALTER region SET NOT NULL; \
                     ALTER TABLE orders REPLICA IDENTITY USING INDEX u; \
                     CREATE PUBLICATION pgferry_test FOR TABLE orders (id, region) WHERE (region = 'eu' AND id > 10), plain",
                )
                .await?;
            let mut config = config(&database);
            config.replication.from = from;
            if from == SelectFrom::Tables {
                config.include = vec!["public.orders".into(), "public.plain".into()];
            }
            ensure!(
                names(&config).await? == ["public.orders", "public.plain"],
                "{:?}",
                names(&config).await?
            );
            let target = MemoryTarget::default();
            let wanted = "SELECT id::text, region FROM orders WHERE region = 'eu' AND id > 10";
            succeeding(&config, &target).await?;
            let copied = rows(&config, &target, "public.orders").await?;
            ensure!(copied.len() > 80 && copied == asked(&database, wanted).await?, "{major}: {copied:?}");
            database
                .execute(
                    "INSERT INTO orders VALUES (1000, 'eu', 's'), (1001, 'us', 's'); UPDATE orders SET region = 'us' WHERE id = 12; \
                     UPDATE orders SET region = 'eu' WHERE id = 13; DELETE FROM orders WHERE id IN (15, 16); \
                     UPDATE orders SET secret = 'seen' WHERE id = 18; UPDATE plain SET n = 2",
                )
                .await?;
            succeeding(&config, &target).await?;
            let streamed = rows(&config, &target, "public.orders").await?;
            ensure!(streamed == asked(&database, wanted).await?, "{major}: {streamed:?}");
            let fresh = MemoryTarget::default();
            database
                .execute(&format!("SELECT pg_drop_replication_slot('{}')", config.replication.slot))
                .await?;
            succeeding(&config, &fresh).await?;
            ensure!(
                rows(&config, &fresh, "public.orders").await? == streamed,
                "a new copy differs from the stream"
            );
            let told = check(&config).await?;
            let left_out = finding(&told, "tables.columns")?;
            ensure!(left_out.detail.contains("secret") && left_out.detail.contains("double"), "{left_out:?}");
        }
    }
    Ok(())
}

/// PostgreSQL 18 can publish stored generated columns; then the copy has them, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generated_column_is_carried_where_it_is_published() -> Result<()> {
    let database = Server::shared(18).await?.create_database().await?;
    database
        .execute(
            "CREATE TABLE t(id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED, v int GENERATED ALWAYS AS (id * 3) VIRTUAL); \
             INSERT INTO t SELECT generate_series(1, 20); \
             CREATE PUBLICATION pgferry_test FOR ALL TABLES WITH (publish_generated_columns = stored)",
        )
        .await?;
    let (config, target) = (config(&database), MemoryTarget::default());
    succeeding(&config, &target).await?;
    database
        .execute("INSERT INTO t SELECT generate_series(21, 30); UPDATE t SET id = 100 WHERE id = 1")
        .await?;
    succeeding(&config, &target).await?;
    let wanted = asked(&database, "SELECT id::text, twice::text FROM t").await?;
    ensure!(rows(&config, &target, "public.t").await? == wanted);
    Ok(())
}

const PARTITIONED: &str = "CREATE TABLE p(id int NOT NULL, day int NOT NULL, n int) PARTITION BY RANGE (day); \
    CREATE TABLE p1 PARTITION OF p (PRIMARY KEY (id, day)) FOR VALUES FROM (0) TO (10); \
    CREATE TABLE p2 PARTITION OF p (PRIMARY KEY (id, day)) FOR VALUES FROM (10) TO (20); \
    CREATE TABLE plain(id int PRIMARY KEY); INSERT INTO p SELECT g, g % 20, g FROM generate_series(1, 200) g";

async fn partitioned(major: u32) -> Result<Database> {
    let database = Server::shared(major).await?.create_database().await?;
    database.execute(PARTITIONED).await?;
    // Below 11 a partitioned table has no key of its own.
    if major > 10 {
        database.execute("ALTER TABLE p1 DROP CONSTRAINT p1_pkey; ALTER TABLE p2 DROP CONSTRAINT p2_pkey; ALTER TABLE p ADD PRIMARY KEY (id, day)").await?;
    }
    Ok(database)
}

async fn moves(database: &Database, config: &PostgresSourceConfig) -> Result<()> {
    let target = MemoryTarget::default();
    succeeding(config, &target).await?;
    database
        .execute("UPDATE p SET n = -n WHERE id % 3 = 0; DELETE FROM p WHERE id % 7 = 0; INSERT INTO p VALUES (1000, 5, 1), (1001, 15, 1)")
        .await?;
    succeeding(config, &target).await?;
    let mut arrived = Vec::new();
    for name in
        names(config).await?.iter().filter(|name| name.starts_with("public.p") && *name != "public.plain")
    {
        arrived.extend(rows(config, &target, name).await?);
    }
    arrived.sort();
    let wanted = asked(database, "SELECT id::text, day::text, n::text FROM p").await?;
    ensure!(arrived == wanted, "{} rows instead of {}", arrived.len(), wanted.len());
    Ok(())
}

/// A publication of every kind covers a partitioned table; none is altered where it does already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitioned_tables_arrive_by_whatever_publication() -> Result<()> {
    for major in [10, 13, 15, 18] {
        let mut made: Vec<Option<&str>> = vec![
            None,
            Some("CREATE PUBLICATION pgferry_test FOR ALL TABLES"),
            Some("CREATE PUBLICATION pgferry_test FOR TABLE p1, p2"),
            Some("CREATE PUBLICATION pgferry_test FOR TABLE p1"),
        ];
        if major >= 13 {
            made.push(Some("CREATE PUBLICATION pgferry_test FOR TABLE p"));
            made.push(Some(
                "CREATE PUBLICATION pgferry_test FOR ALL TABLES WITH (publish_via_partition_root = true)",
            ));
        }
        if major >= 15 {
            made.push(Some("CREATE PUBLICATION pgferry_test FOR TABLES IN SCHEMA public"));
        }
        for statement in made {
            let database = partitioned(major).await?;
            if let Some(statement) = statement {
                database.execute(statement).await?;
            }
            let mut config = config(&database);
            // On 10 a partitioned table has no key, so its partitions are carried as tables of their own.
            let wanted = if major == 10 { vec!["public.p1", "public.p2"] } else { vec!["public.*"] };
            config.include = wanted.into_iter().map(str::to_owned).collect();
            moves(&database, &config).await.with_context(|| format!("PostgreSQL {major}, {statement:?}"))?;
            let findings = check(&config).await?;
            let failed = findings.iter().any(|finding| finding.outcome == Outcome::Failed);
            ensure!(!failed, "PostgreSQL {major}, {statement:?}: {:?}", troubles(&findings));
        }
    }
    Ok(())
}

/// One publication per leaf, each with its filter: the copy filters each leaf by its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_are_filtered_each_by_its_own_condition() -> Result<()> {
    for major in [15, 18] {
        let database = partitioned(major).await?;
        database
            .execute("CREATE PUBLICATION pgferry_test FOR TABLE p1 WHERE (id < 100), p2 WHERE (id > 100)")
            .await?;
        let mut config = config(&database);
        config.include = vec!["public.p".into()];
        config.replication.manage = Manage::Never;
        database
            .execute(&format!(
                "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
                config.replication.slot
            ))
            .await?;
        let target = MemoryTarget::default();
        succeeding(&config, &target).await?;
        database.execute("INSERT INTO p VALUES (50, 5, 1) ON CONFLICT DO NOTHING; INSERT INTO p VALUES (60, 15, 1), (70, 6, 1), (300, 16, 1)").await?;
        succeeding(&config, &target).await?;
        let wanted = "SELECT id::text, day::text, n::text FROM p WHERE (day < 10 AND id < 100) OR (day >= 10 AND id > 100)";
        let arrived = rows(&config, &target, "public.p").await?;
        ensure!(arrived == asked(&database, wanted).await?, "PostgreSQL {major}: {arrived:?}");
    }
    Ok(())
}

/// Publishing an inheritance parent must not publish its children, which may have no key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_are_not_published_along_with_their_parent() -> Result<()> {
    let database = Server::shared(15).await?.create_database().await?;
    database
        .execute("CREATE TABLE parent(id int PRIMARY KEY); CREATE TABLE child(extra int) INHERITS (parent); INSERT INTO child VALUES (1, 1)")
        .await?;
    let mut config = config(&database);
    config.include = vec!["public.parent".into()];
    let target = MemoryTarget::default();
    succeeding(&config, &target).await?;
    database.execute("UPDATE child SET extra = 2").await.context("the application's own update")?;
    let published =
        asked(&database, "SELECT tablename::text FROM pg_publication_tables WHERE pubname = 'pgferry_test'")
            .await?;
    ensure!(published == [[Some("parent".to_owned())]], "{published:?}");
    ensure!(rows(&config, &target, "public.parent").await?.is_empty());
    Ok(())
}
