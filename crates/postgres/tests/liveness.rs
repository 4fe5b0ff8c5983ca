//! A silent server is waited for where it works and given up where nothing can come of it, on real servers behind a proxy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

use std::time::{Duration, Instant};

use pgferry_model::Error;
use pgferry_postgres::error::UNREACHABLE;
use pgferry_postgres::{ConnectionConfig, Purpose, Session, SslMode};
use pgferry_testkit::Server;
use pgferry_testkit::proxy::{Direction, Fault, Proxy};

const MAJORS: [u32; 4] = [10, 13, 15, 18];
const PROBE_AFTER: Duration = Duration::from_millis(300);

fn behind(proxy: &Proxy) -> ConnectionConfig {
    let mut config = ConnectionConfig::new("127.0.0.1", proxy.port(), "postgres", "postgres");
    config.tls.mode = SslMode::Disable;
    config.probe_after = PROBE_AFTER;
    config.connect_timeout = Duration::from_secs(2);
    config
}

fn assert_lost(failure: &Error, piece: &str) {
    assert_eq!(failure.code(), UNREACHABLE, "{failure:?}");
    assert!(failure.cause().is_some_and(|cause| cause.contains(piece)), "{piece:?} is not in {failure:?}");
}

async fn runs(server: &Server, pid: i32) -> bool {
    let client = server.client("postgres").await.unwrap();
    let sql = "SELECT 1 FROM pg_stat_activity WHERE pid = $1";
    client.query_opt(sql, &[&pid]).await.unwrap().is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_works_is_waited_for() {
    for major in MAJORS {
        let server = Server::shared(major).await.unwrap();
        let proxy = Proxy::to(&server).await.unwrap();
        let config = behind(&proxy);
        for purpose in [Purpose::Query, Purpose::Copy, Purpose::Replication] {
            let mut session = Session::connect(&config, purpose).await.unwrap();
            let rows = session.simple_query("SELECT 'done' FROM (SELECT pg_sleep(0.8)) s").await.unwrap();
            assert_eq!(rows, [[Some("done".to_owned())]], "{major} {purpose:?}");
            session.close().await.unwrap();
        }
        assert!(proxy.accepted() > 3, "{major}: nobody was asked");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_waited_for() {
    let server = Server::shared(15).await.unwrap();
    let database = server.create_database().await.unwrap();
    database.execute("CREATE TABLE locked (id int)").await.unwrap();
    let holder = database.client().await.unwrap();
    holder.batch_execute("BEGIN; LOCK TABLE locked").await.unwrap();
    let proxy = Proxy::to(&server).await.unwrap();
    let mut config = behind(&proxy);
    config.database = database.name().to_owned();
    let mut session = Session::connect(&config, Purpose::Query).await.unwrap();
    let release = async {
        tokio::time::sleep(PROBE_AFTER * 5).await;
        holder.batch_execute("ROLLBACK").await.unwrap();
    };
    let (rows, ()) = tokio::join!(session.simple_query("SELECT count(*) FROM public.locked"), release);
    assert_eq!(rows.unwrap(), [[Some("0".to_owned())]]);
}

/// The proxy answers for the server: TCP's own probes see nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_which_nothing_comes_any_more_is_given_up_and_its_process_ended() {
    for major in MAJORS {
        let server = Server::shared(major).await.unwrap();
        let proxy = Proxy::to(&server).await.unwrap();
        let mut session = Session::connect(&behind(&proxy), Purpose::Copy).await.unwrap();
        let pid = session.backend_pid();
        proxy.after_bytes(Direction::ToClient, 1_000_000, Fault::Silence);
        session
            .copy_out("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT")
            .await
            .unwrap();
        let started = Instant::now();
        let failure = loop {
            match session.read_some().await {
                Ok(bytes) => assert!(bytes > 0, "{major}: it ended"),
                Err(failure) => break failure,
            }
            while session.peek_frame().unwrap().is_some() {
                session.consume_frame();
            }
        };
        assert_lost(&failure, "its process has answered, and nothing of that arrives");
        assert!(started.elapsed() < Duration::from_secs(5), "{major}: {:?}", started.elapsed());
        for _ in 0..100 {
            if !runs(&server, pid).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!runs(&server, pid).await, "{major}: the process is still there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_ended_unheard_and_a_server_that_nobody_reaches_are_given_up() {
    let server = Server::shared(15).await.unwrap();
    let proxy = Proxy::to(&server).await.unwrap();
    let config = behind(&proxy);
    for refused in [false, true] {
        let mut session = Session::connect(&config, Purpose::Query).await.unwrap();
        proxy.inject(Direction::ToClient, Fault::Silence);
        let client = server.client("postgres").await.unwrap();
        client.execute("SELECT pg_terminate_backend($1)", &[&session.backend_pid()]).await.unwrap();
        if refused {
            proxy.refuse().await;
        }
        let failure = session.simple_query("SELECT 1").await.unwrap_err();
        let piece = if refused { "nor does it answer a new connection" } else { "its process has ended" };
        assert_lost(&failure, piece);
    }
}
