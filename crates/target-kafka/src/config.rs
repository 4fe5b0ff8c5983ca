//! What a user says of a Kafka target.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use pgferry_model::TableName;

/// How changes are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Guarantee {
    /// An idempotent producer; the position is stored after the records are acknowledged. A crash between the two repeats records.
    #[default]
    AtLeastOnce,
    /// Records and position in one Kafka transaction.
    ExactlyOnce,
}

/// Which partition a record goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PartitionPolicy {
    /// The first partition: with one topic for all tables every change is in commit order.
    First,
    /// By the database's and the table's name: a table's changes are in commit order.
    TableHash,
    /// By the record's key, with the hash that Java clients use: a row's changes are in commit order. Without a key the first partition.
    #[default]
    KeyHash,
}

/// What records look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Debezium's envelope as JSON.
    Debezium {
        /// Each record carries its schema, as Kafka Connect's `JsonConverter` writes it with `schemas.enable`.
        schemas: bool,
    },
    /// Debezium's envelope as Avro, its schemas in a registry.
    Avro,
    /// The row as a JSON object; what happened to it is in headers.
    Json,
}

/// A schema registry.
#[derive(Clone, Default)]
pub struct RegistryConfig {
    /// Where it is: `http://…` or `https://…`.
    pub url: String,
    /// Who asks, with the password.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// A token instead of a user.
    pub token: Option<String>,
    /// File with the certificates of the authorities to trust, PEM; `None`: the system's.
    pub root_cert: Option<PathBuf>,
}

impl std::fmt::Debug for RegistryConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RegistryConfig").field("url", &self.url).finish_non_exhaustive()
    }
}

/// How decimals are written; named as Debezium names them (`decimal.handling.mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecimalMode {
    /// The digits as bytes, with a scale: exact.
    Precise,
    /// As text: exact.
    String,
    /// As a double: digits beyond the 15th may be lost.
    Double,
}

/// How dates and times are written; named as Debezium names them (`time.precision.mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TimeMode {
    /// Milliseconds where the column's type holds no more than these, else microseconds: exact.
    #[default]
    Adaptive,
    /// As `Adaptive`, but microseconds for every `time`.
    AdaptiveTimeMicroseconds,
    /// Kafka Connect's own types, in milliseconds: what is finer is lost.
    Connect,
}

/// How bytes are written; named as Debezium names them (`binary.handling.mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BinaryMode {
    /// Bytes; in JSON as base64.
    #[default]
    Bytes,
    /// A text in base64.
    Base64,
    /// A text in base64 with the alphabet for URLs.
    Base64UrlSafe,
    /// A text of hexadecimal digits.
    Hex,
}

/// A Kafka cluster as a target of one task.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    /// Properties of librdkafka, in the order in which they are set; later ones win.
    pub properties: Vec<(String, String)>,
    /// The topic of a table, with `#{source_db_name}`, `#{source_schema_name}` and `#{source_table_name}`.
    pub topic_rule: String,
    /// Topics that the user sets for single tables.
    pub topics: HashMap<TableName, String>,
    /// The source's database.
    pub source_database: String,
    /// Which partition a record goes to.
    pub partition_policy: PartitionPolicy,
    /// Partitions of a topic that is made.
    pub partitions: i32,
    /// Copies of a topic that is made; `None`: the cluster's default.
    pub replication_factor: Option<i32>,
    /// How changes are delivered.
    pub guarantee: Guarantee,
    /// Begins the ids of this task's transactions.
    pub transactional_id_prefix: String,
    /// The compacted topic with what the cluster holds of tasks.
    pub state_topic: String,
    /// Where beginning and end of each transaction are told.
    pub transaction_topic: Option<String>,
    /// Where the columns of tables are told.
    pub ddl_topic: Option<String>,
    /// Where signs of life are written, and how often.
    pub heartbeat: Option<(String, Duration)>,
    /// Where records go that are larger than their topic takes; `None`: their table is set aside.
    pub dead_letter_topic: Option<String>,
    /// What records look like.
    pub format: Format,
    /// Where schemas are registered, for formats that need it.
    pub schema_registry: Option<RegistryConfig>,
    /// How decimals are written.
    pub decimals: DecimalMode,
    /// How dates and times are written.
    pub times: TimeMode,
    /// How bytes are written.
    pub binary: BinaryMode,
    /// A delete is followed by a record without a value, so that compaction removes the key.
    pub tombstones: bool,
    /// Chunks that are loaded at once.
    pub loads_max: usize,
    /// Columns that the user wants as the source's own text, by table.
    pub as_text: HashMap<TableName, Vec<String>>,
}

impl KafkaConfig {
    /// A cluster with the defaults.
    pub fn new(bootstrap_servers: impl Into<String>) -> Self {
        KafkaConfig {
            properties: vec![("bootstrap.servers".to_owned(), bootstrap_servers.into())],
            topic_rule: "#{source_db_name}.#{source_schema_name}.#{source_table_name}".to_owned(),
            topics: HashMap::new(),
            source_database: String::new(),
            partition_policy: PartitionPolicy::default(),
            partitions: 3,
            replication_factor: None,
            guarantee: Guarantee::default(),
            transactional_id_prefix: "pgferry".to_owned(),
            state_topic: "pgferry.state".to_owned(),
            transaction_topic: None,
            ddl_topic: None,
            heartbeat: None,
            dead_letter_topic: None,
            format: Format::Debezium { schemas: false },
            schema_registry: None,
            decimals: DecimalMode::Precise,
            times: TimeMode::default(),
            binary: BinaryMode::default(),
            tombstones: true,
            loads_max: 4,
            as_text: HashMap::new(),
        }
    }
}
