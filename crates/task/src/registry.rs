//! THE list of source kinds and target kinds: the only place that names them all.
//!
//! A new kind is one arm here, its `Connection` variant in `spec/validated.rs`, its keys in `spec/raw.rs`.

use std::sync::Arc;

use pgferry_model::{Cure, Error, Result};
use pgferry_pipeline::error::worker_lost;
use pgferry_pipeline::{Source, Target};
use pgferry_source_postgres as source_postgres;
use pgferry_source_postgres::{PostgresSource, PostgresSourceConfig, SelectFrom, TableOptions};

use pgferry_target_duckdb::{DuckdbConfig, DuckdbTarget};
use pgferry_target_kafka::{KafkaConfig, KafkaTarget, RegistryConfig};

use crate::connect::{connection_config, reveal};
use crate::spec::scalar::SecretSource;
use crate::spec::{
    CONFLICT, Connection, DuckdbConnection, KafkaConnection, Manage, PostgresConnection, Spec, TaskSpec,
};

/// Kinds that a task can read from.
pub const SOURCE_KINDS: &[&str] = &["postgres"];
/// Kinds that a task can write to.
pub const TARGET_KINDS: &[&str] = &["duckdb", "kafka"];

/// Builds a task's source. Nothing is connected yet; secrets are looked up.
pub fn source(spec: &Spec, task: &TaskSpec) -> Result<Arc<dyn Source>> {
    match spec.connections.get(&task.source) {
        Some(Connection::Postgres(connection)) => {
            Ok(Arc::new(PostgresSource::new(postgres_source(connection, task)?)))
        }
        other => Err(no_such("source", &task.source, other)),
    }
}

/// Builds a task's target and opens it.
pub async fn target(spec: &Spec, task: &TaskSpec) -> Result<Arc<dyn Target>> {
    match spec.connections.get(&task.target) {
        Some(Connection::Duckdb(connection)) => duckdb_target(connection, task).await,
        Some(Connection::Kafka(connection)) => kafka_target(spec, connection, task),
        other => Err(no_such("target", &task.target, other)),
    }
}

fn no_such(role: &str, name: &str, found: Option<&Connection>) -> Error {
    let problem = match found {
        Some(connection) => format!("connection `{name}` of kind {} cannot be a {role}", connection.kind()),
        None => format!("there is no connection `{name}`"),
    };
    Error::task_broken(CONFLICT, problem)
        .with_cause(format!(
            "sources are of kind {}, targets of kind {}",
            SOURCE_KINDS.join(", "),
            TARGET_KINDS.join(", ")
        ))
        .with_cure(Cure::advice(format!("name another connection as the task's {role}")))
}

fn postgres_source(connection: &PostgresConnection, task: &TaskSpec) -> Result<PostgresSourceConfig> {
    let tables = task.selection.tables.iter().map(|table| TableOptions {
        source: Some(table.source.clone()),
        target: Some(table.target.clone()),
        primary_key: table.primary_key.clone(),
        snapshot_where: table.snapshot_where.clone(),
        exclude_columns: table.exclude_columns.clone(),
    });
    Ok(PostgresSourceConfig {
        connection: connection_config(connection, task.id.as_str())?,
        task: task.id.to_string(),
        sync_mode: task.settings.sync_mode,
        include: task.selection.include.clone(),
        exclude: task.selection.exclude.clone(),
        tables: tables.collect(),
        replication: source_postgres::Replication {
            publication: task.replication.publication.clone(),
            slot: task.replication.slot.clone(),
            manage: match task.replication.manage {
                Manage::Never => source_postgres::Manage::Never,
                Manage::Create => source_postgres::Manage::Create,
            },
            from: SelectFrom::Tables,
        },
        workers: task.settings.workers,
        spool_directory: Some(task.spool_directory.clone()),
        spool_memory_bytes_max: task.settings.buffer_bytes_max / 2,
        spool_disk_bytes_max: task.spool_bytes_max,
    })
}

async fn duckdb_target(connection: &DuckdbConnection, task: &TaskSpec) -> Result<Arc<dyn Target>> {
    let mut config = DuckdbConfig::new(&connection.path);
    config.schema = task.selection.target_schema.clone();
    config.memory_limit = format!("{}B", connection.memory_limit);
    config.threads = usize::from(connection.threads);
    for table in &task.selection.tables {
        for (column, target_type) in &table.column_types {
            let place = (table.source.schema.to_string(), table.source.name.to_string(), column.clone());
            config.type_overrides.insert(place, target_type.clone());
        }
    }
    // Opening a file waits for the disk.
    let connecting = tokio::task::spawn_blocking(move || DuckdbTarget::connect(config));
    let target = connecting
        .await
        .map_err(|lost| worker_lost("opening the DuckDB file was cut off").with_origin(lost))??;
    Ok(Arc::new(target))
}

/// A client is made here, and connects by itself.
fn kafka_target(spec: &Spec, connection: &KafkaConnection, task: &TaskSpec) -> Result<Arc<dyn Target>> {
    let Some(settings) = &task.kafka else {
        return Err(no_such("target", &task.target, spec.connections.get(&task.target)));
    };
    let secret = |source: &SecretSource, key: &str| -> Result<String> {
        reveal(source, &format!("connections.{}.{key}", connection.name))
    };
    let mut properties = connection.properties.clone();
    for (property, key, source) in &connection.secrets {
        properties.push(((*property).to_owned(), secret(source, key)?));
    }
    properties.extend(settings.properties.iter().cloned());
    let schema_registry = match &connection.schema_registry {
        Some(registry) => Some(RegistryConfig {
            url: registry.url.clone(),
            user: registry.user.clone(),
            password: registry
                .password
                .as_ref()
                .map(|source| secret(source, "schema_registry.password"))
                .transpose()?,
            token: registry
                .token
                .as_ref()
                .map(|source| secret(source, "schema_registry.token"))
                .transpose()?,
            root_cert: registry.root_cert.clone(),
        }),
        None => None,
    };
    let source_database = match spec.source_of(task) {
        Some(source) => connection_config(source, task.id.as_str())?.database,
        None => String::new(),
    };
    let tables = &task.selection.tables;
    let as_text = tables.iter().map(|table| {
        let texts = table.column_types.iter().filter(|(_, kind)| kind.as_str() == "string");
        (table.source.clone(), texts.map(|(column, _)| column.clone()).collect())
    });
    let topics = tables.iter().filter_map(|table| Some((table.source.clone(), table.topic.clone()?)));
    Ok(Arc::new(KafkaTarget::connect(KafkaConfig {
        properties,
        topics: topics.collect(),
        source_database,
        schema_registry,
        loads_max: task.settings.workers,
        as_text: as_text.collect(),
        ..settings.clone()
    })?))
}
