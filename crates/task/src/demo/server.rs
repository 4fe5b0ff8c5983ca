//! A throw-away PostgreSQL: found, made in a temporary folder, started on loopback, gone at the end.
//!
//! Invariants: it listens on loopback only, behind a password drawn for this run (a superuser's session is a shell for who
//! gets it); as root it runs as the user `postgres` (PostgreSQL refuses root); it is in a
//! process group of its own, so that Ctrl-C reaches pgferry first; dropping the handle stops it and removes its folder.

use std::fs;
use std::io::{self, Read as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use pgferry_model::{Cure, Error, Result};
use pgferry_postgres::{ConnectionConfig, Purpose, Secret, Session};

use super::{NO_SERVER, SERVER_FAILED};

const START_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Lines of a failed program's output that are repeated.
const LINES_MAX: usize = 10;

/// A running server.
pub struct DemoServer {
    stopper: Stopper,
    made: Made,
}

/// What was drawn and found while it was made.
struct Made {
    version: String,
    port: u16,
    password: String,
}

/// Stops the server and removes its folder; may be called from anywhere, more than once.
#[derive(Clone)]
pub struct Stopper {
    programs: PathBuf,
    folder: PathBuf,
    account: Option<(u32, u32)>,
}

impl DemoServer {
    /// Starts a server with an empty database `shop`.
    pub async fn start() -> Result<DemoServer> {
        let (stopper, made) = tokio::task::spawn_blocking(prepare).await.map_err(|lost| {
            Error::task_broken(SERVER_FAILED, "preparing the demo's server was cut off")
                .with_cure(retry())
                .with_origin(lost)
        })??;
        let server = DemoServer { stopper, made };
        server.wait_until_up().await?;
        let mut session = Session::connect(&server.connection("postgres"), Purpose::Query).await?;
        session.simple_query("CREATE DATABASE shop").await?;
        session.close().await?;
        Ok(server)
    }

    /// As the server says it: `15.18`.
    pub fn version(&self) -> &str {
        &self.made.version
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.stopper.folder
    }

    /// For a signal handler, which has no handle on the server.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// How to connect to a database of it.
    pub fn connection(&self, database: &str) -> ConnectionConfig {
        let mut config = ConnectionConfig::new("127.0.0.1", self.made.port, database, "postgres");
        config.password = Some(Secret::new(self.made.password.as_str()));
        config.connect_timeout = CONNECT_TIMEOUT;
        config.application_name = "pgferry demo".to_owned();
        config
    }

    async fn wait_until_up(&self) -> Result<()> {
        let until = Instant::now() + START_LIMIT;
        loop {
            match Session::connect(&self.connection("postgres"), Purpose::Query).await {
                Ok(session) => return session.close().await,
                Err(failure) if Instant::now() > until => {
                    let log = fs::read_to_string(self.stopper.folder.join("server.log")).unwrap_or_default();
                    return Err(failed("the server does not answer", &log).with_origin(failure));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Drop for DemoServer {
    fn drop(&mut self) {
        self.stopper.stop();
    }
}

impl Stopper {
    /// Stops the server at once, then removes its folder.
    pub fn stop(&self) {
        if self.folder.join("data/postmaster.pid").exists() {
            let mut stop = self.command("pg_ctl");
            stop.args(["stop", "-s", "-w", "-m", "immediate", "-D"]).arg(self.folder.join("data"));
            if let Err(failure) = stop.stdin(Stdio::null()).output() {
                tracing::warn!(folder = %self.folder.display(), "the demo's server may still run: {failure}");
            }
        }
        match fs::remove_dir_all(&self.folder) {
            Err(failure) if failure.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(folder = %self.folder.display(), "the demo's folder stays: {failure}");
            }
            _ => {}
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir("/").process_group(0);
        if let Some((user, group)) = self.account {
            command.uid(user).gid(group);
        }
        // PG* variables of the user's shell must not lead the programs elsewhere.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").env("TZ", "UTC");
        command
    }
}

fn prepare() -> Result<(Stopper, Made)> {
    let programs = find_programs()?;
    let root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let account = if root { Some(postgres_account()?) } else { None };
    let folder = std::env::temp_dir().join(format!("pgferry-demo-{}", std::process::id()));
    let stopper = Stopper { programs, folder, account };
    match make(&stopper) {
        Ok(made) => Ok((stopper, made)),
        Err(failure) => {
            stopper.stop();
            Err(failure)
        }
    }
}

fn make(stopper: &Stopper) -> Result<Made> {
    let io_failed = |failure: io::Error| {
        Error::task_broken(SERVER_FAILED, format!("cannot make {}", stopper.folder.display()))
            .with_cure(Cure::advice(
                "let this user write there, or name another folder for temporary files: TMPDIR",
            ))
            .with_origin(failure)
    };
    fs::create_dir(&stopper.folder).map_err(io_failed)?;
    fs::set_permissions(&stopper.folder, fs::Permissions::from_mode(0o700)).map_err(io_failed)?;
    if let Some((user, group)) = stopper.account {
        chown(&stopper.folder, Some(user), Some(group)).map_err(io_failed)?;
    }
    let data = stopper.folder.join("data");
    let version = run(stopper.command("postgres").arg("--version"))?;
    let mut initdb = stopper.command("initdb");
    initdb.args([
        "--username=postgres",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
    ]);
    let password = draw_password().map_err(io_failed)?;
    let password_file = stopper.folder.join("password");
    fs::write(&password_file, &password).map_err(io_failed)?;
    if let Some((user, group)) = stopper.account {
        chown(&password_file, Some(user), Some(group)).map_err(io_failed)?;
    }
    run(initdb.arg("--pwfile").arg(&password_file).arg("--pgdata").arg(&data))?;
    fs::remove_file(&password_file).map_err(io_failed)?;
    let port =
        TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr()).map_err(io_failed)?.port();
    // Nothing here has to survive a power failure.
    let settings = format!(
        "-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='{}' -c wal_level=logical -c fsync=off \
         -c max_wal_senders=10 -c max_replication_slots=10",
        stopper.folder.display()
    );
    let mut start = stopper.command("pg_ctl");
    start.args(["start", "-s", "-W", "-o", &settings, "-l"]).arg(stopper.folder.join("server.log"));
    run(start.arg("-D").arg(&data))?;
    let number =
        String::from_utf8_lossy(&version.stdout).split_whitespace().nth(2).unwrap_or_default().to_owned();
    Ok(Made { version: number, port, password })
}

/// 128 bits from the system.
fn draw_password() -> io::Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn run(command: &mut Command) -> Result<Output> {
    let program =
        PathBuf::from(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|failure| {
        Error::task_broken(SERVER_FAILED, format!("cannot run {program}"))
            .with_cure(retry())
            .with_origin(failure)
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let told = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    Err(failed(&format!("{program} failed"), &String::from_utf8_lossy(&told)))
}

fn failed(problem: &str, told: &str) -> Error {
    let lines: Vec<&str> = told.lines().collect();
    let last = lines.get(lines.len().saturating_sub(LINES_MAX)..).unwrap_or_default();
    Error::task_broken(SERVER_FAILED, format!("the demo's PostgreSQL: {problem}"))
        .with_cause(last.join(" / "))
        .with_cure(retry())
}

/// The folder that the user names; the newest of Debian's; the one of `pg_config`.
fn find_programs() -> Result<PathBuf> {
    let usable = |folder: &PathBuf| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    if let Some(named) = std::env::var_os("PGFERRY_POSTGRES_BIN").map(PathBuf::from) {
        let problem =
            format!("PGFERRY_POSTGRES_BIN names {}, which has no initdb and postgres", named.display());
        return if usable(&named) { Ok(named) } else { Err(no_server(problem)) };
    }
    let majors = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = majors
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, folder)| usable(folder))
        .collect();
    found.sort();
    if let Some((_, folder)) = found.pop() {
        return Ok(folder);
    }
    let configured = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output();
    let configured =
        configured.ok().map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    configured.filter(usable).ok_or_else(|| no_server("there is no PostgreSQL on this machine".to_owned()))
}

/// The way out where PostgreSQL's programs do not do what they should.
pub(super) fn retry() -> Cure {
    Cure::advice("mend what the cause names, or have the demo use another installation")
        .line("PGFERRY_POSTGRES_BIN=/usr/lib/postgresql/15/bin pgferry demo --yes")
}

fn no_server(problem: String) -> Error {
    Error::task_broken(NO_SERVER, problem)
        .with_cause("the demo starts a PostgreSQL server of its own, and needs its programs for that")
        .with_cure(
            Cure::advice("install PostgreSQL, or say where its programs are")
                .line("apt-get install postgresql-15")
                .line("PGFERRY_POSTGRES_BIN=/usr/lib/postgresql/15/bin pgferry demo"),
        )
}

/// User and group of `postgres`, from `/etc/passwd`.
fn postgres_account() -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let account = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, user, group) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        if name == "postgres" { Some((user.parse().ok()?, group.parse().ok()?)) } else { None }
    });
    account.ok_or_else(|| {
        Error::task_broken(SERVER_FAILED, "there is no user postgres to run the demo's server as")
            .with_cause("PostgreSQL refuses to run as root")
            .with_cure(
                Cure::advice("run the demo as another user, or make that user")
                    .line("useradd --system postgres"),
            )
    })
}
