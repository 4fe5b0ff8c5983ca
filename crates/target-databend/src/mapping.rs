//! PostgreSQL's types in Databend: native where every value is exact, guarded where only some extreme ones are not, else text.
//!
//! Invariants: a value that does not fit is an error of its table, or NULL where the user says so beforehand, never another value. A
//! column of the key has a type that Databend compares. `docs/reference/type-mapping-databend.md` is made from this file's table and checked
//! by a test.

use pgferry_columnar::Encoding;
use pgferry_model::{CellFormat, DataType, TypeKind};
use pgferry_pipeline::Fidelity;

/// What becomes of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnType {
    /// Databend's name of it, as a statement has it.
    pub name: String,
    /// Databend's name of it, as `system.columns` has it, without `Nullable`.
    pub stored: String,
    /// How values are encoded.
    pub encoding: Encoding,
    /// Whether values arrive as they are.
    pub fidelity: Fidelity,
    /// What a user should know.
    pub note: &'static str,
}

/// Databend's largest precision of a decimal.
const PRECISION_MAX: u16 = 76;
/// The largest one of a decimal that has 16 bytes.
const NARROW_PRECISION_MAX: u8 = 38;

impl ColumnType {
    fn new(name: &str, stored: &str, encoding: Encoding, fidelity: Fidelity, note: &'static str) -> Self {
        ColumnType { name: name.to_owned(), stored: stored.to_owned(), encoding, fidelity, note }
    }

    fn exact(name: &str, stored: &str, encoding: Encoding) -> Self {
        ColumnType::new(name, stored, encoding, Fidelity::Exact, "")
    }

    fn text(note: &'static str) -> Self {
        ColumnType::new("STRING", "String", Encoding::Utf8, Fidelity::ExactAsText, note)
    }

    /// In which form a snapshot's values are wanted.
    pub fn snapshot_format(&self, data_type: &DataType) -> CellFormat {
        match (&self.encoding, &data_type.kind) {
            // These types' binary form is their text, but for jsonb's version byte.
            (
                Encoding::Utf8 | Encoding::JsonbText,
                TypeKind::Text | TypeKind::FixedText | TypeKind::Json | TypeKind::Jsonb | TypeKind::Enum,
            ) => CellFormat::Binary,
            (Encoding::Utf8 | Encoding::JsonbText | Encoding::WideDecimal { .. }, _) => CellFormat::Text,
            _ => CellFormat::Binary,
        }
    }

    /// Whether a decimal has 32 bytes. Tables of the format `native` give such values back with their halves swapped, as soon as a
    /// block has one of them some times (1.2.895); those of the format `parquet` do not.
    pub(crate) fn is_wide_decimal(&self) -> bool {
        matches!(self.encoding, Encoding::WideDecimal { .. })
    }

    /// Whether a document is stored as such.
    pub(crate) fn is_variant(&self) -> bool {
        self.stored == "Variant"
    }
}

/// The mapping of a type; `choice` is what the user wrote for the column: `string` or `decimal(p,s)`. `key`: whether the column is one of
/// the key.
pub fn map_type(data_type: &DataType, choice: Option<&str>, key: bool) -> ColumnType {
    let native = by_kind(data_type);
    let text = |note| {
        let encoding = if data_type.kind == TypeKind::Jsonb { Encoding::JsonbText } else { Encoding::Utf8 };
        ColumnType { encoding, ..ColumnType::text(note) }
    };
    match choice.map(str::trim) {
        Some(choice) if choice.eq_ignore_ascii_case("string") => text("as the task file says"),
        Some(choice) if matches!(data_type.kind, TypeKind::Numeric { .. }) => {
            decimal_choice(choice).map_or(native, |(precision, scale)| {
                decimal(precision, scale, "as the task file says; NaN, infinity and more digits do not fit")
            })
        }
        _ if key && !compares(&native.encoding, native.is_variant()) => {
            text("PostgreSQL's own text of the value: Databend does not compare the native type")
        }
        _ => native,
    }
}

/// Whether Databend finds a row by such a value; floats it compares as PostgreSQL does, also NaN.
fn compares(encoding: &Encoding, variant: bool) -> bool {
    !variant && !matches!(encoding, Encoding::Binary | Encoding::List(_))
}

fn decimal_choice(choice: &str) -> Option<(u8, i8)> {
    let inner = choice.to_ascii_lowercase();
    let (precision, scale) = inner.strip_prefix("decimal(")?.strip_suffix(')')?.split_once(',')?;
    let (precision, scale): (u8, i8) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
    let whole = (1..=PRECISION_MAX as u8).contains(&precision) && scale >= 0 && scale as u8 <= precision;
    whole.then_some((precision, scale))
}

fn decimal(precision: u8, scale: i8, note: &'static str) -> ColumnType {
    let encoding = match precision {
        ..=NARROW_PRECISION_MAX => Encoding::Decimal { precision, scale },
        _ => Encoding::WideDecimal { precision, scale },
    };
    ColumnType::new(
        &format!("DECIMAL({precision},{scale})"),
        &format!("Decimal({precision}, {scale})"),
        encoding,
        Fidelity::Guarded,
        note,
    )
}

fn by_kind(data_type: &DataType) -> ColumnType {
    let date = "days before year 1 or after 9999, and infinity, do not fit";
    let instant = "instants before year 1 or after 9999-12-30 22:00, and infinity, do not fit";
    match &data_type.kind {
        TypeKind::Bool => ColumnType::exact("BOOLEAN", "Boolean", Encoding::Bool),
        TypeKind::Int2 => ColumnType::exact("SMALLINT", "Int16", Encoding::Int16),
        TypeKind::Int4 => ColumnType::exact("INT", "Int32", Encoding::Int32),
        TypeKind::Int8 => ColumnType::exact("BIGINT", "Int64", Encoding::Int64),
        TypeKind::Oid => ColumnType::exact("INT UNSIGNED", "UInt32", Encoding::UInt32),
        TypeKind::Float4 => ColumnType::exact("FLOAT", "Float32", Encoding::Float32),
        TypeKind::Float8 => ColumnType::exact("DOUBLE", "Float64", Encoding::Float64),
        TypeKind::Numeric { precision_and_scale } => numeric(*precision_and_scale),
        TypeKind::Text | TypeKind::Enum | TypeKind::FixedText => {
            ColumnType::exact("STRING", "String", Encoding::Utf8)
        }
        TypeKind::Bytes => ColumnType::exact("BINARY", "Binary", Encoding::Binary),
        TypeKind::Date => ColumnType::new("DATE", "Date", Encoding::Date, Fidelity::Guarded, date),
        TypeKind::Timestamp => {
            ColumnType::new("TIMESTAMP", "Timestamp", Encoding::Timestamp, Fidelity::Guarded, instant)
        }
        TypeKind::TimestampTz => {
            ColumnType::new("TIMESTAMP", "Timestamp", Encoding::TimestampTz, Fidelity::Guarded, instant)
        }
        TypeKind::Json => ColumnType::text("the text as it was stored"),
        TypeKind::Jsonb => ColumnType::new(
            "VARIANT",
            "Variant",
            Encoding::JsonbText,
            Fidelity::Guarded,
            "the same document with its keys in another order; numbers of more than 76 digits do not fit",
        ),
        TypeKind::Array(element, dimensions) => array(element, *dimensions),
        TypeKind::Time
        | TypeKind::Uuid
        | TypeKind::SingleByte
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

fn numeric(declared: Option<(u16, i16)>) -> ColumnType {
    let Some((precision, scale)) = declared else {
        return ColumnType::text("numeric without a precision has no limit; decimal(p,s) can be chosen");
    };
    // A negative scale means zeros before the point, one larger than the precision zeros after it.
    let digits = i32::from(precision) + (-i32::from(scale)).max(0);
    let digits = digits.max(i32::from(scale));
    let scale = i32::from(scale).max(0);
    if digits > i32::from(PRECISION_MAX) {
        return ColumnType::text("more than 76 digits");
    }
    decimal(digits as u8, scale as i8, "NaN does not fit")
}

/// Lists of what needs no guard of its own; PostgreSQL does not fix the dimensions of an array.
fn array(element: &DataType, dimensions: u16) -> ColumnType {
    let inner = by_kind(element);
    let plain = matches!(
        inner.encoding,
        Encoding::Bool
            | Encoding::Int16
            | Encoding::Int32
            | Encoding::Int64
            | Encoding::UInt32
            | Encoding::Float32
            | Encoding::Float64
            | Encoding::Decimal { .. }
    ) || inner.fidelity == Fidelity::Exact && inner.encoding == Encoding::Utf8;
    if dimensions > 1 || !plain {
        return ColumnType::text("PostgreSQL's own text of the array");
    }
    ColumnType::new(
        &format!("ARRAY({} NULL)", inner.name),
        &format!("Array(Nullable({}))", inner.stored),
        Encoding::List(Box::new(inner.encoding)),
        Fidelity::Guarded,
        "arrays of more than one dimension, or whose first index is not 1, do not fit",
    )
}
