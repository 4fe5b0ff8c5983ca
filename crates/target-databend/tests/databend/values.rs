//! Values that Databend's types do not hold, by the user's choice for their column.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pgferry_model::{Class, Table, TypeKind};
use pgferry_pipeline::Target;
use pgferry_target_databend::error::NOT_REPRESENTABLE;
use pgferry_target_databend::{ColumnChoice, DatabendConfig, Misfit};

use crate::making::{Changes, config, deliver, delivery, live, rows, server, table};

fn moments() -> Arc<Table> {
    let columns = [
        ("id", TypeKind::Int4),
        ("day", TypeKind::Date),
        ("at", TypeKind::TimestampTz),
        ("price", TypeKind::Numeric { precision_and_scale: Some((10, 2)) }),
        ("doc", TypeKind::Jsonb),
        ("wide", TypeKind::Numeric { precision_and_scale: Some((76, 20)) }),
    ];
    table("moments", &columns, &[0])
}

/// Of each column a value at the edge, and one beyond it.
fn edges() -> Vec<(usize, &'static str, String)> {
    let digits = |count: usize| format!("[{}]", "7".repeat(count));
    vec![
        (1, "0001-01-01", "0001-12-31 BC".to_owned()),
        (1, "9999-12-31", "10000-01-01".to_owned()),
        (1, "9999-12-31", "infinity".to_owned()),
        (2, "0001-01-01 00:00:00+00", "0001-12-31 23:59:59+00 BC".to_owned()),
        (2, "9999-12-30 22:00:00+00", "9999-12-30 22:00:00.000001+00".to_owned()),
        (2, "2024-02-29 12:00:00.123456+00", "-infinity".to_owned()),
        (3, "-99999999.99", "NaN".to_owned()),
        (4, "[1.10]", digits(77)),
        (5, WIDEST, format!("1{}", "0".repeat(56))),
    ]
}

const WIDEST: &str = "-99999999999999999999999999999999999999999999999999999999.99999999999999999999";
const USUAL: [&str; 6] =
    ["1", "2024-02-29", "2024-02-29 12:00:00+00", "1.50", "{\"a\": 1}", "0.00000000000000000001"];

fn with(choice: &ColumnChoice, config: DatabendConfig, table: &Table) -> DatabendConfig {
    let columns =
        table.columns.iter().map(|column| ((table.name.clone(), column.name.to_string()), choice.clone()));
    DatabendConfig { columns: columns.collect(), ..config }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_beyond_the_edge_set_the_table_aside() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let moments = moments();
    let target = live(&config(&server), &moments, &[&USUAL]).await?;
    for (number, (at, fits, beyond)) in edges().iter().enumerate() {
        let through = 0x200 + number as u64 * 0x10;
        let mut row = USUAL;
        row[*at] = beyond;
        let failure = target.apply(delivery(through, vec![Changes::of(&moments).update(&row)])?).await.err();
        let failure = failure.with_context(|| format!("a value of column {at} beyond the edge was taken"))?;
        ensure!(failure.code() == NOT_REPRESENTABLE && failure.class() == Class::TableBroken, "{failure:?}");
        let told = format!("{failure} {:?}", failure.cause());
        ensure!(*beyond == "NaN" || !told.contains(beyond.as_str()), "the error shows the value: {told}");
        row[*at] = fits;
        deliver(&target, through, vec![Changes::of(&moments).update(&row)]).await?;
        ensure!(rows(&target, &moments).await? == [row.join("|")], "{fits} is another value now");
    }
    target.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn values_beyond_the_edge_become_null_where_the_user_says_so() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let moments = moments();
    let choice = ColumnChoice { misfit: Misfit::Null, ..ColumnChoice::default() };
    let config = with(&choice, config(&server), &moments);
    // Beside values that fit, so that only theirs are lost.
    let (mut beyond, mut wanted) = (Vec::new(), Vec::new());
    for (number, (at, fits, value)) in edges().into_iter().enumerate() {
        for value in [fits.to_owned(), value] {
            let id = (10 + beyond.len()).to_string();
            let mut row: Vec<String> = USUAL.iter().map(|&cell| cell.to_owned()).collect();
            (row[0], row[at]) = (id, value.clone());
            beyond.push(row.clone());
            if value != fits {
                row[at] = "<null>".to_owned();
            }
            wanted.push(row.join("|"));
            ensure!(number < 9);
        }
    }
    let cells: Vec<Vec<&str>> = beyond.iter().map(|row| row.iter().map(String::as_str).collect()).collect();
    let copied: Vec<&[&str]> = cells.iter().map(Vec::as_slice).collect();
    let target = live(&config, &moments, &copied).await?;
    ensure!(rows(&target, &moments).await? == wanted, "{:#?}", rows(&target, &moments).await?);
    let changes = copied.iter().fold(Changes::of(&moments), |changes, row| changes.update(row));
    deliver(&target, 0x200, vec![changes]).await?;
    ensure!(rows(&target, &moments).await? == wanted, "changes became other values than copied rows");
    target.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_is_kept_as_text_where_the_user_says_so() -> Result<()> {
    let Some(server) = server()? else { return Ok(()) };
    let moments = moments();
    let choice = ColumnChoice { target_type: Some("string".to_owned()), ..ColumnChoice::default() };
    let config = with(&choice, config(&server), &moments);
    let target = live(&config, &moments, &[&USUAL]).await?;
    for (number, (at, _, beyond)) in edges().iter().enumerate() {
        let mut row = USUAL;
        row[*at] = beyond;
        deliver(&target, 0x200 + number as u64, vec![Changes::of(&moments).update(&row)]).await?;
        ensure!(rows(&target, &moments).await? == [row.join("|")], "{beyond} is another value now");
    }
    target.close().await?;
    Ok(())
}
