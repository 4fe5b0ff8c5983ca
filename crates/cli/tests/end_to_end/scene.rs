//! One database, one task file, one DuckDB file; runs of the program, and the exact comparison.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgferry_task::{registry, spec};
use pgferry_testkit::compare::{ComparedTable, DifferenceKind, InspectedRows, Report, SourceRows, compare};
use pgferry_testkit::process::{Ferry, Outcome};
use pgferry_testkit::workload::Options;
use pgferry_testkit::{Database, Server};

/// Differences that are looked at; more than any test makes.
const DIFFERENCES_MAX: usize = 100_000;

pub(crate) const MAJORS: [u32; 4] = [10, 13, 15, 18];

pub(crate) struct Scene {
    pub(crate) database: Database,
    ferry: Ferry,
}

impl Scene {
    /// A new database on a shared server of a major; `more` is added to the task file.
    pub(crate) async fn new(major: u32, more: &str) -> Result<Scene> {
        Scene::on(&Server::shared(major).await?, more).await
    }

    /// The same on a server of the test's own.
    pub(crate) async fn on(server: &Server, more: &str) -> Result<Scene> {
        let database = server.create_database().await?;
        let ferry = Ferry::new()?.limit(Duration::from_secs(120)).args(["run", "--until-caught-up"]);
        let text = format!(
            "version = 1\n[connections.source]\nkind = \"postgres\"\nurl = \"{}\"\n\
             [connections.file]\nkind = \"duckdb\"\npath = \"copy.duckdb\"\n\
             [tasks.all]\nsource = \"source\"\ntarget = \"file\"\nsync_mode = \"snapshot_cdc\"\nsync_interval = \"100ms\"\n\
             include = [\"*.*\"]\n\
             replication = {{ publication = \"ferry\", slot = \"{}\", manage = \"create\" }}\n{more}",
            database.url(),
            slot(&database),
        );
        Ok(Scene { database, ferry: ferry.task(&text)? })
    }

    /// The program, for runs with a failpoint or a kill.
    pub(crate) fn ferry(&self) -> Ferry {
        Ferry::of(pgferry_testkit::process::binary().expect("the program is built"))
            .expect("a folder")
            .limit(Duration::from_secs(120))
            .args(["run", "--until-caught-up", &self.task_file()])
    }

    pub(crate) fn task_file(&self) -> String {
        self.ferry.folder().join("task.toml").to_string_lossy().into_owned()
    }

    /// Runs until caught up; the exit code has to be 0.
    pub(crate) async fn run(&self) -> Result<Outcome> {
        let outcome = self.ferry.run().await?;
        ensure!(
            outcome.status.code() == Some(0),
            "exit {:?}, timed out {}:\n{}\n{}",
            outcome.status,
            outcome.timed_out,
            outcome.stdout,
            outcome.stderr
        );
        Ok(outcome)
    }

    /// Compares every table; tables without a key only where `keyless`, and only those that `wanted` accepts.
    pub(crate) async fn compare(
        &self,
        keyless: bool,
        wanted: impl Fn(&ComparedTable) -> bool,
    ) -> Result<Report> {
        let spec = spec::read_file(std::path::Path::new(&self.task_file()))
            .map_err(|faults| anyhow::anyhow!("{faults:?}"))?;
        let task = &spec.tasks[0];
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
            both_zero(source, target) || (old && same_numbers(source, target))
        });
        Ok(report)
    }

    /// Fails unless both sides are equal. Returns the number of rows.
    pub(crate) async fn assert_equal(&self, keyless: bool) -> Result<u64> {
        let report = self.compare(keyless, |_| true).await?;
        let mut shown = report.clone();
        shown.differences.truncate(5);
        shown.assert_equal().with_context(|| format!("PostgreSQL {}", self.database.server().major()))?;
        Ok(report.rows)
    }

    /// Nothing that the task made for a moment is left: no temporary slot.
    pub(crate) async fn assert_clean(&self) -> Result<()> {
        let client = self.database.client().await?;
        let left = client
            .query("SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'pgferry_cut%' AND database = current_database()", &[])
            .await?;
        ensure!(left.is_empty(), "{} temporary slots are left", left.len());
        Ok(())
    }
}

pub(crate) fn slot(database: &Database) -> String {
    format!("ferry_{}", database.name())
}

/// A workload with everything in it.
pub(crate) fn options(major: u32) -> Options {
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

/// DuckDB does not keep the sign of zero: equal floats of one block become one value when it writes a checkpoint.
fn both_zero(source: &str, target: &str) -> bool {
    matches!((source, target), ("0", "-0") | ("-0", "0"))
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
