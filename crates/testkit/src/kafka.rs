//! Real Apache Kafka brokers: one node that is broker and controller (KRaft), on loopback, on a port of its own.
//!
//! ```text
//!   scripts/setup --test ──> Kafka's own jars in the cache ──java──> storage formatted ──> broker answers
//! ```
//!
//! Invariants: a broker never outlives the test process; its records are on disk below the folder of the test process, and gone with it;
//! without the jars or a Java the caller is told so, and says what it did not run.
//!
//! Limits: 3.9 and 4.x; older versions want another server beside them for their metadata.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::run_folder;
use crate::server::{Certificates, cache};

/// The versions that tests run on, newest first.
pub const VERSIONS: [&str; 2] = ["4.1.0", "3.9.1"];

/// The version that tests run on: the newest, or the one that `PGFERRY_TEST_KAFKA` names.
pub fn version() -> &'static str {
    let wanted = std::env::var("PGFERRY_TEST_KAFKA").ok();
    VERSIONS.into_iter().find(|version| Some(*version) == wanted.as_deref()).unwrap_or(VERSIONS[0])
}

/// The longest that a broker may take to start; a cold machine needs some seconds.
const START_WITHIN: Duration = Duration::from_secs(90);
/// What a broker logs when it takes requests.
const STARTED: &str = "Kafka Server started";
/// How often another port is tried.
const PORTS_TRIED: u32 = 5;

/// Who may use the listener that wants to know.
pub const USER: &str = "ferry";
/// Their password.
pub const PASSWORD: &str = "it's \\a secret";

/// Why there is no broker.
#[derive(Clone, Debug)]
pub struct NotInstalled(pub String);

/// A running broker.
#[derive(Clone, Debug)]
pub struct Broker(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    version: &'static str,
    port: u16,
    /// Encrypted, for [`USER`] with [`PASSWORD`].
    secured_port: u16,
    certificates: Certificates,
    folder: PathBuf,
    jars: PathBuf,
    child: Mutex<Option<Child>>,
}

/// Debezium's connector for PostgreSQL and the Kafka Connect that runs it, as a folder in the cache.
const DEBEZIUM: &str = "debezium-3.6.0";

/// The jars of a version, where `scripts/setup --test` has put them.
pub fn jars(version: &str) -> Result<std::result::Result<PathBuf, NotInstalled>> {
    installed(&format!("kafka-{version}"), &format!("Apache Kafka {version}"))
}

/// The jars of Debezium and Kafka Connect, where `scripts/setup --test` has put them.
pub fn debezium() -> Result<std::result::Result<PathBuf, NotInstalled>> {
    installed(DEBEZIUM, "Debezium")
}

fn installed(folder: &str, name: &str) -> Result<std::result::Result<PathBuf, NotInstalled>> {
    let folder = cache()?.join(folder);
    if !folder.join("complete").exists() {
        let missing = format!("{name} is not in {}: run scripts/setup --test", folder.display());
        return Ok(Err(NotInstalled(missing)));
    }
    let java = Command::new("javac").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !java.is_ok_and(|status| status.success()) {
        return Ok(Err(NotInstalled("there is no javac: run scripts/setup --test".to_owned())));
    }
    Ok(Ok(folder))
}

impl Broker {
    /// The broker of [`version`] that all tests of this process share.
    ///
    /// # Errors
    /// When it does not start. Where it is not installed, the reason.
    pub fn shared() -> Result<std::result::Result<Broker, NotInstalled>> {
        static SHARED: OnceLock<Result<std::result::Result<Broker, NotInstalled>, String>> = OnceLock::new();
        let started = SHARED.get_or_init(|| Broker::start(version()).map_err(|error| format!("{error:#}")));
        started.clone().map_err(|error| anyhow!("{error}"))
    }

    /// Starts a broker of a version on a free port.
    ///
    /// # Errors
    /// When it does not answer in time; the end of its log is told.
    pub fn start(version: &'static str) -> Result<std::result::Result<Broker, NotInstalled>> {
        let jars = match jars(version)? {
            Ok(jars) => jars,
            Err(missing) => return Ok(Err(missing)),
        };
        let folder = run_folder::new_folder("kafka")?;
        let files = folder.join("tls");
        fs::create_dir(&files)?;
        let certificates = Certificates::make(&files)?;
        let (key, certificate) =
            (fs::read_to_string(files.join("server.key"))?, fs::read_to_string(files.join("server.crt"))?);
        fs::write(folder.join("server.pem"), key + &certificate)?;
        for attempt in 1.. {
            let [port, controller, secured_port] = [free_port()?, free_port()?, free_port()?];
            configure(&folder, port, controller, secured_port)?;
            format_storage(&jars, &folder)?;
            match run(&jars, &folder, port) {
                Ok(child) => {
                    let child = Mutex::new(Some(child));
                    let parts = Parts { version, port, secured_port, certificates, folder, jars, child };
                    return Ok(Ok(Broker(Arc::new(parts))));
                }
                Err(_) if attempt < PORTS_TRIED && log_of(&folder).contains("Address already in use") => {
                    let _emptied = fs::remove_dir_all(folder.join("data"));
                }
                Err(error) => return Err(error),
            }
        }
        bail!("no port is free")
    }

    /// Its version.
    pub fn version(&self) -> &'static str {
        self.0.version
    }

    /// What clients connect to.
    pub fn bootstrap_servers(&self) -> String {
        format!("127.0.0.1:{}", self.0.port)
    }

    /// What clients connect to over TLS, with user and password.
    pub fn secured_servers(&self) -> String {
        format!("127.0.0.1:{}", self.0.secured_port)
    }

    /// The certificate (PEM) of who vouches for it.
    pub fn authority(&self) -> PathBuf {
        self.0.certificates.authority()
    }

    /// The folder of its own jars, for programs that come with it.
    pub fn jars(&self) -> &Path {
        &self.0.jars
    }

    /// Its log, for a failed test.
    pub fn log(&self) -> String {
        log_of(&self.0.folder)
    }

    /// Ends it without a warning, as a machine that loses its power does.
    pub fn kill9(&self) -> Result<()> {
        self.end("KILL")
    }

    /// Stops it in its own order.
    pub fn stop(&self) -> Result<()> {
        self.end("TERM")
    }

    fn end(&self, signal: &str) -> Result<()> {
        let taken = self.0.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut child) = taken else { return Ok(()) };
        run_folder::signal(child.id(), signal)?;
        child.wait()?;
        run_folder::forget(child.id());
        Ok(())
    }

    /// Starts it again, with what it has on disk.
    pub fn resume(&self) -> Result<()> {
        let mut child = self.0.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.is_none() {
            *child = Some(run(&self.0.jars, &self.0.folder, self.0.port)?);
        }
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let taken = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = taken {
            let _gone = child.kill();
            let _reaped = child.wait();
            run_folder::forget(child.id());
        }
    }
}

pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn configure(folder: &Path, port: u16, controller: u16, secured: u16) -> Result<()> {
    let secret = PASSWORD.replace('\\', "\\\\");
    let login =
        format!("org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{secret}\";");
    let settings = [
        ("process.roles", "broker,controller".to_owned()),
        ("node.id", "1".to_owned()),
        ("controller.quorum.voters", format!("1@127.0.0.1:{controller}")),
        (
            "listeners",
            format!(
                "PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},SASL_SSL://127.0.0.1:{secured}"
            ),
        ),
        ("advertised.listeners", format!("PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{secured}")),
        (
            "listener.security.protocol.map",
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL".to_owned(),
        ),
        ("sasl.enabled.mechanisms", "PLAIN".to_owned()),
        // The file's format takes one pair of backslashes, the login's own the other.
        ("listener.name.sasl_ssl.plain.sasl.jaas.config", login.replace('\\', "\\\\")),
        ("ssl.keystore.type", "PEM".to_owned()),
        ("ssl.keystore.location", folder.join("server.pem").display().to_string()),
        ("controller.listener.names", "CONTROLLER".to_owned()),
        ("log.dirs", folder.join("data").display().to_string()),
        ("offsets.topic.replication.factor", "1".to_owned()),
        ("offsets.topic.num.partitions", "1".to_owned()),
        ("transaction.state.log.replication.factor", "1".to_owned()),
        ("transaction.state.log.min.isr", "1".to_owned()),
        ("transaction.state.log.num.partitions", "4".to_owned()),
        ("group.initial.rebalance.delay.ms", "0".to_owned()),
        ("auto.create.topics.enable", "false".to_owned()),
        ("log.cleaner.dedupe.buffer.size", "4194304".to_owned()),
    ];
    let lines: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    fs::write(folder.join("server.properties"), lines.join("\n"))?;
    Ok(())
}

fn java(jars: &Path, folder: &Path) -> Command {
    let mut java = Command::new("java");
    java.args(["-Xms96m", "-Xmx384m", "-XX:TieredStopAtLevel=1", "-cp"])
        .arg(jars.join("*"))
        .current_dir(folder)
        .stdin(Stdio::null());
    java
}

fn format_storage(jars: &Path, folder: &Path) -> Result<()> {
    // Any id of the right form: 16 bytes in base64 for URLs.
    let formatted = java(jars, folder)
        .args([
            "kafka.tools.StorageTool",
            "format",
            "-t",
            "cGdmZXJyeS10ZXN0LWlkIQ",
            "-c",
            "server.properties",
        ])
        .output()
        .context("cannot start java")?;
    if !formatted.status.success() {
        bail!("a broker's storage was not formatted: {}", String::from_utf8_lossy(&formatted.stderr));
    }
    Ok(())
}

fn run(jars: &Path, folder: &Path, port: u16) -> Result<Child> {
    let log = File::options().create(true).append(true).open(folder.join("server.log"))?;
    let mut child = java(jars, folder)
        .args(["kafka.Kafka", "server.properties"])
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start java")?;
    run_folder::remember(child.id(), "KILL")?;
    let until = Instant::now() + START_WITHIN;
    loop {
        if child.try_wait()?.is_some() {
            run_folder::forget(child.id());
            bail!("the broker ended while it started; last lines of its log:\n{}", tail(folder));
        }
        if TcpStream::connect(("127.0.0.1", port)).is_ok() && log_of(folder).contains(STARTED) {
            return Ok(child);
        }
        if Instant::now() > until {
            let _gone = child.kill();
            let _reaped = child.wait();
            run_folder::forget(child.id());
            bail!("the broker does not answer; last lines of its log:\n{}", tail(folder));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn log_of(folder: &Path) -> String {
    fs::read(folder.join("server.log"))
        .map(|log| String::from_utf8_lossy(&log).into_owned())
        .unwrap_or_default()
}

fn tail(folder: &Path) -> String {
    let log = log_of(folder);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
