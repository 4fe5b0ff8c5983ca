//! `cargo xtask crash` and `cargo xtask soak`: builds the program and its trials, then hands over to `pgferry-trial`.
//!
//! Why not a dependency: xtask stays quick to build for those who only want `tidy`.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

pub(crate) fn run(root: &Path, which: &str, release: bool, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let profile: &[&str] = if release { &["--release"] } else { &[] };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Both at once: the trial takes the program that lies beside it.
    let built = Command::new(cargo)
        .args(["build", "--locked", "--quiet", "-p", "pgferry-cli", "-p", "pgferry-trial", "--bins"])
        .args(profile)
        .current_dir(root)
        .status()
        .context("cargo could not be started")?;
    if !built.success() {
        bail!("the program was not built");
    }
    // target/PROFILE/xtask
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("xtask lies in cargo's target folder")?;
    let trial = target.join(if release { "release" } else { "debug" }).join("pgferry-trial");
    let ended = Command::new(&trial)
        .arg(which)
        .args(arguments)
        .status()
        .with_context(|| format!("{} could not be started", trial.display()))?;
    Ok(if ended.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
