//! One database, one task file, one place in a target; runs of the program, the exact comparison, and what must not be left.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgferry_model::{Progress, Table, TableName};
use pgferry_task::{registry, spec};
use pgferry_testkit::compare::{ComparedTable, DifferenceKind, InspectedRows, Report, SourceRows, compare};
use pgferry_testkit::process::{Ferry, Outcome};
use pgferry_testkit::workload::Options;
use pgferry_testkit::{Database, Server};

use crate::duckdb_file::DuckdbFile;
use crate::target_place::TargetPlace;

/// Differences that are looked at; more than any test makes.
const DIFFERENCES_MAX: usize = 100_000;
/// A run that takes longer hangs.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// How long the server may take to notice that a client is gone.
const SESSIONS_END_WITHIN: Duration = Duration::from_secs(3);

/// The majors of PostgreSQL that trials run on.
pub const MAJORS: [u32; 4] = [10, 13, 15, 18];

/// The task's name.
pub const TASK: &str = "all";

/// A database, a task file and a place in a target.
pub struct Scene {
    /// The source.
    pub database: Database,
    place: Arc<dyn TargetPlace>,
    ferry: Ferry,
}

impl Scene {
    /// A new database on a shared server of a major, and a DuckDB file; `more` is added to the task file.
    pub async fn new(major: u32, more: &str) -> Result<Scene> {
        Scene::on(&Server::shared(major).await?, more).await
    }

    /// The same on a server of the trial's own.
    pub async fn on(server: &Server, more: &str) -> Result<Scene> {
        Scene::between(server, Arc::new(DuckdbFile), more).await
    }

    /// The same with another target. `more` begins with lines of the task.
    pub async fn between(server: &Server, place: Arc<dyn TargetPlace>, more: &str) -> Result<Scene> {
        let database = server.create_database().await?;
        let ferry = Ferry::new()?.limit(RUN_LIMIT).args(["run", "--until-caught-up"]);
        // The last of two equal keys would be an error, so the interval is the caller's where it names one.
        let interval = if more.contains("sync_interval") { "" } else { "sync_interval = \"100ms\"\n" };
        let text = format!(
            "version = 1\n[connections.source]\nkind = \"postgres\"\nurl = \"{}\"\n\
             [connections.target]\n{}\
             [tasks.{TASK}]\nsource = \"source\"\ntarget = \"target\"\nsync_mode = \"snapshot_cdc\"\n{interval}\
             include = [\"*.*\"]\n\
             replication = {{ publication = \"ferry\", slot = \"{}\", manage = \"create\" }}\n{more}",
            database.url(),
            place.connection(),
            slot(&database),
        );
        Ok(Scene { database, place, ferry: ferry.task(&text)? })
    }

    /// The program, for runs with a failpoint or a kill; it runs until it has caught up.
    #[expect(clippy::expect_used, reason = "a scene that exists was made with the program")]
    pub fn ferry(&self) -> Ferry {
        self.command(&["run", "--until-caught-up", &self.task_file()]).expect("the program is built")
    }

    /// The program with other arguments.
    pub fn command(&self, arguments: &[&str]) -> Result<Ferry> {
        Ok(Ferry::new()?.limit(RUN_LIMIT).args(arguments.iter().copied()))
    }

    /// The folder of the task file, where relative paths of the task begin.
    pub fn folder(&self) -> &Path {
        self.ferry.folder()
    }

    /// The task file.
    pub fn task_file(&self) -> String {
        self.task_path().to_string_lossy().into_owned()
    }

    fn task_path(&self) -> PathBuf {
        self.folder().join("task.toml")
    }

    /// Runs until caught up; the exit code has to be 0.
    pub async fn run(&self) -> Result<Outcome> {
        let outcome = self.ferry.run().await?;
        expect_code(&outcome, &[0])?;
        Ok(outcome)
    }

    /// The cure of `source.decoding_failed`, a fault of the server's that comes now and then where tables are truncated while a slot
    /// is made. Both sides have to be equal after it, too; the next run copies.
    pub async fn copy_again(&self) -> Result<()> {
        let drop = format!("SELECT pg_drop_replication_slot('{}')", slot(&self.database));
        self.database.execute(&drop).await?;
        let outcome = self.command(&["resync", &self.task_file(), "--yes"])?.run().await?;
        expect_code(&outcome, &[0])
    }

    /// What the target holds of the task; no pgferry may run meanwhile.
    pub async fn held(&self) -> Result<Option<Progress>> {
        self.place.held(self.folder()).await
    }

    /// Compares every table; tables without a key only where `keyless`, and only those that `wanted` accepts.
    pub async fn compare(&self, keyless: bool, wanted: impl Fn(&ComparedTable) -> bool) -> Result<Report> {
        let spec = spec::read_file(&self.task_path()).map_err(|faults| anyhow::anyhow!("{faults:?}"))?;
        let task = spec.tasks.first().context("the task file has a task")?;
        let tables = registry::source(&spec, task)?.tables().await?;
        let target = registry::target(&spec, task).await?;
        let mut source = SourceRows::new(self.database.client().await?).await?;
        let compared: Vec<ComparedTable> = source
            .tables()
            .await?
            .into_iter()
            .filter(|table| keyless || !table.key.is_empty())
            .filter(|table| tables.iter().any(|known| *known.name.name == *table.name))
            .filter(|table| wanted(table))
            .collect();
        ensure!(!compared.is_empty(), "there is something to compare");
        let report = {
            let mut rows = InspectedRows::new(target.inspect(), tables);
            compare(&mut source, &mut rows, &compared, DIFFERENCES_MAX).await
        };
        target.close().await?;
        let mut report = report?;
        let old = self.database.server().major() < 12;
        forget(&mut report, |source, target| {
            self.place.same_value(source, target) || (old && same_numbers(source, target))
        });
        Ok(report)
    }

    /// Fails unless both sides are equal. Returns the number of rows.
    pub async fn assert_equal(&self, keyless: bool) -> Result<u64> {
        let report = self.compare(keyless, |_| true).await?;
        let mut shown = report.clone();
        shown.differences.truncate(5);
        shown.assert_equal().with_context(|| format!("PostgreSQL {}", self.database.server().major()))?;
        Ok(report.rows)
    }

    /// Nothing that the task made for a moment is left, at the source or in the target. The last run has ended well.
    pub async fn assert_clean(&self) -> Result<()> {
        let left = self.leftovers().await?;
        ensure!(left.is_empty(), "left behind: {}", left.join(", "));
        Ok(())
    }

    async fn leftovers(&self) -> Result<Vec<String>> {
        let mut left = self.left_at_the_source().await?;
        let spec = spec::read_file(&self.task_path()).map_err(|faults| anyhow::anyhow!("{faults:?}"))?;
        let task = spec.tasks.first().context("the task file has a task")?;
        let tables: Vec<Arc<Table>> = registry::source(&spec, task)?.tables().await?;
        let tables: Vec<TableName> = tables.iter().map(|table| table.target_name.clone()).collect();
        left.extend(self.place.leftovers(self.folder(), &tables).await?);
        // The folder that all tasks of a machine share by default cannot be judged.
        if task.spool_directory.starts_with(self.folder()) && task.spool_directory.exists() {
            for entry in std::fs::read_dir(&task.spool_directory)? {
                left.push(format!("spool {}", entry?.file_name().to_string_lossy()));
            }
        }
        Ok(left)
    }

    /// Temporary slots, and sessions of the program: the server takes a moment to end those.
    async fn left_at_the_source(&self) -> Result<Vec<String>> {
        let client = self.database.client().await?;
        let sql = "SELECT 'slot ' || slot_name FROM pg_replication_slots \
                   WHERE database = current_database() AND (temporary OR slot_name LIKE 'pgferry%') \
                   UNION ALL SELECT 'session ' || application_name FROM pg_stat_activity \
                   WHERE datname = current_database() AND application_name LIKE 'pgferry%'";
        let until = Instant::now() + SESSIONS_END_WITHIN;
        loop {
            let left: Vec<String> = client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect();
            if left.is_empty() || Instant::now() > until {
                return Ok(left);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Fails with all the process wrote unless it ended by itself with one of these codes.
pub fn expect_code(outcome: &Outcome, codes: &[i32]) -> Result<()> {
    ensure!(
        outcome.status.code().is_some_and(|code| codes.contains(&code)),
        "{}, timed out {}, expected one of {codes:?}:\n{}\n{}",
        outcome.status,
        outcome.timed_out,
        outcome.stdout,
        outcome.stderr
    );
    Ok(())
}

/// Whether it is the fault that [`Scene::copy_again`] cures.
pub fn undecodable(failure: &anyhow::Error) -> bool {
    format!("{failure:#}").contains("source.decoding_failed")
}

/// The name of a scene's slot.
pub fn slot(database: &Database) -> String {
    format!("ferry_{}", database.name())
}

/// A workload with everything in it.
pub fn options(major: u32) -> Options {
    let mut options =
        Options { narrow_tables: 4, large_rows: 2_000, wide_columns: 300, ..Options::default() };
    if major == 10 {
        // PostgreSQL 10 does not send TRUNCATE.
        options.weights.retain(|operation, _| !format!("{operation:?}").contains("Truncate"));
    }
    options
}

/// Takes out differences between texts that name one value.
fn forget(report: &mut Report, same: impl Fn(&str, &str) -> bool) {
    let before = report.differences.len();
    report.differences.retain(|difference| match &difference.kind {
        DifferenceKind::Cell { source: Some(source), target: Some(target) } => !same(source, target),
        _ => true,
    });
    report.found -= (before - report.differences.len()) as u64;
}

/// Below 12 the server writes floats with 17 digits, the comparer's other side with the shortest; both name one value.
fn same_numbers(source: &str, target: &str) -> bool {
    let numbers = |text: &str| {
        text.trim_matches(['{', '}']).split(',').map(str::parse::<f64>).collect::<Result<Vec<f64>, _>>().ok()
    };
    match (numbers(source), numbers(target)) {
        (Some(source), Some(target)) => {
            let same = |(one, two): (&f64, &f64)| {
                one == two || (*one as f32) == (*two as f32) || (one.is_nan() && two.is_nan())
            };
            source.len() == target.len() && source.iter().zip(&target).all(same)
        }
        _ => false,
    }
}
