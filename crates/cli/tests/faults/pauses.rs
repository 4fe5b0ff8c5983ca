//! The program is held up, or its password changes, while a server with little patience watches.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pgferry_testkit::proxy::Direction;
use pgferry_testkit::{Server, ServerOptions};

use crate::voyage::{Voyage, told};

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

/// A delivery that the target takes far longer to write than the server's patience: one table of every row rewritten again and again, at the
/// lowest priority, with DuckDB's least memory and one thread. The connection lives through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feedback_goes_on_while_the_target_is_busy() -> Result<()> {
    let server = impatient().await?;
    let mut voyage = Voyage::with(
        &server,
        "limits = { retry_wait = \"500ms\", memory = \"256MiB\", batch = \"128MiB\" }\n",
    )
    .await?;
    voyage.edit(
        "path = \"copy.duckdb\"\n",
        "path = \"copy.duckdb\"\nthreads = 1\nmemory_limit = \"256MB\"\n",
    )?;
    let mut ferry = voyage.following().await?;
    let before = walsender(&voyage).await?;
    renice(ferry.pid())?;
    let begun = Instant::now();
    voyage.sql("UPDATE t SET pad = pad || md5(id::text)").await?;
    voyage
        .sql("INSERT INTO t SELECT -1000000 - g, repeat(md5(g::text), 8) FROM generate_series(1, 150000) g")
        .await?;
    voyage.delivered(&mut ferry).await?;
    println!("written in {:?}", begun.elapsed());
    ensure!(begun.elapsed() > Duration::from_secs(2), "too quick to show anything: {:?}", begun.elapsed());
    ensure!(
        before.is_some() && walsender(&voyage).await? == before,
        "the connection was lost:\n{}",
        ferry.stderr()
    );
    voyage.arrived(ferry).await?;
    Ok(())
}

fn renice(pid: u32) -> Result<()> {
    let status = std::process::Command::new("renice").args(["-n", "19", "-p", &pid.to_string()]).status()?;
    ensure!(status.success(), "renice");
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
