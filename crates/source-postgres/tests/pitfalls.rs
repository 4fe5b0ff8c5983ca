//! What made other programs lose, double or hold up changes, on real servers: see `docs/evidence/pitfalls.md`.

mod ferrying;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferrying::meddling::{MeddledSource, Meddling};
use ferrying::{Live, check, config, failing, ferry, finding, rows, succeeding, told};
use pgferry_model::{Position, TableName, TableState};
use pgferry_pipeline::{Source, SyncMode, Target};
use pgferry_source_postgres::{PostgresSource, PostgresSourceConfig, TableOptions};
use pgferry_testkit::memory_target::{Fault, MemoryTarget};
use pgferry_testkit::{Database, Server, ServerOptions};

type Rows = Vec<Vec<Option<String>>>;

async fn database(major: u32, sql: &str) -> Result<Database> {
    let database = Server::shared(major).await?.create_database().await?;
    database.execute(sql).await?;
    Ok(database)
}

async fn asked(database: &Database, sql: &str) -> Result<Rows> {
    let client = database.client().await?;
    let found = client.query(sql, &[]).await?;
    let mut rows: Rows = found.iter().map(|row| (0..row.len()).map(|at| row.get(at)).collect()).collect();
    rows.sort();
    Ok(rows)
}

/// The target's rows of a table are those that the query brings.
async fn same(
    database: &Database,
    config: &PostgresSourceConfig,
    target: &MemoryTarget,
    table: &str,
    sql: &str,
) -> Result<()> {
    let (got, wanted) = (rows(config, target, table).await?, asked(database, sql).await?);
    ensure!(got == wanted, "{table}: {got:?} instead of {wanted:?}");
    Ok(())
}

/// One partition's truncate cannot be carried, so its table is set aside; its neighbour goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_partition_sets_its_table_aside_and_no_other() -> Result<()> {
    let database = database(
        15,
        "CREATE TABLE p(id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); \
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); CREATE TABLE n(id int PRIMARY KEY); \
         CREATE PUBLICATION pgferry_test FOR TABLE p, n WITH (publish_via_partition_root = false)",
    )
    .await?;
    let (mut config, target) = (config(&database), MemoryTarget::default());
    config.include = vec!["public.p".into(), "public.n".into()];
    succeeding(&config, &target).await?;
    database
        .execute(
            "INSERT INTO p VALUES (1), (11); INSERT INTO n VALUES (1); TRUNCATE p1; INSERT INTO n VALUES (2)",
        )
        .await?;
    let end =
        ferry(&config, &target).await.map_err(|failure| anyhow::anyhow!("{}: {failure}", failure.code()))?;
    ensure!(end.set_aside.len() == 1 && end.set_aside[0].code == "source.partition_truncated", "{end:?}");
    same(&database, &config, &target, "public.n", "SELECT id::text FROM n").await
}

/// A partition that comes while the task runs, of a table whose partitions are published one by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_partition_is_carried_however_the_table_is_published() -> Result<()> {
    for via_root in [true, false] {
        let database = database(
            15,
            &format!(
                "CREATE TABLE p(id int PRIMARY KEY, n int) PARTITION BY RANGE (id); \
                 CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1, 1); \
                 CREATE PUBLICATION pgferry_test FOR TABLE p WITH (publish_via_partition_root = {via_root})"
            ),
        )
        .await?;
        let (mut config, target) = (config(&database), MemoryTarget::default());
        config.include = vec!["public.p".into()];
        let live = Live::start(&config, &target, 0);
        live.until(|| async { Ok(rows(&config, &target, "public.p").await?.len() == 1) }).await?;
        database.execute("INSERT INTO p VALUES (2, 2)").await?;
        live.until(|| async { Ok(rows(&config, &target, "public.p").await?.len() == 2) }).await?;
        database
            .execute(
                "CREATE TABLE q PARTITION OF p FOR VALUES FROM (10) TO (100) PARTITION BY RANGE (id); \
                 CREATE TABLE q1 (n int, junk text, id int NOT NULL); ALTER TABLE q1 DROP junk; \
                 ALTER TABLE q ATTACH PARTITION q1 FOR VALUES FROM (10) TO (50); \
                 INSERT INTO p SELECT g, -g FROM generate_series(10, 40) g; UPDATE p SET n = 7 WHERE id = 12; DELETE FROM p WHERE id = 13",
            )
            .await?;
        let wanted = asked(&database, "SELECT id::text, n::text FROM p").await?;
        live.until(|| async { Ok(rows(&config, &target, "public.p").await? == wanted) })
            .await
            .with_context(|| format!("publish_via_partition_root = {via_root}"))?;
        live.stop().await?;
    }
    Ok(())
}

/// The stream brings a commit before anybody else sees it, by minutes where it waits for a synchronous standby: the catalog does not have
/// the new partition yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_partition_is_carried_though_the_catalog_shows_it_later() -> Result<()> {
    let server = Server::start(ServerOptions::new(15)).await?;
    let database = Arc::new(server.create_database().await?);
    database
        .execute(
            "CREATE TABLE p(id int PRIMARY KEY, n int) PARTITION BY RANGE (id); \
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1, 1); \
             CREATE PUBLICATION pgferry_test FOR TABLE p WITH (publish_via_partition_root = false)",
        )
        .await?;
    let (mut config, target) = (config(&database), MemoryTarget::default());
    config.include = vec!["public.p".into()];
    let live = Live::start(&config, &target, 0);
    database.execute("INSERT INTO p VALUES (2, 2)").await?;
    live.until(|| async { Ok(rows(&config, &target, "public.p").await?.len() == 2) }).await?;
    server.set("synchronous_standby_names", "nobody").await?;
    let waits = tokio::spawn({
        let database = Arc::clone(&database);
        async move {
            let sql =
                "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (100); INSERT INTO p VALUES (11, 11)";
            database.execute(sql).await
        }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(!waits.is_finished(), "the commit does not wait");
    server.set("synchronous_standby_names", "").await?;
    waits.await??;
    database.execute("INSERT INTO p VALUES (12, 12)").await?;
    live.until(|| async { Ok(rows(&config, &target, "public.p").await?.len() == 4) }).await?;
    live.stop().await?;
    Ok(())
}

/// Without its key, rows can no longer be told apart: two of them must not become one in silence, nor be left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_loses_its_key_is_set_aside() -> Result<()> {
    for change in [
        "ALTER TABLE t DROP CONSTRAINT t_pkey; INSERT INTO t VALUES (1, 2)",
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (n); INSERT INTO t VALUES (1, 2)",
        "ALTER TABLE t REPLICA IDENTITY NOTHING; INSERT INTO t VALUES (2, 3)",
    ] {
        for running in [true, false] {
            let database = database(
                15,
                "CREATE TABLE t(id int PRIMARY KEY, n int NOT NULL); CREATE TABLE u(id int PRIMARY KEY)",
            )
            .await?;
            let (config, target) = (config(&database), MemoryTarget::default());
            succeeding(&config, &target).await?;
            let early = running.then(|| Live::start(&config, &target, 1));
            database.execute("INSERT INTO t VALUES (1, 1)").await?;
            if let Some(live) = &early {
                live.until(|| async { Ok(rows(&config, &target, "public.t").await?.len() == 1) }).await?;
            }
            database.execute(change).await?;
            database.execute("INSERT INTO u VALUES (1)").await?;
            let live = early.unwrap_or_else(|| Live::start(&config, &target, 1));
            let settled = live
                .until(|| async {
                    let broken = target.progress().await.tables.iter().any(|known| {
                        matches!(&known.state, TableState::Broken { code, .. } if code == "schema.change_blocked")
                    });
                    Ok(broken && rows(&config, &target, "public.u").await?.len() == 1)
                })
                .await;
            settled.with_context(|| format!("{change}, running: {running}"))?;
            live.stop().await?;
        }
    }
    Ok(())
}

/// A server that was put back to an earlier time: what it writes next has positions that the target believes to have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_position_that_the_server_has_not_reached_is_refused() -> Result<()> {
    let database = database(15, "CREATE TABLE t(id int PRIMARY KEY); INSERT INTO t VALUES (1)").await?;
    let (config, target) = (config(&database), MemoryTarget::default());
    succeeding(&config, &target).await?;
    let stored = target.progress().await.position.context("a position")?;
    let ahead = Position::from_lsn(stored.lsn() + (1 << 40));
    let handle = target.reopened();
    handle.open(&pgferry_model::TaskId::new("test")).await?;
    let nothing = pgferry_model::Delivery {
        after: stored,
        through: ahead,
        tables: Vec::new(),
        transactions: Vec::new(),
        slice: pgferry_model::Slice::Whole,
    };
    handle.apply(Arc::new(nothing)).await?;
    database.execute("INSERT INTO t VALUES (2)").await?;
    told(&failing(&config, &target).await?, "source.history_lost")?;
    Ok(())
}

/// A slot that moves on between the copy and the stream: the server would start where the slot stands, without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_past_the_copy_is_refused() -> Result<()> {
    let database =
        Arc::new(database(15, "CREATE TABLE t(id int PRIMARY KEY); INSERT INTO t VALUES (1)").await?);
    let (config, target) = (config(&database), MemoryTarget::default());
    let advance = format!(
        "INSERT INTO t VALUES (2);; SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())",
        config.replication.slot
    );
    let what = Meddling { before_stream: vec![advance], ..Meddling::default() };
    let source = Arc::new(MeddledSource::new(config.clone(), &database, what));
    let Err(failure) = ferrying::ferry_from(source, config.sync_mode, 2, &target).await else {
        anyhow::bail!(
            "changes are missing, and nobody says so: {:?}",
            rows(&config, &target, "public.t").await?
        )
    };
    told(&failure, "source.slot_ahead")?;
    Ok(())
}

/// Messages in the log are no changes, and what follows them is not skipped, restarted or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logical_messages_hide_no_change() -> Result<()> {
    for major in [10, 15, 18] {
        let database = database(major, "CREATE TABLE t(id int PRIMARY KEY)").await?;
        let (config, target) = (config(&database), MemoryTarget::default());
        succeeding(&config, &target).await?;
        for round in 0..4 {
            database
                .execute(&format!(
                    "BEGIN; SELECT pg_logical_emit_message(true, 'a', 'x'); INSERT INTO t VALUES ({round}1); \
                     SELECT pg_logical_emit_message(false, 'a', 'y'); INSERT INTO t VALUES ({round}2); COMMIT; \
                     SELECT pg_logical_emit_message(true, 'a', 'z'); SELECT pg_logical_emit_message(false, 'a', 'z')"
                ))
                .await?;
            if round % 2 == 1 {
                database.execute(&format!("INSERT INTO t VALUES ({round}3)")).await?;
            }
            succeeding(&config, &target).await?;
            same(&database, &config, &target, "public.t", "SELECT id::text FROM t").await?;
        }
    }
    Ok(())
}

/// A transaction that is open across the snapshot, the handover and two restarts; another one is prepared meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_in_progress_survive_snapshot_handover_and_restarts() -> Result<()> {
    for major in [10, 15, 18] {
        let server = Server::start(ServerOptions::new(major).small_decoding_memory()).await?;
        let database = server.create_database().await?;
        database
            .execute("CREATE TABLE t(id int PRIMARY KEY, pad text); CREATE TABLE u(id int PRIMARY KEY)")
            .await?;
        let (config, target) = (config(&database), MemoryTarget::default());
        succeeding(&config, &target).await?;
        let long = database.client().await?;
        long.batch_execute("BEGIN; INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 2000) g")
            .await?;
        database.execute("BEGIN; INSERT INTO t VALUES (9001, 'p'); PREPARE TRANSACTION 'first'").await?;
        for round in 0..3 {
            long.batch_execute(&format!(
                "SAVEPOINT s; INSERT INTO t SELECT 10000 + g, repeat('y', 200) FROM generate_series(1, 1000) g; ROLLBACK TO s; \
                 UPDATE t SET pad = 'round {round}' WHERE id % 7 = {round}"
            ))
            .await?;
            // Its commit flushes what the long one wrote: else the log ends in the middle of a record for a while.
            database.execute(&format!("INSERT INTO u VALUES ({round})")).await?;
            succeeding(&config, &target).await?;
            same(&database, &config, &target, "public.u", "SELECT id::text FROM u").await?;
            ensure!(rows(&config, &target, "public.t").await?.is_empty(), "uncommitted rows arrived");
        }
        long.batch_execute("COMMIT").await?;
        succeeding(&config, &target).await?;
        same(&database, &config, &target, "public.t", "SELECT id::text, pad FROM t").await?;
        database.execute("COMMIT PREPARED 'first'").await?;
        database.execute("BEGIN; INSERT INTO t VALUES (9002, 'q'); PREPARE TRANSACTION 'second'").await?;
        database.execute("ROLLBACK PREPARED 'second'").await?;
        succeeding(&config, &target).await?;
        same(&database, &config, &target, "public.t", "SELECT id::text, pad FROM t").await?;
    }
    Ok(())
}

/// A server that streams does not tell of every rollback to a savepoint: not of one that takes back a value of 8 MB or more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_rolled_back_to_a_savepoint_does_not_arrive_although_the_server_sent_it() -> Result<()> {
    for major in [15, 18] {
        let server = Server::start(ServerOptions::new(major).small_decoding_memory()).await?;
        let database = server.create_database().await?;
        database
            .execute(
                "CREATE TABLE t(id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL; \
                 CREATE TABLE u(id int PRIMARY KEY)",
            )
            .await?;
        let (config, target) = (config(&database), MemoryTarget::default());
        succeeding(&config, &target).await?;
        let large = |id: u32| format!("INSERT INTO t VALUES ({id}, repeat('{}', 9000000))", id % 10);
        let long = database.client().await?;
        let (kept, lost) = (large(1), large(2));
        long.batch_execute(&format!(
            "BEGIN; {kept}; SAVEPOINT s; {lost}; ROLLBACK TO s; {}; COMMIT",
            large(3)
        ))
        .await?;
        succeeding(&config, &target).await?;
        same(&database, &config, &target, "public.t", "SELECT id::text, v FROM t").await?;
        // A server that knows of the rollback before it streams (18) leaves it out: here it cannot know.
        let (kept, lost) = (large(11), large(12));
        long.batch_execute(&format!("BEGIN; {kept}; SAVEPOINT s; {lost}")).await?;
        database.execute("INSERT INTO u VALUES (1)").await?;
        let live = Live::start(&config, &target, 0);
        live.until(|| async { Ok(rows(&config, &target, "public.u").await?.len() == 1) }).await?;
        long.batch_execute(&format!("ROLLBACK TO s; {}; COMMIT", large(13))).await?;
        live.until(|| async { Ok(rows(&config, &target, "public.t").await?.len() >= 4) }).await?;
        live.stop().await?;
        same(&database, &config, &target, "public.t", "SELECT id::text, v FROM t").await?;
    }
    Ok(())
}

/// Log that an open transaction has written stays unflushed behind the last commit: the end of a run is set where the stream gets to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_does_not_hold_up_the_end_of_a_run() -> Result<()> {
    for major in [10, 18] {
        let server = Server::start(ServerOptions::new(major)).await?;
        let database = server.create_database().await?;
        database.execute("CREATE TABLE t(id int PRIMARY KEY)").await?;
        let lsn = async |function: &str| -> Result<Position> {
            let found = asked(&database, &format!("SELECT {function}()::text")).await?;
            let text = found[0][0].clone().context("no position")?;
            text.parse::<Position>().map_err(|_| anyhow::anyhow!("{text} is no position"))
        };
        let target = MemoryTarget::default();
        succeeding(&config(&database), &target).await?;
        let open = database.client().await?;
        open.batch_execute("BEGIN").await?;
        let source = PostgresSource::new(config(&database));
        for round in 0..3 {
            open.batch_execute(&format!("INSERT INTO t SELECT {round} * 100 + generate_series(1, 7)"))
                .await?;
            let written = lsn("pg_current_wal_insert_lsn").await?;
            let end = source.current_position().await?;
            let flushed = lsn("pg_current_wal_flush_lsn").await?;
            // A page's header may lie between the last record and the place of the next.
            ensure!(end.lsn() + 40 >= written.lsn(), "{major}: {end} is before {written}");
            ensure!(flushed >= end, "{major}: {end} is not flushed, {flushed} is");
        }
        succeeding(&config(&database), &target).await?;
        open.batch_execute("COMMIT").await?;
        succeeding(&config(&database), &target).await?;
        same(&database, &config(&database), &target, "public.t", "SELECT id::text FROM t").await?;
    }
    Ok(())
}

/// A prepared transaction holds up the slot's creation like any other, but no session can be ended for it: it is named, with its cure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_that_holds_up_the_slot_is_named() -> Result<()> {
    let server = Server::start(ServerOptions::new(15)).await?;
    let database = server.create_database().await?;
    database.execute("CREATE TABLE t(id int PRIMARY KEY)").await?;
    database.execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'it''s'").await?;
    let (config, target) = (config(&database), MemoryTarget::default());
    let findings = check(&config).await?;
    let blocked = finding(&findings, "slot.creation")?;
    let cure = ferrying::found(blocked, "source.slot_creation_blocked")?;
    ensure!(cure.sql == ["ROLLBACK PREPARED 'it''s'"], "{cure:?}");
    let running = tokio::spawn({
        let (config, target) = (config.clone(), target.clone());
        async move { ferry(&config, &target).await }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(!running.is_finished(), "the slot does not wait: {:?}", running.await);
    ferrying::paste(&database, &cure).await?;
    running.await?.map_err(|failure| anyhow::anyhow!("{failure}"))?;
    same(&database, &config, &target, "public.t", "SELECT id::text FROM t").await
}

/// Settings of the role or the database change no value, in the copy and in the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_the_role_and_the_database_change_no_value() -> Result<()> {
    for major in [10, 15, 18] {
        let database = database(
            major,
            "CREATE SCHEMA evil; CREATE TABLE t(id int PRIMARY KEY, at timestamptz, on_day date, took interval, f float8, r real, b bytea, \
             m money, x xml, i inet, c char(5), o oid[]); \
             CREATE FUNCTION evil.textin(text) RETURNS text LANGUAGE sql AS $$ SELECT 'evil'::text $$; \
             CREATE FUNCTION evil.gt(int, int) RETURNS bool LANGUAGE sql AS $$ SELECT false $$; \
             CREATE OPERATOR evil.> (LEFTARG = int, RIGHTARG = int, PROCEDURE = evil.gt); \
             CREATE VIEW evil.pg_class AS SELECT 1 AS oid; CREATE TABLE evil.pg_publication(pubname text)",
        )
        .await?;
        let insert = |id: u32| {
            format!(
                "SET TimeZone = 'UTC'; INSERT INTO public.t VALUES ({id}, '2001-02-03 04:05:06.789+00', '2001-02-03', '1 mon 2 days 03:04:05.6', \
                 0.1 + 0.2, 1.1, decode('00ff', 'hex'), 1234.5, '<a>1</a>', '10.0.0.1', 'ab', '{{1,2}}')"
            )
        };
        database.execute(&insert(1)).await?;
        let name = database.name();
        for (setting, value) in [
            ("DateStyle", "'German'"),
            ("TimeZone", "'Asia/Kathmandu'"),
            ("IntervalStyle", "'iso_8601'"),
            ("extra_float_digits", "'-15'"),
            ("bytea_output", "'escape'"),
            ("lc_monetary", "'C'"),
            ("search_path", "evil, pg_catalog"),
            ("statement_timeout", "'300ms'"),
            ("lock_timeout", "'1ms'"),
            ("idle_in_transaction_session_timeout", "'300ms'"),
            ("standard_conforming_strings", "off"),
            ("xmloption", "'document'"),
            ("xmlbinary", "'hex'"),
            ("quote_all_identifiers", "on"),
            ("default_transaction_read_only", "on"),
            ("default_transaction_isolation", "'serializable'"),
            ("row_security", "on"),
            ("client_encoding", "'latin1'"),
        ] {
            let client = database.server().client("postgres").await?;
            client.batch_execute(&format!("ALTER DATABASE {name} SET {setting} = {value}")).await?;
        }
        let (mut config, target) = (config(&database), MemoryTarget::default());
        config.include = vec!["public.t".into()];
        config.tables = vec![TableOptions {
            source: Some(TableName::new("public", "t")),
            snapshot_where: Some("id > 0".into()),
            ..TableOptions::default()
        }];
        succeeding(&config, &target).await?;
        let client = database.server().client(name).await?;
        client.batch_execute("SET default_transaction_read_only = off; SET statement_timeout = 0").await?;
        client.batch_execute(&insert(2)).await?;
        succeeding(&config, &target).await?;
        let got = rows(&config, &target, "public.t").await?;
        ensure!(got.len() == 2 && got[0][1..] == got[1][1..], "{major}: {got:?}");
        let texts: Vec<&str> = got[0].iter().flatten().map(String::as_str).collect();
        for wanted in ["2001-02-03", "$1,234.50", "<a>1</a>"] {
            ensure!(texts.iter().any(|text| text.contains(wanted)), "{major}: {wanted} is not in {texts:?}");
        }
        for (at, exact) in [(4, 0.3), (5, 1.100_000_023_841_858)] {
            ensure!((texts[at].parse::<f64>()? - exact).abs() < 1e-6, "{major}: {texts:?}");
            ensure!(at == 5 || texts[at].parse::<f64>()?.to_bits() == exact.to_bits(), "{major}: {texts:?}");
        }
    }
    Ok(())
}

/// A key that is stored out of line, and changes that touch it or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_toasted_key_is_a_key() -> Result<()> {
    for identity in ["DEFAULT", "FULL", "USING INDEX u"] {
        let database = database(
            15,
            &format!(
                "CREATE TABLE t(k text PRIMARY KEY, n int, big text, other text NOT NULL); CREATE UNIQUE INDEX u ON t (other); \
                 ALTER TABLE t ALTER k SET STORAGE EXTERNAL, ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL; \
                 ALTER TABLE t REPLICA IDENTITY {identity}; \
                 INSERT INTO t SELECT repeat(g::text, 2400), g, repeat('v', 9000), repeat(g::text || 'o', 1200) FROM generate_series(1, 9) g"
            ),
        )
        .await?;
        let (config, target) = (config(&database), MemoryTarget::default());
        succeeding(&config, &target).await?;
        for change in [
            "UPDATE t SET n = 100 WHERE n = 1",
            "UPDATE t SET k = repeat('k', 2400) WHERE n = 2; UPDATE t SET n = 200 WHERE n = 2",
            "UPDATE t SET other = repeat('z', 2400) WHERE n = 3",
            "DELETE FROM t WHERE n = 4; UPDATE t SET big = repeat('w', 9000) WHERE n = 5",
            "BEGIN; UPDATE t SET k = 'short' WHERE n = 6; UPDATE t SET k = repeat('6', 2400) WHERE n = 6; UPDATE t SET n = 600 WHERE n = 6; COMMIT",
        ] {
            database.execute(change).await?;
            succeeding(&config, &target).await.with_context(|| format!("{identity}: {change}"))?;
            same(&database, &config, &target, "public.t", "SELECT k, n::text, big, other FROM t")
                .await
                .map_err(|failure| {
                    let text = format!("{failure:#}");
                    anyhow::anyhow!("{identity}: {change}: {}", text.chars().take(80).collect::<String>())
                })?;
        }
    }
    Ok(())
}

/// A type that changes between the look at the catalog and the first change of the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_type_that_changes_before_the_first_change_is_noticed() -> Result<()> {
    let database = Arc::new(
        database(
            15,
            "CREATE TABLE t(id int PRIMARY KEY, n numeric(10, 2)); CREATE TABLE u(id int PRIMARY KEY)",
        )
        .await?,
    );
    let (config, target) = (config(&database), MemoryTarget::default());
    let sql = "ALTER TABLE t ALTER n TYPE numeric(12, 4); INSERT INTO t VALUES (1, 1.2345); INSERT INTO u VALUES (1)";
    let what = Meddling { before_stream: vec![sql.into()], ..Meddling::default() };
    let source = Arc::new(MeddledSource::new(config.clone(), &database, what));
    let live = Live::from(source, SyncMode::SnapshotCdc, &target, 1);
    live.until(|| async { Ok(rows(&config, &target, "public.u").await?.len() == 1) }).await?;
    let end = live.stop().await?;
    ensure!(end.set_aside.len() == 1 && end.set_aside[0].code == "schema.change_blocked", "{end:?}");
    Ok(())
}

/// A target that takes longer than the server waits for a sign of life: the connection stays up, and nothing comes twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_longer_than_the_servers_patience_keeps_the_connection() -> Result<()> {
    let server = Server::start(ServerOptions::new(15).set("wal_sender_timeout", "3s")).await?;
    let database = server.create_database().await?;
    database.execute("CREATE TABLE t(id int PRIMARY KEY, pad text)").await?;
    let (config, target) = (config(&database), MemoryTarget::default());
    succeeding(&config, &target).await?;
    let handle = target.reopened();
    handle.fail(1, Fault::Slow(Duration::from_secs(10))).await;
    let live = Live::over(Arc::new(PostgresSource::new(config.clone())), config.sync_mode, &handle, 1);
    for round in 0..5 {
        database
            .execute(&format!(
                "INSERT INTO t SELECT {round} * 10000 + g, repeat('x', 5000) FROM generate_series(1, 5000) g"
            ))
            .await?;
    }
    live.until(|| async { Ok(rows(&config, &target, "public.t").await?.len() == 25_000) }).await?;
    ensure!(live.monitor.retries.load(std::sync::atomic::Ordering::Relaxed) == 0, "the connection was lost");
    live.stop().await?;
    Ok(())
}

/// A large transaction in progress does not fit where it waits: a clear end, and nothing lost when there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_spool_ends_clearly_and_loses_nothing() -> Result<()> {
    let server = Server::start(ServerOptions::new(15).small_decoding_memory()).await?;
    let database = server.create_database().await?;
    database.execute("CREATE TABLE t(id int PRIMARY KEY, pad text)").await?;
    let (mut config, target) = (config(&database), MemoryTarget::default());
    succeeding(&config, &target).await?;
    let disk = SmallDisk::new()?;
    config.spool_directory = Some(disk.0.path().to_owned());
    config.spool_memory_bytes_max = 64 << 10;
    let long = database.client().await?;
    long.batch_execute("BEGIN; INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 8000) g")
        .await?;
    database.execute("INSERT INTO t VALUES (-1, 'small')").await?;
    let failure = failing(&config, &target).await?;
    ensure!(told(&failure, "source.spool_failed").is_ok(), "{}: {failure}", failure.code());
    long.batch_execute("COMMIT").await?;
    told(&failing(&config, &target).await?, "source.spool_failed")?;
    config.spool_directory = None;
    succeeding(&config, &target).await?;
    same(&database, &config, &target, "public.t", "SELECT id::text, pad FROM t").await
}

/// A table that is taken out of the publication while the task runs has no changes any more: it is set aside within a minute, not found
/// out at the next start. A table that is dropped is no trouble.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_leaves_the_publication_is_set_aside_while_the_task_runs() -> Result<()> {
    let database =
        database(15, "CREATE TABLE t(id int PRIMARY KEY); CREATE TABLE u(id int PRIMARY KEY); CREATE TABLE w(id int PRIMARY KEY)").await?;
    let (config, target) = (config(&database), MemoryTarget::default());
    let live = Live::start(&config, &target, 0);
    database.execute("INSERT INTO t VALUES (1); INSERT INTO w VALUES (1)").await?;
    live.until(|| async { Ok(rows(&config, &target, "public.t").await?.len() == 1) }).await?;
    database
        .execute("ALTER PUBLICATION pgferry_test DROP TABLE t; DROP TABLE w; INSERT INTO t VALUES (2)")
        .await?;
    let broken = || async {
        let tables = target.progress().await.tables;
        let of = |known: &pgferry_model::TableProgress| matches!(known.state, TableState::Broken { .. });
        Ok(tables
            .iter()
            .filter(|known| of(known))
            .map(|known| known.name.to_string())
            .eq(["public.t".to_owned()]))
    };
    tokio::time::sleep(Duration::from_secs(20)).await;
    live.until(broken).await?;
    database.execute("INSERT INTO u VALUES (1)").await?;
    live.until(|| async { Ok(rows(&config, &target, "public.u").await?.len() == 1) }).await?;
    let end = live.stop().await?;
    ensure!(
        end.set_aside.len() == 1 && end.set_aside[0].code == "source.table_not_in_publication",
        "{end:?}"
    );
    told(end.set_aside[0].error.as_ref().context("an error")?, "source.table_not_in_publication")?;
    Ok(())
}

/// Names and shapes that are easily mistaken: one name in two schemas, columns dropped in the middle, an own type of a system type's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_one_name_and_dropped_columns_are_not_mixed_up() -> Result<()> {
    for major in [10, 18] {
        let database = database(
            major,
            "CREATE SCHEMA a; CREATE SCHEMA \"A\"; CREATE TYPE a.text AS ENUM ('x', 'y'); \
             CREATE TABLE a.\"t.t\"(gone int, id int PRIMARY KEY, v a.text, gone2 text, w text); \
             ALTER TABLE a.\"t.t\" DROP gone, DROP gone2; ALTER TABLE a.\"t.t\" ADD z int DEFAULT 7; \
             CREATE TABLE \"A\".\"t.t\"(w text, id int PRIMARY KEY); \
             INSERT INTO a.\"t.t\" VALUES (1, 'x', 'w'); INSERT INTO \"A\".\"t.t\" VALUES ('w', 1)",
        )
        .await?;
        let (config, target) = (config(&database), MemoryTarget::default());
        succeeding(&config, &target).await?;
        for change in [
            "INSERT INTO a.\"t.t\" VALUES (2, 'y', NULL, 8); INSERT INTO \"A\".\"t.t\" VALUES (NULL, 2)",
            "UPDATE a.\"t.t\" SET w = 'new', id = 3 WHERE id = 1; DELETE FROM \"A\".\"t.t\" WHERE id = 1",
            "TRUNCATE a.\"t.t\"; INSERT INTO a.\"t.t\" VALUES (5, 'y', 'after')",
        ] {
            if major == 10 && change.contains("TRUNCATE") {
                continue;
            }
            database.execute(change).await?;
            succeeding(&config, &target).await?;
            same(&database, &config, &target, "a.t.t", "SELECT id::text, v::text, w, z::text FROM a.\"t.t\"")
                .await?;
            same(&database, &config, &target, "A.t.t", "SELECT w, id::text FROM \"A\".\"t.t\"").await?;
        }
    }
    Ok(())
}

/// One megabyte, mounted for the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Result<SmallDisk> {
        let folder = tempfile::tempdir()?;
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder.path());
        ensure!(mount.status()?.success(), "a small disk takes the right to mount one");
        Ok(SmallDisk(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _gone = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
