//! From the first open to the close, where DuckDB has its own ways: its files, its names, its tables of other shapes, its codes.
//! What every target promises is in `contract`.

use std::sync::Arc;

use pgferry_model::{Class, TypeKind};
use pgferry_pipeline::{CopyMark, IfTargetExists, SchemaChange, Target};
use pgferry_target_duckdb::error;

use crate::making::*;

fn row(id: &str) -> Vec<In> {
    texts(&[id, "a", "b", "1"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_file_has_no_log_and_no_holder() {
    let people = people();
    let Made { folder: _folder, path, target } = live(&people, &[row("1"), row("2")]).await;
    apply(&target, 200, changes(&people, &[Change::Insert(row("3"))])).await.unwrap();
    target.close().await.unwrap();
    assert_eq!(apply(&target, 300, changes(&people, &[])).await.unwrap_err().code(), error::FENCED);
    assert!(!path.with_extension("duckdb.wal").exists());
    let other = duckdb::Connection::open(&path).unwrap();
    let count: i64 = other.query_row("SELECT count(*) FROM public.people", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 3);
}

impl Made {
    async fn target_count(&self, table: &pgferry_model::Table) -> u64 {
        pgferry_pipeline::Inspect::count(&*self.target, table).await.unwrap()
    }
}

async fn with_foreign_rows(made: &Made, sql: &str) {
    made.target.close().await.unwrap();
    let other = duckdb::Connection::open(&made.path).unwrap();
    other.execute_batch(sql).unwrap();
    drop(other);
    made.target.open(&task()).await.unwrap();
}

const FOREIGN: &str = "CREATE SCHEMA public; CREATE TABLE public.people (n BIGINT, name VARCHAR, body VARCHAR, id INTEGER); \
                       INSERT INTO public.people VALUES (7, 'was', 'here', -1), (8, 'was', 'too', -2)";

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_there_stay_with_append_also_in_another_order_of_columns() {
    let people = people();
    let made = opened().await;
    with_foreign_rows(&made, FOREIGN).await;
    made.target.prepare(&plan(&people, IfTargetExists::Append)).await.unwrap();
    for cut in [100, 200] {
        made.target.begin_copy(&people, CopyMark { cut: at(cut), stream_start: None }).await.unwrap();
        load(&made.target, &people, 0, &[row("1"), row("2")]).await.unwrap();
        made.target.prepare(&plan(&people, IfTargetExists::Append)).await.unwrap();
        made.target.close().await.unwrap();
        made.target.open(&task()).await.unwrap();
    }
    let all = rows(&made.target, &people).await;
    assert_eq!(all, ["-1|was|here|7", "-2|was|too|8", "1|a|b|1", "2|a|b|1"]);
    // Columns in another order take changes too.
    let change = vec![In::Text("-1".into()), t("new"), In::Unchanged, t("9")];
    apply(&made.target, 300, changes(&people, &[Change::Update(change)])).await.unwrap();
    assert_eq!(rows(&made.target, &people).await[0], "-1|new|here|9");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_other_shapes_and_views_are_refused() {
    let people = people();
    let made = opened().await;
    with_foreign_rows(&made, FOREIGN).await;
    let failure = made.target.prepare(&plan(&people, IfTargetExists::Error)).await.unwrap_err();
    assert_eq!(failure.code(), error::TABLE_EXISTS);
    let findings = made.target.check(&[plan(&people, IfTargetExists::Error)]).await.unwrap();
    assert!(findings.iter().any(|finding| finding.code == Some(error::TABLE_EXISTS)), "{findings:?}");
    for foreign in [
        "CREATE SCHEMA public; CREATE TABLE public.people (id INTEGER)",
        "CREATE SCHEMA public; CREATE TABLE public.PEOPLE (id BIGINT, name VARCHAR, body VARCHAR, n BIGINT)",
        "CREATE SCHEMA public; CREATE TABLE public.people (id INTEGER, name VARCHAR, body VARCHAR, n BIGINT, x INTEGER)",
    ] {
        let made = opened().await;
        with_foreign_rows(&made, foreign).await;
        let failure = made.target.prepare(&plan(&people, IfTargetExists::Append)).await.unwrap_err();
        assert_eq!((failure.code(), failure.class()), (error::SCHEMA_INCOMPATIBLE, Class::TableBroken));
    }
    let made = opened().await;
    with_foreign_rows(&made, "CREATE SCHEMA public; CREATE VIEW public.people AS SELECT 1 AS id").await;
    let failure = made.target.prepare(&plan(&people, IfTargetExists::Replace)).await.unwrap_err();
    assert_eq!(failure.code(), error::TABLE_EXISTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_dropped_outside_is_told() {
    let people = people();
    let made = live(&people, &[row("1")]).await;
    with_foreign_rows(&made, "DROP TABLE public.people").await;
    let failure = apply(&made.target, 200, changes(&people, &[Change::Insert(row("2"))])).await.unwrap_err();
    assert_eq!((failure.code(), failure.class()), (error::TABLE_GONE, Class::TableBroken));
    assert_eq!(failure.table(), Some(&people.name));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_one_in_duckdb_are_refused() {
    let made = opened().await;
    let twice = table("t", &[("Id", TypeKind::Int4), ("id", TypeKind::Int4)], &[0]);
    for refused in [
        made.target.mapping(&twice).map(drop),
        made.target.prepare(&plan(&twice, IfTargetExists::Error)).await,
    ] {
        assert_eq!(refused.unwrap_err().code(), error::NAME_COLLISION);
    }
    let (one, other) =
        (table("T", &[("a", TypeKind::Int4)], &[0]), table("t", &[("a", TypeKind::Int4)], &[0]));
    made.target.prepare(&plan(&one, IfTargetExists::Error)).await.unwrap();
    let failure = made.target.prepare(&plan(&other, IfTargetExists::Append)).await.unwrap_err();
    assert_eq!(failure.code(), error::NAME_COLLISION);
    let findings = made.target.check(&[plan(&other, IfTargetExists::Append)]).await.unwrap();
    assert!(findings.iter().any(|finding| finding.code == Some(error::NAME_COLLISION)), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_columns_is_refused() {
    let before = people();
    let made = live(&before, &[row("1")]).await;
    let after = table("people", &[("id", TypeKind::Int4)], &[0]);
    let failure = made.target.evolve(&SchemaChange { before: Arc::clone(&before), after }).await.unwrap_err();
    assert_eq!(failure.code(), pgferry_pipeline::error::SCHEMA_CHANGE_BLOCKED);
    assert_eq!(failure.class(), Class::TableBroken);
    assert_eq!(rows(&made.target, &before).await, ["1|a|b|1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_from_before_the_task_survive_a_resync_before_the_first_copy() {
    let people = people();
    for table in [None, Some(people.name.clone())] {
        let made = opened().await;
        with_foreign_rows(&made, FOREIGN).await;
        made.target.prepare(&plan(&people, IfTargetExists::Append)).await.unwrap();
        made.target.forget(table.as_ref()).await.unwrap();
        made.target.begin_copy(&people, CopyMark { cut: at(100), stream_start: None }).await.unwrap();
        load(&made.target, &people, 0, &[row("1")]).await.unwrap();
        assert_eq!(made.target_count(&people).await, 3);
        // A copy that is under way holds rows of both kinds, and a resync says so.
        let failure = made.target.forget(table.as_ref()).await.unwrap_err();
        assert_eq!(failure.code(), error::APPEND_INTERRUPTED);
        assert_eq!(made.target_count(&people).await, 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_just_now_that_another_task_takes_is_not_copied_into() {
    let people = people();
    let Made { folder: _folder, path, target } = opened().await;
    target.prepare(&plan(&people, IfTargetExists::Error)).await.unwrap();
    let other = pgferry_target_duckdb::DuckdbTarget::connect(config(&path)).unwrap();
    other.open(&pgferry_model::TaskId::new("other")).await.unwrap();
    other.prepare(&plan(&people, IfTargetExists::Replace)).await.unwrap();
    let begun = target.begin_copy(&people, CopyMark { cut: at(100), stream_start: Some(at(100)) }).await;
    assert_eq!(begun.unwrap_err().code(), error::TABLE_EXISTS);
}
