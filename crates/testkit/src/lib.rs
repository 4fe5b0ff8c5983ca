//! Real servers, faults, workloads and exact comparison for the tests of every other crate.
//!
//! ```text
//!   server ──> real PostgreSQL of a major, one database per test
//!      ▲                  │
//!    proxy (faults)    workload (seeded changes), types (edge values)
//!      ▲                  │
//!   process (pgferry) ──> target ──> compare (row by row, cell by cell)
//! ```
//!
//! Invariants: nothing is mocked; every load is bounded in count and time; nothing keeps running and nothing
//! stays on disk after a test process has ended, however it ended, except the server logs of a failed test.
//!
//! Limits: Linux; PostgreSQL 10, 13, 15 and 18 as `scripts/setup --test` installs them. Kafka, the schema registry and Databend are on
//! loopback, too; where one is missing, its tests say so and pass.

pub mod compare;
pub mod databend;
pub mod kafka;
pub mod memory_target;
pub mod process;
pub mod proxy;
pub mod published_types;
pub mod random;
mod run_folder;
pub mod schema_registry;
pub mod server;
pub mod target_contract;
pub mod types;
pub mod workload;

pub use run_folder::keep_logs;
pub use server::{Database, Server, ServerOptions};
