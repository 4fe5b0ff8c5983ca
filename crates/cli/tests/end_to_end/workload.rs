//! The seeded workload, through snapshot and changes, at rest and under load.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgferry_testkit::workload::{Stop, Workload};

use crate::scene::{MAJORS, Scene, options, undecodable};
use crate::types::text_overrides;

async fn at_rest(major: u32) -> Result<()> {
    let scene = Scene::new(major, &text_overrides(major)).await?;
    let mut workload = Workload::new(u64::from(major), options(major));
    let client = scene.database.client().await?;
    workload.create_schema(&client).await?;
    workload.fill(&client, 300).await?;
    scene.run().await?;
    let rows = scene.assert_equal(true).await?;
    ensure!(rows > 1_000, "{rows} rows are too few to mean anything");
    for _ in 0..2 {
        workload.run(&scene.database.url(), Stop::Count(60), 3).await?;
        scene.run().await?;
        scene.assert_equal(false).await?;
    }
    scene.assert_clean().await
}

async fn under_load(major: u32) -> Result<()> {
    let scene = Scene::new(major, &text_overrides(major)).await?;
    let mut workload = Workload::new(500 + u64::from(major), options(major));
    let client = scene.database.client().await?;
    workload.create_schema(&client).await?;
    workload.fill(&client, 500).await?;
    let load = workload.start(&scene.database.url(), Stop::After(Duration::from_secs(5)), 3)?;
    for _ in 0..3 {
        match scene.run().await {
            Err(failure) if undecodable(&failure) => scene.copy_again().await?,
            done => drop(done?),
        }
    }
    load.join().await?;
    scene.run().await?;
    scene.assert_equal(false).await?;
    scene.assert_clean().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_and_changes_arrive_value_by_value_on_each_major() -> Result<()> {
    for major in MAJORS {
        at_rest(major).await.with_context(|| format!("PostgreSQL {major}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_handover_under_load_has_no_gap_and_no_overlap() -> Result<()> {
    for major in MAJORS {
        under_load(major).await.with_context(|| format!("PostgreSQL {major}"))?;
    }
    Ok(())
}
