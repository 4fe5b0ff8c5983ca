//! The publication: found, made, and completed with the task's tables.
//!
//! Invariant: only tables with a usable key are added by us; publishing one without makes the application's own updates fail.

use std::collections::BTreeSet;

use pgferry_model::{Cure, Error, Result, TableName};
use pgferry_pipeline::failpoint;
use pgferry_postgres::{quote_identifier, quote_literal};

use crate::config::Manage;
use crate::control::PostgresControl;
use crate::error;

/// The published tables; `None` when the publication does not exist. With `publish_via_partition_root` roots stand for their leaves.
pub(crate) async fn published(control: &PostgresControl, name: &str) -> Result<Option<BTreeSet<TableName>>> {
    let rows = control
        .ask(&format!("SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = {}", quote_literal(name)))
        .await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let rows = control
        .ask(&format!(
            "SELECT schemaname, tablename FROM pg_catalog.pg_publication_tables WHERE pubname = {}",
            quote_literal(name)
        ))
        .await?;
    let table = |row: &Vec<Option<String>>| match row.as_slice() {
        [Some(schema), Some(name)] => Some(TableName::new(schema.as_str(), name.as_str())),
        _ => None,
    };
    Ok(Some(rows.iter().filter_map(table).collect()))
}

/// Makes the publication, or adds what it lacks, where the task lets us; else says what is missing.
pub(crate) async fn ensure(control: &PostgresControl, tables: &[TableName]) -> Result<()> {
    let replication = &control.config.replication;
    let name = &replication.publication;
    let existing = published(control, name).await?;
    let missing: Vec<&TableName> = match &existing {
        None => tables.iter().collect(),
        Some(published) => tables.iter().filter(|table| !published.contains(table)).collect(),
    };
    if existing.is_some() && missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(|table| qualified(table)).collect();
    let list = list.join(", ");
    let quoted = quote_identifier(name);
    let statement = match existing {
        None => {
            let via_root = control.server_version_num().await? >= 130_000;
            let with = if via_root { " WITH (publish_via_partition_root = true)" } else { "" };
            let list = if list.is_empty() { String::new() } else { format!(" FOR TABLE {list}") };
            format!("CREATE PUBLICATION {quoted}{list}{with}")
        }
        Some(_) => format!("ALTER PUBLICATION {quoted} ADD TABLE {list}"),
    };
    if replication.manage == Manage::Never {
        return Err(missing_error(name, existing.is_some(), &missing, statement));
    }
    control.ask(&statement).await.map_err(|failure| {
        missing_error(name, existing.is_some(), &missing, statement.clone()).with_origin(failure)
    })?;
    failpoint::pass("source.after_publication_created");
    tracing::info!(publication = name.as_str(), tables = missing.len(), "publication made or completed");
    Ok(())
}

fn missing_error(name: &str, exists: bool, missing: &[&TableName], statement: String) -> Error {
    let cure = Cure::advice("run the statement, then start the task")
        .sql(statement)
        .run_as("owner of the tables, with CREATE on the database");
    if exists {
        let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
        Error::task_broken(
            error::TABLE_NOT_IN_PUBLICATION,
            format!("publication {name} lacks {}: changes would never arrive", list.join(", ")),
        )
        .with_cure(cure)
    } else {
        Error::task_broken(error::PUBLICATION_MISSING, format!("publication {name} does not exist"))
            .with_cure(cure)
    }
}

fn qualified(table: &TableName) -> String {
    format!("{}.{}", quote_identifier(&table.schema), quote_identifier(&table.name))
}
