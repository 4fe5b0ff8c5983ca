//! Owns the repository as the rules see it: every file that git tracks or would track, with its text.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::Finding;
use super::rust::Rust;

/// Bytes that are there as they are, though some are also text.
const INPUTS: &str = "crates/fuzz/corpus/";

/// A file of the repository.
pub(crate) struct File {
    /// From the repository's root, with `/`.
    pub(crate) path: String,
    /// In bytes.
    pub(crate) size: u64,
    /// `None` if it is not UTF-8, or an input of the fuzzer.
    pub(crate) text: Option<String>,
    /// Only for Rust files.
    pub(crate) rust: Option<Rust>,
}

impl File {
    fn new(path: &str, size: u64, text: Option<String>) -> File {
        let rust = text.as_deref().filter(|_| path.ends_with(".rs")).map(|text| Rust::read(path, text));
        File { path: path.to_owned(), size, text, rust }
    }

    /// The lines with their numbers, counted from 1.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.as_deref().unwrap_or_default().lines().enumerate().map(|(i, line)| (i + 1, line))
    }

    /// Whether people write it: not a lock file, not the licence.
    pub(crate) fn written_by_us(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        !matches!(name, "Cargo.lock" | "package-lock.json" | "LICENSE")
    }

    /// The crate's folder name, for a file under `crates/`.
    pub(crate) fn crate_name(&self) -> Option<&str> {
        self.path.strip_prefix("crates/")?.split('/').next()
    }
}

/// All files, sorted by path.
pub(crate) struct Tree {
    pub(crate) files: Vec<File>,
}

impl Tree {
    /// Reads what `git ls-files` lists: tracked files and new ones that are not ignored.
    pub(crate) fn read(root: &Path) -> anyhow::Result<Tree> {
        let listing = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
            .current_dir(root)
            .output()
            .context("git could not be started")?;
        if !listing.status.success() {
            bail!(
                "git ls-files failed in {}: {}",
                root.display(),
                String::from_utf8_lossy(&listing.stderr).trim()
            );
        }
        let mut names: Vec<&str> =
            std::str::from_utf8(&listing.stdout)?.split('\0').filter(|name| !name.is_empty()).collect();
        names.sort_unstable();
        names.dedup();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let path = root.join(name);
            // Listed but absent: deleted and not yet committed. A symbolic link has no text of its own.
            let Ok(metadata) = std::fs::symlink_metadata(&path) else {
                continue;
            };
            if !metadata.is_file() {
                continue;
            }
            let bytes = std::fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
            let text = if name.starts_with(INPUTS) { None } else { String::from_utf8(bytes).ok() };
            files.push(File::new(name, metadata.len(), text));
        }
        Ok(Tree { files })
    }

    pub(crate) fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Rust files that do not parse: no other rule can judge them.
    pub(crate) fn unreadable(&self) -> Vec<Finding> {
        let failed = |file: &File| {
            let error = file.rust.as_ref()?.error.as_ref()?;
            Some(Finding::new(&file.path, error.0, "parse", &error.1, "Rust that compiles"))
        };
        self.files.iter().filter_map(failed).collect()
    }

    #[cfg(test)]
    pub(crate) fn fixture(files: &[(&str, &str)]) -> Tree {
        let file = |(path, text): &(&str, &str)| File::new(path, text.len() as u64, Some((*text).to_owned()));
        Tree { files: files.iter().map(file).collect() }
    }
}
