//! A schema registry, over the interface that Confluent's has and others offer, too (Confluent docs, "Schema Registry API Reference").
//!
//! ```text
//!   table's schema ──POST /subjects/TOPIC-value/versions──> id ──> the first bytes of every record
//!   id of a record that is read ──GET /schemas/ids/ID──> schema, kept
//! ```
//!
//! Invariant: a record is written only with the id of a schema that the registry has taken under the rule for compatibility that the
//! user has set there.
//!
//! Subjects: `TOPIC-key` and `TOPIC-value`; in a topic that several tables share `TOPIC-` and the record's full name.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use apache_avro::Schema;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use pgferry_model::{Error, Result, Table};
use rustls_native_certs::load_native_certs;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::config::{KafkaConfig, RegistryConfig};
use crate::encode::{ColumnEncoder, avro_schemas};
use crate::error::{registry_denied, registry_settings, registry_unreachable, schema_refused, state_damaged};
use crate::schema::{is_shared, topic_of};

/// The longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
const CONTENT: &str = "application/vnd.schemaregistry.v1+json";

/// Ids of a table's schemas.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ids {
    /// 0: the table has no key.
    pub(crate) key: u32,
    pub(crate) value: u32,
}

/// A client of a registry.
pub(crate) struct SchemaRegistry {
    agent: Agent,
    url: String,
    authorization: Option<String>,
    known: Mutex<HashMap<u32, Arc<Schema>>>,
}

/// An answer: its status, and its body where that is JSON.
struct Answer {
    status: u16,
    body: Value,
}

impl Answer {
    fn told(&self) -> String {
        match self.body.get("message").and_then(Value::as_str) {
            Some(message) => message.to_owned(),
            None => format!("status {}", self.status),
        }
    }
}

fn authorities(config: &RegistryConfig) -> Result<RootCerts> {
    let certificates: Vec<Certificate<'static>> = match &config.root_cert {
        Some(path) => {
            let read = fs::read(path).map_err(|failure| {
                registry_settings(&format!("cannot read {}", path.display())).with_origin(failure)
            })?;
            let items = parse_pem(&read).filter_map(std::result::Result::ok);
            let of_kind = items.filter_map(|item| match item {
                PemItem::Certificate(certificate) => Some(certificate),
                _ => None,
            });
            of_kind.collect()
        }
        None => load_native_certs().certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect(),
    };
    if let (true, Some(path)) = (certificates.is_empty(), &config.root_cert) {
        return Err(registry_settings(&format!("{} holds no certificate", path.display())));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

impl SchemaRegistry {
    /// Nothing is connected yet.
    pub(crate) fn new(config: &RegistryConfig) -> Result<SchemaRegistry> {
        let url = config.url.trim_end_matches('/').to_owned();
        let mut settings = Agent::config_builder()
            .timeout_global(Some(ANSWER_WITHIN))
            .http_status_as_error(false)
            .user_agent(concat!("pgferry/", env!("CARGO_PKG_VERSION")));
        if url.starts_with("https://") {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let tls = TlsConfig::builder()
                .root_certs(authorities(config)?)
                .unversioned_rustls_crypto_provider(provider)
                .build();
            settings = settings.tls_config(tls);
        }
        let authorization = match (&config.user, &config.token) {
            (Some(user), _) => {
                let password = config.password.as_deref().unwrap_or_default();
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            (None, Some(token)) => Some(format!("Bearer {token}")),
            (None, None) => None,
        };
        Ok(SchemaRegistry {
            agent: settings.build().new_agent(),
            url,
            authorization,
            known: Mutex::default(),
        })
    }

    /// Where it is, for people.
    pub(crate) fn place(&self) -> &str {
        &self.url
    }

    fn ask(&self, path: &str, body: Option<&Value>) -> Result<Answer> {
        let url = format!("{}{path}", self.url);
        let answered = match body {
            Some(body) => {
                let mut request =
                    self.agent.post(&url).header("content-type", CONTENT).header("accept", CONTENT);
                if let Some(authorization) = &self.authorization {
                    request = request.header("authorization", authorization);
                }
                request.send(body.to_string())
            }
            None => {
                let mut request = self.agent.get(&url).header("accept", CONTENT);
                if let Some(authorization) = &self.authorization {
                    request = request.header("authorization", authorization);
                }
                request.call()
            }
        };
        let read = answered.and_then(|mut answer| {
            let status = answer.status().as_u16();
            Ok((status, answer.body_mut().read_to_string()?))
        });
        let (status, text) = read
            .map_err(|failure| registry_unreachable(&self.url, &failure.to_string()).with_origin(failure))?;
        let answer = Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::Null) };
        match status {
            401 | 403 => Err(registry_denied(&self.url, &answer.told())),
            429 | 500.. => Err(registry_unreachable(&self.url, &answer.told())),
            _ => Ok(answer),
        }
    }

    /// Whether it answers, and lets the user in.
    pub(crate) fn reach(&self) -> Result<()> {
        let answer = self.ask("/subjects", None)?;
        if answer.status == 200 && answer.body.is_array() {
            return Ok(());
        }
        Err(registry_settings(&format!(
            "{} does not answer as a schema registry: {}",
            self.url,
            answer.told()
        )))
    }

    /// The subjects of a table's schemas, and these.
    fn subjects(config: &KafkaConfig, table: &Table, columns: &[ColumnEncoder]) -> Vec<(String, Value)> {
        let topic = topic_of(config, table);
        let shared = is_shared(config, &table.name);
        let subject = |part: &str, schema: &Value| match schema.get("connect.name").and_then(Value::as_str) {
            Some(name) if shared => format!("{topic}-{name}"),
            _ => format!("{topic}-{part}"),
        };
        let (key, value) = avro_schemas(config, table, columns);
        let key = key.map(|schema| (subject("key", &schema), schema));
        key.into_iter().chain([(subject("value", &value), value)]).collect()
    }

    /// Registers a table's schemas; those that are there already keep their ids.
    pub(crate) fn register(
        &self,
        config: &KafkaConfig,
        table: &Table,
        columns: &[ColumnEncoder],
    ) -> Result<Ids> {
        let mut ids = Vec::new();
        for (subject, schema) in Self::subjects(config, table, columns) {
            let path = format!("/subjects/{}/versions", in_path(&subject));
            let answer = self.ask(&path, Some(&json!({ "schema": schema.to_string() })))?;
            let id = answer.body.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
            match (answer.status, id) {
                (200, Some(id)) => ids.push(id),
                _ => return Err(schema_refused(&table.name, &subject, &answer.told())),
            }
        }
        let value = ids.pop().unwrap_or_default();
        Ok(Ids { key: ids.pop().unwrap_or_default(), value })
    }

    /// Refuses where the registry would not take a table's schemas.
    pub(crate) fn would_take(
        &self,
        config: &KafkaConfig,
        table: &Table,
        columns: &[ColumnEncoder],
    ) -> Result<()> {
        for (subject, schema) in Self::subjects(config, table, columns) {
            let path = format!("/compatibility/subjects/{}/versions/latest", in_path(&subject));
            let answer = self.ask(&path, Some(&json!({ "schema": schema.to_string() })))?;
            let compatible = answer.body.get("is_compatible").and_then(Value::as_bool);
            // 404: a subject that is not there yet takes anything.
            if answer.status != 404 && compatible != Some(true) {
                return Err(schema_refused(&table.name, &subject, &answer.told()));
            }
        }
        Ok(())
    }

    /// The schema that a record was written with.
    pub(crate) fn schema(&self, id: u32) -> Result<Arc<Schema>> {
        if let Some(known) = self.known.lock().get(&id) {
            return Ok(Arc::clone(known));
        }
        let answer = self.ask(&format!("/schemas/ids/{id}"), None)?;
        let text = answer.body.get("schema").and_then(Value::as_str);
        let parsed = text.and_then(|text| Schema::parse_str(text).ok());
        let Some(schema) = parsed.map(Arc::new) else { return Err(unknown_schema(&self.url, id)) };
        self.known.lock().insert(id, Arc::clone(&schema));
        Ok(schema)
    }
}

fn unknown_schema(url: &str, id: u32) -> Error {
    state_damaged(url, &format!("the registry has no Avro schema {id}, which a record names"))
}

/// A subject as a part of a path.
fn in_path(subject: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    subject
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
