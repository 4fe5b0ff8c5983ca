//! Brokers that go down, topics that go away, records that are too large.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgferry_model::{Class, Position, TableState, TaskId};
use pgferry_pipeline::{Receipt, Target};
use pgferry_target_kafka::error::{RECORD_TOO_LARGE, TABLE_GONE};
use pgferry_target_kafka::{Guarantee, KafkaConfig};

use crate::making::{broker, config, delivery, inserts, live, own_broker};

pub(crate) const EVERY: [Guarantee; 2] = [Guarantee::AtLeastOnce, Guarantee::ExactlyOnce];

/// A delivery under way waits for a broker that comes back within a minute, and is there once.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_ends_and_comes_back_costs_no_row() -> Result<()> {
    let Some(broker) = own_broker()? else { return Ok(()) };
    for guarantee in EVERY {
        let (target, tables) = live(KafkaConfig { guarantee, ..config(&broker) }, &["people"]).await?;
        let people = &tables[0];
        target.apply(delivery(100, vec![inserts(people, &[(1, "a"), (2, "b")])])).await?;
        broker.kill9()?;
        let (applying, more) = (Arc::clone(&target), inserts(people, &[(3, "c"), (4, "d")]));
        let applied = tokio::spawn(async move {
            let mut outcome = applying.apply(delivery(200, vec![more.clone()])).await;
            // As the engine does it: what became of it is read, then it is tried again.
            for _ in 0..5 {
                let Err(failure) = &outcome else { break };
                assert_eq!(failure.class(), Class::Transient, "{failure}");
                let held = applying.open(&TaskId::new("shop")).await;
                if held.is_ok_and(|held| held.position >= Some(Position::from_lsn(200))) {
                    return Ok(Receipt::Durable(Position::from_lsn(200)));
                }
                outcome = applying.apply(delivery(200, vec![more.clone()])).await;
            }
            outcome
        });
        tokio::time::sleep(Duration::from_secs(2)).await;
        broker.resume()?;
        let receipt = applied.await??;
        ensure!(receipt == Receipt::Durable(Position::from_lsn(200)), "{guarantee:?}: {receipt:?}");
        let count = target.inspect().count(people).await?;
        ensure!(count == 4, "{guarantee:?}: {count} rows");
        target.close().await?;
    }
    Ok(())
}

/// Nothing of the delivery stays (exactly once), the error is the table's, and the others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_its_topic_does_not_take_is_its_tables_error() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    for guarantee in EVERY {
        let (target, tables) =
            live(KafkaConfig { guarantee, ..config(&broker) }, &["large", "people"]).await?;
        let (large, people) = (&tables[0], &tables[1]);
        // Nothing that compression makes small.
        let mut state = 1u64;
        let body: String = (0..3_000_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                char::from(b'!' + ((state >> 33) % 90) as u8)
            })
            .collect();
        let changes = vec![inserts(people, &[(1, "a")]), inserts(large, &[(1, &body)])];
        let failure = target.apply(delivery(100, changes)).await.err().context("it was taken")?;
        ensure!(failure.code() == RECORD_TOO_LARGE, "{guarantee:?}: {failure} {:?}", failure.cause());
        ensure!(failure.class() == Class::TableBroken && failure.table() == Some(&large.name), "{failure}");
        ensure!(!failure.to_string().contains(&body[..20]), "the error shows the value");
        let state = TableState::Broken { code: failure.code().to_string(), problem: failure.to_string() };
        target.set_state(large, state).await?;
        target.apply(delivery(100, vec![inserts(people, &[(1, "a")])])).await?;
        let count = target.inspect().count(people).await?;
        ensure!(count == 1, "{guarantee:?}: {count} rows");
        target.close().await?;
    }
    Ok(())
}

/// A topic that something removes while the task runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_removed_under_a_run_is_its_tables_error() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    for guarantee in EVERY {
        let config = KafkaConfig { guarantee, ..config(&broker) };
        let (target, tables) = live(config.clone(), &["gone", "people"]).await?;
        let (gone, people) = (&tables[0], &tables[1]);
        target.apply(delivery(100, vec![inserts(gone, &[(1, "a")]), inserts(people, &[(1, "a")])])).await?;
        crate::contract::remove_topic(&config, gone).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let more = || delivery(200, vec![inserts(gone, &[(2, "b")])]);
        let mut failure = target.apply(more()).await.err().context("it was written")?;
        // The client may notice a lost leader first; as the engine does it, the lease is taken anew and it is tried again.
        for _ in 0..5 {
            if !target.outcome_unknown(&failure) {
                break;
            }
            target.open(&TaskId::new("shop")).await?;
            failure = target.apply(more()).await.err().context("it was written")?;
        }
        ensure!(failure.code() == TABLE_GONE, "{guarantee:?}: {failure} {:?}", failure.cause());
        ensure!(failure.table() == Some(&gone.name), "{guarantee:?}: {failure}");
        let rest = || delivery(200, vec![inserts(people, &[(2, "b")])]);
        if let Err(failure) = target.apply(rest()).await {
            // What the brokers think of the transaction may have to be settled by a new lease.
            ensure!(target.outcome_unknown(&failure), "{guarantee:?}: {failure} {:?}", failure.cause());
            target.open(&TaskId::new("shop")).await?;
            target.apply(rest()).await?;
        }
        let count = target.inspect().count(people).await?;
        ensure!(count == 2, "{guarantee:?}: {count} rows");
        target.close().await?;
    }
    Ok(())
}
