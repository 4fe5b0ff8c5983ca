//! A connection of the task file to what the crates below connect with: secrets are looked up here, and only here.

use pgferry_model::{Cure, Error, Result};
use pgferry_postgres::{ConnectionConfig, Purpose, Secret, Session, SslMode};

use crate::spec::raw::RawSslMode;
use crate::spec::scalar::SecretSource;
use crate::spec::{Address, CONFLICT, PostgresConnection, SECRET_MISSING};

/// The largest secret that a file may hold; a larger one is the wrong file.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// What [`pgferry_postgres::Session::connect`] takes. Fails where a secret is not there, an URL is no URL, or settings exclude
/// each other: nothing that was written is passed over.
pub fn connection_config(connection: &PostgresConnection, application: &str) -> Result<ConnectionConfig> {
    let at = |key: &str| format!("connections.{}.{key}", connection.name);
    let application_name = format!("pgferry {application}");
    let mut config = match &connection.address {
        Address::Parts { host, port, database, user, password } => {
            let mut config = ConnectionConfig::new(host, *port, database, user);
            let password = password.as_ref().map(|source| reveal(source, &at("password"))).transpose()?;
            config.password = password.map(Secret::new);
            config.application_name = application_name;
            config
        }
        Address::Url(source) => from_url(&reveal(source, &at("url"))?, connection, application_name)?,
    };
    if let Some(timeout) = connection.connect_timeout {
        config.connect_timeout = timeout;
    }
    if let Some(after) = connection.probe_after {
        config.probe_after = after;
    }
    if let Some(mode) = connection.ssl_mode {
        config.tls.mode = match mode {
            RawSslMode::Disable => SslMode::Disable,
            RawSslMode::Prefer => SslMode::Prefer,
            RawSslMode::Require => SslMode::Require,
            RawSslMode::VerifyCa => SslMode::VerifyCa,
            RawSslMode::VerifyFull => SslMode::VerifyFull,
        };
    }
    let or = |own: &Option<std::path::PathBuf>, url: Option<std::path::PathBuf>| own.clone().or(url);
    config.tls.root_certificate = or(&connection.ssl_root_cert, config.tls.root_certificate);
    config.tls.certificate = or(&connection.ssl_cert, config.tls.certificate);
    config.tls.key = or(&connection.ssl_key, config.tls.key);
    if let Some(source) = &connection.ssl_key_password {
        config.tls.key_password = Some(Secret::new(reveal(source, &at("ssl_key_password"))?));
    }
    verify_tls(connection, &config)?;
    Ok(config)
}

fn from_url(
    url: &str,
    connection: &PostgresConnection,
    application_name: String,
) -> Result<ConnectionConfig> {
    let mut config = ConnectionConfig::from_url(url).map_err(|failure| {
        let problem = format!("connections.{}.url is no PostgreSQL URL that can be used", connection.name);
        let mut error = Error::task_broken(failure.code(), problem);
        if let Some(cause) = failure.cause() {
            error = error.with_cause(cause);
        }
        match failure.cure() {
            Some(cure) => error.with_cure(cure.clone()),
            None => error,
        }
    })?;
    let names = url.split_once('?').map_or("", |(_, query)| query);
    let says = |name: &str| {
        names.split('&').any(|option| option.split_once('=').is_some_and(|(known, _)| known == name))
    };
    let both = [
        ("ssl_mode", connection.ssl_mode.is_some(), "sslmode"),
        ("ssl_root_cert", connection.ssl_root_cert.is_some(), "sslrootcert"),
        ("ssl_cert", connection.ssl_cert.is_some(), "sslcert"),
        ("ssl_key", connection.ssl_key.is_some(), "sslkey"),
        ("ssl_key_password", connection.ssl_key_password.is_some(), "sslpassword"),
        ("connect_timeout", connection.connect_timeout.is_some(), "connect_timeout"),
    ];
    if let Some((key, _, option)) = both.into_iter().find(|(_, there, option)| *there && says(option)) {
        let problem =
            format!("connections.{}: `{key}` and the url's `{option}` exclude each other", connection.name);
        return Err(Error::task_broken(CONFLICT, problem)
            .with_cause("two places say the same thing, and one of them would be ignored")
            .with_cure(Cure::advice("keep one of them")));
    }
    if !says("application_name") {
        config.application_name = application_name;
    }
    Ok(config)
}

/// Refuses certificates that the mode would not use.
fn verify_tls(connection: &PostgresConnection, config: &ConnectionConfig) -> Result<()> {
    let tls = &config.tls;
    let (own, root) = (tls.certificate.is_some() || tls.key.is_some(), tls.root_certificate.is_some());
    let useless = match tls.mode {
        SslMode::Disable if own => "a client certificate, but the connection is not encrypted",
        SslMode::Disable | SslMode::Prefer if root => "a root certificate, but the server is not verified",
        _ => return Ok(()),
    };
    let problem = format!("connections.{} has {useless} (ssl_mode {})", connection.name, tls.mode.as_str());
    Err(Error::task_broken(CONFLICT, problem)
        .with_cause("this ssl_mode does not use it, and a key without an effect is a mistake")
        .with_cure(
            Cure::advice("let the server be verified, or take the certificate out")
                .line("ssl_mode = \"verify-full\""),
        ))
}

/// A session for questions, for callers above that do not know the crate below.
pub async fn session(config: &ConnectionConfig) -> Result<Session> {
    Session::connect(config, Purpose::Query).await
}

/// A secret's text. Never logged; the error names the place only.
pub fn reveal(source: &SecretSource, place: &str) -> Result<String> {
    let missing = |what: String, cure: Cure| {
        Error::task_broken(SECRET_MISSING, format!("{place}: {what}"))
            .with_cause("the task file names where the secret is, so that it holds none itself")
            .with_cure(cure)
    };
    match source {
        SecretSource::Plain(text) => Ok(text.clone()),
        SecretSource::Env(name) => std::env::var(name).map_err(|_| {
            missing(
                format!("the environment variable {name} is not set"),
                Cure::advice("set it in the environment that pgferry starts in; in bash and zsh the line asks for it without showing it")
                    .line(format!("read -rs {name} && export {name}")),
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
                    Cure::advice("write the secret into that file, readable for this user alone").shell("ls -l", path),
                )
            })?;
            let text = text.strip_suffix('\n').unwrap_or(&text);
            Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn connection(url: &str) -> PostgresConnection {
        PostgresConnection {
            name: "a".into(),
            address: Address::Url(SecretSource::Plain(url.into())),
            ssl_mode: None,
            ssl_root_cert: None,
            ssl_cert: None,
            ssl_key: None,
            ssl_key_password: None,
            connect_timeout: None,
            probe_after: None,
        }
    }

    fn by_url(url: &str) -> Result<ConnectionConfig> {
        connection_config(&connection(url), "test")
    }

    #[test]
    fn what_an_url_says_counts_and_the_file_adds_to_it() {
        let config = by_url("postgres://me:p%40ss@db:6000/shop?sslmode=disable&connect_timeout=3").unwrap();
        assert_eq!((config.host.as_str(), config.port, config.user.as_str()), ("db", 6000, "me"));
        assert_eq!((config.tls.mode, config.connect_timeout), (SslMode::Disable, Duration::from_secs(3)));
        assert_eq!(
            (config.password.unwrap().expose(), config.application_name.as_str()),
            ("p@ss", "pgferry test")
        );
        assert_eq!(by_url("postgres://me@db?application_name=x").unwrap().application_name, "x");

        let mut more = connection("postgres://me@db/shop?sslrootcert=ca.crt");
        more.ssl_mode = Some(RawSslMode::VerifyFull);
        more.ssl_cert = Some("me.crt".into());
        more.ssl_key = Some("me.key".into());
        more.ssl_key_password = Some(SecretSource::Plain("secret".into()));
        let tls = connection_config(&more, "test").unwrap().tls;
        assert_eq!((tls.mode, tls.root_certificate), (SslMode::VerifyFull, Some("ca.crt".into())));
        assert_eq!((tls.certificate, tls.key), (Some("me.crt".into()), Some("me.key".into())));
        assert_eq!(tls.key_password.unwrap().expose(), "secret");
    }

    #[test]
    fn nothing_is_passed_over_in_silence() {
        let mut twice = connection("postgres://me@db/shop?sslmode=require");
        twice.ssl_mode = Some(RawSslMode::Disable);
        assert_eq!(connection_config(&twice, "test").unwrap_err().code(), CONFLICT);
        assert_eq!(by_url("postgres://me@db/shop?sslrootcert=ca.crt").unwrap_err().code(), CONFLICT);
        let unused = by_url("postgres://me@db/shop?sslmode=disable&sslcert=a&sslkey=b").unwrap_err();
        assert_eq!(unused.code(), CONFLICT);
        assert!(by_url("postgres://me@db/shop?sslmode=require&sslrootcert=ca.crt").is_ok());
    }

    #[test]
    fn what_is_no_url_is_told_without_repeating_it() {
        for url in [
            "hunter2",
            "postgres://db/shop",
            "postgres://me@a,b/shop",
            "postgres://me:hunter2@db/x?sslmode=maybe",
            "postgres://me:hunter2@db/x?options=hunter2",
        ] {
            let error = by_url(url).unwrap_err();
            assert_eq!(error.code().as_str(), "config.connection", "{url}");
            assert!(error.problem().contains("connections.a.url"), "{error}");
            assert!(!format!("{error} {:?} {:?}", error.cause(), error.cure()).contains("hunter2"));
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
