//! The soak: the program runs for long under a mixed load, and what it holds stays as it is.
//!
//! ```text
//!   others write, small and large ──> pgferry ──> target
//!                                        └── every few seconds: memory, files, threads, the log that its slot holds back
//! ```
//!
//! Judged: what is usual (the median) in the last quarter of the time against the second one, when everything has been used once. In the
//! end both sides are equal and nothing is left behind.
//!
//! Limit: the target's own cache is part of the process, where it has one. The data stays as large as it becomes in the first minutes:
//! old rows are deleted.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use pgferry_model::{Progress, TableName};
use pgferry_testkit::process::RunningFerry;
use pgferry_testkit::workload::{Counts, Options, Stop, Workload};
use pgferry_testkit::{Database, Server};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::scene::{Scene, expect_code, options, slot};
use crate::target_place::{self, TargetPlace};

const MAJOR: u32 = 15;
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
const LARGE_EVERY: Duration = Duration::from_secs(20);
const LARGE_ROWS: u32 = 60_000;
/// Fresh keys that stay: what a minute or so brings.
const KEYS_KEPT: u64 = 100_000;
/// How long the end may take: what is on its way, and the last checkpoint.
const END_WITHIN: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;

/// What is tried.
#[derive(Clone, Debug)]
pub struct Soak {
    /// The target's kind.
    pub target: String,
    /// What decides the load.
    pub seed: u64,
    /// How long others write.
    pub time: Duration,
    /// How many of them.
    pub sessions: u64,
}

/// A place whose target keeps little in memory of its own.
struct Small(Arc<dyn TargetPlace>);

#[async_trait]
impl TargetPlace for Small {
    fn connection(&self) -> String {
        self.0.connection() + &self.0.small_memory()
    }

    fn sections(&self, major: u32) -> String {
        self.0.sections(major)
    }

    fn same_value(&self, source: &str, target: &str) -> bool {
        self.0.same_value(source, target)
    }

    async fn held(&self, folder: &Path) -> Result<Option<Progress>> {
        self.0.held(folder).await
    }

    async fn leftovers(&self, folder: &Path, tables: &[TableName]) -> Result<Vec<String>> {
        self.0.leftovers(folder, tables).await
    }
}

/// What one look saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Resident memory in bytes.
    pub memory: u64,
    /// Open files and sockets.
    pub files: u64,
    /// Threads.
    pub threads: u64,
    /// Bytes of the source's log that the slot keeps.
    pub held_log: u64,
}

/// What was seen in all.
#[derive(Clone, Debug, Default)]
pub struct Soaked {
    /// In the order of time.
    pub samples: Vec<Sample>,
    /// What others wrote.
    pub counts: Counts,
    /// Rows that were equal in the end.
    pub rows_compared: u64,
}

type Figure = (&'static str, fn(&Sample) -> u64, u64);

/// Each figure with what it may grow by on top of a tenth.
const FIGURES: [Figure; 4] = [
    ("memory MiB", |sample| sample.memory / MIB, 32),
    ("open files", |sample| sample.files, 4),
    ("threads", |sample| sample.threads, 4),
    ("held log MiB", |sample| sample.held_log / MIB, 48),
];

impl Soak {
    /// Runs it. `each` hears of every look. Fails when both sides differ, something is left, or a figure has grown.
    pub async fn run(&self, mut each: impl FnMut(&Sample)) -> Result<Soaked> {
        let usual = target_place::place(&self.target).await?;
        let small_memory = usual.small_memory();
        let place: Arc<dyn TargetPlace> = Arc::new(Small(usual));
        let entries = place.sections(MAJOR);
        let scene = Scene::between(&Server::shared(MAJOR).await?, place, &entries).await?;
        let mut workload = Workload::new(self.seed, Options { wide_columns: 40, ..options(MAJOR) });
        let client = scene.database.client().await?;
        workload.create_schema(&client).await?;
        client
            .batch_execute("CREATE TABLE public.bulk (id bigint PRIMARY KEY, round int, filler text)")
            .await?;
        workload.fill(&client, 300).await?;
        let file = scene.task_file();
        let mut ferry = scene.command(&["run", &file])?.limit(self.time + END_WITHIN).start()?;
        let load = workload.start(&scene.database.url(), Stop::After(self.time), self.sessions)?;
        let large = tokio::spawn(large_transactions(client, workload.trim_statements(KEYS_KEPT), self.time));
        let samples = self.watch(&scene, &mut ferry, &mut each).await?;
        let counts = load.join().await?;
        large.await.context("the large transactions' task ended")??;
        ferry.signal("TERM")?;
        expect_code(&ferry.wait().await?, &[0])?;
        let last = scene.ferry().limit(END_WITHIN).run().await?;
        expect_code(&last, &[0]).context("the last run")?;
        // The limit is the run's: a comparison reads every column of 2,048 rows at once.
        let task = std::fs::read_to_string(&file)?;
        std::fs::write(&file, task.replacen(&small_memory, "", 1))?;
        let rows_compared = scene.assert_equal(false).await?;
        scene.assert_clean().await?;
        let soaked = Soaked { samples, counts, rows_compared };
        let grown = soaked.grown();
        ensure!(grown.is_empty(), "grown: {}\n{soaked}", grown.join(", "));
        Ok(soaked)
    }

    async fn watch(
        &self,
        scene: &Scene,
        ferry: &mut RunningFerry,
        each: &mut impl FnMut(&Sample),
    ) -> Result<Vec<Sample>> {
        let until = Instant::now() + self.time;
        let mut samples = Vec::new();
        while Instant::now() < until {
            if ferry.ends_within(SAMPLE_EVERY).await? {
                bail!("the program ended:\n{}\n{}", ferry.stdout(), ferry.stderr());
            }
            let sample = look(&scene.database, ferry.pid()).await?;
            each(&sample);
            samples.push(sample);
        }
        Ok(samples)
    }
}

/// Inserted, changed and deleted again, each larger than what the server decodes in memory: streamed while in progress. Old rows of the
/// other tables go too.
async fn large_transactions(client: Client, trims: Vec<String>, time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    let mut round = 0;
    while Instant::now() < until {
        round += 1;
        let sql = format!(
            "BEGIN; DELETE FROM public.bulk WHERE round < {round}; \
             INSERT INTO public.bulk SELECT n, {round}, repeat(md5((n * {round})::text), 6) FROM generate_series(1, {LARGE_ROWS}) n; \
             UPDATE public.bulk SET filler = filler || 'x' WHERE id % 3 = 0; COMMIT"
        );
        client.batch_execute(&sql).await?;
        for trim in &trims {
            match client.batch_execute(trim).await {
                // The others swap keys: what waits for each other is left for the next time.
                Err(failure) if failure.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => {}
                done => done.with_context(|| trim.clone())?,
            }
        }
        tokio::time::sleep(LARGE_EVERY.min(until.saturating_duration_since(Instant::now()))).await;
    }
    Ok(())
}

async fn look(database: &Database, pid: u32) -> Result<Sample> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
    let sql = "SELECT coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint \
               FROM pg_replication_slots WHERE slot_name = $1";
    let held = database.client().await?.query_opt(sql, &[&slot(database)]).await?;
    Ok(Sample {
        memory: field("VmRSS:")? * 1024,
        files,
        threads: field("Threads:")?,
        held_log: held.map_or(0, |row| row.get::<_, i64>(0).max(0) as u64),
    })
}

impl Soaked {
    /// What was seen in a quarter of the time, 0 to 3.
    fn quarter(&self, quarter: usize) -> &[Sample] {
        let count = self.samples.len();
        &self.samples[count * quarter / 4..count * (quarter + 1) / 4]
    }

    /// The most of a figure in a quarter of the time.
    fn most(&self, quarter: usize, figure: fn(&Sample) -> u64) -> u64 {
        self.quarter(quarter).iter().map(figure).max().unwrap_or(0)
    }

    /// The median of a figure in a quarter of the time.
    fn usual(&self, quarter: usize, figure: fn(&Sample) -> u64) -> u64 {
        let mut all: Vec<u64> = self.quarter(quarter).iter().map(figure).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or(0)
    }

    /// What the last quarter has more of than the second one, in words.
    fn grown(&self) -> Vec<String> {
        let grown = |&(name, figure, room): &Figure| {
            let (before, now) = (self.usual(1, figure), self.usual(3, figure));
            (now > before + before / 10 + room).then(|| format!("{name} from {before} to {now}"))
        };
        FIGURES.iter().filter_map(grown).collect()
    }
}

impl fmt::Display for Soaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<20}{:>12}{:>12}{:>12}{:>12}",
            "median (most) of", "1st quarter", "2nd", "3rd", "4th"
        )?;
        for (name, figure, _) in FIGURES {
            let seen = |quarter| format!("{} ({})", self.usual(quarter, figure), self.most(quarter, figure));
            let [first, second, third, last] = [0, 1, 2, 3].map(seen);
            writeln!(f, "{name:<20}{first:>12}{second:>12}{third:>12}{last:>12}")?;
        }
        let Counts { committed, rolled_back, retried, .. } = self.counts;
        writeln!(f, "transactions: {committed} committed, {rolled_back} rolled back, {retried} begun again")?;
        write!(f, "{} looks; {} rows compared, all equal", self.samples.len(), self.rows_compared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soaked(memory: [u64; 4]) -> Soaked {
        let quarter = |mib: u64| vec![Sample { memory: mib * MIB, ..Sample::default() }; 5];
        Soaked { samples: memory.into_iter().flat_map(quarter).collect(), ..Soaked::default() }
    }

    #[test]
    fn growth_is_told_and_warming_up_is_none() {
        assert!(soaked([40, 200, 210, 220]).grown().is_empty());
        assert_eq!(soaked([40, 200, 250, 300]).grown(), ["memory MiB from 200 to 300"]);
    }
}
