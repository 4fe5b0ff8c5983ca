//! Transactions that are under way at once: none of them is done again because of another one of the same process.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pgferry_pipeline::Target;
use pgferry_target_databend::DatabendTarget;
use pgferry_testkit::databend::DatabendSettings;

use crate::making::{config, load, own_server, people, plan, rows, task};

const CHUNKS: u32 = 8;

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
