//! `cargo xtask fuzz`: libFuzzer, guided by coverage on a stable compiler, on each target of crates/fuzz.
//!
//! ```text
//!   cargo build, crates/fuzz/instrument as wrapper of rustc ──> pgferry-fuzz ──> corpus/NAME (read), TARGET/fuzz/NAME (grows)
//! ```
//!
//! Limit: counters are in this workspace's own crates; what libraries do with an input guides nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The target; every one if left out
    target: Option<String>,
    /// How long each target runs; 0 replays the corpus only
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Take what earlier runs found into the corpus in git: the smallest inputs that reach as much
    #[arg(long)]
    merge: bool,
}

pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let targets = targets(root)?;
    let wanted: Vec<&String> =
        targets.iter().filter(|name| options.target.as_ref().is_none_or(|it| it == *name)).collect();
    if wanted.is_empty() {
        bail!("no such target; there are {}", targets.join(", "));
    }
    let place = grown(root)?;
    let mut broken = Vec::new();
    for name in wanted {
        println!("fuzz: {name}");
        let run = Run { root, name, grown: place.join(name) };
        let done = if options.merge { run.merge()? } else { run.search(options.seconds)? };
        if !done {
            broken.push(name.as_str());
        }
    }
    if broken.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("fuzz: {} broke; the inputs are in {}", broken.join(", "), place.display());
    Ok(ExitCode::FAILURE)
}

/// Every target has a folder of seeds.
fn targets(root: &Path) -> anyhow::Result<Vec<String>> {
    let corpus = root.join("crates/fuzz/corpus");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&corpus).with_context(|| format!("reading {}", corpus.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The folder of what runs find: beside what cargo builds.
fn grown(root: &Path) -> anyhow::Result<PathBuf> {
    let metadata = crate::tidy::metadata(root)?;
    let target = metadata.get("target_directory").and_then(serde_json::Value::as_str);
    Ok(Path::new(target.context("cargo names no target folder")?).join("fuzz"))
}

struct Run<'a> {
    root: &'a Path,
    name: &'a str,
    grown: PathBuf,
}

impl Run<'_> {
    fn corpus(&self) -> PathBuf {
        self.root.join("crates/fuzz/corpus").join(self.name)
    }

    /// The fuzzer, which cargo builds when it has to.
    fn fuzzer(&self) -> anyhow::Result<Command> {
        let temporary = self.grown.with_extension("tmp");
        std::fs::create_dir_all(&self.grown)?;
        std::fs::create_dir_all(&temporary)?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .current_dir(self.root)
            .args([
                "run",
                "--quiet",
                "--locked",
                "--package",
                "pgferry-fuzz",
                "--features",
                "libfuzzer",
                "--",
            ])
            .env("RUSTC_WORKSPACE_WRAPPER", self.root.join("crates/fuzz/instrument"))
            .env("PGFERRY_FUZZ_TARGET", self.name)
            // Every stream looks for spool files that were left there: an empty folder is looked at sixty times faster than a full one.
            .env("TMPDIR", temporary)
            .arg(format!("-artifact_prefix={}/broken-", self.grown.display()))
            .args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"]);
        Ok(command)
    }

    fn search(&self, seconds: u32) -> anyhow::Result<bool> {
        let mut fuzzer = self.fuzzer()?;
        if seconds == 0 {
            fuzzer.arg("-runs=0");
        } else {
            fuzzer.arg(format!("-max_total_time={seconds}"));
        }
        // New inputs go to the first folder.
        fuzzer.arg(&self.grown).arg(self.corpus());
        Ok(fuzzer.status().context("cargo could not be started")?.success())
    }

    fn merge(&self) -> anyhow::Result<bool> {
        let (corpus, merged) = (self.corpus(), self.grown.with_extension("merged"));
        let _ = std::fs::remove_dir_all(&merged);
        std::fs::create_dir_all(&merged)?;
        let done = self.fuzzer()?.arg("-merge=1").args([&merged, &corpus, &self.grown]).status()?.success();
        if done {
            std::fs::remove_dir_all(&corpus)?;
            std::fs::create_dir_all(&corpus)?;
            for entry in std::fs::read_dir(&merged)? {
                let entry = entry?;
                let name = entry.file_name();
                let short = &name.to_string_lossy()[..12.min(name.len())];
                std::fs::copy(entry.path(), corpus.join(short))?;
            }
        }
        Ok(done)
    }
}
