//! What a task file means for Databend: the connection, a task's settings with their defaults, and the database that tables go to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pgferry_target_databend::{Mode, Upload};

use super::fault::{CONFLICT, Fault, INVALID_VALUE, MISSING_KEY};
use super::raw::RawTask;
use super::raw_databend::{RawDatabend, RawDatabendSslMode, RawDatabendTask, RawMode, RawUpload};
use super::scalar::SecretSource;
use super::validated::{OneSchema, secret};

/// A merge rewrites whole blocks of a table, so it pays to do it seldom.
const MERGE_INTERVAL_DEFAULT: Duration = Duration::from_secs(3);
const MERGE_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Changes are staged at least so often, however seldom they are merged: what is staged is durable, and the slot moves on.
const STAGE_INTERVAL_MAX: Duration = Duration::from_secs(1);
const STAGING_DEFAULT: &str = "pgferry";

/// A Databend server.
#[derive(Clone, Debug)]
pub struct DatabendConnection {
    /// Its name in the file.
    pub name: String,
    /// Where it is, and who connects.
    pub server: DatabendServer,
    /// The role that the session takes.
    pub role: Option<String>,
    /// How files reach its storage.
    pub upload: Upload,
}

/// Where a Databend server is, and who connects.
#[derive(Clone, Debug)]
pub enum DatabendServer {
    /// In one line.
    Dsn(SecretSource),
    /// In parts.
    Parts {
        /// Host name or address.
        host: String,
        /// Port; `None`: 443, and 80 without TLS.
        port: Option<u16>,
        /// Whether the connection is encrypted and the server verified.
        tls: bool,
        /// Certificates of authorities to trust beside the built-in ones.
        root_cert: Option<PathBuf>,
        /// Who connects.
        login: DatabendLogin,
    },
}

/// Who connects to a Databend server.
#[derive(Clone, Debug)]
pub enum DatabendLogin {
    /// The server's `root`, without a password.
    Nobody,
    /// A user.
    Password {
        /// The user's name.
        user: String,
        /// The password, if there is one.
        password: Option<SecretSource>,
    },
    /// Whoever the token belongs to.
    Token(SecretSource),
    /// A user with a private key.
    KeyPair {
        /// The user's name.
        user: String,
        /// The key.
        private_key: PathBuf,
        /// The key's password, if it has one.
        password_file: Option<PathBuf>,
    },
}

/// What a task says of its Databend target.
#[derive(Clone, Debug)]
pub struct DatabendTask {
    /// The warehouse; `None`: the address's, or the server's own.
    pub warehouse: Option<String>,
    /// The database of what pgferry keeps for itself.
    pub staging: String,
    /// What the tables hold.
    pub mode: Mode,
    /// The shortest time between two merges of one table; of a history, between two times that changes are appended.
    pub merge_interval: Duration,
}

pub(super) fn connection(
    name: &str,
    path: &str,
    raw: &RawDatabend,
    folder: &Path,
    faults: &mut Vec<Fault>,
) -> Option<DatabendConnection> {
    let named = [
        ("warehouse", &raw.warehouse),
        ("role", &raw.role),
        ("database", &raw.database),
        ("user", &raw.user),
    ];
    for (key, name) in named {
        not_empty(&format!("{path}.{key}"), name.as_deref(), faults);
    }
    let server = match &raw.dsn {
        Some(dsn) => {
            alone(path, raw, faults);
            DatabendServer::Dsn(secret(dsn, folder))
        }
        None => parts(path, raw, folder, faults)?,
    };
    Some(DatabendConnection {
        name: name.to_owned(),
        server,
        role: raw.role.clone(),
        upload: match raw.upload {
            Some(RawUpload::Detect) => Upload::Detect,
            Some(RawUpload::Presigned) => Upload::Presigned,
            Some(RawUpload::Direct) => Upload::Direct,
            Some(RawUpload::Auto) | None => Upload::Auto,
        },
    })
}

/// Nothing that the address says may be said again.
fn alone(path: &str, raw: &RawDatabend, faults: &mut Vec<Fault>) {
    let parts = [
        ("host", raw.host.is_some()),
        ("port", raw.port.is_some()),
        ("ssl_mode", raw.ssl_mode.is_some()),
        ("ssl_root_cert", raw.ssl_root_cert.is_some()),
        ("user", raw.user.is_some()),
        ("password", raw.password.is_some()),
        ("token", raw.token.is_some()),
        ("private_key", raw.private_key.is_some()),
        ("private_key_password_file", raw.private_key_password_file.is_some()),
    ];
    for (key, _) in parts.iter().filter(|(_, there)| *there) {
        let problem = format!("`{key}` and `dsn` exclude each other");
        faults.push(Fault::new(CONFLICT, format!("{path}.{key}"), problem).cure("keep one of them"));
    }
}

fn parts(path: &str, raw: &RawDatabend, folder: &Path, faults: &mut Vec<Fault>) -> Option<DatabendServer> {
    let login = login(path, raw, folder, faults);
    let tls = raw.ssl_mode != Some(RawDatabendSslMode::Disable);
    if raw.ssl_root_cert.is_some() && !tls {
        let problem = "this ssl_mode does not verify the server";
        let fault = Fault::new(CONFLICT, format!("{path}.ssl_root_cert"), problem);
        faults.push(fault.cure("write `ssl_mode = \"verify-full\"`, or remove `ssl_root_cert`"));
    }
    let at = format!("{path}.host");
    let Some(host) = &raw.host else {
        let fault = Fault::new(MISSING_KEY, at, "the connection has neither `dsn` nor `host`");
        faults.push(fault.cure("add `host = \"...\"`, or `dsn = { env = \"...\" }`"));
        return None;
    };
    if !is_host(host) {
        let fault = Fault::new(INVALID_VALUE, at, format!("`{host}` is no host name and no address"));
        faults.push(fault.cure("write the name alone; a port goes into `port`, a whole address into `dsn`"));
    }
    let root_cert = raw.ssl_root_cert.as_ref().map(|file| folder.join(file));
    Some(DatabendServer::Parts { host: host.clone(), port: raw.port, tls, root_cert, login })
}

/// A name, an IPv4 address, or an IPv6 address with or without its brackets.
fn is_host(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let legal = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    bare.parse::<std::net::IpAddr>().is_ok() || (!host.is_empty() && host.chars().all(legal))
}

fn login(path: &str, raw: &RawDatabend, folder: &Path, faults: &mut Vec<Fault>) -> DatabendLogin {
    let mut conflict = |key: &str, problem: &str| {
        faults.push(Fault::new(CONFLICT, format!("{path}.{key}"), problem).cure("keep one of them"));
    };
    if raw.token.is_some() && raw.password.is_some() {
        conflict("password", "`password` and `token` exclude each other");
    }
    if raw.private_key.is_some() && raw.password.is_some() {
        conflict("password", "`password` and `private_key` exclude each other");
    }
    if raw.private_key.is_some() && raw.token.is_some() {
        conflict("token", "`token` and `private_key` exclude each other");
    }
    if raw.token.is_some() && raw.user.is_some() {
        conflict("user", "`token` says who connects, and `user` would be passed over");
    }
    for (key, there) in [("password", raw.password.is_some()), ("private_key", raw.private_key.is_some())] {
        if there && raw.user.is_none() && raw.token.is_none() {
            let fault = Fault::new(MISSING_KEY, format!("{path}.user"), format!("`{key}` needs `user`"));
            faults.push(fault.cure("add `user = \"...\"`"));
        }
    }
    if raw.private_key_password_file.is_some() && raw.private_key.is_none() {
        let problem = "`private_key_password_file` needs `private_key`";
        faults.push(Fault::new(CONFLICT, format!("{path}.private_key_password_file"), problem));
    }
    let in_folder = |file: &String| folder.join(file);
    match (&raw.token, &raw.private_key, &raw.user) {
        (Some(token), _, _) => DatabendLogin::Token(secret(token, folder)),
        (None, Some(private_key), Some(user)) => DatabendLogin::KeyPair {
            user: user.clone(),
            private_key: in_folder(private_key),
            password_file: raw.private_key_password_file.as_ref().map(in_folder),
        },
        (None, None, Some(user)) => DatabendLogin::Password {
            user: user.clone(),
            password: raw.password.as_ref().map(|password| secret(password, folder)),
        },
        (None, _, None) => DatabendLogin::Nobody,
    }
}

/// Secrets that stand in the file itself.
pub(super) fn plain_secrets(path: &str, raw: &RawDatabend, mut each: impl FnMut(String)) {
    for (key, source) in [("dsn", &raw.dsn), ("password", &raw.password), ("token", &raw.token)] {
        match source {
            Some(SecretSource::Plain(dsn)) if key == "dsn" && !has_secret(dsn) => {}
            Some(SecretSource::Plain(_)) => each(format!("{path}.{key}")),
            _ => {}
        }
    }
}

/// Whether an address holds a password or a token; `root:@` is a user without a password.
fn has_secret(dsn: &str) -> bool {
    let rest = dsn.split_once("://").map_or(dsn, |(_, rest)| rest);
    let user = rest.split(['/', '?']).next().and_then(|authority| authority.rsplit_once('@'));
    let password = user.and_then(|(user, _)| user.split_once(':')).map_or("", |(_, password)| password);
    !password.is_empty() || rest.contains("access_token=")
}

/// The database that an address names.
pub(crate) fn database_of(dsn: &str) -> Option<&str> {
    let (_, rest) = dsn.split_once("://")?;
    let path = rest.split('?').next()?.split_once('/')?.1;
    let database = path.trim_start_matches('/');
    (!database.is_empty()).then_some(database)
}

/// Where every table of a task goes: the task's word wins over the connection's.
pub(super) fn one_database<'a>(
    path: &str,
    task: &'a RawTask,
    name: &str,
    connection: &'a RawDatabend,
) -> Option<OneSchema<'a>> {
    let own = task.databend.as_ref().and_then(|databend| databend.database.as_deref());
    let (schema, key, path) = match (own, connection.database.as_deref()) {
        (Some(own), _) => (own, "databend.database".to_owned(), format!("{path}.databend.database")),
        (None, Some(other)) => (other, format!("connections.{name}.database"), format!("{path}.target")),
        (None, None) => return None,
    };
    Some(OneSchema { schema, word: "database", key, path })
}

/// What a task says of its Databend target, and how often its changes are staged, or appended.
pub(super) fn settings(
    path: &str,
    raw: &RawTask,
    connection: &RawDatabend,
    faults: &mut Vec<Fault>,
) -> (DatabendTask, Duration) {
    let none = RawDatabendTask::default();
    let own = raw.databend.as_ref().unwrap_or(&none);
    for (key, name) in [("warehouse", &own.warehouse), ("database", &own.database)] {
        not_empty(&format!("{path}.databend.{key}"), name.as_deref(), faults);
    }
    let staging = own.staging.clone().unwrap_or_else(|| STAGING_DEFAULT.to_owned());
    staging_is_apart(path, &staging, own.database.as_ref().or(connection.database.as_ref()), faults);
    let merge_interval = raw.sync_interval.map_or(MERGE_INTERVAL_DEFAULT, |span| span.0);
    if merge_interval < MERGE_INTERVAL_MIN {
        let problem = "the shortest interval between two merges is 100ms";
        let fault = Fault::new(INVALID_VALUE, format!("{path}.sync_interval"), problem);
        faults.push(fault.cure("write `sync_interval = \"100ms\"`, or more"));
    }
    let task = DatabendTask {
        warehouse: own.warehouse.clone().or_else(|| connection.warehouse.clone()),
        staging,
        mode: match raw.mode {
            Some(RawMode::History) => Mode::History,
            Some(RawMode::Latest) | None => Mode::Latest,
        },
        merge_interval,
    };
    // Changes that are not merged are appended to the tables themselves, which then consist of that many parts.
    let interval = match task.mode {
        Mode::Latest => merge_interval.min(STAGE_INTERVAL_MAX),
        Mode::History => merge_interval,
    };
    (task, interval)
}

/// The stage is named by it, so its letters are those of a stage; and no table of the source may meet one of pgferry's own there.
fn staging_is_apart(path: &str, staging: &str, database: Option<&String>, faults: &mut Vec<Fault>) {
    let at = format!("{path}.databend.staging");
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if staging.is_empty() || !staging.chars().all(plain) {
        let problem = format!("`{staging}` is no name for it: letters, digits and `_` of ASCII");
        faults.push(Fault::new(INVALID_VALUE, &at, problem).cure("write `staging = \"pgferry\"`"));
    }
    if database.is_some_and(|database| *database == staging) {
        let problem =
            format!("tables cannot go to `{staging}`, the database of what pgferry keeps for itself");
        faults.push(Fault::new(CONFLICT, at, problem).cure("name another `database`, or another `staging`"));
    }
}

fn not_empty(path: &str, name: Option<&str>, faults: &mut Vec<Fault>) {
    if name.is_some_and(|name| name.trim().is_empty()) {
        faults.push(Fault::new(INVALID_VALUE, path, "the name is empty").cure("write a name, or remove it"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_its_database_and_tells_whether_it_holds_a_secret() {
        for (dsn, database, secret) in [
            ("databend://root:@127.0.0.1:8000/default?sslmode=disable", Some("default"), false),
            ("databend://root@[::1]:8000", None, false),
            ("databend://me:pw@lake.example.com/", None, true),
            ("databend://me:pw@lake.example.com:443/shop", Some("shop"), true),
            ("databend://lake.example.com/shop?access_token=abc", Some("shop"), true),
            ("databend://lake.example.com/?access_token_file=/run/a:b@c", None, false),
            ("nonsense", None, false),
        ] {
            assert_eq!((database_of(dsn), has_secret(dsn)), (database, secret), "{dsn}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for host in ["localhost", "lake.example.com", "10.0.0.1", "::1", "[::1]", "my_host-2"] {
            assert!(is_host(host), "{host}");
        }
        for host in ["", "lake:8000", "https://lake", "lake/shop", "me@lake", "a b"] {
            assert!(!is_host(host), "{host:?}");
        }
    }
}
