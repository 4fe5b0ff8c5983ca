//! What the server has a fixed number of: walsenders, slots, connections.

use pgferry_model::{Error, Finding};

use super::facts::Facts;
use super::{bytes, failed, warning};
use crate::error;
use crate::refused::raise;

/// The stream's walsender, and one for a snapshot beside it.
const WALSENDERS_NEEDED: u64 = 1;
/// Catalog, exporter, and a spare one.
const CONNECTIONS_BESIDES: u64 = 3;

fn limit(facts: &Facts, setting: &str) -> u64 {
    facts.number(setting).and_then(|limit| u64::try_from(limit).ok()).unwrap_or(0)
}

pub(super) fn walsenders(facts: &Facts) -> Vec<Finding> {
    if !facts.streams() {
        return Vec::new();
    }
    let max = limit(facts, "max_wal_senders");
    // The slot's own reader is ours, when the task runs already.
    let ours = u64::from(facts.slot.as_ref().is_some_and(|slot| slot.active_pid.is_some()));
    let used = facts.walsenders.saturating_sub(ours);
    if used + WALSENDERS_NEEDED > max {
        let error = error::walsenders_exhausted();
        let error = error.with_cause(format!(
            "{used} of max_wal_senders = {max} are in use by standbys, backups and change streams"
        ));
        return vec![failed("server.walsenders", "server", &error)];
    }
    vec![Finding::passed("server.walsenders", "server", format!("{used} of {max} walsenders in use"))]
}

pub(super) fn slots(facts: &Facts) -> Vec<Finding> {
    if !facts.streams() {
        return Vec::new();
    }
    let max = limit(facts, "max_replication_slots");
    let used = facts.slots.len() as u64;
    let ours = &facts.config.replication.slot;
    let idle = facts.slots.iter().filter(|slot| !slot.active && slot.name != *ours);
    let inactive: Vec<(String, String)> =
        idle.map(|slot| (slot.name.clone(), bytes(slot.retained))).collect();
    let list: Vec<String> = inactive.iter().map(|(name, held)| format!("{name} holding {held}")).collect();
    if facts.slot.is_none() && used >= max {
        return vec![failed("server.slots", "server", &error::slots_exhausted(&inactive))];
    }
    if facts.slot.is_some() && used >= max {
        // Only a second, temporary slot is wanting: for tables that are copied later.
        return vec![warning("server.slots", "server", &error::slots_exhausted(&inactive))];
    }
    let idle = if list.is_empty() { String::new() } else { format!("; inactive: {}", list.join(", ")) };
    vec![Finding::passed("server.slots", "server", format!("{used} of {max} slots in use{idle}"))]
}

pub(super) fn connections(facts: &Facts) -> Vec<Finding> {
    let reserved = limit(facts, "superuser_reserved_connections") + limit(facts, "reserved_connections");
    let max = limit(facts, "max_connections").saturating_sub(reserved);
    let left = max.saturating_sub(facts.connections);
    let needed = facts.config.workers as u64 + CONNECTIONS_BESIDES;
    if left >= needed {
        let detail = format!("{left} connections left, {needed} needed");
        return vec![Finding::passed("server.connections", "server", detail)];
    }
    let error = Error::task_broken(
        error::CONNECTIONS_SHORT,
        format!("{left} connections are left, the copy with {} workers takes {needed}", facts.config.workers),
    )
    .with_cause(format!(
        "{} of {max} are in use; others may be refused while the copy runs",
        facts.connections
    ))
    .with_cure(
        raise(
            "use fewer workers (initial_copy_workers in the task file), or allow more and restart the server",
            "max_connections",
            "200",
        )
        .line("initial_copy_workers = 1"),
    );
    let finding = if left < CONNECTIONS_BESIDES + 1 { failed } else { warning };
    vec![finding("server.connections", "server", &error)]
}
