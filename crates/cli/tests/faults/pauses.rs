//! The program is held up, or its password changes, while a server with little patience watches.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pgferry_testkit::proxy::Direction;
use pgferry_testkit::{Server, ServerOptions};

use crate::voyage::{Voyage, told};

/// Three times the server's patience.
const BUSY: Duration = Duration::from_secs(3);

async fn impatient() -> Result<Server> {
    Server::start(ServerOptions::new(15).set("wal_sender_timeout", "1s")).await
}

/// The process that reads from the slot.
async fn walsender(voyage: &Voyage) -> Result<Option<i32>> {
    let client = voyage.database().client().await?;
    let sql = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
    let row = client.query_opt(sql, &[&voyage.slot()]).await?;
    Ok(row.and_then(|row| row.get(0)))
}

/// The target takes longer to commit a delivery than the server's patience. The connection lives through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feedback_goes_on_while_the_target_is_busy() -> Result<()> {
    let server = impatient().await?;
    let mut voyage = Voyage::new(&server).await?;
    voyage.env("PGFERRY_FAILPOINT", &format!("target.before_commit:1:{}", BUSY.as_millis()));
    let mut ferry = voyage.following().await?;
    let before = walsender(&voyage).await?;
    let begun = Instant::now();
    voyage.change().await?;
    voyage.delivered(&mut ferry).await?;
    ensure!(begun.elapsed() >= BUSY, "the target was not held up: {:?}", begun.elapsed());
    ensure!(
        before.is_some() && walsender(&voyage).await? == before,
        "the connection was lost:\n{}",
        ferry.stderr()
    );
    voyage.arrived(ferry).await?;
    Ok(())
}

/// The whole program stands still for longer than the server's patience, while it follows and while it copies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_was_stopped_for_a_while_goes_on() -> Result<()> {
    let server = impatient().await?;
    let voyage = Voyage::new(&server).await?;
    let mut ferry = voyage.start()?;
    while voyage.proxy.bytes(Direction::ToClient) < 500_000 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for round in 0..3 {
        ferry.signal("STOP")?;
        voyage.change().await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        ferry.signal("CONT")?;
        voyage.change().await?;
        let took = voyage.delivered(&mut ferry).await?;
        println!("round {round}: delivered {took:?} after the pause");
    }
    voyage.arrived(ferry).await?;
    Ok(())
}

/// The password changes while the program runs: its connections go on; the first that has to be opened anew is refused, and the run ends and
/// says why. With the new password in its environment it goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_changes_under_a_run_is_told_and_cured() -> Result<()> {
    let options = ServerOptions::new(15)
        .hba("host all postgres 127.0.0.1/32 trust")
        .hba("host all all 127.0.0.1/32 scram-sha-256");
    let server = Server::start(options).await?;
    let mut voyage = Voyage::new(&server).await?;
    let role = format!("cdc_{}", voyage.database().name());
    voyage.sql(&format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'old'")).await?;
    let url = format!(
        "url = \"postgresql://postgres@127.0.0.1:{}/{}\"",
        voyage.proxy.port(),
        voyage.database().name()
    );
    let parts = format!(
        "host = \"127.0.0.1\"\nport = {}\ndatabase = \"{}\"\nuser = \"{role}\"\npassword = {{ env = \"FAULTS_PASSWORD\" }}",
        voyage.proxy.port(),
        voyage.database().name()
    );
    voyage.edit(&url, &parts)?;
    voyage.env("FAULTS_PASSWORD", "old");
    let mut ferry = voyage.following().await?;
    voyage.sql(&format!("ALTER ROLE {role} PASSWORD 'new'")).await?;
    // What is open goes on.
    voyage.change().await?;
    voyage.delivered(&mut ferry).await?;
    voyage.proxy.reset();
    voyage.change().await?;
    let ended = told(&ferry.wait().await?)?;
    ended.error("connection.authentication")?;
    ensure!(ended.exit == Some(3), "{ended:?}");
    voyage.env("FAULTS_PASSWORD", "new");
    voyage.finished().await
}
