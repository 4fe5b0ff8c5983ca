//! Values that a task file writes as text: durations, sizes, secrets, table names.

use std::borrow::Cow;
use std::time::Duration;

use pgferry_model::TableName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error as _};

/// A length of time: a number and `ms`, `s`, `m`, `h` or `d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A number of bytes: a number, or a number and `kB`, `MB`, `GB` (powers of 1000) or `KiB`, `MiB`, `GiB` (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// Where a secret comes from. `Debug` never shows a plain one.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// From an environment variable.
    Env(String),
    /// The content of a file, without its last line break.
    File(String),
    /// From the task file itself.
    Plain(String),
}

impl std::fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SecretSource::Env(name) => write!(f, "env {name}"),
            SecretSource::File(path) => write!(f, "file {path}"),
            SecretSource::Plain(_) => f.write_str("plain ***"),
        }
    }
}

/// Parses `3s`, `500ms`, `2m`, `1h`, `7d`; a blank between number and unit is allowed.
pub fn parse_span(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let milliseconds = match unit {
        "ms" => 1.0,
        "s" => 1e3,
        "m" | "min" => 60e3,
        "h" => 3_600e3,
        "d" => 86_400e3,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * milliseconds / 1e3).ok()
}

/// Parses `256MB`, `1 GiB`, `4096`.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    let bytes = number * factor as f64;
    (bytes < 1e18).then_some(bytes as u64)
}

fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    number.is_finite().then(|| (number, text[end..].trim()))
}

/// Parses `schema.table`; a name without a schema is in `public`. A part in double quotes may hold dots and, doubled, quotes.
pub fn parse_table_name(text: &str, schema_default: &str) -> Option<TableName> {
    let parts = name_parts(text)?;
    match <[String; 2]>::try_from(parts) {
        Ok([schema, name]) => Some(TableName::new(schema, name)),
        Err(parts) => match <[String; 1]>::try_from(parts) {
            Ok([name]) => Some(TableName::new(schema_default, name)),
            Err(_) => None,
        },
    }
}

fn name_parts(text: &str) -> Option<Vec<String>> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let part = parts.last_mut()?;
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                part.push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            _ => part.push(c),
        }
    }
    (!quoted && parts.iter().all(|part| !part.is_empty())).then_some(parts)
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = "a duration is text such as \"500ms\", \"3s\", \"2m\" or \"1h\"";
        let value = toml::Value::deserialize(deserializer)?;
        value.as_str().and_then(parse_span).map(Span).ok_or_else(|| D::Error::custom(form))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = "a size is a number of bytes, or text such as \"256MB\" or \"1 GiB\"";
        let bytes = match toml::Value::deserialize(deserializer)? {
            toml::Value::Integer(bytes) => u64::try_from(bytes).ok(),
            toml::Value::String(text) => parse_bytes(&text),
            _ => None,
        };
        bytes.map(Bytes).ok_or_else(|| D::Error::custom(form))
    }
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Through a value and with one fixed text, so that no message can repeat a secret.
        let form = "write text, { env = \"NAME\" } or { file = \"PATH\" }";
        let source = match toml::Value::deserialize(deserializer)? {
            toml::Value::String(text) => Some(SecretSource::Plain(text)),
            toml::Value::Table(table) if table.len() == 1 => {
                let text = |key: &str| table.get(key).and_then(toml::Value::as_str).map(str::to_owned);
                text("env").map(SecretSource::Env).or_else(|| text("file").map(SecretSource::File))
            }
            _ => None,
        };
        source.ok_or_else(|| D::Error::custom(form))
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^\\s*[0-9.]+\\s*(ms|s|m|min|h|d)\\s*$",
            "description": "A length of time, such as `500ms`, `3s`, `2m`, `1h`."
        })
    }
}

impl JsonSchema for Bytes {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "description": "A size, such as `256MB` or `1 GiB`; a bare number is bytes."
        })
    }
}

impl JsonSchema for SecretSource {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let member = |key: &str| {
            json_schema!({
                "type": "object", "required": [key], "additionalProperties": false,
                "properties": { key: { "type": "string" } }
            })
        };
        json_schema!({
            "anyOf": [{ "type": "string" }, member("env"), member("file")],
            "description": "A secret: `{ env = \"NAME\" }`, `{ file = \"PATH\" }`, or the text itself (not advised)."
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_with_their_units() {
        assert_eq!(parse_span("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_span("1.5 h"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_bytes("256MB"), Some(256_000_000));
        assert_eq!(parse_bytes("1 GiB"), Some(1 << 30));
        assert_eq!(parse_bytes("7"), Some(7));
        for text in ["", "3", "s", "-3s", "3 parsecs", "1e400s", "3s3"] {
            assert_eq!(parse_span(text), None, "{text:?}");
        }
        for text in ["", "MB", "1 mb", "99999999 TB"] {
            assert_eq!(parse_bytes(text), None, "{text:?}");
        }
    }

    #[test]
    fn table_names_keep_quoted_dots_and_case() {
        let name = |schema: &str, table: &str| Some(TableName::new(schema, table));
        assert_eq!(parse_table_name("orders", "public"), name("public", "orders"));
        assert_eq!(parse_table_name("Sales.\"a.b\"\"c\"", "public"), name("Sales", "a.b\"c"));
        for text in ["", ".", "a.", "a.b.c", "\"a"] {
            assert_eq!(parse_table_name(text, "public"), None, "{text:?}");
        }
    }

    #[test]
    fn a_plain_secret_is_never_shown() {
        assert_eq!(format!("{:?}", SecretSource::Plain("hunter2".into())), "plain ***");
    }
}
