//! The task file: text, to what is written, to what is meant.
//!
//! ```text
//!   text ──read──> raw.rs (as written) ──validate──> validated.rs (defaults filled, rules kept) ──registry──> running objects
//! ```
//!
//! Invariants: reading never builds, building never reads; every fault of a file is told at once, with its line; a key that
//! this build cannot serve is refused by name; secrets are looked up only when a connection is built.

pub(crate) mod databend;
mod fault;
mod kafka;
mod place;
pub mod raw;
pub mod raw_databend;
pub mod raw_kafka;
mod read;
mod rules;
mod sasl;
pub mod scalar;
pub mod schema;
#[cfg(test)]
mod tests;
mod unsupported;
mod validated;

use std::path::Path;

pub use databend::{DatabendConnection, DatabendLogin, DatabendServer, DatabendTask};
pub use fault::{
    CONFLICT, Fault, Faults, INVALID_VALUE, MISSING_KEY, SECRET_IN_FILE, SECRET_MISSING, SYNTAX, UNKNOWN_KEY,
    UNKNOWN_TASK, UNREADABLE, UNSUPPORTED,
};
pub use kafka::{KafkaConnection, RegistryConnection};
pub use validated::{
    Address, Connection, DuckdbConnection, Manage, PostgresConnection, Replication, Selection, Spec,
    TableSpec, TaskSpec,
};

/// Reads and validates a task file.
pub fn read_file(file: &Path) -> Result<Spec, Faults> {
    let text = std::fs::read_to_string(file).map_err(|failure| {
        let problem = format!("cannot read {}: {failure}", file.display());
        let fault = Fault::new(UNREADABLE, "", problem);
        let fault = fault.cure("name a task file, or write one with `pgferry init`");
        Faults { file: file.to_owned(), faults: vec![fault] }
    })?;
    read_text(file, &text)
}

/// Validates a task file's text; `file` says where relative paths start and what messages name.
pub fn read_text(file: &Path, text: &str) -> Result<Spec, Faults> {
    let mut faults = Vec::new();
    let mut spec =
        read::read(text, &mut faults).map(|written| validated::validate(file, &written, &mut faults));
    let places = place::Places::new(text);
    let place = |fault: &mut Fault| {
        if fault.line == 0 {
            fault.line = places.line(&fault.path);
        }
    };
    faults.iter_mut().for_each(place);
    faults.sort_by_key(|fault| fault.line);
    if let Some(spec) = &mut spec {
        spec.warnings.iter_mut().for_each(place);
    }
    match spec {
        Some(spec) if faults.is_empty() => Ok(spec),
        _ => Err(Faults { file: file.to_owned(), faults }),
    }
}
