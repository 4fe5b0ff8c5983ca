//! Cells to JSON values.
//!
//! Text that is a JSON number already is passed through; the rest is read and written anew. No message holds a value.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pgferry_model::Cell;
use pgferry_values::array::Elements;
use pgferry_values::number;

use super::cell::{self, fixed};
use crate::config::BinaryMode;
use crate::mapping::Encoding;

type Written = Result<(), &'static str>;

/// Writes a cell; an unchanged one is left to the caller.
pub(crate) fn write_cell(encoding: &Encoding, cell: Cell<'_>, out: &mut Vec<u8>) -> Written {
    let (text, value) = match cell {
        Cell::Null | Cell::Unchanged => {
            out.extend_from_slice(b"null");
            return Ok(());
        }
        Cell::Text(value) => (true, value),
        Cell::Binary(value) => (false, value),
    };
    match encoding {
        Encoding::Bool => {
            out.extend_from_slice(if cell::bool(value)? { b"true" } else { b"false" });
            Ok(())
        }
        Encoding::Int16 | Encoding::Int32 | Encoding::Int64 | Encoding::UInt32 if text => {
            out.extend_from_slice(value);
            Ok(())
        }
        Encoding::Int16 => integer(fixed(value).map(i16::from_be_bytes)?, out),
        Encoding::Int32 => integer(fixed(value).map(i32::from_be_bytes)?, out),
        Encoding::Int64 => integer(fixed(value).map(i64::from_be_bytes)?, out),
        Encoding::UInt32 => integer(fixed(value).map(u32::from_be_bytes)?, out),
        Encoding::Float32 if !text => {
            float(number::float4_text(fixed(value).map(f32::from_be_bytes)?).as_bytes(), out)
        }
        Encoding::Float64 if !text => {
            float(number::float8_text(fixed(value).map(f64::from_be_bytes)?).as_bytes(), out)
        }
        Encoding::Float32 | Encoding::Float64 => float(value, out),
        Encoding::Decimal { precision, scale } if text => {
            base64(cell::decimal(value, *precision, *scale)?.bytes(), out);
            Ok(())
        }
        Encoding::VariableDecimal if text => variable_decimal(value, out),
        Encoding::DecimalAsDouble if text => {
            let rounded: f64 = number::float(value)?;
            float(number::float8_text(rounded).as_bytes(), out)
        }
        Encoding::Decimal { .. } | Encoding::VariableDecimal | Encoding::DecimalAsDouble => {
            Err(cell::MALFORMED)
        }
        Encoding::Text => string(value, out),
        Encoding::Jsonb => string(cell::jsonb(text, value)?, out),
        Encoding::Bytes(mode) => {
            let bytes = cell::bytea(text, value)?;
            match mode {
                BinaryMode::Bytes | BinaryMode::Base64 => base64(&bytes, out),
                BinaryMode::Base64UrlSafe | BinaryMode::Hex => {
                    string(cell::binary_text(*mode, &bytes).as_bytes(), out)?;
                }
            }
            Ok(())
        }
        Encoding::Date => integer(cell::days(text, value)?, out),
        Encoding::Time(unit) => integer(cell::time_of_day(text, value, *unit)?, out),
        Encoding::Timestamp(unit) => integer(cell::timestamp(text, value, *unit)?, out),
        Encoding::ZonedTimestamp => {
            out.push(b'"');
            cell::zoned(text, value, out)?;
            out.push(b'"');
            Ok(())
        }
        Encoding::Uuid => string(cell::uuid(text, value)?.as_bytes(), out),
        Encoding::Array(element) => array(element, text, value, out),
    }
}

fn integer(value: impl itoa::Integer, out: &mut Vec<u8>) -> Written {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    Ok(())
}

/// PostgreSQL's text of a float is a number to JSON, but for the words.
fn float(text: &[u8], out: &mut Vec<u8>) -> Written {
    match text.iter().rev().find(|byte| byte.is_ascii_alphabetic() && **byte != b'e') {
        None => out.extend_from_slice(text),
        Some(_) => string(text, out)?,
    }
    Ok(())
}

/// A JSON string.
pub(crate) fn string(value: &[u8], out: &mut Vec<u8>) -> Written {
    let text = cell::text(value)?;
    serde_json::to_writer(out, text).map_err(|_| cell::MALFORMED)
}

fn base64(value: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + value.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(value, &mut out[start..]).unwrap_or(0);
    out.truncate(start + written);
    out.push(b'"');
}

fn variable_decimal(text: &[u8], out: &mut Vec<u8>) -> Written {
    let (scale, unscaled) = cell::variable_decimal(text)?;
    out.extend_from_slice(b"{\"scale\":");
    integer(scale, out)?;
    out.extend_from_slice(b",\"value\":");
    base64(unscaled.bytes(), out);
    out.push(b'}');
    Ok(())
}

fn array(element: &Encoding, text: bool, value: &[u8], out: &mut Vec<u8>) -> Written {
    let mut elements = Elements::default();
    if text {
        elements.take_text(value)?
    } else {
        elements.take_binary(value)?
    }
    out.push(b'[');
    for (index, cell) in elements.cells().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_cell(element, cell, out)?;
    }
    out.push(b']');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Unit;

    fn json(encoding: &Encoding, text: &str) -> Result<String, &'static str> {
        let mut out = Vec::new();
        write_cell(encoding, Cell::Text(text.as_bytes()), &mut out)?;
        Ok(String::from_utf8(out).expect("JSON is text"))
    }

    /// The bytes are those of Java's `new BigDecimal(text).unscaledValue().toByteArray()`.
    #[test]
    fn decimals_are_the_bytes_that_java_makes() {
        let scaled = |text| json(&Encoding::Decimal { precision: 40, scale: 2 }, text);
        for (text, bytes) in [
            ("0.00", &[0][..]),
            ("1.27", &[127]),
            ("1.28", &[0, 128]),
            ("-1.28", &[128]),
            ("-1.29", &[255, 127]),
            ("327.67", &[127, 255]),
            ("327.68", &[0, 128, 0]),
            ("5", &[1, 244]),
            ("92233720368547758.07", &[127, 255, 255, 255, 255, 255, 255, 255]),
            ("92233720368547758.08", &[0, 128, 0, 0, 0, 0, 0, 0, 0]),
            ("-92233720368547758.09", &[255, 127, 255, 255, 255, 255, 255, 255, 255]),
        ] {
            assert_eq!(scaled(text), Ok(format!("\"{}\"", STANDARD.encode(bytes))), "{text}");
        }
        assert_eq!(scaled("NaN"), Err("is NaN"));
        assert_eq!(scaled("-Infinity"), Err("is infinite"));
        assert_eq!(scaled("1.234"), Err("has more fractional digits than the column's scale"));
        assert!(scaled("").is_err() && scaled(".5").is_err() && scaled("1e5").is_err());
        assert_eq!(
            json(&Encoding::VariableDecimal, "-12.50"),
            Ok(r#"{"scale":2,"value":"+x4="}"#.to_owned())
        );
        assert_eq!(json(&Encoding::VariableDecimal, "7"), Ok(r#"{"scale":0,"value":"Bw=="}"#.to_owned()));
    }

    #[test]
    fn times_have_debeziums_units_and_zoned_ones_are_iso() {
        let micros = Encoding::Timestamp(Unit::Micros);
        assert_eq!(json(&micros, "1970-01-01 00:00:00.000001"), Ok("1".to_owned()));
        assert_eq!(json(&micros, "infinity"), Ok("9223372036825200000".to_owned()));
        assert_eq!(json(&Encoding::Timestamp(Unit::Millis), "1969-12-31 23:59:59.999"), Ok("-1".to_owned()));
        assert_eq!(json(&Encoding::Time(Unit::Micros), "24:00:00"), Ok("86400000000".to_owned()));
        assert_eq!(json(&Encoding::Date, "2000-01-01"), Ok("10957".to_owned()));
        let zoned = |text| json(&Encoding::ZonedTimestamp, text);
        assert_eq!(zoned("2024-02-29 12:00:00.5+00"), Ok("\"2024-02-29T12:00:00.5Z\"".to_owned()));
        assert_eq!(zoned("12024-02-29 12:00:00+00"), Ok("\"+12024-02-29T12:00:00Z\"".to_owned()));
        assert_eq!(zoned("0044-03-15 00:00:00+00 BC"), Ok("\"-0043-03-15T00:00:00Z\"".to_owned()));
        assert_eq!(zoned("-infinity"), Ok("\"-infinity\"".to_owned()));
    }

    #[test]
    fn words_of_floats_and_texts_are_quoted() {
        assert_eq!(json(&Encoding::Float64, "-1.5e-07"), Ok("-1.5e-07".to_owned()));
        assert_eq!(json(&Encoding::Float64, "-Infinity"), Ok("\"-Infinity\"".to_owned()));
        assert_eq!(json(&Encoding::Float32, "NaN"), Ok("\"NaN\"".to_owned()));
        assert_eq!(json(&Encoding::Text, "a\"\n\u{1}é"), Ok("\"a\\\"\\n\\u0001é\"".to_owned()));
        assert_eq!(json(&Encoding::Bytes(BinaryMode::Hex), "\\x00ff"), Ok("\"00ff\"".to_owned()));
        assert_eq!(json(&Encoding::Bytes(BinaryMode::Bytes), "\\x00ff"), Ok("\"AP8=\"".to_owned()));
        let array = Encoding::Array(Box::new(Encoding::Text));
        assert_eq!(json(&array, "{a,NULL,\"b,c\"}"), Ok("[\"a\",null,\"b,c\"]".to_owned()));
        assert!(json(&array, "{{a}}").is_err());
    }
}
