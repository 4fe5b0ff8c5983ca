//! The task's slot.

use pgferry_model::Finding;

use super::facts::Facts;
use super::failed;
use crate::config::Manage;
use crate::error;

pub(super) fn usable(facts: &Facts) -> Vec<Finding> {
    if !facts.streams() {
        return Vec::new();
    }
    let replication = &facts.config.replication;
    let name = replication.slot.as_str();
    let Some(slot) = &facts.slot else {
        if replication.manage == Manage::Never {
            return vec![failed("slot.exists", name, &error::slot_missing(replication, None))];
        }
        return vec![Finding::passed("slot.exists", name, "does not exist; the start makes it")];
    };
    let mut findings = vec![Finding::passed("slot.exists", name, "exists")];
    match slot.verify_usable(name) {
        Err(error) => findings.push(failed("slot.usable", name, &error)),
        Ok(()) => {
            let at = slot.confirmed.map(|at| format!(", stands at {at}")).unwrap_or_default();
            let status =
                slot.wal_status.as_deref().map(|status| format!(", its log is {status}")).unwrap_or_default();
            findings.push(Finding::passed(
                "slot.usable",
                name,
                format!("pgoutput, this database{at}{status}"),
            ));
        }
    }
    if slot.active_pid.is_some() {
        findings.push(super::warning("slot.active", name, &facts.slot_user));
    }
    findings
}
