//! Deliveries: what becomes of rows, what stays as it is, and the position that goes with them.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pgferry_model::{Slice, Table, TableId, TableState, TypeKind};
use pgferry_pipeline::{DeletePolicy, IfTargetExists, Receipt};

use super::stage::{
    Changes, KEPT, NULL, Stage, at, mark, not_atomic, orders, people, plan, table, table_broken,
};
use super::{Scene, Verdict};

const ONE: &[&str] = &["1", "a", "one", "1"];
const TWO: &[&str] = &["2", "b", "two", "2"];
const THREE: &[&str] = &["3", "c", "three", "3"];

async fn three(scene: &dyn Scene) -> Result<(Stage<'_>, Arc<Table>)> {
    let people = people();
    Ok((Stage::live(scene, &[(&people, &[ONE, TWO, THREE])]).await?, people))
}

pub(super) async fn inserts_updates_and_deletes(scene: &dyn Scene) -> Result<Verdict> {
    let (stage, people) = three(scene).await?;
    let changes = Changes::of(&people)
        .insert(&["4", "d", "four", "4"])
        .update(&["2", "B", NULL, "22"])
        .delete(&["3"])
        .insert(&["5", "gone", "at once", "5"])
        .update(&["5", "gone", "soon", "6"])
        .delete(&["5"])
        .delete(&["1"])
        .insert(&["1", "back", "", NULL]);
    stage.deliver(200, vec![changes]).await?;
    stage.expect_position(200).await?;
    let wanted: &[&[&str]] = &[&["1", "back", "", NULL], &["2", "B", NULL, "22"], &["4", "d", "four", "4"]];
    stage.expect(&people, wanted).await?;
    let (stage, progress) = stage.restart().await?;
    ensure!(progress.position >= Some(at(200)), "the position is {:?}", progress.position);
    stage.expect(&people, wanted).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn rows_and_position_are_one_commit(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let (people, orders) = (people(), orders());
    let mut stage = Stage::live(scene, &[(&people, &[ONE]), (&orders, &[])]).await?;
    for number in 0..6u64 {
        let (id, after, through) = ((10 + number).to_string(), 100 + number * 100, 200 + number * 100);
        let changes = vec![
            Changes::of(&people).insert(&[&id, "x", "y", "1"]),
            Changes::of(&orders).insert(&[&id, "item"]),
        ];
        let delivery = stage.delivery(after, through, Slice::Whole, changes)?;
        let target = Arc::clone(&stage.target);
        let applying = tokio::spawn(async move { target.apply(delivery).await });
        tokio::time::sleep(std::time::Duration::from_millis(number * 2)).await;
        applying.abort();
        let (next, progress) = stage.restart().await?;
        stage = next;
        let there = progress.position >= Some(at(through));
        let inspect = stage.target.inspect();
        let counts = (inspect.count(&people).await?, inspect.count(&orders).await?);
        let whole = if there { (number + 2, number + 1) } else { (number + 1, number) };
        ensure!(counts == whole, "{counts:?} rows at {:?}, not {whole:?}", progress.position);
        if !there {
            let again = vec![
                Changes::of(&people).insert(&[&id, "x", "y", "1"]),
                Changes::of(&orders).insert(&[&id, "item"]),
            ];
            stage.deliver(through, again).await?;
        }
    }
    Ok(Verdict::Kept)
}

pub(super) async fn an_empty_delivery_moves_the_position_only(scene: &dyn Scene) -> Result<Verdict> {
    let (stage, people) = three(scene).await?;
    stage.deliver(300, Vec::new()).await?;
    stage.expect_position(300).await?;
    let (stage, progress) = stage.restart().await?;
    ensure!(progress.position >= Some(at(300)), "the position is {:?}", progress.position);
    stage.expect(&people, &[ONE, TWO, THREE]).await?;
    Ok(Verdict::Kept)
}

/// A task without a copy stores the stream's start with its first delivery.
pub(super) async fn the_first_delivery_may_be_the_first_position(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let stage = Stage::open(scene).await?;
    stage.target.prepare(&plan(&people, IfTargetExists::Error)).await?;
    stage.deliver(50, Vec::new()).await?;
    stage.expect_position(50).await?;
    stage.target.set_state(&people, TableState::CatchingUp).await?;
    stage.deliver(150, vec![Changes::of(&people).insert(ONE)]).await?;
    stage.expect(&people, &[ONE]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn what_is_at_or_before_the_position_is_not_applied_again(
    scene: &dyn Scene,
) -> Result<Verdict> {
    let (stage, people) = three(scene).await?;
    let insert = || vec![Changes::of(&people).insert(&["4", "d", "four", "4"]).delete(&["1"])];
    stage.deliver(300, insert()).await?;
    let stored = stage.progress().await?.position;
    for through in [300, 250, 1] {
        for changes in [insert(), Vec::new(), vec![Changes::of(&people).truncate()]] {
            let delivery = stage.delivery(0, through, Slice::Whole, changes)?;
            let receipt = stage.target.apply(delivery).await?;
            let expected = stored.map(Receipt::Durable);
            ensure!(Some(receipt) == expected, "a delivery through {through} was answered with {receipt:?}");
        }
    }
    stage.expect_position(300).await?;
    let wanted: &[&[&str]] = &[TWO, THREE, &["4", "d", "four", "4"]];
    stage.expect(&people, wanted).await?;
    // A restarted process does not forget it.
    let (stage, _) = stage.restart().await?;
    let receipt = stage.target.apply(stage.delivery(0, 300, Slice::Whole, insert())?).await?;
    ensure!(Some(receipt) == stored.map(Receipt::Durable), "after a restart: {receipt:?}");
    stage.expect(&people, wanted).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn a_durable_receipt_survives_a_crash(scene: &dyn Scene) -> Result<Verdict> {
    let (mut stage, people) = three(scene).await?;
    for number in 1..=5u64 {
        let through = 100 + 100 * number;
        let id = (10 + number).to_string();
        let receipt =
            stage.apply(through, vec![Changes::of(&people).insert(&[&id, "x", "y", "1"])]).await??;
        stage.settle(through, receipt).await?;
        let (next, progress) = stage.restart().await?;
        stage = next;
        ensure!(progress.position >= Some(at(through)), "{receipt:?}, then {:?}", progress.position);
        ensure!(stage.rows(&people).await?.len() as u64 == 3 + number, "rows of a durable delivery are lost");
    }
    Ok(Verdict::Kept)
}

pub(super) async fn unchanged_cells_are_left_alone(scene: &dyn Scene) -> Result<Verdict> {
    let (stage, people) = three(scene).await?;
    let changes = Changes::of(&people)
        .update(&["1", "A", KEPT, "11"])
        .update(&["2", KEPT, "2!", KEPT])
        .update(&["2", "B", KEPT, KEPT])
        .update(&["3", KEPT, KEPT, NULL]);
    stage.deliver(200, vec![changes]).await?;
    let wanted: &[&[&str]] = &[&["1", "A", "one", "11"], &["2", "B", "2!", "2"], &["3", "c", "three", NULL]];
    stage.expect(&people, wanted).await?;
    // Also where the kept value is NULL or empty.
    stage.deliver(300, vec![Changes::of(&people).update(&["1", NULL, "", "0"])]).await?;
    stage.deliver(400, vec![Changes::of(&people).update(&["1", KEPT, KEPT, "9"])]).await?;
    stage.expect(&people, &[&["1", NULL, "", "9"], wanted[1], wanted[2]]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn keys_move_and_swap_with_their_unchanged_cells(scene: &dyn Scene) -> Result<Verdict> {
    let (stage, people) = three(scene).await?;
    let swap = Changes::of(&people)
        .moved(&["1"], &["-1", "A", KEPT, "11"])
        .moved(&["2"], &["1", "b", KEPT, "2"])
        .moved(&["-1"], &["2", "A", KEPT, "11"]);
    stage.deliver(200, vec![swap]).await?;
    stage.expect(&people, &[&["1", "b", "two", "2"], &["2", "A", "one", "11"], THREE]).await?;
    let onto_deleted = Changes::of(&people)
        .delete(&["3"])
        .moved(&["2"], &["3", "A", KEPT, "12"])
        .insert(&["2", "n", "n", "0"])
        .moved(&["1"], &["7", "b", "7", "7"]);
    stage.deliver(300, vec![onto_deleted]).await?;
    stage.expect(&people, &[&["2", "n", "n", "0"], &["3", "A", "one", "12"], &["7", "b", "7", "7"]]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn keys_of_several_columns(scene: &dyn Scene) -> Result<Verdict> {
    let columns = [("v", TypeKind::Text), ("b", TypeKind::Text), ("a", TypeKind::Int4)];
    let pairs = Arc::new(table("pairs", &columns, &[2, 1]));
    let rows: &[&[&str]] = &[&["p", "x", "1"], &["q", "y", "1"], &["r", "x", "2"], &["s", "", "2"]];
    let stage = Stage::live(scene, &[(&pairs, rows)]).await?;
    let changes = Changes::of(&pairs)
        .update(&["P", "x", "1"])
        .delete(&["1", "y"])
        .moved(&["2", ""], &[KEPT, "é", "2"])
        .insert(&["t", "1", "2"]);
    stage.deliver(200, vec![changes]).await?;
    let wanted: &[&[&str]] = &[&["P", "x", "1"], &["t", "1", "2"], &["r", "x", "2"], &["s", "é", "2"]];
    stage.expect(&pairs, wanted).await?;
    Ok(Verdict::Kept)
}

/// A key that the source checks at the commit only: an insert may meet a row of its key, and replaces it.
pub(super) async fn a_key_that_is_not_enforced_is_replaced(scene: &dyn Scene) -> Result<Verdict> {
    let people = Arc::new(Table { key_enforced: false, ..(*people()).clone() });
    let stage = Stage::live(scene, &[(&people, &[ONE, TWO])]).await?;
    let changes =
        Changes::of(&people).insert(&["1", "A", "new", "11"]).delete(&["99"]).insert(&["3", "c", "x", "3"]);
    stage.deliver(200, vec![changes]).await?;
    stage.expect(&people, &[&["1", "A", "new", "11"], TWO, &["3", "c", "x", "3"]]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn a_truncate_removes_what_was_before_it(scene: &dyn Scene) -> Result<Verdict> {
    let (people, orders) = (people(), orders());
    let stage = Stage::live(scene, &[(&people, &[ONE, TWO]), (&orders, &[&["1", "x"]])]).await?;
    let changes = Changes::of(&people)
        .insert(&["4", "d", "x", "4"])
        .update(&["1", "A", "x", "1"])
        .truncate()
        .insert(&["2", "new", "x", "2"]);
    stage.deliver(200, vec![changes]).await?;
    stage.expect(&people, &[&["2", "new", "x", "2"]]).await?;
    stage.expect(&orders, &[&["1", "x"]]).await?;
    stage
        .deliver(300, vec![Changes::of(&people).truncate(), Changes::of(&orders).insert(&["2", "y"])])
        .await?;
    stage.expect(&people, &[]).await?;
    stage.expect(&orders, &[&["1", "x"], &["2", "y"]]).await?;
    Ok(Verdict::Kept)
}

/// Where the user wants no deletes, the target keeps every row; a key change still moves its row.
pub(super) async fn deletes_that_are_not_carried_leave_every_row(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let stage = Stage::open(scene).await?.deletes(DeletePolicy::Ignore);
    stage.copying(&people, &[ONE, TWO, THREE]).await?;
    stage.target.set_state(&people, TableState::Live).await?;
    let changes = Changes::of(&people)
        .delete(&["1"])
        .update(&["2", "B", "two", "2"])
        .moved(&["3"], &["4", "c", KEPT, "3"])
        .truncate();
    stage.deliver(200, vec![changes]).await?;
    let wanted: &[&[&str]] = &[ONE, &["2", "B", "two", "2"], &["4", "c", "three", "3"]];
    stage.expect(&people, wanted).await?;
    // The key is inserted again at the source; the target still holds the row.
    stage.deliver(300, vec![Changes::of(&people).insert(&["1", "again", "1", "1"])]).await?;
    stage.expect(&people, &[&["1", "again", "1", "1"], wanted[1], wanted[2]]).await?;
    Ok(Verdict::Kept)
}

/// The end of a delivery that one table breaks: nothing of it stays, and without that table it goes through.
pub(super) async fn a_misfit_sets_its_table_aside_and_no_other(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let Some((kind, value)) = scene.misfit() else {
        return Ok(Verdict::Untested("every value of every type fits".into()));
    };
    let odd = table("odd", &[("id", TypeKind::Int4), ("v", kind)], &[0]);
    let odd = Arc::new(Table { id: TableId(2), ..odd });
    let (people, orders) = (people(), orders());
    let stage = Stage::live(scene, &[(&people, &[]), (&odd, &[]), (&orders, &[])]).await?;
    let bad = || Changes::of(&odd).insert(&["1", NULL]).insert(&["2", value]);
    let good = || vec![Changes::of(&people).insert(ONE), Changes::of(&orders).insert(&["1", "x"])];
    let mut refused = None;
    for place in 0..3 {
        let mut changes = good();
        changes.insert(place, bad());
        let failure = table_broken(stage.apply(200, changes).await?, &odd, "applying a misfit")?;
        let told = format!("{failure} {:?} {:?}", failure.cause(), failure.cure());
        ensure!(!told.contains(value), "the error shows the value");
        ensure!(!stage.target.outcome_unknown(&failure), "it is not known whether a misfit was committed");
        for table in [&odd, &people, &orders] {
            stage.expect(table, &[]).await?;
        }
        stage.expect_position(100).await?;
        refused = Some(failure);
    }
    let failure = refused.context("an error")?;
    let state = TableState::Broken { code: failure.code().to_string(), problem: failure.to_string() };
    stage.target.set_state(&odd, state).await?;
    stage.deliver(200, good()).await?;
    stage.expect(&people, &[ONE]).await?;
    stage.expect(&orders, &[&["1", "x"]]).await?;
    stage.expect_position(200).await?;
    Ok(Verdict::Kept)
}

/// Two tables, thousands of rows, in one delivery; found again by their keys in the next.
pub(super) async fn large_deliveries_of_several_tables(scene: &dyn Scene) -> Result<Verdict> {
    let (people, orders) = (people(), orders());
    let stage = Stage::live(scene, &[(&people, &[ONE]), (&orders, &[])]).await?;
    let ids: Vec<String> = (1..=20_000).map(|id: u32| id.to_string()).collect();
    let mut many = Changes::of(&orders);
    for id in &ids {
        many = many.insert(&[id, "item"]);
    }
    stage.deliver(200, vec![Changes::of(&people).delete(&["1"]), many]).await?;
    let mut half = Changes::of(&orders);
    for (number, id) in ids.iter().enumerate() {
        half = match number % 3 {
            0 => half.delete(&[id]),
            1 => half.update(&[id, "new"]),
            _ => half,
        };
    }
    stage.deliver(300, vec![half]).await?;
    stage.expect(&people, &[]).await?;
    let rows = stage.rows(&orders).await?;
    let new = rows.iter().filter(|row| row[1].as_deref() == Some("new")).count();
    ensure!((rows.len(), new) == (13_333, 6_667), "{} rows, {new} of them changed", rows.len());
    Ok(Verdict::Kept)
}

/// A table without a key is carried by snapshot only: twins stay twins.
pub(super) async fn a_table_without_a_key_keeps_every_row(scene: &dyn Scene) -> Result<Verdict> {
    let bag = Arc::new(table("bag", &[("a", TypeKind::Text), ("b", TypeKind::Int4)], &[]));
    let people = people();
    let stage = Stage::live(scene, &[(&people, &[])]).await?;
    stage.copying(&bag, &[&["x", "1"], &["x", "1"], &[NULL, NULL], &["", NULL]]).await?;
    stage.load(&bag, 1, &[&["x", "1"], &[NULL, NULL]]).await?;
    stage.target.set_state(&bag, TableState::Copied).await?;
    stage.deliver(200, vec![Changes::of(&people).insert(ONE)]).await?;
    let wanted: &[&[&str]] =
        &[&["", NULL], &["x", "1"], &["x", "1"], &["x", "1"], &[NULL, NULL], &[NULL, NULL]];
    stage.expect(&bag, wanted).await?;
    stage.target.begin_copy(&bag, mark(300)).await?;
    stage.expect(&bag, &[]).await?;
    Ok(Verdict::Kept)
}
