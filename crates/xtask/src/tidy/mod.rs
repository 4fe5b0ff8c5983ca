//! Owns the rules of this repository that neither compiler nor clippy checks, and the way findings are printed.
//!
//! Every rule is a module with one function from the tree (and what else it needs) to findings. Rules read
//! only what `Tree` holds, so each is tested on a few lines of text instead of on files.

mod absence;
mod allow;
mod errors_catalogue;
mod floors;
mod paths;
mod rust;
mod sizes;
mod text;
mod tree;
mod words;

pub(crate) use floors::metadata;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use allow::AllowList;
use tree::Tree;

/// One breach of a rule, with its cure.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// Counted from 1.
    line: usize,
    rule: &'static str,
    what: String,
    instead: String,
}

impl Finding {
    fn new(
        path: &str,
        line: usize,
        rule: &'static str,
        what: impl Into<String>,
        instead: impl Into<String>,
    ) -> Self {
        Finding { path: path.to_owned(), line, rule, what: what.into(), instead: instead.into() }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}: {}; instead: {}", self.path, self.line, self.rule, self.what, self.instead)
    }
}

/// Checks the repository at `root`, prints the findings, and exits with 1 if there are any.
pub(crate) fn run(root: &Path) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let tree = Tree::read(root)?;
    let metadata = metadata(root)?;
    let mut findings = tree.unreadable();
    let allow = AllowList::read(&tree, &mut findings);
    findings.extend(floors::check(&tree, &metadata));
    findings.extend(words::check(&tree, &allow));
    findings.extend(sizes::check(&tree));
    findings.extend(paths::check(&tree));
    findings.extend(errors_catalogue::check(&tree));
    findings.extend(absence::check(&tree));
    findings.extend(text::check(&tree, &allow));
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    println!(
        "tidy: {} findings in {} files, {:.1} s",
        findings.len(),
        tree.files.len(),
        started.elapsed().as_secs_f32()
    );
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
