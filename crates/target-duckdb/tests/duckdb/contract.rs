//! The contract of targets, on files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use async_trait::async_trait;
use pgferry_model::{Table, TypeKind};
use pgferry_pipeline::{Target, TextRow};
use pgferry_target_duckdb::{DuckdbTarget, map_type};
use pgferry_testkit::target_contract::{Scene, Scenery};
use tempfile::TempDir;

use crate::making::config;

/// A folder, and how many crashes the file in it has seen: each leaves a copy, and the file before it to who still writes it.
struct File(TempDir, AtomicU32);

impl File {
    fn path(&self) -> PathBuf {
        self.path_after(self.1.load(Ordering::SeqCst))
    }

    fn path_after(&self, crashes: u32) -> PathBuf {
        self.0.path().join(format!("x{crashes}.duckdb"))
    }

    fn execute(&self, sql: &str) -> Result<Scenery> {
        duckdb::Connection::open(self.path())?.execute_batch(sql)?;
        Ok(Scenery::Set)
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[async_trait]
impl Scene for File {
    async fn fresh() -> Result<Self> {
        Ok(File(TempDir::new()?, AtomicU32::new(0)))
    }

    async fn holder(&self) -> Result<Arc<dyn Target>> {
        Ok(Arc::new(DuckdbTarget::connect(config(&self.path()))?))
    }

    /// The file and its log as they are, without the checkpoint that a file gets when it is closed.
    async fn crash(&self) -> Result<()> {
        let (before, after) = (self.path(), self.path_after(self.1.fetch_add(1, Ordering::SeqCst) + 1));
        std::fs::copy(&before, &after)?;
        let log = |path: &Path| path.with_extension("duckdb.wal");
        if log(&before).exists() {
            std::fs::copy(log(&before), log(&after))?;
        }
        Ok(())
    }

    async fn put_foreign(&self, table: &Table, rows: &[TextRow]) -> Result<Scenery> {
        let (schema, name) = (quoted(&table.target_name.schema), quoted(&table.target_name.name));
        let columns: Vec<String> = table
            .columns
            .iter()
            .map(|column| format!("{} {}", quoted(&column.name), map_type(&column.data_type, None).name))
            .collect();
        let mut sql = format!(
            "CREATE SCHEMA IF NOT EXISTS {schema}; CREATE TABLE {schema}.{name} ({});",
            columns.join(", ")
        );
        for row in rows {
            let cells: Vec<String> = row
                .iter()
                .map(|cell| {
                    cell.as_ref().map_or("NULL".into(), |text| format!("'{}'", text.replace('\'', "''")))
                })
                .collect();
            sql.push_str(&format!("INSERT INTO {schema}.{name} VALUES ({});", cells.join(", ")));
        }
        self.execute(&sql)
    }

    async fn remove_table(&self, table: &Table) -> Result<Scenery> {
        let (schema, name) = (quoted(&table.target_name.schema), quoted(&table.target_name.name));
        self.execute(&format!("DROP TABLE {schema}.{name}"))
    }

    fn misfit(&self) -> Option<(TypeKind, &'static str)> {
        Some((TypeKind::Timestamp, "294276-12-31 23:59:58.987654"))
    }
}

pgferry_testkit::target_contract!(File);
