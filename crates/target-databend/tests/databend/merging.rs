//! What is staged and how it is merged: values that were not sent, keys that move, truncates, and what a restart finds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pgferry_model::{Table, TableState, TypeKind};
use pgferry_pipeline::Target;
use pgferry_target_databend::error::{ROW_MISSING, TABLE_GONE};
use pgferry_target_databend::{DatabendConfig, DatabendTarget};
use pgferry_testkit::databend::{DatabendServer, DatabendSettings};

use crate::making::{
    Changes, KEPT, NULL, ask, at, config, deliver, delivery, follows, live, own_server, people, place, plan,
    raw, rows, server, table, task, unhurried,
};

const ONE: &[&str] = &["1", "body one", "note one", "10"];
const TWO: &[&str] = &["2", "body two", "note two", "20"];

/// Changes are durable when they are staged, in the columns that the documentation names; the table has them after a merge.
#[tokio::test(flavor = "multi_thread")]
async fn changes_are_durable_before_they_are_merged() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let (config, people) = (unhurried(&server), people());
    let target = live(&config, &people, &[ONE, TWO]).await?;
    let changes =
        Changes::of(&people).update(&["1", KEPT, "new", "11"]).delete("2").insert(&["3", "c", NULL, "30"]);
    deliver(&target, 0x200, vec![changes]).await?;
    deliver(&target, 0x300, vec![Changes::of(&people).truncate().insert(&["4", "d", "d", "40"])]).await?;
    let stored = target.held(&task()).await?.and_then(|held| held.position);
    ensure!(stored == Some(at(0x300)), "the position is {stored:?}");
    let count = ask(&server, &format!("SELECT count(*) FROM {}", place(&config, "people"))).await?;
    ensure!(count[0][0].as_deref() == Some("2"), "the table has changed before a merge: {count:?}");
    let staged = ask(
        &server,
        &format!(
            "SELECT id, body, n, _pgferry_op, _pgferry_seq, _pgferry_lsn, to_string(_pgferry_unchanged::VARIANT), _pgferry_origin_0 \
             FROM {} ORDER BY _pgferry_seq, id NULLS FIRST",
            raw(&config, "people")
        ),
    )
    .await?;
    let shown: Vec<String> = staged
        .iter()
        .map(|row| row.iter().map(|cell| cell.as_deref().unwrap_or("-")).collect::<Vec<_>>().join(" "))
        .collect();
    ensure!(
        shown
            == [
                "1 - 11 upsert 2 0/200 [\"body\"] -",
                "2 - - delete 2 0/200 - -",
                "3 c 30 upsert 2 0/200 - -",
                "- - - truncate 3 0/300 - -",
                "4 d 40 upsert 4 0/300 - -",
            ],
        "{shown:#?}"
    );
    ensure!(rows(&target, &people).await? == ["4|d|d|40"]);
    let left = ask(&server, &format!("SELECT count(*) FROM {}", raw(&config, "people"))).await?;
    ensure!(left[0][0].as_deref() == Some("0"), "merged rows stay staged: {left:?}");
    target.close().await?;
    Ok(())
}

/// A value that is not sent is the one that was sent last, in any of the deliveries that are merged together.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_were_not_sent_come_from_where_they_were_sent_last() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let (config, people) = (unhurried(&server), people());
    let target = live(&config, &people, &[ONE, TWO]).await?;
    let of = || Changes::of(&people);
    deliver(&target, 0x200, vec![of().update(&["1", "b1", KEPT, "11"]).update(&["2", KEPT, KEPT, "21"])])
        .await?;
    deliver(&target, 0x300, vec![of().update(&["1", KEPT, "n1", "12"]).insert(&["3", "b3", "n3", "30"])])
        .await?;
    deliver(&target, 0x400, vec![of().update(&["1", KEPT, KEPT, "13"]).update(&["3", KEPT, NULL, "31"])])
        .await?;
    // NULL is a value; a row that was deleted in between begins anew.
    deliver(&target, 0x500, vec![of().update(&["3", KEPT, KEPT, "32"]).delete("2")]).await?;
    deliver(&target, 0x600, vec![of().insert(&["2", "new", "new", "1"])]).await?;
    deliver(&target, 0x700, vec![of().update(&["2", KEPT, "newer", "2"])]).await?;
    let found = rows(&target, &people).await?;
    ensure!(found == ["1|b1|n1|13", "2|new|newer|2", "3|b3|<null>|32"], "{found:?}");
    target.close().await?;
    Ok(())
}

/// Columns whose numbers begin alike are told apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_column_is_kept_where_an_early_one_is_sent() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let names: Vec<String> = (0..13).map(|at| format!("c{at}")).collect();
    let columns: Vec<(&str, TypeKind)> = names.iter().map(|name| (name.as_str(), TypeKind::Text)).collect();
    let broad = table("broad", &columns, &[0]);
    let first: Vec<String> = (0..13).map(|at| format!("v{at}")).collect();
    let mut row: Vec<&str> = first.iter().map(String::as_str).collect();
    let config = unhurried(&server);
    let target = live(&config, &broad, &[&row]).await?;
    (row[1], row[12]) = ("new", KEPT);
    deliver(&target, 0x200, vec![Changes::of(&broad).update(&row)]).await?;
    (row[1], row[12]) = ("newer", KEPT);
    deliver(&target, 0x300, vec![Changes::of(&broad).update(&row)]).await?;
    ensure!(rows(&target, &broad).await? == ["v0|newer|v2|v3|v4|v5|v6|v7|v8|v9|v10|v11|v12"]);
    target.close().await?;
    Ok(())
}

/// Rows that change their keys and do not send their values, also twice before a merge, also where they swap keys.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_were_not_sent_go_with_a_row_that_changes_its_key() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let (config, people) = (unhurried(&server), people());
    let target = live(&config, &people, &[ONE, TWO]).await?;
    let of = || Changes::of(&people);
    deliver(&target, 0x200, vec![of().update(&["1", "fresh", KEPT, "11"])]).await?;
    deliver(&target, 0x300, vec![of().moved("1", &["7", KEPT, KEPT, "12"])]).await?;
    deliver(
        &target,
        0x400,
        vec![of().moved("7", &["8", KEPT, "moved", "13"]).update(&["2", KEPT, KEPT, "21"])],
    )
    .await?;
    let swap = of()
        .moved("2", &["0", KEPT, KEPT, "2"])
        .moved("8", &["2", KEPT, KEPT, "3"])
        .moved("0", &["8", KEPT, KEPT, "4"]);
    deliver(&target, 0x500, vec![swap]).await?;
    deliver(&target, 0x600, vec![of().update(&["8", KEPT, "last", "5"])]).await?;
    let found = rows(&target, &people).await?;
    ensure!(found == ["2|fresh|moved|3", "8|body two|last|5"], "{found:?}");
    target.close().await?;
    Ok(())
}

/// A process that dies leaves staged rows; the next one merges them, also where no change comes any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_process_has_staged_is_merged_by_the_next() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let (config_first, people) = (unhurried(&server), people());
    let target = live(&config_first, &people, &[ONE]).await?;
    deliver(&target, 0x200, vec![Changes::of(&people).update(&["1", KEPT, KEPT, "11"]).insert(TWO)]).await?;
    drop(target);
    let next = pgferry_target_databend::DatabendConfig {
        merge_interval: Duration::from_millis(100),
        ..config_first.clone()
    };
    let next = DatabendTarget::connect(next)?;
    let held = next.open(&task()).await?;
    ensure!(held.position == Some(at(0x200)), "{held:?}");
    next.prepare(&plan(&people)).await?;
    // As the engine does it after an error that passes, and once at every start.
    next.open(&task()).await?;
    let mut found = Vec::new();
    for _ in 0..100 {
        let asked = format!("SELECT id, body, note, n FROM {} ORDER BY id", place(&config_first, "people"));
        found = ask(&server, &asked).await?;
        if found.len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let shown: Vec<String> = found
        .iter()
        .map(|row| row.iter().flatten().map(String::as_str).collect::<Vec<_>>().join("|"))
        .collect();
    ensure!(shown == ["1|body one|note one|11", "2|body two|note two|20"], "{shown:?}");
    next.close().await?;
    Ok(())
}

/// Merges go on by themselves while deliveries come, and end with them.
#[tokio::test(flavor = "multi_thread")]
async fn the_table_follows_while_deliveries_come() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let (config, people) = (config(&server), people());
    let target = live(&config, &people, &[ONE]).await?;
    for number in 0..12u64 {
        let (id, n) = ((number % 5).to_string(), number.to_string());
        let changes = Changes::of(&people).delete(&id).insert(&[&id, "b", "n", &n]);
        deliver(&target, 0x200 + number, vec![changes]).await?;
    }
    let mut found = Vec::new();
    for _ in 0..100 {
        found = ask(&server, &format!("SELECT max(n), count(*) FROM {}", place(&config, "people"))).await?;
        if found[0][0].as_deref() == Some("11") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(found[0][0].as_deref() == Some("11") && found[0][1].as_deref() == Some("5"), "{found:?}");
    target.close().await?;
    Ok(())
}

/// A row whose unsent values are nowhere, and a table that was dropped, are told with the next changes of the table.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_merged_is_its_tables_error() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let (config, people) = (config(&server), people());
    let target = live(&config, &people, &[ONE]).await?;
    ask(&server, &format!("DELETE FROM {}", place(&config, "people"))).await?;
    deliver(&target, 0x200, vec![Changes::of(&people).update(&["1", KEPT, KEPT, "11"])]).await?;
    let mut told = None;
    for number in 1..100u64 {
        match target.apply(delivery(0x200 + number, vec![Changes::of(&people).insert(TWO)])?).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(failure) => {
                told = Some(failure);
                break;
            }
        }
    }
    let told = told.map(|failure| (failure.code(), failure.table().cloned()));
    ensure!(told == Some((ROW_MISSING, Some(people.name.clone()))), "{told:?}");
    ask(&server, &format!("DROP TABLE {}", place(&config, "people"))).await?;
    let gone = target.apply(delivery(0x900, vec![Changes::of(&people).insert(TWO)])?).await.err();
    ensure!(gone.as_ref().is_some_and(|failure| failure.code() == TABLE_GONE), "{gone:?}");
    target.close().await?;
    Ok(())
}

/// A large table is put into the order of its key once, before the first merge after its copy, whatever follows the copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_is_ordered_by_its_key_before_its_first_merge() -> Result<()> {
    let Some(server) = own_server(&DatabendSettings::default())? else { return Ok(()) };
    let large = |rows_estimated| Arc::new(Table { rows_estimated, ..(*people()).clone() });
    for (rows_estimated, orders) in [(1_000_000, 1), (999_999, 0)] {
        let (config, people) = (config(&server), large(rows_estimated));
        let target = follows(&config, &people, &[ONE, TWO], TableState::CatchingUp).await?;
        for through in [0x200, 0x300] {
            deliver(&target, through, vec![Changes::of(&people).update(&["1", "b", "n", "11"])]).await?;
            until_merged(&server, &config).await?;
        }
        let statement = format!("ALTER TABLE \"{}\"", config.database.as_deref().unwrap_or_default());
        let log = server.log();
        let of_it = |line: &&str| line.contains(&statement) && line.contains("RECLUSTER FINAL");
        let ordered: Vec<&str> = log.lines().filter(of_it).collect();
        ensure!(ordered.len() == orders, "a table of {rows_estimated} rows: {ordered:?}");
        ensure!(ordered.iter().all(|line| line.ends_with(": ok")), "{ordered:?}");
        ensure!(rows(&target, &people).await? == ["1|b|n|11", "2|body two|note two|20"]);
        target.close().await?;
    }
    Ok(())
}

async fn until_merged(server: &DatabendServer, config: &DatabendConfig) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    let asked = format!("SELECT count(*) FROM {}", raw(config, "people"));
    while ask(server, &asked).await?[0][0].as_deref() != Some("0") {
        ensure!(Instant::now() < until, "nothing is merged");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
