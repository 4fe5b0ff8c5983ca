//! Every fault of the proxy, first with a plain TCP echo, then under a real PostgreSQL connection.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pgferry_testkit::Server;
use pgferry_testkit::proxy::{Direction, Fault, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_postgres::NoTls;

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(10);

async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = socket.split();
                let _ended = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

async fn through() -> (Proxy, TcpStream) {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(say(&mut socket, b"hello").await, b"hello");
    (proxy, socket)
}

async fn say(socket: &mut TcpStream, text: &[u8]) -> Vec<u8> {
    socket.write_all(text).await.unwrap();
    let mut answer = vec![0; text.len()];
    timeout(LONG, socket.read_exact(&mut answer)).await.unwrap().unwrap();
    answer
}

async fn rest(socket: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    timeout(LONG, socket.read_to_end(&mut bytes)).await.unwrap().map(|_| bytes)
}

#[tokio::test]
async fn bytes_pass_unchanged_and_are_counted() {
    let (proxy, mut socket) = through().await;
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    let (mut from, mut to) = socket.split();
    let mut answer = vec![0; large.len()];
    let (read, wrote) = tokio::join!(from.read_exact(&mut answer), to.write_all(&large));
    read.unwrap();
    wrote.unwrap();
    assert!(answer == large);
    assert_eq!(proxy.bytes(Direction::ToServer), 3_000_005);
    assert_eq!(proxy.bytes(Direction::ToClient), 3_000_005);
    assert_eq!(proxy.accepted(), 1);
}

#[tokio::test]
async fn cut_ends_the_connection_in_order_and_the_next_one_works() {
    let (proxy, mut socket) = through().await;
    proxy.cut();
    assert_eq!(rest(&mut socket).await.unwrap(), b"");
    let mut next = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(say(&mut next, b"again").await, b"again");
}

#[tokio::test]
async fn reset_breaks_the_connection() {
    let (proxy, mut socket) = through().await;
    proxy.reset();
    assert_eq!(rest(&mut socket).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn stall_holds_one_direction_and_flow_lets_everything_go() {
    for direction in [Direction::ToServer, Direction::ToClient] {
        let (proxy, mut socket) = through().await;
        proxy.inject(direction, Fault::Stall);
        socket.write_all(b"held").await.unwrap();
        let mut answer = [0; 4];
        assert!(timeout(SHORT, socket.read_exact(&mut answer)).await.is_err(), "{direction:?}");
        assert_eq!(proxy.bytes(Direction::ToServer), if direction == Direction::ToServer { 5 } else { 9 });
        proxy.flow();
        timeout(LONG, socket.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"held");
    }
}

#[tokio::test]
async fn a_stalled_direction_holds_a_bounded_number_of_bytes() {
    let (proxy, mut socket) = through().await;
    proxy.inject(Direction::ToServer, Fault::Stall);
    let write = async {
        for _ in 0..1000 {
            socket.write_all(&[7; 64 << 10]).await.unwrap();
        }
    };
    assert!(timeout(Duration::from_secs(2), write).await.is_err(), "64 MB were taken in");
}

#[tokio::test]
async fn delay_and_trickle_take_their_time() {
    let (proxy, mut socket) = through().await;
    proxy.inject(Direction::ToClient, Fault::Delay(SHORT));
    let start = Instant::now();
    assert_eq!(say(&mut socket, b"late").await, b"late");
    assert!(start.elapsed() >= SHORT);
    proxy.flow();
    proxy.inject(Direction::ToServer, Fault::Trickle(Duration::from_millis(10)));
    let start = Instant::now();
    assert_eq!(say(&mut socket, b"one by one, in order").await, b"one by one, in order");
    assert!(start.elapsed() >= Duration::from_millis(190));
}

#[tokio::test]
async fn half_open_closes_one_direction_only() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    say(&mut socket, b"hello").await;
    proxy.inject(Direction::ToClient, Fault::HalfOpen);
    assert_eq!(rest(&mut socket).await.unwrap(), b"");
    socket.write_all(b"still taken").await.unwrap();
    for _ in 0..100 {
        if proxy.bytes(Direction::ToServer) == 16 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the other direction stopped at {} bytes", proxy.bytes(Direction::ToServer));
}

#[tokio::test]
async fn refuse_lets_nobody_in_until_admit() {
    let (proxy, mut socket) = through().await;
    proxy.refuse().await;
    assert_eq!(TcpStream::connect(proxy.address()).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(say(&mut socket, b"inside").await, b"inside");
    proxy.admit().await.unwrap();
    let mut next = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(say(&mut next, b"again").await, b"again");
}

#[tokio::test]
async fn a_fault_after_n_bytes_passes_exactly_n_bytes() {
    for n in [1, 3, 9] {
        let (proxy, mut socket) = through().await;
        proxy.after_bytes(Direction::ToClient, n, Fault::Cut);
        socket.write_all(b"0123456789").await.unwrap();
        assert_eq!(rest(&mut socket).await.unwrap(), &b"0123456789"[..n as usize]);
    }
    let (proxy, mut socket) = through().await;
    proxy.after_bytes(Direction::ToServer, 4, Fault::Stall);
    socket.write_all(b"0123456789").await.unwrap();
    let mut answer = vec![0; 10];
    timeout(LONG, socket.read_exact(&mut answer[..4])).await.unwrap().unwrap();
    assert!(timeout(SHORT, socket.read(&mut answer[4..])).await.is_err());
    proxy.flow();
    timeout(LONG, socket.read_exact(&mut answer[4..])).await.unwrap().unwrap();
    assert_eq!(answer, b"0123456789");
    proxy.after_bytes(Direction::ToServer, 0, Fault::Reset);
    assert_eq!(rest(&mut socket).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_postgres_connection_feels_every_fault() {
    for major in [10, 18] {
        let server = Server::shared(major).await.unwrap();
        let database = server.create_database().await.unwrap();
        let proxy = Proxy::to(&server).await.unwrap();
        let url = database.url_over(proxy.port());
        let connect = async || {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
            tokio::spawn(connection);
            Ok::<_, tokio_postgres::Error>(client)
        };
        let rows = "SELECT n, md5(n::text) FROM generate_series(1, 100000) AS n";
        for fault in [Fault::Cut, Fault::Reset] {
            let client = connect().await.unwrap();
            assert_eq!(client.query("SELECT 1", &[]).await.unwrap().len(), 1);
            // In the middle of a DataRow message.
            proxy.after_bytes(Direction::ToClient, 1_000_003, fault);
            assert!(client.simple_query(rows).await.is_err(), "{major} {fault:?}");
            assert!(client.is_closed());
        }
        let client = connect().await.unwrap();
        proxy.inject(Direction::ToClient, Fault::Stall);
        assert!(timeout(SHORT, client.simple_query("SELECT 2")).await.is_err());
        proxy.flow();
        proxy.inject(Direction::ToClient, Fault::Trickle(Duration::ZERO));
        assert_eq!(timeout(LONG, client.query("SELECT 3", &[])).await.unwrap().unwrap().len(), 1);
        proxy.flow();
        proxy.inject(Direction::ToServer, Fault::HalfOpen);
        assert!(timeout(LONG, client.simple_query("SELECT 4")).await.unwrap().is_err(), "{major}");
        proxy.flow();
        proxy.refuse().await;
        assert!(connect().await.is_err());
        proxy.admit().await.unwrap();
        assert!(connect().await.is_ok());
    }
}
