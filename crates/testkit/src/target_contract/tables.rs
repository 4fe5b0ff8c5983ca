//! Tables: how they are made, taken over or left alone, what is told of them before, and what becomes of their columns.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pgferry_model::{Outcome, Table, TableName, TableState, TaskId, TypeKind};
use pgferry_pipeline::{IfTargetExists, SchemaChange, Target};

use super::stage::{
    Changes, KEPT, NULL, Stage, data_type, load, mark, orders, people, plan, rows, snapshot_rows, table,
    table_broken, task, text_row,
};
use super::{Scene, Scenery, Verdict};

const EVERY: [IfTargetExists; 4] =
    [IfTargetExists::Error, IfTargetExists::Append, IfTargetExists::Truncate, IfTargetExists::Replace];
const ONE: &[&str] = &["1", "a", "b", "1"];
const FOREIGN: [&[&str]; 2] = [&["-1", "was", "here", "7"], &["-2", "was", NULL, "8"]];

/// Where what is kept of others could not be seen.
pub(super) fn hides_others(scene: &dyn Scene) -> Option<Verdict> {
    let shown = scene.shows_rows_of_others();
    (!shown).then(|| Verdict::Untested("it shows what the task itself has written".into()))
}

/// Puts `people` there as somebody else's, and opens.
async fn beside_foreign<'s>(scene: &'s dyn Scene, table: &Table) -> Result<Result<Stage<'s>, Verdict>> {
    let foreign: Vec<_> = FOREIGN.iter().map(|row| text_row(&row[..table.columns.len()])).collect();
    Ok(match scene.put_foreign(table, &foreign).await? {
        Scenery::Set => Ok(Stage::open(scene).await?),
        Scenery::Impossible(reason) => Err(Verdict::Untested(reason.into())),
    })
}

pub(super) async fn the_mapping_names_every_column_and_never_changes(scene: &dyn Scene) -> Result<Verdict> {
    let target = scene.holder().await?;
    let people = people();
    let wants = target.wants();
    ensure!(wants.loads_max >= 1, "it takes no load at all");
    let told = |target: &dyn Target| -> Result<_> {
        let formats: Vec<_> =
            people.columns.iter().map(|column| target.snapshot_format(&people, column)).collect();
        Ok((target.wants(), target.mapping(&people)?, formats))
    };
    let before = told(&*target)?;
    let names: Vec<&str> = before.1.iter().map(|column| column.column.as_str()).collect();
    ensure!(names == ["id", "name", "body", "n"], "the columns are {names:?}");
    for (column, mapped) in people.columns.iter().zip(&before.1) {
        ensure!(mapped.source_type == *column.data_type.name, "the source's type is {}", mapped.source_type);
        ensure!(!mapped.target_type.is_empty(), "{} has no type in the target", mapped.column);
    }
    target.open(&task()).await?;
    ensure!(told(&*target)? == before, "it tells something else after it was opened");
    ensure!(told(&*scene.holder().await?)? == before, "another holder tells something else");
    Ok(Verdict::Kept)
}

pub(super) async fn what_prepare_would_do_is_told_and_not_done(scene: &dyn Scene) -> Result<Verdict> {
    let (people, orders) = (people(), orders());
    let stage = Stage::open(scene).await?;
    let plans: Vec<_> = [&people, &orders].map(|table| plan(table, IfTargetExists::Error)).into();
    for _ in 0..2 {
        for finding in stage.target.check(&plans).await? {
            ensure!(finding.outcome != Outcome::Failed, "a check on an empty place failed: {finding:?}");
        }
        ensure!(
            !stage.target.describe(&plans[0]).await?.is_empty(),
            "nothing is told of a table that will be made"
        );
    }
    let progress = stage.progress().await?;
    ensure!(progress.tables.is_empty() && progress.position.is_none(), "looking changed {progress:?}");
    stage.copying(&people, &[ONE]).await?;
    for if_exists in EVERY {
        let plan = plan(&people, if_exists);
        let told = stage.target.describe(&plan).await?;
        ensure!(told.is_empty(), "{if_exists:?}: {told:?} is told of a table that is the task's own");
        for finding in stage.target.check(std::slice::from_ref(&plan)).await? {
            ensure!(finding.outcome != Outcome::Failed, "{if_exists:?}: a check failed: {finding:?}");
        }
        stage.target.prepare(&plan).await.with_context(|| format!("preparing again with {if_exists:?}"))?;
    }
    stage.expect(&people, &[ONE]).await?;
    Ok(Verdict::Kept)
}

/// A look before the start, for the same source table and another place than a task's that has run.
pub(super) async fn what_another_task_does_elsewhere_is_not_told(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let stage = Stage::live(scene, &[(&people, &[ONE])]).await?;
    stage.target.close().await?;
    drop(stage);
    let elsewhere = Arc::new(Table { target_name: TableName::new("public", "persons"), ..(*people).clone() });
    let target = scene.holder().await?;
    let plan = plan(&elsewhere, IfTargetExists::Error);
    ensure!(!target.describe(&plan).await?.is_empty(), "nothing is told of a table that will be made");
    for finding in target.check(std::slice::from_ref(&plan)).await? {
        ensure!(finding.outcome != Outcome::Failed, "a check of a free place failed: {finding:?}");
    }
    target.close().await?;
    Ok(Verdict::Kept)
}

/// Whatever `if_exists` says, what the task has made itself is its own: its rows stay when it is prepared again.
pub(super) async fn preparing_again_changes_nothing(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let mut stage = Stage::live(scene, &[(&people, &[ONE])]).await?;
    for if_exists in EVERY {
        let (next, _) = stage.restart().await?;
        stage = next;
        for _ in 0..2 {
            stage.target.prepare(&plan(&people, if_exists)).await?;
        }
        let progress = stage.progress().await?;
        let known = progress.table(&people.name).context("the table")?;
        ensure!(known.state == TableState::Live, "{if_exists:?}: the state became {:?}", known.state);
        stage.expect(&people, &[ONE]).await?;
    }
    Ok(Verdict::Kept)
}

pub(super) async fn a_table_of_others_is_left_alone_unless_told(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let stage = match beside_foreign(scene, &people).await? {
        Ok(stage) => stage,
        Err(untested) => return Ok(untested),
    };
    let plan = plan(&people, IfTargetExists::Error);
    let found = stage.target.check(std::slice::from_ref(&plan)).await?;
    ensure!(
        found.iter().any(|finding| finding.outcome == Outcome::Failed),
        "a check finds nothing wrong: {found:?}"
    );
    ensure!(stage.target.describe(&plan).await?.is_empty(), "statements are told for a table of others");
    for _ in 0..2 {
        table_broken(stage.target.prepare(&plan).await, &people, "preparing a table of others")?;
    }
    let state = TableState::Broken { code: "a.b".into(), problem: "p".into() };
    stage.target.set_state(&people, state).await?;
    table_broken(stage.target.begin_copy(&people, mark(100)).await, &people, "copying into it")?;
    stage.target.forget(Some(&people.name)).await?;
    table_broken(stage.target.begin_copy(&people, mark(100)).await, &people, "copying into it")?;
    table_broken(stage.target.prepare(&plan).await, &people, "preparing a table of others")?;
    stage.target.forget(None).await?;
    stage.expect(&people, &FOREIGN).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn append_keeps_the_rows_of_others(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = hides_others(scene) {
        return Ok(untested);
    }
    let people = people();
    let mut stage = match beside_foreign(scene, &people).await? {
        Ok(stage) => stage,
        Err(untested) => return Ok(untested),
    };
    let plan = plan(&people, IfTargetExists::Append);
    ensure!(stage.target.describe(&plan).await?.is_empty(), "append would run statements");
    stage.target.prepare(&plan).await?;
    let wanted: &[&[&str]] = &[FOREIGN[0], FOREIGN[1], ONE];
    for cut in [100, 200] {
        // The second time is a copy that a crash has cut off.
        stage.target.begin_copy(&people, mark(cut)).await?;
        stage.expect(&people, &FOREIGN).await?;
        stage.load(&people, 0, &[ONE]).await?;
        let (next, _) = stage.restart().await?;
        stage = next;
        stage.target.prepare(&plan).await?;
        stage.expect(&people, wanted).await?;
    }
    stage.target.set_state(&people, TableState::Live).await?;
    stage.deliver(300, vec![Changes::of(&people).update(&["1", "A", KEPT, "2"])]).await?;
    stage.expect(&people, &[FOREIGN[0], FOREIGN[1], &["1", "A", "b", "2"]]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn truncate_and_replace_take_the_table_over_empty(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let orders =
        Arc::new(Table { columns: people.columns.clone(), key: people.key.clone(), ..(*orders()).clone() });
    let foreign = FOREIGN.map(text_row);
    for table in [&people, &orders] {
        if let Scenery::Impossible(reason) = scene.put_foreign(table, &foreign).await? {
            return Ok(Verdict::Untested(reason.into()));
        }
    }
    let stage = Stage::open(scene).await?;
    for (table, if_exists) in [(&people, IfTargetExists::Truncate), (&orders, IfTargetExists::Replace)] {
        let plan = plan(table, if_exists);
        ensure!(!stage.target.describe(&plan).await?.is_empty(), "{if_exists:?} is not told");
        ensure!(stage.rows(table).await?.len() == 2, "telling about {if_exists:?} has done it");
        for _ in 0..2 {
            stage.target.prepare(&plan).await?;
            stage.expect(table, &[]).await?;
        }
        stage.target.begin_copy(table, mark(100)).await?;
        stage.load(table, 0, &[ONE]).await?;
        stage.target.prepare(&plan).await?;
        stage.expect(table, &[ONE]).await?;
    }
    Ok(Verdict::Kept)
}

pub(super) async fn a_table_of_others_with_other_columns_is_refused(scene: &dyn Scene) -> Result<Verdict> {
    if !scene.has_columns() {
        return Ok(Verdict::Untested("its tables have no columns of their own".into()));
    }
    let people = people();
    let shorter = table("people", &[("id", TypeKind::Int4), ("name", TypeKind::Text)], &[0]);
    let stage = match beside_foreign(scene, &shorter).await? {
        Ok(stage) => stage,
        Err(untested) => return Ok(untested),
    };
    for if_exists in [IfTargetExists::Append, IfTargetExists::Truncate] {
        let plan = plan(&people, if_exists);
        let found = stage.target.check(std::slice::from_ref(&plan)).await?;
        ensure!(
            found.iter().any(|finding| finding.outcome == Outcome::Failed),
            "{if_exists:?}: a check finds nothing wrong: {found:?}"
        );
        table_broken(stage.target.prepare(&plan).await, &people, "preparing a table with other columns")?;
    }
    ensure!(stage.rows(&shorter).await?.len() == 2, "a refused table lost rows");
    stage.target.prepare(&plan(&people, IfTargetExists::Replace)).await?;
    stage.copying(&people, &[ONE]).await?;
    stage.expect(&people, &[ONE]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn two_source_tables_never_share_a_table(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let stage = Stage::live(scene, &[(&people, &[ONE])]).await?;
    let intruder = Arc::new(Table { name: TableName::new("elsewhere", "people"), ..(*people).clone() });
    for if_exists in EVERY {
        let prepared = stage.target.prepare(&plan(&intruder, if_exists)).await;
        table_broken(prepared, &intruder, "preparing another source table for the same one")?;
    }
    stage.expect(&people, &[ONE]).await?;
    Ok(Verdict::Kept)
}

/// What another task holds is left alone; a task that is told to empty or to replace it takes it over, and the other one, which
/// would mix its rows in, does not hold it any more.
pub(super) async fn another_tasks_table_is_taken_over_only_when_told(scene: &dyn Scene) -> Result<Verdict> {
    let (people, orders) = (people(), orders());
    let stage = Stage::live(scene, &[(&people, &[ONE]), (&orders, &[&["1", "x"]])]).await?;
    let other = scene.holder().await?;
    other.open(&TaskId::new("other")).await?;
    for if_exists in [IfTargetExists::Error, IfTargetExists::Append] {
        let plan = plan(&people, if_exists);
        table_broken(other.prepare(&plan).await, &people, "preparing another task's table")?;
        let found = other.check(std::slice::from_ref(&plan)).await?;
        ensure!(
            found.iter().any(|finding| finding.outcome == Outcome::Failed),
            "{if_exists:?}: a check finds nothing wrong: {found:?}"
        );
    }
    stage.expect(&people, &[ONE]).await?;
    for (table, if_exists) in [(&people, IfTargetExists::Replace), (&orders, IfTargetExists::Truncate)] {
        other.prepare(&plan(table, if_exists)).await?;
        stage.expect(table, &[]).await?;
        let progress = stage.progress().await?;
        ensure!(progress.table(&table.name).is_none(), "two tasks hold {}: {progress:?}", table.name);
        let again = stage.target.prepare(&plan(table, IfTargetExists::Error)).await;
        table_broken(again, table, "preparing a table that another task took over")?;
        other.begin_copy(table, mark(900)).await?;
    }
    Ok(Verdict::Kept)
}

/// A table goes where its `target_name` says, and is known by its name in the source.
pub(super) async fn a_table_is_written_under_its_target_name(scene: &dyn Scene) -> Result<Verdict> {
    let renamed =
        Arc::new(Table { target_name: TableName::new("landing", "persons"), ..(*people()).clone() });
    let stage = Stage::live(scene, &[(&renamed, &[ONE])]).await?;
    stage.deliver(200, vec![Changes::of(&renamed).update(&["1", "A", KEPT, "2"])]).await?;
    let (stage, progress) = stage.restart().await?;
    ensure!(progress.table(&renamed.name).is_some(), "{progress:?}");
    stage.expect(&renamed, &[&["1", "A", "b", "2"]]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn a_table_that_is_gone_is_its_own_error(scene: &dyn Scene) -> Result<Verdict> {
    let (people, orders) = (people(), orders());
    let stage = Stage::live(scene, &[(&people, &[ONE]), (&orders, &[])]).await?;
    stage.target.close().await?;
    drop(stage);
    if let Scenery::Impossible(reason) = scene.remove_table(&people).await? {
        return Ok(Verdict::Untested(reason.into()));
    }
    let stage = Stage::open(scene).await?;
    let good = || Changes::of(&orders).insert(&["1", "x"]);
    let changes = vec![good(), Changes::of(&people).insert(&["2", "a", "b", "1"])];
    table_broken(stage.apply(200, changes).await?, &people, "applying to a table that is gone")?;
    stage.expect(&orders, &[]).await?;
    stage.expect_position(100).await?;
    stage.deliver(200, vec![good()]).await?;
    stage.expect(&orders, &[&["1", "x"]]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn rows_are_shown_in_the_order_of_their_keys_text(scene: &dyn Scene) -> Result<Verdict> {
    let columns = [("v", TypeKind::Text), ("k", TypeKind::Text)];
    let words = Arc::new(table("words", &columns, &[1]));
    let rows_there: &[&[&str]] =
        &[&["1", "b"], &["2", "Z"], &["3", "é"], &["4", ""], &["5", "a"], &["6", "10"], &["7", "9"]];
    let stage = Stage::live(scene, &[(&words, rows_there)]).await?;
    let sorted = ["4", "6", "7", "2", "5", "1", "3"];
    for limit in [None, Some(3), Some(0), Some(100)] {
        let found = rows(&*stage.target, &words, limit).await?;
        let found: Vec<&str> = found.iter().filter_map(|row| row[0].as_deref()).collect();
        let wanted = &sorted[..limit.map_or(7, |limit: u64| limit.min(7) as usize)];
        ensure!(found == wanted, "with a limit of {limit:?} the rows are {found:?}, not {wanted:?}");
    }
    let mut calls = 0;
    let mut each = |_| {
        calls += 1;
        Err(pgferry_model::Error::task_broken(pgferry_pipeline::error::ROW_MALFORMED, "enough"))
    };
    let stopped = stage.target.inspect().rows(&words, None, &mut each).await;
    ensure!(stopped.is_err(), "the reader's error is lost");
    ensure!(calls == 1, "reading went on after the reader's error");
    Ok(Verdict::Kept)
}

/// A change of columns is done whole, or refused as the table's own error with everything as it was.
pub(super) async fn a_change_of_columns_is_done_or_refused(scene: &dyn Scene) -> Result<Verdict> {
    let (before, orders) = (people(), orders());
    let stage = Stage::live(scene, &[(&before, &[ONE]), (&orders, &[&["1", "x"]])]).await?;
    let mut columns = before.columns.clone();
    columns.remove(2);
    columns.push(pgferry_model::Column {
        name: "added".into(),
        data_type: data_type("text", TypeKind::Text),
        nullable: true,
    });
    let after = Arc::new(Table { columns, ..(*before).clone() });
    let change = SchemaChange { before: Arc::clone(&before), after: Arc::clone(&after) };
    let first = stage.target.evolve(&change).await;
    let done = first.is_ok();
    if done {
        stage.target.evolve(&change).await.context("the same change again")?;
        stage.expect(&after, &[&["1", "a", "1", NULL]]).await?;
        let row = &["2", "b", "2", "new"];
        stage.deliver(200, vec![Changes::of(&after).insert(row).update(&["1", KEPT, KEPT, "x"])]).await?;
        stage.expect(&after, &[&["1", "a", "1", "x"], row]).await?;
    } else {
        table_broken(first, &before, "a change of columns")?;
        table_broken(stage.target.evolve(&change).await, &before, "a change of columns, again")?;
        stage.expect(&before, &[ONE]).await?;
        stage.deliver(200, vec![Changes::of(&before).insert(&["2", "b", "b", "2"])]).await?;
        stage.expect(&before, &[ONE, &["2", "b", "b", "2"]]).await?;
    }
    stage.expect(&orders, &[&["1", "x"]]).await?;
    stage.expect_position(200).await?;
    let refused = "it refuses changes of columns, which leaves everything as it was";
    Ok(if done { Verdict::Kept } else { Verdict::Untested(refused.into()) })
}

/// Names with quotes, blanks, other scripts and words of SQL, in tables and columns.
pub(super) async fn odd_names_are_carried(scene: &dyn Scene) -> Result<Verdict> {
    let columns = [
        ("sélect \"x\"", TypeKind::Int4),
        ("from", TypeKind::Text),
        ("a'b;--", TypeKind::Text),
        (" ", TypeKind::Text),
    ];
    let name = TableName::new("the \"schema\"", "we \"quote\" é 表; DROP");
    let odd = table("odd", &columns, &[0]);
    let odd = Arc::new(Table { name: name.clone(), target_name: name, ..odd });
    let stage = Stage::live(scene, &[(&odd, &[&["1", "a", "b", "c"], &["2", "a", "b", "c"]])]).await?;
    stage.target.mapping(&odd)?;
    let changes =
        Changes::of(&odd).update(&["1", KEPT, "B", KEPT]).delete(&["2"]).insert(&["3", "", "'", "\""]);
    stage.deliver(200, vec![changes]).await?;
    let (stage, progress) = stage.restart().await?;
    ensure!(progress.table(&odd.name).is_some(), "{progress:?}");
    stage.expect(&odd, &[&["1", "a", "B", "c"], &["3", "", "'", "\""]]).await?;
    load(&*stage.target, 9, snapshot_rows(&odd, &[&["4", "d", "d", "d"]])).await?;
    ensure!(stage.rows(&odd).await?.len() == 3, "a chunk of a table with an odd name is lost");
    stage.target.begin_copy(&odd, mark(300)).await?;
    stage.target.forget(Some(&odd.name)).await?;
    Ok(Verdict::Kept)
}
