//! The workload runs on every server, repeats itself, and does everything it says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

use std::time::{Duration, Instant};

use pgferry_testkit::compare::{SourceRows, compare};
use pgferry_testkit::server::MAJORS;
use pgferry_testkit::workload::{Operation, Options, Stop, Workload};
use pgferry_testkit::{Database, Server};

async fn filled(database: &Database, seed: u64) -> Workload {
    let client = database.client().await.unwrap();
    let mut workload = Workload::new(seed, Options::default());
    workload.create_schema(&client).await.unwrap();
    workload.fill(&client, 200).await.unwrap();
    workload
}

#[tokio::test]
async fn the_same_seed_makes_the_same_database() {
    for major in MAJORS {
        let server = Server::shared(major).await.unwrap();
        let (one, two) = (server.create_database().await.unwrap(), server.create_database().await.unwrap());
        let mut workload = filled(&one, 42).await;
        let counts = workload.run(&one.url(), Stop::Count(150), 1).await.unwrap();
        let mut again = filled(&two, 42).await;
        assert_eq!(again.run(&two.url(), Stop::Count(150), 1).await.unwrap(), counts);
        assert!(
            counts.committed > 100 && counts.rolled_back > 0 && counts.retried == 0,
            "{major}: {counts:?}"
        );
        for (operation, _) in Operation::USUAL {
            assert!(
                counts.operations.get(&operation).is_some_and(|count| *count > 0),
                "{major}: no {operation:?}"
            );
        }
        let mut source = SourceRows::new(one.client().await.unwrap()).await.unwrap();
        let mut target = SourceRows::new(two.client().await.unwrap()).await.unwrap();
        let tables = source.tables().await.unwrap();
        assert_eq!(tables.len(), workload.tables().len(), "{major}");
        let report = compare(&mut source, &mut target, &tables, 5).await.unwrap();
        report.assert_equal().unwrap();
        assert!(report.rows > 1000, "{major}: {}", report.rows);
    }
}

#[tokio::test]
async fn sessions_interleave_and_survive_their_deadlocks() {
    for major in [10, 18] {
        let server = Server::shared(major).await.unwrap();
        let database = server.create_database().await.unwrap();
        let mut workload = filled(&database, 7).await;
        let expected = workload.statements(2, 4, 20);
        assert_eq!(workload.statements(2, 4, 20), expected);
        assert_ne!(workload.statements(1, 4, 20), expected);
        let counts = workload.run(&database.url(), Stop::Count(60), 4).await.unwrap();
        assert_eq!(counts.committed + counts.rolled_back, 240, "{major}");
        // A second run of the same workload meets none of the first one's keys.
        let more = workload.run(&database.url(), Stop::Count(20), 2).await.unwrap();
        assert_eq!(more.committed + more.rolled_back, 40, "{major}");
    }
}

#[tokio::test]
async fn a_background_run_ends_when_asked_and_by_its_own_limit() {
    let server = Server::shared(15).await.unwrap();
    let database = server.create_database().await.unwrap();
    let mut workload = filled(&database, 1).await;
    let running = workload.start(&database.url(), Stop::After(Duration::from_secs(60)), 2).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let start = Instant::now();
    assert!(running.stop().await.unwrap().committed > 0);
    assert!(start.elapsed() < Duration::from_secs(10));
    let start = Instant::now();
    workload.run(&database.url(), Stop::After(Duration::from_millis(300)), 1).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn changes_reach_a_slot_with_streaming_and_unchanged_toast() {
    for major in MAJORS {
        let options = pgferry_testkit::ServerOptions::new(major).small_decoding_memory();
        let server = Server::start(options).await.unwrap();
        let database = server.create_database().await.unwrap();
        let mut workload = filled(&database, 3).await;
        let client = database.client().await.unwrap();
        client
            .batch_execute("SELECT pg_create_logical_replication_slot('changes', 'test_decoding')")
            .await
            .unwrap();
        workload.run(&database.url(), Stop::Count(100), 2).await.unwrap();
        let rows = client
            .query("SELECT data FROM pg_logical_slot_peek_changes('changes', NULL, NULL)", &[])
            .await
            .unwrap();
        let count = |text: &str| rows.iter().filter(|row| row.get::<_, &str>(0).contains(text)).count();
        for text in [": INSERT:", ": UPDATE:", ": DELETE:", "unchanged-toast-datum", "old-key:"] {
            assert!(count(text) > 0, "{major}: no {text}");
        }
        if major >= 14 {
            let sql = "SELECT spill_count + stream_count > 0 FROM pg_stat_replication_slots WHERE slot_name = 'changes'";
            assert!(client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0), "{major}: nothing spilled");
        }
    }
}

#[tokio::test]
async fn a_deadlock_is_begun_again_until_it_commits() {
    for major in [10, 18] {
        let server = Server::shared(major).await.unwrap();
        let database = server.create_database().await.unwrap();
        let client = database.client().await.unwrap();
        let weights =
            [(Operation::KeySwap, 1), (Operation::UpdateMany, 2), (Operation::DeleteAndInsert, 1)].into();
        let options = Options { weights, narrow_tables: 1, operations_max: 12, ..Options::default() };
        let mut workload = Workload::new(5, options);
        workload.create_schema(&client).await.unwrap();
        workload.fill(&client, 10).await.unwrap();
        let counts = workload.run(&database.url(), Stop::Count(60), 4).await.unwrap();
        assert_eq!(counts.committed + counts.rolled_back, 240, "{major}");
        assert!(counts.retried > 0, "{major}: no two sessions met");
    }
}
