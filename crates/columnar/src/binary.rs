//! Binary forms, as PostgreSQL's send functions write them; every number is big-endian.
//!
//! Sources of the forms: `boolsend` (bool.c), `int2send` (int.c), `int8send` (int8.c), `oidsend` (oid.c), `float8send`
//! (float.c), `numeric_send` (numeric.c), `date_send`, `time_send` (date.c), `timestamp_send` (timestamp.c), `uuid_send`
//! (uuid.c), `jsonb_send` (jsonb.c), `array_send` (arrayfuncs.c).

use crate::calendar::{POSTGRES_EPOCH_DAYS, POSTGRES_EPOCH_US, US_PER_DAY};
use crate::encoding::Reason;
use crate::text::{Parsed, power_of_ten};

const MALFORMED: Reason = Reason::Malformed;

#[inline]
pub(crate) fn exactly<const N: usize>(bytes: &[u8]) -> Parsed<[u8; N]> {
    bytes.try_into().map_err(|_| MALFORMED)
}

pub(crate) fn boolean(bytes: &[u8]) -> Parsed<bool> {
    match bytes {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(MALFORMED),
    }
}

/// Days since 2000-01-01; `i32::MAX` and `i32::MIN` are the infinities (`DATEVAL_NOEND`, `DATEVAL_NOBEGIN`).
pub(crate) fn date(bytes: &[u8]) -> Parsed<i32> {
    match i32::from_be_bytes(exactly(bytes)?) {
        i32::MAX => Ok(i32::MAX),
        i32::MIN => Ok(-i32::MAX),
        days => days.checked_add(POSTGRES_EPOCH_DAYS).filter(|&days| days != i32::MAX).ok_or(Reason::OutOfRange),
    }
}

pub(crate) fn time(bytes: &[u8]) -> Parsed<i64> {
    let us = i64::from_be_bytes(exactly(bytes)?);
    if (0..=US_PER_DAY).contains(&us) { Ok(us) } else { Err(MALFORMED) }
}

/// Microseconds since 2000-01-01; `i64::MAX` and `i64::MIN` are the infinities (`TIMESTAMP_INFINITY`,
/// `TIMESTAMP_MINUS_INFINITY`).
pub(crate) fn timestamp(bytes: &[u8]) -> Parsed<i64> {
    match i64::from_be_bytes(exactly(bytes)?) {
        i64::MAX => Ok(i64::MAX),
        i64::MIN => Ok(-i64::MAX),
        us => us.checked_add(POSTGRES_EPOCH_US).filter(|&us| us != i64::MAX).ok_or(Reason::OutOfRange),
    }
}

const NUMERIC_POSITIVE: u16 = 0x0000;
const NUMERIC_NEGATIVE: u16 = 0x4000;
const NUMERIC_NAN: u16 = 0xC000;
const NUMERIC_PLUS_INFINITY: u16 = 0xD000;
const NUMERIC_MINUS_INFINITY: u16 = 0xF000;

/// What `numeric_send` writes: base-10000 digits with the weight of the first, sign and display scale.
pub(crate) struct NumericForm<'a> {
    digits: &'a [[u8; 2]],
    weight: i32,
    sign: u16,
    scale: usize,
}

impl<'a> NumericForm<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Parsed<Self> {
        let (head, digits) = bytes.split_at_checked(8).ok_or(MALFORMED)?;
        let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let (digits, rest) = digits.as_chunks::<2>();
        if !rest.is_empty() || digits.len() != word(0) as usize {
            return Err(MALFORMED);
        }
        if digits.iter().any(|&digit| u16::from_be_bytes(digit) > 9999) {
            return Err(MALFORMED);
        }
        Ok(NumericForm { digits, weight: i32::from(word(2) as i16), sign: word(4), scale: word(6) as usize })
    }

    fn is_negative(&self) -> Parsed<bool> {
        match self.sign {
            NUMERIC_POSITIVE => Ok(false),
            NUMERIC_NEGATIVE => Ok(true),
            NUMERIC_NAN | NUMERIC_PLUS_INFINITY | NUMERIC_MINUS_INFINITY => Err(Reason::NotFinite),
            _ => Err(MALFORMED),
        }
    }

    fn digit(&self, weight: i32) -> u16 {
        let at = self.weight - weight;
        usize::try_from(at).ok().and_then(|at| self.digits.get(at)).map_or(0, |&digit| u16::from_be_bytes(digit))
    }

    /// The integer that is the value times 10^scale.
    fn scaled(&self, precision: u8, scale: u8) -> Parsed<i128> {
        let negative = self.is_negative()?;
        if self.scale > scale as usize {
            return Err(Reason::FractionTooLong);
        }
        let mut value = 0i128;
        for (at, &digit) in self.digits.iter().enumerate() {
            let digit = i128::from(u16::from_be_bytes(digit));
            if digit == 0 {
                continue;
            }
            let exponent = 4 * (self.weight - at as i32) + i32::from(scale);
            let part = match usize::try_from(exponent) {
                Ok(exponent) if exponent > 37 => return Err(Reason::OutOfRange),
                Ok(exponent) => digit.checked_mul(power_of_ten(exponent)).ok_or(Reason::OutOfRange)?,
                Err(_) if exponent <= -4 => return Err(Reason::FractionTooLong),
                Err(_) => {
                    let divisor = power_of_ten(exponent.unsigned_abs() as usize);
                    if digit % divisor != 0 {
                        return Err(Reason::FractionTooLong);
                    }
                    digit / divisor
                }
            };
            value = value.checked_add(part).ok_or(Reason::OutOfRange)?;
        }
        if value >= power_of_ten(precision as usize) {
            return Err(Reason::OutOfRange);
        }
        Ok(if negative { -value } else { value })
    }

    /// What `numeric_out` writes.
    pub(crate) fn write_text(&self, out: &mut Vec<u8>) -> Parsed<()> {
        match self.sign {
            NUMERIC_NAN => out.extend_from_slice(b"NaN"),
            NUMERIC_PLUS_INFINITY => out.extend_from_slice(b"Infinity"),
            NUMERIC_MINUS_INFINITY => out.extend_from_slice(b"-Infinity"),
            _ => {
                if self.is_negative()? {
                    out.push(b'-');
                }
                self.write_whole(out);
                self.write_fraction(out);
            }
        }
        Ok(())
    }

    fn write_whole(&self, out: &mut Vec<u8>) {
        if self.weight < 0 {
            out.push(b'0');
            return;
        }
        let mut buffer = itoa::Buffer::new();
        out.extend_from_slice(buffer.format(self.digit(self.weight)).as_bytes());
        for weight in (0..self.weight).rev() {
            out.extend_from_slice(&four_digits(self.digit(weight)));
        }
    }

    fn write_fraction(&self, out: &mut Vec<u8>) {
        if self.scale == 0 {
            return;
        }
        out.push(b'.');
        let end = out.len() + self.scale;
        let mut weight = -1;
        while out.len() < end {
            out.extend_from_slice(&four_digits(self.digit(weight)));
            weight -= 1;
        }
        out.truncate(end);
    }
}

fn four_digits(value: u16) -> [u8; 4] {
    [1000, 100, 10, 1].map(|unit| b'0' + (value / unit % 10) as u8)
}

pub(crate) fn decimal(bytes: &[u8], precision: u8, scale: u8) -> Parsed<i128> {
    NumericForm::read(bytes)?.scaled(precision, scale)
}

/// The text after `jsonb_send`'s version byte, which is 1.
pub(crate) fn jsonb(bytes: &[u8]) -> Parsed<&[u8]> {
    match bytes.split_first() {
        Some((1, text)) => Ok(text),
        _ => Err(MALFORMED),
    }
}
