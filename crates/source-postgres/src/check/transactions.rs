//! Open transactions, for which the creation of a slot waits.

use pgferry_model::{Cure, Finding};

use super::facts::Facts;
use super::warn;
use crate::error;

pub(super) fn open(facts: &Facts) -> Vec<Finding> {
    if !facts.streams() || facts.slot.is_some() {
        return Vec::new();
    }
    if facts.transactions.is_empty() {
        return vec![Finding::passed(
            "slot.creation",
            "server",
            "no open transaction would hold up the slot",
        )];
    }
    let one = |transaction: &super::facts::OpenTransaction| {
        let prepared = transaction.pid.strip_prefix("prepared ");
        let cure = match prepared {
            Some(name) => {
                let name = pgferry_postgres::quote_literal(name);
                Cure::advice("commit it or roll it back")
                    .sql(format!("ROLLBACK PREPARED {name}"))
                    .run_as("its owner, in its database")
            }
            None => Cure::advice("commit it, or end its session")
                .sql(format!("SELECT pg_terminate_backend({})", transaction.pid))
                .run_as("superuser, or the same role"),
        };
        let who =
            if prepared.is_some() { transaction.pid.clone() } else { format!("process {}", transaction.pid) };
        warn(
            "slot.creation",
            who.as_str(),
            error::SLOT_CREATION_BLOCKED,
            format!(
                "a transaction of {} is open for {} ({})",
                transaction.user, transaction.open_for, transaction.state
            ),
            "a slot can be made only when every transaction that was open before has ended; the start waits for it",
            cure,
        )
    };
    facts.transactions.iter().map(one).collect()
}
