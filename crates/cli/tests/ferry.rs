//! The program at work between a real PostgreSQL and a real DuckDB file.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests stop at the first surprise")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pgferry_task::compare::{Compared, compare};
use pgferry_task::demo::{DemoServer, TABLES, Traffic, fill, task_file};
use pgferry_task::spec::read_file;
use pgferry_task::{connect, registry};
use serde_json::Value;

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("pgferry"));
    command.current_dir(folder).env_remove("PGFERRY_LOG").args(arguments);
    command
}

fn pgferry(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The last line of a stream, or the one object.
fn result(output: &Output) -> Value {
    let told = text(&output.stdout);
    serde_json::from_str(told.lines().last().unwrap_or_default())
        .unwrap_or_else(|_| panic!("{told}\n{}", text(&output.stderr)))
}

/// Each table of the task, source against target, both at rest.
async fn compared(file: &Path) -> Vec<Compared> {
    let spec = read_file(file).unwrap();
    let task = &spec.tasks[0];
    let tables = registry::source(&spec, task).unwrap().tables().await.unwrap();
    let target = registry::target(&spec, task).await.unwrap();
    let connection = connect::connection_config(spec.source_of(task).unwrap(), "test").unwrap();
    let mut all = Vec::new();
    for table in &tables {
        all.push(compare(&connection, target.inspect(), table).await.unwrap());
    }
    target.close().await.unwrap();
    all
}

/// What a row of the source does when nobody carries it.
async fn ask(server: &DemoServer, sql: &str) {
    let mut session = pgferry_task::connect::session(&server.connection("shop")).await.unwrap();
    session.simple_query(sql).await.unwrap();
    session.close().await.unwrap();
}

/// One server for all steps: each goes on from what the one before has left.
#[tokio::test(flavor = "multi_thread")]
async fn a_shop_is_looked_at_carried_followed_and_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let server = DemoServer::start().await.unwrap();
    fill(&server.connection("shop")).await.unwrap();
    let file = folder.path().join("pgferry.toml");
    std::fs::write(&file, task_file(&server, Path::new("shop.duckdb"))).unwrap();
    looking_changes_nothing(folder.path());

    let traffic = Traffic::start(&server.connection("shop"));
    let output = pgferry(folder.path(), &["run", "--until-caught-up", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let told = result(&output);
    assert_eq!(told["result"][0]["ended"], "caught_up");
    assert!(told["result"][0]["rows_copied"].as_u64().unwrap() >= 102_500, "{told}");
    let kinds: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].clone())
        .collect();
    assert!(kinds.contains(&"state".into()) && kinds.contains(&"progress".into()), "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| *kind == "result").count(), 1);

    a_run_stops_when_asked(folder.path());
    traffic.stop().await.unwrap();
    let output = pgferry(folder.path(), &["run", "--until-caught-up"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("demo  caught up  0 rows copied"), "{}", text(&output.stdout));
    let all = compared(&file).await;
    assert_eq!(all.len(), TABLES.len());
    assert!(all.iter().all(|sides| sides.equal() && sides.source_rows > 0), "{all:?}");

    // A difference is seen: one row that only the source has, one that only the target has, one that is both.
    ask(&server, "INSERT INTO public.customers (name, email, joined) VALUES ('a', 'b', now())").await;
    ask(&server, "DELETE FROM public.orders WHERE id = 7").await;
    ask(&server, "UPDATE public.products SET price = price + 1 WHERE id = 7").await;
    let all = compared(&file).await;
    let differences: Vec<(u64, u64)> =
        all.iter().map(|sides| (sides.only_source, sides.only_target)).collect();
    assert_eq!(differences.iter().map(|(here, _)| here).sum::<u64>(), 2, "{differences:?}");
    assert_eq!(differences.iter().map(|(_, there)| there).sum::<u64>(), 2, "{differences:?}");
    // The rows are named by their keys.
    let orders = all.iter().find(|sides| sides.keys_target == ["id=7"] && sides.only_source == 0);
    let products = all.iter().find(|sides| sides.keys_target == ["id=7"] && sides.keys_source == ["id=7"]);
    assert!(orders.is_some() && products.is_some(), "{all:?}");
    slots_are_listed_and_dropped(folder.path());
}

fn looking_changes_nothing(folder: &Path) {
    let output = pgferry(folder, &["check", "--json"]);
    let told = result(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(!told["result"][0]["findings"].as_array().unwrap().is_empty());

    let told = result(&pgferry(folder, &["plan", "--json"]));
    let planned = &told["result"][0];
    assert_eq!(planned["objects"][1]["name"], "pgferry_demo");
    assert!(
        planned["objects"].as_array().unwrap().iter().all(|object| object["creates"] == true),
        "{planned}"
    );
    let tables = planned["tables"].as_array().unwrap();
    assert_eq!(tables.len(), TABLES.len());
    assert!(tables.iter().all(|table| table["ddl"].to_string().contains("CREATE TABLE")), "{planned}");
    assert_eq!(result(&pgferry(folder, &["slot", "list", "--json"]))["result"], Value::Array(Vec::new()));

    let told = result(&pgferry(folder, &["preview", "--json", "--table", "products", "--rows", "2"]));
    let previewed = &told["result"][0];
    assert_eq!((&previewed["target"], &previewed["key"][0]), (&"main.products".into(), &"id".into()));
    assert_eq!(previewed["rows"].as_array().unwrap().len(), 2);
    assert_eq!(previewed["columns"].as_array().unwrap().len(), 6);
    let unknown = pgferry(folder, &["preview", "--table", "nothing"]);
    assert_eq!(unknown.status.code(), Some(2));
    for arguments in [["check", "-q"], ["plan", "-q"], ["preview", "-q"]] {
        let output = pgferry(folder, &arguments);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("public.orders") || arguments[0] == "check", "{arguments:?}");
    }
}

fn wait_for(child: &mut Child, limit: Duration) -> Option<i32> {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    panic!("the program did not end within {limit:?}");
}

fn a_run_stops_when_asked(folder: &Path) {
    let mut child = command(folder, &["run"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let asked = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(asked.success());
    assert_eq!(wait_for(&mut child, Duration::from_secs(30)), Some(0));
    let output = child.wait_with_output().unwrap();
    assert!(
        text(&output.stderr).contains("stopping: what is open is finished first"),
        "{}",
        text(&output.stderr)
    );
    assert!(text(&output.stdout).contains("demo  stopped"), "{}", text(&output.stdout));
}

fn slots_are_listed_and_dropped(folder: &Path) {
    let told = result(&pgferry(folder, &["slot", "list", "shop", "--json"]));
    assert_eq!(told["result"][0]["owner"], "task demo", "{told}");
    let refused = pgferry(folder, &["slot", "drop", "shop", "pgferry_demo"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("cli.not_confirmed"));
    let dropped = pgferry(folder, &["slot", "drop", "shop", "pgferry_demo", "--yes"]);
    assert_eq!(dropped.status.code(), Some(0), "{}", text(&dropped.stderr));
    let lost = pgferry(folder, &["run", "--until-caught-up"]);
    assert_eq!(lost.status.code(), Some(1));
    assert!(text(&lost.stdout).contains("source.slot_missing"), "{}", text(&lost.stdout));
}

/// Ctrl-C in the middle of the demo leaves no server and no folder.
#[test]
fn a_demo_that_is_interrupted_cleans_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = command(folder.path(), &["demo", "--seconds", "60"])
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let server = folder.path().join(format!("pgferry-demo-{}", child.id()));
    let until = Instant::now() + Duration::from_secs(60);
    while !folder.path().join("demo.duckdb").exists() {
        assert!(Instant::now() < until, "the demo did not get to its copy");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(server.join("data/postmaster.pid").exists());
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(wait_for(&mut child, Duration::from_secs(60)), Some(0));
    assert!(!server.exists());
    let again = pgferry(folder.path(), &["demo", "--seconds", "1"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("demo.file_exists"), "{}", text(&again.stderr));
}

/// Without PostgreSQL the demo says how to get one.
#[test]
fn a_demo_without_a_server_says_how_to_get_one() {
    let folder = tempfile::tempdir().unwrap();
    let output =
        command(folder.path(), &["demo"]).env("PGFERRY_POSTGRES_BIN", folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let told = text(&output.stderr);
    assert!(told.contains("demo.no_server") && told.contains("apt-get install postgresql-15"), "{told}");
}
