//! What the target and the slot said after each end of the program, and what may follow it.
//!
//! Invariants checked: what the target holds never goes back, neither the position nor a table's cut, state or chunks; the slot's
//! confirmed position is never beyond the target's and never goes back.
//!
//! Limits: a server that ended at once may have forgotten the slot's last confirmed positions, they are written with its checkpoints
//! (PostgreSQL source, `LogicalConfirmReceivedLocation`); a table that was resynced begins anew.

use anyhow::{Context, Result, ensure};
use pgferry_model::{Position, Progress, TableName, TableProgress, TableState};

/// What may have happened since the last look, besides kills.
#[derive(Clone, Debug, Default)]
pub(super) struct Since {
    /// The server ended at once.
    pub server_ended: bool,
    /// Tables that may have been forgotten, to be copied again.
    pub resynced: Vec<TableName>,
}

/// The last look.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    held: Option<Progress>,
    confirmed: Option<Position>,
}

impl Ledger {
    /// Compares a look with the one before it, and keeps it. `confirmed`: the slot's, where there is a slot.
    pub(super) fn note(
        &mut self,
        held: Option<Progress>,
        confirmed: Option<Position>,
        since: &Since,
    ) -> Result<()> {
        if let Some(before) = &self.held {
            let now = held.as_ref().context("the target has forgotten the task")?;
            ensure!(now.epoch >= before.epoch, "the epoch went back: {} -> {}", before.epoch, now.epoch);
            ensure!(
                now.position >= before.position,
                "the target's position went back: {:?} -> {:?}",
                before.position,
                now.position
            );
            for table in &before.tables {
                let after = now.table(&table.name);
                let after = after.with_context(|| format!("the target has forgotten {}", table.name))?;
                if !since.resynced.contains(&table.name) {
                    follows(table, after).with_context(|| table.name.to_string())?;
                }
            }
        }
        self.slot_follows(held.as_ref().and_then(|held| held.position), confirmed, since)?;
        (self.held, self.confirmed) = (held, confirmed);
        Ok(())
    }

    fn slot_follows(
        &self,
        position: Option<Position>,
        confirmed: Option<Position>,
        since: &Since,
    ) -> Result<()> {
        if let Some(position) = position {
            let confirmed = confirmed.context("the slot is gone, the target's position is not")?;
            ensure!(
                confirmed <= position,
                "the slot is confirmed up to {confirmed}, the target holds {position} only"
            );
        }
        let (Some(before), Some(now)) = (self.confirmed, confirmed) else {
            ensure!(self.confirmed.is_none(), "the slot is gone");
            return Ok(());
        };
        ensure!(
            now >= before || since.server_ended,
            "the slot's confirmed position went back: {before} -> {now}"
        );
        ensure!(
            position.is_some() || now == before,
            "the slot's confirmed position moved from {before} to {now}, and the target holds none"
        );
        Ok(())
    }

    /// What the target held at the last look.
    pub(super) fn held(&self) -> Option<&Progress> {
        self.held.as_ref()
    }
}

fn rank(state: &TableState) -> u8 {
    match state {
        TableState::Waiting => 0,
        TableState::Copying => 1,
        TableState::Copied | TableState::CatchingUp | TableState::Live | TableState::Paused => 2,
        TableState::Broken { .. } => 3,
    }
}

fn follows(before: &TableProgress, now: &TableProgress) -> Result<()> {
    ensure!(now.cut >= before.cut, "its cut went back: {:?} -> {:?}", before.cut, now.cut);
    ensure!(
        rank(&now.state) >= rank(&before.state),
        "its state went back: {:?} -> {:?}",
        before.state,
        now.state
    );
    let lost = before.chunks_done.iter().find(|chunk| !now.chunks_done.contains(chunk));
    let copied_on = now.cut == before.cut && now.state == TableState::Copying;
    ensure!(lost.is_none() || !copied_on, "its chunk {lost:?} is not done any more");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lsn: u64) -> Option<Position> {
        Some(Position::from_lsn(lsn))
    }

    fn held(position: Option<Position>, state: TableState, cut: u64, chunks: &[u32]) -> Option<Progress> {
        let table = TableProgress {
            name: TableName::new("public", "t"),
            state,
            cut: at(cut),
            chunks_done: chunks.to_vec(),
        };
        Some(Progress { epoch: 1, position, source: None, tables: vec![table] })
    }

    fn second(
        first: (Option<Progress>, Option<Position>),
        now: (Option<Progress>, Option<Position>),
    ) -> bool {
        let mut ledger = Ledger::default();
        ledger.note(first.0, first.1, &Since::default()).expect("the first look is good");
        ledger.note(now.0, now.1, &Since::default()).is_ok()
    }

    #[test]
    fn what_moves_on_is_accepted() {
        let live = || held(at(10), TableState::Live, 5, &[]);
        assert!(second((None, None), (live(), at(10))));
        assert!(second((live(), at(9)), (held(at(20), TableState::Live, 5, &[]), at(20))));
        let copying = |cut, chunks: &[u32]| held(at(5), TableState::Copying, cut, chunks);
        assert!(second((copying(5, &[1, 2]), at(5)), (copying(5, &[1, 2, 3]), at(5))));
        assert!(second((copying(5, &[1, 2]), at(5)), (copying(7, &[]), at(5))), "a new cut begins anew");
    }

    #[test]
    fn what_goes_back_is_found() {
        let live = |position| held(at(position), TableState::Live, 5, &[]);
        assert!(!second((live(10), at(5)), (live(9), at(5))), "position");
        assert!(!second((live(10), at(5)), (None, at(5))), "task");
        assert!(!second((live(10), at(5)), (live(10), at(4))), "slot");
        assert!(!second((live(10), at(5)), (live(10), None)), "slot gone");
        assert!(!second((live(10), at(5)), (live(10), at(11))), "slot ahead");
        assert!(!second((None, at(5)), (None, at(6))), "slot moves without a target");
        assert!(!second((live(10), at(5)), (held(at(10), TableState::Copying, 5, &[]), at(5))), "state");
        assert!(!second((live(10), at(5)), (held(at(10), TableState::Live, 4, &[]), at(5))), "cut");
        let copying = |chunks: &[u32]| held(at(5), TableState::Copying, 5, chunks);
        assert!(!second((copying(&[1, 2]), at(5)), (copying(&[1]), at(5))), "chunk");
    }

    #[test]
    fn a_resync_and_a_server_that_ended_excuse_what_is_theirs() {
        let mut ledger = Ledger::default();
        ledger.note(held(at(10), TableState::Live, 5, &[]), at(9), &Since::default()).expect("good");
        let since = Since { server_ended: true, resynced: vec![TableName::new("public", "t")] };
        ledger.note(held(at(10), TableState::Waiting, 5, &[]), at(7), &since).expect("excused");
    }
}
