//! PostgreSQL's output text of native values, in the pinned session settings; the counterpart of `text.rs`.
//!
//! Every function appends to `out`. Floats are written as PostgreSQL 12 and later do: the shortest digits that come back,
//! with an exponent below 1e-4 and from 1e15 (`double precision`) or 1e6 (`real`) on (d2s.c, f2s.c).

use std::io::Write;

use crate::calendar::{US_PER_DAY, civil_from_days};

/// `t` or `f`.
pub fn boolean(value: bool, out: &mut Vec<u8>) {
    out.push(if value { b't' } else { b'f' });
}

/// An integer of any width.
pub fn integer<I: itoa::Integer>(value: I, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// `real`.
pub fn float4(value: f32, out: &mut Vec<u8>) {
    if !special(f64::from(value), out) {
        shortest(format_args!("{value:e}"), 6, out);
    }
}

/// `double precision`.
pub fn float8(value: f64, out: &mut Vec<u8>) {
    if !special(value, out) {
        shortest(format_args!("{value:e}"), 15, out);
    }
}

fn special(value: f64, out: &mut Vec<u8>) -> bool {
    let text: &[u8] = match value {
        _ if value.is_nan() => b"NaN",
        f64::INFINITY => b"Infinity",
        f64::NEG_INFINITY => b"-Infinity",
        _ => return false,
    };
    out.extend_from_slice(text);
    true
}

/// From `[-]d[.ddd]e[-]x`, the form of Rust's own shortest digits.
fn shortest(scientific: std::fmt::Arguments<'_>, exponent_from: i32, out: &mut Vec<u8>) {
    let start = out.len();
    // Writing into a Vec cannot fail.
    let _ = out.write_fmt(scientific);
    let mut digits = [0u8; 24];
    let mut count = 0;
    let mut exponent = 0i32;
    let mut negative = false;
    let mut bytes = out[start..].iter();
    for &byte in bytes.by_ref() {
        match byte {
            b'-' => negative = true,
            b'.' => {}
            b'e' => break,
            _ => {
                digits[count] = byte;
                count += 1;
            }
        }
    }
    let mut exponent_negative = false;
    for &byte in bytes {
        match byte {
            b'-' => exponent_negative = true,
            _ => exponent = exponent * 10 + i32::from(byte - b'0'),
        }
    }
    let exponent = if exponent_negative { -exponent } else { exponent };
    out.truncate(start);
    if negative {
        out.push(b'-');
    }
    place_point(&digits[..count], exponent, exponent_from, out);
}

fn place_point(digits: &[u8], exponent: i32, exponent_from: i32, out: &mut Vec<u8>) {
    if exponent < -4 || exponent >= exponent_from {
        out.push(digits[0]);
        if digits.len() > 1 {
            out.push(b'.');
            out.extend_from_slice(&digits[1..]);
        }
        let sign = if exponent < 0 { '-' } else { '+' };
        let _ = write!(out, "e{sign}{:02}", exponent.unsigned_abs());
    } else if exponent < 0 {
        out.extend_from_slice(b"0.");
        out.resize(out.len() + (-exponent - 1) as usize, b'0');
        out.extend_from_slice(digits);
    } else {
        let whole = exponent as usize + 1;
        if digits.len() <= whole {
            out.extend_from_slice(digits);
            out.resize(out.len() + whole - digits.len(), b'0');
        } else {
            out.extend_from_slice(&digits[..whole]);
            out.push(b'.');
            out.extend_from_slice(&digits[whole..]);
        }
    }
}

/// `numeric` with a fixed number of fractional digits: `value` times 10^-scale.
pub fn decimal(value: i128, scale: u8, out: &mut Vec<u8>) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(value.unsigned_abs()).as_bytes();
    let scale = scale as usize;
    if value < 0 {
        out.push(b'-');
    }
    if digits.len() > scale {
        out.extend_from_slice(&digits[..digits.len() - scale]);
    } else {
        out.push(b'0');
    }
    if scale > 0 {
        out.push(b'.');
        out.resize(out.len() + scale.saturating_sub(digits.len()), b'0');
        out.extend_from_slice(&digits[digits.len().saturating_sub(scale)..]);
    }
}

/// `date`, from days since 1970-01-01 and the infinities of [`crate::Encoding::Date32`].
pub fn date(days: i32, out: &mut Vec<u8>) {
    match days {
        i32::MAX => out.extend_from_slice(b"infinity"),
        _ if days == -i32::MAX => out.extend_from_slice(b"-infinity"),
        _ => {
            let before_christ = civil(i64::from(days), out);
            era(before_christ, out);
        }
    }
}

/// `time`, from microseconds since midnight.
pub fn time(us: i64, out: &mut Vec<u8>) {
    let seconds = us / 1_000_000;
    let _ = write!(out, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut fraction = us % 1_000_000;
    if fraction > 0 {
        let mut width = 6;
        while fraction % 10 == 0 {
            fraction /= 10;
            width -= 1;
        }
        let _ = write!(out, ".{fraction:0width$}");
    }
}

/// `timestamp` or, with `zone`, `timestamptz` in UTC, from microseconds since 1970-01-01 and the infinities of
/// [`crate::Encoding::TimestampMicros`].
pub fn timestamp(us: i64, zone: bool, out: &mut Vec<u8>) {
    match us {
        i64::MAX => out.extend_from_slice(b"infinity"),
        _ if us == -i64::MAX => out.extend_from_slice(b"-infinity"),
        _ => {
            let before_christ = civil(us.div_euclid(US_PER_DAY), out);
            out.push(b' ');
            time(us.rem_euclid(US_PER_DAY), out);
            if zone {
                out.extend_from_slice(b"+00");
            }
            era(before_christ, out);
        }
    }
}

/// Writes `YYYY-MM-DD` and returns whether the year is before Christ.
fn civil(days: i64, out: &mut Vec<u8>) -> bool {
    let (year, month, day) = civil_from_days(days);
    let shown = if year > 0 { year } else { 1 - year };
    let _ = write!(out, "{shown:04}-{month:02}-{day:02}");
    year <= 0
}

fn era(before_christ: bool, out: &mut Vec<u8>) {
    if before_christ {
        out.extend_from_slice(b" BC");
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        out.push(HEX[(byte >> 4) as usize]);
        out.push(HEX[(byte & 15) as usize]);
    }
}

/// `bytea` in hexadecimal form.
pub fn bytea(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"\\x");
    hex(bytes, out);
}

/// `uuid`, from its 16 bytes.
pub fn uuid(bytes: &[u8], out: &mut Vec<u8>) {
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        hex(&[*byte], out);
    }
}

/// An array's element, from its own text: quoted where `array_out` (arrayfuncs.c) quotes it.
pub fn array_element(text: &[u8], out: &mut Vec<u8>) {
    let special = |&byte: &u8| matches!(byte, b'"' | b'\\' | b'{' | b'}' | b',') || is_array_space(byte);
    if !text.is_empty() && !text.eq_ignore_ascii_case(b"NULL") && !text.iter().any(special) {
        out.extend_from_slice(text);
        return;
    }
    out.push(b'"');
    for &byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// What `array_isspace` takes for a blank.
fn is_array_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn floats_as_postgresql_prints_them() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (100_000_000_000_000.0, "100000000000000"),
            (1e15, "1e+15"),
            (123_456_789_012_345.6, "123456789012345.6"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e300, "1.5e+300"),
            (5e-324, "5e-324"),
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(written(|out| float8(value, out)), text);
        }
        for (value, text) in
            [(100_000.0f32, "100000"), (1e6, "1e+06"), (1.1, "1.1"), (3.402_823_5e38, "3.4028235e+38"), (1e-45, "1e-45")]
        {
            assert_eq!(written(|out| float4(value, out)), text);
        }
    }

    #[test]
    fn decimals_dates_and_times() {
        assert_eq!(written(|out| decimal(-5, 2, out)), "-0.05");
        assert_eq!(written(|out| decimal(1250, 2, out)), "12.50");
        assert_eq!(written(|out| decimal(0, 3, out)), "0.000");
        assert_eq!(written(|out| decimal(i128::MIN + 1, 0, out)), "-170141183460469231731687303715884105727");
        assert_eq!(written(|out| date(-719_163, out)), "0001-12-31 BC");
        assert_eq!(written(|out| date(2_145_042_905, out)), "5874897-12-31");
        assert_eq!(written(|out| time(86_400_000_000, out)), "24:00:00");
        assert_eq!(written(|out| time(1_000, out)), "00:00:00.001");
        assert_eq!(written(|out| timestamp(-63_517_780_800_000_000, true, out)), "0044-03-15 12:00:00+00 BC");
        assert_eq!(written(|out| timestamp(-i64::MAX, false, out)), "-infinity");
    }

    #[test]
    fn array_elements_are_quoted_where_needed() {
        for (text, quoted) in
            [("a", "a"), ("", "\"\""), ("null", "\"null\""), ("a b", "\"a b\""), ("a\"\\", "\"a\\\"\\\\\""), ("é", "é")]
        {
            assert_eq!(written(|out| array_element(text.as_bytes(), out)), quoted);
        }
    }
}
