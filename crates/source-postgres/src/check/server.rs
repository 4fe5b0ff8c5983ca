//! The server as a whole: version, role in a cluster, settings.

use pgferry_model::{Cure, Error, Finding, Restart};

use super::facts::Facts;
use super::{failed, warn};
use crate::error;

const SUBJECT: &str = "server";

pub(super) fn version(facts: &Facts) -> Vec<Finding> {
    if facts.version >= 100_000 {
        return vec![Finding::passed(
            "server.version",
            SUBJECT,
            format!("PostgreSQL {}", facts.version_text),
        )];
    }
    let error = Error::task_broken(error::VERSION, format!("PostgreSQL {} is too old", facts.version_text))
        .with_cause("publications and the output plugin pgoutput exist from PostgreSQL 10")
        .with_cure(Cure::advice("upgrade the server to PostgreSQL 10 or later"));
    vec![failed("server.version", SUBJECT, &error)]
}

pub(super) fn standby(facts: &Facts) -> Vec<Finding> {
    if !facts.in_recovery {
        return vec![Finding::passed("server.standby", SUBJECT, "a primary")];
    }
    if !facts.streams() {
        return vec![Finding::passed("server.standby", SUBJECT, "a standby; enough for a snapshot")];
    }
    if facts.version < 160_000 {
        return vec![failed("server.standby", SUBJECT, &error::standby_cannot_decode())];
    }
    let mut findings = Vec::new();
    if !facts.missing.is_empty() || facts.publication.is_none() {
        findings.push(failed("server.standby", SUBJECT, &error::standby_read_only(&facts.statement)));
    }
    if facts.settings.get("hot_standby_feedback").is_some_and(|value| value == "off") {
        findings.push(warn(
            "server.standby",
            SUBJECT,
            error::STANDBY,
            "hot_standby_feedback is off: the primary may remove catalog rows that the slot needs",
            "a slot on a standby is invalidated when vacuum on the primary removes what it still has to decode",
            Cure::advice("turn it on at this standby, and let it use a physical slot on the primary")
                .sql("ALTER SYSTEM SET hot_standby_feedback = on")
                .sql("SELECT pg_reload_conf()")
                .run_as("superuser, on the standby")
                .restart(Restart::Reload),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::passed("server.standby", SUBJECT, "a standby that can decode"));
    }
    findings
}

/// Whether a connection of the change stream's kind gets through: a pooler on the way may pass every other one.
pub(super) fn stream_connection(facts: &Facts) -> Vec<Finding> {
    let check = "server.replication";
    match &facts.stream_connection {
        None => Vec::new(),
        Some(Ok(())) => vec![Finding::passed(check, SUBJECT, "lets a replication connection in")],
        Some(Err(failure)) => vec![failed(check, SUBJECT, failure)],
    }
}

pub(super) fn wal_level(facts: &Facts) -> Vec<Finding> {
    if !facts.streams() {
        return Vec::new();
    }
    let level = facts.settings.get("wal_level").map_or("unknown", String::as_str);
    if level == "logical" {
        return vec![Finding::passed("server.wal_level", SUBJECT, "wal_level is logical")];
    }
    vec![failed("server.wal_level", SUBJECT, &error::wal_level())]
}

pub(super) fn wal_sender_timeout(facts: &Facts) -> Vec<Finding> {
    if !facts.streams() {
        return Vec::new();
    }
    match facts.number("wal_sender_timeout") {
        Some(0) => vec![warn(
            "server.wal_sender_timeout",
            SUBJECT,
            error::SETTING,
            "wal_sender_timeout is 0: the server never gives up a dead connection",
            "after a broken network the old connection holds the slot until TCP notices, and the task cannot go on",
            Cure::advice("set a limit, such as the default")
                .sql("ALTER SYSTEM SET wal_sender_timeout = '60s'")
                .sql("SELECT pg_reload_conf()")
                .run_as("superuser")
                .restart(Restart::Reload),
        )],
        Some(limit) => {
            let detail = format!("wal_sender_timeout is {} s", limit / 1000);
            vec![Finding::passed("server.wal_sender_timeout", SUBJECT, detail)]
        }
        None => Vec::new(),
    }
}

/// 13+: from which size on the server streams (14+) or spills a transaction; a note, never a failure.
pub(super) fn decoding_memory(facts: &Facts) -> Vec<Finding> {
    const SMALL_KB: i64 = 1024;
    let Some(limit) = facts.number("logical_decoding_work_mem").filter(|_| facts.streams()) else {
        return Vec::new();
    };
    if limit >= SMALL_KB {
        let detail = format!("logical_decoding_work_mem is {} MB", limit / 1024);
        return vec![Finding::passed("server.decoding_memory", SUBJECT, detail)];
    }
    vec![warn(
        "server.decoding_memory",
        SUBJECT,
        error::SETTING,
        format!("logical_decoding_work_mem is {limit} kB: small transactions go to the server's disk too"),
        "a transaction above the limit is spilled or streamed in progress, which costs more than decoding it in memory",
        Cure::advice("raise it for the role's own connections")
            .sql("ALTER SYSTEM SET logical_decoding_work_mem = '64MB'")
            .sql("SELECT pg_reload_conf()")
            .run_as("superuser")
            .restart(Restart::Reload),
    )]
}
