//! What a task file means: every default filled in here and nowhere else, every name resolved.
//!
//! Invariant: the engine finds no `Option` here that it would have to interpret; what is optional is so in the matter
//! itself (a server without a password, a table without a condition).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgferry_model::{TableName, TaskId};
use pgferry_pipeline::{DeletePolicy, IfTargetExists, Settings, SyncMode};
use pgferry_target_kafka::KafkaConfig;

use super::databend::{self, DatabendConnection, DatabendTask};
use super::fault::{Fault, INVALID_VALUE, MISSING_KEY, SECRET_IN_FILE};
use super::kafka::{self, KafkaConnection};
use super::raw::{
    RawColumn, RawDuckdb, RawIfTargetExists, RawManage, RawOnTableError, RawPostgres, RawReplication,
    RawSslMode, RawSyncMode, RawTable, RawTask,
};
use super::raw_databend::RawOutOfRange;
use super::read::{RawConnection, Written};
use super::rules;
use super::scalar::{SecretSource, parse_table_name};

const PORT_DEFAULT: u16 = 5432;
const WORKERS_DEFAULT: u64 = 4;
const WORKERS_MAX: u64 = 64;
const MEMORY_DEFAULT: u64 = 64 << 20;
const MEMORY_MIN: u64 = 4 << 20;
const DUCKDB_MEMORY_MIN: u64 = 256_000_000;
const DUCKDB_MEMORY_DEFAULT: u64 = 1_000_000_000;
const SPOOL_DEFAULT: u64 = 16 << 30;
const RETRY_WAIT_DEFAULT: Duration = Duration::from_secs(30);
const RETRY_FOR_DEFAULT: Duration = Duration::from_secs(15 * 60);
const STOP_WITHIN_DEFAULT: Duration = Duration::from_secs(30);
const SYNC_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
/// Nothing is gained by waiting longer: a broker takes small batches as well.
const SYNC_INTERVAL_KAFKA: Duration = Duration::from_millis(20);
/// PostgreSQL's own limit on names (`NAMEDATALEN` - 1, in bytes).
pub(super) const NAME_BYTES_MAX: usize = 63;

/// A task file, validated.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The file.
    pub file: PathBuf,
    /// Connections by name.
    pub connections: BTreeMap<String, Connection>,
    /// Tasks, in the order of their names.
    pub tasks: Vec<TaskSpec>,
    /// What can be done but is not advised.
    pub warnings: Vec<Fault>,
}

/// A connection.
#[derive(Clone, Debug)]
pub enum Connection {
    /// A PostgreSQL server.
    Postgres(Box<PostgresConnection>),
    /// A DuckDB file.
    Duckdb(DuckdbConnection),
    /// A Kafka cluster.
    Kafka(Box<KafkaConnection>),
    /// A Databend server.
    Databend(Box<DatabendConnection>),
}

impl Connection {
    /// The word after `kind =`.
    pub fn kind(&self) -> &'static str {
        match self {
            Connection::Postgres(_) => "postgres",
            Connection::Duckdb(_) => "duckdb",
            Connection::Kafka(_) => "kafka",
            Connection::Databend(_) => "databend",
        }
    }
}

/// Where a server is.
#[derive(Clone, Debug)]
pub enum Address {
    /// In one line.
    Url(SecretSource),
    /// In parts.
    Parts {
        /// Host name, address, or the folder of a Unix socket.
        host: String,
        /// Port.
        port: u16,
        /// Database.
        database: String,
        /// Role.
        user: String,
        /// Password, if the server wants one.
        password: Option<SecretSource>,
    },
}

/// A PostgreSQL server.
#[derive(Clone, Debug)]
pub struct PostgresConnection {
    /// Its name in the file.
    pub name: String,
    /// Where it is.
    pub address: Address,
    /// How it is protected; `None` only with a `url`, which may say it itself (default `prefer`).
    pub ssl_mode: Option<RawSslMode>,
    /// Certificates of trusted authorities; `None`: the system's.
    pub ssl_root_cert: Option<PathBuf>,
    /// The client's certificate.
    pub ssl_cert: Option<PathBuf>,
    /// The client's key.
    pub ssl_key: Option<PathBuf>,
    /// The key's password.
    pub ssl_key_password: Option<SecretSource>,
    /// The longest wait for a connection; `None`: what the URL says, or 10 s.
    pub connect_timeout: Option<Duration>,
    /// How long a server that owes an answer may say nothing before it is asked why; `None`: 15 s.
    pub probe_after: Option<Duration>,
}

/// A DuckDB file.
#[derive(Clone, Debug)]
pub struct DuckdbConnection {
    /// Its name in the file.
    pub name: String,
    /// The database file.
    pub path: PathBuf,
    /// DuckDB's own memory limit, bytes.
    pub memory_limit: u64,
    /// DuckDB's threads; 0: as many as processors.
    pub threads: u16,
}

/// Which tables a task carries.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Patterns of `schema.table`; empty: only `tables`.
    pub include: Vec<String>,
    /// Patterns of what to leave out.
    pub exclude: Vec<String>,
    /// Single tables with settings of their own, in addition to `include`.
    pub tables: Vec<TableSpec>,
    /// The schema in the target of tables that name none; `None`: each table's own.
    pub target_schema: Option<String>,
}

/// One table.
#[derive(Clone, Debug)]
pub struct TableSpec {
    /// Its name in the source.
    pub source: TableName,
    /// Its name in the target.
    pub target: TableName,
    /// The key; empty: the source's primary key.
    pub primary_key: Vec<String>,
    /// A condition on the snapshot's rows.
    pub snapshot_where: Option<String>,
    /// Columns that are not carried.
    pub exclude_columns: Vec<String>,
    /// Its topic in a Kafka target; `None`: by the task's rule.
    pub topic: Option<String>,
    /// Types in the target that the user sets, by column.
    pub column_types: BTreeMap<String, String>,
    /// Columns whose values become NULL where their type in the target does not hold them.
    pub null_columns: Vec<String>,
}

/// Who makes publication and slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manage {
    /// They are there already.
    Never,
    /// pgferry, where they are not there.
    Create,
}

/// Publication and slot.
#[derive(Clone, Debug)]
pub struct Replication {
    /// The publication's name.
    pub publication: String,
    /// The slot's name.
    pub slot: String,
    /// Who makes them.
    pub manage: Manage,
}

/// A task.
#[derive(Clone, Debug)]
pub struct TaskSpec {
    /// Its name.
    pub id: TaskId,
    /// The source's connection.
    pub source: String,
    /// The target's connection.
    pub target: String,
    /// Its tables.
    pub selection: Selection,
    /// Publication and slot.
    pub replication: Replication,
    /// Where transactions wait that do not fit in memory.
    pub spool_directory: PathBuf,
    /// Bytes that may wait there at most.
    pub spool_bytes_max: u64,
    /// Settings of its Kafka target, without the connection; `None`: the target is of another kind.
    pub kafka: Option<KafkaConfig>,
    /// Settings of its Databend target; `None`: the target is of another kind.
    pub databend: Option<DatabendTask>,
    /// The engine's settings.
    pub settings: Settings,
}

/// The one schema, or database, that every table of a task goes to.
pub(super) struct OneSchema<'a> {
    /// Its name.
    pub(super) schema: &'a str,
    /// What the target calls it.
    pub(super) word: &'static str,
    /// The key that says so, for messages.
    pub(super) key: String,
    /// Where a fault of it stands.
    pub(super) path: String,
}

impl Spec {
    /// The task of that name.
    pub fn task(&self, name: &str) -> Option<&TaskSpec> {
        self.tasks.iter().find(|task| task.id.as_str() == name)
    }

    /// The source's connection of a task.
    pub fn source_of(&self, task: &TaskSpec) -> Option<&PostgresConnection> {
        match self.connections.get(&task.source) {
            Some(Connection::Postgres(connection)) => Some(connection),
            _ => None,
        }
    }
}

pub(super) fn validate(file: &Path, written: &Written, faults: &mut Vec<Fault>) -> Spec {
    let folder = file.parent().unwrap_or_else(|| Path::new("")).to_owned();
    let mut warnings = Vec::new();
    version(written.file.version, faults);
    let mut connections = BTreeMap::new();
    for (name, raw) in &written.connections {
        let path = format!("connections.{name}");
        rules::name(&path, name, faults);
        let connection = match raw {
            RawConnection::Postgres(raw) => postgres(name, &path, raw, &folder, faults, &mut warnings)
                .map(Box::new)
                .map(Connection::Postgres),
            RawConnection::Duckdb(raw) => duckdb(name, &path, raw, &folder, faults).map(Connection::Duckdb),
            RawConnection::Kafka(raw) => {
                kafka::plain_secrets(&path, raw, |path| warnings.push(plain_secret(path)));
                let connection = kafka::connection(name, &path, raw, &folder, faults);
                connection.map(Box::new).map(Connection::Kafka)
            }
            RawConnection::Databend(raw) => {
                databend::plain_secrets(&path, raw, |path| warnings.push(plain_secret(path)));
                let connection = databend::connection(name, &path, raw, &folder, faults);
                connection.map(Box::new).map(Connection::Databend)
            }
        };
        if let Some(connection) = connection {
            connections.insert(name.clone(), connection);
        }
    }
    if written.file.tasks.is_empty() {
        let fault = Fault::new(MISSING_KEY, "tasks", "the file has no task");
        faults.push(fault.cure("add a `[tasks.NAME]`; `pgferry init` writes an example"));
    }
    let tasks = written.file.tasks.iter().filter_map(|(name, raw)| {
        let path = format!("tasks.{name}");
        rules::name(&path, name, faults);
        rules::connections(&path, raw, written, faults);
        let target = written.connections.iter().find(|(name, _)| Some(name) == raw.target.as_ref());
        let target = target.map(|(_, connection)| connection);
        if let Some(target) = target {
            rules::sections(&path, raw, target, faults);
        }
        let mut task = task(name, &path, raw, target, &folder, faults)?;
        let interval = |default: Duration| raw.sync_interval.map_or(default, |span| span.0);
        task.settings.sync_interval = interval(SYNC_INTERVAL_DEFAULT);
        match target {
            Some(RawConnection::Kafka(connection)) => {
                task.settings.sync_interval = interval(SYNC_INTERVAL_KAFKA);
                task.kafka = Some(kafka::settings(&path, raw.kafka.as_ref(), connection, faults));
            }
            Some(RawConnection::Databend(connection)) => {
                let (databend, interval) = databend::settings(&path, raw, connection, faults);
                task.settings.sync_interval = interval;
                task.databend = Some(databend);
            }
            Some(RawConnection::Postgres(_) | RawConnection::Duckdb(_)) | None => {}
        }
        Some(task)
    });
    let tasks: Vec<TaskSpec> = tasks.collect();
    rules::across(&tasks, faults);
    Spec { file: file.to_owned(), connections, tasks, warnings }
}

fn version(written: Option<i64>, faults: &mut Vec<Fault>) {
    match written {
        Some(1) => {}
        Some(other) => {
            let problem = format!("this build reads version 1, not {other}");
            faults.push(Fault::new(INVALID_VALUE, "version", problem));
        }
        None => {
            let fault = Fault::new(MISSING_KEY, "version", "the file does not say its version");
            faults.push(fault.cure("write `version = 1` as the first line"));
        }
    }
}

fn postgres(
    name: &str,
    path: &str,
    raw: &RawPostgres,
    folder: &Path,
    faults: &mut Vec<Fault>,
    warnings: &mut Vec<Fault>,
) -> Option<PostgresConnection> {
    rules::postgres(path, raw, faults);
    rules::plain_secrets(path, raw, |path| warnings.push(plain_secret(path)));
    let address = match (&raw.url, &raw.user) {
        (Some(url), _) => Address::Url(secret(url, folder)),
        (None, Some(user)) => Address::Parts {
            host: raw.host.clone().unwrap_or_else(|| "localhost".to_owned()),
            port: raw.port.unwrap_or(PORT_DEFAULT),
            database: raw.database.clone().unwrap_or_else(|| user.clone()),
            user: user.clone(),
            password: raw.password.as_ref().map(|source| secret(source, folder)),
        },
        (None, None) => return None,
    };
    let in_folder = |path: &Option<String>| path.as_ref().map(|path| folder.join(path));
    Some(PostgresConnection {
        name: name.to_owned(),
        address,
        ssl_mode: raw.ssl_mode,
        ssl_root_cert: in_folder(&raw.ssl_root_cert),
        ssl_cert: in_folder(&raw.ssl_cert),
        ssl_key: in_folder(&raw.ssl_key),
        ssl_key_password: raw.ssl_key_password.as_ref().map(|source| secret(source, folder)),
        connect_timeout: raw.connect_timeout.map(|span| span.0),
        probe_after: raw.probe_after.map(|span| span.0),
    })
}

fn plain_secret(path: String) -> Fault {
    let fault = Fault::new(SECRET_IN_FILE, path, "the secret stands in the file itself");
    fault.cure("write { env = \"NAME\" } or { file = \"PATH\" } instead")
}

/// A path of the file, which is relative to it.
pub(super) fn in_folder(folder: &Path, path: &str) -> String {
    folder.join(path).to_string_lossy().into_owned()
}

/// A secret's file is relative to the task file, as every path in it.
pub(super) fn secret(source: &SecretSource, folder: &Path) -> SecretSource {
    match source {
        SecretSource::File(path) => SecretSource::File(in_folder(folder, path)),
        other => other.clone(),
    }
}

fn duckdb(
    name: &str,
    path: &str,
    raw: &RawDuckdb,
    folder: &Path,
    faults: &mut Vec<Fault>,
) -> Option<DuckdbConnection> {
    let Some(file) = raw.path.as_deref().filter(|file| !file.is_empty()) else {
        let fault = Fault::new(MISSING_KEY, format!("{path}.path"), "the connection has no path");
        faults.push(fault.cure("add `path = \"shop.duckdb\"`"));
        return None;
    };
    let memory_limit = raw.memory_limit.map_or(DUCKDB_MEMORY_DEFAULT, |bytes| bytes.0);
    if memory_limit < DUCKDB_MEMORY_MIN {
        let problem = "DuckDB needs at least 256MB";
        faults.push(Fault::new(INVALID_VALUE, format!("{path}.memory_limit"), problem));
    }
    Some(DuckdbConnection {
        name: name.to_owned(),
        path: folder.join(file),
        memory_limit,
        threads: raw.threads.unwrap_or(0),
    })
}

fn task(
    name: &str,
    path: &str,
    raw: &RawTask,
    target: Option<&RawConnection>,
    folder: &Path,
    faults: &mut Vec<Fault>,
) -> Option<TaskSpec> {
    let one = match target {
        Some(RawConnection::Databend(connection)) => {
            let name = raw.target.as_deref().unwrap_or_default();
            databend::one_database(path, raw, name, connection)
        }
        _ => one_schema(path, raw),
    };
    rules::task(path, raw, one.as_ref(), faults);
    let limits = raw.limits.as_ref();
    let spool = limits.and_then(|limits| limits.spool_directory.as_ref());
    let selection = selection(path, raw, one.map(|one| one.schema.to_owned()), faults);
    let settings = settings(path, raw, &selection, faults);
    Some(TaskSpec {
        id: TaskId::new(name),
        source: raw.source.clone()?,
        target: raw.target.clone()?,
        selection,
        replication: replication(name, path, raw.replication.as_ref(), faults),
        spool_directory: spool.map_or_else(std::env::temp_dir, |spool| folder.join(spool)),
        spool_bytes_max: limits.and_then(|limits| limits.spool).map_or(SPOOL_DEFAULT, |bytes| bytes.0),
        kafka: None,
        databend: None,
        settings,
    })
}

/// The schema of a DuckDB file that every table goes to.
fn one_schema<'a>(path: &str, raw: &'a RawTask) -> Option<OneSchema<'a>> {
    let schema = raw.duckdb.as_ref()?.schema.as_deref()?;
    let key = "duckdb.schema".to_owned();
    Some(OneSchema { schema, word: "schema", path: format!("{path}.{key}"), key })
}

fn selection(path: &str, raw: &RawTask, target_schema: Option<String>, faults: &mut Vec<Fault>) -> Selection {
    let include = match (&raw.include, raw.scenario) {
        (Some(include), _) => include.clone(),
        (None, Some(_)) => vec!["*.*".to_owned()],
        (None, None) => Vec::new(),
    };
    let tables = raw.tables.iter().enumerate().filter_map(|(index, table)| {
        let path = format!("{path}.tables.{index}");
        rules::table(&path, table, raw.sync_mode, faults);
        table_spec(&path, table, target_schema.as_deref(), faults)
    });
    let tables: Vec<TableSpec> = tables.collect();
    rules::tables(path, &tables, faults);
    Selection { include, exclude: raw.exclude.clone().unwrap_or_default(), tables, target_schema }
}

fn table_spec(
    path: &str,
    raw: &RawTable,
    target_schema: Option<&str>,
    faults: &mut Vec<Fault>,
) -> Option<TableSpec> {
    let mut parse = |key: &str, text: &str, schema: &str| {
        let name = parse_table_name(text, schema);
        if name.is_none() {
            let problem = format!("`{text}` is no table name; write table or schema.table");
            faults.push(Fault::new(INVALID_VALUE, format!("{path}.{key}"), problem));
        }
        name
    };
    let source = parse("source", raw.source.as_deref()?, "public")?;
    let schema = target_schema.unwrap_or(&source.schema);
    let target = match &raw.target {
        Some(target) => parse("target", target, schema)?,
        None => TableName::new(schema, source.name.as_ref()),
    };
    Some(TableSpec {
        source,
        target,
        primary_key: raw.primary_key.clone().unwrap_or_default(),
        snapshot_where: raw.snapshot_where.clone(),
        exclude_columns: raw.exclude_columns.clone().unwrap_or_default(),
        topic: raw.topic.clone(),
        column_types: raw
            .columns
            .iter()
            .filter_map(|(column, settings)| Some((column.clone(), column_type(settings)?)))
            .collect(),
        null_columns: raw
            .columns
            .iter()
            .filter(|(_, settings)| settings.out_of_range == Some(RawOutOfRange::Null))
            .map(|(column, _)| column.clone())
            .collect(),
    })
}

fn column_type(settings: &RawColumn) -> Option<String> {
    match settings.out_of_range {
        Some(RawOutOfRange::String) => Some("string".to_owned()),
        _ => settings.target_type.clone(),
    }
}

fn replication(task: &str, path: &str, raw: Option<&RawReplication>, faults: &mut Vec<Fault>) -> Replication {
    let default = default_name(task);
    let slot = raw.and_then(|raw| raw.slot.clone()).unwrap_or_else(|| default.clone());
    let publication = raw.and_then(|raw| raw.publication.clone()).unwrap_or(default);
    rules::slot(&format!("{path}.replication.slot"), &slot, faults);
    rules::publication(&format!("{path}.replication.publication"), &publication, faults);
    let manage = match raw.and_then(|raw| raw.manage) {
        Some(RawManage::Never) => Manage::Never,
        Some(RawManage::Create) | None => Manage::Create,
    };
    Replication { publication, slot, manage }
}

/// `pgferry_` and the task's name, in the letters that a slot's name may have.
pub(super) fn default_name(task: &str) -> String {
    let legal = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' };
    let mut name: String = "pgferry_".chars().chain(task.to_ascii_lowercase().chars().map(legal)).collect();
    name.truncate(NAME_BYTES_MAX);
    name
}

fn settings(path: &str, raw: &RawTask, selection: &Selection, faults: &mut Vec<Fault>) -> Settings {
    let limits = raw.limits.as_ref();
    let memory = limits.and_then(|limits| limits.memory).map_or(MEMORY_DEFAULT, |bytes| bytes.0);
    if memory < MEMORY_MIN {
        let problem = "a task needs at least 4 MiB of memory".to_owned();
        faults.push(Fault::new(INVALID_VALUE, format!("{path}.limits.memory"), problem));
    }
    let workers = rules::within(
        &format!("{path}.initial_copy_workers"),
        raw.initial_copy_workers,
        1,
        WORKERS_MAX,
        faults,
    );
    let rows = rules::within(&format!("{path}.batch_size"), raw.batch_size, 1, u64::from(u32::MAX), faults);
    let batch =
        limits.and_then(|limits| limits.batch).map_or(memory / 4, |bytes| bytes.0.clamp(1 << 16, memory));
    let by_table = raw.tables.iter().filter_map(|table| {
        let name = parse_table_name(table.source.as_deref()?, "public")?;
        selection.tables.iter().find(|known| known.source == name)?;
        Some((name, if_exists(table.if_target_exists?)))
    });
    let span =
        |written: Option<super::scalar::Span>, default: Duration| written.map_or(default, |span| span.0);
    Settings {
        sync_mode: match raw.sync_mode {
            Some(RawSyncMode::Snapshot) => SyncMode::Snapshot,
            Some(RawSyncMode::CdcOnly) => SyncMode::CdcOnly,
            Some(RawSyncMode::SnapshotCdc) | None => SyncMode::SnapshotCdc,
        },
        workers: workers.unwrap_or(WORKERS_DEFAULT) as usize,
        sync_interval: SYNC_INTERVAL_DEFAULT,
        batch_rows_max: rows.map_or(usize::MAX, |rows| rows as usize),
        batch_bytes_max: batch as usize,
        buffer_bytes_max: memory as usize,
        deletes: if raw.allow_delete.unwrap_or(true) { DeletePolicy::Carry } else { DeletePolicy::Ignore },
        if_target_exists: raw.if_target_exists.map_or(IfTargetExists::Error, if_exists),
        if_target_exists_by_table: by_table.collect(),
        until_caught_up: false,
        stop_on_table_error: raw.on_table_error == Some(RawOnTableError::PauseTask),
        retry_wait_max: span(limits.and_then(|limits| limits.retry_wait), RETRY_WAIT_DEFAULT),
        retry_budget: span(limits.and_then(|limits| limits.retry_for), RETRY_FOR_DEFAULT),
        stop_within: span(limits.and_then(|limits| limits.stop_within), STOP_WITHIN_DEFAULT),
    }
}

fn if_exists(raw: RawIfTargetExists) -> IfTargetExists {
    match raw {
        RawIfTargetExists::Error => IfTargetExists::Error,
        RawIfTargetExists::Append => IfTargetExists::Append,
        RawIfTargetExists::Truncate => IfTargetExists::Truncate,
        RawIfTargetExists::Replace => IfTargetExists::Replace,
    }
}
