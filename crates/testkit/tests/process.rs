//! Runs real processes (a shell stands where pgferry will) and ends them in every way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

use std::time::{Duration, Instant};

use pgferry_testkit::process::Ferry;

fn shell(script: &str) -> Ferry {
    Ferry::of("/bin/sh").unwrap().args(["-c", script])
}

#[tokio::test]
async fn output_status_task_file_and_environment_reach_both_sides() {
    let ferry = shell("cat \"$0\"; echo \"$NAME $PGFERRY_FAILPOINT\" >&2; exit 3");
    let ferry =
        ferry.task("[source]\nurl = 'ä'\n").unwrap().env("NAME", "value").failpoint("deliver.commit", 2);
    let outcome = ferry.run().await.unwrap();
    assert_eq!(outcome.stdout, "[source]\nurl = 'ä'\n");
    assert_eq!(outcome.stderr, "value deliver.commit:2\n");
    assert_eq!((outcome.status.code(), outcome.signal(), outcome.timed_out), (Some(3), None, false));
    let error = outcome.success().unwrap_err().to_string();
    assert!(error.contains("value deliver.commit:2"), "{error}");
    let folder = ferry.folder().to_owned();
    drop(ferry);
    assert!(!folder.exists());
}

#[tokio::test]
async fn signals_reach_it_and_its_words_can_be_waited_for() {
    let ferry = shell("trap 'echo stopping; exit 0' TERM; echo ready; while :; do sleep 0.02; done");
    let mut running = ferry.start().unwrap();
    running.wait_for("ready").await.unwrap();
    running.signal("TERM").unwrap();
    let outcome = running.wait().await.unwrap().success().unwrap();
    assert_eq!(outcome.stdout, "ready\nstopping\n");
    let mut running = shell("echo last words").start().unwrap();
    let error = running.wait_for("never said").await.unwrap_err().to_string();
    assert!(error.contains("last words"), "{error}");
}

#[tokio::test]
async fn a_kill_comes_at_the_moment_the_seed_chooses() {
    let ferry = shell("while :; do sleep 0.02; done");
    let (low, high) = (Duration::from_millis(100), Duration::from_millis(200));
    let outcome = ferry.start().unwrap().kill_within(7, low, high).await.unwrap();
    assert_eq!(outcome.signal(), Some(9));
    assert!(outcome.took >= low, "{:?}", outcome.took);
    assert!(shell("exit 0").start().unwrap().kill_within(7, low, high).await.unwrap().status.success());
    assert_eq!(ferry.start().unwrap().kill9().await.unwrap().signal(), Some(9));
    assert_eq!(shell("kill -s ABRT $$").run().await.unwrap().signal(), Some(6));
}

#[tokio::test]
async fn the_time_limit_ends_a_run_and_a_drop_ends_it_too() {
    let start = Instant::now();
    let outcome = shell("echo begun; exec sleep 60").limit(Duration::from_millis(300)).run().await.unwrap();
    assert!(outcome.timed_out && start.elapsed() < Duration::from_secs(10));
    assert_eq!(outcome.stdout, "begun\n");
    assert!(outcome.success().is_err());
    let running = shell("exec sleep 60").start().unwrap();
    let process = std::path::PathBuf::from(format!("/proc/{}/fd/0", running.pid()));
    drop(running);
    let until = Instant::now() + Duration::from_secs(5);
    while process.exists() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!process.exists());
}
