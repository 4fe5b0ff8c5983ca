//! Named places where a test ends the process, or holds it up.
//!
//! Armed by the environment only: `PGFERRY_FAILPOINT=name:nth` aborts at the `nth` passage (from 1) of `name`; `name:nth:milliseconds` lets
//! that passage and every later one take so long, on the thread that passes. Unarmed, a
//! passage is one load of a constant. `NAMES` lists every failpoint; the crash tests go through the list,
//! and one of them compares it with the passages in the code.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Every failpoint's name, in order.
pub const NAMES: &[&str] = &[
    "handover.after_begin_copy",
    "handover.after_chunk",
    "handover.after_copied",
    "handover.before_begin_copy",
    "handover.before_copied",
    "handover.before_stream",
    "resync.after_forget",
    "resync.before_forget",
    "run.after_apply",
    "run.after_confirm",
    "run.after_set_aside",
    "run.before_apply",
    "run.before_confirm",
    "run.before_set_aside",
    "run.opened",
    "run.prepared",
    "run.stream_ended",
    "source.after_cut_created",
    "source.after_publication_created",
    "source.after_slot_created",
    "source.after_status",
    "source.before_status",
    "source.mid_copy",
    "source.mid_transaction",
    "source.spool_replayed",
    "source.spool_written",
    "target.after_commit",
    "target.before_checkpoint",
    "target.before_commit",
    "target.begin_before_commit",
    "target.file_made",
    "target.load_after_commit",
    "target.load_before_commit",
    "target.record_after_commit",
    "target.record_before_commit",
    "target.slice_kept",
    "target.table_created",
];

struct Armed {
    name: String,
    nth: u64,
    /// Instead of the end.
    pause: Option<Duration>,
    passed: AtomicU64,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Passes a failpoint; aborts the process, or waits, when it is armed and this is the passage.
#[inline]
pub fn pass(name: &str) {
    if let Some(armed) = ARMED.get_or_init(from_environment)
        && armed.name == name
    {
        let passage = armed.passed.fetch_add(1, Ordering::SeqCst) + 1;
        match armed.pause {
            Some(pause) if passage >= armed.nth => std::thread::sleep(pause),
            None if passage == armed.nth => std::process::abort(),
            _ => {}
        }
    }
}

fn from_environment() -> Option<Armed> {
    let setting = std::env::var("PGFERRY_FAILPOINT").ok()?;
    let mut parts = setting.split(':');
    let name = parts.next()?.to_owned();
    let nth = parts.next().unwrap_or("1").parse().ok()?;
    let pause = parts.next().map(str::parse).transpose().ok()?.map(Duration::from_millis);
    Some(Armed { name, nth, pause, passed: AtomicU64::new(0) })
}
