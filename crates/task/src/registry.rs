//! THE list of source kinds and target kinds: the only place that names them all.
//!
//! A new kind is one arm here, its `Connection` variant in `spec/validated.rs`, its keys in `spec/raw.rs`.

use std::sync::Arc;

use pgferry_model::{Cure, Error, Result, TableName};
use pgferry_pipeline::error::worker_lost;
use pgferry_pipeline::{Source, Target};
use pgferry_source_postgres as source_postgres;
use pgferry_source_postgres::{PostgresSource, PostgresSourceConfig, SelectFrom, TableOptions};

use pgferry_target_databend::{DatabendConfig, DatabendTarget, Login, Misfit, Server, ServerParts};
use pgferry_target_duckdb::{DuckdbConfig, DuckdbTarget};
use pgferry_target_kafka::{KafkaConfig, KafkaTarget, RegistryConfig};

use crate::connect::{connection_config, reveal};
use crate::spec::databend::database_of;
use crate::spec::scalar::SecretSource;
use crate::spec::{
    CONFLICT, Connection, DatabendConnection, DatabendLogin, DatabendServer, DuckdbConnection,
    KafkaConnection, Manage, PostgresConnection, Spec, TaskSpec,
};

/// Kinds that a task can read from.
pub const SOURCE_KINDS: &[&str] = &["postgres"];
/// Kinds that a task can write to.
pub const TARGET_KINDS: &[&str] = &["duckdb", "kafka", "databend"];

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
        Some(Connection::Databend(connection)) => databend_target(spec, connection, task),
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

/// A client is made here, and connects by itself.
fn databend_target(spec: &Spec, connection: &DatabendConnection, task: &TaskSpec) -> Result<Arc<dyn Target>> {
    let config = databend_config(spec, connection, task)?;
    Ok(Arc::new(DatabendTarget::connect(config)?))
}

fn databend_config(spec: &Spec, connection: &DatabendConnection, task: &TaskSpec) -> Result<DatabendConfig> {
    let Some(settings) = &task.databend else {
        return Err(no_such("target", &task.target, spec.connections.get(&task.target)));
    };
    let mut config = DatabendConfig::new(databend_server(connection)?);
    config.warehouse.clone_from(&settings.warehouse);
    config.role.clone_from(&connection.role);
    config.database.clone_from(&task.selection.target_schema);
    config.staging.clone_from(&settings.staging);
    config.upload = connection.upload;
    config.mode = settings.mode;
    config.merge_interval = settings.merge_interval;
    config.loads_max = task.settings.workers;
    for table in &task.selection.tables {
        let place = |column: &String| (table.source.clone(), column.clone());
        for (column, target_type) in &table.column_types {
            config.columns.entry(place(column)).or_default().target_type = Some(target_type.clone());
        }
        for column in &table.null_columns {
            config.columns.entry(place(column)).or_default().misfit = Misfit::Null;
        }
    }
    if let (Server::Dsn(dsn), None) = (&config.server, &config.database) {
        one_database(dsn, connection, task)?;
    }
    Ok(config)
}

/// Every table goes to the database that the address names: a table that names another one would be passed over.
fn one_database(dsn: &str, connection: &DatabendConnection, task: &TaskSpec) -> Result<()> {
    let Some(database) = database_of(dsn) else { return Ok(()) };
    let elsewhere = |name: &TableName, source: &TableName| {
        name.schema != source.schema && name.schema.as_ref() != database
    };
    let Some(table) = task.selection.tables.iter().find(|table| elsewhere(&table.target, &table.source))
    else {
        return Ok(());
    };
    let problem = format!(
        "task {}: every table goes to database `{database}` (connections.{}.dsn), but {} is to go to {}",
        task.id, connection.name, table.source, table.target
    );
    Err(Error::task_broken(CONFLICT, problem)
        .with_cause("a database in the address is the one of every table")
        .with_cure(Cure::advice("leave the database out of `target`, or out of the address")))
}

fn databend_server(connection: &DatabendConnection) -> Result<Server> {
    let secret = |source: &SecretSource, key: &str| -> Result<String> {
        reveal(source, &format!("connections.{}.{key}", connection.name))
    };
    let (host, port, tls, root_cert, login) = match &connection.server {
        DatabendServer::Dsn(source) => return Ok(Server::Dsn(secret(source, "dsn")?)),
        DatabendServer::Parts { host, port, tls, root_cert, login } => (host, port, tls, root_cert, login),
    };
    let login = match login {
        DatabendLogin::Nobody => Login::Nobody,
        DatabendLogin::Password { user, password } => {
            let password = password.as_ref().map(|source| secret(source, "password")).transpose()?;
            Login::Password { user: user.clone(), password: password.unwrap_or_default() }
        }
        DatabendLogin::Token(source) => Login::Token(secret(source, "token")?),
        DatabendLogin::KeyPair { user, private_key, password_file } => Login::KeyPair {
            user: user.clone(),
            private_key: private_key.clone(),
            password_file: password_file.clone(),
        },
    };
    Ok(Server::Parts(ServerParts {
        host: host.clone(),
        port: *port,
        tls: *tls,
        root_cert: root_cert.clone(),
        login,
    }))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use pgferry_target_databend::{ColumnChoice, Mode, Upload};

    use super::*;
    use crate::spec::{Faults, read_text};

    const SOURCE: &str = "version = 1\n[connections.shop]\nkind = \"postgres\"\nuser = \"u\"\n";

    /// What the task `t` of a file in the folder `conf` would connect with.
    fn config(folder: &Path, rest: &str) -> std::result::Result<Result<DatabendConfig>, Faults> {
        let spec = read_text(&folder.join("shop.toml"), &format!("{SOURCE}{rest}"))?;
        let task = spec.task("t").unwrap();
        let Some(Connection::Databend(connection)) = spec.connections.get("lake") else { panic!("{spec:?}") };
        Ok(databend_config(&spec, connection, task))
    }

    #[test]
    fn a_databend_target_is_built_as_the_file_says() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("password"), "geheim\n").unwrap();
        let config = config(
            folder.path(),
            r#"[connections.lake]
kind = "databend"
host = "lake.internal"
port = 8000
ssl_root_cert = "ca.pem"
user = "ferry"
password = { file = "password" }
warehouse = "small"
role = "loader"
database = "shop"
upload = "direct"
[tasks.t]
source = "shop"
target = "lake"
sync_interval = "10s"
initial_copy_workers = 7
databend = { warehouse = "etl", database = "analytics", staging = "raw" }
[[tasks.t.tables]]
source = "orders"
columns.price = { type = "decimal(30,4)", out_of_range = "null" }
columns.born = { out_of_range = "string" }
columns.note = { out_of_range = "error" }
"#,
        );
        let config = config.unwrap().unwrap();
        let login = Login::Password { user: "ferry".into(), password: "geheim".into() };
        let root_cert = Some(folder.path().join("ca.pem"));
        let parts =
            ServerParts { host: "lake.internal".into(), port: Some(8000), tls: true, root_cert, login };
        assert!(config.server == Server::Parts(parts), "{config:?}");
        assert_eq!((config.warehouse.as_deref(), config.role.as_deref()), (Some("etl"), Some("loader")));
        assert_eq!((config.database.as_deref(), config.staging.as_str()), (Some("analytics"), "raw"));
        assert_eq!((config.upload, config.mode, config.loads_max), (Upload::Direct, Mode::Latest, 7));
        assert_eq!(config.merge_interval, Duration::from_secs(10));
        let orders = TableName::new("public", "orders");
        let choice = |column: &str| config.columns.get(&(orders.clone(), column.to_owned())).cloned();
        let price = ColumnChoice { target_type: Some("decimal(30,4)".into()), misfit: Misfit::Null };
        let born = ColumnChoice { target_type: Some("string".into()), misfit: Misfit::Error };
        assert_eq!((choice("price"), choice("born"), choice("note")), (Some(price), Some(born), None));
    }

    #[test]
    fn what_a_databend_target_is_not_told_has_a_default() {
        let rest = "[connections.lake]\nkind = \"databend\"\nhost = \"lake\"\nssl_mode = \"disable\"\n\
                    [tasks.t]\nsource = \"shop\"\ntarget = \"lake\"\ninclude = [\"*.*\"]\n";
        let config = config(Path::new("conf"), rest).unwrap().unwrap();
        let parts = ServerParts {
            host: "lake".into(),
            port: None,
            tls: false,
            root_cert: None,
            login: Login::Nobody,
        };
        let default = DatabendConfig::new(Server::Parts(parts));
        assert_eq!(format!("{config:?}"), format!("{default:?}"));
    }

    #[test]
    fn a_user_may_have_a_private_key_or_no_user_but_a_token() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "abc").unwrap();
        let login = |keys: &str| {
            let rest = format!(
                "[connections.lake]\nkind = \"databend\"\nhost = \"lake\"\n{keys}\n\
                 [tasks.t]\nsource = \"shop\"\ntarget = \"lake\"\ninclude = [\"*.*\"]\n"
            );
            match config(folder.path(), &rest).unwrap().unwrap().server {
                Server::Parts(parts) => parts.login,
                Server::Dsn(_) => panic!("{rest}"),
            }
        };
        let key_pair = |password_file: Option<PathBuf>| Login::KeyPair {
            user: "ferry".into(),
            private_key: folder.path().join("key.pem"),
            password_file,
        };
        let key = "user = \"ferry\"\nprivate_key = \"key.pem\"";
        assert!(login(key) == key_pair(None));
        let key = format!("{key}\nprivate_key_password_file = \"word\"");
        assert!(login(&key) == key_pair(Some(folder.path().join("word"))));
        assert!(login("token = { file = \"token\" }") == Login::Token("abc".into()));
        let nothing = Login::Password { user: "root".into(), password: String::new() };
        assert!(login("user = \"root\"") == nothing);
    }

    #[test]
    fn a_table_goes_to_no_other_database_than_the_address_names() {
        let rest = |database: &str, target: &str, settings: &str| {
            format!(
                "[connections.lake]\nkind = \"databend\"\ndsn = \"databend://root:@lake/{database}\"\n[tasks.t]\n\
                 source = \"shop\"\ntarget = \"lake\"\n{settings}\n[[tasks.t.tables]]\nsource = \"orders\"\n\
                 target = \"{target}\"\n"
            )
        };
        let code = |rest: &str| config(Path::new("conf"), rest).unwrap().err().map(|error| error.code());
        assert_eq!(code(&rest("shop", "orders", "")), None);
        assert_eq!(code(&rest("shop", "shop.orders", "")), None);
        assert_eq!(code(&rest("", "analytics.orders", "")), None);
        assert_eq!(code(&rest("shop", "analytics.orders", "")), Some(CONFLICT));
        let own = "databend = { database = \"analytics\" }";
        assert_eq!(code(&rest("shop", "analytics.orders", own)), None);
    }
}
