//! Arrays of one dimension.
//!
//! Text form: `{1,NULL,"a \"quoted\" one"}` (`array_out`, arrayfuncs.c). Binary form: number of dimensions, a flag, the
//! element's OID, then per dimension length and lower bound, then per element a length (-1: NULL) and its bytes
//! (`array_send`).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ListArray, NullBufferBuilder};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};

use crate::Encoding;
use crate::builder::ValueBuilder;
use crate::encoding::Reason;
use crate::text::Parsed;

pub(crate) struct List {
    element: Encoding,
    values: Box<dyn ValueBuilder>,
    count: usize,
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
    unquoted: Vec<u8>,
}

impl List {
    pub(crate) fn new(element: &Encoding, values: Box<dyn ValueBuilder>, rows: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        let nulls = NullBufferBuilder::new(rows);
        List { element: element.clone(), values, count: 0, offsets, nulls, unquoted: Vec::new() }
    }

    fn close_list(&mut self) -> Parsed<()> {
        self.offsets.push(i32::try_from(self.count).map_err(|_| Reason::OutOfRange)?);
        self.nulls.append_non_null();
        Ok(())
    }

    fn element_text(&mut self, bytes: &[u8]) -> Parsed<()> {
        self.count += 1;
        self.values.push_text(bytes)
    }

    fn element_null(&mut self) {
        self.count += 1;
        self.values.push_null();
    }

    /// The quoted element that starts after its opening quote; returns what follows the closing one.
    fn quoted<'a>(&mut self, mut rest: &'a [u8]) -> Parsed<&'a [u8]> {
        let mut value = std::mem::take(&mut self.unquoted);
        value.clear();
        loop {
            let at = memchr::memchr2(b'"', b'\\', rest).ok_or(Reason::Malformed)?;
            value.extend_from_slice(&rest[..at]);
            if rest[at] == b'"' {
                rest = &rest[at + 1..];
                break;
            }
            value.push(*rest.get(at + 1).ok_or(Reason::Malformed)?);
            rest = &rest[at + 2..];
        }
        let pushed = self.element_text(&value);
        self.unquoted = value;
        pushed.map(|()| rest)
    }

    fn bare<'a>(&mut self, rest: &'a [u8]) -> Parsed<&'a [u8]> {
        let end = memchr::memchr2(b',', b'}', rest).ok_or(Reason::Malformed)?;
        let value = &rest[..end];
        if value.is_empty() || memchr::memchr2(b'"', b'\\', value).is_some() {
            return Err(Reason::Malformed);
        }
        if value == b"NULL" {
            self.element_null();
        } else {
            self.element_text(value)?;
        }
        Ok(&rest[end..])
    }
}

impl ValueBuilder for List {
    fn push_null(&mut self) {
        self.offsets.push(self.count as i32);
        self.nulls.append_null();
    }

    fn push_text(&mut self, bytes: &[u8]) -> Parsed<()> {
        let mut rest = match bytes.split_first() {
            Some((b'{', rest)) => rest,
            // `[0:2]={…}`: array_out shows bounds only where one is not 1.
            Some((b'[', _)) => return Err(Reason::ArrayShape),
            _ => return Err(Reason::Malformed),
        };
        if rest == b"}" {
            return self.close_list();
        }
        loop {
            rest = match rest.split_first() {
                Some((b'"', rest)) => self.quoted(rest)?,
                Some((b'{', _)) => return Err(Reason::ArrayShape),
                _ => self.bare(rest)?,
            };
            match rest.split_first() {
                Some((b',', more)) => rest = more,
                Some((b'}', [])) => return self.close_list(),
                _ => return Err(Reason::Malformed),
            }
        }
    }

    fn push_binary(&mut self, bytes: &[u8]) -> Parsed<()> {
        let mut rest = bytes;
        let dimensions = word(&mut rest)?;
        let (_has_nulls, _element_oid) = (word(&mut rest)?, word(&mut rest)?);
        if dimensions == 0 {
            return if rest.is_empty() { self.close_list() } else { Err(Reason::Malformed) };
        }
        if dimensions != 1 {
            return Err(Reason::ArrayShape);
        }
        let (length, lower_bound) = (word(&mut rest)?, word(&mut rest)?);
        if lower_bound != 1 {
            return Err(Reason::ArrayShape);
        }
        for _ in 0..length {
            match word(&mut rest)? {
                -1 => self.element_null(),
                size => {
                    let size = usize::try_from(size).map_err(|_| Reason::Malformed)?;
                    let (value, more) = rest.split_at_checked(size).ok_or(Reason::Malformed)?;
                    self.count += 1;
                    self.values.push_binary(value)?;
                    rest = more;
                }
            }
        }
        if rest.is_empty() { self.close_list() } else { Err(Reason::Malformed) }
    }

    fn finish(self: Box<Self>) -> Parsed<ArrayRef> {
        let List { element, values, offsets, mut nulls, .. } = *self;
        let values = values.finish()?;
        let field = element.field_of("item", values.data_type().clone());
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        let array = ListArray::try_new(Arc::new(field), offsets, values, nulls.finish());
        Ok(Arc::new(array.map_err(|_| Reason::Malformed)?))
    }
}

fn word(bytes: &mut &[u8]) -> Parsed<i32> {
    let (head, rest) = bytes.split_first_chunk::<4>().ok_or(Reason::Malformed)?;
    *bytes = rest;
    Ok(i32::from_be_bytes(*head))
}
