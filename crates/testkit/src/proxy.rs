//! A TCP proxy on loopback that does to a connection what networks do: cuts, resets, stalls, delays, trickles.
//!
//! ```text
//!   client ──ToServer lane──> proxy ──> server
//!   client <──ToClient lane── proxy <── server      each lane: mode, bytes counted, fault after n bytes
//! ```
//!
//! Invariants: bytes are never reordered, changed or invented; a fault set by [`Proxy::after_bytes`] happens after
//! exactly that many forwarded bytes, in the middle of a protocol frame if need be; a lane holds at most 1 MiB, then
//! it stops reading and the sender feels it.
//!
//! Limits: a reset may overtake the last bytes before it, as on a real network (the kernel drops what is unsent).

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const HELD_MAX: usize = 1 << 20;
const READ_SIZE: usize = 64 << 10;

/// The way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// What happens to a direction, or to the connections as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Closes every connection on both sides, in order (FIN).
    Cut,
    /// Breaks every connection on both sides (RST).
    Reset,
    /// Carries nothing more on any connection that is open now, and ends none: neither side hears of it. New ones work.
    Silence,
    /// Takes the bytes of this direction and forwards none until [`Proxy::flow`].
    Stall,
    /// Forwards what was read at once only after this time.
    Delay(Duration),
    /// Closes this direction towards its receiver; the other one goes on. Later bytes of it are dropped.
    HalfOpen,
    /// Forwards one byte at a time with this pause after each.
    Trickle(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Flow,
    Stall,
    Delay(Duration),
    Closed,
    Trickle(Duration),
}

#[derive(Clone, Copy, Debug)]
struct Lane {
    mode: Mode,
    /// Bytes still to forward before the fault.
    trigger: Option<(u64, Fault)>,
}

/// How connections older than `generation` end.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    generation: u64,
    reset: bool,
    silent: bool,
}

struct Shared {
    upstream: Mutex<SocketAddr>,
    lanes: Mutex<[Lane; 2]>,
    /// Counts changes of the lanes, to wake those that wait for one.
    changed: watch::Sender<u64>,
    end: watch::Sender<End>,
    bytes: [AtomicU64; 2],
    accepted: AtomicU64,
}

/// A running proxy; it ends, with its connections, when dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    listening: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and forwards to `upstream`.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("the proxy cannot listen")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            lanes: Mutex::new([Lane { mode: Mode::Flow, trigger: None }; 2]),
            changed: watch::Sender::new(0),
            end: watch::Sender::new(End::default()),
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
            accepted: AtomicU64::new(0),
        });
        let listening = tokio::spawn(accept(Arc::clone(&shared), listener));
        Ok(Self { shared, address, listening: tokio::sync::Mutex::new(Some(listening)) })
    }

    /// A proxy in front of a test server.
    pub async fn to(server: &crate::Server) -> Result<Self> {
        Self::start(SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()))).await
    }

    /// Leads new connections to another server, as an address does that moves in a failover; open ones stay where they are.
    pub fn lead_to(&self, server: &crate::Server) {
        let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()));
        *self.shared.upstream.lock().unwrap_or_else(PoisonError::into_inner) = upstream;
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port clients connect to.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Does `fault` now; [`Fault::Cut`], [`Fault::Reset`] and [`Fault::Silence`] concern both directions whatever `direction` says.
    pub fn inject(&self, direction: Direction, fault: Fault) {
        self.shared.inject(direction, fault);
    }

    /// Does `fault` after `bytes` more bytes of `direction`, counted over all connections. One per direction; the later counts.
    pub fn after_bytes(&self, direction: Direction, bytes: u64, fault: Fault) {
        if bytes == 0 {
            return self.shared.inject(direction, fault);
        }
        self.shared.lanes()[direction as usize].trigger = Some((bytes, fault));
        self.shared.wake();
    }

    /// Closes every connection in order.
    pub fn cut(&self) {
        self.shared.inject(Direction::ToServer, Fault::Cut);
    }

    /// Breaks every connection with RST.
    pub fn reset(&self) {
        self.shared.inject(Direction::ToServer, Fault::Reset);
    }

    /// Forwards normally again, what was held first; forgets faults that have not happened yet. A direction that
    /// [`Fault::HalfOpen`] closed stays closed on the connections it closed.
    pub fn flow(&self) {
        *self.shared.lanes() = [Lane { mode: Mode::Flow, trigger: None }; 2];
        self.shared.wake();
    }

    /// Refuses new connections from now on (nobody listens on the port); existing ones go on.
    pub async fn refuse(&self) {
        if let Some(task) = self.listening.lock().await.take() {
            task.abort();
            let _ended = task.await;
        }
    }

    /// Takes new connections again, on the same port.
    pub async fn admit(&self) -> Result<()> {
        let mut listening = self.listening.lock().await;
        if listening.is_none() {
            let listener =
                TcpListener::bind(self.address).await.context("the proxy's port was taken meanwhile")?;
            *listening = Some(tokio::spawn(accept(Arc::clone(&self.shared), listener)));
        }
        Ok(())
    }

    /// Bytes forwarded in `direction` since the start.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.bytes[direction as usize].load(Ordering::Relaxed)
    }

    /// Connections taken since the start.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(task) = self.listening.get_mut() {
            task.abort();
        }
        self.cut();
    }
}

impl Shared {
    fn upstream(&self) -> SocketAddr {
        *self.upstream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lanes(&self) -> MutexGuard<'_, [Lane; 2]> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn inject(&self, direction: Direction, fault: Fault) {
        let mode = match fault {
            Fault::Cut | Fault::Reset | Fault::Silence => {
                let (reset, silent) = (fault == Fault::Reset, fault == Fault::Silence);
                self.end.send_modify(|end| *end = End { generation: end.generation + 1, reset, silent });
                return;
            }
            Fault::Stall => Mode::Stall,
            Fault::Delay(time) => Mode::Delay(time),
            Fault::HalfOpen => Mode::Closed,
            Fault::Trickle(pause) => Mode::Trickle(pause),
        };
        self.lanes()[direction as usize].mode = mode;
        self.wake();
    }

    /// How many of `available` bytes may go before the lane's fault.
    fn allowance(&self, direction: Direction, available: usize) -> usize {
        match self.lanes()[direction as usize].trigger {
            Some((left, _)) => available.min(usize::try_from(left).unwrap_or(usize::MAX)),
            None => available,
        }
    }

    /// Counts `written` bytes; returns the fault that is due now.
    fn count(&self, direction: Direction, written: usize) -> Option<Fault> {
        self.bytes[direction as usize].fetch_add(written as u64, Ordering::Relaxed);
        let mut lanes = self.lanes();
        let trigger = &mut lanes[direction as usize].trigger;
        let (left, fault) = (*trigger)?;
        let left = left.saturating_sub(written as u64);
        *trigger = (left > 0).then_some((left, fault));
        (left == 0).then_some(fault)
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        // Subscribed here, not in the task: a cut right after the accept must reach this connection too.
        let end = shared.end.subscribe();
        tokio::spawn(serve(Arc::clone(&shared), client, end));
    }
}

/// Serves one connection until both directions have ended or a fault ends it.
async fn serve(shared: Arc<Shared>, mut client: TcpStream, mut end: watch::Receiver<End>) {
    let Ok(mut server) = TcpStream::connect(shared.upstream()).await else {
        let _dropped = client.set_zero_linger();
        return;
    };
    for socket in [&client, &server] {
        let _slower_without = socket.set_nodelay(true);
    }
    let reset = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let lanes = async {
            tokio::try_join!(
                forward(&shared, Direction::ToServer, from_client, to_server),
                forward(&shared, Direction::ToClient, from_server, to_client),
            )
        };
        tokio::select! {
            biased;
            _ = end.changed() => {
                // A silent one holds its sockets, and reads nothing off them, until the next end.
                while end.borrow_and_update().silent && end.changed().await.is_ok() {}
                end.borrow().reset
            }
            ended = lanes => ended.is_err(),
        }
    };
    if reset {
        for socket in [&client, &server] {
            let _already_gone = socket.set_zero_linger();
        }
        return;
    }
    for socket in [&mut client, &mut server] {
        let _already_gone = socket.shutdown().await;
    }
    // Closing with unread bytes would turn the FIN into an RST, so they are read off for a moment.
    let drain = async {
        tokio::join!(read_off(&mut client), read_off(&mut server));
    };
    let _long_enough = tokio::time::timeout(Duration::from_secs(1), drain).await;
}

async fn read_off(socket: &mut TcpStream) {
    let mut buffer = vec![0; READ_SIZE];
    while socket.read(&mut buffer).await.is_ok_and(|size| size > 0) {}
}

/// Carries one direction. An error is the other side's reset, to be passed on.
async fn forward(
    shared: &Shared,
    direction: Direction,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
) -> std::io::Result<()> {
    let mut changed = shared.changed.subscribe();
    let mut held: Vec<u8> = Vec::new();
    let mut buffer = vec![0; READ_SIZE];
    let mut ended = false;
    loop {
        changed.mark_unchanged();
        let mode = shared.lanes()[direction as usize].mode;
        if mode == Mode::Closed {
            to.shutdown().await?;
            while from.read(&mut buffer).await? > 0 {}
            return Ok(());
        }
        if !held.is_empty() && mode != Mode::Stall {
            let written = write(shared, direction, mode, &held, &mut to).await?;
            held.drain(..written);
            if let Some(fault) = shared.count(direction, written) {
                shared.inject(direction, fault);
                if matches!(fault, Fault::Cut | Fault::Reset | Fault::Silence) {
                    // The connection ends from outside; not one more byte may pass until then.
                    std::future::pending::<()>().await;
                }
            }
            continue;
        }
        // A direction that stalls holds its end back, too.
        if ended && held.is_empty() && mode != Mode::Stall {
            return to.shutdown().await;
        }
        tokio::select! {
            read = from.read(&mut buffer), if !ended && held.len() < HELD_MAX => match read? {
                0 => ended = true,
                size => held.extend_from_slice(&buffer[..size]),
            },
            _ = changed.changed() => {}
        }
    }
}

/// Writes as much of `held` as mode and trigger allow; returns how much.
async fn write(
    shared: &Shared,
    direction: Direction,
    mode: Mode,
    held: &[u8],
    to: &mut WriteHalf<'_>,
) -> std::io::Result<usize> {
    let wanted = if matches!(mode, Mode::Trickle(_)) { 1 } else { held.len() };
    if let Mode::Delay(time) = mode {
        tokio::time::sleep(time).await;
    }
    let size = shared.allowance(direction, wanted);
    to.write_all(&held[..size]).await?;
    if let Mode::Trickle(pause) = mode {
        tokio::time::sleep(pause).await;
    }
    Ok(size)
}
