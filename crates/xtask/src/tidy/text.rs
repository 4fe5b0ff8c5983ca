//! Rule `text`: what every text file has, and has not.
//!
//! Nothing is left for later in the text: what is open is a known gap in the docs. A Rust file says first what it owns.

use super::Finding;
use super::allow::AllowList;
use super::rust::has_word;
use super::tree::{File, Tree};

const LATER: &[&str] = &["TODO", "FIXME", "XXX", "HACK"];

pub(crate) fn check(tree: &Tree, allow: &AllowList) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| file.written_by_us()) {
        let Some(text) = &file.text else { continue };
        for (number, line) in file.lines() {
            let mut found = |what: &str, instead: &str| {
                findings.push(Finding::new(&file.path, number, "text", what, instead));
            };
            let later = LATER.iter().find(|word| has_word(line, word));
            if let Some(word) = later.filter(|word| !allow.permits(&word.to_lowercase(), &file.path, line)) {
                found(&format!("`{word}`"), "do it now, or describe the limit in the docs");
            }
            if is_formatted(file) && line.contains('\t') {
                found("a tab", "spaces, or `\\t` in a string");
            }
            if is_formatted(file) && line.trim_end() != line.trim_end_matches('\r') {
                found("white space at the end of the line", "remove it");
            }
        }
        if text.contains("\r\n") {
            findings.push(Finding::new(&file.path, 1, "text", "Windows line ends", "plain line feeds"));
        }
        if !text.is_empty() && !text.ends_with('\n') {
            let line = file.lines().count();
            findings.push(Finding::new(
                &file.path,
                line,
                "text",
                "no line feed at the end",
                "end the last line",
            ));
        }
        if wants_header(file) && !text.trim_start().starts_with("//!") {
            let cure = "begin with `//!` and one sentence on what the file owns";
            findings.push(Finding::new(&file.path, 1, "text", "no header", cure));
        }
    }
    findings
}

fn is_formatted(file: &File) -> bool {
    [".rs", ".toml", ".md"].iter().any(|extension| file.path.ends_with(extension))
}

fn wants_header(file: &File) -> bool {
    file.path.ends_with(".rs") && file.crate_name().is_some() && file.path.split('/').nth(2) == Some("src")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(path: &str, text: &str) -> Vec<String> {
        let tree = Tree::fixture(&[(path, text)]);
        check(&tree, &AllowList::default()).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn passes_a_proper_file() {
        assert_eq!(
            whats("crates/a/src/b.rs", "//! Owns b.\n\nfn todo_list() {} // mktemp XXXXXX\n"),
            [] as [String; 0]
        );
        assert_eq!(whats("Makefile", "all:\n\techo\n"), [] as [String; 0]);
        assert_eq!(whats("crates/a/tests/b.rs", "fn a() {}\n"), [] as [String; 0]);
        assert_eq!(whats("a.md", ""), [] as [String; 0]);
    }

    #[test]
    fn finds_each_breach() {
        assert_eq!(whats("a.sh", "# TODO: x\n"), ["`TODO`"]);
        assert_eq!(whats("a.toml", "a =\t1\n"), ["a tab"]);
        assert_eq!(whats("a.md", "a  \n"), ["white space at the end of the line"]);
        assert_eq!(whats("a.sh", "a\r\n"), ["Windows line ends"]);
        assert_eq!(whats("a.sql", "a"), ["no line feed at the end"]);
        assert_eq!(whats("crates/a/src/b.rs", "fn a() {}\n"), ["no header"]);
    }
}
