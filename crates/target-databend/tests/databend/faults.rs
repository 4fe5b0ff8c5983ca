//! The server fails at every kind of statement, before and after it has acted: nothing is lost, nothing comes twice.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pgferry_model::{Class, Error, TableState};
use pgferry_pipeline::{CopyMark, Receipt, Target};
use pgferry_target_databend::{DatabendConfig, DatabendTarget, Server};
use pgferry_testkit::databend::{DatabendServer, DatabendSettings, Fault, FaultKind};

use crate::making::{
    Changes, KEPT, ask, at, config, delivery, load, own_server, people, place, plan, raw, rows, task,
};

/// How a statement fails. The client tries what was not answered again, by itself, three times.
fn kinds() -> Vec<(&'static str, FaultKind, u32)> {
    let conflict = FaultKind::Error { code: 4001, message: "Unresolvable conflict".into() };
    let lost = FaultKind::Error { code: 5111, message: "session lost".into() };
    vec![
        ("503", FaultKind::Unavailable, 1),
        ("503, again and again", FaultKind::Unavailable, 4),
        ("dropped before", FaultKind::DropBefore, 1),
        ("dropped before, again and again", FaultKind::DropBefore, 4),
        ("dropped after", FaultKind::DropAfter, 1),
        ("dropped after, again and again", FaultKind::DropAfter, 4),
        ("a conflict", conflict, 1),
        ("the session lost", lost, 1),
    ]
}

async fn fault(server: &DatabendServer, fault: Option<Fault>) -> Result<u64> {
    let server = server.clone();
    tokio::task::spawn_blocking(move || {
        let fired = server.faults_fired()?;
        server.clear_faults()?;
        if let Some(fault) = fault {
            server.fault(&fault)?;
        }
        Ok(fired)
    })
    .await?
}

fn quick(config: DatabendConfig) -> DatabendConfig {
    let Server::Dsn(dsn) = &config.server else { return config };
    let server = Server::Dsn(format!("{dsn}&retry_delay_secs=0"));
    DatabendConfig { server, ..config }
}

/// As the engine does it: after an error that may pass everything begins again at what the target holds.
async fn reopened(config: &DatabendConfig, failure: &Error) -> Result<DatabendTarget> {
    ensure!(failure.class() == Class::Transient, "{failure:?} {:?}", failure.cause());
    for _ in 0..8 {
        let target = DatabendTarget::connect(config.clone())?;
        match target.open(&task()).await {
            Ok(_) => return Ok(target),
            Err(failure) if failure.class() == Class::Transient => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(failure) => return Err(failure.into()),
        }
    }
    bail!("the target does not open any more")
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_survive_faults_of_every_statement() -> Result<()> {
    let Some(server) = own_server(&DatabendSettings::default())? else { return Ok(()) };
    let (config, people) = (quick(config(&server)), people());
    let mut target = DatabendTarget::connect(config.clone())?;
    target.open(&task()).await?;
    target.prepare(&plan(&people)).await?;
    target.begin_copy(&people, CopyMark { cut: at(100), stream_start: Some(at(100)) }).await?;
    target.set_state(&people, TableState::Live).await?;
    let places = ["^BEGIN", "^COPY", "^UPDATE .*task", "^COMMIT", "^MERGE INTO \"d", "^DELETE FROM .*raw"];
    let (mut number, mut fired) = (0u64, 0);
    for place in places.iter().copied().chain(["/v1/upload_to_stage"]) {
        for (kind_name, kind, times) in kinds() {
            number += 1;
            let on =
                if place.starts_with('/') { Fault::on_path(place, kind) } else { Fault::on_sql(place, kind) };
            fault(&server, Some(on.times(times))).await?;
            let (through, id) = (1_000 + number * 10, (number % 7).to_string());
            let n = number.to_string();
            let mut tries = 0;
            loop {
                let of = Changes::of(&people);
                let changes =
                    if number <= 7 { of.insert(&[&id, &n, &n, &n]) } else { of.update(&[&id, KEPT, &n, &n]) };
                match target.apply(delivery(through, vec![changes])?).await {
                    Ok(receipt) => {
                        ensure!(receipt == Receipt::Durable(at(through)), "{receipt:?}");
                        break;
                    }
                    Err(failure) => {
                        tries += 1;
                        ensure!(tries < 8, "{place} {kind_name}: {failure}");
                        target = reopened(&config, &failure)
                            .await
                            .with_context(|| format!("{place} {kind_name}"))?;
                    }
                }
            }
            // Merges of the background may meet the fault, too; they try again.
            tokio::time::sleep(Duration::from_millis(250)).await;
            fired += fault(&server, None).await?;
        }
    }
    ensure!(fired >= 40, "only {fired} faults fired");
    let found = rows(&target, &people).await?;
    let wanted: Vec<String> = (0..7u64)
        .map(|id| {
            let last = (1..=number).rev().find(|number| number % 7 == id).unwrap_or(0);
            let first = if id == 0 { 7 } else { id };
            format!("{id}|{first}|{last}|{last}")
        })
        .collect();
    ensure!(found == wanted, "{found:?}\n{wanted:?}");
    let left = ask(&server, &format!("SELECT count(*) FROM {}", raw(&config, "people"))).await?;
    ensure!(left[0][0].as_deref() == Some("0"), "{left:?}");
    target.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_survive_faults_of_every_statement() -> Result<()> {
    let Some(server) = own_server(&DatabendSettings::default())? else { return Ok(()) };
    let (config, people) = (quick(config(&server)), people());
    let mut target = DatabendTarget::connect(config.clone())?;
    target.open(&task()).await?;
    target.prepare(&plan(&people)).await?;
    target.begin_copy(&people, CopyMark { cut: at(100), stream_start: Some(at(100)) }).await?;
    let mut number = 0u32;
    for place in
        ["^BEGIN", "^COPY", "^INSERT INTO .*chunk", "^UPDATE .*task", "^COMMIT", "/v1/upload_to_stage"]
    {
        for (kind_name, kind, times) in kinds() {
            number += 1;
            let on =
                if place.starts_with('/') { Fault::on_path(place, kind) } else { Fault::on_sql(place, kind) };
            fault(&server, Some(on.times(times))).await?;
            let id = number.to_string();
            let mut tries = 0;
            while let Err(failure) = load(&target, &people, number, &[&[&id, "b", "n", "1"]]).await {
                tries += 1;
                ensure!(tries < 8, "{place} {kind_name}: {failure}");
                target = reopened(&config, &failure).await.with_context(|| format!("{place} {kind_name}"))?;
            }
            fault(&server, None).await?;
        }
    }
    let held = target.held(&task()).await?.context("nothing is held")?;
    let chunks = held.table(&people.name).map_or(0, |known| known.chunks_done.len());
    ensure!(chunks == number as usize, "{chunks} chunks of {number} are recorded");
    let asked = format!("SELECT count(*), count(DISTINCT id) FROM {}", place(&config, "people"));
    let counts = ask(&server, &asked).await?;
    let wanted = Some(number.to_string());
    ensure!(counts[0] == [wanted.clone(), wanted], "{counts:?} of {number}");
    target.close().await?;
    Ok(())
}
