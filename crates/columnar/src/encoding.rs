//! The closed list of encodings, and why a value may not fit one.

use std::fmt;

use arrow::datatypes::{DataType, Field, TimeUnit};

/// How a column's values become an Arrow array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `Boolean`.
    Bool,
    /// `Int16`.
    Int16,
    /// `Int32`.
    Int32,
    /// `Int64`.
    Int64,
    /// `UInt32`, for `oid`.
    UInt32,
    /// `Float32`, bit by bit (NaN becomes one NaN).
    Float32,
    /// `Float64`, bit by bit (NaN becomes one NaN).
    Float64,
    /// `Decimal128`; precision 1 to 38, scale 0 to precision. Finite values with at most `scale` fractional digits.
    Decimal128 {
        /// Total digits.
        precision: u8,
        /// Fractional digits.
        scale: u8,
    },
    /// `Utf8` (`LargeUtf8` from 2 GiB): the source's text form.
    Utf8,
    /// `Binary` (`LargeBinary` from 2 GiB), for `bytea`.
    Binary,
    /// `Date32`: days since 1970-01-01; infinities are `i32::MAX` and `-i32::MAX`.
    Date32,
    /// `Time64(Microsecond)`, 0 to 86,400,000,000 (24:00:00).
    TimeMicros,
    /// `Timestamp(Microsecond)` since 1970-01-01; infinities are `i64::MAX` and `-i64::MAX`.
    TimestampMicros,
    /// As [`Encoding::TimestampMicros`], with the zone `UTC`.
    TimestampTzMicros,
    /// `FixedSizeBinary(16)` with the extension name `arrow.uuid` on its field.
    Uuid,
    /// `List` of a scalar encoding: arrays of one dimension whose lower bound is 1, and empty arrays.
    List(Box<Encoding>),
}

impl Encoding {
    /// The Arrow type of the array. Long text and bytes come as their large forms; see [`Encoding::field`].
    pub fn data_type(&self) -> DataType {
        match self {
            Encoding::Bool => DataType::Boolean,
            Encoding::Int16 => DataType::Int16,
            Encoding::Int32 => DataType::Int32,
            Encoding::Int64 => DataType::Int64,
            Encoding::UInt32 => DataType::UInt32,
            Encoding::Float32 => DataType::Float32,
            Encoding::Float64 => DataType::Float64,
            Encoding::Decimal128 { precision, scale } => DataType::Decimal128(*precision, *scale as i8),
            Encoding::Utf8 => DataType::Utf8,
            Encoding::Binary => DataType::Binary,
            Encoding::Date32 => DataType::Date32,
            Encoding::TimeMicros => DataType::Time64(TimeUnit::Microsecond),
            Encoding::TimestampMicros => DataType::Timestamp(TimeUnit::Microsecond, None),
            Encoding::TimestampTzMicros => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Encoding::Uuid => DataType::FixedSizeBinary(16),
            Encoding::List(element) => DataType::List(element.field("item").into()),
        }
    }

    /// A nullable field of this encoding; a UUID's carries its extension name.
    pub fn field(&self, name: &str) -> Field {
        self.field_of(name, self.data_type())
    }

    /// As [`Encoding::field`], with the type that an encoded array really has.
    pub fn field_of(&self, name: &str, data_type: DataType) -> Field {
        let field = Field::new(name, data_type, true);
        match self {
            Encoding::Uuid => {
                field.with_metadata([("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned())].into())
            }
            _ => field,
        }
    }
}

/// Why a value does not fit its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The bytes are not what the type's output or send function writes.
    Malformed,
    /// Beyond the target type's range.
    OutOfRange,
    /// NaN or an infinity where the target type has none.
    NotFinite,
    /// More fractional digits than the target type keeps.
    FractionTooLong,
    /// An array of more than one dimension, or one whose lower bound is not 1.
    ArrayShape,
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// A binary form that has no known text form.
    NoTextForm,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Malformed => "the value is not in the form that its type's output function writes",
            Reason::OutOfRange => "the value is outside the target type's range",
            Reason::NotFinite => "the value is NaN or infinite, which the target type cannot hold",
            Reason::FractionTooLong => "the value has more fractional digits than the target type keeps",
            Reason::ArrayShape => "the array has several dimensions or does not start at index 1",
            Reason::NotUtf8 => "the value is not valid UTF-8",
            Reason::NoTextForm => "the value came in a binary form that has no known text form",
        })
    }
}

/// A value that does not fit its encoding; the value itself is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// The column's index.
    pub column: usize,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}: {}", self.column, self.reason)
    }
}

impl std::error::Error for Unfit {}
