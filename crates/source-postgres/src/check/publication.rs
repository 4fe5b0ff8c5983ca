//! The publication: there, complete, with every operation, older than the slot.

use pgferry_model::{Cure, Error, Finding};
use pgferry_postgres::{quote_identifier, quote_literal};

use super::facts::Facts;
use super::{failed, warn, warning};
use crate::config::Manage;
use crate::error;
use crate::replication::publication::not_published;

pub(super) fn exists(facts: &Facts) -> Vec<Finding> {
    if !facts.streams() {
        return Vec::new();
    }
    let replication = &facts.config.replication;
    let name = replication.publication.as_str();
    if let Some(publication) = &facts.publication {
        let whole = if publication.all_tables { ", for all tables" } else { "" };
        return vec![Finding::passed("publication.exists", name, format!("exists{whole}"))];
    }
    match (&facts.slot, replication.manage) {
        (Some(_), Manage::Never) => {
            vec![failed("publication.exists", name, &error::publication_gone(replication, &facts.statement))]
        }
        (None, manage) if manage == Manage::Never || !facts.may_publish => {
            vec![failed(
                "publication.exists",
                name,
                &error::publication_missing(replication, &facts.statement),
            )]
        }
        // A first start makes it; one that goes on with a stored position refuses.
        (Some(_), _) => {
            vec![warning("publication.exists", name, &error::publication_gone(replication, &facts.statement))]
        }
        (None, _) => vec![Finding::passed("publication.exists", name, "does not exist; the start makes it")],
    }
}

pub(super) fn tables(facts: &Facts) -> Vec<Finding> {
    let (true, Some(publication)) = (facts.streams(), &facts.publication) else { return Vec::new() };
    let replication = &facts.config.replication;
    let name = replication.publication.as_str();
    if facts.missing.is_empty() {
        let count = facts.selection.as_ref().map_or(0, |selection| selection.published.len());
        return vec![Finding::passed("publication.tables", name, format!("has all of {count} tables"))];
    }
    let error = not_published(name, publication, &facts.missing, &facts.statement);
    let finding = if replication.manage == Manage::Never || publication.all_tables || !facts.may_publish {
        failed
    } else {
        warning
    };
    vec![finding("publication.tables", name, &error)]
}

/// Operations that the publication leaves out never reach the target.
pub(super) fn operations(facts: &Facts) -> Vec<Finding> {
    let (true, Some(publication)) = (facts.streams(), &facts.publication) else { return Vec::new() };
    let name = facts.config.replication.publication.as_str();
    let truncates = facts.version >= 110_000;
    let silent: Vec<&str> =
        publication.silent.iter().copied().filter(|word| truncates || *word != "truncate").collect();
    if silent.is_empty() {
        return vec![Finding::passed("publication.operations", name, "publishes every operation")];
    }
    let all = if truncates { "insert, update, delete, truncate" } else { "insert, update, delete" };
    vec![warn(
        "publication.operations",
        name,
        error::PUBLICATION_OPERATIONS,
        format!("does not publish {}", silent.join(", ")),
        "these operations never arrive, so the target comes to differ from the source",
        Cure::advice("publish every operation, unless the target is meant to differ")
            .sql(format!(
                "ALTER PUBLICATION {} SET (publish = {})",
                quote_identifier(name),
                quote_literal(all)
            ))
            .run_as("owner of the publication"),
    )]
}

/// The catalog does not say when a publication was made; its row's transaction, compared with the slot's catalog horizon, does in part.
pub(super) fn older_than_slot(facts: &Facts) -> Vec<Finding> {
    let (true, Some(publication), Some(slot_age)) = (facts.streams(), &facts.publication, facts.slot_age)
    else {
        return Vec::new();
    };
    let name = facts.config.replication.publication.as_str();
    if publication.age > slot_age {
        return vec![Finding::passed("publication.age", name, "is older than the slot's place in the log")];
    }
    let error: Error = error::publication_after_slot(&facts.config.replication);
    let error = error.with_cause(
        "the publication was made or altered after the place in the log where the slot may stand; if it was made then, the log between cannot be decoded with it",
    );
    vec![warning("publication.age", name, &error)]
}
