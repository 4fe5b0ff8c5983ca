//! From the bytes of `COPY ... (FORMAT binary)` to a batch's cells.
//!
//! ```text
//!   "PGCOPY\n\377\r\n\0" flags(4) extension length(4) extension     once
//!   fields(2) { length(4) bytes }*                                  per row; length -1 is NULL
//!   -1 (2)                                                          the end
//! ```
//!
//! Source of the format: PostgreSQL docs, chapter "COPY", section "Binary Format". The server happens to send one row per
//! message, the header together with the first; nothing here relies on it: a row may begin in one message and end in another.
//!
//! Invariants: a row's bytes are copied once, into the batch's arena, large values not at all; nothing is allocated by a length that was not received.

use bytes::Bytes;
use pgferry_model::{APART_BYTES_MIN, Batch, CellFormat, Error, Op, Result, VALUE_BYTES_MAX};

use crate::decode::protocol_error;

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
const FLAGS_WITH_OIDS: u32 = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Header,
    Rows,
    Ended,
}

/// Cuts rows out of the stream of one COPY.
#[derive(Debug)]
pub(crate) struct BinaryRows {
    stage: Stage,
    /// The form that each column was asked for in: a text column's bytes are the type's own text.
    formats: Vec<CellFormat>,
    /// The beginning of a row whose end has not come yet.
    carry: Vec<u8>,
    rows: u64,
}

impl BinaryRows {
    pub(crate) fn new(formats: Vec<CellFormat>) -> Self {
        BinaryRows { stage: Stage::Header, formats, carry: Vec::new(), rows: 0 }
    }

    /// Takes one message's bytes; whole rows go into the batch.
    pub(crate) fn take(&mut self, message: &[u8], batch: &mut Batch) -> Result<()> {
        if self.carry.is_empty() {
            let used = self.whole_rows(message, None, batch)?;
            self.carry.extend_from_slice(&message[used..]);
        } else {
            let mut joined = std::mem::take(&mut self.carry);
            joined.extend_from_slice(message);
            let used = self.whole_rows(&joined, None, batch)?;
            joined.drain(..used);
            self.carry = joined;
        }
        Ok(())
    }

    /// Takes a large message's bytes with their memory: large values stay in it.
    pub(crate) fn take_large(&mut self, message: &Bytes, batch: &mut Batch) -> Result<()> {
        if !self.carry.is_empty() {
            return self.take(message, batch);
        }
        let used = self.whole_rows(message, Some(message), batch)?;
        self.carry.extend_from_slice(&message[used..]);
        Ok(())
    }

    /// The end of the COPY. Fails when the stream's own end mark did not come.
    pub(crate) fn end(&self) -> Result<u64> {
        if self.stage == Stage::Ended && self.carry.is_empty() {
            Ok(self.rows)
        } else {
            Err(malformed("no end mark"))
        }
    }

    /// `memory`: that of the bytes, where it may be shared.
    fn whole_rows(&mut self, bytes: &[u8], memory: Option<&Bytes>, batch: &mut Batch) -> Result<usize> {
        let mut used = 0;
        if self.stage == Stage::Header {
            match header_length(bytes)? {
                Some(length) => used = length,
                None => return Ok(0),
            }
            self.stage = Stage::Rows;
        }
        while self.stage == Stage::Rows {
            match row_length(&bytes[used..], self.formats.len())? {
                Row::Whole(length) => {
                    let row = &bytes[used..used + length];
                    match memory {
                        Some(memory) => self.push_large(row, memory, batch),
                        None => self.push(row, batch),
                    }
                    used += length;
                }
                Row::End => {
                    self.stage = Stage::Ended;
                    used += 2;
                }
                Row::Incomplete => break,
            }
        }
        if self.stage == Stage::Ended && used < bytes.len() {
            return Err(malformed("bytes after the end mark"));
        }
        Ok(used)
    }

    /// Pushes a row whose length was found by [`row_length`].
    fn push(&mut self, row: &[u8], batch: &mut Batch) {
        batch.start_row(Op::Insert, 0);
        batch.start_new();
        let base = batch.push_bytes(row);
        let mut at = 2;
        for &format in &self.formats {
            let length = int4(row, at);
            at += 4;
            if length < 0 {
                batch.push_null();
            } else {
                batch.push_at(format, base + at as u32, length as usize);
                at += length as usize;
            }
        }
        self.rows += 1;
    }

    /// The same, value by value.
    fn push_large(&mut self, row: &[u8], memory: &Bytes, batch: &mut Batch) {
        batch.start_row(Op::Insert, 0);
        batch.start_new();
        let mut at = 2;
        for &format in &self.formats {
            let length = int4(row, at);
            at += 4;
            let value = &row[at..at + usize::try_from(length).unwrap_or(0)];
            at += value.len();
            match value.len() {
                _ if length < 0 => batch.push_null(),
                APART_BYTES_MIN.. => batch.push_apart(format, memory.slice_ref(value)),
                _ => batch.push_value(format, value),
            }
        }
        self.rows += 1;
    }
}

enum Row {
    Whole(usize),
    End,
    Incomplete,
}

fn header_length(bytes: &[u8]) -> Result<Option<usize>> {
    const FIXED: usize = SIGNATURE.len() + 8;
    if !bytes.starts_with(&SIGNATURE[..bytes.len().min(SIGNATURE.len())]) {
        return Err(malformed("no COPY signature"));
    }
    if bytes.len() < FIXED {
        return Ok(None);
    }
    if int4(bytes, SIGNATURE.len()) as u32 & FLAGS_WITH_OIDS != 0 {
        return Err(malformed("rows with OIDs"));
    }
    let extension = int4(bytes, SIGNATURE.len() + 4);
    let length = FIXED + usize::try_from(extension).map_err(|_| malformed("a negative header extension"))?;
    Ok((bytes.len() >= length).then_some(length))
}

fn row_length(bytes: &[u8], columns: usize) -> Result<Row> {
    let Some(fields) = bytes.get(..2) else { return Ok(Row::Incomplete) };
    match i16::from_be_bytes([fields[0], fields[1]]) {
        -1 => return Ok(Row::End),
        count if usize::try_from(count).is_ok_and(|count| count == columns) => {}
        _ => return Err(malformed("a row with another number of fields than asked for")),
    }
    let mut at = 2;
    for _ in 0..columns {
        if bytes.len() < at + 4 {
            return Ok(Row::Incomplete);
        }
        let length = int4(bytes, at);
        at += 4;
        match length {
            -1 => {}
            length if length >= 0 && length as usize <= VALUE_BYTES_MAX => at += length as usize,
            _ => return Err(malformed("a field's length is out of range")),
        }
    }
    Ok(if bytes.len() < at { Row::Incomplete } else { Row::Whole(at) })
}

#[inline]
fn int4(bytes: &[u8], at: usize) -> i32 {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => i32::from_be_bytes([a, b, c, d]),
        _ => -1,
    }
}

fn malformed(what: &str) -> Error {
    protocol_error(format!("the server's COPY data is malformed: {what}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pgferry_model::{Cell, Column, DataType, Table, TableId, TableName, TypeKind};

    use super::*;

    fn table(columns: usize) -> Arc<Table> {
        let data_type = DataType {
            oid: 25,
            name: "text".into(),
            kind: TypeKind::Text,
            sends_binary: true,
            output_function: "pg_catalog.textout".into(),
        };
        let column = |at: usize| Column {
            name: format!("c{at}").into(),
            data_type: data_type.clone(),
            nullable: true,
        };
        let name = TableName::new("public", "t");
        Arc::new(Table {
            id: TableId(0),
            target_name: name.clone(),
            name,
            columns: (0..columns).map(column).collect(),
            key: Vec::new(),
            key_enforced: false,
            full_identity: false,
            rows_estimated: 0,
            bytes: 0,
        })
    }

    fn stream(rows: &[&[Option<&[u8]>]]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend_from_slice(&[0; 8]);
        for row in rows {
            bytes.extend_from_slice(&(row.len() as i16).to_be_bytes());
            for field in *row {
                match field {
                    Some(value) => {
                        bytes.extend_from_slice(&(value.len() as i32).to_be_bytes());
                        bytes.extend_from_slice(value);
                    }
                    None => bytes.extend_from_slice(&(-1i32).to_be_bytes()),
                }
            }
        }
        bytes.extend_from_slice(&(-1i16).to_be_bytes());
        bytes
    }

    #[test]
    fn rows_come_out_whole_however_the_stream_is_cut() {
        let bytes = stream(&[&[Some(b"1"), None], &[Some(b""), Some(b"abc\0def")], &[None, None]]);
        for step in 1..=bytes.len() {
            let mut batch = Batch::new(table(2));
            let mut rows = BinaryRows::new(vec![CellFormat::Binary, CellFormat::Text]);
            for message in bytes.chunks(step) {
                rows.take(message, &mut batch).expect("well-formed");
            }
            assert_eq!(rows.end().expect("ended"), 3);
            let cells: Vec<Vec<Cell<'_>>> =
                batch.rows().map(|row| row.new.expect("new").cells().collect()).collect();
            assert_eq!(cells[0], [Cell::Binary(b"1"), Cell::Null]);
            assert_eq!(cells[1], [Cell::Binary(b""), Cell::Text(b"abc\0def")]);
            assert_eq!(cells[2], [Cell::Null, Cell::Null]);
        }
    }

    #[test]
    fn large_values_stay_in_the_memory_in_which_they_came() {
        let large = vec![b'x'; APART_BYTES_MIN];
        let bytes = Bytes::from(stream(&[&[Some(b"1"), Some(&large), None], &[Some(b""), None, Some(b"2")]]));
        let mut batch = Batch::new(table(3));
        let mut rows = BinaryRows::new(vec![CellFormat::Binary, CellFormat::Text, CellFormat::Binary]);
        rows.take_large(&bytes, &mut batch).expect("well-formed");
        assert_eq!(rows.end().expect("ended"), 2);
        let first = batch.row(0).expect("first").new.expect("new");
        assert_eq!(first.cells().collect::<Vec<_>>(), [Cell::Binary(b"1"), Cell::Text(&large), Cell::Null]);
        let shared = first.shared(1).expect("apart").as_ptr();
        assert!(bytes.as_ptr_range().contains(&shared));
        let second = batch.row(1).expect("second").new.expect("new");
        assert_eq!(second.cells().collect::<Vec<_>>(), [Cell::Binary(b""), Cell::Null, Cell::Binary(b"2")]);
    }

    #[test]
    fn malformed_streams_are_refused_and_a_missing_end_is_noticed() {
        let good = stream(&[&[Some(b"1")]]);
        let mut batch = Batch::new(table(1));
        let formats = vec![CellFormat::Binary];
        let mut short = BinaryRows::new(formats.clone());
        short.take(&good[..good.len() - 2], &mut batch).expect("a row");
        assert!(short.end().is_err(), "no end mark");
        let mut wrong = good.clone();
        wrong[0] = b'X';
        assert!(BinaryRows::new(formats.clone()).take(&wrong, &mut batch).is_err(), "signature");
        let mut after = good.clone();
        after.push(0);
        assert!(BinaryRows::new(formats.clone()).take(&after, &mut batch).is_err(), "after the end");
        assert!(BinaryRows::new(vec![CellFormat::Text; 2]).take(&good, &mut batch).is_err(), "field count");
        let mut huge = good;
        huge[21..25].copy_from_slice(&i32::MAX.to_be_bytes());
        assert!(BinaryRows::new(formats).take(&huge, &mut batch).is_err(), "length");
    }
}
