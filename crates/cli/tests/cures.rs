//! Every error of the source and its connection: provoked through the program, then what it prints is pasted as it stands, and the
//! error is gone.
//!
//! ```text
//!   provoke ──> `check` and `run` tell code, cause, cure ──> paste ──> `check` passes, `run` catches up
//! ```
//!
//! Limits: an expired certificate and Amazon's variants cannot be had here, an SSH tunnel does not exist yet; those texts are read
//! by the tests of the crate `postgres` or not at all.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests stop at the first surprise")]

mod curing;

use std::process::{Command, Stdio};
use std::time::Duration;

use curing::{Into, Running, Scene, until};
use pgferry_testkit::server::StopMode;
use pgferry_testkit::{Server, ServerOptions};

async fn server(options: ServerOptions) -> Server {
    Server::start(options).await.unwrap()
}

async fn plain() -> Scene {
    Scene::on(Server::shared(15).await.unwrap()).await
}

/// The program is told the same by both commands; the cure of the run is pasted.
async fn cured(scene: &Scene, code: &str, lines: Into) {
    scene.check_finds(code);
    let told = scene.run_fails(code);
    scene.paste(&told, lines).await;
    scene.run();
    scene.check_passes();
}

#[tokio::test(flavor = "multi_thread")]
async fn e01_wal_level() {
    for major in [10, 15, 18] {
        let scene = Scene::on(server(ServerOptions::new(major).set("wal_level", "replica")).await).await;
        cured(&scene, "source.wal_level", Into::Nowhere).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e02_no_replication_role() {
    for major in [10, 15, 18] {
        let scene = Scene::on(server(ServerOptions::new(major)).await).await;
        scene.as_role("").await;
        scene.check_finds("source.no_replication_role");
        let mut told = scene.run_fails("source.no_replication_role");
        // The line is for Amazon RDS, in place of the statement.
        let lines = told.cure("lines");
        assert!(lines.iter().all(|line| line.starts_with("GRANT rds_replication TO ")), "{lines:?}");
        told.0["cure"]["lines"] = serde_json::json!([]);
        scene.paste(&told, Into::Nowhere).await;
        scene.run();
        scene.check_passes();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e03_hba_rejected() {
    let scene = Scene::on(server(ServerOptions::new(15).hba("host all all 127.0.0.1/32 reject")).await).await;
    scene.as_role("REPLICATION").await;
    cured(&scene, "source.hba_rejected", Into::Hba).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e04_slot_missing() {
    let scene = plain().await;
    scene.run();
    scene.sql(&format!("SELECT pg_drop_replication_slot('{}')", scene.slot())).await;
    let told = scene.run_fails("source.slot_missing");
    scene.paste(&told, Into::Nowhere).await;
    scene.run();
    scene.check_passes();

    // The same where a DBA makes slots.
    scene.edit("tasks.shop.replication", "manage = \"never\"");
    scene.sql(&format!("SELECT pg_drop_replication_slot('{}')", scene.slot())).await;
    cured(&scene, "source.slot_missing", Into::Nowhere).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e05_slot_invalidated() {
    for major in [13, 15, 18] {
        let options =
            ServerOptions::new(major).set("max_slot_wal_keep_size", "1MB").set("max_wal_size", "32MB");
        let options = options.set("min_wal_size", "32MB").set("checkpoint_timeout", "1h");
        let scene = Scene::on(server(options).await).await;
        scene.run();
        for _ in 0..4 {
            scene.sql("INSERT INTO items SELECT g, 1 FROM generate_series(2, 2000) g; DELETE FROM items WHERE id > 1").await;
            scene.sql("SELECT pg_switch_wal()").await;
            scene.sql("CHECKPOINT").await;
        }
        scene.check_finds("source.slot_invalidated");
        let told = scene.run_fails("source.slot_invalidated");
        scene.paste(&told, Into::Nowhere).await;
        let mut running = scene.running();
        // What reading prunes is flushed by the next commit only, and the stream carries flushed log only.
        while running.0.try_wait().unwrap().is_none() {
            scene.sql("UPDATE items SET n = n + 1").await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert_eq!(running.ended(), Some(0));
        scene.check_passes();
    }
}

/// A session that hangs, not one that comes back: the program itself would.
#[tokio::test(flavor = "multi_thread")]
async fn e06_slot_active() {
    let scene = plain().await;
    scene.run();
    let slot = scene.slot();
    let mut reader = Command::new("/usr/lib/postgresql/15/bin/pg_recvlogical");
    reader.args([
        "--start",
        "--status-interval=0",
        "--no-loop",
        "--file=-",
        "--option=proto_version=1",
        "--option=publication_names=ferry",
    ]);
    reader.arg(format!("--slot={slot}")).arg(format!("--dbname={}", scene.database.url()));
    let reader =
        Running(reader.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    until(&scene.database, &format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'"))
        .await;
    // From here on it confirms nothing: the slot stays where the target is.
    assert!(Command::new("kill").args(["-STOP", &reader.0.id().to_string()]).status().unwrap().success());
    scene.check_finds("source.slot_active");
    let told = scene.run_fails("source.slot_active");
    assert!(told.text("problem").contains("pg_recvlogical"), "{told:?} does not say who");
    scene.paste(&told, Into::Nowhere).await;
    drop(reader);
    scene.run();
    scene.check_passes();
}

#[tokio::test(flavor = "multi_thread")]
async fn e07_slot_other_database() {
    let (scene, other) = (plain().await, plain().await);
    other.sql(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", scene.slot())).await;
    cured(&scene, "source.slot_other_database", Into::Section("tasks.shop.replication")).await;
    // A slot of another kind is told and cured likewise.
    let physical = format!("{}_physical", scene.slot());
    scene.sql(&format!("SELECT pg_create_physical_replication_slot('{physical}')")).await;
    let fresh = Scene { folder: tempfile::tempdir().unwrap(), ..scene };
    fresh.write(&format!("url = \"{}\"", fresh.database.url()), "");
    fresh.edit("tasks.shop.replication", &format!("slot = \"{physical}\""));
    cured(&fresh, "source.slot_other_plugin", Into::Section("tasks.shop.replication")).await;
    fresh.sql(&format!("SELECT pg_drop_replication_slot('{physical}')")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e08_slots_exhausted() {
    // Dropping what nobody needs, and allowing more: either is enough.
    for allow_more in [false, true] {
        let scene = Scene::on(server(ServerOptions::new(15).set("max_replication_slots", 1)).await).await;
        scene.sql("SELECT pg_create_logical_replication_slot('old_cdc', 'pgoutput')").await;
        scene.check_finds("source.slots_exhausted");
        let mut told = scene.run_fails("source.slots_exhausted");
        assert!(told.cause().contains("old_cdc holding"), "{told:?}");
        if allow_more {
            told.0["cure"]["sql"] = serde_json::json!([]);
            told.0["cure"]["restart"] = "server".into();
        } else {
            told.0["cure"]["lines"] = serde_json::json!([]);
        }
        scene.paste(&told, Into::Psql).await;
        scene.run();
        if allow_more {
            scene.check_passes();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e09_walsenders_exhausted() {
    let scene = Scene::on(server(ServerOptions::new(15).set("max_wal_senders", 0)).await).await;
    cured(&scene, "source.walsenders_exhausted", Into::Nowhere).await;
    // And by others that have them all.
    let scene = Scene::on(server(ServerOptions::new(15).set("max_wal_senders", 1)).await).await;
    scene.sql("SELECT pg_create_physical_replication_slot('standby')").await;
    let mut reader = Command::new("/usr/lib/postgresql/15/bin/pg_receivewal");
    let folder = scene.folder.path().join("wal");
    std::fs::create_dir(&folder).unwrap();
    reader.args(["--slot=standby", "--no-loop"]).arg("--directory").arg(folder);
    reader.arg(format!("--dbname={}", scene.database.url()));
    let _reader =
        Running(reader.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    until(&scene.database, "SELECT count(*) = 1 FROM pg_stat_replication").await;
    cured(&scene, "source.walsenders_exhausted", Into::Nowhere).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e10_slot_creation_blocked() {
    let scene = Scene::on(server(ServerOptions::new(15)).await).await;
    let blocker = scene.database.client().await.unwrap();
    blocker.batch_execute("BEGIN; INSERT INTO items VALUES (9, 9)").await.unwrap();
    // A transaction that is open for a moment only is no finding.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let told = scene.check_finds("source.slot_creation_blocked");
    let mut running = scene.running();
    until(&scene.database, "SELECT count(*) = 1 FROM pg_replication_slots").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(running.0.try_wait().unwrap().is_none(), "the run does not wait");
    scene.paste(&told, Into::Nowhere).await;
    assert_eq!(running.ended(), Some(0));
    scene.check_passes();
}

#[tokio::test(flavor = "multi_thread")]
async fn e11_publication_missing() {
    let scene = plain().await;
    scene.edit("tasks.shop.replication", "manage = \"never\"");
    scene.check_finds("source.publication_missing");
    let told = scene.run_fails("source.publication_missing");
    scene.paste(&told, Into::Nowhere).await;
    // The DBA's next step is the slot.
    cured(&scene, "source.slot_missing", Into::Nowhere).await;

    // Dropped while the task is at work, for a task that makes its slot and for one that does not.
    for manage in ["never", "create"] {
        scene.edit("tasks.shop.replication", &format!("manage = \"{manage}\""));
        scene.sql("DROP PUBLICATION ferry; UPDATE items SET n = n + 1").await;
        cured(&scene, "source.publication_missing", Into::Nowhere).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e12_publication_after_slot() {
    for major in [10, 15, 18] {
        let scene = Scene::on(Server::shared(major).await.unwrap()).await;
        for manage in ["create", "never"] {
            scene.run();
            scene.edit("tasks.shop.replication", &format!("manage = \"{manage}\""));
            scene.sql("DROP PUBLICATION ferry; INSERT INTO items SELECT max(id) + 1 FROM items").await;
            scene.sql("CREATE PUBLICATION ferry FOR TABLE items, orders").await;
            cured(&scene, "source.publication_after_slot", Into::Nowhere).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e13_table_not_in_publication() {
    let scene = plain().await;
    scene.sql("CREATE PUBLICATION ferry FOR TABLE orders").await;
    scene.sql(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", scene.slot())).await;
    scene.edit("tasks.shop.replication", "manage = \"never\"");
    cured(&scene, "source.table_not_in_publication", Into::Nowhere).await;
    // One that leaves later has lost changes: it is copied again, too.
    scene.sql("ALTER PUBLICATION ferry DROP TABLE items; UPDATE items SET n = 7").await;
    cured(&scene, "source.table_not_in_publication", Into::Nowhere).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e14_no_replica_identity() {
    let scene = plain().await;
    scene.sql("CREATE TABLE log (line text); INSERT INTO log VALUES ('a')").await;
    scene.sql("CREATE PUBLICATION ferry FOR ALL TABLES").await;
    let application = "UPDATE log SET line = 'b'";
    assert!(scene.database.execute(application).await.is_err(), "the application's update succeeds");
    let told = scene.check_finds("source.no_replica_identity");
    assert_eq!(told.text("outcome"), "failed", "{told:?}");
    scene.paste(&told, Into::Nowhere).await;
    scene.sql(application).await;
    scene.check_passes();
    scene.run();

    // Where columns are unique and NOT NULL, the cure is a primary key, and the table follows the stream.
    scene.sql("CREATE TABLE visits (id int NOT NULL UNIQUE, n int)").await;
    let told = scene.check_finds("source.no_replica_identity");
    assert_eq!(told.text("subject"), "public.log", "{told:?}");
    scene.sql("DROP TABLE log").await;
    let told = scene.check_finds("source.no_replica_identity");
    assert_eq!(told.cure("sql"), ["ALTER TABLE \"public\".\"visits\" ADD PRIMARY KEY (\"id\")"]);
    scene.paste(&told, Into::Nowhere).await;
    scene.check_passes();
    scene.run();
}

/// What a target that keeps large values meets in place of `source.toast_unchanged`: it lacks the row that has the value.
#[tokio::test(flavor = "multi_thread")]
async fn e15_row_missing() {
    let scene = plain().await;
    scene.sql("CREATE TABLE posts (id int PRIMARY KEY, title text, body text)").await;
    scene.sql("ALTER TABLE posts ALTER COLUMN body SET STORAGE EXTERNAL").await;
    scene.sql("INSERT INTO posts SELECT g, 'a', repeat('x', 9000) FROM generate_series(1, 3) g").await;
    let url = format!("url = \"{}\"", scene.database.url());
    let part = "[[tasks.shop.tables]]\nsource = \"public.posts\"\nsnapshot_where = \"id > 1\"";
    scene.write(&url, part);
    scene.run();
    scene.sql("UPDATE posts SET title = 'b' WHERE id = 1").await;
    let told = scene.run_fails("target.row_missing");
    // Either the source sends whole rows, or the condition goes; the table is copied again in both cases.
    scene.sql("ALTER TABLE posts REPLICA IDENTITY FULL").await;
    scene.paste(&told, Into::Nowhere).await;
    scene.run();
    scene.sql("UPDATE posts SET title = 'c' WHERE id = 1").await;
    scene.run();
    scene.sql("ALTER TABLE posts REPLICA IDENTITY DEFAULT").await;
    scene.write(&url, "");
    scene.paste(&told, Into::Nowhere).await;
    scene.run();
    scene.sql("UPDATE posts SET title = 'd'").await;
    scene.run();
}

#[tokio::test(flavor = "multi_thread")]
async fn e16_permission() {
    let scene = Scene::on(server(ServerOptions::new(15)).await).await;
    let role = scene.as_role("REPLICATION").await;
    scene
        .sql("CREATE SCHEMA \"Back Office\"; CREATE TABLE \"Back Office\".\"Pay.Roll\" (id int PRIMARY KEY)")
        .await;
    scene.sql("CREATE PUBLICATION ferry FOR TABLE orders, items, \"Back Office\".\"Pay.Roll\"").await;
    scene.edit("tasks.shop", "include = [\"*.*\"]");
    scene.sql(&format!("GRANT USAGE ON SCHEMA \"Back Office\" TO {role}")).await;
    scene.check_finds("source.permission");
    let told = scene.run_fails("source.permission");
    assert!(told.cure("commands")[0].contains("--table 'Back Office.\"Pay.Roll\"'"), "{told:?}");
    scene.paste(&told, Into::Nowhere).await;
    scene.run();
    scene.check_passes();

    scene.sql("ALTER TABLE items OWNER TO postgres; ALTER TABLE items ENABLE ROW LEVEL SECURITY").await;
    scene.sql(&format!("GRANT SELECT ON items TO {role}")).await;
    scene.check_finds("source.row_security");
}

#[tokio::test(flavor = "multi_thread")]
async fn e17_pooler() {
    let scene = plain().await;
    let pooler = curing::pooler(scene.server.port()).await;
    scene.write(&format!("url = \"{}\"", scene.database.url_over(pooler)), "");
    scene.check_finds("source.pooler");
    let mut told = scene.run_fails("source.pooler");
    // It guesses the port, and says so; here another one is right.
    assert_eq!(told.cure("lines"), ["port = 5432"]);
    told.0["cure"]["lines"] = serde_json::json!([format!("url = \"{}\"", scene.database.url())]);
    scene.paste(&told, Into::Section("connections.source")).await;
    scene.run();
    scene.check_passes();
}

#[tokio::test(flavor = "multi_thread")]
async fn e18_tls() {
    let options = ServerOptions::new(15).tls().set("listen_addresses", "127.0.0.1,127.0.0.2");
    let scene = Scene::on(server(options).await).await;
    let keys = |host: &str, more: &str| {
        let (port, database) = (scene.server.port(), scene.database.name());
        format!("host = \"{host}\"\nport = {port}\ndatabase = \"{database}\"\nuser = \"postgres\"\n{more}")
    };
    let authority = scene.server.certificates().unwrap().authority();
    std::fs::copy(&authority, scene.folder.path().join("ca.crt")).unwrap();
    let section = Into::Section("connections.source");

    // An unknown authority; the cure names its file.
    scene.write(&keys("127.0.0.1", "ssl_mode = \"verify-full\""), "");
    cured(&scene, "connection.tls", section).await;
    // Another name.
    scene.write(&keys("127.0.0.2", "ssl_mode = \"verify-full\"\nssl_root_cert = \"ca.crt\""), "");
    let told = scene.run_fails("connection.tls");
    assert!(told.cause().contains("127.0.0.2") && told.cause().contains("localhost"), "{told:?}");
    cured(&scene, "connection.tls", section).await;
    // No encryption at all: the server has its certificate, so the statements alone turn it on.
    scene.sql("ALTER SYSTEM SET ssl = off").await;
    scene.server.reload().await.unwrap();
    cured(&scene, "connection.tls", section).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e19_unreachable() {
    let scene = Scene::on(server(ServerOptions::new(15)).await).await;
    scene.server.stop(StopMode::Fast).await.unwrap();
    scene.check_finds("connection.unreachable");
    let told = scene.run_fails("connection.unreachable");
    assert!(told.advice().starts_with("start the server"), "{told:?}");
    scene.server.resume().await.unwrap();
    scene.run();
    // A name that nobody knows; the line shows whether this machine knows it.
    let url = format!("url = \"{}\"", scene.database.url());
    scene.write(&url.replace("127.0.0.1", "no-such-host.invalid"), "");
    scene.check_finds("connection.unreachable");
    let told = scene.run_fails("connection.unreachable");
    assert_eq!(told.cure("lines"), ["getent hosts no-such-host.invalid"]);
    scene.write(&url.replace("127.0.0.1", "localhost"), "");
    scene
        .paste(&curing::Told(serde_json::json!({"cure": {"lines": ["getent hosts localhost"]}})), Into::Shell)
        .await;
    scene.run();
    scene.check_passes();
}

/// A standby below 16 cannot decode; one from 16 on needs the publication of its primary.
#[tokio::test(flavor = "multi_thread")]
async fn e20_standby() {
    let primary = server(ServerOptions::new(15)).await;
    let scene = Scene::on(primary.clone()).await;
    let standby = primary.standby(&[]).await.unwrap();
    standby.catch_up_with(&primary).await.unwrap();
    scene.write(&format!("url = \"{}\"", standby.url(scene.database.name())), "");
    scene.check_finds("source.standby");
    let told = scene.run_fails("source.standby");
    assert!(told.advice().contains("primary"), "{told:?}");
    scene.write(&format!("url = \"{}\"", scene.database.url()), "");
    scene.run();

    let primary = server(ServerOptions::new(18)).await;
    let scene = Scene::on(primary.clone()).await;
    let standby = primary.standby(&[]).await.unwrap();
    standby.catch_up_with(&primary).await.unwrap();
    scene.write(&format!("url = \"{}\"", standby.url(scene.database.name())), "");
    scene.check_finds("source.standby");
    let told = scene.run_fails("source.standby");
    // The statement is for the primary, as the cure says.
    assert!(told.0["cure"]["run_as"].as_str().unwrap().contains("primary"), "{told:?}");
    scene.paste(&told, Into::Nowhere).await;
    standby.catch_up_with(&primary).await.unwrap();
    let mut running = scene.running();
    while running.0.try_wait().unwrap().is_none() {
        // A standby makes a slot when it has replayed which transactions run; an idle primary says so now and then only.
        scene.sql("SELECT pg_log_standby_snapshot(); UPDATE items SET n = n + 1").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(running.ended(), Some(0));
    scene.check_passes();
}
