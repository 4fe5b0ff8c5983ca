//! Six faults of a network, and a seventh of its kind, at each of five moments: a cell per pair, driven by a table.
//!
//! ```text
//!              login   export   copy   stream   feedback
//!   cut          .        .       .       .        .
//!   reset        .        .       .       .        .       in the middle of a message, each
//!   half-open    .        .       .       .        .       one side is gone, without FIN or RST: no answer, ever
//!   half-closed  .        .       .       .        .       one direction ends, the other goes on
//!   stall        .        .       .       .        .       nothing passes, on no connection, for longer than any patience set
//!   delay        .        .       .       .        .
//!   trickle      .        .       .       .        .       one byte at a time
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgferry_testkit::proxy::{Direction, Fault};
use pgferry_testkit::server::StopMode;
use pgferry_testkit::{Server, ServerOptions};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::voyage::{Voyage, WITHIN};

const MAJOR: u32 = 15;
/// Cells that run at once: most of a cell is waiting.
const AT_ONCE: usize = 5;
/// Longer than the time to connect and the time until a silent server is asked, together.
const STALLED: Duration = Duration::from_secs(5);
const SLOWED: Duration = Duration::from_secs(2);
/// From the fault, or its end, to the proof that the target holds everything.
const RECOVERS_WITHIN: Duration = Duration::from_secs(40);
/// Of the first answers of a login with SCRAM: in the middle of the second message.
const LOGIN_BYTES: u64 = 60;
const COPY_BYTES: u64 = 700_001;
const STREAM_BYTES: u64 = 20_003;
/// A status update has 39 bytes with its header.
const STATUS_BYTES: u64 = 39 + 17;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Login,
    Export,
    Copy,
    Stream,
    Feedback,
}

const FAULTS: [(&str, Fault); 7] = [
    ("cut", Fault::Cut),
    ("reset", Fault::Reset),
    ("half-open", Fault::Silence),
    ("half-closed", Fault::HalfOpen),
    ("stall", Fault::Stall),
    ("delay", Fault::Delay(Duration::from_millis(200))),
    ("trickle", Fault::Trickle(Duration::from_millis(1))),
];

/// How long the fault lasts; `None`: it is done at once, and new connections work.
fn lasts(fault: Fault) -> Option<Duration> {
    match fault {
        Fault::Cut | Fault::Reset | Fault::Silence => None,
        Fault::Stall => Some(STALLED),
        Fault::HalfOpen | Fault::Delay(_) | Fault::Trickle(_) => Some(SLOWED),
    }
}

/// Heals what does not heal by itself.
async fn outlast(voyage: &Voyage, fault: Fault) {
    if let Some(time) = lasts(fault) {
        tokio::time::sleep(time).await;
        voyage.proxy.flow();
    }
}

async fn login(voyage: &Voyage, fault: Fault) -> Result<Duration> {
    voyage.proxy.after_bytes(Direction::ToClient, LOGIN_BYTES, fault);
    let (told, ()) = tokio::join!(voyage.run(), outlast(voyage, fault));
    let told = told?;
    voyage.proxy.flow();
    // At the first start an unreachable server is told at once.
    if told.exit != Some(0) {
        told.error("connection.unreachable")?;
        ensure!(told.exit == Some(3), "{told:?}");
    }
    let mut ferry = voyage.following().await?;
    // Later it is waited for, and a login that breaks is one more try.
    voyage.proxy.after_bytes(Direction::ToClient, LOGIN_BYTES, fault);
    voyage.proxy.reset();
    voyage.change().await?;
    outlast(voyage, fault).await;
    let took = voyage.delivered(&mut ferry).await?;
    voyage.stop(ferry).await?;
    Ok(took)
}

/// The slot's creation waits for an open transaction: the fault comes into the middle of its answer.
async fn export(voyage: &Voyage, fault: Fault) -> Result<Duration> {
    let client = voyage.database().client().await?;
    client.batch_execute("BEGIN; SELECT txid_current()").await?;
    let mut ferry = voyage.start()?;
    let made = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{}'", voyage.slot());
    let begun = Instant::now();
    while client.query_opt(&made, &[]).await?.is_none() {
        ensure!(begun.elapsed() < WITHIN, "no slot is being made: {}", ferry.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    voyage.proxy.after_bytes(Direction::ToClient, 10, fault);
    client.batch_execute("COMMIT").await?;
    outlast(voyage, fault).await;
    let took = voyage.delivered(&mut ferry).await?;
    voyage.stop(ferry).await?;
    Ok(took)
}

async fn copy(voyage: &Voyage, fault: Fault) -> Result<Duration> {
    voyage.proxy.after_bytes(Direction::ToClient, COPY_BYTES, fault);
    let mut ferry = voyage.start()?;
    let begun = Instant::now();
    while voyage.proxy.bytes(Direction::ToClient) < COPY_BYTES {
        ensure!(begun.elapsed() < WITHIN, "the copy has not begun: {}", ferry.stderr());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    voyage.change().await?;
    outlast(voyage, fault).await;
    let took = voyage.delivered(&mut ferry).await?;
    voyage.stop(ferry).await?;
    Ok(took)
}

async fn streaming(voyage: &Voyage, fault: Fault, direction: Direction, bytes: u64) -> Result<Duration> {
    let mut ferry = voyage.following().await?;
    voyage.proxy.after_bytes(direction, bytes, fault);
    voyage.change().await?;
    outlast(voyage, fault).await;
    voyage.change().await?;
    let took = voyage.delivered(&mut ferry).await?;
    voyage.stop(ferry).await?;
    Ok(took)
}

async fn cell(server: &Server, phase: Phase, fault: Fault) -> Result<Duration> {
    let mut voyage = Voyage::new(server).await?;
    let sailed = sail(&mut voyage, phase, fault).await;
    // Dropping a database waits for the server: not on the threads that carry the proxies of other cells.
    tokio::task::spawn_blocking(move || drop(voyage)).await?;
    sailed
}

async fn sail(voyage: &mut Voyage, phase: Phase, fault: Fault) -> Result<Duration> {
    with_password(voyage).await?;
    let took = match phase {
        Phase::Login => login(voyage, fault).await?,
        Phase::Export => export(voyage, fault).await?,
        Phase::Copy => copy(voyage, fault).await?,
        Phase::Stream => streaming(voyage, fault, Direction::ToClient, STREAM_BYTES).await?,
        Phase::Feedback => streaming(voyage, fault, Direction::ToServer, STATUS_BYTES).await?,
    };
    ensure!(took < RECOVERS_WITHIN, "it took {took:?}");
    voyage.equal().await?;
    Ok(took)
}

/// Has the program log in with a password: that is a conversation and not one message.
async fn with_password(voyage: &mut Voyage) -> Result<()> {
    let role = format!("cdc_{}", voyage.database().name());
    voyage.sql(&format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'secret'")).await?;
    voyage.edit("//postgres@", &format!("//{role}:secret@"))
}

/// A server that gives up on a client after 2 s, on one that does not finish its login after 5 s (until then nobody can drop a database), and asks the roles of these tests for their password.
async fn server() -> Result<Server> {
    let options =
        ServerOptions::new(MAJOR).set("wal_sender_timeout", "2s").set("authentication_timeout", "5s");
    Server::start(
        options.hba("host all postgres 127.0.0.1/32 trust").hba("host all all 127.0.0.1/32 scram-sha-256"),
    )
    .await
}

/// Runs the cells of some phases on a server of their own, some at once, and tells all that failed.
async fn cells(phases: &[Phase]) -> Result<()> {
    let server = server().await?;
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut cells = JoinSet::new();
    for &phase in phases {
        for (name, fault) in FAULTS {
            let (server, at_once) = (server.clone(), Arc::clone(&at_once));
            cells.spawn(async move {
                let _turn = at_once.acquire().await;
                let begun = Instant::now();
                let took = cell(&server, phase, fault).await;
                (format!("{phase:?} {name}"), took, begun.elapsed())
            });
        }
    }
    let mut failed = Vec::new();
    while let Some(done) = cells.join_next().await {
        let (name, took, all) = done?;
        match took {
            Ok(took) => {
                println!("{name:20} recovered in {:4.1} s of {:4.1} s", took.as_secs_f32(), all.as_secs_f32())
            }
            Err(failure) => failed.push(format!("{name}: {failure:#}")),
        }
    }
    ensure!(failed.is_empty(), "{} cells failed:\n{}", failed.len(), failed.join("\n\n"));
    server.stop(StopMode::Fast).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_the_network_in_the_login_and_the_copy_lose_nothing() -> Result<()> {
    cells(&[Phase::Login, Phase::Copy]).await
}

/// On a server of its own: a slot's creation waits for the open transactions of all databases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_the_network_while_the_snapshot_is_exported_lose_nothing() -> Result<()> {
    cells(&[Phase::Export]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_the_network_in_the_stream_and_in_feedback_lose_nothing() -> Result<()> {
    cells(&[Phase::Stream, Phase::Feedback]).await
}

/// Nothing ever passes again, in the middle of the copy and of the stream: the run ends, and says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_stays_dead_ends_the_run_with_its_cause() -> Result<()> {
    let server = server().await?;
    for copying in [true, false] {
        let limits = "limits = { retry_wait = \"500ms\", retry_for = \"2s\" }\n";
        let voyage = Voyage::with(&server, limits).await?;
        let ferry = if copying {
            voyage.proxy.after_bytes(Direction::ToClient, COPY_BYTES, Fault::Stall);
            voyage.start()?
        } else {
            let ferry = voyage.following().await?;
            voyage.proxy.inject(Direction::ToClient, Fault::Stall);
            ferry
        };
        let begun = Instant::now();
        let told = crate::voyage::told(&ferry.wait().await?)?;
        told.error("pipeline.retries_exhausted").with_context(|| format!("copying: {copying}"))?;
        told.error("connection.unreachable")?;
        ensure!(told.exit == Some(3), "{told:?}");
        ensure!(begun.elapsed() < WITHIN, "it took {:?}", begun.elapsed());
        voyage.proxy.flow();
        voyage.finished().await?;
    }
    Ok(())
}

/// Without `wal_sender_timeout` the server never gives up on us: the silence has to be noticed here, and the slot taken back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_gives_up_does_not_hold_a_dead_stream_up() -> Result<()> {
    let server = Server::start(ServerOptions::new(MAJOR).set("wal_sender_timeout", 0)).await?;
    let voyage = Voyage::new(&server).await?;
    let mut ferry = voyage.following().await?;
    for direction in [Direction::ToClient, Direction::ToServer] {
        voyage.proxy.inject(direction, Fault::Silence);
        voyage.change().await?;
        let took = voyage.delivered(&mut ferry).await?;
        ensure!(took < RECOVERS_WITHIN, "it took {took:?}");
    }
    voyage.arrived(ferry).await?;
    Ok(())
}
