//! The crash matrix: seeds of workloads, settings and kills; after each, both sides are equal, nothing went back, nothing is left.
//!
//! ```text
//!   seed ──> Plan (settings, steps) ──> Seed (scene, others who write, program killed again and again) ──> Tally
//! ```
//!
//! Invariants: a seed is bounded in time; one that fails keeps its folder and says how to run it again, and the others go on. The
//! plan, the statements and the armed passages are the seed's; their interleaving is the machine's, so a failure may need several
//! runs of its seed to come again.

mod ledger;
mod others;
mod plan;
mod seed;
mod tally;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::mpsc;

pub use plan::{Moment, Plan, Step};
pub use seed::Seed;
pub use tally::Tally;

/// A seed that takes longer hangs.
const SEED_LIMIT: Duration = Duration::from_secs(300);

/// What to run.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The target's kind.
    pub target: String,
    pub seeds: Range<u64>,
    /// How long others write in each seed; after that only as much as each further step needs.
    pub load: Duration,
    /// Seeds at a time.
    pub parallel: u64,
    /// Where folders of failed seeds are kept.
    pub keep: PathBuf,
}

/// How one seed ended.
#[derive(Debug)]
pub struct Ended {
    pub plan: Plan,
    pub tally: Tally,
    pub failure: Option<anyhow::Error>,
    /// Where its folder is, if it failed.
    pub kept: Option<PathBuf>,
}

impl Matrix {
    /// The command that runs one seed again.
    pub fn again(&self, seed: u64) -> String {
        format!(
            "cargo xtask crash --target {} --seeds {seed}..{} --seconds {}",
            self.target,
            seed + 1,
            self.load.as_secs_f64()
        )
    }

    /// Runs every seed; `report` hears of each as it ends. When `stop` is done, no further one begins.
    pub async fn run(&self, stop: impl Future<Output = ()>, mut report: impl FnMut(&Ended)) -> Result<Tally> {
        let next = Arc::new(AtomicU64::new(self.seeds.start));
        let (sender, mut ends) = mpsc::unbounded_channel();
        let workers: Vec<_> = (0..self.parallel.max(1))
            .map(|_| {
                let (matrix, next, sender) = (self.clone(), Arc::clone(&next), sender.clone());
                tokio::spawn(async move {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= matrix.seeds.end || sender.send(Box::pin(matrix.seed(seed)).await).is_err()
                        {
                            return;
                        }
                    }
                })
            })
            .collect();
        drop(sender);
        let mut sum = Tally::default();
        let mut stop = std::pin::pin!(stop);
        let mut stopped = false;
        loop {
            tokio::select! {
                ended = ends.recv() => match ended {
                    Some(ended) => {
                        report(&ended);
                        sum.add(&ended.tally);
                    }
                    None => break,
                },
                () = &mut stop, if !stopped => {
                    stopped = true;
                    next.store(self.seeds.end, Ordering::Relaxed);
                }
            }
        }
        for worker in workers {
            worker.await.context("a worker of the matrix panicked")?;
        }
        Ok(sum)
    }

    /// Runs one seed.
    pub async fn seed(&self, number: u64) -> Ended {
        let plan = Plan::of(number);
        let started = Instant::now();
        let mut ended = Ended {
            plan: plan.clone(),
            tally: Tally { seeds: 1, failed: 1, ..Tally::default() },
            failure: None,
            kept: None,
        };
        match Seed::new(plan, &self.target, self.load).await {
            Ok(mut seed) => {
                let run = tokio::time::timeout(SEED_LIMIT, Box::pin(seed.run())).await;
                let run = run.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {SEED_LIMIT:?}")));
                ended.tally = seed.tally.clone();
                if let Err(failure) = run {
                    ended.tally.failed = 1;
                    let folder = self.keep.join(format!("seed-{number}"));
                    let _older = std::fs::remove_dir_all(&folder);
                    ended.failure = Some(match seed.keep(&folder, &failure) {
                        Ok(()) => failure,
                        Err(kept) => failure.context(format!("its folder could not be kept: {kept:#}")),
                    });
                    ended.kept = Some(folder);
                }
                // Dropping the database blocks, and waits for every session of the server to listen: also for those that send to
                // other seeds, which could not read if their thread were blocked here.
                let _panicked = tokio::task::spawn_blocking(move || drop(seed)).await;
            }
            Err(failure) => ended.failure = Some(failure.context("before the first run")),
        }
        ended.tally.took = started.elapsed();
        ended
    }
}
