//! What a task file says of Kafka, as it is written: the connection, and a task's own settings.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::scalar::{SecretSource, Span};

/// A Kafka cluster.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawKafka {
    /// Brokers to ask first, as `host:port`. Required.
    pub bootstrap_servers: Option<Vec<String>>,
    /// How the connection is protected: `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`. Default: `plaintext`.
    pub security_protocol: Option<RawSecurityProtocol>,
    /// Who the connection belongs to, with `sasl_plaintext` and `sasl_ssl`.
    pub sasl: Option<RawSasl>,
    /// File with the certificates of the authorities to trust, PEM. Default: the system's. Relative to the task file.
    pub ssl_root_cert: Option<String>,
    /// File with the client's certificate, PEM. Default: none. Relative to the task file.
    pub ssl_cert: Option<String>,
    /// File with the client's key, PEM. Default: none. Relative to the task file.
    pub ssl_key: Option<String>,
    /// Password of the client's key. Default: none.
    pub ssl_key_password: Option<SecretSource>,
    /// The schema registry, for records of format `avro`. Default: none.
    pub schema_registry: Option<RawSchemaRegistry>,
    /// Properties of librdkafka, by name; a leading `properties.` is taken off. Default: none.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

/// A schema registry: Confluent's, or one with the same interface.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSchemaRegistry {
    /// Where it is: `http://...` or `https://...`. Required.
    pub url: Option<String>,
    /// User. Default: none.
    pub user: Option<String>,
    /// The user's password. Default: none.
    pub password: Option<SecretSource>,
    /// A token instead of a user. Default: none.
    pub token: Option<SecretSource>,
    /// File with the certificates of the authorities to trust, PEM. Default: the system's. Relative to the task file.
    pub ssl_root_cert: Option<String>,
}

/// How a connection to Kafka is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawSecurityProtocol {
    /// Neither encrypted nor authenticated.
    Plaintext,
    /// Encrypted.
    Ssl,
    /// Authenticated, not encrypted.
    SaslPlaintext,
    /// Encrypted and authenticated.
    SaslSsl,
}

impl RawSecurityProtocol {
    /// The word that librdkafka has for it.
    pub fn word(self) -> &'static str {
        match self {
            RawSecurityProtocol::Plaintext => "plaintext",
            RawSecurityProtocol::Ssl => "ssl",
            RawSecurityProtocol::SaslPlaintext => "sasl_plaintext",
            RawSecurityProtocol::SaslSsl => "sasl_ssl",
        }
    }

    /// Whether a user is wanted.
    pub fn has_sasl(self) -> bool {
        matches!(self, RawSecurityProtocol::SaslPlaintext | RawSecurityProtocol::SaslSsl)
    }

    /// Whether it is encrypted.
    pub fn has_tls(self) -> bool {
        matches!(self, RawSecurityProtocol::Ssl | RawSecurityProtocol::SaslSsl)
    }
}

/// Who a connection belongs to.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSasl {
    /// `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`, `OAUTHBEARER` or `GSSAPI` (Kerberos; in builds with the feature `gssapi`).
    /// Default: `SCRAM-SHA-512`.
    pub mechanism: Option<RawSaslMechanism>,
    /// User, with `PLAIN` and `SCRAM-SHA-*`. Required there.
    pub user: Option<String>,
    /// Password, with `PLAIN` and `SCRAM-SHA-*`. Required there.
    pub password: Option<SecretSource>,
    /// URL that tokens are had from, with `OAUTHBEARER` (grant type `client_credentials`). Required there.
    pub token_endpoint: Option<String>,
    /// The client's name at the token endpoint, with `OAUTHBEARER`. Required there.
    pub client_id: Option<String>,
    /// The client's secret, with `OAUTHBEARER`. Required there.
    pub client_secret: Option<SecretSource>,
    /// What the token is asked for, with `OAUTHBEARER`. Default: the endpoint's.
    pub scope: Option<String>,
    /// The client's principal, with `GSSAPI`. Required there.
    pub principal: Option<String>,
    /// File with the principal's key, with `GSSAPI`. Required there. Relative to the task file.
    pub keytab: Option<String>,
    /// The brokers' principal before the host, with `GSSAPI`. Default: `kafka`.
    pub service_name: Option<String>,
}

/// How a user is authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RawSaslMechanism {
    /// User and password as they are.
    #[serde(rename = "PLAIN")]
    Plain,
    /// Salted challenge and response.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// Salted challenge and response.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// A token of an OpenID Connect provider.
    #[serde(rename = "OAUTHBEARER")]
    OAuthBearer,
    /// A Kerberos ticket.
    #[serde(rename = "GSSAPI")]
    Gssapi,
}

impl RawSaslMechanism {
    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            RawSaslMechanism::Plain => "PLAIN",
            RawSaslMechanism::ScramSha256 => "SCRAM-SHA-256",
            RawSaslMechanism::ScramSha512 => "SCRAM-SHA-512",
            RawSaslMechanism::OAuthBearer => "OAUTHBEARER",
            RawSaslMechanism::Gssapi => "GSSAPI",
        }
    }
}

/// Settings of a Kafka target.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawKafkaTask {
    /// The topic of a table, with `#{source_db_name}`, `#{source_schema_name}` and `#{source_table_name}`; without the last one tables
    /// share topics. Characters that a topic cannot have become `_`. Default: `#{source_db_name}.#{source_schema_name}.#{source_table_name}`.
    pub topic_name_rule: Option<String>,
    /// Which partition a record goes to: `partition_0`, `table_hash` (database and table), or `primary_key_hash` (the hash of Java
    /// clients; without a key the first partition). Default: `primary_key_hash`.
    pub partition_policy: Option<RawPartitionPolicy>,
    /// Partitions of a topic that is made, 1 to 10000. Default: `3`.
    pub partitions_of_new_topic: Option<u64>,
    /// Copies of a topic that is made. Default: the cluster's.
    pub replication_factor: Option<u64>,
    /// `at-least-once` (records may come twice after a crash) or `exactly-once` (for consumers with `isolation.level=read_committed`).
    /// Default: `at-least-once`.
    pub delivery_guarantee: Option<RawGuarantee>,
    /// Begins the ids of the task's transactions; the task's name and a number follow. Default: `pgferry`.
    pub transactional_id_prefix: Option<String>,
    /// The compacted topic with positions and states of tasks; made when it is not there. Default: `pgferry.state`.
    pub state_topic: Option<String>,
    /// What records look like: `debezium-json` (Debezium's envelope), `avro` (the same as Avro, with the connection's schema registry)
    /// or `json` (the row; what happened is in headers). Default: `debezium-json`.
    pub format: Option<RawKafkaFormat>,
    /// Whether each record of `debezium-json` carries its schema, as Kafka Connect's `schemas.enable`. Default: `false`.
    pub schemas_enable: Option<bool>,
    /// Decimals: `precise` (bytes and a scale, exact), `string` (exact) or `double` (rounded). Default: `precise`, with `json` `string`.
    pub decimal_handling_mode: Option<RawDecimalMode>,
    /// Dates and times: `adaptive` (milliseconds or microseconds by the column's precision), `adaptive_time_microseconds`, or `connect`
    /// (milliseconds, cut off). Default: `adaptive`.
    pub time_precision_mode: Option<RawTimeMode>,
    /// Bytes: `bytes`, `base64`, `base64-url-safe` or `hex`. Default: `bytes`.
    pub binary_handling_mode: Option<RawBinaryMode>,
    /// Whether a delete is followed by a record without a value. Default: `true`.
    pub tombstones_on_delete: Option<bool>,
    /// A topic in which beginning and end of each transaction are told; records then say their place in it (`transaction`). Made when
    /// it is not there, with one partition, as the next three are. Default: none.
    pub transaction_topic: Option<String>,
    /// A topic in which a table's columns are told, when they are first written and when they change. Default: none.
    pub ddl_topic: Option<String>,
    /// A topic for signs of life. Default: none.
    pub heartbeat_topic: Option<String>,
    /// How often a sign of life is written. Default: `10s`.
    pub heartbeat_interval: Option<Span>,
    /// A topic for records that are larger than their own takes, before compression. Default: none, such a table is set aside.
    pub dead_letter_topic: Option<String>,
    /// Properties of librdkafka for this task, by name; a leading `properties.` is taken off. They win over the connection's.
    /// Default: none.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

/// Which partition a record goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RawPartitionPolicy {
    /// The first.
    #[serde(rename = "partition_0")]
    First,
    /// By the database's and the table's name.
    #[serde(rename = "table_hash")]
    TableHash,
    /// By the key.
    #[serde(rename = "primary_key_hash")]
    KeyHash,
}

/// How changes are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawGuarantee {
    /// Records may come twice after a crash.
    AtLeastOnce,
    /// Records and position in one Kafka transaction.
    ExactlyOnce,
}

/// What records look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawKafkaFormat {
    /// Debezium's envelope.
    DebeziumJson,
    /// Debezium's envelope as Avro.
    Avro,
    /// The row.
    Json,
}

/// How decimals are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawDecimalMode {
    /// Bytes and a scale.
    Precise,
    /// Text.
    String,
    /// A double.
    Double,
}

/// How dates and times are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawTimeMode {
    /// By the column's precision.
    Adaptive,
    /// As `adaptive`, but microseconds for every `time`.
    AdaptiveTimeMicroseconds,
    /// Milliseconds.
    Connect,
}

/// How bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawBinaryMode {
    /// Bytes.
    Bytes,
    /// Base64.
    Base64,
    /// Base64 with the alphabet for URLs.
    Base64UrlSafe,
    /// Hexadecimal digits.
    Hex,
}
