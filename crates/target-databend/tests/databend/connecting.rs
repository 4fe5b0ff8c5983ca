//! Ways in, by the parts of a connection: who is let in, over what, and what is said where it fails.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use pgferry_model::{Class, Error, TableState};
use pgferry_pipeline::{CopyMark, Target};
use pgferry_target_databend::error::{AUTHENTICATION, REFUSED, SETTINGS, UNREACHABLE};
use pgferry_target_databend::{DatabendConfig, DatabendTarget, Login, Server, ServerParts, Upload};
use pgferry_testkit::databend::{DatabendServer, DatabendSettings, DatabendTls};
use rcgen::KeyPair;
use tempfile::TempDir;

use crate::making::{Changes, at, deliver, load, own_server, people, plan, rows, task};

fn parts(server: &DatabendServer, login: Login) -> ServerParts {
    let root_cert = server.authority();
    ServerParts {
        host: "127.0.0.1".to_owned(),
        port: Some(server.port()),
        tls: root_cert.is_some(),
        root_cert,
        login,
    }
}

fn config(parts: ServerParts) -> DatabendConfig {
    DatabendConfig { database: Some("d".to_owned()), ..DatabendConfig::new(Server::Parts(parts)) }
}

/// A row comes by a chunk, and one by a delivery; both are read.
async fn carries(config: DatabendConfig) -> Result<()> {
    let (target, people) = (DatabendTarget::connect(config)?, people());
    target.open(&task()).await.context("open")?;
    target.prepare(&plan(&people)).await?;
    target.begin_copy(&people, CopyMark { cut: at(100), stream_start: Some(at(100)) }).await?;
    load(&target, &people, 0, &[&["1", "b", "n", "1"]]).await.context("load")?;
    target.set_state(&people, TableState::Live).await?;
    deliver(&target, 0x200, vec![Changes::of(&people).insert(&["2", "b", "n", "2"])]).await?;
    ensure!(rows(&target, &people).await? == ["1|b|n|1", "2|b|n|2"]);
    target.close().await?;
    Ok(())
}

async fn refused(config: DatabendConfig) -> Result<Error> {
    let target = DatabendTarget::connect(config)?;
    let failure = target.open(&task()).await.err().context("it was let in")?;
    let checked = target.check(&[]).await?;
    ensure!(checked.len() == 1 && checked[0].code == Some(failure.code()), "check says {checked:?}");
    ensure!(failure.cure().is_some_and(|cure| !cure.advice.is_empty()), "{failure:?} has no cure");
    let told = format!("{failure} {:?} {:?}", failure.cause(), failure.cure());
    ensure!(!told.contains("hunter2"), "the error shows a secret: {told}");
    Ok(failure)
}

fn code(failure: &Error) -> (&'static str, Class) {
    (failure.code().as_str(), failure.class())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_a_password_over_tls() -> Result<()> {
    let settings = DatabendSettings {
        user: Some("ferry".to_owned()),
        password: Some("p@ss/w:rd?".to_owned()),
        tls: DatabendTls::Made,
        ..DatabendSettings::default()
    };
    let Some(server) = own_server(&settings)? else { return Ok(()) };
    let login = |password: &str| Login::Password { user: "ferry".to_owned(), password: password.to_owned() };
    let odd = Login::Password { user: "fer ry".to_owned(), password: "hunter2".to_owned() };
    let odd = DatabendTarget::connect(config(parts(&server, odd))).err().context("it was taken")?;
    ensure!(code(&odd) == (SETTINGS.as_str(), Class::TaskBroken), "{odd:?}");
    let wrong = refused(config(parts(&server, login("hunter2")))).await?;
    ensure!(code(&wrong) == (AUTHENTICATION.as_str(), Class::TaskBroken), "{wrong:?}");
    let unknown = ServerParts { root_cert: None, ..parts(&server, login("p@ss/w:rd?")) };
    let unknown = refused(config(unknown)).await?;
    ensure!(code(&unknown) == (AUTHENTICATION.as_str(), Class::TaskBroken), "{unknown:?}");
    carries(config(parts(&server, login("p@ss/w:rd?")))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token() -> Result<()> {
    let settings = DatabendSettings { token: Some("to ken".to_owned()), ..DatabendSettings::default() };
    let Some(server) = own_server(&settings)? else { return Ok(()) };
    let wrong = refused(config(parts(&server, Login::Token("hunter2".to_owned())))).await?;
    ensure!(code(&wrong) == (AUTHENTICATION.as_str(), Class::TaskBroken), "{wrong:?}");
    carries(config(parts(&server, Login::Token("to ken".to_owned())))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_pair() -> Result<()> {
    let folder = TempDir::new()?;
    let written = |name: &str, pem: String| -> Result<PathBuf> {
        let path = folder.path().join(name);
        fs::write(&path, pem)?;
        Ok(path)
    };
    let (pair, stranger) = (KeyPair::generate()?, KeyPair::generate()?);
    let settings = DatabendSettings {
        user: Some("ferry".to_owned()),
        public_key: Some(written("public.pem", pair.public_key_pem())?),
        ..DatabendSettings::default()
    };
    let Some(server) = own_server(&settings)? else { return Ok(()) };
    let login = |private_key| Login::KeyPair { user: "ferry".to_owned(), private_key, password_file: None };
    let strangers = login(written("stranger.pem", stranger.serialize_pem())?);
    let wrong = refused(config(parts(&server, strangers))).await?;
    ensure!(code(&wrong) == (AUTHENTICATION.as_str(), Class::TaskBroken), "{wrong:?}");
    let missing = refused(config(parts(&server, login(folder.path().join("none.pem"))))).await?;
    ensure!(code(&missing) == (SETTINGS.as_str(), Class::TaskBroken), "{missing:?}");
    carries(config(parts(&server, login(written("private.pem", pair.serialize_pem())?)))).await
}

/// Straight to the storage where the server signs addresses; where it does not, that is said, or found out before.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_by_signed_addresses() -> Result<()> {
    let settings = DatabendSettings { presign: true, ..DatabendSettings::default() };
    let Some(signing) = own_server(&settings)? else { return Ok(()) };
    let Some(plain) = own_server(&DatabendSettings::default())? else { return Ok(()) };
    for (server, upload) in [
        (&signing, Upload::Presigned),
        (&signing, Upload::Detect),
        (&plain, Upload::Detect),
        (&plain, Upload::Direct),
    ] {
        signing.forget_statements()?;
        let config = DatabendConfig { upload, ..config(parts(server, Login::Nobody)) };
        let config = DatabendConfig {
            database: Some(format!("{upload:?}")),
            staging: format!("own_{upload:?}"),
            ..config
        };
        carries(config).await.with_context(|| format!("{upload:?}"))?;
        let signed = signing.statements()?.get("presign").copied().unwrap_or(0);
        ensure!((signed >= 2) == (server.port() == signing.port()), "{upload:?}: {signed} signed addresses");
    }
    let config = DatabendConfig { upload: Upload::Presigned, ..config(parts(&plain, Login::Nobody)) };
    let failure = carries(config).await.err().context("a server without signed addresses took a file")?;
    let told = failure.downcast_ref::<Error>().map(|error| error.code());
    ensure!(told == Some(REFUSED), "{failure:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_server_is_said() -> Result<()> {
    let nobody = |host: &str, port| ServerParts {
        host: host.to_owned(),
        port: Some(port),
        tls: false,
        root_cert: None,
        login: Login::Nobody,
    };
    let unused = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let away = refused(config(nobody("127.0.0.1", unused))).await?;
    ensure!(code(&away) == (UNREACHABLE.as_str(), Class::Transient), "{away:?}");
    let odd =
        DatabendTarget::connect(DatabendConfig::new(Server::Dsn("postgres://u:hunter2@h/d".to_owned())));
    let odd = odd.err().context("another kind of address was taken")?;
    ensure!(code(&odd) == (SETTINGS.as_str(), Class::TaskBroken), "{odd:?}");
    Ok(())
}
