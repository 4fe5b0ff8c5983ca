//! Our own protocol session: startup, authentication, small queries, COPY OUT and COPY BOTH.
//!
//! ```text
//!   socket ──read──> one buffer ──frames (tag, body) borrowed──> caller        writes go straight to the socket
//! ```
//!
//! Invariants: `read_some` is cancel-safe; a frame is never copied to be looked at; notices and parameter statuses are taken here.
//!
//! Why not a client library: none gives the replication startup, COPY BOTH, and frames without a copy and a channel send per row.
//! Protocol: PostgreSQL docs, chapter "Frontend/Backend Protocol".

use std::io;

use bytes::{Buf, BytesMut};
use pgferry_model::{Error, Result};
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::{backend, frontend};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;

use crate::ConnectionConfig;
use crate::error::{AUTHENTICATION, PROTOCOL, ServerError, UNREACHABLE};

/// Room for a read; large, so that one read brings many frames.
const READ_BYTES: usize = 256 << 10;
/// PostgreSQL's largest message and its header.
const FRAME_BYTES_MAX: usize = (1 << 30) + 5;

/// What a session is for; decides its startup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Catalog and checks.
    Query,
    /// Snapshot workers.
    Copy,
    /// Replication commands and the change stream.
    Replication,
}

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Purpose::Query => "catalog",
            Purpose::Copy => "snapshot",
            Purpose::Replication => "replication",
        }
    }
}

/// A message of the server.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Its type.
    pub tag: u8,
    /// Its content after the length.
    pub body: &'a [u8],
}

/// A row of a small query, in text form.
pub type ResultRow = Vec<Option<String>>;

/// The reading side.
pub struct SessionReader {
    socket: ReadHalf<TcpStream>,
    buffer: BytesMut,
}

/// The writing side.
pub struct SessionWriter {
    socket: WriteHalf<TcpStream>,
    buffer: BytesMut,
}

/// A connection after its startup.
pub struct Session {
    reader: SessionReader,
    writer: SessionWriter,
    backend_pid: i32,
    server_version_num: u32,
}

impl SessionReader {
    /// Reads what is at hand, at least one byte. Returns the number of bytes; 0 at the end. Cancel-safe.
    pub async fn read_some(&mut self) -> Result<usize> {
        self.buffer.reserve(READ_BYTES);
        self.socket.read_buf(&mut self.buffer).await.map_err(lost)
    }

    /// Reads and forgets, for an ending connection. Returns the number of bytes; 0 at the end.
    pub async fn drop_some(&mut self) -> Result<usize> {
        self.buffer.clear();
        self.read_some().await
    }

    /// The first whole frame of the buffer, without taking it.
    pub fn peek_frame(&self) -> Result<Option<Frame<'_>>> {
        let Some(length) = self.frame_length()? else { return Ok(None) };
        Ok(Some(Frame { tag: self.buffer[0], body: &self.buffer[5..length] }))
    }

    /// Takes the frame that [`SessionReader::peek_frame`] showed.
    pub fn consume_frame(&mut self) {
        if let Ok(Some(length)) = self.frame_length() {
            self.buffer.advance(length);
        }
    }

    fn frame_length(&self) -> Result<Option<usize>> {
        let Some(header) = backend::Header::parse(&self.buffer).map_err(malformed)? else { return Ok(None) };
        let length = header.len() as usize + 1;
        if length > FRAME_BYTES_MAX {
            return Err(malformed("a message longer than PostgreSQL sends"));
        }
        Ok((self.buffer.len() >= length).then_some(length))
    }

    /// An ErrorResponse as an error of pgferry.
    pub fn server_error(&self, body: &[u8], doing: &str) -> Error {
        ServerError::parse(body).into_error(doing)
    }

    async fn next(&mut self) -> Result<(u8, BytesMut)> {
        loop {
            if let Some(length) = self.frame_length()? {
                let mut frame = self.buffer.split_to(length);
                let tag = frame[0];
                frame.advance(5);
                if matches!(tag, b'N' | b'S' | b'A') {
                    continue;
                }
                return Ok((tag, frame));
            }
            if self.read_some().await? == 0 {
                return Err(lost(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

impl SessionWriter {
    async fn send(&mut self) -> Result<()> {
        self.socket.write_all_buf(&mut self.buffer).await.map_err(lost)?;
        self.socket.flush().await.map_err(lost)
    }

    /// One CopyData message.
    pub async fn write_copy_data(&mut self, data: &[u8]) -> Result<()> {
        frontend::CopyData::new(data).map_err(malformed)?.write(&mut self.buffer);
        self.send().await
    }

    /// Ends a COPY from this side.
    pub async fn finish_copy(&mut self) -> Result<()> {
        frontend::copy_done(&mut self.buffer);
        self.send().await
    }

    /// Ends the connection.
    pub async fn terminate(&mut self) -> Result<()> {
        frontend::terminate(&mut self.buffer);
        self.send().await?;
        self.socket.shutdown().await.map_err(lost)
    }
}

impl Session {
    /// Connects, authenticates, and pins the session's settings.
    pub async fn connect(config: &ConnectionConfig, purpose: Purpose) -> Result<Session> {
        let connecting = Session::start(config, purpose);
        match tokio::time::timeout(config.connect_timeout, connecting).await {
            Ok(session) => session,
            Err(_) => Err(Error::transient(
                UNREACHABLE,
                format!("{}:{} did not answer within {:?}", config.host, config.port, config.connect_timeout),
            )),
        }
    }

    async fn start(config: &ConnectionConfig, purpose: Purpose) -> Result<Session> {
        let socket = TcpStream::connect((config.host.as_str(), config.port)).await.map_err(|failure| {
            Error::transient(UNREACHABLE, format!("cannot reach {}:{}", config.host, config.port))
                .with_origin(failure)
        })?;
        socket.set_nodelay(true).map_err(lost)?;
        let (read, write) = tokio::io::split(socket);
        let mut session = Session {
            reader: SessionReader { socket: read, buffer: BytesMut::new() },
            writer: SessionWriter { socket: write, buffer: BytesMut::new() },
            backend_pid: 0,
            server_version_num: 0,
        };
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
        frontend::startup_message(parameters, &mut session.writer.buffer).map_err(malformed)?;
        session.writer.send().await?;
        session.authenticate(config).await?;
        session.pin().await?;
        Ok(session)
    }

    async fn authenticate(&mut self, config: &ConnectionConfig) -> Result<()> {
        let password = config.password.as_ref().map_or("", |password| password.expose());
        let mut scram: Option<ScramSha256> = None;
        loop {
            let (tag, mut body) = self.reader.next().await?;
            match tag {
                b'R' if body.len() >= 4 => {
                    let kind = body.get_u32();
                    let rest = body.freeze();
                    let out = &mut self.writer.buffer;
                    match kind {
                        0 => continue,
                        3 => frontend::password_message(password.as_bytes(), out).map_err(malformed)?,
                        5 if rest.len() >= 4 => {
                            let salt = [rest[0], rest[1], rest[2], rest[3]];
                            let hash = postgres_protocol::authentication::md5_hash(
                                config.user.as_bytes(),
                                password.as_bytes(),
                                salt,
                            );
                            frontend::password_message(hash.as_bytes(), out).map_err(malformed)?;
                        }
                        10 => {
                            let exchange =
                                ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                            frontend::sasl_initial_response(SCRAM_SHA_256, exchange.message(), out)
                                .map_err(malformed)?;
                            scram = Some(exchange);
                        }
                        11 | 12 => {
                            let exchange = scram.as_mut().ok_or_else(|| malformed("SASL out of order"))?;
                            if kind == 11 {
                                exchange.update(&rest).map_err(malformed)?;
                                frontend::sasl_response(exchange.message(), out).map_err(malformed)?;
                            } else {
                                exchange.finish(&rest).map_err(malformed)?;
                            }
                        }
                        other => {
                            return Err(Error::task_broken(
                                AUTHENTICATION,
                                format!(
                                    "the server asks for an authentication method that is not supported ({other})"
                                ),
                            ));
                        }
                    }
                    self.writer.send().await?;
                }
                b'K' if body.len() >= 8 => self.backend_pid = body.get_i32(),
                b'Z' => return Ok(()),
                b'E' => return Err(ServerError::parse(&body).into_error("connecting")),
                _ => {}
            }
        }
    }

    /// Every session has the same text forms and no time limit of its own, whatever the server's, the database's and the role's
    /// settings are. Limits that only newer servers have (14+, 17+) are lifted where they exist: one of them would end a long
    /// snapshot or the idle connection that holds its export.
    async fn pin(&mut self) -> Result<()> {
        let rows = self
            .simple_query(
                "SET statement_timeout = 0; SHOW server_version_num; \
                 SET DateStyle = 'ISO, MDY'; SET TimeZone = 'UTC'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 3; \
                 SET bytea_output = 'hex'; SET search_path = pg_catalog; SET row_security = off; SET lock_timeout = 0; \
                 SET idle_in_transaction_session_timeout = 0; SET standard_conforming_strings = on; SET xmloption = content; \
                 SET quote_all_identifiers = off; \
                 SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
                 WHERE name IN ('idle_session_timeout', 'transaction_timeout')",
            )
            .await?;
        let version = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
        self.server_version_num = version.ok_or_else(|| malformed("no server version"))?;
        Ok(())
    }

    /// Runs statements and returns the rows of all of them, in text form.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<ResultRow>> {
        frontend::query(sql, &mut self.writer.buffer).map_err(malformed)?;
        self.writer.send().await?;
        let (mut rows, mut failure) = (Vec::new(), None);
        loop {
            let (tag, body) = match self.reader.next().await {
                Ok(frame) => frame,
                // A FATAL error is the last that the server says; its words tell more than the end of the connection.
                Err(end) if failure.is_none() => return Err(end),
                Err(_) => break,
            };
            match tag {
                b'D' => rows.push(data_row(&body)?),
                b'E' => failure = Some(ServerError::parse(&body)),
                b'Z' => break,
                _ => {}
            }
        }
        match failure {
            None => Ok(rows),
            Some(failure) => Err(failure.into_error("asking the server")),
        }
    }

    /// Starts a COPY TO STDOUT; its data follow as frames `d`, its end as `Z`.
    pub async fn copy_out(&mut self, sql: &str) -> Result<()> {
        self.enter_copy(sql, b'H', "reading a table").await
    }

    /// Starts the change stream; both sides then send CopyData.
    pub async fn copy_both(&mut self, sql: &str) -> Result<()> {
        self.enter_copy(sql, b'W', "starting the change stream").await
    }

    async fn enter_copy(&mut self, sql: &str, wanted: u8, doing: &str) -> Result<()> {
        frontend::query(sql, &mut self.writer.buffer).map_err(malformed)?;
        self.writer.send().await?;
        let mut failure: Option<ServerError> = None;
        loop {
            let (tag, body) = match self.reader.next().await {
                Ok(frame) => frame,
                Err(end) => return Err(failure.map_or(end, |failure| failure.into_error(doing))),
            };
            match tag {
                tag if tag == wanted => return Ok(()),
                b'E' => failure = Some(ServerError::parse(&body)),
                b'Z' => {
                    return Err(match failure {
                        Some(failure) => failure.into_error(doing),
                        None => malformed("no COPY was started"),
                    });
                }
                _ => {}
            }
        }
    }

    /// See [`SessionReader::read_some`].
    pub async fn read_some(&mut self) -> Result<usize> {
        self.reader.read_some().await
    }

    /// See [`SessionReader::peek_frame`].
    pub fn peek_frame(&self) -> Result<Option<Frame<'_>>> {
        self.reader.peek_frame()
    }

    /// See [`SessionReader::consume_frame`].
    pub fn consume_frame(&mut self) {
        self.reader.consume_frame();
    }

    /// See [`SessionReader::server_error`].
    pub fn server_error(&self, body: &[u8], doing: &str) -> Error {
        self.reader.server_error(body, doing)
    }

    /// The server's version, such as 150018.
    pub fn server_version_num(&self) -> u32 {
        self.server_version_num
    }

    /// The server's process.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// Both sides, for two tasks.
    pub fn into_split(self) -> (SessionReader, SessionWriter) {
        (self.reader, self.writer)
    }

    /// Ends the connection.
    pub async fn close(mut self) -> Result<()> {
        self.writer.terminate().await
    }
}

fn data_row(body: &[u8]) -> Result<ResultRow> {
    let mut rest = body;
    if rest.len() < 2 {
        return Err(malformed("a short row"));
    }
    let count = rest.get_u16();
    let mut row = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        if rest.len() < 4 {
            return Err(malformed("a short row"));
        }
        let length = rest.get_i32();
        let Ok(length) = usize::try_from(length) else {
            row.push(None);
            continue;
        };
        let value = rest.get(..length).ok_or_else(|| malformed("a short row"))?;
        row.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = &rest[length..];
    }
    Ok(row)
}

fn lost(failure: io::Error) -> Error {
    Error::transient(UNREACHABLE, "the connection to the server was lost").with_origin(failure)
}

fn malformed(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::task_broken(PROTOCOL, "the server's answer does not follow the protocol").with_origin(what)
}
