//! Topics beside the tables' own: transactions, columns, signs of life, dead letters.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgferry_model::{Delivery, Position, Slice, TaskId, TransactionMark};
use pgferry_pipeline::{SchemaChange, TableChanges, Target};
use pgferry_target_kafka::{Guarantee, KafkaConfig, KafkaTarget};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;

use crate::making::{broker, config, inserts, live, table};

/// Every committed record of a topic's partitions, in their order.
pub(crate) fn records(config: &KafkaConfig, topic: &str, partitions: i32) -> Result<Vec<OwnedMessage>> {
    let mut client = rdkafka::ClientConfig::new();
    client.set("group.id", "reader").set("enable.partition.eof", "true");
    // An end is told by an answer without records; a topic that is written to often has none for longer.
    client.set("fetch.wait.max.ms", "10");
    for (key, value) in &config.properties {
        client.set(key, value);
    }
    let consumer: BaseConsumer = client.create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let (mut all, mut ended) = (Vec::new(), 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while ended < partitions {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => all.push(message.detach()),
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(failure)) => return Err(failure.into()),
            None => ensure!(Instant::now() < deadline, "no end of {topic}"),
        }
    }
    Ok(all)
}

fn json(message: &OwnedMessage) -> Result<Value> {
    Ok(serde_json::from_slice(message.payload().context("it has no value")?)?)
}

fn header(message: &OwnedMessage, name: &str) -> Option<String> {
    let headers = message.headers()?;
    let found = headers.iter().find(|header| header.key == name)?;
    found.value.map(|value| String::from_utf8_lossy(value).into_owned())
}

fn mark(first_sequence: u32, xid: u32) -> TransactionMark {
    TransactionMark {
        first_sequence,
        xid,
        commit_record: Position::from_lsn(u64::from(xid) * 10),
        position: Position::from_lsn(u64::from(xid) * 10 + 5),
        committed_at_us: 1_700_000_000_000_000,
    }
}

fn delivery(
    through: u64,
    slice: Slice,
    marks: &[(u32, u32)],
    tables: Vec<TableChanges>,
) -> Arc<Delivery<TableChanges>> {
    let transactions = marks.iter().map(|&(first, xid)| mark(first, xid)).collect();
    let (after, through) = (Position::from_lsn(through - 1), Position::from_lsn(through));
    Arc::new(Delivery { after, through, tables, transactions, slice })
}

/// BEGIN and END around each transaction, counts by table, and each record's place; also where a transaction comes in slices.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_are_told_with_the_number_of_their_events() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::ExactlyOnce] {
        let mut config = KafkaConfig { guarantee, ..config(&broker) };
        let topic = format!("{}.transactions", config.transactional_id_prefix);
        config.transaction_topic = Some(topic.clone());
        let (target, tables) = live(config.clone(), &["people", "orders"]).await?;
        let (people, orders) = (&tables[0], &tables[1]);
        // Sequence numbers 0 and 1 are transaction 7's, of which 1 comes in another slice than 2.
        let first = vec![inserts(people, &[(1, "a"), (2, "b")]), inserts(orders, &[(1, "x")])];
        target.apply(delivery(100, Slice::Part, &[(0, 7)], first)).await?;
        let last = vec![inserts(people, &[(3, "c"), (4, "d")])];
        target.apply(delivery(100, Slice::Last, &[(0, 7), (1, 8)], last)).await?;
        target.close().await?;
        let told: Vec<Value> = records(&config, &topic, 1)?.iter().map(json).collect::<Result<_>>()?;
        let short: Vec<(&str, &str, Option<u64>)> = told
            .iter()
            .map(|record| {
                let text = |name: &str| record[name].as_str().unwrap_or_default();
                (text("status"), text("id"), record["event_count"].as_u64())
            })
            .collect();
        ensure!(
            short
                == [
                    ("BEGIN", "7:70", None),
                    ("END", "7:70", Some(4)),
                    ("BEGIN", "8:80", None),
                    ("END", "8:80", Some(1)),
                ],
            "{guarantee:?}: {short:?}"
        );
        let counts = told[1]["data_collections"].to_string();
        ensure!(
            counts.contains(r#""data_collection":"public.orders","event_count":1"#)
                && counts.contains(r#""data_collection":"public.people","event_count":3"#),
            "{counts}"
        );
        let of_people = format!("{}.public.people", config.transactional_id_prefix);
        let mut places: HashMap<String, (u64, u64)> = HashMap::new();
        for record in records(&config, &of_people, config.partitions)? {
            let value = json(&record)?;
            let place = &value["transaction"];
            let number = |name: &str| place[name].as_u64().context("it has no place");
            places.insert(
                value["after"]["body"].as_str().unwrap_or_default().to_owned(),
                (number("total_order")?, number("data_collection_order")?),
            );
        }
        ensure!(places["a"].1 == 1 && places["b"].1 == 2, "{places:?}");
        ensure!(places["c"] == (4, 3) && places["d"] == (1, 1), "{places:?}");
    }
    Ok(())
}

/// Columns are told when a table is taken over and when they change, in the form of Debezium's schema changes.
#[tokio::test(flavor = "multi_thread")]
async fn columns_are_told_when_they_are_new_and_when_they_change() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    let mut config = config(&broker);
    let topic = format!("{}.ddl", config.transactional_id_prefix);
    config.ddl_topic = Some(topic.clone());
    let (target, tables) = live(config.clone(), &["people"]).await?;
    let mut after = (*tables[0]).clone();
    let mut column = after.columns[1].clone();
    column.name = "note".into();
    after.columns.push(column);
    let change = SchemaChange { before: Arc::clone(&tables[0]), after: Arc::new(after) };
    target.evolve(&change).await?;
    target.close().await?;
    let told: Vec<Value> = records(&config, &topic, 1)?.iter().map(json).collect::<Result<_>>()?;
    let shape = |at: usize| {
        let change = &told[at]["tableChanges"][0];
        let columns = change["table"]["columns"].as_array().map_or(0, Vec::len);
        (change["type"].as_str().unwrap_or_default().to_owned(), columns)
    };
    ensure!(told.len() == 2, "{told:?}");
    ensure!(shape(0) == ("CREATE".to_owned(), 2) && shape(1) == ("ALTER".to_owned(), 3), "{told:?}");
    ensure!(told[0]["tableChanges"][0]["table"]["primaryKeyColumnNames"][0] == "id", "{told:?}");
    Ok(())
}

/// Signs of life come while nothing is delivered, and end with the task.
#[tokio::test(flavor = "multi_thread")]
async fn signs_of_life_come_while_nothing_happens() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    let mut config = KafkaConfig { guarantee: Guarantee::ExactlyOnce, ..config(&broker) };
    let topic = format!("{}.heartbeat", config.transactional_id_prefix);
    config.heartbeat = Some((topic.clone(), Duration::from_millis(200)));
    let (target, tables) = live(config.clone(), &["people"]).await?;
    target.apply(delivery(100, Slice::Whole, &[(0, 7)], vec![inserts(&tables[0], &[(1, "a")])])).await?;
    let deadline = Instant::now() + Duration::from_secs(30);
    let position = Value::from(Position::from_lsn(100).to_string());
    loop {
        let seen: Vec<Value> = records(&config, &topic, 1)?.iter().map(json).collect::<Result<_>>()?;
        if seen.len() >= 3 && seen.last().is_some_and(|last| last["position"] == position) {
            break;
        }
        ensure!(Instant::now() < deadline, "{seen:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    target.close().await?;
    let ended = records(&config, &topic, 1)?.len();
    tokio::time::sleep(Duration::from_millis(900)).await;
    ensure!(records(&config, &topic, 1)?.len() == ended, "they go on after the end");
    Ok(())
}

/// A record that its topic does not take goes elsewhere, and the table goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_large_is_a_dead_letter_where_the_user_wants_it() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::ExactlyOnce] {
        let mut config = KafkaConfig { guarantee, ..config(&broker) };
        let topic = format!("{}.dead", config.transactional_id_prefix);
        config.dead_letter_topic = Some(topic.clone());
        let (target, tables) = live(config.clone(), &["people"]).await?;
        let body = "x".repeat(2_000_000);
        let rows = [(1, "a"), (2, body.as_str()), (3, "c")];
        target.apply(delivery(100, Slice::Whole, &[(0, 7)], vec![inserts(&tables[0], &rows)])).await?;
        ensure!(target.inspect().count(&tables[0]).await? == 2, "{guarantee:?}");
        target.close().await?;
        let letters = records(&config, &topic, 1)?;
        ensure!(letters.len() == 1, "{guarantee:?}: {} letters", letters.len());
        let letter = &letters[0];
        ensure!(letter.key() == Some(br#"{"id":2}"#), "{:?}", letter.key());
        ensure!(json(letter)?["after"]["body"].as_str() == Some(&body), "its value is another");
        let told = header(letter, "pgferry.error.topic").context("it does not say its topic")?;
        ensure!(told == format!("{}.public.people", config.transactional_id_prefix), "{told}");
        ensure!(header(letter, "pgferry.error.code").as_deref() == Some("target.kafka_record_too_large"));
    }
    Ok(())
}

/// A table whose topic is one of the task's own is refused before anything is written.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_cannot_have_the_topic_of_something_else() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    let mut config = config(&broker);
    config.ddl_topic = Some(format!("{}.public.people", config.transactional_id_prefix));
    let target = KafkaTarget::connect(config)?;
    target.open(&TaskId::new("shop")).await?;
    let refused =
        target.prepare(&crate::making::plan(&table("people"))).await.err().context("it was taken")?;
    ensure!(refused.code() == pgferry_target_kafka::error::NAME_COLLISION, "{refused}");
    target.close().await?;
    Ok(())
}
