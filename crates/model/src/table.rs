//! A table of the source as a task sees it: selected columns in a fixed order, its key, its identity.

use std::fmt;
use std::sync::Arc;

use crate::DataType;

/// A table's qualified name in the source, unquoted.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// Schema, unquoted.
    pub schema: Arc<str>,
    /// Table, unquoted.
    pub name: Arc<str>,
}

impl TableName {
    /// From unquoted parts.
    pub fn new(schema: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        TableName { schema: schema.into(), name: name.into() }
    }
}

/// `schema.table`, unquoted, for people; SQL text is made by the crate that speaks to the database.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

impl fmt::Debug for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A table's number within one run of a task: dense from 0, in the order of the source's table list. Not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(pub u32);

impl TableId {
    /// As an index into the run's table list.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A column that the task carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name in the source, unquoted.
    pub name: Arc<str>,
    /// Its type.
    pub data_type: DataType,
    /// Whether the source allows NULL (a domain's own NOT NULL counts as not null).
    pub nullable: bool,
}

/// A table that the task carries. Immutable: a schema change makes a new one with the same id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its number in this run.
    pub id: TableId,
    /// Its name in the source.
    pub name: TableName,
    /// Its name in the target; default: the source's.
    pub target_name: TableName,
    /// The carried columns in the source's order, without excluded and unpublished ones. Batches follow this order.
    pub columns: Vec<Column>,
    /// The mirroring key as indexes into `columns`; empty: the table has none and is carried by snapshot only.
    pub key: Vec<usize>,
    /// Whether the source enforces that the key is unique at every moment (a primary key or a unique index that is not
    /// deferrable). Without it an insert may meet a row of the same key in the target and replaces it.
    pub key_enforced: bool,
    /// Whether the source sends whole old rows (REPLICA IDENTITY FULL).
    pub full_identity: bool,
    /// Estimated rows (`pg_class.reltuples`), for progress; 0 where the source does not know.
    pub rows_estimated: u64,
    /// Bytes of heap and TOAST, for planning and progress.
    pub bytes: u64,
}

impl Table {
    /// The key's columns, in key order.
    pub fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().filter_map(|&index| self.columns.get(index))
    }
}
