//! Databend's text of a document, and PostgreSQL's text of the same one.
//!
//! PostgreSQL writes an object's keys by their length, then by their bytes, with a blank after `:` and `,` (PostgreSQL source,
//! `lengthCompareJsonbStringValue`). Numbers stay the digits that they are.

use std::fmt::Write as _;

/// A part of a document.
enum Node<'t> {
    /// A number, `true`, `false` or `null`, as it is written.
    Plain(&'t str),
    Text(String),
    List(Vec<Node<'t>>),
    Object(Vec<(String, Node<'t>)>),
}

/// The only element of a list as PostgreSQL's `jsonb` writes it; `None`: it is not such a list.
pub(crate) fn postgres_text(list: &str) -> Option<String> {
    let mut out = String::with_capacity(list.len() + list.len() / 4);
    match parse(list)? {
        Node::List(elements) if elements.len() == 1 => write_node(&elements[0], &mut out),
        _ => return None,
    }
    Some(out)
}

/// The elements of a list of texts.
pub(crate) fn texts(document: &str) -> Option<Vec<Option<String>>> {
    let Node::List(elements) = parse(document)? else { return None };
    elements
        .into_iter()
        .map(|element| match element {
            Node::Text(text) => Some(Some(text)),
            Node::Plain("null") => Some(None),
            _ => None,
        })
        .collect()
}

fn parse(document: &str) -> Option<Node<'_>> {
    let (node, rest) = node(document.trim_ascii_start())?;
    rest.trim_ascii_start().is_empty().then_some(node)
}

fn node(text: &str) -> Option<(Node<'_>, &str)> {
    match text.as_bytes().first()? {
        b'"' => string(text).map(|(value, rest)| (Node::Text(value), rest)),
        b'[' => {
            let mut elements = Vec::new();
            let rest = members(&text[1..], ']', |text| {
                let (element, rest) = node(text)?;
                elements.push(element);
                Some(rest)
            })?;
            Some((Node::List(elements), rest))
        }
        b'{' => {
            let mut fields = Vec::new();
            let rest = members(&text[1..], '}', |text| {
                let (key, rest) = string(text)?;
                let (value, rest) = node(rest.trim_ascii_start().strip_prefix(':')?.trim_ascii_start())?;
                fields.push((key, value));
                Some(rest)
            })?;
            Some((Node::Object(fields), rest))
        }
        _ => {
            let end = text.find([',', ']', '}', ' ']).unwrap_or(text.len());
            (end > 0).then(|| (Node::Plain(&text[..end]), &text[end..]))
        }
    }
}

/// What stands between two brackets, separated by commas; gives what follows the closing one.
fn members<'t>(
    text: &'t str,
    close: char,
    mut member: impl FnMut(&'t str) -> Option<&'t str>,
) -> Option<&'t str> {
    let mut rest = text.trim_ascii_start();
    if let Some(rest) = rest.strip_prefix(close) {
        return Some(rest);
    }
    loop {
        rest = member(rest)?.trim_ascii_start();
        if let Some(rest) = rest.strip_prefix(close) {
            return Some(rest);
        }
        rest = rest.strip_prefix(',')?.trim_ascii_start();
    }
}

fn string(text: &str) -> Option<(String, &str)> {
    let bytes = text.as_bytes();
    let mut end = 1;
    while *bytes.get(end)? != b'"' {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    let value = serde_json::from_str(&text[..=end]).ok()?;
    Some((value, &text[end + 1..]))
}

fn write_node(node: &Node<'_>, out: &mut String) {
    match node {
        Node::Plain(text) => out.push_str(text),
        Node::Text(text) => write_string(text, out),
        Node::List(elements) => {
            out.push('[');
            for (at, element) in elements.iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                write_node(element, out);
            }
            out.push(']');
        }
        Node::Object(fields) => {
            let mut fields: Vec<&(String, Node<'_>)> = fields.iter().collect();
            fields
                .sort_by(|(left, _), (right, _)| left.len().cmp(&right.len()).then_with(|| left.cmp(right)));
            out.push('{');
            for (at, (key, value)) in fields.into_iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                write_string(key, out);
                out.push_str(": ");
                write_node(value, out);
            }
            out.push('}');
        }
    }
}

/// PostgreSQL escapes what JSON has to, and nothing else (PostgreSQL source, `json.c`, `escape_json`).
fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => {
                let _written = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_written_as_postgresql_writes_them() {
        let text = postgres_text(
            r#"[{"aa":[1,null,"x\"y\n"],"b":1.10,"C":{},"e":[],"é":true,"n":12345678901234567890.5}]"#,
        );
        assert_eq!(
            text.unwrap(),
            r#"{"C": {}, "b": 1.10, "e": [], "n": 12345678901234567890.5, "aa": [1, null, "x\"y\n"], "é": true}"#
        );
        assert_eq!(postgres_text("[\"\\u0001\\\\\"]").unwrap(), "\"\\u0001\\\\\"");
        for wrong in ["", "{", "[1,", "[{\"a\"}]", "[1] 2", "[\"a]", "[1, 2]", "1"] {
            assert!(postgres_text(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn elements_are_read_with_their_nulls() {
        assert_eq!(texts(r#"["a,b",null,"NULL"]"#).unwrap(), [Some("a,b".into()), None, Some("NULL".into())]);
        assert!(texts("[1]").is_none());
        assert!(texts("[]").unwrap().is_empty());
    }
}
