//! The built program tried against real servers: what arrives is what the source holds, whatever happened on the way.
//!
//! ```text
//!   Scene: database (source) ──> pgferry (a process, with a task file) ──> TargetPlace (one task's fresh place in a target)
//!      └──────────── compare, value by value ── held position ── leftovers ────────────┘
//! ```
//!
//! Invariants: the program is run as its users run it; a target is known only by its [`TargetPlace`], so that another kind of target
//! comes under every trial by implementing that; every load and every run is bounded.
//!
//! Limits: needs the built `pgferry` beside the running executable (`pgferry_testkit::process::binary`).

pub mod crash;
pub mod databend_databases;
pub mod duckdb_file;
pub mod kafka_topics;
pub mod scene;
pub mod soak;
pub mod target_place;

pub use scene::{MAJORS, Scene, options, slot, undecodable};
pub use target_place::TargetPlace;
