//! Settings of the task file that have to reach the engine, between a real server and a real file.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests stop at the first surprise")]

use std::collections::HashMap;
use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pgferry_task::registry;
use pgferry_task::spec::read_file;
use pgferry_testkit::{Database, Server};
use serde_json::Value;

/// Two tables; the task `first` has made them in the file, so that they exist for `second`.
async fn scene(second: &str, folder: &Path) -> Database {
    let database = Server::shared(15).await.unwrap().create_database().await.unwrap();
    database
        .execute(
            "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE SCHEMA other;
             CREATE TABLE other.busy (t text); INSERT INTO a SELECT generate_series(1, 10); INSERT INTO b TABLE a",
        )
        .await
        .unwrap();
    let text = format!(
        "version = 1\n[connections.source]\nkind = \"postgres\"\nurl = \"{}\"\n\
         [connections.file]\nkind = \"duckdb\"\npath = \"copy.duckdb\"\n\
         [tasks.first]\nsource = \"source\"\ntarget = \"file\"\nsync_mode = \"snapshot\"\ninclude = [\"public.*\"]\n\
         [tasks.second]\nsource = \"source\"\ntarget = \"file\"\nsync_interval = \"100ms\"\n\
         replication = {{ publication = \"ferry\", slot = \"settings_{}\" }}\n{second}\n",
        database.url(),
        database.name(),
    );
    std::fs::write(folder.join("task.toml"), text).unwrap();
    database
}

fn command(folder: &Path, task: &str) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("pgferry"));
    command.current_dir(folder).env_remove("PGFERRY_LOG").stdin(Stdio::null());
    command.args(["run", "task.toml", "--json", "--task", task]);
    command
}

fn run(folder: &Path, task: &str, code: i32) -> Value {
    let output = command(folder, task).arg("--until-caught-up").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(code), "{task}: {told}");
    serde_json::from_str::<Value>(told.lines().last().unwrap()).unwrap()["result"][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_to_do_with_an_existing_table_is_said_per_table() {
    let folder = tempfile::tempdir().unwrap();
    let more = "sync_mode = \"snapshot_cdc\"\ninclude = [\"public.*\"]\n\
                [[tasks.second.tables]]\nsource = \"public.b\"\nif_target_exists = \"replace\"";
    let database = scene(more, folder.path()).await;
    run(folder.path(), "first", 0);
    database.execute("INSERT INTO a VALUES (11)").await.unwrap();
    let told = run(folder.path(), "second", 5);
    assert_eq!(told["set_aside"].as_array().unwrap().len(), 1, "{told}");
    assert_eq!(
        (&told["set_aside"][0]["table"], &told["set_aside"][0]["code"]),
        (&"public.a".into(), &"target.table_exists".into())
    );
    assert_eq!(told["rows_copied"], 10);
    // Not one row of the table that is not ours is touched; a resync alone does not change that.
    assert_eq!(rows_of_a(folder.path()).await, 10);
    resync_a(folder.path());
    run(folder.path(), "second", 5);
    assert_eq!(rows_of_a(folder.path()).await, 10);

    let file = folder.path().join("task.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        format!("{text}[[tasks.second.tables]]\nsource = \"public.a\"\nif_target_exists = \"replace\"\n"),
    )
    .unwrap();
    resync_a(folder.path());
    run(folder.path(), "second", 0);
    assert_eq!(rows_of_a(folder.path()).await, 11);
}

fn resync_a(folder: &Path) {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("pgferry"));
    let arguments = ["resync", "task.toml", "--task", "second", "--table", "a", "--yes"];
    let output = command.current_dir(folder).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn rows_of_a(folder: &Path) -> u64 {
    let spec = read_file(&folder.join("task.toml")).unwrap();
    let task = spec.task("second").unwrap();
    let tables = registry::source(&spec, task).unwrap().tables().await.unwrap();
    let target = registry::target(&spec, task).await.unwrap();
    let rows =
        target.inspect().count(tables.iter().find(|table| &*table.name.name == "a").unwrap()).await.unwrap();
    target.close().await.unwrap();
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn one_table_stops_the_task_where_that_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let more = "sync_mode = \"snapshot_cdc\"\non_table_error = \"pause_task\"\ninclude = [\"public.*\"]\n\
                [[tasks.second.tables]]\nsource = \"public.b\"\nif_target_exists = \"replace\"";
    let _database = scene(more, folder.path()).await;
    run(folder.path(), "first", 0);
    let told = run(folder.path(), "second", 1);
    assert_eq!(told["error"]["code"], "target.table_exists", "{told}");
    assert_eq!(told["set_aside"].as_array().unwrap().len(), 0, "nothing is set aside: {told}");
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What other tables write into the server's log does not wait for us.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_source_has_no_lag() {
    let folder = tempfile::tempdir().unwrap();
    let database = scene("sync_mode = \"snapshot_cdc\"\ninclude = [\"public.*\"]", folder.path()).await;
    let mut child = Running(command(folder.path(), "second").stdout(Stdio::piped()).spawn().unwrap());
    let lines = std::io::BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    lines.find(|line| line["phase"] == "streaming").unwrap();
    let mut position = lines.find(|line| line["type"] == "progress").unwrap()["position"].clone();
    for _ in 0..3 {
        database
            .execute("INSERT INTO other.busy SELECT repeat('x', 1000) FROM generate_series(1, 300)")
            .await
            .unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        // The position itself is stored once a minute only: it stands while the lag goes back to nothing.
        let settled = lines.by_ref().filter(|line| line["type"] == "progress").skip(1).find(|line| {
            assert!(Instant::now() < until, "{line}");
            line["lag_bytes"] == 0
        });
        let now = settled.unwrap()["position"].clone();
        assert_eq!(std::mem::replace(&mut position, now.clone()), now);
    }
    database.execute("INSERT INTO a VALUES (11)").await.unwrap();
    lines.find(|line| line["type"] == "progress" && line["changes"] == 1).unwrap();
}

/// What a scraper reads: a number per series.
fn scraped(address: SocketAddr) -> HashMap<String, f64> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let series =
        answer.lines().filter(|line| line.starts_with("pgferry_")).filter_map(|line| line.rsplit_once(' '));
    series.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_a_run_does() {
    let folder = tempfile::tempdir().unwrap();
    let database = scene("sync_mode = \"snapshot_cdc\"\ninclude = [\"public.*\"]", folder.path()).await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut refused = command(folder.path(), "second");
    let output = refused.env("PGFERRY_METRICS", address.to_string()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stdout).contains("cli.metrics_address"), "{output:?}");
    drop(taken);

    let mut running = command(folder.path(), "second");
    let running = running.args(["--metrics", &address.to_string()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut child = Running(running);
    let lines = std::io::BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    lines.find(|line| line["phase"] == "streaming").unwrap();
    database.execute("INSERT INTO a VALUES (11), (12)").await.unwrap();
    lines.find(|line| line["type"] == "progress" && line["changes"] == 2).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    let wanted = [
        ("pgferry_task_phase{task=\"second\",phase=\"streaming\"}", 1.0),
        ("pgferry_task_phase{task=\"second\",phase=\"snapshotting\"}", 0.0),
        ("pgferry_task_tables{task=\"second\",state=\"live\"}", 2.0),
        ("pgferry_snapshot_rows_total{task=\"second\"}", 20.0),
        ("pgferry_changes_total{task=\"second\"}", 2.0),
        ("pgferry_lag_bytes{task=\"second\"}", 0.0),
        ("pgferry_replication_lag_seconds{task=\"second\"}", 0.0),
    ];
    loop {
        let series = scraped(address);
        if wanted.iter().all(|(name, value)| series.get(*name) == Some(value)) {
            assert!(series["pgferry_position{task=\"second\"}"] > 0.0);
            break;
        }
        assert!(Instant::now() < until, "{series:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn checked(folder: &Path, code: i32) -> Vec<Value> {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("pgferry"));
    command.current_dir(folder).stdin(Stdio::null());
    let output = command.args(["check", "task.toml", "--json", "--task", "second"]).output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(code), "{told:#}");
    told["result"][0]["findings"].as_array().unwrap().clone()
}

/// A missing slot is nothing to a new task, and a gap to one that goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_tells_whether_a_task_can_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let database = scene("sync_mode = \"snapshot_cdc\"\ninclude = [\"public.*\"]", folder.path()).await;
    let of = |findings: &[Value], check: &str| {
        findings.iter().find(|finding| finding["check"] == check).cloned().unwrap_or_default()
    };
    let new = checked(folder.path(), 0);
    assert_eq!(of(&new, "source.resume"), Value::Null);
    assert_eq!(of(&new, "slot.exists")["outcome"], "passed");
    run(folder.path(), "second", 0);
    assert_eq!(of(&checked(folder.path(), 0), "source.resume")["outcome"], "passed");
    let slot = format!("SELECT pg_drop_replication_slot('settings_{}')", database.name());
    database.execute(&slot).await.unwrap();
    let gone = checked(folder.path(), 4);
    assert_eq!(of(&gone, "source.resume")["code"], "source.slot_missing", "{gone:#?}");
    assert_eq!(of(&gone, "slot.exists"), Value::Null, "it is not said to be made at the start");
    assert_eq!(run(folder.path(), "second", 1)["error"]["code"], "source.slot_missing");
}
