//! The password file (PostgreSQL docs, libpq, "The Password File"): `PGPASSFILE`, else `~/.pgpass`.
//!
//! Rules taken from there: the first line that matches counts; `*` alone matches everything; `\:` and `\\` are escapes; a comment
//! begins with `#`. A file that others can read is not used, and that is an error here, because a silent one costs hours.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use pgferry_model::{Cure, Error, Result};

use crate::config::{ConnectionConfig, Secret};
use crate::error::AUTHENTICATION;

/// A larger file is no password file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The folders of sockets that count as `localhost`.
const SOCKET_FOLDERS: [&str; 3] = ["/tmp", "/run/postgresql", "/var/run/postgresql"];

/// The password for a connection from the environment's file; `None` where there is no file or no line for it.
pub(crate) fn find(config: &ConnectionConfig) -> Result<Option<Secret>> {
    match place(std::env::var_os("PGPASSFILE"), std::env::var_os("HOME")) {
        Some(path) => find_in(&path, config),
        None => Ok(None),
    }
}

fn place(named: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let named = named.filter(|path| !path.is_empty()).map(PathBuf::from);
    named.or_else(|| home.map(|home| Path::new(&home).join(".pgpass")))
}

fn find_in(path: &Path, config: &ConnectionConfig) -> Result<Option<Secret>> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(failure) if failure.kind() == ErrorKind::NotFound => return Ok(None),
        Err(failure) => return Err(unusable(path, "cannot be read").with_origin(failure)),
    };
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(unusable(path, "is no password file")
            .with_cause("it is a folder, a device, or too large for one"));
    }
    if others_may_read(&metadata) {
        return Err(unusable(path, "can be read by others")
            .with_cause("its mode gives rights to group or others, and libpq would ignore it, too")
            .with_cure(
                Cure::advice("let its owner alone read it").shell("chmod 0600", &path.to_string_lossy()),
            ));
    }
    let text =
        fs::read_to_string(path).map_err(|failure| unusable(path, "cannot be read").with_origin(failure))?;
    Ok(look_up(&text, config))
}

/// Whether group or others have any right on a file.
#[cfg(unix)]
pub(crate) fn others_may_read(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    metadata.permissions().mode() & 0o077 != 0
}

/// Elsewhere than on Unix there is no such rule.
#[cfg(not(unix))]
pub(crate) fn others_may_read(_metadata: &fs::Metadata) -> bool {
    false
}

fn look_up(text: &str, config: &ConnectionConfig) -> Option<Secret> {
    let port = config.port.to_string();
    let wanted = [config.host.as_str(), &port, &config.database, &config.user];
    let local = SOCKET_FOLDERS.contains(&config.host.trim_end_matches('/'));
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = split(line)?;
        let matches = wanted.iter().zip(&fields).enumerate().all(|(at, (wanted, field))| {
            field.raw == "*" || field.text == *wanted || (at == 0 && local && field.text == "localhost")
        });
        matches.then(|| Secret::new(fields[4].text.clone()))
    })
}

struct Field<'a> {
    raw: &'a str,
    text: String,
}

/// Host, port, database, user, password. The password ends at a further unescaped colon.
fn split(line: &str) -> Option<Vec<Field<'_>>> {
    let mut fields = Vec::with_capacity(5);
    let (mut from, mut text, mut escaped) = (0, String::new(), false);
    for (at, character) in line.char_indices() {
        match character {
            '\\' if !escaped => escaped = true,
            ':' if !escaped => {
                fields.push(Field { raw: &line[from..at], text: std::mem::take(&mut text) });
                from = at + 1;
            }
            _ => {
                escaped = false;
                text.push(character);
            }
        }
    }
    fields.push(Field { raw: &line[from..], text });
    (fields.len() >= 5).then_some(fields)
}

fn unusable(path: &Path, why: &str) -> Error {
    Error::task_broken(AUTHENTICATION, format!("the password file {} {why}", path.display())).with_cure(
        Cure::advice("correct the file, or give the password to the connection")
            .line("password = { env = \"PGFERRY_PASSWORD\" }"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked_up(text: &str, config: &ConnectionConfig) -> Option<String> {
        look_up(text, config).map(|secret| secret.expose().to_owned())
    }

    #[test]
    fn the_first_line_that_matches_counts() {
        let config = ConnectionConfig::new("db", 5432, "shop", "me");
        let text = "# db:5432:shop:me:comment\nshort:line\nother:*:*:*:no\ndb:*:shop:me:yes\n*:*:*:*:late\n";
        assert_eq!(looked_up(text, &config).as_deref(), Some("yes"));
        assert_eq!(looked_up("db:5433:*:*:x", &config), None);
        assert_eq!(looked_up("*:*:*:*:p\\:a\\\\s:rest", &config).as_deref(), Some("p:a\\s"));
        assert_eq!(looked_up("\\*:*:*:*:x", &config), None);
        let config = ConnectionConfig::new("::1", 5432, "shop", "me");
        assert_eq!(looked_up("\\:\\:1:5432:shop:me:six", &config).as_deref(), Some("six"));
        let config = ConnectionConfig::new("/tmp", 5432, "shop", "me");
        assert_eq!(looked_up("localhost:*:*:*:socket", &config).as_deref(), Some("socket"));
    }

    #[test]
    fn a_file_that_others_can_read_is_an_error_with_its_cure() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "*:*:*:*:secret\n").unwrap();
        let config = ConnectionConfig::new("db", 5432, "shop", "me");
        assert_eq!(find_in(file.path(), &config).unwrap(), Some(Secret::new("secret")));
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o640)).unwrap();
        let error = find_in(file.path(), &config).unwrap_err();
        assert_eq!(error.code(), AUTHENTICATION);
        assert!(error.cure().unwrap().lines[0].starts_with("chmod 0600 "));
        assert_eq!(find_in(Path::new("/no/such/file"), &config).unwrap(), None);
    }

    #[test]
    fn the_variable_goes_before_the_home() {
        assert_eq!(place(Some("/a".into()), Some("/h".into())), Some("/a".into()));
        assert_eq!(place(Some("".into()), Some("/h".into())), Some("/h/.pgpass".into()));
        assert_eq!(place(None, None), None);
    }
}
