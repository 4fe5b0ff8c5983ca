//! Copies: begin_copy and load, once, many at a time, interrupted, and begun again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgferry_model::{Class, TableState};
use pgferry_pipeline::{CopyMark, IfTargetExists};

use super::stage::{
    Changes, NULL, Stage, at, chunk, load, mark, not_atomic, orders, people, plan, snapshot_rows, table,
    table_broken, task,
};
use super::{Scene, Verdict};

pub(super) async fn begin_copy_stores_the_cut_and_the_first_start(scene: &dyn Scene) -> Result<Verdict> {
    let (people, orders) = (people(), orders());
    let stage = Stage::open(scene).await?;
    for table in [&people, &orders] {
        stage.target.prepare(&plan(table, IfTargetExists::Error)).await?;
        stage.target.prepare(&plan(table, IfTargetExists::Error)).await.context("preparing again")?;
    }
    let progress = stage.progress().await?;
    ensure!(progress.position.is_none(), "prepare stored the position {:?}", progress.position);
    let waits = progress.table(&people.name).is_none_or(|known| known.state == TableState::Waiting);
    ensure!(waits, "a prepared table does not wait");
    stage.target.begin_copy(&people, CopyMark { cut: at(90), stream_start: None }).await?;
    let position = stage.progress().await?.position;
    ensure!(position.is_none(), "a copy without a start of the stream stored {position:?}");
    for _ in 0..2 {
        stage.target.begin_copy(&people, mark(100)).await?;
    }
    stage.target.begin_copy(&orders, CopyMark { cut: at(150), stream_start: Some(at(150)) }).await?;
    let (_stage, progress) = stage.restart().await?;
    ensure!(progress.position == Some(at(100)), "the first mark's start became {:?}", progress.position);
    for (table, cut) in [(&people, 100), (&orders, 150)] {
        let known = progress.table(&table.name).context("a prepared table")?;
        ensure!(
            (&known.state, known.cut, known.chunks_done.len()) == (&TableState::Copying, Some(at(cut)), 0),
            "{known:?}"
        );
    }
    Ok(Verdict::Kept)
}

pub(super) async fn a_chunk_is_recorded_with_its_rows(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let stage = Stage::open(scene).await?;
    stage.copying(&people, &[&["1", "a", "b", "1"]]).await?;
    let loaded = stage.load(&people, 4, &[&["2", "", "<x>", "2"], &["3", "c", "ä", "3"]]).await?;
    ensure!(loaded == 2, "{loaded} rows loaded");
    let empty = stage.load(&people, 5, &[]).await?;
    ensure!(empty == 0, "{empty} rows of an empty chunk");
    let (stage, progress) = stage.restart().await?;
    let mut chunks = progress.table(&people.name).context("the table")?.chunks_done.clone();
    chunks.sort_unstable();
    ensure!(chunks == [0, 4, 5], "the chunks done are {chunks:?}");
    stage.expect(&people, &[&["1", "a", "b", "1"], &["2", "", "<x>", "2"], &["3", "c", "ä", "3"]]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn a_chunk_loaded_again_is_drained_and_not_written(scene: &dyn Scene) -> Result<Verdict> {
    let people = people();
    let stage = Stage::open(scene).await?;
    stage.copying(&people, &[&["1", "a", "b", "1"]]).await?;
    for _ in 0..2 {
        let (rows, sender) = chunk(&people, 0);
        let sending = async {
            // More batches than wait between reader and loader: they are taken, or this would not end.
            for _ in 0..8 {
                sender.send(snapshot_rows(&people, &[&["1", "a", "b", "1"]])).await?;
            }
            sender.end(8).await
        };
        let (loaded, sent) = tokio::join!(stage.target.load(rows), sending);
        loaded.context("loading a chunk again")?;
        sent.context("the rows of a chunk that is done were not drained")?;
    }
    stage.expect(&people, &[&["1", "a", "b", "1"]]).await?;
    let (stage, progress) = stage.restart().await?;
    let chunks = progress.table(&people.name).context("the table")?.chunks_done.clone();
    ensure!(chunks == [0], "the chunks done are {chunks:?}");
    stage.load(&people, 0, &[&["1", "a", "b", "1"]]).await?;
    stage.expect(&people, &[&["1", "a", "b", "1"]]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn rows_without_their_end_mark_are_not_committed(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let people = people();
    let stage = Stage::open(scene).await?;
    stage.copying(&people, &[&["1", "a", "b", "1"]]).await?;
    for wrong_end in [None, Some(5)] {
        let (rows, sender) = chunk(&people, 1);
        let batch = snapshot_rows(&people, &[&["7", "a", "b", "1"]]);
        let sending = async move {
            let _ = sender.send(batch).await;
            if let Some(count) = wrong_end {
                let _ = sender.end(count).await;
            }
        };
        let (loaded, ()) = tokio::join!(stage.target.load(rows), sending);
        let class = loaded.err().map(|failure| failure.class());
        ensure!(class == Some(Class::Transient), "a load that was cut off ended as {class:?}");
    }
    stage.expect(&people, &[&["1", "a", "b", "1"]]).await?;
    ensure!(stage.load(&people, 1, &[&["7", "a", "b", "1"]]).await? == 1, "the retry loaded nothing");
    stage.expect(&people, &[&["1", "a", "b", "1"], &["7", "a", "b", "1"]]).await?;
    Ok(Verdict::Kept)
}

/// Together: all, or those before the failure. What is missing in the answer can be loaded on its own, without a row twice.
pub(super) async fn tables_loaded_together_are_whole_with_their_state_or_not_at_all(
    scene: &dyn Scene,
) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let (people, orders) = (people(), orders());
    let stage = Stage::open(scene).await?;
    let plans = [plan(&people, IfTargetExists::Error), plan(&orders, IfTargetExists::Error)];
    stage.target.prepare_all(&plans).await?;
    stage.target.begin_copies(&[Arc::clone(&people), Arc::clone(&orders)], mark(100)).await?;
    let person: &[&[&str]] = &[&["1", "a", "b", "1"]];
    let order: &[&[&str]] = &[&["7", "tea"]];
    for whole in [false, true] {
        let ((first, first_sender), (second, second_sender)) = (chunk(&people, 0), chunk(&orders, 0));
        let (first_rows, second_rows) = (snapshot_rows(&people, person), snapshot_rows(&orders, order));
        let sending = async move {
            let _ = first_sender.send(first_rows).await;
            let _ = first_sender.end(1).await;
            let _ = second_sender.send(second_rows).await;
            if whole {
                let _ = second_sender.end(1).await;
            }
        };
        let tables = vec![(first, TableState::Copied), (second, TableState::CatchingUp)];
        let (loaded, ()) = tokio::join!(stage.target.load_tables(tables), sending);
        let progress = stage.progress().await?;
        let state = |name| progress.table(name).map(|known| known.state.clone());
        if whole {
            ensure!(loaded.context("loading together")? == [1, 1], "not one row each");
            ensure!(state(&people.name) == Some(TableState::Copied), "the first table's state is not stored");
            ensure!(
                state(&orders.name) == Some(TableState::CatchingUp),
                "the second table's state is not stored"
            );
        } else {
            let done = loaded.map_or(0, |rows| rows.len());
            ensure!(done < 2, "a table that was cut off counts as loaded");
            ensure!(state(&orders.name) == Some(TableState::Copying), "a table that was cut off is copied");
            let first_rows = if done == 1 { person } else { &[] };
            stage.expect(&people, first_rows).await?;
            stage.expect(&orders, &[]).await?;
            stage.target.begin_copies(&[Arc::clone(&people), Arc::clone(&orders)], mark(100)).await?;
        }
    }
    let (stage, _) = stage.restart().await?;
    stage.expect(&people, person).await?;
    stage.expect(&orders, order).await?;
    Ok(Verdict::Kept)
}

/// A chunk's loader is lost at some moment between its first row and its answer.
pub(super) async fn a_crash_leaves_a_chunk_whole_or_not_at_all(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let people = people();
    let mut stage = Stage::open(scene).await?;
    stage.copying(&people, &[]).await?;
    let mut expected = 0;
    for number in 1..=8u32 {
        let (rows, sender) = chunk(&people, number);
        let target = Arc::clone(&stage.target);
        let loading = tokio::spawn(async move { target.load(rows).await });
        let ids: Vec<String> = (0..200).map(|row| (number * 1000 + row).to_string()).collect();
        let cells: Vec<[&str; 4]> = ids.iter().map(|id| [id.as_str(), "a", "b", "1"]).collect();
        let cells: Vec<&[&str]> = cells.iter().map(|row| &row[..]).collect();
        sender.send(snapshot_rows(&people, &cells)).await.context("sending")?;
        if number > 1 {
            let _ = sender.end(200).await;
            tokio::time::sleep(Duration::from_millis(u64::from(number - 2) * 3)).await;
        }
        loading.abort();
        let (next, progress) = stage.restart().await?;
        stage = next;
        let done = &progress.table(&people.name).context("the table")?.chunks_done;
        expected += if done.contains(&number) { 200 } else { 0 };
        let count = stage.target.inspect().count(&people).await?;
        ensure!(count == expected, "{count} rows with the chunks {done:?}, not {expected}");
    }
    Ok(Verdict::Kept)
}

pub(super) async fn as_many_loads_at_once_as_wanted(scene: &dyn Scene) -> Result<Verdict> {
    let (people, orders) = (people(), orders());
    let stage = Stage::open(scene).await?;
    stage.copying(&people, &[]).await?;
    stage.copying(&orders, &[]).await?;
    let most = stage.target.wants().loads_max.clamp(1, 16) as u32;
    let mut loads = tokio::task::JoinSet::new();
    for number in 1..=most {
        let (target, table) =
            (Arc::clone(&stage.target), Arc::clone(if number % 2 == 0 { &people } else { &orders }));
        loads.spawn(async move {
            let ids: Vec<String> = (0..500).map(|row| (number * 1000 + row).to_string()).collect();
            let cells: Vec<Vec<&str>> =
                ids.iter().map(|id| [id, "a", "b", "1"][..table.columns.len()].to_vec()).collect();
            let cells: Vec<&[&str]> = cells.iter().map(|row| &row[..]).collect();
            load(&*target, number, snapshot_rows(&table, &cells)).await
        });
    }
    while let Some(loaded) = loads.join_next().await {
        ensure!(loaded??.eq(&500), "a load at the same time as others lost rows");
    }
    let progress = stage.progress().await?;
    let chunks: usize = progress.tables.iter().map(|known| known.chunks_done.len()).sum();
    ensure!(chunks == most as usize + 2, "{chunks} chunks are recorded");
    let inspect = stage.target.inspect();
    let count = inspect.count(&people).await? + inspect.count(&orders).await?;
    ensure!(count == u64::from(most) * 500, "{count} rows");
    Ok(Verdict::Kept)
}

pub(super) async fn a_copy_begun_again_drops_what_the_last_one_left(scene: &dyn Scene) -> Result<Verdict> {
    let (people, orders) = (people(), orders());
    let stage = Stage::open(scene).await?;
    stage.copying(&people, &[&["1", "a", "b", "1"], &["2", "a", "b", "1"]]).await?;
    stage.copying(&orders, &[&["1", "x"]]).await?;
    let (stage, _) = stage.restart().await?;
    stage.target.begin_copy(&people, mark(500)).await?;
    stage.expect(&people, &[]).await?;
    let progress = stage.progress().await?;
    let known = progress.table(&people.name).context("the table")?;
    ensure!(
        (&known.state, known.cut, known.chunks_done.len()) == (&TableState::Copying, Some(at(500)), 0),
        "{known:?}"
    );
    ensure!(progress.position == Some(at(100)), "the position moved to {:?}", progress.position);
    let other = progress.table(&orders.name).context("the other table")?;
    ensure!(other.chunks_done == [0], "the other table's copy changed: {other:?}");
    stage.load(&people, 0, &[&["2", "new", "b", "1"]]).await?;
    stage.expect(&people, &[&["2", "new", "b", "1"]]).await?;
    stage.expect(&orders, &[&["1", "x"]]).await?;
    // Also one that was whole already, and has taken changes.
    stage.target.set_state(&people, TableState::Live).await?;
    stage.deliver(600, vec![Changes::of(&people).insert(&["3", "s", "s", "3"])]).await?;
    stage.target.begin_copy(&people, mark(700)).await?;
    stage.load(&people, 0, &[&["4", "d", "d", "4"]]).await?;
    stage.expect(&people, &[&["4", "d", "d", "4"]]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn a_misfit_in_a_chunk_is_its_tables_error(scene: &dyn Scene) -> Result<Verdict> {
    if let Some(untested) = not_atomic(scene).await? {
        return Ok(untested);
    }
    let Some((kind, value)) = scene.misfit() else {
        return Ok(Verdict::Untested("every value of every type fits".into()));
    };
    let columns = [("id", pgferry_model::TypeKind::Int4), ("v", kind)];
    let (odd, orders) = (Arc::new(table("odd", &columns, &[0])), orders());
    let stage = Stage::open(scene).await?;
    stage.copying(&odd, &[]).await?;
    stage.copying(&orders, &[]).await?;
    let (misfits, fitting): ([&[&str]; 2], [&[&str]; 1]) = ([&["1", NULL], &["2", value]], [&["1", "x"]]);
    let (bad, good) = tokio::join!(stage.load(&odd, 1, &misfits), stage.load(&orders, 1, &fitting));
    let failure = table_broken(bad, &odd, "loading a value that does not fit")?;
    let told = format!("{failure} {:?} {:?}", failure.cause(), failure.cure());
    ensure!(!told.contains(value), "the error shows the value");
    ensure!(good? == 1, "the other table's load did not go on");
    stage.expect(&odd, &[]).await?;
    let progress = stage.target.open(&task()).await?;
    let chunks = progress.table(&odd.name).map(|known| known.chunks_done.clone());
    ensure!(chunks == Some(vec![0]), "the chunks done are {chunks:?}");
    stage.expect(&orders, &[&["1", "x"]]).await?;
    Ok(Verdict::Kept)
}
