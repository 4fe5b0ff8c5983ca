//! What is staged when a task stops: merged within a limit, else by the next process.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pgferry_model::{TableState, TypeKind};
use pgferry_pipeline::{CopyMark, Target};
use pgferry_target_databend::DatabendTarget;
use pgferry_testkit::databend::{DatabendSettings, Fault, FaultKind};

use crate::making::{Changes, ask, at, deliver, own_server, place, plan, raw, rows, table, task, unhurried};

/// The limit, and what the machine may be slower.
const CLOSED_WITHIN: Duration = Duration::from_secs(50);

/// Each merge conflicts again and again, as with somebody who alters the tables: all of them together would take longer than the limit.
#[tokio::test(flavor = "multi_thread")]
async fn merges_that_do_not_end_are_left_to_the_next_process() -> Result<()> {
    let Some(server) = own_server(&DatabendSettings::default())? else { return Ok(()) };
    let config = unhurried(&server);
    let columns = [("id", TypeKind::Int4), ("n", TypeKind::Int4)];
    let names: Vec<String> = (0..8).map(|number| format!("t{number}")).collect();
    let tables: Vec<_> = names.iter().map(|name| table(name, &columns, &[0])).collect();
    let target = DatabendTarget::connect(config.clone())?;
    target.open(&task()).await?;
    for one in &tables {
        target.prepare(&plan(one)).await?;
    }
    target.begin_copies(&tables, CopyMark { cut: at(100), stream_start: Some(at(100)) }).await?;
    target.set_states(&tables, TableState::Live).await?;
    let changes = tables.iter().map(|one| Changes::of(one).insert(&["1", "10"])).collect();
    deliver(&target, 0x200, changes).await?;

    let conflict = FaultKind::Error { code: 4001, message: "Unresolvable conflict".into() };
    server.fault(&Fault::on_sql("^MERGE", conflict).times(10_000))?;
    let began = Instant::now();
    target.close().await?;
    ensure!(began.elapsed() < CLOSED_WITHIN, "closing took {:?}", began.elapsed());
    server.clear_faults()?;
    for name in &names {
        let staged = ask(&server, &format!("SELECT count(*) FROM {}", raw(&config, name))).await?;
        ensure!(staged[0][0].as_deref() == Some("1"), "{name}: {staged:?} rows are staged");
        let merged = ask(&server, &format!("SELECT count(*) FROM {}", place(&config, name))).await?;
        ensure!(merged[0][0].as_deref() == Some("0"), "{name}: {merged:?} rows were merged");
    }

    let next = DatabendTarget::connect(config.clone())?;
    ensure!(next.open(&task()).await?.position == Some(at(0x200)), "another position");
    for one in &tables {
        next.prepare(&plan(one)).await?;
    }
    next.close().await?;
    for (name, one) in names.iter().zip(&tables) {
        let staged = ask(&server, &format!("SELECT count(*) FROM {}", raw(&config, name))).await?;
        ensure!(staged[0][0].as_deref() == Some("0"), "{name}: {staged:?} rows are still staged");
        ensure!(rows(&next, one).await? == ["1|10"], "{name} lacks its row");
    }
    Ok(())
}
