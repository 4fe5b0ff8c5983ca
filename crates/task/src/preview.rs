//! What the target would hold: per table its columns with their types on both sides, and some rows.

use pgferry_model::{Result, Table, TableName};
use pgferry_pipeline::{ColumnMapping, TextRow};
use pgferry_postgres::{Purpose, Session, quote_identifier};

use crate::connect::connection_config;
use crate::registry;
use crate::spec::{PostgresConnection, Spec, TaskSpec};

/// The longest that reading the sample rows of a table may take, and that a lock of others on it is waited for.
const SAMPLE_TIMEOUT: &str = "SET statement_timeout = '30s'; SET lock_timeout = '5s'";

/// One table as the target would hold it.
#[derive(Debug)]
pub struct Previewed {
    /// Its name in the source.
    pub source: TableName,
    /// What would hold it in the target.
    pub target: String,
    /// The key's columns.
    pub key: Vec<String>,
    /// Its columns.
    pub columns: Vec<ColumnMapping>,
    /// Some rows, in text form.
    pub rows: Vec<TextRow>,
}

/// Previews the tables of a task, or the one that `only` names, with at most `rows` rows each.
pub async fn preview(
    spec: &Spec,
    task: &TaskSpec,
    only: Option<&TableName>,
    rows: u64,
) -> Result<Vec<Previewed>> {
    let source = registry::source(spec, task)?;
    let tables = source.tables().await?;
    let target = registry::target(spec, task).await?;
    let mut previewed = Vec::new();
    for table in tables.iter().filter(|table| only.is_none_or(|name| *name == table.name)) {
        let sample = match (spec.source_of(task), rows) {
            (Some(connection), 1..) => sample(connection, task, table, rows).await?,
            _ => Vec::new(),
        };
        previewed.push(Previewed {
            source: table.name.clone(),
            target: target.place_of(table),
            key: table.key_columns().map(|column| column.name.to_string()).collect(),
            columns: target.mapping(table)?,
            rows: sample,
        });
    }
    target.close().await?;
    Ok(previewed)
}

async fn sample(
    connection: &PostgresConnection,
    task: &TaskSpec,
    table: &Table,
    rows: u64,
) -> Result<Vec<TextRow>> {
    let mut session = Session::connect(&connection_config(connection, "preview")?, Purpose::Query).await?;
    session.simple_query(SAMPLE_TIMEOUT).await?;
    let condition = task.selection.tables.iter().find(|known| known.source == table.name);
    let condition = condition.and_then(|known| known.snapshot_where.as_deref());
    let condition = condition.map_or_else(String::new, |condition| format!(" WHERE ({condition}\n)"));
    let sample = session.simple_query(&format!("{}{condition} LIMIT {rows}", select(table))).await?;
    session.close().await?;
    Ok(sample)
}

/// Reads the carried columns of a table.
pub(crate) fn select(table: &Table) -> String {
    let columns: Vec<String> = table.columns.iter().map(|column| quote_identifier(&column.name)).collect();
    let (schema, name) = (quote_identifier(&table.name.schema), quote_identifier(&table.name.name));
    format!("SELECT {} FROM {schema}.{name}", columns.join(", "))
}
