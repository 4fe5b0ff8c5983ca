//! One database, the program that carries it past a fault, and the proof that both sides are equal.
//!
//! A live run has the DuckDB file to itself, so its progress is read off the source: the slot's confirmed position covers a change as soon
//! as the target holds it durably.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pgferry_testkit::process::{Ferry, Outcome, RunningFerry, binary};
use pgferry_testkit::proxy::Proxy;
use pgferry_testkit::{Database, Server};
use pgferry_trial::{Scene, slot};
use serde_json::Value;

/// The longest that anything may take, on a machine that does much else.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);
/// Half the rows arrive by the copy, in several chunks; the rest by the stream.
const TABLES: &str = "CREATE TABLE t(id int PRIMARY KEY, pad text); \
     INSERT INTO t SELECT g, repeat(md5(g::text), 5) FROM generate_series(1, 12000) g; \
     CREATE TABLE u(id int PRIMARY KEY, n numeric, at timestamptz); \
     INSERT INTO u SELECT g, g / 7.0, '2001-02-03 04:05:06.789+00'::timestamptz + g * interval '1 hour' FROM generate_series(1, 300) g";
/// Short, so that a fault is noticed within seconds.
const CONNECTION: &str = "kind = \"postgres\"\nconnect_timeout = \"5s\"\nprobe_after = \"1s\"\n";

pub(crate) struct Voyage {
    pub(crate) scene: Scene,
    pub(crate) proxy: Proxy,
    text: String,
    env: Vec<(String, String)>,
    rounds: std::sync::atomic::AtomicU64,
}

/// What a run says at its end.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) exit: Option<i32>,
    pub(crate) all: Value,
    pub(crate) errors: Vec<Value>,
}

impl Voyage {
    /// A database on `server` with two tables, and a task file that leads to it through a proxy.
    pub(crate) async fn new(server: &Server) -> Result<Voyage> {
        Voyage::with(server, "limits = { retry_wait = \"500ms\" }\n").await
    }

    /// The same with other lines in the task.
    pub(crate) async fn with(server: &Server, more: &str) -> Result<Voyage> {
        let scene = Scene::on(server, more).await?;
        scene.database.execute(TABLES).await?;
        let proxy = Proxy::to(server).await?;
        let direct = std::fs::read_to_string(scene.task_file())?;
        let text = direct.replacen("kind = \"postgres\"\n", CONNECTION, 1);
        let text = text.replacen(&format!(":{}/", server.port()), &format!(":{}/", proxy.port()), 1);
        ensure!(text.contains(&format!(":{}/", proxy.port())), "the file does not lead to the proxy: {text}");
        let voyage = Voyage { scene, proxy, text, env: Vec::new(), rounds: Default::default() };
        voyage.write()?;
        Ok(voyage)
    }

    fn write(&self) -> Result<()> {
        std::fs::write(self.file(), &self.text).context("the task file")
    }

    /// The database is on another server from now on: the proxy leads there, and so does the comparison.
    pub(crate) fn lead_to(&mut self, server: &Server) -> Result<()> {
        let before = format!(":{}/", self.database().server().port());
        let direct = std::fs::read_to_string(self.scene.task_file())?;
        std::fs::write(self.scene.task_file(), direct.replacen(&before, &format!(":{}/", server.port()), 1))?;
        self.scene.database = self.scene.database.on(server);
        self.proxy.lead_to(server);
        Ok(())
    }

    /// Replaces a part of the task file.
    pub(crate) fn edit(&mut self, old: &str, new: &str) -> Result<()> {
        ensure!(self.text.contains(old), "{old:?} is not in {}", self.text);
        self.text = self.text.replacen(old, new, 1);
        self.write()
    }

    pub(crate) fn env(&mut self, name: &str, value: &str) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// The folder of the task file, the DuckDB file, and what else a test puts there.
    pub(crate) fn folder(&self) -> PathBuf {
        self.scene.folder().to_owned()
    }

    fn file(&self) -> PathBuf {
        self.folder().join("faulty.toml")
    }

    pub(crate) fn database(&self) -> &Database {
        &self.scene.database
    }

    pub(crate) fn slot(&self) -> String {
        slot(&self.scene.database)
    }

    pub(crate) async fn sql(&self, sql: &str) -> Result<()> {
        self.database().execute(sql).await
    }

    /// The program with the task file.
    pub(crate) fn ferry(&self, arguments: &[&str]) -> Result<Ferry> {
        let file = self.file().to_string_lossy().into_owned();
        let mut ferry = Ferry::of(binary()?)?
            .limit(WITHIN * 2)
            .args(arguments.iter().copied())
            .args([file, "--json".into()]);
        for (name, value) in &self.env {
            ferry = ferry.env(name, value);
        }
        Ok(ferry)
    }

    /// A run without an end.
    pub(crate) fn start(&self) -> Result<RunningFerry> {
        self.ferry(&["run"])?.start()
    }

    /// A run that has copied everything and follows.
    pub(crate) async fn following(&self) -> Result<RunningFerry> {
        let mut ferry = self.start()?;
        self.change().await?;
        self.delivered(&mut ferry).await.context("before the fault")?;
        Ok(ferry)
    }

    /// A run until caught up, to its end.
    pub(crate) async fn run(&self) -> Result<Told> {
        told(&self.ferry(&["run", "--until-caught-up"])?.run().await?)
    }

    /// Changes of every kind; about 60 kB in the stream.
    pub(crate) async fn change(&self) -> Result<()> {
        let round = self.rounds.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.sql(&format!(
            "BEGIN; UPDATE t SET pad = 'round {round}' WHERE id % 50 = {round} % 50; DELETE FROM u WHERE id = {round} + 1; \
             INSERT INTO u VALUES (-1000 - {round}, {round} / 3.0, now()); COMMIT; \
             INSERT INTO t SELECT 100000 + {round} * 1000 + g, repeat('new', 80) FROM generate_series(1, 200) g; \
             UPDATE t SET id = -id WHERE id = 200 + {round}"
        ))
        .await
    }

    /// Waits for the end of the copy, then writes one more row and waits until the slot says that the target holds it. Fails where the program
    /// ends, or the time does. Returns the time since the call.
    pub(crate) async fn delivered(&self, ferry: &mut RunningFerry) -> Result<Duration> {
        let begun = Instant::now();
        // The slot is ahead of what was written before it was made.
        let copied = ferry.wait_for("\"phase\":\"catching_up\"");
        match tokio::time::timeout(WITHIN, copied).await {
            Ok(copied) => copied?,
            Err(_) => bail!("not copied within {WITHIN:?}:\n{}", ferry.stderr()),
        }
        let client = self.database().client().await?;
        let write = "WITH written AS (INSERT INTO u SELECT max(id) + 1, 0, now() FROM u RETURNING id) \
                     SELECT pg_current_wal_insert_lsn()::text FROM written";
        let written: String = client.query_one(write, &[]).await?.get(0);
        let covered = format!(
            "SELECT confirmed_flush_lsn > '{written}'::pg_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
            self.slot()
        );
        loop {
            let row = client.query_opt(&covered, &[]).await?;
            if row.and_then(|row| row.get::<_, Option<bool>>(0)) == Some(true) {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > WITHIN {
                bail!("not delivered within {WITHIN:?}:\n{}", ferry.stderr());
            }
            // Ends with what it wrote, where the process has ended.
            if tokio::time::timeout(Duration::from_millis(50), ferry.wait_for("\"ended\":")).await.is_ok() {
                bail!("the program ended:\n{}\n{}", ferry.stdout(), ferry.stderr());
            }
        }
    }

    /// Stops a run as a person does; it has to end well.
    pub(crate) async fn stop(&self, ferry: RunningFerry) -> Result<Told> {
        ferry.signal("TERM")?;
        let begun = Instant::now();
        let told = told(&ferry.wait().await?)?;
        ensure!(told.exit == Some(0), "stopped with {:?}: {:#}", told.exit, told.all);
        ensure!(begun.elapsed() < Duration::from_secs(40), "stopping took {:?}", begun.elapsed());
        Ok(told)
    }

    /// Both sides have the same rows.
    pub(crate) async fn equal(&self) -> Result<()> {
        let rows = self.scene.assert_equal(false).await?;
        ensure!(rows > 12_000, "{rows} rows are fewer than there were");
        Ok(())
    }

    /// What is left once everything is carried: stop, compare.
    pub(crate) async fn arrived(&self, mut ferry: RunningFerry) -> Result<Duration> {
        let took = self.delivered(&mut ferry).await?;
        self.stop(ferry).await?;
        self.equal().await?;
        Ok(took)
    }

    /// A run to the end, and both sides are equal.
    pub(crate) async fn finished(&self) -> Result<()> {
        let told = self.run().await?;
        ensure!(told.exit == Some(0), "exit {:?}: {:#}", told.exit, told.all);
        self.equal().await
    }

    /// Does what a cure says: its statements, then its commands, as they stand.
    pub(crate) async fn cure(&self, error: &Value) -> Result<()> {
        let texts = |part: &str| -> Vec<String> {
            let texts = error["cure"][part].as_array().cloned().unwrap_or_default();
            texts.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect()
        };
        for statement in texts("sql") {
            self.sql(&statement).await.with_context(|| statement.clone())?;
        }
        for command in texts("commands") {
            let program = binary()?;
            let folder = program.parent().context("a folder")?.to_string_lossy().into_owned();
            let path = format!("{folder}:{}", std::env::var("PATH").unwrap_or_default());
            let ferry = Ferry::of("sh")?.limit(WITHIN).env("PATH", &path);
            let ferry = self.env.iter().fold(ferry, |ferry, (name, value)| ferry.env(name, value));
            ferry.args(["-c", &format!("{command} --yes")]).run().await?.success()?;
        }
        Ok(())
    }
}

impl Told {
    /// The error of that code, or behind which it is; it has a cause and a cure.
    pub(crate) fn error(&self, code: &str) -> Result<&Value> {
        let error = self.errors.iter().find(|error| error["code"] == code || error["behind"] == code);
        let error = error.with_context(|| format!("no {code} in {:#}", self.all))?;
        let said = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
        ensure!(said(&error["problem"]) && said(&error["cause"]), "no cause: {error:#}");
        ensure!(said(&error["cure"]["advice"]), "no cure: {error:#}");
        Ok(error)
    }
}

/// What the program has printed for programs.
pub(crate) fn told(outcome: &Outcome) -> Result<Told> {
    ensure!(!outcome.timed_out, "it hung:\n{}\n{}", outcome.stdout, outcome.stderr);
    let last = outcome.stdout.lines().last().unwrap_or_default();
    let all: Value = serde_json::from_str(last)
        .with_context(|| format!("{:?}: {}\n{}", outcome.status, outcome.stdout, outcome.stderr))?;
    let result = &all["result"][0];
    let aside = result["set_aside"].as_array().cloned().unwrap_or_default();
    let errors = [all["error"].clone(), result["error"].clone()].into_iter();
    let errors = errors.chain(aside.into_iter().map(|aside| aside["error"].clone()));
    let errors = errors.filter(|error| !error.is_null()).collect();
    Ok(Told { exit: outcome.status.code(), all, errors })
}
