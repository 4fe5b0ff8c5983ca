//! Sends one session's transactions and begins those again that met another session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::Counts;
use super::transaction::{Transaction, Transactions};
use crate::server::connect;

const RETRIES: u32 = 50;

#[derive(Clone, Copy, Debug)]
pub(super) struct Until {
    pub(super) transactions: u64,
    pub(super) instant: Option<Instant>,
}

pub(super) async fn run(
    config: Arc<tokio_postgres::Config>,
    mut source: Transactions,
    until: Until,
    halt: watch::Receiver<bool>,
) -> Result<Counts> {
    let client = connect(&config).await?;
    client
        .batch_execute(
            "SET deadlock_timeout = '20ms'; SET lock_timeout = '20s'; SET statement_timeout = '60s'",
        )
        .await?;
    let mut counts = Counts::default();
    let mut sent = 0;
    while sent < until.transactions
        && !*halt.borrow()
        && until.instant.is_none_or(|instant| Instant::now() < instant)
    {
        let transaction = source.next();
        perform(&client, &transaction, &mut counts).await?;
        sent += 1;
    }
    Ok(counts)
}

async fn perform(client: &Client, transaction: &Transaction, counts: &mut Counts) -> Result<()> {
    for attempt in 0..RETRIES {
        match send(client, transaction).await {
            Ok(()) if transaction.commits => {
                counts.committed += 1;
                for (operation, count) in &transaction.operations {
                    *counts.operations.entry(*operation).or_default() += count;
                }
                return Ok(());
            }
            Ok(()) => {
                counts.rolled_back += 1;
                return Ok(());
            }
            Err((_, error)) if met_another(&error) => {
                client.batch_execute("ROLLBACK").await?;
                counts.retried += 1;
                tokio::time::sleep(Duration::from_millis(u64::from(attempt) * 2)).await;
            }
            Err((statement, error)) => {
                let shown: String = statement.chars().take(300).collect();
                return Err(error).with_context(|| format!("the workload's statement failed: {shown}"));
            }
        }
    }
    bail!("a transaction met other sessions {RETRIES} times in a row")
}

async fn send<'a>(
    client: &Client,
    transaction: &'a Transaction,
) -> Result<(), (&'a str, tokio_postgres::Error)> {
    for statement in &transaction.statements {
        client.batch_execute(statement).await.map_err(|error| (statement.as_str(), error))?;
    }
    Ok(())
}

/// Whether an error says that two sessions touched the same rows, so that the same statements can succeed next time.
fn met_another(error: &tokio_postgres::Error) -> bool {
    let expected = [
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::UNIQUE_VIOLATION,
        SqlState::LOCK_NOT_AVAILABLE,
    ];
    error.code().is_some_and(|code| expected.contains(code))
}
