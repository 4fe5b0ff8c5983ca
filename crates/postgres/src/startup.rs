//! A session's beginning: the way to the server, who we are, and the settings that every session has.
//!
//! ```text
//!   open ──> TLS ──> startup message ──> login: trust, clear text, MD5, SCRAM ──> version ──> settings
//! ```
//!
//! Invariants: a password in clear text goes over TLS or a Unix socket only; a channel binding that is required is never left out;
//! mode `prefer` tries the other way once where the server refuses the first.
//! Limits: no GSSAPI, SSPI or OAuth. Protocol: PostgreSQL docs, chapter "Frontend/Backend Protocol", "SASL Authentication".

use std::sync::atomic::{AtomicU8, Ordering};

use bytes::{Buf, Bytes};
use pgferry_model::{Cure, Error, Result};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::time::Instant;

use crate::config::{ChannelBinding, ConnectionConfig, Secret, SslMode};
use crate::error::{AUTHENTICATION, HBA_REJECTED, ServerError, TLS, UNREACHABLE};
use crate::explain::{Place, likely_pooler, verify_version};
use crate::liveness::Liveness;
use crate::pgpass;
use crate::session::{Purpose, Session, malformed};
use crate::stream::ByteStream;

/// What a connection was at when its time was up.
const STEPS: [&str; 3] = ["opening the connection", "logging in", "setting the session up"];

impl Session {
    /// Connects, authenticates, and pins the session's settings.
    pub async fn connect(config: &ConnectionConfig, purpose: Purpose) -> Result<Session> {
        let step = AtomicU8::new(0);
        // The addresses' own time ends a little earlier, so that the error says which of them did not answer.
        let deadline = Instant::now() + config.connect_timeout.mul_f32(0.95);
        let connecting = Box::pin(Session::start(config, purpose, deadline, &step));
        match tokio::time::timeout(config.connect_timeout, connecting).await {
            Ok(session) => session,
            Err(_) => {
                let step = STEPS[usize::from(step.load(Ordering::Relaxed)).min(STEPS.len() - 1)];
                let seconds = config.connect_timeout.as_secs_f32();
                let server = format!("{}:{}", config.host, config.port);
                Err(Error::transient(UNREACHABLE, format!("{server} did not answer within {seconds:.1} s"))
                    .with_cause(format!("the time was up while {step}"))
                    .with_cure(Cure::advice(
                        "see whether the server hangs or something else listens there; connect_timeout allows more time",
                    )))
            }
        }
    }

    async fn start(
        config: &ConnectionConfig,
        purpose: Purpose,
        deadline: Instant,
        step: &AtomicU8,
    ) -> Result<Session> {
        let mode = config.tls.mode;
        let first = Session::attempt(config, purpose, mode, deadline, step).await;
        let Err(refused) = first else { return first };
        let unencrypted = mode == SslMode::Prefer && !config.host.starts_with('/');
        if !unencrypted || ![TLS, HBA_REJECTED].contains(&refused.code()) {
            return Err(refused);
        }
        let second = Session::attempt(config, purpose, SslMode::Disable, deadline, step).await;
        match second {
            Err(again) if again.code() == HBA_REJECTED => Err(refused),
            second => second,
        }
    }

    async fn attempt(
        config: &ConnectionConfig,
        purpose: Purpose,
        mode: SslMode,
        deadline: Instant,
        step: &AtomicU8,
    ) -> Result<Session> {
        step.store(0, Ordering::Relaxed);
        let stream = ByteStream::open(config, mode, deadline).await?;
        Session::begin(stream, config, purpose, step).await
    }

    /// Everything after the way to the server is open.
    pub(crate) async fn begin(
        stream: ByteStream,
        config: &ConnectionConfig,
        purpose: Purpose,
        step: &AtomicU8,
    ) -> Result<Session> {
        step.store(1, Ordering::Relaxed);
        let place = Place {
            host: config.host.clone(),
            port: config.port,
            database: config.database.clone(),
            user: config.user.clone(),
            own_address: stream.own_address().map(|address| address.ip().to_string()),
            encrypted: stream.encrypted(),
        };
        let mut login = Login::new(config, &stream);
        let mut session = Session::over(stream, place);
        let application = format!("{} {}", config.application_name, purpose.word());
        let mut parameters = vec![
            ("user", config.user.as_str()),
            ("database", config.database.as_str()),
            ("client_encoding", "UTF8"),
            ("application_name", application.as_str()),
        ];
        if purpose == Purpose::Replication {
            parameters.push(("replication", "database"));
        }
        frontend::startup_message(parameters, &mut session.writer.buffer).map_err(unsendable)?;
        session.writer.send().await?;
        let logged_in = session.authenticate(&mut login).await;
        logged_in.map_err(|failure| match purpose {
            Purpose::Replication => likely_pooler(failure, session.reader.place()),
            _ => failure,
        })?;
        step.store(2, Ordering::Relaxed);
        let (pid, started) = session.pin().await?;
        session.reader.liveness = Some(Liveness::new(config, pid, started));
        Ok(session)
    }

    async fn authenticate(&mut self, login: &mut Login<'_>) -> Result<()> {
        loop {
            let (tag, mut body) = self.reader.next_with_parameters().await?;
            match tag {
                b'R' if body.len() >= 4 => {
                    let kind = body.get_u32();
                    let answer = login.answer(kind, &body.freeze())?;
                    match answer {
                        Answer::None => continue,
                        Answer::Password(text) => frontend::password_message(&text, &mut self.writer.buffer),
                        Answer::Begin(mechanism, text) => {
                            frontend::sasl_initial_response(mechanism, &text, &mut self.writer.buffer)
                        }
                        Answer::Continue(text) => frontend::sasl_response(&text, &mut self.writer.buffer),
                    }
                    .map_err(unsendable)?;
                    self.writer.send().await?;
                }
                b'S' => {
                    let mut parts = body[..].split(|&byte| byte == 0);
                    if let (Some(b"server_version"), Some(text)) = (parts.next(), parts.next()) {
                        verify_version(&String::from_utf8_lossy(text))?;
                    }
                }
                b'K' if body.len() >= 8 => self.backend_pid = body.get_i32(),
                b'Z' if login.done => return Ok(()),
                b'Z' => return Err(malformed("ready before the login")),
                b'E' => return Err(self.reader.explain(ServerError::parse(&body), "connecting", "")),
                _ => {}
            }
        }
    }
}

/// What the server's request is answered with.
enum Answer {
    None,
    Password(Vec<u8>),
    Begin(&'static str, Vec<u8>),
    Continue(Vec<u8>),
}

/// One login, request by request (`AuthenticationRequest` in PostgreSQL docs, "Message Formats").
struct Login<'a> {
    config: &'a ConnectionConfig,
    private: bool,
    encrypted: bool,
    end_point: Option<Vec<u8>>,
    scram: Option<ScramSha256>,
    /// SCRAM proves the server, too: without its last message the login does not count.
    proven: bool,
    bound: bool,
    done: bool,
}

impl<'a> Login<'a> {
    fn new(config: &'a ConnectionConfig, stream: &ByteStream) -> Self {
        Login {
            config,
            private: stream.private(),
            encrypted: stream.encrypted(),
            end_point: stream.end_point(),
            scram: None,
            proven: true,
            bound: false,
            done: false,
        }
    }

    fn answer(&mut self, kind: u32, rest: &Bytes) -> Result<Answer> {
        if matches!(kind, 0 | 3 | 5) && self.must_bind() && !self.bound {
            return Err(binding_refused("the server wants another login than SCRAM with channel binding"));
        }
        match kind {
            0 if self.proven => {
                self.done = true;
                Ok(Answer::None)
            }
            0 => Err(malformed("a login without the server's proof")),
            3 if self.private => Ok(Answer::Password(self.password()?.expose().into())),
            3 => Err(clear_text(self.config)),
            5 => {
                let salt = rest.get(..4).and_then(|salt| <[u8; 4]>::try_from(salt).ok());
                let salt = salt.ok_or_else(|| malformed("a short salt"))?;
                let password = self.password()?;
                let hash = md5_hash(self.config.user.as_bytes(), password.expose().as_bytes(), salt);
                Ok(Answer::Password(hash.into_bytes()))
            }
            10 => self.begin_scram(rest),
            11 => {
                let scram = self.scram.as_mut().ok_or_else(|| malformed("SASL out of order"))?;
                scram.update(rest).map_err(malformed)?;
                Ok(Answer::Continue(scram.message().to_vec()))
            }
            12 => {
                let mut scram = self.scram.take().ok_or_else(|| malformed("SASL out of order"))?;
                scram.finish(rest).map_err(|failure| {
                    Error::task_broken(AUTHENTICATION, "the server does not prove that it knows the password")
                        .with_cause("something else than the database's own server answers")
                        .with_cure(Cure::advice(
                            "find out what listens at this address before you give it a password again; ssl_mode = \"verify-full\" keeps others out",
                        ))
                        .with_origin(failure)
                })?;
                self.proven = true;
                Ok(Answer::None)
            }
            other => Err(unsupported(other)),
        }
    }

    fn begin_scram(&mut self, mechanisms: &[u8]) -> Result<Answer> {
        let offers =
            |name: &str| mechanisms.split(|&byte| byte == 0).any(|offered| offered == name.as_bytes());
        let wanted = self.config.tls.channel_binding != ChannelBinding::Disable;
        let (mechanism, binding) = match self.end_point.take().filter(|_| wanted) {
            Some(hash) if offers(SCRAM_SHA_256_PLUS) => {
                self.bound = true;
                (SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash))
            }
            _ if self.must_bind() => {
                let why = if self.encrypted {
                    "the server, or the signature of its certificate, does not allow it"
                } else {
                    "the connection is not encrypted"
                };
                return Err(binding_refused(why));
            }
            // Says that we could: a server that could, too, then sees that somebody took its offer away.
            Some(_) => (SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
        };
        if !offers(mechanism) {
            return Err(Error::task_broken(AUTHENTICATION, "the server offers no login by SCRAM-SHA-256")
                .with_cause("it asks for another SASL mechanism, such as OAUTHBEARER")
                .with_cure(Cure::advice("admit the role with the method scram-sha-256 in pg_hba.conf")));
        }
        let scram = ScramSha256::new(self.password()?.expose().as_bytes(), binding);
        let message = scram.message().to_vec();
        self.scram = Some(scram);
        self.proven = false;
        Ok(Answer::Begin(mechanism, message))
    }

    fn must_bind(&self) -> bool {
        self.config.tls.channel_binding == ChannelBinding::Require
    }

    fn password(&self) -> Result<Secret> {
        if let Some(password) = &self.config.password {
            return Ok(password.clone());
        }
        let (host, user) = (&self.config.host, &self.config.user);
        pgpass::find(self.config)?.ok_or_else(|| {
            Error::task_broken(
                AUTHENTICATION,
                format!("the server at {host} wants a password of role {user}"),
            )
            .with_cause("none is given, and no line of the password file fits")
            .with_cure(
                Cure::advice("give it to the connection, or add a line to ~/.pgpass (mode 0600)")
                    .line("password = { env = \"PGFERRY_PASSWORD\" }"),
            )
        })
    }
}

fn clear_text(config: &ConnectionConfig) -> Error {
    Error::task_broken(
        AUTHENTICATION,
        format!("{}:{} wants the password in clear text without encryption", config.host, config.port),
    )
    .with_cause("everyone on the way could read it, so it was not sent")
    .with_cure(
        Cure::advice("encrypt the connection, or have the server use scram-sha-256 in pg_hba.conf")
            .line("ssl_mode = \"verify-full\""),
    )
}

fn binding_refused(why: &str) -> Error {
    Error::task_broken(AUTHENTICATION, "channel binding is required and not possible")
        .with_cause(why)
        .with_cure(Cure::advice(
            "use TLS and scram-sha-256, or set channel_binding=prefer in the connection's URL",
        ))
}

fn unsupported(kind: u32) -> Error {
    let name = match kind {
        2 => "Kerberos V5",
        7 | 8 => "GSSAPI",
        9 => "SSPI",
        _ => "unknown to pgferry",
    };
    Error::task_broken(
        AUTHENTICATION,
        format!("the server asks for a login that is not supported ({name}, {kind})"),
    )
    .with_cause("pg_hba.conf of the server wants it of this role; passwords and certificates are supported")
    .with_cure(Cure::advice("admit the role with the method scram-sha-256 or cert in pg_hba.conf"))
}

/// A text of ours that the protocol cannot carry: it has a zero byte.
fn unsendable(failure: std::io::Error) -> Error {
    Error::task_broken(crate::error::CONFIG, "user, password, database or application name has a zero byte")
        .with_cure(Cure::advice(
            "take it out of the connection's keys, or of the file or variable that they name",
        ))
        .with_origin(failure)
}
