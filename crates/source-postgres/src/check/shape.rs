//! What is selected and what of it the copy or the stream treats specially.

use std::collections::BTreeSet;

use pgferry_model::{Cure, Error, Finding};
use pgferry_postgres::{RelationKind, quote_identifier};

use super::facts::Facts;
use super::{failed, keys, warn};
use crate::error;

pub(super) fn selection(facts: &Facts) -> Vec<Finding> {
    match &facts.selection {
        Ok(selection) => {
            let detail = format!("{} tables, {}", selection.tables.len(), super::bytes(facts.copy_bytes()));
            vec![Finding::passed("tables.selected", "tables", detail)]
        }
        Err(failure) => vec![keys::selection_failed(failure)],
    }
}

/// Relations that a pattern matches and that are not carried.
pub(super) fn kinds(facts: &Facts) -> Vec<Finding> {
    let carried: BTreeSet<u32> = facts.selected().map(|(_, entry)| entry.oid).collect();
    let mut findings = Vec::new();
    for entry in facts.catalog.iter().filter(|entry| !carried.contains(&entry.oid)) {
        let (what, cure) = match entry.kind {
            RelationKind::Unlogged => (
                "is unlogged: it has no changes in the log and is left out",
                Cure::advice("have its changes logged, or carry it with sync_mode = \"snapshot\"")
                    .sql(format!(
                        "ALTER TABLE {} SET LOGGED",
                        crate::replication::publication::qualified(&entry.name)
                    ))
                    .run_as(format!("owner of {}", entry.name)),
            ),
            RelationKind::Other => (
                "is a view, a materialized view or a foreign table and is left out",
                Cure::advice("carry the tables below it, or exclude it in the task file")
                    .line(format!("exclude = [\"{}\"]", entry.name)),
            ),
            RelationKind::Table | RelationKind::PartitionedTable | RelationKind::Partition => continue,
        };
        let cause =
            "the change stream is made from the log, and only ordinary tables and partitions are in it";
        findings.push(warn("tables.kind", entry.name.to_string(), error::TABLE_KIND, what, cause, cure));
    }
    findings
}

/// Columns that the stream does not bring, and that the copy leaves out likewise.
pub(super) fn columns(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (table, entry) in facts.selected() {
        let options = facts.config.tables.iter().find(|options| options.source.as_ref() == Some(&table.name));
        let wanted = |name: &str| {
            options.is_none_or(|options| !options.exclude_columns.iter().any(|column| column == name))
        };
        let left: Vec<&pgferry_postgres::CatalogColumn> = entry
            .columns
            .iter()
            .filter(|column| {
                wanted(&column.name) && !table.columns.iter().any(|carried| *carried.name == *column.name)
            })
            .collect();
        if left.is_empty() {
            continue;
        }
        let names: Vec<&str> = left.iter().map(|column| column.name.as_str()).collect();
        let generated = left.iter().all(|column| column.generated);
        let (cause, cure) = columns_cure(facts, generated, &names);
        let detail = format!("columns are left out: {}", names.join(", "));
        findings.push(warn(
            "tables.columns",
            table.name.to_string(),
            error::NOT_IN_STREAM,
            detail,
            cause,
            cure,
        ));
    }
    findings
}

fn columns_cure(facts: &Facts, generated: bool, names: &[&str]) -> (&'static str, Cure) {
    let publication = quote_identifier(&facts.config.replication.publication);
    let acknowledge = format!("exclude_columns = {names:?}");
    if !generated {
        return (
            "the publication's column list leaves them out of the stream, so the copy does, too",
            Cure::advice(
                "say so in the task file to agree, or set the publication's table without a column list",
            )
            .line(acknowledge),
        );
    }
    let cause = "they are generated: the stream leaves them out, so the copy does, too";
    let cure = Cure::advice("say so in the task file to agree; PostgreSQL 18 can publish stored ones")
        .line(acknowledge);
    if facts.version >= 180_000 && facts.publication.is_some() {
        let sql = format!("ALTER PUBLICATION {publication} SET (publish_generated_columns = stored)");
        return (cause, cure.sql(sql).run_as("owner of the publication"));
    }
    (cause, cure)
}

/// Partitioned tables, and under which name their changes come.
pub(super) fn partitions(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (table, entry) in facts.selected().filter(|(_, entry)| entry.kind == RelationKind::PartitionedTable) {
        let count = entry.heaps.len();
        findings.extend(foreign(table, entry));
        let by_leaf = facts.version < 130_000
            || facts.publication.as_ref().is_some_and(|publication| !publication.via_root);
        if !facts.streams() || !by_leaf {
            let detail = format!("{count} partitions arrive as one table");
            findings.push(Finding::passed("tables.partitions", table.name.to_string(), detail));
            continue;
        }
        let cure = if facts.version < 130_000 {
            Cure::advice(
                "before rows go to a new partition, stop the task and start it again: it publishes the partition then",
            )
        } else {
            let name = quote_identifier(&facts.config.replication.publication);
            Cure::advice("send changes under the root's name, if no other reader of the publication minds")
                .sql(format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true)"))
                .run_as("owner of the publication")
        };
        findings.push(warn(
            "tables.partitions",
            table.name.to_string(),
            error::NOT_IN_STREAM,
            format!("{count} partitions are published one by one"),
            if facts.version < 130_000 {
                "a partition that is added or attached while the task runs is not carried before its next start, and truncating one sets the table aside"
            } else {
                "a partition that is added while the task runs is carried only where the publication has the partitioned table itself, and truncating one sets the table aside"
            },
            cure,
        ));
    }
    findings
}

/// Partitions whose rows lie elsewhere, and never arrive.
fn foreign(table: &pgferry_model::Table, entry: &pgferry_postgres::CatalogTable) -> Option<Finding> {
    let names: Vec<String> = entry.unreadable_partitions.iter().map(ToString::to_string).collect();
    (!names.is_empty()).then(|| {
        warn(
            "tables.partitions",
            table.name.to_string(),
            error::NOT_IN_STREAM,
            format!("partitions in foreign tables are left out: {}", names.join(", ")),
            "their rows lie on another server, so neither the copy nor the log of this one has them",
            Cure::advice("carry them with a task of their own, from the server that has the rows"),
        )
    })
}

/// Inheritance children are tables of their own.
pub(super) fn children(facts: &Facts) -> Vec<Finding> {
    let parents = facts.selected().filter_map(|(table, entry)| {
        let count = facts.of(entry.oid)?.children;
        (count > 0).then_some((table, count))
    });
    parents
        .map(|(table, count)| {
            warn(
                "tables.children",
                table.name.to_string(),
                error::NOT_IN_STREAM,
                format!("has {count} inheritance children, whose rows are not part of it in the target"),
                "a query of the parent shows the children's rows, too; the copy and the stream carry each as a table of its own",
                Cure::advice("select the children as well").line(format!("include = [\"{}.*\"]", table.name.schema)),
            )
        })
        .collect()
}

/// PostgreSQL 10 does not send TRUNCATE.
pub(super) fn truncate(facts: &Facts) -> Vec<Finding> {
    if !facts.streams() || facts.version >= 110_000 {
        return Vec::new();
    }
    vec![warn(
        "server.truncate",
        "server",
        error::NOT_IN_STREAM,
        "PostgreSQL 10 does not send TRUNCATE: truncated rows stay in the target",
        "TRUNCATE is part of the change stream from PostgreSQL 11 on",
        Cure::advice(
            "use DELETE in place of TRUNCATE, or copy the table again after one: pgferry resync FILE",
        ),
    )]
}

/// Conditions of the snapshot, as the server plans them.
pub(super) fn conditions(facts: &Facts) -> Vec<Finding> {
    let findings: Vec<Finding> = facts
        .refused_conditions
        .iter()
        .map(|(table, condition, failure)| {
            let why = crate::refused::words(failure).map(|words| words.message.clone()).unwrap_or_default();
            let error: Error =
                error::snapshot_where(table, condition).with_cause(format!("the server says: {why}"));
            failed("tables.snapshot_where", table.to_string(), &error)
        })
        .collect();
    if findings.is_empty() && facts.conditions > 0 {
        let detail = format!("{} conditions are valid", facts.conditions);
        return vec![Finding::passed("tables.snapshot_where", "tables", detail)];
    }
    findings
}
