//! Keys and values that a task file may have in a later build: refused by name, never passed over in silence.

use toml::Value;

use super::fault::{Fault, UNSUPPORTED};

/// Path (`*` for any one name), the value it is about (none: every value), and what to say.
const LATER: &[(&str, Option<&str>, &str)] = &[
    ("alerts", None, "alerts need the server, which is not in this build"),
    ("alert_channels", None, "alerts need the server, which is not in this build"),
    (
        "connections.*.ssh_tunnel",
        None,
        "SSH tunnels are not in this build; open one with `ssh -L` and connect to it",
    ),
    ("tasks.*.postgres", None, "PostgreSQL targets are not in this build"),
    (
        "tasks.*.auto_add_tables",
        None,
        "tables that are created later do not join by themselves in this build; restart the task",
    ),
    ("tasks.*.on_slot_invalidated", None, "a lost slot always stops the task with its cure in this build"),
    ("tasks.*.on_value_error", None, "a value that does not fit always sets its table aside in this build"),
    (
        "tasks.*.on_table_error",
        Some("skip_row"),
        "rows are never skipped in this build; use pause_table or pause_task",
    ),
    (
        "tasks.*.schema_changes.*",
        Some("apply"),
        "column changes are not applied in this build; use pause_table",
    ),
    (
        "tasks.*.schema_changes.*",
        Some("ignore"),
        "column changes are not ignored in this build; use pause_table",
    ),
    (
        "tasks.*.replication.plugin",
        Some("wal2json"),
        "pgferry reads pgoutput, which every server since 10 has",
    ),
    (
        "tasks.*.replication.plugin",
        Some("decoderbufs"),
        "pgferry reads pgoutput, which every server since 10 has",
    ),
    (
        "tasks.*.replication.plugin",
        Some("test_decoding"),
        "pgferry reads pgoutput, which every server since 10 has",
    ),
    (
        "tasks.*.replication.from",
        None,
        "tables are selected by `tables` or `include` in this build, not by the publication",
    ),
    (
        "tasks.*.replication.heartbeat",
        None,
        "nothing is written into the source in this build; an idle slot moves with the server's keepalives",
    ),
    (
        "tasks.*.replication.manage",
        Some("create_and_drop"),
        "slot and publication are never dropped by themselves in this build; use `pgferry slot drop`",
    ),
    ("tasks.*.tables.*.columns.*.target", None, "columns keep their names in this build"),
    ("tasks.*.tables.*.hypertable", None, "TimescaleDB targets are not in this build"),
    ("tasks.*.kafka.checkpoint_interval", None, "records and position are written every sync_interval"),
];

/// Takes everything of [`LATER`] out of the tree, and tells each.
pub(super) fn take(tree: &mut Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (pattern, value, why) in LATER {
        let segments: Vec<&str> = pattern.split('.').collect();
        take_at(tree, &segments, *value, &mut String::new(), why, &mut faults);
    }
    faults
}

fn take_at(
    tree: &mut Value,
    segments: &[&str],
    wanted: Option<&str>,
    path: &mut String,
    why: &str,
    faults: &mut Vec<Fault>,
) {
    let Some((first, rest)) = segments.split_first() else { return };
    let length = path.len();
    let names: Vec<String> = match &*tree {
        Value::Table(table) => table.keys().filter(|key| matches(first, key)).cloned().collect(),
        Value::Array(list) if *first == "*" => (0..list.len()).map(|index| index.to_string()).collect(),
        _ => Vec::new(),
    };
    for name in names {
        if length > 0 {
            path.push('.');
        }
        path.push_str(&name);
        if rest.is_empty() {
            take_key(tree, &name, wanted, path, why, faults);
        } else if let Some(below) = member(tree, &name) {
            take_at(below, rest, wanted, path, why, faults);
        }
        path.truncate(length);
    }
}

fn take_key(
    tree: &mut Value,
    name: &str,
    wanted: Option<&str>,
    path: &str,
    why: &str,
    faults: &mut Vec<Fault>,
) {
    let Value::Table(table) = tree else { return };
    let found = table.get(name).is_some_and(|value| wanted.is_none() || value.as_str() == wanted);
    if found {
        table.remove(name);
        let what = wanted.map_or_else(|| format!("`{name}`"), |value| format!("`{name} = \"{value}\"`"));
        faults.push(Fault::new(UNSUPPORTED, path, format!("{what}: {why}")));
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern == "*" || pattern == name
}

fn member<'a>(tree: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    match tree {
        Value::Table(table) => table.get_mut(name),
        Value::Array(list) => name.parse::<usize>().ok().and_then(|index| list.get_mut(index)),
        _ => None,
    }
}
