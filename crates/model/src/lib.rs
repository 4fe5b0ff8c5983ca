//! The nouns of replication: tables, types, cells, batches, deliveries, positions, errors and findings.
//!
//! Nothing here does I/O, knows a database, or holds SQL. Every other crate may use this one; it uses none of them.

mod batch;
mod data_type;
mod delivery;
mod error;
mod finding;
mod position;
mod progress;
mod table;

pub use batch::{
    APART_BYTES_MIN, Batch, Cell, CellFormat, CellRef, Op, Row, RowRef, SIZE_OF_ROW_ENTRY, VALUE_BYTES_MAX,
};
pub use data_type::{DataType, Dimensions, TypeKind};
pub use delivery::{Delivery, Slice, TransactionMark};
pub use error::{Class, Code, Cure, Error, Restart, Result, TaskCommand, shell_word};
pub use finding::{Finding, Outcome};
pub use position::{ParsePositionError, Position};
pub use progress::{Progress, SourceIdentity, TableProgress, TableState, TaskId};
pub use table::{Column, Table, TableId, TableName};
