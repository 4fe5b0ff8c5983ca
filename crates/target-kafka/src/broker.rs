//! The way to the brokers: clients with pgferry's settings below the user's, and what they say of their connections.
//!
//! Limit: a connection waits 10 s at most, a request to the cluster 30 s; what takes longer is an error of class `Transient`, which the
//! engine retries.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pgferry_model::{Result, TableName};
use pgferry_pipeline::error::worker_lost;
use rdkafka::admin::{
    AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::config::KafkaConfig;
use crate::error::{PROPERTY, by_code, code_of, is_transient, refused, topic_gone};

/// The longest wait for an answer of the cluster.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The longest wait for a connection and the first answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long librdkafka tries to deliver one record.
const DELIVER_WITHIN_MS: &str = "60000";
/// How long a transaction may be open; the brokers' own limit by default (`transaction.max.timeout.ms`).
const TRANSACTION_WITHIN_MS: &str = "900000";
/// Records that wait in one producer, in kB and in number: the engine's own batches bound the rest.
const QUEUE_KBYTES: &str = "16384";
const QUEUE_RECORDS: &str = "500000";

/// Events that are taken to learn why something failed; one call takes one.
const EVENTS_TAKEN: u32 = 64;

/// Properties that delivery rests on; a user cannot change them.
const RESERVED: &[&str] = &[
    "acks",
    "delivery.report.only.error",
    "enable.auto.commit",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "isolation.level",
    "request.required.acks",
    "transactional.id",
];

/// What a client says when it is not asked.
#[derive(Clone, Default)]
pub(crate) struct Told {
    connection: Arc<Mutex<Option<String>>>,
    /// The first record that was not delivered: the number that the sender gave it, and why.
    undelivered: Arc<Mutex<Option<(usize, RDKafkaErrorCode)>>>,
}

impl Told {
    pub(crate) fn connection(&self) -> Option<String> {
        self.connection.lock().clone()
    }

    pub(crate) fn take_undelivered(&self) -> Option<(usize, RDKafkaErrorCode)> {
        self.undelivered.lock().take()
    }
}

impl ClientContext for Told {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
        // Not every client takes error events; all of them log why a connection failed, after the thread's and the broker's name.
        if facility == "FAIL" {
            let reason = message.rsplit_once("]: ").map_or(message, |(_, reason)| reason);
            *self.connection.lock() = Some(reason.to_owned());
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
        // That all brokers are down is what it says last, and says the least.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.connection.lock() = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Told {}

impl ProducerContext for Told {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Err((failure, _)) = result {
            let code = code_of(failure).unwrap_or(RDKafkaErrorCode::Unknown);
            self.undelivered.lock().get_or_insert((number, code));
        }
    }
}

/// A cluster, and a client for its topics.
#[derive(Clone)]
pub(crate) struct Cluster {
    config: Arc<KafkaConfig>,
    admin: Arc<AdminClient<Told>>,
    /// For topics, and offsets of what is committed. A producer, as those hand their events over where they are asked for.
    asking: Arc<BaseProducer<Told>>,
    /// For offsets of what is not committed, too.
    everything: Arc<BaseProducer<Told>>,
    /// A consumer that reads nothing now.
    kept: Arc<Mutex<Option<BaseConsumer<Told>>>>,
    told: Told,
}

/// What may be read of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// What is committed, up to the first open transaction.
    Committed,
    /// Everything.
    Everything,
}

/// The topic's setting for the largest batch, in bytes.
const BATCH_BYTES_MAX: &str = "max.message.bytes";

impl Cluster {
    /// Makes the client; nothing is connected yet. Fails with `target.kafka_property`.
    pub(crate) fn new(config: Arc<KafkaConfig>) -> Result<Cluster> {
        for (key, _) in &config.properties {
            if RESERVED.contains(&key.as_str()) {
                return Err(reserved(key));
            }
        }
        let told = Told::default();
        let failed = |failure| refused("connecting to the cluster", failure, None);
        let client = |config: &ClientConfig| -> Result<Arc<BaseProducer<Told>>> {
            config.create_with_context(told.clone()).map(Arc::new).map_err(failed)
        };
        let asking = client(&base(&config))?;
        let everything = client(base(&config).set("isolation.level", "read_uncommitted"))?;
        let admin = base(&config).create_with_context(told.clone()).map(Arc::new).map_err(failed)?;
        Ok(Cluster { config, admin, asking, everything, kept: Arc::default(), told })
    }

    fn client(&self) -> &Client<Told> {
        self.asking.client()
    }

    fn failed(&self, doing: &str, failure: KafkaError) -> pgferry_model::Error {
        for _ in 0..EVENTS_TAKEN {
            self.asking.poll(Duration::ZERO);
        }
        refused(doing, failure, self.told.connection())
    }

    /// Every topic that the user may see, with its number of partitions. Asking for one by its name might make it.
    pub(crate) fn topics(&self) -> Result<HashMap<String, i32>> {
        let metadata = self
            .client()
            .fetch_metadata(None, CONNECT_WITHIN)
            .map_err(|failure| self.failed("asking for the cluster's topics", failure))?;
        let there = metadata.topics().iter().filter(|topic| topic.error().is_none());
        Ok(there.map(|topic| (topic.name().to_owned(), topic.partitions().len() as i32)).collect())
    }

    /// A topic that is there.
    pub(crate) fn state_topic(&self) -> &str {
        &self.config.state_topic
    }

    /// How long a transaction may be open.
    pub(crate) fn transaction_timeout_ms(&self) -> u64 {
        let set = base(&self.config).get("transaction.timeout.ms").and_then(|text| text.parse().ok());
        set.unwrap_or_else(|| TRANSACTION_WITHIN_MS.parse().unwrap_or(900_000))
    }

    /// Brokers of the cluster, as `host:port`.
    pub(crate) fn brokers(&self) -> Result<Vec<String>> {
        let metadata = self
            .client()
            .fetch_metadata(None, CONNECT_WITHIN)
            .map_err(|failure| self.failed("asking for the cluster's brokers", failure))?;
        Ok(metadata.brokers().iter().map(|broker| format!("{}:{}", broker.host(), broker.port())).collect())
    }

    /// The first offset of a partition, and the one that its next record gets: of what is committed, or of everything.
    pub(crate) fn offsets(&self, topic: &str, partition: i32, isolation: Isolation) -> Result<(i64, i64)> {
        // A client reads what is committed, unless it is told otherwise.
        let client = match isolation {
            Isolation::Committed => self.client(),
            Isolation::Everything => self.everything.client(),
        };
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            let failure = match client.fetch_watermarks(topic, partition, ANSWER_WITHIN) {
                Ok(offsets) => return Ok(offsets),
                Err(failure) => failure,
            };
            // A partition that was just made has no leader for a moment.
            if code_of(&failure).is_none_or(|code| !is_transient(code)) || Instant::now() >= deadline {
                return Err(self.failed(&format!("asking for the offsets of topic {topic}"), failure));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes topics; those that are there already are left as they are.
    pub(crate) async fn make(
        &self,
        topics: &[&str],
        partitions: i32,
        settings: &[(&str, &str)],
    ) -> Result<()> {
        if topics.is_empty() {
            return Ok(());
        }
        let copies = TopicReplication::Fixed;
        let wanted: Vec<NewTopic<'_>> = topics
            .iter()
            .map(|name| {
                let topic =
                    NewTopic::new(name, partitions, copies(self.config.replication_factor.unwrap_or(-1)));
                settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
            })
            .collect();
        let made = self.admin.create_topics(&wanted, &options()).await;
        for answer in made.map_err(|failure| self.failed("making topics", failure))? {
            match answer {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(by_code(&format!("making topic {topic}"), code)),
            }
        }
        self.await_topics(|there| topics.iter().all(|topic| there.contains_key(*topic))).await
    }

    /// Removes a topic.
    pub(crate) async fn remove(&self, topic: &str) -> Result<()> {
        let removed = self.admin.delete_topics(&[topic], &options()).await;
        for answer in removed.map_err(|failure| self.failed("removing a topic", failure))? {
            match answer {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((topic, code)) => return Err(by_code(&format!("removing topic {topic}"), code)),
            }
        }
        self.await_topics(|there| !there.contains_key(topic)).await
    }

    /// Removes all records of a topic.
    pub(crate) async fn empty(&self, topic: &str, partitions: i32) -> Result<()> {
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::End)
                .map_err(|failure| self.failed("emptying a topic", failure))?;
        }
        let emptied = self.admin.delete_records(&list, &options()).await;
        emptied.map_err(|failure| self.failed(&format!("emptying topic {topic}"), failure))?;
        Ok(())
    }

    /// The largest batch that each topic takes, in bytes.
    pub(crate) async fn limits(&self, topics: &[String]) -> Result<HashMap<String, usize>> {
        let wanted: Vec<ResourceSpecifier<'_>> =
            topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let described = self.admin.describe_configs(&wanted, &options()).await;
        let mut limits = HashMap::new();
        for answer in described.map_err(|failure| self.failed("asking for settings of topics", failure))? {
            let resource = answer.map_err(|code| by_code("asking for settings of topics", code))?;
            let OwnedResourceSpecifier::Topic(topic) = &resource.specifier else { continue };
            let limit = resource.get(BATCH_BYTES_MAX).and_then(|entry| entry.value.as_ref()?.parse().ok());
            limits.extend(limit.map(|limit| (topic.clone(), limit)));
        }
        Ok(limits)
    }

    /// Brokers know of a topic some time after the controller.
    async fn await_topics(&self, known: impl Fn(&HashMap<String, i32>) -> bool) -> Result<()> {
        let deadline = tokio::time::Instant::now() + ANSWER_WITHIN;
        loop {
            let cluster = self.clone();
            let asked = tokio::task::spawn_blocking(move || cluster.topics()).await;
            let there = asked.map_err(|lost| {
                worker_lost("a thread of the Kafka target ended without a result").with_origin(lost)
            })??;
            if known(&there) {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(by_code("waiting for topics", RDKafkaErrorCode::OperationTimedOut));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A producer; with an id its records are in transactions.
    pub(crate) fn producer(&self, transactional_id: Option<&str>) -> Result<(BaseProducer<Told>, Told)> {
        let mut config = ClientConfig::new();
        config
            .set("linger.ms", "5")
            .set("compression.type", "lz4")
            .set("message.max.bytes", "1000000000")
            .set("message.timeout.ms", DELIVER_WITHIN_MS)
            .set("topic.metadata.propagation.max.ms", "10000")
            .set("queue.buffering.max.kbytes", QUEUE_KBYTES)
            .set("queue.buffering.max.messages", QUEUE_RECORDS);
        if transactional_id.is_some() {
            config.set("transaction.timeout.ms", TRANSACTION_WITHIN_MS);
        }
        set_all(&mut config, &self.config);
        config.set("enable.idempotence", "true").set("delivery.report.only.error", "true");
        match transactional_id {
            Some(id) => config.set("transactional.id", id),
            // Only a transaction can be open for long.
            None => config.remove("transaction.timeout.ms"),
        };
        let told = Told::default();
        let producer = config
            .create_with_context(told.clone())
            .map_err(|failure| refused("connecting to the cluster", failure, None))?;
        Ok((producer, told))
    }

    /// A consumer that reads what is committed of partitions which it is given, and tells where each ends.
    fn consumer(&self) -> Result<BaseConsumer<Told>> {
        let mut config = base(&self.config);
        config
            .set("group.id", "pgferry")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "10")
            .set("queued.max.messages.kbytes", "16384")
            .set("isolation.level", "read_committed");
        let consumer: std::result::Result<BaseConsumer<Told>, _> =
            config.create_with_context(self.told.clone());
        consumer.map_err(|failure| refused("connecting to the cluster", failure, None))
    }

    /// Calls `each` with every committed record of the partitions that `from` has a first offset for (0: from the beginning), up to the
    /// end of each or its first open transaction. A partition's records come in their order. `owner`: whose topic it is, where it
    /// belongs to a table.
    pub(crate) fn read(
        &self,
        topic: &str,
        from: &[i64],
        owner: Option<&TableName>,
        each: &mut dyn FnMut(Read<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut reader = Reader::new(self, topic, from, owner)?;
        while reader.next(each)? {}
        reader.end();
        Ok(())
    }
}

/// A consumer under way through a topic's partitions. Made once and kept: connecting takes longer than reading a few records.
pub(crate) struct Reader<'a> {
    cluster: &'a Cluster,
    consumer: BaseConsumer<Told>,
    topic: String,
    owner: Option<TableName>,
    open: Vec<bool>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        cluster: &'a Cluster,
        topic: &str,
        from: &[i64],
        owner: Option<&TableName>,
    ) -> Result<Reader<'a>> {
        let kept = cluster.kept.lock().take();
        let consumer = match kept {
            Some(consumer) => consumer,
            None => cluster.consumer()?,
        };
        let mut list = TopicPartitionList::new();
        let mut assigned = Ok(());
        for (partition, &first) in from.iter().enumerate() {
            let offset = if first > 0 { Offset::Offset(first) } else { Offset::Beginning };
            assigned = assigned.and_then(|()| list.add_partition_offset(topic, partition as i32, offset));
        }
        assigned
            .and_then(|()| consumer.assign(&list))
            .map_err(|failure| cluster.failed(&format!("reading topic {topic}"), failure))?;
        let (topic, owner) = (topic.to_owned(), owner.cloned());
        Ok(Reader { cluster, consumer, topic, owner, open: vec![true; from.len()] })
    }

    /// Takes the next record of any partition. `false`: every partition has ended.
    pub(crate) fn next(&mut self, each: &mut dyn FnMut(Read<'_>) -> Result<()>) -> Result<bool> {
        if !self.open.contains(&true) {
            return Ok(false);
        }
        let doing = || format!("reading topic {}", self.topic);
        match self.consumer.poll(ANSWER_WITHIN) {
            Some(Ok(message)) => each(Read {
                partition: message.partition(),
                key: message.key(),
                value: message.payload(),
                headers: message.headers(),
            })?,
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                if let Some(open) = self.open.get_mut(partition as usize) {
                    *open = false;
                }
            }
            Some(Err(failure)) => match (code_of(&failure), &self.owner) {
                (
                    Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownPartition),
                    Some(owner),
                ) => return Err(topic_gone(owner, &self.topic)),
                (Some(code), _) if passes(code) => {}
                _ => return Err(self.cluster.failed(&doing(), failure)),
            },
            None => return Err(by_code(&doing(), RDKafkaErrorCode::OperationTimedOut)),
        }
        Ok(true)
    }

    /// Whether the partition has records to come.
    pub(crate) fn is_open(&self, partition: usize) -> bool {
        self.open.get(partition).copied().unwrap_or(false)
    }

    /// Holds a partition's records back, or lets them come again.
    pub(crate) fn hold(&self, partition: usize, held: bool) -> Result<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition as i32);
        let done = if held { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
        done.map_err(|failure| self.cluster.failed(&format!("reading topic {}", self.topic), failure))
    }

    /// Keeps the consumer for the next one.
    pub(crate) fn end(self) {
        if self.consumer.unassign().is_ok() {
            self.cluster.kept.lock().get_or_insert(self.consumer);
        }
    }
}

/// A record that was read.
pub(crate) struct Read<'a> {
    pub(crate) partition: i32,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: Option<&'a rdkafka::message::BorrowedHeaders>,
}

/// What a consumer tells of a connection that it makes anew by itself.
fn passes(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown)
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_WITHIN)).operation_timeout(Some(ANSWER_WITHIN))
}

/// What every client has: the user's properties win.
fn base(config: &KafkaConfig) -> ClientConfig {
    let mut base = ClientConfig::new();
    set_all(&mut base, config);
    base
}

/// What the user sets is set last. (librdkafka's wrapper shows its own map without secrets: it is no way to copy settings.)
fn set_all(client: &mut ClientConfig, config: &KafkaConfig) {
    client.set("client.id", "pgferry").set("socket.keepalive.enable", "true");
    for (key, value) in &config.properties {
        client.set(key, value);
    }
}

fn reserved(key: &str) -> pgferry_model::Error {
    pgferry_model::Error::task_broken(PROPERTY, format!("the property `{key}` is pgferry's own"))
        .with_cause("that nothing is lost or doubled rests on it")
        .with_cure(pgferry_model::Cure::advice("take it out of `properties`"))
}
