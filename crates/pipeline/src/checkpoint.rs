//! Turns receipts into a confirmed position; the only place that may tell the source to forget.
//!
//! ```text
//!   receipts ──> durable (monotone) ──> ChangeStream::confirm
//! ```
//!
//! Invariants: confirmed <= durable in the target; neither moves back; an accepted receipt moves nothing. An idle position
//! is stored in the target before it is confirmed, so a slot that is ahead of the stored position always means lost changes.

use pgferry_model::Position;

use crate::{ChangeStream, Receipt};

/// What is durable and what the source knows of it.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    durable: Position,
    confirmed: Position,
}

impl Checkpoint {
    /// Starts with what the target held when it was opened.
    pub(crate) fn new(durable: Position) -> Self {
        Checkpoint { durable, confirmed: Position::ZERO }
    }

    /// Everything at or before it is durable.
    pub(crate) fn durable(&self) -> Position {
        self.durable
    }

    /// Takes a receipt. Returns whether something new is durable.
    pub(crate) fn receipt(&mut self, receipt: Receipt) -> bool {
        match receipt {
            Receipt::Durable(position) if position > self.durable => {
                self.durable = position;
                true
            }
            Receipt::Durable(_) | Receipt::Accepted => false,
        }
    }

    /// Tells the source, once per new position.
    pub(crate) fn confirm(&mut self, stream: &mut dyn ChangeStream) {
        if self.durable > self.confirmed {
            stream.confirm(self.durable);
            self.confirmed = self.durable;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_durable_receipts_move_it_and_never_back() {
        let at = Position::from_lsn;
        let mut checkpoint = Checkpoint::new(at(10));
        assert!(!checkpoint.receipt(Receipt::Accepted));
        assert!(!checkpoint.receipt(Receipt::Durable(at(9))));
        assert!(checkpoint.receipt(Receipt::Durable(at(20))));
        assert!(!checkpoint.receipt(Receipt::Durable(at(15))));
        assert_eq!(checkpoint.durable(), at(20));
    }
}
