//! Reads the text format of COPY (PostgreSQL docs, "COPY", section "Text Format"): lines of tab-separated cells.

use anyhow::{Context, Result, bail};

/// Cells of a row; `None` is NULL.
pub type Row = Vec<Option<String>>;

/// The cells of a line without its newline.
///
/// # Errors
/// When an escape is cut off or the text is not UTF-8.
pub fn parse_line(line: &[u8]) -> Result<Row> {
    line.split(|byte| *byte == b'\t').map(parse_cell).collect()
}

fn parse_cell(cell: &[u8]) -> Result<Option<String>> {
    if cell == b"\\N" {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(cell.len());
    let mut rest = cell.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let Some(escaped) = rest.next() else { bail!("a COPY cell ends within an escape") };
        bytes.push(match escaped {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            b'0'..=b'7' => digits(u32::from(escaped - b'0'), 8, 2, &mut rest),
            b'x' if rest.peek().is_some_and(u8::is_ascii_hexdigit) => digits(0, 16, 2, &mut rest),
            other => other,
        });
    }
    String::from_utf8(bytes).map(Some).context("a COPY cell is not UTF-8")
}

fn digits(
    mut value: u32,
    base: u32,
    most: usize,
    rest: &mut std::iter::Peekable<impl Iterator<Item = u8>>,
) -> u8 {
    for _ in 0..most {
        let Some(digit) = rest.peek().and_then(|byte| char::from(*byte).to_digit(base)) else { break };
        value = value * base + digit;
        rest.next();
    }
    value as u8
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::parse_line;

    #[test]
    fn escapes_nulls_and_empty_cells_are_told_apart() {
        let row = parse_line(b"a\\tb\t\\N\t\t\\\\N\t\\b\\f\\n\\r\\v\t\\101\\x41\\x4\\q\t\xc3\xa4").unwrap();
        let cells: Vec<Option<&str>> = row.iter().map(Option::as_deref).collect();
        let expected = [
            Some("a\tb"),
            None,
            Some(""),
            Some("\\N"),
            Some("\u{8}\u{c}\n\r\u{b}"),
            Some("AA\u{4}q"),
            Some("ä"),
        ];
        assert_eq!(cells, expected);
        assert!(parse_line(b"a\\").is_err());
        assert!(parse_line(b"\xff").is_err());
    }
}
