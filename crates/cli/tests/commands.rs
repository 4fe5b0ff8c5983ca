//! What the program says and how it ends, for everything that needs no server.
#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

fn pgferry(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("pgferry").unwrap();
    command.current_dir(folder).env_remove("PGFERRY_LOG").env("COLUMNS", "100").args(arguments);
    command.output().unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

const BAD: &str = "version = 1\n[connections.a]\nkind = \"postgres\"\nuser = \"me\"\npassword = \"hunter2\"\nprot = 1\n\
                   [tasks.t]\nsource = \"a\"\ntarget = \"b\"\nsync_intervall = \"3s\"\ninclude = [\"public.*\"]\n";

#[test]
fn arguments_that_do_not_exist_end_with_2() {
    for arguments in [&["frobnicate"][..], &["run", "--no-such-flag"], &["preview", "--rows", "-1"], &[]] {
        let output = pgferry(folder().path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_missing_file_says_how_to_get_one() {
    let output = pgferry(folder().path(), &["run"]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(told.contains("config.unreadable") && told.contains("pgferry init"), "{told}");
}

#[test]
fn init_writes_a_file_that_is_valid_and_never_overwrites_it() {
    let folder = folder();
    let output = pgferry(folder.path(), &["init"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("pgferry check pgferry.toml"));
    let output = pgferry(folder.path(), &["validate"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "pgferry.toml is valid: 1 task\n");
    std::fs::write(folder.path().join("pgferry.toml"), "mine").unwrap();
    let output = pgferry(folder.path(), &["init"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("cli.file_exists"));
    assert_eq!(std::fs::read_to_string(folder.path().join("pgferry.toml")).unwrap(), "mine");
    assert_eq!(pgferry(folder.path(), &["init", "--yes"]).status.code(), Some(0));
    assert_ne!(std::fs::read_to_string(folder.path().join("pgferry.toml")).unwrap(), "mine");
}

#[test]
fn every_template_is_a_valid_file() {
    for template in ["duckdb", "kafka", "databend"] {
        let folder = folder();
        let output = pgferry(folder.path(), &["init", "--template", template]);
        assert_eq!(output.status.code(), Some(0), "{template}: {}", text(&output.stderr));
        let output = pgferry(folder.path(), &["validate"]);
        assert_eq!(output.status.code(), Some(0), "{template}: {}", text(&output.stderr));
        let written = std::fs::read_to_string(folder.path().join("pgferry.toml")).unwrap();
        assert!(written.contains(&format!("kind = \"{template}\"")), "{template}: {written}");
    }
}

#[test]
fn every_fault_of_a_file_is_told_with_line_and_cure_and_without_its_secrets() {
    let folder = folder();
    std::fs::write(folder.path().join("bad.toml"), BAD).unwrap();
    let output = pgferry(folder.path(), &["check", "bad.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    insta::assert_snapshot!(told);
    assert!(!told.contains("hunter2"));
}

#[test]
fn json_has_one_envelope_for_results_and_errors() {
    let folder = folder();
    std::fs::write(folder.path().join("bad.toml"), BAD).unwrap();
    let output = pgferry(folder.path(), &["validate", "bad.toml", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let told = json(&output);
    assert_eq!((&told["command"], &told["ok"]), (&"validate".into(), &false.into()));
    assert_eq!(told["error"]["errors"].as_array().unwrap().len(), 3);
    assert_eq!(told["error"]["errors"][1]["path"], "tasks.t.target");
    assert!(told["result"].is_null());
    let told = json(&pgferry(folder.path(), &["version", "--json"]));
    assert_eq!((&told["ok"], &told["error"]), (&true.into(), &serde_json::Value::Null));
    assert_eq!(told["result"]["version"], env!("CARGO_PKG_VERSION"));
    let told = json(&pgferry(folder.path(), &["run", "bad.toml", "--json"]));
    assert_eq!((&told["type"], &told["command"]), (&"result".into(), &"run".into()));
}

#[test]
fn a_task_that_the_file_does_not_have_is_named() {
    let folder = folder();
    pgferry(folder.path(), &["init"]);
    let output = pgferry(folder.path(), &["run", "--task", "shpo"]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(told.contains("config.unknown_task") && told.contains("its tasks are: shop"), "{told}");
}

#[test]
fn a_missing_secret_ends_with_the_code_of_the_environment() {
    let folder = folder();
    pgferry(folder.path(), &["init"]);
    let output = pgferry(folder.path(), &["slot", "list", "shop"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("SHOP_PASSWORD"));
}

#[test]
fn a_server_that_is_not_there_ends_with_the_code_of_the_environment() {
    let folder = folder();
    let text_of_file = "version = 1\n[connections.a]\nkind = \"postgres\"\nhost = \"127.0.0.1\"\nport = 1\nuser = \"me\"\n\
                        connect_timeout = \"2s\"\n[connections.b]\nkind = \"duckdb\"\npath = \"b.duckdb\"\n[tasks.t]\n\
                        source = \"a\"\ntarget = \"b\"\ninclude = [\"public.*\"]\n";
    std::fs::write(folder.path().join("a.toml"), text_of_file).unwrap();
    let output = pgferry(folder.path(), &["slot", "list", "--file", "a.toml"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("connection.unreachable"));
    let output = pgferry(folder.path(), &["check", "a.toml", "--json"]);
    let told = json(&output);
    assert_eq!(output.status.code(), Some(3), "{told}");
    let findings = told["result"][0]["findings"].as_array().unwrap();
    assert!(findings.iter().any(|finding| finding["code"] == "connection.unreachable"), "{told}");
}

#[test]
fn schema_and_completions_are_printed_whole() {
    let folder = folder();
    let output = pgferry(folder.path(), &["schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["title"], "pgferry task file");
    for shell in ["bash", "zsh", "fish"] {
        let output = pgferry(folder.path(), &["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("until-caught-up"), "{shell}");
    }
}

#[test]
fn a_code_is_explained_and_an_unknown_one_is_refused() {
    let folder = folder();
    let output = pgferry(folder.path(), &["explain", "config.unknown_key"]);
    assert!(text(&output.stdout).starts_with("# config.unknown_key\n"));
    let output = pgferry(folder.path(), &["explain", "config.nonsense"]);
    assert_eq!(output.status.code(), Some(2));
    let all = text(&pgferry(folder.path(), &["explain"]).stdout);
    for code in ["cli.file_exists", "config.conflict", "demo.no_server"] {
        assert!(all.lines().any(|line| line == code), "{code}");
    }
}

/// A reader that has seen enough, such as `head`, is no error.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::io::Read as _;
    use std::process::{Command, Stdio};
    let mut child = Command::new(assert_cmd::cargo::cargo_bin("pgferry"))
        .arg("schema")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!((child.wait().unwrap().code(), told.as_str()), (Some(0), ""));
}

/// `docs/reference/cli.md` is the help of every command; `PGFERRY_UPDATE=1` writes it.
#[test]
fn the_reference_page_is_current() {
    let commands: &[&[&str]] = &[
        &[],
        &["run"],
        &["check"],
        &["preview"],
        &["plan"],
        &["resync"],
        &["demo"],
        &["init"],
        &["validate"],
        &["schema"],
        &["slot", "list"],
        &["slot", "drop"],
        &["explain"],
        &["completions"],
        &["version"],
    ];
    let mut page = include_str!("cli-introduction.md").to_owned();
    for command in commands {
        let arguments: Vec<&str> = command.iter().copied().chain(["--help"]).collect();
        let output = pgferry(folder().path(), &arguments);
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        let title = ["pgferry"].iter().chain(command.iter()).copied().collect::<Vec<_>>().join(" ");
        let help = text(&output.stdout);
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        page.push_str(&format!("\n## {title}\n\n```text\n{}\n```\n", help.join("\n").trim_end()));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/cli.md");
    if std::env::var_os("PGFERRY_UPDATE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == page,
        "docs/reference/cli.md is out of date: PGFERRY_UPDATE=1 cargo test -p pgferry-cli"
    );
}

/// Every file in `examples/` can be read.
#[test]
fn the_examples_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty());
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "toml")) {
        let output = pgferry(&folder, &["validate", &file.to_string_lossy()]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
}

/// Every whole task file in the tutorials and the instructions can be read.
#[test]
fn the_task_files_in_the_documents_are_valid() {
    let documents = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let folder = folder();
    let mut whole = 0;
    for kind in ["tutorials", "how-to"] {
        for page in std::fs::read_dir(documents.join(kind)).unwrap().map(|entry| entry.unwrap().path()) {
            let page_text = std::fs::read_to_string(&page).unwrap();
            let blocks = page_text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
            for block in blocks.filter(|block| block.starts_with("version = 1")) {
                std::fs::write(folder.path().join("a.toml"), block).unwrap();
                let output = pgferry(folder.path(), &["validate", "a.toml"]);
                assert_eq!(output.status.code(), Some(0), "{}: {}", page.display(), text(&output.stderr));
                whole += 1;
            }
        }
    }
    assert!(whole >= 2, "{whole}");
}
