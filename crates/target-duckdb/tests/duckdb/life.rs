//! From the first open to the close: copies, chunks, states, fencing, what is there already, altered columns.

use std::sync::Arc;

use pgferry_model::{Class, Position, SourceIdentity, TableState, TypeKind};
use pgferry_pipeline::{ChunkRows, CopyMark, IfTargetExists, SchemaChange, Target, rows_between};
use pgferry_target_duckdb::{DuckdbTarget, error};

use crate::making::*;

fn row(id: &str) -> Vec<In> {
    texts(&[id, "a", "b", "1"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_found_again_after_its_holder_is_gone() {
    let people = people();
    let made = live(&people, &[row("1"), row("2")]).await;
    let identity =
        SourceIdentity { system_id: "77".into(), timeline: 3, database: "d".into(), slot: "s".into() };
    made.target.identify(&identity).await.unwrap();
    apply(&made.target, 200, changes(&people, &[Change::Insert(row("3"))])).await.unwrap();
    made.target
        .set_state(&people, TableState::Broken { code: "a.b".into(), problem: "p".into() })
        .await
        .unwrap();
    let Made { folder: _folder, path, target } = made;
    drop(target);
    let target = DuckdbTarget::connect(config(&path)).unwrap();
    let progress = target.open(&task()).await.unwrap();
    assert_eq!(
        (progress.epoch, progress.position, progress.source.clone()),
        (2, Some(at(200)), Some(identity))
    );
    let table = progress.table(&people.name).unwrap();
    assert_eq!(table.state, TableState::Broken { code: "a.b".into(), problem: "p".into() });
    assert_eq!((table.cut, table.chunks_done.len()), (Some(at(100)), 0));
    assert_eq!(rows(&target, &people).await, ["1|a|b|1", "2|a|b|1", "3|a|b|1"]);
    target.close().await.unwrap();
    target.close().await.unwrap();
    assert_eq!(apply(&target, 300, changes(&people, &[])).await.unwrap_err().code(), error::FENCED);
    // The log is in the file, and nobody holds it.
    assert!(!path.with_extension("duckdb.wal").exists());
    let other = duckdb::Connection::open(&path).unwrap();
    let count: i64 = other.query_row("SELECT count(*) FROM public.people", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_holder_cannot_write_any_more() {
    let people = people();
    let made = live(&people, &[row("1")]).await;
    let newer = DuckdbTarget::connect(config(&made.path)).unwrap();
    assert_eq!(newer.open(&task()).await.unwrap().epoch, 2);
    let old = &made.target;
    let fenced = [
        apply(old, 200, changes(&people, &[Change::Delete(texts(&["1", "<null>", "<null>", "<null>"]))]))
            .await
            .map(drop),
        load(old, &people, 1, &[row("9")]).await.map(drop),
        old.set_state(&people, TableState::Paused).await,
        old.begin_copy(&people, CopyMark { cut: at(300), stream_start: None }).await,
    ];
    for failure in fenced.map(Result::unwrap_err) {
        assert_eq!((failure.code(), failure.class()), (error::FENCED, Class::TaskBroken));
    }
    apply(&newer, 200, changes(&people, &[Change::Insert(row("2"))])).await.unwrap();
    assert_eq!(rows(&newer, &people).await, ["1|a|b|1", "2|a|b|1"]);
    assert_eq!(newer.open(&task()).await.unwrap().table(&people.name).unwrap().state, TableState::Live);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tasks_share_a_file_and_do_not_fence_each_other() {
    let people = people();
    let made = live(&people, &[row("1")]).await;
    let other = DuckdbTarget::connect(config(&made.path)).unwrap();
    other.open(&pgferry_model::TaskId::new("other")).await.unwrap();
    apply(&made.target, 200, changes(&people, &[Change::Insert(row("2"))])).await.unwrap();
    let failure = other.prepare(&plan(&people, IfTargetExists::Append)).await.unwrap_err();
    assert_eq!(failure.code(), error::NAME_COLLISION);
    let failure = other.prepare(&plan(&people, IfTargetExists::Error)).await.unwrap_err();
    assert_eq!(failure.code(), error::TABLE_EXISTS);
    assert_eq!(rows(&made.target, &people).await, ["1|a|b|1", "2|a|b|1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_replaces_the_table_of_another_takes_it_over() {
    for policy in [IfTargetExists::Replace, IfTargetExists::Truncate] {
        let people = people();
        let made = live(&people, &[row("1")]).await;
        let other = DuckdbTarget::connect(config(&made.path)).unwrap();
        other.open(&pgferry_model::TaskId::new("other")).await.unwrap();
        other.prepare(&plan(&people, policy)).await.unwrap();
        assert_eq!(rows(&other, &people).await, [""; 0]);
        // The first task would mix its rows in: it is told that the table is not its own any more.
        assert_eq!(made.target.open(&task()).await.unwrap().table(&people.name), None);
        let failure = made.target.prepare(&plan(&people, IfTargetExists::Error)).await.unwrap_err();
        assert_eq!(failure.code(), error::TABLE_EXISTS);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_is_loaded_once_and_a_broken_one_not_at_all() {
    let people = people();
    let made = copying(&people, &[row("1")]).await;
    load(&made.target, &people, 0, &[row("1")]).await.unwrap();
    assert_eq!(made.target_count(&people).await, 1);
    let (sender, receiver) = rows_between();
    let batch = changes(&people, &[Change::Insert(row("7"))]);
    let (loaded, ()) =
        tokio::join!(made.target.load(ChunkRows { chunk: chunk(&people, 1), rows: receiver }), async move {
            sender.send(batch).await.unwrap()
        });
    assert_eq!(loaded.unwrap_err().class(), Class::Transient);
    let misfit = vec![row("8"), texts(&["x", "a", "b", "1"])];
    let failure = load(&made.target, &people, 1, &misfit).await.unwrap_err();
    assert_eq!((failure.code(), failure.class()), (error::NOT_REPRESENTABLE, Class::TableBroken));
    assert!(failure.problem().contains("people.id"));
    assert_eq!(made.target_count(&people).await, 1);
    assert_eq!(load(&made.target, &people, 1, &[row("2")]).await.unwrap(), 1);
    let done = made.target.open(&task()).await.unwrap().table(&people.name).unwrap().chunks_done.clone();
    assert_eq!(done, [0, 1]);
}

impl Made {
    async fn target_count(&self, table: &pgferry_model::Table) -> u64 {
        pgferry_pipeline::Inspect::count(&*self.target, table).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_chunks_load_at_once() {
    let people = people();
    let made = copying(&people, &[]).await;
    let mut loads = tokio::task::JoinSet::new();
    for number in 1..=8u32 {
        let (target, people) = (Arc::clone(&made.target), Arc::clone(&people));
        loads.spawn(async move {
            let rows: Vec<_> = (0..3000).map(|at| row(&(number * 10_000 + at).to_string())).collect();
            load(&target, &people, number, &rows).await
        });
    }
    while let Some(loaded) = loads.join_next().await {
        assert_eq!(loaded.unwrap().unwrap(), 3000);
    }
    assert_eq!(made.target_count(&people).await, 24_000);
    assert_eq!(made.target.open(&task()).await.unwrap().table(&people.name).unwrap().chunks_done.len(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_copy_removes_what_the_last_one_left() {
    let people = people();
    let made = live(&people, &[row("1"), row("2")]).await;
    made.target.begin_copy(&people, CopyMark { cut: at(500), stream_start: Some(at(400)) }).await.unwrap();
    let progress = made.target.open(&task()).await.unwrap();
    let table = progress.table(&people.name).unwrap();
    assert_eq!(
        (table.state.clone(), table.cut, table.chunks_done.len()),
        (TableState::Copying, Some(at(500)), 0)
    );
    assert_eq!(progress.position, Some(at(100)), "the first mark's position stays");
    assert_eq!(made.target_count(&people).await, 0);
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
async fn rows_that_were_there_stay_with_append() {
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
async fn a_table_that_is_there_is_met_as_the_user_says() {
    let people = people();
    for (if_exists, expected) in [
        (IfTargetExists::Error, Err(error::TABLE_EXISTS)),
        (IfTargetExists::Append, Ok(2)),
        (IfTargetExists::Truncate, Ok(0)),
        (IfTargetExists::Replace, Ok(0)),
    ] {
        let made = opened().await;
        with_foreign_rows(&made, FOREIGN).await;
        let described = made.target.describe(&plan(&people, if_exists)).await;
        let prepared = made.target.prepare(&plan(&people, if_exists)).await;
        match expected {
            Ok(count) => {
                prepared.unwrap();
                assert_eq!(made.target_count(&people).await, count);
                assert_eq!(described.unwrap().is_empty(), if_exists == IfTargetExists::Append);
                made.target.prepare(&plan(&people, if_exists)).await.unwrap();
            }
            Err(code) => {
                assert_eq!(prepared.unwrap_err().code(), code);
                assert!(described.unwrap().is_empty());
            }
        }
    }
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
    let quoted = table("we \"quote\" é", &[("sélect \"x\"", TypeKind::Int4), ("from", TypeKind::Text)], &[0]);
    made.target.prepare(&plan(&quoted, IfTargetExists::Error)).await.unwrap();
    load(&made.target, &quoted, 0, &[texts(&["1", "a"])]).await.unwrap();
    let change = Change::Update(vec![t("1"), In::Unchanged]);
    apply(&made.target, 200, changes(&quoted, &[change])).await.unwrap();
    assert_eq!(rows(&made.target, &quoted).await, ["1|a"]);
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
async fn positions_never_move_back() {
    let people = people();
    let made = live(&people, &[row("1")]).await;
    let empty = |after, through| delivery(after, through, pgferry_model::Slice::Whole, Vec::new());
    use pgferry_pipeline::Receipt::Durable;
    assert_eq!(made.target.apply(empty(100, 300)).await.unwrap(), Durable(at(300)));
    assert_eq!(made.target.apply(empty(100, 200)).await.unwrap(), Durable(at(300)));
    assert_eq!(
        apply(&made.target, 250, changes(&people, &[Change::Insert(row("2"))])).await.unwrap(),
        Durable(at(300))
    );
    assert_eq!(rows(&made.target, &people).await, ["1|a|b|1"]);
    assert_eq!(made.target.open(&task()).await.unwrap().position, Some(Position::from_lsn(300)));
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
