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

mod avro;
mod cell;
mod debezium;
mod json;
mod plain;

use pgferry_model::{Batch, Cell, Error, Op, Result, Row, RowRef, Table, TaskId};
use pgferry_pipeline::DeletePolicy;

use crate::config::{Format, KafkaConfig};
use crate::error::{key_unknown, registry_missing, unfit};
use crate::mapping::{ColumnType, map_column};
use crate::schema::is_shared;
use crate::schema_registry::SchemaRegistry;

pub(crate) use avro::schemas as avro_schemas;
pub(crate) use cell::{INFINITY_US, NEGATIVE_INFINITY_US};
pub(crate) use json::string as write_string;
#[cfg(test)]
pub(crate) use json::write_cell;
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

impl Origin {
    /// The transaction's name in records.
    pub(crate) fn transaction_id(&self) -> String {
        format!("{}:{}", self.xid, self.lsn)
    }
}

/// How many events of a transaction there are so far: in all, and of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) total: u64,
    pub(crate) of_table: u64,
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
    /// Its name in records.
    field: String,
    in_key: bool,
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
    Avro(avro::Envelope),
    Plain(plain::Envelope),
}

/// Buffers that records are made in.
#[derive(Default)]
pub(crate) struct Scratch {
    key: Vec<u8>,
    other_key: Vec<u8>,
    value: Vec<u8>,
    headers: Vec<(&'static str, Vec<u8>)>,
    /// The place of the last event in its transaction; `None`: records do not tell it.
    pub(crate) place: Option<Place>,
}

/// The tuples of an event.
#[derive(Clone, Copy, Default)]
struct Tuples<'a> {
    before: Option<Row<'a>>,
    after: Option<Row<'a>>,
    /// What the source sent of the old row, if only its key.
    old: Option<Row<'a>>,
    /// Of the event in its transaction.
    place: Option<Place>,
}

impl<'a> Tuples<'a> {
    /// A cell, from the old row where the source did not send it with the new one.
    fn filled(&self, at: usize, cell: Cell<'a>, in_key: bool) -> Cell<'a> {
        let old = if in_key { self.before.or(self.old) } else { self.before };
        match (cell, old) {
            (Cell::Unchanged, Some(old)) => old.cell(at),
            (cell, _) => cell,
        }
    }
}

/// A table's columns, ready to write.
pub(crate) fn columns(config: &KafkaConfig, table: &Table) -> Result<Vec<ColumnEncoder>> {
    let fields = field_names(config, table)?;
    let mut columns = Vec::with_capacity(table.columns.len());
    for (at, (column, field)) in table.columns.iter().zip(fields).enumerate() {
        let mut label = Vec::new();
        write_string(field.as_bytes(), &mut label)
            .map_err(|reason| unfit(&table.name, &column.name, "a field's name", reason))?;
        label.push(b':');
        let kind = map_column(config, table, column);
        let (name, in_key) = (column.name.to_string(), table.key.contains(&at));
        columns.push(ColumnEncoder { label, name, field, in_key, kind });
    }
    Ok(columns)
}

/// The names that columns have in records.
pub(crate) fn field_names(config: &KafkaConfig, table: &Table) -> Result<Vec<String>> {
    match config.format {
        Format::Avro => avro::schema::field_names(table),
        Format::Debezium { .. } | Format::Json => {
            Ok(table.columns.iter().map(|column| column.name.to_string()).collect())
        }
    }
}

impl Encoder {
    /// `registry`: of schemas, where the format has them; they are registered.
    pub(crate) fn new(
        config: &KafkaConfig,
        task: &TaskId,
        table: &Table,
        deletes: DeletePolicy,
        registry: Option<&SchemaRegistry>,
    ) -> Result<Encoder> {
        let columns = columns(config, table)?;
        let envelope = match config.format {
            Format::Debezium { schemas } => {
                Envelope::Debezium(debezium::Envelope::new(config, task, table, &columns, schemas))
            }
            Format::Avro => {
                let registry = registry.ok_or_else(registry_missing)?;
                let ids = registry.register(config, table, &columns)?;
                Envelope::Avro(avro::Envelope::new(config, task, table, ids))
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
                let tuples = Tuples { after: row.new, ..Tuples::default() };
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
        self.value(Event::Truncate, Tuples::default(), origin, scratch)?;
        out.put(&Record {
            key: None,
            value: (!self.is_plain()).then_some(scratch.value.as_slice()),
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
        let tuples = Tuples { before: full_old, after: row.new, old: row.old, place: None };
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
        self.event(Event::Delete, Tuples { before: old, ..Tuples::default() }, origin, scratch, out)?;
        let keyed = !self.table.key.is_empty();
        if self.tombstones && keyed && !self.is_plain() {
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
        let gone = event == Event::Delete && keyed && self.is_plain();
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
        let cells = after.cells().enumerate().zip(&self.columns);
        let missing =
            cells.filter(|((at, cell), column)| tuples.filled(*at, *cell, column.in_key) == Cell::Unchanged);
        let names: Vec<&str> = missing.map(|(_, column)| column.field.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let names = serde_json::to_vec(&names).map_err(|failure| malformed(&self.table, failure))?;
        scratch.headers.push((UNCHANGED, names));
        Ok(())
    }

    fn value(
        &self,
        event: Event,
        mut tuples: Tuples<'_>,
        origin: &Origin,
        scratch: &mut Scratch,
    ) -> Result<()> {
        scratch.value.clear();
        if let Some(place) = scratch.place.as_mut().filter(|_| !origin.snapshot) {
            place.total += 1;
            place.of_table += 1;
            tuples.place = Some(*place);
        }
        match &self.envelope {
            Envelope::Debezium(envelope) => envelope.write(self, event, tuples, origin, &mut scratch.value),
            Envelope::Avro(envelope) => envelope.write(self, event, tuples, origin, &mut scratch.value),
            Envelope::Plain(envelope) => {
                envelope.write(self, event, tuples, &mut scratch.value)?;
                envelope.headers(event, origin, &mut scratch.headers);
                Ok(())
            }
        }
    }

    /// What happened is in headers, and the value is the row.
    fn is_plain(&self) -> bool {
        matches!(self.envelope, Envelope::Plain(_))
    }

    /// The key's columns as an object; a cell that the source did not send is taken from `other`.
    fn key(&self, tuple: Option<Row<'_>>, other: Option<Row<'_>>, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        if self.table.key.is_empty() {
            return Ok(());
        }
        let Some(tuple) = tuple else { return Err(key_unknown(&self.table.name)) };
        match &self.envelope {
            Envelope::Debezium(envelope) => out.extend_from_slice(envelope.key_start()),
            Envelope::Avro(envelope) => envelope.key_start(out),
            Envelope::Plain(_) => {}
        }
        for (index, &at) in self.table.key.iter().enumerate() {
            let cell = match tuple.cell(at) {
                Cell::Unchanged => other.map_or(Cell::Unchanged, |other| other.cell(at)),
                cell => cell,
            };
            if matches!(cell, Cell::Unchanged | Cell::Null) {
                return Err(key_unknown(&self.table.name));
            }
            if let Envelope::Avro(_) = &self.envelope {
                let Some(column) = self.columns.get(at) else { continue };
                avro::Envelope::key_column(column, cell, out).map_err(|reason| self.unfit(column, reason))?;
            } else {
                out.push(if index == 0 { b'{' } else { b',' });
                self.cell(at, cell, out)?;
            }
        }
        match &self.envelope {
            Envelope::Debezium(envelope) => {
                out.extend_from_slice(&self.key_end);
                out.extend_from_slice(envelope.end());
            }
            Envelope::Avro(envelope) => envelope.key_end(out),
            Envelope::Plain(_) => out.extend_from_slice(&self.key_end),
        }
        Ok(())
    }

    /// A tuple's columns as an object; what is not known is left out.
    fn object(&self, tuple: Row<'_>, tuples: Tuples<'_>, out: &mut Vec<u8>) -> Result<()> {
        out.push(b'{');
        let mut first = true;
        for (at, cell) in tuple.cells().enumerate() {
            let cell = if cell == Cell::Unchanged {
                tuples.filled(at, cell, self.columns.get(at).is_some_and(|column| column.in_key))
            } else {
                cell
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
        json::write_cell(&column.kind.encoding, cell, out).map_err(|reason| self.unfit(column, reason))
    }

    fn unfit(&self, column: &ColumnEncoder, reason: &str) -> Error {
        unfit(&self.table.name, &column.name, &column.kind.name, reason)
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
