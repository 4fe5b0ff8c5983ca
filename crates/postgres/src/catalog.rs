//! What the catalog says of tables, columns and types, in a handful of set-based queries.
//!
//! ```text
//!   pg_class ──patterns──> chosen relations ──> columns ──> types (domains, elements resolved) ──> leaves of partitioned roots
//! ```
//!
//! Invariant: the number of queries does not depend on the number of tables.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use pgferry_model::{DataType, Error, Result, TableName, TypeKind};

use crate::error::PROTOCOL;
use crate::{ResultRow, Session};

/// What a relation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelationKind {
    /// An ordinary table.
    Table,
    /// The root of partitions.
    PartitionedTable,
    /// An ordinary table that is a partition.
    Partition,
    /// An unlogged table: it has rows, and no changes in the log.
    Unlogged,
    /// A view, a materialized view, a foreign table, a temporary table: not carried.
    Other,
}

/// How the source identifies old rows (`REPLICA IDENTITY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The primary key's columns.
    Default,
    /// A unique index's columns.
    Index,
    /// All columns.
    Full,
    /// Nothing.
    Nothing,
}

/// A column.
#[derive(Clone, Debug)]
pub struct CatalogColumn {
    /// Its name, unquoted.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Its type's OID and modifier as the change stream names them.
    pub type_oid: u32,
    /// Whether it is declared NOT NULL.
    pub not_null: bool,
    /// Whether it is generated; the change stream leaves it out.
    pub generated: bool,
}

/// A relation that holds rows.
#[derive(Clone, Debug)]
pub struct CatalogHeap {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
    /// Heap and TOAST, in bytes.
    pub bytes: u64,
    /// Pages of the heap.
    pub pages: u64,
}

/// A table.
#[derive(Clone, Debug)]
pub struct CatalogTable {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
    /// What it is.
    pub kind: RelationKind,
    /// How old rows are identified.
    pub identity: Identity,
    /// Its columns, without dropped ones.
    pub columns: Vec<CatalogColumn>,
    /// The primary key's columns in index order; empty without one.
    pub primary_key: Vec<String>,
    /// The columns of the index that is the replica identity.
    pub identity_index: Vec<String>,
    /// The relations that hold its rows: itself, or its leaf partitions.
    pub heaps: Vec<CatalogHeap>,
    /// Estimated rows.
    pub rows_estimated: u64,
}

/// Reads every relation that `wanted` accepts, ordered by name. System schemas are left out.
pub async fn read_tables(
    session: &mut Session,
    wanted: impl Fn(&TableName) -> bool,
) -> Result<Vec<CatalogTable>> {
    let mut tables: Vec<CatalogTable> = Vec::new();
    for row in session.simple_query(&relations_query()).await? {
        let table = relation(&row)?;
        if wanted(&table.name) {
            tables.push(table);
        }
    }
    if tables.is_empty() {
        return Ok(tables);
    }
    let oids: Vec<String> = tables.iter().map(|table| table.oid.to_string()).collect();
    let oids = oids.join(",");
    read_columns(session, &mut tables, &oids).await?;
    read_keys(session, &mut tables, &oids).await?;
    read_heaps(session, &mut tables).await?;
    Ok(tables)
}

fn relations_query() -> String {
    "SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relreplident, c.relispartition, \
     greatest(c.reltuples, 0)::bigint \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
     AND n.nspname !~ '^pg_(toast|temp)' ORDER BY n.nspname, c.relname"
        .to_owned()
}

fn relation(row: &ResultRow) -> Result<CatalogTable> {
    let kind = match (text(row, 3)?, text(row, 4)?, text(row, 6)?) {
        ("r", "u", _) => RelationKind::Unlogged,
        ("r", "p", "t") => RelationKind::Partition,
        ("r", "p", _) => RelationKind::Table,
        ("p", "p", _) => RelationKind::PartitionedTable,
        _ => RelationKind::Other,
    };
    let identity = match text(row, 5)? {
        "i" => Identity::Index,
        "f" => Identity::Full,
        "n" => Identity::Nothing,
        _ => Identity::Default,
    };
    Ok(CatalogTable {
        oid: number(row, 0)?,
        name: TableName::new(text(row, 1)?, text(row, 2)?),
        kind,
        identity,
        columns: Vec::new(),
        primary_key: Vec::new(),
        identity_index: Vec::new(),
        heaps: Vec::new(),
        rows_estimated: number(row, 7)?,
    })
}

async fn read_columns(session: &mut Session, tables: &mut [CatalogTable], oids: &str) -> Result<()> {
    let generated = if session.server_version_num() >= 120_000 { "a.attgenerated <> ''" } else { "false" };
    let rows = session
        .simple_query(&format!(
            "SELECT a.attrelid, a.attname, a.attnotnull, {generated}, a.atttypid, a.atttypmod, a.attndims, \
             pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a \
             WHERE a.attrelid IN ({oids}) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum"
        ))
        .await?;
    let wanted = rows.iter().map(|row| number(row, 4)).collect::<Result<BTreeSet<u32>>>()?;
    let types = read_types(session, wanted).await?;
    let mut columns: HashMap<u32, Vec<CatalogColumn>> = HashMap::new();
    for row in &rows {
        let type_oid = number(row, 4)?;
        let (modifier, dimensions) = (number(row, 5)?, number(row, 6)?);
        columns.entry(number(row, 0)?).or_default().push(CatalogColumn {
            name: text(row, 1)?.to_owned(),
            data_type: data_type(&types, type_oid, modifier, dimensions, text(row, 7)?, 0)?,
            type_oid,
            not_null: text(row, 2)? == "t",
            generated: text(row, 3)? == "t",
        });
    }
    for table in tables {
        table.columns = columns.remove(&table.oid).unwrap_or_default();
    }
    Ok(())
}

async fn read_keys(session: &mut Session, tables: &mut [CatalogTable], oids: &str) -> Result<()> {
    let rows = session
        .simple_query(&format!(
            "SELECT i.indrelid, i.indisprimary, i.indisreplident, a.attname \
             FROM pg_catalog.pg_index i, LATERAL pg_catalog.unnest(i.indkey::smallint[]) WITH ORDINALITY k(attnum, place), \
             pg_catalog.pg_attribute a WHERE i.indrelid IN ({oids}) AND (i.indisprimary OR i.indisreplident) AND i.indisvalid \
             AND i.indimmediate AND a.attrelid = i.indrelid AND a.attnum = k.attnum \
             AND k.place <= {} ORDER BY i.indrelid, i.indexrelid, k.place",
            if session.server_version_num() >= 110_000 { "i.indnkeyatts" } else { "i.indnatts" }
        ))
        .await?;
    let by_oid: HashMap<u32, usize> = tables.iter().enumerate().map(|(at, table)| (table.oid, at)).collect();
    for row in &rows {
        let Some(table) = by_oid.get(&number(row, 0)?).and_then(|&at| tables.get_mut(at)) else { continue };
        if text(row, 1)? == "t" {
            table.primary_key.push(text(row, 3)?.to_owned());
        }
        if text(row, 2)? == "t" {
            table.identity_index.push(text(row, 3)?.to_owned());
        }
    }
    Ok(())
}

async fn read_heaps(session: &mut Session, tables: &mut [CatalogTable]) -> Result<()> {
    let oids: Vec<String> = tables.iter().map(|table| table.oid.to_string()).collect();
    let rows = session
        .simple_query(&format!(
            "WITH RECURSIVE part(root, oid) AS (SELECT c.oid, c.oid FROM pg_catalog.pg_class c WHERE c.oid IN ({}) \
             UNION ALL SELECT p.root, i.inhrelid FROM part p JOIN pg_catalog.pg_class r ON r.oid = p.oid AND r.relkind = 'p' \
             JOIN pg_catalog.pg_inherits i ON i.inhparent = p.oid) \
             SELECT p.root, c.oid, n.nspname, c.relname, pg_catalog.pg_table_size(c.oid), \
             pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::bigint \
             FROM part p JOIN pg_catalog.pg_class c ON c.oid = p.oid AND c.relkind = 'r' \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace ORDER BY p.root, c.oid",
            oids.join(",")
        ))
        .await?;
    let by_oid: HashMap<u32, usize> = tables.iter().enumerate().map(|(at, table)| (table.oid, at)).collect();
    for row in &rows {
        let Some(table) = by_oid.get(&number(row, 0)?).and_then(|&at| tables.get_mut(at)) else { continue };
        table.heaps.push(CatalogHeap {
            oid: number(row, 1)?,
            name: TableName::new(text(row, 2)?, text(row, 3)?),
            bytes: number(row, 4)?,
            pages: number(row, 5)?,
        });
    }
    Ok(())
}

/// A row of `pg_type`.
struct TypeRow {
    name: String,
    kind: String,
    category: String,
    base: u32,
    base_modifier: i32,
    element: u32,
    sends_binary: bool,
    output_function: String,
    formatted: String,
}

/// Reads the types, and those that they are made of.
async fn read_types(session: &mut Session, mut wanted: BTreeSet<u32>) -> Result<HashMap<u32, TypeRow>> {
    let mut types = HashMap::new();
    while !wanted.is_empty() {
        let oids: Vec<String> = wanted.iter().map(u32::to_string).collect();
        let rows = session
            .simple_query(&format!(
                "SELECT t.oid, t.typname, t.typtype, t.typcategory, t.typbasetype, t.typtypmod, t.typelem, \
                 t.typsend::pg_catalog.oid <> 0, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(p.proname), \
                 pg_catalog.format_type(t.oid, NULL), t.typlen FROM pg_catalog.pg_type t \
                 JOIN pg_catalog.pg_proc p ON p.oid = t.typoutput JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
                 WHERE t.oid IN ({})",
                oids.join(",")
            ))
            .await?;
        wanted.clear();
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let oid: u32 = number(row, 0)?;
            // Only a true array has both an element and no fixed length; `name` and `point` have elements, too.
            let varying = text(row, 10)? == "-1" && text(row, 3)? == "A";
            let row = TypeRow {
                name: text(row, 1)?.to_owned(),
                kind: text(row, 2)?.to_owned(),
                category: text(row, 3)?.to_owned(),
                base: number(row, 4)?,
                base_modifier: number(row, 5)?,
                element: if varying { number(row, 6)? } else { 0 },
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

fn data_type(
    types: &HashMap<u32, TypeRow>,
    oid: u32,
    modifier: i32,
    dimensions: u16,
    formatted: &str,
    depth: u8,
) -> Result<DataType> {
    let row = types.get(&oid).ok_or_else(|| unexpected("a column's type is not in pg_type"))?;
    let kind = match row.kind.as_str() {
        "d" if depth < 32 => {
            let modifier = if row.base_modifier >= 0 { row.base_modifier } else { modifier };
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
        _ if row.element != 0 && row.category == "A" && depth < 32 => {
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

fn text(row: &ResultRow, column: usize) -> Result<&str> {
    row.get(column).and_then(Option::as_deref).ok_or_else(|| unexpected("the catalog's answer lacks a value"))
}

fn number<N: std::str::FromStr>(row: &ResultRow, column: usize) -> Result<N> {
    text(row, column)?.parse().map_err(|_| unexpected("the catalog's answer is not a number"))
}

fn unexpected(what: &str) -> Error {
    Error::task_broken(PROTOCOL, what)
}
