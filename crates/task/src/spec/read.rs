//! Text to [`RawFile`]: every fault of form at once, each with its line and, for a name, the nearest one that is meant.

use pgferry_model::Code;
use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment};
use toml::Value;

use super::fault::{Fault, INVALID_VALUE, MISSING_KEY, SYNTAX, UNKNOWN_KEY, UNSUPPORTED};
use super::place::line_of;
use super::raw::{RawDuckdb, RawFile, RawPostgres};
use super::raw_databend::RawDatabend;
use super::raw_kafka::RawKafka;
use super::unsupported;

/// Every kind of connection.
const KINDS: [&str; 4] = ["postgres", "duckdb", "kafka", "databend"];
/// Faults told of one part of a file; a file with more is not a slip.
const FAULTS_MAX: usize = 50;

/// A connection in the form of its kind.
#[derive(Debug)]
pub(super) enum RawConnection {
    Postgres(Box<RawPostgres>),
    Duckdb(RawDuckdb),
    Kafka(Box<RawKafka>),
    Databend(Box<RawDatabend>),
}

/// A file as it is written, with what could be read of its connections.
pub(super) struct Written {
    pub(super) file: RawFile,
    pub(super) connections: Vec<(String, RawConnection)>,
}

/// Reads what can be read, and tells everything that cannot.
pub(super) fn read(text: &str, faults: &mut Vec<Fault>) -> Option<Written> {
    let mut tree: Value = match toml::from_str::<toml::Table>(text) {
        Ok(table) => Value::Table(table),
        Err(failure) => {
            // The message only: the error's own display quotes the line, which may hold a secret.
            let mut fault = Fault::new(SYNTAX, "", format!("not TOML: {}", one_line(failure.message())));
            fault.line = failure.span().map_or(0, |span| line_of(text, span.start));
            faults.push(fault);
            return None;
        }
    };
    faults.extend(unsupported::take(&mut tree));
    let file: RawFile = deserialize(tree, "", faults);
    let mut connections = Vec::new();
    for (name, value) in &file.connections {
        if let Some(connection) = connection(name, value.clone(), faults) {
            connections.push((name.clone(), connection));
        }
    }
    Some(Written { file, connections })
}

fn connection(name: &str, mut value: Value, faults: &mut Vec<Fault>) -> Option<RawConnection> {
    let path = format!("connections.{name}");
    let Some(table) = value.as_table_mut() else {
        faults.push(Fault::new(INVALID_VALUE, path, "a connection is a table of keys"));
        return None;
    };
    let kinds = "the kinds of this build are postgres, duckdb, kafka and databend";
    let at_kind = format!("{path}.kind");
    match table.remove("kind").as_ref().map(|kind| kind.as_str().unwrap_or_default()) {
        Some("postgres") => Some(RawConnection::Postgres(Box::new(deserialize(value, &path, faults)))),
        Some("duckdb") => Some(RawConnection::Duckdb(deserialize(value, &path, faults))),
        Some("kafka") => Some(RawConnection::Kafka(Box::new(deserialize(value, &path, faults)))),
        Some("databend") => Some(RawConnection::Databend(Box::new(deserialize(value, &path, faults)))),
        Some(kind @ "timescaledb") => {
            let problem = format!("kind {kind} is not in this build yet; {kinds}");
            faults.push(Fault::new(UNSUPPORTED, at_kind, problem));
            None
        }
        Some(kind) => {
            let meant = nearest(kind, &KINDS.map(str::to_owned));
            let fault =
                Fault::new(INVALID_VALUE, at_kind, format!("`{kind}` is no kind of connection; {kinds}"));
            faults.push(match meant {
                Some(meant) => fault.cure(format!("did you mean `{meant}`?")),
                None => fault,
            });
            None
        }
        None => {
            let fault = Fault::new(MISSING_KEY, at_kind, format!("the connection has no kind; {kinds}"));
            let cures = KINDS.map(|kind| format!("`kind = \"{kind}\"`"));
            faults.push(fault.cure(format!("add one of {}", cures.join(", "))));
            None
        }
    }
}

/// Deserialises; what is wrong is told, taken out, and the rest is tried again, so that all faults come at once.
fn deserialize<T: DeserializeOwned + Default>(mut tree: Value, prefix: &str, faults: &mut Vec<Fault>) -> T {
    for _ in 0..FAULTS_MAX {
        let failure = match serde_path_to_error::deserialize::<_, T>(tree.clone()) {
            Ok(value) => return value,
            Err(failure) => failure,
        };
        let segments = segments(failure.path());
        let mut path = prefix.to_owned();
        for segment in &segments {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(segment);
        }
        let message = failure.inner().message().to_owned();
        faults.push(fault_of(path, segments.last().map_or("", String::as_str), &message));
        if !remove(&mut tree, &segments) {
            break;
        }
    }
    T::default()
}

fn segments(path: &Path) -> Vec<String> {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

fn fault_of(path: String, key: &str, message: &str) -> Fault {
    let message = one_line(message);
    let mut names = message.split('`').skip(1).step_by(2).map(str::to_owned);
    let (code, problem, names): (Code, String, Vec<String>) = if message.starts_with("unknown field") {
        (UNKNOWN_KEY, format!("unknown key `{key}`"), names.skip(1).collect())
    } else if message.starts_with("unknown variant") {
        let written = names.next().unwrap_or_default();
        let names: Vec<String> = names.collect();
        (INVALID_VALUE, format!("`{key}` cannot be `{written}`; it can be {}", names.join(", ")), names)
    } else {
        return Fault::new(INVALID_VALUE, path, format!("`{key}`: {message}"));
    };
    let written = message.split('`').nth(1).unwrap_or_default().to_owned();
    let fault = Fault::new(code, path, problem);
    match nearest(&written, &names) {
        Some(meant) => fault.cure(format!("did you mean `{meant}`?")),
        None if code == UNKNOWN_KEY => fault.cure(format!("the keys here are {}", names.join(", "))),
        None => fault,
    }
}

/// The name that is most like the written one, if any is.
pub(super) fn nearest(written: &str, names: &[String]) -> Option<String> {
    names
        .iter()
        .map(|name| (strsim::jaro_winkler(&written.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name.clone())
}

fn remove(tree: &mut Value, segments: &[String]) -> bool {
    let Some((last, way)) = segments.split_last() else { return false };
    let mut here = tree;
    for segment in way {
        let next = match here {
            Value::Table(table) => table.get_mut(segment),
            Value::Array(list) => segment.parse::<usize>().ok().and_then(|index| list.get_mut(index)),
            _ => None,
        };
        match next {
            Some(next) => here = next,
            None => return false,
        }
    }
    match here {
        Value::Table(table) => table.remove(last).is_some(),
        Value::Array(list) => match last.parse::<usize>() {
            Ok(index) if index < list.len() => {
                list.remove(index);
                true
            }
            _ => false,
        },
        _ => false,
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
