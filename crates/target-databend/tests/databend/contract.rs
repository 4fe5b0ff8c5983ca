//! The contract of targets, on databases of their own: once with tables of rows as they are, once with histories.

use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use pgferry_model::{Table, TypeKind};
use pgferry_pipeline::{Target, TextRow};
use pgferry_target_databend::{DatabendConfig, DatabendTarget, Mode, map_type};
use pgferry_testkit::databend::DatabendServer;
use pgferry_testkit::target_contract::{Scene, Scenery};

use crate::making::{config, literal, quoted, server};

struct Databases {
    server: DatabendServer,
    config: DatabendConfig,
}

impl Databases {
    fn place(&self, table: &Table) -> String {
        let database = self.config.database.as_deref().unwrap_or_default();
        format!("{}.{}", quoted(database), quoted(&table.target_name.name))
    }

    async fn execute(&self, statements: Vec<String>) -> Result<Scenery> {
        let server = self.server.clone();
        let done = tokio::task::spawn_blocking(move || -> Result<()> {
            for statement in &statements {
                server.query(statement)?;
            }
            Ok(())
        });
        done.await??;
        Ok(Scenery::Set)
    }

    async fn put_foreign(&self, table: &Table, rows: &[TextRow]) -> Result<Scenery> {
        let place = self.place(table);
        let mut columns: Vec<String> = table
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let key = table.key.contains(&at);
                format!("{} {} NULL", quoted(&column.name), map_type(&column.data_type, None, key).name)
            })
            .collect();
        let own: &[_] = if self.config.mode == Mode::History { &OWN_COLUMNS } else { &[] };
        columns.extend(own.iter().map(|(name, kind, _)| format!("{name} {kind} NULL")));
        let database = quoted(self.config.database.as_deref().unwrap_or_default());
        let mut statements = vec![
            format!("CREATE DATABASE IF NOT EXISTS {database}"),
            format!("CREATE TABLE {place} ({})", columns.join(", ")),
        ];
        for row in rows {
            let mut cells: Vec<String> =
                row.iter().map(|cell| cell.as_deref().map_or("NULL".into(), literal)).collect();
            cells.extend(own.iter().map(|(_, _, value)| (*value).to_owned()));
            statements.push(format!("INSERT INTO {place} VALUES ({})", cells.join(", ")));
        }
        self.execute(statements).await
    }
}

/// Columns that a history has, and what they hold in a row of a copy.
const OWN_COLUMNS: [(&str, &str, &str); 6] = [
    ("_pgferry_op", "STRING", "'snapshot'"),
    ("_pgferry_seq", "UINT64", "7"),
    ("_pgferry_lsn", "STRING", "'0/10'"),
    ("_pgferry_committed_at", "TIMESTAMP", "NULL"),
    ("_pgferry_unchanged", "ARRAY(STRING NULL)", "NULL"),
    ("_pgferry_old_key", "ARRAY(STRING NULL)", "NULL"),
];

async fn databases(mode: Mode) -> Result<Databases> {
    let server = tokio::task::spawn_blocking(server).await??.context("no server")?;
    let config = DatabendConfig { mode, ..config(&server) };
    Ok(Databases { server, config })
}

/// Places that hold rows as they are.
struct Rows(Databases);
/// Places that hold every change.
struct Histories(Databases);

macro_rules! scene {
    ($place:ident, $mode:expr) => {
        #[async_trait]
        impl Scene for $place {
            fn unavailable() -> Result<Option<String>> {
                Ok(DatabendServer::shared()?.err().map(|missing| missing.0))
            }

            async fn fresh() -> Result<Self> {
                Ok($place(databases($mode).await?))
            }

            async fn holder(&self) -> Result<Arc<dyn Target>> {
                Ok(Arc::new(DatabendTarget::connect(self.0.config.clone())?))
            }

            async fn put_foreign(&self, table: &Table, rows: &[TextRow]) -> Result<Scenery> {
                self.0.put_foreign(table, rows).await
            }

            async fn remove_table(&self, table: &Table) -> Result<Scenery> {
                self.0.execute(vec![format!("DROP TABLE {}", self.0.place(table))]).await
            }

            fn shows_rows_of_others(&self) -> bool {
                $mode == Mode::Latest
            }

            fn misfit(&self) -> Option<(TypeKind, &'static str)> {
                Some((TypeKind::Timestamp, "12345-12-31 23:59:58.987654"))
            }
        }
    };
}

scene!(Rows, Mode::Latest);
scene!(Histories, Mode::History);

mod rows {
    pgferry_testkit::target_contract!(super::Rows);
}

mod histories {
    pgferry_testkit::target_contract!(super::Histories);
}
