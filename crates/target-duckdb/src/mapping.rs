//! PostgreSQL's types in DuckDB: native where every value is exact, guarded where only some extreme ones are not, else text.
//!
//! Invariant: a value that does not fit is an error of its table, never another value. `docs/reference/type-mapping-duckdb.md` is made
//! from this file's table and checked by a test.

use pgferry_columnar::Encoding;
use pgferry_model::{CellFormat, DataType, TypeKind};
use pgferry_pipeline::Fidelity;

/// What becomes of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnType {
    /// DuckDB's name of it.
    pub name: String,
    /// How values are encoded.
    pub encoding: Encoding,
    /// Whether values arrive as they are.
    pub fidelity: Fidelity,
    /// What a user should know.
    pub note: &'static str,
}

/// DuckDB's largest decimal precision.
const PRECISION_MAX: u16 = 38;

impl ColumnType {
    fn new(name: impl Into<String>, encoding: Encoding, fidelity: Fidelity, note: &'static str) -> Self {
        ColumnType { name: name.into(), encoding, fidelity, note }
    }

    fn exact(name: &str, encoding: Encoding) -> Self {
        ColumnType::new(name, encoding, Fidelity::Exact, "")
    }

    fn text(note: &'static str) -> Self {
        ColumnType::new("VARCHAR", Encoding::Utf8, Fidelity::ExactAsText, note)
    }

    /// In which form a snapshot's values are wanted.
    pub fn snapshot_format(&self, data_type: &DataType) -> CellFormat {
        match (&self.encoding, &data_type.kind) {
            // These types' binary form is their text, but for jsonb's version byte.
            (
                Encoding::Utf8 | Encoding::JsonbText,
                TypeKind::Text | TypeKind::FixedText | TypeKind::Json | TypeKind::Jsonb | TypeKind::Enum,
            ) => CellFormat::Binary,
            (Encoding::Utf8 | Encoding::JsonbText, _) => CellFormat::Text,
            _ => CellFormat::Binary,
        }
    }
}

/// The mapping of a type; `choice` is what the user wrote for the column: `string`, `varchar`, `decimal(p,s)`.
pub fn map_type(data_type: &DataType, choice: Option<&str>) -> ColumnType {
    match choice.map(str::trim) {
        Some(choice) if choice.eq_ignore_ascii_case("string") || choice.eq_ignore_ascii_case("varchar") => {
            let encoding =
                if data_type.kind == TypeKind::Jsonb { Encoding::JsonbText } else { Encoding::Utf8 };
            ColumnType { encoding, ..ColumnType::text("as the task file says") }
        }
        Some(choice) => {
            decimal_choice(choice).filter(|_| matches!(data_type.kind, TypeKind::Numeric { .. })).map_or_else(
                || by_kind(data_type),
                |(precision, scale)| {
                    decimal(
                        precision,
                        scale,
                        "as the task file says; NaN, infinity and more digits do not fit",
                    )
                },
            )
        }
        None => by_kind(data_type),
    }
}

fn decimal_choice(choice: &str) -> Option<(u8, i8)> {
    let inner = choice.to_ascii_lowercase();
    let (precision, scale) = inner.strip_prefix("decimal(")?.strip_suffix(')')?.split_once(',')?;
    let (precision, scale): (u8, i8) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
    (1..=38)
        .contains(&precision)
        .then_some((precision, scale))
        .filter(|&(precision, scale)| scale >= 0 && scale as u8 <= precision)
}

fn decimal(precision: u8, scale: i8, note: &'static str) -> ColumnType {
    ColumnType::new(
        format!("DECIMAL({precision},{scale})"),
        Encoding::Decimal { precision, scale },
        Fidelity::Guarded,
        note,
    )
}

fn by_kind(data_type: &DataType) -> ColumnType {
    let zero = "DuckDB does not keep the sign of zero";
    let range = "years after 294246 do not fit";
    match &data_type.kind {
        TypeKind::Bool => ColumnType::exact("BOOLEAN", Encoding::Bool),
        TypeKind::Int2 => ColumnType::exact("SMALLINT", Encoding::Int16),
        TypeKind::Int4 => ColumnType::exact("INTEGER", Encoding::Int32),
        TypeKind::Int8 => ColumnType::exact("BIGINT", Encoding::Int64),
        TypeKind::Oid => ColumnType::exact("UINTEGER", Encoding::UInt32),
        TypeKind::Float4 => ColumnType::new("FLOAT", Encoding::Float32, Fidelity::Equal, zero),
        TypeKind::Float8 => ColumnType::new("DOUBLE", Encoding::Float64, Fidelity::Equal, zero),
        TypeKind::Numeric { precision_and_scale } => numeric(*precision_and_scale),
        TypeKind::Text | TypeKind::Enum | TypeKind::FixedText => ColumnType::exact("VARCHAR", Encoding::Utf8),
        TypeKind::Bytes => ColumnType::exact("BLOB", Encoding::Binary),
        TypeKind::Date => ColumnType::exact("DATE", Encoding::Date),
        TypeKind::Time => ColumnType::exact("TIME", Encoding::Time),
        TypeKind::Timestamp => ColumnType::new("TIMESTAMP", Encoding::Timestamp, Fidelity::Guarded, range),
        TypeKind::TimestampTz => {
            ColumnType::new("TIMESTAMP WITH TIME ZONE", Encoding::TimestampTz, Fidelity::Guarded, range)
        }
        TypeKind::Uuid => ColumnType::exact("UUID", Encoding::Uuid),
        TypeKind::Json => ColumnType::text("the text as it was stored"),
        TypeKind::Jsonb => ColumnType {
            encoding: Encoding::JsonbText,
            ..ColumnType::text("PostgreSQL's own text of the document")
        },
        TypeKind::Array(element, dimensions) => array(element, *dimensions),
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

fn numeric(declared: Option<(u16, i16)>) -> ColumnType {
    let Some((precision, scale)) = declared else {
        return ColumnType::text("numeric without a precision has no limit; decimal(p,s) can be chosen");
    };
    // A negative scale means zeros before the point, one larger than the precision zeros after it.
    let digits = i32::from(precision) + (-i32::from(scale)).max(0);
    let digits = digits.max(i32::from(scale));
    let scale = i32::from(scale).max(0);
    if digits > i32::from(PRECISION_MAX) {
        return ColumnType::text("more digits than DECIMAL holds");
    }
    decimal(digits as u8, scale as i8, "NaN does not fit")
}

fn array(element: &DataType, dimensions: u16) -> ColumnType {
    let inner = by_kind(element);
    let native = inner.fidelity != Fidelity::ExactAsText && !matches!(inner.encoding, Encoding::List(_));
    if dimensions > 1 || !native {
        return ColumnType::text("PostgreSQL's own text of the array");
    }
    let note = if inner.fidelity == Fidelity::Equal {
        "arrays of more than one dimension, or whose first index is not 1, do not fit; DuckDB does not keep the sign of zero"
    } else {
        "arrays of more than one dimension, or whose first index is not 1, do not fit"
    };
    ColumnType::new(
        format!("{}[]", inner.name),
        Encoding::List(Box::new(inner.encoding)),
        Fidelity::Guarded,
        note,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: TypeKind) -> DataType {
        DataType { oid: 1, name: "x".into(), kind, sends_binary: true, output_function: "x".into() }
    }

    fn name(kind: TypeKind) -> String {
        map_type(&of(kind), None).name
    }

    #[test]
    fn numerics_keep_every_digit_or_become_text() {
        let numeric = |declared| name(TypeKind::Numeric { precision_and_scale: declared });
        assert_eq!(numeric(None), "VARCHAR");
        assert_eq!(numeric(Some((10, 2))), "DECIMAL(10,2)");
        assert_eq!(numeric(Some((38, 38))), "DECIMAL(38,38)");
        assert_eq!(numeric(Some((39, 0))), "VARCHAR");
        assert_eq!(numeric(Some((3, -2))), "DECIMAL(5,0)");
        assert_eq!(numeric(Some((2, 5))), "DECIMAL(5,5)");
        assert_eq!(numeric(Some((2, 100))), "VARCHAR");
    }

    #[test]
    fn arrays_are_lists_where_their_elements_are_native() {
        let array = |kind, dimensions| name(TypeKind::Array(Box::new(of(kind)), dimensions));
        assert_eq!(array(TypeKind::Int4, 1), "INTEGER[]");
        assert_eq!(array(TypeKind::Int4, 0), "INTEGER[]");
        assert_eq!(array(TypeKind::Int4, 2), "VARCHAR");
        assert_eq!(array(TypeKind::Interval, 1), "VARCHAR");
    }

    #[test]
    fn the_user_chooses_text_or_a_decimal() {
        let choice =
            |choice| map_type(&of(TypeKind::Numeric { precision_and_scale: None }), Some(choice)).name;
        assert_eq!(choice("string"), "VARCHAR");
        assert_eq!(choice("decimal(30, 4)"), "DECIMAL(30,4)");
        assert_eq!(choice("decimal(40,4)"), "VARCHAR");
        assert_eq!(map_type(&of(TypeKind::Int4), Some("decimal(9,0)")).name, "INTEGER");
    }
}
