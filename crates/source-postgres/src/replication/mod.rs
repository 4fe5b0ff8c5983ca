//! Logical replication: slot, publication, the change stream and its feedback.

pub(crate) mod feedback;
mod project;
pub(crate) mod publication;
pub(crate) mod slot;
pub mod spool;
pub(crate) mod stream;
pub mod transaction;
pub(crate) mod watch;

use std::path::PathBuf;

use crate::config::PostgresSourceConfig;
use crate::decode::relation_cache::{RelationCache, TableBinding};
use crate::selection::Selection;
use spool::SpoolSettings;
use transaction::Transactions;

/// What turns frames into the selection's changes.
pub(crate) fn transactions(config: &PostgresSourceConfig, selection: &Selection) -> Transactions {
    let known = selection.tables.iter().zip(&selection.bindings).zip(&selection.modifiers);
    let bindings = known.map(|((table, (oid, excluded)), modifiers)| TableBinding {
        table: std::sync::Arc::clone(table),
        oid: Some(*oid),
        excluded: excluded.clone(),
        modifiers: modifiers.clone(),
    });
    let mut relations = RelationCache::new(bindings.collect());
    relations.ask_unknown(selection.by_leaf);
    for (&leaf, &table) in &selection.leaves {
        relations.map_leaf(leaf, table);
    }
    let directory: PathBuf = config.spool_directory.clone().unwrap_or(SpoolSettings::default().directory);
    let (memory_bytes_max, disk_bytes_max) = (config.spool_memory_bytes_max, config.spool_disk_bytes_max);
    let spool = SpoolSettings { memory_bytes_max, disk_bytes_max, directory };
    Transactions::new(relations, spool)
}
