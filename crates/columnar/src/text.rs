//! Text forms, as PostgreSQL's output functions write them under `DateStyle = ISO`, `TimeZone = UTC`,
//! `bytea_output = hex` and `extra_float_digits = 3`.
//!
//! Sources of the forms: `EncodeDateOnly`, `EncodeDateTime` (datetime.c), `numeric_out` (numeric.c), `float8out_internal`
//! (float.c), `byteaout` (varlena.c), `uuid_out` (uuid.c).

use crate::calendar::{US_PER_DAY, days_from_civil};
use crate::encoding::Reason;

pub(crate) type Parsed<T> = Result<T, Reason>;

const MALFORMED: Reason = Reason::Malformed;

pub(crate) fn boolean(bytes: &[u8]) -> Parsed<bool> {
    match bytes {
        b"t" => Ok(true),
        b"f" => Ok(false),
        _ => Err(MALFORMED),
    }
}

pub(crate) fn integer<T: lexical_core::FromLexical>(bytes: &[u8]) -> Parsed<T> {
    lexical_core::parse(bytes).map_err(|failure| match failure {
        lexical_core::Error::Overflow(_) | lexical_core::Error::Underflow(_) => Reason::OutOfRange,
        _ => MALFORMED,
    })
}

pub(crate) fn float4(bytes: &[u8]) -> Parsed<f32> {
    match bytes {
        b"NaN" => Ok(f32::NAN),
        b"Infinity" => Ok(f32::INFINITY),
        b"-Infinity" => Ok(f32::NEG_INFINITY),
        _ => lexical_core::parse(bytes).map_err(|_| MALFORMED),
    }
}

pub(crate) fn float8(bytes: &[u8]) -> Parsed<f64> {
    match bytes {
        b"NaN" => Ok(f64::NAN),
        b"Infinity" => Ok(f64::INFINITY),
        b"-Infinity" => Ok(f64::NEG_INFINITY),
        _ => lexical_core::parse(bytes).map_err(|_| MALFORMED),
    }
}

/// `[-]digits[.digits]` to the integer that is the value times 10^scale.
pub(crate) fn decimal(bytes: &[u8], precision: u8, scale: u8) -> Parsed<i128> {
    let (negative, digits) = match bytes.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, bytes),
    };
    let (whole, fraction) = match memchr::memchr(b'.', digits) {
        Some(point) => (&digits[..point], &digits[point + 1..]),
        None => (digits, &digits[..0]),
    };
    if whole.is_empty() {
        return Err(MALFORMED);
    }
    if !whole[0].is_ascii_digit() {
        let special = matches!(digits, b"NaN" | b"Infinity");
        return Err(if special { Reason::NotFinite } else { MALFORMED });
    }
    if fraction.len() > scale as usize {
        return Err(Reason::FractionTooLong);
    }
    let magnitude = if whole.len() + scale as usize <= 18 {
        let value = push_digits64(push_digits64(0, whole)?, fraction)?;
        i128::from(value * POWERS64[scale as usize - fraction.len()])
    } else {
        let value = push_digits(push_digits(0, whole)?, fraction)?;
        value.checked_mul(power_of_ten(scale as usize - fraction.len())).ok_or(Reason::OutOfRange)?
    };
    if magnitude >= power_of_ten(precision as usize) {
        return Err(Reason::OutOfRange);
    }
    Ok(if negative { -magnitude } else { magnitude })
}

const POWERS64: [i64; 19] = {
    let mut powers = [1i64; 19];
    let mut at = 1;
    while at < 19 {
        powers[at] = powers[at - 1] * 10;
        at += 1;
    }
    powers
};

/// 10^exponent, for exponents up to 38.
pub(crate) fn power_of_ten(exponent: usize) -> i128 {
    const POWERS: [i128; 39] = {
        let mut powers = [1i128; 39];
        let mut at = 1;
        while at < 39 {
            powers[at] = powers[at - 1] * 10;
            at += 1;
        }
        powers
    };
    POWERS[exponent]
}

#[inline]
fn push_digits64(mut value: i64, digits: &[u8]) -> Parsed<i64> {
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return Err(MALFORMED);
        }
        value = value * 10 + i64::from(digit);
    }
    Ok(value)
}

fn push_digits(mut value: i128, digits: &[u8]) -> Parsed<i128> {
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return Err(MALFORMED);
        }
        value = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(i128::from(digit)))
            .ok_or(Reason::OutOfRange)?;
    }
    Ok(value)
}

/// Days since 1970-01-01; infinities as [`crate::Encoding::Date32`] says.
pub(crate) fn date(bytes: &[u8]) -> Parsed<i32> {
    match bytes {
        b"infinity" => return Ok(i32::MAX),
        b"-infinity" => return Ok(-i32::MAX),
        _ => {}
    }
    let (bytes, before_christ) = era(bytes);
    let (days, rest) = civil(bytes, before_christ)?;
    if !rest.is_empty() {
        return Err(MALFORMED);
    }
    i32::try_from(days).map_err(|_| Reason::OutOfRange)
}

/// Microseconds since 1970-01-01 00:00; infinities as [`crate::Encoding::TimestampMicros`] says. A zone offset is taken off.
pub(crate) fn timestamp(bytes: &[u8]) -> Parsed<i64> {
    match bytes {
        b"infinity" => return Ok(i64::MAX),
        b"-infinity" => return Ok(-i64::MAX),
        _ => {}
    }
    let (bytes, before_christ) = era(bytes);
    let (days, rest) = civil(bytes, before_christ)?;
    let Some((b' ', rest)) = rest.split_first() else { return Err(MALFORMED) };
    let (time, rest) = clock(rest)?;
    let offset = zone_offset(rest)?;
    days.checked_mul(US_PER_DAY)
        .and_then(|us| us.checked_add(time))
        .and_then(|us| us.checked_sub(offset))
        .filter(|&us| us != i64::MAX && us > -i64::MAX)
        .ok_or(Reason::OutOfRange)
}

/// Microseconds since midnight, 24:00:00 included.
pub(crate) fn time(bytes: &[u8]) -> Parsed<i64> {
    let (us, rest) = clock(bytes)?;
    if !rest.is_empty() || us > US_PER_DAY {
        return Err(MALFORMED);
    }
    Ok(us)
}

fn era(bytes: &[u8]) -> (&[u8], bool) {
    match bytes.strip_suffix(b" BC") {
        Some(rest) => (rest, true),
        None => (bytes, false),
    }
}

/// `YYYY-MM-DD`, four or more digits of year; returns the days and what follows.
fn civil(bytes: &[u8], before_christ: bool) -> Parsed<(i64, &[u8])> {
    let dash = bytes.iter().take(8).position(|&byte| byte == b'-').ok_or(MALFORMED)?;
    if dash < 4 || bytes.len() < dash + 6 || bytes[dash + 3] != b'-' {
        return Err(MALFORMED);
    }
    let year = push_digits64(0, &bytes[..dash])?;
    if year == 0 {
        return Err(MALFORMED);
    }
    let year = if before_christ { 1 - year } else { year };
    let (month, day) = (two_digits(&bytes[dash + 1..])?, two_digits(&bytes[dash + 4..])?);
    let days = days_from_civil(year, month, day).ok_or(MALFORMED)?;
    Ok((days, &bytes[dash + 6..]))
}

/// `HH:MM:SS[.ffffff]`; returns microseconds and what follows.
fn clock(bytes: &[u8]) -> Parsed<(i64, &[u8])> {
    if bytes.len() < 8 || bytes[2] != b':' || bytes[5] != b':' {
        return Err(MALFORMED);
    }
    let (hours, minutes, seconds) = (two_digits(bytes)?, two_digits(&bytes[3..])?, two_digits(&bytes[6..])?);
    if hours > 24 || minutes > 59 || seconds > 59 {
        return Err(MALFORMED);
    }
    let mut us = (i64::from(hours) * 3600 + i64::from(minutes) * 60 + i64::from(seconds)) * 1_000_000;
    let mut rest = &bytes[8..];
    if let Some((b'.', fraction)) = rest.split_first() {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 || digits > 6 {
            return Err(MALFORMED);
        }
        us += push_digits64(0, &fraction[..digits])? * POWERS64[6 - digits];
        rest = &fraction[digits..];
    }
    Ok((us, rest))
}

/// Nothing, or `+HH[:MM[:SS]]` or `-HH…`, in microseconds east of UTC.
fn zone_offset(bytes: &[u8]) -> Parsed<i64> {
    let (sign, rest) = match bytes.split_first() {
        None => return Ok(0),
        Some((b'+', rest)) => (1, rest),
        Some((b'-', rest)) => (-1, rest),
        Some(_) => return Err(MALFORMED),
    };
    let seconds = match rest.len() {
        2 => two_digits(rest)? * 3600,
        5 if rest[2] == b':' => two_digits(rest)? * 3600 + two_digits(&rest[3..])? * 60,
        8 if rest[2] == b':' && rest[5] == b':' => {
            two_digits(rest)? * 3600 + two_digits(&rest[3..])? * 60 + two_digits(&rest[6..])?
        }
        _ => return Err(MALFORMED),
    };
    Ok(sign * i64::from(seconds) * 1_000_000)
}

#[inline]
fn two_digits(bytes: &[u8]) -> Parsed<u32> {
    match bytes {
        [tens, ones, ..] if tens.is_ascii_digit() && ones.is_ascii_digit() => {
            Ok(u32::from(tens - b'0') * 10 + u32::from(ones - b'0'))
        }
        _ => Err(MALFORMED),
    }
}

/// 8-4-4-4-12 hexadecimal digits.
pub(crate) fn uuid(bytes: &[u8]) -> Parsed<[u8; 16]> {
    if bytes.len() != 36 {
        return Err(MALFORMED);
    }
    let mut value = [0u8; 16];
    let mut at = 0;
    for byte in &mut value {
        if matches!(at, 8 | 13 | 18 | 23) {
            if bytes[at] != b'-' {
                return Err(MALFORMED);
            }
            at += 1;
        }
        *byte = hex_pair(bytes[at], bytes[at + 1])?;
        at += 2;
    }
    Ok(value)
}

/// `\x` and pairs of hexadecimal digits, appended to `out`.
pub(crate) fn bytea(bytes: &[u8], out: &mut Vec<u8>) -> Parsed<()> {
    let digits = bytes.strip_prefix(b"\\x").ok_or(MALFORMED)?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(MALFORMED);
    }
    for &[high, low] in pairs {
        out.push(hex_pair(high, low)?);
    }
    Ok(())
}

const NOT_HEX: u8 = 0xFF;

const HEX: [u8; 256] = {
    let mut table = [NOT_HEX; 256];
    let mut at = 0;
    while at < 10 {
        table[b'0' as usize + at] = at as u8;
        at += 1;
    }
    at = 0;
    while at < 6 {
        table[b'a' as usize + at] = 10 + at as u8;
        table[b'A' as usize + at] = 10 + at as u8;
        at += 1;
    }
    table
};

#[inline]
fn hex_pair(high: u8, low: u8) -> Parsed<u8> {
    let (high, low) = (HEX[high as usize], HEX[low as usize]);
    if high == NOT_HEX || low == NOT_HEX {
        return Err(MALFORMED);
    }
    Ok(high << 4 | low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_over_the_whole_range() {
        for (text, days) in [
            ("1970-01-01", 0),
            ("2000-02-29", 11_016),
            ("4714-11-24 BC", -2_440_588),
            ("0001-12-31 BC", -719_163),
            ("5874897-12-31", 2_145_042_905),
            ("infinity", i32::MAX),
            ("-infinity", -i32::MAX),
        ] {
            assert_eq!(date(text.as_bytes()), Ok(days), "{text}");
        }
        for text in ["", "0000-01-01", "2023-02-29", "2023-1-1", "99-01-01", "2023-01-01 ", "Infinity", "2023-01-01x"] {
            assert_eq!(date(text.as_bytes()), Err(Reason::Malformed), "{text}");
        }
    }

    #[test]
    fn timestamps_and_times() {
        for (text, us) in [
            ("1970-01-01 00:00:00", 0),
            ("2024-01-01 12:00:00.123456+00", 1_704_110_400_123_456),
            ("2024-01-01 12:00:00.5", 1_704_110_400_500_000),
            ("2024-01-01 12:00:00+05:30", 1_704_110_400_000_000 - 19_800_000_000),
            ("2024-01-01 12:00:00-00:00:01", 1_704_110_401_000_000),
            ("0044-03-15 12:00:00 BC", -63_517_780_800_000_000),
            ("0044-03-15 12:00:00+00 BC", -63_517_780_800_000_000),
            ("294247-01-10 04:00:54.775806", i64::MAX - 1),
            ("infinity", i64::MAX),
            ("-infinity", -i64::MAX),
        ] {
            assert_eq!(timestamp(text.as_bytes()), Ok(us), "{text}");
        }
        assert_eq!(timestamp(b"294247-01-10 04:00:54.775807"), Err(Reason::OutOfRange));
        assert_eq!(timestamp(b"294276-12-31 23:59:59.999999"), Err(Reason::OutOfRange));
        for text in ["2024-01-01", "2024-01-01T00:00:00", "2024-01-01 00:00", "2024-01-01 00:00:00.1234567", "now"] {
            assert_eq!(timestamp(text.as_bytes()), Err(Reason::Malformed), "{text}");
        }
        assert_eq!(time(b"24:00:00"), Ok(US_PER_DAY));
        assert_eq!(time(b"23:59:59.999999"), Ok(US_PER_DAY - 1));
        assert_eq!(time(b"24:00:00.000001"), Err(Reason::Malformed));
        assert_eq!(time(b"12:00:00+00"), Err(Reason::Malformed));
    }

    #[test]
    fn decimals_are_never_rounded() {
        assert_eq!(decimal(b"-12.50", 10, 2), Ok(-1250));
        assert_eq!(decimal(b"12.5", 10, 2), Ok(1250));
        assert_eq!(decimal(b"12300", 7, 0), Ok(12_300));
        assert_eq!(decimal(b"99999999999999999999999999999999999999", 38, 0), Ok(power_of_ten(38) - 1));
        assert_eq!(decimal(b"100", 2, 0), Err(Reason::OutOfRange));
        assert_eq!(decimal(b"999999999999999999999999999999999999999999", 38, 0), Err(Reason::OutOfRange));
        assert_eq!(decimal(b"1.005", 10, 2), Err(Reason::FractionTooLong));
        assert_eq!(decimal(b"0.0012", 4, 4), Ok(12));
        for text in ["NaN", "Infinity", "-Infinity"] {
            assert_eq!(decimal(text.as_bytes(), 10, 2), Err(Reason::NotFinite));
        }
        for text in ["", "-", ".5", "1e5", "1.2.3", "0x10", "+1"] {
            assert_eq!(decimal(text.as_bytes(), 10, 4), Err(Reason::Malformed), "{text}");
        }
    }

    #[test]
    fn bytes_and_uuids() {
        let mut out = Vec::new();
        bytea(b"\\x00fFa5", &mut out).expect("bytes");
        assert_eq!(out, [0, 0xFF, 0xA5]);
        for text in ["00", "\\x0", "\\x0g", "\\\\000"] {
            assert_eq!(bytea(text.as_bytes(), &mut out), Err(Reason::Malformed));
        }
        let value = uuid(b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11").expect("uuid");
        assert_eq!(value[..3], [0xA0, 0xEE, 0xBC]);
        assert_eq!(uuid(b"a0eebc999c0b-4ef8-bb6d-6bb9bd380a11-"), Err(Reason::Malformed));
    }
}
