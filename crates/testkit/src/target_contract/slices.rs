//! Slices of one large transaction: invisible until the last, then there together, or never.

use std::sync::Arc;

use anyhow::{Result, ensure};
use pgferry_model::{Slice, Table, TableState};
use pgferry_pipeline::Receipt;

use super::stage::{Changes, KEPT, Stage, at, not_atomic, orders, people, table_broken};
use super::{Scene, Verdict};

const ONE: &[&str] = &["1", "a", "one", "1"];
const TWO: &[&str] = &["2", "b", "two", "2"];

/// `None`: the target takes no slices.
async fn sliced(scene: &dyn Scene) -> Result<Option<(Stage<'_>, Arc<Table>, Arc<Table>)>> {
    let (people, orders) = (people(), orders());
    let stage = Stage::live(scene, &[(&people, &[ONE, TWO]), (&orders, &[])]).await?;
    Ok(stage.target.wants().slices.then_some((stage, people, orders)))
}

fn untested() -> Result<Verdict> {
    Ok(Verdict::Untested("it takes no slices, and the engine makes none for it".into()))
}

impl Stage<'_> {
    async fn part(&self, changes: Vec<Changes>) -> Result<()> {
        let receipt = self.target.apply(self.delivery(100, 100, Slice::Part, changes)?).await?;
        ensure!(receipt == Receipt::Accepted, "a part was answered with {receipt:?}");
        Ok(())
    }

    async fn last(&self, through: u64, changes: Vec<Changes>) -> Result<()> {
        let receipt = self.target.apply(self.delivery(100, through, Slice::Last, changes)?).await?;
        self.settle(through, receipt).await
    }
}

fn insert(people: &Arc<Table>, id: &str) -> Vec<Changes> {
    vec![Changes::of(people).insert(&[id, "x", "x", "0"])]
}

pub(super) async fn slices_become_visible_together(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let Some((stage, people, orders)) = sliced(scene).await? else { return untested() };
    let first = Changes::of(&people).insert(&["4", "d", "four", "4"]).update(&["1", "A", KEPT, "1"]);
    stage.part(vec![first]).await?;
    stage.part(vec![Changes::of(&orders).insert(&["1", "x"])]).await?;
    let third = Changes::of(&people).update(&["4", "D", KEPT, "44"]).delete(&["2"]);
    stage.part(vec![third, Changes::of(&orders).truncate().insert(&["2", "y"])]).await?;
    stage.expect(&people, &[ONE, TWO]).await?;
    stage.expect(&orders, &[]).await?;
    // A state can be stored while slices are kept, and stays.
    stage.target.set_state(&people, TableState::CatchingUp).await?;
    stage.last(200, vec![Changes::of(&people).moved(&["4"], &["5", "E", KEPT, "5"])]).await?;
    let (stage, progress) = stage.restart().await?;
    stage.expect(&people, &[&["1", "A", "one", "1"], &["5", "E", "four", "5"]]).await?;
    stage.expect(&orders, &[&["2", "y"]]).await?;
    ensure!(progress.position >= Some(at(200)), "the position is {:?}", progress.position);
    let state = progress.table(&people.name).map(|known| known.state.clone());
    ensure!(state == Some(TableState::CatchingUp), "the state stored meanwhile became {state:?}");
    Ok(Verdict::Kept)
}

pub(super) async fn an_empty_last_slice_commits_what_is_kept(scene: &dyn Scene) -> Result<Verdict> {
    let Some((stage, people, _)) = sliced(scene).await? else { return untested() };
    stage.part(insert(&people, "3")).await?;
    stage.last(200, Vec::new()).await?;
    stage.expect(&people, &[ONE, TWO, &["3", "x", "x", "0"]]).await?;
    stage.expect_position(200).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn discard_drops_what_is_kept(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let Some((stage, people, _)) = sliced(scene).await? else { return untested() };
    stage.target.discard().await?;
    stage.part(insert(&people, "3")).await?;
    stage.target.discard().await?;
    stage.target.discard().await?;
    stage.expect(&people, &[ONE, TWO]).await?;
    // The same transaction again, cut otherwise, leaves the same; what was dropped is not part of it.
    stage.part(insert(&people, "4")).await?;
    stage.part(insert(&people, "5")).await?;
    stage.last(200, insert(&people, "6")).await?;
    let wanted: &[&[&str]] = &[ONE, TWO, &["4", "x", "x", "0"], &["5", "x", "x", "0"], &["6", "x", "x", "0"]];
    stage.expect(&people, wanted).await?;
    stage.target.discard().await?;
    stage.expect(&people, wanted).await?;
    stage.expect_position(200).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn a_whole_delivery_drops_what_is_kept(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let Some((stage, people, _)) = sliced(scene).await? else { return untested() };
    stage.part(insert(&people, "3")).await?;
    stage.deliver(150, insert(&people, "6")).await?;
    stage.expect(&people, &[ONE, TWO, &["6", "x", "x", "0"]]).await?;
    // Also one that is not applied itself.
    stage.part(insert(&people, "3")).await?;
    stage.target.apply(stage.delivery(0, 100, Slice::Whole, Vec::new())?).await?;
    stage.part(insert(&people, "7")).await?;
    stage.last(900, Vec::new()).await?;
    stage.expect(&people, &[ONE, TWO, &["6", "x", "x", "0"], &["7", "x", "x", "0"]]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn kept_slices_die_with_their_holder(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let Some((stage, people, _)) = sliced(scene).await? else { return untested() };
    stage.part(insert(&people, "3")).await?;
    let position = stage.progress().await?.position;
    ensure!(position == Some(at(100)), "opening again finds {position:?}");
    stage.part(insert(&people, "4")).await?;
    let (stage, progress) = stage.restart().await?;
    ensure!(progress.position == Some(at(100)), "a restart finds {:?}", progress.position);
    stage.part(insert(&people, "5")).await?;
    stage.target.close().await?;
    stage.target.open(&super::stage::task()).await?;
    stage.part(insert(&people, "6")).await?;
    stage.last(200, Vec::new()).await?;
    stage.expect(&people, &[ONE, TWO, &["6", "x", "x", "0"]]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn a_last_slice_at_or_before_the_position_changes_nothing(
    scene: &dyn Scene,
) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let Some((stage, people, _)) = sliced(scene).await? else { return untested() };
    stage.deliver(300, Vec::new()).await?;
    let stored = stage.progress().await?.position;
    for through in [200, 300] {
        let part = stage.delivery(100, 100, Slice::Part, insert(&people, "3"))?;
        stage.target.apply(part).await?;
        let last = stage.delivery(100, through, Slice::Last, insert(&people, "4"))?;
        let receipt = stage.target.apply(last).await?;
        ensure!(Some(receipt) == stored.map(Receipt::Durable), "through {through}: {receipt:?}");
        stage.expect(&people, &[ONE, TWO]).await?;
        stage.expect_position(300).await?;
    }
    // Nothing of it is left to join the next.
    stage.part(insert(&people, "5")).await?;
    stage.last(400, Vec::new()).await?;
    stage.expect(&people, &[ONE, TWO, &["5", "x", "x", "0"]]).await?;
    Ok(Verdict::Kept)
}

/// After an error in a slice the rest of its transaction is not written without its beginning.
pub(super) async fn a_broken_slice_takes_its_whole_transaction_along(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let Some((stage, people, _)) = sliced(scene).await? else { return untested() };
    let Some((kind, value)) = scene.misfit() else {
        return Ok(Verdict::Untested("every value of every type fits".into()));
    };
    let columns = [("id", pgferry_model::TypeKind::Int4), ("v", kind)];
    let odd = Arc::new(Table { id: pgferry_model::TableId(2), ..super::stage::table("odd", &columns, &[0]) });
    stage.copying(&odd, &[]).await?;
    stage.target.set_state(&odd, TableState::Live).await?;
    for broken_last in [false, true] {
        stage.part(insert(&people, "3")).await?;
        let slice = if broken_last { Slice::Last } else { Slice::Part };
        let misfit = stage.delivery(100, 200, slice, vec![Changes::of(&odd).insert(&["1", value])])?;
        table_broken(stage.target.apply(misfit).await, &odd, "a slice with a misfit")?;
        let rest = stage.delivery(100, 200, Slice::Last, insert(&people, "4"))?;
        ensure!(stage.target.apply(rest).await.is_err(), "the end of a broken transaction was written");
        stage.expect(&people, &[ONE, TWO]).await?;
        stage.target.discard().await?;
    }
    stage.part(insert(&people, "3")).await?;
    stage.last(200, insert(&people, "4")).await?;
    stage.expect(&people, &[ONE, TWO, &["3", "x", "x", "0"], &["4", "x", "x", "0"]]).await?;
    Ok(Verdict::Kept)
}
