//! Whether the catalog still says what was read of it: what takes a hundredth of reading it again.
//!
//! Rows that were written since have a newer transaction, those that are gone are missing from the count. Where a transaction was
//! in progress at the mark, what it and later ones have written counts as new, also when it was read: the answer errs on the safe side.

use pgferry_model::Result;

use super::text;
use crate::Session;

/// The catalogs that tables are read from.
const CATALOGS: [&str; 6] =
    ["pg_class", "pg_attribute", "pg_type", "pg_index", "pg_inherits", "pg_namespace"];

/// The catalog at one moment.
#[derive(Clone, Debug)]
pub struct CatalogMark {
    /// The oldest transaction in progress, or the next one.
    oldest: String,
    rows: Vec<String>,
}

/// Marks the catalog, before it is read.
pub async fn mark_catalog(session: &mut Session) -> Result<CatalogMark> {
    let counts: Vec<String> = CATALOGS
        .iter()
        .map(|catalog| format!("(SELECT pg_catalog.count(*) FROM pg_catalog.{catalog})"))
        .collect();
    let sql = format!(
        "SELECT pg_catalog.txid_snapshot_xmin(pg_catalog.txid_current_snapshot()) & 4294967295, {}",
        counts.join(", ")
    );
    let rows = session.simple_query(&sql).await?;
    let row = rows.first().map(Vec::as_slice).unwrap_or_default();
    let row: Vec<String> = row.iter().map(|value| value.clone().unwrap_or_default()).collect();
    let (oldest, rows) =
        row.split_first().map(|(first, rest)| (first.clone(), rest.to_vec())).unwrap_or_default();
    Ok(CatalogMark { oldest, rows })
}

/// Whether a session's snapshot shows the same catalog as at the mark. Ids are compared by their age, which holds for two thousand
/// million transactions.
pub async fn catalog_is_unchanged(session: &mut Session, mark: &CatalogMark) -> Result<bool> {
    let same: Vec<String> = CATALOGS
        .iter()
        .zip(&mark.rows)
        .map(|(catalog, rows)| {
            format!(
                "(SELECT pg_catalog.count(*) = {rows} AND NOT coalesce(pg_catalog.bool_or(pg_catalog.age(c.xmin) <= now.age), false) \
                 FROM pg_catalog.{catalog} c)"
            )
        })
        .collect();
    let sql = format!(
        "SELECT {} FROM (SELECT pg_catalog.age('{}'::pg_catalog.xid) OFFSET 0) now(age)",
        same.join(" AND "),
        mark.oldest
    );
    let rows = session.simple_query(&sql).await?;
    Ok(rows.first().is_some_and(|row| text(row, 0).is_ok_and(|same| same == "t")))
}
