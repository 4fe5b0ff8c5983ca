//! Decoders of the snapshot and the stream as functions of bytes: what crates/fuzz cannot reach from outside.

use std::sync::Arc;

use pgferry_model::{Batch, CellFormat, Position, Result, Table};

use crate::replication::stream::{Replicated, replicated};
use crate::snapshot::copy_binary::BinaryRows;

/// The rows of a COPY in binary form, message by message.
pub fn copy_binary<'a>(
    table: &Arc<Table>,
    formats: Vec<CellFormat>,
    messages: impl Iterator<Item = &'a [u8]>,
) -> Result<Batch> {
    let (mut batch, mut rows) = (Batch::new(Arc::clone(table)), BinaryRows::new(formats));
    for message in messages {
        rows.take(message, &mut batch)?;
    }
    rows.end()?;
    Ok(batch)
}

/// What CopyData of the change stream holds: a message of pgoutput, or the end of log of a keepalive.
pub fn stream_message(body: &[u8]) -> Result<std::result::Result<&[u8], Position>> {
    Ok(match replicated(body)? {
        Replicated::Data(data) => Ok(data),
        Replicated::Keepalive { end, .. } => Err(end),
    })
}
