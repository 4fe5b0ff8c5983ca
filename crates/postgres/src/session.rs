//! Our own protocol session after its startup: small queries, COPY OUT and COPY BOTH.
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
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use pgferry_model::{Cure, Error, Result};
use postgres_protocol::message::{backend, frontend};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::connection_thread::Pace;
use crate::error::{PROTOCOL, ServerError, UNREACHABLE};
use crate::explain::{Place, explain, shared_connections};
use crate::liveness::Liveness;
use crate::stream::ByteStream;
use crate::tls;

/// Room for a read; large, so that one read brings many frames.
pub(crate) const READ_BYTES: usize = 256 << 10;
/// A buffer that one large frame has blown up beyond this is not kept.
pub(crate) const KEPT_BYTES_MAX: usize = 4 * READ_BYTES;
/// Room is made for a large frame at once when this part of it has come: growing step by step holds it twice for a moment.
const ARRIVED_PART: usize = 64;
/// PostgreSQL's largest message and its header.
pub(crate) const FRAME_BYTES_MAX: usize = (1 << 30) + 5;
/// The largest message before the login is done: nobody unknown makes us hold more.
const LOGIN_FRAME_BYTES_MAX: usize = 64 << 10;

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
    pub(crate) fn word(self) -> &'static str {
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

impl Frame<'_> {
    /// Whether it is better taken with its memory than copied: see [`SessionReader::take_frame`].
    #[inline]
    pub fn is_large(&self) -> bool {
        self.body.len() > KEPT_BYTES_MAX
    }
}

/// A row of a small query, in text form.
pub type ResultRow = Vec<Option<String>>;

/// The reading side.
pub struct SessionReader {
    socket: ReadHalf<ByteStream>,
    pub(crate) buffer: BytesMut,
    frame_bytes_max: usize,
    pace: Pace,
    pub(crate) place: Arc<Place>,
    /// Whom to ask when nothing comes; `None`: it is waited for, however long.
    pub(crate) liveness: Option<Liveness>,
}

/// The writing side.
pub struct SessionWriter {
    socket: WriteHalf<ByteStream>,
    pub(crate) buffer: BytesMut,
}

/// A connection after its startup.
pub struct Session {
    pub(crate) reader: SessionReader,
    pub(crate) writer: SessionWriter,
    pub(crate) backend_pid: i32,
    server_version_num: u32,
}

impl SessionReader {
    /// Reads what is at hand, at least one byte. Returns the number of bytes; 0 at the end. Cancel-safe.
    pub async fn read_some(&mut self) -> Result<usize> {
        self.buffer.reserve(room(&self.buffer, self.frame_bytes_max));
        let reading = self.socket.read_buf(&mut self.buffer);
        match &self.liveness {
            Some(liveness) => liveness.watch(reading).await,
            None => reading.await.map_err(lost),
        }
    }

    /// The same on a thread of the connection's own, which naps where more is about to come; see [`crate::ConnectionThread`].
    pub async fn read_gathered(&mut self) -> Result<usize> {
        self.pace.nap();
        let bytes = self.read_some().await?;
        self.pace.note(bytes);
        Ok(bytes)
    }

    /// The first whole frame of the buffer, without taking it.
    pub fn peek_frame(&self) -> Result<Option<Frame<'_>>> {
        first_frame(&self.buffer, self.frame_bytes_max)
    }

    /// Takes the frame that [`SessionReader::peek_frame`] showed.
    pub fn consume_frame(&mut self) {
        drop_frame(&mut self.buffer, self.frame_bytes_max);
    }

    /// Takes the body of the frame that [`SessionReader::peek_frame`] showed, with its memory.
    pub fn take_frame(&mut self) -> Bytes {
        take_frame(&mut self.buffer, self.frame_bytes_max)
    }

    fn frame_length(&self) -> Result<Option<usize>> {
        frame_length(&self.buffer, self.frame_bytes_max)
    }

    /// An ErrorResponse as an error of pgferry.
    pub fn server_error(&self, body: &[u8], doing: &str) -> Error {
        self.explain(ServerError::parse(body), doing, "")
    }

    pub(crate) fn explain(&self, failure: ServerError, doing: &str, sql: &str) -> Error {
        explain(failure, doing, &self.place, sql)
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    async fn next(&mut self) -> Result<(u8, BytesMut)> {
        loop {
            let (tag, body) = self.next_with_parameters().await?;
            if tag != b'S' {
                return Ok((tag, body));
            }
        }
    }

    /// The next message, parameter statuses among them.
    pub(crate) async fn next_with_parameters(&mut self) -> Result<(u8, BytesMut)> {
        loop {
            if let Some(length) = self.frame_length()? {
                let mut frame = self.buffer.split_to(length);
                let tag = frame[0];
                frame.advance(5);
                if matches!(tag, b'N' | b'A') {
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
    pub(crate) async fn send(&mut self) -> Result<()> {
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
    pub(crate) fn over(stream: ByteStream, place: Place) -> Session {
        let (read, write) = tokio::io::split(stream);
        let place = Arc::new(place);
        let reader = SessionReader {
            socket: read,
            buffer: BytesMut::new(),
            frame_bytes_max: LOGIN_FRAME_BYTES_MAX,
            pace: Pace::default(),
            place,
            liveness: None,
        };
        let writer = SessionWriter { socket: write, buffer: BytesMut::new() };
        Session { reader, writer, backend_pid: 0, server_version_num: 0 }
    }

    /// Whether the connection is encrypted.
    pub fn encrypted(&self) -> bool {
        self.reader.place.encrypted
    }

    /// Every session has the same text forms and no time limit of its own, whatever the server's, the database's and the role's
    /// settings are. Limits that only newer servers have (14+, 17+) are lifted where they exist: one of them would end a long
    /// snapshot or the idle connection that holds its export. Nothing is compiled (`jit`, 11+): for questions to the catalog that takes
    /// longer than they do.
    ///
    /// Returns the server's process and when it was started, as the server writes it.
    pub(crate) async fn pin(&mut self) -> Result<(String, String)> {
        self.reader.frame_bytes_max = FRAME_BYTES_MAX;
        let rows = self
            .simple_query(
                "SET statement_timeout = 0; SHOW server_version_num; \
                 SET DateStyle = 'ISO, MDY'; SET TimeZone = 'UTC'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 3; \
                 SET bytea_output = 'hex'; SET search_path = ''; SET row_security = off; SET lock_timeout = 0; \
                 SET idle_in_transaction_session_timeout = 0; SET standard_conforming_strings = on; SET xmloption = content; \
                 SET quote_all_identifiers = off; SET lc_monetary = 'C'; SET default_transaction_read_only = off; \
                 SET default_transaction_isolation = 'read committed'; SET xmlbinary = base64; \
                 SELECT a.pid, a.backend_start FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) a; \
                 SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
                 WHERE name IN ('idle_session_timeout', 'transaction_timeout', 'jit')",
            )
            .await?;
        let version = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
        self.server_version_num = version.ok_or_else(|| malformed("no server version"))?;
        match rows.get(1).map(Vec::as_slice) {
            Some([Some(pid), Some(started)]) => Ok((pid.clone(), started.clone())),
            _ => Err(malformed("no process of the session")),
        }
    }

    /// Fails unless the server's process is the one that the session was set up in: `pid` is what `pg_backend_pid()` says, in a
    /// transaction. A pooler that shares connections between transactions may have given it another.
    pub fn verify_process(&self, pid: &str) -> Result<()> {
        match &self.reader.liveness {
            Some(own) if own.pid != pid => Err(shared_connections(&self.reader.place)),
            _ => Ok(()),
        }
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
                b'D' => rows.push(result_row(&body)?),
                b'E' => failure = Some(ServerError::parse(&body)),
                b'Z' => break,
                _ => {}
            }
        }
        match failure {
            None => Ok(rows),
            Some(failure) => Err(self.reader.explain(failure, "asking the server", sql)),
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
                        Some(failure) => self.reader.explain(failure, doing, sql),
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

    /// See [`SessionReader::read_gathered`].
    pub async fn read_gathered(&mut self) -> Result<usize> {
        self.reader.read_gathered().await
    }

    /// See [`SessionReader::peek_frame`].
    pub fn peek_frame(&self) -> Result<Option<Frame<'_>>> {
        self.reader.peek_frame()
    }

    /// See [`SessionReader::consume_frame`].
    pub fn consume_frame(&mut self) {
        self.reader.consume_frame();
    }

    /// See [`SessionReader::take_frame`].
    pub fn take_frame(&mut self) -> Bytes {
        self.reader.take_frame()
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

    /// Both sides, for two tasks. Who reads then looks himself whether silence has a reason.
    pub fn into_split(mut self) -> (SessionReader, SessionWriter) {
        self.reader.liveness = None;
        (self.reader, self.writer)
    }

    /// Ends the connection.
    pub async fn close(mut self) -> Result<()> {
        self.writer.terminate().await
    }
}

/// The values of a DataRow message, in text form (PostgreSQL docs, "Message Formats").
pub fn result_row(body: &[u8]) -> Result<ResultRow> {
    let mut rest = body;
    if rest.len() < 2 {
        return Err(malformed("a short row"));
    }
    let count = rest.get_u16();
    let mut row = Vec::with_capacity(usize::from(count).min(rest.len() / 4));
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

/// Bytes of the first frame, whole or not, where its header is there.
#[inline]
fn announced_length(buffer: &[u8], bytes_max: usize) -> Result<Option<usize>> {
    let Some(header) = backend::Header::parse(buffer).map_err(malformed)? else { return Ok(None) };
    let length = usize::try_from(header.len()).map_err(malformed)? + 1;
    if length > bytes_max {
        return Err(malformed("a message longer than PostgreSQL sends"));
    }
    Ok(Some(length))
}

pub(crate) fn frame_length(buffer: &[u8], bytes_max: usize) -> Result<Option<usize>> {
    Ok(announced_length(buffer, bytes_max)?.filter(|&length| buffer.len() >= length))
}

/// Bytes to make room for before the next read: of a large frame what is missing and no more, as a full buffer doubles.
fn room(buffer: &[u8], bytes_max: usize) -> usize {
    match announced_length(buffer, bytes_max) {
        Ok(Some(length)) if length > KEPT_BYTES_MAX && buffer.len() >= length / ARRIVED_PART => {
            length.checked_sub(buffer.len()).filter(|&missing| missing > 0).unwrap_or(READ_BYTES)
        }
        _ => READ_BYTES,
    }
}

/// The first whole frame of a buffer.
pub(crate) fn first_frame(buffer: &[u8], bytes_max: usize) -> Result<Option<Frame<'_>>> {
    let Some(length) = frame_length(buffer, bytes_max)? else { return Ok(None) };
    Ok(Some(Frame { tag: buffer[0], body: &buffer[5..length] }))
}

/// Takes the first frame, where it is whole. The memory of a large one is given back at once.
pub(crate) fn drop_frame(buffer: &mut BytesMut, bytes_max: usize) {
    match frame_length(buffer, bytes_max) {
        Ok(Some(length)) if length > KEPT_BYTES_MAX => drop(take_frame(buffer, bytes_max)),
        Ok(Some(length)) => buffer.advance(length),
        _ => {}
    }
}

/// Takes the body of the first frame, where it is whole, with the buffer's memory; what comes after it is copied away.
pub(crate) fn take_frame(buffer: &mut BytesMut, bytes_max: usize) -> Bytes {
    let Ok(Some(length)) = frame_length(buffer, bytes_max) else { return Bytes::new() };
    let rest = BytesMut::from(&buffer[length..]);
    let mut frame = std::mem::replace(buffer, rest);
    frame.truncate(length);
    frame.advance(5);
    frame.freeze()
}

pub(crate) fn lost(failure: io::Error) -> Error {
    if let Some(error) = tls::explain(&failure, "the server") {
        return error;
    }
    Error::transient(UNREACHABLE, "the connection to the server was lost")
        .with_cure(Cure::advice(
            "it is tried again; if it stays so, see the server's log, and what a proxy or firewall on the way cuts off",
        ))
        .with_origin(failure)
}

/// What to do where answers make no sense.
pub(crate) fn not_postgres() -> Cure {
    Cure::advice(
        "see whether the address leads to PostgreSQL itself; if it does, report the message with the server's version",
    )
}

pub(crate) fn malformed(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::task_broken(PROTOCOL, "the server's answer does not follow the protocol")
        .with_cure(not_postgres())
        .with_origin(what)
}

#[cfg(test)]
mod tests {
    // Frames from any bytes: never a panic, never room for what has not arrived.
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_not_yet_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64), max in 5usize..100) {
            match frame_length(&bytes, max) {
                Ok(Some(length)) => prop_assert!((5..=bytes.len().min(max)).contains(&length)),
                Ok(None) if bytes.len() >= 5 => {
                    let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize + 1;
                    prop_assert!(length > bytes.len() && length <= max);
                }
                Ok(None) => {}
                Err(error) => prop_assert_eq!(error.code(), PROTOCOL),
            }
        }

        #[test]
        fn any_bytes_are_a_row_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(row) = result_row(&bytes) {
                prop_assert!(row.capacity() <= bytes.len());
            }
        }

        #[test]
        fn small_rows_come_back_whole(row in prop::collection::vec(prop::option::of("\\PC{0,8}"), 0..8)) {
            let mut bytes = u16::try_from(row.len()).unwrap().to_be_bytes().to_vec();
            for value in &row {
                match value {
                    Some(text) => {
                        bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                        bytes.extend(text.as_bytes());
                    }
                    None => bytes.extend((-1i32).to_be_bytes()),
                }
            }
            prop_assert_eq!(result_row(&bytes).unwrap(), row.clone());
            if !bytes.is_empty() && !row.is_empty() {
                prop_assert!(result_row(&bytes[..bytes.len() - 1]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_a_servers_error(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let error = ServerError::parse(&bytes).into_error("asking");
            prop_assert!(!error.code().as_str().is_empty());
        }

        #[test]
        fn any_bytes_are_a_certificate_or_not(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            prop_assert_eq!(tls::end_point(&bytes), None);
        }
    }

    fn frame(tag: u8, body_bytes: usize) -> Vec<u8> {
        let length = u32::try_from(body_bytes + 4).unwrap().to_be_bytes();
        [&[tag], &length[..], &vec![b'x'; body_bytes]].concat()
    }

    #[test]
    fn the_memory_of_a_large_frame_goes_with_it() {
        let large = 2 * KEPT_BYTES_MAX;
        let bytes = [frame(b'd', large), frame(b'Z', 1)].concat();
        let mut buffer = BytesMut::from(&bytes[..]);
        let body = buffer[5..].as_ptr();
        let taken = take_frame(&mut buffer, FRAME_BYTES_MAX);
        assert_eq!((taken.len(), taken.as_ptr()), (large, body), "its own memory, not a copy");
        let first = first_frame(&buffer, FRAME_BYTES_MAX).unwrap().unwrap();
        assert_eq!((first.tag, first.body, first.is_large()), (b'Z', &b"x"[..], false));
        assert!(buffer.capacity() < READ_BYTES, "{}", buffer.capacity());
        let mut buffer = BytesMut::from(&bytes[..]);
        drop_frame(&mut buffer, FRAME_BYTES_MAX);
        assert_eq!(buffer, frame(b'Z', 1));
        assert!(buffer.capacity() < READ_BYTES, "{}", buffer.capacity());
    }

    #[test]
    fn room_for_a_large_frame_is_made_once_a_part_of_it_has_come() {
        let large = 2 * ARRIVED_PART * READ_BYTES;
        let bytes = frame(b'd', large);
        assert_eq!(room(&bytes[..4], FRAME_BYTES_MAX), READ_BYTES);
        assert_eq!(room(&bytes[..large / ARRIVED_PART - 1], FRAME_BYTES_MAX), READ_BYTES);
        let arrived = large / ARRIVED_PART + 1;
        assert_eq!(room(&bytes[..arrived], FRAME_BYTES_MAX), bytes.len() - arrived);
        assert_eq!(room(&bytes[..bytes.len() - 1], FRAME_BYTES_MAX), 1);
        assert_eq!(room(&bytes, FRAME_BYTES_MAX), READ_BYTES);
        assert_eq!(
            room(&frame(b'd', 100)[..104], FRAME_BYTES_MAX),
            READ_BYTES,
            "a small one comes with those after it"
        );
        assert_eq!(room(&bytes[..arrived], LOGIN_FRAME_BYTES_MAX), READ_BYTES, "longer than may be");
    }

    #[test]
    fn a_length_below_four_or_above_the_limit_is_an_error() {
        for bytes in [[b'D', 0, 0, 0, 3], [b'D', 0xff, 0xff, 0xff, 0xff], [b'D', 0x7f, 0xff, 0xff, 0xff]] {
            assert_eq!(frame_length(&bytes, FRAME_BYTES_MAX).unwrap_err().code(), PROTOCOL);
        }
        assert!(frame_length(&[b'R', 0, 2, 0, 0], LOGIN_FRAME_BYTES_MAX).is_err());
    }
}
