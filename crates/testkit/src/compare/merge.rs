//! Walks both sides' ordered rows at once and notes what differs.
//!
//! Invariant: each side's order is checked as it is read, because a row out of order would pair with nothing and the
//! report would be wrong.

use std::cmp::Ordering;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;

use super::{ComparedTable, Difference, DifferenceKind, Report, Row, RowStream, SourceRows, TargetRows};

const SHOWN: usize = 200;

/// Compares `tables` of the source with the target and lists at most `most` differences.
///
/// # Errors
/// When a side cannot be read, is out of order, or gives rows of another width.
pub async fn compare(
    source: &mut SourceRows,
    target: &mut dyn TargetRows,
    tables: &[ComparedTable],
    most: usize,
) -> Result<Report> {
    let mut report = Report::default();
    for table in tables {
        report.tables += 1;
        let from = source.rows(table).await?.with_context(|| format!("the source has no table {table}"))?;
        let Some(to) = target.rows(table).await.with_context(|| format!("the target's {table}"))? else {
            note(&mut report, most, table, None, None, DifferenceKind::MissingTable);
            continue;
        };
        compare_table(table, from, to, most, &mut report)
            .await
            .with_context(|| format!("comparing {table}"))?;
    }
    Ok(report)
}

async fn compare_table(
    table: &ComparedTable,
    from: RowStream<'_>,
    to: RowStream<'_>,
    most: usize,
    report: &mut Report,
) -> Result<()> {
    let mut source = Side::new("source", table, from);
    let mut target = Side::new("target", table, to);
    source.advance().await?;
    target.advance().await?;
    loop {
        let order = match (&source.row, &target.row) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(two)) => by_order(&source.order, one, two),
        };
        if order != Ordering::Greater {
            report.rows += 1;
        }
        match order {
            Ordering::Less => {
                note(report, most, table, source.row.as_ref(), None, DifferenceKind::MissingRow);
                source.advance().await?;
            }
            Ordering::Greater => {
                note(report, most, table, target.row.as_ref(), None, DifferenceKind::ExtraRow);
                target.advance().await?;
            }
            Ordering::Equal => {
                if let (Some(one), Some(two)) = (&source.row, &target.row) {
                    compare_cells(table, one, two, most, report);
                }
                source.advance().await?;
                target.advance().await?;
            }
        }
    }
}

fn compare_cells(table: &ComparedTable, source: &Row, target: &Row, most: usize, report: &mut Report) {
    for (at, (one, two)) in source.iter().zip(target).enumerate() {
        if one != two {
            let kind = DifferenceKind::Cell { source: shortened(one), target: shortened(two) };
            note(report, most, table, Some(source), table.columns.get(at), kind);
        }
    }
}

/// One side's stream with its current row.
struct Side<'a> {
    name: &'static str,
    width: usize,
    order: Vec<usize>,
    unique: bool,
    stream: RowStream<'a>,
    row: Option<Row>,
}

impl<'a> Side<'a> {
    fn new(name: &'static str, table: &ComparedTable, stream: RowStream<'a>) -> Self {
        Self {
            name,
            width: table.columns.len(),
            order: table.order(),
            unique: !table.key.is_empty(),
            stream,
            row: None,
        }
    }

    async fn advance(&mut self) -> Result<()> {
        let next =
            self.stream.next().await.transpose().with_context(|| format!("reading the {}", self.name))?;
        if let Some(next) = &next {
            // COPY writes a row without columns as an empty line, which reads as one empty cell.
            ensure!(
                next.len() == self.width.max(1),
                "the {} gives {} cells for {} columns",
                self.name,
                next.len(),
                self.width
            );
            if let Some(last) = &self.row {
                let order = by_order(&self.order, last, next);
                // A key twice is a fault of the target that the merge reports as an extra row.
                let fits = order == Ordering::Less
                    || (order == Ordering::Equal && (!self.unique || self.name == "target"));
                ensure!(fits, "the {} does not give its rows in the order of their key's text", self.name);
            }
        }
        self.row = next;
        Ok(())
    }
}

/// Byte order of the identifying cells, NULL last.
fn by_order(order: &[usize], one: &Row, two: &Row) -> Ordering {
    for at in order {
        let cells = (one.get(*at).and_then(Option::as_ref), two.get(*at).and_then(Option::as_ref));
        let order = match cells {
            (Some(one), Some(two)) => one.as_bytes().cmp(two.as_bytes()),
            (one, two) => one.is_none().cmp(&two.is_none()),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

fn note(
    report: &mut Report,
    most: usize,
    table: &ComparedTable,
    row: Option<&Row>,
    column: Option<&String>,
    kind: DifferenceKind,
) {
    report.found += 1;
    if report.differences.len() < most {
        let key = row.map(|row| table.order().iter().filter_map(|at| row.get(*at)).map(shortened).collect());
        let key = key.unwrap_or_default();
        report.differences.push(Difference { table: table.to_string(), key, column: column.cloned(), kind });
    }
}

fn shortened(cell: &Option<String>) -> Option<String> {
    cell.as_ref().map(|text| text.chars().take(SHOWN).collect())
}
