//! Compares tables of PostgreSQL with what a target holds: row by row, cell by cell, exactly.
//!
//! ```text
//!   SourceRows (COPY, type's own text) ──ordered rows──┐
//!                                                      ├──> merge ──> Report: missing, extra, different
//!   TargetRows (each target's tests)   ──ordered rows──┘
//! ```
//!
//! Invariants: cells are the source type's own output text (ISO dates, UTC, shortest exact floats, hex bytea); both
//! sides come ordered by the key's text, byte by byte, NULL last; a side that does not is an error, never a
//! wrong report; one row per side is in memory.
//!
//! Why the order of text bytes and not of values: it is the one order every database can produce for every type.
//! Limits: a table without key is compared as a bag of rows, so a changed row shows as one missing and one extra.

mod copy_text;
mod inspected;
mod merge;
mod source;

use std::pin::Pin;

use anyhow::Result;
use async_trait::async_trait;
use futures_util::Stream;

pub use copy_text::{Row, parse_line};
pub use inspected::InspectedRows;
pub use merge::compare;
pub(crate) use source::SETTINGS;
pub use source::{SourceRows, tables};

/// A table to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComparedTable {
    pub schema: String,
    pub name: String,
    /// Every column of the table, in its order.
    pub columns: Vec<String>,
    /// Positions in `columns` of the key's columns; empty: no key, all columns identify a row.
    pub key: Vec<usize>,
}

impl ComparedTable {
    /// The columns that order and identify rows.
    pub fn order(&self) -> Vec<usize> {
        if self.key.is_empty() { (0..self.columns.len()).collect() } else { self.key.clone() }
    }
}

impl std::fmt::Display for ComparedTable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}", self.schema, self.name)
    }
}

/// Rows in the order of [`ComparedTable::order`], each with the cells of `columns` in their order.
pub type RowStream<'a> = Pin<Box<dyn Stream<Item = Result<Row>> + Send + 'a>>;

/// One side of a comparison. A target's tests implement it over the target's own reading interface.
#[async_trait]
pub trait TargetRows: Send {
    /// The rows of `table`, or `None` when there is no such table.
    ///
    /// Cells are in PostgreSQL's output text; ordered by the text of the columns of [`ComparedTable::order`], byte by
    /// byte, NULL last.
    async fn rows<'a>(&'a mut self, table: &ComparedTable) -> Result<Option<RowStream<'a>>>;
}

/// What is wrong at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DifferenceKind {
    /// The target has no such table.
    MissingTable,
    /// The target lacks a row the source has.
    MissingRow,
    /// The target has a row the source lacks (or has it once more).
    ExtraRow,
    /// A cell differs; both texts, shortened to 200 characters.
    Cell { source: Option<String>, target: Option<String> },
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub table: String,
    /// Text of the identifying cells, shortened to 200 characters each.
    pub key: Vec<Option<String>>,
    /// The column of a [`DifferenceKind::Cell`].
    pub column: Option<String>,
    pub kind: DifferenceKind,
}

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Tables compared.
    pub tables: usize,
    /// Rows read from the source.
    pub rows: u64,
    /// The first differences, as many as asked for.
    pub differences: Vec<Difference>,
    /// All differences, listed or not.
    pub found: u64,
}

impl Report {
    /// Fails with the listed differences unless both sides are equal.
    pub fn assert_equal(&self) -> Result<()> {
        anyhow::ensure!(
            self.found == 0,
            "{} differences in {} rows, the first: {:#?}",
            self.found,
            self.rows,
            self.differences
        );
        Ok(())
    }
}
