//! The broker that all contestants write to, as their consumers see it: only what is committed counts.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgferry_testkit::kafka::{Broker, NotInstalled};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// Partitions of every topic; pgferry's own number for topics that it makes.
const PARTITIONS: i32 = 3;
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// The longest that a topic may take to be read.
const READ_WITHIN: Duration = Duration::from_secs(300);

/// A broker, thrown away afterwards.
pub(super) struct Cluster {
    broker: Broker,
    admin: AdminClient<DefaultClientContext>,
    asking: BaseConsumer,
}

/// What a topic holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) records: u64,
    /// Of their values.
    pub(super) bytes: u64,
}

impl Cluster {
    pub(super) fn start() -> Result<Result<Self, NotInstalled>> {
        let broker = match Broker::start(pgferry_testkit::kafka::VERSIONS[0])? {
            Ok(broker) => broker,
            Err(missing) => return Ok(Err(missing)),
        };
        let config = config(&broker);
        Ok(Ok(Cluster { admin: config.create()?, asking: config.create()?, broker }))
    }

    pub(super) fn servers(&self) -> String {
        self.broker.bootstrap_servers()
    }

    pub(super) async fn make(&self, topics: &[String]) -> Result<()> {
        let new = |name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
        let topics: Vec<_> = topics.iter().map(|topic| new(topic)).collect();
        for made in self.admin.create_topics(&topics, &options()).await? {
            made.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        Ok(())
    }

    pub(super) async fn remove(&self, topics: &[String]) -> Result<()> {
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        for removed in self.admin.delete_topics(&topics, &options()).await? {
            removed.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        Ok(())
    }

    /// The sum of the partitions' ends, up to their first open transaction. The ends of transactions count, too.
    pub(super) fn end(&self, topic: &str) -> Result<u64> {
        (0..PARTITIONS)
            .map(|partition| {
                let (_, end) = self.asking.fetch_watermarks(topic, partition, ANSWER_WITHIN)?;
                Ok(end.unsigned_abs())
            })
            .sum()
    }

    /// A consumer of a topic, from its beginning.
    pub(super) fn consumer(&self, topic: &str) -> Result<BaseConsumer> {
        let consumer: BaseConsumer = config(&self.broker).set("enable.partition.eof", "true").create()?;
        let mut all = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            all.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&all)?;
        Ok(consumer)
    }

    /// Reads a topic to its end.
    pub(super) fn held(&self, topic: &str) -> Result<Held> {
        let (consumer, started) = (self.consumer(topic)?, Instant::now());
        let (mut held, mut ended) = (Held { records: 0, bytes: 0 }, 0);
        while ended < PARTITIONS {
            ensure!(started.elapsed() < READ_WITHIN, "topic {topic} is not read within {READ_WITHIN:?}");
            match consumer.poll(Duration::from_secs(1)) {
                Some(Ok(record)) => {
                    held.records += 1;
                    held.bytes += record.payload_len() as u64;
                }
                Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
                Some(Err(failure)) => return Err(failure).context("reading a topic"),
                None => {}
            }
        }
        Ok(held)
    }
}

fn config(broker: &Broker) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", broker.bootstrap_servers())
        .set("group.id", "bench")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed");
    config
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_WITHIN)).operation_timeout(Some(ANSWER_WITHIN))
}
