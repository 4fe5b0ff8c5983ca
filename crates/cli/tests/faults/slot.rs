//! The slot or the publication goes away, while the program runs and while it does not: it stops, says so, and is right again after the cure.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgferry_testkit::Server;

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
            told(ferry.wait().await?)?
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
            told(ferry.wait().await?)?
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
