//! `pgferry resync` between a real PostgreSQL and a real DuckDB file: what was set aside or lost is copied again, and equal.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests stop at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use pgferry_task::compare::compare;
use pgferry_task::spec::read_file;
use pgferry_task::{connect, registry};
use pgferry_testkit::{Database, Server};

struct Scene {
    database: Database,
    folder: tempfile::TempDir,
}

impl Scene {
    async fn new(sql: &str) -> Scene {
        let database = Server::shared(15).await.unwrap().create_database().await.unwrap();
        database.execute(sql).await.unwrap();
        let scene = Scene { database, folder: tempfile::tempdir().unwrap() };
        scene.write("include = [\"public.*\"]");
        scene
    }

    fn write(&self, more: &str) {
        let text = format!(
            "version = 1\n[connections.source]\nkind = \"postgres\"\nurl = \"{}\"\n\
             [connections.file]\nkind = \"duckdb\"\npath = \"copy.duckdb\"\n\
             [tasks.all]\nsource = \"source\"\ntarget = \"file\"\nsync_mode = \"snapshot_cdc\"\nsync_interval = \"100ms\"\n\
             replication = {{ publication = \"ferry\", slot = \"{}\" }}\n{more}\n",
            self.database.url(),
            self.slot(),
        );
        std::fs::write(self.file(), text).unwrap();
    }

    fn slot(&self) -> String {
        format!("resync_{}", self.database.name())
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("task.toml")
    }

    /// Runs the program; fails unless it ends with `code`. Returns both of its outputs.
    fn pgferry(&self, arguments: &[&str], code: i32) -> String {
        let output = pgferry(self.folder.path(), arguments);
        let told =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        told
    }

    fn run(&self, code: i32) -> String {
        self.pgferry(&["run", "task.toml", "--until-caught-up", "-q"], code)
    }

    fn resync(&self, more: &[&str], code: i32) -> String {
        self.pgferry(&[&["resync", "task.toml"], more].concat(), code)
    }

    async fn sql(&self, sql: &str) {
        self.database.execute(sql).await.unwrap();
    }

    /// Every table holds the same rows on both sides; returns how many there are.
    async fn equal(&self) -> u64 {
        let spec = read_file(&self.file()).unwrap();
        let task = &spec.tasks[0];
        let tables = registry::source(&spec, task).unwrap().tables().await.unwrap();
        let target = registry::target(&spec, task).await.unwrap();
        let connection = connect::connection_config(spec.source_of(task).unwrap(), "test").unwrap();
        let mut rows = 0;
        for table in &tables {
            let sides = compare(&connection, target.inspect(), table).await.unwrap();
            assert!(sides.equal(), "{}: {sides:?}", table.name);
            rows += sides.source_rows;
        }
        target.close().await.unwrap();
        rows
    }
}

fn pgferry(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin("pgferry"))
        .current_dir(folder)
        .env_remove("PGFERRY_LOG")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

const TWO: &str = "CREATE TABLE a (id int PRIMARY KEY, n numeric(8,2), t text); CREATE TABLE b (id int PRIMARY KEY, t text);
    INSERT INTO a SELECT i, i, 'a' FROM generate_series(1, 500) i; INSERT INTO b SELECT i, 'b' FROM generate_series(1, 500) i";

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_does_not_fit_is_carried_as_text_after_a_resync() {
    let scene = Scene::new(TWO).await;
    let nothing = scene.resync(&["--yes"], 1);
    assert!(
        nothing.contains("resync.nothing_held") && !scene.folder.path().join("copy.duckdb").exists(),
        "{nothing}"
    );
    scene.run(0);
    scene.sql("INSERT INTO a VALUES (1001, 'NaN', 'x'); INSERT INTO b VALUES (1001, 'x')").await;
    assert!(scene.run(5).contains("value.not_representable"));
    scene.sql("UPDATE a SET t = 'later' WHERE id < 50; DELETE FROM b WHERE id < 50").await;
    scene.run(5);
    let refused = scene.resync(&["--table", "a"], 2);
    assert!(refused.contains("cli.not_confirmed") && refused.contains("set aside"), "{refused}");
    assert!(refused.contains("value.not_representable"), "it says why: {refused}");
    assert!(scene.resync(&["--table", "nothing", "--yes"], 2).contains("cli.unknown_name"));
    scene.run(5);

    let text = "include = [\"public.*\"]\n[[tasks.all.tables]]\nsource = \"public.a\"\ncolumns.n = { type = \"string\" }";
    scene.write(text);
    let told = scene.resync(&["--table", "public.a", "--yes"], 0);
    assert!(told.contains("public.a") && !told.contains("public.b"), "{told}");
    scene.sql("UPDATE a SET t = 'last' WHERE id > 480").await;
    scene.run(0);
    assert_eq!(scene.equal().await, 501 + 501 - 49);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_slot_is_made_again_with_a_new_snapshot() {
    let scene = Scene::new(TWO).await;
    scene.run(0);
    scene.sql(&format!("SELECT pg_drop_replication_slot('{}')", scene.slot())).await;
    scene.sql("UPDATE a SET t = 'missed'; DELETE FROM b WHERE id = 1").await;
    assert!(scene.run(1).contains("source.slot_missing"));
    let one = scene.resync(&["--table", "a", "--yes"], 1);
    assert!(one.contains("source.slot_missing"), "one table alone does not help: {one}");
    let told = scene.resync(&["--yes"], 0);
    assert!(told.contains("position") && told.contains("new slot"), "{told}");
    scene.run(0);
    scene.sql("UPDATE a SET t = 'after' WHERE id = 1").await;
    scene.run(0);
    assert_eq!(scene.equal().await, 999);
}

/// A slot that has moved past the target is dropped; a whole task with a good slot keeps slot and position.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_ahead_is_replaced_and_a_good_one_kept() {
    let scene = Scene::new(TWO).await;
    scene.run(0);
    scene.sql("UPDATE a SET t = 'good'").await;
    assert!(!scene.resync(&["--yes"], 0).contains("position"));
    scene.sql("DELETE FROM a WHERE id = 9").await;
    scene.run(0);
    assert_eq!(scene.equal().await, 999);

    scene.sql("UPDATE a SET t = 'missed'").await;
    scene.sql(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", scene.slot())).await;
    assert!(scene.run(1).contains("source.slot_ahead"));
    let told = scene.resync(&["--yes"], 0);
    assert!(told.contains(&format!("slot {} is dropped", scene.slot())), "{told}");
    let client = scene.database.client().await.unwrap();
    let slots =
        client.query("SELECT 1 FROM pg_replication_slots WHERE slot_name = $1", &[&scene.slot()]).await;
    assert!(slots.unwrap().is_empty());
    scene.run(0);
    assert_eq!(scene.equal().await, 999);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_changed_are_carried_after_a_resync() {
    let scene = Scene::new(TWO).await;
    scene.run(0);
    // Changes of the old columns, then of the new ones, all after the position: the copy's cut lies behind both.
    scene.sql("UPDATE b SET t = 'old columns' WHERE id = 2").await;
    scene.sql("ALTER TABLE b ADD COLUMN extra int DEFAULT 7").await;
    scene.sql("UPDATE b SET t = 'new columns' WHERE id = 3; INSERT INTO a VALUES (2000, 1, 'x')").await;
    let told = scene.run(5);
    assert!(told.contains("target.schema_incompatible"), "{told}");
    scene.resync(&["--table", "b", "--yes"], 0);
    scene.run(0);
    assert_eq!(scene.equal().await, 1001);
}

/// The columns change while a run follows the stream: the rest goes on, and a resync of the one table mends it.
#[tokio::test(flavor = "multi_thread")]
async fn columns_that_change_under_a_run_are_carried_after_a_resync() {
    let scene = Scene::new(TWO).await;
    scene.run(0);
    let mut child = Command::new(assert_cmd::cargo::cargo_bin("pgferry"))
        .current_dir(scene.folder.path())
        .args(["run", "task.toml", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut until = |what: &str| lines.find(|line| line.as_ref().unwrap().contains(what)).unwrap().unwrap();
    until("\"phase\":\"streaming\"");
    scene.sql("ALTER TABLE b ADD COLUMN extra int DEFAULT 7").await;
    scene.sql("UPDATE b SET t = 'changed' WHERE id = 3; INSERT INTO a VALUES (2000, 1, 'x')").await;
    until("\"state\":\"broken\"");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let last = until("\"type\":\"result\"");
    assert!(last.contains("schema.change_blocked"), "{last}");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    scene.resync(&["--table", "b", "--yes"], 0);
    scene.run(0);
    assert_eq!(scene.equal().await, 1001);
}
