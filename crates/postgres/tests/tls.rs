//! Encryption against real servers: every mode with good and bad certificates, channel binding, client certificates and keys.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

mod server;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pgferry_model::Class;
use pgferry_postgres::error::{AUTHENTICATION, HBA_REJECTED, TLS};
use pgferry_postgres::{ChannelBinding, ConnectionConfig, Purpose, Secret, Session, SslMode};
use pgferry_testkit::{Server, ServerOptions};
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
use server::{assert_error, config, connect, refusal};

const VERIFIED: [SslMode; 2] = [SslMode::VerifyCa, SslMode::VerifyFull];

fn over_tls(server: &Server, mode: SslMode, user: &str) -> ConnectionConfig {
    let mut config = config(server, user, Some("right"));
    config.tls.mode = mode;
    config.tls.root_certificate = server.certificates().map(|certificates| certificates.authority());
    config
}

/// Replaces the server's certificate by one of `params`, signed by itself or by `issuer`. Returns its path.
async fn replace(
    server: &Server,
    params: CertificateParams,
    issuer: Option<&Issuer<'_, KeyPair>>,
) -> PathBuf {
    let key = KeyPair::generate().unwrap();
    let certificate = match issuer {
        Some(issuer) => params.signed_by(&key, issuer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    // Written into the old files, which keep their owner and mode.
    let path = server.data_dir().join("server.crt");
    fs::write(server.data_dir().join("server.key"), key.serialize_pem()).unwrap();
    fs::write(&path, certificate.pem()).unwrap();
    server.reload().await.unwrap();
    path
}

async fn ask(config: &ConnectionConfig, sql: &str) -> String {
    let mut session = connect(config).await.unwrap();
    session.simple_query(sql).await.unwrap()[0][0].clone().unwrap()
}

const USES_TLS: &str = "SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()";

#[tokio::test]
async fn every_mode_does_what_it_says() {
    for major in [10, 15, 18] {
        let server = Server::start(ServerOptions::new(major).tls()).await.unwrap();
        let modes =
            [SslMode::Disable, SslMode::Prefer, SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull];
        for mode in modes {
            for host in ["localhost", "127.0.0.1"] {
                let mut config = over_tls(&server, mode, "postgres");
                config.host = host.into();
                let wanted = if mode == SslMode::Disable { "f" } else { "t" };
                assert_eq!(ask(&config, USES_TLS).await, wanted, "{major} {mode:?} {host}");
                let session = Session::connect(&config, Purpose::Replication).await.unwrap();
                assert_eq!(session.encrypted(), mode != SslMode::Disable);
            }
        }
    }
}

#[tokio::test]
async fn a_large_copy_arrives_whole_through_tls() {
    let server = Server::start(ServerOptions::new(15).tls()).await.unwrap();
    let mut session = connect(&over_tls(&server, SslMode::VerifyFull, "postgres")).await.unwrap();
    session
        .copy_out("COPY (SELECT g, repeat('x', 5000) FROM generate_series(1, 4000) g) TO STDOUT")
        .await
        .unwrap();
    let (mut rows, mut bytes) = (0, 0);
    'stream: loop {
        while let Some(frame) = session.peek_frame().unwrap() {
            let (tag, length) = (frame.tag, frame.body.len());
            session.consume_frame();
            match tag {
                b'd' => (rows, bytes) = (rows + 1, bytes + length),
                b'Z' => break 'stream,
                _ => {}
            }
        }
        assert!(session.read_some().await.unwrap() > 0);
    }
    assert_eq!((rows, bytes > 20_000_000), (4000, true));
    assert_eq!(session.simple_query("SELECT 1").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_server_without_tls_is_used_by_prefer_only() {
    let server = Server::shared(15).await.unwrap();
    assert_eq!(ask(&over_tls(&server, SslMode::Prefer, "postgres"), USES_TLS).await, "f");
    for mode in [SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
        let error = refusal(&over_tls(&server, mode, "postgres"), Purpose::Query).await;
        assert_error(&error, TLS, "does not support TLS");
        assert_eq!(error.class(), Class::TaskBroken);
    }
}

#[tokio::test]
async fn bad_certificates_are_told_apart() {
    let server = Server::start(ServerOptions::new(15).tls()).await.unwrap();
    let mut config = over_tls(&server, SslMode::VerifyFull, "postgres");
    config.tls.root_certificate = None;
    for mode in VERIFIED {
        config.tls.mode = mode;
        assert_error(&refusal(&config, Purpose::Query).await, TLS, "unknown authority");
    }
    config.tls.mode = SslMode::Require;
    assert_eq!(ask(&config, USES_TLS).await, "t");

    let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("ca.crt");
    fs::write(&root, authority.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, key);
    config.tls.root_certificate = Some(root);

    let other = CertificateParams::new(vec!["pg01.example".to_owned()]).unwrap();
    replace(&server, other, Some(&issuer)).await;
    config.tls.mode = SslMode::VerifyFull;
    config.host = "localhost".into();
    let error = refusal(&config, Purpose::Query).await;
    assert_error(&error, TLS, "we connect to localhost");
    assert_error(&error, TLS, "it names pg01.example");
    config.tls.mode = SslMode::VerifyCa;
    assert_eq!(ask(&config, USES_TLS).await, "t");

    for (from, to, piece) in [(2001, 2002, "has expired"), (2090, 2091, "is not valid yet")] {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        replace(&server, params.clone(), Some(&issuer)).await;
        for mode in VERIFIED {
            config.tls.mode = mode;
            assert_error(&refusal(&config, Purpose::Query).await, TLS, piece);
        }
        let pinned = replace(&server, params, None).await;
        let mut pinning = config.clone();
        pinning.tls.root_certificate = Some(pinned);
        assert_error(&refusal(&pinning, Purpose::Query).await, TLS, piece);
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_as_its_own_authority_only() {
    let server = Server::start(ServerOptions::new(15).tls()).await.unwrap();
    let mut config = over_tls(&server, SslMode::VerifyFull, "postgres");
    for authority in [IsCa::NoCa, IsCa::Ca(rcgen::BasicConstraints::Unconstrained)] {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.is_ca = authority;
        let path = replace(&server, params.clone(), None).await;
        config.tls.root_certificate = Some(path.clone());
        assert_eq!(ask(&config, USES_TLS).await, "t");
        config.host = "localhost".into();
        assert_error(&refusal(&config, Purpose::Query).await, TLS, "we connect to localhost");
        config.host = "127.0.0.1".into();
        let copy = tempfile::NamedTempFile::new().unwrap();
        fs::copy(&path, copy.path()).unwrap();
        config.tls.root_certificate = Some(copy.path().into());
        replace(&server, params, None).await;
        let error = refusal(&config, Purpose::Query).await;
        assert_eq!(error.code(), TLS);
    }
}

#[tokio::test]
async fn scram_is_tied_to_the_servers_certificate() {
    for major in [13, 18] {
        let options = ServerOptions::new(major).tls().hba("host all app 127.0.0.1/32 scram-sha-256");
        let server = Server::start(options).await.unwrap();
        let client = server.client("postgres").await.unwrap();
        client
            .batch_execute(
                "SET password_encryption = 'scram-sha-256'; CREATE ROLE app LOGIN PASSWORD 'right'",
            )
            .await
            .unwrap();
        let mut config = over_tls(&server, SslMode::VerifyFull, "app");
        for binding in [ChannelBinding::Disable, ChannelBinding::Prefer, ChannelBinding::Require] {
            config.tls.channel_binding = binding;
            assert_eq!(ask(&config, USES_TLS).await, "t", "{major} {binding:?}");
        }
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        fs::write(server.data_dir().join("server.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(server.data_dir().join("server.key"), key.serialize_pem()).unwrap();
        server.reload().await.unwrap();
        config.tls.mode = SslMode::Require;
        config.tls.root_certificate = None;
        assert_eq!(ask(&config, USES_TLS).await, "t", "SHA-384");
        config.password = Some(Secret::new("wrong"));
        assert_error(&refusal(&config, Purpose::Query).await, AUTHENTICATION, "password is wrong");
        config.password = Some(Secret::new("right"));
        config.tls.mode = SslMode::Disable;
        assert_error(&refusal(&config, Purpose::Query).await, AUTHENTICATION, "not encrypted");
        config.user = "postgres".into();
        assert_error(&refusal(&config, Purpose::Query).await, AUTHENTICATION, "another login");
    }
}

#[tokio::test]
async fn a_password_in_clear_text_goes_through_tls_and_prefer_falls_back() {
    let options = ServerOptions::new(15)
        .tls()
        .hba("host all clear 127.0.0.1/32 password")
        .hba("hostssl all plain 127.0.0.1/32 reject")
        .hba("hostnossl all private 127.0.0.1/32 reject");
    let server = Server::start(options).await.unwrap();
    let client = server.client("postgres").await.unwrap();
    client
        .batch_execute(
            "CREATE ROLE clear LOGIN PASSWORD 'right'; CREATE ROLE plain LOGIN; CREATE ROLE private LOGIN",
        )
        .await
        .unwrap();
    assert_eq!(ask(&over_tls(&server, SslMode::Prefer, "clear"), USES_TLS).await, "t");
    assert_eq!(ask(&over_tls(&server, SslMode::Prefer, "plain"), USES_TLS).await, "f");
    let error = refusal(&over_tls(&server, SslMode::Require, "plain"), Purpose::Query).await;
    assert_error(&error, HBA_REJECTED, "with encryption");
    assert!(error.cure().unwrap().lines[0].starts_with("hostssl postgres plain"));
    assert_error(
        &refusal(&over_tls(&server, SslMode::Disable, "private"), Purpose::Query).await,
        HBA_REJECTED,
        "without",
    );
}

#[tokio::test]
async fn the_password_file_and_the_unix_socket_are_used() {
    let server =
        Server::start(ServerOptions::new(15).hba("host all filed 127.0.0.1/32 scram-sha-256")).await.unwrap();
    let client = server.client("postgres").await.unwrap();
    client.batch_execute("CREATE ROLE filed LOGIN PASSWORD 'ri:ght'").await.unwrap();
    let mut config = config(&server, "filed", None);
    // The variable belongs to the process: this program is run once more with it.
    match std::env::var("PGFERRY_TEST_URL") {
        Ok(url) => {
            connect(&ConnectionConfig::from_url(&url).unwrap()).await.unwrap();
        }
        Err(_) => {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), format!("127.0.0.1:{}:*:filed:ri\\:ght\n", server.port())).unwrap();
            let url = format!("postgresql://filed@127.0.0.1:{}/postgres?sslmode=disable", server.port());
            let own = std::env::current_exe().unwrap();
            let output = tokio::process::Command::new(own)
                .args(["--exact", "the_password_file_and_the_unix_socket_are_used"])
                .envs([("PGFERRY_TEST_URL", url.as_str()), ("PGPASSFILE", file.path().to_str().unwrap())])
                .output()
                .await
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }
    config.host = server.socket_dir().to_str().unwrap().into();
    config.tls.mode = SslMode::VerifyFull;
    assert!(!connect(&config).await.unwrap().encrypted());
}

fn with_certificate(config: &ConnectionConfig, certificate: &Path, key: &Path) -> ConnectionConfig {
    let mut config = config.clone();
    config.tls.certificate = Some(certificate.into());
    config.tls.key = Some(key.into());
    config
}

#[tokio::test]
async fn client_certificates_log_in_and_their_faults_are_told_apart() {
    for major in [10, 15, 18] {
        let options = ServerOptions::new(major).tls().hba("hostssl all app 127.0.0.1/32 cert");
        let server = Server::start(options).await.unwrap();
        server.client("postgres").await.unwrap().batch_execute("CREATE ROLE app LOGIN").await.unwrap();
        let plain = over_tls(&server, SslMode::VerifyFull, "app");
        let (certificate, key) = server.certificates().unwrap().client("app").unwrap();
        assert_eq!(ask(&with_certificate(&plain, &certificate, &key), USES_TLS).await, "t");
        assert_error(&refusal(&plain, Purpose::Query).await, TLS, "wants a client certificate");
        let (other, other_key) = server.certificates().unwrap().client("other").unwrap();
        let error = refusal(&with_certificate(&plain, &other, &other_key), Purpose::Query).await;
        assert_error(&error, AUTHENTICATION, "names another role");
        let error = refusal(&with_certificate(&plain, &certificate, &other_key), Purpose::Query).await;
        assert_error(&error, TLS, "does not belong to the certificate");

        let folder = tempfile::tempdir().unwrap();
        let (foreign, foreign_key) = (folder.path().join("f.crt"), folder.path().join("f.key"));
        let pair = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["app".to_owned()]).unwrap();
        fs::write(&foreign, params.self_signed(&pair).unwrap().pem()).unwrap();
        fs::write(&foreign_key, pair.serialize_pem()).unwrap();
        let config = with_certificate(&plain, &foreign, &foreign_key);
        let public = fs::Permissions::from_mode(0o644);
        fs::set_permissions(&foreign_key, public).unwrap();
        let error = refusal(&config, Purpose::Query).await;
        assert_error(&error, TLS, "can be read by others");
        fs::set_permissions(&foreign_key, fs::Permissions::from_mode(0o600)).unwrap();
        assert_error(&refusal(&config, Purpose::Query).await, TLS, "does not accept our certificate");
    }
}

#[tokio::test]
async fn an_encrypted_key_needs_its_password() {
    let options = ServerOptions::new(15).tls().hba("hostssl all app 127.0.0.1/32 cert");
    let server = Server::start(options).await.unwrap();
    server.client("postgres").await.unwrap().batch_execute("CREATE ROLE app LOGIN").await.unwrap();
    let (certificate, key) = server.certificates().unwrap().client("app").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let locked = folder.path().join("locked.key");
    let (_, document) = pkcs8::SecretDocument::from_pem(&fs::read_to_string(&key).unwrap()).unwrap();
    let plain = pkcs8::PrivateKeyInfo::try_from(document.as_bytes()).unwrap();
    let mut config = with_certificate(&over_tls(&server, SslMode::VerifyFull, "app"), &certificate, &locked);
    write_encrypted(&plain, &locked);
    assert_error(&refusal(&config, Purpose::Query).await, TLS, "no password for it is given");
    config.tls.key_password = Some(Secret::new("hunter2"));
    let error = refusal(&config, Purpose::Query).await;
    assert_error(&error, TLS, "the password is wrong");
    assert!(!format!("{error:?}").contains("hunter2"));
    config.tls.key_password = Some(Secret::new("open"));
    assert_eq!(ask(&config, USES_TLS).await, "t");
    fs::write(&locked, "no key").unwrap();
    assert_error(&refusal(&config, Purpose::Query).await, TLS, "holds no private key");
    fs::write(&locked, "Proc-Type: 4,ENCRYPTED").unwrap();
    assert_error(&refusal(&config, Purpose::Query).await, TLS, "in an old form");
    config.tls.key = None;
    assert_error(&refusal(&config, Purpose::Query).await, TLS, "given together");
    config.tls.certificate = Some("/no/such/file".into());
    config.tls.key = Some(key);
    assert_error(&refusal(&config, Purpose::Query).await, TLS, "cannot be read");
}

fn write_encrypted(key: &pkcs8::PrivateKeyInfo<'_>, path: &Path) {
    let parameters =
        pkcs8::pkcs5::pbes2::Parameters::pbkdf2_sha256_aes256cbc(2048, b"salt4567", &[7; 16]).unwrap();
    let document = key.encrypt_with_params(parameters, "open").unwrap();
    let pem = document.to_pem("ENCRYPTED PRIVATE KEY", pkcs8::der::pem::LineEnding::LF).unwrap();
    fs::write(path, pem.as_bytes()).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
