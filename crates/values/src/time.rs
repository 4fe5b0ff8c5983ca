//! Dates and times from PostgreSQL's text and binary forms and back to text, in the proleptic Gregorian calendar, without a year's limit.
//!
//! Text: `2024-02-29`, `0044-03-15 BC`, `12345-01-01 00:00:00.5+00`, `infinity` (PostgreSQL docs, "Date/Time Output", ISO; the session pins
//! it, and UTC). Binary: days or microseconds since 2000-01-01; the extreme values are the infinities (`datatype/timestamp.h`).

/// Days from 1970-01-01 to 2000-01-01, PostgreSQL's own beginning.
pub const EPOCH_DAYS: i64 = 10_957;
/// Microseconds of a day.
pub const DAY_US: i64 = 86_400_000_000;
const EPOCH_US: i64 = EPOCH_DAYS * DAY_US;

/// Days since 1970-01-01; `i32::MAX` and `-i32::MAX` are the infinities.
pub fn date_from_text(text: &[u8]) -> Result<i32, &'static str> {
    match text {
        b"infinity" => Ok(i32::MAX),
        b"-infinity" => Ok(-i32::MAX),
        _ => {
            let (days, rest) = days(text)?;
            if !matches!(rest, b"" | b" BC") {
                return Err("is not a date");
            }
            finite_date(days)
        }
    }
}

/// See [`date_from_text`].
pub fn date_from_binary(bytes: &[u8]) -> Result<i32, &'static str> {
    match bytes.try_into().map(i32::from_be_bytes) {
        Ok(i32::MAX) => Ok(i32::MAX),
        Ok(i32::MIN) => Ok(-i32::MAX),
        Ok(days) => finite_date(i64::from(days) + EPOCH_DAYS),
        Err(_) => Err("is malformed"),
    }
}

fn finite_date(days: i64) -> Result<i32, &'static str> {
    i32::try_from(days).ok().filter(|days| days.unsigned_abs() < i32::MAX as u32).ok_or("is out of range")
}

/// Microseconds since 1970-01-01 00:00 (UTC for a text with `+00`); `i64::MAX` and `-i64::MAX` are the infinities.
pub fn timestamp_from_text(text: &[u8]) -> Result<i64, &'static str> {
    match text {
        b"infinity" => return Ok(i64::MAX),
        b"-infinity" => return Ok(-i64::MAX),
        _ => {}
    }
    let (days, rest) = days(text)?;
    let rest = rest.strip_prefix(b" ").ok_or("is not a timestamp")?;
    let (time, rest) = time(rest)?;
    let rest = rest.strip_prefix(b"+00").unwrap_or(rest);
    if !matches!(rest, b"" | b" BC") {
        return Err("is not a timestamp in UTC");
    }
    let us = days.checked_mul(DAY_US).and_then(|us| us.checked_add(time)).ok_or("is out of range")?;
    finite_timestamp(us)
}

/// See [`timestamp_from_text`].
pub fn timestamp_from_binary(bytes: &[u8]) -> Result<i64, &'static str> {
    match bytes.try_into().map(i64::from_be_bytes) {
        Ok(i64::MAX) => Ok(i64::MAX),
        Ok(i64::MIN) => Ok(-i64::MAX),
        Ok(us) => us.checked_add(EPOCH_US).ok_or("is out of range").and_then(finite_timestamp),
        Err(_) => Err("is malformed"),
    }
}

fn finite_timestamp(us: i64) -> Result<i64, &'static str> {
    if us.unsigned_abs() < i64::MAX as u64 { Ok(us) } else { Err("is out of range") }
}

/// Microseconds since midnight, up to and with 24:00:00.
pub fn time_from_text(text: &[u8]) -> Result<i64, &'static str> {
    match time(text)? {
        (us, b"") if us <= DAY_US => Ok(us),
        _ => Err("is not a time"),
    }
}

/// See [`time_from_text`].
pub fn time_from_binary(bytes: &[u8]) -> Result<i64, &'static str> {
    let us = bytes.try_into().map(i64::from_be_bytes).map_err(|_| "is malformed")?;
    if (0..=DAY_US).contains(&us) { Ok(us) } else { Err("is malformed") }
}

/// Days since 1970-01-01 of a leading date; the rest of the text, whose ` BC` is at its very end.
fn days(text: &[u8]) -> Result<(i64, &[u8]), &'static str> {
    let (year, rest) = number(text)?;
    let (month, rest) = number(rest.strip_prefix(b"-").ok_or("is not a date")?)?;
    let (day, rest) = number(rest.strip_prefix(b"-").ok_or("is not a date")?)?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return Err("is not a date");
    }
    // There is no year 0: 1 BC is year 0 of the calendar's arithmetic.
    let year = if text.ends_with(b" BC") { 1 - year } else { year };
    Ok((days_from_civil(year, month, day), rest))
}

/// Days since 1970-01-01, by counting 400-year cycles that begin in March, so that a leap day is a year's last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let cycle = year.div_euclid(400);
    let year_of_cycle = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_cycle = year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + day_of_year;
    cycle * 146_097 + day_of_cycle - 719_468
}

fn time(text: &[u8]) -> Result<(i64, &[u8]), &'static str> {
    let (hours, rest) = number(text)?;
    let (minutes, rest) = number(rest.strip_prefix(b":").ok_or("is not a time")?)?;
    let (seconds, mut rest) = number(rest.strip_prefix(b":").ok_or("is not a time")?)?;
    let mut us = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 || digits > 6 {
            return Err("has a fraction finer than microseconds");
        }
        let (value, after) = number(fraction)?;
        us += value * 10i64.pow(6 - digits as u32);
        rest = after;
    }
    if !(0..=DAY_US).contains(&us) || minutes > 59 || seconds > 60 {
        return Err("is not a time");
    }
    Ok((us, rest))
}

fn number(text: &[u8]) -> Result<(i64, &[u8]), &'static str> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 || digits > 9 {
        return Err("is not a date or time");
    }
    let value = text[..digits].iter().fold(0i64, |value, byte| value * 10 + i64::from(byte - b'0'));
    Ok((value, &text[digits..]))
}

/// Year, month and day of days since 1970-01-01; year 0 is 1 BC.
pub fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let cycle = shifted.div_euclid(146_097);
    let day_of_cycle = shifted.rem_euclid(146_097);
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (cycle * 400 + year_of_cycle + i64::from(month <= 2), month, day)
}

fn date_and_era(days: i64) -> (String, &'static str) {
    let (year, month, day) = civil_from_days(days);
    let (year, era) = if year <= 0 { (1 - year, " BC") } else { (year, "") };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

/// The text of days as [`date_from_text`] gives them.
pub fn date_text(days: i32) -> String {
    match days {
        i32::MAX => "infinity".to_owned(),
        days if days == -i32::MAX => "-infinity".to_owned(),
        days => {
            let (date, era) = date_and_era(i64::from(days));
            date + era
        }
    }
}

/// The text of microseconds since midnight.
pub fn time_text(us: i64) -> String {
    let (seconds, fraction) = (us / 1_000_000, us % 1_000_000);
    let text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction == 0 { text } else { format!("{text}.{fraction:06}").trim_end_matches('0').to_owned() }
}

/// The text of microseconds as [`timestamp_from_text`] gives them; `zoned`: of a `timestamptz`, in UTC.
pub fn timestamp_text(us: i64, zoned: bool) -> String {
    match us {
        i64::MAX => "infinity".to_owned(),
        us if us == -i64::MAX => "-infinity".to_owned(),
        us => {
            let (date, era) = date_and_era(us.div_euclid(DAY_US));
            let zone = if zoned { "+00" } else { "" };
            format!("{date} {}{zone}{era}", time_text(us.rem_euclid(DAY_US)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates_have_their_days() {
        for (text, days) in [
            ("1970-01-01", 0),
            ("2000-01-01", 10_957),
            ("2000-02-29", 11_016),
            ("1969-12-31", -1),
            ("0001-01-01", -719_162),
            ("0001-12-31 BC", -719_163),
            ("4713-01-01 BC", -2_440_550),
            ("5874897-12-31", 2_145_042_905),
            ("infinity", i32::MAX),
        ] {
            assert_eq!(date_from_text(text.as_bytes()), Ok(days), "{text}");
        }
        assert_eq!(date_from_binary(&0i32.to_be_bytes()), Ok(10_957));
        assert_eq!(date_from_binary(&i32::MIN.to_be_bytes()), Ok(-i32::MAX));
    }

    #[test]
    fn known_timestamps_have_their_microseconds() {
        for (text, us) in [
            ("1970-01-01 00:00:00", 0),
            ("1970-01-01 00:00:00.000001+00", 1),
            ("1969-12-31 23:59:59.5", -500_000),
            ("2000-01-01 12:00:00+00", EPOCH_US + DAY_US / 2),
            ("0001-12-31 23:59:59.999999+00 BC", -719_163 * DAY_US + DAY_US - 1),
            ("-infinity", -i64::MAX),
        ] {
            assert_eq!(timestamp_from_text(text.as_bytes()), Ok(us), "{text}");
        }
        assert_eq!(timestamp_from_binary(&i64::MAX.to_be_bytes()), Ok(i64::MAX));
        assert_eq!(timestamp_from_binary(&(-EPOCH_US).to_be_bytes()), Ok(0));
        assert!(timestamp_from_binary(&(i64::MAX - 1).to_be_bytes()).is_err());
    }

    #[test]
    fn times_reach_24_hours_and_malformed_text_is_refused() {
        assert_eq!(time_from_text(b"24:00:00"), Ok(DAY_US));
        assert_eq!(time_from_text(b"00:00:00.1"), Ok(100_000));
        for text in ["", "2024", "2024-13-01", "2024-01-00", "x", "2024-01-01x"] {
            assert!(date_from_text(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["2024-01-01", "2024-01-01 10:00", "2024-01-01 10:00:00+01", "2024-01-01 24:00:01"] {
            assert!(timestamp_from_text(text.as_bytes()).is_err(), "{text}");
        }
        assert!(time_from_text(b"1:2:3.1234567").is_err());
    }

    #[test]
    fn dates_and_times_have_their_text() {
        assert_eq!((date_text(0), date_text(11_016)), ("1970-01-01".into(), "2000-02-29".into()));
        assert_eq!((date_text(-719_163), date_text(i32::MAX)), ("0001-12-31 BC".into(), "infinity".into()));
        assert_eq!(timestamp_text(-500_000, true), "1969-12-31 23:59:59.5+00");
        assert_eq!(timestamp_text(-719_163 * DAY_US, true), "0001-12-31 00:00:00+00 BC");
        assert_eq!(time_text(DAY_US), "24:00:00");
    }
}
