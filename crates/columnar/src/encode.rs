//! A column of a batch's tuples to an Arrow array.

use arrow::array::ArrayRef;
use pgferry_model::{Batch, Cell, TypeKind};

use crate::builder::{
    Bool, Bytea, Date, FixedWidth, Float4, Float8, Int2, Int4, Int8, Numeric, Oid, SourceText, Time, Timestamp, Uuid,
    ValueBuilder, VariableWidth,
};
use crate::encoding::{Encoding, Reason, Unfit};
use crate::list::List;
use crate::text::Parsed;

/// Bytes of a column from which its offsets need 64 bits.
const LARGE_FROM: usize = i32::MAX as usize;
/// A binary value's text is at most this many times longer, in practice (`bytea`, numbers).
const TEXT_GROWTH_MAX: usize = 4;

/// Which tuples of a batch are encoded, in which order.
#[derive(Clone, Copy, Debug)]
pub enum Tuples<'a> {
    /// The new tuple of every row that has one, in the batch's order.
    New,
    /// The tuples whose first cells have these indexes ([`Batch::tuple`]).
    At(&'a [u32]),
}

impl Tuples<'_> {
    /// How many there are.
    pub fn count(&self, batch: &Batch) -> usize {
        match self {
            Tuples::New => (0..batch.len()).filter(|&row| batch.new_tuple_at(row).is_some()).count(),
            Tuples::At(firsts) => firsts.len(),
        }
    }
}

/// Encodes one column of the given tuples. A NULL and an unchanged TOAST cell both become NULL: the caller knows which
/// cells are unchanged ([`Batch::is_unchanged`]).
pub fn encode_column(
    batch: &Batch,
    tuples: Tuples<'_>,
    column: usize,
    encoding: &Encoding,
) -> Result<ArrayRef, Unfit> {
    let kind = batch.table().columns.get(column).map_or(&TypeKind::Other, |column| &column.data_type.kind);
    encode(batch, tuples, column, kind, encoding).map_err(|reason| Unfit { column, reason })
}

fn encode(
    batch: &Batch,
    tuples: Tuples<'_>,
    column: usize,
    kind: &TypeKind,
    encoding: &Encoding,
) -> Parsed<ArrayRef> {
    let rows = match tuples {
        Tuples::New => batch.len(),
        Tuples::At(firsts) => firsts.len(),
    };
    let from = Column { batch, tuples, column };
    match encoding {
        Encoding::Bool => from.fill(Bool::new(rows)),
        Encoding::Int16 => from.fill(FixedWidth::new(Int2, encoding, rows)),
        Encoding::Int32 => from.fill(FixedWidth::new(Int4, encoding, rows)),
        Encoding::Int64 => from.fill(FixedWidth::new(Int8, encoding, rows)),
        Encoding::UInt32 => from.fill(FixedWidth::new(Oid, encoding, rows)),
        Encoding::Float32 => from.fill(FixedWidth::new(Float4, encoding, rows)),
        Encoding::Float64 => from.fill(FixedWidth::new(Float8, encoding, rows)),
        Encoding::Decimal128 { precision, scale } => {
            let kind = Numeric { precision: *precision, scale: *scale };
            from.fill(FixedWidth::new(kind, encoding, rows))
        }
        Encoding::Date32 => from.fill(FixedWidth::new(Date, encoding, rows)),
        Encoding::TimeMicros => from.fill(FixedWidth::new(Time, encoding, rows)),
        Encoding::TimestampMicros | Encoding::TimestampTzMicros => {
            from.fill(FixedWidth::new(Timestamp, encoding, rows))
        }
        Encoding::Uuid => from.fill(Uuid::new(rows)),
        Encoding::Utf8 => {
            let (bytes, bytes_max) = from.bytes();
            let kind = SourceText(kind.clone());
            if bytes_max < LARGE_FROM {
                from.fill(VariableWidth::<_, i32>::new(kind, rows, bytes))
            } else {
                from.fill(VariableWidth::<_, i64>::new(kind, rows, bytes))
            }
        }
        Encoding::Binary => {
            let (bytes, bytes_max) = from.bytes();
            if bytes_max < LARGE_FROM {
                from.fill(VariableWidth::<_, i32>::new(Bytea, rows, bytes))
            } else {
                from.fill(VariableWidth::<_, i64>::new(Bytea, rows, bytes))
            }
        }
        Encoding::List(element) => {
            let (bytes, bytes_max) = from.bytes();
            let kind = match kind {
                TypeKind::Array(element, _) => &element.kind,
                _ => &TypeKind::Other,
            };
            from.fill(List::new(element, element_builder(element, kind, rows, bytes, bytes_max)?, rows))
        }
    }
}

fn element_builder(
    encoding: &Encoding,
    kind: &TypeKind,
    rows: usize,
    bytes: usize,
    bytes_max: usize,
) -> Parsed<Box<dyn ValueBuilder>> {
    Ok(match encoding {
        Encoding::Bool => Box::new(Bool::new(rows)),
        Encoding::Int16 => Box::new(FixedWidth::new(Int2, encoding, rows)),
        Encoding::Int32 => Box::new(FixedWidth::new(Int4, encoding, rows)),
        Encoding::Int64 => Box::new(FixedWidth::new(Int8, encoding, rows)),
        Encoding::UInt32 => Box::new(FixedWidth::new(Oid, encoding, rows)),
        Encoding::Float32 => Box::new(FixedWidth::new(Float4, encoding, rows)),
        Encoding::Float64 => Box::new(FixedWidth::new(Float8, encoding, rows)),
        Encoding::Decimal128 { precision, scale } => {
            Box::new(FixedWidth::new(Numeric { precision: *precision, scale: *scale }, encoding, rows))
        }
        Encoding::Date32 => Box::new(FixedWidth::new(Date, encoding, rows)),
        Encoding::TimeMicros => Box::new(FixedWidth::new(Time, encoding, rows)),
        Encoding::TimestampMicros | Encoding::TimestampTzMicros => {
            Box::new(FixedWidth::new(Timestamp, encoding, rows))
        }
        Encoding::Uuid => Box::new(Uuid::new(rows)),
        Encoding::Utf8 if bytes_max < LARGE_FROM => {
            Box::new(VariableWidth::<_, i32>::new(SourceText(kind.clone()), rows, bytes))
        }
        Encoding::Utf8 => Box::new(VariableWidth::<_, i64>::new(SourceText(kind.clone()), rows, bytes)),
        Encoding::Binary if bytes_max < LARGE_FROM => {
            Box::new(VariableWidth::<_, i32>::new(Bytea, rows, bytes))
        }
        Encoding::Binary => Box::new(VariableWidth::<_, i64>::new(Bytea, rows, bytes)),
        // PostgreSQL has no arrays of arrays; several dimensions are refused above.
        Encoding::List(_) => return Err(Reason::ArrayShape),
    })
}

#[derive(Clone, Copy)]
struct Column<'a> {
    batch: &'a Batch,
    tuples: Tuples<'a>,
    column: usize,
}

impl<'a> Column<'a> {
    #[inline]
    fn each(self, mut take: impl FnMut(Cell<'a>) -> Parsed<()>) -> Parsed<()> {
        let mut tuple = |first: u32| match self.batch.tuple(first) {
            Some(row) => take(row.cell(self.column)),
            None => take(Cell::Null),
        };
        match self.tuples {
            Tuples::New => {
                for row in 0..self.batch.len() {
                    if let Some(first) = self.batch.new_tuple_at(row) {
                        tuple(first)?;
                    }
                }
                Ok(())
            }
            Tuples::At(firsts) => firsts.iter().try_for_each(|&first| tuple(first)),
        }
    }

    fn fill<B: ValueBuilder>(self, mut builder: B) -> Parsed<ArrayRef> {
        self.each(|cell| match cell {
            Cell::Text(bytes) => builder.push_text(bytes),
            Cell::Binary(bytes) => builder.push_binary(bytes),
            Cell::Null | Cell::Unchanged => {
                builder.push_null();
                Ok(())
            }
        })?;
        Box::new(builder).finish()
    }

    /// Bytes of the column's cells, and the most that their text or bytes may take.
    fn bytes(self) -> (usize, usize) {
        let (mut bytes, mut bytes_max) = (0, 0);
        let _ = self.each(|cell| {
            match cell {
                Cell::Text(value) => {
                    bytes += value.len();
                    bytes_max += value.len();
                }
                Cell::Binary(value) => {
                    bytes += value.len();
                    bytes_max += TEXT_GROWTH_MAX * value.len() + 32;
                }
                Cell::Null | Cell::Unchanged => {}
            }
            Ok(())
        });
        (bytes, bytes_max)
    }
}
