//! A listener that wants Kerberos tickets, and a real server that hands them out. Only in builds with the feature `gssapi`; where no such
//! server is installed (`scripts/setup --gssapi`) the test says that it did not run.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pgferry_model::TaskId;
use pgferry_pipeline::Target;
use pgferry_target_kafka::error::AUTHENTICATION;
use pgferry_target_kafka::{Guarantee, KafkaConfig, KafkaTarget};
use pgferry_testkit::kafka::Setup;

use crate::making::broker_with;

const REALM: &str = "FERRY.TEST";
const NAME: &str = "tickets::a_ticket_opens_the_brokers_and_no_ticket_does_not";
/// In the process that connects: the brokers, the authority's certificate, the folder of keys.
const CHILD: [&str; 3] =
    ["PGFERRY_TEST_TICKET_BROKERS", "PGFERRY_TEST_TICKET_CA", "PGFERRY_TEST_TICKET_KEYS"];

/// Ends the server with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn run(folder: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let done = with_files(Command::new(program), folder).args(arguments).output()?;
    ensure!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

fn with_files(mut command: Command, folder: &Path) -> Command {
    command
        .env("KRB5_CONFIG", folder.join("krb5.conf"))
        .env("KRB5_KDC_PROFILE", folder.join("kdc.conf"))
        .env("KRB5CCNAME", format!("FILE:{}", folder.join("tickets").display()))
        .stdin(Stdio::null());
    command
}

/// Starts a server with one client and one service in its realm; their keys are in files.
fn kerberos(folder: &Path) -> Result<Running> {
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let place = folder.display();
    std::fs::write(
        folder.join("krb5.conf"),
        format!(
            "[libdefaults]\ndefault_realm = {REALM}\ndns_lookup_kdc = false\nrdns = false\n\
             dns_canonicalize_hostname = false\nudp_preference_limit = 1\n\
             [realms]\n{REALM} = {{\nkdc = 127.0.0.1:{port}\n}}\n"
        ),
    )?;
    std::fs::write(
        folder.join("kdc.conf"),
        format!(
            "[realms]\n{REALM} = {{\ndatabase_name = {place}/principal\nkey_stash_file = {place}/stash\n\
             kdc_listen = 127.0.0.1:{port}\nkdc_tcp_listen = 127.0.0.1:{port}\n}}\n\
             [logging]\nkdc = FILE:{place}/kdc.log\n"
        ),
    )?;
    run(folder, "kdb5_util", &["create", "-s", "-r", REALM, "-P", "of the test"])?;
    for (principal, file) in [("ferry", "ferry.keytab"), ("kafka/localhost", "kafka.keytab")] {
        run(folder, "kadmin.local", &["-q", &format!("addprinc -randkey {principal}@{REALM}")])?;
        let file = folder.join(file);
        run(folder, "kadmin.local", &["-q", &format!("ktadd -k {} {principal}@{REALM}", file.display())])?;
    }
    let child = with_files(Command::new("krb5kdc"), folder).arg("-n").spawn()?;
    let running = Running(child);
    let until = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(Instant::now() < until, "the Kerberos server does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(running)
}

fn config(brokers: &str, authority: &str, keys: &str, principal: &str) -> KafkaConfig {
    let mut config = KafkaConfig::new(brokers);
    config.guarantee = Guarantee::ExactlyOnce;
    let keytab = Path::new(keys).join("ferry.keytab").display().to_string();
    for (key, value) in [
        ("security.protocol", "sasl_ssl"),
        ("ssl.ca.location", authority),
        ("sasl.mechanism", "GSSAPI"),
        ("sasl.kerberos.principal", principal),
        ("sasl.kerberos.keytab", &keytab),
    ] {
        config.properties.push((key.to_owned(), value.to_owned()));
    }
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_the_brokers_and_no_ticket_does_not() -> Result<()> {
    if let [Ok(brokers), Ok(authority), Ok(keys)] = CHILD.map(std::env::var) {
        return connect(&brokers, &authority, &keys).await;
    }
    let installed = Command::new("krb5kdc").arg("-?").output().is_ok();
    if !installed {
        writeln!(std::io::stderr().lock(), "NOT RUN: a test on Kafka: run scripts/setup --gssapi")?;
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let _kerberos = kerberos(folder.path())?;
    let keys: PathBuf = folder.path().join("kafka.keytab");
    let setup = Setup {
        kerberos: Some((REALM.to_owned(), keys)),
        java: vec![format!("-Djava.security.krb5.conf={}", folder.path().join("krb5.conf").display())],
        ..Setup::default()
    };
    let Some(broker) = broker_with(&setup)? else { return Ok(()) };
    // The library takes its own settings from the environment of its process.
    let mut child = with_files(Command::new(std::env::current_exe()?), folder.path());
    child.args(["--exact", NAME, "--nocapture"]);
    for (name, value) in CHILD.into_iter().zip([
        // A ticket is for a host by name.
        broker.token_servers().replace("127.0.0.1", "localhost"),
        broker.authority().display().to_string(),
        folder.path().display().to_string(),
    ]) {
        child.env(name, value);
    }
    let done = tokio::task::spawn_blocking(move || child.output()).await??;
    if !done.status.success() {
        bail!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}

async fn connect(brokers: &str, authority: &str, keys: &str) -> Result<()> {
    // Before there is a ticket that could be taken instead.
    let unknown = config(brokers, authority, keys, &format!("nobody@{REALM}"));
    let failure = match KafkaTarget::connect(unknown) {
        Ok(target) => target.open(&TaskId::new("shop")).await.err().context("it was opened")?,
        Err(failure) => failure,
    };
    ensure!(failure.code() == AUTHENTICATION, "{failure:?} {:?}", failure.cause());
    let target = KafkaTarget::connect(config(brokers, authority, keys, &format!("ferry@{REALM}")))?;
    target.open(&TaskId::new("shop")).await?;
    target.close().await?;
    Ok(())
}
