//! Connection URLs (PostgreSQL docs, libpq, "Connection URIs"), read strictly: what is not understood is refused, never skipped.
//!
//! Invariant: no error repeats a piece of the URL other than a parameter's name.

use std::path::PathBuf;
use std::time::Duration;

use pgferry_model::{Cure, Error, Result};

use crate::config::{ChannelBinding, ConnectionConfig, Secret};
use crate::error::CONFIG;

/// The parameters that a URL may have.
const PARAMETERS: [&str; 13] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslpassword",
    "sslrootcert",
    "user",
];
const CONNECT_SECONDS_MAX: u64 = 3600;

impl ConnectionConfig {
    /// From `postgresql://user:password@host:port/database?sslmode=…`; a port is 5432 and a database has the user's name unless
    /// said. Fails with `config.connection` for a list of hosts, an unknown parameter, or a missing host or user.
    pub fn from_url(url: &str) -> Result<Self> {
        let rest = url
            .strip_prefix("postgresql://")
            .or_else(|| url.strip_prefix("postgres://"))
            .ok_or_else(|| refused("it does not begin with postgresql://"))?;
        if rest.contains('#') {
            return Err(refused("it has a # outside of a percent code; write it as %23"));
        }
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = address.split_once('/').unwrap_or((address, ""));
        let mut config = ConnectionConfig::new("", 5432, decoded(database)?, "");
        let place = match authority.rsplit_once('@') {
            Some((login, place)) => {
                let (user, password) =
                    login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
                config.user = decoded(user)?;
                config.password = password.map(decoded).transpose()?.map(Secret::new);
                place
            }
            None => authority,
        };
        read_place(&mut config, place)?;
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) =
                parameter.split_once('=').ok_or_else(|| refused("a parameter after ? has no ="))?;
            set(&mut config, &decoded(name)?, decoded(value)?)?;
        }
        if config.host.is_empty() {
            return Err(refused("it names no host"));
        }
        if config.user.is_empty() {
            return Err(refused("it names no user"));
        }
        if config.database.is_empty() {
            config.database.clone_from(&config.user);
        }
        Ok(config)
    }
}

fn read_place(config: &mut ConnectionConfig, place: &str) -> Result<()> {
    if place.contains(',') {
        return Err(one_host());
    }
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(|| refused("an address in [ has no ]"))?;
            match rest.strip_prefix(':') {
                Some(port) => (host, port),
                None if rest.is_empty() => (host, ""),
                None => return Err(refused("something other than a port follows the host")),
            }
        }
        None => place.split_once(':').unwrap_or((place, "")),
    };
    config.host = decoded(host)?;
    if !port.is_empty() {
        config.port = read_port(port)?;
    }
    Ok(())
}

fn set(config: &mut ConnectionConfig, name: &str, value: String) -> Result<()> {
    match name {
        "application_name" => config.application_name = value,
        "channel_binding" => {
            config.tls.channel_binding = match value.as_str() {
                "disable" => ChannelBinding::Disable,
                "prefer" => ChannelBinding::Prefer,
                "require" => ChannelBinding::Require,
                _ => return Err(refused("channel_binding is one of disable, prefer, require")),
            }
        }
        "connect_timeout" => {
            let seconds = value.parse().ok().filter(|seconds| (1..=CONNECT_SECONDS_MAX).contains(seconds));
            let seconds = seconds
                .ok_or_else(|| refused(format!("connect_timeout is 1 to {CONNECT_SECONDS_MAX} seconds")))?;
            config.connect_timeout = Duration::from_secs(seconds);
        }
        "dbname" => config.database = value,
        "host" if value.contains(',') => return Err(one_host()),
        "host" => config.host = value,
        "password" => config.password = Some(Secret::new(value)),
        "port" => config.port = read_port(&value)?,
        "sslmode" => config.tls.mode = value.parse().map_err(refused)?,
        "sslrootcert" => {
            config.tls.root_certificate = (value != "system").then(|| PathBuf::from(value));
        }
        "sslcert" => config.tls.certificate = Some(value.into()),
        "sslkey" => config.tls.key = Some(value.into()),
        "sslpassword" => config.tls.key_password = Some(Secret::new(value)),
        "user" => config.user = value,
        _ => {
            return Err(refused(format!("the parameter {name:?} is not known")).with_cure(Cure::advice(
                format!("take it out; these are known: {}", PARAMETERS.join(", ")),
            )));
        }
    }
    Ok(())
}

fn read_port(text: &str) -> Result<u16> {
    if text.contains(',') {
        return Err(one_host());
    }
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| refused("the port is no number from 1 to 65535"))
}

fn decoded(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let byte =
            byte.ok_or_else(|| refused("a % is not followed by two hexadecimal digits; write it as %25"))?;
        if byte == 0 {
            return Err(refused("it has a zero byte"));
        }
        bytes.push(byte);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| refused("its percent codes are not UTF-8"))
}

fn one_host() -> Error {
    refused("it names more than one host").with_cure(Cure::advice(
        "name the primary's host only: a change stream belongs to one server, and another one has other positions",
    ))
}

fn refused(why: impl Into<String>) -> Error {
    Error::task_broken(CONFIG, "the connection's URL is not valid").with_cause(why).with_cure(
        Cure::advice("write it as below; special characters in user and password are percent codes")
            .line("url = \"postgresql://user:password@host:5432/database?sslmode=verify-full\""),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SslMode;

    #[test]
    fn every_part_is_read_with_its_percent_codes() {
        let config = ConnectionConfig::from_url(
            "postgresql://m%65:p%40s%3As@[::1]:6000/sh%2Fop?sslmode=verify-full&sslrootcert=%2Fca.crt&application_name=a%20b\
             &connect_timeout=3&sslcert=c&sslkey=k&sslpassword=w&channel_binding=require",
        )
        .unwrap();
        assert_eq!((config.host.as_str(), config.port, config.user.as_str()), ("::1", 6000, "me"));
        assert_eq!((config.database.as_str(), config.application_name.as_str()), ("sh/op", "a b"));
        assert_eq!(config.password.as_ref().unwrap().expose(), "p@s:s");
        assert_eq!(config.connect_timeout, Duration::from_secs(3));
        assert_eq!(config.tls.mode, SslMode::VerifyFull);
        assert_eq!(config.tls.root_certificate, Some("/ca.crt".into()));
        assert_eq!(config.tls.key_password, Some(Secret::new("w")));
        assert_eq!(config.tls.channel_binding, ChannelBinding::Require);
        assert!(!format!("{config:?}").contains("p@s"));
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let config = ConnectionConfig::from_url("postgres://me@db").unwrap();
        assert_eq!((config.port, config.database.as_str(), config.tls.mode), (5432, "me", SslMode::Prefer));
        let config = ConnectionConfig::from_url("postgres:///x?host=/tmp&user=me&port=6000").unwrap();
        assert_eq!((config.host.as_str(), config.port, config.database.as_str()), ("/tmp", 6000, "x"));
        assert_eq!(ConnectionConfig::from_url("postgres://me@%2Ftmp/x").unwrap().host, "/tmp");
    }

    #[test]
    fn what_is_not_understood_is_refused_without_repeating_it() {
        for url in [
            "hunter2",
            "mysql://me:hunter2@db",
            "postgres://hunter2/x",
            "postgres://me:hunter2@a,b/x",
            "postgres://me:hunter2@a:1,b:2/x",
            "postgres://me:hunter2@a/x?host=a,b",
            "postgres://me:hunter2%4@a/x",
            "postgres://me:hunter2%00@a/x",
            "postgres://me:hunter2%ff@a/x",
            "postgres://me:hunter2#@a/x",
            "postgres://me:hunter2@a:port/x",
            "postgres://me:hunter2@a:0/x",
            "postgres://me:hunter2@[::1/x",
            "postgres://me:hunter2@a/x?sslmode=maybe",
            "postgres://me:hunter2@a/x?sslmode",
            "postgres://me:hunter2@a/x?connect_timeout=0",
            "postgres://me:hunter2@a/x?target_session_attrs=any",
        ] {
            let error = ConnectionConfig::from_url(url).expect_err(url);
            assert_eq!(error.code(), CONFIG, "{url}");
            let text = format!("{error} {:?} {:?}", error.cause(), error.cure());
            assert!(!text.contains("hunter2"), "{text}");
        }
        let error = ConnectionConfig::from_url("postgres://me@a/x?options=1").unwrap_err();
        assert!(error.cause().unwrap().contains("options"));
    }
}
