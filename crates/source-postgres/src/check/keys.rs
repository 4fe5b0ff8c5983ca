//! Keys: which tables can follow the stream, and whether named keys are keys.

use pgferry_model::{Cure, Error, Finding, TableName};
use pgferry_postgres::{CatalogTable, quote_identifier};

use super::facts::Facts;
use super::{failed, warn, warning};
use crate::error;
use crate::replication::publication::qualified;

/// Tables without a usable key are carried by snapshot only; published ones make the application's own updates fail.
pub(super) fn identity(facts: &Facts) -> Vec<Finding> {
    let (true, Ok(selection)) = (facts.streams(), &facts.selection) else { return Vec::new() };
    let mut findings = Vec::new();
    for (name, why) in &selection.snapshot_only {
        let entry = facts.catalog.iter().find(|table| table.name == *name);
        let error = error::no_replica_identity(name, why).with_cure(cure(facts, name, entry));
        let published =
            facts.publication.as_ref().is_some_and(|publication| publication.tables.contains_key(name));
        let has_identity = entry.is_some_and(identifies);
        if published && !has_identity {
            let error = error.with_cause(
                "it is published without a replica identity: the application's own UPDATE and DELETE fail on it now (55000)",
            );
            findings.push(failed("tables.identity", name.to_string(), &error));
        } else {
            findings.push(warning("tables.identity", name.to_string(), &error));
        }
    }
    let count = selection.published.len();
    if count > 0 || findings.is_empty() {
        findings.push(Finding::passed(
            "tables.identity",
            "tables",
            format!("{count} tables can follow the stream"),
        ));
    }
    findings
}

/// Whether the server can write old rows of the table to the log.
fn identifies(entry: &CatalogTable) -> bool {
    match entry.identity {
        pgferry_postgres::Identity::Default => !entry.primary_key.is_empty(),
        pgferry_postgres::Identity::Index => !entry.identity_index.is_empty(),
        pgferry_postgres::Identity::Full => true,
        pgferry_postgres::Identity::Nothing => false,
    }
}

fn cure(facts: &Facts, name: &TableName, entry: Option<&CatalogTable>) -> Cure {
    let table = qualified(name);
    let owner = format!("owner of {name}");
    let Some(entry) = entry else { return error::identity_cure(name) };
    if entry.identity != pgferry_postgres::Identity::Default && !entry.primary_key.is_empty() {
        return Cure::advice("identify rows by the primary key")
            .sql(format!("ALTER TABLE {table} REPLICA IDENTITY DEFAULT"))
            .run_as(owner);
    }
    let not_null = |name: &String| entry.columns.iter().any(|column| column.name == *name && column.not_null);
    let unique = facts
        .of(entry.oid)
        .and_then(|known| known.unique.iter().find(|columns| columns.iter().all(not_null)));
    match unique {
        Some(columns) if entry.primary_key.is_empty() => {
            let list: Vec<String> = columns.iter().map(|column| quote_identifier(column)).collect();
            Cure::advice("make the unique columns the primary key, or else name them with primary_key and set REPLICA IDENTITY FULL")
                .sql(format!("ALTER TABLE {table} ADD PRIMARY KEY ({})", list.join(", ")))
                .run_as(owner)
        }
        _ => error::identity_cure(name),
    }
}

/// Columns that the task file names as a key should be NOT NULL and unique.
pub(super) fn named_keys(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for options in facts.config.tables.iter().filter(|options| !options.primary_key.is_empty()) {
        let Some(name) = &options.source else { continue };
        let Some(entry) = facts.catalog.iter().find(|table| table.name == *name) else { continue };
        let nullable: Vec<&str> = entry
            .columns
            .iter()
            .filter(|column| options.primary_key.contains(&column.name) && !column.not_null)
            .map(|column| column.name.as_str())
            .collect();
        let covers =
            |columns: &Vec<String>| columns.iter().all(|column| options.primary_key.contains(column));
        let unique = facts.of(entry.oid).is_some_and(|known| known.unique.iter().any(covers));
        if unique && nullable.is_empty() {
            findings.push(Finding::passed(
                "tables.named_key",
                name.to_string(),
                "the named key is unique and NOT NULL",
            ));
            continue;
        }
        findings.push(not_enforced(name, &options.primary_key, &nullable, unique));
    }
    findings
}

fn not_enforced(name: &TableName, key: &[String], nullable: &[&str], unique: bool) -> Finding {
    let table = qualified(name);
    let list: Vec<String> = key.iter().map(|column| quote_identifier(column)).collect();
    let what = match (unique, nullable.is_empty()) {
        (false, true) => "no unique index covers it".to_owned(),
        (false, false) => format!("no unique index covers it, and {} may be NULL", nullable.join(", ")),
        _ => format!("{} may be NULL", nullable.join(", ")),
    };
    let mut cure = Cure::advice("have the source enforce the key").run_as(format!("owner of {name}"));
    for column in nullable {
        cure =
            cure.sql(format!("ALTER TABLE {table} ALTER COLUMN {} SET NOT NULL", quote_identifier(column)));
    }
    if !unique {
        cure = cure.sql(format!("ALTER TABLE {table} ADD UNIQUE ({})", list.join(", ")));
    }
    warn(
        "tables.named_key",
        name.to_string(),
        error::KEY_NOT_ENFORCED,
        format!("the key ({}) that the task file names is not enforced: {what}", key.join(", ")),
        "rows with the same key become one row in the target, and rows with NULL in it cannot be told apart",
        cure,
    )
}

/// For the selection's own failure: every other check of tables has nothing to look at.
pub(super) fn selection_failed(error: &Error) -> Finding {
    failed("tables.selected", "tables", error)
}
