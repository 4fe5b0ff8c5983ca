//! What the tests of connecting share: a configuration for a test server, and what is asserted of its refusals.

use pgferry_model::{Error, Result};
use pgferry_postgres::{ConnectionConfig, Purpose, Secret, Session, SslMode};
use pgferry_testkit::Server;

/// `user` in database postgres over TCP, without encryption.
pub(crate) fn config(server: &Server, user: &str, password: Option<&str>) -> ConnectionConfig {
    let mut config = ConnectionConfig::new("127.0.0.1", server.port(), "postgres", user);
    config.password = password.map(Secret::new);
    config.tls.mode = SslMode::Disable;
    config
}

pub(crate) async fn connect(config: &ConnectionConfig) -> Result<Session> {
    Session::connect(config, Purpose::Query).await
}

/// The error that `purpose` ends in, which has a cause and says what to do.
pub(crate) async fn refusal(config: &ConnectionConfig, purpose: Purpose) -> Error {
    let Err(error) = Session::connect(config, purpose).await else { panic!("the server let us in") };
    assert!(error.cause().is_some() && !error.problem().ends_with('.'), "{error:?}");
    error
}

/// Asserts code and a piece of the problem or cause.
pub(crate) fn assert_error(error: &Error, code: pgferry_model::Code, piece: &str) {
    let text = format!("{error} | {}", error.cause().unwrap_or_default());
    assert_eq!(error.code(), code, "{text}");
    assert!(text.contains(piece), "{piece:?} is not in {text:?}");
}
