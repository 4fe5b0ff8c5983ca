//! Owns the exceptions to the word rules: `crates/xtask/tidy-allow.toml`.
//!
//! An exception names a word and where it may stand: a path prefix, a piece of the line, or both. It must give a
//! reason, because an exception nobody can explain is a rule nobody keeps.

use serde::Deserialize;

use super::Finding;
use super::tree::Tree;

const PATH: &str = "crates/xtask/tidy-allow.toml";

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct AllowList {
    #[serde(default)]
    allow: Vec<Exception>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    /// The word in lower case, or `*` for every word.
    word: String,
    /// Paths that start with this.
    path: Option<String>,
    /// Lines that hold one of these, in any case.
    #[serde(default)]
    near: Vec<String>,
    reason: String,
}

impl AllowList {
    /// The list in the tree; a broken list is a finding and counts as empty.
    pub(crate) fn read(tree: &Tree, findings: &mut Vec<Finding>) -> AllowList {
        let Some(text) = tree.file(PATH).and_then(|file| file.text.as_deref()) else {
            return AllowList::default();
        };
        let list: AllowList = match toml::from_str(text) {
            Ok(list) => list,
            Err(error) => {
                findings.push(Finding::new(
                    PATH,
                    1,
                    "allow",
                    error.message(),
                    "[[allow]] with word, path or near, reason",
                ));
                return AllowList::default();
            }
        };
        for exception in &list.allow {
            if exception.reason.trim().is_empty() || (exception.path.is_none() && exception.near.is_empty()) {
                let what = format!("the exception for `{}` has no reason or no place", exception.word);
                findings.push(Finding::new(PATH, 1, "allow", what, "give a reason, and a path or near"));
            }
        }
        list
    }

    /// Whether `word` (lower case) may stand in this line of this file.
    pub(crate) fn permits(&self, word: &str, path: &str, line: &str) -> bool {
        let line = line.to_lowercase();
        self.allow.iter().any(|exception| {
            (exception.word == word || exception.word == "*")
                && exception.path.as_ref().is_none_or(|prefix| path.starts_with(prefix.as_str()))
                && (exception.near.is_empty()
                    || exception.near.iter().any(|near| line.contains(&near.to_lowercase())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_only_the_named_place() {
        let text = "[[allow]]\nword = \"a\"\npath = \"docs/\"\nnear = [\"CPU\"]\nreason = \"r\"\n";
        let mut findings = Vec::new();
        let list = AllowList::read(&Tree::fixture(&[(PATH, text)]), &mut findings);
        assert!(findings.is_empty());
        assert!(list.permits("a", "docs/x.md", "four cpu a"));
        assert!(!list.permits("a", "src/x.rs", "four cpu a"));
        assert!(!list.permits("a", "docs/x.md", "four a"));
        assert!(!list.permits("b", "docs/x.md", "four cpu b"));
    }

    #[test]
    fn wants_a_reason_and_a_place() {
        let text = "[[allow]]\nword = \"a\"\nreason = \"\"\n\n[[allow]]\nword = \"b\"\nreason = \"r\"\n";
        let mut findings = Vec::new();
        AllowList::read(&Tree::fixture(&[(PATH, text)]), &mut findings);
        assert_eq!(findings.len(), 2);
        AllowList::read(&Tree::fixture(&[(PATH, "[[allow]]\nword = 1\n")]), &mut findings);
        assert_eq!(findings.len(), 3);
    }
}
