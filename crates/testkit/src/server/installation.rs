//! Where the programs of a PostgreSQL major are, and as which user they run.
//!
//! Invariants: a server that is not installed is an error that names its cure, never a skipped test; a packaged server
//! loads its own libpq, never the system's, whose OpenSSL is another one: two in one process crash the WAL receiver.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run_folder;

/// The majors that tests run on: the oldest supported one, one without binary streams, the distribution's, the newest.
pub const MAJORS: [u32; 4] = [10, 13, 15, 18];

/// The folder that `scripts/setup --test` fills with servers.
pub fn cache() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("PGFERRY_CACHE") {
        return Ok(folder.into());
    }
    if root() {
        return Ok("/var/cache/pgferry".into());
    }
    if let Some(folder) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(folder).join("pgferry"));
    }
    let home =
        std::env::var_os("HOME").context("neither PGFERRY_CACHE nor XDG_CACHE_HOME nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache").join("pgferry"))
}

/// Whether this process runs as root, which PostgreSQL refuses to do.
fn root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// One installed major.
#[derive(Clone, Debug)]
pub(crate) struct Installation {
    pub(crate) major: u32,
    /// As the program says it: `18.4`.
    pub(crate) version: String,
    programs: PathBuf,
    /// Where its shared libraries are, as LD_LIBRARY_PATH.
    libraries: Option<OsString>,
    /// User and group the programs run as; `None`: as we do.
    account: Option<(u32, u32)>,
}

impl Installation {
    pub(crate) fn find(major: u32) -> Result<Self> {
        let cached = cache()?.join(format!("postgres-{major}")).join("native");
        let distribution = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        let (programs, libraries) = if cached.join("bin/postgres").exists() {
            (cached.join("bin"), Some(library_path(major, &cached.join("lib"))?))
        } else if distribution.join("postgres").exists() {
            (distribution, None)
        } else {
            bail!(
                "PostgreSQL {major} is not installed (looked in {} and {}); run `scripts/setup --test`",
                cached.join("bin").display(),
                distribution.display()
            );
        };
        let account = if root() { Some(postgres_account()?) } else { None };
        let mut found = Self { major, version: String::new(), programs, libraries, account };
        let output =
            found.command("postgres").arg("--version").output().context("cannot run postgres --version")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = text.split_whitespace().nth(2) else {
            bail!(
                "{}/postgres does not run: {}; run `scripts/setup --test` again",
                found.programs.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        };
        found.version = version.to_owned();
        Ok(found)
    }

    /// A command for `program` of this installation, as the right user, in a process group of its own (Ctrl-C in
    /// the terminal must not reach a server before its test has ended).
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = self.as_account(self.programs.join(program));
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        // PG* variables of the developer's shell must not change what a test server does.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.env("TZ", "UTC").env("LC_ALL", "C");
        command
    }

    /// A command of the operating system, run as the user that owns the data folders.
    pub(crate) fn as_account(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").process_group(0);
        if let Some((user, group)) = self.account {
            command.uid(user).gid(group);
        }
        command
    }

    /// Gives a file or folder to the user the server runs as.
    pub(crate) fn give(&self, path: &Path) -> Result<()> {
        if let Some((user, group)) = self.account {
            chown(path, Some(user), Some(group))
                .with_context(|| format!("cannot change the owner of {}", path.display()))?;
        }
        Ok(())
    }
}

/// A package's libraries, its libpq first under the name that programs ask for: the package itself has that name only
/// as a link to be made, and without it the loader takes the system's libpq in silence.
fn library_path(major: u32, libraries: &Path) -> Result<OsString> {
    let own = run_folder::root()?.join(format!("libraries-{major}"));
    if let Err(error) = fs::create_dir(&own)
        && error.kind() != ErrorKind::AlreadyExists
    {
        return Err(error).with_context(|| format!("cannot make {}", own.display()));
    }
    let libpq = libraries.join(format!("libpq.so.5.{major}"));
    if !libpq.exists() {
        bail!("PostgreSQL {major} has no {}; run `scripts/setup --test`", libpq.display());
    }
    if let Err(error) = symlink(&libpq, own.join("libpq.so.5"))
        && error.kind() != ErrorKind::AlreadyExists
    {
        return Err(error).with_context(|| format!("cannot link {}", libpq.display()));
    }
    let mut path = own.into_os_string();
    path.push(":");
    path.push(libraries);
    Ok(path)
}

fn postgres_account() -> Result<(u32, u32)> {
    let accounts = fs::read_to_string("/etc/passwd")?;
    for line in accounts.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let ["postgres", _, user, group, ..] = fields[..] {
            return Ok((user.parse()?, group.parse()?));
        }
    }
    bail!("PostgreSQL cannot run as root and there is no user `postgres`; run `scripts/setup --test`")
}
