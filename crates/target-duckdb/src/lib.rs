//! DuckDB as a target: one file, no server, everything of a commit in one transaction.
//!
//! ```text
//!   load    chunk's batches ──Arrow──> appender ──┐
//!   apply   keys staged ─> DELETE USING ─> append ─┴─> chunk record or position ─> COMMIT
//! ```
//!
//! Files, as in every target: `config`, `mapping`, `schema`, `encode`, `write`, `progress`, `inspect`, `check`, `error`.

mod check;
mod config;
mod database;
mod encode;
pub mod error;
mod inspect;
mod mapping;
mod progress;
mod schema;
mod target;
mod write;

pub use config::DuckdbConfig;
pub use mapping::{ColumnType, map_type};
pub use target::DuckdbTarget;
