//! Rule `absence`: what must not be in a place, because the design depends on its not being there.
//!
//! - `pipeline` names no database and holds no SQL: the engine knows sources and targets by their contracts only
//! - `model` does no I/O
//! - only `cli` prints (and build scripts, `xtask`, `bench`, `fuzz`, `trial` and `testkit`, which developers see and users do not)
//! - product code has no `unwrap()` and `expect(…)`: every failure has a code, a cause and a cure

use super::Finding;
use super::rust::{Rust, has_word, line_of};
use super::tree::{File, Tree};

/// In capitals, as SQL is written here: `update` and `from` are also English.
const SQL: &[&str] = &[
    "SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "CREATE", "ALTER", "DROP", "TRUNCATE", "COPY", "BEGIN",
    "COMMIT", "ROLLBACK", "WHERE", "FROM", "JOIN",
];
const DATABASES: &[&str] = &[
    "postgres",
    "timescale",
    "duckdb",
    "kafka",
    "databend",
    "snowflake",
    "clickhouse",
    "mysql",
    "mariadb",
    "sqlite",
    "bigquery",
    "redshift",
];
const INPUT_OUTPUT: &[&str] = &["std::fs", "std::net", "std::process", "tokio"];
const PRINTING: &[&str] = &["println", "eprintln", "print", "eprint"];
const UNWRAPPING: &[&str] = &["unwrap", "expect", "unwrap_err", "expect_err"];

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        let (Some(rust), Some(krate)) = (&file.rust, file.crate_name()) else {
            continue;
        };
        match krate {
            "pipeline" => engine(file, rust, &mut findings),
            "model" => no_input_output(file, rust, &mut findings),
            _ => {}
        }
        if !may_print(&file.path, krate) {
            calls(
                file,
                rust,
                PRINTING,
                "!",
                "prints",
                "log with `tracing`, or return it: only cli prints",
                &mut findings,
            );
        }
        if !matches!(krate, "xtask" | "testkit" | "bench" | "fuzz" | "trial")
            && !file.path.ends_with("/build.rs")
        {
            let cure = "return an error with a code, or make the state impossible by its type";
            calls(file, rust, UNWRAPPING, "(", "may panic", cure, &mut findings);
        }
    }
    findings
}

fn engine(file: &File, rust: &Rust, findings: &mut Vec<Finding>) {
    for (index, (code, strings)) in rust.code.lines().zip(rust.strings.lines()).enumerate() {
        let mut found = |what: String, instead: &str| {
            findings.push(Finding::new(&file.path, index + 1, "absence", what, instead));
        };
        if let Some(keyword) = SQL.iter().find(|keyword| has_word(strings, keyword)) {
            found(format!("the engine holds SQL (`{keyword}`)"), "a method of the Source or Target contract");
        }
        let line = format!("{code}\n{strings}").to_lowercase();
        if let Some(database) = DATABASES.iter().find(|database| line.contains(**database)) {
            found(
                format!("the engine names a database (`{database}`)"),
                "a property that the contract states",
            );
        }
    }
}

fn no_input_output(file: &File, rust: &Rust, findings: &mut Vec<Finding>) {
    let cure = "keep the noun here and move the I/O to the crate that does it";
    let mut found = |line: usize, name: &str| {
        findings.push(Finding::new(
            &file.path,
            line,
            "absence",
            format!("the model reaches for `{name}`"),
            cure,
        ));
    };
    for (line, path) in &rust.imports {
        if let Some(name) =
            INPUT_OUTPUT.iter().find(|name| path == *name || path.starts_with(&format!("{name}::")))
        {
            found(*line, name);
        }
    }
    let imported: Vec<usize> = rust.imports.iter().map(|(line, _)| *line).collect();
    for (index, line) in rust.code.lines().enumerate().filter(|(index, _)| !imported.contains(&(index + 1))) {
        if let Some(name) = INPUT_OUTPUT.iter().find(|name| has_word(line, name)) {
            found(index + 1, name);
        }
    }
}

fn may_print(path: &str, krate: &str) -> bool {
    matches!(krate, "cli" | "xtask" | "testkit" | "bench" | "fuzz" | "trial") || path.ends_with("/build.rs")
}

/// Finds `name` followed by `then` outside tests; for `(` only method calls, `.name(`.
fn calls(
    file: &File,
    rust: &Rust,
    names: &[&str],
    then: &str,
    what: &str,
    instead: &str,
    findings: &mut Vec<Finding>,
) {
    for name in names {
        let call = if then == "(" { format!(".{name}(") } else { format!("{name}{then}") };
        for (at, _) in rust.code.match_indices(&call) {
            let before = rust.code[..at].chars().next_back();
            let longer_name = then == "!" && before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
            let line = line_of(&rust.code, at);
            if !longer_name && !rust.in_test(line) {
                findings.push(Finding::new(&file.path, line, "absence", format!("`{call}` {what}"), instead));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(path: &str, text: &str) -> Vec<String> {
        check(&Tree::fixture(&[(path, text)])).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn the_engine_knows_no_database() {
        let path = "crates/pipeline/src/run.rs";
        let clean = "//! Unlike Kafka, SELECT …\nfn update_from() { log(\"update from here\"); } // DuckDB\n";
        assert_eq!(whats(path, clean), [] as [String; 0]);
        assert_eq!(whats(path, "fn a() { query(\"SELECT 1\"); }"), ["the engine holds SQL (`SELECT`)"]);
        assert_eq!(whats(path, "fn is_duckdb() {}"), ["the engine names a database (`duckdb`)"]);
        assert_eq!(whats(path, "fn a() { b(\"to Kafka\"); }"), ["the engine names a database (`kafka`)"]);
        assert_eq!(whats("crates/task/src/registry.rs", "fn duckdb() {}"), [] as [String; 0]);
    }

    #[test]
    fn the_model_does_no_input_output() {
        let path = "crates/model/src/table.rs";
        assert_eq!(whats(path, "//! tokio\nuse std::fmt;\nuse std::io;\n"), [] as [String; 0]);
        for text in
            ["use std::{fmt, fs::File};", "fn a() { std::net::TcpStream::connect(b); }", "use tokio::spawn;"]
        {
            assert_eq!(whats(path, text).len(), 1, "{text}");
        }
    }

    #[test]
    fn only_cli_prints() {
        let text = "fn a() { println!(\"x\"); eprint!(\"x\"); sprint!(); }";
        assert_eq!(whats("crates/task/src/run.rs", text).len(), 2);
        for path in [
            "crates/cli/src/main.rs",
            "crates/testkit/src/run_folder.rs",
            "crates/cli/build.rs",
            "crates/a/tests/b.rs",
        ] {
            assert_eq!(whats(path, text), [] as [String; 0], "{path}");
        }
        assert_eq!(whats("crates/task/src/run.rs", "// println!(\"x\")\n"), [] as [String; 0]);
    }

    #[test]
    fn product_code_does_not_unwrap() {
        let text =
            "fn a() { b.unwrap(); c\n  .expect(\"d\"); e.unwrap_or(f); }\n#[test]\nfn g() { b.unwrap(); }\n";
        assert_eq!(whats("crates/cli/src/a.rs", text), ["`.unwrap(` may panic", "`.expect(` may panic"]);
        assert_eq!(whats("crates/testkit/src/a.rs", text), [] as [String; 0]);
    }
}
