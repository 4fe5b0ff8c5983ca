//! What the user says, as the target uses it: one address with everything that the client has to know.

use std::collections::HashMap;
use std::time::Duration;

use pgferry_model::{Result, TableName};

use crate::config::{ColumnChoice, DatabendConfig, Login, Mode, Server, ServerParts, Upload};
use crate::error::no_address;

/// The settings of one target.
#[derive(Clone)]
pub(crate) struct Settings {
    /// For the client; holds secrets.
    pub(crate) dsn: String,
    /// The server as people know it.
    pub(crate) place: String,
    pub(crate) database: Option<String>,
    pub(crate) staging: String,
    pub(crate) mode: Mode,
    pub(crate) merge_interval: Duration,
    pub(crate) loads_max: usize,
    pub(crate) columns: HashMap<(TableName, String), ColumnChoice>,
}

impl Settings {
    /// Fails with `target.databend_settings` where the address or a name cannot be used. Nothing is connected.
    pub(crate) fn new(config: DatabendConfig) -> Result<Settings> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if config.staging.is_empty() || !config.staging.chars().all(plain) {
            let why =
                format!("staging is {:?}; its name has letters, digits and _ of ASCII only", config.staging);
            return Err(no_address(&why));
        }
        let address = match &config.server {
            Server::Dsn(dsn) => dsn.clone(),
            Server::Parts(parts) => {
                verify_user(&parts.login)?;
                from_parts(parts)
            }
        };
        let (place, path) = place_and_path(&address)?;
        let database = path.split('?').next().filter(|name| !name.is_empty()).map(str::to_owned);
        Ok(Settings {
            dsn: with_own(address.clone(), &config),
            place,
            database: config.database.or(database),
            staging: config.staging,
            mode: config.mode,
            merge_interval: config.merge_interval,
            loads_max: config.loads_max.max(1),
            columns: config.columns,
        })
    }

    /// Whether tables hold every change instead of each row as it is.
    pub(crate) fn keeps_history(&self) -> bool {
        self.mode == Mode::History
    }

    /// The stage that files go to. Stages belong to the whole server, not to a database.
    pub(crate) fn stage(&self) -> String {
        format!("{}_stage", self.staging.to_ascii_lowercase())
    }
}

/// The client reads a user's name as it stands in an address, and escaped characters in it stay escaped.
fn verify_user(login: &Login) -> Result<()> {
    let (Login::Password { user, .. } | Login::KeyPair { user, .. }) = login else { return Ok(()) };
    if user.is_empty() || encoded(user) != *user {
        return Err(no_address(&format!(
            "the user is named {user:?}; Databend's client takes letters, digits and -_.~ of ASCII only"
        )));
    }
    Ok(())
}

fn from_parts(parts: &ServerParts) -> String {
    let user = match &parts.login {
        Login::Password { user, password } => format!("{}:{}@", encoded(user), encoded(password)),
        Login::KeyPair { user, .. } => format!("{}@", encoded(user)),
        Login::Nobody | Login::Token(_) => String::new(),
    };
    let port = parts.port.map_or_else(String::new, |port| format!(":{port}"));
    let mode = if parts.tls { "require" } else { "disable" };
    let mut address = format!("databend://{user}{}{port}/?sslmode={mode}", parts.host);
    let mut add = |key: &str, value: &str| address.push_str(&format!("&{key}={}", encoded(value)));
    if let Some(root) = &parts.root_cert {
        add("tls_ca_file", &root.to_string_lossy());
    }
    match &parts.login {
        Login::Token(token) => add("access_token", token),
        Login::KeyPair { private_key, password_file, .. } => {
            add("private_key_file", &private_key.to_string_lossy());
            if let Some(file) = password_file {
                add("private_key_passphrase_file", &file.to_string_lossy());
            }
        }
        Login::Nobody | Login::Password { .. } => {}
    }
    address
}

/// `HOST:PORT` and what follows the first slash; nothing of a secret.
fn place_and_path(address: &str) -> Result<(String, &str)> {
    let rest = ["databend://", "databend+http://", "databend+https://"]
        .iter()
        .find_map(|scheme| address.strip_prefix(scheme));
    let rest = rest.ok_or_else(|| no_address("the address does not begin with databend://"))?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    if place.is_empty() || place.starts_with(':') {
        return Err(no_address("the address names no host"));
    }
    Ok((place.to_owned(), path.strip_prefix('/').unwrap_or(path)))
}

/// The address with what pgferry needs. Of a key that is there twice the client takes the last.
fn with_own(address: String, config: &DatabendConfig) -> String {
    let presign = match config.upload {
        Upload::Auto => "auto",
        Upload::Detect => "detect",
        Upload::Presigned => "on",
        Upload::Direct => "off",
    };
    let mut address = address;
    let says = |address: &str, key: &str| {
        let query = address.split_once('?').map_or("", |(_, query)| query);
        query.split('&').any(|option| option.split('=').next() == Some(key))
    };
    let mut add = |key: &str, value: &str| {
        address.push(if address.contains('?') { '&' } else { '?' });
        address.push_str(&format!("{key}={value}"));
    };
    // Instants without a zone are written as if they were in it.
    add("timezone", "UTC");
    if config.upload != Upload::Auto {
        add("presign", presign);
    }
    if let Some(warehouse) = &config.warehouse {
        add("warehouse", &encoded(warehouse));
    }
    if let Some(role) = &config.role {
        add("role", &encoded(role));
    }
    if !says(&address, "retry_delay_secs") {
        address.push_str("&retry_delay_secs=1");
    }
    address
}

fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(login: Login) -> ServerParts {
        ServerParts { host: "db.internal".into(), port: Some(8000), tls: false, root_cert: None, login }
    }

    #[test]
    fn parts_become_an_address() {
        let login = Login::Password { user: "me".into(), password: "p@ss/w?rd".into() };
        let settings = Settings::new(DatabendConfig::new(Server::Parts(parts(login)))).unwrap();
        assert_eq!(
            settings.dsn,
            "databend://me:p%40ss%2Fw%3Frd@db.internal:8000/?sslmode=disable&timezone=UTC&retry_delay_secs=1"
        );
        assert_eq!((settings.place.as_str(), settings.database), ("db.internal:8000", None));
        let token = Settings::new(DatabendConfig::new(Server::Parts(parts(Login::Token("a b".into())))));
        assert!(token.unwrap().dsn.contains("&access_token=a%20b&"));
    }

    #[test]
    fn an_address_names_its_database_and_keeps_what_it_says() {
        let dsn = "databend://u:secret@h:443/sales?warehouse=etl&retry_delay_secs=7";
        let settings = Settings::new(DatabendConfig::new(Server::Dsn(dsn.into()))).unwrap();
        assert_eq!(settings.dsn, format!("{dsn}&timezone=UTC"));
        assert_eq!((settings.place.as_str(), settings.database.as_deref()), ("h:443", Some("sales")));
        let bare = Settings::new(DatabendConfig::new(Server::Dsn("databend://h".into()))).unwrap();
        assert_eq!(bare.dsn, "databend://h?timezone=UTC&retry_delay_secs=1");
    }

    #[test]
    fn what_is_no_address_is_told_without_repeating_it() {
        for dsn in ["postgres://u:hunter2@h/d", "databend:///d", "hunter2"] {
            let refused = Settings::new(DatabendConfig::new(Server::Dsn(dsn.into()))).err().unwrap();
            assert_eq!(refused.code().as_str(), "target.databend_settings");
            assert!(!format!("{refused} {:?}", refused.cause()).contains("hunter2"), "{refused:?}");
        }
        let staging = DatabendConfig {
            staging: "a b".into(),
            ..DatabendConfig::new(Server::Dsn("databend://h".into()))
        };
        assert!(Settings::new(staging).is_err());
    }
}
