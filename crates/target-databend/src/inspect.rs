//! The read side: rows as PostgreSQL's own text, so that both sides can be compared byte by byte.
//!
//! Of a history, the rows as they are now. What is staged is merged first where this process holds the task; another process's merges are waited for.
//!
//! Limits: ordered output is sorted in memory; floats are written as PostgreSQL 12 and later write them.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use pgferry_columnar::Encoding;
use pgferry_model::{Cure, Error, Result, Table};
use pgferry_pipeline::{Inspect, TextRow};
use pgferry_values::array::array_text;
use pgferry_values::{number, time};

use crate::DatabendTarget;
use crate::document;
use crate::error::{REFUSED, UNMERGED};
use crate::mapping::ColumnType;
use crate::merge;
use crate::progress;
use crate::replay;
use crate::schema::{column_types, copy_name, qualified, quote, raw_name, target_name};
use crate::session::{Rows, Session, first_number};

/// The longest wait for the merges of another process.
const MERGED_WITHIN: Duration = Duration::from_secs(30);

#[async_trait]
impl Inspect for DatabendTarget {
    async fn count(&self, table: &Table) -> Result<u64> {
        let session = self.settled(table).await?;
        if self.settings.keeps_history() {
            return replay::count(&session, &self.settings, table).await;
        }
        let asked = format!("SELECT count(*) FROM {}", self.shown(table));
        let rows = session.ask("counting rows", &asked).await?;
        Ok(first_number(&rows))
    }

    async fn rows(
        &self,
        table: &Table,
        limit: Option<u64>,
        each: &mut (dyn FnMut(TextRow) -> Result<()> + Send),
    ) -> Result<()> {
        let session = self.settled(table).await?;
        let mut shown = if self.settings.keeps_history() {
            replay::rows(&session, &self.settings, table).await?
        } else {
            self.held_rows(&session, table).await?
        };
        let order: Vec<usize> =
            if table.key.is_empty() { (0..table.columns.len()).collect() } else { table.key.clone() };
        sort(&mut shown, &order);
        shown.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
        shown.into_iter().try_for_each(each)
    }
}

impl DatabendTarget {
    /// What holds the table's rows; of an unfinished copy beside rows from before the task two tables.
    fn shown(&self, table: &Table) -> String {
        let target = qualified(&target_name(&self.settings, table));
        let Some(holder) = self.holder() else { return target };
        if !holder.view.lock().appending.contains(&table.name) {
            return target;
        }
        let copy = qualified(&copy_name(&self.settings, &holder.task, &table.name));
        format!("(SELECT * FROM {target} UNION ALL SELECT * FROM {copy})")
    }

    async fn held_rows(&self, session: &Session, table: &Table) -> Result<Vec<TextRow>> {
        let types = column_types(&self.settings, table);
        let columns = table.columns.iter().zip(&types);
        let columns: Vec<String> =
            columns.map(|(column, kind)| as_text(&quote(&column.name), kind)).collect();
        let asked = format!("SELECT {} FROM {}", columns.join(", "), self.shown(table));
        let rows: Rows = session.ask("reading rows", &asked).await?;
        rows.into_iter().map(|row| text_row(row, &types)).collect()
    }

    /// A session, when everything that is staged is merged.
    async fn settled(&self, table: &Table) -> Result<Session> {
        if self.settings.keeps_history() {
            return Session::connect(&self.settings).await;
        }
        if let Some(holder) = self.holder() {
            merge::flush(&holder, table).await?;
            return Session::connect(&self.settings).await;
        }
        let session = Session::connect(&self.settings).await?;
        if !progress::is_made(&session, &self.settings).await? {
            return Ok(session);
        }
        let target = target_name(&self.settings, table);
        let owners = progress::owners(&session, &self.settings, None).await?;
        let Some(owner) = owners.iter().find(|owner| owner.target == target && *owner.source() == table.name)
        else {
            return Ok(session);
        };
        let raw = qualified(&raw_name(&self.settings, &owner.task, owner.source()));
        let until = Instant::now() + MERGED_WITHIN;
        loop {
            let rows =
                session.ask("looking at what is staged", &format!("SELECT count(*) FROM {raw}")).await?;
            match first_number(&rows) {
                0 => return Ok(session),
                _ if Instant::now() < until => tokio::time::sleep(Duration::from_millis(200)).await,
                staged => return Err(unmerged(table, staged)),
            }
        }
    }
}

fn unmerged(table: &Table, staged: u64) -> Error {
    Error::transient(UNMERGED, format!("{staged} changes of {} are staged and not yet merged", table.name))
        .with_cause("the process that staged them has ended before it merged them, or merges take long")
        .with_cure(Cure::advice("start the task, let it catch up, stop it; then look again"))
}

/// A row of [`as_text`]'s texts as PostgreSQL's.
pub(crate) fn text_row(row: Vec<Option<String>>, types: &[ColumnType]) -> Result<TextRow> {
    let cells = row.into_iter().zip(types).map(|(cell, kind)| match cell {
        Some(cell) => postgres_text(&cell, kind, &kind.encoding).map(Some),
        None => Ok(None),
    });
    cells.collect()
}

/// The statement's expression that gives a column as a text that says all of it.
pub(crate) fn as_text(column: &str, kind: &ColumnType) -> String {
    match &kind.encoding {
        // Within a list: by itself a document that is a text loses its quotes, and one that is null becomes NULL.
        Encoding::JsonbText if kind.is_variant() => {
            format!("IF({column} IS NULL, NULL, to_string(CAST([{column}] AS VARIANT)))")
        }
        Encoding::Binary => format!("hex({column})"),
        Encoding::Date | Encoding::Timestamp | Encoding::TimestampTz => {
            format!("to_string(to_int64({column}))")
        }
        Encoding::List(_) => {
            format!("to_string(CAST(CAST({column} AS ARRAY(STRING NULL) NULL) AS VARIANT NULL))")
        }
        _ => format!("to_string({column})"),
    }
}

/// A value as PostgreSQL's output function writes it in the pinned session.
fn postgres_text(cell: &str, kind: &ColumnType, encoding: &Encoding) -> Result<String> {
    let whole = |text: Option<String>| text.ok_or_else(|| not_shown(kind));
    match encoding {
        Encoding::Bool => Ok(if matches!(cell, "true" | "1") { "t" } else { "f" }.to_owned()),
        Encoding::Float32 => whole(float(cell).map(number::float4_text)),
        Encoding::Float64 => whole(float(cell).map(number::float8_text)),
        Encoding::Binary => Ok(format!("\\x{}", cell.to_ascii_lowercase())),
        Encoding::Date => whole(cell.parse().ok().map(time::date_text)),
        Encoding::Timestamp => whole(cell.parse().ok().map(|us| time::timestamp_text(us, false))),
        Encoding::TimestampTz => whole(cell.parse().ok().map(|us| time::timestamp_text(us, true))),
        Encoding::JsonbText if kind.is_variant() => whole(document::postgres_text(cell)),
        Encoding::List(element) => {
            let elements = document::texts(cell).ok_or_else(|| not_shown(kind))?;
            let texts = elements.into_iter().map(|text| match text {
                Some(text) => postgres_text(&text, kind, element).map(Some),
                None => Ok(None),
            });
            Ok(array_text(texts.collect::<Result<Vec<_>>>()?))
        }
        _ => Ok(cell.to_owned()),
    }
}

/// A float as Databend writes it: `1e20`, `NaN`, `inf`.
fn float<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn not_shown(kind: &ColumnType) -> Error {
    Error::task_broken(
        REFUSED,
        format!("a column of type {} cannot be shown as PostgreSQL's text", kind.name),
    )
    .with_cause("something else than this task has made or altered the table")
    .with_cure(Cure::advice("have the task make the table: if_target_exists = \"replace\""))
}

fn sort(rows: &mut [TextRow], order: &[usize]) {
    let rank = |row: &TextRow, at: usize| (row[at].is_none(), row[at].clone());
    rows.sort_by(|left, right| {
        order
            .iter()
            .map(|&at| rank(left, at).cmp(&rank(right, at)))
            .find(|found| found.is_ne())
            .unwrap_or(std::cmp::Ordering::Equal)
    });
}
