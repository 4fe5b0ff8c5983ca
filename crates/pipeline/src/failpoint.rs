//! Named places where a crash test ends the process.
//!
//! Armed by the environment only: `PGFERRY_FAILPOINT=name:nth` aborts at the `nth` passage (from 1) of `name`. Unarmed, a
//! passage is one load of a constant. `NAMES` lists every failpoint; the crash tests go through the list.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every failpoint's name.
pub const NAMES: &[&str] = &[
    "handover.before_begin_copy",
    "handover.after_begin_copy",
    "handover.after_chunk",
    "handover.before_copied",
    "handover.after_copied",
    "run.before_apply",
    "run.after_apply",
    "run.before_confirm",
    "run.after_confirm",
    "source.after_publication_created",
    "source.after_slot_created",
    "source.mid_copy",
    "source.spool_written",
    "target.before_commit",
    "target.after_commit",
    "target.load_before_commit",
    "target.load_after_commit",
    "target.slice_kept",
    "target.table_created",
];

struct Armed {
    name: String,
    nth: u64,
    passed: AtomicU64,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Passes a failpoint; aborts the process when it is armed and this is the passage.
#[inline]
pub fn pass(name: &str) {
    if let Some(armed) = ARMED.get_or_init(from_environment)
        && armed.name == name
        && armed.passed.fetch_add(1, Ordering::SeqCst) + 1 == armed.nth
    {
        std::process::abort();
    }
}

fn from_environment() -> Option<Armed> {
    let setting = std::env::var("PGFERRY_FAILPOINT").ok()?;
    let (name, nth) = setting.split_once(':').unwrap_or((&setting, "1"));
    let nth = nth.parse().ok()?;
    Some(Armed { name: name.to_owned(), nth, passed: AtomicU64::new(0) })
}
