//! Numbers for people: sizes, counts, durations, tables of text.

use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

/// `61.4 GB`, in powers of 1000.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `1,234,567`.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `0.4 s`, `1m29s`, `2h05m`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `1 row`, `2 rows`.
pub(crate) fn plural(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", count(number))
}

/// Rows of text in columns, each line indented.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>, indent: usize) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|heading| heading.to_uppercase()));
    table.add_rows(rows);
    let line = |line: String| {
        format!("{}{}", " ".repeat(indent), line.strip_prefix(' ').unwrap_or(&line).trim_end())
    };
    table.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_indented_as_asked_and_end_without_blanks() {
        let text = table(&["name", "rows"], vec![vec!["a".into(), "1".into()]], 2);
        assert_eq!(text, "  NAME  ROWS\n  a     1");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!((bytes(999), bytes(61_400_000_000)), ("999 B".to_owned(), "61.4 GB".to_owned()));
        assert_eq!(bytes(999_960), "1.0 MB");
        assert_eq!((count(1), count(123), count(1_234_567)), ("1".into(), "123".into(), "1,234,567".into()));
        assert_eq!(duration(Duration::from_secs(89)), "1m29s");
        assert_eq!(duration(Duration::from_secs(7_500)), "2h05m");
        assert_eq!((plural(1, "row"), plural(0, "row")), ("1 row".into(), "0 rows".into()));
    }
}
