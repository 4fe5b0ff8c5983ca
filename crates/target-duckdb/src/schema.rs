//! Tables in DuckDB: names, statements, and whether an existing one has the right columns.
//!
//! No index on the key: every commit would maintain it row by row; deletes find rows by a join, which costs a fraction.

use std::collections::{HashMap, HashSet};

use duckdb::Connection;
use pgferry_model::{Column, Cure, Error, Result, Table, TableName, TaskId};
use pgferry_pipeline::{IfTargetExists, TablePlan};

use crate::config::DuckdbConfig;
use crate::error::{NAME_COLLISION, SCHEMA_INCOMPATIBLE, TABLE_EXISTS, refused, table_exists, table_gone};
use crate::mapping::{ColumnType, map_type};
use crate::progress::{self, Owner};

/// An identifier in double quotes.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table's qualified, quoted name.
pub(crate) fn qualified(name: &TableName) -> String {
    format!("{}.{}", quote(&name.schema), quote(&name.name))
}

/// A table's name in the file.
pub(crate) fn target_name(config: &DuckdbConfig, table: &Table) -> TableName {
    match &config.schema {
        Some(schema) => TableName::new(schema.as_str(), std::sync::Arc::clone(&table.target_name.name)),
        None => table.target_name.clone(),
    }
}

/// A column's type.
pub(crate) fn column_type(config: &DuckdbConfig, table: &Table, column: &Column) -> ColumnType {
    let place = (table.name.schema.to_string(), table.name.name.to_string(), column.name.to_string());
    map_type(&column.data_type, config.type_overrides.get(&place).map(String::as_str))
}

/// The columns' types, in the table's order.
pub(crate) fn column_types(config: &DuckdbConfig, table: &Table) -> Vec<ColumnType> {
    table.columns.iter().map(|column| column_type(config, table, column)).collect()
}

/// The statements that make a table.
pub(crate) fn create_statements(name: &TableName, table: &Table, types: &[ColumnType]) -> Vec<String> {
    let columns: Vec<String> = table
        .columns
        .iter()
        .zip(types)
        .enumerate()
        .map(|(at, (column, kind))| {
            let not_null = if table.key.contains(&at) { " NOT NULL" } else { "" };
            format!("{} {}{not_null}", quote(&column.name), kind.name)
        })
        .collect();
    vec![
        format!("CREATE SCHEMA IF NOT EXISTS {}", quote(&name.schema)),
        format!("CREATE TABLE {} ({})", qualified(name), columns.join(", ")),
    ]
}

/// The statements that make a table of the task anew before its copy: it is gone or has other columns. None where it is as it has to
/// be. What the user made (`truncate`, `append`) is never dropped.
pub(crate) fn remake_statements(
    name: &TableName,
    plan: &TablePlan,
    types: &[ColumnType],
    found: Option<&[(String, String)]>,
) -> Vec<String> {
    let users = matches!(plan.if_exists, IfTargetExists::Truncate | IfTargetExists::Append);
    let old = match found {
        Some(found) if users || verify_existing(name, &plan.table, types, found).is_ok() => {
            return Vec::new();
        }
        Some(_) => Some(format!("DROP TABLE {}", qualified(name))),
        None => None,
    };
    old.into_iter().chain(create_statements(name, &plan.table, types)).collect()
}

/// Who held a table of the file before this task, which takes it over; a table takes the rows of one source table. Refused where it is
/// another one of this task, and where another task holds it and this one is not told to empty or to replace it.
pub(crate) fn owner_before(
    task: Option<&TaskId>,
    plan: &TablePlan,
    name: &TableName,
    entries: &Entries,
) -> Result<Option<Owner>> {
    let table = &plan.table;
    let others = entries.owners(name).filter(|owner| !owner.is(task, &table.name));
    let Some(owner) = others.min_by_key(|owner| Some(&owner.task) != task) else { return Ok(None) };
    if Some(&owner.task) == task || plan.if_exists == IfTargetExists::Append {
        let problem =
            format!("{} would go to {name}, which takes {} of task {}", table.name, owner.source, owner.task);
        return Err(Error::table_broken(NAME_COLLISION, table.name.clone(), problem)
            .with_cause("a table takes the rows of one source table, and DuckDB ignores case in names")
            .with_cure(Cure::advice("give one of them another target name in its entry of the task file")));
    }
    if entries.has_table(name) && plan.if_exists == IfTargetExists::Error {
        return Err(table_exists(&table.name, name));
    }
    Ok(Some(owner.clone()))
}

/// What the file has: tables and views by their names, without regard to case, and what tasks have noted of tables. Read once for many
/// tables: DuckDB's own lists take as long as preparing several tables, and where a name is missing it looks for one that is like it,
/// among all.
pub(crate) struct Entries {
    tables: HashSet<(String, String)>,
    views: HashSet<(String, String)>,
    owners: HashMap<Source, Owner>,
    /// Their keys, by the target table's name.
    by_target: HashMap<(String, String), Vec<Source>>,
}

/// A task and a table of its source.
type Source = (TaskId, TableName);

impl Entries {
    pub(crate) fn read(connection: &Connection) -> Result<Entries> {
        let read = |list: &str| -> duckdb::Result<HashSet<(String, String)>> {
            let mut statement = connection.prepare(list)?;
            let name = |row: &duckdb::Row<'_>, at| row.get::<_, String>(at).map(|name| name.to_lowercase());
            statement.query_map([], |row| Ok((name(row, 0)?, name(row, 1)?)))?.collect()
        };
        let refused = |failure| refused("looking for tables and views", failure);
        let tables =
            "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = current_database()";
        let views = "SELECT schema_name, view_name FROM duckdb_views() \
                     WHERE database_name = current_database() AND NOT internal";
        let (tables, views) = (read(tables).map_err(refused)?, read(views).map_err(refused)?);
        let mut entries = Entries { tables, views, owners: HashMap::new(), by_target: HashMap::new() };
        // None in a file that no task has opened.
        if entries.has_table(&TableName::new("pgferry", "table_state")) {
            progress::owners(connection)?.into_iter().for_each(|owner| entries.add_owner(owner));
        }
        Ok(entries)
    }

    /// The source tables, of all tasks, whose rows go to a table of the file.
    pub(crate) fn owners(&self, target: &TableName) -> impl Iterator<Item = &Owner> {
        let keys = self.by_target.get(&lower(target)).map_or(&[][..], Vec::as_slice);
        keys.iter().filter_map(|key| self.owners.get(key))
    }

    /// What a task has noted of a source table; `None`: it has neither made nor taken over a table for it.
    pub(crate) fn noted(&self, task: &TaskId, source: &TableName) -> Option<&Owner> {
        self.owners.get(&(task.clone(), source.clone()))
    }

    pub(crate) fn add_owner(&mut self, owner: Owner) {
        let key = (owner.task.clone(), owner.source.clone());
        self.remove_owner(&key);
        self.by_target.entry(lower(&owner.target)).or_default().push(key.clone());
        self.owners.insert(key, owner);
    }

    pub(crate) fn remove_owner(&mut self, key: &Source) {
        if let Some(gone) = self.owners.remove(key)
            && let Some(keys) = self.by_target.get_mut(&lower(&gone.target))
        {
            keys.retain(|other| other != key);
        }
    }

    /// The columns of a table, where there is one.
    pub(crate) fn existing(
        &self,
        connection: &Connection,
        name: &TableName,
    ) -> Result<Option<Vec<(String, String)>>> {
        if self.has_table(name) { existing(connection, name) } else { Ok(None) }
    }

    pub(crate) fn has_table(&self, name: &TableName) -> bool {
        self.tables.contains(&lower(name))
    }

    /// Refuses a place where a view is.
    pub(crate) fn verify_no_view(&self, table: &Table, name: &TableName) -> Result<()> {
        if !self.views.contains(&lower(name)) {
            return Ok(());
        }
        let problem = format!("the DuckDB file has a view {name}, not a table");
        Err(Error::table_broken(TABLE_EXISTS, table.name.clone(), problem)
            .with_cause("rows can be written to a table only")
            .with_cure(Cure::advice("drop or rename the view, or give the table another target name")))
    }
}

fn lower(name: &TableName) -> (String, String) {
    (name.schema.to_lowercase(), name.name.to_lowercase())
}

/// Refuses a table whose column names are the same to DuckDB, which ignores case.
pub(crate) fn verify_names(table: &Table, name: &TableName) -> Result<()> {
    if name.schema.eq_ignore_ascii_case("pgferry") {
        let problem = format!("{}: the schema pgferry of the DuckDB file is pgferry's own", table.name);
        return Err(Error::table_broken(NAME_COLLISION, table.name.clone(), problem)
            .with_cause("what pgferry knows of its tasks is kept there")
            .with_cure(
                Cure::advice(
                    "give the table another schema: the line stands in the table's entry of the task file",
                )
                .line(format!("target = \"main.{}\"", table.name.name)),
            ));
    }
    let mut seen = std::collections::HashMap::new();
    for column in &table.columns {
        if let Some(other) = seen.insert(column.name.to_lowercase(), &column.name) {
            return Err(Error::table_broken(
                NAME_COLLISION,
                table.name.clone(),
                format!(
                    "columns {other} and {} of {} are one name to DuckDB, which ignores case",
                    column.name, table.name
                ),
            )
            .with_cause("PostgreSQL tells names apart by case, DuckDB does not")
            .with_cure(
                Cure::advice("leave one of them out: the line stands in the table's entry of the task file")
                    .line(format!("exclude_columns = [{:?}]", column.name)),
            ));
        }
    }
    Ok(())
}

/// Whether a table's columns are in the source's order, so that rows can be appended without naming them.
pub(crate) fn in_order(connection: &Connection, name: &TableName, table: &Table) -> Result<bool> {
    let found = existing(connection, name)?.ok_or_else(|| table_gone(&table.name, name))?;
    Ok(found.len() == table.columns.len()
        && found
            .iter()
            .zip(&table.columns)
            .all(|((held, _), column)| held.eq_ignore_ascii_case(&column.name)))
}

/// The columns that an existing table has: name and type, in order. `None`: there is no such table. By name, not from DuckDB's list of
/// all columns, which takes longer the more tables there are.
pub(crate) fn existing(connection: &Connection, name: &TableName) -> Result<Option<Vec<(String, String)>>> {
    let asking = |failure| refused("looking for a table", failure);
    let mut statement = match connection.prepare(&format!("DESCRIBE {}", qualified(name))) {
        Ok(statement) => statement,
        Err(failure) if is_missing(&failure) => return Ok(None),
        Err(failure) => return Err(asking(failure)),
    };
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
        .map_err(asking)?;
    rows.collect::<duckdb::Result<Vec<_>>>().map_err(asking).map(Some)
}

/// Whether a statement failed because what it names is not there. It has not touched its transaction.
fn is_missing(failure: &duckdb::Error) -> bool {
    let text = failure.to_string();
    text.contains("Catalog Error") && text.contains("does not exist")
}

/// Refuses an existing table that lacks a column or has one of another type.
pub(crate) fn verify_existing(
    name: &TableName,
    table: &Table,
    types: &[ColumnType],
    existing: &[(String, String)],
) -> Result<()> {
    let mut cure =
        Cure::advice("change the table as the statements say, or set if_target_exists = \"replace\"");
    let mut wrong = Vec::new();
    for (column, kind) in table.columns.iter().zip(types) {
        match existing.iter().find(|(other, _)| other.eq_ignore_ascii_case(&column.name)) {
            None => {
                wrong.push(format!("{} is missing", column.name));
                cure = cure.sql(format!(
                    "ALTER TABLE {} ADD COLUMN {} {}",
                    qualified(name),
                    quote(&column.name),
                    kind.name
                ));
            }
            Some((_, found)) if *found != kind.name => {
                wrong.push(format!("{} is {found}, not {}", column.name, kind.name));
                cure = cure.sql(format!(
                    "ALTER TABLE {} ALTER COLUMN {} TYPE {}",
                    qualified(name),
                    quote(&column.name),
                    kind.name
                ));
            }
            Some(_) => {}
        }
    }
    let extra = existing
        .iter()
        .filter(|(other, _)| !table.columns.iter().any(|column| column.name.eq_ignore_ascii_case(other)));
    for (other, _) in extra {
        wrong.push(format!("{other} is not in the source"));
        cure = cure.sql(format!("ALTER TABLE {} DROP COLUMN {}", qualified(name), quote(other)));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::table_broken(
        SCHEMA_INCOMPATIBLE,
        table.name.clone(),
        format!("{name} in the DuckDB file has other columns: {}", wrong.join(", ")),
    )
    .with_cause("rows are written only where names and types are those of the source's table")
    .with_cure(cure.run_as("you, in the DuckDB file")))
}
