//! Rule `floor`: crates depend only downwards, on the edges of one list.
//!
//! Development dependencies follow the same list, but may also name the test kit, from anywhere above `model`, and,
//! from the program's own crate, the trials of the program.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use super::Finding;
use super::tree::Tree;

/// Crate, and what it may depend on.
const EDGES: &[(&str, &[&str])] = &[
    ("pgferry-model", &[]),
    ("pgferry-pipeline", &["pgferry-model"]),
    ("pgferry-postgres", &["pgferry-model"]),
    ("pgferry-values", &["pgferry-model"]),
    ("pgferry-columnar", &["pgferry-model", "pgferry-values"]),
    ("pgferry-source-postgres", &["pgferry-model", "pgferry-pipeline", "pgferry-postgres"]),
    ("pgferry-target-databend", &["pgferry-model", "pgferry-pipeline", "pgferry-columnar", "pgferry-values"]),
    ("pgferry-target-duckdb", &["pgferry-model", "pgferry-pipeline", "pgferry-columnar", "pgferry-values"]),
    ("pgferry-target-kafka", &["pgferry-model", "pgferry-pipeline", "pgferry-values"]),
    (
        "pgferry-task",
        &[
            "pgferry-model",
            "pgferry-pipeline",
            "pgferry-postgres",
            "pgferry-columnar",
            "pgferry-source-postgres",
            "pgferry-target-databend",
            "pgferry-target-duckdb",
            "pgferry-target-kafka",
        ],
    ),
    ("pgferry-cli", &["pgferry-task", "pgferry-pipeline", "pgferry-model"]),
    (
        TESTKIT,
        &[
            "pgferry-model",
            "pgferry-pipeline",
            "pgferry-postgres",
            "pgferry-columnar",
            "pgferry-source-postgres",
            "pgferry-target-duckdb",
            "pgferry-target-kafka",
            "pgferry-task",
        ],
    ),
    (
        "pgferry-bench",
        &[
            "pgferry-model",
            "pgferry-pipeline",
            "pgferry-postgres",
            "pgferry-columnar",
            "pgferry-source-postgres",
            "pgferry-target-databend",
            "pgferry-target-duckdb",
            "pgferry-target-kafka",
            TESTKIT,
        ],
    ),
    (
        "pgferry-fuzz",
        &[
            "pgferry-model",
            "pgferry-pipeline",
            "pgferry-postgres",
            "pgferry-columnar",
            "pgferry-source-postgres",
            "pgferry-task",
            TESTKIT,
        ],
    ),
    (
        TRIAL,
        &[
            "pgferry-model",
            "pgferry-pipeline",
            "pgferry-postgres",
            "pgferry-source-postgres",
            "pgferry-target-duckdb",
            "pgferry-target-kafka",
            "pgferry-task",
            TESTKIT,
        ],
    ),
    ("xtask", &["pgferry-model", "pgferry-pipeline", "pgferry-postgres", "pgferry-task", TESTKIT]),
];

const TESTKIT: &str = "pgferry-testkit";
const TRIAL: &str = "pgferry-trial";
const LOWEST: &str = "pgferry-model";
const HIGHEST: &str = "pgferry-cli";

/// What `cargo metadata --no-deps` says about the workspace at `root`.
pub(crate) fn metadata(root: &Path) -> anyhow::Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .context("cargo could not be started")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

pub(crate) fn check(tree: &Tree, metadata: &Value) -> Vec<Finding> {
    let root = text(metadata, "workspace_root");
    let mut findings = Vec::new();
    let members: Vec<&str> = list(metadata, "packages").map(|package| text(package, "name")).collect();
    for package in list(metadata, "packages") {
        let name = text(package, "name");
        let manifest = text(package, "manifest_path");
        let manifest = manifest.strip_prefix(root).unwrap_or(manifest).trim_start_matches('/');
        let Some((_, allowed)) = EDGES.iter().find(|(from, _)| *from == name) else {
            let cure = "give it a floor in crates/xtask/src/tidy/floors.rs, with a decision record";
            findings.push(Finding::new(
                manifest,
                1,
                "floor",
                format!("crate {name} stands on no floor"),
                cure,
            ));
            continue;
        };
        for dependency in list(package, "dependencies") {
            let to = text(dependency, "name");
            let kind = dependency.get("kind").and_then(Value::as_str).unwrap_or("normal");
            let for_tests =
                kind == "dev" && ((to == TESTKIT && name != LOWEST) || (to == TRIAL && name == HIGHEST));
            if !members.contains(&to) || allowed.contains(&to) || for_tests {
                continue;
            }
            findings.push(Finding::new(
                manifest,
                line_naming(tree, manifest, to),
                "floor",
                format!("{name} -> {to} ({kind}) is no allowed edge"),
                cure(allowed),
            ));
        }
    }
    findings
}

fn cure(allowed: &[&str]) -> String {
    let allowed = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
    format!(
        "depend downwards only (allowed: {allowed}); move the shared type down, or pass it in as a parameter"
    )
}

fn line_naming(tree: &Tree, manifest: &str, dependency: &str) -> usize {
    let names = |line: &str| {
        line.strip_prefix(dependency).is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
            || (line.starts_with('[') && line.trim_end_matches(']').ends_with(&format!(".{dependency}")))
    };
    tree.file(manifest)
        .and_then(|file| file.lines().find(|(_, line)| names(line)))
        .map_or(1, |(line, _)| line)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workspace(edges: &[(&str, &str, Option<&str>)]) -> Value {
        let mut names: Vec<&str> = edges.iter().flat_map(|(from, to, _)| [*from, *to]).collect();
        names.sort_unstable();
        names.dedup();
        let package = |name: &&str| {
            let dependencies: Vec<Value> = edges
                .iter()
                .filter(|(from, _, _)| from == name)
                .map(|(_, to, kind)| json!({ "name": to, "kind": kind }))
                .collect();
            json!({ "name": name, "manifest_path": format!("/r/crates/{name}/Cargo.toml"), "dependencies": dependencies })
        };
        json!({ "workspace_root": "/r", "packages": names.iter().map(package).collect::<Vec<_>>() })
    }

    #[test]
    fn passes_downward_edges_and_the_test_kit() {
        let metadata = workspace(&[
            ("pgferry-cli", "pgferry-task", None),
            ("pgferry-pipeline", "pgferry-model", None),
            ("pgferry-postgres", "pgferry-testkit", Some("dev")),
        ]);
        assert_eq!(check(&Tree::fixture(&[]), &metadata), []);
    }

    #[test]
    fn names_a_forbidden_edge_and_its_line() {
        let manifest = "[dependencies]\npgferry-model.workspace = true\npgferry-postgres.workspace = true\n";
        let tree = Tree::fixture(&[("crates/pgferry-pipeline/Cargo.toml", manifest)]);
        let findings = check(&tree, &workspace(&[("pgferry-pipeline", "pgferry-postgres", None)]));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].line, 3);
        assert!(findings[0].what.contains("pgferry-pipeline -> pgferry-postgres"), "{}", findings[0]);
    }

    #[test]
    fn refuses_the_test_kit_below_and_outside_tests() {
        for (from, kind) in
            [("pgferry-model", Some("dev")), ("pgferry-task", None), ("pgferry-task", Some("build"))]
        {
            assert_eq!(
                check(&Tree::fixture(&[]), &workspace(&[(from, TESTKIT, kind)])).len(),
                1,
                "{from} {kind:?}"
            );
        }
    }

    #[test]
    fn refuses_a_crate_without_a_floor() {
        let findings = check(&Tree::fixture(&[]), &workspace(&[("pgferry-new", "pgferry-model", None)]));
        assert!(findings[0].what.contains("pgferry-new"));
    }
}
