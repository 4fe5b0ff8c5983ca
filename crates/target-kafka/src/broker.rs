//! The way to the brokers: clients with pgferry's settings below the user's, and what they say of their connections.
//!
//! Limit: a connection waits 10 s at most, a request to the cluster 30 s; what takes longer is an error of class `Transient`, which the
//! engine retries.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pgferry_model::{Class, Error, Result, TableName};
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
use crate::error::{
    PROPERTY, by_code, by_code_of, by_code_on, code_of, is_transient, refused, removal_denied,
    settings_denied, topic_gone,
};

/// The longest wait for an answer of the cluster.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The longest wait for a connection and the first answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A topic that was made and is not seen after this time may be one that the user may not describe.
const HIDDEN_AFTER: Duration = Duration::from_secs(1);
/// A topic that was made and is not seen after this time is made again.
const MADE_WITHIN: Duration = Duration::from_secs(3);
/// How long librdkafka tries to deliver one record; no longer than its transaction may be open.
const DELIVER_WITHIN_MS: u64 = 60_000;
/// How long a transaction may be open; the brokers' own limit by default (`transaction.max.timeout.ms`).
const TRANSACTION_WITHIN_MS: &str = "900000";
/// Records that wait in one producer, in kB and in number: the engine's own batches bound the rest.
const QUEUE_KBYTES: &str = "16384";
const QUEUE_RECORDS: &str = "500000";

/// A consumer that has nothing more to tell for this long has told everything.
const QUIET_FOR: Duration = Duration::from_millis(2);

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
    undelivered: Arc<Mutex<Option<Undelivered>>>,
    /// The topic that a transaction may not write to.
    denied: Arc<Mutex<Option<String>>>,
}

/// The first record that was not delivered.
pub(crate) struct Undelivered {
    /// What the sender gave it.
    pub(crate) number: usize,
    pub(crate) topic: String,
    pub(crate) code: RDKafkaErrorCode,
}

impl Told {
    pub(crate) fn connection(&self) -> Option<String> {
        self.connection.lock().clone()
    }

    pub(crate) fn take_undelivered(&self) -> Option<Undelivered> {
        self.undelivered.lock().take()
    }

    pub(crate) fn take_denied(&self) -> Option<String> {
        self.denied.lock().take()
    }
}

/// The topic that librdkafka's log names as one that a transaction may not write to: its errors do not name it
/// (librdkafka source, `rd_kafka_txn_handle_AddPartitionsToTxn`).
fn denied_topic<'m>(facility: &str, message: &'m str) -> Option<&'m str> {
    if facility != "ADDPARTS" || !message.contains("opic authorization failed") {
        return None;
    }
    message.split('"').nth(1)
}

impl ClientContext for Told {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
        // Not every client takes error events; all of them log why a connection failed, after the thread's and the broker's name.
        if facility == "FAIL" {
            let reason = message.rsplit_once("]: ").map_or(message, |(_, reason)| reason);
            *self.connection.lock() = Some(reason.to_owned());
        }
        // No token: nothing is connected before there is one.
        if facility == "OIDC" {
            let reason = message.split_once("]: ").map_or(message, |(_, reason)| reason);
            *self.connection.lock() = Some(reason.to_owned());
        }
        if let Some(topic) = denied_topic(facility, message) {
            self.denied.lock().get_or_insert_with(|| topic.to_owned());
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
        // That all brokers are down is what it says last, and says the least; why there is no token it has logged with the address.
        let less = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown)
            || reason.starts_with("Failed to acquire SASL OAUTHBEARER token");
        if !less {
            *self.connection.lock() = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Told {}

impl ProducerContext for Told {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Err((failure, record)) = result {
            let code = code_of(failure).unwrap_or(RDKafkaErrorCode::Unknown);
            let topic = record.topic().to_owned();
            self.undelivered.lock().get_or_insert(Undelivered { number, topic, code });
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

    fn failed(&self, doing: &str, failure: KafkaError) -> Error {
        for _ in 0..EVENTS_TAKEN {
            self.asking.poll(Duration::ZERO);
        }
        refused(doing, failure, self.told.connection())
    }

    /// As `failed`, while something is done with a topic; `owner`: the table that it belongs to, if it does.
    fn failed_with(&self, topic: &str, owner: Option<&TableName>, doing: &str, failure: KafkaError) -> Error {
        match (code_of(&failure), owner) {
            (Some(code @ RDKafkaErrorCode::TopicAuthorizationFailed), Some(table)) => {
                by_code_of(doing, table, topic, code).with_origin(failure)
            }
            (Some(code @ RDKafkaErrorCode::TopicAuthorizationFailed), None) => {
                by_code_on(doing, topic, code).with_origin(failure)
            }
            _ => self.failed(doing, failure),
        }
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
        let asked = self.watermarks(topic, partition, isolation);
        asked.map_err(|failure| {
            self.failed_with(topic, None, &format!("asking for the offsets of topic {topic}"), failure)
        })
    }

    fn watermarks(
        &self,
        topic: &str,
        partition: i32,
        isolation: Isolation,
    ) -> std::result::Result<(i64, i64), KafkaError> {
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
                return Err(failure);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until no transaction is open in a partition, of those that are when it is asked: of their records it is not known yet whether
    /// they count, and what follows them is not readable. The brokers answer a commit before they have written it to every partition.
    /// `false`: it took longer.
    pub(crate) fn await_decided(&self, topic: &str, partition: i32, within: Duration) -> Result<bool> {
        let (_, end) = self.offsets(topic, partition, Isolation::Everything)?;
        let deadline = Instant::now() + within;
        let mut told = false;
        while self.offsets(topic, partition, Isolation::Committed)?.1 < end {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!(topic, "a transaction is open; waiting for its end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(true)
    }

    /// Makes topics, each with the table that it belongs to; those that are there already are left as they are.
    pub(crate) async fn make(
        &self,
        topics: &[(&str, Option<&TableName>)],
        partitions: i32,
        settings: &[(&str, &str)],
    ) -> Result<()> {
        if topics.is_empty() {
            return Ok(());
        }
        let wanted: Vec<NewTopic<'_>> =
            topics.iter().map(|(name, _)| self.new_topic(name, partitions, settings)).collect();
        let deadline = tokio::time::Instant::now() + ANSWER_WITHIN;
        loop {
            let made = self.admin.create_topics(&wanted, &options()).await;
            for answer in made.map_err(|failure| self.failed("making topics", failure))? {
                match answer {
                    Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                    Err((topic, code)) => {
                        return Err(about(&format!("making topic {topic}"), topics, &topic, code));
                    }
                }
            }
            // Of a topic that is being removed, a cluster with ZooKeeper says that it is there, and it never is.
            match self.await_topics(topics, true, MADE_WITHIN).await {
                Err(failure)
                    if failure.class() == Class::Transient && tokio::time::Instant::now() < deadline => {}
                made => return made,
            }
        }
    }

    fn new_topic<'n>(&self, name: &'n str, partitions: i32, settings: &[(&'n str, &'n str)]) -> NewTopic<'n> {
        let copies = TopicReplication::Fixed(self.config.replication_factor.unwrap_or(-1));
        let topic = NewTopic::new(name, partitions, copies);
        settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
    }

    /// The largest batch that each topic takes, in bytes.
    pub(crate) async fn limits(&self, topics: &[String]) -> Result<HashMap<String, usize>> {
        let wanted: Vec<ResourceSpecifier<'_>> =
            topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let described = self.admin.describe_configs(&wanted, &options()).await;
        let mut limits = HashMap::new();
        for answer in described.map_err(|failure| self.failed("asking for settings of topics", failure))? {
            let resource = answer.map_err(|code| match code {
                RDKafkaErrorCode::TopicAuthorizationFailed => settings_denied(),
                code => by_code("asking for settings of topics", code),
            })?;
            let OwnedResourceSpecifier::Topic(topic) = &resource.specifier else { continue };
            // Every topic has settings; of one that the user may not ask about the client shows none, and keeps the reason to itself.
            if resource.entries.is_empty() {
                return Err(settings_denied());
            }
            let limit = resource.get(BATCH_BYTES_MAX).and_then(|entry| entry.value.as_ref()?.parse().ok());
            limits.extend(limit.map(|limit| (topic.clone(), limit)));
        }
        Ok(limits)
    }

    /// Removes a table's topic.
    pub(crate) async fn remove(&self, topic: &str, table: &TableName) -> Result<()> {
        let doing = format!("removing topic {topic}");
        let removed = self.admin.delete_topics(&[topic], &options()).await;
        for answer in removed.map_err(|failure| self.failed(&doing, failure))? {
            match answer {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((_, RDKafkaErrorCode::TopicAuthorizationFailed)) => {
                    return Err(removal_denied(&doing, table, topic));
                }
                Err((_, code)) => return Err(by_code(&doing, code)),
            }
        }
        self.await_topics(&[(topic, Some(table))], false, ANSWER_WITHIN).await
    }

    /// Removes all records of a table's topic.
    pub(crate) async fn empty(&self, topic: &str, partitions: i32, table: &TableName) -> Result<()> {
        let doing = format!("emptying topic {topic}");
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::End)
                .map_err(|failure| self.failed(&doing, failure))?;
        }
        let emptied = self.admin.delete_records(&list, &options()).await;
        let emptied = emptied.map_err(|failure| self.failed(&doing, failure))?;
        for partition in emptied.elements() {
            let Err(failure) = partition.error() else { continue };
            return Err(match code_of(&failure) {
                Some(RDKafkaErrorCode::TopicAuthorizationFailed) => removal_denied(&doing, table, topic),
                _ => self.failed(&doing, failure),
            });
        }
        Ok(())
    }

    /// Brokers know of a topic, or that it is gone, some time after the controller.
    async fn await_topics(
        &self,
        topics: &[(&str, Option<&TableName>)],
        wanted: bool,
        within: Duration,
    ) -> Result<()> {
        let started = tokio::time::Instant::now();
        let lost = |lost: tokio::task::JoinError| {
            worker_lost("a thread of the Kafka target ended without a result").with_origin(lost)
        };
        loop {
            let cluster = self.clone();
            let there = tokio::task::spawn_blocking(move || cluster.topics()).await.map_err(lost)??;
            let Some((late, _)) = topics.iter().find(|(topic, _)| there.contains_key(*topic) != wanted)
            else {
                return Ok(());
            };
            if wanted && started.elapsed() >= HIDDEN_AFTER {
                let (cluster, name) = (self.clone(), (*late).to_owned());
                let hidden =
                    tokio::task::spawn_blocking(move || cluster.hidden(&name)).await.map_err(lost)?;
                if let Some(code) = hidden {
                    return Err(about(&format!("asking for topic {late}"), topics, late, code));
                }
            }
            if started.elapsed() >= within {
                return Err(by_code("waiting for topics", RDKafkaErrorCode::OperationTimedOut));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Why a topic that is there is not among those that the user sees. Asked for by its name, which would make one that is not there.
    fn hidden(&self, topic: &str) -> Option<RDKafkaErrorCode> {
        let metadata = self.client().fetch_metadata(Some(topic), CONNECT_WITHIN).ok()?;
        let error = metadata.topics().first()?.error()?;
        let code = RDKafkaErrorCode::from(error);
        (code == RDKafkaErrorCode::TopicAuthorizationFailed).then_some(code)
    }

    /// A producer; with an id its records are in transactions.
    pub(crate) fn producer(&self, transactional_id: Option<&str>) -> Result<(BaseProducer<Told>, Told)> {
        let within = if transactional_id.is_some() { self.transaction_timeout_ms() } else { u64::MAX };
        let deliver_within = within.min(DELIVER_WITHIN_MS);
        let mut config = ClientConfig::new();
        config
            .set("linger.ms", "5")
            .set("compression.type", "lz4")
            .set("message.max.bytes", "1000000000")
            .set("message.timeout.ms", deliver_within.to_string())
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

    /// Calls `each` with every committed record of the partitions that `from` has a first offset for (0: from the beginning), up to what
    /// was the end of each, or its first open transaction, when it began. A partition's records come in their order. `owner`: whose topic it is, where it
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

/// A consumer under way through a topic's partitions. The state topic's is kept for the next time. No other topic's is, and none is used for
/// two topics: the client's word for an end names a partition and no topic, and comes more than once where a partition was held back.
pub(crate) struct Reader<'a> {
    cluster: &'a Cluster,
    consumer: BaseConsumer<Told>,
    topic: String,
    owner: Option<TableName>,
    partitions: Vec<Reading>,
    heard: Instant,
}

/// How far a partition is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Up to this offset, which was its end at the start.
    Until(i64),
    /// The client has told its end.
    Told,
    /// A record came that is younger than the reading.
    Passed,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        cluster: &'a Cluster,
        topic: &str,
        from: &[i64],
        owner: Option<&TableName>,
    ) -> Result<Reader<'a>> {
        let kept = if topic == cluster.config.state_topic { cluster.kept.lock().take() } else { None };
        let consumer = match kept {
            Some(consumer) => consumer,
            None => cluster.consumer()?,
        };
        let (topic, owner) = (topic.to_owned(), owner.cloned());
        let partitions = Vec::with_capacity(from.len());
        let mut reader = Reader { cluster, consumer, topic, owner, partitions, heard: Instant::now() };
        let mut list = TopicPartitionList::new();
        for (partition, &first) in from.iter().enumerate() {
            // A partition that is written to without a pause would never tell its end by itself.
            let asked = cluster.watermarks(&reader.topic, partition as i32, Isolation::Committed);
            let (begins, end) = asked.map_err(|failure| reader.failed(failure))?;
            let offset = Offset::Offset(begins.max(first));
            list.add_partition_offset(&reader.topic, partition as i32, offset)
                .map_err(|failure| reader.failed(failure))?;
            reader.partitions.push(Reading::Until(end));
        }
        reader.consumer.assign(&list).map_err(|failure| reader.failed(failure))?;
        Ok(reader)
    }

    /// Takes the next record of any partition. `false`: every partition has ended.
    pub(crate) fn next(&mut self, each: &mut dyn FnMut(Read<'_>) -> Result<()>) -> Result<bool> {
        if !(0..self.partitions.len()).any(|partition| self.is_open(partition)) {
            return Ok(false);
        }
        let polled = self.consumer.poll(ANSWER_WITHIN);
        if polled.is_some() {
            self.heard = Instant::now();
        }
        match polled {
            Some(Ok(message)) if message.topic() == self.topic => {
                let Some(reading) = self.partitions.get_mut(message.partition() as usize) else {
                    return Ok(true);
                };
                if !matches!(reading, Reading::Until(end) if message.offset() < *end) {
                    *reading = Reading::Passed;
                    return Ok(true);
                }
                each(Read {
                    partition: message.partition(),
                    key: message.key(),
                    value: message.payload(),
                    headers: message.headers(),
                })?;
            }
            Some(Ok(_)) => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                if let Some(reading) = self.partitions.get_mut(partition as usize) {
                    *reading = Reading::Told;
                }
            }
            Some(Err(failure)) if code_of(&failure).is_some_and(passes) => {}
            Some(Err(failure)) => return Err(self.failed(failure)),
            // The client returns early for events that it keeps to itself.
            None if self.heard.elapsed() < ANSWER_WITHIN => {}
            None => {
                let doing = format!("reading topic {}", self.topic);
                return Err(by_code(&doing, RDKafkaErrorCode::OperationTimedOut));
            }
        }
        Ok(true)
    }

    fn failed(&self, failure: KafkaError) -> pgferry_model::Error {
        match (code_of(&failure), self.owner.as_ref()) {
            (
                Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownPartition),
                Some(owner),
            ) => topic_gone(owner, &self.topic),
            (_, owner) => {
                let doing = format!("reading topic {}", self.topic);
                self.cluster.failed_with(&self.topic, owner, &doing, failure)
            }
        }
    }

    /// Whether the partition has records to come.
    pub(crate) fn is_open(&self, partition: usize) -> bool {
        matches!(self.partitions.get(partition), Some(Reading::Until(_)))
    }

    /// Holds a partition's records back, or lets them come again.
    pub(crate) fn hold(&self, partition: usize, held: bool) -> Result<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition as i32);
        let done = if held { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
        done.map_err(|failure| self.cluster.failed(&format!("reading topic {}", self.topic), failure))
    }

    /// Keeps the state topic's consumer for the next time, unless it may have more to tell.
    pub(crate) fn end(self) {
        let told = self.topic == self.cluster.config.state_topic
            && self.partitions.iter().all(|reading| *reading == Reading::Told);
        let quiet = told && self.consumer.unassign().is_ok() && self.consumer.poll(QUIET_FOR).is_none();
        if quiet {
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

/// What a consumer tells of a connection that it makes anew by itself, and of a group: it has to have one, and asks for its coordinator,
/// but its partitions are assigned and its offsets are kept nowhere.
fn passes(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Is;
    matches!(code, Is::BrokerTransportFailure | Is::AllBrokersDown | Is::GroupAuthorizationFailed)
}

/// What an error about one of some topics means.
fn about(doing: &str, topics: &[(&str, Option<&TableName>)], topic: &str, code: RDKafkaErrorCode) -> Error {
    match topics.iter().find(|(name, _)| *name == topic).and_then(|(_, table)| *table) {
        Some(table) => by_code_of(doing, table, topic, code),
        None => by_code_on(doing, topic, code),
    }
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

fn reserved(key: &str) -> Error {
    Error::task_broken(PROPERTY, format!("the property `{key}` is pgferry's own"))
        .with_cause("that nothing is lost or doubled rests on it")
        .with_cure(pgferry_model::Cure::advice("take it out of `properties`"))
}
