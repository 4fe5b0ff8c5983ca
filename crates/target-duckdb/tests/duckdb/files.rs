//! The file itself: locks, wrong files, folders that are missing; and what `check` finds.

use std::process::{Command, Stdio};

use pgferry_model::{Class, Outcome, TypeKind};
use pgferry_pipeline::{IfTargetExists, Target};
use pgferry_target_duckdb::{DuckdbTarget, error};
use tempfile::TempDir;

use crate::making::*;

const HOLDER: &str = "PGFERRY_TEST_HOLD_FILE";

/// Not a test of its own: run by the next test in another process, it holds the file until its input ends.
#[test]
fn holds_a_file_when_told_to() {
    let Ok(path) = std::env::var(HOLDER) else { return };
    let connection = duckdb::Connection::open(path).unwrap();
    connection.execute_batch("CREATE TABLE IF NOT EXISTS held (a INTEGER)").unwrap();
    std::fs::write(std::env::var("PGFERRY_TEST_READY").unwrap(), "").unwrap();
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_process_has_is_told_with_its_pid() {
    let folder = TempDir::new().unwrap();
    let (path, ready) = (folder.path().join("x.duckdb"), folder.path().join("ready"));
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "files::holds_a_file_when_told_to"])
        .env(HOLDER, &path)
        .env("PGFERRY_TEST_READY", &ready)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..200 {
        if ready.exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let failure = DuckdbTarget::connect(config(&path)).err().unwrap();
    drop(holder.stdin.take());
    let pid = holder.id();
    holder.wait().unwrap();
    assert_eq!(
        (failure.code(), failure.class()),
        (error::LOCKED, Class::TaskBroken),
        "{:?}",
        failure.cause()
    );
    assert!(failure.cause().unwrap().contains(&format!("PID {pid}")), "{failure}");
    assert!(failure.cure().is_some());
    DuckdbTarget::connect(config(&path)).unwrap().open(&task()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_files_and_folders_are_told() {
    let folder = TempDir::new().unwrap();
    let text = folder.path().join("text");
    std::fs::write(&text, "this is a text file ".repeat(1000)).unwrap();
    for (path, code) in [
        (text, error::FILE),
        (folder.path().join("none/x.duckdb"), error::FILE),
        (folder.path().to_path_buf(), error::FILE),
    ] {
        let failure = DuckdbTarget::connect(config(&path)).err().unwrap();
        assert_eq!(
            (failure.code(), failure.class()),
            (code, Class::TaskBroken),
            "{path:?} {:?}",
            failure.cause()
        );
        assert!(failure.cure().is_some());
    }
}

/// DuckDB's checksum of a block of whole 64-bit words (checksum.cpp in its source).
fn checksum(block: &[u8]) -> u64 {
    let words = block.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    words.fold(5381, |sum, word| sum ^ word.wrapping_mul(0xBF58_476D_1CE4_E5B9))
}

/// A database whose main header names a storage version that this DuckDB does not know, and one that is damaged.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_file_and_a_damaged_one_are_told() {
    let made = opened().await;
    made.target.close().await.unwrap();
    let mut bytes = std::fs::read(&made.path).unwrap();
    // The main header: checksum (8 bytes), `DUCK`, then the version as 64 bits.
    assert_eq!(&bytes[8..12], b"DUCK");
    assert_eq!(bytes[..8], checksum(&bytes[8..4096]).to_le_bytes());
    bytes[12..20].copy_from_slice(&9999u64.to_le_bytes());
    std::fs::write(&made.path, &bytes).unwrap();
    let failure = DuckdbTarget::connect(config(&made.path)).err().unwrap();
    assert_eq!((failure.code(), failure.class()), (error::FILE, Class::TaskBroken), "{:?}", failure.cause());
    let sum = checksum(&bytes[8..4096]).to_le_bytes();
    bytes[..8].copy_from_slice(&sum);
    std::fs::write(&made.path, &bytes).unwrap();
    let failure = DuckdbTarget::connect(config(&made.path)).err().unwrap();
    assert_eq!((failure.code(), failure.class()), (error::FILE, Class::TaskBroken), "{:?}", failure.cause());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_tells_before_the_start() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.duckdb");
    let target = DuckdbTarget::connect(config(&path)).unwrap();
    let one = table("One", &[("id", TypeKind::Int4), ("at", TypeKind::Timestamp)], &[0]);
    let plans = [plan(&one, IfTargetExists::Error)];
    let findings = target.check(&plans).await.unwrap();
    assert!(findings.iter().all(|finding| finding.outcome == Outcome::Passed), "{findings:?}");
    assert!(findings.iter().any(|finding| finding.code == Some(error::NOT_REPRESENTABLE)));
    let many = vec![plan(&one, IfTargetExists::Error); 2000];
    let findings = target.check(&many).await.unwrap();
    let short = findings.iter().find(|finding| finding.code == Some(error::MEMORY_SHORT)).expect("a warning");
    assert_eq!(short.outcome, Outcome::Warning);
    assert_eq!(short.cure.as_ref().expect("a cure").lines, ["memory_limit = \"2GB\""]);
    let statements = target.describe(&plans[0]).await.unwrap();
    assert_eq!(
        statements,
        [
            "CREATE SCHEMA IF NOT EXISTS \"public\"",
            "CREATE TABLE \"public\".\"One\" (\"id\" INTEGER NOT NULL, \"at\" TIMESTAMP)"
        ]
    );
    target.close().await.unwrap();
    let other = duckdb::Connection::open(&path).unwrap();
    other
        .execute_batch("CREATE SCHEMA public; CREATE TABLE public.one (id INTEGER, \"at\" TIMESTAMP)")
        .unwrap();
    drop(other);
    let findings = target.check(&plans).await.unwrap();
    assert!(findings.iter().any(|finding| finding.code == Some(error::TABLE_EXISTS)), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_does_not_suffice_is_told() {
    let people = people();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.duckdb");
    let mut config = config(&path);
    config.memory_limit = "nonsense".into();
    assert_eq!(DuckdbTarget::connect(config.clone()).err().unwrap().class(), Class::TaskBroken);
    config.memory_limit = "8MB".into();
    let target = DuckdbTarget::connect(config).unwrap();
    target.open(&task()).await.unwrap();
    target.prepare(&plan(&people, IfTargetExists::Error)).await.unwrap();
    let long = "x".repeat(20 << 20);
    let failure = load(&target, &people, 0, &[texts(&["1", &long, &long, "1"])]).await.unwrap_err();
    assert_eq!(
        (failure.code(), failure.class()),
        (error::OUT_OF_MEMORY, Class::TaskBroken),
        "{:?}",
        failure.cause()
    );
}
