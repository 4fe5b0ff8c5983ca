//! A database, a Databend server, a folder with a task file, and runs of the program.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pgferry_testkit::databend::{DatabendServer, DatabendSettings, python};
use pgferry_testkit::kafka::NotInstalled;
use pgferry_testkit::{Database, Server};
use serde_json::Value;
use tempfile::TempDir;

const STOPPED_WITHIN: Duration = Duration::from_secs(60);
const SEEN_WITHIN: Duration = Duration::from_secs(60);

/// What is there; `None`, said on the terminal, where it is not installed.
fn or_said<T>(there: Result<T, NotInstalled>) -> Option<T> {
    there
        .inspect_err(|missing| {
            // Not with a macro: those the test runner shows of failed tests only.
            writeln!(std::io::stderr().lock(), "NOT RUN: a test on Databend: {}", missing.0).unwrap();
        })
        .ok()
}

/// A server of the test's own.
pub(crate) fn server(settings: &DatabendSettings) -> Option<DatabendServer> {
    or_said(DatabendServer::start(settings).unwrap())
}

/// The Python with Databend's official driver.
pub(crate) fn driver() -> Option<std::path::PathBuf> {
    or_said(python().unwrap())
}

/// One task, `all`, that carries the tables of schema `public` to the database `lake`.
pub(crate) struct Scene {
    pub(crate) database: Database,
    pub(crate) folder: TempDir,
}

impl Scene {
    pub(crate) async fn new(statements: &str) -> Scene {
        let database = Server::shared(15).await.unwrap().create_database().await.unwrap();
        database.execute(statements).await.unwrap();
        Scene { database, folder: tempfile::tempdir().unwrap() }
    }

    /// Writes the task file; `connection`: lines of the target, `more`: of the task.
    pub(crate) fn task(&self, connection: &str, more: &str) {
        self.task_merging(connection, "100ms", more);
    }

    /// The same with another `sync_interval`.
    pub(crate) fn task_merging(&self, connection: &str, interval: &str, more: &str) {
        let text = format!(
            "version = 1\n[connections.source]\nkind = \"postgres\"\nurl = \"{}\"\n\
             [connections.target]\nkind = \"databend\"\n{connection}\n\
             [tasks.all]\nsource = \"source\"\ntarget = \"target\"\nsync_mode = \"snapshot_cdc\"\n\
             sync_interval = \"{interval}\"\ninclude = [\"public.*\"]\n\
             replication = {{ publication = \"ferry\", slot = \"databend_{}\", manage = \"create\" }}\n\
             databend = {{ database = \"lake\" }}\n{more}",
            self.database.url(),
            self.database.name(),
        );
        std::fs::write(self.folder.path().join("task.toml"), text).unwrap();
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("pgferry"));
        command.current_dir(self.folder.path()).env_remove("PGFERRY_LOG").stdin(Stdio::null());
        command.args(["run", "task.toml", "--json"]);
        command
    }

    /// Starts a run that goes on.
    pub(crate) fn start(&self) -> Running {
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = self.command();
        command.args(["--metrics", &metrics.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        Running { child: command.spawn().unwrap(), metrics }
    }

    /// Runs until caught up, with variables; gives the result of the task.
    pub(crate) fn run(&self, variables: &[(&str, &str)], code: i32) -> Value {
        let mut command = self.command();
        let output = command.arg("--until-caught-up").envs(variables.iter().copied()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let logged = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{told}\n{logged}");
        serde_json::from_str::<Value>(told.lines().last().unwrap()).unwrap()["result"][0].clone()
    }
}

/// For `address` or `path`, as the task file has it.
pub(crate) fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_string_lossy())
}

/// Rows of a query, cells joined by `|`.
pub(crate) fn rows(server: &DatabendServer, sql: &str) -> Vec<String> {
    let cell = |cell: Option<String>| cell.unwrap_or_else(|| "<null>".to_owned());
    let rows = server.query(sql).unwrap().into_iter();
    rows.map(|row| row.into_iter().map(cell).collect::<Vec<_>>().join("|")).collect()
}

/// A run that goes on until it is dropped, with metrics.
pub(crate) struct Running {
    child: Child,
    metrics: SocketAddr,
}

impl Running {
    /// A series of the metrics, where it is there.
    pub(crate) fn scraped(&self, series: &str) -> Option<f64> {
        let mut stream = TcpStream::connect(self.metrics).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let line = answer.lines().find_map(|line| line.strip_prefix(series))?;
        line.trim().parse().ok()
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(mut self) {
        let asked = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(asked.success());
        let until = Instant::now() + STOPPED_WITHIN;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < until, "the program does not stop"),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        assert_eq!(status.code(), Some(0));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Waits until something is as it has to be; `seen` says what is there instead.
pub(crate) fn await_that(mut as_wanted: impl FnMut() -> Result<(), String>) {
    let until = Instant::now() + SEEN_WITHIN;
    while let Err(seen) = as_wanted() {
        assert!(Instant::now() < until, "{seen}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
