//! The closed set of encodings and the column-wise loop of each.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BinaryBuilder, BooleanBuilder, Date32Array, Decimal128Array, Decimal256Array,
    FixedSizeBinaryArray, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, ListArray,
    PrimitiveArray, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{ArrowPrimitiveType, DataType as ArrowType, Field, TimeUnit, i256};
use pgferry_model::{Batch, Cell, CellFormat};

use pgferry_values::array::Elements;
use pgferry_values::{bytes, number, time};

/// How a column's values become an Arrow array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `boolean`.
    Bool,
    /// `smallint`.
    Int16,
    /// `integer`.
    Int32,
    /// `bigint`.
    Int64,
    /// `oid`.
    UInt32,
    /// `real`.
    Float32,
    /// `double precision`.
    Float64,
    /// `numeric(precision, scale)` with a precision of at most 38.
    Decimal {
        /// Total digits.
        precision: u8,
        /// Fractional digits.
        scale: i8,
    },
    /// `numeric(precision, scale)` with a precision from 39 to 76, from its text form alone.
    WideDecimal {
        /// Total digits.
        precision: u8,
        /// Fractional digits.
        scale: i8,
    },
    /// The bytes as UTF-8 text; for types whose binary form is their text, either form.
    Utf8,
    /// `jsonb` as text: a binary value's version byte is taken off.
    JsonbText,
    /// `bytea`.
    Binary,
    /// `date`.
    Date,
    /// `time`.
    Time,
    /// `timestamp`.
    Timestamp,
    /// `timestamptz`.
    TimestampTz,
    /// `uuid`, 16 bytes with the extension name `arrow.uuid`.
    Uuid,
    /// A one-dimensional array whose first index is 1.
    List(Box<Encoding>),
}

/// A value does not fit its encoding; which row it was is known to nobody but the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// What about the value does not fit, to be read after "a value".
    pub reason: &'static str,
}

impl Encoding {
    /// The Arrow type.
    pub fn arrow_type(&self) -> ArrowType {
        match self {
            Encoding::Bool => ArrowType::Boolean,
            Encoding::Int16 => ArrowType::Int16,
            Encoding::Int32 => ArrowType::Int32,
            Encoding::Int64 => ArrowType::Int64,
            Encoding::UInt32 => ArrowType::UInt32,
            Encoding::Float32 => ArrowType::Float32,
            Encoding::Float64 => ArrowType::Float64,
            Encoding::Decimal { precision, scale } => ArrowType::Decimal128(*precision, *scale),
            Encoding::WideDecimal { precision, scale } => ArrowType::Decimal256(*precision, *scale),
            Encoding::Utf8 | Encoding::JsonbText => ArrowType::Utf8,
            Encoding::Binary => ArrowType::Binary,
            Encoding::Date => ArrowType::Date32,
            Encoding::Time => ArrowType::Time64(TimeUnit::Microsecond),
            Encoding::Timestamp => ArrowType::Timestamp(TimeUnit::Microsecond, None),
            Encoding::TimestampTz => ArrowType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Encoding::Uuid => ArrowType::FixedSizeBinary(16),
            Encoding::List(element) => ArrowType::List(Arc::new(element.field("item"))),
        }
    }

    /// The Arrow field, nullable, with the extension name that the type needs.
    pub fn field(&self, name: &str) -> Field {
        let field = Field::new(name, self.arrow_type(), true);
        if *self == Encoding::Uuid {
            return field
                .with_metadata([("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned())].into());
        }
        field
    }
}

/// Encodes a column of the tuples whose first cells are at `tuples` (see [`Batch::tuple`]). An unchanged cell becomes NULL: the caller
/// keeps note of which they are.
pub fn encode_column(
    batch: &Batch,
    tuples: &[u32],
    column: usize,
    encoding: &Encoding,
) -> Result<ArrayRef, Unfit> {
    if let Some(array) = shared(batch, tuples, column, encoding) {
        return array;
    }
    let cells = tuples.iter().map(|&first| batch.tuple(first).map_or(Cell::Null, |row| row.cell(column)));
    encode_cells(cells, tuples.len(), encoding)
}

/// A column's only row with a value that is kept apart: the array takes the value's memory, nothing is copied.
fn shared(
    batch: &Batch,
    tuples: &[u32],
    column: usize,
    encoding: &Encoding,
) -> Option<Result<ArrayRef, Unfit>> {
    let &[only] = tuples else { return None };
    let row = batch.tuple(only)?;
    let value = row.shared(column)?.clone();
    let value = match (encoding, row.cell(column)) {
        (Encoding::Utf8, _) | (Encoding::JsonbText, Cell::Text(_)) | (Encoding::Binary, Cell::Binary(_)) => {
            value
        }
        (Encoding::JsonbText, Cell::Binary([1, ..])) => value.slice(1..),
        _ => return None,
    };
    let offsets = OffsetBuffer::from_lengths([value.len()]);
    Some(if *encoding == Encoding::Binary {
        Ok(Arc::new(BinaryArray::new(offsets, value.into(), None)))
    } else {
        let array = StringArray::try_new(offsets, value.into(), None);
        array.map(|array| Arc::new(array) as ArrayRef).map_err(|_| unfit("is not valid UTF-8"))
    })
}

/// Encodes any cells.
pub(crate) fn encode_cells<'a>(
    cells: impl Iterator<Item = Cell<'a>> + Clone,
    count: usize,
    encoding: &Encoding,
) -> Result<ArrayRef, Unfit> {
    Ok(match encoding {
        Encoding::Bool => bools(cells, count)?,
        Encoding::Int16 => Arc::new(primitive::<Int16Array, _>(cells, count, |form, bytes| match form {
            CellFormat::Text => number::integer(bytes),
            CellFormat::Binary => fixed(bytes).map(i16::from_be_bytes),
        })?),
        Encoding::Int32 => Arc::new(primitive::<Int32Array, _>(cells, count, |form, bytes| match form {
            CellFormat::Text => number::integer(bytes),
            CellFormat::Binary => fixed(bytes).map(i32::from_be_bytes),
        })?),
        Encoding::Int64 => Arc::new(primitive::<Int64Array, _>(cells, count, |form, bytes| match form {
            CellFormat::Text => number::integer(bytes),
            CellFormat::Binary => fixed(bytes).map(i64::from_be_bytes),
        })?),
        Encoding::UInt32 => Arc::new(primitive::<UInt32Array, _>(cells, count, |form, bytes| match form {
            CellFormat::Text => number::integer(bytes),
            CellFormat::Binary => fixed(bytes).map(u32::from_be_bytes),
        })?),
        Encoding::Float32 => {
            Arc::new(primitive::<Float32Array, _>(cells, count, |form, bytes| match form {
                CellFormat::Text => number::float(bytes),
                CellFormat::Binary => fixed(bytes).map(f32::from_be_bytes),
            })?)
        }
        Encoding::Float64 => {
            Arc::new(primitive::<Float64Array, _>(cells, count, |form, bytes| match form {
                CellFormat::Text => number::float(bytes),
                CellFormat::Binary => fixed(bytes).map(f64::from_be_bytes),
            })?)
        }
        &Encoding::Decimal { precision, scale } => {
            let array = primitive::<Decimal128Array, _>(cells, count, |form, bytes| match form {
                CellFormat::Text => number::decimal_from_text(bytes, precision, scale),
                CellFormat::Binary => number::decimal_from_binary(bytes, precision, scale),
            })?;
            Arc::new(array.with_data_type(encoding.arrow_type()))
        }
        &Encoding::WideDecimal { precision, scale } => {
            Arc::new(wide_decimals(cells, count, precision, scale)?.with_data_type(encoding.arrow_type()))
        }
        Encoding::Utf8 => texts(cells, count, false)?,
        Encoding::JsonbText => texts(cells, count, true)?,
        Encoding::Binary => binaries(cells, count)?,
        Encoding::Date => Arc::new(primitive::<Date32Array, _>(cells, count, |form, bytes| match form {
            CellFormat::Text => time::date_from_text(bytes),
            CellFormat::Binary => time::date_from_binary(bytes),
        })?),
        Encoding::Time => {
            Arc::new(primitive::<Time64MicrosecondArray, _>(cells, count, |form, bytes| match form {
                CellFormat::Text => time::time_from_text(bytes),
                CellFormat::Binary => time::time_from_binary(bytes),
            })?)
        }
        Encoding::Timestamp | Encoding::TimestampTz => {
            let array = primitive::<TimestampMicrosecondArray, _>(cells, count, |form, bytes| match form {
                CellFormat::Text => time::timestamp_from_text(bytes),
                CellFormat::Binary => time::timestamp_from_binary(bytes),
            })?;
            Arc::new(array.with_data_type(encoding.arrow_type()))
        }
        Encoding::Uuid => uuids(cells, count)?,
        Encoding::List(element) => lists(cells, count, element)?,
    })
}

/// An array type with its native values, so that one loop serves all.
trait Primitive {
    type Arrow: ArrowPrimitiveType;
}

impl<T: ArrowPrimitiveType> Primitive for PrimitiveArray<T> {
    type Arrow = T;
}

type Native<A> = <<A as Primitive>::Arrow as ArrowPrimitiveType>::Native;

fn primitive<'a, A: Primitive, F>(
    cells: impl Iterator<Item = Cell<'a>>,
    count: usize,
    parse: F,
) -> Result<PrimitiveArray<A::Arrow>, Unfit>
where
    F: Fn(CellFormat, &[u8]) -> Result<Native<A>, &'static str>,
{
    let mut values: Vec<Native<A>> = Vec::with_capacity(count);
    let mut nulls: Option<Vec<bool>> = None;
    for cell in cells {
        let value = match cell {
            Cell::Text(bytes) => parse(CellFormat::Text, bytes).map_err(unfit)?,
            Cell::Binary(bytes) => parse(CellFormat::Binary, bytes).map_err(unfit)?,
            Cell::Null | Cell::Unchanged => {
                let valid = nulls.get_or_insert_with(|| Vec::with_capacity(count));
                valid.resize(values.len(), true);
                valid.push(false);
                values.push(Native::<A>::default());
                continue;
            }
        };
        values.push(value);
    }
    Ok(PrimitiveArray::new(ScalarBuffer::from(values), null_buffer(nulls, count)))
}

fn null_buffer(valid: Option<Vec<bool>>, count: usize) -> Option<NullBuffer> {
    valid.map(|mut valid| {
        valid.resize(count, true);
        NullBuffer::from(valid)
    })
}

fn unfit(reason: &'static str) -> Unfit {
    Unfit { reason }
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], &'static str> {
    bytes.try_into().map_err(|_| "is malformed")
}

fn wide_decimals<'a>(
    cells: impl Iterator<Item = Cell<'a>>,
    count: usize,
    precision: u8,
    scale: i8,
) -> Result<Decimal256Array, Unfit> {
    primitive::<Decimal256Array, _>(cells, count, |form, bytes| match form {
        CellFormat::Text => {
            let mut room = [0; 77];
            let digits = number::scaled_digits(bytes, precision, scale, &mut room)?;
            i256::from_string(digits).ok_or("has too many digits")
        }
        CellFormat::Binary => Err("is not in its text form"),
    })
}

fn bools<'a>(cells: impl Iterator<Item = Cell<'a>>, count: usize) -> Result<ArrayRef, Unfit> {
    let mut builder = BooleanBuilder::with_capacity(count);
    for cell in cells {
        match cell {
            Cell::Null | Cell::Unchanged => builder.append_null(),
            Cell::Text(b"t") | Cell::Binary(&[1]) => builder.append_value(true),
            Cell::Text(b"f") | Cell::Binary(&[0]) => builder.append_value(false),
            Cell::Text(_) | Cell::Binary(_) => return Err(unfit("is malformed")),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn texts<'a>(
    cells: impl Iterator<Item = Cell<'a>> + Clone,
    count: usize,
    jsonb: bool,
) -> Result<ArrayRef, Unfit> {
    // Counted first: growing would copy everything several times, into memory that the kernel clears.
    let bytes = cells.clone().map(|cell| match cell {
        Cell::Text(bytes) | Cell::Binary(bytes) => bytes.len(),
        Cell::Null | Cell::Unchanged => 0,
    });
    let mut values: Vec<u8> = Vec::with_capacity(bytes.sum());
    let mut offsets: Vec<i32> = Vec::with_capacity(count + 1);
    let mut nulls: Option<Vec<bool>> = None;
    offsets.push(0);
    for cell in cells {
        let bytes = match cell {
            Cell::Null | Cell::Unchanged => {
                let valid = nulls.get_or_insert_with(|| Vec::with_capacity(count));
                valid.resize(offsets.len() - 1, true);
                valid.push(false);
                &[]
            }
            Cell::Binary(bytes) if jsonb => {
                bytes.strip_prefix(&[1]).ok_or(unfit("has an unknown jsonb version"))?
            }
            Cell::Text(bytes) | Cell::Binary(bytes) => bytes,
        };
        values.extend_from_slice(bytes);
        offsets
            .push(i32::try_from(values.len()).map_err(|_| unfit("makes a batch larger than Arrow holds"))?);
    }
    // Checked as a whole, and that values begin where characters begin: a check per value takes longer than the copy.
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    let array = StringArray::try_new(offsets, values.into(), null_buffer(nulls, count));
    Ok(Arc::new(array.map_err(|_| unfit("is not valid UTF-8"))?))
}

fn binaries<'a>(cells: impl Iterator<Item = Cell<'a>>, count: usize) -> Result<ArrayRef, Unfit> {
    let mut builder = BinaryBuilder::with_capacity(count, count * 16);
    let mut decoded = Vec::new();
    for cell in cells {
        match cell {
            Cell::Null | Cell::Unchanged => builder.append_null(),
            Cell::Binary(bytes) => builder.append_value(bytes),
            Cell::Text(text) => {
                decoded.clear();
                bytes::bytea_from_text(text, &mut decoded).map_err(unfit)?;
                builder.append_value(&decoded);
            }
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn uuids<'a>(cells: impl Iterator<Item = Cell<'a>>, count: usize) -> Result<ArrayRef, Unfit> {
    let mut values: Vec<u8> = Vec::with_capacity(count * 16);
    let mut valid = Vec::with_capacity(count);
    for cell in cells {
        valid.push(!matches!(cell, Cell::Null | Cell::Unchanged));
        match cell {
            Cell::Null | Cell::Unchanged => values.extend_from_slice(&[0; 16]),
            Cell::Binary(bytes) => values.extend_from_slice(&fixed::<16>(bytes).map_err(unfit)?),
            Cell::Text(text) => {
                values.extend_from_slice(&bytes::uuid_from_text(text).map_err(unfit)?);
            }
        }
    }
    let array = FixedSizeBinaryArray::try_new(16, values.into(), Some(NullBuffer::from(valid)));
    Ok(Arc::new(array.map_err(|_| unfit("is malformed"))?))
}

fn lists<'a>(
    cells: impl Iterator<Item = Cell<'a>>,
    count: usize,
    element: &Encoding,
) -> Result<ArrayRef, Unfit> {
    let mut elements = Elements::default();
    let mut offsets: Vec<i32> = Vec::with_capacity(count + 1);
    let mut valid = Vec::with_capacity(count);
    offsets.push(0);
    for cell in cells {
        valid.push(!matches!(cell, Cell::Null | Cell::Unchanged));
        match cell {
            Cell::Null | Cell::Unchanged => {}
            Cell::Text(text) => elements.take_text(text).map_err(unfit)?,
            Cell::Binary(bytes) => elements.take_binary(bytes).map_err(unfit)?,
        }
        offsets.push(i32::try_from(elements.len()).map_err(|_| unfit("makes a batch of too many elements"))?);
    }
    let values = encode_cells(elements.cells(), elements.len(), element)?;
    let array = ListArray::try_new(
        Arc::new(element.field("item")),
        OffsetBuffer::new(ScalarBuffer::from(offsets)),
        values,
        Some(NullBuffer::from(valid)),
    );
    Ok(Arc::new(array.map_err(|_| unfit("is malformed"))?))
}
