//! One node's processes: its folder, its ports, and when it answers.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::settings::Ports;
use crate::run_folder;
use crate::server::Certificates;

/// The longest that a node may take to start; a cold machine needs some seconds.
const START_WITHIN: Duration = Duration::from_secs(90);
/// What a broker logs when it takes requests: with KRaft, and with ZooKeeper.
const STARTED: [&str; 2] = ["Kafka Server started", "[KafkaServer id=1] started"];

/// A new folder with certificates.
pub(super) fn folder() -> Result<(PathBuf, Certificates)> {
    let folder = run_folder::new_folder("kafka")?;
    let files = folder.join("tls");
    fs::create_dir(&files)?;
    let certificates = Certificates::make(&files)?;
    let (key, certificate) =
        (fs::read_to_string(files.join("server.key"))?, fs::read_to_string(files.join("server.crt"))?);
    fs::write(folder.join("server.pem"), key + &certificate)?;
    Ok((folder, certificates))
}

/// Ports that nobody listens on, each another one.
pub(super) fn free_ports() -> Result<Ports> {
    let bound = [(); 5].map(|()| TcpListener::bind(("127.0.0.1", 0)));
    let port = |at: usize| -> Result<u16> {
        match &bound[at] {
            Ok(listener) => Ok(listener.local_addr()?.port()),
            Err(error) => bail!("no port is free: {error}"),
        }
    };
    Ok(Ports { plain: port(0)?, controller: port(1)?, secured: port(2)?, mutual: port(3)?, token: port(4)? })
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn java(jars: &Path, folder: &Path) -> Command {
    let mut java = Command::new("java");
    java.args(["-Xms96m", "-Xmx384m", "-XX:TieredStopAtLevel=1", "-cp"])
        .arg(jars.join("*"))
        .current_dir(folder)
        .stdin(Stdio::null());
    java
}

pub(super) fn format_storage(jars: &Path, folder: &Path) -> Result<()> {
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

/// Starts ZooKeeper, and waits until it takes connections.
pub(super) fn zookeeper(jars: &Path, folder: &Path, ports: Ports) -> Result<Child> {
    let settings = [
        format!("dataDir={}", folder.join("zookeeper").display()),
        format!("clientPort={}", ports.controller),
        "clientPortAddress=127.0.0.1".to_owned(),
        "admin.enableServer=false".to_owned(),
        "maxClientCnxns=0".to_owned(),
    ];
    fs::write(folder.join("zookeeper.properties"), settings.join("\n"))?;
    let log = File::options().create(true).append(true).open(folder.join("zookeeper.log"))?;
    let mut child = java(jars, folder)
        .args(["org.apache.zookeeper.server.quorum.QuorumPeerMain", "zookeeper.properties"])
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start java")?;
    run_folder::remember(child.id(), "KILL")?;
    let until = Instant::now() + START_WITHIN;
    while TcpStream::connect(("127.0.0.1", ports.controller)).is_err() {
        if child.try_wait()?.is_some() || Instant::now() > until {
            let _gone = child.kill();
            let _reaped = child.wait();
            run_folder::forget(child.id());
            bail!("ZooKeeper does not start: {}", fs::read_to_string(folder.join("zookeeper.log"))?);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(child)
}

/// Starts a broker; it does not answer yet.
pub(super) fn broker(jars: &Path, folder: &Path, more: &[String]) -> Result<Child> {
    // What an earlier run has logged says nothing of this one.
    let (log, older) = (folder.join("server.log"), folder.join("server.log.older"));
    if log.exists() {
        let text = fs::read(&log)?;
        let mut file = File::options().create(true).append(true).open(older)?;
        std::io::Write::write_all(&mut file, &text)?;
    }
    let log = File::create(log)?;
    let mut command = java(jars, folder);
    // Before the name of the class.
    let child = command
        .args(more)
        .args(["kafka.Kafka", "server.properties"])
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start java")?;
    run_folder::remember(child.id(), "KILL")?;
    Ok(child)
}

pub(super) fn await_started(child: &mut Child, folder: &Path, port: u16) -> Result<()> {
    let until = Instant::now() + START_WITHIN;
    loop {
        if child.try_wait()?.is_some() {
            bail!("the broker ended while it started; last lines of its log:\n{}", tail(folder));
        }
        let log = log_of(folder);
        let started = STARTED.iter().any(|word| log.contains(word));
        if started && TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("the broker does not answer; last lines of its log:\n{}", tail(folder));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(super) fn log_of(folder: &Path) -> String {
    fs::read(folder.join("server.log"))
        .map(|log| String::from_utf8_lossy(&log).into_owned())
        .unwrap_or_default()
}

fn tail(folder: &Path) -> String {
    let log = log_of(folder);
    let lines: Vec<&str> = log.lines().collect();
    // Much is logged after the reason, while everything else is shut down.
    let first = lines.iter().position(|line| line.contains(" ERROR ")).unwrap_or(lines.len());
    let reason = &lines[first..lines.len().min(first + 10)];
    [reason, &["..."], &lines[lines.len().saturating_sub(20)..]].concat().join("\n")
}
