//! The servers themselves: every major starts, restarts, recovers, follows and leaves nothing behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

use pgferry_testkit::server::{MAJORS, StopMode};
use pgferry_testkit::{Server, ServerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn every_major_is_shared_and_gives_each_test_its_own_database() {
    for major in MAJORS {
        let server = Server::shared(major).await.unwrap();
        let again = Server::shared(major).await.unwrap();
        assert_eq!(server.port(), again.port());
        let (one, two) = (server.create_database().await.unwrap(), server.create_database().await.unwrap());
        assert_ne!(one.name(), two.name());
        let client = one.client().await.unwrap();
        let row = client.query_one(
            "SELECT current_setting('server_version_num')::int, current_setting('wal_level')",
            &[],
        );
        let row = row.await.unwrap();
        assert_eq!(row.get::<_, i32>(0) as u32, server.version_num());
        assert_eq!(row.get::<_, &str>(1), "logical");
        let (client, connection) = tokio_postgres::connect(&two.url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        assert!(client.query_one("SELECT 1", &[]).await.is_ok(), "{major} over TCP");
    }
}

#[tokio::test]
async fn a_database_goes_with_its_sessions_slots_and_prepared_transactions() {
    for major in MAJORS {
        let server = Server::shared(major).await.unwrap();
        let database = server.create_database().await.unwrap();
        let name = database.name().to_owned();
        let open = database.client().await.unwrap();
        open.batch_execute("CREATE TABLE t (n int)").await.unwrap();
        open.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&name]).await.unwrap();
        open.batch_execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'it''s open'")
            .await
            .unwrap();
        open.batch_execute("BEGIN; INSERT INTO t VALUES (2)").await.unwrap();
        drop(database);
        let client = server.client("postgres").await.unwrap();
        for query in [
            "SELECT count(*) FROM pg_database WHERE datname = $1",
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1",
        ] {
            assert_eq!(
                client.query_one(query, &[&name]).await.unwrap().get::<_, i64>(0),
                0,
                "{major}: {query}"
            );
        }
    }
}

#[tokio::test]
async fn committed_rows_outlive_every_way_to_stop() {
    for major in MAJORS {
        let server = Server::start(ServerOptions::new(major).durable()).await.unwrap();
        let database = server.create_database().await.unwrap();
        database.execute("CREATE TABLE t (n int)").await.unwrap();
        let port = server.port();
        for (round, mode) in [StopMode::Fast, StopMode::Immediate, StopMode::Kill].into_iter().enumerate() {
            database.execute("INSERT INTO t VALUES (1)").await.unwrap();
            server.stop(mode).await.unwrap();
            assert!(!server.running());
            assert!(database.client().await.is_err(), "{major} {mode:?}");
            server.resume().await.unwrap();
            let rows =
                database.client().await.unwrap().query_one("SELECT count(*) FROM t", &[]).await.unwrap();
            assert_eq!(rows.get::<_, i64>(0), round as i64 + 1, "{major} {mode:?}");
        }
        assert_eq!(server.port(), port);
        assert!(server.data_dir().exists());
        let folder = server.data_dir();
        drop(database);
        drop(server);
        assert!(!folder.exists(), "{major}: the folder goes with the last handle");
    }
}

#[tokio::test]
async fn settings_take_effect_at_start_on_reload_and_on_restart() {
    for major in MAJORS {
        let options =
            ServerOptions::new(major).set("wal_sender_timeout", "1234ms").set("max_replication_slots", 3);
        let server = Server::start(options.small_decoding_memory()).await.unwrap();
        let show = async |name: &str| -> String {
            let client = server.client("postgres").await.unwrap();
            client.query_one(&format!("SHOW {name}"), &[]).await.unwrap().get(0)
        };
        assert_eq!(show("wal_sender_timeout").await, "1234ms");
        assert_eq!(show("max_replication_slots").await, "3");
        if major >= 13 {
            assert_eq!(show("logical_decoding_work_mem").await, "64kB");
        }
        assert!(!server.set("wal_sender_timeout", "5s").await.unwrap());
        assert_eq!(show("wal_sender_timeout").await, "5s");
        assert!(server.set("max_replication_slots", "7").await.unwrap());
        assert_eq!(show("max_replication_slots").await, "3");
        server.restart(StopMode::Fast).await.unwrap();
        assert_eq!(show("max_replication_slots").await, "7");
    }
}

#[tokio::test]
async fn an_unknown_setting_is_told_in_the_servers_words() {
    let error = Server::start(ServerOptions::new(15).set("no_such_setting", 1)).await.unwrap_err();
    assert!(
        format!("{error:#}").contains("unrecognized configuration parameter \"no_such_setting\""),
        "{error:#}"
    );
}

#[tokio::test]
async fn a_major_that_is_not_installed_names_the_cure() {
    let error = Server::start(ServerOptions::new(9)).await.unwrap_err();
    assert!(format!("{error:#}").contains("scripts/setup --test"), "{error:#}");
    assert!(Server::shared(9).await.is_err());
}

#[tokio::test]
async fn host_lines_ask_for_the_password_of_the_chosen_kind() {
    for (major, kind) in [(10, "scram-sha-256"), (13, "md5"), (18, "scram-sha-256")] {
        let options = ServerOptions::new(major).set("password_encryption", kind);
        let server =
            Server::start(options.hba(&format!("host all reader 127.0.0.1/32 {kind}"))).await.unwrap();
        let admin = server.client("postgres").await.unwrap();
        admin.batch_execute("CREATE ROLE reader LOGIN PASSWORD 'päss word'").await.unwrap();
        let mut config: tokio_postgres::Config = server.url("postgres").parse().unwrap();
        config.user("reader").password("wrong");
        assert!(config.connect(tokio_postgres::NoTls).await.is_err(), "{major}");
        config.password("päss word");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let row = client.query_one("SELECT current_user::text", &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "reader");
    }
}

#[tokio::test]
async fn tls_is_offered_with_a_certificate_of_the_servers_authority() {
    for major in MAJORS {
        let server = Server::start(ServerOptions::new(major).tls()).await.unwrap();
        let certificates = server.certificates().unwrap();
        let (certificate, key) = certificates.client("reader").unwrap();
        assert!(certificate.exists() && key.exists());
        let mut roots = rustls::RootCertStore::empty();
        let pem = std::fs::read(certificates.authority()).unwrap();
        use rustls::pki_types::pem::PemObject;
        roots.add(rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let url = format!("{}?sslmode=require", server.url("postgres")).replace("127.0.0.1", "localhost");
        let tls = tokio_postgres_rustls::MakeRustlsConnect::new(tls);
        let (client, connection) = tokio_postgres::connect(&url, tls).await.unwrap();
        tokio::spawn(connection);
        let row =
            client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await.unwrap();
        assert!(row.get::<_, bool>(0), "{major}");
    }
    let plain = Server::shared(18).await.unwrap();
    let mut socket = TcpStream::connect(("127.0.0.1", plain.port())).await.unwrap();
    socket.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'N', "without the option there is no TLS");
}

#[tokio::test]
async fn a_standby_follows_and_takes_over() {
    for major in MAJORS {
        let primary = Server::start(ServerOptions::new(major)).await.unwrap();
        let database = primary.create_database().await.unwrap();
        database.execute("CREATE TABLE t AS SELECT generate_series(1, 10000) AS n").await.unwrap();
        let standby = primary.standby(&[("hot_standby_feedback", "on")]).await.unwrap();
        database.execute("INSERT INTO t VALUES (0)").await.unwrap();
        standby.catch_up_with(&primary).await.unwrap();
        let client = standby.client(database.name()).await.unwrap();
        let count = async || client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0);
        assert_eq!(count().await, 10_001, "{major}");
        assert!(client.batch_execute("INSERT INTO t VALUES (-1)").await.is_err(), "{major} reads only");
        primary.kill9().await.unwrap();
        standby.promote().await.unwrap();
        client.batch_execute("INSERT INTO t VALUES (-1)").await.unwrap();
        assert_eq!(count().await, 10_002, "{major}: the session has lived through the change");
        let log = std::fs::read_to_string(standby.log_path()).unwrap();
        assert!(!log.contains("was terminated by signal"), "{major}: a process of the standby crashed");
    }
}

#[tokio::test]
async fn the_watcher_ends_and_removes_everything_of_a_killed_test_process() {
    if std::env::var_os("TESTKIT_VICTIM").is_some() {
        let server = Server::shared(15).await.unwrap();
        println!("pid={} data={}", server.pid().unwrap(), server.data_dir().display());
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        return;
    }
    let mut victim = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_watcher_ends_and_removes_everything_of_a_killed_test_process", "--nocapture"])
        .env("TESTKIT_VICTIM", "1")
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines =
        tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(victim.stdout.take().unwrap()));
    let line = loop {
        let line = lines.next_line().await.unwrap().expect("the victim says where its server is");
        if let Some(at) = line.find("pid=") {
            break line[at..].to_owned();
        }
    };
    let (pid, data) = line.strip_prefix("pid=").unwrap().split_once(" data=").unwrap();
    let data = std::path::PathBuf::from(data);
    let process = std::path::PathBuf::from(format!("/proc/{pid}"));
    assert!(data.exists() && process.exists());
    victim.kill().await.unwrap();
    let root = data.ancestors().nth(2).unwrap();
    for _ in 0..400 {
        if !root.exists() && !process.exists() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("left behind: folder {}, process {}", root.exists(), process.exists());
}
