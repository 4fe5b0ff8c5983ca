//! The engine and its contracts: it moves rows from a source to a target and knows neither by name.
//!
//! ```text
//!   Source ──copy──────> rows of a chunk ───────────────────────────> Target::load        (handover.rs)
//!   Source ──changes───> assemble ──> compact ──> deliver ──────────> Target::apply       (run.rs)
//!                            ^                        │ receipt
//!   Source <──confirm── checkpoint <──────────────────┘
//! ```
//!
//! Start reading at [`run`]. No SQL and no database's name is in this crate.

mod assemble;
mod budget;
mod checkpoint;
mod compact;
mod deliver;
pub mod error;
mod evolve;
pub mod failpoint;
mod follow;
mod handover;
mod inspect;
mod monitor;
mod retry;
mod rows;
mod run;
mod settings;
mod source;
mod target;

pub use assemble::{Assembler, Limits, RowWriter, TransactionStart};
pub use compact::{Compacted, DeletePolicy, KeyTuple, Upsert, compact};
pub use inspect::{Inspect, TextRow};
pub use monitor::{Monitor, Phase, TableMonitor, TableView};
pub use rows::{ChunkRows, RowReceiver, RowSender, rows_between};
pub use run::{Ended, RunEnd, SetAside, run};
pub use settings::{IfTargetExists, Settings, SyncMode};
pub use source::{ChangeStream, Chunk, Filled, Snapshot, SnapshotNeed, Source, StreamStart};
pub use target::{
    ChangeForm, ColumnMapping, CopyMark, Fidelity, Receipt, SchemaChange, TableChanges, TablePlan, Target,
    Wants,
};
