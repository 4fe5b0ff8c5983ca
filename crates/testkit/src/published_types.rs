//! The tables of `docs/reference/type-mapping-*.md`: written from a target's mapping, and compared with it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pgferry_model::{DataType, TypeKind};
use pgferry_pipeline::Fidelity;

const END: &str = "<!-- end of table -->";

/// A type as a column has it.
pub fn data_type(name: &str, kind: TypeKind) -> DataType {
    DataType { oid: 1, name: name.into(), kind, sends_binary: true, output_function: Arc::from("x") }
}

/// A column of each type, by the words of the reference pages.
pub fn kinds() -> Vec<(&'static str, TypeKind)> {
    let numeric = |precision_and_scale| TypeKind::Numeric { precision_and_scale };
    let array = |kind, dimensions| TypeKind::Array(Box::new(data_type("x", kind)), dimensions);
    vec![
        ("boolean", TypeKind::Bool),
        ("smallint", TypeKind::Int2),
        ("integer", TypeKind::Int4),
        ("bigint", TypeKind::Int8),
        ("oid", TypeKind::Oid),
        ("real", TypeKind::Float4),
        ("double precision", TypeKind::Float8),
        ("numeric(10,2), up to 38 digits", numeric(Some((10, 2)))),
        ("numeric(5,-3) (scale below 0)", numeric(Some((5, -3)))),
        ("numeric(2,4) (scale above the precision)", numeric(Some((2, 4)))),
        ("numeric(39,0), up to 76 digits", numeric(Some((39, 0)))),
        ("numeric(77,0) and wider", numeric(Some((77, 0)))),
        ("numeric without a precision", numeric(None)),
        ("text, character varying, name", TypeKind::Text),
        ("character(n)", TypeKind::FixedText),
        ("\"char\"", TypeKind::SingleByte),
        ("bytea", TypeKind::Bytes),
        ("date", TypeKind::Date),
        ("time", TypeKind::Time),
        ("time with time zone", TypeKind::TimeTz),
        ("timestamp", TypeKind::Timestamp),
        ("timestamp with time zone", TypeKind::TimestampTz),
        ("interval", TypeKind::Interval),
        ("uuid", TypeKind::Uuid),
        ("json", TypeKind::Json),
        ("jsonb", TypeKind::Jsonb),
        ("xml", TypeKind::Xml),
        ("bit, bit varying", TypeKind::Bits),
        ("money", TypeKind::Money),
        ("inet, cidr, macaddr, macaddr8", TypeKind::Network),
        ("enum", TypeKind::Enum),
        ("composite", TypeKind::Composite),
        ("range, multirange", TypeKind::Range),
        ("integer[] (and arrays of other native types)", array(TypeKind::Int4, 1)),
        ("integer[][]", array(TypeKind::Int4, 2)),
        ("jsonb[] (and arrays of types that come as text)", array(TypeKind::Jsonb, 1)),
        ("everything else (geometry, tsvector, hstore, vector, reg types)", TypeKind::Other),
    ]
}

/// How the pages say whether values arrive as they are.
pub fn words(fidelity: Fidelity) -> &'static str {
    match fidelity {
        Fidelity::Exact => "exact",
        Fidelity::ExactAsText => "exact, as text",
        Fidelity::Equal => "equal",
        Fidelity::Guarded => "exact or refused",
        Fidelity::Rounded => "rounded",
    }
}

/// Fails unless the page of a target holds exactly this table; with `PGFERRY_WRITE_DOCS=1` it writes the page instead.
///
/// # Errors
/// When the page cannot be read, has no place for a table, or holds another one.
pub fn verify(target: &str, table: &str) -> Result<()> {
    let start = format!("<!-- table: written by the test `documents` of target-{target} -->\n");
    let page = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = page.join(format!("../../docs/reference/type-mapping-{target}.md"));
    let text = std::fs::read_to_string(&page)?;
    let (before, rest) = text.split_once(&start).context("the table's start")?;
    let (found, after) = rest.split_once(END).context("the table's end")?;
    if std::env::var_os("PGFERRY_WRITE_DOCS").is_some() {
        std::fs::write(page, format!("{before}{start}{table}{END}{after}"))?;
    } else {
        ensure!(found == table, "the page's table is not what the code does");
    }
    Ok(())
}
