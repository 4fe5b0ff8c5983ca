//! The real program between real servers and a real DuckDB file: what arrives is what the source holds, value by value.
#![allow(clippy::expect_used, clippy::panic, reason = "tests stop at the first surprise")]

mod large;
mod scene;
mod types;
mod workload;
