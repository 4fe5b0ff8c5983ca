//! Databend as a target: a snapshot straight into tables, changes staged promptly and merged by key.
//!
//! ```text
//!   load    batches ─> Parquet ─> stage ─> COPY INTO table, chunk record ─> COMMIT
//!   apply   changes ─> Parquet ─> stage ─> COPY INTO raw table, position ─> COMMIT        durable: the slot may move on
//!   merge   raw table, the last row per key ─> MERGE INTO table, DELETE FROM raw ─> COMMIT     every sync_interval
//! ```
//!
//! A task that keeps every change (`mode = "history"`) has no raw tables and no merges: `apply` appends to the tables themselves.
//!
//! Files, as in every target: `config`, `mapping`, `schema`, `encode`, `write`, `progress`, `inspect`, `check`, `error`; and `merge`; for
//! histories `history` and, to read them, `replay`.

mod check;
mod config;
mod document;
mod encode;
pub mod error;
mod history;
mod holder;
mod inspect;
mod mapping;
mod merge;
mod prepare;
mod progress;
mod replay;
mod schema;
mod session;
mod settings;
mod target;
mod write;

pub use config::{ColumnChoice, DatabendConfig, Login, Misfit, Mode, Server, ServerParts, Upload};
pub use mapping::{ColumnType, map_type};
pub use target::DatabendTarget;
