//! Decimals of more than 38 digits: exact on every way into a table, as values and as keys.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pgferry_model::{Class, Table, TableState, TypeKind};
use pgferry_pipeline::{CopyMark, IfTargetExists, TablePlan, Target};
use pgferry_target_databend::error::{NOT_REPRESENTABLE, SCHEMA_INCOMPATIBLE};
use pgferry_target_databend::{ColumnChoice, DatabendConfig, DatabendTarget};
use pgferry_testkit::databend::DatabendServer;

use crate::making::{
    Changes, KEPT, NULL, ask, at, deliver, delivery, live, load, place, plan, rows, server, table, task,
    unhurried,
};

fn numeric(precision: u16, scale: i16) -> TypeKind {
    TypeKind::Numeric { precision_and_scale: Some((precision, scale)) }
}

/// `chosen` has no precision of its own; the task file says `decimal(50,2)`.
fn amounts() -> Arc<Table> {
    let columns = [
        ("id", TypeKind::Int4),
        ("whole", numeric(76, 0)),
        ("middle", numeric(76, 38)),
        ("fraction", numeric(76, 76)),
        ("chosen", TypeKind::Numeric { precision_and_scale: None }),
    ];
    table("amounts", &columns, &[0])
}

fn with_choice(server: &DatabendServer) -> DatabendConfig {
    let choice = ColumnChoice { target_type: Some("decimal(50,2)".to_owned()), ..ColumnChoice::default() };
    let mut config = unhurried(server);
    config.columns.insert((amounts().name.clone(), "chosen".to_owned()), choice);
    config
}

/// Digits that differ from number to number in both halves.
fn digits(number: usize, count: usize) -> String {
    (1..=count).map(|at| char::from(b'1' + ((number * 7 + at * at) % 9) as u8)).collect()
}

/// Many rows have the same values: blocks are stored in another way where that is so.
fn row(id: usize) -> [String; 5] {
    let number = id % 11;
    let sign = if number.is_multiple_of(2) { "" } else { "-" };
    // Few digits as well as all of them.
    let whole = 76 - number * 7;
    [
        id.to_string(),
        format!("{sign}{}", digits(number, whole)),
        format!("{sign}{}.{}", digits(number, whole.min(38)), digits(number + 1, 38)),
        format!("{sign}0.{}{}", "0".repeat(76 - whole), digits(number, whole)),
        format!("{sign}{}.{}", digits(number, whole.min(48)), digits(number, 2)),
    ]
}

fn cells(row: &[String]) -> Vec<&str> {
    row.iter().map(String::as_str).collect()
}

fn sorted(mut rows: Vec<String>) -> Vec<String> {
    rows.sort();
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_decimals_are_exact_in_copies_changes_and_merges() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let (config, amounts) = (with_choice(&server), amounts());
    let mut wanted: Vec<[String; 5]> = (0..200).map(row).collect();
    let copied: Vec<Vec<&str>> = wanted.iter().map(|row| cells(row)).collect();
    let copied: Vec<&[&str]> = copied.iter().map(Vec::as_slice).collect();
    let target = live(&config, &amounts, &copied).await?;
    let joined = |rows: &[[String; 5]]| sorted(rows.iter().map(|row| row.join("|")).collect());
    ensure!(sorted(rows(&target, &amounts).await?) == joined(&wanted), "a copy has changed values");
    let asked =
        "SELECT type FROM system.columns WHERE table = 'amounts' AND database = currentdb ORDER BY name";
    let database = config.database.as_deref().context("a database")?;
    let types = ask(&server, &asked.replace("currentdb", &format!("'{database}'"))).await?;
    let types: Vec<&str> = types.iter().filter_map(|row| row[0].as_deref()).collect();
    let nullable = |inner: &str| format!("Nullable({inner})");
    ensure!(
        types
            == [
                nullable("Decimal(50, 2)"),
                nullable("Decimal(76, 76)"),
                "Int32".to_owned(),
                nullable("Decimal(76, 38)"),
                nullable("Decimal(76, 0)"),
            ],
        "{types:?}"
    );
    // Numbers by the server's own reckoning, not only in its texts.
    let equal = format!("SELECT count(*) FROM {} WHERE whole = {}", place(&config, "amounts"), wanted[1][1]);
    let same = wanted.iter().filter(|row| row[1] == wanted[1][1]).count().to_string();
    ensure!(ask(&server, &equal).await?[0][0].as_ref() == Some(&same), "{equal} is not {same}");

    // Some are sent now, some were sent by an earlier change, some are only in the table; NULL is sent, too.
    let (mut first, mut second) = (Changes::of(&amounts), Changes::of(&amounts));
    for (at, row_wanted) in wanted.iter_mut().enumerate().take(100) {
        let new = row(at / 10);
        let id = at.to_string();
        first = first.update(&[&id, &new[1], KEPT, KEPT, &new[4]]);
        second = second.update(&[&id, KEPT, &new[2], KEPT, NULL]);
        let [_, whole, middle, _, chosen] = row_wanted;
        (*whole, *middle, *chosen) = (new[1].clone(), new[2].clone(), NULL.to_owned());
    }
    deliver(&target, 0x200, vec![first]).await?;
    deliver(&target, 0x300, vec![second]).await?;
    ensure!(sorted(rows(&target, &amounts).await?) == joined(&wanted), "a merge has changed values");
    // Twice more: the table's own values are read and written again.
    deliver(&target, 0x400, vec![Changes::of(&amounts).moved("3", &["3000", KEPT, KEPT, KEPT, KEPT])])
        .await?;
    deliver(&target, 0x500, vec![Changes::of(&amounts).delete("4")]).await?;
    wanted[3][0] = "3000".to_owned();
    wanted.remove(4);
    ensure!(sorted(rows(&target, &amounts).await?) == joined(&wanted), "a moved row has changed values");
    target.close().await?;
    Ok(())
}

/// Found by their values, also where only the lower or only the upper half differs.
#[tokio::test(flavor = "multi_thread")]
async fn wide_decimals_are_keys() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let columns = [("id", numeric(60, 4)), ("body", TypeKind::Text)];
    let numbers = table("numbers", &columns, &[0]);
    let high = |digit: char| format!("{digit}{}.0000", "0".repeat(55));
    let (one, two) = (high('1'), high('2'));
    let (low, negative) = (format!("{}1.0001", &one[..55]), format!("-{one}"));
    let copied: [&[&str]; 4] = [&[&one, "one"], &[&two, "two"], &[&low, "low"], &[&negative, "negative"]];
    let target = live(&unhurried(&server), &numbers, &copied).await?;
    let changes = Changes::of(&numbers)
        .update(&[&low, "low, again"])
        .delete(&two)
        .insert(&["0.0001", "small"])
        .moved(&negative, &[&two, KEPT]);
    deliver(&target, 0x200, vec![changes]).await?;
    deliver(&target, 0x300, vec![Changes::of(&numbers).update(&[&one, "one, again"])]).await?;
    let wanted = [
        "0.0001|small".to_owned(),
        format!("{one}|one, again"),
        format!("{low}|low, again"),
        format!("{two}|negative"),
    ];
    let found = sorted(rows(&target, &numbers).await?);
    ensure!(found == sorted(wanted.to_vec()), "{found:#?}");
    target.close().await?;
    Ok(())
}

/// A table of the user's: of one storage format it is refused, of the other it is joined.
#[tokio::test(flavor = "multi_thread")]
async fn an_existing_table_has_to_hold_wide_decimals() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let numbers = table("numbers", &[("id", TypeKind::Int4), ("n", numeric(40, 0))], &[0]);
    let config = unhurried(&server);
    let (database, place) = (config.database.as_deref().context("a database")?, place(&config, "numbers"));
    ask(&server, &format!("CREATE DATABASE {database}")).await?;
    let append = TablePlan { if_exists: IfTargetExists::Append, ..plan(&numbers) };
    let big = "9".repeat(40);
    for format in ["native", "parquet"] {
        let made = format!("(id INT NOT NULL, n DECIMAL(40,0) NULL) STORAGE_FORMAT='{format}'");
        ask(&server, &format!("CREATE OR REPLACE TABLE {place} {made}")).await?;
        ask(&server, &format!("INSERT INTO {place} VALUES (1, 1)")).await?;
        let target = DatabendTarget::connect(config.clone())?;
        target.open(&task()).await?;
        let prepared = target.prepare(&append).await;
        if format == "native" {
            let refused = prepared.err().context("a table of the format native was taken")?;
            ensure!(refused.code() == SCHEMA_INCOMPATIBLE, "{refused:?}");
            let checked = target.check(std::slice::from_ref(&append)).await?;
            ensure!(checked.iter().any(|found| found.code == Some(SCHEMA_INCOMPATIBLE)), "{checked:?}");
            continue;
        }
        prepared?;
        target.begin_copy(&numbers, CopyMark { cut: at(100), stream_start: Some(at(100)) }).await?;
        let copied: Vec<String> = (2..50).map(|id| id.to_string()).collect();
        let copied: Vec<[&str; 2]> = copied.iter().map(|id| [id.as_str(), big.as_str()]).collect();
        let copied: Vec<&[&str]> = copied.iter().map(|row| &row[..]).collect();
        load(&target, &numbers, 0, &copied).await?;
        target.set_state(&numbers, TableState::Live).await?;
        let found = ask(&server, &format!("SELECT n, count(*) FROM {place} GROUP BY n ORDER BY n")).await?;
        let found: Vec<String> = found.into_iter().flatten().flatten().collect();
        ensure!(found == ["1", "1", &big, "48"], "{found:?}");
        target.close().await?;
    }
    Ok(())
}

/// Nothing is rounded.
#[tokio::test(flavor = "multi_thread")]
async fn wide_decimals_that_do_not_fit_are_refused() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let amounts = amounts();
    let usual = ["1", "1", "1.10", "0.5", "1.500"];
    let target = live(&with_choice(&server), &amounts, &[&usual]).await?;
    let shown = |chosen: &str| format!("1|1|1.{:0<38}|0.{:0<76}|{chosen}", "10", "5");
    ensure!(rows(&target, &amounts).await? == [shown("1.50")], "{:?}", rows(&target, &amounts).await?);
    let digits = |count: usize| "9".repeat(count);
    for (at, value) in [
        (1, digits(77)),
        (1, "NaN".to_owned()),
        (2, digits(39)),
        (3, "1".to_owned()),
        (4, "0.005".to_owned()),
        (4, "-Infinity".to_owned()),
        (4, digits(49)),
    ] {
        let mut row = usual;
        row[at] = &value;
        let refused = target.apply(delivery(0x200, vec![Changes::of(&amounts).update(&row)])?).await.err();
        let refused = refused.with_context(|| format!("{value} was taken"))?;
        ensure!(refused.code() == NOT_REPRESENTABLE && refused.class() == Class::TableBroken, "{refused:?}");
    }
    let mut row = usual;
    let widest = format!("{}.99", digits(48));
    row[4] = &widest;
    deliver(&target, 0x200, vec![Changes::of(&amounts).update(&row)]).await?;
    ensure!(rows(&target, &amounts).await? == [shown(&widest)], "{:?}", rows(&target, &amounts).await?);
    target.close().await?;
    Ok(())
}
