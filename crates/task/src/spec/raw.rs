//! A task file as it is written: every key that may stand in it, nothing resolved and nothing defaulted.
//!
//! The doc comments are the texts of `docs/reference/task-file.md` and of the JSON Schema. Keys that must be there are
//! `Option` too: `validated.rs` tells all that are missing at once.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::raw_databend::{RawDatabend, RawDatabendTask, RawMode, RawOutOfRange};
use super::raw_kafka::{RawKafka, RawKafkaTask};
use super::scalar::{Bytes, SecretSource, Span};

/// A task file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawFile {
    /// Version of the file's form. Required; `1`.
    pub version: Option<i64>,
    /// Where data comes from and goes to, by name.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, AnyConnection>")]
    pub connections: BTreeMap<String, toml::Value>,
    /// What is carried, by name. A name has letters, digits, `_` and `-`, at most 63 of them; the target stores the progress under it.
    #[serde(default)]
    pub tasks: BTreeMap<String, RawTask>,
}

/// A connection, by its kind.
#[derive(JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AnyConnection {
    /// A PostgreSQL server.
    Postgres(Box<RawPostgres>),
    /// A DuckDB file.
    Duckdb(RawDuckdb),
    /// A Kafka cluster.
    Kafka(Box<RawKafka>),
    /// A Databend server.
    Databend(Box<RawDatabend>),
}

/// A PostgreSQL server, by `url` or by its parts.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawPostgres {
    /// `postgres://user:password@host:port/database?sslmode=...`, instead of the parts below. A secret, as it may hold a password.
    pub url: Option<SecretSource>,
    /// Host name, address, or the folder of a Unix socket. Default: `localhost`.
    pub host: Option<String>,
    /// Port. Default: `5432`.
    pub port: Option<u16>,
    /// Database. Default: the user's name.
    pub database: Option<String>,
    /// Role to connect as. Required without `url`.
    pub user: Option<String>,
    /// Password. Default: none.
    pub password: Option<SecretSource>,
    /// How the connection is protected: `disable`, `prefer`, `require` (encrypted, the server is not verified), `verify-ca` or `verify-full`.
    /// Default: `prefer`.
    pub ssl_mode: Option<RawSslMode>,
    /// File with the certificates of the authorities to trust, PEM. Default: the system's. Relative to the task file.
    pub ssl_root_cert: Option<String>,
    /// File with the client's certificate, PEM. Default: none. Relative to the task file.
    pub ssl_cert: Option<String>,
    /// File with the client's key, PEM. Default: none. Relative to the task file.
    pub ssl_key: Option<String>,
    /// Password of the client's key. Default: none.
    pub ssl_key_password: Option<SecretSource>,
    /// The longest wait for a connection. Default: `10s`.
    pub connect_timeout: Option<Span>,
    /// How long a server that owes an answer may say nothing before it is asked, on a new connection, whether it still works on it.
    /// A server that works is waited for; a connection of which nothing comes any more is given up. Default: `15s`.
    pub probe_after: Option<Span>,
}

/// A DuckDB file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawDuckdb {
    /// The database file; made when it is not there. Required. Relative to the task file.
    pub path: Option<String>,
    /// DuckDB's own memory limit, at least `256MB`. Default: `1GB`.
    pub memory_limit: Option<Bytes>,
    /// DuckDB's threads. Default: as many as the machine has processors.
    pub threads: Option<u16>,
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawSslMode {
    /// Not encrypted.
    Disable,
    /// Encrypted where the server offers it.
    Prefer,
    /// Encrypted; the server is not verified.
    Require,
    /// Encrypted; the server's certificate comes from a trusted authority.
    VerifyCa,
    /// Encrypted; as `verify-ca`, and the certificate is for this host.
    VerifyFull,
}

/// A task.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTask {
    /// Name of the connection that rows come from. Required.
    pub source: Option<String>,
    /// Name of the connection that rows go to. Required.
    pub target: Option<String>,
    /// What is carried: `snapshot` (the rows, then the task ends), `cdc_only` (changes from now on) or `snapshot_cdc` (both).
    /// Default: `snapshot_cdc`.
    pub sync_mode: Option<RawSyncMode>,
    /// `entire_db` selects every table of the database, narrowed by `include` and `exclude`. Default: the tables listed.
    pub scenario: Option<RawScenario>,
    /// Tables to take, as `schema.table` with `*` for any text. Default: `["*.*"]` with `scenario = "entire_db"`.
    pub include: Option<Vec<String>>,
    /// Tables to leave out, in the same form. Default: none.
    pub exclude: Option<Vec<String>>,
    /// Tables, each with its own settings. They are carried in addition to what `include` selects.
    #[serde(default)]
    pub tables: Vec<RawTable>,
    /// The longest that a committed change waits before it is written. Default: `1s` for DuckDB, `20ms` for Kafka. For Databend the
    /// shortest time between two merges of a table, at least `100ms`, and changes are staged each second; with
    /// `mode = "history"` the time between two times that changes are appended; default: `3s`.
    pub sync_interval: Option<Span>,
    /// Rows per write at most. Default: bounded by bytes only.
    pub batch_size: Option<u64>,
    /// Whether deleted rows are deleted in the target; `false` keeps them. Default: `true`.
    pub allow_delete: Option<bool>,
    /// How many parts of tables are copied at once, 1 to 64. Default: `4`.
    pub initial_copy_workers: Option<u64>,
    /// What the target's tables hold: `latest` (each row as it is at the source) or, Databend only, `history` (every change of each row, one
    /// after the other, with what it was, where and when). Default: `latest`.
    pub mode: Option<RawMode>,
    /// When a table breaks: `pause_table` (the others go on) or `pause_task`. Default: `pause_table`.
    pub on_table_error: Option<RawOnTableError>,
    /// When the target has a table of that name that this task did not make: `error`, `append`, `truncate` or `replace`.
    /// Default: `error`.
    pub if_target_exists: Option<RawIfTargetExists>,
    /// What to do when a table's columns change.
    pub schema_changes: Option<RawSchemaChanges>,
    /// Publication and slot.
    pub replication: Option<RawReplication>,
    /// Bounds on memory, waits and retries.
    pub limits: Option<RawLimits>,
    /// Settings of a DuckDB target.
    pub duckdb: Option<RawDuckdbTask>,
    /// Settings of a Kafka target.
    pub kafka: Option<RawKafkaTask>,
    /// Settings of a Databend target.
    pub databend: Option<RawDatabendTask>,
}

/// What a task carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawSyncMode {
    /// The rows as of one point; then the task ends.
    Snapshot,
    /// Changes only, from now on.
    CdcOnly,
    /// The rows, then every change.
    SnapshotCdc,
}

/// How tables are selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawScenario {
    /// Every table of the database.
    EntireDb,
}

/// What happens when a table breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawOnTableError {
    /// The table is set aside, the others go on.
    PauseTable,
    /// The whole task stops.
    PauseTask,
}

/// What to do where the target has a table of that name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawIfTargetExists {
    /// Set the table aside with an error.
    Error,
    /// Keep its rows and add to them.
    Append,
    /// Empty it first.
    Truncate,
    /// Drop it and make it anew.
    Replace,
}

/// What to do when a table's columns change.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSchemaChanges {
    /// A column is added. Default: `pause_table`, the only choice of this build.
    pub add_column: Option<RawSchemaPolicy>,
    /// A column is dropped. Default: `pause_table`, the only choice of this build.
    pub drop_column: Option<RawSchemaPolicy>,
    /// A column's type changes. Default: `pause_table`, the only choice of this build.
    pub change_type: Option<RawSchemaPolicy>,
}

/// A policy for one kind of schema change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawSchemaPolicy {
    /// The table is set aside with `schema.change_blocked`.
    PauseTable,
}

/// One table.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTable {
    /// The table, as `schema.table`; without a schema it is in `public`. A part with dots stands in double quotes. Required.
    pub source: Option<String>,
    /// Its name in the target, `table` or `schema.table`. Default: its name in the source.
    pub target: Option<String>,
    /// Columns that tell a row from all others. Default: the source's primary key.
    pub primary_key: Option<Vec<String>>,
    /// A condition on the rows that the snapshot takes, as SQL of the source. Changes are not filtered. Default: every row.
    pub snapshot_where: Option<String>,
    /// Columns that are not carried. Default: none.
    pub exclude_columns: Option<Vec<String>>,
    /// Single columns, by name.
    #[serde(default)]
    pub columns: BTreeMap<String, RawColumn>,
    /// As the task's setting of that name, for this table.
    pub if_target_exists: Option<RawIfTargetExists>,
    /// Its topic in a Kafka target; tables with the same one share it. Default: by the task's `topic_name_rule`.
    pub topic: Option<String>,
}

/// One column of a table.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawColumn {
    /// Its type in the target: `string` (the source's own text), or `decimal(PRECISION,SCALE)`. Default: by the source's type.
    #[serde(rename = "type")]
    pub target_type: Option<String>,
    /// In a Databend target: what becomes of a value that the column's type does not hold, such as a date before the year 1. `error` (the
    /// table is set aside), `null` (the value becomes NULL, and is counted) or `string` (the column is carried as text, as with
    /// `type = "string"`). Default: `error`.
    pub out_of_range: Option<RawOutOfRange>,
}

/// Publication and slot.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawReplication {
    /// The server's output plugin: `pgoutput`. Default: `pgoutput`.
    pub plugin: Option<RawPlugin>,
    /// The publication's name. Default: `pgferry_` and the task's name.
    pub publication: Option<String>,
    /// The slot's name: lower-case letters, digits and `_`, at most 63. Default: `pgferry_` and the task's name.
    pub slot: Option<String>,
    /// Who makes publication and slot: `create` (pgferry, where they are not there) or `never` (they are there already).
    /// Default: `create`.
    pub manage: Option<RawManage>,
}

/// The server's output plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawPlugin {
    /// PostgreSQL's own.
    Pgoutput,
}

/// Who makes publication and slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawManage {
    /// They are there already; pgferry makes and drops nothing.
    Never,
    /// pgferry makes what is not there.
    Create,
}

/// Bounds on memory, waits and retries.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawLimits {
    /// Bytes of rows in flight at most; reading stops when they are used up. Default: `64 MiB`.
    pub memory: Option<Bytes>,
    /// Bytes of changes per write at most. Default: a quarter of `memory`.
    pub batch: Option<Bytes>,
    /// Where transactions wait that do not fit in memory. Default: the system's folder for temporary files. Relative to the task file.
    pub spool_directory: Option<String>,
    /// Bytes that may wait there at most. Default: `16 GiB`.
    pub spool: Option<Bytes>,
    /// The longest wait between two tries after a transient error. Default: `30s`.
    pub retry_wait: Option<Span>,
    /// How long a transient error may repeat without any progress before the task gives up. Default: `15m`.
    pub retry_for: Option<Span>,
    /// How long a graceful stop may take. Default: `30s`.
    pub stop_within: Option<Span>,
}

/// Settings of a DuckDB target.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawDuckdbTask {
    /// The schema that all tables go to; with `include`, every table has to come from one schema. Default: each table's own.
    pub schema: Option<String>,
}
