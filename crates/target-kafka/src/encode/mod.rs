//! Changes to records: what Kafka eats.
//!
//! ```text
//!   insert, snapshot row   key, value
//!   update                 key, value;  of the key: delete of the old key, then insert of the new
//!   delete                 key, value;  then, where tombstones are on, key without a value
//!   truncate               a record without a key, for every partition
//! ```
//!
//! Invariants: a record is whole in one buffer, which the next one reuses; an unchanged value is left out and named in a header, never
//! replaced; no message holds a value.

mod debezium;
mod json;
mod plain;

use pgferry_model::{Batch, Cell, Error, Op, Result, Row, RowRef, Table, TaskId};
use pgferry_pipeline::DeletePolicy;

use crate::config::{Format, KafkaConfig};
use crate::error::{key_unknown, unfit};
use crate::mapping::{ColumnType, map_column};
use crate::schema::is_shared;

#[cfg(test)]
pub(crate) use json::write_cell;
pub(crate) use json::{INFINITY_US, NEGATIVE_INFINITY_US, string as write_string};
pub(crate) use plain::{LSN, OP, ORDER, SCHEMA, TABLE};

/// Names the columns whose values the source did not send, as a JSON array.
pub(crate) const UNCHANGED: &str = "pgferry.unchanged";
/// The table, in keys of a topic that several tables share. Debezium's name.
const TABLE_IN_KEY: &str = "__dbz__physicalTableIdentifier";
/// The key that a row gets, on the delete of its old one. Debezium's name.
pub(crate) const NEW_KEY: &str = "__debezium.newkey";
/// The key that a row had, on the insert under its new one. Debezium's name.
pub(crate) const OLD_KEY: &str = "__debezium.oldkey";

/// Where a change comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// A row of a snapshot.
    pub(crate) snapshot: bool,
    /// Where the transaction's commit record begins; of a snapshot, its cut.
    pub(crate) lsn: u64,
    /// The change's number within its transaction.
    pub(crate) order: u64,
    /// The source's transaction id; 0 of a snapshot.
    pub(crate) xid: u32,
    /// When it was committed, in milliseconds since 1970-01-01 UTC.
    pub(crate) committed_at_ms: i64,
    /// When the record is made, in milliseconds since 1970-01-01 UTC.
    pub(crate) now_ms: i64,
}

/// A record, but for its topic and partition.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: &'a [(&'static str, Vec<u8>)],
    /// It belongs to the whole table: into every partition.
    pub(crate) everywhere: bool,
}

/// Takes records.
pub(crate) trait Records {
    fn put(&mut self, record: &Record<'_>) -> Result<()>;
}

/// What becomes of a row, in Debezium's letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Read,
    Create,
    Update,
    Delete,
    Truncate,
}

impl Event {
    pub(crate) fn letter(self) -> &'static str {
        match self {
            Event::Read => "r",
            Event::Create => "c",
            Event::Update => "u",
            Event::Delete => "d",
            Event::Truncate => "t",
        }
    }
}

/// A column, ready to write.
pub(crate) struct ColumnEncoder {
    /// `"name":`
    label: Vec<u8>,
    pub(crate) name: String,
    pub(crate) kind: ColumnType,
}

/// A table, ready to write.
pub(crate) struct Encoder {
    table: Table,
    pub(crate) columns: Vec<ColumnEncoder>,
    envelope: Envelope,
    /// The end of every key: in a topic that several tables share, with the table.
    key_end: Vec<u8>,
    tombstones: bool,
    deletes: DeletePolicy,
}

enum Envelope {
    Debezium(debezium::Envelope),
    Plain(plain::Envelope),
}

/// Buffers that records are made in.
#[derive(Default)]
pub(crate) struct Scratch {
    key: Vec<u8>,
    other_key: Vec<u8>,
    value: Vec<u8>,
    headers: Vec<(&'static str, Vec<u8>)>,
}

/// The tuples of an event, and the columns of `after` that are taken from `before` where the source did not send them.
#[derive(Clone, Copy)]
struct Tuples<'a> {
    before: Option<Row<'a>>,
    after: Option<Row<'a>>,
}

impl Encoder {
    pub(crate) fn new(
        config: &KafkaConfig,
        task: &TaskId,
        table: &Table,
        deletes: DeletePolicy,
    ) -> Result<Encoder> {
        let mut columns = Vec::with_capacity(table.columns.len());
        for column in &table.columns {
            let mut label = Vec::new();
            write_string(column.name.as_bytes(), &mut label)
                .map_err(|reason| unfit(&table.name, &column.name, "a field's name", reason))?;
            label.push(b':');
            let kind = map_column(config, table, column);
            columns.push(ColumnEncoder { label, name: column.name.to_string(), kind });
        }
        let envelope = match config.format {
            Format::Debezium { schemas } => {
                Envelope::Debezium(debezium::Envelope::new(config, task, table, &columns, schemas))
            }
            Format::Json => Envelope::Plain(plain::Envelope::new(table)),
        };
        let key_end = if is_shared(config, &table.name) {
            let name = format!("{}.{}.{}", config.source_database, table.name.schema, table.name.name);
            format!(",\"{TABLE_IN_KEY}\":{}}}", serde_json::Value::from(name)).into_bytes()
        } else {
            b"}".to_vec()
        };
        let tombstones = config.tombstones;
        Ok(Encoder { table: table.clone(), columns, envelope, key_end, tombstones, deletes })
    }

    /// Whether the encoder was made for this version of the table.
    pub(crate) fn fits(&self, table: &Table) -> bool {
        self.table.columns == table.columns && self.table.key == table.key
    }

    /// The records of a snapshot's row or of a change.
    pub(crate) fn change(
        &self,
        row: &RowRef<'_>,
        origin: &Origin,
        scratch: &mut Scratch,
        out: &mut dyn Records,
    ) -> Result<()> {
        match row.op {
            Op::Insert => {
                let event = if origin.snapshot { Event::Read } else { Event::Create };
                let tuples = Tuples { before: None, after: row.new };
                self.key(row.new, None, &mut scratch.key)?;
                scratch.headers.clear();
                self.event(event, tuples, origin, scratch, out)
            }
            Op::Update => self.update(row, origin, scratch, out),
            Op::Delete if self.deletes == DeletePolicy::Ignore => Ok(()),
            Op::Delete => {
                self.key(row.old, None, &mut scratch.key)?;
                scratch.headers.clear();
                self.delete(row.old, origin, scratch, out)
            }
            Op::Truncate if self.deletes == DeletePolicy::Ignore => Ok(()),
            Op::Truncate => self.truncate(origin, scratch, out),
        }
    }

    /// Tells that every row of the table is gone.
    pub(crate) fn truncate(
        &self,
        origin: &Origin,
        scratch: &mut Scratch,
        out: &mut dyn Records,
    ) -> Result<()> {
        scratch.headers.clear();
        let tuples = Tuples { before: None, after: None };
        self.value(Event::Truncate, tuples, origin, scratch)?;
        let has_value = matches!(self.envelope, Envelope::Debezium(_));
        out.put(&Record {
            key: None,
            value: has_value.then_some(scratch.value.as_slice()),
            headers: &scratch.headers,
            everywhere: true,
        })
    }

    /// Tells that the row with this key, as it stands in a record, is gone.
    pub(crate) fn take_back(
        &self,
        key: &[u8],
        origin: &Origin,
        scratch: &mut Scratch,
        out: &mut dyn Records,
    ) -> Result<()> {
        scratch.key.clear();
        scratch.key.extend_from_slice(key);
        scratch.headers.clear();
        self.delete(None, origin, scratch, out)
    }

    fn update(
        &self,
        row: &RowRef<'_>,
        origin: &Origin,
        scratch: &mut Scratch,
        out: &mut dyn Records,
    ) -> Result<()> {
        let full_old = row.old.filter(|_| row.old_is_full);
        self.key(row.new, row.old, &mut scratch.key)?;
        scratch.headers.clear();
        let tuples = Tuples { before: full_old, after: row.new };
        if row.old.is_none() || !self.key_changed(row) {
            return self.event(Event::Update, tuples, origin, scratch, out);
        }
        self.key(row.old, None, &mut scratch.other_key)?;
        std::mem::swap(&mut scratch.key, &mut scratch.other_key);
        scratch.headers.push((NEW_KEY, scratch.other_key.clone()));
        self.delete(row.old, origin, scratch, out)?;
        std::mem::swap(&mut scratch.key, &mut scratch.other_key);
        scratch.headers.clear();
        scratch.headers.push((OLD_KEY, scratch.other_key.clone()));
        self.event(Event::Create, tuples, origin, scratch, out)
    }

    fn key_changed(&self, row: &RowRef<'_>) -> bool {
        let (Some(new), Some(old)) = (row.new, row.old) else { return false };
        self.table.key.iter().any(|&at| match (new.cell(at), old.cell(at)) {
            (Cell::Unchanged, _) => false,
            (new, old) => new != old,
        })
    }

    fn delete(
        &self,
        old: Option<Row<'_>>,
        origin: &Origin,
        scratch: &mut Scratch,
        out: &mut dyn Records,
    ) -> Result<()> {
        self.event(Event::Delete, Tuples { before: old, after: None }, origin, scratch, out)?;
        let keyed = !self.table.key.is_empty();
        if self.tombstones && keyed && matches!(self.envelope, Envelope::Debezium(_)) {
            out.put(&Record { key: Some(&scratch.key), value: None, headers: &[], everywhere: false })?;
        }
        Ok(())
    }

    /// One record, from the key in the buffers.
    fn event(
        &self,
        event: Event,
        tuples: Tuples<'_>,
        origin: &Origin,
        scratch: &mut Scratch,
        out: &mut dyn Records,
    ) -> Result<()> {
        self.note_unchanged(tuples, scratch)?;
        self.value(event, tuples, origin, scratch)?;
        let keyed = !self.table.key.is_empty();
        let gone = event == Event::Delete && keyed && matches!(self.envelope, Envelope::Plain(_));
        out.put(&Record {
            key: keyed.then_some(scratch.key.as_slice()),
            value: (!gone).then_some(scratch.value.as_slice()),
            headers: &scratch.headers,
            everywhere: false,
        })
    }

    fn note_unchanged(&self, tuples: Tuples<'_>, scratch: &mut Scratch) -> Result<()> {
        let Some(after) = tuples.after.filter(|_| tuples.before.is_none()).filter(Row::has_unchanged) else {
            return Ok(());
        };
        let missing = after.cells().zip(&self.columns).filter(|(cell, _)| *cell == Cell::Unchanged);
        let names: Vec<&str> = missing.map(|(_, column)| column.name.as_str()).collect();
        let names = serde_json::to_vec(&names).map_err(|failure| malformed(&self.table, failure))?;
        scratch.headers.push((UNCHANGED, names));
        Ok(())
    }

    fn value(&self, event: Event, tuples: Tuples<'_>, origin: &Origin, scratch: &mut Scratch) -> Result<()> {
        scratch.value.clear();
        match &self.envelope {
            Envelope::Debezium(envelope) => envelope.write(self, event, tuples, origin, &mut scratch.value),
            Envelope::Plain(envelope) => {
                envelope.write(self, event, tuples, &mut scratch.value)?;
                envelope.headers(event, origin, &mut scratch.headers);
                Ok(())
            }
        }
    }

    /// The key's columns as an object; a cell that the source did not send is taken from `other`.
    fn key(&self, tuple: Option<Row<'_>>, other: Option<Row<'_>>, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        if self.table.key.is_empty() {
            return Ok(());
        }
        let Some(tuple) = tuple else { return Err(key_unknown(&self.table.name)) };
        if let Envelope::Debezium(envelope) = &self.envelope {
            out.extend_from_slice(envelope.key_start());
        }
        for (index, &at) in self.table.key.iter().enumerate() {
            let cell = match tuple.cell(at) {
                Cell::Unchanged => other.map_or(Cell::Unchanged, |other| other.cell(at)),
                cell => cell,
            };
            if matches!(cell, Cell::Unchanged | Cell::Null) {
                return Err(key_unknown(&self.table.name));
            }
            out.push(if index == 0 { b'{' } else { b',' });
            self.cell(at, cell, out)?;
        }
        out.extend_from_slice(&self.key_end);
        if let Envelope::Debezium(envelope) = &self.envelope {
            out.extend_from_slice(envelope.end());
        }
        Ok(())
    }

    /// A tuple's columns as an object; what the source did not send is taken from `other`, or left out.
    fn object(&self, tuple: Row<'_>, other: Option<Row<'_>>, out: &mut Vec<u8>) -> Result<()> {
        out.push(b'{');
        let mut first = true;
        for (at, cell) in tuple.cells().enumerate() {
            let cell = match (cell, other) {
                (Cell::Unchanged, Some(other)) => other.cell(at),
                (cell, _) => cell,
            };
            if cell == Cell::Unchanged {
                continue;
            }
            if !first {
                out.push(b',');
            }
            first = false;
            self.cell(at, cell, out)?;
        }
        out.push(b'}');
        Ok(())
    }

    fn cell(&self, at: usize, cell: Cell<'_>, out: &mut Vec<u8>) -> Result<()> {
        let Some(column) = self.columns.get(at) else { return Ok(()) };
        out.extend_from_slice(&column.label);
        json::write_cell(&column.kind.encoding, cell, out)
            .map_err(|reason| unfit(&self.table.name, &column.name, &column.kind.name, reason))
    }
}

fn malformed(table: &Table, failure: serde_json::Error) -> Error {
    unfit(&table.name, "*", "JSON", "cannot be written").with_origin(failure)
}

/// The rows of a snapshot's batch.
pub(crate) fn snapshot_rows(
    encoder: &Encoder,
    batch: &Batch,
    origin: &Origin,
    scratch: &mut Scratch,
    out: &mut dyn Records,
) -> Result<()> {
    batch.rows().try_for_each(|row| encoder.change(&row, origin, scratch, out))
}
