//! PostgreSQL's types to DuckDB's: native where every value (or every finite one) is exact, else the source's own text.

use std::collections::{BTreeMap, HashMap};

use pgferry_columnar::Encoding;
use pgferry_model::{CellFormat, Column, Cure, DataType, Error, Result, Table, TypeKind};
use pgferry_pipeline::{ColumnMapping, Fidelity};

use crate::error;

/// The most digits of DuckDB's DECIMAL.
const DECIMAL_DIGITS_MAX: i32 = 38;

/// What becomes of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// The type as DuckDB itself writes it in its catalog.
    pub(crate) sql_type: String,
    pub(crate) encoding: Encoding,
    pub(crate) fidelity: Fidelity,
    pub(crate) note: &'static str,
}

/// A type that the user wants for a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Text,
    Decimal { precision: u8, scale: u8 },
}

const NO_NAN: &str = "NaN and infinities do not fit and set the table aside";
const NO_FAR_FUTURE: &str = "times after 294247-01-10 04:00:54.775806 do not fit and set the table aside; infinities are kept";
const ONE_DIMENSION: &str = "arrays of several dimensions or with another lower bound than 1 set the table aside";
const AS_TEXT: &str = "as PostgreSQL's own text";

fn mapped(sql_type: impl Into<String>, encoding: Encoding, fidelity: Fidelity, note: &'static str) -> Mapped {
    Mapped { sql_type: sql_type.into(), encoding, fidelity, note }
}

fn exact(sql_type: &str, encoding: Encoding) -> Mapped {
    mapped(sql_type, encoding, Fidelity::Exact, "")
}

fn as_text() -> Mapped {
    mapped("VARCHAR", Encoding::Utf8, Fidelity::ExactAsText, AS_TEXT)
}

fn decimal(precision: u8, scale: u8) -> Mapped {
    let sql_type = format!("DECIMAL({precision},{scale})");
    mapped(sql_type, Encoding::Decimal128 { precision, scale }, Fidelity::Guarded, NO_NAN)
}

/// What becomes of a type.
pub(crate) fn map_type(data_type: &DataType) -> Mapped {
    match &data_type.kind {
        TypeKind::Bool => exact("BOOLEAN", Encoding::Bool),
        TypeKind::Int2 => exact("SMALLINT", Encoding::Int16),
        TypeKind::Int4 => exact("INTEGER", Encoding::Int32),
        TypeKind::Int8 => exact("BIGINT", Encoding::Int64),
        TypeKind::Oid => exact("UINTEGER", Encoding::UInt32),
        TypeKind::Float4 => exact("FLOAT", Encoding::Float32),
        TypeKind::Float8 => exact("DOUBLE", Encoding::Float64),
        TypeKind::Numeric { precision_and_scale } => numeric(*precision_and_scale),
        TypeKind::Text | TypeKind::FixedText => exact("VARCHAR", Encoding::Utf8),
        TypeKind::Bytes => exact("BLOB", Encoding::Binary),
        TypeKind::Date => exact("DATE", Encoding::Date32),
        TypeKind::Time => exact("TIME", Encoding::TimeMicros),
        TypeKind::Timestamp => {
            mapped("TIMESTAMP", Encoding::TimestampMicros, Fidelity::Guarded, NO_FAR_FUTURE)
        }
        TypeKind::TimestampTz => {
            mapped("TIMESTAMP WITH TIME ZONE", Encoding::TimestampTzMicros, Fidelity::Guarded, NO_FAR_FUTURE)
        }
        TypeKind::Uuid => exact("UUID", Encoding::Uuid),
        TypeKind::Array(element, dimensions) => array(element, *dimensions),
        TypeKind::SingleByte
        | TypeKind::TimeTz
        | TypeKind::Interval
        | TypeKind::Json
        | TypeKind::Jsonb
        | TypeKind::Xml
        | TypeKind::Bits
        | TypeKind::Money
        | TypeKind::Network
        | TypeKind::Enum
        | TypeKind::Composite
        | TypeKind::Range
        | TypeKind::Other => as_text(),
    }
}

/// A scale below 0 counts whole digits that are always 0; a scale above the precision counts zeros after the point. Both
/// fit a DECIMAL with room for them.
fn numeric(declared: Option<(u16, i16)>) -> Mapped {
    let Some((precision, scale)) = declared else { return as_text() };
    let (precision, scale) = (i32::from(precision), i32::from(scale));
    let (width, scale) = if scale < 0 { (precision - scale, 0) } else { (precision.max(scale), scale) };
    if (1..=DECIMAL_DIGITS_MAX).contains(&width) { decimal(width as u8, scale as u8) } else { as_text() }
}

fn array(element: &DataType, dimensions: u16) -> Mapped {
    let inner = map_type(element);
    let native = inner.fidelity != Fidelity::ExactAsText && !matches!(inner.encoding, Encoding::List(_));
    if dimensions > 1 || !native {
        return as_text();
    }
    mapped(
        format!("{}[]", inner.sql_type),
        Encoding::List(Box::new(inner.encoding)),
        Fidelity::Guarded,
        ONE_DIMENSION,
    )
}

/// The types that the user wants, by source table and column.
#[derive(Clone, Debug, Default)]
pub(crate) struct WantedTypes(HashMap<String, HashMap<String, Wanted>>);

impl WantedTypes {
    pub(crate) fn read(types: &BTreeMap<String, BTreeMap<String, String>>) -> Result<Self> {
        let mut all = HashMap::new();
        for (table, columns) in types {
            let mut wanted = HashMap::new();
            for (column, text) in columns {
                let parsed = parse_wanted(text).ok_or_else(|| unknown_type(table, column, text))?;
                wanted.insert(column.clone(), parsed);
            }
            all.insert(table.clone(), wanted);
        }
        Ok(WantedTypes(all))
    }

    fn of(&self, table: &Table, column: &str) -> Option<Wanted> {
        self.0.get(&table.name.to_string())?.get(column).copied()
    }

    fn anywhere(&self, column: &str) -> bool {
        self.0.values().any(|columns| columns.contains_key(column))
    }
}

fn parse_wanted(text: &str) -> Option<Wanted> {
    let text = text.trim().to_ascii_lowercase();
    if matches!(text.as_str(), "string" | "varchar" | "text") {
        return Some(Wanted::Text);
    }
    let inner = text.strip_prefix("decimal")?.trim().strip_prefix('(')?.strip_suffix(')')?;
    let (precision, scale) = inner.split_once(',').unwrap_or((inner, "0"));
    let (precision, scale) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
    let fits = (1..=DECIMAL_DIGITS_MAX).contains(&i32::from(precision)) && scale <= precision;
    fits.then_some(Wanted::Decimal { precision, scale })
}

fn unknown_type(table: &str, column: &str, text: &str) -> Error {
    Error::task_broken(error::TYPE_UNKNOWN, format!("{table}: column {column} cannot become `{text}`"))
        .with_cause("a column's type is `string`, or for a numeric `decimal(precision,scale)` of at most 38 digits")
        .with_cure(Cure::advice("correct the column's type in the task file").line("columns.price = { type = \"string\" }"))
}

/// What becomes of a table's columns, with the user's wishes.
pub(crate) fn map_table(table: &Table, wanted: &WantedTypes) -> Result<Vec<Mapped>> {
    refuse_names(table)?;
    table.columns.iter().map(|column| map_column(table, column, wanted)).collect()
}

fn map_column(table: &Table, column: &Column, wanted: &WantedTypes) -> Result<Mapped> {
    match wanted.of(table, &column.name) {
        None => Ok(map_type(&column.data_type)),
        Some(Wanted::Text) => Ok(as_text()),
        Some(Wanted::Decimal { precision, scale }) => match column.data_type.kind {
            TypeKind::Numeric { .. } => Ok(decimal(precision, scale)),
            _ => Err(unknown_type(&table.name.to_string(), &column.name, &format!("decimal({precision},{scale})"))),
        },
    }
}

/// DuckDB knows names without regard to case; two columns of one table must not become one.
fn refuse_names(table: &Table) -> Result<()> {
    let collision = |problem: String| {
        let cure = Cure::advice("rename it in the source, exclude it, or give the table another name in the target");
        Err(Error::table_broken(error::NAME_COLLISION, table.name.clone(), problem)
            .with_cause("DuckDB compares names without regard to upper and lower case")
            .with_cure(cure))
    };
    if table.columns.is_empty() {
        return collision(format!("{} has no columns, and a table of DuckDB needs one", table.name));
    }
    if table.target_name.schema.eq_ignore_ascii_case(crate::progress::SCHEMA) {
        return collision(format!("{}: the schema {} is pgferry's own", table.name, crate::progress::SCHEMA));
    }
    let mut seen = HashMap::new();
    for column in &table.columns {
        if let Some(other) = seen.insert(column.name.to_lowercase(), &column.name) {
            return collision(format!("{}: columns {other} and {} are one name in DuckDB", table.name, column.name));
        }
        if column.name.eq_ignore_ascii_case("rowid") {
            return collision(format!("{}: column {} is DuckDB's own name of a row", table.name, column.name));
        }
    }
    Ok(())
}

/// The contract's view of a table's mapping.
pub(crate) fn column_mappings(table: &Table, wanted: &WantedTypes) -> Result<Vec<ColumnMapping>> {
    let columns = map_table(table, wanted)?;
    Ok(table.columns.iter().zip(columns).map(|(column, mapped)| ColumnMapping {
        column: column.name.to_string(),
        source_type: column.data_type.name.to_string(),
        target_type: mapped.sql_type,
        fidelity: mapped.fidelity,
        note: mapped.note.to_owned(),
    }).collect())
}

/// The form in which a snapshot's values cost least: binary where it is decoded here or is the text itself.
pub(crate) fn snapshot_format(column: &Column, wanted: &WantedTypes) -> CellFormat {
    let data_type = &column.data_type;
    let is_own_text = matches!(
        data_type.kind,
        TypeKind::Text | TypeKind::FixedText | TypeKind::Json | TypeKind::Jsonb | TypeKind::Enum
    );
    // The column's table is not known here; text is right for every wish.
    let native = map_type(data_type).encoding != Encoding::Utf8 && !wanted.anywhere(&column.name);
    if data_type.sends_binary && (is_own_text || native) { CellFormat::Binary } else { CellFormat::Text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numerics_find_room_or_become_text() {
        for (declared, sql_type) in [
            (None, "VARCHAR"),
            (Some((10, 2)), "DECIMAL(10,2)"),
            (Some((38, 38)), "DECIMAL(38,38)"),
            (Some((39, 0)), "VARCHAR"),
            (Some((5, -3)), "DECIMAL(8,0)"),
            (Some((38, -1)), "VARCHAR"),
            (Some((2, 4)), "DECIMAL(4,4)"),
            (Some((2, 39)), "VARCHAR"),
        ] {
            assert_eq!(numeric(declared).sql_type, sql_type, "{declared:?}");
        }
    }

    #[test]
    fn wishes_are_read() {
        assert_eq!(parse_wanted("String"), Some(Wanted::Text));
        assert_eq!(parse_wanted(" decimal( 12 , 3 )"), Some(Wanted::Decimal { precision: 12, scale: 3 }));
        for text in ["", "int", "decimal", "decimal(39,0)", "decimal(3,4)", "decimal(0,0)", "decimal(a)"] {
            assert_eq!(parse_wanted(text), None, "{text}");
        }
    }
}
