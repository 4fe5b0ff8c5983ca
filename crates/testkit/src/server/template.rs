//! The data folder that every server of a major starts from: made once by initdb, then copied.
//!
//! Invariant: a template appears under its name complete or not at all (made aside, then renamed), because several
//! test processes may make it at once. It lives in the cache beside the servers, so that only the very first
//! start on a machine pays for initdb.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

use super::installation::{Installation, cache};

/// Raised when the options of initdb below change.
const LAYOUT: u32 = 1;

/// Copies the template of `installation` to `data`, which must not exist.
pub(crate) fn copy_to(installation: &Installation, data: &Path) -> Result<()> {
    let template = template(installation)?;
    let output = Command::new("cp").args(["-a", "--reflink=auto"]).arg(&template).arg(data).output()?;
    check("cp", &output)
}

fn template(installation: &Installation) -> Result<PathBuf> {
    let cache = cache()?;
    let template = cache.join(format!("template-{}-{LAYOUT}", installation.version));
    if template.exists() {
        return Ok(template);
    }
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let aside = tempfile::Builder::new().prefix(".template-").tempdir_in(&cache)?;
    installation.give(aside.path())?;
    let data = aside.path().join("data");
    let output = installation
        .command("initdb")
        .arg("--pgdata")
        .arg(&data)
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
        .output()
        .context("cannot run initdb")?;
    check("initdb", &output)?;
    if let Err(error) = fs::rename(&data, &template)
        && !template.exists()
    {
        return Err(error).with_context(|| format!("cannot make {}", template.display()));
    }
    Ok(template)
}

/// Fails with what the program wrote.
pub(crate) fn check(program: &str, output: &Output) -> Result<()> {
    if !output.status.success() {
        bail!(
            "{program} failed ({}): {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
