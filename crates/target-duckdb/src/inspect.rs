//! The read side: counts, and rows in PostgreSQL's own text forms, in the order of their keys' text.
//!
//! Where a key's text order is DuckDB's own, one query sorts. Where DuckDB writes a type in another form than PostgreSQL
//! (floats, times, decimals, lists), keys are first written to a temporary table in PostgreSQL's form, and sorted there; either way
//! DuckDB sorts within its memory limit.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringBuilder, UInt64Array};
use arrow::datatypes::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType, UInt32Type,
};
use arrow::datatypes::{DataType, Field, Schema};
use pgferry_columnar::{Encoding, format};
use pgferry_model::{Error, Result, Table};
use pgferry_pipeline::TextRow;

use crate::database::Session;
use crate::error;
use crate::mapping::Mapped;
use crate::schema::{quoted, quoted_table};
use crate::write::Destined;

/// The temporary table of rows' numbers and keys.
const ORDER: &str = "pgferry_order";

/// Number of rows.
pub(crate) fn count(session: &Session, to: &Destined) -> Result<u64> {
    session
        .connection
        .query_row(&format!("SELECT count(*) FROM {}", quoted_table(&to.target)), [], |row| row.get(0))
        .map_err(|failure| session.database.failed(&failure, &format!("counting {}", to.target)))
}

/// Calls `each` with batches of rows, in the order of their keys' text; stops when it returns false.
pub(crate) fn rows(
    session: &Session,
    table: &Table,
    to: &Destined,
    limit: Option<u64>,
    mut each: impl FnMut(Vec<TextRow>) -> bool,
) -> Result<()> {
    let key: Vec<usize> = if table.key.is_empty() { (0..to.columns.len()).collect() } else { table.key.clone() };
    let selected: Vec<String> =
        table.columns.iter().zip(&to.columns).map(|(column, mapped)| readable(&column.name, mapped)).collect();
    let limit = limit.map(|limit| format!(" LIMIT {limit}")).unwrap_or_default();
    let name = quoted_table(&to.target);
    let direct: Option<Vec<String>> =
        key.iter().map(|&column| text_order(&table.columns[column].name, &to.columns[column])).collect();
    let sql = match direct {
        Some(order) => {
            format!("SELECT {} FROM {name} AS t ORDER BY {}{limit}", selected.join(", "), nulls_first(&order))
        }
        None => {
            write_order(session, table, to, &key)?;
            let order: Vec<String> = (0..key.len()).map(|at| format!("o.k{at}")).collect();
            format!(
                "SELECT {} FROM {name} AS t JOIN temp.{ORDER} AS o ON t.rowid = o.row_number ORDER BY {}{limit}",
                selected.join(", "),
                nulls_first(&order)
            )
        }
    };
    read(session, to, &sql, |batch| {
        let mut rows = vec![TextRow::with_capacity(to.columns.len()); batch.num_rows()];
        for (array, mapped) in batch.columns().iter().zip(&to.columns) {
            for (row, cells) in rows.iter_mut().enumerate() {
                cells.push(cell(array, row, &mapped.encoding)?);
            }
        }
        Ok(each(rows))
    })
}

fn nulls_first(order: &[String]) -> String {
    order.iter().map(|expression| format!("{expression} NULLS FIRST")).collect::<Vec<_>>().join(", ")
}

/// A column in a form that comes back in one known Arrow type.
fn readable(name: &str, mapped: &Mapped) -> String {
    let column = format!("t.{}", quoted(name));
    match &mapped.encoding {
        Encoding::Uuid => format!("CAST({column} AS VARCHAR)"),
        Encoding::List(element) if **element == Encoding::Uuid => format!("CAST({column} AS VARCHAR[])"),
        _ => column,
    }
}

/// What sorts as PostgreSQL's text does, where DuckDB can tell by itself.
fn text_order(name: &str, mapped: &Mapped) -> Option<String> {
    let column = format!("t.{}", quoted(name));
    match mapped.encoding {
        Encoding::Int16 | Encoding::Int32 | Encoding::Int64 | Encoding::UInt32 | Encoding::Uuid | Encoding::Bool => {
            Some(format!("CAST({column} AS VARCHAR)"))
        }
        Encoding::Utf8 => Some(column),
        Encoding::Binary => Some(format!("hex({column})")),
        _ => None,
    }
}

/// Writes every row's number and its key in PostgreSQL's text.
fn write_order(session: &Session, table: &Table, to: &Destined, key: &[usize]) -> Result<()> {
    let failed = |failure: duckdb::Error| session.database.failed(&failure, &format!("sorting {}", to.target));
    let columns: Vec<String> = (0..key.len()).map(|at| format!(", k{at} VARCHAR")).collect();
    session.run(
        &format!("CREATE OR REPLACE TEMP TABLE {ORDER} (row_number UBIGINT{})", columns.concat()),
        "making a sorting table",
    )?;
    let selected: Vec<String> =
        key.iter().map(|&column| readable(&table.columns[column].name, &to.columns[column])).collect();
    let sql = format!("SELECT CAST(t.rowid AS UBIGINT), {} FROM {} AS t", selected.join(", "), quoted_table(&to.target));
    // A result that is still being read and an appender cannot share a connection.
    let reader = session.database.session()?;
    let mut appender = session.connection.appender_to_catalog_and_db(ORDER, "temp", "main").map_err(failed)?;
    read(&reader, to, &sql, |batch| {
        appender.append_record_batch(order_batch(&batch, to, key)?).map_err(failed)?;
        Ok(true)
    })?;
    appender.flush().map_err(failed)
}

fn order_batch(batch: &RecordBatch, to: &Destined, key: &[usize]) -> Result<RecordBatch> {
    let numbers: UInt64Array = batch.column(0).as_primitive::<arrow::datatypes::UInt64Type>().clone();
    let mut fields = vec![Field::new("row_number", DataType::UInt64, false)];
    let mut arrays: Vec<ArrayRef> = vec![Arc::new(numbers)];
    for (at, &column) in key.iter().enumerate() {
        let mut texts = StringBuilder::with_capacity(batch.num_rows(), batch.num_rows() * 16);
        for row in 0..batch.num_rows() {
            texts.append_option(cell(batch.column(at + 1), row, &to.columns[column].encoding)?);
        }
        fields.push(Field::new(format!("k{at}"), DataType::Utf8, true));
        arrays.push(Arc::new(texts.finish()));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|_| unreadable())
}

fn read(
    session: &Session,
    to: &Destined,
    sql: &str,
    mut each: impl FnMut(RecordBatch) -> Result<bool>,
) -> Result<()> {
    let failed = |failure: duckdb::Error| session.database.failed(&failure, &format!("reading {}", to.target));
    let mut statement = session.connection.prepare(sql).map_err(failed)?;
    for batch in statement.stream_arrow([]).map_err(failed)? {
        if !each(batch)? {
            break;
        }
    }
    Ok(())
}

fn unreadable() -> Error {
    Error::task_broken(error::FAILED, "a value of the target cannot be read back")
}

/// A value as PostgreSQL's output function writes it.
fn cell(array: &ArrayRef, row: usize, encoding: &Encoding) -> Result<Option<String>> {
    if array.is_null(row) {
        return Ok(None);
    }
    let mut out = Vec::new();
    write_value(array, row, encoding, &mut out)?;
    String::from_utf8(out).map(Some).map_err(|_| unreadable())
}

fn primitive<T: ArrowPrimitiveType>(array: &ArrayRef, row: usize) -> Result<T::Native> {
    array.as_primitive_opt::<T>().map(|array| array.value(row)).ok_or_else(unreadable)
}

fn write_value(array: &ArrayRef, row: usize, encoding: &Encoding, out: &mut Vec<u8>) -> Result<()> {
    match encoding {
        Encoding::Bool => format::boolean(array.as_boolean_opt().ok_or_else(unreadable)?.value(row), out),
        Encoding::Int16 => format::integer(primitive::<Int16Type>(array, row)?, out),
        Encoding::Int32 => format::integer(primitive::<Int32Type>(array, row)?, out),
        Encoding::Int64 => format::integer(primitive::<Int64Type>(array, row)?, out),
        Encoding::UInt32 => format::integer(primitive::<UInt32Type>(array, row)?, out),
        Encoding::Float32 => format::float4(primitive::<Float32Type>(array, row)?, out),
        Encoding::Float64 => format::float8(primitive::<Float64Type>(array, row)?, out),
        Encoding::Decimal128 { scale, .. } => {
            format::decimal(primitive::<Decimal128Type>(array, row)?, *scale, out);
        }
        Encoding::Utf8 | Encoding::Uuid => {
            out.extend_from_slice(array.as_string_opt::<i32>().ok_or_else(unreadable)?.value(row).as_bytes());
        }
        Encoding::Binary => format::bytea(array.as_binary_opt::<i32>().ok_or_else(unreadable)?.value(row), out),
        Encoding::Date32 => format::date(primitive::<Date32Type>(array, row)?, out),
        Encoding::TimeMicros => format::time(primitive::<Time64MicrosecondType>(array, row)?, out),
        Encoding::TimestampMicros => {
            format::timestamp(primitive::<TimestampMicrosecondType>(array, row)?, false, out);
        }
        Encoding::TimestampTzMicros => {
            format::timestamp(primitive::<TimestampMicrosecondType>(array, row)?, true, out);
        }
        Encoding::List(element) => {
            let values = array.as_list_opt::<i32>().ok_or_else(unreadable)?.value(row);
            write_list(&values, element, out)?;
        }
    }
    Ok(())
}

fn write_list(values: &ArrayRef, element: &Encoding, out: &mut Vec<u8>) -> Result<()> {
    out.push(b'{');
    let mut text = Vec::new();
    for at in 0..values.len() {
        if at > 0 {
            out.push(b',');
        }
        if values.is_null(at) {
            out.extend_from_slice(b"NULL");
        } else {
            text.clear();
            write_value(values, at, element, &mut text)?;
            format::array_element(&text, out);
        }
    }
    out.push(b'}');
    Ok(())
}
