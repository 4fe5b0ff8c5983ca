//! A position in a source's stream of commits.
//!
//! Invariant: a position is the end LSN of a commit record (or of a consistent point, or of a keepalive when nothing
//! is in flight), never the LSN of a row: rows of one transaction can share an LSN, so a row LSN cannot tell what is done.

use std::fmt;
use std::str::FromStr;

/// The end of a commit in the source's stream; everything at or before it is covered.
///
/// Ordered, opaque for targets: they store its text form (`16/B374D848`) and compare it with others.
/// The text form is PostgreSQL's `pg_lsn` (PostgreSQL docs, chapter "pg_lsn Type").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(u64);

impl Position {
    /// Before every commit.
    pub const ZERO: Position = Position(0);

    /// From the 64-bit form that the replication protocol carries.
    pub const fn from_lsn(lsn: u64) -> Self {
        Position(lsn)
    }

    /// The 64-bit form that the replication protocol carries.
    pub const fn lsn(self) -> u64 {
        self.0
    }

    /// Bytes of log between an earlier position and this one; 0 if `earlier` is not earlier.
    pub const fn bytes_since(self, earlier: Position) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not of the form `HEX/HEX` with at most 8 digits on each side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a position: expected two hexadecimal numbers of at most 8 digits with a slash between, like 16/B374D848"
)]
pub struct ParsePositionError;

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, ParsePositionError> {
        let (high, low) = text.split_once('/').ok_or(ParsePositionError)?;
        Ok(Position((half(high)? << 32) | half(low)?))
    }
}

fn half(digits: &str) -> Result<u64, ParsePositionError> {
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(ParsePositionError);
    }
    u64::from_str_radix(digits, 16).map_err(|_| ParsePositionError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_that_of_postgresql_and_comes_back() {
        for (lsn, text) in [(0u64, "0/0"), (0x16_B374_D848, "16/B374D848"), (u64::MAX, "FFFFFFFF/FFFFFFFF")] {
            assert_eq!(Position::from_lsn(lsn).to_string(), text);
            assert_eq!(text.parse::<Position>(), Ok(Position::from_lsn(lsn)));
        }
        assert_eq!("a/b".parse::<Position>(), Ok(Position::from_lsn(0xA_0000_000B)));
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in ["", "/", "0", "1/", "/1", "+1/0", "1/ 2", "123456789/0", "0/123456789", "g/0", "1/2/3"] {
            assert_eq!(text.parse::<Position>(), Err(ParsePositionError), "{text:?}");
        }
    }
}
