//! A listener that wants TLS, a user and a password.

use anyhow::{Result, ensure};
use pgferry_model::{Class, Code, TaskId};
use pgferry_pipeline::Target;
use pgferry_target_kafka::error::{AUTHENTICATION, PROPERTY, UNREACHABLE};
use pgferry_target_kafka::{Guarantee, KafkaConfig, KafkaTarget};
use pgferry_testkit::kafka::{Broker, PASSWORD, USER};

use crate::making::{broker, config};

pub(crate) fn secured(broker: &Broker, more: &[(&str, &str)]) -> KafkaConfig {
    let mut config = config(broker);
    config.guarantee = Guarantee::ExactlyOnce;
    let authority = broker.authority().display().to_string();
    let own = [
        ("bootstrap.servers", broker.secured_servers()),
        ("security.protocol", "sasl_ssl".to_owned()),
        ("sasl.mechanism", "PLAIN".to_owned()),
        ("sasl.username", USER.to_owned()),
        ("sasl.password", PASSWORD.to_owned()),
        ("ssl.ca.location", authority),
    ];
    config.properties = own.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    config.properties.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    config
}

async fn opened(config: KafkaConfig) -> Result<Option<(Code, Class, String)>> {
    let target = match KafkaTarget::connect(config) {
        Ok(target) => target,
        Err(failure) => {
            return Ok(Some((failure.code(), failure.class(), format!("{failure} {:?}", failure.cause()))));
        }
    };
    let opened = target.open(&TaskId::new("secured")).await;
    let told = opened
        .err()
        .map(|failure| (failure.code(), failure.class(), format!("{failure} {:?}", failure.cause())));
    target.close().await?;
    Ok(told)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_of_a_task_has_the_users_secrets() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    let failed = opened(secured(&broker, &[])).await?;
    ensure!(failed.is_none(), "{failed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_connection_is_said() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    for (property, value, code, word) in [
        ("sasl.password", "wrong", AUTHENTICATION, "uthentication"),
        ("ssl.ca.location", "/nowhere/ca.pem", PROPERTY, "ca.location"),
        ("max.in.flight.requests", "x", PROPERTY, "max.in.flight"),
        ("enable.idempotence", "false", PROPERTY, "enable.idempotence"),
        ("bootstrap.servers", "127.0.0.1:1", UNREACHABLE, "127.0.0.1:1"),
    ] {
        let told = opened(secured(&broker, &[(property, value)])).await?;
        let fits = told.as_ref().is_some_and(|(found, _, text)| *found == code && text.contains(word));
        ensure!(fits, "{property}: {told:?}, not {code:?} with {word}");
        let secret =
            told.as_ref().is_some_and(|(_, _, text)| text.contains(PASSWORD) || text.contains("wrong"));
        ensure!(!secret, "the error shows a secret: {told:?}");
    }
    Ok(())
}

/// Salted passwords, as the brokers keep them.
#[tokio::test(flavor = "multi_thread")]
async fn a_salted_password_is_taken_and_a_wrong_one_is_not() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    let (user, password) = ("salted", "pepper+1");
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let line = format!(
            "kafka-configs.sh --bootstrap-server {} --alter --entity-type users --entity-name {user} \
             --add-config {mechanism}=[password={password}]",
            broker.bootstrap_servers()
        );
        let running = broker.clone();
        tokio::task::spawn_blocking(move || running.run_line(&line)).await??;
        let with = |password| {
            secured(
                &broker,
                &[("sasl.mechanism", mechanism), ("sasl.username", user), ("sasl.password", password)],
            )
        };
        let failed = opened(with(password)).await?;
        ensure!(failed.is_none(), "{mechanism}: {failed:?}");
        let told = opened(with("sugar+1")).await?;
        let fits =
            told.as_ref().is_some_and(|(code, _, text)| *code == AUTHENTICATION && !text.contains("sugar"));
        ensure!(fits, "{mechanism}: {told:?}");
    }
    Ok(())
}

/// The client's certificate says who it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_certificate_is_taken_and_one_without_is_not() -> Result<()> {
    let Some(broker) = broker()? else { return Ok(()) };
    let (certificate, key) = broker.client_certificate("ferry")?;
    let mut config = config(&broker);
    config.guarantee = Guarantee::ExactlyOnce;
    config.properties = [
        ("bootstrap.servers", broker.mutual_servers()),
        ("security.protocol", "ssl".to_owned()),
        ("ssl.ca.location", broker.authority().display().to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec();
    let told = opened(config.clone()).await?;
    ensure!(told.as_ref().is_some_and(|(code, ..)| *code == AUTHENTICATION), "without: {told:?}");
    for (property, file) in [("ssl.certificate.location", certificate), ("ssl.key.location", key)] {
        config.properties.push((property.to_owned(), file.display().to_string()));
    }
    let failed = opened(config).await?;
    ensure!(failed.is_none(), "{failed:?}");
    Ok(())
}
