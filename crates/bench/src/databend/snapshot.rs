//! A whole table: pgferry beside PostgreSQL's COPY alone, and beside the engine's COPY of the very files that pgferry has made.
//!
//! ```text
//!   run 0:  pgferry ──files──> stage ──COPY──> table        each file is kept by a second link to it
//!   then:   COPY read and thrown away │ kept files ──COPY──> table │ pgferry                  take turns
//! ```

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use crate::contestant::Contestant;
use crate::data;
use crate::effort::Effort;
use crate::report::Report;
use crate::server::Scene;

/// Own part of all CPU at most, and the part of the time in which the engine loads nothing.
const PART_MAX: f64 = 0.1;
const KEPT: &str = "kept";
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What one run took.
#[derive(Clone, Copy, Debug, Default)]
struct Loaded {
    wall: Duration,
    own_cpu: Duration,
    engine_cpu: Duration,
    postgres_cpu: Duration,
    own_peak_kib: u64,
    engine_peak_kib: u64,
    /// Some COPY was under way in the engine.
    loading: Duration,
}

impl Loaded {
    fn all_cpu(&self) -> f64 {
        (self.own_cpu + self.engine_cpu + self.postgres_cpu).as_secs_f64()
    }

    fn own_part(&self) -> f64 {
        self.own_cpu.as_secs_f64() / self.all_cpu().max(1e-9)
    }

    fn idle_part(&self) -> f64 {
        1.0 - self.loading.as_secs_f64() / self.wall.as_secs_f64().max(1e-9)
    }
}

/// Who brings the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// PostgreSQL's rows, thrown away.
    Drain,
    /// The kept files by hand, on so many sessions, a statement for each; on one session all in one.
    Hand(usize),
    Ferry(usize),
}

const ALL: [Who; 7] =
    [Who::Drain, Who::Hand(1), Who::Hand(2), Who::Hand(4), Who::Ferry(1), Who::Ferry(2), Who::Ferry(4)];

impl Who {
    fn name(self) -> String {
        match self {
            Who::Drain => "floor: PostgreSQL's COPY x2".to_owned(),
            Who::Hand(1) => "floor: COPY INTO, all in one".to_owned(),
            Who::Hand(sessions) => format!("floor: COPY INTO x{sessions}"),
            Who::Ferry(workers) => format!("pgferry x{workers}"),
        }
    }
}

struct Stage<'a> {
    scene: &'a Scene,
    engine: &'a Engine,
    rows: u64,
    files: Vec<String>,
}

pub(super) async fn run(effort: &Effort, report: &mut Report) -> Result<()> {
    let (scene, rows) = (Scene::new(effort.major).await?, effort.of(1_000_000));
    data::make_wide(&scene.database, rows).await?;
    let engine = match Engine::start()? {
        Ok(engine) => engine,
        Err(missing) => {
            report.note(&format!("snapshot: NOT RUN: {}", missing.0));
            return Ok(());
        }
    };
    let mut stage = Stage { scene: &scene, engine: &engine, rows, files: Vec::new() };
    stage.keep_files().await?;
    let mut runs = vec![Vec::new(); ALL.len()];
    for _ in 0..effort.rounds {
        for (who, runs) in ALL.into_iter().zip(&mut runs) {
            runs.push(stage.bring(who).await?);
        }
    }
    let middles: Vec<(Who, Loaded, f64, f64)> =
        ALL.into_iter().zip(&runs).map(|(who, runs)| middle(who, runs)).collect();
    tell(report, rows, stage.files.len(), &middles);
    Ok(())
}

impl Stage<'_> {
    fn ferry(&self, workers: usize) -> Result<Contestant> {
        let (workers, dsn) = (workers.to_string(), self.engine.dsn());
        let more = ["--workers", &workers, "--databend", &dsn];
        Contestant::ferry(self.scene, "pgferry", "public.wide", &more)
    }

    /// A run that is not counted: its files are kept, and its table is what those by hand are made like.
    async fn keep_files(&mut self) -> Result<()> {
        let hand = self.engine.hand().await?;
        hand.run(&format!("CREATE STAGE {KEPT} FILE_FORMAT = (TYPE = PARQUET)")).await?;
        hand.run("CREATE DATABASE hand").await?;
        let (from, to) = (self.engine.stage_folder("bench_own_stage"), self.engine.stage_folder(KEPT));
        fs::create_dir_all(&to)?;
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(keep(from.join("bench"), to, stop.clone()));
        self.ferry(4)?.run(self.scene).await?;
        stop.cancel();
        self.files = keeping.await??;
        hand.run("CREATE TABLE hand.model LIKE bench.wide").await?;
        self.verify(&hand, "bench.wide").await
    }

    async fn verify(&self, hand: &super::engine::Hand, table: &str) -> Result<()> {
        let held = hand.number(&format!("SELECT count(*) FROM {table}")).await?;
        ensure!(held == self.rows, "{table} holds {held} of {} rows", self.rows);
        Ok(())
    }

    async fn bring(&self, who: Who) -> Result<Loaded> {
        let hand = self.engine.hand().await?;
        for statement in [
            "DROP DATABASE IF EXISTS bench",
            "DROP DATABASE IF EXISTS bench_own",
            "DROP TABLE IF EXISTS hand.wide",
            "CREATE TABLE hand.wide LIKE hand.model",
        ] {
            hand.run(statement).await?;
        }
        self.engine.forget_peak()?;
        let (meter, mark) = (self.engine.meter()?, self.engine.mark());
        let mut loaded = match who {
            Who::Drain => self.drain().await?,
            Who::Hand(sessions) => self.copy_by_hand(sessions).await?,
            Who::Ferry(workers) => of_run(&self.ferry(workers)?.run(self.scene).await?),
        };
        loaded.engine_cpu = self.engine.since(&meter)?;
        loaded.engine_peak_kib = self.engine.peak_kib()?;
        loaded.loading = self.loading(mark);
        match who {
            Who::Drain => loaded.engine_cpu = Duration::ZERO,
            Who::Hand(_) => self.verify(&hand, "hand.wide").await?,
            Who::Ferry(_) => self.verify(&hand, "bench.wide").await?,
        }
        Ok(loaded)
    }

    async fn drain(&self) -> Result<Loaded> {
        let mut arguments = vec!["drain".to_owned()];
        arguments.extend(self.scene.place(false));
        for copy in crate::snapshot::copies(self.scene, "wide", 2, "binary").await? {
            arguments.extend(["--copy".to_owned(), copy]);
        }
        let program = std::env::current_exe()?;
        let drain = Contestant { name: String::new(), program, arguments };
        Ok(of_run(&drain.run(self.scene).await?))
    }

    async fn copy_by_hand(&self, sessions: usize) -> Result<Loaded> {
        let hands = try_join_all((0..sessions).map(|_| self.engine.hand())).await?;
        let parts: Vec<Vec<String>> = match sessions {
            1 => vec![self.files.iter().map(|file| format!("'{file}'")).collect()],
            _ => self.files.iter().map(|file| vec![format!("'{file}'")]).collect(),
        };
        let next = std::sync::atomic::AtomicUsize::new(0);
        let began = Instant::now();
        let work = hands.iter().map(|hand| {
            let (next, parts) = (&next, &parts);
            async move {
                while let Some(files) = parts.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    hand.run(&format!(
                        "COPY INTO hand.wide FROM @{KEPT} FILES = ({}) FILE_FORMAT = (TYPE = PARQUET) \
                         COLUMN_MATCH_MODE = CASE_SENSITIVE",
                        files.join(", ")
                    ))
                    .await?;
                }
                anyhow::Ok(())
            }
        });
        try_join_all(work).await?;
        Ok(Loaded { wall: began.elapsed(), ..Loaded::default() })
    }

    /// The time in which at least one COPY was under way.
    fn loading(&self, mark: usize) -> Duration {
        let logged = self.engine.logged(mark);
        let copies = logged.iter().filter(|logged| logged.text.starts_with("COPY INTO"));
        let mut spans: Vec<(f64, f64)> = copies.map(|copy| (copy.began(), copy.ended)).collect();
        spans.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (mut seconds, mut until) = (0.0, 0.0_f64);
        for (began, ended) in spans {
            seconds += (ended - began.max(until)).max(0.0);
            until = until.max(ended);
        }
        Duration::from_secs_f64(seconds)
    }
}

fn of_run(run: &crate::measure::Run) -> Loaded {
    Loaded {
        wall: run.wall,
        own_cpu: run.own_cpu,
        postgres_cpu: run.server_cpu,
        own_peak_kib: run.peak_kib,
        ..Loaded::default()
    }
}

/// Links every file of a folder into another one as long as it is not stopped; their names.
async fn keep(from: PathBuf, to: PathBuf, stop: CancellationToken) -> Result<Vec<String>> {
    let mut kept = HashSet::new();
    loop {
        let last = stop.is_cancelled();
        link_all(&from, &to, &mut kept);
        if last {
            let mut names: Vec<String> = kept.into_iter().collect();
            names.sort();
            return Ok(names);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A file that is gone before it is linked is missed in the table that the kept ones make.
fn link_all(from: &Path, to: &Path, kept: &mut HashSet<String>) {
    let Ok(files) = fs::read_dir(from) else { return };
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if !kept.contains(&name) && fs::hard_link(file.path(), to.join(&name)).is_ok() {
            kept.insert(name);
        }
    }
}

/// The middle run by its time, with the least and the most.
fn middle(who: Who, runs: &[Loaded]) -> (Who, Loaded, f64, f64) {
    let mut sorted = runs.to_vec();
    sorted.sort_by_key(|run| run.wall);
    let last = sorted.len() - 1;
    (who, sorted[last / 2], sorted[0].wall.as_secs_f64(), sorted[last].wall.as_secs_f64())
}

fn tell(report: &mut Report, rows: u64, files: usize, middles: &[(Who, Loaded, f64, f64)]) {
    let heads = [
        "",
        "wall s [min-max]",
        "k/s",
        "own CPU s/M",
        "engine CPU s/M",
        "PostgreSQL CPU s/M",
        "own part of CPU",
        "no COPY under way",
        "own peak MiB",
        "engine peak MiB",
    ];
    let mut lines = vec![heads.map(str::to_owned).to_vec()];
    for (who, run, low, high) in middles {
        let wall = run.wall.as_secs_f64();
        let per_million = |cpu: Duration| format!("{:.2}", cpu.as_secs_f64() * 1e6 / rows as f64);
        let of_ferry = |text: String| if matches!(who, Who::Ferry(_)) { text } else { String::new() };
        lines.push(vec![
            who.name(),
            format!("{wall:.2} [{low:.2}-{high:.2}]"),
            format!("{:.0}", rows as f64 / wall / 1e3),
            per_million(run.own_cpu),
            per_million(run.engine_cpu),
            per_million(run.postgres_cpu),
            of_ferry(percent(run.own_part())),
            of_ferry(percent(run.idle_part())),
            (run.own_peak_kib >> 10).to_string(),
            (run.engine_peak_kib >> 10).to_string(),
        ]);
    }
    report.table(&format!("snapshot of wide into Databend: {rows} rows, {files} files"), &lines);
    let best = |of: fn(Who) -> bool| {
        let named = middles.iter().filter(|(who, ..)| of(*who)).map(|(_, run, ..)| *run);
        named.min_by_key(|run| run.wall).unwrap_or_default()
    };
    let (ferry, floor) = (best(|who| matches!(who, Who::Ferry(_))), best(|who| matches!(who, Who::Hand(_))));
    report.goal(
        format!("snapshot: own part of all CPU at most {}", percent(PART_MAX)),
        percent(ferry.own_part()),
        ferry.own_part() <= PART_MAX,
    );
    let added = 1.0 - floor.wall.as_secs_f64() / ferry.wall.as_secs_f64().max(1e-9);
    report.goal(
        format!("snapshot: added to the engine's COPY INTO at most {} of the time", percent(PART_MAX)),
        percent(added),
        added <= PART_MAX,
    );
}

pub(super) fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}
