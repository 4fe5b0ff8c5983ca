//! A DuckDB file under trial.
//!
//! Invariant: a killed process's file and its write-ahead log are looked at as a copy, so that replaying the log is left to the
//! next process.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use async_trait::async_trait;
use duckdb::{Config, Connection};
use pgferry_model::{Progress, TableName};
use pgferry_testkit::types::{self, TypeCase};

use crate::target_place::{TargetPlace, held};

const FILE: &str = "copy.duckdb";
const LOG: &str = "copy.duckdb.wal";
/// What pgferry keeps of its own in the file.
const OWN_TABLES: [&str; 3] = ["chunk", "table_state", "task"];

/// `copy.duckdb` in the scene's folder.
#[derive(Debug)]
pub struct DuckdbFile;

#[async_trait]
impl TargetPlace for DuckdbFile {
    fn connection(&self) -> String {
        format!("kind = \"duckdb\"\npath = \"{FILE}\"\n")
    }

    fn small_memory(&self) -> String {
        "memory_limit = \"512MB\"\n".to_owned()
    }

    fn sections(&self, major: u32) -> String {
        text_overrides(major)
    }

    /// DuckDB does not keep the sign of zero: equal floats of one block become one value when it writes a checkpoint.
    fn same_value(&self, source: &str, target: &str) -> bool {
        matches!((source, target), ("0", "-0") | ("-0", "0"))
    }

    async fn held(&self, folder: &Path) -> Result<Option<Progress>> {
        if !folder.join(FILE).exists() {
            return Ok(None);
        }
        let look = folder.join("look");
        fs::create_dir_all(&look)?;
        for name in [FILE, LOG] {
            let (from, to) = (folder.join(name), look.join(name));
            let _absent = fs::remove_file(&to);
            if from.exists() {
                fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
            }
        }
        fs::copy(folder.join("task.toml"), look.join("task.toml"))?;
        let progress = held(&look.join("task.toml")).await;
        fs::remove_dir_all(&look)?;
        progress
    }

    async fn leftovers(&self, folder: &Path, tables: &[TableName]) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(FILE) && name != FILE {
                left.push(format!("file {name}"));
            }
        }
        let (path, expected) = (folder.join(FILE), tables.to_vec());
        left.extend(tokio::task::spawn_blocking(move || inside(&path, &expected)).await??);
        Ok(left)
    }
}

/// Tables that nobody asked for, and chunk records of copies that are over.
fn inside(path: &Path, expected: &[TableName]) -> Result<Vec<String>> {
    let connection =
        Connection::open_with_flags(path, Config::default().access_mode(duckdb::AccessMode::ReadOnly)?)?;
    let mut left = Vec::new();
    let mut statement = connection.prepare("SELECT schema_name, table_name FROM duckdb_tables()")?;
    let names = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    for name in names {
        let (schema, table) = name?;
        let carried = expected.iter().any(|name| *name.schema == *schema && *name.name == *table);
        let own = schema == "pgferry" && OWN_TABLES.contains(&table.as_str());
        if !carried && !own {
            left.push(format!("table {schema}.{table}"));
        }
    }
    let records: i64 = connection.query_row("SELECT count(*) FROM pgferry.chunk", [], |row| row.get(0))?;
    if records > 0 {
        left.push(format!("{records} records of chunks"));
    }
    Ok(left)
}

/// Types of which DuckDB's native type does not hold every value.
pub fn guarded(case: &TypeCase) -> bool {
    case.sql_type.starts_with("numeric(")
        || case.sql_type.ends_with("[]")
        || case.sql_type.starts_with("timestamp")
}

/// The entry of the workload's table of every type: guarded columns are carried as text.
pub fn text_overrides(major: u32) -> String {
    let mut entry = "[[tasks.all.tables]]\nsource = \"public.every_type\"\n".to_owned();
    for case in types::cases(major * 10_000).iter().filter(|case| guarded(case)) {
        entry.push_str(&format!("columns.{} = {{ type = \"string\" }}\n", case.column));
    }
    entry
}
