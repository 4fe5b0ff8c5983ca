//! A connection of the task file to what the crates below connect with: secrets are looked up here, and only here.

use std::collections::HashMap;
use std::str::FromStr;

use pgferry_model::{Cure, Error, Result};
use pgferry_postgres::{ConnectionConfig, Purpose, Secret, Session};

use crate::spec::raw::RawSslMode;
use crate::spec::scalar::SecretSource;
use crate::spec::{Address, INVALID_VALUE, PostgresConnection, SECRET_MISSING, UNSUPPORTED};

/// The largest secret that a file may hold; a larger one is the wrong file.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// What [`pgferry_postgres::Session::connect`] takes. Fails where a secret is not there or an URL is no URL.
pub fn connection_config(connection: &PostgresConnection, application: &str) -> Result<ConnectionConfig> {
    let at = |key: &str| format!("connections.{}.{key}", connection.name);
    let application_name = format!("pgferry {application}");
    let (config, url_mode) = match &connection.address {
        Address::Parts { host, port, database, user, password } => {
            let password = password.as_ref().map(|source| reveal(source, &at("password"))).transpose()?;
            let config = ConnectionConfig {
                host: host.clone(),
                port: *port,
                database: database.clone(),
                user: user.clone(),
                password: password.map(Secret::new),
                connect_timeout: connection.connect_timeout,
                application_name,
            };
            (config, None)
        }
        Address::Url(source) => {
            let url = reveal(source, &at("url"))?;
            let (config, mode) = from_url(&url, connection, application_name).ok_or_else(|| {
                Error::task_broken(INVALID_VALUE, format!("{} is no PostgreSQL URL", at("url"))).with_cure(
                    Cure::advice(
                        "write it as below; special characters in user and password are percent-encoded",
                    )
                    .line("postgres://user:password@host:5432/database?sslmode=verify-full"),
                )
            })?;
            (config, mode)
        }
    };
    let mode = connection.ssl_mode.or(url_mode).unwrap_or(RawSslMode::Prefer);
    if !matches!(mode, RawSslMode::Disable | RawSslMode::Prefer) {
        let problem = format!("{}: encrypted connections are not in this build yet", at("ssl_mode"));
        return Err(Error::task_broken(UNSUPPORTED, problem));
    }
    Ok(config)
}

/// A session for questions, for callers above that do not know the crate below.
pub async fn session(config: &ConnectionConfig) -> Result<Session> {
    Session::connect(config, Purpose::Query).await
}

/// A secret's text. Never logged; the error names the place only.
pub fn reveal(source: &SecretSource, place: &str) -> Result<String> {
    let missing = |what: String, cure: String| {
        Error::task_broken(SECRET_MISSING, format!("{place}: {what}")).with_cure(Cure::advice(cure))
    };
    match source {
        SecretSource::Plain(text) => Ok(text.clone()),
        SecretSource::Env(name) => std::env::var(name).map_err(|_| {
            missing(
                format!("the environment variable {name} is not set"),
                format!("set {name} before the start"),
            )
        }),
        SecretSource::File(path) => {
            let length = std::fs::metadata(path).map(|metadata| metadata.len());
            let text = match length {
                Ok(length) if length > SECRET_BYTES_MAX => Err("is too large for a secret".to_owned()),
                Ok(_) => {
                    std::fs::read_to_string(path).map_err(|failure| format!("cannot be read: {failure}"))
                }
                Err(failure) => Err(format!("cannot be read: {failure}")),
            };
            let text = text.map_err(|why| {
                missing(
                    format!("the file {path} {why}"),
                    "write the secret into that file, readable for this user".into(),
                )
            })?;
            let text = text.strip_suffix('\n').unwrap_or(&text);
            Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
        }
    }
}

fn from_url(
    url: &str,
    connection: &PostgresConnection,
    application_name: String,
) -> Option<(ConnectionConfig, Option<RawSslMode>)> {
    let (plain, options) = split_options(url);
    let parsed = tokio_postgres::Config::from_str(&plain).ok()?;
    let host = match parsed.get_hosts() {
        [] => "localhost".to_owned(),
        [tokio_postgres::config::Host::Tcp(host)] => host.clone(),
        [tokio_postgres::config::Host::Unix(path)] => path.to_string_lossy().into_owned(),
        _ => return None,
    };
    let user = parsed.get_user()?.to_owned();
    let mode = match options.get("sslmode").map(String::as_str) {
        None => None,
        Some("disable") => Some(RawSslMode::Disable),
        Some("prefer" | "allow") => Some(RawSslMode::Prefer),
        Some("require") => Some(RawSslMode::Require),
        Some("verify-ca") => Some(RawSslMode::VerifyCa),
        Some("verify-full") => Some(RawSslMode::VerifyFull),
        Some(_) => return None,
    };
    let password = parsed.get_password().map(|password| Secret::new(String::from_utf8_lossy(password)));
    let config = ConnectionConfig {
        host,
        port: parsed.get_ports().first().copied().unwrap_or(5432),
        database: parsed.get_dbname().map_or_else(|| user.clone(), str::to_owned),
        user,
        password,
        connect_timeout: connection.connect_timeout,
        application_name,
    };
    Some((config, mode))
}

/// The URL without its `ssl*` options, and these: the parser of URLs knows fewer of them than servers and people do.
fn split_options(url: &str) -> (String, HashMap<String, String>) {
    let Some((address, query)) = url.split_once('?') else { return (url.to_owned(), HashMap::new()) };
    let mut ours = HashMap::new();
    let mut rest = Vec::new();
    for option in query.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) if key.starts_with("ssl") => {
                ours.insert(key.to_owned(), value.to_owned());
            }
            _ => rest.push(option),
        }
    }
    let plain = if rest.is_empty() { address.to_owned() } else { format!("{address}?{}", rest.join("&")) };
    (plain, ours)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn by_url(url: &str) -> Result<ConnectionConfig> {
        let connection = PostgresConnection {
            name: "a".into(),
            address: Address::Url(SecretSource::Plain(url.into())),
            ssl_mode: None,
            ssl_root_cert: None,
            ssl_cert: None,
            ssl_key: None,
            ssl_key_password: None,
            connect_timeout: Duration::from_secs(1),
        };
        connection_config(&connection, "test")
    }

    #[test]
    fn an_url_is_taken_apart_with_its_percent_codes() {
        let config = by_url("postgres://me:p%40ss@db:6000/shop?sslmode=disable&connect_timeout=3").unwrap();
        assert_eq!((config.host.as_str(), config.port, config.user.as_str()), ("db", 6000, "me"));
        assert_eq!(config.database, "shop");
        assert_eq!(config.password.unwrap().expose(), "p@ss");
        assert_eq!(by_url("postgres://me@db").unwrap().database, "me");
    }

    #[test]
    fn what_is_no_url_is_told_without_repeating_it() {
        for url in [
            "hunter2",
            "postgres://db/shop",
            "postgres://me@a,b/shop",
            "postgres://me:hunter2@db/x?sslmode=maybe",
        ] {
            let error = by_url(url).unwrap_err();
            assert_eq!(error.code(), INVALID_VALUE, "{url}");
            assert!(!format!("{error} {:?}", error.cause()).contains("hunter2"));
        }
    }

    #[test]
    fn a_missing_secret_names_its_place() {
        let error = reveal(&SecretSource::Env("PGFERRY_NO_SUCH_VARIABLE".into()), "connections.a.password")
            .unwrap_err();
        assert_eq!(error.code(), SECRET_MISSING);
        assert!(error.to_string().contains("PGFERRY_NO_SUCH_VARIABLE"));
        let error =
            reveal(&SecretSource::File("/no/such/file".into()), "connections.a.password").unwrap_err();
        assert_eq!(error.code(), SECRET_MISSING);
    }

    #[test]
    fn a_secret_file_loses_its_last_line_break_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a b \n\n").unwrap();
        let text = reveal(&SecretSource::File(file.path().to_string_lossy().into_owned()), "x").unwrap();
        assert_eq!(text, "a b \n");
    }
}
