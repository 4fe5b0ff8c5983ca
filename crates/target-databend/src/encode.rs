//! Batches to Parquet: what Databend's COPY eats.
//!
//! ```text
//!   tuples ──columnar──> Arrow arrays ──guard──> record batch ──> Parquet file (zstd), closed at FILE_BYTES_MAX
//! ```
//!
//! Invariant: COPY does not look at dates and instants, so what is beyond Databend's calendar never gets into a file
//! (a stored one breaks every later query that shows it).

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListBuilder, StringArray, StringBuilder, UInt32Array, UInt64Array,
    new_null_array,
};
use arrow::compute::take;
use arrow::datatypes::{
    DataType as ArrowType, Date32Type, Field, Schema, SchemaRef, TimestampMicrosecondType,
};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use pgferry_columnar::{Encoding, Unfit, encode_column};
use pgferry_model::{Batch, Error, Result, Table, TableName, TaskId};

use crate::config::Misfit;
use crate::error::{REFUSED, mistake, unfit};
use crate::mapping::ColumnType;
use crate::schema::{COMMITTED_AT, LSN, OLD_KEY, OP, ORIGIN, SEQ, UNCHANGED};

/// A file is closed when it has so many bytes; the rest of a batch may exceed it.
const FILE_BYTES_MAX: usize = 32 << 20;
/// Rows of one row group at most.
const GROUP_ROWS_MAX: usize = 1 << 20;
/// A column's dictionary ends when it has so many bytes: to look every value of a long one up is dearer than to write them all.
const DICTIONARY_BYTES_MAX: usize = 64 << 10;

/// 0001-01-01 and 9999-12-31, in days since 1970-01-01.
const DAYS: std::ops::RangeInclusive<i32> = -719_162..=2_932_896;
/// 0001-01-01 00:00:00 and 9999-12-30 22:00:00, in microseconds since 1970-01-01: later ones are stored and shown as the last of these.
const INSTANTS: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_207_200_000_000;
/// Digits of a document's number that Databend keeps; longer ones become floats.
const DOCUMENT_DIGITS_MAX: usize = 76;

/// A column, ready to encode.
pub(crate) struct ColumnPlan {
    pub(crate) kind: ColumnType,
    pub(crate) misfit: Misfit,
}

/// The columns of one table, ready to encode.
pub(crate) struct Encoder {
    task: TaskId,
    table: Arc<Table>,
    columns: Vec<ColumnPlan>,
    schema: SchemaRef,
    raw_schema: SchemaRef,
    history_schema: SchemaRef,
}

/// A row of the raw table is one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RawOp {
    Upsert,
    Delete,
    Truncate,
}

impl RawOp {
    pub(crate) fn word(self) -> &'static str {
        match self {
            RawOp::Upsert => "upsert",
            RawOp::Delete => "delete",
            RawOp::Truncate => "truncate",
        }
    }
}

/// Tuples that become rows of the raw table.
pub(crate) struct RawRows<'a> {
    pub(crate) op: RawOp,
    pub(crate) seq: u64,
    pub(crate) lsn: &'a str,
    pub(crate) tuples: &'a [u32],
    /// For each tuple: where the target holds its unchanged values, if it has some.
    pub(crate) origins: Option<&'a [Option<u32>]>,
}

impl Encoder {
    pub(crate) fn new(task: &TaskId, table: &Arc<Table>, columns: Vec<ColumnPlan>) -> Self {
        let field = |at: usize| columns[at].kind.encoding.field(&table.columns[at].name);
        let fields: Vec<Field> = (0..columns.len()).map(field).collect();
        let mut raw = fields.clone();
        raw.push(Field::new(OP, ArrowType::Utf8, false));
        raw.push(Field::new(SEQ, ArrowType::UInt64, false));
        raw.push(Field::new(LSN, ArrowType::Utf8, false));
        let mut history = raw.clone();
        let names = ArrowType::List(Arc::new(Field::new("item", ArrowType::Utf8, true)));
        raw.push(Field::new(UNCHANGED, names.clone(), true));
        history.push(Encoding::TimestampTz.field(COMMITTED_AT));
        history.push(Field::new(UNCHANGED, names.clone(), true));
        history.push(Field::new(OLD_KEY, names, true));
        for (number, &at) in table.key.iter().enumerate() {
            raw.push(field(at).with_name(format!("{ORIGIN}{number}")));
        }
        Encoder {
            task: task.clone(),
            table: Arc::clone(table),
            columns,
            schema: Arc::new(Schema::new(fields)),
            raw_schema: Arc::new(Schema::new(raw)),
            history_schema: Arc::new(Schema::new(history)),
        }
    }

    pub(crate) fn table(&self) -> &Arc<Table> {
        &self.table
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(crate) fn raw_schema(&self) -> &SchemaRef {
        &self.raw_schema
    }

    pub(crate) fn history_schema(&self) -> &SchemaRef {
        &self.history_schema
    }

    /// All columns of the tuples.
    pub(crate) fn rows(&self, batch: &Batch, tuples: &[u32]) -> Result<RecordBatch> {
        let arrays = (0..self.columns.len()).map(|at| self.column(batch, tuples, at));
        self.batch(&self.schema, arrays.collect::<Result<_>>()?)
    }

    /// Rows of the raw table; of a delete only the key's columns, of a truncate none.
    pub(crate) fn raw_rows(&self, batch: &Batch, rows: &RawRows<'_>) -> Result<RecordBatch> {
        let count = if rows.op == RawOp::Truncate { 1 } else { rows.tuples.len() };
        let mut arrays = Vec::with_capacity(self.raw_schema.fields().len());
        for at in 0..self.columns.len() {
            let known =
                rows.op == RawOp::Upsert || (rows.op == RawOp::Delete && self.table.key.contains(&at));
            arrays.push(if known {
                self.column(batch, rows.tuples, at)?
            } else {
                new_null_array(self.schema.field(at).data_type(), count)
            });
        }
        arrays.push(Arc::new(StringArray::from(vec![rows.op.word(); count])) as ArrayRef);
        arrays.push(Arc::new(UInt64Array::from(vec![rows.seq; count])));
        arrays.push(Arc::new(StringArray::from(vec![rows.lsn; count])));
        arrays.push(match rows.origins {
            Some(origins) => self.unchanged(batch, rows.tuples, origins),
            None => {
                let kind = self.raw_schema.field(self.columns.len() + 3).data_type();
                new_null_array(kind, count)
            }
        });
        for &at in &self.table.key {
            arrays.push(match rows.origins {
                Some(origins) => self.origin(batch, rows.tuples, origins, at)?,
                None => new_null_array(self.schema.field(at).data_type(), count),
            });
        }
        self.batch(&self.raw_schema, arrays)
    }

    /// The names of the columns whose values the source did not send.
    fn unchanged(&self, batch: &Batch, tuples: &[u32], origins: &[Option<u32>]) -> ArrayRef {
        let mut lists = ListBuilder::new(StringBuilder::new());
        for (&tuple, origin) in tuples.iter().zip(origins) {
            if origin.is_some() {
                for (at, column) in self.table.columns.iter().enumerate() {
                    if batch.is_unchanged(tuple, at) {
                        lists.values().append_value(&column.name);
                    }
                }
            }
            lists.append(origin.is_some());
        }
        Arc::new(lists.finish())
    }

    /// A key column of the rows under which the target holds the unchanged values, where that is another key than the row's own.
    fn origin(
        &self,
        batch: &Batch,
        tuples: &[u32],
        origins: &[Option<u32>],
        column: usize,
    ) -> Result<ArrayRef> {
        let moved = |own: u32, origin: u32| {
            self.table.key.iter().any(|&at| {
                let cell = |tuple| batch.tuple(tuple).map(|row| row.cell(at));
                cell(own) != cell(origin)
            })
        };
        let places: Vec<Option<u32>> = tuples
            .iter()
            .zip(origins)
            .map(|(&own, origin)| origin.filter(|&origin| origin != own && moved(own, origin)))
            .collect();
        self.scattered(batch, &places, column)
    }

    /// A column of the tuples, NULL where there is none.
    pub(crate) fn scattered(&self, batch: &Batch, places: &[Option<u32>], column: usize) -> Result<ArrayRef> {
        let there: Vec<u32> = places.iter().flatten().copied().collect();
        let values = self.column(batch, &there, column)?;
        if there.len() == places.len() {
            return Ok(values);
        }
        let mut next = 0;
        let indices: UInt32Array = places
            .iter()
            .map(|place| {
                place.map(|_| {
                    next += 1;
                    next - 1
                })
            })
            .collect();
        take(&values, &indices, None).map_err(|failure| self.broken(failure))
    }

    pub(crate) fn batch(&self, schema: &SchemaRef, arrays: Vec<ArrayRef>) -> Result<RecordBatch> {
        RecordBatch::try_new(Arc::clone(schema), arrays).map_err(|failure| self.broken(failure))
    }

    fn broken(&self, failure: arrow::error::ArrowError) -> Error {
        let name = &self.table.name;
        Error::table_broken(REFUSED, name.clone(), format!("rows of {name} do not make a batch"))
            .with_cure(mistake().resync_table(name))
            .with_origin(failure)
    }

    fn column(&self, batch: &Batch, tuples: &[u32], at: usize) -> Result<ArrayRef> {
        let plan = &self.columns[at];
        match self.encoded(batch, tuples, at) {
            Ok(array) => Ok(array),
            Err(_) if plan.misfit == Misfit::Null => self.with_nulls(batch, tuples, at),
            Err(wrong) => {
                Err(unfit(&self.table.name, &self.table.columns[at].name, &plan.kind.name, wrong.reason))
            }
        }
    }

    fn encoded(&self, batch: &Batch, tuples: &[u32], at: usize) -> std::result::Result<ArrayRef, Unfit> {
        let kind = &self.columns[at].kind;
        let array = encode_column(batch, tuples, at, &kind.encoding)?;
        guard(kind, array.as_ref())?;
        Ok(array)
    }

    /// A column with at least one value that does not fit: each on its own, NULL in its place.
    fn with_nulls(&self, batch: &Batch, tuples: &[u32], at: usize) -> Result<ArrayRef> {
        let places: Vec<Option<u32>> =
            tuples.iter().map(|&tuple| self.encoded(batch, &[tuple], at).is_ok().then_some(tuple)).collect();
        let count = places.iter().filter(|place| place.is_none()).count() as u64;
        metrics::counter!("pgferry_values_nulled_total", "task" => self.task.to_string(),
            "table" => self.table.name.to_string())
        .increment(count);
        self.scattered(batch, &places, at)
    }
}

/// What Arrow holds and Databend does not.
fn guard(kind: &ColumnType, array: &dyn Array) -> std::result::Result<(), Unfit> {
    let unfit = |fits: bool, reason| if fits { Ok(()) } else { Err(Unfit { reason }) };
    match kind.encoding {
        Encoding::Date => {
            let days = array.as_primitive::<Date32Type>();
            unfit(days.iter().flatten().all(|day| DAYS.contains(&day)), "is before year 1 or after 9999")
        }
        Encoding::Timestamp | Encoding::TimestampTz => {
            let instants = array.as_primitive::<TimestampMicrosecondType>();
            let fits = instants.iter().flatten().all(|instant| INSTANTS.contains(&instant));
            unfit(fits, "is before year 1 or after 9999-12-30 22:00")
        }
        Encoding::JsonbText if kind.is_variant() => {
            let documents = array.as_string::<i32>();
            let fits = documents.iter().flatten().all(numbers_fit);
            unfit(fits, "has a number of more than 76 digits")
        }
        _ => Ok(()),
    }
}

/// Whether each number of a document has digits that Databend keeps. PostgreSQL writes them without an exponent.
fn numbers_fit(document: &str) -> bool {
    if document.len() <= DOCUMENT_DIGITS_MAX {
        return true;
    }
    let (mut digits, mut quoted, mut escaped) = (0, false, false);
    for byte in document.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'0'..=b'9' => digits += 1,
            b'.' | b'-' => {}
            _ => digits = 0,
        }
        if digits > DOCUMENT_DIGITS_MAX {
            return false;
        }
    }
    true
}

/// A finished file.
pub(crate) struct ParquetFile {
    pub(crate) bytes: Vec<u8>,
    pub(crate) rows: u64,
}

/// Writes record batches into files.
pub(crate) struct FileWriter {
    table: TableName,
    schema: SchemaRef,
    open: Option<(ArrowWriter<Vec<u8>>, u64)>,
}

impl FileWriter {
    pub(crate) fn new(table: &TableName, schema: &SchemaRef) -> Self {
        FileWriter { table: table.clone(), schema: Arc::clone(schema), open: None }
    }

    /// Takes rows; gives a file where one is full.
    pub(crate) fn write(&mut self, rows: &RecordBatch) -> Result<Option<ParquetFile>> {
        if rows.num_rows() == 0 {
            return Ok(None);
        }
        let (writer, count) = match &mut self.open {
            Some(open) => (&mut open.0, &mut open.1),
            none => {
                let level = ZstdLevel::try_new(1).unwrap_or_default();
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(level))
                    .set_max_row_group_row_count(Some(GROUP_ROWS_MAX))
                    .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
                    // COPY reads all of it.
                    .set_statistics_enabled(EnabledStatistics::None)
                    .build();
                let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&self.schema), Some(properties))
                    .map_err(|failure| unwritten(&self.table, failure))?;
                let open = none.insert((writer, 0));
                (&mut open.0, &mut open.1)
            }
        };
        writer.write(rows).map_err(|failure| unwritten(&self.table, failure))?;
        *count += rows.num_rows() as u64;
        if writer.bytes_written() + writer.in_progress_size() >= FILE_BYTES_MAX {
            return self.finish();
        }
        Ok(None)
    }

    /// The last file, where rows are left.
    pub(crate) fn finish(&mut self) -> Result<Option<ParquetFile>> {
        let Some((writer, rows)) = self.open.take() else { return Ok(None) };
        let bytes = writer.into_inner().map_err(|failure| unwritten(&self.table, failure))?;
        Ok(Some(ParquetFile { bytes, rows }))
    }
}

fn unwritten(table: &TableName, failure: parquet::errors::ParquetError) -> Error {
    Error::table_broken(REFUSED, table.clone(), format!("rows of {table} do not make a Parquet file"))
        .with_cure(mistake().resync_table(table))
        .with_origin(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_documents_are_counted_outside_of_strings() {
        let digits = |count: usize| "1".repeat(count);
        assert!(numbers_fit(&format!("[{}, {}]", digits(76), digits(76))));
        assert!(!numbers_fit(&format!("[{}]", digits(77))));
        assert!(!numbers_fit(&format!("[-0.{}]", digits(76))));
        assert!(numbers_fit(&format!("{{\"{}\": \"{}\\\"{}\"}}", digits(90), digits(80), digits(80))));
    }
}
