//! The contract of targets, on databases of their own.

use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use pgferry_model::{Table, TypeKind};
use pgferry_pipeline::{Target, TextRow};
use pgferry_target_databend::{DatabendConfig, DatabendTarget, map_type};
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
}

#[async_trait]
impl Scene for Databases {
    fn unavailable() -> Result<Option<String>> {
        Ok(DatabendServer::shared()?.err().map(|missing| missing.0))
    }

    async fn fresh() -> Result<Self> {
        let server = tokio::task::spawn_blocking(server).await??.context("no server")?;
        let config = config(&server);
        Ok(Databases { server, config })
    }

    async fn holder(&self) -> Result<Arc<dyn Target>> {
        Ok(Arc::new(DatabendTarget::connect(self.config.clone())?))
    }

    async fn put_foreign(&self, table: &Table, rows: &[TextRow]) -> Result<Scenery> {
        let place = self.place(table);
        let columns: Vec<String> = table
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let key = table.key.contains(&at);
                format!("{} {} NULL", quoted(&column.name), map_type(&column.data_type, None, key).name)
            })
            .collect();
        let database = quoted(self.config.database.as_deref().unwrap_or_default());
        let mut statements = vec![
            format!("CREATE DATABASE IF NOT EXISTS {database}"),
            format!("CREATE TABLE {place} ({})", columns.join(", ")),
        ];
        for row in rows {
            let cells: Vec<String> =
                row.iter().map(|cell| cell.as_deref().map_or("NULL".into(), literal)).collect();
            statements.push(format!("INSERT INTO {place} VALUES ({})", cells.join(", ")));
        }
        self.execute(statements).await
    }

    async fn remove_table(&self, table: &Table) -> Result<Scenery> {
        self.execute(vec![format!("DROP TABLE {}", self.place(table))]).await
    }

    fn misfit(&self) -> Option<(TypeKind, &'static str)> {
        Some((TypeKind::Timestamp, "12345-12-31 23:59:58.987654"))
    }
}

pgferry_testkit::target_contract!(Databases);
