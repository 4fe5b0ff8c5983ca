//! PostgreSQL's types in records: as Debezium writes them where that is exact, else as PostgreSQL's own text.
//!
//! Invariant: a value that does not fit is an error of its table, never another value; what a chosen mode rounds is said before the
//! start. `docs/reference/type-mapping-kafka.md` is made from this file's table and checked by a test.

use pgferry_model::{CellFormat, Column, DataType, Table, TypeKind};
use pgferry_pipeline::Fidelity;

use crate::config::{BinaryMode, DecimalMode, KafkaConfig, TimeMode};

/// How a column's values are written.
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
    /// `oid`, which a Java `long` holds.
    UInt32,
    /// `real`.
    Float32,
    /// `double precision`.
    Float64,
    /// A decimal's digits as a big-endian integer; the scale is the schema's.
    Decimal {
        /// Declared digits.
        precision: u16,
        /// Digits after the point.
        scale: u16,
    },
    /// A decimal without a declared scale: digits, and the scale with each value.
    VariableDecimal,
    /// A decimal as a double.
    DecimalAsDouble,
    /// The source's own text.
    Text,
    /// `jsonb` as text: a binary value's version byte is taken off.
    Jsonb,
    /// `bytea`.
    Bytes(BinaryMode),
    /// Days since 1970-01-01.
    Date,
    /// Time of day.
    Time(Unit),
    /// Time since 1970-01-01 without a zone.
    Timestamp(Unit),
    /// A point in time as ISO 8601 text in UTC.
    ZonedTimestamp,
    /// `uuid` as text.
    Uuid,
    /// A one-dimensional array whose first index is 1.
    Array(Box<Encoding>),
}

/// What a time is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds, of a type that holds no more.
    Millis,
    /// Milliseconds, of a type that holds microseconds: those are lost.
    MillisRounded,
    /// Microseconds.
    Micros,
}

/// What becomes of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnType {
    /// How values are written.
    pub encoding: Encoding,
    /// Its name for people: the primitive type, and the semantic one where there is one.
    pub name: String,
    /// Whether values arrive as they are.
    pub fidelity: Fidelity,
    /// What a user should know.
    pub note: &'static str,
}

impl ColumnType {
    fn new(encoding: Encoding, fidelity: Fidelity, note: &'static str) -> Self {
        let name = type_name(&encoding);
        ColumnType { encoding, name, fidelity, note }
    }

    fn exact(encoding: Encoding) -> Self {
        ColumnType::new(encoding, Fidelity::Exact, "")
    }

    fn text(note: &'static str) -> Self {
        ColumnType::new(Encoding::Text, Fidelity::ExactAsText, note)
    }

    /// In which form a snapshot's values are wanted.
    pub fn snapshot_format(&self, data_type: &DataType) -> CellFormat {
        wanted(&self.encoding, data_type)
    }
}

fn wanted(encoding: &Encoding, data_type: &DataType) -> CellFormat {
    match (encoding, &data_type.kind) {
        // These types' binary form is their text, but for jsonb's version byte.
        (
            Encoding::Text | Encoding::Jsonb,
            TypeKind::Text | TypeKind::FixedText | TypeKind::Json | TypeKind::Jsonb | TypeKind::Enum,
        ) => CellFormat::Binary,
        (
            Encoding::Text
            | Encoding::Jsonb
            | Encoding::Decimal { .. }
            | Encoding::VariableDecimal
            | Encoding::DecimalAsDouble,
            _,
        ) => CellFormat::Text,
        (Encoding::Array(inner), TypeKind::Array(element, _)) => wanted(inner, element),
        _ => CellFormat::Binary,
    }
}

/// The semantic type that Debezium or Kafka Connect gives an encoding in a schema.
pub(crate) fn semantic_name(encoding: &Encoding) -> Option<&'static str> {
    Some(match encoding {
        Encoding::Decimal { .. } => "org.apache.kafka.connect.data.Decimal",
        Encoding::VariableDecimal => "io.debezium.data.VariableScaleDecimal",
        Encoding::Jsonb => "io.debezium.data.Json",
        Encoding::Date => "io.debezium.time.Date",
        Encoding::Time(Unit::Millis) => "io.debezium.time.Time",
        Encoding::Time(Unit::Micros) => "io.debezium.time.MicroTime",
        Encoding::Time(Unit::MillisRounded) => "org.apache.kafka.connect.data.Time",
        Encoding::Timestamp(Unit::Millis) => "io.debezium.time.Timestamp",
        Encoding::Timestamp(Unit::Micros) => "io.debezium.time.MicroTimestamp",
        Encoding::Timestamp(Unit::MillisRounded) => "org.apache.kafka.connect.data.Timestamp",
        Encoding::ZonedTimestamp => "io.debezium.time.ZonedTimestamp",
        Encoding::Uuid => "io.debezium.data.Uuid",
        _ => return None,
    })
}

/// Kafka Connect's primitive type of an encoding.
pub(crate) fn primitive_name(encoding: &Encoding) -> &'static str {
    match encoding {
        Encoding::Bool => "boolean",
        Encoding::Int16 => "int16",
        Encoding::Int32 | Encoding::Date | Encoding::Time(Unit::Millis | Unit::MillisRounded) => "int32",
        Encoding::Int64 | Encoding::UInt32 | Encoding::Time(Unit::Micros) | Encoding::Timestamp(_) => "int64",
        Encoding::Float32 => "float",
        Encoding::Float64 | Encoding::DecimalAsDouble => "double",
        Encoding::Decimal { .. } | Encoding::Bytes(BinaryMode::Bytes) => "bytes",
        Encoding::VariableDecimal => "struct",
        Encoding::Text | Encoding::Jsonb | Encoding::Bytes(_) | Encoding::ZonedTimestamp | Encoding::Uuid => {
            "string"
        }
        Encoding::Array(_) => "array",
    }
}

fn type_name(encoding: &Encoding) -> String {
    let primitive = primitive_name(encoding);
    match (encoding, semantic_name(encoding)) {
        (Encoding::Array(element), _) => format!("array of {}", type_name(element)),
        (Encoding::Decimal { scale, .. }, Some(semantic)) => {
            format!("{primitive} ({semantic}, scale {scale})")
        }
        (_, Some(semantic)) => format!("{primitive} ({semantic})"),
        (_, None) => primitive.to_owned(),
    }
}

/// The mapping of a table's column.
pub(crate) fn map_column(config: &KafkaConfig, table: &Table, column: &Column) -> ColumnType {
    let chosen = config.as_text.get(&table.name);
    if chosen.is_some_and(|columns| columns.iter().any(|name| **name == *column.name)) {
        let encoding =
            if column.data_type.kind == TypeKind::Jsonb { Encoding::Jsonb } else { Encoding::Text };
        return ColumnType { encoding, ..ColumnType::text("as the task file says") };
    }
    map_type(config, &column.data_type)
}

/// The mapping of a type.
pub fn map_type(config: &KafkaConfig, data_type: &DataType) -> ColumnType {
    match &data_type.kind {
        TypeKind::Bool => ColumnType::exact(Encoding::Bool),
        TypeKind::Int2 => ColumnType::exact(Encoding::Int16),
        TypeKind::Int4 => ColumnType::exact(Encoding::Int32),
        TypeKind::Int8 => ColumnType::exact(Encoding::Int64),
        TypeKind::Oid => ColumnType::exact(Encoding::UInt32),
        TypeKind::Float4 => float(Encoding::Float32),
        TypeKind::Float8 => float(Encoding::Float64),
        TypeKind::Numeric { precision_and_scale } => decimal(config.decimals, *precision_and_scale),
        TypeKind::Text | TypeKind::Enum | TypeKind::FixedText => ColumnType::exact(Encoding::Text),
        TypeKind::Bytes => ColumnType::exact(Encoding::Bytes(config.binary)),
        TypeKind::Date => ColumnType::new(
            Encoding::Date,
            Fidelity::Exact,
            "infinity and -infinity are 2147483647 and -2147483647",
        ),
        TypeKind::Time => time(config.times, &data_type.name),
        TypeKind::Timestamp => timestamp(config.times, &data_type.name),
        TypeKind::TimestampTz => ColumnType::new(
            Encoding::ZonedTimestamp,
            Fidelity::Exact,
            "ISO 8601 in UTC; infinity and -infinity are these words",
        ),
        TypeKind::Uuid => ColumnType::exact(Encoding::Uuid),
        TypeKind::Json => ColumnType::text("the text as it was stored"),
        TypeKind::Jsonb => {
            let text = ColumnType::text("PostgreSQL's own text of the document");
            ColumnType { encoding: Encoding::Jsonb, name: type_name(&Encoding::Jsonb), ..text }
        }
        TypeKind::Array(element, dimensions) => array(config, element, *dimensions),
        TypeKind::SingleByte
        | TypeKind::TimeTz
        | TypeKind::Interval
        | TypeKind::Xml
        | TypeKind::Bits
        | TypeKind::Money
        | TypeKind::Network
        | TypeKind::Composite
        | TypeKind::Range
        | TypeKind::Other => ColumnType::text("PostgreSQL's own text of the value"),
    }
}

fn float(encoding: Encoding) -> ColumnType {
    ColumnType::new(
        encoding,
        Fidelity::Exact,
        "NaN and infinity, which JSON lacks, are texts; Kafka Connect's own converter writes them so, too, but reads them as 0",
    )
}

fn decimal(mode: DecimalMode, declared: Option<(u16, i16)>) -> ColumnType {
    match (mode, declared) {
        (DecimalMode::String, _) => ColumnType::text("as the task file says"),
        (DecimalMode::Double, _) => ColumnType::new(
            Encoding::DecimalAsDouble,
            Fidelity::Rounded,
            "as the task file says; digits beyond the 15th are rounded",
        ),
        (DecimalMode::Precise, Some((precision, scale))) => {
            let encoding = Encoding::Decimal {
                // A negative scale means zeros before the point.
                precision: precision.saturating_add(scale.min(0).unsigned_abs()),
                scale: scale.max(0).unsigned_abs(),
            };
            ColumnType::new(encoding, Fidelity::Guarded, "NaN and infinity do not fit")
        }
        (DecimalMode::Precise, None) => {
            ColumnType::new(Encoding::VariableDecimal, Fidelity::Guarded, "NaN and infinity do not fit")
        }
    }
}

/// The digits after the second that a type's name declares: `timestamp(3) without time zone`.
fn fraction_digits(name: &str) -> u8 {
    let declared = name.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    declared.and_then(|(digits, _)| digits.parse().ok()).unwrap_or(6)
}

fn unit(mode: TimeMode, name: &str) -> Unit {
    match (mode, fraction_digits(name)) {
        (TimeMode::Connect, 4..) => Unit::MillisRounded,
        (TimeMode::AdaptiveTimeMicroseconds | TimeMode::Adaptive, 4..) => Unit::Micros,
        _ => Unit::Millis,
    }
}

const MILLIS_ONLY: &str = "as the task file says; what is finer than milliseconds is cut off";

fn time(mode: TimeMode, name: &str) -> ColumnType {
    let unit = if mode == TimeMode::AdaptiveTimeMicroseconds { Unit::Micros } else { unit(mode, name) };
    match unit {
        Unit::MillisRounded => ColumnType::new(Encoding::Time(unit), Fidelity::Rounded, MILLIS_ONLY),
        _ => ColumnType::exact(Encoding::Time(unit)),
    }
}

fn timestamp(mode: TimeMode, name: &str) -> ColumnType {
    let unit = unit(mode, name);
    let (fidelity, note) = match unit {
        Unit::MillisRounded => (Fidelity::Rounded, MILLIS_ONLY),
        _ => (
            Fidelity::Guarded,
            "years after 294246 do not fit; infinity and -infinity are the numbers that Debezium has for them",
        ),
    };
    ColumnType::new(Encoding::Timestamp(unit), fidelity, note)
}

fn array(config: &KafkaConfig, element: &DataType, dimensions: u16) -> ColumnType {
    let inner = map_type(config, element);
    if dimensions > 1 || matches!(inner.encoding, Encoding::Array(_)) {
        return ColumnType::text("PostgreSQL's own text of the array");
    }
    let fidelity = if inner.fidelity == Fidelity::Rounded { Fidelity::Rounded } else { Fidelity::Guarded };
    ColumnType::new(
        Encoding::Array(Box::new(inner.encoding)),
        fidelity,
        "arrays of more than one dimension, or whose first index is not 1, do not fit",
    )
}
