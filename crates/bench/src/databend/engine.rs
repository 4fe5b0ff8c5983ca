//! Databend's engine as it is watched: a server that is thrown away, statements by hand, its log, its CPU and memory.
//!
//! Memory is the peak since [`Engine::forget_peak`], which Linux lets the owner of a process do (`/proc/PID/clear_refs`).

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use databend_client::APIClient;
use pgferry_testkit::databend::{DatabendServer, DatabendSettings};
use pgferry_testkit::kafka::NotInstalled;

use crate::measure::{kib, server_cpu};

/// Between two looks at what a contestant has done.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(900);

pub(super) struct Engine(DatabendServer);

/// A statement that has ended.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    /// In seconds since 1970.
    pub(super) ended: f64,
    pub(super) seconds: f64,
    /// How it begins.
    pub(super) text: String,
}

impl Logged {
    pub(super) fn began(&self) -> f64 {
        self.ended - self.seconds
    }

    /// A line `ENDED ID SECONDS s 'TEXT': OUTCOME`; what is said of files is none.
    fn of(line: &str) -> Option<Logged> {
        let mut words = line.splitn(5, ' ');
        let (ended, _id, seconds) = (words.next()?, words.next()?, words.next()?);
        let (unit, rest) = (words.next()?, words.next()?);
        if unit != "s" {
            return None;
        }
        let text = rest.trim_start_matches(['\'', '"']).to_owned();
        Some(Logged { ended: ended.parse().ok()?, seconds: seconds.parse().ok()?, text })
    }
}

/// The engine's CPU from one moment on.
pub(super) struct Meter(Duration);

impl Engine {
    pub(super) fn start() -> Result<Result<Engine, NotInstalled>> {
        Ok(DatabendServer::start(&DatabendSettings::default())?.map(Engine))
    }

    /// For Databend's clients.
    pub(super) fn dsn(&self) -> String {
        self.0.dsn("")
    }

    pub(super) fn stage_folder(&self, stage: &str) -> PathBuf {
        self.0.stage_folder(stage)
    }

    /// A session that speaks to it as pgferry does.
    pub(super) async fn hand(&self) -> Result<Hand> {
        let dsn = format!("{}&timezone=UTC", self.dsn());
        let client = APIClient::new(&dsn, None).await.map_err(|failure| anyhow!("{failure}"))?;
        Ok(Hand(client))
    }

    pub(super) fn meter(&self) -> Result<Meter> {
        Ok(Meter(server_cpu(self.0.pid())?))
    }

    /// CPU of the server with its children since then.
    pub(super) fn since(&self, meter: &Meter) -> Result<Duration> {
        Ok(server_cpu(self.0.pid())?.saturating_sub(meter.0))
    }

    pub(super) fn forget_peak(&self) -> Result<()> {
        fs::write(format!("/proc/{}/clear_refs", self.0.pid()), "5").context("forgetting the engine's peak")
    }

    pub(super) fn peak_kib(&self) -> Result<u64> {
        Ok(kib(&fs::read_to_string(format!("/proc/{}/status", self.0.pid()))?, "VmHWM:"))
    }

    /// How much it has logged.
    pub(super) fn mark(&self) -> usize {
        self.0.log().len()
    }

    /// The statements that have ended since a mark, in the order of their ends. A line that is not whole yet is left out.
    pub(super) fn logged(&self, mark: usize) -> Vec<Logged> {
        let log = self.0.log();
        let new = log.get(mark..).unwrap_or_default();
        let whole = new.rfind('\n').map_or("", |end| &new[..end]);
        whole.lines().filter_map(Logged::of).collect()
    }

    /// Waits until what it has logged since a mark shows something.
    pub(super) async fn until<T>(
        &self,
        what: &str,
        mark: usize,
        shown: impl Fn(&[Logged]) -> Option<T>,
    ) -> Result<T> {
        let began = Instant::now();
        loop {
            if let Some(found) = shown(&self.logged(mark)) {
                return Ok(found);
            }
            ensure!(began.elapsed() < WAIT_MAX, "no {what} within {WAIT_MAX:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// A session for statements by hand.
pub(super) struct Hand(Arc<APIClient>);

impl Hand {
    pub(super) async fn run(&self, statement: &str) -> Result<Vec<Vec<Option<String>>>> {
        let page = self.0.query_all(statement, None).await;
        Ok(page.map_err(|failure| anyhow!("{failure}: {statement}"))?.data)
    }

    /// The first value of an answer.
    pub(super) async fn value(&self, statement: &str) -> Result<String> {
        let rows = self.run(statement).await?;
        rows.into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten())
            .with_context(|| format!("no value: {statement}"))
    }

    pub(super) async fn number(&self, statement: &str) -> Result<u64> {
        Ok(self.value(statement).await?.parse()?)
    }

    /// All values of the first row, as one text.
    pub(super) async fn row(&self, statement: &str) -> Result<String> {
        let rows = self.run(statement).await?;
        Ok(format!("{:?}", rows.first()))
    }
}
