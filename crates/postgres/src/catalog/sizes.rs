//! How large the heaps are, for planning chunks and for progress.
//!
//! Why not one plain query: the size functions lock what they measure, so a single table in the middle of a rewrite would hold up
//! the whole catalog. What is locked keeps the size of its last VACUUM or ANALYZE; sizes plan chunks, they do not bound them.
//! Why not `pg_table_size`: it looks for twelve files of each table, where these are two.

use std::collections::HashMap;

use pgferry_model::{Error, Result};

use super::{CatalogTable, number};
use crate::Session;
use crate::error::ServerError;

/// Longest wait for a lock that came up after the look at `pg_locks`.
const LOCK_TIMEOUT_MS: u32 = 2_000;
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Replaces the catalog's stored sizes by measured ones where that needs no waiting.
pub(super) async fn read_sizes(session: &mut Session, tables: &mut [CatalogTable]) -> Result<()> {
    let heaps = tables.iter().flat_map(|table| &table.heaps);
    let oids: Vec<String> = heaps.map(|heap| heap.oid.to_string()).collect();
    if oids.is_empty() {
        return Ok(());
    }
    // Statements in one message are one transaction, so the limit ends with them, whatever becomes of them (PostgreSQL docs,
    // "Multiple Statements in a Simple Query"). OFFSET 0 keeps the functions from being called for what the locks rule out.
    let asked = session
        .simple_query(&format!(
            "SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}; \
             SELECT oid, heap + coalesce(toast, 0), heap / pg_catalog.current_setting('block_size')::bigint FROM \
             (SELECT c.oid, pg_catalog.pg_relation_size(c.oid) AS heap, \
             pg_catalog.pg_relation_size(nullif(c.reltoastrelid, 0)) AS toast \
             FROM pg_catalog.pg_class c WHERE c.oid IN ({}) AND c.oid NOT IN (SELECT l.relation \
             FROM pg_catalog.pg_locks l WHERE l.mode = 'AccessExclusiveLock' AND l.relation IS NOT NULL \
             AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())) \
             OFFSET 0) s WHERE heap IS NOT NULL",
            oids.join(",")
        ))
        .await;
    let rows = match asked {
        Ok(rows) => rows,
        Err(failure) if is_lock_timeout(&failure) => return Ok(()),
        Err(failure) => return Err(failure),
    };
    let mut sizes: HashMap<u32, (u64, u64)> = HashMap::with_capacity(rows.len());
    for row in &rows {
        sizes.insert(number(row, 0)?, (number(row, 1)?, number(row, 2)?));
    }
    for heap in tables.iter_mut().flat_map(|table| &mut table.heaps) {
        if let Some(&(bytes, pages)) = sizes.get(&heap.oid) {
            (heap.bytes, heap.pages) = (bytes, pages);
        }
    }
    Ok(())
}

fn is_lock_timeout(failure: &Error) -> bool {
    let server = std::error::Error::source(failure).and_then(|origin| origin.downcast_ref::<ServerError>());
    server.is_some_and(|error| error.sqlstate == LOCK_NOT_AVAILABLE)
}
