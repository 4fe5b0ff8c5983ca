//! Plain JSON: the row as an object; what happened to it stands in headers, named as Debezium's flattening transformation names them.

use pgferry_model::{Result, Table};

use super::{Encoder, Event, Origin, Tuples};

/// What the event was: `c`, `u`, `d`, `r` or `t`.
pub(crate) const OP: &str = "__op";
/// The table's schema in the source.
pub(crate) const SCHEMA: &str = "__source_schema";
/// The table in the source.
pub(crate) const TABLE: &str = "__source_table";
/// Where the transaction's commit record begins.
pub(crate) const LSN: &str = "__source_lsn";
/// The change's number within its transaction.
pub(crate) const ORDER: &str = "__source_order";
/// When it was committed, in milliseconds since 1970-01-01 UTC.
pub(crate) const TS_MS: &str = "__source_ts_ms";

/// One table's part of every record.
pub(super) struct Envelope {
    schema: Vec<u8>,
    table: Vec<u8>,
}

impl Envelope {
    pub(super) fn new(table: &Table) -> Self {
        Envelope { schema: table.name.schema.as_bytes().to_vec(), table: table.name.name.as_bytes().to_vec() }
    }

    /// The row: of a delete without a key the old one, as nothing else would name it.
    pub(super) fn write(
        &self,
        encoder: &Encoder,
        event: Event,
        tuples: Tuples<'_>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        match (event, tuples.after, tuples.before) {
            (Event::Truncate, ..) => Ok(()),
            (_, Some(after), _) => encoder.object(after, tuples, out),
            (_, None, Some(before)) => encoder.object(before, tuples, out),
            (_, None, None) => Ok(()),
        }
    }

    pub(super) fn headers(&self, event: Event, origin: &Origin, headers: &mut Vec<(&'static str, Vec<u8>)>) {
        headers.push((OP, event.letter().as_bytes().to_vec()));
        headers.push((SCHEMA, self.schema.clone()));
        headers.push((TABLE, self.table.clone()));
        headers.push((LSN, origin.lsn.to_string().into_bytes()));
        headers.push((ORDER, origin.order.to_string().into_bytes()));
        headers.push((TS_MS, origin.committed_at_ms.to_string().into_bytes()));
    }
}
