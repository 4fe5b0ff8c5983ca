//! What a task file means for Kafka: the connection's properties, and a task's settings with their defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgferry_target_kafka::{
    BinaryMode, DecimalMode, Format, Guarantee, KafkaConfig, PartitionPolicy, TimeMode,
};

use super::fault::{CONFLICT, Fault, INVALID_VALUE, MISSING_KEY};
use super::raw_kafka::{
    RawBinaryMode, RawDecimalMode, RawGuarantee, RawKafka, RawKafkaFormat, RawKafkaTask, RawPartitionPolicy,
    RawSchemaRegistry, RawSecurityProtocol, RawTimeMode,
};
use super::rules;
use super::sasl;
use super::scalar::SecretSource;
use super::validated::in_folder;

const PLACEHOLDERS: [&str; 3] = ["source_db_name", "source_schema_name", "source_table_name"];
const PARTITIONS_MAX: u64 = 10_000;
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(10);
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);

/// A Kafka cluster.
#[derive(Clone, Debug)]
pub struct KafkaConnection {
    /// Its name in the file.
    pub name: String,
    /// Properties of librdkafka that are no secrets, the user's last.
    pub properties: Vec<(String, String)>,
    /// Properties that are secrets: librdkafka's name, the key in the file, and where the secret is.
    pub secrets: Vec<(&'static str, &'static str, SecretSource)>,
    /// Its schema registry.
    pub schema_registry: Option<RegistryConnection>,
}

/// A schema registry.
#[derive(Clone, Debug)]
pub struct RegistryConnection {
    /// Where it is.
    pub url: String,
    /// Who asks.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<SecretSource>,
    /// A token instead of a user.
    pub token: Option<SecretSource>,
    /// File with the certificates of the authorities to trust.
    pub root_cert: Option<PathBuf>,
}

/// Names without the prefix that other tools want.
fn properties(raw: &BTreeMap<String, String>) -> impl Iterator<Item = (String, String)> {
    raw.iter()
        .map(|(name, value)| (name.strip_prefix("properties.").unwrap_or(name).to_owned(), value.clone()))
}

pub(super) fn connection(
    name: &str,
    path: &str,
    raw: &RawKafka,
    folder: &Path,
    faults: &mut Vec<Fault>,
) -> Option<KafkaConnection> {
    let servers = raw.bootstrap_servers.as_deref().unwrap_or_default();
    if servers.is_empty() {
        let fault = Fault::new(
            MISSING_KEY,
            format!("{path}.bootstrap_servers"),
            "the connection names no broker to ask first",
        );
        faults.push(fault.cure("add `bootstrap_servers = [\"host:9092\"]`"));
        return None;
    }
    let protocol = raw.security_protocol.unwrap_or(RawSecurityProtocol::Plaintext);
    let mut own = vec![
        ("bootstrap.servers".to_owned(), servers.join(",")),
        ("security.protocol".to_owned(), protocol.word().to_owned()),
    ];
    let mut secrets = Vec::new();
    sasl::read(path, raw, protocol, folder, &mut own, &mut secrets, faults);
    tls(path, raw, protocol, folder, &mut own, &mut secrets, faults);
    own.extend(properties(&raw.properties));
    let schema_registry = raw.schema_registry.as_ref().and_then(|raw| registry(path, raw, folder, faults));
    Some(KafkaConnection { name: name.to_owned(), properties: own, secrets, schema_registry })
}

fn tls(
    path: &str,
    raw: &RawKafka,
    protocol: RawSecurityProtocol,
    folder: &Path,
    own: &mut Vec<(String, String)>,
    secrets: &mut Vec<(&'static str, &'static str, SecretSource)>,
    faults: &mut Vec<Fault>,
) {
    let files = [
        ("ssl_root_cert", &raw.ssl_root_cert, "ssl.ca.location"),
        ("ssl_cert", &raw.ssl_cert, "ssl.certificate.location"),
        ("ssl_key", &raw.ssl_key, "ssl.key.location"),
    ];
    for (key, file, property) in files {
        let Some(file) = file else { continue };
        if !protocol.has_tls() {
            let problem = format!("`{key}` needs `security_protocol = \"ssl\"` or `\"sasl_ssl\"`");
            faults.push(Fault::new(CONFLICT, format!("{path}.{key}"), problem));
        }
        own.push((property.to_owned(), in_folder(folder, file)));
    }
    for (there, key, other_there, other) in [
        (raw.ssl_cert.is_some(), "ssl_cert", raw.ssl_key.is_some(), "ssl_key"),
        (raw.ssl_key.is_some(), "ssl_key", raw.ssl_cert.is_some(), "ssl_cert"),
    ] {
        if there && !other_there {
            faults.push(Fault::new(CONFLICT, format!("{path}.{key}"), format!("`{key}` needs `{other}`")));
        }
    }
    let password = raw.ssl_key_password.iter();
    secrets
        .extend(password.map(|source| {
            ("ssl.key.password", "ssl_key_password", super::validated::secret(source, folder))
        }));
}

/// Secrets that stand in the file itself.
pub(super) fn plain_secrets(path: &str, raw: &RawKafka, mut each: impl FnMut(String)) {
    let (sasl, registry) = (raw.sasl.as_ref(), raw.schema_registry.as_ref());
    for (key, source) in [
        ("sasl.password", sasl.and_then(|sasl| sasl.password.as_ref())),
        ("sasl.client_secret", sasl.and_then(|sasl| sasl.client_secret.as_ref())),
        ("ssl_key_password", raw.ssl_key_password.as_ref()),
        ("schema_registry.password", registry.and_then(|registry| registry.password.as_ref())),
        ("schema_registry.token", registry.and_then(|registry| registry.token.as_ref())),
    ] {
        if matches!(source, Some(SecretSource::Plain(_))) {
            each(format!("{path}.{key}"));
        }
    }
}

/// What a task says of its Kafka target: without the connection, and what its tables say.
pub(super) fn settings(
    path: &str,
    raw: Option<&RawKafkaTask>,
    connection: &RawKafka,
    faults: &mut Vec<Fault>,
) -> KafkaConfig {
    let none = RawKafkaTask::default();
    let raw = raw.unwrap_or(&none);
    let at = |key: &str| format!("{path}.kafka.{key}");
    let mut config = KafkaConfig::new("");
    config.properties = properties(&raw.properties).collect();
    if let Some(topic_rule) = &raw.topic_name_rule {
        rule(&at("topic_name_rule"), topic_rule, faults);
        config.topic_rule.clone_from(topic_rule);
    }
    let partitions =
        rules::within(&at("partitions_of_new_topic"), raw.partitions_of_new_topic, 1, PARTITIONS_MAX, faults);
    config.partitions = partitions.map_or(config.partitions, |partitions| partitions as i32);
    let copies = rules::within(&at("replication_factor"), raw.replication_factor, 1, 100, faults);
    config.replication_factor = copies.map(|copies| copies as i32);
    config.partition_policy = match raw.partition_policy {
        Some(RawPartitionPolicy::First) => PartitionPolicy::First,
        Some(RawPartitionPolicy::TableHash) => PartitionPolicy::TableHash,
        Some(RawPartitionPolicy::KeyHash) | None => PartitionPolicy::KeyHash,
    };
    config.guarantee = match raw.delivery_guarantee {
        Some(RawGuarantee::ExactlyOnce) => Guarantee::ExactlyOnce,
        Some(RawGuarantee::AtLeastOnce) | None => Guarantee::AtLeastOnce,
    };
    topics(&at, raw, &mut config, faults);
    form(&at, raw, connection, &mut config, faults);
    config
}

/// Names of topics and ids.
fn topics(
    at: &dyn Fn(&str) -> String,
    raw: &RawKafkaTask,
    config: &mut KafkaConfig,
    faults: &mut Vec<Fault>,
) {
    for (key, name) in [
        ("transactional_id_prefix", &raw.transactional_id_prefix),
        ("state_topic", &raw.state_topic),
        ("transaction_topic", &raw.transaction_topic),
        ("ddl_topic", &raw.ddl_topic),
        ("heartbeat_topic", &raw.heartbeat_topic),
        ("dead_letter_topic", &raw.dead_letter_topic),
    ] {
        let Some(name) = name else { continue };
        if name.trim().is_empty() {
            faults.push(Fault::new(INVALID_VALUE, at(key), "the name is empty"));
        } else if key.ends_with("_topic") && !is_topic(name) {
            let fault = Fault::new(INVALID_VALUE, at(key), "a topic cannot have this name");
            faults.push(fault.cure("use letters, digits, `.`, `_` and `-`, 249 of them at most"));
        }
    }
    for (name, place) in [
        (&raw.transactional_id_prefix, &mut config.transactional_id_prefix),
        (&raw.state_topic, &mut config.state_topic),
    ] {
        place.clone_from(name.as_ref().unwrap_or(&place.clone()));
    }
    config.transaction_topic.clone_from(&raw.transaction_topic);
    config.ddl_topic.clone_from(&raw.ddl_topic);
    config.dead_letter_topic.clone_from(&raw.dead_letter_topic);
    let interval = raw.heartbeat_interval.as_ref().map_or(HEARTBEAT_DEFAULT, |span| span.0);
    if interval < HEARTBEAT_MIN {
        faults.push(Fault::new(INVALID_VALUE, at("heartbeat_interval"), "the shortest interval is 100ms"));
    }
    config.heartbeat = raw.heartbeat_topic.clone().map(|topic| (topic, interval));
    if raw.heartbeat_interval.is_some() && raw.heartbeat_topic.is_none() {
        let fault =
            Fault::new(CONFLICT, at("heartbeat_interval"), "`heartbeat_interval` needs `heartbeat_topic`");
        faults.push(fault.cure("add `heartbeat_topic = \"pgferry.heartbeat\"`, or remove it"));
    }
}

/// As brokers check it (Apache Kafka source, `Topic.validate`).
fn is_topic(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.len() <= 249 && name.chars().all(legal) && !matches!(name, "." | "..")
}

/// What records look like.
fn form(
    at: &dyn Fn(&str) -> String,
    raw: &RawKafkaTask,
    connection: &RawKafka,
    config: &mut KafkaConfig,
    faults: &mut Vec<Fault>,
) {
    config.format = match raw.format {
        Some(RawKafkaFormat::Json) => Format::Json,
        Some(RawKafkaFormat::Avro) => Format::Avro,
        Some(RawKafkaFormat::DebeziumJson) | None => {
            Format::Debezium { schemas: raw.schemas_enable.unwrap_or(false) }
        }
    };
    if !matches!(config.format, Format::Debezium { .. }) && raw.schemas_enable == Some(true) {
        let problem = "`schemas_enable` belongs to format debezium-json";
        let fault = Fault::new(CONFLICT, at("schemas_enable"), problem);
        faults.push(fault.cure("remove it, or write `format = \"debezium-json\"`"));
    }
    if config.format == Format::Avro && connection.schema_registry.is_none() {
        let fault = Fault::new(MISSING_KEY, at("format"), "format avro needs a schema registry");
        faults
            .push(fault.cure(
                "add `schema_registry = { url = \"https://registry.example.com\" }` to the connection",
            ));
    }
    config.decimals = match (raw.decimal_handling_mode, config.format) {
        (None, Format::Json) | (Some(RawDecimalMode::String), _) => DecimalMode::String,
        (None | Some(RawDecimalMode::Precise), _) => DecimalMode::Precise,
        (Some(RawDecimalMode::Double), _) => DecimalMode::Double,
    };
    config.times = match raw.time_precision_mode {
        Some(RawTimeMode::AdaptiveTimeMicroseconds) => TimeMode::AdaptiveTimeMicroseconds,
        Some(RawTimeMode::Connect) => TimeMode::Connect,
        Some(RawTimeMode::Adaptive) | None => TimeMode::Adaptive,
    };
    config.binary = match raw.binary_handling_mode {
        Some(RawBinaryMode::Base64) => BinaryMode::Base64,
        Some(RawBinaryMode::Base64UrlSafe) => BinaryMode::Base64UrlSafe,
        Some(RawBinaryMode::Hex) => BinaryMode::Hex,
        Some(RawBinaryMode::Bytes) | None => BinaryMode::Bytes,
    };
    config.tombstones = raw.tombstones_on_delete.unwrap_or(true);
}

/// The schema registry of a connection.
fn registry(
    path: &str,
    raw: &RawSchemaRegistry,
    folder: &Path,
    faults: &mut Vec<Fault>,
) -> Option<RegistryConnection> {
    let at = |key: &str| format!("{path}.schema_registry.{key}");
    let Some(url) = raw.url.clone().filter(|url| url.starts_with("http://") || url.starts_with("https://"))
    else {
        let (code, problem) = match raw.url {
            None => (MISSING_KEY, "the schema registry has no url"),
            Some(_) => (INVALID_VALUE, "the url begins neither with http:// nor with https://"),
        };
        let fault = Fault::new(code, at("url"), problem);
        faults.push(fault.cure("write `url = \"https://registry.example.com\"`"));
        return None;
    };
    if raw.token.is_some() && (raw.user.is_some() || raw.password.is_some()) {
        faults.push(Fault::new(CONFLICT, at("token"), "`token` stands instead of `user` and `password`"));
    }
    if raw.password.is_some() && raw.user.is_none() {
        faults.push(Fault::new(MISSING_KEY, at("user"), "`password` needs `user`"));
    }
    let secret = |source: &Option<SecretSource>| source.as_ref().map(|s| super::validated::secret(s, folder));
    Some(RegistryConnection {
        url,
        user: raw.user.clone(),
        password: secret(&raw.password),
        token: secret(&raw.token),
        root_cert: raw.ssl_root_cert.as_ref().map(|file| folder.join(file)),
    })
}

/// Every `#{...}` of a topic rule is one that is known.
fn rule(path: &str, rule: &str, faults: &mut Vec<Fault>) {
    if rule.trim().is_empty() {
        faults.push(Fault::new(INVALID_VALUE, path, "the rule is empty"));
    }
    for part in rule.split("#{").skip(1) {
        let name = part.split_once('}').map_or(part, |(name, _)| name);
        if !PLACEHOLDERS.contains(&name) || !part.contains('}') {
            let fault =
                Fault::new(INVALID_VALUE, path, format!("`#{{{name}}}` is no part of a topic's name"));
            faults.push(fault.cure(format!("the parts are #{{{}}}", PLACEHOLDERS.join("}, #{"))));
        }
    }
}
