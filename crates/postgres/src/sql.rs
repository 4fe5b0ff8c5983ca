//! Quoting, so that every name and text a user can have is safe in a statement.

/// An identifier in double quotes.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text literal. Sessions pin `standard_conforming_strings`, so a backslash means itself.
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_doubled_and_nothing_else_changes() {
        assert_eq!(quote_identifier("Mäuse & \"Käse\""), "\"Mäuse & \"\"Käse\"\"\"");
        assert_eq!(quote_literal("it's \\ a"), "'it''s \\ a'");
    }
}
