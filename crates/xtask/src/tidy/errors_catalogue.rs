//! Rule `error-page`: every error code has a page with problem, cause, cure and example, and every page has its code.
//!
//! A code is declared as `Code::new("dotted.code")` in product code; its page is `docs/errors/dotted.code.md`. Codes
//! are public and stable, so each is declared once.

use super::Finding;
use super::rust::line_of;
use super::tree::{File, Tree};

const FOLDER: &str = "docs/errors/";
const DECLARATION: &str = "Code::new(";
const HEADINGS: [&str; 4] = ["Problem", "Cause", "Cure", "Example"];

struct Declared<'a> {
    code: &'a str,
    path: &'a str,
    line: usize,
}

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut declared: Vec<Declared<'_>> = tree.files.iter().flat_map(declarations).collect();
    declared.sort_by_key(|d| (d.code, d.path, d.line));
    for pair in declared.windows(2).filter(|pair| pair[0].code == pair[1].code) {
        let what =
            format!("code `{}` is declared twice, first in {}:{}", pair[1].code, pair[0].path, pair[0].line);
        findings.push(Finding::new(
            pair[1].path,
            pair[1].line,
            "error-page",
            what,
            "use the first declaration",
        ));
    }
    declared.dedup_by_key(|d| d.code);
    for Declared { code, path, line } in &declared {
        if !well_formed(code) {
            let what = format!("code `{code}` is no dotted code");
            findings.push(Finding::new(
                path,
                *line,
                "error-page",
                what,
                "lower-case words with dots, as in `slot.lost`",
            ));
        } else if tree.file(&page(code)).is_none() {
            let what = format!("code `{code}` has no page");
            let cure = format!("write {} with the headings {}", page(code), HEADINGS.join(" and "));
            findings.push(Finding::new(path, *line, "error-page", what, cure));
        }
    }
    for file in &tree.files {
        page_findings(file, &declared, &mut findings);
    }
    findings
}

fn page_findings(file: &File, declared: &[Declared<'_>], findings: &mut Vec<Finding>) {
    let Some(code) = file.path.strip_prefix(FOLDER).and_then(|name| name.strip_suffix(".md")) else {
        return;
    };
    if matches!(code, "README" | "index") {
        return;
    }
    if !declared.iter().any(|d| d.code == code) {
        let what = format!("no code `{code}` is declared");
        findings.push(Finding::new(
            &file.path,
            1,
            "error-page",
            what,
            "remove the page, or declare the code",
        ));
    }
    for heading in HEADINGS.iter().filter(|heading| !has_heading(file, heading)) {
        let what = format!("no heading `{heading}`");
        findings.push(Finding::new(&file.path, 1, "error-page", what, format!("add `## {heading}`")));
    }
}

fn page(code: &str) -> String {
    format!("{FOLDER}{code}.md")
}

fn declarations(file: &File) -> Vec<Declared<'_>> {
    let (Some(rust), Some(text)) = (&file.rust, &file.text) else {
        return Vec::new();
    };
    let ours = file.path.starts_with("crates/") && file.crate_name() != Some("xtask");
    let calls = rust.code.match_indices(DECLARATION).filter(|_| ours);
    calls
        .filter_map(|(at, _)| {
            let start = at + DECLARATION.len();
            let open = start + rust.code[start..].find(|c: char| !c.is_whitespace())?;
            let code = text[open..].strip_prefix('"')?.split('"').next()?;
            let line = line_of(text, at);
            (!rust.in_test(line)).then_some(Declared { code, path: &file.path, line })
        })
        .collect()
}

fn well_formed(code: &str) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    code.contains('.') && code.split('.').all(|word| !word.is_empty() && word.bytes().all(letter))
}

fn has_heading(file: &File, heading: &str) -> bool {
    file.lines().any(|(_, line)| line.starts_with('#') && line.trim_start_matches('#').trim() == heading)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str =
        "//! x\npub const LOST: Code = Code::new(\n    \"slot.lost\",\n);\n// Code::new(\"no.code\")\n";
    const PAGE: &str = "# slot.lost\n\n## Problem\n\nx\n\n## Cause\n\nx\n\n## Cure\n\nx\n\n## Example\n\nx\n";

    fn whats(files: &[(&str, &str)]) -> Vec<String> {
        check(&Tree::fixture(files)).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn passes_a_code_with_its_page() {
        let test = "//! x\n#[cfg(test)]\nmod tests {\n    const A: Code = Code::new(\"only.here\");\n}\n";
        let files = [
            ("crates/a/src/e.rs", SOURCE),
            ("docs/errors/slot.lost.md", PAGE),
            ("docs/errors/README.md", ""),
            ("crates/a/src/b.rs", test),
        ];
        assert_eq!(whats(&files), [] as [String; 0]);
    }

    #[test]
    fn finds_missing_and_orphaned_pages() {
        let found = whats(&[("crates/a/src/e.rs", SOURCE), ("docs/errors/slot.gone.md", PAGE)]);
        assert_eq!(found, ["code `slot.lost` has no page", "no code `slot.gone` is declared"]);
    }

    #[test]
    fn finds_missing_headings() {
        let found = whats(&[
            ("crates/a/src/e.rs", SOURCE),
            ("docs/errors/slot.lost.md", "# x\n\n## Problem\n\nCause\n\n### Cure\n\n## Example\n"),
        ]);
        assert_eq!(found, ["no heading `Cause`"]);
    }

    #[test]
    fn finds_twins_and_bad_shapes() {
        let bad = "//! x\nconst A: Code = Code::new(\"Slot\");\n";
        let files = [
            ("crates/a/src/e.rs", SOURCE),
            ("crates/b/src/e.rs", SOURCE),
            ("crates/c/src/e.rs", bad),
            ("docs/errors/slot.lost.md", PAGE),
        ];
        assert_eq!(
            whats(&files),
            [
                "code `slot.lost` is declared twice, first in crates/a/src/e.rs:2",
                "code `Slot` is no dotted code"
            ]
        );
    }
}
