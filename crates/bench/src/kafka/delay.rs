//! From the commit in the source until a consumer has the record, at a steady load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rdkafka::Message;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use serde_json::Value;
use tokio::time::Instant;

use super::contestants::Kind;
use super::{Options, Stage};
use crate::cdc::drop_slot;
use crate::latency::{CLIENTS, load};
use crate::report::Report;

/// Load before what counts: compilers of the Java machine have done their work by then.
const WARM_SECONDS: u64 = 5;
/// For what is under way when the load has ended.
const ARRIVE_WITHIN: Duration = Duration::from_secs(30);
const P50_MS_MAX: f64 = 50.0;
const P99_MS_MAX: f64 = 250.0;

/// A record's commit, and how long after it the record was there.
struct Seen {
    committed_ms: i64,
    after_ms: f64,
}

fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3)
}

fn watch(consumer: &BaseConsumer, total: u64, stop: &AtomicBool) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    while (seen.len() as u64) < total && !stop.load(Ordering::Relaxed) {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => {
                let now = now_ms();
                let value: Value = serde_json::from_slice(record.payload().context("a tombstone")?)?;
                let committed_ms = value["source"]["ts_ms"].as_i64().context("no source.ts_ms")?;
                seen.push(Seen { committed_ms, after_ms: now - committed_ms as f64 });
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(failure)) => return Err(failure.into()),
        }
    }
    Ok(seen)
}

/// One round of one contestant: every age in ascending order, and its CPU in percent of one processor.
async fn round(stage: &Stage, options: &Options, kind: Kind) -> Result<(Vec<f64>, f64)> {
    let connecting = (0..CLIENTS).map(|_| stage.scene.database.client());
    let clients = futures_util::future::try_join_all(connecting).await?;
    stage.client.execute("SELECT pg_create_logical_replication_slot('backlog', 'pgoutput')", &[]).await?;
    let run = stage.run().await?;
    let mut watched = stage.start(kind, &run)?;
    watched.until_streaming(&stage.client).await?;
    let consumer = stage.cluster.consumer(&format!("{}.public.accounts", run.prefix))?;
    let (total, stop) = ((WARM_SECONDS + options.seconds) * options.rate, Arc::new(AtomicBool::new(false)));
    let watching = {
        let stop = Arc::clone(&stop);
        tokio::task::spawn_blocking(move || watch(&consumer, total, &stop))
    };
    let rows = options.effort.of(1_000_000);
    load(&clients, rows, options.rate, WARM_SECONDS).await?;
    let (cpu, counted_from) = (watched.cpu_seconds()?, now_ms() as i64);
    let started = Instant::now();
    load(&clients, rows, options.rate, options.seconds).await?;
    let percent = (watched.cpu_seconds()? - cpu) / started.elapsed().as_secs_f64() * 100.0;
    let deadline = Instant::now() + ARRIVE_WITHIN;
    while !watching.is_finished() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let seen = watching.await??;
    ensure!(seen.len() as u64 == total, "{}: {} of {total} changes arrived", kind.name(), seen.len());
    watched.end().await?;
    stage.end(run).await?;
    drop_slot(&stage.client, "backlog").await?;
    let counted = seen.iter().filter(|seen| seen.committed_ms >= counted_from);
    let mut ages: Vec<f64> = counted.map(|seen| seen.after_ms).collect();
    ages.sort_by(f64::total_cmp);
    Ok((ages, percent))
}

pub(super) async fn measure(stage: &Stage, options: &Options, report: &mut Report) -> Result<()> {
    let heads = ["", "transactions", "p50 ms", "p90 ms", "p99 ms", "most ms", "CPU %"];
    let mut lines = vec![heads.map(str::to_owned).to_vec()];
    let mut ages: Vec<(Kind, Vec<f64>, f64)> =
        options.contestants().into_iter().map(|kind| (kind, Vec::new(), 0.0)).collect();
    for _ in 0..options.effort.rounds {
        for (kind, ages, percent) in &mut ages {
            let (more, cpu) = round(stage, options, *kind).await?;
            ages.extend(more);
            *percent += cpu / options.effort.rounds as f64;
        }
    }
    for (kind, ages, percent) in &mut ages {
        ages.sort_by(f64::total_cmp);
        let last = ages.len().checked_sub(1).context("no change arrived")?;
        let at = |part: f64| ages[(last as f64 * part).round() as usize];
        let mut line = vec![kind.name().to_owned(), ages.len().to_string()];
        line.extend([0.5, 0.9, 0.99, 1.0].map(|part| format!("{:.0}", at(part))));
        line.push(format!("{percent:.1}"));
        lines.push(line);
        if matches!(kind, Kind::AtLeastOnce | Kind::ExactlyOnce) {
            let what = format!("commit to visible, {}", kind.name());
            let (p50, p99) = (at(0.5), at(0.99));
            report.goal(
                format!("{what}: p50 at most {P50_MS_MAX} ms, p99 at most {P99_MS_MAX} ms"),
                format!("{p50:.0} and {p99:.0} ms"),
                p50 <= P50_MS_MAX && p99 <= P99_MS_MAX,
            );
        }
    }
    let title = format!("commit to visible, {} changes/s for {} s a round", options.rate, options.seconds);
    report.table(&title, &lines);
    Ok(())
}
