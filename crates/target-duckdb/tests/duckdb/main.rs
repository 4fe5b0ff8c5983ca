//! The target against real DuckDB files: the contract of targets, and what is DuckDB's own: files, codes, mapping, memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod contract;
mod deliveries;
mod documents;
mod files;
mod life;
mod making;
mod memory;
mod types;
