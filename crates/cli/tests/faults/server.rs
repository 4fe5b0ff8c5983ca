//! The server goes away and comes back, as itself or as another one: a restart, a promoted standby with and without the slot, one that has lost
//! the last transactions.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgferry_testkit::process::RunningFerry;
use pgferry_testkit::proxy::{Direction, Fault};
use pgferry_testkit::server::StopMode;
use pgferry_testkit::{Server, ServerOptions};

use crate::voyage::{Voyage, WITHIN, told};

const COPY_BYTES: u64 = 600_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_the_copy_and_in_the_stream_loses_nothing() -> Result<()> {
    let server = Server::start(ServerOptions::new(15)).await?;
    for mode in [StopMode::Fast, StopMode::Immediate] {
        let voyage = Voyage::new(&server).await?;
        voyage.proxy.after_bytes(Direction::ToClient, COPY_BYTES, Fault::Stall);
        let mut ferry = voyage.start()?;
        let begun = Instant::now();
        while voyage.proxy.bytes(Direction::ToClient) < COPY_BYTES {
            ensure!(begun.elapsed() < WITHIN, "the copy has not begun: {}", ferry.stderr());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.stop(mode).await?;
        voyage.proxy.flow();
        server.resume().await?;
        voyage.change().await?;
        let copying = voyage.delivered(&mut ferry).await.with_context(|| format!("{mode:?} in the copy"))?;
        voyage.change().await?;
        server.restart(mode).await?;
        voyage.change().await?;
        let streaming = voyage.arrived(ferry).await.with_context(|| format!("{mode:?} in the stream"))?;
        println!(
            "{mode:?}: delivered {copying:?} after the restart in the copy, {streaming:?} after that in the stream"
        );
    }
    Ok(())
}

/// The standby takes over: the address leads there now, and the comparison looks there.
async fn fail_over(voyage: &mut Voyage, primary: &Server, standby: &Server) -> Result<()> {
    primary.stop(StopMode::Immediate).await?;
    standby.promote().await?;
    voyage.lead_to(standby)
}

/// Before 17, and where nobody made the slot one that survives: it is missing, nothing is carried in silence, and after the cure all is equal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_without_the_slot_is_told_and_cured() -> Result<()> {
    let primary = Server::start(ServerOptions::new(15)).await?;
    let standby = primary.standby(&[]).await?;
    let mut voyage = Voyage::new(&primary).await?;
    let ferry = voyage.following().await?;
    voyage.change().await?;
    standby.catch_up_with(&primary).await?;
    fail_over(&mut voyage, &primary, &standby).await?;
    voyage.change().await?;
    let ended = told(&ferry.wait().await?)?;
    let error = ended.error("source.slot_missing")?;
    ensure!(error["cause"].as_str().is_some_and(|cause| cause.contains("failed over")), "{error:#}");
    voyage.cure(error).await?;
    voyage.finished().await?;
    voyage.arrived(voyage.following().await?).await?;
    Ok(())
}

/// Has the standby take over the slot as it is now, or later.
async fn synchronize(
    voyage: &Voyage,
    ferry: &mut RunningFerry,
    primary: &Server,
    standby: &Server,
) -> Result<()> {
    let (on_primary, on_standby) = (primary.client("postgres").await?, standby.client("postgres").await?);
    let slot = voyage.slot();
    let of_slot = |what: &str| {
        format!("SELECT {what} FROM pg_replication_slots WHERE slot_name = '{slot}' AND NOT temporary")
    };
    let wanted: String = on_primary.query_one(&of_slot("confirmed_flush_lsn::text"), &[]).await?.get(0);
    let there = of_slot(&format!("confirmed_flush_lsn >= '{wanted}'::pg_lsn"));
    let begun = Instant::now();
    loop {
        // The standby keeps a slot only once the primary's needs no log from before the standby has looked.
        voyage.sql("SELECT pg_log_standby_snapshot()").await?;
        voyage.change().await?;
        voyage.delivered(ferry).await?;
        standby.catch_up_with(primary).await?;
        let row = on_standby.query_opt(&there, &[]).await?;
        if row.is_some_and(|row| row.get::<_, bool>(0)) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let log = || std::fs::read_to_string(standby.log_path()).unwrap_or_default();
        ensure!(begun.elapsed() < WITHIN, "the standby does not take over the slot at {wanted}:\n{}", log());
    }
}

async fn with_failover_slot() -> Result<(Server, Server, Voyage)> {
    let primary = Server::start(ServerOptions::new(18)).await?;
    let settings = [
        ("hot_standby_feedback", "on"),
        ("sync_replication_slots", "on"),
        ("wal_receiver_status_interval", "1s"),
    ];
    let standby = primary.standby(&settings).await?;
    let voyage = Voyage::new(&primary).await?;
    let slot = voyage.slot();
    voyage.sql("CREATE PUBLICATION ferry FOR ALL TABLES").await?;
    voyage
        .sql(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput', false, false, true)"))
        .await?;
    Ok((primary, standby, voyage))
}

/// From 17 on a slot with the attribute failover survives: the run goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_with_the_slot_loses_nothing() -> Result<()> {
    let (primary, standby, mut voyage) = with_failover_slot().await?;
    let mut ferry = voyage.following().await?;
    synchronize(&voyage, &mut ferry, &primary, &standby).await?;
    voyage.change().await?;
    standby.catch_up_with(&primary).await?;
    fail_over(&mut voyage, &primary, &standby).await?;
    voyage.change().await?;
    let took = voyage.arrived(ferry).await?;
    println!("delivered {took:?} after the failover");
    // The new timeline is the position's from now on: no later start takes it for another one's.
    standby.restart(StopMode::Fast).await?;
    voyage.change().await?;
    voyage.finished().await
}

/// The standby was promoted without the last transactions, which the target has: and has written so much since that its log is past the stored
/// position. Nothing but the timelines tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_lost_transactions_is_told_and_cured() -> Result<()> {
    let (primary, standby, mut voyage) = with_failover_slot().await?;
    let mut ferry = voyage.following().await?;
    synchronize(&voyage, &mut ferry, &primary, &standby).await?;
    // From here on nothing reaches the standby.
    standby.stop(StopMode::Fast).await?;
    voyage.sql("INSERT INTO t VALUES (-5, 'lost with the primary')").await?;
    voyage.change().await?;
    voyage.delivered(&mut ferry).await?;
    voyage.stop(ferry).await?;
    primary.stop(StopMode::Immediate).await?;
    standby.resume().await?;
    standby.promote().await?;
    voyage.lead_to(&standby)?;
    for _ in 0..8 {
        voyage.change().await?;
    }
    voyage.sql("SELECT pg_switch_wal()").await?;
    voyage.change().await?;
    let ended = voyage.run().await?;
    let error = ended.error("source.history_lost")?;
    ensure!(error["cause"].as_str().is_some_and(|cause| cause.contains("was promoted at")), "{error:#}");
    ensure!(ended.exit == Some(1), "{ended:?}");
    voyage.cure(error).await?;
    voyage.finished().await?;
    voyage.arrived(voyage.following().await?).await?;
    Ok(())
}
