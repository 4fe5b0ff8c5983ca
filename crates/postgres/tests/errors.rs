//! Each refusal of a server, provoked: code, class, and a cure that works when pasted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod server;

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use pgferry_model::Class;
use pgferry_postgres::error::{
    AUTHENTICATION, DATABASE_MISSING, HBA_REJECTED, NO_REPLICATION_ROLE, PERMISSION, POOLER, PROTOCOL,
    TOO_MANY_CONNECTIONS, UNAVAILABLE, UNREACHABLE, VERSION, WALSENDERS_EXHAUSTED,
};
use pgferry_postgres::{ConnectionConfig, Purpose, Session, SslMode, sqlstate};
use pgferry_testkit::{Server, ServerOptions};
use server::{assert_error, config, connect, refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

async fn run(server: &Server, statements: &[&str]) {
    let client = server.client("postgres").await.unwrap();
    for statement in statements {
        client.batch_execute(statement).await.unwrap_or_else(|failure| panic!("{statement}: {failure:?}"));
    }
}

async fn apply_cure(server: &Server, error: &pgferry_model::Error) {
    let cure = error.cure().expect("a cure");
    assert!(!cure.sql.is_empty(), "{cure:?}");
    for statement in &cure.sql {
        run(server, &[statement]).await;
    }
}

#[tokio::test]
async fn a_role_without_replication_gets_it_by_the_cure() {
    for major in [10, 15, 18] {
        let server = Server::shared(major).await.unwrap();
        let role = format!("No \"Repl\" {major}");
        run(&server, &[&format!("CREATE ROLE {} LOGIN", pgferry_postgres::quote_identifier(&role))]).await;
        let config = config(&server, &role, None);
        let error = refusal(&config, Purpose::Replication).await;
        assert_error(&error, NO_REPLICATION_ROLE, "replication connection");
        assert_eq!((error.class(), sqlstate(&error)), (Class::TaskBroken, Some("42501")));
        apply_cure(&server, &error).await;
        Session::connect(&config, Purpose::Replication).await.unwrap();
    }
}

#[tokio::test]
async fn the_line_of_the_cure_opens_pg_hba() {
    for major in [10, 18] {
        let options = ServerOptions::new(major).hba("host all shut 127.0.0.1/32 reject");
        let server = Server::start(options).await.unwrap();
        run(&server, &["SET password_encryption = 'scram-sha-256'; CREATE ROLE shut LOGIN PASSWORD 'p'"])
            .await;
        let config = config(&server, "shut", Some("p"));
        let error = refusal(&config, Purpose::Query).await;
        assert_error(&error, HBA_REJECTED, "role shut to database postgres from 127.0.0.1");
        let path = server.data_dir().join("pg_hba.conf");
        let old = std::fs::read_to_string(&path).unwrap();
        let line = &error.cure().unwrap().lines[0];
        assert_eq!(line, "host postgres shut 127.0.0.1/32 scram-sha-256");
        std::fs::write(&path, format!("{line}\n{old}")).unwrap();
        server.reload().await.unwrap();
        connect(&config).await.unwrap();
    }
}

#[tokio::test]
async fn walsenders_and_connections_run_out() {
    for major in [10, 15] {
        let options = ServerOptions::new(major).set("max_wal_senders", 1).set("max_connections", 12);
        let server = Server::start(options).await.unwrap();
        let mut config = config(&server, "postgres", None);
        let held = Session::connect(&config, Purpose::Replication).await.unwrap();
        let error = refusal(&config, Purpose::Replication).await;
        assert_error(&error, WALSENDERS_EXHAUSTED, "max_wal_senders");
        assert_eq!(error.class(), Class::Transient);
        apply_cure_statements_parse(&server, &error).await;
        held.close().await.unwrap();
        run(&server, &["CREATE ROLE few LOGIN CONNECTION LIMIT 1"]).await;
        config.user = "few".into();
        let held = connect(&config).await.unwrap();
        let error = refusal(&config, Purpose::Query).await;
        assert_error(&error, TOO_MANY_CONNECTIONS, "few");
        assert_eq!(error.class(), Class::Transient);
        held.close().await.unwrap();
    }
}

/// The statements are accepted; what they set waits for a restart, which the cure says.
async fn apply_cure_statements_parse(server: &Server, error: &pgferry_model::Error) {
    apply_cure(server, error).await;
    assert_eq!(error.cure().unwrap().restart, pgferry_model::Restart::Server);
}

#[tokio::test]
async fn a_table_without_privilege_is_readable_after_the_cure() {
    for major in [10, 15, 18] {
        let server = Server::shared(major).await.unwrap();
        run(
            &server,
            &[
                "CREATE SCHEMA \"Shop\"",
                "CREATE TABLE \"Shop\".\"Orders\" (id int)",
                "CREATE ROLE \"Lake\" LOGIN",
            ],
        )
        .await;
        let mut session = connect(&config(&server, "Lake", None)).await.unwrap();
        let copy = "COPY (SELECT id FROM ONLY \"Shop\".\"Orders\") TO STDOUT";
        let error = session.copy_out(copy).await.unwrap_err();
        assert_error(&error, PERMISSION, "permission denied for schema Shop");
        run(&server, &["GRANT USAGE ON SCHEMA \"Shop\" TO \"Lake\""]).await;
        let error = session.copy_out(copy).await.unwrap_err();
        assert_error(&error, PERMISSION, "Orders");
        apply_cure(&server, &error).await;
        session.copy_out(copy).await.unwrap();
        run(&server, &["DROP SCHEMA \"Shop\" CASCADE", "DROP OWNED BY \"Lake\"", "DROP ROLE \"Lake\""]).await;
    }
}

#[tokio::test]
async fn a_database_that_admits_nobody_names_its_grant() {
    let server = Server::shared(15).await.unwrap();
    run(
        &server,
        &["CREATE ROLE outside LOGIN", "CREATE DATABASE closed", "REVOKE ALL ON DATABASE closed FROM public"],
    )
    .await;
    let mut config = config(&server, "outside", None);
    config.database = "closed".into();
    let error = refusal(&config, Purpose::Query).await;
    assert_error(&error, PERMISSION, "closed");
    apply_cure(&server, &error).await;
    connect(&config).await.unwrap();
}

#[tokio::test]
async fn wrong_names_and_passwords_are_told_apart() {
    let options = ServerOptions::new(15)
        .hba("host all secret 127.0.0.1/32 scram-sha-256")
        .hba("host all old 127.0.0.1/32 md5")
        .hba("host all clear 127.0.0.1/32 password");
    let server = Server::start(options).await.unwrap();
    run(
        &server,
        &[
            "CREATE ROLE secret LOGIN PASSWORD 'right'",
            "SET password_encryption = 'md5'; CREATE ROLE old LOGIN PASSWORD 'right'",
            "CREATE ROLE clear LOGIN PASSWORD 'right'",
            "CREATE ROLE nologin",
        ],
    )
    .await;
    for user in ["secret", "old"] {
        let session = connect(&config(&server, user, Some("right"))).await.unwrap();
        assert!(!session.encrypted());
        let error = refusal(&config(&server, user, Some("hunter2")), Purpose::Query).await;
        assert_error(&error, AUTHENTICATION, "password is wrong");
        assert_eq!((error.class(), sqlstate(&error)), (Class::TaskBroken, Some("28P01")));
        assert!(!format!("{error:?}").contains("hunter2"));
    }
    let error = refusal(&config(&server, "clear", Some("right")), Purpose::Query).await;
    assert_error(&error, AUTHENTICATION, "clear text without encryption");
    for user in ["nobody", "nologin"] {
        let error = refusal(&config(&server, user, None), Purpose::Query).await;
        assert_error(&error, AUTHENTICATION, "role does not exist");
    }
    let mut missing = config(&server, "postgres", None);
    missing.database = "Shop".into();
    let error = refusal(&missing, Purpose::Query).await;
    assert_error(&error, DATABASE_MISSING, "\"Shop\" does not exist");
    apply_cure(&server, &error).await;
}

#[tokio::test]
async fn an_ended_session_is_transient() {
    let server = Server::shared(15).await.unwrap();
    let mut session = connect(&config(&server, "postgres", None)).await.unwrap();
    run(&server, &[&format!("SELECT pg_terminate_backend({})", session.backend_pid())]).await;
    let error = session.simple_query("SELECT 1").await.unwrap_err();
    assert_eq!(error.class(), Class::Transient);
    assert!([UNAVAILABLE, UNREACHABLE].contains(&error.code()), "{error:?}");
}

#[tokio::test]
async fn a_refused_port_an_unknown_name_and_silence_are_told_apart() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    let mut config = ConnectionConfig::new("localhost", port, "postgres", "postgres");
    config.connect_timeout = Duration::from_secs(1);
    let error = refusal(&config, Purpose::Query).await;
    assert_error(&error, UNREACHABLE, "did not answer within 1.0 s");
    drop(free);
    let error = refusal(&config, Purpose::Query).await;
    assert_error(&error, UNREACHABLE, &format!("127.0.0.1:{port}: refused"));
    config.host = "no-such-host.invalid".into();
    let error = refusal(&config, Purpose::Query).await;
    assert_error(&error, UNREACHABLE, "no-such-host.invalid");
    config.host = "/no/such/folder".into();
    let error = refusal(&config, Purpose::Query).await;
    assert_error(&error, UNREACHABLE, "no such socket");
    assert_eq!(error.class(), Class::Transient);
}

#[tokio::test]
async fn a_pooler_that_refuses_replication_is_named() {
    let fatal = b"SFATAL\0C08P01\0Munsupported startup parameter: replication\0\0";
    let port = responder(message(b'E', fatal)).await;
    let mut config = ConnectionConfig::new("127.0.0.1", port, "postgres", "postgres");
    config.tls.mode = SslMode::Disable;
    let error = refusal(&config, Purpose::Replication).await;
    assert_error(&error, POOLER, "does not pass replication");
    assert_eq!(error.class(), Class::TaskBroken);
}

/// The real one where it is installed, before a server: how to connect to it, and what ends it when dropped.
async fn pgbouncer(
    server: &Server,
    mode: &str,
) -> Option<(ConnectionConfig, tokio::process::Child, tempfile::TempDir)> {
    let program = std::path::Path::new("/usr/sbin/pgbouncer");
    if !program.exists() {
        return None;
    }
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let settings = folder.path().join("pgbouncer.ini");
    let text = format!(
        "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nauth_type = any\nunix_socket_dir =\npool_mode = {mode}\n",
        server.port()
    );
    std::fs::write(&settings, text).unwrap();
    let running = tokio::process::Command::new(program)
        .args(["-q", "-u", "postgres"])
        .arg(&settings)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut config = config(server, "postgres", None);
    config.port = port;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while let Err(error) = connect(&config).await {
        assert!(tokio::time::Instant::now() < deadline, "{error} {:?}", error.cause());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Some((config, running, folder))
}

/// Its words are also what the test above answers with.
#[tokio::test]
async fn pgbouncer_passes_statements_and_not_replication() {
    let server = Server::shared(15).await.unwrap();
    let Some((config, mut running, _folder)) = pgbouncer(&server, "session").await else { return };
    assert_error(&refusal(&config, Purpose::Replication).await, POOLER, "does not pass replication");
    running.kill().await.unwrap();
}

#[tokio::test]
async fn a_session_that_is_handed_on_between_transactions_is_noticed() {
    let server = Server::shared(15).await.unwrap();
    let Some((config, mut running, _folder)) = pgbouncer(&server, "transaction").await else { return };
    let mut ours = Session::connect(&config, Purpose::Copy).await.unwrap();
    let mut others = Session::connect(&config, Purpose::Copy).await.unwrap();
    let begin = "BEGIN; SELECT pg_catalog.pg_backend_pid()";
    let mut refused = Vec::new();
    // Both were set up over one connection, one after the other; at the same time they need two.
    for session in [&mut ours, &mut others] {
        let rows = session.simple_query(begin).await.unwrap();
        refused.extend(session.verify_process(rows[0][0].as_deref().unwrap()).err());
    }
    let error = refused.first().expect("one of two has another process than it was set up in");
    assert_error(error, POOLER, "gives each transaction another connection");
    for session in [&mut ours, &mut others] {
        session.simple_query("ROLLBACK").await.unwrap();
    }
    ours.simple_query("PREPARE left_behind AS SELECT 1").await.unwrap();
    let mut refused = Vec::new();
    for _ in 0..2 {
        refused.extend(others.simple_query("PREPARE left_behind AS SELECT 1").await.err());
    }
    assert_error(refused.first().expect("a statement of another session"), POOLER, "another connection");
    running.kill().await.unwrap();
}

#[tokio::test]
async fn an_old_server_is_refused_before_anything_is_asked() {
    let mut answer = message(b'R', &[0; 4]);
    answer.extend(message(b'S', b"server_version\x009.6.24\0"));
    answer.extend(message(b'Z', b"I"));
    let mut config = ConnectionConfig::new("127.0.0.1", responder(answer).await, "postgres", "postgres");
    config.tls.mode = SslMode::Disable;
    assert_error(&refusal(&config, Purpose::Query).await, VERSION, "9.6.24");
}

#[tokio::test]
async fn what_is_no_postgresql_server_is_said() {
    let port = responder(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()).await;
    let mut config = ConnectionConfig::new("127.0.0.1", port, "postgres", "postgres");
    assert_error(&refusal(&config, Purpose::Query).await, PROTOCOL, "is no PostgreSQL server");
    config.tls.mode = SslMode::Disable;
    assert_error(&refusal(&config, Purpose::Query).await, PROTOCOL, "protocol");
    // A login that claims 1 GB is refused by its length.
    config.port = responder(vec![b'R', 0x3f, 0xff, 0xff, 0xff, 0, 0]).await;
    assert_error(&refusal(&config, Purpose::Query).await, PROTOCOL, "longer than PostgreSQL sends");
}

/// Reads one startup message of any kind and answers every connection with `answer`. Returns its port.
async fn responder(answer: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let length = socket.read_u32().await.unwrap_or(4) as usize;
            let mut body = vec![0; length.saturating_sub(4).min(4096)];
            if socket.read_exact(&mut body).await.is_ok() {
                let _ = socket.write_all(&answer).await;
                let _ = socket.read(&mut [0; 64]).await;
            }
        }
    });
    port
}

/// One message of the server.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}
