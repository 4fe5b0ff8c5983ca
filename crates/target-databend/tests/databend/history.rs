//! Histories: which rows a copy and changes become, what the documented queries make of them, and what stays.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pgferry_model::{Batch, Delivery, Slice, Table, TableState, TransactionMark, TypeKind};
use pgferry_pipeline::{CopyMark, DeletePolicy, IfTargetExists, Receipt, TableChanges, TablePlan, Target};
use pgferry_target_databend::error::SCHEMA_INCOMPATIBLE;
use pgferry_target_databend::{DatabendConfig, DatabendTarget, Mode};
use pgferry_testkit::databend::DatabendServer;

use crate::making::{
    Changes, KEPT, NULL, ask, at, config, live, load, people, place, plan, rows, server, table, task,
};

const ONE: &[&str] = &["1", "body one", "note one", "10"];
const TWO: &[&str] = &["2", "body two", "note two", "20"];

/// 2126-01-01 00:00:00: after every copy.
const COMMITTED_FROM_US: i64 = 4_922_899_200_000_000;

fn history(server: &DatabendServer) -> DatabendConfig {
    DatabendConfig { mode: Mode::History, ..config(server) }
}

/// Transactions, each with one table's changes; they are committed a second apart, from 2126-01-01 on.
fn delivery(through: u64, transactions: Vec<Changes>) -> Arc<Delivery<TableChanges>> {
    let (mut merged, mut marks): (Option<Batch>, Vec<TransactionMark>) = (None, Vec::new());
    let count = transactions.len() as u64;
    for (number, changes) in (0_u64..).zip(transactions) {
        let batch = changes.0;
        let first_sequence = merged.as_ref().map_or(0, |merged| merged.len() as u32);
        let commit_record = at(through - count + number);
        marks.push(TransactionMark {
            first_sequence,
            xid: 700 + number as u32,
            commit_record,
            position: commit_record,
            committed_at_us: COMMITTED_FROM_US + number as i64 * 1_000_000,
        });
        merged = Some(merged.map_or_else(|| batch.clone(), |merged| joined(merged, &batch)));
    }
    Arc::new(Delivery {
        after: at(through - count - 1),
        through: at(through),
        tables: merged.into_iter().map(TableChanges::Every).collect(),
        transactions: marks,
        slice: Slice::Whole,
    })
}

/// One batch after the other.
fn joined(mut batch: Batch, next: &Batch) -> Batch {
    use pgferry_model::Cell;
    for row in next.rows() {
        batch.start_row(row.op, batch.len() as u32);
        for (tuple, is_new) in [(row.new, true), (row.old, false)] {
            let Some(tuple) = tuple else { continue };
            if is_new {
                batch.start_new()
            } else {
                batch.start_old(row.old_is_full)
            }
            for cell in tuple.cells() {
                match cell {
                    Cell::Null => batch.push_null(),
                    Cell::Unchanged => batch.push_unchanged(),
                    Cell::Text(text) | Cell::Binary(text) => {
                        batch.push_value(pgferry_model::CellFormat::Text, text);
                    }
                }
            }
        }
    }
    batch
}

async fn deliver(target: &DatabendTarget, through: u64, transactions: Vec<Changes>) -> Result<()> {
    let receipt = target.apply(delivery(through, transactions)).await?;
    ensure!(receipt == Receipt::Durable(at(through)), "{receipt:?}");
    Ok(())
}

/// Every row of a history, in order, cells joined by spaces.
async fn told(server: &DatabendServer, config: &DatabendConfig, columns: &str) -> Result<Vec<String>> {
    let asked =
        format!("SELECT {columns} FROM {} ORDER BY _pgferry_seq, id NULLS FIRST", place(config, "people"));
    Ok(ask(server, &asked).await?.iter().map(|row| joined_cells(row)).collect())
}

fn joined_cells(row: &[Option<String>]) -> String {
    row.iter().map(|cell| cell.as_deref().unwrap_or("-")).collect::<Vec<_>>().join(" ")
}

async fn expect(target: &DatabendTarget, table: &Table, wanted: &[&str]) -> Result<()> {
    let found = rows(target, table).await?;
    ensure!(found == wanted, "{found:#?}, not {wanted:#?}");
    let count = pgferry_pipeline::Inspect::count(target, table).await?;
    ensure!(count == wanted.len() as u64, "{count} rows are counted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_a_row_with_what_where_and_when() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let (config, people) = (history(&server), people());
    let target = live(&config, &people, &[ONE, TWO]).await?;
    let first = Changes::of(&people).update(&["1", KEPT, "new", "11"]).insert(&["3", "c", NULL, "30"]);
    let second = Changes::of(&people).moved("1", &["7", KEPT, "moved", "12"]).delete("2");
    deliver(&target, 0x200, vec![first, second]).await?;
    expect(&target, &people, &["3|c|<null>|30", "7|body one|moved|12"]).await?;
    deliver(&target, 0x300, vec![Changes::of(&people).truncate().insert(&["4", "d", "d", "40"])]).await?;
    expect(&target, &people, &["4|d|d|40"]).await?;
    let columns = "_pgferry_op, _pgferry_lsn, IF(_pgferry_committed_at < now(), 'copied', to_string(_pgferry_committed_at)), id, body, n, \
                   to_string(_pgferry_unchanged::VARIANT), to_string(_pgferry_old_key::VARIANT)";
    let told = told(&server, &config, columns).await?;
    let wanted = [
        "copy 0/64 copied - - - - -",
        "snapshot 0/64 copied 1 body one 10 - -",
        "snapshot 0/64 copied 2 body two 20 - -",
        "update 0/1FE 2126-01-01 00:00:00.000000 1 - 11 [\"body\"] -",
        "insert 0/1FE 2126-01-01 00:00:00.000000 3 c 30 - -",
        "delete 0/1FF 2126-01-01 00:00:01.000000 1 - - - -",
        "update 0/1FF 2126-01-01 00:00:01.000000 7 - 12 [\"body\"] [\"1\"]",
        "delete 0/1FF 2126-01-01 00:00:01.000000 2 - - - -",
        "truncate 0/2FF 2126-01-01 00:00:00.000000 - - - - -",
        "insert 0/2FF 2126-01-01 00:00:00.000000 4 d 40 - -",
    ];
    ensure!(told == wanted, "{told:#?}");
    target.close().await?;
    Ok(())
}

/// A second copy follows the first one's history; what a copy that was cut off has left goes.
#[tokio::test(flavor = "multi_thread")]
async fn copies_follow_each_other_and_changes_stay() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let (config, people) = (history(&server), people());
    let target = live(&config, &people, &[ONE, TWO]).await?;
    deliver(&target, 0x200, vec![Changes::of(&people).delete("2")]).await?;
    target.forget(Some(&people.name)).await?;
    expect(&target, &people, &["1|body one|note one|10"]).await?;
    for cut in [0x300, 0x400] {
        target.prepare(&plan(&people)).await?;
        target.begin_copy(&people, CopyMark { cut: at(cut), stream_start: None }).await?;
        expect(&target, &people, &[]).await?;
        load(&target, &people, 0, &[TWO]).await?;
        // The first of these copies ends with its process.
        target.open(&task()).await?;
    }
    load(&target, &people, 1, &[&["5", "e", "e", "50"]]).await?;
    target.set_state(&people, TableState::Live).await?;
    deliver(&target, 0x500, vec![Changes::of(&people).update(&["2", KEPT, "x", "21"])]).await?;
    expect(&target, &people, &["2|body two|x|21", "5|e|e|50"]).await?;
    let told = told(&server, &config, "_pgferry_op, _pgferry_lsn, id").await?;
    let wanted = [
        "copy 0/64 -",
        "snapshot 0/64 1",
        "snapshot 0/64 2",
        "delete 0/1FF 2",
        "copy 0/400 -",
        "snapshot 0/400 2",
        "snapshot 0/400 5",
        "update 0/4FF 2",
    ];
    ensure!(told == wanted, "{told:#?}");
    target.close().await?;
    Ok(())
}

/// A column that is new at the source is added when the table is copied again; one that is gone stays, and nothing told is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_is_widened_and_never_made_anew() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let (config, people) = (history(&server), people());
    let target = live(&config, &people, &[ONE]).await?;
    target.forget(Some(&people.name)).await?;
    let text = TypeKind::Text;
    let wider =
        table("people", &[("id", TypeKind::Int4), ("note", text.clone()), ("born", TypeKind::Date)], &[0]);
    let told_before = target.describe(&plan(&wider)).await?;
    ensure!(told_before.len() == 1 && told_before[0].contains("ADD COLUMN \"born\""), "{told_before:?}");
    target.prepare(&plan(&wider)).await?;
    target.begin_copy(&wider, CopyMark { cut: at(0x300), stream_start: None }).await?;
    load(&target, &wider, 0, &[&["1", "note", "2001-02-03"]]).await?;
    target.set_state(&wider, TableState::Live).await?;
    expect(&target, &wider, &["1|note|2001-02-03"]).await?;
    let told = told(&server, &config, "_pgferry_op, id, body, note, to_string(born)").await?;
    let wanted =
        ["copy - - - -", "snapshot 1 body one note one -", "copy - - - -", "snapshot 1 - note 2001-02-03"];
    ensure!(told == wanted, "{told:#?}");
    // A type that changes is the user's to decide.
    target.forget(Some(&people.name)).await?;
    let other = table("people", &[("id", TypeKind::Int8), ("note", text)], &[0]);
    let refused = target.prepare(&plan(&other)).await.err().context("another type is taken")?;
    ensure!(refused.code() == SCHEMA_INCOMPATIBLE, "{refused:?}");
    target.close().await?;
    Ok(())
}

/// Rows as they are and a history do not share a table; a task that appends to a history goes on behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_the_other_mode_is_refused_and_a_history_goes_on() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let (config, people) = (history(&server), people());
    let target = live(&config, &people, &[ONE, TWO]).await?;
    deliver(&target, 0x200, vec![Changes::of(&people).delete("2")]).await?;
    target.close().await?;
    let append = TablePlan { if_exists: IfTargetExists::Append, ..plan(&people) };
    let latest =
        DatabendConfig { mode: Mode::Latest, staging: format!("{}x", config.staging), ..config.clone() };
    let other = DatabendTarget::connect(latest)?;
    other.open(&task()).await?;
    let refused = other.prepare(&append).await.err().context("a history is taken for rows as they are")?;
    ensure!(refused.code() == SCHEMA_INCOMPATIBLE, "{refused:?}");
    ensure!(refused.cause().is_some_and(|cause| cause.contains("history")), "{refused:?}");
    other.close().await?;
    // What the old task has stored is lost, its table is not.
    let anew = DatabendConfig { staging: format!("{}y", config.staging), ..config.clone() };
    let target = DatabendTarget::connect(anew)?;
    target.open(&task()).await?;
    target.prepare(&append).await?;
    // A process that ends here leaves the number that the history goes on from.
    target.open(&task()).await?;
    target.prepare(&append).await?;
    target.begin_copy(&people, CopyMark { cut: at(0x50), stream_start: Some(at(0x50)) }).await?;
    load(&target, &people, 0, &[TWO]).await?;
    target.set_state(&people, TableState::Live).await?;
    deliver(&target, 0x60, vec![Changes::of(&people).update(&["2", KEPT, "x", "21"])]).await?;
    expect(&target, &people, &["2|body two|x|21"]).await?;
    let told = told(&server, &config, "_pgferry_op, id").await?;
    let wanted = ["copy -", "snapshot 1", "snapshot 2", "delete 2", "copy -", "snapshot 2", "update 2"];
    ensure!(told == wanted, "{told:#?}");
    target.close().await?;
    Ok(())
}

/// A task whose mode is changed does not drop its history when the table is to be copied again.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_survives_a_change_of_the_tasks_mode() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let (config, people) = (history(&server), people());
    let target = live(&config, &people, &[ONE, TWO]).await?;
    target.close().await?;
    let latest = DatabendTarget::connect(DatabendConfig { mode: Mode::Latest, ..config.clone() })?;
    latest.open(&task()).await?;
    latest.forget(Some(&people.name)).await?;
    ensure!(latest.describe(&plan(&people)).await?.is_empty(), "a history would be made anew");
    let refused = latest.prepare(&plan(&people)).await.err().context("a history is made anew")?;
    ensure!(refused.code() == SCHEMA_INCOMPATIBLE, "{refused:?}");
    let told = told(&server, &config, "_pgferry_op, id").await?;
    ensure!(told == ["copy -", "snapshot 1", "snapshot 2"], "{told:#?}");
    latest.prepare(&TablePlan { if_exists: IfTargetExists::Replace, ..plan(&people) }).await?;
    expect(&latest, &people, &[]).await?;
    latest.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_that_are_not_carried_are_not_told() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let (config, people) = (history(&server), people());
    let target = live(&config, &people, &[ONE, TWO]).await?;
    target.prepare(&TablePlan { deletes: DeletePolicy::Ignore, ..plan(&people) }).await?;
    let changes = Changes::of(&people).delete("2").truncate().moved("1", &["3", KEPT, "m", "3"]);
    deliver(&target, 0x200, vec![changes]).await?;
    expect(&target, &people, &["2|body two|note two|20", "3|body one|m|3"]).await?;
    target.close().await?;
    Ok(())
}

/// The queries of the guide, on its own example.
#[tokio::test(flavor = "multi_thread")]
async fn the_guides_queries_give_what_it_says() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let guide = include_str!("../../../../docs/how-to/keep-every-change.md");
    let queries: Vec<&str> =
        guide.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    ensure!(queries.len() == 3, "the guide has {} queries", queries.len());
    let config = history(&server);
    let text = TypeKind::Text;
    let orders = table("orders", &[("id", TypeKind::Int8), ("status", text.clone()), ("note", text)], &[0]);
    let target = live(&config, &orders, &[&["1", "new", "long note"], &["2", "new", NULL]]).await?;
    let first = Changes::of(&orders).update(&["1", "paid", KEPT]).insert(&["3", "new", NULL]);
    let second = Changes::of(&orders).delete("2").update(&["1", "sent", KEPT]);
    deliver(&target, 0x200, vec![first, second]).await?;
    let named = place(&config, "orders");
    let mut answers = Vec::new();
    for query in queries {
        ensure!(query.contains("analytics.orders"), "{query}");
        let query = query.replace("analytics.orders", &named);
        let query = query.replace("2026-05-01 12:00:00", "2126-01-01 00:00:00.5");
        let rows = ask(&server, query.trim().trim_end_matches(';')).await.with_context(|| query.clone())?;
        answers.push(rows.iter().map(|row| joined_cells(row)).collect::<Vec<_>>());
    }
    ensure!(answers[0] == ["1 sent long note", "3 new -"], "{answers:#?}");
    ensure!(answers[1] == ["1 paid long note", "2 new -", "3 new -"], "{answers:#?}");
    ensure!(answers[2].len() == 3 && answers[2][2].contains("sent"), "{answers:#?}");
    target.close().await?;
    Ok(())
}
