//! How much log the slot may hold back while the tables are copied.
//!
//! Limits: `max_slot_wal_keep_size` exists from 13; below, and at -1, a slot holds log until the disk is full.

use pgferry_model::{Cure, Error, Finding, Restart};

use super::facts::Facts;
use super::{bytes, warning};
use crate::error;

/// Copies below this size are over before log piles up.
const SMALL_COPY_BYTES: u64 = 1 << 30;
const MEGABYTE: u64 = 1 << 20;

pub(super) fn log_kept(facts: &Facts) -> Vec<Finding> {
    if !facts.streams() {
        return Vec::new();
    }
    let copy = facts.copy_bytes();
    let limit = facts.number("max_slot_wal_keep_size");
    let Some(limit) = limit.and_then(|limit| u64::try_from(limit).ok()) else {
        return unlimited(facts, copy);
    };
    let limit = limit * MEGABYTE;
    let detail = format!("max_slot_wal_keep_size is {}, the copy reads {}", bytes(limit), bytes(copy));
    // A copy of N bytes under a steady load brings about as much log as it reads before the stream can take it off.
    if limit >= copy.max(SMALL_COPY_BYTES) {
        return vec![Finding::passed("slot.headroom", "server", detail)];
    }
    let wanted = (copy.max(SMALL_COPY_BYTES).saturating_mul(2)).div_ceil(SMALL_COPY_BYTES);
    let error = Error::task_broken(error::SLOT_HEADROOM, detail)
        .with_cause("the slot holds back the log while the tables are copied; above the limit the server takes it away, and the copy starts anew")
        .with_cure(set_limit(wanted));
    vec![warning("slot.headroom", "server", &error)]
}

fn unlimited(facts: &Facts, copy: u64) -> Vec<Finding> {
    let held: u64 = facts.slots.iter().map(|slot| slot.retained).sum();
    if copy < SMALL_COPY_BYTES && held < SMALL_COPY_BYTES {
        let detail = format!(
            "log is kept without a limit; the copy reads {}, slots hold {}",
            bytes(copy),
            bytes(held)
        );
        return vec![Finding::passed("slot.headroom", "server", detail)];
    }
    let error = Error::task_broken(
        error::SLOT_HEADROOM,
        format!("log is kept without a limit; the copy reads {}, slots hold {} already", bytes(copy), bytes(held)),
    )
    .with_cause("while the tables are copied, or while the task is away, the slot holds back the log until the disk is full");
    let cure = if facts.version >= 130_000 {
        set_limit((copy.saturating_mul(2)).div_ceil(SMALL_COPY_BYTES).max(10))
    } else {
        Cure::advice("watch the server's free disk space while the copy runs; a limit exists from PostgreSQL 13 on")
            .sql("SELECT slot_name, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) FROM pg_replication_slots")
    };
    vec![warning("slot.headroom", "server", &error.with_cure(cure))]
}

fn set_limit(gigabytes: u64) -> Cure {
    Cure::advice("set a limit that fits both the copy and the disk")
        .sql(format!("ALTER SYSTEM SET max_slot_wal_keep_size = '{gigabytes}GB'"))
        .sql("SELECT pg_reload_conf()")
        .run_as("superuser")
        .restart(Restart::Reload)
}
