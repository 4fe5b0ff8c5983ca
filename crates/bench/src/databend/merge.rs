//! Changes that are merged into a large table: pgferry's merge beside the same statements by hand, on the same table with the same rows.
//!
//! ```text
//!   changes ──> raw table ──a copy of it──> hand.raw
//!                  │ pgferry's merge           │ by hand
//!                  v                           v
//!   table at S ──────> merged ──FLASHBACK──> table at S ──> merged, the same rows or the benchmark fails
//! ```

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::engine::{Engine, Hand, LOOK_EVERY, Logged};
use super::snapshot::percent;
use crate::contestant::Contestant;
use crate::data;
use crate::effort::Effort;
use crate::report::Report;
use crate::running::Running;
use crate::server::Scene;

/// What pgferry may add, of the time of a merge.
const PART_MAX: f64 = 0.1;
/// From staged to merged at least: meanwhile the raw table is copied.
const MERGE_SECONDS: &str = "5";
const STAGED_WITHIN: Duration = Duration::from_secs(600);
const RAW: &str = "bench_own.\"raw.bench.public.ledger\"";
const SIZES: [u64; 2] = [1_000_000, 5_000_000];
const CHANGES: [u64; 2] = [10_000, 100_000];

/// The statements of pgferry's merge, by their beginnings, and whether they are needed by hand, too.
const PARTS: [(&str, &str, bool); 7] = [
    ("what is staged", "SELECT count(*), min(", false),
    ("values not sent", "SELECT DISTINCT unnest(", false),
    ("the table's id, twice", "SELECT table_id", false),
    ("MERGE", "MERGE INTO", true),
    ("DELETE", "DELETE FROM", true),
    ("position", "UPDATE \"bench_own\".\"task\"", false),
    ("COMMIT", "COMMIT", true),
];

/// Which rows are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    /// All over the table.
    Scattered,
    /// Those with the highest keys.
    Recent,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    changes: u64,
    keys: Keys,
}

/// One round of one case.
#[derive(Clone, Copy, Debug, Default)]
struct Merged {
    /// From the commit in the source until the changes were durable in the raw table.
    staged: f64,
    /// From the first statement of pgferry's merge until the end of its last one.
    wall: f64,
    /// In the engine, by [`PARTS`].
    parts: [f64; PARTS.len()],
    /// The same by hand, as its client saw it.
    by_hand: f64,
    /// The same on a table in the order of its copy.
    unordered: Option<f64>,
    own_cpu: f64,
    engine_cpu: f64,
    engine_cpu_by_hand: f64,
}

impl Merged {
    fn added(&self) -> f64 {
        let needed = PARTS.iter().zip(self.parts).filter(|((.., needed), _)| *needed);
        self.wall - needed.map(|(_, seconds)| seconds).sum::<f64>()
    }

    fn added_part(&self) -> f64 {
        self.added() / self.wall
    }
}

/// A table of one size, and who merges into it.
///
/// What is declared first is ended first.
struct Stage {
    ferry: Running,
    hand: Hand,
    engine: Engine,
    scene: Scene,
    rows: u64,
    clustered: bool,
    peak_kib: u64,
}

pub(super) async fn run(effort: &Effort, report: &mut Report) -> Result<()> {
    for size in SIZES {
        let Some(engine) = start(report)? else { return Ok(()) };
        let rows = effort.of(size);
        let (mut stage, mut facts) = Stage::new(effort, engine, rows).await?;
        let cases: Vec<Case> = [Keys::Scattered, Keys::Recent]
            .into_iter()
            .flat_map(|keys| CHANGES.map(|changes| Case { changes: effort.of(changes).max(10), keys }))
            .collect();
        let mut runs = vec![Vec::new(); cases.len()];
        for round in 0..effort.rounds {
            for (case, runs) in cases.iter().zip(&mut runs) {
                runs.push(stage.round(case, round as u64).await?);
            }
        }
        facts += &format!(
            " While merging, pgferry's memory peaked at {} MiB, the engine's at {} MiB.",
            stage.ferry.peak_kib()? >> 10,
            stage.peak_kib >> 10
        );
        report.table(&format!("merges into a table of {rows} rows"), &lines(&cases, &runs));
        report.note(&facts);
        report.table("where the time of these merges goes, in s", &lines_of_parts(&cases, &runs));
        goals(rows, &cases, &runs, report);
    }
    Ok(())
}

fn start(report: &mut Report) -> Result<Option<Engine>> {
    match Engine::start()? {
        Ok(engine) => Ok(Some(engine)),
        Err(missing) => {
            report.note(&format!("merge: NOT RUN: {}", missing.0));
            Ok(None)
        }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// pgferry's merge, once all of its statements have ended: when it began and ended, and its parts.
fn window(logged: &[Logged]) -> Option<(f64, f64, [f64; PARTS.len()])> {
    let merge =
        logged.iter().position(|logged| logged.text.starts_with("MERGE INTO \"bench\".\"ledger\""))?;
    let first = logged[..merge].iter().rposition(|logged| logged.text.starts_with(PARTS[0].1))?;
    let commit = merge + logged[merge..].iter().position(|logged| logged.text.starts_with("COMMIT"))?;
    let last =
        commit + logged[commit..].iter().position(|logged| logged.text.starts_with("SELECT table_id"))?;
    let window = &logged[first..=last];
    let spent = |text: &str| {
        let of_it = window.iter().filter(|logged| logged.text.starts_with(text));
        // None at all is 0, not -0.
        of_it.map(|logged| logged.seconds).sum::<f64>() + 0.0
    };
    Some((logged[first].began(), logged[last].ended, PARTS.map(|(_, text, _)| spent(text))))
}

impl Stage {
    /// Copies the table, and has pgferry follow its changes; what is to be said of that.
    async fn new(effort: &Effort, engine: Engine, rows: u64) -> Result<(Stage, String)> {
        let scene = Scene::new(effort.major).await?;
        data::make_ledger(&scene.database, rows).await?;
        let client = scene.database.client().await?;
        client.execute("SELECT pg_create_logical_replication_slot('bench', 'pgoutput')", &[]).await?;
        let hand = engine.hand().await?;
        hand.run("CREATE DATABASE hand").await?;
        let (dsn, mark) = (engine.dsn(), engine.mark());
        let more = ["--slot", "bench", "--copy-first", "--databend", &dsn, "--merge-seconds", MERGE_SECONDS];
        let follow = ["--follow", "36000"];
        let ferry = Contestant::ferry(&scene, "pgferry", "public.ledger", &[&more[..], &follow].concat())?;
        let began = now();
        let ferry = Running::start(&ferry)?.until("streaming").await?;
        let copied = now() - began;
        let made = hand.row("SHOW CREATE TABLE bench.ledger").await?;
        let clustered = made.contains("CLUSTER BY");
        let stage = Stage { ferry, hand, engine, scene, rows, clustered, peak_kib: 0 };
        stage.scene.database.execute("UPDATE ledger SET amount = amount WHERE id = 1").await?;
        stage.engine.until("first merge", mark, window).await?;
        let mut facts = format!("The copy took {copied:.1} s.");
        if clustered {
            stage.copy_unordered(&dsn).await?;
            let logged = stage.engine.logged(mark);
            let order = logged.iter().find(|logged| logged.text.ends_with("RECLUSTER FINAL': ok"));
            let order = order.context("the table was not put into the order of its key")?;
            facts += &format!(
                " Putting the table into the order of its key (`RECLUSTER FINAL`, once, before the first merge) took {:.1} s; it has {} blocks then.",
                order.seconds,
                stage.hand.number("SELECT count(*) FROM fuse_block('bench', 'ledger')").await?
            );
        } else {
            facts += " The table is too small to be kept in the order of its key.";
        }
        Ok((stage, facts))
    }

    /// A copy of the table as pgferry makes it of small tables. How large a table is the source estimates.
    async fn copy_unordered(&self, dsn: &str) -> Result<()> {
        let estimate =
            |rows: &str| format!("UPDATE pg_class SET reltuples = {rows} WHERE relname = 'ledger'");
        self.scene.database.execute(&estimate("1000")).await?;
        let more = ["--databend", dsn, "--into", "unordered"];
        Contestant::ferry(&self.scene, "unordered", "public.ledger", &more)?.run(&self.scene).await?;
        self.scene.database.execute(&estimate(&self.rows.to_string())).await?;
        let made = self.hand.row("SHOW CREATE TABLE unordered.ledger").await?;
        ensure!(!made.contains("CLUSTER BY"), "the second copy is in the order of its key, too");
        Ok(())
    }

    async fn round(&mut self, case: &Case, round: u64) -> Result<Merged> {
        let snapshot = "SELECT snapshot_id FROM fuse_snapshot('bench', 'ledger') LIMIT 1";
        let (snapshot, mark) = (self.hand.value(snapshot).await?, self.engine.mark());
        let own_cpu = self.ferry.cpu_seconds()?;
        change(&self.scene, case, round).await?;
        let committed = now();
        let staged = self.until_staged(case.changes).await? - committed;
        let ordered_too = self.clustered && round == 0;
        for raw in if ordered_too { &["raw", "raw_too"][..] } else { &["raw"] } {
            self.hand.run(&format!("CREATE OR REPLACE TRANSIENT TABLE hand.{raw} LIKE {RAW}")).await?;
            self.hand.run(&format!("INSERT INTO hand.{raw} SELECT * FROM {RAW}")).await?;
            let held = self.hand.number(&format!("SELECT count(*) FROM hand.{raw}")).await?;
            ensure!(
                held == case.changes,
                "{held} of {} changes were staged when they were copied",
                case.changes
            );
        }
        self.engine.forget_peak()?;
        let meter = self.engine.meter()?;
        let (began, ended, parts) = self.engine.until("merge", mark, window).await?;
        let engine_cpu = self.engine.since(&meter)?.as_secs_f64();
        let own_cpu = self.ferry.cpu_seconds()? - own_cpu;
        self.peak_kib = self.peak_kib.max(self.engine.peak_kib()?);
        let held = self.held("bench").await?;
        self.hand.run(&format!("ALTER TABLE bench.ledger FLASHBACK TO (SNAPSHOT => '{snapshot}')")).await?;
        let meter = self.engine.meter()?;
        let by_hand = self.merge_by_hand("bench", "raw").await?;
        let engine_cpu_by_hand = self.engine.since(&meter)?.as_secs_f64();
        ensure!(self.held("bench").await? == held, "the merge by hand ends with other rows");
        let mut unordered = None;
        if ordered_too {
            unordered = Some(self.merge_by_hand("unordered", "raw_too").await?);
            ensure!(
                self.held("unordered").await? == held,
                "the merge into the unordered table ends with other rows"
            );
        }
        let wall = ended - began;
        Ok(Merged { staged, wall, parts, by_hand, unordered, own_cpu, engine_cpu, engine_cpu_by_hand })
    }

    async fn until_staged(&self, changes: u64) -> Result<f64> {
        let began = now();
        loop {
            let held = self.hand.number(&format!("SELECT count(*) FROM {RAW}")).await?;
            if held == changes {
                return Ok(now());
            }
            ensure!(now() - began < STAGED_WITHIN.as_secs_f64(), "{held} of {changes} changes are staged");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn held(&self, database: &str) -> Result<String> {
        let asked = format!("SELECT count(*), sum(id), sum(amount), max(note) FROM {database}.ledger");
        self.hand.row(&asked).await
    }

    /// What the engine alone needs.
    async fn merge_by_hand(&self, database: &str, raw: &str) -> Result<f64> {
        let began = now();
        for statement in [
            "BEGIN",
            &format!(
                "MERGE INTO {database}.ledger AS t USING (SELECT * FROM hand.{raw} \
                 QUALIFY ROW_NUMBER() OVER (PARTITION BY id ORDER BY _pgferry_seq DESC) = 1) AS s ON t.id = s.id \
                 WHEN MATCHED AND s._pgferry_op = 'delete' THEN DELETE \
                 WHEN MATCHED THEN UPDATE SET t.id = s.id, t.branch = s.branch, t.amount = s.amount, t.note = s.note \
                 WHEN NOT MATCHED AND s._pgferry_op <> 'delete' THEN INSERT (id, branch, amount, note) \
                 VALUES (s.id, s.branch, s.amount, s.note)"
            ),
            &format!("DELETE FROM hand.{raw} WHERE _pgferry_seq > 0"),
            "COMMIT",
        ] {
            self.hand.run(statement).await?;
        }
        Ok(now() - began)
    }
}

/// Changes rows in one transaction: of ten changes 8 are updates, one a delete, one an insert. Other rows in each round.
async fn change(scene: &Scene, case: &Case, round: u64) -> Result<()> {
    let tenth = case.changes / 10;
    let (old, order) = (
        tenth * 9,
        match case.keys {
            Keys::Scattered => format!("hashint8extended(id, {round})"),
            Keys::Recent => "id DESC".to_owned(),
        },
    );
    scene
        .database
        .execute(&format!(
            "BEGIN; CREATE TEMP TABLE picked ON COMMIT DROP AS \
             SELECT id, row_number() OVER () % 9 = 0 AS gone FROM (SELECT id FROM ledger ORDER BY {order} LIMIT {old}) AS old; \
             INSERT INTO ledger SELECT i, i % 1000, i, md5(i::text) \
             FROM (SELECT max(id) AS last FROM ledger) AS l, generate_series(last + 1, last + {tenth}) AS i; \
             UPDATE ledger SET amount = amount + 1, note = md5(note) || md5(ledger.id::text) \
             FROM picked WHERE ledger.id = picked.id AND NOT gone; \
             DELETE FROM ledger USING picked WHERE ledger.id = picked.id AND gone; COMMIT"
        ))
        .await
}

/// The middle one by the time of its merge.
fn middle(runs: &[Merged]) -> (Merged, f64, f64) {
    let mut sorted = runs.to_vec();
    sorted.sort_by(|one, other| one.wall.total_cmp(&other.wall));
    let last = sorted.len() - 1;
    (sorted[last / 2], sorted[0].wall, sorted[last].wall)
}

fn median(runs: &[Merged], figure: impl Fn(&Merged) -> f64) -> f64 {
    let mut all: Vec<f64> = runs.iter().map(figure).collect();
    all.sort_by(f64::total_cmp);
    all[(all.len() - 1) / 2]
}

impl Case {
    fn name(&self) -> String {
        let keys = match self.keys {
            Keys::Scattered => "scattered",
            Keys::Recent => "recent",
        };
        format!("{} {keys}", self.changes)
    }
}

fn lines(cases: &[Case], runs: &[Vec<Merged>]) -> Vec<Vec<String>> {
    let heads = [
        "changes",
        "staged after s",
        "merge s [min-max]",
        "added s",
        "added part",
        "by hand s",
        "by hand, unordered s",
        "own CPU s",
        "engine CPU s",
        "engine CPU by hand s",
    ];
    let mut lines = vec![heads.map(str::to_owned).to_vec()];
    for (case, runs) in cases.iter().zip(runs) {
        let (run, low, high) = middle(runs);
        let figure = |figure: fn(&Merged) -> f64| format!("{:.2}", median(runs, figure));
        lines.push(vec![
            case.name(),
            figure(|run| run.staged),
            format!("{:.2} [{low:.2}-{high:.2}]", run.wall),
            format!("{:.3}", median(runs, Merged::added)),
            percent(median(runs, Merged::added_part)),
            figure(|run| run.by_hand),
            runs[0].unordered.map_or_else(String::new, |seconds| format!("{seconds:.2}")),
            figure(|run| run.own_cpu),
            figure(|run| run.engine_cpu),
            figure(|run| run.engine_cpu_by_hand),
        ]);
    }
    lines
}

fn lines_of_parts(cases: &[Case], runs: &[Vec<Merged>]) -> Vec<Vec<String>> {
    let mut heads = vec!["changes".to_owned()];
    heads.extend(PARTS.iter().map(|(name, ..)| (*name).to_owned()));
    let mut lines = vec![heads];
    for (case, runs) in cases.iter().zip(runs) {
        let mut line = vec![case.name()];
        line.extend((0..PARTS.len()).map(|at| format!("{:.3}", median(runs, |run| run.parts[at]))));
        lines.push(line);
    }
    lines
}

fn goals(rows: u64, cases: &[Case], runs: &[Vec<Merged>], report: &mut Report) {
    for (case, runs) in cases.iter().zip(runs) {
        let part = median(runs, Merged::added_part);
        let what = format!("merge of {} into {rows} rows: added at most {}", case.name(), percent(PART_MAX));
        report.goal(what, percent(part), part <= PART_MAX);
    }
}
