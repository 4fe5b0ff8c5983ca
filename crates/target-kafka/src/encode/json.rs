//! Cells to JSON values, from PostgreSQL's text and binary forms.
//!
//! Text that is a JSON number already is passed through; the rest is read and written anew. No message holds a value.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use num_bigint::BigInt;
use pgferry_model::Cell;
use pgferry_values::array::Elements;
use pgferry_values::{bytes, number, time};

use crate::config::BinaryMode;
use crate::mapping::{Encoding, Unit};

type Written = Result<(), &'static str>;

const MALFORMED: &str = "is malformed";

/// What Debezium writes for the infinities, in microseconds since 1970-01-01 (Debezium docs, PostgreSQL connector, "Temporal types").
pub(crate) const INFINITY_US: i64 = 9_223_372_036_825_200_000;
/// See [`INFINITY_US`].
pub(crate) const NEGATIVE_INFINITY_US: i64 = -9_223_372_036_832_400_000;

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
        Encoding::Bool => bool(value, out),
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
        Encoding::Decimal { precision, scale } if text => decimal(value, *precision, *scale, out),
        Encoding::VariableDecimal if text => variable_decimal(value, out),
        Encoding::DecimalAsDouble if text => {
            let rounded: f64 = number::float(value)?;
            float(number::float8_text(rounded).as_bytes(), out)
        }
        Encoding::Decimal { .. } | Encoding::VariableDecimal | Encoding::DecimalAsDouble => Err(MALFORMED),
        Encoding::Text => string(value, out),
        Encoding::Jsonb if text => string(value, out),
        Encoding::Jsonb => string(value.strip_prefix(&[1]).ok_or("has an unknown jsonb version")?, out),
        Encoding::Bytes(mode) if text => {
            let mut decoded = Vec::new();
            bytes::bytea_from_text(value, &mut decoded)?;
            binary(*mode, &decoded, out)
        }
        Encoding::Bytes(mode) => binary(*mode, value, out),
        Encoding::Date => {
            let days = if text { time::date_from_text(value) } else { time::date_from_binary(value) };
            integer(days?, out)
        }
        Encoding::Time(unit) => {
            let us = if text { time::time_from_text(value) } else { time::time_from_binary(value) };
            integer(in_unit(us?, *unit), out)
        }
        Encoding::Timestamp(unit) => integer(in_unit(timestamp(text, value)?, *unit), out),
        Encoding::ZonedTimestamp => zoned(text, value, out),
        Encoding::Uuid if text => string(value, out),
        Encoding::Uuid => string(bytes::uuid_text(fixed(value)?).as_bytes(), out),
        Encoding::Array(element) => array(element, text, value, out),
    }
}

fn fixed<const N: usize>(value: &[u8]) -> Result<[u8; N], &'static str> {
    value.try_into().map_err(|_| MALFORMED)
}

fn bool(value: &[u8], out: &mut Vec<u8>) -> Written {
    out.extend_from_slice(match value {
        b"t" | [1] => b"true",
        b"f" | [0] => b"false",
        _ => return Err(MALFORMED),
    });
    Ok(())
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
    let text = std::str::from_utf8(value).map_err(|_| "is not valid UTF-8")?;
    serde_json::to_writer(out, text).map_err(|_| MALFORMED)
}

fn base64(value: &[u8], out: &mut Vec<u8>) {
    encode_base64(&STANDARD, value, out);
}

fn encode_base64(engine: &impl Engine, value: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + value.len().div_ceil(3) * 4, 0);
    let written = engine.encode_slice(value, &mut out[start..]).unwrap_or(0);
    out.truncate(start + written);
    out.push(b'"');
}

fn binary(mode: BinaryMode, value: &[u8], out: &mut Vec<u8>) -> Written {
    match mode {
        BinaryMode::Bytes | BinaryMode::Base64 => base64(value, out),
        BinaryMode::Base64UrlSafe => encode_base64(&URL_SAFE, value, out),
        BinaryMode::Hex => {
            let text = bytes::bytea_text(value);
            string(text.as_bytes().get(2..).unwrap_or_default(), out)?;
        }
    }
    Ok(())
}

/// Sign and digits of a decimal's text as one whole number, padded to `scale` digits after the point.
fn digits(text: &[u8], scale: usize) -> Result<(bool, Vec<u8>), &'static str> {
    let (negative, unsigned) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, text),
    };
    let point = unsigned.iter().position(|&byte| byte == b'.').unwrap_or(unsigned.len());
    let (whole, fraction) = (&unsigned[..point], unsigned.get(point + 1..).unwrap_or_default());
    let all_digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return Err(match text {
            b"NaN" => "is NaN",
            b"Infinity" | b"-Infinity" => "is infinite",
            _ => "is not a number",
        });
    }
    let (kept, cut) = fraction.split_at(fraction.len().min(scale));
    if cut.iter().any(|&digit| digit != b'0') {
        return Err("has more fractional digits than the column's scale");
    }
    let mut digits = Vec::with_capacity(whole.len() + scale);
    digits.extend_from_slice(whole);
    digits.extend_from_slice(kept);
    digits.resize(whole.len() + scale, b'0');
    Ok((negative, digits))
}

/// A whole number as the shortest two's complement, big-endian, in base64: what Java's `BigInteger.toByteArray` gives.
fn unscaled(negative: bool, digits: &[u8], out: &mut Vec<u8>) {
    let significant = digits.iter().position(|&digit| digit != b'0').unwrap_or(digits.len());
    let digits = &digits[significant..];
    if digits.len() > 18 {
        let value = BigInt::parse_bytes(digits, 10).unwrap_or_default();
        base64(&(if negative { -value } else { value }).to_signed_bytes_be(), out);
        return;
    }
    let value = digits.iter().fold(0i64, |value, digit| value * 10 + i64::from(digit - b'0'));
    let value = if negative { -value } else { value };
    let spare = if value < 0 { value.leading_ones() } else { value.leading_zeros() } as usize;
    // One bit is the sign.
    let skipped = ((spare - 1) / 8).min(7);
    base64(&value.to_be_bytes()[skipped..], out);
}

fn decimal(text: &[u8], precision: u16, scale: u16, out: &mut Vec<u8>) -> Written {
    let (negative, digits) = digits(text, usize::from(scale))?;
    let leading = digits.iter().take_while(|&&digit| digit == b'0').count();
    if digits.len() - leading > usize::from(precision.max(scale)) {
        return Err("has more digits than the column's precision");
    }
    unscaled(negative, &digits, out);
    Ok(())
}

fn variable_decimal(text: &[u8], out: &mut Vec<u8>) -> Written {
    let scale = text.iter().position(|&byte| byte == b'.').map_or(0, |point| text.len() - point - 1);
    let (negative, digits) = digits(text, scale)?;
    out.extend_from_slice(b"{\"scale\":");
    integer(scale, out)?;
    out.extend_from_slice(b",\"value\":");
    unscaled(negative, &digits, out);
    out.push(b'}');
    Ok(())
}

fn in_unit(us: i64, unit: Unit) -> i64 {
    match unit {
        Unit::Micros => us,
        Unit::Millis | Unit::MillisRounded => us.div_euclid(1_000),
    }
}

/// Microseconds since 1970-01-01, the infinities as Debezium has them.
fn timestamp(text: bool, value: &[u8]) -> Result<i64, &'static str> {
    let us = if text { time::timestamp_from_text(value) } else { time::timestamp_from_binary(value) };
    match us? {
        i64::MAX => Ok(INFINITY_US),
        us if us == -i64::MAX => Ok(NEGATIVE_INFINITY_US),
        us if us >= INFINITY_US => Err("is out of range"),
        us => Ok(us),
    }
}

/// `2024-02-29T12:00:00.5Z`; years beyond 9999 with a sign, 1 BC as year 0 (ISO 8601, as Java's `ISO_OFFSET_DATE_TIME` reads it).
fn zoned(text: bool, value: &[u8], out: &mut Vec<u8>) -> Written {
    // `2024-02-29 12:00:00.5+00` differs in two places only.
    if let (false, Ok(extreme @ (i64::MAX | i64::MIN))) = (text, fixed(value).map(i64::from_be_bytes)) {
        return string(if extreme > 0 { b"infinity" } else { b"-infinity" }, out);
    }
    if text
        && value.len() >= 22
        && value[4] == b'-'
        && value[10] == b' '
        && let Some(plain) = value.strip_suffix(b"+00")
    {
        out.push(b'"');
        out.extend_from_slice(&plain[..10]);
        out.push(b'T');
        out.extend_from_slice(&plain[11..]);
        out.extend_from_slice(b"Z\"");
        return Ok(());
    }
    if text && value.ends_with(b"infinity") {
        return string(value, out);
    }
    let (year, rest) = if text { zoned_from_text(value)? } else { zoned_from_binary(value)? };
    let year = match year {
        0..=9999 => format!("{year:04}"),
        10_000.. => format!("+{year}"),
        _ => format!("-{:04}", -year),
    };
    out.extend_from_slice(format!("\"{year}{rest}\"").as_bytes());
    Ok(())
}

/// Year, 1 BC as 0, and the rest: microseconds since 1970 do not reach as far as PostgreSQL's years.
fn zoned_from_text(value: &[u8]) -> Result<(i64, String), &'static str> {
    let text = std::str::from_utf8(value).map_err(|_| MALFORMED)?;
    let (text, era) = text.strip_suffix(" BC").map_or((text, 1), |rest| (rest, -1));
    let (date, clock) = text.strip_suffix("+00").and_then(|rest| rest.split_once(' ')).ok_or(MALFORMED)?;
    let (year, month_and_day) = date.split_once('-').ok_or(MALFORMED)?;
    let year: i64 = year.parse().map_err(|_| MALFORMED)?;
    Ok((if era < 0 { 1 - year } else { year }, format!("-{month_and_day}T{clock}Z")))
}

/// See [`zoned_from_text`].
fn zoned_from_binary(value: &[u8]) -> Result<(i64, String), &'static str> {
    let since_2000 = fixed(value).map(i64::from_be_bytes)?;
    let days = since_2000.div_euclid(time::DAY_US) + time::EPOCH_DAYS;
    let (year, month, day) = time::civil_from_days(days);
    let clock = time::time_text(since_2000.rem_euclid(time::DAY_US));
    Ok((year, format!("-{month:02}-{day:02}T{clock}Z")))
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
