//! Faults around the real program, a real server and a real file: afterwards both sides are equal, value by value, or the program has stopped
//! with the right error and they are equal after its cure. Every wait has a limit; a hang is a failure.
//!
//! ```text
//!   source server <──> proxy <──> pgferry (a process) ──> DuckDB file
//!        │               │            │                       │
//!     server, slot    network     clock, pauses             disk         one module per kind
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests stop at the first surprise, and print what they measured"
)]

mod clock;
mod disk;
mod locks;
mod network;
mod pauses;
mod server;
mod slot;
mod voyage;
