//! The target against real DuckDB files: life of a task, deliveries, slices, every mapped type, checks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod contract;
mod deliveries;
mod documents;
mod files;
mod life;
mod making;
mod memory;
mod types;
