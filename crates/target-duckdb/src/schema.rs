//! The target's tables: names, statements as a plan, and whether a table that is there will do.
//!
//! Columns allow NULL except the key's: the source's other NOT NULLs can be dropped there at any time without a sign in the
//! stream. No primary key: an index costs more than the deletes that it would speed up, and checks rows one by one.

use std::collections::HashMap;

use duckdb::params;
use pgferry_model::{Cure, Error, Result, Table, TableName};
use pgferry_pipeline::error::SCHEMA_CHANGE_BLOCKED;
use pgferry_pipeline::{IfTargetExists, SchemaChange, TablePlan};

use crate::database::Session;
use crate::error;
use crate::mapping::Mapped;

/// A name in SQL text.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table's full name in SQL text.
pub(crate) fn quoted_table(name: &TableName) -> String {
    format!("{}.{}", quoted(&name.schema), quoted(&name.name))
}

/// A list of quoted names, each after `prefix`.
pub(crate) fn quoted_list<'a>(names: impl IntoIterator<Item = &'a str>, prefix: &str) -> String {
    names.into_iter().map(|name| format!("{prefix}{}", quoted(name))).collect::<Vec<_>>().join(", ")
}

/// The names of a table's columns.
pub(crate) fn column_names(table: &Table) -> impl Iterator<Item = &str> {
    table.columns.iter().map(|column| &*column.name)
}

/// A column of a table that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) name: String,
    pub(crate) sql_type: String,
}

/// What is there under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    /// Something that is not a plain table.
    View,
    Table(Vec<Held>),
}

/// Looks a name up as DuckDB does, without regard to case.
pub(crate) fn find(session: &Session, name: &TableName) -> Result<Found> {
    let failed = |failure: duckdb::Error| session.database.failed(&failure, "reading the catalog");
    let at = params![&*name.schema, &*name.name];
    let view: i64 = session
        .connection
        .query_row(
            "SELECT count(*) FROM duckdb_views() WHERE database_name = current_database() \
             AND lower(schema_name) = lower(?) AND lower(view_name) = lower(?)",
            at,
            |row| row.get(0),
        )
        .map_err(failed)?;
    if view > 0 {
        return Ok(Found::View);
    }
    let mut statement = session
        .connection
        .prepare(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE database_name = current_database() \
             AND lower(schema_name) = lower(?) AND lower(table_name) = lower(?) ORDER BY column_index",
        )
        .map_err(failed)?;
    let columns = statement
        .query_map(at, |row| Ok(Held { name: row.get(0)?, sql_type: row.get(1)? }))
        .and_then(Iterator::collect::<duckdb::Result<Vec<Held>>>)
        .map_err(failed)?;
    Ok(if columns.is_empty() { Found::Nothing } else { Found::Table(columns) })
}

/// The statements that make a table.
pub(crate) fn create(table: &Table, target: &TableName, columns: &[Mapped]) -> Vec<String> {
    let lines: Vec<String> = table
        .columns
        .iter()
        .zip(columns)
        .enumerate()
        .map(|(at, (column, mapped))| {
            let not_null = if table.key.contains(&at) { " NOT NULL" } else { "" };
            format!("{} {}{not_null}", quoted(&column.name), mapped.sql_type)
        })
        .collect();
    vec![
        format!("CREATE SCHEMA IF NOT EXISTS {}", quoted(&target.schema)),
        format!("CREATE TABLE {} ({})", quoted_table(target), lines.join(", ")),
    ]
}

/// The statements that make ready what a plan needs, given what is there and whether the task has recorded the table.
pub(crate) fn statements(
    plan: &TablePlan,
    target: &TableName,
    columns: &[Mapped],
    found: &Found,
    recorded: bool,
) -> Result<Vec<String>> {
    let table = &plan.table;
    let name = quoted_table(target);
    match (found, recorded) {
        (Found::Nothing, _) => Ok(create(table, target, columns)),
        (Found::View, _) => Err(exists(table, target, "a view")),
        (Found::Table(held), true) => compatible(table, target, columns, held).map(|()| Vec::new()),
        (Found::Table(held), false) => match plan.if_exists {
            IfTargetExists::Error => Err(exists(table, target, "a table")),
            IfTargetExists::Append => compatible(table, target, columns, held).map(|()| Vec::new()),
            IfTargetExists::Truncate => {
                compatible(table, target, columns, held)?;
                Ok(vec![format!("DELETE FROM {name}")])
            }
            IfTargetExists::Replace => {
                let mut all = vec![format!("DROP TABLE {name}")];
                all.extend(create(table, target, columns));
                Ok(all)
            }
        },
    }
}

fn exists(table: &Table, target: &TableName, what: &str) -> Error {
    Error::task_broken(error::TABLE_EXISTS, format!("the target has {what} {target} that this task has not made"))
        .with_table(table.name.clone())
        .with_cure(
            Cure::advice("drop or rename it, or say in the task file what to do with it")
                .line("if_target_exists = \"append\"  # or \"truncate\", \"replace\""),
        )
}

fn incompatible(table: &Table, target: &TableName, what: &str) -> Error {
    Error::table_broken(error::SCHEMA_INCOMPATIBLE, table.name.clone(), format!("{target} in the target does not fit: {what}"))
        .with_cause("rows can only be added to a table with the same columns and types")
        .with_cure(
            Cure::advice("alter the target's table, or let the task make it anew")
                .line("if_target_exists = \"replace\""),
        )
}

/// Whether a table that is there has exactly the columns and types that the task needs; their order may differ.
pub(crate) fn compatible(table: &Table, target: &TableName, columns: &[Mapped], held: &[Held]) -> Result<()> {
    let by_name: HashMap<String, &Held> = held.iter().map(|held| (held.name.to_lowercase(), held)).collect();
    for (column, mapped) in table.columns.iter().zip(columns) {
        match by_name.get(&column.name.to_lowercase()) {
            None => return Err(incompatible(table, target, &format!("it lacks column {}", column.name))),
            Some(held) if held.sql_type != mapped.sql_type => {
                let what = format!("column {} is {} and not {}", column.name, held.sql_type, mapped.sql_type);
                return Err(incompatible(table, target, &what));
            }
            Some(_) => {}
        }
    }
    if held.len() > table.columns.len() {
        let wanted: Vec<String> = column_names(table).map(str::to_lowercase).collect();
        let extra = held.iter().find(|held| !wanted.contains(&held.name.to_lowercase()));
        let extra = extra.map_or("?", |held| &held.name);
        return Err(incompatible(table, target, &format!("it has column {extra}, which the source has not")));
    }
    Ok(())
}

/// Whether the target's columns are in the source's order, so that rows can be appended without naming them.
pub(crate) fn in_order(table: &Table, held: &[Held]) -> bool {
    held.len() == table.columns.len()
        && held.iter().zip(column_names(table)).all(|(held, name)| held.name.to_lowercase() == name.to_lowercase())
}

/// The statements that bring the target's table from one list of columns to another. Idempotent: what is done already is
/// left out. A change that cannot be told for sure, or that DuckDB cannot do without touching values, is refused.
pub(crate) fn alter(
    change: &SchemaChange,
    target: &TableName,
    before: &[Mapped],
    after: &[Mapped],
    held: &[Held],
) -> Result<Vec<String>> {
    let name = quoted_table(target);
    let has = |column: &str| held.iter().any(|held| held.name.to_lowercase() == column.to_lowercase());
    let old: Vec<&str> = column_names(&change.before).collect();
    let new: Vec<&str> = column_names(&change.after).collect();
    if let Some((from, to)) = renamed(change)? {
        let sql = format!("ALTER TABLE {name} RENAME COLUMN {} TO {}", quoted(from), quoted(to));
        return Ok(if has(from) { vec![sql] } else { Vec::new() });
    }
    let mut statements = Vec::new();
    for (at, column) in old.iter().enumerate() {
        match new.iter().position(|other| other == column) {
            None if change.before.key.contains(&at) => return Err(blocked(change, column, "a key column is gone")),
            None if has(column) => statements.push(format!("ALTER TABLE {name} DROP COLUMN {}", quoted(column))),
            None => {}
            Some(other) if after[other].sql_type != before[at].sql_type => {
                return Err(blocked(change, column, "its type became another"));
            }
            Some(_) => {}
        }
    }
    for (at, column) in new.iter().enumerate() {
        if !old.contains(column) && !has(column) {
            let sql_type = &after[at].sql_type;
            statements.push(format!("ALTER TABLE {name} ADD COLUMN {} {sql_type}", quoted(column)));
        }
    }
    Ok(statements)
}

/// A renamed column, where before and after tell it: new columns come last, so one other name with the same type before a
/// column that stayed is a new name. In the last place it could as well be a dropped and an added column: refused.
fn renamed(change: &SchemaChange) -> Result<Option<(&str, &str)>> {
    let (before, after) = (&change.before.columns, &change.after.columns);
    if before.len() != after.len() {
        return Ok(None);
    }
    let differing: Vec<usize> = (0..before.len()).filter(|&at| before[at].name != after[at].name).collect();
    let &[at] = differing.as_slice() else { return Ok(None) };
    if before[at].data_type != after[at].data_type {
        return Ok(None);
    }
    if at + 1 == before.len() {
        return Err(blocked(change, &before[at].name, "it was renamed, or dropped and another one added"));
    }
    Ok(Some((&before[at].name, &after[at].name)))
}

fn blocked(change: &SchemaChange, column: &str, what: &str) -> Error {
    let name = change.after.name.clone();
    Error::table_broken(SCHEMA_CHANGE_BLOCKED, name, format!("{}: column {column}: {what}", change.after.name))
        .with_cause("the target's rows cannot follow this change by themselves")
        .with_cure(Cure::advice("copy the table again"))
}
