//! One seed: its plan carried out, and what must hold afterwards.
//!
//! ```text
//!   others write ───────────────────────────────────────────────┐
//!   run, killed ─> look ─> run, killed ─> look ─> … ─> they stop ┴─> run to the end ─> compare, leftovers
//! ```
//!
//! Invariant: every look (what the target holds, what the slot says) is taken while no pgferry runs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pgferry_model::{TableName, TableState};
use pgferry_testkit::compare::DifferenceKind;
use pgferry_testkit::process::{Outcome, RunningFerry};
use pgferry_testkit::random::SeededRandom;
use pgferry_testkit::server::StopMode;
use tokio_postgres::Client;

use super::ledger::{Ledger, Since};
use super::others::{self, Activity, Others};
use super::plan::{self, Moment, Plan, Step};
use super::tally::Tally;
use crate::scene::{Scene, expect_code, undecodable};
use crate::target_place;

/// SIGABRT: what a failpoint ends the process with.
const ABORTED: i32 = 6;
const KILLED: i32 = 9;
/// Caught up; and caught up with tables set aside.
const WELL: i32 = 0;
const SET_ASIDE: i32 = 5;
const POLL: Duration = Duration::from_millis(4);
/// How long a run gets to the place where it is to be disturbed.
const REACH_WITHIN: Duration = Duration::from_secs(20);
/// How long a run gets to go on after its server came back.
const RECOVER_WITHIN: Duration = Duration::from_secs(40);
const DIFFERENCES_TOLD: usize = 20;

/// A seed under way.
pub struct Seed {
    plan: Plan,
    scene: Scene,
    others: Others,
    ledger: Ledger,
    since: Since,
    random: SeededRandom,
    /// What was done and seen.
    pub tally: Tally,
    started: Instant,
    story: Vec<String>,
}

impl Seed {
    /// The database, its tables, the task file; others begin to write for `seconds`.
    pub async fn new(plan: Plan, target: &str, seconds: Duration) -> Result<Seed> {
        let server = others::server(&plan).await?;
        let place = target_place::place(target).await?;
        let more = format!(
            "batch_size = {}\ninitial_copy_workers = {}\nsync_interval = \"{}ms\"\n\
             limits = {{ memory = \"{}MiB\", spool_directory = \"spool\", retry_wait = \"400ms\" }}\n{}",
            plan.batch_size,
            plan.workers,
            plan.sync_interval_ms.max(place.sync_interval_min_ms()),
            plan.memory_mib,
            place.sections(plan.major),
        );
        let scene = Scene::between(&server, place, &more).await?;
        std::fs::create_dir(scene.folder().join("spool"))?;
        let others = Others::start(&plan, &scene.database, seconds).await?;
        let mut tally = Tally { seeds: 1, ..Tally::default() };
        tally.majors.insert(plan.major, 1);
        let random = SeededRandom::member(plan.seed, 0x7365_6564);
        let story = vec![format!("{plan:#?}")];
        Ok(Seed {
            plan,
            scene,
            others,
            ledger: Ledger::default(),
            since: Since::default(),
            random,
            tally,
            started: Instant::now(),
            story,
        })
    }

    /// Every step, then the end.
    pub async fn run(&mut self) -> Result<()> {
        for (at, step) in self.plan.steps.clone().into_iter().enumerate() {
            self.tell(&format!("step {at}: {step:?}"));
            match self.step(&step).await {
                Err(failure) if undecodable(&failure) => {
                    self.copy_again().await.context("after log that the server could not decode")?;
                    break;
                }
                done => done.with_context(|| format!("step {at}: {step:?}"))?,
            }
        }
        match self.finish().await {
            Err(failure) if undecodable(&failure) => {
                self.copy_again().await.context("after log that the server could not decode")?;
                self.finish().await
            }
            done => done,
        }
    }

    async fn copy_again(&mut self) -> Result<()> {
        self.tell("the server could not decode its log: everything anew");
        self.tally.undecodable += 1;
        self.others.settle().await?;
        self.scene.copy_again().await?;
        self.tally.starts += 1;
        self.ledger = Ledger::default();
        Ok(())
    }

    async fn step(&mut self, step: &Step) -> Result<()> {
        let streamed = matches!(step, Step::Failpoint { .. });
        self.others.go_on(&self.scene.database, streamed).await?;
        match *step {
            Step::Failpoint { name, nth } => self.failpoint(name, nth).await,
            Step::Kill { moment, after } => self.kill(moment, after).await,
            Step::Stop { moment, after } => self.stop(moment, after).await,
            Step::Shutdown { moment, after, killed } => self.shutdown(moment, after, killed).await,
            Step::Columns { failpoint, nth } => self.columns(failpoint, nth).await,
        }
    }

    fn start(&mut self, failpoint: Option<(&str, u32)>, to_the_end: bool) -> Result<RunningFerry> {
        let file = self.scene.task_file();
        let mut arguments = vec!["run", file.as_str()];
        if to_the_end {
            arguments.push("--until-caught-up");
        }
        let ferry = self.scene.command(&arguments)?;
        let ferry = match failpoint {
            Some((name, nth)) => ferry.failpoint(name, nth),
            None => ferry,
        };
        self.tally.starts += 1;
        ferry.start()
    }

    async fn failpoint(&mut self, name: &'static str, nth: u32) -> Result<()> {
        let ends = matches!(name, "run.stream_ended" | "target.before_checkpoint");
        let to_the_end = ends || self.random.chance(30);
        let mut running = self.start(Some((name, nth)), to_the_end && !plan::streamed(name))?;
        let client = self.scene.database.client().await?;
        if plan::streamed(name) && self.reach(&mut running, &client, Moment::Stream).await? {
            self.others.large_transaction(&self.scene.database, true);
        }
        self.abort_or_kill(running, &client, Some(name)).await
    }

    /// Waits for the end at a failpoint; ends the run by force where that does not come.
    async fn abort_or_kill(
        &mut self,
        mut running: RunningFerry,
        client: &Client,
        name: Option<&'static str>,
    ) -> Result<()> {
        if !running.ends_within(REACH_WITHIN).await? {
            self.tally.not_met += 1;
            return self.kill_now(running, client).await;
        }
        let outcome = running.wait().await?;
        match name.filter(|_| outcome.signal() == Some(ABORTED)) {
            Some(name) => self.tally.count_met(name),
            None => {
                self.tally.not_met += 1;
                self.ended_by_itself(&outcome)?;
            }
        }
        self.look(&outcome).await
    }

    async fn kill(&mut self, moment: Moment, after: Duration) -> Result<()> {
        let to_the_end = self.random.chance(20);
        let mut running = self.start(None, to_the_end)?;
        let client = self.scene.database.client().await?;
        if self.reach(&mut running, &client, moment).await? {
            running.ends_within(after).await?;
        }
        self.kill_now(running, &client).await
    }

    /// SIGKILL now; told by what the run was doing.
    async fn kill_now(&mut self, running: RunningFerry, client: &Client) -> Result<()> {
        let seen = others::activity(client).await?;
        let unfinished = self.unfinished();
        let outcome = running.kill9().await?;
        if outcome.signal() != Some(KILLED) {
            self.ended_by_itself(&outcome)?;
            return self.look(&outcome).await;
        }
        self.look(&outcome).await?;
        let moment = match seen {
            Activity { streaming: true, .. } => Moment::Stream,
            Activity { copying: true, .. } => Moment::Snapshot,
            _ if unfinished && !self.unfinished() => Moment::Handover,
            _ => Moment::Start,
        };
        self.tell(&format!("killed in {}", moment.word()));
        *self.tally.killed.entry(moment).or_default() += 1;
        Ok(())
    }

    /// Whether a run has tables to copy, as far as the last look knows.
    fn unfinished(&self) -> bool {
        self.ledger.held().is_none_or(|held| {
            held.tables.is_empty()
                || held
                    .tables
                    .iter()
                    .any(|table| matches!(table.state, TableState::Waiting | TableState::Copying))
        })
    }

    async fn stop(&mut self, moment: Moment, after: Duration) -> Result<()> {
        let mut running = self.start(None, false)?;
        let client = self.scene.database.client().await?;
        if !self.reach(&mut running, &client, moment).await? || running.ends_within(after).await? {
            return self.kill_now(running, &client).await;
        }
        running.signal("TERM")?;
        let outcome = running.wait().await?;
        expect_code(&outcome, &[WELL])?;
        self.tally.stopped += 1;
        self.look(&outcome).await?;
        if !self.unfinished() {
            self.scene.assert_clean().await.context("after a stop")?;
        }
        Ok(())
    }

    /// The server goes away under a run, which must go on by itself when it is back.
    async fn shutdown(&mut self, moment: Moment, after: Duration, killed: bool) -> Result<()> {
        let mut running = self.start(None, false)?;
        let client = self.scene.database.client().await?;
        if !self.reach(&mut running, &client, moment).await? || running.ends_within(after).await? {
            return self.kill_now(running, &client).await;
        }
        let server = self.scene.database.server().clone();
        self.others.cut_off = true;
        server.stop(StopMode::Immediate).await?;
        self.tally.shutdowns += 1;
        tokio::time::sleep(Duration::from_millis(self.random.below(400))).await;
        server.resume().await?;
        self.tell("the server is back");
        self.others.settle().await?;
        self.others.go_on(&self.scene.database, false).await?;
        self.since.server_ended = true;
        let client = self.scene.database.client().await?;
        if killed {
            let wait = Duration::from_millis(self.random.below(800));
            ensure!(
                !running.ends_within(wait).await?,
                "the run ended with its server: {}",
                told(running).await
            );
            return self.kill_now(running, &client).await;
        }
        let until = Instant::now() + RECOVER_WITHIN;
        while !others::activity(&client).await?.streaming {
            ensure!(
                !running.ends_within(POLL).await?,
                "the run ended with its server: {}",
                told(running).await
            );
            ensure!(
                Instant::now() < until,
                "the run did not go on after its server came back: {}",
                told(running).await
            );
        }
        self.kill_now(running, &client).await
    }

    /// The columns of a table change; it is set aside, forgotten and copied again.
    async fn columns(&mut self, failpoint: Option<&'static str>, nth: u32) -> Result<()> {
        let settled = self.start(None, true)?.wait().await?;
        expect_code(&settled, &[WELL])?;
        self.look(&settled).await?;
        let column = format!("more_{}", self.random.below(1 << 20));
        let sql = format!(
            "ALTER TABLE public.changing ADD COLUMN {column} int DEFAULT 7; \
             UPDATE public.changing SET filler = '{column}' WHERE id % 3 = 0; \
             INSERT INTO public.changing SELECT max(id) + 1, 'new' FROM public.changing"
        );
        self.scene.database.execute(&sql).await?;
        let client = self.scene.database.client().await?;
        let (in_run, in_resync) = match failpoint {
            Some(name) if name.starts_with("resync.") => (None, Some(name)),
            other => (other, None),
        };
        if let Some(name) = in_run {
            let running = self.start(Some((name, nth)), true)?;
            self.abort_or_kill(running, &client, Some(name)).await?;
        }
        let outcome = self.start(None, true)?.wait().await?;
        expect_code(&outcome, &[SET_ASIDE])?;
        self.look(&outcome).await?;
        if let Some(name) = in_resync {
            let outcome = self.resync(Some((name, nth))).await?;
            if outcome.signal() == Some(ABORTED) {
                self.tally.count_met(name)
            } else {
                self.tally.not_met += 1
            }
        }
        let outcome = self.resync(None).await?;
        expect_code(&outcome, &[WELL])
    }

    async fn resync(&mut self, failpoint: Option<(&str, u32)>) -> Result<Outcome> {
        let file = self.scene.task_file();
        let ferry = self.scene.command(&["resync", &file, "--table", "public.changing", "--yes"])?;
        let ferry = match failpoint {
            Some((name, nth)) => ferry.failpoint(name, nth),
            None => ferry,
        };
        self.tally.starts += 1;
        let outcome = ferry.run().await?;
        self.since.resynced.push(TableName::new("public", "changing"));
        self.look(&outcome).await?;
        Ok(outcome)
    }

    /// Whether the run comes to a moment before it ends and before it has taken too long.
    async fn reach(&mut self, running: &mut RunningFerry, client: &Client, moment: Moment) -> Result<bool> {
        let until = Instant::now() + REACH_WITHIN;
        while Instant::now() < until {
            let seen = others::activity(client).await?;
            match moment {
                Moment::Start | Moment::Handover => return Ok(true),
                Moment::Snapshot if seen.copying || seen.streaming => return Ok(true),
                Moment::Stream if seen.streaming => return Ok(true),
                Moment::Snapshot | Moment::Stream => {}
            }
            if running.ends_within(POLL).await? {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// A run that nobody ended has to have ended well: with its goal reached.
    fn ended_by_itself(&mut self, outcome: &Outcome) -> Result<()> {
        self.tell(&format!("ended by itself: {}", outcome.status));
        expect_code(outcome, &[WELL])
    }

    /// What the target and the slot say now.
    async fn look(&mut self, outcome: &Outcome) -> Result<()> {
        let held = self.scene.held().await?;
        let confirmed = others::confirmed(&self.scene.database).await?;
        let position = held.as_ref().and_then(|held| held.position);
        let words: Vec<&str> =
            held.iter().flat_map(|held| &held.tables).map(|table| table.state.word()).collect();
        self.tell(&format!(
            "{} after {:.2} s; target {position:?}, slot {confirmed:?}, {words:?}\n{}{}",
            outcome.status,
            outcome.took.as_secs_f64(),
            tail(&outcome.stdout),
            tail(&outcome.stderr)
        ));
        for table in held.iter().flat_map(|held| &held.tables) {
            if let TableState::Broken { code, problem } = &table.state {
                ensure!(&*table.name.name == "changing", "{} is set aside: {code}: {problem}", table.name);
            }
        }
        self.ledger.note(held, confirmed, &std::mem::take(&mut self.since))
    }

    /// Nobody writes any more: one run to the end, then both sides are equal and nothing is left.
    async fn finish(&mut self) -> Result<()> {
        self.others.settle().await?;
        let outcome = self.start(None, true)?.wait().await?;
        expect_code(&outcome, &[WELL]).context("the last run")?;
        self.look(&outcome).await?;
        self.tally.transactions = self.others.committed;
        self.tally.rows_changed = others::rows_changed(&self.scene.database).await?;
        let report = self.scene.compare(false, |_| true).await?;
        self.tally.rows_compared = report.rows;
        self.tally.differences = report.found;
        for difference in report.differences.iter().take(DIFFERENCES_TOLD) {
            let kind = match &difference.kind {
                DifferenceKind::Cell { .. } => format!("cell {:?}: {:?}", difference.column, difference.kind),
                other => format!("{other:?}"),
            };
            self.tell(&format!("{} {:?}: {kind}", difference.table, difference.key));
        }
        ensure!(report.found == 0, "{} differences in {} rows", report.found, report.rows);
        self.scene.assert_clean().await
    }

    fn tell(&mut self, what: &str) {
        let at = self.started.elapsed().as_secs_f64();
        self.story.push(format!("[{at:8.3}] {}", what.trim_end()));
    }

    /// Keeps the scene's folder, what happened and, of a server of its own, the log.
    pub fn keep(&self, folder: &Path, failure: &anyhow::Error) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let story = format!("{}\n\n{failure:?}\n", self.story.join("\n"));
        std::fs::write(folder.join("story.txt"), story)?;
        copy_all(self.scene.folder(), folder)?;
        let server = self.scene.database.server();
        let log = std::fs::read(server.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        // Lines without a database are the server's own.
        let ours = |line: &&str| line.contains(self.scene.database.name()) || self.plan.own_server;
        let log: Vec<&str> = log.lines().filter(ours).collect();
        Ok(std::fs::write(folder.join("server.log"), log.join("\n"))?)
    }
}

async fn told(running: RunningFerry) -> String {
    match running.kill9().await {
        Ok(outcome) => format!("{}\n{}{}", outcome.status, outcome.stdout, outcome.stderr),
        Err(failure) => failure.to_string(),
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].iter().map(|line| format!("    {line}\n")).collect()
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let into = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir_all(&into)?;
            copy_all(&entry.path(), &into)?;
        } else if let Err(failure) = std::fs::copy(entry.path(), &into) {
            bail!("cannot keep {}: {failure}", entry.path().display());
        }
    }
    Ok(())
}
