//! The publication: found, made, and completed with the task's tables; what it leaves out of them.
//!
//! Invariants: only tables with a usable key are added by us, and of an inheritance parent only itself: publishing a table without
//! a key makes the application's own updates fail. A publication that is gone while the slot is there is never made anew in silence: the
//! log between would be decoded without it (PostgreSQL up to 17 fails there, 18 leaves the changes out).
//!
//! Limits: partitioned tables can be published from 13, below only their leaves; row filters and column lists exist from 15, whole
//! schemas too (PostgreSQL docs, "CREATE PUBLICATION"). Published columns are those of `pg_publication_tables.attnames`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use pgferry_model::{Class, Cure, Error, Result, TableName};
use pgferry_pipeline::failpoint;
use pgferry_postgres::{quote_identifier, quote_literal};

use crate::config::Manage;
use crate::control::{PostgresControl, optional};
use crate::error;

/// What a publication says of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PublishedTable {
    /// Ordinary columns that it leaves out.
    pub(crate) unpublished: BTreeSet<String>,
    /// Generated columns that it publishes (18+).
    pub(crate) generated: BTreeSet<String>,
    /// Its row filter as an SQL expression.
    pub(crate) filter: Option<String>,
}

/// A publication.
#[derive(Clone, Debug, Default)]
pub(crate) struct Publication {
    pub(crate) all_tables: bool,
    pub(crate) via_root: bool,
    /// Operations that it leaves out.
    pub(crate) silent: Vec<&'static str>,
    /// Transactions since it was made or altered last.
    pub(crate) age: i64,
    /// Its tables as changes name them: roots stand for their leaves with `publish_via_partition_root`.
    pub(crate) tables: BTreeMap<TableName, PublishedTable>,
    members: BTreeSet<TableName>,
    schemas: BTreeSet<String>,
}

/// A table that has to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Needed {
    pub(crate) name: TableName,
    /// Leaf partitions of a partitioned table.
    pub(crate) leaves: Option<Vec<TableName>>,
}

/// What a table's copy has to leave out, so that it holds what the stream would bring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Restrictions {
    pub(crate) table: PublishedTable,
    /// Row filters of leaves that are published one by one.
    pub(crate) leaf_filters: HashMap<TableName, String>,
}

/// Asks for a publication.
pub(crate) async fn find(control: &PostgresControl, name: &str) -> Result<Option<Publication>> {
    let version = control.server_version_num().await?;
    let truncate = if version >= 110_000 { "p.pubtruncate" } else { "false" };
    let via_root = if version >= 130_000 { "p.pubviaroot" } else { "false" };
    let literal = quote_literal(name);
    let rows = control
        .ask(&format!(
            "SELECT p.puballtables, {via_root}, p.pubinsert, p.pubupdate, p.pubdelete, {truncate}, pg_catalog.age(p.xmin) \
             FROM pg_catalog.pg_publication p WHERE p.pubname = {literal}"
        ))
        .await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let yes = |at| optional(&rows, 0, at).as_deref() == Some("t");
    let operations = [(2, "insert"), (3, "update"), (4, "delete"), (5, "truncate")];
    let mut publication = Publication {
        all_tables: yes(0),
        via_root: yes(1),
        silent: operations.into_iter().filter(|(at, _)| !yes(*at)).map(|(_, word)| word).collect(),
        age: optional(&rows, 0, 6).and_then(|age| age.parse().ok()).unwrap_or(i64::MAX),
        ..Publication::default()
    };
    publication.read_tables(control, &literal, version).await?;
    publication.read_members(control, &literal, version).await?;
    Ok(Some(publication))
}

impl Publication {
    async fn read_tables(&mut self, control: &PostgresControl, name: &str, version: u32) -> Result<()> {
        let filter = if version >= 150_000 { "rowfilter" } else { "NULL" };
        let rows = control
            .ask(&format!(
                "SELECT schemaname, tablename, {filter} FROM pg_catalog.pg_publication_tables WHERE pubname = {name}"
            ))
            .await?;
        for row in rows {
            if let Some(table) = table_name(&row) {
                let filter = row.get(2).cloned().flatten();
                self.tables.insert(table, PublishedTable { filter, ..PublishedTable::default() });
            }
        }
        if version < 150_000 {
            return Ok(());
        }
        let rows = control
            .ask(&format!(
                // By name and not by a join over the catalogs: planning that took ten times as long as running it.
                "SELECT t.schemaname, t.tablename, a.attname, a.attgenerated <> '' FROM pg_catalog.pg_publication_tables t \
                 CROSS JOIN LATERAL (SELECT attname, attgenerated FROM pg_catalog.pg_attribute \
                 WHERE attrelid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', t.schemaname, t.tablename)) \
                 AND attnum > 0 AND NOT attisdropped) a \
                 WHERE t.pubname = {name} AND (a.attname = ANY (t.attnames)) = (a.attgenerated <> '')"
            ))
            .await?;
        for row in rows {
            let Some(table) = table_name(&row).and_then(|name| self.tables.get_mut(&name)) else { continue };
            let Some(column) = row.get(2).cloned().flatten() else { continue };
            match row.get(3).and_then(Option::as_deref) {
                Some("t") if version >= 180_000 => table.generated.insert(column),
                Some("t") => false,
                _ => table.unpublished.insert(column),
            };
        }
        Ok(())
    }

    async fn read_members(&mut self, control: &PostgresControl, name: &str, version: u32) -> Result<()> {
        let rows = control
            .ask(&format!(
                "SELECT n.nspname, c.relname FROM pg_catalog.pg_publication p \
                 JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = {name}"
            ))
            .await?;
        self.members = rows.iter().filter_map(|row| table_name(row)).collect();
        if version >= 150_000 {
            let rows = control
                .ask(&format!(
                    "SELECT n.nspname FROM pg_catalog.pg_publication p \
                     JOIN pg_catalog.pg_publication_namespace s ON s.pnpubid = p.oid \
                     JOIN pg_catalog.pg_namespace n ON n.oid = s.pnnspid WHERE p.pubname = {name}"
                ))
                .await?;
            self.schemas = rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
        }
        Ok(())
    }

    /// What a needed table lacks: nothing, itself, or leaves of it.
    pub(crate) fn lacks(&self, needed: &Needed) -> Vec<TableName> {
        if self.tables.contains_key(&needed.name) {
            return Vec::new();
        }
        let Some(leaves) = &needed.leaves else { return vec![needed.name.clone()] };
        let root_covered = self.all_tables
            || self.members.contains(&needed.name)
            || self.schemas.contains(&*needed.name.schema);
        if root_covered {
            return Vec::new();
        }
        leaves.iter().filter(|leaf| !self.tables.contains_key(leaf)).cloned().collect()
    }

    /// What it leaves out of a table, or of its leaves where these are published one by one.
    pub(crate) fn restrictions(&self, needed: &Needed) -> Restrictions {
        if let Some(table) = self.tables.get(&needed.name) {
            return Restrictions { table: table.clone(), leaf_filters: HashMap::new() };
        }
        let mut restrictions = Restrictions::default();
        let leaves = needed.leaves.as_deref().unwrap_or_default();
        let published = leaves.iter().filter_map(|leaf| Some((leaf, self.tables.get(leaf)?)));
        for (number, (leaf, table)) in published.enumerate() {
            let all = &mut restrictions.table;
            all.unpublished.extend(table.unpublished.iter().cloned());
            if number == 0 {
                all.generated = table.generated.clone();
            }
            all.generated.retain(|column| table.generated.contains(column));
            if let Some(filter) = &table.filter {
                restrictions.leaf_filters.insert(leaf.clone(), filter.clone());
            }
        }
        restrictions
    }
}

/// Where the stream begins, compared with now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamBegins {
    /// At a cut that is still to be made: what is published now is published there.
    Later,
    /// At a place in the log that exists already.
    Before,
}

/// Makes the publication, or adds what it lacks, where the task lets us; else says what is missing.
pub(crate) async fn ensure(control: &PostgresControl, needed: &[Needed], begins: StreamBegins) -> Result<()> {
    let replication = &control.config.replication;
    let name = &replication.publication;
    let existing = find(control, name).await?;
    let missing = missing(existing.as_ref(), needed);
    if existing.is_some() && missing.is_empty() {
        return Ok(());
    }
    let statement = statement(control, existing.is_some(), &missing).await?;
    let Some(publication) = existing else {
        let slot = super::slot::find(control, &replication.slot).await?;
        if slot.is_some() && begins == StreamBegins::Before {
            return Err(error::publication_gone(replication, &statement));
        }
        if replication.manage == Manage::Never {
            return Err(error::publication_missing(replication, &statement));
        }
        return make(control, &statement, missing.len()).await.map_err(|failure| {
            not_made(failure, error::publication_missing(replication, &statement), &statement)
        });
    };
    let error = not_published(name, &publication, &missing, &statement);
    if replication.manage == Manage::Never || publication.all_tables {
        return Err(error);
    }
    if let Err(failure) = make(control, &statement, missing.len()).await {
        return Err(not_made(failure, error, &statement));
    }
    let completed = find(control, name).await?.unwrap_or_default();
    let still: Vec<Missing> = self::missing(Some(&completed), needed);
    if still.is_empty() { Ok(()) } else { Err(not_published(name, &completed, &still, &statement)) }
}

/// `error`, unless the server takes no writes at all (SQLSTATE 25006, read_only_sql_transaction) or the world was in the way.
fn not_made(failure: Error, error: Error, statement: &str) -> Error {
    match pgferry_postgres::error::sqlstate(&failure) {
        Some("25006") => error::standby_read_only(statement).with_origin(failure),
        _ if failure.class() == Class::Transient => failure,
        _ => error.with_origin(failure),
    }
}

async fn make(control: &PostgresControl, statement: &str, tables: usize) -> Result<()> {
    control.ask(statement).await?;
    failpoint::pass("source.after_publication_created");
    let publication = control.config.replication.publication.as_str();
    tracing::info!(publication, tables, "publication made or completed");
    Ok(())
}

/// Of tables and their partitions, the ones that still exist.
pub(crate) async fn existing(control: &PostgresControl, needed: &[Needed]) -> Result<Vec<Needed>> {
    let mut needed = needed.to_vec();
    let names = needed.iter().flat_map(|one| one.leaves.iter().flatten().chain([&one.name]));
    let list: Vec<String> = names.map(|name| format!("({})", quote_literal(&qualified(name)))).collect();
    if list.is_empty() {
        return Ok(needed);
    }
    let sql = format!(
        "SELECT v.name FROM (VALUES {}) v(name) WHERE pg_catalog.to_regclass(v.name) IS NULL",
        list.join(", ")
    );
    let gone: HashSet<String> = control.ask(&sql).await?.into_iter().flatten().flatten().collect();
    let exists = |name: &TableName| !gone.contains(&qualified(name));
    needed.retain(|one| exists(&one.name));
    for leaves in needed.iter_mut().filter_map(|one| one.leaves.as_mut()) {
        leaves.retain(exists);
    }
    Ok(needed)
}

/// A table that is not published.
#[derive(Clone, Debug)]
pub(crate) struct Missing {
    table: TableName,
    /// Its unpublished leaves, of a partitioned table.
    leaves: Option<Vec<TableName>>,
}

pub(crate) fn missing(publication: Option<&Publication>, needed: &[Needed]) -> Vec<Missing> {
    let of = |needed: &Needed| {
        let lacks = match publication {
            Some(publication) => publication.lacks(needed),
            None => needed.leaves.clone().unwrap_or_else(|| vec![needed.name.clone()]),
        };
        let missing = !lacks.is_empty() || (publication.is_none() && needed.leaves.is_some());
        let leaves = needed.leaves.is_some().then_some(lacks);
        missing.then(|| Missing { table: needed.name.clone(), leaves })
    };
    needed.iter().filter_map(of).collect()
}

/// The statement that makes or completes the publication.
pub(crate) async fn statement(
    control: &PostgresControl,
    exists: bool,
    missing: &[Missing],
) -> Result<String> {
    let takes_roots = control.server_version_num().await? >= 130_000;
    let parents = if missing.is_empty() { BTreeSet::new() } else { parents(control).await? };
    let one = |table: &TableName| {
        let only = if parents.contains(table) { "ONLY " } else { "" };
        format!("{only}{}", qualified(table))
    };
    let list: Vec<String> = missing
        .iter()
        .flat_map(|missing| match &missing.leaves {
            Some(leaves) if !takes_roots => leaves.iter().map(one).collect::<Vec<String>>(),
            _ => vec![one(&missing.table)],
        })
        .collect();
    let list = list.join(", ");
    let name = quote_identifier(&control.config.replication.publication);
    if exists {
        return Ok(format!("ALTER PUBLICATION {name} ADD TABLE {list}"));
    }
    let with = if takes_roots { " WITH (publish_via_partition_root = true)" } else { "" };
    let list = if list.is_empty() { String::new() } else { format!(" FOR TABLE {list}") };
    Ok(format!("CREATE PUBLICATION {name}{list}{with}"))
}

/// Whether the role may run [`statement`] (PostgreSQL docs, "CREATE PUBLICATION", "ALTER PUBLICATION").
pub(crate) async fn may_make(control: &PostgresControl, exists: bool, missing: &[Missing]) -> Result<bool> {
    let of_publication = if exists {
        let name = quote_literal(&control.config.replication.publication);
        format!(
            "EXISTS (SELECT FROM pg_catalog.pg_publication p \
             WHERE p.pubname = {name} AND pg_catalog.pg_has_role(p.pubowner, 'USAGE'))"
        )
    } else {
        "pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')".to_owned()
    };
    let names: Vec<String> = missing
        .iter()
        .map(|missing| {
            format!("({}, {})", quote_literal(&missing.table.schema), quote_literal(&missing.table.name))
        })
        .collect();
    let of_tables = if names.is_empty() {
        "true".to_owned()
    } else {
        format!(
            "NOT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE (n.nspname, c.relname) IN ({}) AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE'))",
            names.join(", ")
        )
    };
    let rows = control.ask(&format!("SELECT {of_publication} AND {of_tables}")).await?;
    Ok(rows.first().and_then(|row| row.first()).is_some_and(|may| may.as_deref() == Some("t")))
}

/// Tables with inheritance children, which `ADD TABLE` would add too.
async fn parents(control: &PostgresControl) -> Result<BTreeSet<TableName>> {
    let rows = control
        .ask(
            "SELECT DISTINCT n.nspname, c.relname FROM pg_catalog.pg_inherits i \
             JOIN pg_catalog.pg_class c ON c.oid = i.inhparent AND c.relkind = 'r' \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace",
        )
        .await?;
    Ok(rows.iter().filter_map(|row| table_name(row)).collect())
}

/// The error for tables that are not published.
pub(crate) fn not_published(
    name: &str,
    publication: &Publication,
    missing: &[Missing],
    statement: &str,
) -> Error {
    let names = missing.iter().flat_map(|missing| match &missing.leaves {
        Some(leaves) if !leaves.is_empty() => leaves.clone(),
        _ => vec![missing.table.clone()],
    });
    let list: Vec<String> = names.map(|name| name.to_string()).collect();
    let error = Error::task_broken(
        error::TABLE_NOT_IN_PUBLICATION,
        format!("publication {name} lacks {}: changes would never arrive", list.join(", ")),
    );
    if publication.all_tables {
        return error
            .with_cause("the publication is FOR ALL TABLES; what it still lacks is sent under its partitioned table's name, or has no log")
            .with_cure(Cure::advice("select the partitioned table in place of its partition, or leave the table out of the task"));
    }
    let through_root =
        publication.via_root && missing.iter().any(|missing| publication.members.contains(&missing.table));
    let cause = if through_root {
        "its changes are sent under its partitioned table's name (publish_via_partition_root): select that one"
    } else {
        "only published tables have changes in the stream; the task file or the publication was made without them"
    };
    error.with_cause(cause).with_cure(
        Cure::advice("run the statement, then start the task")
            .sql(statement)
            .run_as("owner of the tables and of the publication"),
    )
}

fn table_name(row: &[Option<String>]) -> Option<TableName> {
    match row {
        [Some(schema), Some(name), ..] => Some(TableName::new(schema.as_str(), name.as_str())),
        _ => None,
    }
}

pub(crate) fn qualified(table: &TableName) -> String {
    format!("{}.{}", quote_identifier(&table.schema), quote_identifier(&table.name))
}
