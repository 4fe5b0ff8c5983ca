//! Which tables the task carries, and as what: patterns, keys, excluded columns, the relations that hold the rows.
//!
//! A pattern is `schema.table`, each part with `*` (any text) and `?` (one character); names with dots or other special characters go
//! in double quotes: `public."my.table"`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use pgferry_model::{Column, Cure, Error, Result, Table, TableId, TableName};
use pgferry_pipeline::SyncMode;
use pgferry_postgres::{CatalogMark, CatalogTable, Identity, RelationKind, quote_identifier, quote_literal};

use crate::config::{PostgresSourceConfig, SelectFrom, TableOptions};
use crate::error;
use crate::replication::publication::{Needed, Publication, Restrictions, qualified};
use crate::snapshot::Extent;
use crate::snapshot::plan::Heap;

/// The task's tables with everything that the source needs to know of them besides.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) tables: Vec<Arc<Table>>,
    pub(crate) extents: Arc<HashMap<TableId, Extent>>,
    /// Per table: its OID and the columns that are left out.
    pub(crate) bindings: Vec<(u32, Vec<Arc<str>>)>,
    /// Per table: its columns' type modifiers.
    pub(crate) modifiers: Vec<Vec<Option<i32>>>,
    /// Leaf partitions and the tables that carry their rows.
    pub(crate) leaves: HashMap<u32, TableId>,
    /// Whether partitions are published one by one: such as come later are known only when the stream speaks of them.
    pub(crate) by_leaf: bool,
    /// Tables that are selected but cannot follow the stream, and why.
    pub(crate) snapshot_only: Vec<(TableName, &'static str)>,
    /// Tables that follow the stream, with their leaves.
    pub(crate) published: Vec<Needed>,
    /// Per table: what the publication leaves out of it.
    pub(crate) restrictions: Vec<(Needed, Restrictions)>,
    /// The catalog before it was read for this, and when.
    pub(crate) mark: Option<(CatalogMark, Instant)>,
}

/// A pattern of table names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    schema: Vec<Part>,
    name: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Exactly(char),
    One,
    Any,
}

impl Pattern {
    /// From its text; `None` when it has not exactly a schema and a name.
    pub(crate) fn parse(text: &str) -> Option<Pattern> {
        let mut parts = vec![Vec::new()];
        let (mut quoted, mut chars) = (false, text.chars().peekable());
        while let Some(character) = chars.next() {
            let last = parts.last_mut()?;
            match character {
                '"' if quoted && chars.peek() == Some(&'"') => {
                    chars.next();
                    last.push(Part::Exactly('"'));
                }
                '"' => quoted = !quoted,
                '.' if !quoted => parts.push(Vec::new()),
                '*' if !quoted => last.push(Part::Any),
                '?' if !quoted => last.push(Part::One),
                other => last.push(Part::Exactly(other)),
            }
        }
        let name = parts.pop()?;
        let schema = parts.pop()?;
        (!quoted && parts.is_empty() && !schema.is_empty() && !name.is_empty())
            .then_some(Pattern { schema, name })
    }

    /// Whether a table's name is meant.
    pub(crate) fn matches(&self, table: &TableName) -> bool {
        let chars = |text: &str| text.chars().collect::<Vec<char>>();
        fits(&self.schema, &chars(&table.schema)) && fits(&self.name, &chars(&table.name))
    }

    /// The one table that it names; `None` with a wildcard.
    pub(crate) fn exact(&self) -> Option<TableName> {
        let text = |parts: &[Part]| {
            parts
                .iter()
                .map(|part| match part {
                    Part::Exactly(character) => Some(*character),
                    Part::One | Part::Any => None,
                })
                .collect::<Option<String>>()
        };
        Some(TableName::new(text(&self.schema)?, text(&self.name)?))
    }
}

fn fits(parts: &[Part], text: &[char]) -> bool {
    match (parts.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((Part::Any, rest)), _) => (0..=text.len()).any(|skip| fits(rest, &text[skip..])),
        (Some((Part::One, rest)), Some((_, text))) => fits(rest, text),
        (Some((Part::Exactly(wanted), rest)), Some((found, text))) => wanted == found && fits(rest, text),
        _ => false,
    }
}

/// The names that a configuration selects.
pub(crate) struct Wanted {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
    named: Vec<TableName>,
    /// The publication's tables, where it selects.
    published: Option<BTreeSet<TableName>>,
    /// Whether every table that is named has to be there.
    strict: bool,
}

impl Wanted {
    /// `publication`: asked for already where it selects the tables.
    pub(crate) fn new(
        config: &PostgresSourceConfig,
        publication: Option<&Publication>,
        strict: bool,
    ) -> Result<Wanted> {
        let parse = |texts: &[String]| -> Result<Vec<Pattern>> {
            texts.iter().map(|text| Pattern::parse(text).ok_or_else(|| no_pattern(text))).collect()
        };
        Ok(Wanted {
            strict,
            include: parse(&config.include)?,
            exclude: parse(&config.exclude)?,
            named: config.tables.iter().filter_map(|table| table.source.clone()).collect(),
            published: (config.replication.from == SelectFrom::Publication)
                .then(|| publication.map(|found| found.tables.keys().cloned().collect()).unwrap_or_default()),
        })
    }

    pub(crate) fn accepts(&self, table: &TableName) -> bool {
        if let Some(published) = &self.published {
            return published.contains(table) && !self.exclude.iter().any(|pattern| pattern.matches(table));
        }
        self.named.contains(table)
            || (self.include.iter().any(|pattern| pattern.matches(table))
                && !self.exclude.iter().any(|pattern| pattern.matches(table)))
    }

    /// Names that the catalog has to have.
    fn required(&self) -> impl Iterator<Item = TableName> + '_ {
        let include = if self.published.is_none() { self.include.as_slice() } else { &[] };
        let named = self.named.iter().cloned().chain(include.iter().filter_map(Pattern::exact));
        named.filter(|_| self.strict)
    }
}

/// Makes the task's tables of what the catalog has.
pub(crate) fn select(
    config: &PostgresSourceConfig,
    wanted: &Wanted,
    catalog: Vec<CatalogTable>,
    publication: Option<&Publication>,
    server_version_num: u32,
) -> Result<Selection> {
    for name in wanted.required() {
        if !catalog.iter().any(|table| table.name == name) {
            return Err(if wanted.published.is_some() {
                not_selected(config, &name)
            } else {
                missing(&name)
            });
        }
    }
    let mut selection = Selection {
        tables: Vec::new(),
        extents: Arc::default(),
        bindings: Vec::new(),
        modifiers: Vec::new(),
        leaves: HashMap::new(),
        by_leaf: false,
        snapshot_only: Vec::new(),
        published: Vec::new(),
        restrictions: Vec::new(),
        mark: None,
    };
    let mut extents = HashMap::new();
    for found in carried(config, wanted, catalog)? {
        let id = TableId(selection.tables.len() as u32);
        let options = config.tables.iter().find(|table| table.source.as_ref() == Some(&found.name));
        let none = TableOptions::default();
        let options = options.unwrap_or(&none);
        let needed = needed(&found);
        let restrictions = publication.map(|found| found.restrictions(&needed)).unwrap_or_default();
        let excluded = excluded(&found, options, &restrictions);
        let (mut table, why_not) = table(id, &found, options, &excluded)?;
        // PostgreSQL 10 does not send TRUNCATE: an insert can meet a row that is gone at the source.
        table.key_enforced &= server_version_num >= 110_000;
        if let Some(why) = why_not.filter(|_| config.sync_mode != SyncMode::Snapshot) {
            selection.snapshot_only.push((found.name.clone(), why));
        }
        selection.restrictions.push((needed.clone(), restrictions.clone()));
        extents.insert(id, extent(&found, options, restrictions, server_version_num));
        selection.bindings.push((found.oid, excluded.iter().map(|name| Arc::from(name.as_str())).collect()));
        let carried = found.columns.iter().filter(|column| !excluded.contains(&column.name));
        selection.modifiers.push(carried.map(|column| Some(column.modifier)).collect());
        if !table.key.is_empty() {
            selection.published.push(needed);
        }
        if found.kind == RelationKind::PartitionedTable {
            selection.leaves.extend(found.heaps.iter().map(|heap| (heap.oid, id)));
            selection.by_leaf |=
                publication.is_some_and(|publication| !publication.via_root) || server_version_num < 130_000;
        }
        selection.tables.push(Arc::new(table));
    }
    selection.extents = Arc::new(extents);
    if selection.tables.is_empty() {
        return Err(nothing_selected(config));
    }
    Ok(selection)
}

/// The relations that become tables: leaves of a selected root come with it, not by themselves.
fn carried(
    config: &PostgresSourceConfig,
    wanted: &Wanted,
    catalog: Vec<CatalogTable>,
) -> Result<Vec<CatalogTable>> {
    let roots: Vec<u32> = catalog
        .iter()
        .filter(|table| table.kind == RelationKind::PartitionedTable)
        .flat_map(|root| root.heaps.iter().map(|heap| heap.oid))
        .collect();
    let covered: Vec<u32> = roots;
    let mut carried = Vec::new();
    for table in catalog {
        let named = wanted.named.contains(&table.name);
        match table.kind {
            RelationKind::Partition if covered.contains(&table.oid) && !named => {}
            RelationKind::Table | RelationKind::PartitionedTable | RelationKind::Partition => {
                carried.push(table)
            }
            RelationKind::Unlogged if config.sync_mode == SyncMode::Snapshot => carried.push(table),
            RelationKind::Unlogged | RelationKind::Other if named => return Err(wrong_kind(&table.name)),
            RelationKind::Unlogged | RelationKind::Other => {}
        }
    }
    Ok(carried)
}

fn needed(found: &CatalogTable) -> Needed {
    let leaves = found.heaps.iter().map(|heap| heap.name.clone()).collect();
    Needed {
        name: found.name.clone(),
        leaves: (found.kind == RelationKind::PartitionedTable).then_some(leaves),
    }
}

/// Columns that are not carried: excluded by the task, left out by the publication, generated and not published.
fn excluded(found: &CatalogTable, options: &TableOptions, restrictions: &Restrictions) -> BTreeSet<String> {
    let published = &restrictions.table;
    let generated = found.columns.iter().filter(|column| column.generated).map(|column| &column.name);
    let generated = generated.filter(|name| !published.generated.contains(*name));
    let all = options.exclude_columns.iter().chain(&published.unpublished).chain(generated);
    all.cloned().collect()
}

fn table(
    id: TableId,
    found: &CatalogTable,
    options: &TableOptions,
    left_out: &BTreeSet<String>,
) -> Result<(Table, Option<&'static str>)> {
    for excluded in options.exclude_columns.iter().chain(&options.primary_key) {
        if !found.columns.iter().any(|column| column.name == *excluded) {
            return Err(missing_column(&found.name, excluded));
        }
    }
    let columns: Vec<Column> = found
        .columns
        .iter()
        .filter(|column| !left_out.contains(&column.name))
        .map(|column| Column {
            name: column.name.as_str().into(),
            data_type: column.data_type.clone(),
            nullable: !column.not_null,
        })
        .collect();
    let (key_names, enforced, why_not) = key(found, options);
    let indexes: Option<Vec<usize>> =
        key_names.iter().map(|name| columns.iter().position(|column| *column.name == **name)).collect();
    let (key, why_not) = match indexes {
        Some(key) => (key, why_not),
        None => (Vec::new(), Some("a key column is excluded, not published or generated")),
    };
    let table = Table {
        id,
        name: found.name.clone(),
        target_name: options.target.clone().unwrap_or_else(|| found.name.clone()),
        columns,
        key,
        key_enforced: enforced,
        full_identity: found.identity == Identity::Full,
        rows_estimated: found.rows_estimated,
        bytes: found.heaps.iter().map(|heap| heap.bytes).sum(),
    };
    Ok((table, why_not))
}

/// The mirroring key: one whose old values the change stream carries. Names, whether the source enforces it, why there is none.
fn key<'a>(found: &'a CatalogTable, options: &'a TableOptions) -> (Vec<&'a str>, bool, Option<&'static str>) {
    let names = |list: &'a [String]| list.iter().map(String::as_str).collect::<Vec<&str>>();
    let identified: &[String] = match found.identity {
        Identity::Default => &found.primary_key,
        Identity::Index => &found.identity_index,
        Identity::Full | Identity::Nothing => &[],
    };
    if !options.primary_key.is_empty() {
        let covered = found.identity == Identity::Full
            || options.primary_key.iter().all(|name| identified.contains(name));
        let same = options.primary_key.len() == found.primary_key.len()
            && options.primary_key.iter().all(|name| found.primary_key.contains(name));
        return if covered {
            (names(&options.primary_key), same, None)
        } else {
            (
                Vec::new(),
                false,
                Some(
                    "the named primary_key is not part of the replica identity, so updates and deletes cannot be located",
                ),
            )
        };
    }
    match found.identity {
        Identity::Full if found.primary_key.is_empty() => (
            Vec::new(),
            false,
            Some("it has REPLICA IDENTITY FULL and no primary key; name the key's columns with primary_key"),
        ),
        Identity::Full => (names(&found.primary_key), true, None),
        Identity::Nothing => (
            Vec::new(),
            false,
            Some("its REPLICA IDENTITY is NOTHING, so updates and deletes cannot be located"),
        ),
        Identity::Default | Identity::Index if identified.is_empty() => {
            (Vec::new(), false, Some("it has no primary key, so updates and deletes cannot be located"))
        }
        Identity::Default | Identity::Index => (names(identified), true, None),
    }
}

fn extent(
    found: &CatalogTable,
    options: &TableOptions,
    mut restrictions: Restrictions,
    server_version_num: u32,
) -> Extent {
    let heaps = found
        .heaps
        .iter()
        .map(|heap| Heap {
            oid: heap.oid,
            schema: heap.name.schema.to_string(),
            name: heap.name.name.to_string(),
            bytes: heap.bytes,
            pages: heap.pages,
            splittable: server_version_num >= 140_000,
            filter: restrictions.leaf_filters.remove(&heap.name),
        })
        .collect();
    let filters = restrictions.table.filter.into_iter().chain(options.snapshot_where.iter().cloned());
    let generates = found.columns.iter().any(|column| column.generated);
    Extent { heaps, filters: filters.collect(), generates }
}

fn no_pattern(text: &str) -> Error {
    Error::task_broken(error::TABLE_MISSING, format!("{text:?} is not a table or a pattern of tables"))
        .with_cause("a name has a schema and a table, with a dot between")
        .with_cure(Cure::advice("write schema.table, such as public.orders or public.*; names with dots or capitals need no quotes but dots do: public.\"my.table\""))
}

fn missing(name: &TableName) -> Error {
    let sql = format!(
        "SELECT schemaname, tablename FROM pg_tables WHERE lower(tablename) = lower({})",
        quote_literal(&name.name)
    );
    Error::task_broken(error::TABLE_MISSING, format!("table {name} does not exist"))
        .with_cause("the database that the task connects to has no relation of this name; names are case-sensitive here")
        .with_cure(
            Cure::advice("correct the name or the database in the task file; the statement shows tables of that name").sql(sql),
        )
}

/// A table with settings that the publication does not bring.
fn not_selected(config: &PostgresSourceConfig, name: &TableName) -> Error {
    let publication = &config.replication.publication;
    Error::task_broken(
        error::TABLE_NOT_IN_PUBLICATION,
        format!("publication {publication} lacks {name}, for which the task file has settings"),
    )
    .with_cause("the publication selects the task's tables (from = \"publication\")")
    .with_cure(
        Cure::advice("publish the table, or take its settings out of the task file")
            .sql(format!("ALTER PUBLICATION {} ADD TABLE {}", quote_identifier(publication), qualified(name)))
            .run_as("owner of the table and of the publication"),
    )
}

fn missing_column(table: &TableName, column: &str) -> Error {
    Error::task_broken(error::TABLE_MISSING, format!("table {table} has no column {column}"))
        .with_cause("primary_key or exclude_columns names it; names are case-sensitive here")
        .with_cure(Cure::advice("correct primary_key or exclude_columns in the task file"))
}

fn wrong_kind(name: &TableName) -> Error {
    Error::task_broken(
        error::TABLE_KIND,
        format!("{name} is a view, a foreign table or an unlogged table: it has no changes in the log"),
    )
    .with_cause("the change stream is made from the log, and only ordinary tables and partitions are in it")
    .with_cure(Cure::advice(
        "take it out of the task, or carry an unlogged table with sync_mode = \"snapshot\"",
    ))
}

fn nothing_selected(config: &PostgresSourceConfig) -> Error {
    Error::task_broken(error::TABLE_MISSING, format!("task {} selects no table", config.task))
        .with_cause("no table of the database matches include, or exclude takes all of them out")
        .with_cure(Cure::advice("name tables, or give a pattern that some match: include = [\"public.*\"]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names_and_quotes_protect() {
        let matches = |pattern: &str, schema: &str, name: &str| {
            Pattern::parse(pattern).expect("a pattern").matches(&TableName::new(schema, name))
        };
        assert!(matches("public.*", "public", "orders"));
        assert!(!matches("public.*", "public2", "orders"));
        assert!(matches("*.inv_?", "billing", "inv_1") && !matches("*.inv_?", "billing", "inv_12"));
        assert!(
            matches("public.\"my.*\"", "public", "my.*") && !matches("public.\"my.*\"", "public", "my.x")
        );
        assert!(matches("a.\"x\"\"y\"", "a", "x\"y"));
        assert!(matches("*.Mäuse*", "s", "Mäuse & Käse"));
        for text in ["", "orders", "a.b.c", "a.", ".b", "a.\"b"] {
            assert_eq!(Pattern::parse(text), None, "{text:?}");
        }
    }
}
