//! Numbers from PostgreSQL's text and binary forms, and back to text.
//!
//! Binary numeric: PostgreSQL source, `numeric.c`, `numeric_send`: digits(2) weight(2) sign(2) display scale(2), then base-10000 digits.

const NUMERIC_NEGATIVE: u16 = 0x4000;
const NUMERIC_POSITIVE: u16 = 0x0000;
const BASE: i128 = 10_000;
const BASE_DIGITS: i32 = 4;

/// A decimal's digits as an integer scaled by `10^scale`. `Err` says why it does not fit.
pub fn decimal_from_text(text: &[u8], precision: u8, scale: i8) -> Result<i128, &'static str> {
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    let mut value: i128 = 0;
    let mut fraction: Option<i32> = None;
    let mut seen = false;
    for &byte in digits {
        match byte {
            b'0'..=b'9' => {
                seen = true;
                let digit = i128::from(byte - b'0');
                match &mut fraction {
                    Some(places) if *places >= i32::from(scale) => {
                        if digit != 0 {
                            return Err("has more fractional digits than the column's scale");
                        }
                        continue;
                    }
                    Some(places) => *places += 1,
                    None => {}
                }
                value = value
                    .checked_mul(10)
                    .and_then(|value| value.checked_add(digit))
                    .ok_or("has too many digits")?;
            }
            b'.' if fraction.is_none() => fraction = Some(0),
            _ => return Err(special(text)),
        }
    }
    if !seen {
        return Err(special(text));
    }
    let missing = i32::from(scale) - fraction.unwrap_or(0);
    let value = shift(value, missing)?;
    within(if negative { -value } else { value }, precision)
}

/// Room for the digits of the longest decimal of 32 bytes, and its sign.
pub type WideDigits = [u8; 77];
/// The digits of such a decimal.
const WIDE_PRECISION_MAX: u8 = 76;

/// A decimal's digits as the text of an integer scaled by `10^scale`, for precisions up to 76: `-1234` for `-12.34` with scale 2. `Err` says
/// why it does not fit.
pub fn scaled_digits<'r>(
    text: &[u8],
    precision: u8,
    scale: i8,
    room: &'r mut WideDigits,
) -> Result<&'r str, &'static str> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let point = digits.iter().position(|&byte| byte == b'.').unwrap_or(digits.len());
    let (whole, fraction) = (&digits[..point], digits.get(point + 1..).unwrap_or_default());
    let all_digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return Err(special(text));
    }
    let places = usize::try_from(scale).unwrap_or(0);
    let (kept, beyond) = fraction.split_at(fraction.len().min(places));
    if beyond.iter().any(|&byte| byte != b'0') {
        return Err("has more fractional digits than the column's scale");
    }
    let whole = &whole[whole.iter().take_while(|&&byte| byte == b'0').count()..];
    if whole.len() + places > usize::from(precision.min(WIDE_PRECISION_MAX)) {
        return Err("has more digits than the column's precision");
    }
    let sign = if digits.len() < text.len() { &b"-"[..] } else { &b"0"[..] };
    let zeros = std::iter::repeat_n(&b'0', places - kept.len());
    let mut length = 0;
    for (place, &byte) in room.iter_mut().zip(sign.iter().chain(whole).chain(kept).chain(zeros)) {
        *place = byte;
        length += 1;
    }
    if length == 1 {
        // Nothing but zeros, and no places for them.
        room[0] = b'0';
    }
    std::str::from_utf8(&room[..length]).map_err(|_| special(text))
}

fn special(text: &[u8]) -> &'static str {
    match text {
        b"NaN" => "is NaN",
        b"Infinity" | b"-Infinity" => "is infinite",
        _ => "is not a number",
    }
}

/// The first whole number with more digits than a precision.
const LIMITS: [u128; 39] = {
    let (mut limits, mut at) = ([1; 39], 1);
    while at < limits.len() {
        limits[at] = limits[at - 1] * 10;
        at += 1;
    }
    limits
};

/// See [`decimal_from_text`].
pub fn decimal_from_binary(bytes: &[u8], precision: u8, scale: i8) -> Result<i128, &'static str> {
    let word = |at: usize| bytes.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let (Some(count), Some(weight), Some(sign)) = (word(0), word(2), word(4)) else {
        return Err("is malformed");
    };
    match sign {
        NUMERIC_POSITIVE | NUMERIC_NEGATIVE => {}
        0xC000 => return Err("is NaN"),
        0xD000 | 0xF000 => return Err("is infinite"),
        _ => return Err("is malformed"),
    }
    if bytes.len() != 8 + 2 * usize::from(count) {
        return Err("is malformed");
    }
    let weight = i32::from(weight as i16);
    // The last digit stands for BASE^(weight - count + 1); in units of the scale, for 10^exponent.
    let exponent = (weight - i32::from(count) + 1) * BASE_DIGITS + i32::from(scale);
    if let Some(value) = few_digits(&bytes[8..], exponent) {
        let value = i128::from(value);
        return within(if sign == NUMERIC_NEGATIVE { -value } else { value }, precision);
    }
    let mut value: i128 = 0;
    for index in 0..count {
        let digit = i128::from(word(8 + usize::from(index) * 2).ok_or("is malformed")?);
        if digit >= BASE {
            return Err("is malformed");
        }
        // A scale that is no multiple of four cuts through the last digit: only its leading part is taken, the rest must be zero. Taking
        // all of it first would overflow on 38 digits.
        let cut = if index + 1 == count && exponent < 0 {
            exponent.unsigned_abs().min(BASE_DIGITS as u32)
        } else {
            0
        };
        let divisor = 10i128.pow(cut);
        if digit % divisor != 0 {
            return Err("has more fractional digits than the column's scale");
        }
        value = value
            .checked_mul(BASE / divisor)
            .and_then(|value| value.checked_add(digit / divisor))
            .ok_or("has too many digits")?;
    }
    let value = shift(value, if exponent < 0 { (exponent + BASE_DIGITS).min(0) } else { exponent })?;
    within(if sign == NUMERIC_NEGATIVE { -value } else { value }, precision)
}

/// At most sixteen digits, `exponent` places further left, where that is exact in 64 bits; dividing 128 bits takes ten times as long.
fn few_digits(digits: &[u8], exponent: i32) -> Option<u64> {
    if digits.len() > 8 {
        return None;
    }
    let mut value = 0;
    for pair in digits.chunks_exact(2) {
        let digit = u16::from_be_bytes([pair[0], pair[1]]);
        if i128::from(digit) >= BASE {
            return None;
        }
        value = value * BASE as u64 + u64::from(digit);
    }
    let power = 10u64.checked_pow(exponent.unsigned_abs())?;
    match exponent {
        0.. => value.checked_mul(power),
        _ if value % power == 0 => Some(value / power),
        _ => None,
    }
}

/// `value * 10^places`, exactly.
fn shift(value: i128, places: i32) -> Result<i128, &'static str> {
    if value == 0 {
        return Ok(0);
    }
    let power = |places: u32| 10i128.checked_pow(places).ok_or("has too many digits");
    if places >= 0 {
        value.checked_mul(power(places.unsigned_abs())?).ok_or("has too many digits")
    } else {
        let divisor =
            power(places.unsigned_abs()).map_err(|_| "has more fractional digits than the column's scale")?;
        if value % divisor == 0 {
            Ok(value / divisor)
        } else {
            Err("has more fractional digits than the column's scale")
        }
    }
}

fn within(value: i128, precision: u8) -> Result<i128, &'static str> {
    let limit = LIMITS.get(usize::from(precision)).copied().unwrap_or(u128::MAX);
    if value.unsigned_abs() < limit { Ok(value) } else { Err("has more digits than the column's precision") }
}

/// A whole number in text form.
pub fn integer<T: lexical_core::FromLexical>(text: &[u8]) -> Result<T, &'static str> {
    lexical_core::parse(text).map_err(|_| "is not a whole number in range")
}

/// A float in text form; every special form of PostgreSQL's.
pub fn float<T: lexical_core::FromLexical + From<f32>>(text: &[u8]) -> Result<T, &'static str> {
    match text {
        b"NaN" => Ok(T::from(f32::NAN)),
        b"Infinity" => Ok(T::from(f32::INFINITY)),
        b"-Infinity" => Ok(T::from(f32::NEG_INFINITY)),
        _ => lexical_core::parse(text).map_err(|_| "is not a number"),
    }
}

/// The text of a `real`.
pub fn float4_text(value: f32) -> String {
    float_text(f64::from(value), &format!("{value:e}"), 6)
}

/// The text of a `double precision`.
pub fn float8_text(value: f64) -> String {
    float_text(value, &format!("{value:e}"), 15)
}

/// PostgreSQL source, `d2s.c`: shortest digits; an exponent of two digits at least, where the value is below 1e-4
/// or has `whole_digits` digits or more before the point. As PostgreSQL 12 and later write them.
fn float_text(value: f64, scientific: &str, whole_digits: i32) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific.to_owned() };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, digits) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    if !(-4..whole_digits).contains(&exponent) {
        let exponent_sign = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{digits}e{exponent_sign}{:02}", exponent.abs());
    }
    let plain: String = digits.chars().filter(|&character| character != '.').collect();
    if exponent < 0 {
        return format!("{sign}0.{}{plain}", "0".repeat((-exponent - 1) as usize));
    }
    let whole = exponent as usize + 1;
    if plain.len() <= whole {
        return format!("{sign}{plain}{}", "0".repeat(whole - plain.len()));
    }
    format!("{sign}{}.{}", &plain[..whole], &plain[whole..])
}

/// The text of an integer scaled by `10^scale`.
pub fn decimal_text(value: i128, scale: i8) -> String {
    let scale = scale.max(0) as usize;
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if value < 0 { "-" } else { "" };
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The binary form by PostgreSQL's rule, made from the text independently of the parser.
    fn binary(text: &str) -> Vec<u8> {
        let (sign, digits) = text.strip_prefix('-').map_or((0u16, text), |rest| (NUMERIC_NEGATIVE, rest));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let whole = format!("{whole:0>width$}", width = whole.len().div_ceil(4) * 4);
        let padded = format!("{fraction:0<width$}", width = fraction.len().div_ceil(4) * 4);
        let groups = |text: &str| {
            text.as_bytes()
                .chunks(4)
                .map(|group| std::str::from_utf8(group).expect("digits").parse::<u16>().expect("a group"))
                .collect::<Vec<u16>>()
        };
        let (mut list, mut weight) = (groups(&whole), whole.len() as i16 / 4 - 1);
        list.extend(groups(&padded));
        while list.first() == Some(&0) {
            list.remove(0);
            weight -= 1;
        }
        while list.last() == Some(&0) {
            list.pop();
        }
        let mut bytes = Vec::new();
        bytes.extend((list.len() as u16).to_be_bytes());
        bytes.extend((if list.is_empty() { 0 } else { weight }).to_be_bytes());
        bytes.extend(sign.to_be_bytes());
        bytes.extend((fraction.len() as u16).to_be_bytes());
        list.iter().for_each(|group| bytes.extend(group.to_be_bytes()));
        bytes
    }

    fn scaled(text: &str, precision: u8, scale: i8) -> Result<String, &'static str> {
        scaled_digits(text.as_bytes(), precision, scale, &mut [0; 77]).map(str::to_owned)
    }

    #[test]
    fn digits_of_wide_decimals_are_scaled_where_they_fit() {
        let nines = "9".repeat(76);
        for (text, scale, digits) in [
            ("-12.34", 2, "-1234"),
            ("12", 3, "012000"),
            ("1.500", 1, "015"),
            ("-1.00", 0, "-1"),
            ("0.0", 0, "0"),
            ("-0", 0, "0"),
            ("0.5", 1, "05"),
            (nines.as_str(), 0, &format!("0{nines}")),
            (&format!("-{nines}.000"), 0, &format!("-{nines}")),
            (&format!("-0.{nines}"), 76, &format!("-{nines}")),
        ] {
            assert_eq!(scaled(text, 76, scale).as_deref(), Ok(digits), "{text}");
        }
        for (text, scale, word) in [
            ("NaN", 2, "NaN"),
            ("Infinity", 2, "infinite"),
            ("-Infinity", 2, "infinite"),
            ("", 2, "number"),
            ("-", 2, "number"),
            (".5", 2, "number"),
            ("1e5", 2, "number"),
            ("1.2.3", 2, "number"),
            ("+1", 2, "number"),
            ("0.005", 2, "fractional"),
            (&format!("1{nines}"), 0, "precision"),
            ("1", 76, "precision"),
            (&nines, 1, "precision"),
        ] {
            assert!(scaled(text, 76, scale).is_err_and(|reason| reason.contains(word)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn scaled_digits_are_those_of_a_decimal(
            text in "-?(0|[1-9][0-9]{0,9})(\\.[0-9]{1,9})?", precision in 1u8..12, scale in 0i8..12
        ) {
            let scale = scale.min(precision as i8);
            let wide = scaled(&text, precision, scale).map(|digits| digits.parse::<i128>().expect("digits"));
            let narrow = decimal_from_text(text.as_bytes(), precision, scale);
            prop_assert_eq!(wide.is_ok(), narrow.is_ok());
            if let (Ok(wide), Ok(narrow)) = (wide, narrow) {
                prop_assert_eq!(wide, narrow);
            }
        }

        #[test]
        fn both_forms_of_a_decimal_give_its_digits(unscaled in -(10i128.pow(37))..10i128.pow(37), scale in 0u8..30) {
            let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = usize::from(scale) + 1);
            let (whole, fraction) = digits.split_at(digits.len() - usize::from(scale));
            let sign = if unscaled < 0 { "-" } else { "" };
            let text = if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") };
            prop_assert_eq!(decimal_from_text(text.as_bytes(), 38, scale as i8), Ok(unscaled));
            prop_assert_eq!(decimal_from_binary(&binary(&text), 38, scale as i8), Ok(unscaled));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_never_changed() {
        for text in ["NaN", "Infinity", "-Infinity", "", "-", ".", "1.234", "1000", "1e5", "1.2.3"] {
            assert!(decimal_from_text(text.as_bytes(), 5, 2).is_err(), "{text:?}");
        }
        assert_eq!(decimal_from_text(b"1.230", 5, 2), Ok(123));
        assert_eq!(decimal_from_text(b"-0.01", 5, 2), Ok(-1));
        assert_eq!(decimal_from_text(b"999.99", 5, 2), Ok(99_999));
        assert!(decimal_from_binary(&binary("1.2345"), 5, 2).is_err());
        assert!(decimal_from_binary(&binary("1000"), 5, 2).is_err());
        assert_eq!(decimal_from_binary(&[0, 0, 0, 0, 0xC0, 0, 0, 0], 5, 2), Err("is NaN"));
        assert!(decimal_from_binary(&[0, 9, 0], 5, 2).is_err());
        assert_eq!(decimal_from_binary(&binary("1000000"), 10, 0), Ok(1_000_000));
    }

    #[test]
    fn floats_have_their_special_forms() {
        assert!(float::<f64>(b"NaN").expect("NaN").is_nan());
        assert_eq!(float::<f32>(b"-Infinity"), Ok(f32::NEG_INFINITY));
        assert_eq!(float::<f64>(b"-0").map(f64::to_bits), Ok((-0.0f64).to_bits()));
        assert_eq!(float::<f64>(b"1e-07"), Ok(1e-7));
        assert!(float::<f64>(b"x").is_err() && integer::<i16>(b"40000").is_err());
    }

    #[test]
    fn floats_are_written_as_postgresql_writes_them() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1, "0.1"),
            (123456.75, "123456.75"),
            (1e15, "1e+15"),
            (999999999999999.0, "999999999999999"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e300, "1.5e+300"),
            (-2.5e-7, "-2.5e-07"),
            (f64::MAX, "1.7976931348623157e+308"),
        ] {
            assert_eq!(float8_text(value), text);
        }
        assert_eq!(
            (float4_text(1e6), float4_text(123456.0), float4_text(0.1)),
            ("1e+06".into(), "123456".into(), "0.1".into())
        );
        assert_eq!(
            (decimal_text(-5, 2), decimal_text(1200, 0), decimal_text(0, 3)),
            ("-0.05".into(), "1200".into(), "0.000".into())
        );
    }
}
