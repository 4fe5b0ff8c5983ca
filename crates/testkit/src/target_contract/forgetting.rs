//! Copying again: what `forget` forgets, and what stays until the next `prepare` or the next copy.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pgferry_model::{SourceIdentity, Table, TableState, TypeKind};
use pgferry_pipeline::IfTargetExists;

use super::stage::{Changes, Stage, at, mark, orders, people, plan, table, table_broken, text_row};
use super::tables::hides_others;
use super::{Scene, Scenery, Verdict};

const ONE: &[&str] = &["1", "a", "b", "1"];
const TWO: &[&str] = &["2", "c", "d", "2"];

fn forgotten(progress: &pgferry_model::Progress, table: &Table) -> Result<()> {
    let known = progress.table(&table.name).context("a forgotten table is still known")?;
    ensure!(
        (&known.state, known.cut, known.chunks_done.len()) == (&TableState::Waiting, None, 0),
        "a forgotten table is {known:?}"
    );
    Ok(())
}

pub(super) async fn forgetting_a_table_leaves_its_rows_and_the_others(scene: &dyn Scene) -> Result<Verdict> {
    let (people, orders) = (people(), orders());
    let stage = Stage::live(scene, &[(&people, &[ONE]), (&orders, &[&["1", "x"]])]).await?;
    let state = TableState::Broken { code: "a.b".into(), problem: "p".into() };
    stage.target.set_state(&people, state).await?;
    for _ in 0..2 {
        stage.target.forget(Some(&people.name)).await?;
    }
    let (stage, progress) = stage.restart().await?;
    forgotten(&progress, &people)?;
    ensure!(progress.position == Some(at(100)), "the position became {:?}", progress.position);
    let other = progress.table(&orders.name).context("the other table")?;
    ensure!((&other.state, other.cut) == (&TableState::Live, Some(at(100))), "the other is {other:?}");
    stage.expect(&people, &[ONE]).await?;
    stage.target.prepare(&plan(&people, IfTargetExists::Error)).await?;
    stage.target.begin_copy(&people, mark(300)).await?;
    stage.expect(&people, &[]).await?;
    stage.load(&people, 0, &[TWO]).await?;
    stage.target.set_state(&people, TableState::Live).await?;
    let changes = vec![Changes::of(&people).insert(ONE), Changes::of(&orders).insert(&["2", "y"])];
    stage.deliver(400, changes).await?;
    stage.expect(&people, &[ONE, TWO]).await?;
    stage.expect(&orders, &[&["1", "x"], &["2", "y"]]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn forgetting_everything_forgets_the_position(scene: &dyn Scene) -> Result<Verdict> {
    let (people, orders) = (people(), orders());
    let stage = Stage::live(scene, &[(&people, &[ONE]), (&orders, &[&["1", "x"]])]).await?;
    let identity =
        SourceIdentity { system_id: "1".into(), timeline: 1, database: "d".into(), slot: "s".into() };
    stage.target.identify(&identity).await?;
    stage.deliver(900, Vec::new()).await?;
    for _ in 0..2 {
        stage.target.forget(None).await?;
    }
    let (stage, progress) = stage.restart().await?;
    ensure!(progress.position.is_none() && progress.source.is_none(), "{progress:?} is still held");
    forgotten(&progress, &people)?;
    forgotten(&progress, &orders)?;
    stage.expect(&people, &[ONE]).await?;
    // The next life may begin at an earlier position, of another cluster.
    stage.target.identify(&identity).await?;
    stage.copying(&people, &[TWO]).await?;
    stage.copying(&orders, &[]).await?;
    stage.target.set_state(&people, TableState::Live).await?;
    let receipt = stage.apply(150, vec![Changes::of(&people).insert(ONE)]).await??;
    stage.settle(150, receipt).await?;
    stage.expect_position(150).await?;
    stage.expect(&people, &[ONE, TWO]).await?;
    stage.expect(&orders, &[]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn a_forgotten_table_is_made_anew_with_other_columns(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let stage = Stage::live(scene, &[(&people, &[ONE])]).await?;
    let other = Arc::new(table("people", &[("key", TypeKind::Int8), ("v", TypeKind::Text)], &[0]));
    let prepared = stage.target.prepare(&plan(&other, IfTargetExists::Error)).await;
    table_broken(prepared, &other, "preparing a live table with other columns")?;
    stage.expect(&people, &[ONE]).await?;
    stage.target.forget(Some(&people.name)).await?;
    for _ in 0..2 {
        stage.target.prepare(&plan(&other, IfTargetExists::Error)).await?;
    }
    stage.target.begin_copy(&other, mark(300)).await?;
    stage.load(&other, 0, &[&["5", "x"]]).await?;
    stage.expect(&other, &[&["5", "x"]]).await?;
    stage.target.set_state(&other, TableState::Live).await?;
    stage.deliver(400, vec![Changes::of(&other).insert(&["6", "y"])]).await?;
    stage.expect(&other, &[&["5", "x"], &["6", "y"]]).await?;
    Ok(Verdict::Kept)
}

/// Rows from before the task: kept through a resync, or the resync is refused and nothing of it done.
pub(super) async fn forgetting_never_costs_the_rows_of_others(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = hides_others(scene) {
        return Ok(untested);
    }
    let people = people();
    let foreign: [&[&str]; 1] = [&["-1", "was", "here", "7"]];
    if let Scenery::Impossible(reason) = scene.put_foreign(&people, &foreign.map(text_row)).await? {
        return Ok(Verdict::Untested(reason.into()));
    }
    let stage = Stage::open(scene).await?;
    stage.target.prepare(&plan(&people, IfTargetExists::Append)).await?;
    // Before the first copy there is nothing to be told apart.
    for table in [Some(&people.name), None] {
        stage.target.forget(table).await?;
        stage.target.prepare(&plan(&people, IfTargetExists::Append)).await?;
    }
    stage.target.begin_copy(&people, mark(100)).await?;
    stage.expect(&people, &foreign).await?;
    stage.load(&people, 0, &[ONE]).await?;
    for table in [Some(&people.name), None] {
        let before = stage.progress().await?;
        match stage.target.forget(table).await {
            Ok(()) => {
                stage.target.prepare(&plan(&people, IfTargetExists::Append)).await?;
                stage.target.begin_copy(&people, mark(200)).await?;
                stage.expect(&people, &foreign).await?;
                stage.load(&people, 0, &[ONE]).await?;
            }
            Err(failure) => {
                table_broken::<()>(Err(failure), &people, "forgetting")?;
                let after = stage.progress().await?;
                ensure!(before.tables == after.tables, "a refused forget changed {after:?}");
                ensure!(before.position == after.position, "a refused forget changed the position");
            }
        }
        stage.expect(&people, &[foreign[0], ONE]).await?;
    }
    Ok(Verdict::Kept)
}
