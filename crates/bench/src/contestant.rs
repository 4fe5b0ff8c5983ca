//! Contestants that take turns: a program with its arguments, run as often as there are rounds.

use std::collections::HashMap;
use std::env::current_exe;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::measure::{Run, measure};
use crate::server::Scene;

#[derive(Clone, Debug)]
pub(crate) struct Contestant {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
}

impl Contestant {
    /// pgferry's engine over TCP, on all tables of that pattern.
    pub(crate) fn ferry(scene: &Scene, name: &str, include: &str, more: &[&str]) -> Result<Self> {
        Contestant::ferry_over(scene, false, name, include, more)
    }

    pub(crate) fn ferry_over(
        scene: &Scene,
        socket: bool,
        name: &str,
        include: &str,
        more: &[&str],
    ) -> Result<Self> {
        let mut arguments = vec!["ferry".to_owned()];
        arguments.extend(scene.place(socket));
        arguments.extend(["--include", include].map(str::to_owned));
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        Ok(Contestant { name: name.to_owned(), program: current_exe()?, arguments })
    }

    pub(crate) async fn run(&self, scene: &Scene) -> Result<Run> {
        measure(&self.program, &self.arguments, scene.postmaster()?).await
    }
}

/// Runs by contestant's name.
pub(crate) type Runs = HashMap<String, Vec<Run>>;

pub(crate) fn note(runs: &mut Runs, name: &str, run: Run) {
    runs.entry(name.to_owned()).or_default().push(run);
}

/// The figure's median, least and most.
pub(crate) fn figures(runs: &[Run], name: &str) -> Result<(f64, f64, f64)> {
    let mut all: Vec<f64> = runs.iter().filter_map(|run| run.figure(name)).collect();
    all.sort_by(f64::total_cmp);
    let last = all.len().checked_sub(1).with_context(|| format!("no run told its {name}"))?;
    Ok((all[last / 2], all[0], all[last]))
}

/// A folder for files of contestants, gone with this value.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Result<Self> {
        Ok(Folder(tempfile::Builder::new().prefix("pgferry-bench").tempdir()?))
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

/// Removes a DuckDB file and its log.
pub(crate) fn remove(file: &str) {
    for path in [file.to_owned(), format!("{file}.wal")] {
        let _ = std::fs::remove_file(Path::new(&path));
    }
}
