//! Transactions that are under way at once: none of them is done again because of another one of the same process.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgferry_pipeline::Target;
use pgferry_target_databend::{DatabendConfig, DatabendTarget};
use pgferry_testkit::databend::DatabendSettings;

use crate::making::{Changes, config, deliver, live, load, own_server, people, plan, rows, task};

const CHUNKS: u32 = 8;
const DELIVERIES: u64 = 40;

/// A conflict of two chunks would have one of them copied again.
#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_come_at_once_are_copied_once_each() -> Result<()> {
    let Some(server) = own_server(&DatabendSettings::default())? else { return Ok(()) };
    let (config, people) = (config(&server), people());
    let target = Arc::new(DatabendTarget::connect(config)?);
    target.open(&task()).await?;
    target.prepare(&plan(&people)).await.context("prepare")?;
    server.forget_statements()?;
    let loads: Vec<_> = (0..CHUNKS)
        .map(|number| {
            let (target, people) = (Arc::clone(&target), Arc::clone(&people));
            tokio::spawn(async move {
                load(&target, &people, number, &[&[&number.to_string(), "body", "note", "1"]]).await
            })
        })
        .collect();
    for load in loads {
        ensure!(load.await?? == 1, "a chunk of one row");
    }
    let counted = server.statements()?;
    ensure!(counted.get("copy") == Some(&u64::from(CHUNKS)), "{counted:?}");
    ensure!(!counted.contains_key("rollback"), "{counted:?}");
    ensure!(rows(&target, &people).await?.len() == CHUNKS as usize, "rows are missing");
    target.close().await?;
    Ok(())
}

/// A merge of a large table takes long; what is staged meanwhile must not have it done again.
#[tokio::test(flavor = "multi_thread")]
async fn no_merge_is_done_again_because_of_what_is_staged_meanwhile() -> Result<()> {
    let Some(server) = own_server(&DatabendSettings::default())? else { return Ok(()) };
    let config = DatabendConfig { merge_interval: Duration::from_millis(1), ..config(&server) };
    let people = people();
    let target = live(&config, &people, &[]).await?;
    for number in 1..=DELIVERIES {
        let row = [&number.to_string(), "body", "note", "1"];
        deliver(&target, 0x200 + number, vec![Changes::of(&people).insert(&row)]).await?;
    }
    target.close().await?;
    let log = server.log();
    let into = format!("MERGE INTO \"{}\"", config.database.as_deref().unwrap_or_default());
    let merges: Vec<&str> = log.lines().filter_map(|line| line.find(&into).map(|at| &line[at..])).collect();
    ensure!(merges.len() > 3, "too few merges were under way: {}", merges.len());
    let different: HashSet<&&str> = merges.iter().collect();
    ensure!(different.len() == merges.len(), "{} of {} merges", different.len(), merges.len());
    ensure!(
        rows(&target_again(&config).await?, &people).await?.len() == DELIVERIES as usize,
        "rows are missing"
    );
    Ok(())
}

async fn target_again(config: &DatabendConfig) -> Result<DatabendTarget> {
    let target = DatabendTarget::connect(config.clone())?;
    target.open(&task()).await?;
    Ok(target)
}
