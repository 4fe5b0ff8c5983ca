//! The bytes between us and a server: a TCP or Unix socket, encrypted or not; opened here, with each failure told apart.
//!
//! ```text
//!   host name ──look up──> addresses ──one by one──> socket ──SSLRequest──> S: handshake   N: as it is, or an error
//! ```
//!
//! Limit: one byte answers SSLRequest and nothing is read beyond it before the handshake, so nobody can slip in plain bytes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pgferry_model::{Cure, Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use crate::config::{ConnectionConfig, SslMode};
use crate::error::{PROTOCOL, TLS, UNREACHABLE};
use crate::tls;

/// An idle connection is probed, so that a vanished server or a forgetful firewall is seen within a minute or two.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVES_MAX: u32 = 3;
/// Bytes of ours that nobody acknowledges for this long end the connection (Linux; elsewhere the system's own time counts).
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);
/// PostgreSQL docs, "Message Formats": length 8 and the code 1234.5679.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// An open way to a server.
pub(crate) enum ByteStream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl ByteStream {
    /// Opens it as `mode` says. Addresses share the time until `deadline`.
    pub(crate) async fn open(
        config: &ConnectionConfig,
        mode: SslMode,
        deadline: Instant,
    ) -> Result<ByteStream> {
        if config.host.starts_with('/') {
            return unix(config).await;
        }
        let mut socket = dial(config, deadline).await?;
        prepare(&socket).map_err(|failure| {
            let problem = format!("cannot set up the connection to {}:{}", config.host, config.port);
            Error::transient(UNREACHABLE, problem)
                .with_cure(Cure::advice("it is tried again; the operating system of this machine refuses it"))
                .with_origin(failure)
        })?;
        if mode == SslMode::Disable {
            return Ok(ByteStream::Tcp(socket));
        }
        match ask_for_encryption(&mut socket, config).await? {
            true => {
                let settings = config.tls.clone();
                let built = tokio::task::spawn_blocking(move || tls::client(&settings, mode)).await;
                let client = built.map_err(|failure| {
                    Error::transient(UNREACHABLE, "connecting was cancelled")
                        .with_cure(Cure::advice("start it again"))
                        .with_origin(failure)
                })??;
                let stream = client.handshake(&config.host, config.port, socket).await?;
                Ok(ByteStream::Tls(Box::new(stream)))
            }
            false if mode == SslMode::Prefer => Ok(ByteStream::Tcp(socket)),
            false => Err(no_encryption(config, mode)),
        }
    }

    /// Whether a password in clear text may go through it: nobody in between reads it.
    pub(crate) fn private(&self) -> bool {
        !matches!(self, ByteStream::Tcp(_))
    }

    /// Whether it is encrypted.
    pub(crate) fn encrypted(&self) -> bool {
        matches!(self, ByteStream::Tls(_))
    }

    /// Our own address; `None` for Unix sockets.
    pub(crate) fn own_address(&self) -> Option<SocketAddr> {
        match self {
            ByteStream::Tcp(socket) => socket.local_addr().ok(),
            ByteStream::Tls(stream) => stream.get_ref().0.local_addr().ok(),
            ByteStream::Unix(_) => None,
        }
    }

    /// What SCRAM ties a login to; `None` without encryption or where the certificate's signature has no hash.
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        match self {
            ByteStream::Tls(stream) => {
                let certificates = stream.get_ref().1.peer_certificates()?;
                tls::end_point(certificates.first()?)
            }
            _ => None,
        }
    }
}

async fn unix(config: &ConnectionConfig) -> Result<ByteStream> {
    let path = format!("{}/.s.PGSQL.{}", config.host.trim_end_matches('/'), config.port);
    match UnixStream::connect(&path).await {
        Ok(socket) => Ok(ByteStream::Unix(socket)),
        Err(failure) => {
            let why = match failure.kind() {
                io::ErrorKind::NotFound => {
                    "there is no such socket: another folder, another port, or no server"
                }
                io::ErrorKind::PermissionDenied => "this user may not enter the socket's folder or open it",
                io::ErrorKind::ConnectionRefused => "nothing listens on it: the server is gone",
                _ => "the system refuses it",
            };
            Err(Error::transient(UNREACHABLE, format!("cannot connect to the socket {path}"))
                .with_cause(format!("{why} ({failure})"))
                .with_cure(Cure::advice(
                    "start the server, or correct host and port; SHOW unix_socket_directories names the folder",
                ))
                .with_origin(failure))
        }
    }
}

async fn dial(config: &ConnectionConfig, deadline: Instant) -> Result<TcpStream> {
    let (host, port) = (config.host.as_str(), config.port);
    let found = tokio::time::timeout_at(deadline, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<SocketAddr> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(failure)) => return Err(unknown_host(host).with_origin(failure)),
        Err(_) => return Err(unknown_host(host).with_cause("the name service did not answer in time")),
    };
    let mut failures = Vec::with_capacity(addresses.len());
    let mut refused = !addresses.is_empty();
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(1);
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(failure)) => {
                refused &= failure.kind() == io::ErrorKind::ConnectionRefused;
                let why = match failure.kind() {
                    io::ErrorKind::ConnectionRefused => "refused: nothing listens there".to_owned(),
                    _ => failure.to_string(),
                };
                failures.push(format!("{address}: {why}"));
            }
            Err(_) => {
                refused = false;
                failures.push(format!("{address}: no answer within {:.1} s", share.as_secs_f32()));
            }
        }
    }
    if addresses.is_empty() {
        return Err(unknown_host(host));
    }
    let advice = if refused {
        "start the server, or correct the port; listen_addresses in postgresql.conf has to name the address"
    } else {
        "correct the address, or let a firewall or security group on the way admit this machine"
    };
    Err(Error::transient(UNREACHABLE, format!("cannot reach {host}:{port}"))
        .with_cause(failures.join("; "))
        .with_cure(Cure::advice(advice)))
}

fn unknown_host(host: &str) -> Error {
    Error::transient(UNREACHABLE, format!("the host name {host:?} is not known"))
        .with_cause("the name service has no address for it")
        .with_cure(
            Cure::advice("correct the name, or try it on this machine as below").shell("getent hosts", host),
        )
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVES_MAX);
    let socket = socket2::SockRef::from(socket);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(())
}

async fn ask_for_encryption(socket: &mut TcpStream, config: &ConnectionConfig) -> Result<bool> {
    let lost = |failure: io::Error| {
        Error::transient(UNREACHABLE, format!("{}:{} closed the connection", config.host, config.port))
            .with_cause(
                "it ended before encryption was agreed on; a proxy or no PostgreSQL server may listen there",
            )
            .with_cure(Cure::advice("correct host and port, or see the log of what listens there"))
            .with_origin(failure)
    };
    socket.write_all(&SSL_REQUEST).await.map_err(lost)?;
    match socket.read_u8().await.map_err(lost)? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        b'E' => Err(Error::transient(
            UNREACHABLE,
            format!("{}:{} cannot serve us", config.host, config.port),
        )
        .with_cause(
            "it sent an error before encryption; what it says cannot be trusted and is in its own log",
        )
        .with_cure(Cure::advice("see the server's log; it may be out of processes or memory"))),
        _ => Err(Error::task_broken(
            PROTOCOL,
            format!("{}:{} is no PostgreSQL server", config.host, config.port),
        )
        .with_cause("it does not answer the request for encryption as PostgreSQL does")
        .with_cure(Cure::advice("correct host and port"))),
    }
}

fn no_encryption(config: &ConnectionConfig, mode: SslMode) -> Error {
    Error::task_broken(TLS, format!("{}:{} does not support TLS", config.host, config.port))
        .with_cause(format!("ssl_mode is {}, and the server has ssl = off", mode.as_str()))
        .with_cure(
            Cure::advice(
                "put server.crt and server.key into the server's data folder and turn TLS on; or, on a trusted network, \
                 set ssl_mode = \"prefer\"",
            )
            .sql("ALTER SYSTEM SET ssl = 'on'")
            .sql("SELECT pg_reload_conf()")
            .run_as("superuser")
            .restart(pgferry_model::Restart::Reload),
        )
}

macro_rules! inner {
    ($stream:expr, $socket:ident => $call:expr) => {
        match $stream.get_mut() {
            ByteStream::Tcp($socket) => $call,
            ByteStream::Unix($socket) => $call,
            ByteStream::Tls(boxed) => {
                let $socket = boxed.as_mut();
                $call
            }
        }
    };
}

impl AsyncRead for ByteStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        inner!(self, socket => Pin::new(socket).poll_read(cx, buffer))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        inner!(self, socket => Pin::new(socket).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, socket => Pin::new(socket).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, socket => Pin::new(socket).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_nobody_acknowledges_ends() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        prepare(&socket).unwrap();
        let socket = socket2::SockRef::from(&socket);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVES_MAX);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED_MAX));
    }
}
