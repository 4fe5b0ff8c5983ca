//! The published mapping table is what the code does.

use pgferry_model::TypeKind;
use pgferry_pipeline::Fidelity;
use pgferry_target_duckdb::map_type;

use crate::making::data_type;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/type-mapping-duckdb.md");
const START: &str = "<!-- table: written by the test `documents` of target-duckdb -->\n";
const END: &str = "<!-- end of table -->";

fn kinds() -> Vec<(&'static str, TypeKind)> {
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
        ("numeric(39,0) and wider", numeric(Some((39, 0)))),
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

fn generated() -> String {
    let mut out = String::from("| PostgreSQL | DuckDB | values | note |\n|---|---|---|---|\n");
    for (name, kind) in kinds() {
        let mapping = map_type(&data_type("x", kind), None);
        let fidelity = match mapping.fidelity {
            Fidelity::Exact => "exact",
            Fidelity::ExactAsText => "exact, as text",
            Fidelity::Equal => "equal",
            Fidelity::Guarded => "exact or refused",
            Fidelity::Rounded => "rounded",
        };
        out.push_str(&format!("| {name} | {} | {fidelity} | {} |\n", mapping.name, mapping.note));
    }
    out
}

/// With `PGFERRY_WRITE_DOCS=1` it writes the page instead.
#[test]
fn the_published_table_is_what_the_code_does() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once(START).unwrap();
    let (table, after) = rest.split_once(END).unwrap();
    if std::env::var_os("PGFERRY_WRITE_DOCS").is_some() {
        std::fs::write(PAGE, format!("{before}{START}{}{END}{after}", generated())).unwrap();
    } else {
        assert_eq!(table, generated());
    }
}
