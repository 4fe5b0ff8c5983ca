//! Kafka as a target: every change as a record, in order, with the position in a compacted topic.
//!
//! ```text
//!   load    chunk's batches ──encode──> records, op r ──┐
//!   apply   changes in commit order ──encode──> records ─┴─> chunk record or position ─> COMMIT of one Kafka transaction
//! ```
//!
//! At least once instead of exactly once: the records go first, through an idempotent producer, and then the position.
//!
//! Files, as in every target: `config`, `mapping`, `schema`, `encode`, `write`, `progress`, `inspect`, `check`, `error`.

mod broker;
mod check;
mod config;
mod copy;
mod deliver;
mod encode;
pub mod error;
mod extra_topics;
mod holder;
mod inspect;
mod mapping;
mod progress;
mod schema;
mod schema_registry;
mod target;
mod write;

pub use config::{
    BinaryMode, DecimalMode, Format, Guarantee, KafkaConfig, PartitionPolicy, RegistryConfig, TimeMode,
};
pub use mapping::{ColumnType, Encoding, Unit, map_type};
pub use target::KafkaTarget;
