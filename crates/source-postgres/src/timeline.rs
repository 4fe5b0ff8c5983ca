//! Whether a server that was promoted still has what the target holds.
//!
//! ```text
//!   timeline 1  ──────┬── switch ──── lost with the old primary: a position here is not in the new one's history
//!   timeline 2        └────────────────────> now
//! ```
//!
//! Invariant: a stored position is followed only on a timeline that contains it. Behind the switch the new timeline gives the same positions to
//! other changes: they would count as delivered, and the lost ones would stay in the target.
//!
//! Facts: PostgreSQL docs, "Streaming Replication Protocol" (`TIMELINE_HISTORY`); "Continuous Archiving", "Timelines". A line of a history is the
//! parent's number, the position where it was left, and a reason.

use pgferry_model::{Position, Result};
use pgferry_postgres::Purpose;

use crate::control::{PostgresControl, column, query};
use crate::error;

/// Refuses a position of the timeline `stored` that is not in the history of `now`.
pub(crate) async fn verify_contains(
    control: &PostgresControl,
    position: Position,
    stored: u32,
    now: u32,
) -> Result<()> {
    if stored == now || stored == 0 {
        return Ok(());
    }
    let mut session = control.connect(Purpose::Replication).await?;
    // The first timeline has no history.
    let history = if now > 1 {
        column(&query(&mut session, &format!("TIMELINE_HISTORY {now}")).await?, 0, 1)?
    } else {
        String::new()
    };
    session.close().await?;
    match left_at(&history, stored) {
        Some(switch) if position <= switch => {
            tracing::info!(stored, now, %switch, %position, "the server was promoted; its history has all that the target holds");
            Ok(())
        }
        left => Err(error::other_timeline(position, stored, now, left)),
    }
}

/// Where a timeline was left; `None`: it is no ancestor.
fn left_at(history: &str, timeline: u32) -> Option<Position> {
    history.lines().find_map(|line| {
        let mut parts = line.split_whitespace();
        let parent: u32 = parts.next()?.parse().ok()?;
        if parent == timeline { parts.next()?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_tells_where_each_ancestor_was_left() {
        let history =
            "1\t0/3000148\tno recovery target specified\n\n# a comment\n3\t0/5000000\tbefore 2020-01-01\n";
        assert_eq!(left_at(history, 1), Some(Position::from_lsn(0x0300_0148)));
        assert_eq!(left_at(history, 3), Some(Position::from_lsn(0x0500_0000)));
        assert_eq!(left_at(history, 2), None);
        assert_eq!(left_at("", 1), None);
    }
}
