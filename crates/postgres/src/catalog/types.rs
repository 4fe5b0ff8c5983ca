//! What is behind a column's type: domains resolved to their base, arrays to their element, everything else by its kind.
//!
//! ```text
//!   pg_attribute (oid, modifier) ──> pg_type ──base, element──> pg_type ... ──> DataType
//! ```
//!
//! Invariant: only a type of the server's own catalog counts as one of the built-in kinds; an extension's or a user's type of the
//! same name is `Other`, known by its text form.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use pgferry_model::{DataType, Result, TypeKind};

use super::{number, text, unexpected};
use crate::Session;

/// Only types of this output function have the text form `{...}`: `int2vector` and `oidvector` are of the arrays' category, too,
/// and print their numbers with blanks between (PostgreSQL source, `int.c`, `int2vectorout`).
const ARRAY_OUTPUT: &str = "pg_catalog.array_out(anyarray)";
/// Types deeper than this are taken as they are; PostgreSQL's own nesting of domains is far lower.
const DEPTH_MAX: u8 = 32;

/// A row of `pg_type`.
pub(super) struct TypeRow {
    name: String,
    kind: String,
    base: u32,
    base_modifier: i32,
    element: u32,
    dimensions: u16,
    sends_binary: bool,
    output_function: String,
    formatted: String,
}

/// Reads the types, and those that they are made of.
pub(super) async fn read_types(
    session: &mut Session,
    mut wanted: BTreeSet<u32>,
) -> Result<HashMap<u32, TypeRow>> {
    let mut types = HashMap::new();
    while !wanted.is_empty() {
        let oids: Vec<String> = wanted.iter().map(u32::to_string).collect();
        let rows = session
            .simple_query(&format!(
                "SELECT t.oid, t.typname, t.typtype, t.typbasetype, t.typtypmod, t.typelem, t.typndims, \
                 t.typsend::pg_catalog.oid <> 0, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(p.proname), \
                 pg_catalog.format_type(t.oid, NULL), \
                 t.typoutput = '{ARRAY_OUTPUT}'::pg_catalog.regprocedure FROM pg_catalog.pg_type t \
                 JOIN pg_catalog.pg_proc p ON p.oid = t.typoutput JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
                 WHERE t.oid IN ({})",
                oids.join(",")
            ))
            .await?;
        wanted.clear();
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let oid: u32 = number(row, 0)?;
            let is_array = text(row, 10)? == "t";
            let row = TypeRow {
                name: text(row, 1)?.to_owned(),
                kind: text(row, 2)?.to_owned(),
                base: number(row, 3)?,
                base_modifier: number(row, 4)?,
                element: if is_array { number(row, 5)? } else { 0 },
                dimensions: number(row, 6)?,
                sends_binary: text(row, 7)? == "t",
                output_function: text(row, 8)?.to_owned(),
                formatted: text(row, 9)?.to_owned(),
            };
            wanted.extend([row.base, row.element]);
            found.push((oid, row));
        }
        types.extend(found);
        wanted.retain(|oid| *oid != 0 && !types.contains_key(oid));
    }
    Ok(types)
}

/// What the server calls types with their modifiers: asked for each pair once, as columns share them.
pub(super) async fn read_names(
    session: &mut Session,
    wanted: &BTreeSet<(u32, i32)>,
) -> Result<HashMap<(u32, i32), String>> {
    let mut names = HashMap::with_capacity(wanted.len());
    let pairs: Vec<String> =
        wanted.iter().map(|(oid, modifier)| format!("({oid}::oid, {modifier})")).collect();
    if pairs.is_empty() {
        return Ok(names);
    }
    let rows = session
        .simple_query(&format!(
            "SELECT v.type, v.modifier, pg_catalog.format_type(v.type, v.modifier) FROM (VALUES {}) v(type, modifier)",
            pairs.join(",")
        ))
        .await?;
    for row in &rows {
        names.insert((number(row, 0)?, number(row, 1)?), text(row, 2)?.to_owned());
    }
    Ok(names)
}

/// The type of a column from its OID, its modifier, its declared dimensions and its name.
pub(super) fn data_type(
    types: &HashMap<u32, TypeRow>,
    oid: u32,
    modifier: i32,
    dimensions: u16,
    formatted: &str,
    depth: u8,
) -> Result<DataType> {
    let row = types.get(&oid).ok_or_else(|| unexpected("a column's type is not in pg_type"))?;
    let kind = match row.kind.as_str() {
        "d" if depth < DEPTH_MAX => {
            let modifier = if row.base_modifier >= 0 { row.base_modifier } else { modifier };
            let dimensions = if row.dimensions > 0 { row.dimensions } else { dimensions };
            return Ok(DataType {
                oid,
                name: formatted.into(),
                output_function: row.output_function.as_str().into(),
                ..data_type(types, row.base, modifier, dimensions, formatted, depth + 1)?
            });
        }
        "e" => TypeKind::Enum,
        "c" => TypeKind::Composite,
        "r" | "m" => TypeKind::Range,
        _ if row.element != 0 && depth < DEPTH_MAX => {
            let name = types.get(&row.element).map_or("", |element| element.formatted.as_str()).to_owned();
            let element = data_type(types, row.element, modifier, 0, &name, depth + 1)?;
            TypeKind::Array(Box::new(element), dimensions)
        }
        _ => scalar(&row.name, oid, modifier),
    };
    Ok(DataType {
        oid,
        name: formatted.into(),
        kind,
        sends_binary: row.sends_binary,
        output_function: Arc::from(row.output_function.as_str()),
    })
}

/// Built-in types by OID range: an extension's type of the same name is not one of them.
fn scalar(name: &str, oid: u32, modifier: i32) -> TypeKind {
    const FIRST_NORMAL_OID: u32 = 16_384;
    if oid >= FIRST_NORMAL_OID {
        return TypeKind::Other;
    }
    match name {
        "bool" => TypeKind::Bool,
        "int2" => TypeKind::Int2,
        "int4" => TypeKind::Int4,
        "int8" => TypeKind::Int8,
        "float4" => TypeKind::Float4,
        "float8" => TypeKind::Float8,
        "numeric" => TypeKind::Numeric { precision_and_scale: numeric_modifier(modifier) },
        "text" | "varchar" | "name" => TypeKind::Text,
        "bpchar" => TypeKind::FixedText,
        "char" => TypeKind::SingleByte,
        "bytea" => TypeKind::Bytes,
        "date" => TypeKind::Date,
        "time" => TypeKind::Time,
        "timetz" => TypeKind::TimeTz,
        "timestamp" => TypeKind::Timestamp,
        "timestamptz" => TypeKind::TimestampTz,
        "interval" => TypeKind::Interval,
        "uuid" => TypeKind::Uuid,
        "json" => TypeKind::Json,
        "jsonb" => TypeKind::Jsonb,
        "xml" => TypeKind::Xml,
        "bit" | "varbit" => TypeKind::Bits,
        "oid" => TypeKind::Oid,
        "money" => TypeKind::Money,
        "inet" | "cidr" | "macaddr" | "macaddr8" => TypeKind::Network,
        _ => TypeKind::Other,
    }
}

/// Precision and scale in a numeric's modifier (PostgreSQL source, `numeric.c`, `make_numeric_typmod`): the scale has 11 bits
/// with a sign.
fn numeric_modifier(modifier: i32) -> Option<(u16, i16)> {
    let packed = modifier.checked_sub(4).filter(|packed| *packed >= 0)?;
    let scale = ((packed & 0x7ff) ^ 1024) - 1024;
    Some(((packed >> 16) as u16, scale as i16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numeric_modifier_gives_precision_and_a_signed_scale() {
        let packed = |precision: i32, scale: i32| (precision << 16 | scale & 0x7ff) + 4;
        for (precision, scale) in [(10, 2), (1000, 0), (2, -3), (3, 5), (1000, -1000), (1000, 1000)] {
            let unpacked = numeric_modifier(packed(precision, scale));
            assert_eq!(unpacked, Some((precision as u16, scale as i16)));
        }
        assert_eq!(numeric_modifier(-1), None);
    }

    #[test]
    fn a_name_alone_does_not_make_a_built_in_type() {
        assert_eq!(scalar("int4", 23, -1), TypeKind::Int4);
        assert_eq!(scalar("int4", 16_384, -1), TypeKind::Other);
    }
}
