//! Into Kafka, beside Debezium: a backlog by section, and the time from commit to visible at a steady load.
//!
//! ```text
//!   one slot, copied for each run ──> pgferry │ Debezium ──> the same broker, topics of the run's own ──> counted
//! ```
//!
//! Invariant: a run whose topic does not hold every change exactly once at its end fails the whole benchmark.

mod contestants;
mod delay;
mod topics;
mod watched;

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use pgferry_testkit::kafka::debezium;
use tokio_postgres::Client;

use crate::cdc::drop_slot;
use crate::contestant::Folder;
use crate::data::{self, SECTIONS, Section, scaled};
use crate::effort::Effort;
use crate::report::Report;
use crate::server::Scene;
use contestants::{Kind, Setting};
use topics::Cluster;
use watched::{Brought, Watched};

const METHOD: &str = "Into topics of one Apache Kafka 4.1.0 broker (one node, 3 partitions a topic, 384 MB heap) on the same machine, as Debezium's \
    JSON without schemas. Debezium: `io.debezium:debezium-connector-postgres` 3.6.0.Final in a Kafka Connect 4.1.0 worker of its own, Java 17, \
    pgoutput, `snapshot.mode = no_data`; with its defaults and the JVM settings of Kafka's own scripts (heap up to 2 GB), and tuned for \
    throughput (`max.batch.size` 20480, `max.queue.size` 81920, `poll.interval.ms` 10; producer: batches of 512 kB, linger 5 ms, lz4, 5 requests in \
    flight; heap up to 1 GB). Streaming is from when the slot is read until the last record is visible to consumers that read \
    committed records; start is what was before. CPU is that of the contestant alone. Each run's topic is read afterwards: a \
    record more or less than the changes fails the benchmark. Goals compare with the better of Debezium's two figures.";
/// Changes come in transactions of many, of many and wide, and of one.
const MEASURED: [&str; 3] = ["narrow-inserts", "wide-inserts", "single-rows"];
const RATE_TIMES_MIN: f64 = 4.0;
const COST_PART_MAX: f64 = 0.1;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) effort: Effort,
    /// Only this part: backlog or latency
    #[arg(long)]
    part: Option<String>,
    /// Only contestants whose names begin so
    #[arg(long, default_value = "")]
    only: String,
    /// Seconds of load per round of the latency
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Changes per second for the latency, one in a transaction
    #[arg(long, default_value_t = 1000)]
    rate: u64,
}

impl Options {
    fn contestants(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| kind.name().starts_with(&self.only)).collect()
    }
}

/// What all runs share.
struct Stage {
    scene: Scene,
    client: Client,
    cluster: Cluster,
    folder: Folder,
    jars: PathBuf,
    runs: std::cell::Cell<u32>,
}

/// One run's place.
struct Run {
    prefix: String,
    topics: Vec<String>,
}

impl Stage {
    /// Topics of a run's own, and a copy of the slot.
    async fn run(&self) -> Result<Run> {
        self.runs.set(self.runs.get() + 1);
        let prefix = format!("r{}", self.runs.get());
        let topics = ["wide", "narrow", "accounts"].map(|table| format!("{prefix}.public.{table}")).to_vec();
        self.cluster.make(&topics).await?;
        let copy = "SELECT pg_copy_logical_replication_slot('backlog', 'contestant')";
        self.client.execute(copy, &[]).await?;
        Ok(Run { prefix, topics })
    }

    fn start(&self, kind: Kind, run: &Run) -> Result<Watched> {
        let servers = self.cluster.servers();
        let setting =
            Setting { servers: &servers, prefix: &run.prefix, folder: &self.folder, jars: &self.jars };
        Watched::start(
            &kind.contestant(&self.scene, &setting)?,
            self.folder.file(&format!("{}.log", run.prefix)),
        )
    }

    async fn end(&self, run: Run) -> Result<()> {
        drop_slot(&self.client, "contestant").await?;
        self.cluster.remove(&run.topics).await
    }
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let effort = &options.effort;
    let mut report = Report::new("kafka", effort, METHOD);
    let jars = match debezium()? {
        Ok(jars) => jars,
        Err(missing) => {
            report.note(&format!("NOT RUN: {}", missing.0));
            return Ok(());
        }
    };
    let cluster = match Cluster::start()? {
        Ok(cluster) => cluster,
        Err(missing) => {
            report.note(&format!("NOT RUN: {}", missing.0));
            return Ok(());
        }
    };
    let scene = Scene::new(effort.major).await?;
    data::make_backlog_tables(&scene.database, effort.scale).await?;
    let client = scene.database.client().await?;
    let (folder, runs) = (Folder::new()?, std::cell::Cell::new(0));
    let stage = Stage { scene, client, cluster, folder, jars, runs };
    if options.part.as_deref() != Some("latency") {
        for wanted in SECTIONS.iter().filter(|section| MEASURED.contains(&section.name)) {
            section(&stage, options, wanted, &mut report).await?;
        }
    }
    if options.part.as_deref() != Some("backlog") {
        delay::measure(&stage, options, &mut report).await?;
    }
    report.finish(effort)
}

fn table_of(section: &Section) -> &'static str {
    match section.name {
        "narrow-inserts" => "narrow",
        "wide-inserts" => "wide",
        _ => "accounts",
    }
}

async fn section(stage: &Stage, options: &Options, section: &Section, report: &mut Report) -> Result<()> {
    let (client, scale) = (&stage.client, options.effort.scale);
    client.execute("SELECT pg_create_logical_replication_slot('backlog', 'pgoutput')", &[]).await?;
    data::write_section(&stage.scene.database, section, scale).await?;
    client.batch_execute("CHECKPOINT").await?;
    let changes = scaled(section.changes, scale);
    let (mut runs, mut bytes) = (HashMap::<&str, Vec<Brought>>::new(), HashMap::new());
    for _ in 0..options.effort.rounds {
        for kind in options.contestants() {
            let run = stage.run().await?;
            let topic = format!("{}.public.{}", run.prefix, table_of(section));
            let mut watched = stage.start(kind, &run)?;
            let brought = watched.until_brought(client, &stage.cluster, &topic, changes).await?;
            watched.end().await?;
            let held = tokio::task::block_in_place(|| stage.cluster.held(&topic))?;
            let name = kind.name();
            ensure!(held.records == changes, "{name}: {} records of {changes} changes", held.records);
            bytes.insert(name, held.bytes / held.records);
            runs.entry(name).or_default().push(brought);
            stage.end(run).await?;
        }
    }
    drop_slot(client, "backlog").await?;
    let kind = if section.batched { "1,000 in a transaction" } else { "one in a transaction" };
    let names: Vec<&str> = options.contestants().into_iter().map(Kind::name).collect();
    let title = format!("{} ({kind}): {changes} changes", section.name);
    report.table(&title, &lines(&names, &runs, &bytes, changes));
    if names.len() == Kind::ALL.len() {
        goals(section.name, &runs, report);
    }
    Ok(())
}

/// The middle run by its time.
fn middle(runs: &[Brought]) -> (Brought, f64, f64) {
    let mut sorted = runs.to_vec();
    sorted.sort_by_key(|run| run.streaming);
    let last = sorted.len() - 1;
    (sorted[last / 2].clone(), sorted[0].streaming.as_secs_f64(), sorted[last].streaming.as_secs_f64())
}

fn lines(
    names: &[&str],
    runs: &HashMap<&str, Vec<Brought>>,
    bytes: &HashMap<&str, u64>,
    changes: u64,
) -> Vec<Vec<String>> {
    let heads = [
        "",
        "streaming s [min-max]",
        "k/s",
        "start s",
        "k/s with start",
        "own CPU s/M",
        "with start",
        "peak MiB",
        "bytes a record",
    ];
    let mut lines = vec![heads.map(str::to_owned).to_vec()];
    for name in names {
        let (run, low, high) = middle(&runs[name]);
        let (streaming, starting) = (run.streaming.as_secs_f64(), run.starting.as_secs_f64());
        let per_second = |seconds: f64| format!("{:.1}", changes as f64 / seconds / 1e3);
        let per_million = |cpu: f64| format!("{:.2}", cpu * 1e6 / changes as f64);
        lines.push(vec![
            (*name).to_owned(),
            format!("{streaming:.2} [{low:.2}-{high:.2}]"),
            per_second(streaming),
            format!("{starting:.2}"),
            per_second(streaming + starting),
            per_million(run.cpu),
            per_million(run.cpu_all),
            (run.peak_kib >> 10).to_string(),
            bytes[name].to_string(),
        ]);
    }
    lines
}

/// Each of pgferry's two against the better of Debezium's two.
fn goals(section: &str, runs: &HashMap<&str, Vec<Brought>>, report: &mut Report) {
    let run = |kind: Kind| middle(&runs[kind.name()]).0;
    let theirs = [run(Kind::Debezium), run(Kind::DebeziumTuned)];
    let least = |figure: fn(&Brought) -> f64| theirs.iter().map(figure).fold(f64::INFINITY, f64::min);
    let (seconds, cpu) = (least(|run| run.streaming.as_secs_f64()), least(|run| run.cpu));
    let memory = least(|run| run.peak_kib as f64);
    for kind in [Kind::AtLeastOnce, Kind::ExactlyOnce] {
        let (what, ours) = (format!("{section}, {}", kind.name()), run(kind));
        let times = seconds / ours.streaming.as_secs_f64();
        let part = [("CPU", ours.cpu / cpu), ("memory", ours.peak_kib as f64 / memory)];
        report.goal(
            format!("{what}: at least {RATE_TIMES_MIN} x Debezium's better rate"),
            format!("{times:.2} x"),
            times >= RATE_TIMES_MIN,
        );
        for (figure, part) in part {
            let goal = format!("{what}: at most {COST_PART_MAX} of Debezium's lesser {figure}");
            report.goal(goal, format!("{part:.3}"), part <= COST_PART_MAX);
        }
    }
}
