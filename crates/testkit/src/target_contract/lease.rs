//! Who may write, and what a restarted process finds: open, epochs, identity, states, close.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgferry_model::{Progress, Slice, SourceIdentity, TableState, TaskId, TypeKind};
use pgferry_pipeline::{IfTargetExists, Receipt, SchemaChange};

use super::stage::{
    Changes, Stage, at, chunk, delivery_refused, load, mark, not_atomic, orders, people, plan, refused, rows,
    snapshot_rows, table, task,
};
use super::{Scene, Verdict};

fn identity() -> SourceIdentity {
    SourceIdentity { system_id: "77".into(), timeline: 3, database: "d \"ä".into(), slot: "s_1".into() }
}

/// What is held but for the epoch, its lists in one order.
fn held(mut progress: Progress) -> Progress {
    progress.epoch = 0;
    progress.tables.sort_by(|left, right| left.name.cmp(&right.name));
    for table in &mut progress.tables {
        table.chunks_done.sort_unstable();
    }
    progress
}

pub(super) async fn a_new_place_holds_nothing_and_has_epoch_one(scene: &dyn Scene) -> Result<Verdict> {
    let target = scene.holder().await?;
    let progress = target.open(&task()).await?;
    ensure!(progress == Progress { epoch: 1, ..Progress::default() }, "a new place holds {progress:?}");
    Ok(Verdict::Kept)
}

pub(super) async fn open_raises_the_epoch_and_changes_nothing_else(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let stage = Stage::live(scene, &[(&people, &[&["1", "a", "b", "1"]])]).await?;
    stage.target.identify(&identity()).await?;
    let first = stage.progress().await?;
    let second = stage.progress().await?;
    let (stage, third) = stage.restart().await?;
    let epochs = [first.epoch, second.epoch, third.epoch];
    ensure!(epochs == [2, 3, 4], "the epochs are {epochs:?}");
    ensure!(held(first.clone()) == held(second), "opening again tells something else");
    ensure!(held(first) == held(third), "a restarted process is told something else");
    stage.expect(&people, &[&["1", "a", "b", "1"]]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn looking_tells_what_is_held_and_takes_no_lease(scene: &dyn Scene) -> Result<Verdict> {
    let looker = scene.holder().await?;
    ensure!(looker.held(&task()).await?.is_none(), "a new place is said to hold the task");
    looker.close().await?;
    let people = people();
    let stage = Stage::live(scene, &[(&people, &[&["1", "a", "b", "1"]])]).await?;
    stage.target.identify(&identity()).await?;
    let opened = stage.progress().await?;
    let looker = scene.holder().await?;
    for _ in 0..2 {
        let looked = looker.held(&task()).await?.context("the task is not seen")?;
        ensure!(looked.epoch == opened.epoch, "looking raised the epoch to {}", looked.epoch);
        ensure!(
            held(looked.clone()) == held(opened.clone()),
            "{looked:?} is not what was opened: {opened:?}"
        );
    }
    ensure!(looker.held(&TaskId::new("nobody")).await?.is_none(), "a task that is not there is seen");
    stage.target.set_state(&people, TableState::Paused).await.context("the holder's write after a look")?;
    Ok(Verdict::Kept)
}

pub(super) async fn an_older_holder_writes_nothing(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let (people, orders) = (people(), orders());
    let stage = Stage::live(scene, &[(&people, &[&["1", "a", "b", "1"]])]).await?;
    let newer = scene.holder().await?;
    let before = held(newer.open(&task()).await?);
    let old = &stage.target;
    refused(old.identify(&identity()).await, "identify")?;
    refused(old.prepare(&plan(&orders, IfTargetExists::Error)).await, "prepare")?;
    refused(old.begin_copy(&people, mark(300)).await, "begin_copy")?;
    refused(stage.load(&people, 7, &[&["9", "x", "x", "9"]]).await, "load")?;
    refused(old.set_state(&people, TableState::Paused).await, "set_state")?;
    refused(old.forget(Some(&people.name)).await, "forget of a table")?;
    refused(old.forget(None).await, "forget of everything")?;
    delivery_refused(&stage, 200, vec![Changes::of(&people).delete(&["1"])]).await?;
    delivery_refused(&stage, 300, Vec::new()).await?;
    let shorter = Arc::new(table("people", &[("id", TypeKind::Int4)], &[0]));
    let change = SchemaChange { before: Arc::clone(&people), after: shorter };
    ensure!(old.evolve(&change).await.is_err(), "an older holder's evolve was not refused");
    let after = held(newer.open(&task()).await?);
    ensure!(before == after, "an older holder changed {before:?} to {after:?}");
    let found = rows(&*newer, &people, None).await?;
    ensure!(found.len() == 1 && found[0].len() == 4, "an older holder changed the rows: {found:?}");
    // Its end does not disturb the newer one, and opening makes it the newest.
    old.discard().await?;
    old.close().await?;
    newer.set_state(&people, TableState::Paused).await.context("the newer holder's write")?;
    stage.target.open(&task()).await?;
    stage.target.set_state(&people, TableState::Live).await.context("a write of the newest again")?;
    refused(newer.set_state(&people, TableState::Paused).await, "set_state")?;
    let unopened = scene.holder().await?;
    ensure!(
        unopened.set_state(&people, TableState::Paused).await.is_err(),
        "a handle writes that was not opened"
    );
    Ok(Verdict::Kept)
}

pub(super) async fn a_load_begun_before_the_takeover_is_refused(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let people = people();
    let stage = Stage::open(scene).await?;
    stage.copying(&people, &[]).await?;
    let newer = scene.holder().await?;
    let (rows_of_chunk, sender) = chunk(&people, 1);
    let batch = snapshot_rows(&people, &[&["5", "a", "b", "1"]]);
    let takeover = async {
        // The loader may have given up already; then the refusal is the earlier one.
        let sent = sender.send(batch).await;
        let opened = newer.open(&task()).await;
        if sent.is_ok() {
            let _ = sender.end(1).await;
        }
        opened
    };
    let (loaded, opened) = tokio::join!(stage.target.load(rows_of_chunk), takeover);
    opened?;
    refused(loaded, "load that was under way")?;
    let progress = newer.open(&task()).await?;
    let chunks = progress.table(&people.name).map(|known| known.chunks_done.clone());
    ensure!(chunks == Some(vec![0]), "the chunks done are {chunks:?}");
    let found = rows(&*newer, &people, None).await?;
    ensure!(found.is_empty(), "the older holder's rows are there: {found:?}");
    Ok(Verdict::Kept)
}

/// Another process opens while a delivery is being written: it finds the delivery whole, or it is refused.
pub(super) async fn a_delivery_under_way_at_the_takeover_is_whole_or_refused(
    scene: &dyn Scene,
) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let people = people();
    drop(Stage::live(scene, &[(&people, &[])]).await?);
    let mut rows_there = 0;
    for number in 0..24u64 {
        let (id, through) = ((number + 1).to_string(), 200 + number * 100);
        let insert = || vec![Changes::of(&people).insert(&[&id, "a", "b", "1"])];
        let stage = Stage::open(scene).await?;
        let delivery = stage.delivery(through - 100, through, Slice::Whole, insert())?;
        let target = Arc::clone(&stage.target);
        let applying = tokio::spawn(async move { target.apply(delivery).await });
        tokio::time::sleep(Duration::from_micros(number * 400)).await;
        let newer = scene.holder().await?;
        let found = newer.open(&task()).await.context("opening while a delivery is under way")?;
        let there = found.position >= Some(at(through));
        match applying.await? {
            Ok(Receipt::Durable(_)) => ensure!(there, "a durable delivery is not found by the next holder"),
            Ok(Receipt::Accepted) => {}
            Err(failure) => {
                ensure!(!there, "a delivery that failed is there: {failure}");
                refused::<()>(Err(failure), "delivery that was under way")?;
            }
        }
        rows_there += u64::from(there);
        delivery_refused(&stage, through + 50, Vec::new()).await?;
        let position = newer.open(&task()).await?.position;
        ensure!(position == found.position, "the position moved after the takeover, to {position:?}");
        let count = newer.inspect().count(&people).await?;
        ensure!(count == rows_there, "{count} rows, not {rows_there}");
    }
    Ok(Verdict::Kept)
}

pub(super) async fn slices_begun_before_the_takeover_are_refused(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let people = people();
    let stage = Stage::live(scene, &[(&people, &[])]).await?;
    if !stage.target.wants().slices {
        return Ok(Verdict::Untested("it takes no slices".into()));
    }
    let insert = |id| vec![Changes::of(&people).insert(&[id, "a", "b", "1"])];
    stage.target.apply(stage.delivery(100, 100, Slice::Part, insert("1"))?).await?;
    let newer = scene.holder().await?;
    newer.open(&task()).await?;
    refused(stage.target.apply(stage.delivery(100, 200, Slice::Last, insert("2"))?).await, "last slice")?;
    let progress = newer.open(&task()).await?;
    ensure!(progress.position == Some(at(100)), "the position is {:?}", progress.position);
    let found = rows(&*newer, &people, None).await?;
    ensure!(found.is_empty(), "slices of an older holder are there: {found:?}");
    Ok(Verdict::Kept)
}

pub(super) async fn tasks_of_one_place_do_not_disturb_each_other(scene: &dyn Scene) -> Result<Verdict> {
    let (people, orders) = (people(), orders());
    let stage = Stage::live(scene, &[(&people, &[&["1", "a", "b", "1"]])]).await?;
    let (other, name) = (scene.holder().await?, TaskId::new("other-1"));
    let progress = other.open(&name).await?;
    ensure!(progress == Progress { epoch: 1, ..Progress::default() }, "another task finds {progress:?}");
    other.prepare(&plan(&orders, IfTargetExists::Error)).await?;
    other.begin_copy(&orders, mark(700)).await?;
    load(&*other, 0, snapshot_rows(&orders, &[&["8", "x"]])).await?;
    stage.deliver(200, vec![Changes::of(&people).insert(&["2", "a", "b", "1"])]).await?;
    // One table takes the rows of one source table, also of another task.
    let twice = other.prepare(&plan(&people, IfTargetExists::Append)).await;
    ensure!(twice.is_err(), "two tasks write to one table");
    stage.target.forget(None).await?;
    let progress = other.open(&name).await?;
    let known = progress.table(&orders.name).context("the other task's table")?;
    ensure!(
        (progress.epoch, progress.position, known.chunks_done.as_slice()) == (2, Some(at(700)), &[0]),
        "the other task is now at {progress:?}"
    );
    ensure!(rows(&*other, &orders, None).await?.len() == 1, "the other task's rows changed");
    ensure!(stage.rows(&people).await?.len() == 2, "the task's own rows changed");
    Ok(Verdict::Kept)
}

pub(super) async fn the_source_of_positions_is_kept(scene: &dyn Scene) -> Result<Verdict> {
    let stage = Stage::open(scene).await?;
    for _ in 0..2 {
        stage.target.identify(&identity()).await?;
    }
    let (_stage, progress) = stage.restart().await?;
    ensure!(progress.source == Some(identity()), "the source is {:?}", progress.source);
    ensure!(progress.position.is_none(), "a position out of nothing: {:?}", progress.position);
    Ok(Verdict::Kept)
}

pub(super) async fn every_state_of_a_table_survives(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let mut stage = Stage::open(scene).await?;
    stage.copying(&people, &[&["1", "a", "b", "1"]]).await?;
    let problem = "it's \"odd\" — a\nline, ; \\";
    for state in [
        TableState::Copied,
        TableState::CatchingUp,
        TableState::Live,
        TableState::Paused,
        TableState::Broken { code: "a.b".into(), problem: problem.into() },
        TableState::Live,
    ] {
        for _ in 0..2 {
            stage.target.set_state(&people, state.clone()).await?;
        }
        let (next, progress) = stage.restart().await?;
        stage = next;
        let known = progress.table(&people.name).context("the table")?;
        ensure!(known.state == state, "{state:?} was stored, {:?} came back", known.state);
        ensure!(known.cut == Some(at(100)), "the cut became {:?}", known.cut);
    }
    stage.expect(&people, &[&["1", "a", "b", "1"]]).await?;
    Ok(Verdict::Kept)
}

/// A table that cannot be prepared is set aside all the same, so that no later start copies it unasked.
pub(super) async fn a_table_can_be_set_aside_before_it_is_prepared(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let stage = Stage::open(scene).await?;
    let state = TableState::Broken { code: "a.b".into(), problem: "p".into() };
    stage.target.set_state(&people, state.clone()).await?;
    let (_stage, progress) = stage.restart().await?;
    let found = progress.table(&people.name).map(|known| known.state.clone());
    ensure!(found == Some(state), "the state is {found:?}");
    Ok(Verdict::Kept)
}

pub(super) async fn close_makes_everything_durable_and_lets_go(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let stage = Stage::live(scene, &[(&people, &[&["1", "a", "b", "1"]])]).await?;
    let receipt = stage.apply(200, vec![Changes::of(&people).insert(&["2", "a", "b", "1"])]).await?;
    receipt.context("apply")?;
    stage.target.close().await?;
    let next = scene.holder().await?;
    let progress = next.open(&task()).await?;
    ensure!(progress.position == Some(at(200)), "the position is {:?}", progress.position);
    ensure!(rows(&*next, &people, None).await?.len() == 2, "rows are missing after a close");
    next.close().await?;
    next.close().await.context("closing again")?;
    let never_opened = scene.holder().await?;
    never_opened.close().await.context("closing what was not opened")?;
    Ok(Verdict::Kept)
}

pub(super) async fn close_works_after_an_error(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let stage = Stage::live(scene, &[(&people, &[&["1", "a", "b", "1"]])]).await?;
    let (rows_of_chunk, sender) = chunk(&people, 1);
    drop(sender);
    ensure!(stage.target.load(rows_of_chunk).await.is_err(), "rows without an end mark were loaded");
    let unknown = Arc::new(table("never_prepared", &[("id", TypeKind::Int4)], &[0]));
    ensure!(
        stage.apply(200, vec![Changes::of(&unknown).insert(&["1"])]).await?.is_err(),
        "changes were applied to a table that is not there"
    );
    stage.target.close().await?;
    let next = Stage::open(scene).await?;
    next.expect_position(100).await?;
    next.expect(&people, &[&["1", "a", "b", "1"]]).await?;
    Ok(Verdict::Kept)
}
