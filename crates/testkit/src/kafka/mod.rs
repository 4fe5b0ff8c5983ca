//! Real Apache Kafka brokers on loopback: one node that is broker and controller (KRaft), several of these, or a 2.8 with its ZooKeeper.
//!
//! ```text
//!   scripts/setup --test ──> Kafka's own jars in the cache ──java──> storage formatted ──> broker answers
//! ```
//!
//! Invariants: a broker never outlives the test process; its records are on disk below the folder of the test process, and gone with it;
//! without the jars or a Java the caller is told so, and says what it did not run.
//!
//! Limits: a 2.8 is a single node; it is run where `PGFERRY_TEST_KAFKA` asks for it, not by default.

mod cluster;
mod node;
mod settings;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow, bail};

use crate::run_folder;
use crate::server::{Certificates, cache};

pub use cluster::Cluster;
pub(crate) use node::free_port;
pub use settings::{Setup, TOKEN_AUDIENCE, TOKEN_ISSUER};

use settings::{Place, Ports, is_old};

/// The versions that tests run on, newest first.
pub const VERSIONS: [&str; 3] = ["4.1.0", "3.9.1", "2.8.2"];

/// The version that tests run on: the newest, or the one that `PGFERRY_TEST_KAFKA` names.
pub fn version() -> &'static str {
    let wanted = std::env::var("PGFERRY_TEST_KAFKA").ok();
    VERSIONS.into_iter().find(|version| Some(*version) == wanted.as_deref()).unwrap_or(VERSIONS[0])
}

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
    ports: Ports,
    certificates: Arc<Certificates>,
    folder: PathBuf,
    jars: PathBuf,
    java: Vec<String>,
    /// ZooKeeper, where the version needs it, and the broker.
    children: Mutex<Children>,
}

#[derive(Debug, Default)]
struct Children {
    zookeeper: Option<Child>,
    broker: Option<Child>,
}

/// Debezium's connector for PostgreSQL and the Kafka Connect that runs it, as a folder in the cache.
const DEBEZIUM: &str = "debezium-3.6.0";

/// The jars of a version, where `scripts/setup` has put them.
pub fn jars(version: &str) -> Result<std::result::Result<PathBuf, NotInstalled>> {
    let how = if is_old(version) { format!("--kafka {version}") } else { "--test".to_owned() };
    installed(&format!("kafka-{version}"), &format!("Apache Kafka {version}"), &how)
}

/// The jars of Debezium and Kafka Connect, where `scripts/setup --test` has put them.
pub fn debezium() -> Result<std::result::Result<PathBuf, NotInstalled>> {
    installed(DEBEZIUM, "Debezium", "--test")
}

fn installed(folder: &str, name: &str, how: &str) -> Result<std::result::Result<PathBuf, NotInstalled>> {
    let folder = cache()?.join(folder);
    if !folder.join("complete").exists() {
        let missing = format!("{name} is not in {}: run scripts/setup {how}", folder.display());
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
        Broker::start_with(version, &Setup::default())
    }

    /// Starts a broker that is as a test wants it.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub fn start_with(
        version: &'static str,
        setup: &Setup,
    ) -> Result<std::result::Result<Broker, NotInstalled>> {
        let jars = match jars(version)? {
            Ok(jars) => jars,
            Err(missing) => return Ok(Err(missing)),
        };
        for attempt in 1.. {
            let (folder, certificates) = node::folder()?;
            let ports = [node::free_ports()?];
            let place = Place { version, folder: &folder, node: 1, ports: &ports };
            settings::write(&place, setup)?;
            let broker = Broker::of(&place, &jars, Arc::new(certificates), setup);
            match broker.begin().and_then(|()| broker.await_started()) {
                Ok(()) => return Ok(Ok(broker)),
                Err(_) if attempt < PORTS_TRIED && broker.log().contains("Address already in use") => {}
                Err(error) => return Err(error),
            }
        }
        bail!("no port is free")
    }

    fn of(place: &Place<'_>, jars: &Path, certificates: Arc<Certificates>, setup: &Setup) -> Broker {
        Broker(Arc::new(Parts {
            version: VERSIONS.into_iter().find(|version| *version == place.version).unwrap_or(VERSIONS[0]),
            ports: place.own(),
            certificates,
            folder: place.folder.to_owned(),
            jars: jars.to_owned(),
            java: setup.java(),
            children: Mutex::default(),
        }))
    }

    /// Starts what does not run; it may not answer yet.
    fn begin(&self) -> Result<()> {
        let parts = &*self.0;
        let mut children = parts.children.lock().unwrap_or_else(PoisonError::into_inner);
        if is_old(parts.version) {
            if children.zookeeper.is_none() {
                children.zookeeper = Some(node::zookeeper(&parts.jars, &parts.folder, parts.ports)?);
            }
        } else if !parts.folder.join("data").exists() {
            node::format_storage(&parts.jars, &parts.folder)?;
        }
        if children.broker.is_none() {
            children.broker = Some(node::broker(&parts.jars, &parts.folder, &parts.java)?);
        }
        Ok(())
    }

    fn await_started(&self) -> Result<()> {
        let parts = &*self.0;
        let mut children = parts.children.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(child) = &mut children.broker else { bail!("the broker was ended") };
        let started = node::await_started(child, &parts.folder, parts.ports.plain);
        if started.is_err() {
            end(children.broker.take());
        }
        started
    }

    /// Its version.
    pub fn version(&self) -> &'static str {
        self.0.version
    }

    /// What clients connect to.
    pub fn bootstrap_servers(&self) -> String {
        format!("127.0.0.1:{}", self.0.ports.plain)
    }

    /// What clients connect to over TLS, with user and password.
    pub fn secured_servers(&self) -> String {
        format!("127.0.0.1:{}", self.0.ports.secured)
    }

    /// What clients connect to over TLS, with a certificate of their own.
    pub fn mutual_servers(&self) -> String {
        format!("127.0.0.1:{}", self.0.ports.mutual)
    }

    /// What clients connect to over TLS, with a token or a ticket, where the setup has one of these.
    pub fn token_servers(&self) -> String {
        format!("localhost:{}", self.0.ports.token)
    }

    /// The certificate (PEM) of who vouches for it.
    pub fn authority(&self) -> PathBuf {
        self.0.certificates.authority()
    }

    /// The certificate and the key (PEM) of a client.
    pub fn client_certificate(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        self.0.certificates.client(name)
    }

    /// The folder of its own jars, for programs that come with it.
    pub fn jars(&self) -> &Path {
        &self.0.jars
    }

    /// Runs a program that comes with it, with a line as its documentation has it: `kafka-acls.sh --bootstrap-server ...`. What it printed.
    ///
    /// # Errors
    /// When it fails, or takes longer than a minute.
    pub fn run_line(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = match words.next() {
            Some("kafka-acls.sh") if self.0.version.starts_with('4') => "org.apache.kafka.tools.AclCommand",
            Some("kafka-acls.sh") => "kafka.admin.AclCommand",
            Some("kafka-configs.sh") => "kafka.admin.ConfigCommand",
            Some("kafka-leader-election.sh") => "org.apache.kafka.tools.LeaderElectionCommand",
            Some("kafka-reassign-partitions.sh") => {
                "org.apache.kafka.tools.reassign.ReassignPartitionsCommand"
            }
            other => bail!("the program {other:?} is not known"),
        };
        self.run(program, &words.collect::<Vec<_>>())
    }

    /// As [`Broker::run_line`], by the name of the class.
    ///
    /// # Errors
    /// As there.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let done = Command::new("timeout")
            .args(["60", "java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(self.0.jars.join("*"))
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot start java")?;
        let told =
            String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        if !done.status.success() {
            bail!("{program} {}: {told}", arguments.join(" "));
        }
        Ok(told)
    }

    /// Its log, for a failed test.
    pub fn log(&self) -> String {
        node::log_of(&self.0.folder)
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
        let taken = self.0.children.lock().unwrap_or_else(PoisonError::into_inner).broker.take();
        let Some(mut child) = taken else { return Ok(()) };
        run_folder::signal(child.id(), signal)?;
        child.wait()?;
        run_folder::forget(child.id());
        Ok(())
    }

    /// Starts it again, with what it has on disk.
    pub fn resume(&self) -> Result<()> {
        self.begin()?;
        self.await_started()
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let children = self.children.get_mut().unwrap_or_else(PoisonError::into_inner);
        end(children.broker.take());
        end(children.zookeeper.take());
    }
}

fn end(child: Option<Child>) {
    let Some(mut child) = child else { return };
    let _gone = child.kill();
    let _reaped = child.wait();
    run_folder::forget(child.id());
}
