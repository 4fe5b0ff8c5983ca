//! Tables in Databend: names, statements, and whether an existing one has the right columns.
//!
//! ```text
//!   "analytics"."orders"                         what the user queries
//!   "pgferry"."raw.shop.public.orders"           changes of task shop that are staged and not yet merged (transient)
//!   "pgferry"."copy.shop.public.orders"          an unfinished copy beside rows from before the task (transient)
//! ```

use std::fmt::Write as _;

use pgferry_model::{Column, Cure, Error, Result, Table, TableName, TaskId};
use pgferry_pipeline::{IfTargetExists, TablePlan};

use crate::config::{ColumnChoice, Misfit};
use crate::encode::ColumnPlan;
use crate::error::{NAME_COLLISION, SCHEMA_INCOMPATIBLE, toml_key};
use crate::mapping::{ColumnType, map_type};
use crate::settings::Settings;

/// What a row of a raw table is: `upsert`, `delete` or `truncate`.
pub(crate) const OP: &str = "_pgferry_op";
/// The order of a raw table's rows: one number per delivery or slice.
pub(crate) const SEQ: &str = "_pgferry_seq";
/// The position of the delivery that a raw table's row came with; in a history where its transaction's commit record begins, or the copy's cut.
pub(crate) const LSN: &str = "_pgferry_lsn";
/// Names of the columns whose values the source did not send.
pub(crate) const UNCHANGED: &str = "_pgferry_unchanged";
/// When the source committed a history's row.
pub(crate) const COMMITTED_AT: &str = "_pgferry_committed_at";
/// The texts of the old key's columns, where a history's row has another key than before.
pub(crate) const OLD_KEY: &str = "_pgferry_old_key";
/// With a number: a column of the key under which the target holds the unchanged values, where the row's key has changed.
pub(crate) const ORIGIN: &str = "_pgferry_origin_";

/// Columns that a history has besides those of its table: name, type, and the type as the server names it.
const HISTORY_COLUMNS: [(&str, &str, &str); 6] = [
    (OP, "STRING", "String"),
    (SEQ, "UINT64", "UInt64"),
    (LSN, "STRING", "String"),
    (COMMITTED_AT, "TIMESTAMP", "Timestamp"),
    (UNCHANGED, "ARRAY(STRING NULL)", "Array(Nullable(String))"),
    (OLD_KEY, "ARRAY(STRING NULL)", "Array(Nullable(String))"),
];
/// Those that every row has.
const HISTORY_NOT_NULL: [&str; 3] = [OP, SEQ, LSN];

/// Estimated rows from which on a table is kept in the order of its key, in smaller blocks.
const CLUSTERED_FROM_ROWS: u64 = 1_000_000;
/// Rows per block of such a table: a merge rewrites every block that it touches.
const CLUSTERED_BLOCK_ROWS: u64 = 100_000;

/// An identifier in double quotes.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as a literal; Databend reads backslashes in them.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// A table's qualified, quoted name.
pub(crate) fn qualified(name: &TableName) -> String {
    format!("{}.{}", quote(&name.schema), quote(&name.name))
}

/// The condition that a row of `system.tables` or `system.columns` may be of one of those tables; `column` holds a table's name. A row of
/// another database's table of one of the names meets it, too.
pub(crate) fn among(names: &[TableName], column: &str) -> String {
    let list = |part: fn(&TableName) -> &str| {
        let mut all: Vec<String> = names.iter().map(|name| literal(part(name))).collect();
        all.sort_unstable();
        all.dedup();
        all.join(", ")
    };
    format!("database IN ({}) AND {column} IN ({})", list(|name| &name.schema), list(|name| &name.name))
}

/// A table's database and name in Databend.
pub(crate) fn target_name(settings: &Settings, table: &Table) -> TableName {
    match &settings.database {
        Some(database) => TableName::new(database.as_str(), std::sync::Arc::clone(&table.target_name.name)),
        None => table.target_name.clone(),
    }
}

/// A table of pgferry's own that belongs to a task's table. A dot within a name is written apart, so that two tables never share one.
fn own_table(settings: &Settings, kind: &str, task: &TaskId, table: &TableName) -> TableName {
    let part = |name: &str| name.replace('%', "%25").replace('.', "%2E");
    let name = format!("{kind}.{}.{}.{}", part(task.as_str()), part(&table.schema), part(&table.name));
    TableName::new(settings.staging.as_str(), name)
}

/// Where changes are staged.
pub(crate) fn raw_name(settings: &Settings, task: &TaskId, table: &TableName) -> TableName {
    own_table(settings, "raw", task, table)
}

/// Where the copy of a table goes whose rows from before the task stay.
pub(crate) fn copy_name(settings: &Settings, task: &TaskId, table: &TableName) -> TableName {
    own_table(settings, "copy", task, table)
}

fn choice(settings: &Settings, table: &Table, column: &Column) -> ColumnChoice {
    settings.columns.get(&(table.name.clone(), column.name.to_string())).cloned().unwrap_or_default()
}

/// A column's type.
pub(crate) fn column_type(settings: &Settings, table: &Table, at: usize) -> ColumnType {
    let column = &table.columns[at];
    let choice = choice(settings, table, column);
    map_type(&column.data_type, choice.target_type.as_deref(), table.key.contains(&at))
}

/// The columns' types, in the table's order.
pub(crate) fn column_types(settings: &Settings, table: &Table) -> Vec<ColumnType> {
    (0..table.columns.len()).map(|at| column_type(settings, table, at)).collect()
}

/// The columns as they are encoded. A key has no NULL, whatever the user says of values that do not fit.
pub(crate) fn column_plans(settings: &Settings, table: &Table) -> Vec<ColumnPlan> {
    let plan = |at: usize| {
        let misfit = choice(settings, table, &table.columns[at]).misfit;
        let misfit = if table.key.contains(&at) { Misfit::Error } else { misfit };
        ColumnPlan { kind: column_type(settings, table, at), misfit }
    };
    (0..table.columns.len()).map(plan).collect()
}

/// Whether a table is large enough to be kept in the order of its key.
pub(crate) fn is_clustered(table: &Table) -> bool {
    !table.key.is_empty() && table.rows_estimated >= CLUSTERED_FROM_ROWS
}

/// The statements that make a table.
pub(crate) fn create_statements(settings: &Settings, name: &TableName, table: &Table) -> Vec<String> {
    let types = column_types(settings, table);
    let history = settings.keeps_history();
    let mut columns: Vec<String> = table
        .columns
        .iter()
        .zip(&types)
        .enumerate()
        .map(|(at, (column, kind))| {
            let null = if table.key.contains(&at) && !history { "NOT NULL" } else { "NULL" };
            format!("{} {} {null}", quote(&column.name), kind.name)
        })
        .collect();
    if history {
        columns.extend(HISTORY_COLUMNS.iter().map(|(name, kind, _)| {
            let null = if HISTORY_NOT_NULL.contains(name) { "NOT NULL" } else { "NULL" };
            format!("{} {kind} {null}", quote(name))
        }));
    }
    let mut create = format!("CREATE TABLE {} ({})", qualified(name), columns.join(", "));
    if is_clustered(table) && !history {
        let key: Vec<String> = table.key_columns().map(|column| quote(&column.name)).collect();
        let _written =
            write!(create, " CLUSTER BY ({}) ROW_PER_BLOCK={CLUSTERED_BLOCK_ROWS}", key.join(", "));
    }
    create.push_str(storage(&types));
    vec![format!("CREATE DATABASE IF NOT EXISTS {}", quote(&name.schema)), create]
}

/// The statement that makes a raw table.
pub(crate) fn create_raw(settings: &Settings, name: &TableName, table: &Table) -> String {
    let types = column_types(settings, table);
    let mut columns: Vec<String> = table
        .columns
        .iter()
        .zip(&types)
        .map(|(column, kind)| format!("{} {} NULL", quote(&column.name), kind.name))
        .collect();
    columns.push(format!("{} STRING NOT NULL", quote(OP)));
    columns.push(format!("{} UINT64 NOT NULL", quote(SEQ)));
    columns.push(format!("{} STRING NOT NULL", quote(LSN)));
    columns.push(format!("{} ARRAY(STRING NULL) NULL", quote(UNCHANGED)));
    for (number, &at) in table.key.iter().enumerate() {
        columns.push(format!("{} {} NULL", quote(&format!("{ORIGIN}{number}")), types[at].name));
    }
    let place = qualified(name);
    format!("CREATE TRANSIENT TABLE IF NOT EXISTS {place} ({}){}", columns.join(", "), storage(&types))
}

/// The statement that makes a table for the copy of one whose rows from before the task stay.
pub(crate) fn create_copy(
    settings: &Settings,
    name: &TableName,
    target: &TableName,
    table: &Table,
) -> String {
    let (place, storage) = (qualified(name), storage(&column_types(settings, table)));
    format!("CREATE TRANSIENT TABLE IF NOT EXISTS {place} LIKE {}{storage}", qualified(target))
}

/// How a table's blocks are stored, where the server's own choice would not do: servers on a file system take `native`.
fn storage(types: &[ColumnType]) -> &'static str {
    if types.iter().any(ColumnType::is_wide_decimal) { " STORAGE_FORMAT='parquet'" } else { "" }
}

/// Refuses an existing table of the format `native` for columns that it does not hold exactly.
pub(crate) fn verify_storage(settings: &Settings, name: &TableName, table: &Table) -> Result<()> {
    let types = column_types(settings, table);
    let Some(at) = types.iter().position(ColumnType::is_wide_decimal) else { return Ok(()) };
    let column = &table.columns[at].name;
    let problem = format!("{name} in Databend is of the storage format native, which does not hold {column}");
    Err(Error::table_broken(SCHEMA_INCOMPATIBLE, table.name.clone(), problem)
        .with_cause("Databend gives decimals of more than 38 digits of such a table back as other numbers")
        .with_cure(
            Cure::advice(
                "set if_target_exists = \"replace\", or make the table anew with STORAGE_FORMAT='parquet', or carry the \
                 column as text: the line stands in the table's entry of the task file",
            )
            .line(format!("columns.{} = {{ type = \"string\" }}", toml_key(column))),
        ))
}

/// A column that a table has: its name and its type as the server names it, without `Nullable`.
pub(crate) type Found = (String, String);

/// A type as `system.columns` has it, without its outer `Nullable`.
pub(crate) fn stored_type(text: &str) -> String {
    text.strip_prefix("Nullable(").and_then(|inner| inner.strip_suffix(')')).unwrap_or(text).to_owned()
}

/// Whether a table's columns are those of a history.
fn is_history(found: &[Found]) -> bool {
    found.iter().any(|(name, _)| name == OP)
}

/// The statements that make a table of the task anew before its copy: it is gone or has other columns. None where it is as it has to
/// be. What the user made (`truncate`, `append`) is never dropped; a history only where a task of the other mode replaces it: new columns are
/// added to it, or it stays as it is.
pub(crate) fn remake_statements(
    settings: &Settings,
    name: &TableName,
    plan: &TablePlan,
    found: Option<&[Found]>,
) -> Vec<String> {
    // A table of the other mode goes where the user says so, and only there.
    let replaced = |found: &[Found]| {
        plan.if_exists == IfTargetExists::Replace && settings.keeps_history() != is_history(found)
    };
    let kept = |found: &&[Found]| (settings.keeps_history() || is_history(found)) && !replaced(found);
    if let Some(found) = found.filter(kept) {
        return widen_statements(settings, name, &plan.table, found);
    }
    let users = matches!(plan.if_exists, IfTargetExists::Truncate | IfTargetExists::Append);
    let old = match found {
        Some(found) if users || verify_existing(settings, name, &plan.table, found).is_ok() => {
            return Vec::new();
        }
        Some(_) => Some(format!("DROP TABLE {}", qualified(name))),
        None => None,
    };
    old.into_iter().chain(create_statements(settings, name, &plan.table)).collect()
}

/// The statements that add the columns that a history lacks; none where it lacks no column, or differs in more than that.
fn widen_statements(settings: &Settings, name: &TableName, table: &Table, found: &[Found]) -> Vec<String> {
    let lacking: Vec<(String, ColumnType)> = table
        .columns
        .iter()
        .zip(column_types(settings, table))
        .filter(|(column, _)| !found.iter().any(|(other, _)| **other == *column.name))
        .map(|(column, kind)| (column.name.to_string(), kind))
        .collect();
    let mut widened = found.to_vec();
    widened.extend(lacking.iter().map(|(column, kind)| (column.clone(), kind.stored.clone())));
    if verify_existing(settings, name, table, &widened).is_err() {
        return Vec::new();
    }
    let add = |(column, kind): &(String, ColumnType)| {
        format!("ALTER TABLE {} ADD COLUMN {} {} NULL", qualified(name), quote(column), kind.name)
    };
    lacking.iter().map(add).collect()
}

/// Refuses a table whose names Databend, or pgferry in it, would take for something else.
pub(crate) fn verify_names(settings: &Settings, table: &Table, name: &TableName) -> Result<()> {
    if *name.schema == *settings.staging {
        let problem = format!("{}: the database {} of Databend is pgferry's own", table.name, name.schema);
        return Err(Error::table_broken(NAME_COLLISION, table.name.clone(), problem)
            .with_cause("what pgferry knows of its tasks is kept there")
            .with_cure(
                Cure::advice("give the table another database, or pgferry's own another name: the line stands in the task's section databend")
                    .line("staging = \"pgferry_own\""),
            ));
    }
    let own = table.columns.iter().find(|column| column.name.starts_with("_pgferry_"));
    if let Some(column) = own {
        let problem = format!("column {} of {} has a name of pgferry's own", column.name, table.name);
        return Err(Error::table_broken(NAME_COLLISION, table.name.clone(), problem)
            .with_cause("columns of raw tables that begin with _pgferry_ say what a row is")
            .with_cure(
                Cure::advice("leave it out: the line stands in the table's entry of the task file")
                    .line(format!("exclude_columns = [{:?}]", column.name)),
            ));
    }
    Ok(())
}

/// A table of rows as they are where a history is to go, or the other way round.
fn other_mode(name: &TableName, table: &Table, history: bool) -> Error {
    let holds = if history { "each row as it is" } else { "every change, with columns of its own" };
    let problem = format!("{name} in Databend holds {holds}; the task's mode is the other one");
    Error::table_broken(SCHEMA_INCOMPATIBLE, table.name.clone(), problem)
        .with_cause("a history (mode = \"history\") and rows as they are (mode = \"latest\") are two tables")
        .with_cure(Cure::advice(
            "give the table another target name, or the task another database; if_target_exists = \"replace\" would drop what it holds",
        ))
}

/// Refuses an existing table that lacks a column or has one of another type.
pub(crate) fn verify_existing(
    settings: &Settings,
    name: &TableName,
    table: &Table,
    found: &[Found],
) -> Result<()> {
    let history = settings.keeps_history();
    if history != is_history(found) {
        return Err(other_mode(name, table, history));
    }
    let mut cure =
        Cure::advice("change the table as the statements say, or set if_target_exists = \"replace\"");
    let mut wrong = Vec::new();
    let types = column_types(settings, table);
    let columns = table.columns.iter().zip(&types);
    let mut wanted: Vec<(&str, &str, &str)> =
        columns.map(|(column, kind)| (&*column.name, kind.name.as_str(), kind.stored.as_str())).collect();
    if history {
        wanted.extend(HISTORY_COLUMNS);
    }
    for &(column, kind, wanted) in &wanted {
        let (place, quoted) = (qualified(name), quote(column));
        match found.iter().find(|(other, _)| **other == *column) {
            None => {
                wrong.push(format!("{column} is missing"));
                cure = cure.sql(format!("ALTER TABLE {place} ADD COLUMN {quoted} {kind} NULL"));
            }
            Some((_, stored)) if stored != wanted => {
                wrong.push(format!("{column} is {stored}, not {wanted}"));
                cure = cure.sql(format!("ALTER TABLE {place} MODIFY COLUMN {quoted} {kind} NULL"));
            }
            Some(_) => {}
        }
    }
    // A history keeps columns that the source has no more.
    let extra =
        found.iter().filter(|(other, _)| !history && !wanted.iter().any(|(column, ..)| column == other));
    for (other, _) in extra {
        wrong.push(format!("{other} is not in the source"));
        cure = cure.sql(format!("ALTER TABLE {} DROP COLUMN {}", qualified(name), quote(other)));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let problem = format!("{name} in Databend has other columns: {}", wrong.join(", "));
    Err(Error::table_broken(SCHEMA_INCOMPATIBLE, table.name.clone(), problem)
        .with_cause("rows are written only where names and types are those of the source's table")
        .with_cure(cure.run_as("you, in Databend")))
}
