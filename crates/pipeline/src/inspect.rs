//! The read-only contract behind preview, verify and the comparer.

use async_trait::async_trait;
use pgferry_model::{Result, Table};

/// A row as the source's own text forms (the output functions in pinned session settings); `None` is NULL.
pub type TextRow = Vec<Option<String>>;

/// Reads what a target holds.
#[async_trait]
pub trait Inspect: Send + Sync {
    /// Number of rows of the target's table.
    async fn count(&self, table: &Table) -> Result<u64>;

    /// Calls `each` with every row, at most `limit`, ordered by the key (by all columns where there is none) in the order of the
    /// text forms' bytes. Values are given in the source's text form, so that both sides can be compared byte by byte.
    async fn rows(
        &self,
        table: &Table,
        limit: Option<u64>,
        each: &mut (dyn FnMut(TextRow) -> Result<()> + Send),
    ) -> Result<()>;
}
