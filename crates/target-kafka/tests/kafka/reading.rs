//! Topics that are read back one after the other, over one connection.

use anyhow::{Result, ensure};
use pgferry_pipeline::Target;

use crate::making::{broker, config, delivery, inserts, live};

/// A large topic's partitions are held back while it is read, and tell their ends more than once: none of them is the next topic's.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_topic_is_whole_after_a_large_one() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    let (target, tables) = live(config(&broker), &["large", "small"]).await?;
    let (large, small) = (&tables[0], &tables[1]);
    let many: Vec<(u32, &str)> = (0..60_000).map(|id| (id, "x")).collect();
    let few: Vec<(u32, &str)> = (0..30).map(|id| (id, "x")).collect();
    target.apply(delivery(100, vec![inserts(large, &many), inserts(small, &few)])).await?;
    for round in 0..12 {
        let counts = (target.inspect().count(large).await?, target.inspect().count(small).await?);
        ensure!(counts == (60_000, 30), "round {round}: {counts:?}");
    }
    target.close().await?;
    Ok(())
}
