//! What a PostgreSQL source is told: validated, with every default filled in.

use std::path::PathBuf;

use pgferry_model::TableName;
use pgferry_pipeline::SyncMode;
use pgferry_postgres::ConnectionConfig;

/// Who makes and removes the slot and the publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Manage {
    /// A DBA did; pgferry uses what is there.
    Never,
    /// pgferry makes what is missing and leaves it there.
    #[default]
    Create,
    /// pgferry makes what is missing; removing it is part of deleting the task.
    CreateAndDrop,
}

/// Where the list of tables comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SelectFrom {
    /// The task's own list and patterns.
    #[default]
    Tables,
    /// Everything in the publication, with its row filters and column lists.
    Publication,
}

/// One table's own settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableOptions {
    /// The table in the source.
    pub source: Option<TableName>,
    /// Its name in the target, where it differs: schema (or the source's) and name.
    pub target: Option<TableName>,
    /// The key's columns, in place of the real primary key.
    pub primary_key: Vec<String>,
    /// A condition on the rows of the snapshot; the stream is not filtered by it.
    pub snapshot_where: Option<String>,
    /// Columns that are not carried.
    pub exclude_columns: Vec<String>,
}

/// Slot and publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replication {
    /// Publication's name.
    pub publication: String,
    /// Slot's name: lower-case letters, digits and `_`, at most 63.
    pub slot: String,
    /// Who makes and removes them.
    pub manage: Manage,
    /// Where the list of tables comes from.
    pub from: SelectFrom,
}

/// Everything that a PostgreSQL source is told.
#[derive(Clone, Debug)]
pub struct PostgresSourceConfig {
    /// How to connect.
    pub connection: ConnectionConfig,
    /// The task's name, for the application name and for messages.
    pub task: String,
    /// What the task carries.
    pub sync_mode: SyncMode,
    /// Patterns of tables, such as `public.*`.
    pub include: Vec<String>,
    /// Patterns of tables that are left out.
    pub exclude: Vec<String>,
    /// Tables with settings of their own; each is selected too.
    pub tables: Vec<TableOptions>,
    /// Slot and publication; not used when the task ends with the snapshot.
    pub replication: Replication,
    /// Workers of the snapshot, for the size of chunks.
    pub workers: usize,
    /// Where streamed transactions wait on disk; `None`: the system's folder for temporary files.
    pub spool_directory: Option<PathBuf>,
    /// Bytes of streamed transactions that wait in memory before they go to disk.
    pub spool_memory_bytes_max: usize,
    /// Bytes of streamed transactions that wait on disk at most.
    pub spool_disk_bytes_max: u64,
}
