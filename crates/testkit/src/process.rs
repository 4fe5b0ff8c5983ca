//! Runs the real `pgferry` as its users do: a process with a task file, ended by signals, by force, or at a failpoint.
//!
//! Invariants: a run is bounded by its time limit, then ended by force and reported as such; the process never outlives
//! the test process; all it writes is kept for the test.
//!
//! A failpoint is a named place in the product that aborts the process when `PGFERRY_FAILPOINT=name:nth` names it and it
//! is reached the nth time.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::random::SeededRandom;
use crate::run_folder;

/// Where the binary is: `CARGO_BIN_EXE_pgferry`, else beside the folder of the running test executable.
///
/// # Errors
/// When it is in neither place: it has not been built.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CARGO_BIN_EXE_pgferry") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    for folder in own.ancestors().skip(1).take(2) {
        let path = folder.join("pgferry");
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!("there is no pgferry beside {}; run `cargo build -p pgferry-cli` first", own.display())
}

/// A run to be: program, arguments, environment, limit.
#[derive(Debug)]
pub struct Ferry {
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    limit: Duration,
    folder: Arc<TempDir>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// Whether the time limit ended it.
    pub timed_out: bool,
    pub took: Duration,
}

impl Outcome {
    /// The signal that ended the process, if one did.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Fails with all the process wrote unless it ended well and in time.
    pub fn success(self) -> Result<Self> {
        if self.timed_out || !self.status.success() {
            let late = if self.timed_out { " (time limit)" } else { "" };
            bail!(
                "pgferry ended with {}{late}\nstdout:\n{}\nstderr:\n{}",
                self.status,
                self.stdout,
                self.stderr
            );
        }
        Ok(self)
    }
}

impl Ferry {
    /// A run of the built `pgferry`, limited to 60 seconds.
    pub fn new() -> Result<Self> {
        Self::of(binary()?)
    }

    /// A run of another program.
    pub fn of(program: impl Into<PathBuf>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ferry-").tempdir_in(run_folder::root()?)?;
        Ok(Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            limit: Duration::from_secs(60),
            folder: Arc::new(folder),
        })
    }

    /// Its working folder, removed with the last of this, its [`RunningFerry`] and its clones.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Adds arguments.
    pub fn args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Writes `text` as `task.toml` into the working folder and adds its path as an argument.
    pub fn task(self, text: &str) -> Result<Self> {
        let path = self.folder().join("task.toml");
        std::fs::write(&path, text)?;
        Ok(self.args([path.to_string_lossy().into_owned()]))
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Has the process abort when it reaches the failpoint `name` the `nth` time (from 1).
    pub fn failpoint(self, name: &str, nth: u32) -> Self {
        self.env("PGFERRY_FAILPOINT", &format!("{name}:{nth}"))
    }

    /// The most time a run may take.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs to the end.
    pub async fn run(&self) -> Result<Outcome> {
        self.start()?.wait().await
    }

    /// Starts it; may be called again for the next run of the same task.
    pub fn start(&self) -> Result<RunningFerry> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(self.folder()).env_remove("PGFERRY_FAILPOINT");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let pid = child.id().context("the process ended at once")?;
        run_folder::remember(pid, "KILL")?;
        let written = watch::Sender::new(());
        let stdout = Output::collect(child.stdout.take(), written.clone());
        let stderr = Output::collect(child.stderr.take(), written.clone());
        let (limit, folder) = (self.limit, Arc::clone(&self.folder));
        Ok(RunningFerry {
            child,
            pid,
            started: Instant::now(),
            limit,
            stdout,
            stderr,
            written,
            _folder: folder,
        })
    }
}

/// What a process writes, as it comes.
#[derive(Debug)]
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Output {
    fn collect(from: Option<impl AsyncRead + Unpin + Send + 'static>, written: watch::Sender<()>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&bytes);
        let reader = tokio::spawn(async move {
            let Some(mut from) = from else { return };
            let mut buffer = vec![0; 8192];
            while let Ok(size @ 1..) = from.read(&mut buffer).await {
                into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..size]);
                written.send_replace(());
            }
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

/// A run that is under way; dropping it ends it by force.
#[derive(Debug)]
pub struct RunningFerry {
    child: Child,
    pid: u32,
    started: Instant,
    limit: Duration,
    stdout: Output,
    stderr: Output,
    written: watch::Sender<()>,
    _folder: Arc<TempDir>,
}

impl RunningFerry {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Sends a signal, by its name without SIG.
    pub fn signal(&self, name: &str) -> Result<()> {
        run_folder::signal(self.pid, name)
    }

    /// Waits until it has written `text` to stdout or stderr.
    ///
    /// # Errors
    /// When it ends or reaches its limit before; with all it wrote.
    pub async fn wait_for(&mut self, text: &str) -> Result<()> {
        let mut written = self.written.subscribe();
        let found = |ferry: &Self| ferry.stdout().contains(text) || ferry.stderr().contains(text);
        let until = self.started + self.limit;
        while !found(self) {
            tokio::select! {
                _ = written.changed() => {}
                status = self.child.wait() => {
                    let status = status?;
                    self.read_off().await;
                    if found(self) {
                        return Ok(());
                    }
                    bail!("pgferry ended with {status} before it wrote {text:?}\n{}\n{}", self.stdout(), self.stderr());
                }
                () = tokio::time::sleep_until(until.into()) => {
                    bail!("pgferry did not write {text:?} within {:?}\n{}\n{}", self.limit, self.stdout(), self.stderr());
                }
            }
        }
        Ok(())
    }

    /// Ends it by SIGKILL at a moment within `low..high` from now that `seed` chooses; it may have ended by itself before.
    pub async fn kill_within(mut self, seed: u64, low: Duration, high: Duration) -> Result<Outcome> {
        let (low, high) = (low.as_micros() as u64, high.as_micros() as u64);
        let moment = Duration::from_micros(SeededRandom::new(seed).between(low, high));
        let _ended_before = tokio::time::timeout(moment, self.child.wait()).await;
        self.kill9().await
    }

    /// Ends it by SIGKILL now.
    pub async fn kill9(mut self) -> Result<Outcome> {
        // Fails only when the process has ended by itself, which the outcome tells.
        let _ended_before = self.child.start_kill();
        self.wait().await
    }

    /// Whether it ends by itself within a time; [`RunningFerry::wait`] tells how.
    pub async fn ends_within(&mut self, within: Duration) -> Result<bool> {
        match tokio::time::timeout(within, self.child.wait()).await {
            Ok(status) => status.map(|_| true).context("cannot wait for the process"),
            Err(_) => Ok(false),
        }
    }

    /// Waits for its end, at most until its limit.
    pub async fn wait(mut self) -> Result<Outcome> {
        let left = self.limit.saturating_sub(self.started.elapsed());
        let (status, timed_out) = match tokio::time::timeout(left, self.child.wait()).await {
            Ok(status) => (status?, false),
            Err(_) => {
                self.child.start_kill()?;
                (self.child.wait().await?, true)
            }
        };
        let took = self.started.elapsed();
        self.read_off().await;
        Ok(Outcome { status, stdout: self.stdout(), stderr: self.stderr(), timed_out, took })
    }

    /// Takes what is still in the process's output after its end; a child of it may hold the output open, hence the limit.
    async fn read_off(&mut self) {
        for output in [&mut self.stdout, &mut self.stderr] {
            if !output.reader.is_finished() {
                let _still_open = tokio::time::timeout(Duration::from_secs(2), &mut output.reader).await;
            }
        }
    }
}

impl Drop for RunningFerry {
    fn drop(&mut self) {
        let _ended = self.child.start_kill();
        run_folder::forget(self.pid);
    }
}
