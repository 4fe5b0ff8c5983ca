//! One running `postgres` process: its start, its signals, its end.
//!
//! ```text
//!   port chosen ──> postgres started ──> answers on its socket: up
//!        ▲                │
//!        └── port taken ──┘   (five times, then the log's last lines are the error)
//! ```
//!
//! Invariants: at most one process per data folder; it is on the watcher's list while it runs.
//!
//! Ports are taken below the range the kernel hands out to outgoing connections, so that a restart finds its own
//! port free again.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio_postgres::NoTls;

use super::installation::Installation;
use crate::random::SeededRandom;
use crate::run_folder;

const PORTS: (u64, u64) = (20_000, 32_000);
const ATTEMPTS: u32 = 5;
/// Recovery after a crash test reads at most some hundred MB of WAL.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How a server is asked to stop (PostgreSQL docs, "Shutting Down the Server").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Ends the sessions, then writes a checkpoint. Walsenders get what is left to send first.
    Fast,
    /// Ends everything at once; the next start recovers from WAL.
    Immediate,
    /// SIGKILL to the server process: nothing gets a chance to do anything.
    Kill,
}

#[derive(Debug)]
pub(crate) struct Postmaster {
    child: Child,
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos() as u64;
    let mut random = SeededRandom::new(seed ^ u64::from(std::process::id()) << 40);
    for _ in 0..1000 {
        let port = random.between(PORTS.0, PORTS.1) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {} and {} on 127.0.0.1", PORTS.0, PORTS.1)
}

/// What one attempt to start came to.
enum Attempt {
    Up(Postmaster),
    /// The port belongs to someone else by now.
    PortTaken,
    /// The processes of a server ended by force still hold its shared memory.
    StillLeaving,
}

impl Postmaster {
    /// Starts a server in `folder` and waits until it answers. With `port` it keeps to that port.
    pub(crate) async fn start(
        installation: &Installation,
        folder: &Path,
        port: Option<u16>,
    ) -> Result<(Self, u16)> {
        let until = Instant::now() + START_LIMIT;
        let mut attempts = 0;
        while Instant::now() < until {
            let number = match port {
                Some(port) => port,
                None => free_port()?,
            };
            match Self::attempt(installation, folder, number, until).await? {
                Attempt::Up(postmaster) => return Ok((postmaster, number)),
                Attempt::PortTaken => {
                    attempts += 1;
                    if attempts == ATTEMPTS && port.is_none() {
                        bail!("five ports in a row were taken between choosing and using them");
                    }
                }
                Attempt::StillLeaving => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!(
            "the server did not start within {START_LIMIT:?}; last lines of its log:\n{}",
            log_tail(folder, 20)
        )
    }

    async fn attempt(
        installation: &Installation,
        folder: &Path,
        port: u16,
        until: Instant,
    ) -> Result<Attempt> {
        let log_path = folder.join("server.log");
        let log = File::options().create(true).append(true).open(&log_path)?;
        let start_of_log = log.metadata()?.len() as usize;
        let child = installation
            .command("postgres")
            .arg("-D")
            .arg(folder.join("data"))
            .args(["-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start postgres")?;
        let mut postmaster = Self { child };
        run_folder::remember(postmaster.child.id(), "QUIT")?;
        loop {
            if postmaster.child.try_wait()?.is_some() {
                let text = fs::read(&log_path)?;
                let text = String::from_utf8_lossy(text.get(start_of_log..).unwrap_or_default()).into_owned();
                if text.contains("could not bind") {
                    return Ok(Attempt::PortTaken);
                }
                if text.contains("is still in use") || text.contains("lock file") {
                    return Ok(Attempt::StillLeaving);
                }
                bail!("postgres ended while it started; last lines of its log:\n{}", log_tail(folder, 20));
            }
            if answers(&folder.join("socket"), port).await {
                return Ok(Attempt::Up(postmaster));
            }
            if Instant::now() > until {
                bail!("the server does not answer; last lines of its log:\n{}", log_tail(folder, 20));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process still runs.
    pub(crate) fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends the server and waits for its end. Blocks for up to 30 seconds, then by force.
    pub(crate) fn stop(mut self, mode: StopMode) -> Result<()> {
        let signal = match mode {
            StopMode::Fast => "INT",
            StopMode::Immediate => "QUIT",
            StopMode::Kill => "KILL",
        };
        if self.alive() {
            run_folder::signal(self.child.id(), signal)?;
        }
        let until = Instant::now() + STOP_LIMIT;
        while self.alive() {
            if Instant::now() > until {
                bail!("the server did not stop ({mode:?}) within {STOP_LIMIT:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        if self.alive() {
            // SIGQUIT lets the server end its own children; SIGKILL would leave them behind for a while.
            let _gone = run_folder::signal(self.child.id(), "QUIT");
            let until = Instant::now() + Duration::from_secs(5);
            while self.alive() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _gone = self.child.kill();
            let _reaped = self.child.wait();
        }
        run_folder::forget(self.child.id());
    }
}

async fn answers(socket: &Path, port: u16) -> bool {
    let mut config = tokio_postgres::Config::new();
    config
        .host_path(socket)
        .port(port)
        .user("postgres")
        .dbname("postgres")
        .connect_timeout(Duration::from_secs(5));
    let Ok((client, connection)) = config.connect(NoTls).await else {
        return false;
    };
    let connection = tokio::spawn(connection);
    let answered = client.simple_query("SELECT 1").await.is_ok();
    connection.abort();
    answered
}

/// The last lines of a server's log.
pub(crate) fn log_tail(folder: &Path, lines: usize) -> String {
    let path: PathBuf = folder.join("server.log");
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
