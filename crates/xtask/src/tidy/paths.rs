//! Rule `path`: every path that ARCHITECTURE.md names exists, so the map cannot age unnoticed.
//!
//! A path is what stands in backticks, holds a `/` and no space. `{a,b}` is expanded, `*` must match something; a
//! path may start at the root, in `crates/`, or be `crate/file.rs` for `crates/crate/src/file.rs`. Left out are
//! absolute paths, addresses, `<placeholders>` and the folders that git ignores.

use super::Finding;
use super::tree::Tree;

const MAP: &str = "ARCHITECTURE.md";

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let Some(map) = tree.file(MAP) else {
        return vec![Finding::new(
            MAP,
            1,
            "path",
            "the file is missing",
            "write it: the map of the repository",
        )];
    };
    let mut findings = Vec::new();
    let mut in_block = false;
    for (number, line) in map.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        }
        if in_block {
            continue;
        }
        // Between the backticks: every second piece.
        for name in line.split('`').skip(1).step_by(2).filter(|name| looks_like_path(name)) {
            for path in expand(name) {
                if !exists(tree, &path) {
                    let what = format!("`{path}` does not exist");
                    findings.push(Finding::new(MAP, number, "path", what, "name the file that is there now"));
                }
            }
        }
    }
    findings
}

fn looks_like_path(name: &str) -> bool {
    let ignored = ["/", "target/", ".native/", "~", "-"].iter().any(|prefix| name.starts_with(prefix));
    name.contains('/')
        && !ignored
        && !name.contains("://")
        && !name.contains([' ', '<', '>', '…', '$', '(', '"', ':'])
}

/// `a/{b,c}.rs` is `a/b.rs` and `a/c.rs`; the innermost braces first.
fn expand(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.rsplit_once('{') else {
        return vec![name.to_owned()];
    };
    let Some((choices, after)) = rest.split_once('}') else {
        return vec![name.to_owned()];
    };
    choices.split(',').flat_map(|choice| expand(&format!("{before}{choice}{after}"))).collect()
}

fn exists(tree: &Tree, name: &str) -> bool {
    let name = name.split('#').next().unwrap_or_default().trim_end_matches('/');
    let in_crate = name.split_once('/').map(|(first, rest)| format!("crates/{first}/src/{rest}"));
    let places = [Some(name.to_owned()), Some(format!("crates/{name}")), in_crate];
    places.iter().flatten().any(|place| {
        let folder = format!("{place}/");
        tree.files.iter().any(|file| matches(&file.path, place) || file.path.starts_with(&folder))
    })
}

/// Whether `path`, or a folder it is in, fits `pattern`, where `*` stands for anything but `/`.
fn matches(path: &str, pattern: &str) -> bool {
    let fits = |part: &str, pattern: &str| match pattern.split_once('*') {
        None => part == pattern,
        Some((before, after)) => {
            part.len() >= before.len() + after.len() && part.starts_with(before) && part.ends_with(after)
        }
    };
    let (path, pattern): (Vec<&str>, Vec<&str>) = (path.split('/').collect(), pattern.split('/').collect());
    let deep_enough = path.len() == pattern.len()
        || (path.len() > pattern.len() && pattern.iter().any(|p| p.contains('*')));
    deep_enough && path.iter().zip(&pattern).all(|(part, pattern)| fits(part, pattern))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(map: &str) -> Vec<Finding> {
        check(&Tree::fixture(&[
            (MAP, map),
            ("crates/model/src/table.rs", ""),
            ("docs/errors/a.b.md", ""),
            ("Makefile", ""),
        ]))
    }

    #[test]
    fn passes_what_exists() {
        for name in [
            "crates/model",
            "model/table.rs",
            "crates/{model,model/src}/",
            "docs/errors/*.md",
            "crates/*/src",
        ] {
            assert_eq!(findings(&format!("See `{name}`.")), [], "{name}");
        }
    }

    #[test]
    fn passes_what_is_no_path() {
        for name in ["Makefile2", "a / b", "/metrics", "http://x/y", "crates/<name>/src", "target/debug"] {
            assert_eq!(findings(&format!("See `{name}`.")), [], "{name}");
        }
        assert_eq!(findings("```text\n`crates/gone`\n```"), []);
    }

    #[test]
    fn finds_what_is_gone() {
        for name in ["crates/gone", "model/gone.rs", "docs/errors/*.txt", "crates/model/src/{table,gone}.rs"]
        {
            let found = findings(&format!("x\nSee `{name}`."));
            assert_eq!(found.len(), 1, "{name}");
            assert_eq!(found[0].line, 2);
        }
    }

    #[test]
    fn the_map_itself_must_exist() {
        assert_eq!(check(&Tree::fixture(&[])).len(), 1);
    }
}
