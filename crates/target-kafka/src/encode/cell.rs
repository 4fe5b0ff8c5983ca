//! What cells hold, from PostgreSQL's text and binary forms, for every form of records.
//!
//! Invariant: no message holds a value.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use num_bigint::BigInt;
use pgferry_values::{bytes, time};

use crate::config::BinaryMode;
use crate::mapping::Unit;

pub(super) const MALFORMED: &str = "is malformed";

/// What Debezium writes for the infinities, in microseconds since 1970-01-01 (Debezium docs, PostgreSQL connector, "Temporal types").
pub(crate) const INFINITY_US: i64 = 9_223_372_036_825_200_000;
/// See [`INFINITY_US`].
pub(crate) const NEGATIVE_INFINITY_US: i64 = -9_223_372_036_832_400_000;

pub(super) fn fixed<const N: usize>(value: &[u8]) -> Result<[u8; N], &'static str> {
    value.try_into().map_err(|_| MALFORMED)
}

pub(super) fn bool(value: &[u8]) -> Result<bool, &'static str> {
    match value {
        b"t" | [1] => Ok(true),
        b"f" | [0] => Ok(false),
        _ => Err(MALFORMED),
    }
}

pub(super) fn text(value: &[u8]) -> Result<&str, &'static str> {
    std::str::from_utf8(value).map_err(|_| "is not valid UTF-8")
}

/// The document's text without the version that the binary form begins with.
pub(super) fn jsonb(is_text: bool, value: &[u8]) -> Result<&[u8], &'static str> {
    if is_text { Ok(value) } else { value.strip_prefix(&[1]).ok_or("has an unknown jsonb version") }
}

pub(super) fn uuid(is_text: bool, value: &[u8]) -> Result<Cow<'_, str>, &'static str> {
    if is_text { text(value).map(Cow::Borrowed) } else { Ok(bytes::uuid_text(fixed(value)?).into()) }
}

pub(super) fn bytea(is_text: bool, value: &[u8]) -> Result<Cow<'_, [u8]>, &'static str> {
    if !is_text {
        return Ok(Cow::Borrowed(value));
    }
    let mut decoded = Vec::new();
    bytes::bytea_from_text(value, &mut decoded)?;
    Ok(Cow::Owned(decoded))
}

/// Bytes as the text that the mode asks for.
pub(super) fn binary_text(mode: BinaryMode, value: &[u8]) -> String {
    match mode {
        BinaryMode::Bytes | BinaryMode::Base64 => STANDARD.encode(value),
        BinaryMode::Base64UrlSafe => URL_SAFE.encode(value),
        BinaryMode::Hex => bytes::bytea_text(value).split_off(2),
    }
}

pub(super) fn days(is_text: bool, value: &[u8]) -> Result<i32, &'static str> {
    if is_text { time::date_from_text(value) } else { time::date_from_binary(value) }
}

pub(super) fn time_of_day(is_text: bool, value: &[u8], unit: Unit) -> Result<i64, &'static str> {
    let us = if is_text { time::time_from_text(value) } else { time::time_from_binary(value) };
    Ok(in_unit(us?, unit))
}

/// Since 1970-01-01, the infinities as Debezium has them.
pub(super) fn timestamp(is_text: bool, value: &[u8], unit: Unit) -> Result<i64, &'static str> {
    let us = if is_text { time::timestamp_from_text(value) } else { time::timestamp_from_binary(value) };
    match us? {
        i64::MAX => Ok(in_unit(INFINITY_US, unit)),
        us if us == -i64::MAX => Ok(in_unit(NEGATIVE_INFINITY_US, unit)),
        us if us >= INFINITY_US => Err("is out of range"),
        us => Ok(in_unit(us, unit)),
    }
}

fn in_unit(us: i64, unit: Unit) -> i64 {
    match unit {
        Unit::Micros => us,
        Unit::Millis | Unit::MillisRounded => us.div_euclid(1_000),
    }
}

/// A whole number as the shortest two's complement, big-endian: what Java's `BigInteger.toByteArray` gives.
pub(super) enum Unscaled {
    Short([u8; 8], usize),
    Long(Vec<u8>),
}

impl Unscaled {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Unscaled::Short(bytes, skipped) => &bytes[*skipped..],
            Unscaled::Long(bytes) => bytes,
        }
    }
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

fn unscaled(negative: bool, digits: &[u8]) -> Unscaled {
    let significant = digits.iter().position(|&digit| digit != b'0').unwrap_or(digits.len());
    let digits = &digits[significant..];
    if digits.len() > 18 {
        let value = BigInt::parse_bytes(digits, 10).unwrap_or_default();
        return Unscaled::Long((if negative { -value } else { value }).to_signed_bytes_be());
    }
    let value = digits.iter().fold(0i64, |value, digit| value * 10 + i64::from(digit - b'0'));
    let value = if negative { -value } else { value };
    let spare = if value < 0 { value.leading_ones() } else { value.leading_zeros() } as usize;
    // One bit is the sign.
    Unscaled::Short(value.to_be_bytes(), ((spare - 1) / 8).min(7))
}

/// A decimal's digits at its column's scale.
pub(super) fn decimal(text: &[u8], precision: u16, scale: u16) -> Result<Unscaled, &'static str> {
    let (negative, digits) = digits(text, usize::from(scale))?;
    let leading = digits.iter().take_while(|&&digit| digit == b'0').count();
    if digits.len() - leading > usize::from(precision.max(scale)) {
        return Err("has more digits than the column's precision");
    }
    Ok(unscaled(negative, &digits))
}

/// A decimal's own scale, and its digits.
pub(super) fn variable_decimal(text: &[u8]) -> Result<(usize, Unscaled), &'static str> {
    let scale = text.iter().position(|&byte| byte == b'.').map_or(0, |point| text.len() - point - 1);
    let (negative, digits) = digits(text, scale)?;
    Ok((scale, unscaled(negative, &digits)))
}

/// `2024-02-29T12:00:00.5Z`; years beyond 9999 with a sign, 1 BC as year 0 (ISO 8601, as Java's `ISO_OFFSET_DATE_TIME` reads it). Shorter
/// than 64 bytes.
pub(super) fn zoned(is_text: bool, value: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
    // `2024-02-29 12:00:00.5+00` differs in two places only.
    if let (false, Ok(extreme @ (i64::MAX | i64::MIN))) = (is_text, fixed(value).map(i64::from_be_bytes)) {
        out.extend_from_slice(if extreme > 0 { b"infinity" } else { b"-infinity" });
        return Ok(());
    }
    if is_text
        && (22..=40).contains(&value.len())
        && value[4] == b'-'
        && value[10] == b' '
        && let Some(plain) = value.strip_suffix(b"+00")
    {
        out.extend_from_slice(&plain[..10]);
        out.push(b'T');
        out.extend_from_slice(&plain[11..]);
        out.push(b'Z');
        return Ok(());
    }
    if is_text && matches!(value, b"infinity" | b"-infinity") {
        out.extend_from_slice(value);
        return Ok(());
    }
    let (year, rest) = if is_text { zoned_from_text(value)? } else { zoned_from_binary(value)? };
    let year = match year {
        0..=9999 => format!("{year:04}"),
        10_000.. => format!("+{year}"),
        _ => format!("-{:04}", -year),
    };
    out.extend_from_slice(year.as_bytes());
    out.extend_from_slice(rest.as_bytes());
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
