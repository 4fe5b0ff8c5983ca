//! Any target's side of a comparison, over its own `Inspect` contract.

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use pgferry_model::Table;
use pgferry_pipeline::Inspect;

use super::{ComparedTable, Row, RowStream, TargetRows};

/// A target's rows through its `Inspect`.
pub struct InspectedRows<'i> {
    inspect: &'i dyn Inspect,
    tables: Vec<Arc<Table>>,
}

impl<'i> InspectedRows<'i> {
    /// The rows of these tables.
    pub fn new(inspect: &'i dyn Inspect, tables: Vec<Arc<Table>>) -> Self {
        InspectedRows { inspect, tables }
    }
}

#[async_trait]
impl TargetRows for InspectedRows<'_> {
    async fn rows<'a>(&'a mut self, table: &ComparedTable) -> Result<Option<RowStream<'a>>> {
        let found = self
            .tables
            .iter()
            .find(|known| *known.name.schema == *table.schema && *known.name.name == *table.name);
        let Some(found) = found else { return Ok(None) };
        let mut rows: Vec<Row> = Vec::new();
        self.inspect
            .rows(found, None, &mut |row| {
                rows.push(row);
                Ok(())
            })
            .await?;
        Ok(Some(Box::pin(futures_util::stream::iter(rows.into_iter().map(Ok)))))
    }
}
