//! Who a connection to Kafka belongs to: each mechanism with the keys that it wants, and no others.

use std::path::Path;

use super::fault::{CONFLICT, Fault, MISSING_KEY, UNSUPPORTED};
use super::raw_kafka::{RawKafka, RawSasl, RawSaslMechanism, RawSecurityProtocol};
use super::scalar::SecretSource;
use super::validated::{in_folder, secret};

/// A key of `sasl`, and whether the mechanism does without it.
type Key = (&'static str, bool);

const WITH_PASSWORD: &[Key] = &[("user", false), ("password", false)];
const WITH_TOKEN: &[Key] =
    &[("token_endpoint", false), ("client_id", false), ("client_secret", false), ("scope", true)];
const WITH_TICKET: &[Key] = &[("principal", false), ("keytab", false), ("service_name", true)];

pub(super) fn read(
    path: &str,
    raw: &RawKafka,
    protocol: RawSecurityProtocol,
    folder: &Path,
    own: &mut Vec<(String, String)>,
    secrets: &mut Vec<(&'static str, &'static str, SecretSource)>,
    faults: &mut Vec<Fault>,
) {
    let Some(sasl) = &raw.sasl else {
        let named = raw.properties.keys().any(|name| name.contains("sasl."));
        if protocol.has_sasl() && !named {
            let problem = format!("`security_protocol = \"{}\"` needs `sasl`", protocol.word());
            let fault = Fault::new(MISSING_KEY, format!("{path}.sasl"), problem);
            faults.push(fault.cure("add `sasl = { user = \"...\", password = { env = \"...\" } }`"));
        }
        return;
    };
    if !protocol.has_sasl() {
        let fault = Fault::new(
            CONFLICT,
            format!("{path}.sasl"),
            "`sasl` needs `security_protocol = \"sasl_ssl\"` or `\"sasl_plaintext\"`",
        );
        faults.push(fault.cure("write `security_protocol = \"sasl_ssl\"`"));
    }
    let mechanism = sasl.mechanism.unwrap_or(RawSaslMechanism::ScramSha512);
    keys(path, sasl, mechanism, faults);
    own.push(("sasl.mechanism".to_owned(), mechanism.word().to_owned()));
    if mechanism == RawSaslMechanism::OAuthBearer {
        own.push(("sasl.oauthbearer.method".to_owned(), "oidc".to_owned()));
    }
    let keytab = sasl.keytab.as_deref().map(|file| in_folder(folder, file));
    for (property, value) in [
        ("sasl.username", &sasl.user),
        ("sasl.oauthbearer.token.endpoint.url", &sasl.token_endpoint),
        ("sasl.oauthbearer.client.id", &sasl.client_id),
        ("sasl.oauthbearer.scope", &sasl.scope),
        ("sasl.kerberos.principal", &sasl.principal),
        ("sasl.kerberos.keytab", &keytab),
        ("sasl.kerberos.service.name", &sasl.service_name),
    ] {
        own.extend(value.iter().map(|value| (property.to_owned(), value.clone())));
    }
    for (property, key, source) in [
        ("sasl.password", "sasl.password", &sasl.password),
        ("sasl.oauthbearer.client.secret", "sasl.client_secret", &sasl.client_secret),
    ] {
        secrets.extend(source.iter().map(|source| (property, key, secret(source, folder))));
    }
}

/// Faults of keys that the mechanism lacks, and of those that are another one's.
fn keys(path: &str, sasl: &RawSasl, mechanism: RawSaslMechanism, faults: &mut Vec<Fault>) {
    if mechanism == RawSaslMechanism::Gssapi && !pgferry_target_kafka::HAS_GSSAPI {
        let fault = Fault::new(
            UNSUPPORTED,
            format!("{path}.sasl.mechanism"),
            "this build does not speak GSSAPI (Kerberos), which needs the library of Cyrus SASL",
        );
        faults.push(fault.cure(
            "build pgferry with `cargo build -p pgferry-cli --features gssapi`, where libsasl2-dev is installed; or use SCRAM-SHA-512 or OAUTHBEARER",
        ));
    }
    let wanted = match mechanism {
        RawSaslMechanism::Plain | RawSaslMechanism::ScramSha256 | RawSaslMechanism::ScramSha512 => {
            WITH_PASSWORD
        }
        RawSaslMechanism::OAuthBearer => WITH_TOKEN,
        RawSaslMechanism::Gssapi => WITH_TICKET,
    };
    let word = mechanism.word();
    for (key, there) in [
        ("user", sasl.user.is_some()),
        ("password", sasl.password.is_some()),
        ("token_endpoint", sasl.token_endpoint.is_some()),
        ("client_id", sasl.client_id.is_some()),
        ("client_secret", sasl.client_secret.is_some()),
        ("scope", sasl.scope.is_some()),
        ("principal", sasl.principal.is_some()),
        ("keytab", sasl.keytab.is_some()),
        ("service_name", sasl.service_name.is_some()),
    ] {
        let path = format!("{path}.sasl.{key}");
        match wanted.iter().find(|(name, _)| *name == key) {
            Some((_, false)) if !there => {
                faults.push(Fault::new(MISSING_KEY, path, format!("{word} needs `{key}`")));
            }
            None if there => {
                let problem = format!("`{key}` belongs to another mechanism than {word}");
                let fault = Fault::new(CONFLICT, path, problem);
                faults.push(fault.cure(format!(
                    "remove it, or name the mechanism that it is for; {word} has {}",
                    names(wanted)
                )));
            }
            _ => {}
        }
    }
}

fn names(keys: &[Key]) -> String {
    keys.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
