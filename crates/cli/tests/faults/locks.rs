//! Locks of others, on a table and on the target's file: waited for and named, or told with who holds them.

use anyhow::{Result, ensure};
use pgferry_testkit::Server;
use pgferry_testkit::process::Ferry;

use crate::voyage::{Voyage, WITHIN, told};

/// `ACCESS EXCLUSIVE` on a table while the program asks the catalog, copies and follows. It says what it waits for, goes on with the rest,
/// and through all of it once the lock is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_table_is_waited_for_and_named() -> Result<()> {
    let voyage = Voyage::new(&Server::shared(15).await?).await?;
    let holder = voyage.database().client().await?;
    holder.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await?;
    let mut ferry = voyage.start()?;
    ferry.wait_for("source.lock_wait").await?;
    ensure!(ferry.stderr().contains("a lock on public.t"), "{}", ferry.stderr());
    ensure!(ferry.stderr().contains("of role postgres"), "it does not say whose: {}", ferry.stderr());
    holder.batch_execute("COMMIT").await?;
    voyage.delivered(&mut ferry).await?;
    // A table that is locked while the task follows holds up nothing: the stream takes no locks.
    holder.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await?;
    voyage.sql("UPDATE u SET n = n + 1 WHERE id % 3 = 0").await?;
    voyage.delivered(&mut ferry).await?;
    holder.batch_execute("COMMIT").await?;
    voyage.change().await?;
    voyage.arrived(ferry).await?;
    Ok(())
}

/// What only looks does not hang: the check needs no lock, the preview of the rows gives up and says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_at_a_locked_table_ends_in_time() -> Result<()> {
    let voyage = Voyage::new(&Server::shared(15).await?).await?;
    let holder = voyage.database().client().await?;
    holder.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await?;
    let checked = voyage.ferry(&["check"])?.run().await?;
    ensure!(checked.status.code() == Some(0), "{checked:?}");
    let preview = voyage.ferry(&["preview"])?.run().await?;
    ensure!(preview.took < WITHIN, "{preview:?}");
    ensure!(
        preview.stderr.contains("a lock on public.t, held by process"),
        "it says nothing meanwhile: {preview:?}"
    );
    told(&preview)?.error("source.lock_wait")?;
    holder.batch_execute("COMMIT").await?;
    let preview = voyage.ferry(&["preview"])?.run().await?;
    ensure!(preview.status.code() == Some(0), "{preview:?}");
    Ok(())
}

/// Another process has the DuckDB file open for writing: here a second run of the program, as any other would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_another_process_has_open_is_told() -> Result<()> {
    let voyage = Voyage::new(&Server::shared(15).await?).await?;
    let mut first = voyage.following().await?;
    let second = voyage.run().await?;
    let error = second.error("target.locked")?;
    let cause = error["cause"].as_str().unwrap_or_default();
    ensure!(cause.contains(&first.pid().to_string()), "it does not say who: {error:#}");
    ensure!(second.exit == Some(8), "{second:?}");
    voyage.change().await?;
    voyage.delivered(&mut first).await?;
    voyage.stop(first).await?;
    voyage.finished().await
}

/// The holder is no pgferry but a program that took the file's lock while the task was away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_a_stranger_has_locked_is_told() -> Result<()> {
    let voyage = Voyage::new(&Server::shared(15).await?).await?;
    voyage.finished().await?;
    let file = voyage.folder().join("copy.duckdb");
    let script = "import fcntl, sys, time\nf = open(sys.argv[1], 'r+b')\nfcntl.lockf(f, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)";
    let mut holder = Ferry::of("python3")?
        .args(["-c".to_owned(), script.to_owned(), file.to_string_lossy().into_owned()])
        .start()?;
    holder.wait_for("held").await?;
    voyage.change().await?;
    let ended = voyage.run().await?;
    let error = ended.error("target.locked")?;
    ensure!(
        error["cause"].as_str().is_some_and(|cause| cause.contains(&holder.pid().to_string())),
        "{error:#}"
    );
    holder.kill9().await?;
    voyage.finished().await
}
