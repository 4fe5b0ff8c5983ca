//! What a task file means for Kafka: the connection's properties, and a task's settings with their defaults.

use std::collections::BTreeMap;
use std::path::Path;

use pgferry_target_kafka::{BinaryMode, DecimalMode, Format, Guarantee, PartitionPolicy, TimeMode};

use super::fault::{CONFLICT, Fault, INVALID_VALUE, MISSING_KEY};
use super::raw_kafka::{
    RawBinaryMode, RawDecimalMode, RawGuarantee, RawKafka, RawKafkaFormat, RawKafkaTask, RawPartitionPolicy,
    RawSecurityProtocol, RawTimeMode,
};
use super::rules;
use super::sasl;
use super::scalar::SecretSource;
use super::validated::in_folder;

const TOPIC_RULE_DEFAULT: &str = "#{source_db_name}.#{source_schema_name}.#{source_table_name}";
const PLACEHOLDERS: [&str; 3] = ["source_db_name", "source_schema_name", "source_table_name"];
const PARTITIONS_DEFAULT: u64 = 3;
const PARTITIONS_MAX: u64 = 10_000;
const TRANSACTIONAL_ID_PREFIX_DEFAULT: &str = "pgferry";
const STATE_TOPIC_DEFAULT: &str = "pgferry.state";

/// A Kafka cluster.
#[derive(Clone, Debug)]
pub struct KafkaConnection {
    /// Its name in the file.
    pub name: String,
    /// Properties of librdkafka that are no secrets, the user's last.
    pub properties: Vec<(String, String)>,
    /// Properties that are secrets: librdkafka's name, the key in the file, and where the secret is.
    pub secrets: Vec<(&'static str, &'static str, SecretSource)>,
}

/// A task's settings of its Kafka target.
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// The topic of a table.
    pub topic_rule: String,
    /// Which partition a record goes to.
    pub partition_policy: PartitionPolicy,
    /// Partitions of a topic that is made.
    pub partitions: i32,
    /// Copies of a topic that is made; `None`: the cluster's default.
    pub replication_factor: Option<i32>,
    /// How changes are delivered.
    pub guarantee: Guarantee,
    /// Begins the ids of the task's transactions.
    pub transactional_id_prefix: String,
    /// The compacted topic with what the cluster holds of tasks.
    pub state_topic: String,
    /// What records look like.
    pub format: Format,
    /// How decimals are written.
    pub decimals: DecimalMode,
    /// How dates and times are written.
    pub times: TimeMode,
    /// How bytes are written.
    pub binary: BinaryMode,
    /// Whether a delete is followed by a record without a value.
    pub tombstones: bool,
    /// Properties of librdkafka for this task.
    pub properties: Vec<(String, String)>,
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
    Some(KafkaConnection { name: name.to_owned(), properties: own, secrets })
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
    let sasl = raw.sasl.as_ref();
    for (key, source) in [
        ("sasl.password", sasl.and_then(|sasl| sasl.password.as_ref())),
        ("sasl.client_secret", sasl.and_then(|sasl| sasl.client_secret.as_ref())),
        ("ssl_key_password", raw.ssl_key_password.as_ref()),
    ] {
        if matches!(source, Some(SecretSource::Plain(_))) {
            each(format!("{path}.{key}"));
        }
    }
}

pub(super) fn settings(path: &str, raw: Option<&RawKafkaTask>, faults: &mut Vec<Fault>) -> KafkaSettings {
    let none = RawKafkaTask::default();
    let raw = raw.unwrap_or(&none);
    let at = |key: &str| format!("{path}.kafka.{key}");
    let topic_rule = raw.topic_name_rule.clone().unwrap_or_else(|| TOPIC_RULE_DEFAULT.to_owned());
    rule(&at("topic_name_rule"), &topic_rule, faults);
    let partitions =
        rules::within(&at("partitions_of_new_topic"), raw.partitions_of_new_topic, 1, PARTITIONS_MAX, faults);
    let copies = rules::within(&at("replication_factor"), raw.replication_factor, 1, 100, faults);
    for (key, name) in
        [("transactional_id_prefix", &raw.transactional_id_prefix), ("state_topic", &raw.state_topic)]
    {
        if name.as_ref().is_some_and(|name| name.trim().is_empty()) {
            faults.push(Fault::new(INVALID_VALUE, at(key), "the name is empty"));
        }
    }
    let format = match raw.format {
        Some(RawKafkaFormat::Json) => Format::Json,
        Some(RawKafkaFormat::DebeziumJson) | None => {
            Format::Debezium { schemas: raw.schemas_enable.unwrap_or(false) }
        }
    };
    if format == Format::Json && raw.schemas_enable == Some(true) {
        let fault = Fault::new(CONFLICT, at("schemas_enable"), "records of format json carry no schema");
        faults.push(fault.cure("remove it, or write `format = \"debezium-json\"`"));
    }
    KafkaSettings {
        topic_rule,
        partition_policy: match raw.partition_policy {
            Some(RawPartitionPolicy::First) => PartitionPolicy::First,
            Some(RawPartitionPolicy::TableHash) => PartitionPolicy::TableHash,
            Some(RawPartitionPolicy::KeyHash) | None => PartitionPolicy::KeyHash,
        },
        partitions: partitions.unwrap_or(PARTITIONS_DEFAULT) as i32,
        replication_factor: copies.map(|copies| copies as i32),
        guarantee: match raw.delivery_guarantee {
            Some(RawGuarantee::ExactlyOnce) => Guarantee::ExactlyOnce,
            Some(RawGuarantee::AtLeastOnce) | None => Guarantee::AtLeastOnce,
        },
        transactional_id_prefix: raw
            .transactional_id_prefix
            .clone()
            .unwrap_or_else(|| TRANSACTIONAL_ID_PREFIX_DEFAULT.to_owned()),
        state_topic: raw.state_topic.clone().unwrap_or_else(|| STATE_TOPIC_DEFAULT.to_owned()),
        format,
        decimals: match (raw.decimal_handling_mode, format) {
            (Some(RawDecimalMode::Precise), _) | (None, Format::Debezium { .. }) => DecimalMode::Precise,
            (Some(RawDecimalMode::String), _) | (None, Format::Json) => DecimalMode::String,
            (Some(RawDecimalMode::Double), _) => DecimalMode::Double,
        },
        times: match raw.time_precision_mode {
            Some(RawTimeMode::AdaptiveTimeMicroseconds) => TimeMode::AdaptiveTimeMicroseconds,
            Some(RawTimeMode::Connect) => TimeMode::Connect,
            Some(RawTimeMode::Adaptive) | None => TimeMode::Adaptive,
        },
        binary: match raw.binary_handling_mode {
            Some(RawBinaryMode::Base64) => BinaryMode::Base64,
            Some(RawBinaryMode::Base64UrlSafe) => BinaryMode::Base64UrlSafe,
            Some(RawBinaryMode::Hex) => BinaryMode::Hex,
            Some(RawBinaryMode::Bytes) | None => BinaryMode::Bytes,
        },
        tombstones: raw.tombstones_on_delete.unwrap_or(true),
        properties: properties(&raw.properties).collect(),
    }
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
