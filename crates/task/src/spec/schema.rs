//! The JSON Schema of task files and the reference page, both made from `raw.rs` alone.

use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::raw::RawFile;

/// The schema, as pretty JSON with a final line break.
pub fn json_schema() -> String {
    let mut text = serde_json::to_string_pretty(&schema()).unwrap_or_default();
    text.push('\n');
    text
}

fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<RawFile>().to_value();
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".to_owned(), "pgferry task file".into());
    }
    without_null(&mut schema);
    schema
}

/// TOML has no null: what may be left out is left out, and a schema that allows null would be wrong.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Array(kinds)) = object.get_mut("type") {
                kinds.retain(|kind| kind != "null");
                if let [kind] = kinds.as_slice() {
                    let kind = kind.clone();
                    object.insert("type".to_owned(), kind);
                }
            }
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|choice| choice["type"] != "null");
                if let [Value::Object(choice)] = choices.as_slice() {
                    let choice = choice.clone();
                    object.remove("anyOf");
                    object.extend(choice.into_iter().filter(|(key, _)| key != "description"));
                }
            }
            object.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// Heading, where the keys stand in the schema, and a line about where they stand in a file.
const SECTIONS: &[(&str, &str, &str)] = &[
    ("The file", "", "At the top."),
    (
        "A PostgreSQL connection",
        "AnyConnection/oneOf/0",
        "In `[connections.NAME]` with `kind = \"postgres\"`.",
    ),
    ("A DuckDB connection", "AnyConnection/oneOf/1", "In `[connections.NAME]` with `kind = \"duckdb\"`."),
    ("A Kafka connection", "AnyConnection/oneOf/2", "In `[connections.NAME]` with `kind = \"kafka\"`."),
    ("A Databend connection", "AnyConnection/oneOf/3", "In `[connections.NAME]` with `kind = \"databend\"`."),
    ("User and password of Kafka", "RawSasl", "In `sasl = { ... }` of a Kafka connection."),
    ("A schema registry", "RawSchemaRegistry", "In `schema_registry = { ... }` of a Kafka connection."),
    ("A task", "RawTask", "In `[tasks.NAME]`."),
    ("A table", "RawTable", "In `[[tasks.NAME.tables]]`."),
    ("A column", "RawColumn", "In `columns.NAME = { ... }` of a table."),
    ("Publication and slot", "RawReplication", "In `[tasks.NAME.replication]`."),
    ("Limits", "RawLimits", "In `[tasks.NAME.limits]`."),
    ("Schema changes", "RawSchemaChanges", "In `schema_changes = { ... }` of a task."),
    ("DuckDB as the target", "RawDuckdbTask", "In `duckdb = { ... }` of a task."),
    ("Kafka as the target", "RawKafkaTask", "In `[tasks.NAME.kafka]`."),
    (
        "Databend as the target",
        "RawDatabendTask",
        "In `databend = { ... }` of a task, or `[tasks.NAME.databend]`.",
    ),
];

const INTRODUCTION: &str = "\
# The task file

A task file says what is carried from where to where. It is TOML; `pgferry init` writes one with comments. An unknown key
is an error that names its line and the key that may be meant. `pgferry validate` reads a file without connecting
anywhere; `pgferry schema` prints its JSON Schema ([task-file.schema.json](task-file.schema.json)) for editors.

Durations are text with a unit: `500ms`, `3s`, `2m`, `1h`, `7d`. Sizes are text with a unit, or bytes: `256MB` (powers of
1000), `1 GiB` (powers of 1024), `4096`. A secret is `{ env = \"NAME\" }`, `{ file = \"PATH\" }` or the text itself, which
`check` warns of. Paths are relative to the task file.

This page is made from the program: `PGFERRY_UPDATE=1 cargo test -p pgferry-task spec` writes it anew.
";

/// `docs/reference/task-file.md`.
pub fn reference_page() -> String {
    let schema = schema();
    let mut page = INTRODUCTION.to_owned();
    for (heading, name, place) in SECTIONS {
        let object = match name.is_empty() {
            true => &schema,
            false => schema.pointer(&format!("/$defs/{name}")).unwrap_or(&Value::Null),
        };
        let _ = write!(page, "\n## {heading}\n\n{place}\n\n| key | form | meaning |\n|---|---|---|\n");
        let Some(keys) = object["properties"].as_object() else { continue };
        for (key, value) in keys.iter().filter(|(key, _)| *key != "kind") {
            let meaning = value["description"].as_str().unwrap_or_default().replace('\n', " ");
            let _ =
                writeln!(page, "| `{key}` | {} | {} |", form(value, &schema), meaning.replace('|', "\\|"));
        }
    }
    page
}

fn form(value: &Value, schema: &Value) -> String {
    if let Some(reference) = value["$ref"].as_str() {
        return named(reference.trim_start_matches("#/$defs/"), schema);
    }
    if let Some(choices) = value["anyOf"].as_array() {
        let real = choices.iter().find(|choice| choice["type"] != "null");
        return real.map_or_else(String::new, |choice| form(choice, schema));
    }
    let kinds: Vec<&str> = match &value["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let kind = kinds.iter().find(|kind| **kind != "null").copied().unwrap_or_default();
    match kind {
        "string" => "text".to_owned(),
        "boolean" => "true or false".to_owned(),
        "integer" => "number".to_owned(),
        "array" => format!("list of {}", form(&value["items"], schema)),
        "object" => "table by name".to_owned(),
        other => other.to_owned(),
    }
}

fn named(name: &str, schema: &Value) -> String {
    match name {
        "Duration" => "duration".to_owned(),
        "Bytes" => "size".to_owned(),
        "Secret" => "secret".to_owned(),
        _ => match (&schema["$defs"][name]["oneOf"], &schema["$defs"][name]["enum"]) {
            (Value::Array(choices), _) if choices.iter().all(|choice| choice["const"].is_string()) => {
                let words = choices.iter().filter_map(|choice| choice["const"].as_str());
                words.map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
            }
            _ => "table".to_owned(),
        },
    }
}
