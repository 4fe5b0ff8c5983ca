//! Peak memory of pgferry into nothing and into DuckDB: a large table, a large transaction, one large value, many tables, many workers.

use anyhow::Result;
use clap::Args;
use tokio_postgres::Client;

use crate::cdc::drop_slot;
use crate::contestant::{Contestant, Folder, Runs, note, remove};
use crate::data;
use crate::duckdb::Backlog;
use crate::effort::Effort;
use crate::measure::Run;
use crate::report::Report;
use crate::server::Scene;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) effort: Effort,
}

const METHOD: &str = "Peak memory of the whole process: resident (VmHWM), and the part of it that no file stands behind (RssAnon), sampled every \
    5 ms. Into the null target that is pgferry's own; into DuckDB its engine's is in it, with a memory_limit of 512 MB (the column \
    names it). Default settings otherwise: 4 workers, 64 MiB of rows in flight. Two rounds at most.";

/// What pgferry may take for any snapshot and any transaction.
const OWN_MIB_MAX: u64 = 256;
const LIMIT: &str = "512MB";
const ROUNDS_MAX: usize = 2;

struct Measuring<'a> {
    scene: &'a Scene,
    client: Client,
    folder: Folder,
    effort: &'a Effort,
    lines: Vec<Vec<String>>,
    goals: Vec<(String, u64)>,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let effort = &options.effort;
    let mut report = Report::new("memory", effort, METHOD);
    let scene = Scene::new(effort.major).await?;
    let client = scene.database.client().await?;
    let heads = ["case", "target", "memory_limit", "resident MiB", "anonymous MiB", "wall s"];
    let lines = vec![heads.map(str::to_owned).to_vec()];
    let mut measuring =
        Measuring { scene: &scene, client, folder: Folder::new()?, effort, lines, goals: Vec::new() };
    scene.database.execute("CREATE PUBLICATION bench FOR ALL TABLES").await?;
    measuring.large_table().await?;
    measuring.large_value().await?;
    measuring.many_tables().await?;
    measuring.large_transaction().await?;
    report.table("peak memory", &measuring.lines);
    for (what, mib) in measuring.goals {
        report.goal(
            format!("{what}: at most {OWN_MIB_MAX} MiB of pgferry's own"),
            format!("{mib} MiB"),
            mib <= OWN_MIB_MAX,
        );
    }
    report.finish(effort)
}

impl Measuring<'_> {
    async fn large_table(&mut self) -> Result<()> {
        // 578 bytes a row on the heap.
        let rows = self.effort.of(9_000_000);
        data::make_wide(&self.scene.database, rows).await?;
        let bytes = self.client.query_one("SELECT pg_relation_size('wide')", &[]).await?.get::<_, i64>(0);
        let case = format!("table of {:.1} GB", bytes as f64 / 1e9);
        self.snapshot(&case, "public.wide", &[]).await?;
        self.snapshot(&format!("{case}, 16 workers"), "public.wide", &["--workers", "16"]).await?;
        self.scene.database.execute("DROP TABLE wide").await
    }

    async fn large_value(&mut self) -> Result<()> {
        let megabytes = self.effort.of(200);
        let table = "CREATE TABLE large (id integer PRIMARY KEY, value text)";
        self.scene.database.execute(table).await?;
        let insert =
            format!("INSERT INTO large SELECT {{}}, repeat(md5('x') || md5('y'), {} * 15625)", megabytes);
        self.scene.database.execute(&insert.replace("{}", "1")).await?;
        let case = format!("one value of {megabytes} MB");
        self.snapshot(&format!("{case}, snapshot"), "public.large", &[]).await?;
        let second = insert.replace("{}", "2");
        self.changes(&format!("{case}, change"), "public.large", &second).await?;
        // Uncompressed it is larger than what the server decodes in memory: it streams the transaction, which waits in a spool file.
        // One row: DuckDB holds all values of a row group at once.
        self.scene
            .database
            .execute("TRUNCATE large; ALTER TABLE large ALTER value SET STORAGE EXTERNAL")
            .await?;
        let third = insert.replace("{}", "3");
        self.changes(&format!("{case}, streamed change"), "public.large", &third).await
    }

    async fn many_tables(&mut self) -> Result<()> {
        data::make_many(&self.scene.database, "many", 1000, self.effort.of(100)).await?;
        self.snapshot("1,000 tables", "public.many_*", &[]).await
    }

    async fn large_transaction(&mut self) -> Result<()> {
        let rows = self.effort.of(2_000_000);
        data::make_accounts(&self.scene.database, rows).await?;
        let update = "UPDATE accounts SET abalance = abalance + 1";
        self.changes(&format!("transaction of {rows} updates"), "public.accounts", update).await
    }

    async fn snapshot(&mut self, case: &str, include: &str, more: &[&str]) -> Result<()> {
        let file = self.folder.file("memory.duckdb");
        let into = [more, &["--duckdb", file.as_str(), "--memory-limit", LIMIT]].concat();
        let contestants = [
            Contestant::ferry(self.scene, "null", include, more)?,
            Contestant::ferry(self.scene, "DuckDB", include, &into)?,
        ];
        let mut runs = Runs::new();
        for _ in 0..self.rounds() {
            for contestant in &contestants {
                remove(&file);
                note(&mut runs, &contestant.name, contestant.run(self.scene).await?);
            }
        }
        remove(&file);
        self.lines_of(case, &runs);
        Ok(())
    }

    async fn changes(&mut self, case: &str, include: &str, statement: &str) -> Result<()> {
        let mut runs = Runs::new();
        let backlog = Backlog { scene: self.scene, client: &self.client, folder: &self.folder, include };
        backlog.begin().await?;
        self.scene.database.execute(statement).await?;
        self.client.batch_execute("CHECKPOINT").await?;
        for _ in 0..self.rounds() {
            let copy = "SELECT pg_copy_logical_replication_slot('backlog', 'contestant')";
            self.client.execute(copy, &[]).await?;
            let contestant = Contestant::ferry(self.scene, "null", include, &["--slot", "contestant"])?;
            note(&mut runs, "null", contestant.run(self.scene).await?);
            drop_slot(&self.client, "contestant").await?;
            backlog.read_with("DuckDB", &["--memory-limit", LIMIT], &mut runs).await?;
        }
        backlog.end().await?;
        self.lines_of(case, &runs);
        Ok(())
    }

    /// Peaks differ less than times do, and these runs are long.
    fn rounds(&self) -> usize {
        self.effort.rounds.min(ROUNDS_MAX)
    }

    fn lines_of(&mut self, case: &str, runs: &Runs) {
        for target in ["null", "DuckDB"] {
            let peak = |of: fn(&Run) -> u64| {
                let mut all: Vec<u64> = runs[target].iter().map(|run| of(run) >> 10).collect();
                all.sort_unstable();
                (all[(all.len() - 1) / 2], all[0], all[all.len() - 1])
            };
            let shown = |(middle, low, high): (u64, u64, u64)| format!("{middle} [{low}-{high}]");
            let (resident, anonymous) = (peak(|run| run.peak_kib), peak(|run| run.anonymous_kib));
            let wall = crate::measure::median(&runs[target]).0.wall;
            let limit = if target == "null" { "" } else { LIMIT };
            self.lines.push(vec![
                case.to_owned(),
                target.to_owned(),
                limit.to_owned(),
                shown(resident),
                shown(anonymous),
                format!("{:.1}", wall.as_secs_f64()),
            ]);
            if target == "null" {
                self.goals.push((case.to_owned(), resident.0));
            }
        }
    }
}
