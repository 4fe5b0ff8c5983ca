//! The part of the crash matrix that runs with every change: as many seeds as there are failpoints.
#![allow(clippy::panic, reason = "tests stop at the first surprise")]

use std::time::Duration;

use anyhow::{Result, ensure};
use pgferry_pipeline::failpoint;
use pgferry_trial::crash::Matrix;

/// kill -9 at every failpoint and at random moments of every phase, under load; then the same task file again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_failpoint_and_at_random_nothing_is_lost_or_doubled_or_left() -> Result<()> {
    let matrix = Matrix {
        target: "duckdb".to_owned(),
        seeds: 0..failpoint::NAMES.len() as u64,
        load: Duration::from_secs(1),
        parallel: 2,
        keep: std::env::temp_dir().join(format!("pgferry-crash-{}", std::process::id())),
    };
    let mut failures = Vec::new();
    let tally = matrix
        .run(std::future::pending(), |ended| {
            if let Some(failure) = &ended.failure {
                let kept = ended.kept.as_ref().map(|kept| kept.display().to_string()).unwrap_or_default();
                failures.push(format!("{failure:#}\nagain: {}\nkept: {kept}", matrix.again(ended.plan.seed)));
            }
        })
        .await?;
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    ensure!(tally.never_met().is_empty(), "no run has ended at {:?}\n{tally}", tally.never_met());
    ensure!(tally.kills() > 2 * matrix.seeds.end, "too few kills to mean anything:\n{tally}");
    Ok(())
}
