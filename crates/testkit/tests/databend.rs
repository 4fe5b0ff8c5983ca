//! The Databend server of the test kit, seen by Databend's own clients: what is theirs to rely on, and every fault that it can make.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Cursor, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use databend_client::APIClient;
use pgferry_testkit::databend::{
    DatabendServer, DatabendSettings, DatabendTls, Fault, FaultKind, VERSION, python,
};
use pgferry_testkit::kafka::NotInstalled;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use tempfile::TempDir;

type Rows = Vec<Vec<Option<String>>>;

/// What is there; `None`, said on the terminal, where it is not installed.
fn or_said<T>(there: Result<T, NotInstalled>) -> Option<T> {
    there
        .inspect_err(|missing| {
            // Not with a macro: those the test runner shows of failed tests only.
            writeln!(std::io::stderr().lock(), "NOT RUN: a test on Databend: {}", missing.0).unwrap();
        })
        .ok()
}

fn shared() -> Option<DatabendServer> {
    or_said(DatabendServer::shared().unwrap())
}

fn own(settings: &DatabendSettings) -> Option<DatabendServer> {
    or_said(DatabendServer::start(settings).unwrap())
}

/// A client that tries everything twice, at once.
async fn try_connect(server: &DatabendServer, more: &str) -> Result<Arc<APIClient>, String> {
    let dsn = server.dsn("default") + "&timezone=UTC&retry_count=2&retry_delay_secs=0" + more;
    APIClient::new(&dsn, None).await.map_err(|error| error.to_string())
}

async fn connect(server: &DatabendServer) -> Arc<APIClient> {
    try_connect(server, "").await.unwrap()
}

async fn run(client: &Arc<APIClient>, sql: &str) -> Result<Rows, String> {
    client.query_all(sql, None).await.map(|page| page.data).map_err(|error| error.to_string())
}

async fn ok(client: &Arc<APIClient>, sql: &str) -> Rows {
    run(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// The code and the text of the error that it must be.
async fn fails(client: &Arc<APIClient>, sql: &str, with: &str) {
    let error = run(client, sql).await.expect_err(sql);
    assert!(error.contains(with), "{sql}: {error}, not {with}");
}

async fn upload(client: &Arc<APIClient>, stage_path: &str, content: &str) -> Result<(), String> {
    let (content, size) = (content.as_bytes().to_vec(), content.len() as u64);
    client
        .upload_to_stage(stage_path, Box::new(Cursor::new(content)), size)
        .await
        .map_err(|error| error.to_string())
}

fn rows(texts: &[&[&str]]) -> Rows {
    let value = |text: &&str| (*text != "NULL").then(|| (*text).to_owned());
    texts.iter().map(|row| row.iter().map(value).collect()).collect()
}

fn count(server: &DatabendServer, table: &str) -> u64 {
    let rows = server.query(&format!("SELECT count(*) FROM {table}")).unwrap();
    rows[0][0].as_deref().unwrap().parse().unwrap()
}

#[tokio::test]
async fn statements_and_typed_rows_go_there_and_back() {
    let Some(server) = shared() else { return };
    let client = connect(&server).await;
    ok(&client, "CREATE DATABASE typed").await;
    ok(&client, "CREATE TABLE typed.t (id INT NOT NULL, price DECIMAL(20,5), at TIMESTAMP, doc VARIANT, tags ARRAY(STRING))")
        .await;
    ok(
        &client,
        r#"INSERT INTO typed.t VALUES (1, 1.5, '2024-02-29 01:02:03.000004', '{"a": [1.10, null]}', ['x', NULL]),
           (2, NULL, NULL, NULL, NULL)"#,
    )
    .await;
    let page = client.query_all("SELECT * FROM typed.t ORDER BY id", None).await.unwrap();
    let expected = rows(&[
        &["1", "1.50000", "2024-02-29 01:02:03.000004", r#"{"a":[1.10,null]}"#, "['x',NULL]"],
        &["2", "NULL", "NULL", "NULL", "NULL"],
    ]);
    assert_eq!(page.data, expected);
    let types: Vec<_> = page.raw_schema.iter().map(|field| field.data_type.as_str()).collect();
    let expected_types = [
        "Int32",
        "Nullable(Decimal(20, 5))",
        "Nullable(Timestamp)",
        "Nullable(Variant)",
        "Nullable(Array(Nullable(String)))",
    ];
    assert_eq!(types, expected_types);
    assert_eq!(server.query("SELECT * FROM typed.t ORDER BY id").unwrap(), expected);

    fails(&client, "SELECT * FROM typed.nowhere", "[1025]").await;
    fails(&client, "SELEC", "[1005]").await;
    let told = server.query("SELECT * FROM typed.nowhere").unwrap_err().to_string();
    assert!(told.starts_with("[1025] ") && told.contains("nowhere"), "{told}");
    // More than two pages of the server's.
    let many = "SELECT number FROM numbers(25000) ORDER BY number";
    assert_eq!(ok(&client, many).await.len(), 25_000);
    assert_eq!(server.query(many).unwrap().last().unwrap(), &[Some("24999".to_owned())]);

    ok(&client, "USE typed").await;
    assert_eq!(ok(&client, "SELECT count(*) FROM t").await, rows(&[&["2"]]), "the state is the client's");
    let refused = try_connect(&server, "&no_such_setting=1").await.err().unwrap();
    assert!(refused.contains("[2801]"), "{refused}");
}

#[tokio::test]
async fn a_transaction_is_seen_by_others_when_it_commits_and_conflicts_are_told() {
    let Some(server) = shared() else { return };
    let (one, two) = (connect(&server).await, connect(&server).await);
    ok(&one, "CREATE TABLE accounts (id INT, amount INT)").await;
    ok(&one, "BEGIN").await;
    ok(&one, "INSERT INTO accounts VALUES (1, 10)").await;
    assert_eq!(ok(&one, "SELECT count(*) FROM accounts").await, rows(&[&["1"]]));
    assert_eq!(ok(&two, "SELECT count(*) FROM accounts").await, rows(&[&["0"]]));
    ok(&one, "COMMIT").await;
    assert_eq!(ok(&two, "SELECT count(*) FROM accounts").await, rows(&[&["1"]]));

    for client in [&one, &two] {
        ok(client, "BEGIN").await;
        ok(client, "UPDATE accounts SET amount = amount + 1").await;
    }
    ok(&one, "COMMIT").await;
    fails(&two, "COMMIT", "[4001]").await;
    assert_eq!(ok(&two, "SELECT amount FROM accounts").await, rows(&[&["11"]]), "it is over all the same");

    ok(&one, "BEGIN").await;
    ok(&one, "INSERT INTO accounts VALUES (2, 20)").await;
    fails(&one, "SELECT nothing", "[1065]").await;
    fails(&one, "SELECT 1", "[4002]").await;
    ok(&one, "COMMIT").await;
    assert_eq!(count(&server, "accounts"), 1, "the commit of an aborted transaction rolls back");

    ok(&one, "BEGIN").await;
    ok(&one, "INSERT INTO accounts VALUES (3, 30)").await;
    ok(&one, "CREATE TABLE more_accounts (id INT)").await;
    assert_eq!(count(&server, "accounts"), 2, "DDL commits first");
}

#[tokio::test]
async fn an_uploaded_file_is_copied_once_by_its_name() {
    let Some(server) = shared() else { return };
    let client = connect(&server).await;
    ok(&client, "CREATE STAGE parts").await;
    ok(&client, "CREATE TABLE parts (id INT, name STRING)").await;
    upload(&client, "@parts/a/1.csv", "1,one\n2,two\n").await.unwrap();
    upload(&client, "@parts/a/1.csv.old", "9,nine\n").await.unwrap();
    let copy = "COPY INTO parts FROM @parts/a FILES = ('1.csv') FILE_FORMAT = (TYPE = CSV)";
    assert_eq!(ok(&client, copy).await, rows(&[&["a/1.csv", "2", "0", "NULL", "NULL"]]));
    assert_eq!(ok(&client, copy).await, rows(&[]), "a file counts once");
    assert_eq!(count(&server, "parts"), 2);

    upload(&client, "@parts/a/2.csv", "3,three\n").await.unwrap();
    ok(&client, "COPY INTO parts FROM @parts/a FILES = ('2.csv') FILE_FORMAT = (TYPE = CSV) PURGE = TRUE")
        .await;
    let left = server.query("SELECT name FROM list_stage(location => '@parts') ORDER BY name").unwrap();
    assert_eq!(left, rows(&[&["a/1.csv"], &["a/1.csv.old"]]));
    assert_eq!(count(&server, "parts"), 3);

    let absent = "COPY INTO parts FROM @parts/a FILES = ('3.csv') FILE_FORMAT = (TYPE = CSV)";
    fails(&client, absent, "[3001]").await;
    let refused = upload(&client, "@nowhere/a.csv", "1\n").await.unwrap_err();
    assert!(refused.contains("2501"), "{refused}");
}

#[tokio::test]
async fn each_kind_of_fault_does_what_it_says() {
    let Some(server) = own(&DatabendSettings::default()) else { return };
    let client = connect(&server).await;
    let insert = "INSERT INTO t VALUES (1)";
    // How many rows one insert leaves, and what is said of it.
    let tried = async |fault: Fault| {
        server.query("CREATE OR REPLACE TABLE t (id INT)").unwrap();
        server.clear_faults().unwrap();
        server.fault(&fault).unwrap();
        let outcome = run(&client, insert).await;
        (outcome.map(drop), count(&server, "t"), server.faults_fired().unwrap())
    };
    // The client repeats what had no answer; the server knows it again.
    let once = |kind| Fault::on_sql("^insert", kind);
    assert_eq!(tried(once(FaultKind::Unavailable)).await, (Ok(()), 1, 1));
    assert_eq!(tried(once(FaultKind::DropBefore)).await, (Ok(()), 1, 1));
    assert_eq!(tried(once(FaultKind::DropAfter)).await, (Ok(()), 1, 1));
    for (kind, left) in [(FaultKind::Unavailable, 0), (FaultKind::DropBefore, 0), (FaultKind::DropAfter, 1)] {
        let (outcome, count, fired) = tried(once(kind.clone()).times(2)).await;
        assert!(outcome.is_err() && count == left && fired == 2, "{kind:?}: {outcome:?}, {count}, {fired}");
    }
    let conflict = FaultKind::Error { code: 4001, message: "a conflict".to_owned() };
    let (outcome, left, fired) = tried(once(conflict.clone())).await;
    assert!(outcome.unwrap_err().contains("[4001]a conflict"));
    assert_eq!((left, fired), (0, 1));
    let answer = FaultKind::Answer { status: 429, code: 1, message: "slowly".to_owned() };
    let (outcome, left, _) = tried(Fault::on_path("^/v1/query$", answer)).await;
    assert!(outcome.unwrap_err().contains("slowly") && left == 0);

    // Two pass, one fails, the others pass; and a fault takes its transaction with it.
    server.clear_faults().unwrap();
    server.fault(&once(conflict.clone()).after(2)).unwrap();
    ok(&client, "BEGIN").await;
    ok(&client, insert).await;
    ok(&client, insert).await;
    fails(&client, insert, "[4001]").await;
    fails(&client, insert, "[4002]").await;
    ok(&client, "ROLLBACK").await;
    assert_eq!(count(&server, "t"), 0);
    ok(&client, insert).await;
    assert_eq!((count(&server, "t"), server.faults_fired().unwrap()), (1, 1));

    server.fault(&Fault::on_sql("^commit", conflict)).unwrap();
    ok(&client, "BEGIN").await;
    ok(&client, insert).await;
    fails(&client, "COMMIT", "[4001]").await;
    assert_eq!(ok(&client, "SELECT count(*) FROM t").await, rows(&[&["1"]]), "rolled back, and over");
    server.fault(&Fault::on_sql("^commit", FaultKind::DropAfter)).unwrap();
    ok(&client, "BEGIN").await;
    ok(&client, insert).await;
    ok(&client, "COMMIT").await;
    assert_eq!(count(&server, "t"), 2, "a commit that is asked again is not done again");
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_no_file() {
    let Some(server) = own(&DatabendSettings::default()) else { return };
    let client = connect(&server).await;
    server.query("CREATE STAGE s").unwrap();
    let listed = || server.query("SELECT name FROM list_stage(location => '@s')").unwrap();
    server.fault(&Fault::on_path("upload_to_stage", FaultKind::DropBefore)).unwrap();
    assert!(upload(&client, "@s/a.csv", "1\n").await.is_err());
    assert_eq!(listed(), rows(&[]));
    server.fault(&Fault::on_path("upload_to_stage", FaultKind::DropAfter)).unwrap();
    assert!(upload(&client, "@s/a.csv", "1\n").await.is_err(), "uploads are not repeated by the client");
    assert_eq!(listed(), rows(&[&["a.csv"]]));

    let mut half = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    half.write_all(
        b"PUT /v1/upload_to_stage HTTP/1.1\r\nHost: localhost\r\nX-DATABEND-STAGE-NAME: s\r\nContent-Length: 100000\r\n\
          Content-Type: multipart/form-data; boundary=end\r\n\r\n--end\r\n\
          Content-Disposition: form-data; name=\"upload\"; filename=\"half.csv\"\r\n\r\n1\n2\n",
    )
    .unwrap();
    await_log(&server, "half.csv: begins").await;
    drop(half);
    await_log(&server, "half.csv: broke off").await;
    assert_eq!(listed(), rows(&[&["a.csv"]]));
}

async fn await_log(server: &DatabendServer, line: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    while !server.log().contains(line) {
        assert!(Instant::now() < until, "no line {line:?} in {}", server.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn statements_are_counted_by_their_first_word_and_the_door_counts_none() {
    let Some(server) = own(&DatabendSettings::default()) else { return };
    let client = connect(&server).await;
    ok(&client, "create table t (id int)").await;
    ok(&client, "  /* why */ INSERT INTO t VALUES (1)").await;
    ok(&client, "-- why\nINSERT INTO t VALUES (2);").await;
    fails(&client, "SELECT * FROM nowhere", "[1025]").await;
    server.fault(&Fault::on_sql("", FaultKind::Unavailable)).unwrap();
    assert_eq!(count(&server, "t"), 2);
    assert_eq!(server.faults_fired().unwrap(), 0, "the door has no faults");
    let counted: Vec<_> = server.statements().unwrap().into_iter().collect();
    assert_eq!(counted, [("create".to_owned(), 1), ("insert".to_owned(), 2), ("select".to_owned(), 1)]);
    server.forget_statements().unwrap();
    assert!(server.statements().unwrap().is_empty());
    assert!(server.log().contains("INSERT INTO t VALUES (2)"), "the log tells statements");
}

#[tokio::test]
async fn an_address_is_signed_where_the_server_does_and_takes_the_file() {
    let Some(server) = own(&DatabendSettings { presign: true, ..Default::default() }) else { return };
    server.query("CREATE STAGE s").unwrap();
    server.query("CREATE TABLE t (id INT)").unwrap();
    for (number, mode) in ["on", "detect"].into_iter().enumerate() {
        let client = try_connect(&server, &format!("&presign={mode}")).await.unwrap();
        server.forget_statements().unwrap();
        upload(&client, &format!("@s/folder/{number}.csv"), "1\n2\n").await.unwrap();
        assert_eq!(server.statements().unwrap().get("presign"), Some(&1), "{mode}: not through the server");
    }
    let loaded = server.query("COPY INTO t FROM @s FILE_FORMAT = (TYPE = CSV)").unwrap();
    assert_eq!((loaded.len(), count(&server, "t")), (2, 4));

    let client = try_connect(&server, "&presign=on").await.unwrap();
    server.fault(&Fault::on_path("^/_presigned/", FaultKind::DropBefore)).unwrap();
    assert!(upload(&client, "@s/broken.csv", "1\n").await.is_err());
    let refused = upload(&client, "@nowhere/1.csv", "1\n").await.unwrap_err();
    assert!(refused.contains("[2501]"), "{refused}");

    let Some(plain) = shared() else { return };
    let client = try_connect(&plain, "&presign=on").await.unwrap();
    let refused = upload(&client, "@~/1.csv", "1\n").await.unwrap_err();
    assert!(refused.contains("[3902]"), "{refused}");
    let client = try_connect(&plain, "&presign=detect").await.unwrap();
    upload(&client, "@~/detected.csv", "1\n").await.unwrap();
}

#[tokio::test]
async fn over_tls_only_who_trusts_its_authority_comes_in() {
    let settings = DatabendSettings {
        user: Some("ferry".to_owned()),
        password: Some("it's a / secret?".to_owned()),
        token: Some("a.to+ken".to_owned()),
        tls: DatabendTls::Made,
        presign: true,
        ..Default::default()
    };
    let Some(server) = own(&settings) else { return };
    let client = try_connect(&server, "&presign=on").await.unwrap();
    assert_eq!(ok(&client, "SELECT 1").await, rows(&[&["1"]]));
    upload(&client, "@~/over-tls.csv", "1\n").await.unwrap();

    let at = |user: &str, more: &str| {
        format!("databend://{user}127.0.0.1:{}/default?retry_count=1{more}", server.port())
    };
    let trusting = |more: &str| format!("&tls_ca_file={}{more}", server.authority().unwrap().display());
    let right = "ferry:it%27s%20a%20%2F%20secret%3F@";
    admits(&at(right, ""), Err("certificate")).await;
    admits(&at(right, "&sslmode=disable"), Err("")).await;
    admits(&at(right, &trusting("")), Ok(())).await;
    admits(&at("ferry:wrong@", &trusting("")), Err("[5100]")).await;
    admits(&at(&right.replace("ferry", "other"), &trusting("")), Err("[5100]")).await;
    admits(&at("", &trusting("")), Err("[5100]")).await;
    admits(&at("", &trusting("&access_token=a.to%2Bken")), Ok(())).await;
    admits(&at("", &trusting("&access_token=another")), Err("[5100]")).await;
}

/// Whether this address admits, or the error that says why not.
async fn admits(dsn: &str, expected: Result<(), &str>) {
    let outcome = APIClient::new(dsn, None).await.map(drop).map_err(|error| error.to_string());
    match (&outcome, expected) {
        (Ok(()), Ok(())) => {}
        (Err(error), Err(part)) if error.contains(part) => {}
        _ => panic!("{dsn}: {outcome:?}, not {expected:?}"),
    }
}

#[tokio::test]
async fn a_server_shows_the_certificate_that_it_is_given() {
    let folder = TempDir::new().unwrap();
    for (name, expected) in [("127.0.0.1", Ok(())), ("db.example", Err("not valid for name"))] {
        let pair = KeyPair::generate().unwrap();
        let made = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&pair).unwrap();
        let (key, _) = key_files(folder.path(), name, &pair);
        let certificate = folder.path().join(format!("{name}.crt"));
        fs::write(&certificate, made.pem()).unwrap();
        let tls = DatabendTls::Files { certificate: certificate.clone(), key };
        let Some(server) = own(&DatabendSettings { tls, ..Default::default() }) else { return };
        assert!(server.authority().is_none());
        let dsn = server.dsn("default") + "&retry_count=1&tls_ca_file=" + &certificate.to_string_lossy();
        admits(&dsn, expected).await;
    }
}

/// A private key and its public half, as files.
fn key_files(folder: &Path, name: &str, pair: &KeyPair) -> (PathBuf, PathBuf) {
    let files = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.pub")));
    fs::write(&files.0, pair.serialize_pem()).unwrap();
    fs::write(&files.1, pair.public_key_pem()).unwrap();
    files
}

/// RSA keys are made by openssl: our own crypto library makes none.
fn rsa_files(folder: &Path) -> (PathBuf, PathBuf) {
    let files = (folder.join("rsa.pem"), folder.join("rsa.pub"));
    let make = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out"];
    let openssl = |arguments: &[&str], file: &Path| {
        let mut command = Command::new("openssl");
        command.args(arguments).arg(file).stderr(Stdio::null());
        command
    };
    assert!(openssl(&make, &files.0).status().unwrap().success());
    let mut public = openssl(&["pkey", "-pubout", "-in"], &files.0);
    assert!(public.arg("-out").arg(&files.1).status().unwrap().success());
    files
}

#[tokio::test]
async fn a_key_pair_admits_its_user_alone() {
    let folder = TempDir::new().unwrap();
    let made = |name, algorithm| key_files(folder.path(), name, &KeyPair::generate_for(algorithm).unwrap());
    let keys = [
        made("p256", &PKCS_ECDSA_P256_SHA256),
        made("p384", &PKCS_ECDSA_P384_SHA384),
        made("ed25519", &PKCS_ED25519),
        rsa_files(folder.path()),
    ];
    let strangers = made("stranger", &PKCS_ECDSA_P256_SHA256);
    for (private, public) in &keys {
        let settings = DatabendSettings {
            user: Some("ferry".to_owned()),
            public_key: Some(public.clone()),
            ..Default::default()
        };
        let Some(server) = own(&settings) else { return };
        let key = format!("&private_key_file={}", private.display());
        let client = try_connect(&server, &key).await.unwrap();
        assert_eq!(ok(&client, "SELECT 1").await, rows(&[&["1"]]));
        let stranger = format!("&private_key_file={}", strangers.0.display());
        for more in ["", stranger.as_str()] {
            let refused = try_connect(&server, more).await.err().expect(more);
            assert!(refused.contains("[5100]"), "{refused}");
        }
        let other = server.dsn("default").replace("ferry", "other") + &key + "&retry_count=1";
        let refused = APIClient::new(&other, None).await.err().unwrap().to_string();
        assert!(refused.contains("[5100]") && refused.contains("other"), "{refused}");
    }
}

#[tokio::test]
async fn a_client_that_is_gone_in_a_transaction_blocks_nobody() {
    let Some(server) = own(&DatabendSettings::default()) else { return };
    server.query("CREATE TABLE t (id INT, n INT)").unwrap();
    server.query("INSERT INTO t VALUES (1, 0)").unwrap();
    // Without a logout, as after kill -9.
    let gone = connect(&server).await;
    ok(&gone, "BEGIN").await;
    ok(&gone, "UPDATE t SET n = n + 100").await;
    std::mem::forget(gone);
    // It waits for nothing, and others wait for nothing of its.
    let other = connect(&server).await;
    let began = Instant::now();
    ok(&other, "UPDATE t SET n = n + 1").await;
    ok(&other, "BEGIN").await;
    ok(
        &other,
        "MERGE INTO t USING (SELECT 1 AS id) s ON t.id = s.id WHEN MATCHED THEN UPDATE SET n = t.n + 1",
    )
    .await;
    ok(&other, "COMMIT").await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(server.roll_back_sessions().unwrap(), 1);
    assert_eq!(server.roll_back_sessions().unwrap(), 0);
    assert_eq!(ok(&other, "SELECT n FROM t").await, rows(&[&["2"]]));

    // Who is not gone is told, and begins again.
    ok(&other, "BEGIN").await;
    ok(&other, "INSERT INTO t VALUES (2, 0)").await;
    assert_eq!(server.roll_back_sessions().unwrap(), 1);
    fails(&other, "INSERT INTO t VALUES (3, 0)", "[4003]").await;
    fails(&other, "INSERT INTO t VALUES (3, 0)", "[4002]").await;
    ok(&other, "ROLLBACK").await;
    ok(&other, "BEGIN").await;
    ok(&other, "INSERT INTO t VALUES (4, 0)").await;
    ok(&other, "COMMIT").await;
    assert_eq!(server.query("SELECT id FROM t ORDER BY id").unwrap(), rows(&[&["1"], &["4"]]));

    // A statement that runs when its client goes ends first, and is rolled back with the rest.
    let gone = connect(&server).await;
    ok(&gone, "BEGIN").await;
    server.forget_statements().unwrap();
    let running = tokio::spawn({
        let gone = Arc::clone(&gone);
        async move { run(&gone, "INSERT INTO t SELECT 5 + sleep(1), 0").await }
    });
    let until = Instant::now() + Duration::from_secs(20);
    while !server.statements().unwrap().contains_key("insert") {
        assert!(Instant::now() < until, "the statement did not begin");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.abort();
    assert_eq!(server.roll_back_sessions().unwrap(), 1);
    std::mem::forget(gone);
    assert_eq!(count(&server, "t"), 2);
}

#[tokio::test]
async fn a_logout_rolls_back_and_a_server_ends_with_its_last_handle() {
    let Some(server) = own(&DatabendSettings::default()) else { return };
    server.query("CREATE TABLE t (id INT)").unwrap();
    let client = connect(&server).await;
    ok(&client, "BEGIN").await;
    ok(&client, "INSERT INTO t VALUES (1)").await;
    client.close().await;
    assert_eq!(server.roll_back_sessions().unwrap(), 0, "the logout has done it");
    assert_eq!(count(&server, "t"), 0);

    let address = ("127.0.0.1", server.port());
    assert!(TcpStream::connect(address).is_ok());
    drop(server);
    assert!(TcpStream::connect(address).is_err());
}

/// Reads with the driver of another language, whose values are compared as they are, not as text.
const OTHER_DRIVER: &str = r#"
import datetime, json, math, sys
from decimal import Decimal
from databend_driver import BlockingDatabendClient

connection = BlockingDatabendClient(sys.argv[1]).get_conn()
first, second, empty = [row.values() for row in connection.query_all("SELECT * EXCLUDE id FROM every_type ORDER BY id")]
utc = datetime.timezone.utc
expected = (
    -128, -32768, -2147483648, -9223372036854775808, 18446744073709551615,
    Decimal("1234567890123456789012345678.0123456789"),
    Decimal("-12345678901234567890123456789012345678901234567890123456.12345678901234567890"),
    0.1, True, datetime.date(1, 1, 1), datetime.datetime(2024, 2, 29, 23, 59, 59, 999999, utc),
    "it's \"text\" \\ NULL\n\tä😀", bytes([0, 1, 39, 92, 255]), None, ["it's", 'a "b"', "c\\d", "", "NULL", None, "ä😀"],
)
variant = first[13]
assert first[:13] + (None,) + first[14:] == expected, (first, expected)
assert str(first[6]) == str(expected[6]), first[6]
assert variant == '{"n":[1.10,123456789012345678901234567890.12345678901234567890,null],"s":"it\'s \\"ä\\"","t":true}', variant
assert math.isnan(second[7]) and second[8] is False, second
assert second[9:11] == (datetime.date(9999, 12, 31), datetime.datetime(1, 1, 1, tzinfo=utc)), second
assert second[11] == "" and second[12] == b"" and json.loads(second[13]) == [] and second[14] == [], second
assert empty == (None,) * 15, empty
"#;

#[tokio::test]
async fn the_driver_of_another_language_reads_every_type_as_it_was_put_in() {
    let Some(server) = shared() else { return };
    let Some(python) = or_said(python().unwrap()) else { return };
    let client = connect(&server).await;
    ok(
        &client,
        "CREATE TABLE every_type (id INT NOT NULL, i8 TINYINT, i16 SMALLINT, i32 INT, i64 BIGINT, u64 UINT64, d38 DECIMAL(38,10),
         d76 DECIMAL(76,20), f DOUBLE, b BOOLEAN, day DATE, at TIMESTAMP, s STRING, bin BINARY, doc VARIANT, tags ARRAY(STRING))",
    )
    .await;
    ok(
        &client,
        r#"INSERT INTO every_type VALUES (1, -128, -32768, -2147483648, -9223372036854775808, 18446744073709551615,
           1234567890123456789012345678.0123456789,
           -12345678901234567890123456789012345678901234567890123456.12345678901234567890,
           0.1, true, '0001-01-01', '2024-02-29 23:59:59.999999', 'it''s "text" \\ NULL\n\tä😀', from_hex('0001275cff'),
           parse_json('{"s": "it''s \\"ä\\"", "t": true, "n": [1.10, 123456789012345678901234567890.12345678901234567890, null]}'),
           ['it''s', 'a "b"', 'c\\d', '', 'NULL', NULL, 'ä😀'])"#,
    )
    .await;
    ok(
        &client,
        "INSERT INTO every_type VALUES (2, 0, 0, 0, 0, 0, 0, 0, 'nan'::double, false, '9999-12-31', '0001-01-01 00:00:00', '',
         from_hex(''), parse_json('[]'), [])",
    )
    .await;
    ok(&client, "INSERT INTO every_type (id) VALUES (3)").await;
    let dsn = server.dsn("default") + "&timezone=UTC";
    let read = Command::new(python).arg("-c").arg(OTHER_DRIVER).arg(dsn).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
}

#[test]
fn the_version_is_the_one_that_is_installed() {
    let requirements =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/databend-server/requirements.txt"));
    assert!(requirements.unwrap().contains(&format!("databend=={VERSION}\n")));
    let Some(server) = shared() else { return };
    let told = server.query("SELECT version()").unwrap();
    assert!(told[0][0].as_deref().unwrap().contains(VERSION), "{told:?}");
}
