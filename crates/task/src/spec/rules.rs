//! The rules that a task file must keep beyond its form: ranges, names that lead somewhere, settings that exclude each other.

use std::collections::BTreeMap;

use pgferry_pipeline::SyncMode;

use super::fault::{CONFLICT, Fault, INVALID_VALUE, MISSING_KEY, UNSUPPORTED};
use super::raw::{RawPostgres, RawSslMode, RawSyncMode, RawTable, RawTask};
use super::raw_databend::{RawMode, RawOutOfRange};
use super::read::{RawConnection, Written, nearest};
use super::scalar::{SecretSource, parse_table_name};
use super::validated::{NAME_BYTES_MAX, OneSchema, TableSpec, TaskSpec};

pub(super) fn name(path: &str, name: &str, faults: &mut Vec<Fault>) {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(legal) {
        let problem = "a name has letters, digits, `_` and `-`, 1 to 63 of them";
        faults.push(Fault::new(INVALID_VALUE, path, problem));
    }
}

pub(super) fn slot(path: &str, slot: &str, faults: &mut Vec<Fault>) {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if slot.is_empty() || slot.len() > NAME_BYTES_MAX || !slot.chars().all(legal) {
        let problem =
            format!("`{slot}` is no slot name: lower-case letters, digits and `_`, 1 to 63 of them");
        faults.push(Fault::new(INVALID_VALUE, path, problem));
    }
}

pub(super) fn publication(path: &str, publication: &str, faults: &mut Vec<Fault>) {
    if publication.is_empty() || publication.len() > NAME_BYTES_MAX || publication.contains('\0') {
        faults.push(Fault::new(INVALID_VALUE, path, "a publication's name has 1 to 63 bytes"));
    }
}

/// The value if it is within its range; told otherwise.
pub(super) fn within(
    path: &str,
    value: Option<u64>,
    least: u64,
    most: u64,
    faults: &mut Vec<Fault>,
) -> Option<u64> {
    let value = value?;
    if (least..=most).contains(&value) {
        return Some(value);
    }
    faults.push(Fault::new(INVALID_VALUE, path, format!("{value} is not between {least} and {most}")));
    None
}

pub(super) fn postgres(path: &str, raw: &RawPostgres, faults: &mut Vec<Fault>) {
    let parts = [
        ("host", raw.host.is_some()),
        ("port", raw.port.is_some()),
        ("database", raw.database.is_some()),
        ("user", raw.user.is_some()),
        ("password", raw.password.is_some()),
    ];
    if raw.url.is_some() {
        for (key, _) in parts.iter().filter(|(_, there)| *there) {
            let problem = format!("`{key}` and `url` exclude each other");
            faults.push(Fault::new(CONFLICT, format!("{path}.{key}"), problem).cure("keep one of them"));
        }
    } else if raw.user.is_none() {
        let fault =
            Fault::new(MISSING_KEY, format!("{path}.user"), "the connection has neither `url` nor `user`");
        faults.push(fault.cure("add `user = \"...\"`, or `url = { env = \"...\" }`"));
    }
    let alone = [
        (&raw.ssl_cert, "ssl_cert", raw.ssl_key.is_some(), "ssl_key"),
        (&raw.ssl_key, "ssl_key", raw.ssl_cert.is_some(), "ssl_cert"),
    ];
    for (there, key, other_there, other) in alone {
        if there.is_some() && !other_there {
            let problem = format!("`{key}` needs `{other}`");
            faults.push(Fault::new(CONFLICT, format!("{path}.{key}"), problem));
        }
    }
    let verified = matches!(raw.ssl_mode, Some(RawSslMode::VerifyCa | RawSslMode::VerifyFull));
    if raw.ssl_root_cert.is_some() && raw.ssl_mode.is_some() && !verified {
        let fault =
            Fault::new(CONFLICT, format!("{path}.ssl_root_cert"), "this ssl_mode does not verify the server");
        faults.push(fault.cure("write `ssl_mode = \"verify-full\"`, or remove `ssl_root_cert`"));
    }
    for (key, time) in [("connect_timeout", &raw.connect_timeout), ("probe_after", &raw.probe_after)] {
        if time.as_ref().is_some_and(|time| time.0.is_zero()) {
            faults.push(Fault::new(INVALID_VALUE, format!("{path}.{key}"), "a timeout is longer than 0"));
        }
    }
}

/// Calls `each` with the path of every secret that stands in the file itself.
pub(super) fn plain_secrets(path: &str, raw: &RawPostgres, mut each: impl FnMut(String)) {
    let secrets =
        [("url", &raw.url), ("password", &raw.password), ("ssl_key_password", &raw.ssl_key_password)];
    for (key, source) in secrets {
        match source {
            // A URL is a secret only with a password in it: `user:password@`.
            Some(SecretSource::Plain(url)) if key == "url" && !url_has_password(url) => {}
            Some(SecretSource::Plain(_)) => each(format!("{path}.{key}")),
            _ => {}
        }
    }
}

fn url_has_password(url: &str) -> bool {
    let authority =
        url.split_once("://").map_or(url, |(_, rest)| rest).split(['/', '?']).next().unwrap_or("");
    let in_authority = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    in_authority || url.contains("password=")
}

pub(super) fn connections(path: &str, raw: &RawTask, written: &Written, faults: &mut Vec<Fault>) {
    for (key, name) in [("source", &raw.source), ("target", &raw.target)] {
        let at = format!("{path}.{key}");
        let Some(name) = name else {
            let fault = Fault::new(MISSING_KEY, at, format!("the task has no {key}"));
            faults.push(fault.cure(format!("add `{key} = \"...\"` with the name of a connection")));
            continue;
        };
        let Some(value) = written.file.connections.get(name) else {
            let names: Vec<String> = written.file.connections.keys().cloned().collect();
            let fault = Fault::new(CONFLICT, at, format!("there is no connection `{name}`"));
            faults.push(match nearest(name, &names) {
                Some(meant) => fault.cure(format!("did you mean `{meant}`?")),
                None => fault.cure(format!("add [connections.{name}]")),
            });
            continue;
        };
        // A connection that could not be read has been told already.
        let known =
            written.connections.iter().find(|(known, _)| known == name).map(|(_, connection)| connection);
        let wrong = match (key, known) {
            ("source", Some(RawConnection::Postgres(_)) | None) => None,
            ("source", Some(_)) => Some("postgres"),
            ("target", Some(RawConnection::Postgres(_))) => Some("duckdb, kafka or databend"),
            _ => None,
        };
        if let Some(right) = wrong {
            let kind = value.get("kind").and_then(toml::Value::as_str).unwrap_or("?");
            let problem = format!("`{name}` is of kind {kind}; a {key} is of kind {right} in this build");
            faults.push(Fault::new(CONFLICT, at, problem));
        }
    }
}

/// What belongs to another kind of target would be passed over.
pub(super) fn sections(path: &str, raw: &RawTask, target: &RawConnection, faults: &mut Vec<Fault>) {
    let kafka = matches!(target, RawConnection::Kafka(_));
    let databend = matches!(target, RawConnection::Databend(_));
    let topics = raw.tables.iter().any(|table| table.topic.is_some());
    let misplaced = [
        ("kafka", raw.kafka.is_some() && !kafka),
        ("tables", topics && !kafka),
        ("duckdb", raw.duckdb.is_some() && (kafka || databend)),
        ("databend", raw.databend.is_some() && !databend),
    ];
    for (key, _) in misplaced.iter().filter(|(_, there)| *there) {
        let what = if *key == "tables" { "`topic` of a table" } else { "the section" };
        let problem = format!("{what} belongs to another kind of target");
        faults.push(Fault::new(CONFLICT, format!("{path}.{key}"), problem).cure("remove it"));
    }
    mode(path, raw, kafka, databend, faults);
    if !databend {
        databend_only(path, raw, faults);
    }
}

/// What the target's tables hold: each row's latest state, and in Databend every change, too.
fn mode(path: &str, raw: &RawTask, kafka: bool, databend: bool, faults: &mut Vec<Fault>) {
    let at = format!("{path}.mode");
    match raw.mode {
        Some(RawMode::History) if databend => {}
        Some(RawMode::History) => {
            let (problem, cure) = if kafka {
                ("a topic holds every change as it is", "remove `mode`")
            } else {
                ("`mode = \"history\"`: only Databend targets have it in this build", "remove it")
            };
            faults.push(Fault::new(UNSUPPORTED, at, problem).cure(cure));
        }
        Some(RawMode::Latest) if kafka => {
            let problem = "a topic holds every change, not only each row's latest state";
            faults.push(Fault::new(CONFLICT, at, problem).cure("remove `mode`"));
        }
        Some(RawMode::Latest) | None => {}
    }
}

/// Choices that only a Databend target has.
fn databend_only(path: &str, raw: &RawTask, faults: &mut Vec<Fault>) {
    for (index, table) in raw.tables.iter().enumerate() {
        for (column, settings) in &table.columns {
            let Some(text) = settings.target_type.as_deref() else { continue };
            if decimal_digits(text).is_some_and(|digits| digits > DIGITS_MAX) {
                let problem = format!("`{text}`: only Databend targets have decimals of more than 38 digits");
                let at = format!("{path}.tables.{index}.columns.{column}.type");
                faults.push(Fault::new(INVALID_VALUE, at, problem).cure("write `type = \"string\"`"));
            }
        }
        for (column, _) in table.columns.iter().filter(|(_, settings)| settings.out_of_range.is_some()) {
            let problem = "`out_of_range`: only Databend targets have it in this build; here a value that does not fit \
                           sets its table aside";
            let at = format!("{path}.tables.{index}.columns.{column}.out_of_range");
            faults.push(Fault::new(UNSUPPORTED, at, problem).cure("remove it, or write `type = \"string\"`"));
        }
    }
}

pub(super) fn task(path: &str, raw: &RawTask, one: Option<&OneSchema<'_>>, faults: &mut Vec<Fault>) {
    if raw.scenario.is_none() && raw.include.is_none() && raw.tables.is_empty() {
        let fault = Fault::new(MISSING_KEY, path, "the task selects no table");
        let cure =
            "add [[tasks.NAME.tables]] entries, `include = [\"public.*\"]`, or `scenario = \"entire_db\"`";
        faults.push(fault.cure(cure));
    }
    if raw.exclude.is_some() && raw.include.is_none() && raw.scenario.is_none() {
        let fault = Fault::new(
            CONFLICT,
            format!("{path}.exclude"),
            "`exclude` narrows `include`, which is not there",
        );
        faults.push(fault.cure("add `include = [\"public.*\"]` or `scenario = \"entire_db\"`"));
    }
    for (key, patterns) in [("include", &raw.include), ("exclude", &raw.exclude)] {
        let patterns = patterns.as_deref().unwrap_or_default();
        for (index, pattern) in patterns.iter().enumerate().filter(|(_, pattern)| !pattern_is_whole(pattern))
        {
            let problem = format!("`{pattern}` is no pattern; write schema.table, with `*` for any text");
            faults.push(Fault::new(INVALID_VALUE, format!("{path}.{key}.{index}"), problem));
        }
    }
    if raw.include.as_ref().is_some_and(Vec::is_empty) {
        faults.push(Fault::new(INVALID_VALUE, format!("{path}.include"), "an empty list selects nothing"));
    }
    if let Some(one) = one {
        one_schema(path, raw, one, faults);
    }
    if raw.sync_mode == Some(RawSyncMode::Snapshot) && raw.replication.is_some() {
        let problem = "a task that ends with the snapshot uses no slot and no publication";
        let fault = Fault::new(CONFLICT, format!("{path}.replication"), problem);
        faults.push(fault.cure("remove it, or write `sync_mode = \"snapshot_cdc\"`"));
    }
    if raw.duckdb.as_ref().and_then(|duckdb| duckdb.schema.as_deref()).is_some_and(str::is_empty) {
        faults.push(Fault::new(INVALID_VALUE, format!("{path}.duckdb.schema"), "a schema has a name"));
    }
}

/// Tables of one name from two schemas must not meet in the one schema that all tables go to; a target's own schema must
/// not be passed over.
fn one_schema(path: &str, raw: &RawTask, one: &OneSchema<'_>, faults: &mut Vec<Fault>) {
    let OneSchema { schema, word, key, .. } = one;
    let mut sources: Vec<String> =
        raw.include.iter().flatten().filter_map(|pattern| schema_of(pattern)).collect();
    let patterns = raw.include.is_some() || raw.scenario.is_some();
    for (index, table) in raw.tables.iter().enumerate() {
        let name = |text: &Option<String>| text.as_deref().and_then(|text| parse_table_name(text, ""));
        let source = name(&table.source)
            .map(|name| if name.schema.is_empty() { "public".into() } else { name.schema.to_string() });
        sources.extend(source);
        if name(&table.target).is_some_and(|name| !name.schema.is_empty() && name.schema.as_ref() != *schema)
        {
            let problem = format!("every table of the task goes to {word} `{schema}` ({key})");
            let fault = Fault::new(CONFLICT, format!("{path}.tables.{index}.target"), problem);
            faults.push(fault.cure(format!("leave the {word} out here, or remove `{key}`")));
        }
    }
    sources.sort();
    sources.dedup();
    let every_schema = raw.include.is_none() && raw.scenario.is_some();
    if patterns
        && (every_schema || sources.len() != 1 || sources.iter().any(|source| source.contains(['*', '?'])))
    {
        let problem =
            format!("tables of several schemas may have the same name, and `{key}` puts them into one");
        let fault = Fault::new(CONFLICT, &one.path, problem);
        let cure = format!("take tables of one schema, as in include = [\"public.*\"], or remove `{key}`");
        faults.push(fault.cure(cure));
    }
}

fn schema_of(pattern: &str) -> Option<String> {
    pattern.split_once('.').map(|(schema, _)| schema.trim_matches('"').to_owned())
}

/// Digits of a decimal in every target.
const DIGITS_MAX: u8 = 38;
/// Digits of a decimal in a Databend target.
const DATABEND_DIGITS_MAX: u8 = 76;

/// `string`, or `decimal(p,s)` that some target has.
fn is_target_type(text: &str) -> bool {
    text == "string" || decimal_digits(text).is_some_and(|digits| digits <= DATABEND_DIGITS_MAX)
}

/// The digits of `decimal(p,s)`, where that is what it is.
fn decimal_digits(text: &str) -> Option<u8> {
    let (precision, scale) = text.strip_prefix("decimal(")?.strip_suffix(')')?.split_once(',')?;
    let (precision, scale): (u8, u8) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
    (precision >= 1 && scale <= precision).then_some(precision)
}

fn pattern_is_whole(pattern: &str) -> bool {
    pattern.split_once('.').is_some_and(|(schema, table)| !schema.is_empty() && !table.is_empty())
}

pub(super) fn table(path: &str, raw: &RawTable, mode: Option<RawSyncMode>, faults: &mut Vec<Fault>) {
    if raw.source.is_none() {
        let fault = Fault::new(MISSING_KEY, format!("{path}.source"), "the table has no source");
        faults.push(fault.cure("add `source = \"schema.table\"`"));
    }
    if raw.snapshot_where.is_some() && mode == Some(RawSyncMode::CdcOnly) {
        let problem = "there is no snapshot in sync_mode cdc_only";
        faults.push(Fault::new(CONFLICT, format!("{path}.snapshot_where"), problem));
    }
    if raw.snapshot_where.as_deref().is_some_and(|condition| condition.trim().is_empty()) {
        faults.push(Fault::new(INVALID_VALUE, format!("{path}.snapshot_where"), "the condition is empty"));
    }
    for (column, settings) in &raw.columns {
        let target_type = settings.target_type.as_deref();
        if let Some(text) = target_type.filter(|text| !is_target_type(text)) {
            let problem = format!(
                "`{text}` is no type here: write string, or decimal(p,s) with at most 38 digits, 76 in Databend"
            );
            faults.push(Fault::new(INVALID_VALUE, format!("{path}.columns.{column}.type"), problem));
        }
        if settings.out_of_range == Some(RawOutOfRange::String)
            && target_type.is_some_and(|text| text != "string")
        {
            let problem = "`out_of_range = \"string\"` carries the column as text, and `type` says otherwise";
            let fault = Fault::new(CONFLICT, format!("{path}.columns.{column}.out_of_range"), problem);
            faults.push(fault.cure("keep one of them"));
        }
        if raw.exclude_columns.iter().flatten().any(|out| out == column) {
            let problem = format!("column `{column}` is excluded");
            faults.push(Fault::new(CONFLICT, format!("{path}.columns.{column}"), problem));
        }
    }
    if let Some(key) = &raw.primary_key {
        let path = format!("{path}.primary_key");
        if key.is_empty() {
            faults.push(Fault::new(INVALID_VALUE, &path, "a key has at least one column"));
        }
        twice(&path, key, faults);
        let null = |column: &&String| {
            raw.columns
                .get(*column)
                .is_some_and(|settings| settings.out_of_range == Some(RawOutOfRange::Null))
        };
        for column in key.iter().filter(null) {
            let problem = format!("key column `{column}` may not become NULL (out_of_range)");
            let fault = Fault::new(CONFLICT, &path, problem);
            faults.push(fault.cure("write `out_of_range = \"string\"`, or `\"error\"`"));
        }
        for column in
            key.iter().filter(|column| raw.exclude_columns.iter().flatten().any(|out| out == *column))
        {
            faults.push(Fault::new(CONFLICT, &path, format!("key column `{column}` is excluded")));
        }
    }
    twice(&format!("{path}.exclude_columns"), raw.exclude_columns.as_deref().unwrap_or_default(), faults);
}

fn twice(path: &str, names: &[String], faults: &mut Vec<Fault>) {
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            faults.push(Fault::new(CONFLICT, path, format!("`{name}` is listed twice")));
        }
    }
}

pub(super) fn tables(path: &str, tables: &[TableSpec], faults: &mut Vec<Fault>) {
    for (index, table) in tables.iter().enumerate() {
        let at = format!("{path}.tables.{index}");
        let before = &tables[..index];
        if before.iter().any(|other| other.source == table.source) {
            let problem = format!("{} is listed twice", table.source);
            faults.push(Fault::new(CONFLICT, format!("{at}.source"), problem));
        } else if let Some(other) = before.iter().find(|other| other.target == table.target) {
            let problem = format!("{} and {} both go to {}", other.source, table.source, table.target);
            let fault = Fault::new(CONFLICT, format!("{at}.target"), problem);
            faults.push(fault.cure("give one of them another `target`"));
        }
    }
}

/// Rules between tasks: no two share a slot, no two write one table.
pub(super) fn across(tasks: &[TaskSpec], faults: &mut Vec<Fault>) {
    let mut slots: BTreeMap<(&str, &str), &TaskSpec> = BTreeMap::new();
    let mut targets: BTreeMap<(&str, String), &TaskSpec> = BTreeMap::new();
    for task in tasks {
        if task.settings.sync_mode != SyncMode::Snapshot {
            let slot = (task.source.as_str(), task.replication.slot.as_str());
            if let Some(other) = slots.insert(slot, task) {
                let problem = format!("tasks {} and {} share the slot `{}`", other.id, task.id, slot.1);
                let fault = Fault::new(CONFLICT, format!("tasks.{}.replication.slot", task.id), problem);
                faults.push(fault.cure("give each task a slot of its own"));
            }
        }
        for table in &task.selection.tables {
            let target = (task.target.as_str(), table.target.to_string());
            if let Some(other) = targets.insert(target, task).filter(|other| other.id != task.id) {
                let problem = format!("tasks {} and {} both write {}", other.id, task.id, table.target);
                faults.push(Fault::new(CONFLICT, format!("tasks.{}.tables", task.id), problem));
            }
        }
    }
}
