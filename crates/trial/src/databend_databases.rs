//! A Databend server under trial, of the trial's own: the databases are named as the source's schemas.

use std::path::Path;

use anyhow::{Result, bail};
use async_trait::async_trait;
use pgferry_model::{TableName, TableState};
use pgferry_testkit::databend::{DatabendServer, DatabendSettings};
use pgferry_testkit::types::{self, TypeCase};

use crate::duckdb_file::guarded;
use crate::target_place::{TargetPlace, held};

/// The database of what pgferry keeps for itself.
const STAGING: &str = "pgferry";

/// What the tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each row as it is.
    Latest,
    /// Every change.
    History,
}

/// A server; gone with the trial.
pub struct DatabendDatabases {
    server: DatabendServer,
    mode: Mode,
}

impl DatabendDatabases {
    /// On a new server; fails where none is installed.
    pub async fn new(mode: Mode) -> Result<DatabendDatabases> {
        let starting = tokio::task::spawn_blocking(|| DatabendServer::start(&DatabendSettings::default()));
        match starting.await?? {
            Ok(server) => Ok(DatabendDatabases { server, mode }),
            Err(missing) => bail!("{}", missing.0),
        }
    }

    async fn ask(&self, statement: String) -> Result<Vec<Vec<Option<String>>>> {
        let server = self.server.clone();
        tokio::task::spawn_blocking(move || server.query(&statement)).await?
    }
}

#[async_trait]
impl TargetPlace for DatabendDatabases {
    fn connection(&self) -> String {
        format!("kind = \"databend\"\ndsn = \"{}\"\n", self.server.dsn(""))
    }

    fn sections(&self, major: u32) -> String {
        let mode = if self.mode == Mode::History { "mode = \"history\"\n" } else { "" };
        let mut entry = format!("{mode}[[tasks.all.tables]]\nsource = \"public.every_type\"\n");
        let cases = types::cases(major * 10_000);
        let text = |case: &&TypeCase| (guarded(case) && !fits(case)) || guarded_by_type(case.sql_type);
        for case in cases.iter().filter(text) {
            entry.push_str(&format!("columns.{} = {{ type = \"string\" }}\n", case.column));
        }
        entry + "[tasks.all.databend]\nstaging = \"" + STAGING + "\"\n"
    }

    fn sync_interval_min_ms(&self) -> u64 {
        100
    }

    async fn leftovers(&self, folder: &Path, tables: &[TableName]) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for table in held(&folder.join("task.toml")).await?.into_iter().flat_map(|held| held.tables) {
            let copying = matches!(table.state, TableState::Waiting | TableState::Copying);
            if !copying && !table.chunks_done.is_empty() {
                left.push(format!("{} records of chunks of {}", table.chunks_done.len(), table.name));
            }
        }
        let asked = "SELECT database, name, num_rows FROM system.tables \
                     WHERE database NOT IN ('system', 'information_schema', 'default')";
        for row in self.ask(asked.to_owned()).await? {
            let [database, name, rows] = &row[..] else { bail!("another answer: {row:?}") };
            let (database, name) = (database.as_deref().unwrap_or(""), name.as_deref().unwrap_or(""));
            let carried = tables.iter().any(|known| *known.schema == *database && *known.name == *name);
            if carried || (database == STAGING && ["task", "table_state", "chunk"].contains(&name)) {
                continue;
            }
            let raw = database == STAGING && name.starts_with("raw.");
            match rows.as_deref() {
                Some("0") | None if raw => {}
                rows => left.push(format!("table {database}.{name} of {} rows", rows.unwrap_or("no"))),
            }
        }
        for row in self.ask(format!("LIST @{STAGING}_stage")).await? {
            left.push(format!("file {}", row.first().cloned().flatten().unwrap_or_default()));
        }
        Ok(left)
    }
}

/// Whether it is a decimal that has no NaN among its values.
fn fits(case: &TypeCase) -> bool {
    let decimal = case.sql_type.starts_with("numeric(") && !case.sql_type.ends_with("[]");
    decimal && !case.values.iter().any(|value| value.contains("NaN"))
}

/// Types whose values at the edges Databend's native type does not hold.
fn guarded_by_type(sql_type: &str) -> bool {
    sql_type == "date" || sql_type == "jsonb"
}
