//! The memory target keeps the contract of targets, and targets that break it are found out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod broken;
mod deferring;
mod found_out;

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use pgferry_model::{Table, TypeKind};
use pgferry_pipeline::{Target, TextRow};
use pgferry_testkit::memory_target::MemoryTarget;
use pgferry_testkit::target_contract::{Scene, Scenery};

struct Memory(MemoryTarget);

#[async_trait]
impl Scene for Memory {
    async fn fresh() -> Result<Self> {
        Ok(Memory(MemoryTarget::default()))
    }

    async fn holder(&self) -> Result<Arc<dyn Target>> {
        Ok(Arc::new(self.0.reopened()))
    }

    async fn put_foreign(&self, table: &Table, rows: &[TextRow]) -> Result<Scenery> {
        self.0.put_foreign(table, rows).await;
        Ok(Scenery::Set)
    }

    async fn remove_table(&self, table: &Table) -> Result<Scenery> {
        self.0.remove_table(table).await;
        Ok(Scenery::Set)
    }

    /// Not a value that PostgreSQL has; text in memory would hold every one of those.
    fn misfit(&self) -> Option<(TypeKind, &'static str)> {
        Some((TypeKind::Text, "secret\0value"))
    }
}

pgferry_testkit::target_contract!(Memory);
