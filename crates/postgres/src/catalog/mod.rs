//! What the catalog says of tables, columns and types, in a handful of set-based queries.
//!
//! ```text
//!   one snapshot: pg_class ──names──> chosen relations ──> columns ──> types ──> keys ──> leaves of partitioned roots
//!   after it:     sizes of the leaves, without waiting for locked ones
//! ```
//!
//! Invariants: the number of queries does not depend on the number of tables; a table is whole or absent, whatever else changes
//! the catalog meanwhile; a table that someone has locked does not hold up the others.
//!
//! Limits: 10 has no generated columns (12+) and no INCLUDE columns (11+); partitions in foreign tables are named, not read.

mod mark;
mod sizes;
mod types;

use std::collections::{BTreeSet, HashMap};

use pgferry_model::{DataType, Error, Result, TableName};

use crate::error::PROTOCOL;
use crate::{ResultRow, Session, quote_literal};
use types::{data_type, read_types};

pub use mark::{CatalogMark, catalog_is_unchanged, mark_catalog};

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
    /// See `type_oid`; -1: none.
    pub modifier: i32,
    /// Whether it is declared NOT NULL. A domain's own NOT NULL does not count: such a column can still read as NULL
    /// (PostgreSQL docs, "CREATE DOMAIN", notes).
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
    /// Whether the session's role may read it; a partition has privileges of its own.
    pub readable: bool,
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
    /// Partitions at any depth whose rows lie elsewhere (foreign tables): neither a snapshot nor the log has them.
    pub unreadable_partitions: Vec<TableName>,
    /// Estimated rows.
    pub rows_estimated: u64,
    /// The role that owns it.
    pub owner: String,
    /// Whether the session's role may read it.
    pub readable: bool,
    /// Whether row-level security is enabled; a role that it applies to is refused, as sessions pin `row_security = off`.
    pub row_security: bool,
    /// Whether other tables inherit from it (not as partitions): their rows show up in a plain SELECT and are not its own.
    pub has_children: bool,
}

/// Reads every relation that `wanted` accepts, ordered by name. System schemas are left out.
///
/// The session must not be in a transaction.
pub async fn read_tables(
    session: &mut Session,
    wanted: impl Fn(&TableName) -> bool,
) -> Result<Vec<CatalogTable>> {
    read_tables_as_of(session, None, wanted).await
}

/// [`read_tables`] as an exported snapshot sees them. It can see a commit that nobody else sees yet: one that is in the log and waits
/// for a synchronous standby.
pub async fn read_tables_as_of(
    session: &mut Session,
    snapshot: Option<&str>,
    wanted: impl Fn(&TableName) -> bool,
) -> Result<Vec<CatalogTable>> {
    session.simple_query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    if let Some(snapshot) = snapshot {
        session.simple_query(&format!("SET TRANSACTION SNAPSHOT {}", quote_literal(snapshot))).await?;
    }
    let read = read_definitions(session, wanted).await;
    // A failed statement has ended the transaction in all but name; its error is the one to tell.
    let ended = session.simple_query(if read.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
    let mut tables = read?;
    ended?;
    sizes::read_sizes(session, &mut tables).await?;
    Ok(tables)
}

async fn read_definitions(
    session: &mut Session,
    wanted: impl Fn(&TableName) -> bool,
) -> Result<Vec<CatalogTable>> {
    let mut tables: Vec<CatalogTable> = Vec::new();
    for row in session.simple_query(RELATIONS).await? {
        let table = relation(&row)?;
        if wanted(&table.name) {
            tables.push(table);
        }
    }
    if tables.is_empty() {
        return Ok(tables);
    }
    let oids = oids_of(&tables);
    let numbers = read_columns(session, &mut tables, &oids).await?;
    read_keys(session, &mut tables, &oids, &numbers).await?;
    read_partitions(session, &mut tables).await?;
    Ok(tables)
}

fn oids_of<'a>(tables: impl IntoIterator<Item = &'a CatalogTable>) -> String {
    let oids: Vec<String> = tables.into_iter().map(|table| table.oid.to_string()).collect();
    oids.join(",")
}

const RELATIONS: &str = "SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relreplident, \
    c.relispartition, greatest(c.reltuples, 0)::bigint, pg_catalog.pg_get_userbyid(c.relowner), c.relrowsecurity, \
    coalesce(pg_catalog.has_any_column_privilege(c.oid, 'SELECT') \
      AND pg_catalog.has_schema_privilege(n.oid, 'USAGE'), false), \
    c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid), \
    c.relpages, (c.relpages + coalesce(t.relpages, 0)) * pg_catalog.current_setting('block_size')::bigint \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    LEFT JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid \
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
    AND n.nspname !~ '^pg_(toast|temp)' ORDER BY n.nspname, c.relname";

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
    let (oid, name) = (number(row, 0)?, TableName::new(text(row, 1)?, text(row, 2)?));
    let readable = text(row, 10)? == "t";
    let itself = || -> Result<CatalogHeap> {
        Ok(CatalogHeap {
            oid,
            name: name.clone(),
            pages: number(row, 12)?,
            bytes: number(row, 13)?,
            readable,
        })
    };
    let heaps = if text(row, 3)? == "r" { vec![itself()?] } else { Vec::new() };
    Ok(CatalogTable {
        oid,
        name,
        kind,
        identity,
        columns: Vec::new(),
        primary_key: Vec::new(),
        identity_index: Vec::new(),
        heaps,
        unreadable_partitions: Vec::new(),
        rows_estimated: number(row, 7)?,
        owner: text(row, 8)?.to_owned(),
        row_security: text(row, 9)? == "t",
        readable,
        has_children: text(row, 11)? == "t",
    })
}

/// Names of columns by their relation's OID and their number.
type Numbers = HashMap<(u32, i16), String>;

async fn read_columns(session: &mut Session, tables: &mut [CatalogTable], oids: &str) -> Result<Numbers> {
    let generated = if session.server_version_num() >= 120_000 { "a.attgenerated <> ''" } else { "false" };
    let rows = session
        .simple_query(&format!(
            "SELECT a.attrelid, a.attname, a.attnotnull, {generated}, a.atttypid, a.atttypmod, a.attndims, a.attnum \
             FROM pg_catalog.pg_attribute a \
             WHERE a.attrelid IN ({oids}) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum"
        ))
        .await?;
    let declared = |row: &ResultRow| -> Result<(u32, i32)> { Ok((number(row, 4)?, number(row, 5)?)) };
    let declared_types = rows.iter().map(declared).collect::<Result<BTreeSet<_>>>()?;
    let types = read_types(session, declared_types.iter().map(|&(oid, _)| oid).collect()).await?;
    let names = types::read_names(session, &declared_types).await?;
    let mut columns: HashMap<u32, Vec<CatalogColumn>> = HashMap::new();
    let mut numbers = Numbers::with_capacity(rows.len());
    for row in &rows {
        let (relation, (type_oid, modifier)) = (number(row, 0)?, declared(row)?);
        let formatted = names.get(&(type_oid, modifier)).map_or("", String::as_str);
        numbers.insert((relation, number(row, 7)?), text(row, 1)?.to_owned());
        columns.entry(relation).or_default().push(CatalogColumn {
            name: text(row, 1)?.to_owned(),
            data_type: data_type(&types, type_oid, modifier, number(row, 6)?, formatted, 0)?,
            type_oid,
            modifier,
            not_null: text(row, 2)? == "t",
            generated: text(row, 3)? == "t",
        });
    }
    for table in tables {
        table.columns = columns.remove(&table.oid).unwrap_or_default();
    }
    Ok(numbers)
}

async fn read_keys(
    session: &mut Session,
    tables: &mut [CatalogTable],
    oids: &str,
    numbers: &Numbers,
) -> Result<()> {
    // INCLUDE columns come after those of the key.
    let of_key = if session.server_version_num() >= 110_000 { "i.indnkeyatts" } else { "i.indnatts" };
    let rows = session
        .simple_query(&format!(
            "SELECT i.indrelid, i.indisprimary, i.indisreplident, i.indkey, {of_key} FROM pg_catalog.pg_index i \
             WHERE i.indrelid IN ({oids}) AND (i.indisprimary OR i.indisreplident) AND i.indisvalid AND i.indimmediate"
        ))
        .await?;
    let by_oid: HashMap<u32, usize> = tables.iter().enumerate().map(|(at, table)| (table.oid, at)).collect();
    for row in &rows {
        let relation = number(row, 0)?;
        let Some(table) = by_oid.get(&relation).and_then(|&at| tables.get_mut(at)) else { continue };
        let key = text(row, 3)?.split(' ').take(number(row, 4)?);
        let name =
            |column: &str| column.parse().ok().and_then(|column| numbers.get(&(relation, column)).cloned());
        let names: Vec<String> = key.filter_map(name).collect();
        if text(row, 1)? == "t" {
            table.primary_key.clone_from(&names);
        }
        if text(row, 2)? == "t" {
            table.identity_index = names;
        }
    }
    Ok(())
}

/// The relations that hold the rows of partitioned tables, with the sizes of the last VACUUM or ANALYZE.
async fn read_partitions(session: &mut Session, tables: &mut [CatalogTable]) -> Result<()> {
    let partitioned = |table: &&CatalogTable| table.kind == RelationKind::PartitionedTable;
    let oids = oids_of(tables.iter().filter(partitioned));
    if oids.is_empty() {
        return Ok(());
    }
    let rows = session
        .simple_query(&format!(
            "WITH RECURSIVE part(root, oid) AS (SELECT c.oid, c.oid FROM pg_catalog.pg_class c WHERE c.oid IN ({oids}) \
             UNION ALL SELECT p.root, i.inhrelid FROM part p JOIN pg_catalog.pg_class r ON r.oid = p.oid AND r.relkind = 'p' \
             JOIN pg_catalog.pg_inherits i ON i.inhparent = p.oid) \
             SELECT p.root, c.oid, n.nspname, c.relname, c.relkind, c.relpages, \
             (c.relpages + coalesce(t.relpages, 0)) * pg_catalog.current_setting('block_size')::bigint, \
             coalesce(pg_catalog.has_any_column_privilege(c.oid, 'SELECT') \
               AND pg_catalog.has_schema_privilege(n.oid, 'USAGE'), false) \
             FROM part p JOIN pg_catalog.pg_class c ON c.oid = p.oid \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             LEFT JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid \
             WHERE c.relkind IN ('r', 'f') AND p.root <> p.oid ORDER BY p.root, c.oid"
        ))
        .await?;
    let by_oid: HashMap<u32, usize> = tables.iter().enumerate().map(|(at, table)| (table.oid, at)).collect();
    for row in &rows {
        let Some(table) = by_oid.get(&number(row, 0)?).and_then(|&at| tables.get_mut(at)) else { continue };
        let name = TableName::new(text(row, 2)?, text(row, 3)?);
        if text(row, 4)? == "f" {
            table.unreadable_partitions.push(name);
            continue;
        }
        table.heaps.push(CatalogHeap {
            oid: number(row, 1)?,
            name,
            pages: number(row, 5)?,
            bytes: number(row, 6)?,
            readable: text(row, 7)? == "t",
        });
    }
    Ok(())
}

fn text(row: &ResultRow, column: usize) -> Result<&str> {
    row.get(column).and_then(Option::as_deref).ok_or_else(|| unexpected("the catalog's answer lacks a value"))
}

fn number<N: std::str::FromStr>(row: &ResultRow, column: usize) -> Result<N> {
    text(row, column)?.parse().map_err(|_| unexpected("the catalog's answer is not a number"))
}

fn unexpected(what: &str) -> Error {
    Error::task_broken(PROTOCOL, what)
        .with_cause("something else than PostgreSQL answers, or a version of it that pgferry does not know")
        .with_cure(crate::session::not_postgres())
}
