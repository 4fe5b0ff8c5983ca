//! A user who may do nothing until it is granted: each error names what is missing, and the line that it prints grants just that.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use pgferry_model::{Class, Code, Error, TableState, TaskId};
use pgferry_pipeline::{IfTargetExists, TablePlan, Target};
use pgferry_target_kafka::error::{TOPIC_DENIED, TRANSACTION_DENIED};
use pgferry_target_kafka::{Guarantee, KafkaConfig, KafkaTarget};
use pgferry_testkit::kafka::{Broker, Setup, USER, version};

use crate::failures::EVERY;
use crate::making::{broker_with, delivery, inserts, live, plan, table};
use crate::secured::secured;

/// A broker with access lists, which the tests of this file share.
fn guarded() -> Result<Option<Broker>> {
    static SHARED: OnceLock<Result<Option<Broker>, String>> = OnceLock::new();
    let setup = Setup::default().with_access_lists(version());
    let started = SHARED.get_or_init(|| broker_with(&setup).map_err(|error| format!("{error:#}")));
    started.clone().map_err(|error| anyhow!("{error}"))
}

/// The task of a user who may do nothing yet, and the same one of a user who may do everything.
fn configs(broker: &Broker, guarantee: Guarantee) -> (KafkaConfig, KafkaConfig) {
    let restricted = KafkaConfig { guarantee, ..secured(broker, &[]) };
    let mut free = restricted.clone();
    free.properties = vec![("bootstrap.servers".to_owned(), broker.bootstrap_servers())];
    (restricted, free)
}

async fn allow(broker: &Broker, line: &str) -> Result<()> {
    let line =
        line.replace("HOST:9092", &broker.bootstrap_servers()).replace("User:NAME", &format!("User:{USER}"));
    let (running, broker) = (line.clone(), broker.clone());
    tokio::task::spawn_blocking(move || broker.run_line(&running)).await??;
    // Brokers know of it a moment after the controller.
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(())
}

/// How a line begins that grants something.
const GRANT: &str = "kafka-acls.sh --bootstrap-server HOST:9092 --add --allow-principal User:NAME";

async fn allow_on(broker: &Broker, topic: &str, operations: &str) -> Result<()> {
    allow(broker, &format!("{GRANT} {operations} --topic {topic}")).await
}

/// Grants the transactional ids of the task.
async fn allow_ids(broker: &Broker, config: &KafkaConfig) -> Result<()> {
    let prefix = &config.transactional_id_prefix;
    let ids = format!("--operation Write --transactional-id {prefix} --resource-pattern-type prefixed");
    allow(broker, &format!("{GRANT} {ids}")).await
}

/// Grants the ids of the task, and every topic whose name begins with theirs, but not to remove its records or to see its settings.
async fn allow_most(broker: &Broker, config: &KafkaConfig) -> Result<()> {
    let rights = "--operation Create --operation Describe --operation Write --operation Read";
    let topics = format!("--topic {}. --resource-pattern-type prefixed", config.transactional_id_prefix);
    allow(broker, &format!("{GRANT} {rights} {topics}")).await?;
    allow_ids(broker, config).await
}

/// Checks an error, and does what it says.
async fn cured(broker: &Broker, failure: &Error, code: Code, class: Class, words: &[&str]) -> Result<()> {
    ensure!(failure.code() == code && failure.class() == class, "{failure:?}");
    for word in words {
        ensure!(failure.problem().contains(word), "{failure:?} does not name {word}");
    }
    let cure = failure.cure().context("there is no cure")?;
    let [line] = cure.lines.as_slice() else { return Err(anyhow!("not one line: {:?}", cure.lines)) };
    allow(broker, line).await
}

async fn open_fails(config: &KafkaConfig) -> Result<Error> {
    let target = KafkaTarget::connect(config.clone())?;
    let failure = target.open(&TaskId::new("shop")).await.err().context("it was opened")?;
    target.close().await?;
    Ok(failure)
}

/// From nothing to a running task, by what its errors say.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_names_each_grant_that_it_lacks() -> Result<()> {
    let Some(broker) = guarded()? else { return Ok(()) };
    for guarantee in EVERY {
        let (config, _) = configs(&broker, guarantee);
        let failure = open_fails(&config).await?;
        cured(&broker, &failure, TOPIC_DENIED, Class::TaskBroken, &["making topic", &config.state_topic])
            .await?;
        let failure = open_fails(&config).await?;
        let id = format!("{}-shop-", config.transactional_id_prefix);
        cured(&broker, &failure, TRANSACTION_DENIED, Class::TaskBroken, &[&id]).await?;
        let target = KafkaTarget::connect(config.clone())?;
        target.open(&TaskId::new("shop")).await?;
        let people = table("people");
        let failure = target.prepare(&plan(&people)).await.err().context("it was made")?;
        let topic = config.topic_rule.replace("#{source_schema_name}.#{source_table_name}", "public.people");
        ensure!(failure.table() == Some(&people.name), "{failure:?}");
        cured(&broker, &failure, TOPIC_DENIED, Class::TableBroken, &["making topic", &topic]).await?;
        target.prepare(&plan(&people)).await?;
        target.set_state(&people, TableState::Live).await?;
        target.apply(delivery(100, vec![inserts(&people, &[(1, "a"), (2, "b")])])).await?;
        target.close().await?;
    }
    Ok(())
}

/// The state topic is there, and the user may do too little with it.
#[tokio::test(flavor = "multi_thread")]
async fn the_state_topic_wants_to_be_seen_written_and_read() -> Result<()> {
    let Some(broker) = guarded()? else { return Ok(()) };
    for (granted, doing) in [
        ("--operation Create", "asking for topic"),
        ("--operation Describe --operation Read", "storing the task's progress"),
        ("--operation Write", "reading topic"),
    ] {
        let (config, free) = configs(&broker, Guarantee::ExactlyOnce);
        let admin = KafkaTarget::connect(free)?;
        admin.open(&TaskId::new("other")).await?;
        admin.close().await?;
        allow_ids(&broker, &config).await?;
        allow_on(&broker, &config.state_topic, granted).await?;
        let failure = open_fails(&config).await?;
        cured(&broker, &failure, TOPIC_DENIED, Class::TaskBroken, &[doing, &config.state_topic]).await?;
        let target = KafkaTarget::connect(config)?;
        target.open(&TaskId::new("shop")).await?;
        target.close().await?;
    }
    Ok(())
}

/// A topic that the user may see and not write is its table's error; the others go on, and it does after the grant.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_not_be_written_sets_its_table_aside() -> Result<()> {
    let Some(broker) = guarded()? else { return Ok(()) };
    for guarantee in EVERY {
        let (config, free) = configs(&broker, guarantee);
        let (admin, tables) = live(free.clone(), &["mute", "people"]).await?;
        let (mute, people) = (&tables[0], &tables[1]);
        admin.close().await?;
        let topic = |name: &str| {
            config.topic_rule.replace("#{source_schema_name}.#{source_table_name}", &format!("public.{name}"))
        };
        allow_on(&broker, &config.state_topic, "--operation Read --operation Write").await?;
        allow_on(&broker, &topic("people"), "--operation Read --operation Write").await?;
        allow_on(&broker, &topic("mute"), "--operation Describe").await?;
        allow_ids(&broker, &config).await?;

        let target = Arc::new(KafkaTarget::connect(config.clone())?);
        target.open(&TaskId::new("shop")).await?;
        let changes = || vec![inserts(people, &[(1, "a")]), inserts(mute, &[(1, "a")])];
        let failure = target.apply(delivery(100, changes())).await.err().context("it was written")?;
        ensure!(failure.table() == Some(&mute.name), "{guarantee:?}: {failure:?}");
        let state = TableState::Broken { code: failure.code().to_string(), problem: failure.to_string() };
        target.set_state(mute, state).await?;
        let others = delivery(100, vec![inserts(people, &[(1, "a")])]);
        if let Err(failure) = target.apply(Arc::clone(&others)).await {
            // Where the refused topic was in a transaction's first request, the brokers know no transaction that could be aborted, and
            // the producer is of no use any more: as after every passing error, the engine opens anew.
            ensure!(failure.class() == Class::Transient, "{guarantee:?}: {failure:?}");
            target.open(&TaskId::new("shop")).await?;
            target.apply(others).await?;
        }
        cured(&broker, &failure, TOPIC_DENIED, Class::TableBroken, &["writing to topic", &topic("mute")])
            .await?;
        let resync = failure.cure().is_some_and(|cure| cure.commands.len() == 1);
        ensure!(resync, "{failure:?} does not say that the table is copied again");
        target.close().await?;

        let target = KafkaTarget::connect(config)?;
        target.open(&TaskId::new("shop")).await?;
        target.set_state(mute, TableState::Live).await?;
        target.apply(delivery(200, vec![inserts(mute, &[(2, "b")]), inserts(people, &[(2, "b")])])).await?;
        // Reading is not among what a task needs of its tables' topics.
        let reader = KafkaTarget::connect(free)?;
        let counts = (reader.inspect().count(mute).await?, reader.inspect().count(people).await?);
        ensure!(counts.1 == 2, "{guarantee:?}: {counts:?}");
        // At least once: what was sent beside the refused record may have arrived with it.
        ensure!(counts.0 == 1, "{guarantee:?}: {counts:?}");
        target.close().await?;
    }
    Ok(())
}

/// A topic beside the tables' own is the task's, and its error names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_for_transactions_that_may_not_be_written_is_said() -> Result<()> {
    let Some(broker) = guarded()? else { return Ok(()) };
    for guarantee in EVERY {
        let (mut config, mut free) = configs(&broker, guarantee);
        let topic = format!("{}.transactions", config.transactional_id_prefix);
        (config.transaction_topic, free.transaction_topic) = (Some(topic.clone()), Some(topic.clone()));
        let (admin, tables) = live(free.clone(), &["people"]).await?;
        admin.close().await?;
        allow_ids(&broker, &config).await?;
        allow_on(&broker, &config.state_topic, "--operation Read --operation Write").await?;
        let people = format!("{}.public.people", config.transactional_id_prefix);
        allow_on(&broker, &people, "--operation Write").await?;
        allow_on(&broker, &topic, "--operation Describe").await?;

        let target = Arc::new(KafkaTarget::connect(config.clone())?);
        target.open(&TaskId::new("shop")).await?;
        let changes = || vec![inserts(&tables[0], &[(1, "a")])];
        let failure = target.apply(delivery(100, changes())).await.err().context("it was written")?;
        target.close().await?;
        cured(&broker, &failure, TOPIC_DENIED, Class::TaskBroken, &["writing to topic", &topic]).await?;
        let target = KafkaTarget::connect(config)?;
        target.open(&TaskId::new("shop")).await?;
        target.apply(delivery(100, changes())).await?;
        target.close().await?;
    }
    Ok(())
}

/// How large a record may be has to be known where too large ones go elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn limits_that_may_not_be_asked_for_are_said() -> Result<()> {
    let Some(broker) = guarded()? else { return Ok(()) };
    let (mut config, _) = configs(&broker, Guarantee::ExactlyOnce);
    config.dead_letter_topic = Some(format!("{}.dead", config.transactional_id_prefix));
    allow_most(&broker, &config).await?;
    let target = KafkaTarget::connect(config.clone())?;
    target.open(&TaskId::new("shop")).await?;
    let failure = target.prepare(&plan(&table("people"))).await.err().context("it was asked for")?;
    ensure!(failure.code() == TOPIC_DENIED && failure.class() == Class::TaskBroken, "{failure:?}");
    let line = failure.cure().and_then(|cure| cure.lines.first()).context("no line")?;
    ensure!(line.contains("--operation DescribeConfigs"), "{line}");
    allow(&broker, &line.replace("PREFIX", &config.transactional_id_prefix)).await?;
    target.prepare(&plan(&table("people"))).await?;
    target.close().await?;
    Ok(())
}

/// Emptying and replacing want a grant of their own, and are not passed over without it.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_may_not_be_removed_are_said() -> Result<()> {
    let Some(broker) = guarded()? else { return Ok(()) };
    for (if_exists, doing) in
        [(IfTargetExists::Truncate, "emptying topic"), (IfTargetExists::Replace, "removing topic")]
    {
        let (config, free) = configs(&broker, Guarantee::ExactlyOnce);
        let elsewhere = KafkaConfig { state_topic: format!("{}.elsewhere", free.state_topic), ..free };
        let (admin, tables) = live(elsewhere, &["people"]).await?;
        admin.apply(delivery(100, vec![inserts(&tables[0], &[(1, "old")])])).await?;
        admin.close().await?;
        allow_most(&broker, &config).await?;
        let target = KafkaTarget::connect(config)?;
        target.open(&TaskId::new("shop")).await?;
        let plan = TablePlan { if_exists, ..plan(&tables[0]) };
        let failure = target.prepare(&plan).await.err().context("it was emptied")?;
        cured(&broker, &failure, TOPIC_DENIED, Class::TableBroken, &[doing, "public.people"]).await?;
        target.prepare(&plan).await?;
        let count = target.inspect().count(&tables[0]).await?;
        ensure!(count == 0, "{if_exists:?}: {count} rows are left");
        target.close().await?;
    }
    Ok(())
}
