//! Two processes run one Kafka task: the one that was started first ends, and says so.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests stop at the first surprise")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pgferry_task::compare::compare;
use pgferry_task::spec::read_file;
use pgferry_task::{connect, registry};
use pgferry_testkit::Server;
use pgferry_testkit::kafka::Broker;

const WITHIN: Duration = Duration::from_secs(60);

fn start(folder: &Path) -> Child {
    Command::new(assert_cmd::cargo::cargo_bin("pgferry"))
        .current_dir(folder)
        .env_remove("PGFERRY_LOG")
        .args(["run", "task.toml", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Lines of a process's output, as they come.
fn lines(child: &mut Child) -> std::sync::mpsc::Receiver<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let output = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    receiver
}

fn until(lines: &std::sync::mpsc::Receiver<String>, what: &str) -> String {
    let deadline = Instant::now() + WITHIN;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = lines.recv_timeout(left).unwrap_or_else(|_| panic!("{what} is not printed"));
        if line.contains(what) {
            return line;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_that_was_started_first_ends_and_says_why() {
    let broker = match Broker::shared().unwrap() {
        Ok(broker) => broker,
        Err(missing) => {
            writeln!(std::io::stderr().lock(), "NOT RUN: two processes on Kafka: {}", missing.0).unwrap();
            return;
        }
    };
    let database = Server::shared(15).await.unwrap().create_database().await.unwrap();
    let sql = "CREATE TABLE a (id int PRIMARY KEY, t text); INSERT INTO a SELECT i, 'a' FROM generate_series(1, 100) i";
    database.execute(sql).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "version = 1\n[connections.source]\nkind = \"postgres\"\nurl = \"{}\"\n\
         [connections.bus]\nkind = \"kafka\"\nbootstrap_servers = [\"{}\"]\n\
         [tasks.all]\nsource = \"source\"\ntarget = \"bus\"\nsync_interval = \"100ms\"\ninclude = [\"public.*\"]\n\
         replication = {{ publication = \"ferry\", slot = \"fenced_{}\" }}\n\
         kafka = {{ delivery_guarantee = \"exactly-once\" }}\n",
        database.url(),
        broker.bootstrap_servers(),
        database.name(),
    );
    std::fs::write(folder.path().join("task.toml"), text).unwrap();

    let mut first = start(folder.path());
    let told = lines(&mut first);
    until(&told, "\"phase\":\"streaming\"");
    let mut second = start(folder.path());
    let of_second = lines(&mut second);
    // It takes the task over some time after its start; the first one notices it with its next delivery.
    let deadline = Instant::now() + WITHIN;
    let mut next = 101;
    while first.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the first process goes on");
        database.execute(&format!("INSERT INTO a VALUES ({next}, 'more')")).await.unwrap();
        next += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let result = until(&told, "\"type\":\"result\"");
    assert!(result.contains("target.fenced"), "{result}");
    assert!(result.contains("let one process run a task; stop one of the two"), "{result}");
    assert_ne!(first.wait().unwrap().code(), Some(0));

    until(&of_second, "\"phase\":\"streaming\"");
    database.execute("UPDATE a SET t = 'last' WHERE id <= 50").await.unwrap();
    assert!(Command::new("kill").args(["-INT", &second.id().to_string()]).status().unwrap().success());
    until(&of_second, "\"type\":\"result\"");
    second.wait().unwrap();
    let last = Command::new(assert_cmd::cargo::cargo_bin("pgferry"))
        .current_dir(folder.path())
        .args(["run", "task.toml", "--until-caught-up", "-q"])
        .output()
        .unwrap();
    assert_eq!(last.status.code(), Some(0), "{}", String::from_utf8_lossy(&last.stderr));

    let spec = read_file(&folder.path().join("task.toml")).unwrap();
    let task = &spec.tasks[0];
    let tables = registry::source(&spec, task).unwrap().tables().await.unwrap();
    let target = registry::target(&spec, task).await.unwrap();
    let connection = connect::connection_config(spec.source_of(task).unwrap(), "test").unwrap();
    let sides = compare(&connection, target.inspect(), &tables[0]).await.unwrap();
    assert!(sides.equal() && sides.source_rows == u64::try_from(next - 1).unwrap(), "{sides:?}");
    target.close().await.unwrap();
}
