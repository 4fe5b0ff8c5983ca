//! A listener that wants tokens, and the endpoint that hands them out: signed, for the broker to check with the endpoint's own key.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use pgferry_model::{Class, TaskId};
use pgferry_pipeline::Target;
use pgferry_target_kafka::error::AUTHENTICATION;
use pgferry_target_kafka::{Guarantee, KafkaConfig, KafkaTarget};
use pgferry_testkit::kafka::{Broker, Setup, TOKEN_AUDIENCE, TOKEN_ISSUER};
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::making::{broker_with, config, delivery, inserts, plan, table};

const CLIENT: &str = "ferry";
const SECRET: &str = "not for everyone";

/// The key that tokens are signed with.
struct Issuer {
    key: KeyPair,
}

impl Issuer {
    /// The public key as a key set (RFC 7517).
    fn key_set(&self) -> Result<String> {
        let point = self.key.der_bytes();
        ensure!(point.len() == 65, "the key is not on the curve P-256");
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        let key = format!(
            "{{\"kty\":\"EC\",\"crv\":\"P-256\",\"use\":\"sig\",\"alg\":\"ES256\",\"kid\":\"1\",\"x\":\"{x}\",\"y\":\"{y}\"}}"
        );
        Ok(format!("{{\"keys\":[{key}]}}"))
    }

    /// A token for an hour (RFC 7519).
    fn token(&self) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let claims = format!(
            "{{\"iss\":\"{TOKEN_ISSUER}\",\"aud\":\"{TOKEN_AUDIENCE}\",\"sub\":\"{CLIENT}\",\"scope\":\"kafka\",\"iat\":{now},\"exp\":{}}}",
            now + 3_600
        );
        let head = URL_SAFE_NO_PAD.encode("{\"alg\":\"ES256\",\"typ\":\"JWT\",\"kid\":\"1\"}");
        let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(fixed(&self.key.sign(signed.as_bytes())?)?);
        Ok(format!("{signed}.{signature}"))
    }
}

/// The two numbers of a signature, each in 32 bytes, as tokens have them (RFC 7518); they come as a DER sequence of two integers.
fn fixed(der: &[u8]) -> Result<[u8; 64]> {
    let mut out = [0; 64];
    let mut rest = der.get(2..).context("no sequence")?;
    for half in out.chunks_exact_mut(32) {
        let length = usize::from(*rest.get(1).context("no integer")?);
        let number = rest.get(2..2 + length).context("no integer")?;
        // One more byte keeps a number that begins with a set bit from being negative.
        let number = &number[number.len().saturating_sub(32)..];
        half[32 - number.len()..].copy_from_slice(number);
        rest = &rest[2 + length..];
    }
    Ok(out)
}

/// Answers requests for tokens until the test ends; returns the endpoint's address.
async fn serve(issuer: Arc<Issuer>) -> Result<String> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = format!("http://{}/token", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let issuer = Arc::clone(&issuer);
            tokio::spawn(async move { answer(stream, &issuer).await });
        }
    });
    Ok(address)
}

async fn answer(mut stream: TcpStream, issuer: &Issuer) -> Result<()> {
    let mut request = Vec::new();
    // The form ends with the scope; curl sends head and body in one or two pieces.
    while !String::from_utf8_lossy(&request).contains("scope=kafka") {
        let mut piece = [0; 4_096];
        let count = stream.read(&mut piece).await?;
        ensure!(count > 0, "the request ends early");
        request.extend_from_slice(&piece[..count]);
    }
    let request = String::from_utf8_lossy(&request);
    let credentials = STANDARD.encode(format!("{CLIENT}:{SECRET}"));
    let asks = request.contains("grant_type=client_credentials");
    let (status, body) = if asks && request.contains(&format!("Basic {credentials}")) {
        let token = issuer.token()?;
        ("200 OK", format!("{{\"access_token\":\"{token}\",\"token_type\":\"Bearer\",\"expires_in\":3600}}"))
    } else {
        let said = "{\"error\":\"invalid_client\",\"error_description\":\"nobody of that name and secret\"}";
        ("401 Unauthorized", said.to_owned())
    };
    let mut answer = String::new();
    write!(
        answer,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.write_all(answer.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

fn with_token(broker: &Broker, endpoint: &str, secret: &str) -> KafkaConfig {
    let mut config = config(broker);
    config.guarantee = Guarantee::ExactlyOnce;
    config.properties = [
        ("bootstrap.servers", broker.token_servers()),
        ("security.protocol", "sasl_ssl".to_owned()),
        ("ssl.ca.location", broker.authority().display().to_string()),
        ("sasl.mechanism", "OAUTHBEARER".to_owned()),
        ("sasl.oauthbearer.method", "oidc".to_owned()),
        ("sasl.oauthbearer.token.endpoint.url", endpoint.to_owned()),
        ("sasl.oauthbearer.client.id", CLIENT.to_owned()),
        ("sasl.oauthbearer.client.secret", secret.to_owned()),
        ("sasl.oauthbearer.scope", "kafka".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec();
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_the_brokers_and_a_refusal_says_why() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let keys = folder.path().join("keys.json");
    let issuer = Arc::new(Issuer { key: KeyPair::generate()? });
    std::fs::write(&keys, issuer.key_set()?)?;
    let setup = Setup { token_keys: Some(keys), ..Setup::default() };
    let Some(broker) = broker_with(&setup)? else { return Ok(()) };
    let endpoint = serve(Arc::clone(&issuer)).await?;

    let target = KafkaTarget::connect(with_token(&broker, &endpoint, SECRET))?;
    target.open(&TaskId::new("shop")).await?;
    let people = table("people");
    target.prepare(&plan(&people)).await?;
    target.set_state(&people, pgferry_model::TableState::Live).await?;
    target.apply(delivery(100, vec![inserts(&people, &[(1, "a"), (2, "b")])])).await?;
    let count = target.inspect().count(&people).await?;
    ensure!(count == 2, "{count} rows");
    target.close().await?;

    // Brokers refuse what somebody else has signed.
    let stranger = Arc::new(Issuer { key: KeyPair::generate()? });
    for (endpoint, secret, class, word) in [
        (endpoint, "a wrong secret", Class::TaskBroken, "nobody of that name and secret"),
        ("http://127.0.0.1:1/token".to_owned(), SECRET, Class::Transient, "127.0.0.1:1/token"),
        (serve(stranger).await?, SECRET, Class::TaskBroken, "SASL authentication error"),
    ] {
        let target = KafkaTarget::connect(with_token(&broker, &endpoint, secret))?;
        let failure = target.open(&TaskId::new("shop")).await.err();
        let failure =
            failure.with_context(|| format!("it was opened, where {word} was awaited from {endpoint}"))?;
        target.close().await?;
        let told = format!("{failure:?} {:?}", failure.cause());
        ensure!(failure.code() == AUTHENTICATION && failure.class() == class, "{endpoint}: {told}");
        ensure!(told.contains(word), "{told} without {word}");
        let encoded = STANDARD.encode(format!("{CLIENT}:{secret}"));
        ensure!(!told.contains(secret) && !told.contains(&encoded), "the error shows the secret");
    }
    Ok(())
}
