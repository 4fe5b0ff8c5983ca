//! Encryption on top of a socket: whom we trust, who we are, and what each failure means.
//!
//! ```text
//!   disable   no TLS                      require     TLS, any certificate whose owner signed the handshake
//!   prefer    as require, or no TLS       verify-ca   + a known authority        verify-full   + our name for the server
//! ```
//!
//! Invariant: every mode checks that the peer holds the key of the certificate that it shows.
//! Limits: certificates are X.509 version 3, and names count from the subject alternative names only, as rustls has it.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use pgferry_model::{Cure, Error, Result};
use pkcs8::der::Decode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{SslMode, TlsConfig};
use crate::error::{TLS, UNREACHABLE};
use crate::pgpass::others_may_read;

/// A larger file is no certificate and no key.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Files read, ready for a handshake.
pub(crate) struct Client {
    config: Arc<ClientConfig>,
}

/// Reads what `tls` names. Blocks on files.
pub(crate) fn client(tls: &TlsConfig, mode: SslMode) -> Result<Client> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let by_file = tls.root_certificate.is_some() && mode == SslMode::Require;
    let verified = by_file || matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull);
    let trust = if verified { Some(trust(tls.root_certificate.as_deref())?) } else { None };
    let verifier = Verifier { trust, full: mode == SslMode::VerifyFull, provider: Arc::clone(&provider) };
    let invalid = |failure| {
        setting("the TLS settings do not go together")
            .with_cure(Cure::advice(
                "begin with ssl_mode = \"require\" alone, then add one key after the other",
            ))
            .with_origin(failure)
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(invalid)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match (&tls.certificate, &tls.key) {
        (Some(certificate), Some(key)) => {
            let password = tls.key_password.as_ref().map(|password| password.expose());
            let chain = certificates(certificate)?;
            let key_file = key;
            let key = private_key(key_file, password)?;
            config.with_client_auth_cert(chain, key).map_err(|failure| {
                setting(format!("the key does not belong to the certificate {}", certificate.display()))
                    .with_cure(
                        Cure::advice("name the two that were made together; these lines print the same text for a pair")
                            .shell("openssl x509 -noout -pubkey -in", &certificate.to_string_lossy())
                            .shell("openssl pkey -pubout -in", &key_file.to_string_lossy()),
                    )
                    .with_origin(failure)
            })?
        }
        (None, None) => config.with_no_client_auth(),
        _ => {
            return Err(setting("a client certificate and its key are given together, or neither")
                .with_cause("the connection names one of ssl_cert and ssl_key only")
                .with_cure(
                    Cure::advice("name both, or none")
                        .line("ssl_cert = \"client.crt\"")
                        .line("ssl_key = \"client.key\""),
                ));
        }
    };
    Ok(Client { config: Arc::new(config) })
}

impl Client {
    /// Proves who both sides are and agrees on keys.
    pub(crate) async fn handshake(
        &self,
        host: &str,
        port: u16,
        socket: TcpStream,
    ) -> Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(|failure| {
            setting(format!("{host:?} is no name that TLS knows"))
                .with_cure(Cure::advice("name the host as its certificate does, or by its address"))
                .with_origin(failure)
        })?;
        let client = TlsConnector::from(Arc::clone(&self.config));
        client.connect(name, socket).await.map_err(|failure| {
            explain(&failure, &format!("{host}:{port}")).unwrap_or_else(|| {
                Error::transient(UNREACHABLE, format!("{host}:{port} ended the TLS handshake"))
                    .with_cure(Cure::advice("it is tried again; if it stays so, see the server's log and what a proxy on the way does"))
                    .with_origin(failure)
            })
        })
    }
}

struct Trust {
    roots: RootCertStore,
    /// Certificates of the file itself; a server may show one of them, as self-signed servers do.
    pinned: Vec<CertificateDer<'static>>,
}

fn trust(path: Option<&Path>) -> Result<Trust> {
    let mut roots = RootCertStore::empty();
    let Some(path) = path else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(setting("the system has no certificates of authorities")
                .with_cause("this ssl_mode verifies the server, and no ssl_root_cert is named")
                .with_cure(
                    Cure::advice("install them (Debian: ca-certificates), or name a file")
                        .line("ssl_root_cert = \"ca.crt\""),
                ));
        }
        return Ok(Trust { roots, pinned: Vec::new() });
    };
    let pinned = certificates(path)?;
    for certificate in &pinned {
        roots.add(certificate.clone()).map_err(|failure| {
            setting(format!("{} holds a certificate that cannot be trusted", path.display()))
                .with_cure(
                    Cure::advice("name the authority's own certificate; this shows what the file holds")
                        .shell("openssl x509 -noout -subject -issuer -dates -in", &path.to_string_lossy()),
                )
                .with_origin(failure)
        })?;
    }
    Ok(Trust { roots, pinned })
}

#[derive(Debug)]
struct Verifier {
    /// `None`: any certificate.
    trust: Option<Trust>,
    /// Whether the name counts.
    full: bool,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} authorities", self.roots.len())
    }
}

impl Verifier {
    fn verify_chain(
        &self,
        trust: &Trust,
        end: &CertificateDer<'_>,
        parsed: &ParsedCertificate<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let verified =
            verify_server_cert_signed_by_trust_anchor(parsed, &trust.roots, between, now, algorithms);
        match verified {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::Other(_),
            )) if trust.pinned.iter().any(|pinned| pinned == end) => in_its_time(end, now),
            verified => verified,
        }
    }
}

/// The check that a pinned certificate would otherwise miss.
fn in_its_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let bad = rustls::Error::InvalidCertificate;
    let parsed =
        x509_cert::Certificate::from_der(certificate).map_err(|_| bad(CertificateError::BadEncoding))?;
    let validity = &parsed.tbs_certificate.validity;
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(bad(CertificateError::Expired));
    }
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(bad(CertificateError::NotValidYet));
    }
    Ok(())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(trust) = &self.trust {
            let parsed = ParsedCertificate::try_from(end)?;
            self.verify_chain(trust, end, &parsed, between, now)?;
            if self.full {
                verify_server_name(&parsed, name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The hash of the server's certificate, `tls-server-end-point` (RFC 5929 section 4.1): by the hash of its signature, SHA-256 in
/// place of MD5 and SHA-1. `None` for signatures without one of their own (Ed25519, RSA-PSS).
pub(crate) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let algorithm = match parsed.signature_algorithm.oid.to_string().as_str() {
        // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" => &ring::digest::SHA256,
        "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => &ring::digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &ring::digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &ring::digest::SHA512,
        _ => return None,
    };
    Some(ring::digest::digest(algorithm, certificate).as_ref().to_vec())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let cannot = |failure: io::Error| {
        setting(format!("the file {} cannot be read", path.display()))
            .with_cure(
                Cure::advice("correct its path (it is relative to the task file), or let this user read it")
                    .shell("ls -l", &path.to_string_lossy()),
            )
            .with_origin(failure)
    };
    if fs::metadata(path).map_err(cannot)?.len() > FILE_BYTES_MAX {
        return Err(setting(format!("the file {} is too large for a certificate or key", path.display()))
            .with_cause(format!("it has more than {FILE_BYTES_MAX} bytes"))
            .with_cure(Cure::advice("name a PEM file with the certificate or the key alone")));
    }
    fs::read(path).map_err(cannot)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|failure| {
        setting(format!("the file {} is damaged", path.display()))
            .with_cause(failure.to_string())
            .with_cure(Cure::advice("get it anew: PEM, from BEGIN CERTIFICATE to END CERTIFICATE"))
    })?;
    if found.is_empty() {
        return Err(setting(format!("the file {} holds no certificate", path.display()))
            .with_cause("no part of it begins with BEGIN CERTIFICATE")
            .with_cure(
                Cure::advice("it has to be PEM; convert a DER file as below")
                    .line("openssl x509 -inform der -in cert.der -out cert.pem"),
            ));
    }
    Ok(found)
}

fn private_key(path: &Path, password: Option<&str>) -> Result<PrivateKeyDer<'static>> {
    let shown = path.display();
    let text = read(path)?;
    if fs::metadata(path).is_ok_and(|metadata| others_may_read(&metadata)) {
        return Err(setting(format!("the key {shown} can be read by others"))
            .with_cause("its mode gives rights to group or others; a key that others know proves nothing")
            .with_cure(
                Cure::advice("let its owner alone read it").shell("chmod 0600", &path.to_string_lossy()),
            ));
    }
    let words = String::from_utf8_lossy(&text);
    if words.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(setting(format!("the key {shown} is encrypted in an old form"))
            .with_cause("it is encrypted as PEM (Proc-Type), which is weak; PKCS#8 is supported")
            .with_cure(
                Cure::advice("convert it to PKCS#8")
                    .shell("openssl pkcs8 -topk8 -out client.key -in", &path.to_string_lossy()),
            ));
    }
    if words.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") {
        return decrypted(&words, password).map_err(|why| {
            setting(format!("the key {shown} cannot be decrypted")).with_cause(why).with_cure(
                Cure::advice("give its password").line("ssl_key_password = { env = \"KEY_PASSWORD\" }"),
            )
        });
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|failure| {
        setting(format!("the file {shown} holds no private key"))
            .with_cause(failure.to_string())
            .with_cure(Cure::advice("name the PEM file with the key: ssl_key, not ssl_cert"))
    })
}

fn decrypted(text: &str, password: Option<&str>) -> Result<PrivateKeyDer<'static>, String> {
    let password = password.ok_or("it is encrypted, and no password for it is given")?;
    let (_, document) =
        pkcs8::SecretDocument::from_pem(text).map_err(|failure| format!("it is damaged: {failure}"))?;
    let key = pkcs8::EncryptedPrivateKeyInfo::try_from(document.as_bytes())
        .map_err(|failure| format!("its encryption is not supported: {failure}"))?;
    let plain = key.decrypt(password).map_err(|failure| match failure {
        pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::UnsupportedAlgorithm { oid }) => {
            format!("its encryption {oid} is not supported; openssl pkcs8 -topk8 -v2 aes-256-cbc makes one that is")
        }
        _ => "the password is wrong".to_owned(),
    })?;
    Ok(PrivatePkcs8KeyDer::from(plain.as_bytes().to_vec()).into())
}

fn setting(problem: impl Into<String>) -> Error {
    Error::task_broken(TLS, problem)
}

/// What TLS says inside an I/O error; `None` where the cause is not TLS.
pub(crate) fn explain(failure: &io::Error, server: &str) -> Option<Error> {
    let failure = failure.get_ref()?.downcast_ref::<rustls::Error>()?;
    let error = match failure {
        rustls::Error::InvalidCertificate(why) => certificate_error(why, server),
        rustls::Error::AlertReceived(alert) => {
            Error::task_broken(TLS, format!("{server} ended the TLS connection"))
                .with_cause(format!("it does not accept our certificate or our way of TLS (alert {alert:?})"))
                .with_cure(
                    Cure::advice(
                        "give a client certificate of an authority in the server's ssl_ca_file; this shows the file's name",
                    )
                    .sql("SHOW ssl_ca_file")
                    .run_as("superuser"),
                )
        }
        other => Error::task_broken(TLS, format!("TLS with {server} is not possible"))
            .with_cause(other.to_string())
            .with_cure(Cure::advice("see the server's log and its ssl_min_protocol_version; pgferry speaks TLS 1.2 and 1.3")),
    };
    Some(error.with_origin(failure.clone()))
}

/// `pg01` of `DnsName("pg01")`, as the TLS library writes a certificate's names.
fn bare(name: &str) -> &str {
    let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inside.map_or(name, |inside| inside.trim_matches('"'))
}

fn certificate_error(why: &CertificateError, server: &str) -> Error {
    let error = |problem: String| Error::task_broken(TLS, problem);
    match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => error(format!(
            "the certificate of {server} is of an unknown authority"
        ))
        .with_cause("no trusted authority has signed it")
        .with_cure(
            Cure::advice(
                "name the file of the server's authority; ssl_mode = \"require\" would not check who it is",
            )
            .line("ssl_root_cert = \"ca.crt\""),
        ),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names = if presented.is_empty() {
                "no name (its common name does not count)".to_owned()
            } else {
                presented.iter().map(|name| bare(name)).collect::<Vec<_>>().join(", ")
            };
            error(format!("the certificate of {server} is for another name"))
                .with_cause(format!("we connect to {}, and it names {names}", expected.to_str()))
                .with_cure(
                    Cure::advice("connect by a name of the certificate, or check the authority only")
                        .line("ssl_mode = \"verify-ca\""),
                )
        }
        CertificateError::NotValidForName => {
            error(format!("the certificate of {server} is for another name"))
                .with_cause("we connect by a name or address that the certificate does not have")
                .with_cure(
                    Cure::advice("connect by a name of the certificate, or check the authority only")
                        .line("ssl_mode = \"verify-ca\""),
                )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            error(format!("the certificate of {server}, or of its authority, has expired"))
                .with_cause(why.to_string())
                .with_cure(
                    Cure::advice("renew it on the server, then have the server read it again")
                        .sql("SELECT pg_reload_conf()")
                        .run_as("superuser"),
                )
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            error(format!("the certificate of {server} is not valid yet"))
                .with_cause(why.to_string())
                .with_cure(
                    Cure::advice("set the clock of this machine, or wait until it is valid").line("date -u"),
                )
        }
        other => error(format!("the certificate of {server} is not valid"))
            .with_cause(other.to_string())
            .with_cure(Cure::advice("have a new one made for the server")),
    }
}
