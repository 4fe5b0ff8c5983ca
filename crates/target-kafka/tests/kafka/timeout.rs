//! A transaction that stays open for longer than the brokers wait.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgferry_model::{Class, Position, Slice, TaskId};
use pgferry_pipeline::{Receipt, Target};
use pgferry_target_kafka::error::TRANSACTION_TIMEOUT;
use pgferry_target_kafka::{Guarantee, KafkaConfig, KafkaTarget};

use crate::making::{broker, config, delivery, inserts, live};

const SHORT: Duration = Duration::from_secs(2);

fn with_timeout(config: &KafkaConfig, timeout: &str) -> KafkaConfig {
    let mut config = config.clone();
    config.properties.push(("transaction.timeout.ms".to_owned(), timeout.to_owned()));
    config
}

/// The brokers give it up; nothing of it is visible, and with a longer time the same delivery arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_open_for_too_long_says_which_setting_to_raise() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    // The brokers look every second for what is open for too long. The next slice notices it, or the end of the transaction.
    for late in [Slice::Part, Slice::Last] {
        let config = KafkaConfig { guarantee: Guarantee::ExactlyOnce, ..config(&broker) };
        let (target, tables) =
            live(with_timeout(&config, &SHORT.as_millis().to_string()), &["people"]).await?;
        let people = &tables[0];
        let slice = |slice: Slice, rows: &[(u32, &str)]| {
            let mut delivery = Arc::unwrap_or_clone(delivery(100, vec![inserts(people, rows)]));
            delivery.slice = slice;
            Arc::new(delivery)
        };
        target.apply(slice(Slice::Part, &[(1, "a")])).await?;
        tokio::time::sleep(SHORT + Duration::from_millis(2_500)).await;
        let rest = slice(late, &[(2, "b")]);
        let failure = target.apply(rest).await.err().context("it was committed")?;
        ensure!(failure.code() == TRANSACTION_TIMEOUT, "{late:?}: {failure:?} {:?}", failure.cause());
        ensure!(failure.class() == Class::TaskBroken && failure.problem().contains("2 s"), "{failure:?}");
        let line = failure.cure().and_then(|cure| cure.lines.first().cloned()).unwrap_or_default();
        ensure!(line.contains("transaction.timeout.ms"), "{line}");
        target.close().await?;

        let target = KafkaTarget::connect(with_timeout(&config, "60000"))?;
        let held = target.open(&TaskId::new("shop")).await?;
        ensure!(held.position.is_none(), "{held:?}");
        let count = target.inspect().count(people).await?;
        ensure!(count == 0, "{late:?}: {count} rows of a transaction that was given up");
        target.apply(slice(Slice::Part, &[(1, "a")])).await?;
        tokio::time::sleep(SHORT + Duration::from_secs(1)).await;
        let receipt = target.apply(slice(Slice::Last, &[(2, "b")])).await?;
        ensure!(receipt == Receipt::Durable(Position::from_lsn(100)), "{receipt:?}");
        let count = target.inspect().count(people).await?;
        ensure!(count == 2, "{late:?}: {count} rows");
        target.close().await?;
    }
    Ok(())
}

/// Longer than the brokers allow: said at the start.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_may_not_be_open_for_longer_than_the_brokers_allow() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    let config = KafkaConfig { guarantee: Guarantee::ExactlyOnce, ..config(&broker) };
    let target = KafkaTarget::connect(with_timeout(&config, "3600000"))?;
    let failure = target.open(&TaskId::new("shop")).await.err().context("it was opened")?;
    ensure!(failure.code() == TRANSACTION_TIMEOUT, "{failure:?}");
    let line = failure.cure().and_then(|cure| cure.lines.first().cloned()).unwrap_or_default();
    let (_, timeout) = line.split_once("= \"").context(line.clone())?;
    let target = KafkaTarget::connect(with_timeout(&config, timeout.split('"').next().unwrap_or_default()))?;
    target.open(&TaskId::new("shop")).await?;
    target.close().await?;
    Ok(())
}
