//! Cells to Avro's binary form (Apache Avro specification, "Binary Encoding").

use pgferry_model::Cell;
use pgferry_values::array::Elements;
use pgferry_values::number;

use crate::config::BinaryMode;
use crate::encode::cell::{self, MALFORMED, fixed};
use crate::mapping::Encoding;

type Written = Result<(), &'static str>;

/// The branches of `["null", T]`.
const NULL: u8 = 0;
const VALUE: u8 = 2;

/// Zigzag, seven bits a byte, the least significant first.
pub(in crate::encode) fn long(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// A length, then the bytes: `bytes` and `string` alike.
pub(in crate::encode) fn bytes(value: &[u8], out: &mut Vec<u8>) {
    long(value.len() as i64, out);
    out.extend_from_slice(value);
}

/// The branch that holds nothing.
pub(in crate::encode) fn null(out: &mut Vec<u8>) {
    out.push(NULL);
}

/// What follows is there.
pub(in crate::encode) fn some(out: &mut Vec<u8>) {
    out.push(VALUE);
}

/// Writes a cell as `["null", T]`.
pub(in crate::encode) fn write_optional(encoding: &Encoding, cell: Cell<'_>, out: &mut Vec<u8>) -> Written {
    if matches!(cell, Cell::Null | Cell::Unchanged) {
        null(out);
        return Ok(());
    }
    some(out);
    write(encoding, cell, out)
}

/// Writes a cell that holds a value.
pub(in crate::encode) fn write(encoding: &Encoding, cell: Cell<'_>, out: &mut Vec<u8>) -> Written {
    let (text, value) = match cell {
        Cell::Null | Cell::Unchanged => return Err("is missing"),
        Cell::Text(value) => (true, value),
        Cell::Binary(value) => (false, value),
    };
    match encoding {
        Encoding::Bool => out.push(u8::from(cell::bool(value)?)),
        Encoding::Int16 | Encoding::Int32 | Encoding::Int64 | Encoding::UInt32 => {
            long(integer(encoding, text, value)?, out);
        }
        Encoding::Float32 => {
            let value: f32 = if text { number::float(value)? } else { f32::from_be_bytes(fixed(value)?) };
            out.extend_from_slice(&value.to_le_bytes());
        }
        Encoding::Float64 => {
            let value: f64 = if text { number::float(value)? } else { f64::from_be_bytes(fixed(value)?) };
            out.extend_from_slice(&value.to_le_bytes());
        }
        Encoding::Decimal { precision, scale } if text => {
            bytes(cell::decimal(value, *precision, *scale)?.bytes(), out);
        }
        Encoding::VariableDecimal if text => {
            let (scale, unscaled) = cell::variable_decimal(value)?;
            long(scale as i64, out);
            bytes(unscaled.bytes(), out);
        }
        Encoding::DecimalAsDouble if text => {
            let rounded: f64 = number::float(value)?;
            out.extend_from_slice(&rounded.to_le_bytes());
        }
        Encoding::Decimal { .. } | Encoding::VariableDecimal | Encoding::DecimalAsDouble => {
            return Err(MALFORMED);
        }
        Encoding::Text => bytes(cell::text(value)?.as_bytes(), out),
        Encoding::Jsonb => bytes(cell::text(cell::jsonb(text, value)?)?.as_bytes(), out),
        Encoding::Bytes(BinaryMode::Bytes) => bytes(&cell::bytea(text, value)?, out),
        Encoding::Bytes(mode) => {
            bytes(cell::binary_text(*mode, &cell::bytea(text, value)?).as_bytes(), out);
        }
        Encoding::Date => long(cell::days(text, value)?.into(), out),
        Encoding::Time(unit) => long(cell::time_of_day(text, value, *unit)?, out),
        Encoding::Timestamp(unit) => long(cell::timestamp(text, value, *unit)?, out),
        Encoding::ZonedTimestamp => zoned(text, value, out)?,
        Encoding::Uuid => bytes(cell::uuid(text, value)?.as_bytes(), out),
        Encoding::Array(element) => array(element, text, value, out)?,
    }
    Ok(())
}

fn integer(encoding: &Encoding, text: bool, value: &[u8]) -> Result<i64, &'static str> {
    if text {
        return number::integer(value);
    }
    Ok(match encoding {
        Encoding::Int16 => i16::from_be_bytes(fixed(value)?).into(),
        Encoding::Int32 => i32::from_be_bytes(fixed(value)?).into(),
        Encoding::UInt32 => u32::from_be_bytes(fixed(value)?).into(),
        _ => i64::from_be_bytes(fixed(value)?),
    })
}

fn zoned(text: bool, value: &[u8], out: &mut Vec<u8>) -> Written {
    // The length of such a text is one byte, known afterwards.
    let at = out.len();
    out.push(0);
    cell::zoned(text, value, out)?;
    let length = out.len() - at - 1;
    out[at] = u8::try_from(2 * length).ok().filter(|twice| *twice < 0x80).ok_or(MALFORMED)?;
    Ok(())
}

/// One block of elements, then the empty one.
fn array(element: &Encoding, text: bool, value: &[u8], out: &mut Vec<u8>) -> Written {
    let mut elements = Elements::default();
    if text {
        elements.take_text(value)?;
    } else {
        elements.take_binary(value)?;
    }
    if !elements.is_empty() {
        long(elements.len() as i64, out);
        for cell in elements.cells() {
            write_optional(element, cell, out)?;
        }
    }
    out.push(0);
    Ok(())
}
