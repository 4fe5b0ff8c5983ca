//! Rule `size`: what a person can hold in their head, and no vendored bulk.
//!
//! 800 lines per file, 70 per function (from `fn` to its closing brace), 512 KiB per file in git. A function that is
//! one long list may say so: `// tidy: waive function-length: the reason`, right above it.

use super::Finding;
use super::rust::Function;
use super::tree::{File, Tree};

const FILE_LINES: usize = 800;
const FUNCTION_LINES: usize = 70;
const FILE_BYTES: u64 = 512 * 1024;
const WAIVER: &str = "// tidy: waive function-length:";

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        if file.size > FILE_BYTES {
            let what = format!("{} KiB, more than {}", file.size / 1024, FILE_BYTES / 1024);
            findings.push(Finding::new(
                &file.path,
                1,
                "size",
                what,
                "let scripts/setup fetch it, or make it when needed",
            ));
        }
        let lines = file.lines().count();
        // A JSON Schema is made from code, which has the limit itself.
        let made = file.path.ends_with(".schema.json");
        if lines > FILE_LINES && file.written_by_us() && !made {
            let what = format!("{lines} lines, more than {FILE_LINES}");
            findings.push(Finding::new(
                &file.path,
                FILE_LINES + 1,
                "size",
                what,
                "split it by phase or by noun",
            ));
        }
        if let Some(rust) = &file.rust {
            findings.extend(rust.functions.iter().filter_map(|function| too_long(file, function)));
        }
    }
    findings
}

fn too_long(file: &File, function: &Function) -> Option<Finding> {
    let lines = function.last_line - function.first_line + 1;
    if lines <= FUNCTION_LINES || waived(file, function.first_line) {
        return None;
    }
    let what = format!("fn {} has {lines} lines, more than {FUNCTION_LINES}", function.name);
    Some(Finding::new(
        &file.path,
        function.first_line,
        "size",
        what,
        format!("cut it by phase, or `{WAIVER} reason`"),
    ))
}

/// Whether the comments and attributes right above the function hold a waiver with a reason.
fn waived(file: &File, first_line: usize) -> bool {
    let lines: Vec<&str> = file.lines().take(first_line - 1).map(|(_, line)| line.trim()).collect();
    let above = lines.iter().rev().take_while(|line| line.starts_with("//") || line.starts_with("#["));
    above.filter_map(|line| line.strip_prefix(WAIVER)).any(|reason| !reason.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(above: &str, statements: usize) -> String {
        format!(
            "struct S;\n\nimpl S {{\n{above}\n    fn f() {{\n{}    }}\n}}\n",
            "        g();\n".repeat(statements)
        )
    }

    fn findings(text: &str) -> Vec<Finding> {
        check(&Tree::fixture(&[("crates/x/src/a.rs", text)]))
    }

    #[test]
    fn measures_functions() {
        assert_eq!(findings(&function("", 68)), []);
        let found = findings(&function("", 69));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line, found[0].what.as_str()), (5, "fn f has 71 lines, more than 70"));
    }

    #[test]
    fn a_waiver_needs_a_reason() {
        assert_eq!(
            findings(&function("    // tidy: waive function-length: one row per type\n    /// Doc.", 80)),
            []
        );
        assert_eq!(findings(&function("    // tidy: waive function-length:", 80)).len(), 1);
    }

    #[test]
    fn measures_files() {
        assert_eq!(findings(&"//! x\n".repeat(800)), []);
        assert_eq!(findings(&"//! x\n".repeat(801)).len(), 1);
        assert_eq!(check(&Tree::fixture(&[("Cargo.lock", &"x\n".repeat(801))])), []);
        assert_eq!(check(&Tree::fixture(&[("a.js", &"x".repeat(512 * 1024))])), []);
        assert_eq!(check(&Tree::fixture(&[("a.js", &"x".repeat(512 * 1024 + 1))])).len(), 1);
    }
}
