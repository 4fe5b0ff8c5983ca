//! Schema registries that are not there, are something else, or do not take a table's schema.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pgferry_model::{Class, Outcome, TaskId, TypeKind};
use pgferry_pipeline::{SchemaChange, Target};
use pgferry_target_kafka::error::{REGISTRY_SETTINGS, REGISTRY_UNREACHABLE, SCHEMA_REFUSED};
use pgferry_target_kafka::{Format, KafkaConfig, KafkaTarget, RegistryConfig};
use pgferry_testkit::kafka::Broker;
use pgferry_testkit::schema_registry::SchemaRegistry;

use crate::making::{broker, config, delivery, inserts, live, or_said, plan, table};

fn in_avro(broker: &Broker, url: &str) -> KafkaConfig {
    let registry = RegistryConfig { url: url.to_owned(), ..RegistryConfig::default() };
    KafkaConfig { format: Format::Avro, schema_registry: Some(registry), ..config(broker) }
}

/// The check tells it before the start; a run tries again later.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_answer_is_tried_again() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    let closed = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let (target, tables) = live(in_avro(&broker, &format!("http://{closed}")), &["people"]).await?;
    let findings = target.check(&[plan(&tables[0])]).await?;
    let finding = findings.iter().find(|finding| finding.check == "target.schema_registry");
    let finding = finding.context("the registry was not looked at")?;
    ensure!(finding.outcome == Outcome::Failed && finding.code == Some(REGISTRY_UNREACHABLE), "{finding:?}");
    let changes = delivery(100, vec![inserts(&tables[0], &[(1, "a")])]);
    let failure = target.apply(changes).await.err().context("it was written")?;
    ensure!(failure.code() == REGISTRY_UNREACHABLE && failure.class() == Class::Transient, "{failure}");
    target.close().await?;
    Ok(())
}

/// Another server at the address is no registry, and no table's fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_no_registry_is_told() -> Result<()> {
    let (Some(broker), Some(registry)) = (broker()?, or_said(SchemaRegistry::shared()?)?) else {
        return Ok(());
    };
    let elsewhere = registry.url().replace("/apis/ccompat/v7", "/nothing");
    let target = KafkaTarget::connect(in_avro(&broker, &elsewhere))?;
    let findings = target.check(&[plan(&table("people"))]).await?;
    let failed: Vec<_> = findings.iter().filter(|finding| finding.outcome == Outcome::Failed).collect();
    ensure!(failed.len() == 1 && failed[0].code == Some(REGISTRY_SETTINGS), "{failed:?}");
    Ok(())
}

/// The registry's own rule decides; the check knows it before.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_the_registry_does_not_take_is_its_tables_error() -> Result<()> {
    let (Some(broker), Some(registry)) = (broker()?, or_said(SchemaRegistry::shared()?)?) else {
        return Ok(());
    };
    let config = in_avro(&broker, &registry.url());
    let topic = format!("{}.public.people", config.transactional_id_prefix);
    let (target, tables) = live(config.clone(), &["people", "orders"]).await?;
    let (people, orders) = (&tables[0], &tables[1]);
    target.apply(delivery(100, vec![inserts(people, &[(1, "a")])])).await?;
    let rule = ureq::put(format!("{}/config/{topic}-value", registry.url()))
        .header("content-type", "application/json")
        .send(r#"{"compatibility":"BACKWARD"}"#)?;
    ensure!(rule.status().is_success(), "{}", rule.status());
    let mut after = (**people).clone();
    after.columns[1].data_type.kind = TypeKind::Int4;
    let change = SchemaChange { before: Arc::clone(people), after: Arc::new(after) };
    target.evolve(&change).await?;
    let refused = target.apply(delivery(200, vec![inserts(&change.after, &[(2, "3")])])).await;
    let failure = refused.err().context("it was taken")?;
    ensure!(failure.code() == SCHEMA_REFUSED && failure.table() == Some(&people.name), "{failure}");
    ensure!(failure.cause().is_some_and(|cause| !cause.is_empty()), "the registry's words are not told");
    target.apply(delivery(200, vec![inserts(orders, &[(1, "x")])])).await?;
    target.close().await?;
    let looking = KafkaTarget::connect(config)?;
    let findings = looking.check(&[plan(&change.after)]).await?;
    let told = findings.iter().find(|finding| finding.check == "target.schema").context("it is not told")?;
    ensure!(told.outcome == Outcome::Failed && told.code == Some(SCHEMA_REFUSED), "{told:?}");
    ensure!(looking.held(&TaskId::new("shop")).await?.is_some());
    Ok(())
}
