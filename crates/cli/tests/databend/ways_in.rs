//! Every way into Databend that a task file can say, through a whole task: a copy, then changes.

use std::fs;

use pgferry_testkit::databend::{DatabendServer, DatabendSettings, DatabendTls};

use crate::scene::{Scene, quoted, rows, server};

/// A user's secret that nothing may show.
const WRONG: &str = "hunter2";

/// Runs the task twice, with changes before each, and once with `wrong` lines or variables, which is refused before anything is done.
async fn carries(
    server: &DatabendServer,
    connection: &str,
    variables: &[(&str, &str)],
    wrong: Option<(&str, &[(&str, &str)])>,
) {
    let scene = Scene::new(
        "CREATE TABLE a (id int PRIMARY KEY, t text); INSERT INTO a VALUES (1, 'one'), (2, 'two')",
    )
    .await;
    if let Some((connection, variables)) = wrong {
        scene.task(connection, "");
        let told = scene.run(variables, 3);
        assert_eq!(told["error"]["code"], "target.databend_authentication", "{told}");
        assert!(!told.to_string().contains(WRONG), "the error shows a secret: {told}");
    }
    scene.task(connection, "");
    let told = scene.run(variables, 0);
    assert_eq!(told["rows_copied"], 2, "{told}");
    scene.database.execute("UPDATE a SET t = 'new' WHERE id = 1; DELETE FROM a WHERE id = 2; INSERT INTO a VALUES (3, 'three')").await.unwrap();
    let told = scene.run(variables, 0);
    assert_eq!(told["rows_copied"], 0, "{told}");
    assert_eq!(rows(server, "SELECT id, t FROM lake.a ORDER BY id"), ["1|new", "3|three"]);
}

fn parts(server: &DatabendServer, more: &str) -> String {
    let security = match server.authority() {
        Some(authority) => format!("ssl_root_cert = {}", quoted(&authority)),
        None => "ssl_mode = \"disable\"".to_owned(),
    };
    format!("host = \"127.0.0.1\"\nport = {}\n{security}\n{more}", server.port())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_a_password_over_tls() {
    let settings = DatabendSettings {
        user: Some("ferry".to_owned()),
        password: Some("p@ss/w:rd?".to_owned()),
        tls: DatabendTls::Made,
        ..DatabendSettings::default()
    };
    let Some(server) = server(&settings) else { return };
    let connection = parts(&server, "user = \"ferry\"\npassword = { env = \"SECRET\" }");
    let wrong = (connection.as_str(), &[("SECRET", WRONG)][..]);
    carries(&server, &connection, &[("SECRET", "p@ss/w:rd?")], Some(wrong)).await;
}

/// The same server without the authority that vouches for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_nobody_vouches_for_is_refused() {
    let settings = DatabendSettings { tls: DatabendTls::Made, ..DatabendSettings::default() };
    let Some(server) = server(&settings) else { return };
    let alone = format!("host = \"127.0.0.1\"\nport = {}", server.port());
    carries(&server, &parts(&server, ""), &[], Some((&alone, &[]))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token() {
    let settings = DatabendSettings { token: Some("to ken".to_owned()), ..DatabendSettings::default() };
    let Some(server) = server(&settings) else { return };
    let connection = parts(&server, "token = { env = \"TOKEN\" }");
    let wrong = (connection.as_str(), &[("TOKEN", WRONG)][..]);
    carries(&server, &connection, &[("TOKEN", "to ken")], Some(wrong)).await;
}

/// The key lies beside the task file.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_pair() {
    let keys = tempfile::tempdir().unwrap();
    let (pair, stranger) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let public = keys.path().join("public.pem");
    fs::write(&public, pair.public_key_pem()).unwrap();
    let settings = DatabendSettings {
        user: Some("ferry".to_owned()),
        public_key: Some(public),
        tls: DatabendTls::Made,
        ..DatabendSettings::default()
    };
    let Some(server) = server(&settings) else { return };
    let of = |name: &str, pair: &rcgen::KeyPair| {
        let path = keys.path().join(name);
        fs::write(&path, pair.serialize_pem()).unwrap();
        parts(&server, &format!("user = \"ferry\"\nprivate_key = {}", quoted(&path)))
    };
    let (own, strangers) = (of("own.pem", &pair), of("stranger.pem", &stranger));
    carries(&server, &own, &[], Some((&strangers, &[]))).await;
}

/// Straight to the storage, by addresses that the server signs.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_by_signed_addresses() {
    let settings = DatabendSettings { presign: true, ..DatabendSettings::default() };
    let Some(server) = server(&settings) else { return };
    carries(&server, &parts(&server, "upload = \"presigned\""), &[], None).await;
    let signed = server.statements().unwrap().get("presign").copied().unwrap_or(0);
    assert!(signed >= 2, "{signed} signed addresses");
}

/// The address as Databend's own clients take it.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_one_line() {
    let Some(server) = server(&DatabendSettings::default()) else { return };
    carries(&server, "dsn = { env = \"LAKE\" }", &[("LAKE", &server.dsn(""))], None).await;
}
