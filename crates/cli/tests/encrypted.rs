//! The program and a server that takes encrypted connections only, by keys of the task file and by the URL.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests stop at the first surprise")]

use std::path::Path;
use std::process::{Command, Stdio};

use pgferry_testkit::{Server, ServerOptions};

fn run(folder: &Path, connection: &str, code: i32) -> String {
    let text = format!(
        "version = 1\n[connections.source]\nkind = \"postgres\"\n{connection}\n\
         [connections.file]\nkind = \"duckdb\"\npath = \"copy.duckdb\"\n\
         [tasks.all]\nsource = \"source\"\ntarget = \"file\"\nsync_mode = \"snapshot\"\ninclude = [\"public.*\"]\n\
         if_target_exists = \"replace\"\n"
    );
    std::fs::write(folder.join("task.toml"), text).unwrap();
    let output = Command::new(assert_cmd::cargo::cargo_bin("pgferry"))
        .current_dir(folder)
        .env_remove("PGFERRY_LOG")
        .args(["run", "task.toml", "-q"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{connection}: {told}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_the_file_and_of_the_url_are_used() {
    let options = ServerOptions::new(15)
        .tls()
        .hba("hostssl all all 127.0.0.1/32 cert")
        .hba("host all all 127.0.0.1/32 reject");
    let server = Server::start(options).await.unwrap();
    let database = server.create_database().await.unwrap();
    database
        .execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a SELECT generate_series(1, 10)")
        .await
        .unwrap();
    let certificates = server.certificates().unwrap();
    let root = certificates.authority();
    let (certificate, key) = certificates.client("postgres").unwrap();
    let folder = tempfile::tempdir().unwrap();

    let (root, certificate, key) = (root.display(), certificate.display(), key.display());
    let parts = format!(
        "host = \"127.0.0.1\"\nport = {}\nuser = \"postgres\"\ndatabase = \"{}\"",
        server.port(),
        database.name()
    );
    let all = format!("ssl_root_cert = \"{root}\"\nssl_cert = \"{certificate}\"\nssl_key = \"{key}\"");
    run(folder.path(), &format!("{parts}\nssl_mode = \"verify-full\"\n{all}"), 0);
    let url = format!(
        "{}?sslmode=verify-full&sslrootcert={root}&sslcert={certificate}&sslkey={key}",
        database.url()
    );
    run(folder.path(), &format!("url = \"{url}\""), 0);

    // Each part matters: without it the server or we refuse.
    run(folder.path(), &format!("{parts}\nssl_mode = \"disable\""), 3);
    run(
        folder.path(),
        &format!("{parts}\nssl_mode = \"verify-full\"\nssl_cert = \"{certificate}\"\nssl_key = \"{key}\""),
        3,
    );
    run(folder.path(), &format!("{parts}\nssl_mode = \"verify-full\"\nssl_root_cert = \"{root}\""), 3);
    let told = run(folder.path(), &format!("{parts}\nssl_root_cert = \"{root}\""), 2);
    assert!(told.contains("config.conflict"), "{told}");
}
