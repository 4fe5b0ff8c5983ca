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

use crate::DuckdbTarget;
use crate::error::{STATEMENT, refused};
use crate::schema::{qualified, quote, target_name};

const DAY_US: i64 = 86_400_000_000;

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
        ArrowType::Float32 => {
            let value = array.as_primitive::<Float32Type>().value(row);
            Some(float(f64::from(value), &format!("{value:e}"), 6))
        }
        ArrowType::Float64 => {
            let value = array.as_primitive::<Float64Type>().value(row);
            Some(float(value, &format!("{value:e}"), 15))
        }
        ArrowType::Decimal128(_, scale) => {
            any.downcast_ref::<Decimal128Array>().map(|array| decimal(array.value(row), *scale))
        }
        ArrowType::Utf8 => any.downcast_ref::<StringArray>().map(|array| array.value(row).to_owned()),
        ArrowType::Binary => any.downcast_ref::<BinaryArray>().map(|array| hex(array.value(row))),
        ArrowType::FixedSizeBinary(16) => {
            any.downcast_ref::<FixedSizeBinaryArray>().map(|array| uuid(array.value(row)))
        }
        ArrowType::Date32 => any.downcast_ref::<Date32Array>().map(|array| date(i64::from(array.value(row)))),
        ArrowType::Time64(_) => {
            any.downcast_ref::<Time64MicrosecondArray>().map(|array| time(array.value(row)))
        }
        ArrowType::Timestamp(_, zone) => any
            .downcast_ref::<TimestampMicrosecondArray>()
            .map(|array| timestamp(array.value(row), zone.is_some())),
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

/// PostgreSQL source, `d2s.c`: shortest digits; an exponent of two digits at least, where the value is below 1e-4
/// or has `whole_digits` digits or more before the point.
fn float(value: f64, scientific: &str, whole_digits: i32) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific.to_owned() };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, digits) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    if !(-4..whole_digits).contains(&exponent) {
        let exponent_sign = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{digits}e{exponent_sign}{:02}", exponent.abs());
    }
    let plain: String = digits.chars().filter(|&character| character != '.').collect();
    if exponent < 0 {
        return format!("{sign}0.{}{plain}", "0".repeat((-exponent - 1) as usize));
    }
    let whole = exponent as usize + 1;
    if plain.len() <= whole {
        return format!("{sign}{plain}{}", "0".repeat(whole - plain.len()));
    }
    format!("{sign}{}.{}", &plain[..whole], &plain[whole..])
}

fn decimal(value: i128, scale: i8) -> String {
    let scale = scale.max(0) as usize;
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if value < 0 { "-" } else { "" };
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push_str("\\x");
    for byte in bytes {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

fn uuid(bytes: &[u8]) -> String {
    let digits = hex(bytes).split_off(2);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// Year, month and day of days since 1970-01-01; year 0 is 1 BC.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let cycle = shifted.div_euclid(146_097);
    let day_of_cycle = shifted.rem_euclid(146_097);
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (cycle * 400 + year_of_cycle + i64::from(month <= 2), month, day)
}

fn date_and_era(days: i64) -> (String, &'static str) {
    let (year, month, day) = civil(days);
    let (year, era) = if year <= 0 { (1 - year, " BC") } else { (year, "") };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

fn date(days: i64) -> String {
    match days {
        days if days == i64::from(i32::MAX) => "infinity".to_owned(),
        days if days == -i64::from(i32::MAX) => "-infinity".to_owned(),
        days => {
            let (date, era) = date_and_era(days);
            date + era
        }
    }
}

fn time(us: i64) -> String {
    let (seconds, fraction) = (us / 1_000_000, us % 1_000_000);
    let text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction == 0 { text } else { format!("{text}.{fraction:06}").trim_end_matches('0').to_owned() }
}

fn timestamp(us: i64, zoned: bool) -> String {
    match us {
        i64::MAX => "infinity".to_owned(),
        us if us == -i64::MAX => "-infinity".to_owned(),
        us => {
            let (date, era) = date_and_era(us.div_euclid(DAY_US));
            let zone = if zoned { "+00" } else { "" };
            format!("{date} {}{zone}{era}", time(us.rem_euclid(DAY_US)))
        }
    }
}

/// PostgreSQL docs, "Array Input and Output Syntax": what has to be quoted is.
fn list(elements: &dyn Array) -> Result<String> {
    let mut parts = Vec::with_capacity(elements.len());
    for row in 0..elements.len() {
        parts.push(match text(elements, row)? {
            None => "NULL".to_owned(),
            Some(text) => {
                let special = |character: char| {
                    matches!(character, '{' | '}' | ',' | '"' | '\\')
                        || character.is_ascii_whitespace()
                        || character == '\x0b'
                };
                if text.is_empty() || text.eq_ignore_ascii_case("null") || text.contains(special) {
                    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
                } else {
                    text
                }
            }
        });
    }
    Ok(format!("{{{}}}", parts.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_postgresql_writes_them() {
        let double = |value: f64| float(value, &format!("{value:e}"), 15);
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1, "0.1"),
            (123456.75, "123456.75"),
            (1e15, "1e+15"),
            (999999999999999.0, "999999999999999"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e300, "1.5e+300"),
            (-2.5e-7, "-2.5e-07"),
            (f64::MAX, "1.7976931348623157e+308"),
        ] {
            assert_eq!(double(value), text);
        }
        let single = |value: f32| float(f64::from(value), &format!("{value:e}"), 6);
        assert_eq!(
            (single(1e6), single(123456.0), single(0.1)),
            ("1e+06".into(), "123456".into(), "0.1".into())
        );
    }

    #[test]
    fn dates_times_and_decimals_have_their_text() {
        assert_eq!((date(0), date(11_016)), ("1970-01-01".into(), "2000-02-29".into()));
        assert_eq!((date(-719_163), date(i64::from(i32::MAX))), ("0001-12-31 BC".into(), "infinity".into()));
        assert_eq!(timestamp(-500_000, true), "1969-12-31 23:59:59.5+00");
        assert_eq!(timestamp(-719_163 * DAY_US, true), "0001-12-31 00:00:00+00 BC");
        assert_eq!(time(DAY_US), "24:00:00");
        assert_eq!(
            (decimal(-5, 2), decimal(1200, 0), decimal(0, 3)),
            ("-0.05".into(), "1200".into(), "0.000".into())
        );
        assert_eq!(hex(&[0, 255]), "\\x00ff");
    }
}
