//! The read side: rows as PostgreSQL's own text, so that both sides can be compared byte by byte.
//!
//! Limits: ordered output is sorted in memory, with a limit on the number of rows only as many as that are held; floats are written as PostgreSQL 12 and later write them.

use arrow::array::{
    Array, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, ListArray,
    RecordBatch, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{
    DataType as ArrowType, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, UInt32Type,
};
use async_trait::async_trait;
use pgferry_model::{Cure, Error, Result, Table};
use pgferry_pipeline::error::worker_lost;
use pgferry_pipeline::{Inspect, TextRow};
use pgferry_values::array::array_text;
use pgferry_values::{bytes, number, time};

use crate::DuckdbTarget;
use crate::error::{STATEMENT, refused};
use crate::schema::{qualified, quote, target_name};

#[async_trait]
impl Inspect for DuckdbTarget {
    async fn count(&self, table: &Table) -> Result<u64> {
        let name = qualified(&target_name(&self.config, table));
        let connection = self.reading()?;
        let counting = tokio::task::spawn_blocking(move || {
            connection
                .query_row(&format!("SELECT count(*) FROM {name}"), [], |row| row.get::<_, u64>(0))
                .map_err(|failure| refused("counting rows", failure))
        });
        counting.await.unwrap_or_else(|lost| Err(lost_thread(lost)))
    }

    async fn rows(
        &self,
        table: &Table,
        limit: Option<u64>,
        each: &mut (dyn FnMut(TextRow) -> Result<()> + Send),
    ) -> Result<()> {
        let columns: Vec<String> = table.columns.iter().map(|column| quote(&column.name)).collect();
        let statement =
            format!("SELECT {} FROM {}", columns.join(", "), qualified(&target_name(&self.config, table)));
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        let order: Vec<usize> =
            if table.key.is_empty() { (0..table.columns.len()).collect() } else { table.key.clone() };
        let connection = self.reading()?;
        let reading =
            tokio::task::spawn_blocking(move || read_sorted(&connection, &statement, &order, limit));
        for row in reading.await.unwrap_or_else(|lost| Err(lost_thread(lost)))? {
            each(row)?;
        }
        Ok(())
    }
}

fn lost_thread(lost: tokio::task::JoinError) -> Error {
    worker_lost("a thread of the DuckDB target ended without a result").with_origin(lost)
}

/// Rows beyond the limit that are held before the last ones in order are dropped.
const ROWS_BEYOND: usize = 8_192;

fn read_sorted(
    connection: &duckdb::Connection,
    statement: &str,
    order: &[usize],
    limit: usize,
) -> Result<Vec<TextRow>> {
    let reading = |failure| refused("reading rows", failure);
    let mut statement = connection.prepare(statement).map_err(reading)?;
    let mut rows: Vec<TextRow> = Vec::new();
    // As a stream: as a whole the result would have to fit in DuckDB's memory. The library panics where reading fails later on; the
    // end of this thread is then the error.
    for batch in statement.stream_arrow([]).map_err(reading)? {
        text_rows(&batch, &mut rows)?;
        if rows.len() > limit.saturating_add(ROWS_BEYOND) {
            sort(&mut rows, order);
            rows.truncate(limit);
        }
    }
    sort(&mut rows, order);
    rows.truncate(limit);
    Ok(rows)
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

fn text_rows(batch: &RecordBatch, rows: &mut Vec<TextRow>) -> Result<()> {
    for row in 0..batch.num_rows() {
        let mut cells = Vec::with_capacity(batch.num_columns());
        for column in batch.columns() {
            cells.push(text(column.as_ref(), row)?);
        }
        rows.push(cells);
    }
    Ok(())
}

/// A value as PostgreSQL's output function writes it in the pinned session.
fn text(array: &dyn Array, row: usize) -> Result<Option<String>> {
    if array.is_null(row) {
        return Ok(None);
    }
    let any = array.as_any();
    let found = match array.data_type() {
        ArrowType::Boolean => any
            .downcast_ref::<BooleanArray>()
            .map(|array| if array.value(row) { "t" } else { "f" }.to_owned()),
        ArrowType::Int16 => Some(array.as_primitive::<Int16Type>().value(row).to_string()),
        ArrowType::Int32 => Some(array.as_primitive::<Int32Type>().value(row).to_string()),
        ArrowType::Int64 => Some(array.as_primitive::<Int64Type>().value(row).to_string()),
        ArrowType::UInt32 => Some(array.as_primitive::<UInt32Type>().value(row).to_string()),
        ArrowType::Float32 => Some(number::float4_text(array.as_primitive::<Float32Type>().value(row))),
        ArrowType::Float64 => Some(number::float8_text(array.as_primitive::<Float64Type>().value(row))),
        ArrowType::Decimal128(_, scale) => {
            any.downcast_ref::<Decimal128Array>().map(|array| number::decimal_text(array.value(row), *scale))
        }
        ArrowType::Utf8 => any.downcast_ref::<StringArray>().map(|array| array.value(row).to_owned()),
        ArrowType::Binary => {
            any.downcast_ref::<BinaryArray>().map(|array| bytes::bytea_text(array.value(row)))
        }
        ArrowType::FixedSizeBinary(16) => any
            .downcast_ref::<FixedSizeBinaryArray>()
            .and_then(|array| array.value(row).try_into().ok().map(bytes::uuid_text)),
        ArrowType::Date32 => any.downcast_ref::<Date32Array>().map(|array| time::date_text(array.value(row))),
        ArrowType::Time64(_) => {
            any.downcast_ref::<Time64MicrosecondArray>().map(|array| time::time_text(array.value(row)))
        }
        ArrowType::Timestamp(_, zone) => any
            .downcast_ref::<TimestampMicrosecondArray>()
            .map(|array| time::timestamp_text(array.value(row), zone.is_some())),
        ArrowType::List(_) => match any.downcast_ref::<ListArray>() {
            Some(array) => Some(list(array.value(row).as_ref())?),
            None => None,
        },
        _ => None,
    };
    match found {
        Some(text) => Ok(Some(text)),
        None => Err(Error::task_broken(
            STATEMENT,
            format!("a column of type {} cannot be shown as PostgreSQL's text", array.data_type()),
        )
        .with_cause("something else than this task has made or altered the table")
        .with_cure(Cure::advice(
            "leave the table out, or have the task make it: if_target_exists = \"replace\"",
        ))),
    }
}

fn list(elements: &dyn Array) -> Result<String> {
    let texts = (0..elements.len()).map(|row| text(elements, row)).collect::<Result<Vec<_>>>()?;
    Ok(array_text(texts))
}
