//! What the role may do.

use pgferry_model::Finding;

use super::facts::Facts;
use super::failed;
use crate::error;

pub(super) fn replication(facts: &Facts) -> Vec<Finding> {
    if !facts.streams() {
        return Vec::new();
    }
    if facts.may_replicate {
        return vec![Finding::passed("role.replication", facts.user.as_str(), "may replicate")];
    }
    vec![failed("role.replication", facts.user.as_str(), &error::no_replication_role(&facts.user))]
}

/// The copy reads each relation that holds rows: of a partitioned table its leaves, not the root.
pub(super) fn select(facts: &Facts) -> Vec<Finding> {
    let (mut findings, mut readable) = (Vec::new(), 0);
    for (table, entry) in facts.selected() {
        let before = findings.len();
        for heap in &entry.heaps {
            let Some(known) = facts.of(heap.oid) else { continue };
            let carried = |name: &String| table.columns.iter().any(|column| *column.name == **name);
            if !known.may_use_schema || known.unreadable.iter().any(carried) {
                let error = error::permission(&heap.name, &facts.user);
                findings.push(failed("tables.select", heap.name.to_string(), &error));
            }
        }
        readable += usize::from(findings.len() == before);
    }
    if findings.is_empty() {
        findings.push(Finding::passed(
            "tables.select",
            facts.user.as_str(),
            format!("may read all of {readable} tables"),
        ));
    }
    findings
}

pub(super) fn row_security(facts: &Facts) -> Vec<Finding> {
    let heaps = facts.selected().flat_map(|(_, entry)| &entry.heaps);
    let hidden = heaps.filter(|heap| facts.of(heap.oid).is_some_and(|known| known.row_security));
    let findings: Vec<Finding> = hidden
        .map(|heap| {
            failed(
                "tables.row_security",
                heap.name.to_string(),
                &error::row_security(&heap.name, &facts.user),
            )
        })
        .collect();
    if !findings.is_empty() {
        return findings;
    }
    vec![Finding::passed("tables.row_security", facts.user.as_str(), "no table hides rows from this role")]
}
