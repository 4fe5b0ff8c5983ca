//! Leaders that move while deliveries go on: killed, elected back, shut down in their own order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pgferry_model::{Class, Position, Table, TaskId};
use pgferry_pipeline::Target;
use pgferry_target_kafka::{Guarantee, KafkaConfig, KafkaTarget};
use pgferry_testkit::kafka::Cluster;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::making::{delivery, inserts, live, or_said};

/// So many deliveries, each of one row per key, are made between two faults.
const BETWEEN: u64 = 20;
const KEYS: u32 = 20;
const WITHIN: Duration = Duration::from_secs(60);

fn client(servers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("group.id", "leader-test");
    config.set("isolation.level", "read_committed").set("enable.partition.eof", "true");
    config
}

/// The node that leads the first partition of a topic.
fn leader(consumer: &BaseConsumer, topic: &str) -> Result<i32> {
    let until = Instant::now() + WITHIN;
    loop {
        let metadata = consumer.fetch_metadata(Some(topic), WITHIN)?;
        let partition = metadata.topics().first().and_then(|topic| topic.partitions().first());
        match partition.map(|partition| partition.leader()) {
            Some(leader) if leader > 0 => return Ok(leader),
            _ if Instant::now() > until => bail!("{topic} has no leader"),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Delivers as the engine does: after an error that passes, what became of it is read, then it is tried again.
async fn deliver(target: &KafkaTarget, people: &Arc<Table>, number: u64) -> Result<()> {
    let body = number.to_string();
    let rows: Vec<(u32, &str)> = (0..KEYS).map(|key| (key, body.as_str())).collect();
    let through = Position::from_lsn(number);
    let until = Instant::now() + WITHIN;
    loop {
        let Err(failure) = target.apply(delivery(number, vec![inserts(people, &rows)])).await else {
            return Ok(());
        };
        ensure!(failure.class() == Class::Transient, "delivery {number}: {failure:?}");
        ensure!(Instant::now() < until, "delivery {number} does not arrive: {failure:?}");
        match target.open(&TaskId::new("shop")).await {
            Ok(held) if held.position >= Some(through) => return Ok(()),
            Ok(_) => {}
            Err(failure) => ensure!(failure.class() == Class::Transient, "{failure:?}"),
        }
    }
}

/// What a `read_committed` consumer finds: the values of each key, in their order.
fn values(servers: &str, topic: &str) -> Result<BTreeMap<Vec<u8>, Vec<u64>>> {
    let consumer: BaseConsumer = client(servers).create()?;
    let metadata = consumer.fetch_metadata(Some(topic), WITHIN)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition as i32, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let (mut found, mut ended) = (BTreeMap::<Vec<u8>, Vec<u64>>::new(), 0);
    while ended < partitions {
        match consumer.poll(WITHIN).context("the topic is not read to its end")? {
            Ok(message) => {
                let record: String = String::from_utf8_lossy(message.payload().unwrap_or_default()).into();
                let (_, body) = record.split_once("\"body\":\"").context("a record without a body")?;
                let body = body.split('"').next().unwrap_or_default().parse()?;
                found.entry(message.key().unwrap_or_default().to_vec()).or_default().push(body);
            }
            Err(KafkaError::PartitionEOF(_)) => ended += 1,
            Err(KafkaError::MessageConsumption(_)) => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    Ok(found)
}

/// Nothing is lost, and every key's values are in order; exactly once: nothing is there twice.
fn verify(found: &BTreeMap<Vec<u8>, Vec<u64>>, guarantee: Guarantee, count: u64) -> Result<()> {
    ensure!(found.len() == KEYS as usize, "{} keys", found.len());
    let wanted: Vec<u64> = (1..=count).collect();
    for (key, values) in found {
        if guarantee == Guarantee::ExactlyOnce {
            ensure!(*values == wanted, "{key:?}: {values:?}");
            continue;
        }
        // What comes twice comes as a whole, after it came first: no value is seen before the one that precedes it.
        let mut last = 0;
        for &value in values {
            ensure!(value <= last + 1, "{key:?}: {value} follows {last} in {values:?}");
            last = last.max(value);
        }
        ensure!(last == count, "{key:?} ends at {last}");
    }
    Ok(())
}

/// Waits until some more deliveries are there.
async fn more(done: &AtomicU64) -> Result<()> {
    let number = done.load(Ordering::Relaxed) + BETWEEN;
    let until = Instant::now() + 2 * WITHIN;
    while done.load(Ordering::Relaxed) < number {
        ensure!(Instant::now() < until, "delivery {number} is not reached");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_moves_costs_no_row_and_no_order() -> Result<()> {
    let Some(cluster) = or_said(Cluster::start(3)?)? else { return Ok(()) };
    // The second one takes as long as the first.
    let guarantees = if std::env::var_os("PGFERRY_TEST_LONG").is_some() { 2 } else { 1 };
    for guarantee in [Guarantee::ExactlyOnce, Guarantee::AtLeastOnce].into_iter().take(guarantees) {
        moved(&cluster, guarantee).await.with_context(|| format!("{guarantee:?}"))?;
    }
    Ok(())
}

async fn moved(cluster: &Cluster, guarantee: Guarantee) -> Result<()> {
    let servers = cluster.bootstrap_servers();
    let mut config = KafkaConfig::new(servers.clone());
    config.topic_rule = format!("{guarantee:?}.#{{source_table_name}}");
    config.state_topic = format!("{guarantee:?}.state");
    config.replication_factor = Some(3);
    config.guarantee = guarantee;
    let topic = format!("{guarantee:?}.people");
    let (target, tables) = live(config, &["people"]).await?;
    let (done, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (delivering, people) = (Arc::clone(&target), Arc::clone(&tables[0]));
    let (counting, ending) = (Arc::clone(&done), Arc::clone(&enough));
    let delivered = tokio::spawn(async move {
        for number in 1.. {
            deliver(&delivering, &people, number).await?;
            counting.store(number, Ordering::Relaxed);
            if ending.load(Ordering::Relaxed) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::Ok(())
    });
    let faults = async {
        let asking: BaseConsumer = client(&servers).create()?;
        more(&done).await?;
        let first = leader(&asking, &topic)?;
        let node = cluster.node(first)?;
        node.kill9()?;
        more(&done).await?;
        ensure!(leader(&asking, &topic)? != first, "node {first} is dead and leads {topic}");
        node.resume()?;
        // Led by the first of its copies again, once these are the same.
        let until = Instant::now() + WITHIN;
        let line = "kafka-leader-election.sh --bootstrap-server HOST --election-type preferred --all-topic-partitions";
        while leader(&asking, &topic)? != first {
            ensure!(Instant::now() < until, "{topic} is not led by node {first} again");
            node.run_line(&line.replace("HOST", &servers))?;
        }
        more(&done).await?;
        node.stop()?;
        more(&done).await?;
        node.resume()
    };
    let faults = faults.await;
    enough.store(true, Ordering::Relaxed);
    delivered.await??;
    faults?;
    target.close().await?;
    verify(&values(&servers, &topic)?, guarantee, done.load(Ordering::Relaxed))
}
