//! kill -9 at every failpoint and at random moments, in both phases, under load; then the same task file again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgferry_pipeline::failpoint;
use pgferry_testkit::random::SeededRandom;
use pgferry_testkit::workload::{Stop, Workload};

use crate::scene::{Scene, options};
use crate::types::text_overrides;

const MAJOR: u32 = 15;
/// SIGABRT: what a failpoint ends the process with.
const ABORTED: i32 = 6;

async fn filled(seed: u64) -> Result<(Scene, Workload)> {
    let small = format!("batch_size = 100\nlimits = {{ memory = \"4MiB\" }}\n{}", text_overrides(MAJOR));
    let scene = Scene::new(MAJOR, &small).await?;
    let mut workload = Workload::new(seed, options(MAJOR));
    let client = scene.database.client().await?;
    workload.create_schema(&client).await?;
    client.batch_execute("CREATE TABLE public.bulk (id bigint PRIMARY KEY, filler text)").await?;
    // Small enough to stream every larger transaction, so that spools and slices are met.
    client
        .batch_execute(&format!(
            "ALTER DATABASE \"{}\" SET logical_decoding_work_mem = '64kB'",
            scene.database.name()
        ))
        .await?;
    workload.fill(&client, 150).await?;
    Ok((scene, workload))
}

/// Changes of every kind, and a transaction that fits neither the spool's memory nor a delivery.
async fn change(scene: &Scene, workload: &mut Workload, round: u64) -> Result<()> {
    workload.run(&scene.database.url(), Stop::Count(20), 2).await?;
    let insert = format!(
        "INSERT INTO public.bulk SELECT {round} * 1000000 + n, repeat(md5(n::text), 4) FROM generate_series(1, 30000) n"
    );
    scene.database.execute(&insert).await
}

/// Killed in the snapshot, then in the stream, then in the stream again; whichever of them the failpoint is in, it is met.
async fn killed_at(name: &str, seed: u64) -> Result<bool> {
    let (scene, mut workload) = filled(seed).await?;
    let mut met = scene.ferry().failpoint(name, 1).run().await?.signal() == Some(ABORTED);
    for nth in [1, 2] {
        change(&scene, &mut workload, u64::from(nth)).await?;
        met |= scene.ferry().failpoint(name, nth).run().await?.signal() == Some(ABORTED);
        scene.run().await?;
        scene.assert_equal(false).await?;
    }
    scene.assert_clean().await?;
    Ok(met)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_failpoint_nothing_is_lost_or_doubled() -> Result<()> {
    let mut never_met = Vec::new();
    for (at, name) in failpoint::NAMES.iter().enumerate() {
        if !killed_at(name, 100 + at as u64).await.with_context(|| (*name).to_owned())? {
            never_met.push(*name);
        }
    }
    ensure!(never_met.is_empty(), "failpoints that no run has met: {never_met:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments_under_load_nothing_is_lost_or_doubled() -> Result<()> {
    for seed in 0..4 {
        killed_often(seed).await.with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

/// Five kills in a row, from the first moment on, while others write.
async fn killed_often(seed: u64) -> Result<()> {
    let (scene, mut workload) = filled(1_000 + seed).await?;
    let load = workload.start(&scene.database.url(), Stop::After(Duration::from_secs(8)), 2)?;
    let mut random = SeededRandom::new(seed);
    for kill in 0..5u64 {
        let outcome = scene
            .ferry()
            .start()?
            .kill_within(random.below(1 << 30), Duration::from_millis(30), Duration::from_millis(900))
            .await
            .with_context(|| format!("kill {kill}"))?;
        ensure!(outcome.signal() == Some(9) || outcome.status.success(), "{}", outcome.stderr);
    }
    load.join().await?;
    scene.run().await?;
    scene.assert_equal(false).await?;
    scene.assert_clean().await
}
