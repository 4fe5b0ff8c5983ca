//! The slot or the publication goes away, while the program runs and while it does not: it stops, says so, and is right again after the cure.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgferry_testkit::{Server, ServerOptions};

use crate::voyage::{Told, Voyage, WITHIN, told};

const MAJORS: [u32; 2] = [15, 18];

/// Drops the slot, however often somebody reads from it again.
async fn drop_slot(voyage: &Voyage) -> Result<()> {
    let client = voyage.database().client().await?;
    let (slot, begun) = (voyage.slot(), Instant::now());
    let end = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active"
    );
    loop {
        client.batch_execute(&end).await?;
        if client.batch_execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await.is_ok() {
            return Ok(());
        }
        ensure!(begun.elapsed() < WITHIN, "the slot cannot be dropped");
    }
}

/// The run has ended with this error; following its cure brings everything over.
async fn cured(voyage: &Voyage, ended: &Told, code: &str) -> Result<()> {
    let error = ended.error(code)?;
    ensure!(ended.exit == Some(1), "{ended:?}");
    voyage.change().await?;
    voyage.cure(error).await?;
    voyage.finished().await?;
    // And it goes on from there.
    voyage.arrived(voyage.following().await?).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_dropped_is_told_and_cured() -> Result<()> {
    for (major, running) in [(MAJORS[0], true), (MAJORS[1], false)] {
        let voyage = Voyage::new(&Server::shared(major).await?).await?;
        let ended = if running {
            let ferry = voyage.following().await?;
            drop_slot(&voyage).await?;
            voyage.change().await?;
            told(&ferry.wait().await?)?
        } else {
            voyage.finished().await?;
            drop_slot(&voyage).await?;
            voyage.change().await?;
            voyage.run().await?
        };
        cured(&voyage, &ended, "source.slot_missing")
            .await
            .with_context(|| format!("{major}, running {running}"))?;
    }
    Ok(())
}

/// Before 18 the server ends the stream at the next change; from 18 on it leaves the changes out, with a warning that ends the run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_that_is_dropped_is_told_and_cured() -> Result<()> {
    for (major, running) in [(MAJORS[0], true), (MAJORS[1], true), (MAJORS[0], false), (MAJORS[1], false)] {
        let voyage = Voyage::new(&Server::shared(major).await?).await?;
        let ended = if running {
            let ferry = voyage.following().await?;
            voyage.sql("DROP PUBLICATION ferry").await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            voyage.change().await?;
            told(&ferry.wait().await?)?
        } else {
            voyage.finished().await?;
            voyage.sql("DROP PUBLICATION ferry").await?;
            voyage.change().await?;
            voyage.run().await?
        };
        let code = if running { "source.publication_after_slot" } else { "source.publication_missing" };
        cured(&voyage, &ended, code).await.with_context(|| format!("{major}, running {running}"))?;
    }
    Ok(())
}

/// The program was killed while the server was making the slot for it: the half-made slot is there, and would be gone again later. The next start
/// waits for its maker, tells who that is where it stays, and after the cure makes the slot anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_still_being_made_for_a_killed_run_is_told_and_cured() -> Result<()> {
    let server = Server::start(ServerOptions::new(15)).await?;
    let voyage = Voyage::new(&server).await?;
    let open = voyage.database().client().await?;
    open.batch_execute("BEGIN; SELECT txid_current()").await?;
    let ferry = voyage.start()?;
    let made = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{}'", voyage.slot());
    let begun = Instant::now();
    while open.query_opt(&made, &[]).await?.is_none() {
        ensure!(begun.elapsed() < WITHIN, "no slot is being made: {}", ferry.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ferry.kill9().await?;
    let ended = voyage.run().await?;
    let error = ended.error("source.slot_active")?;
    ensure!(ended.exit == Some(8), "{ended:?}");
    voyage.cure(error).await?;
    open.batch_execute("COMMIT").await?;
    voyage.finished().await
}
