//! Looks at everything that a run will need and tells all of it at once: findings with cause, cure, who runs it, restart or not.
//!
//! ```text
//!   server ──a few queries──> Facts ──every check in CHECKS──> findings, in the order of work
//! ```
//!
//! Invariants: no check stops another one; a check reads facts only, it asks nobody and changes nothing; what passed is a finding, too.
//! An error means that the server could not be asked.
//!
//! A new check is a function from [`Facts`] to findings in the file of its concern, and a line in [`CHECKS`].

mod capacity;
mod facts;
mod headroom;
mod keys;
mod privileges;
mod publication;
mod server;
mod shape;
mod slot;
mod transactions;

use pgferry_model::{Code, Cure, Error, Finding, Outcome, Result};

use crate::control::PostgresControl;
use facts::Facts;

const CHECKS: &[fn(&Facts) -> Vec<Finding>] = &[
    server::version,
    server::standby,
    server::wal_level,
    privileges::replication,
    server::stream_connection,
    capacity::walsenders,
    capacity::slots,
    capacity::connections,
    server::wal_sender_timeout,
    server::decoding_memory,
    shape::selection,
    shape::kinds,
    publication::exists,
    publication::tables,
    publication::operations,
    publication::older_than_slot,
    slot::usable,
    headroom::log_kept,
    transactions::open,
    privileges::select,
    privileges::row_security,
    keys::identity,
    keys::named_keys,
    shape::columns,
    shape::partitions,
    shape::children,
    shape::truncate,
    shape::conditions,
];

/// Runs every check.
pub(crate) async fn check(control: &PostgresControl) -> Result<Vec<Finding>> {
    let facts = facts::gather(control).await?;
    control.release().await;
    let mut findings: Vec<Finding> = CHECKS.iter().flat_map(|check| check(&facts)).collect();
    // What a connection was refused for is told better by the check that knows the setting behind it.
    let told = |finding: &Finding| {
        finding.check == "server.replication"
            && finding.code.is_some()
            && findings.iter().any(|other| other.check != finding.check && other.code == finding.code)
    };
    if let Some(at) = findings.iter().position(told) {
        findings.remove(at);
    }
    Ok(findings)
}

fn failed(check: &'static str, subject: impl Into<String>, error: &Error) -> Finding {
    Finding::from_error(check, subject, Outcome::Failed, error)
}

fn warning(check: &'static str, subject: impl Into<String>, error: &Error) -> Finding {
    Finding::from_error(check, subject, Outcome::Warning, error)
}

/// A warning that no run stops with.
fn warn(
    check: &'static str,
    subject: impl Into<String>,
    code: Code,
    detail: impl Into<String>,
    cause: &str,
    cure: Cure,
) -> Finding {
    let error = Error::task_broken(code, detail).with_cause(cause).with_cure(cure);
    warning(check, subject, &error)
}

/// Bytes for people.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_are_told_in_the_unit_that_fits() {
        assert_eq!(super::bytes(1023), "1023 B");
        assert_eq!(super::bytes(3 << 29), "1.5 GB");
        assert_eq!(super::bytes(u64::MAX), "16777216.0 TB");
    }
}
