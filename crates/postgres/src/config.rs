//! How to reach a server, who to be there, and how the way to it is protected.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// How long connecting may take where nobody says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may say nothing before it is asked why, where nobody says otherwise.
const PROBE_AFTER: Duration = Duration::from_secs(15);

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// From its text.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// Its text, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What encryption has to prove (PostgreSQL docs, libpq, "SSL Support"). Unix sockets are never encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SslMode {
    /// No encryption.
    Disable,
    /// Encryption where the server has it, without knowing who it is.
    #[default]
    Prefer,
    /// Encryption, without knowing who the server is; with a root certificate file as [`SslMode::VerifyCa`], as libpq does.
    Require,
    /// A certificate of a known authority, for any name.
    VerifyCa,
    /// A certificate of a known authority for the name that we connect to.
    VerifyFull,
}

impl SslMode {
    /// As task files and URLs write it.
    pub fn as_str(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }
}

impl FromStr for SslMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let modes =
            [SslMode::Disable, SslMode::Prefer, SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull];
        modes
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| "sslmode is one of disable, prefer, require, verify-ca, verify-full".to_owned())
    }
}

/// Whether a SCRAM login is tied to the server's certificate, so that nobody in between can pass it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where server and certificate allow it.
    #[default]
    Prefer,
    /// Always; any other login is refused.
    Require,
}

/// Encryption and certificates. All files are PEM and read at every connect, so that renewed ones count.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TlsConfig {
    /// What encryption has to prove.
    pub mode: SslMode,
    /// Certificates of trusted authorities; `None`: the system's.
    pub root_certificate: Option<PathBuf>,
    /// Our own certificate, followed by those between it and an authority.
    pub certificate: Option<PathBuf>,
    /// The key of our certificate, PKCS#1, PKCS#8, SEC1, or encrypted PKCS#8; readable by its owner only.
    pub key: Option<PathBuf>,
    /// The password of an encrypted key.
    pub key_password: Option<Secret>,
    /// Whether a SCRAM login is tied to the server's certificate.
    pub channel_binding: ChannelBinding,
}

/// How to reach a server and who to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionConfig {
    /// Host name, address, or the folder of a Unix socket (starts with `/`).
    pub host: String,
    /// Port.
    pub port: u16,
    /// Database.
    pub database: String,
    /// User.
    pub user: String,
    /// Password; `None`: looked up in `PGPASSFILE` or `~/.pgpass` when the server asks.
    pub password: Option<Secret>,
    /// How long connecting may take, authentication included.
    pub connect_timeout: Duration,
    /// How long a server that owes an answer may say nothing before it is asked, on a new connection, what it does.
    pub probe_after: Duration,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// Encryption.
    pub tls: TlsConfig,
}

impl ConnectionConfig {
    /// Without a password, with encryption where the server has it, 10 s to connect, named `pgferry`.
    pub fn new(
        host: impl Into<String>,
        port: u16,
        database: impl Into<String>,
        user: impl Into<String>,
    ) -> Self {
        ConnectionConfig {
            host: host.into(),
            port,
            database: database.into(),
            user: user.into(),
            password: None,
            connect_timeout: CONNECT_TIMEOUT,
            probe_after: PROBE_AFTER,
            application_name: "pgferry".into(),
            tls: TlsConfig::default(),
        }
    }
}
