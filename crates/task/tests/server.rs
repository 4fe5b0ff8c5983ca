//! What asks a real server: slots, plans, previews, and the demo's own server and traffic.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

use std::time::Duration;

use pgferry_model::Outcome;
use pgferry_postgres::{Purpose, Session};
use pgferry_task::check::check;
use pgferry_task::demo::{DemoServer, Traffic, fill, spec};
use pgferry_task::slots::{self, SLOT_IN_USE, SLOT_UNKNOWN, SlotOwner};
use pgferry_task::spec::Spec;

/// One server for all steps: starting one takes longer than everything that is asked of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_its_own_is_filled_asked_and_gone() {
    let server = DemoServer::start().await.unwrap();
    let folder = server.folder().to_owned();
    let connection = server.connection("shop");
    assert_eq!(fill(&connection).await.unwrap(), 102_500);
    traffic_changes_every_table(&server).await;
    let target = tempfile::tempdir().unwrap();
    let spec = spec(&server, &target.path().join("demo.duckdb")).unwrap();
    slots_are_told_apart_and_dropped_only_when_free(&server, &spec).await;
    the_source_side_of_a_check_is_told_whatever_the_target_says(&spec).await;
    drop(server);
    assert!(!folder.exists());
    let gone = Session::connect(&connection, Purpose::Query).await;
    assert!(gone.is_err());
}

async fn ask(server: &DemoServer, sql: &str) -> String {
    let mut session = Session::connect(&server.connection("shop"), Purpose::Query).await.unwrap();
    let rows = session.simple_query(sql).await.unwrap();
    session.close().await.unwrap();
    rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default()
}

async fn traffic_changes_every_table(server: &DemoServer) {
    let state = "SELECT (SELECT count(*) FROM public.orders) || ' ' || (SELECT min(id) FROM public.carts) || ' ' || \
                 (SELECT count(*) FROM public.orders WHERE note = 'never mind')";
    assert_eq!(ask(server, state).await, "30000 1 0");
    let traffic = Traffic::start(&server.connection("shop"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let transactions = traffic.stop().await.unwrap();
    assert!(transactions > 20, "{transactions}");
    let after = ask(server, state).await;
    let numbers: Vec<u64> = after.split(' ').map(|number| number.parse().unwrap()).collect();
    assert!(numbers[0] > 30_000 && numbers[1] > 1, "{after}");
    assert_eq!(numbers[2], 0, "a rolled back transaction is visible");
}

async fn slots_are_told_apart_and_dropped_only_when_free(server: &DemoServer, spec: &Spec) {
    let source = spec.source_of(&spec.tasks[0]).unwrap();
    for name in ["pgferry_demo", "pgferry_old", "theirs"] {
        ask(server, &format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")).await;
    }
    let found = slots::list(spec, source).await.unwrap();
    let owners: Vec<(&str, &SlotOwner)> =
        found.iter().map(|slot| (slot.name.as_str(), &slot.owner)).collect();
    let task = SlotOwner::Task("demo".to_owned());
    let expected =
        [("pgferry_demo", &task), ("pgferry_old", &SlotOwner::Prefix), ("theirs", &SlotOwner::Other)];
    assert_eq!(owners, expected);
    assert!(found.iter().all(|slot| slot.active_pid.is_none() && slot.wal_status == "reserved"), "{found:?}");

    ask(server, "CREATE PUBLICATION p FOR ALL TABLES").await;
    let mut reader = Session::connect(&server.connection("shop"), Purpose::Replication).await.unwrap();
    let start = "START_REPLICATION SLOT theirs LOGICAL 0/0 (proto_version '1', publication_names 'p')";
    reader.copy_both(start).await.unwrap();
    let refused = slots::drop(spec, source, "theirs", false).await.unwrap_err();
    assert_eq!(refused.code(), SLOT_IN_USE);
    slots::drop(spec, source, "theirs", true).await.unwrap();
    slots::drop(spec, source, "pgferry_old", false).await.unwrap();
    let unknown = slots::drop(spec, source, "pgferry_old", false).await.unwrap_err();
    assert_eq!(unknown.code(), SLOT_UNKNOWN);
    assert_eq!(slots::list(spec, source).await.unwrap().len(), 1);
}

async fn the_source_side_of_a_check_is_told_whatever_the_target_says(spec: &Spec) {
    let checked = check(spec, &spec.tasks[0]).await;
    let of_source = checked.findings.iter().find(|finding| finding.check.starts_with("source"));
    assert_eq!(of_source.unwrap().outcome, Outcome::Passed, "{:?}", checked.findings);
}
