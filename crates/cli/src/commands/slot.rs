//! `pgferry slot`: a slot that nobody reads fills the source's disk; here they are seen and dropped.

use std::path::Path;

use pgferry_model::{Cure, Error};
use pgferry_task::slots::{self, Slot, SlotOwner};
use pgferry_task::spec::{self, Connection, PostgresConnection, Spec};
use serde_json::{Value, json};

use super::Ended;
use crate::errors::{Failure, UNKNOWN_NAME};
use crate::exit_code::ExitCode;
use crate::figures::{bytes, plural, table};
use crate::output::Output;

pub(super) async fn list(connection: Option<&str>, file: &Path, output: &Output) -> Ended {
    let spec = spec::read_file(file)?;
    let servers = match connection {
        Some(name) => vec![server(&spec, name)?],
        None => spec.connections.values().filter_map(postgres).collect(),
    };
    let mut results: Vec<Value> = Vec::new();
    for server in servers {
        let slots = slots::list(&spec, server).await?;
        let rows = slots.iter().map(|slot| {
            let reader = slot.active_pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            vec![
                slot.name.clone(),
                owner(&slot.owner),
                slot.database.clone(),
                reader,
                bytes(slot.retained_bytes),
                slot.wal_status.clone(),
            ]
        });
        output.data(&output.paint_data.strong(&server.name));
        let header = ["slot", "owner", "database", "reader", "keeps", "log"];
        output.data(&table(&header, rows.collect(), 2));
        results.extend(slots.iter().map(|slot| json(&server.name, slot)));
    }
    output.result(true, &plural(results.len() as u64, "slot"), &Value::Array(results));
    Ok(ExitCode::Success)
}

pub(super) async fn drop(connection: &str, name: &str, file: &Path, force: bool, output: &Output) -> Ended {
    let spec = spec::read_file(file)?;
    let server = server(&spec, connection)?;
    let known = slots::list(&spec, server).await?.into_iter().find(|slot| slot.name == name);
    // One that is not there needs no yes: dropping it says which there are.
    let exists = known.is_some();
    let warning = match known.map(|slot| slot.owner) {
        Some(SlotOwner::Task(task)) => format!(" task {task} then has to copy its tables again;"),
        Some(SlotOwner::Other) => " it is not pgferry's;".to_owned(),
        Some(SlotOwner::Prefix) | None => String::new(),
    };
    let question = format!("drop slot {name} of {connection}?{warning} the changes that it keeps are gone");
    if exists && !output.confirm(&question)? {
        return Ok(ExitCode::Failure);
    }
    let slot = slots::drop(&spec, server, name, force).await?;
    let summary = format!("slot {name} is dropped; {} of log are free to go", bytes(slot.retained_bytes));
    output.data(&summary);
    output.result(true, &summary, &json(connection, &slot));
    Ok(ExitCode::Success)
}

fn postgres(connection: &Connection) -> Option<&PostgresConnection> {
    match connection {
        Connection::Postgres(server) => Some(server),
        Connection::Duckdb(_) | Connection::Kafka(_) | Connection::Databend(_) => None,
    }
}

fn server<'a>(spec: &'a Spec, name: &str) -> Result<&'a PostgresConnection, Failure> {
    spec.connections.get(name).and_then(postgres).ok_or_else(|| {
        let names: Vec<&str> =
            spec.connections.values().filter_map(postgres).map(|server| server.name.as_str()).collect();
        let cure = Cure::advice(format!("its PostgreSQL connections are: {}", names.join(", ")));
        let problem = format!("{} has no PostgreSQL connection `{name}`", spec.file.display());
        Failure::from(
            Error::task_broken(UNKNOWN_NAME, problem)
                .with_cause("slots belong to a server, which is named by its connection in the task file")
                .with_cure(cure),
        )
    })
}

fn owner(owner: &SlotOwner) -> String {
    match owner {
        SlotOwner::Task(task) => format!("task {task}"),
        SlotOwner::Prefix => "pgferry, no task of this file".to_owned(),
        SlotOwner::Other => "another program".to_owned(),
    }
}

fn json(connection: &str, slot: &Slot) -> Value {
    json!({
        "connection": connection, "slot": slot.name, "owner": owner(&slot.owner), "database": slot.database,
        "plugin": slot.plugin, "active_pid": slot.active_pid, "retained_bytes": slot.retained_bytes,
        "wal_status": slot.wal_status,
    })
}
