//! What a test asks of a broker, and the broker's own file of settings.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{PASSWORD, USER};

/// What a test asks of a broker; the default is what all tests share.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Its own settings by name; they win.
    pub settings: Vec<(String, String)>,
    /// The key set (JSON) that tokens are checked against; with it there is a listener for them.
    pub token_keys: Option<PathBuf>,
    /// The realm that the listener for Kerberos belongs to, and the file with the broker's key in it.
    pub kerberos: Option<(String, PathBuf)>,
    /// Arguments of the Java machine.
    pub java: Vec<String>,
}

/// Who issues tokens, and for whom.
pub const TOKEN_ISSUER: &str = "https://tokens.example.com";
/// Whom tokens are for.
pub const TOKEN_AUDIENCE: &str = "kafka";

impl Setup {
    /// Nobody but the listener without users may do anything, until it is granted.
    pub fn with_access_lists(mut self, version: &str) -> Setup {
        let authorizer = if is_old(version) {
            "kafka.security.authorizer.AclAuthorizer"
        } else {
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
        };
        for (key, value) in [
            ("authorizer.class.name", authorizer),
            ("super.users", "User:ANONYMOUS"),
            ("allow.everyone.if.no.acl.found", "false"),
        ] {
            self.settings.push((key.to_owned(), value.to_owned()));
        }
        self
    }

    pub(super) fn java(&self) -> Vec<String> {
        let mut java = self.java.clone();
        let keys = self.token_keys.iter();
        java.extend(
            keys.map(|keys| format!("-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={}", url(keys))),
        );
        java
    }
}

fn url(file: &Path) -> String {
    format!("file://{}", file.display())
}

/// Versions that keep their metadata in ZooKeeper.
pub(super) fn is_old(version: &str) -> bool {
    version.starts_with("2.")
}

/// The ports of one node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    /// For clients, neither encrypted nor authenticated.
    pub(super) plain: u16,
    /// Of the controller, or of ZooKeeper.
    pub(super) controller: u16,
    /// TLS, user and password.
    pub(super) secured: u16,
    /// TLS with the client's certificate.
    pub(super) mutual: u16,
    /// TLS and a token, or a ticket.
    pub(super) token: u16,
}

/// A node and the cluster that it belongs to.
pub(super) struct Place<'a> {
    pub(super) version: &'a str,
    pub(super) folder: &'a Path,
    pub(super) node: usize,
    /// Every node's, this one's, too.
    pub(super) ports: &'a [Ports],
}

impl Place<'_> {
    pub(super) fn own(&self) -> Ports {
        self.ports[self.node - 1]
    }
}

/// Writes `server.properties`.
pub(super) fn write(place: &Place<'_>, setup: &Setup) -> Result<()> {
    let mut settings = metadata(place);
    settings.extend(listeners(place, setup));
    settings.extend(secrets(place.folder));
    settings.extend(key_store(place)?);
    settings.extend(tokens(setup));
    settings.extend(kerberos(setup));
    settings.extend(sizes(place));
    let own = settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
    let all: Vec<(String, String)> = own.chain(setup.settings.iter().cloned()).collect();
    let lines: Vec<String> = all.iter().map(|(key, value)| format!("{key}={value}")).collect();
    fs::write(place.folder.join("server.properties"), lines.join("\n"))?;
    Ok(())
}

type Setting = (&'static str, String);

fn metadata(place: &Place<'_>) -> Vec<Setting> {
    let own = place.own();
    if is_old(place.version) {
        return vec![
            ("broker.id", place.node.to_string()),
            ("zookeeper.connect", format!("127.0.0.1:{}", own.controller)),
            ("zookeeper.connection.timeout.ms", "30000".to_owned()),
        ];
    }
    let voters = place.ports.iter().enumerate();
    let voters: Vec<String> =
        voters.map(|(at, ports)| format!("{}@127.0.0.1:{}", at + 1, ports.controller)).collect();
    vec![
        ("process.roles", "broker,controller".to_owned()),
        ("node.id", place.node.to_string()),
        ("controller.quorum.voters", voters.join(",")),
        ("controller.listener.names", "CONTROLLER".to_owned()),
        // Who is gone is noticed within three seconds, so that a test need not wait longer.
        ("broker.heartbeat.interval.ms", "500".to_owned()),
        ("broker.session.timeout.ms", "3000".to_owned()),
    ]
}

fn listeners(place: &Place<'_>, setup: &Setup) -> Vec<Setting> {
    let own = place.own();
    let mut all = vec![
        ("PLAINTEXT", "PLAINTEXT", own.plain),
        ("SASL_SSL", "SASL_SSL", own.secured),
        ("MUTUAL", "SSL", own.mutual),
    ];
    if setup.token_keys.is_some() {
        all.push(("TOKEN", "SASL_SSL", own.token));
    }
    if setup.kerberos.is_some() {
        all.push(("TICKET", "SASL_SSL", own.token));
    }
    let join = |all: &[(&str, &str, u16)]| -> String {
        let each = all.iter().map(|(name, _, port)| format!("{name}://127.0.0.1:{port}"));
        each.collect::<Vec<_>>().join(",")
    };
    let advertised = join(&all);
    if !is_old(place.version) {
        all.push(("CONTROLLER", "PLAINTEXT", own.controller));
    }
    let protocols: Vec<String> = all.iter().map(|(name, protocol, _)| format!("{name}:{protocol}")).collect();
    vec![
        ("listeners", join(&all)),
        // A ticket is for a host by name.
        ("advertised.listeners", advertised.replace("TICKET://127.0.0.1", "TICKET://localhost")),
        ("listener.security.protocol.map", protocols.join(",")),
        ("inter.broker.listener.name", "PLAINTEXT".to_owned()),
    ]
}

fn secrets(folder: &Path) -> Vec<Setting> {
    let secret = PASSWORD.replace('\\', "\\\\");
    let login =
        format!("org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{secret}\";");
    vec![
        ("listener.name.sasl_ssl.sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512".to_owned()),
        // The file's format takes one pair of backslashes, the login's own the other.
        ("listener.name.sasl_ssl.plain.sasl.jaas.config", login.replace('\\', "\\\\")),
        (
            "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config",
            "org.apache.kafka.common.security.scram.ScramLoginModule required;".to_owned(),
        ),
        (
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config",
            "org.apache.kafka.common.security.scram.ScramLoginModule required;".to_owned(),
        ),
        ("listener.name.mutual.ssl.client.auth", "required".to_owned()),
        ("ssl.truststore.type", "PEM".to_owned()),
        ("ssl.truststore.location", folder.join("tls/ca.crt").display().to_string()),
    ]
}

/// Where the certificate and its key are. Versions before 3.0 take a key without a password from PKCS #12 files only.
fn key_store(place: &Place<'_>) -> Result<Vec<Setting>> {
    let folder = place.folder;
    if !is_old(place.version) {
        return Ok(vec![
            ("ssl.keystore.type", "PEM".to_owned()),
            ("ssl.keystore.location", folder.join("server.pem").display().to_string()),
        ]);
    }
    let made = Command::new("openssl")
        .args(["pkcs12", "-export", "-in", "server.pem", "-out", "server.p12", "-passout", "pass:secret"])
        .current_dir(folder)
        .output()
        .context("cannot start openssl")?;
    if !made.status.success() {
        bail!("no PKCS #12 file was made: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(vec![
        ("ssl.keystore.type", "PKCS12".to_owned()),
        ("ssl.keystore.location", folder.join("server.p12").display().to_string()),
        ("ssl.keystore.password", "secret".to_owned()),
        ("ssl.key.password", "secret".to_owned()),
    ])
}

fn tokens(setup: &Setup) -> Vec<Setting> {
    let Some(keys) = &setup.token_keys else { return Vec::new() };
    let checked = "org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler";
    vec![
        ("listener.name.token.sasl.enabled.mechanisms", "OAUTHBEARER".to_owned()),
        (
            "listener.name.token.oauthbearer.sasl.jaas.config",
            "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;".to_owned(),
        ),
        ("listener.name.token.oauthbearer.sasl.server.callback.handler.class", checked.to_owned()),
        // The default of 4.1 checks no signature; 3.9 has no such setting, and does.
        (
            "sasl.oauthbearer.jwt.validator.class",
            "org.apache.kafka.common.security.oauthbearer.BrokerJwtValidator".to_owned(),
        ),
        ("sasl.oauthbearer.jwks.endpoint.url", url(keys)),
        ("sasl.oauthbearer.expected.audience", TOKEN_AUDIENCE.to_owned()),
        ("sasl.oauthbearer.expected.issuer", TOKEN_ISSUER.to_owned()),
    ]
}

fn kerberos(setup: &Setup) -> Vec<Setting> {
    let Some((realm, keys)) = &setup.kerberos else { return Vec::new() };
    let login = format!(
        "com.sun.security.auth.module.Krb5LoginModule required useKeyTab=true storeKey=true keyTab=\"{}\" \
         principal=\"kafka/localhost@{realm}\" serviceName=\"kafka\";",
        keys.display()
    );
    vec![
        ("listener.name.ticket.sasl.enabled.mechanisms", "GSSAPI".to_owned()),
        ("listener.name.ticket.gssapi.sasl.jaas.config", login),
    ]
}

fn sizes(place: &Place<'_>) -> Vec<Setting> {
    let copies = place.ports.len().min(3);
    let in_sync = copies.saturating_sub(1).max(1);
    vec![
        ("log.dirs", place.folder.join("data").display().to_string()),
        ("default.replication.factor", copies.to_string()),
        ("min.insync.replicas", in_sync.to_string()),
        ("offsets.topic.replication.factor", copies.to_string()),
        ("offsets.topic.num.partitions", "1".to_owned()),
        ("transaction.state.log.replication.factor", copies.to_string()),
        ("transaction.state.log.min.isr", in_sync.to_string()),
        ("transaction.state.log.num.partitions", "4".to_owned()),
        // Transactions that are open for too long are looked for this often.
        ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "1000".to_owned()),
        ("group.initial.rebalance.delay.ms", "0".to_owned()),
        ("auto.create.topics.enable", "false".to_owned()),
        ("log.cleaner.dedupe.buffer.size", "4194304".to_owned()),
    ]
}
