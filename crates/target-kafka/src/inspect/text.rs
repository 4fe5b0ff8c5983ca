//! Values of records as PostgreSQL's own text: the way back of `encode/json.rs`.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use num_bigint::BigInt;
use pgferry_values::array::array_text;
use pgferry_values::{bytes, number, time};
use serde_json::Value;

use crate::config::BinaryMode;
use crate::encode::{INFINITY_US, NEGATIVE_INFINITY_US};
use crate::mapping::{Encoding, Unit};

/// The text, or `Some(None)` for NULL; `None`: the value is not in the encoding's form.
pub(super) fn of(encoding: &Encoding, value: &Value) -> Option<Option<String>> {
    if value.is_null() {
        return Some(None);
    }
    let text = match encoding {
        Encoding::Bool => if value.as_bool()? { "t" } else { "f" }.to_owned(),
        Encoding::Int16 | Encoding::Int32 | Encoding::Int64 | Encoding::UInt32 => value.as_i64()?.to_string(),
        Encoding::Float32 => match value {
            Value::String(word) => word.clone(),
            other => number::float4_text(other.as_f64()? as f32),
        },
        Encoding::Float64 | Encoding::DecimalAsDouble => match value {
            Value::String(word) => word.clone(),
            other => number::float8_text(other.as_f64()?),
        },
        Encoding::Decimal { scale, .. } => decimal(value, usize::from(*scale))?,
        Encoding::VariableDecimal => {
            decimal(value.get("value")?, usize::try_from(value.get("scale")?.as_u64()?).ok()?)?
        }
        Encoding::Text | Encoding::Jsonb | Encoding::Uuid => value.as_str()?.to_owned(),
        Encoding::Bytes(mode) => bytes::bytea_text(&binary(*mode, value.as_str()?)?),
        Encoding::Date => time::date_text(i32::try_from(value.as_i64()?).ok()?),
        Encoding::Time(unit) => time::time_text(micros(value.as_i64()?, *unit)),
        Encoding::Timestamp(unit) => timestamp(value.as_i64()?, *unit),
        Encoding::ZonedTimestamp => zoned(value.as_str()?)?,
        Encoding::Array(element) => {
            let elements: Option<Vec<Option<String>>> =
                value.as_array()?.iter().map(|item| of(element, item)).collect();
            array_text(elements?)
        }
    };
    Some(Some(text))
}

fn decimal(value: &Value, scale: usize) -> Option<String> {
    let unscaled = BigInt::from_signed_bytes_be(&STANDARD.decode(value.as_str()?).ok()?);
    let digits = format!("{:0>width$}", unscaled.magnitude().to_string(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if unscaled.sign() == num_bigint::Sign::Minus { "-" } else { "" };
    Some(if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
}

fn binary(mode: BinaryMode, text: &str) -> Option<Vec<u8>> {
    match mode {
        BinaryMode::Bytes | BinaryMode::Base64 => STANDARD.decode(text).ok(),
        BinaryMode::Base64UrlSafe => URL_SAFE.decode(text).ok(),
        BinaryMode::Hex => {
            let mut decoded = Vec::new();
            bytes::bytea_from_text(format!("\\x{text}").as_bytes(), &mut decoded).ok()?;
            Some(decoded)
        }
    }
}

fn micros(value: i64, unit: Unit) -> i64 {
    if unit == Unit::Micros { value } else { value * 1_000 }
}

fn timestamp(value: i64, unit: Unit) -> String {
    let infinity = |us: i64| if unit == Unit::Micros { us } else { us.div_euclid(1_000) };
    if value == infinity(INFINITY_US) {
        return "infinity".to_owned();
    }
    if value == infinity(NEGATIVE_INFINITY_US) {
        return "-infinity".to_owned();
    }
    time::timestamp_text(micros(value, unit), false)
}

/// ISO 8601 in UTC to PostgreSQL's form.
fn zoned(text: &str) -> Option<String> {
    if text.ends_with("infinity") {
        return Some(text.to_owned());
    }
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let (sign, digits) = match date.as_bytes().first()? {
        b'-' => (-1, &date[1..]),
        b'+' => (1, &date[1..]),
        _ => (1, date),
    };
    let (year, month_and_day) = digits.split_once('-')?;
    let year = sign * year.parse::<i64>().ok()?;
    let (year, era) = if year <= 0 { (1 - year, " BC") } else { (year, "") };
    Some(format!("{year:04}-{month_and_day} {clock}+00{era}"))
}

#[cfg(test)]
mod tests {
    use pgferry_model::Cell;

    use super::*;
    use crate::encode::write_cell;

    #[test]
    fn every_encoding_comes_back_as_the_sources_text() {
        use BinaryMode as B;
        let decimal = Encoding::Decimal { precision: 60, scale: 3 };
        let cases: &[(Encoding, &[&str])] = &[
            (Encoding::Bool, &["t", "f"]),
            (Encoding::Int64, &["9223372036854775807", "-9223372036854775808", "0"]),
            (Encoding::Float32, &["0.1", "-1.5e-07", "3.4028235e+38", "NaN", "-Infinity", "-0", "1e+06"]),
            (
                Encoding::Float64,
                &["0.1", "1.7976931348623157e+308", "5e-324", "NaN", "Infinity", "-0", "1e+15"],
            ),
            (decimal, &["0.000", "-0.001", "123456789012345678901234567890.125", "-92233720368547758.080"]),
            (
                Encoding::VariableDecimal,
                &["0", "-12.50", "1234567890123456789012345678901234567890", "0.00001"],
            ),
            (Encoding::Text, &["", "é\"\\\n", "NULL"]),
            (Encoding::Bytes(B::Bytes), &["\\x", "\\x00ff7f80"]),
            (Encoding::Bytes(B::Base64UrlSafe), &["\\xfbff"]),
            (Encoding::Bytes(B::Hex), &["\\x00ff"]),
            (Encoding::Date, &["2000-02-29", "0044-03-15 BC", "5874897-12-31", "infinity", "-infinity"]),
            (Encoding::Time(Unit::Micros), &["24:00:00", "00:00:00.000001"]),
            (Encoding::Time(Unit::Millis), &["23:59:59.999"]),
            (
                Encoding::Timestamp(Unit::Micros),
                &["2024-02-29 12:00:00.000001", "infinity", "-infinity", "0044-03-15 00:00:00 BC"],
            ),
            (Encoding::Timestamp(Unit::Millis), &["1969-12-31 23:59:59.999", "infinity", "-infinity"]),
            (
                Encoding::ZonedTimestamp,
                &[
                    "2024-02-29 12:00:00.5+00",
                    "0001-01-01 00:00:00+00 BC",
                    "0044-03-15 01:02:03+00 BC",
                    "12024-01-01 00:00:00+00",
                    "infinity",
                    "-infinity",
                ],
            ),
            (Encoding::Uuid, &["01234567-89ab-cdef-0123-456789abcdef"]),
            (Encoding::Array(Box::new(Encoding::Text)), &["{}", "{a,NULL,\"b,c\",\"\"}"]),
            (Encoding::Array(Box::new(Encoding::Int32)), &["{1,NULL,-3}"]),
        ];
        for (encoding, texts) in cases {
            for text in *texts {
                let mut json = Vec::new();
                write_cell(encoding, Cell::Text(text.as_bytes()), &mut json).expect(text);
                let value: Value = serde_json::from_slice(&json).expect("JSON");
                assert_eq!(of(encoding, &value), Some(Some((*text).to_owned())), "{encoding:?}");
            }
        }
    }
}
