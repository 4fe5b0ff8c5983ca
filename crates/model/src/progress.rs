//! What a target holds of a task: its position, its tables' states, and who may write.
//!
//! ```text
//!   waiting ──> copying ──> catching_up ──> live          any ──> broken (set aside, with its cause)
//!      ^           │             (copied: a table without a key or a task that ends with the snapshot)
//!      └───────────┘ crash: copied again under a later cut
//! ```

use std::fmt;
use std::sync::Arc;

use crate::{Position, TableName};

/// A task's name: unique within a target; letters, digits, `_` and `-`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

impl TaskId {
    /// From a name that the task file's validation has accepted.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        TaskId(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which cluster and slot a position belongs to; a position means nothing in another cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceIdentity {
    /// The cluster's system identifier (`IDENTIFY_SYSTEM`).
    pub system_id: String,
    /// The cluster's timeline that the position is on; a higher one at the cluster means a failover since.
    pub timeline: u32,
    /// The database's name.
    pub database: String,
    /// The slot's name; empty for a task that ends with the snapshot.
    pub slot: String,
}

/// Where a table is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableState {
    /// Selected, nothing in the target yet.
    Waiting,
    /// Its snapshot is being loaded; whatever the target holds of it is not usable yet.
    Copying,
    /// Its snapshot is loaded, and there is nothing more to come (no key, or a task that ends with the snapshot).
    Copied,
    /// Its snapshot is loaded; the stream has not reached the snapshot's position yet.
    CatchingUp,
    /// Follows the stream.
    Live,
    /// Held by the user.
    Paused,
    /// Set aside: the code and the problem.
    Broken {
        /// The error's code.
        code: String,
        /// The error's problem line.
        problem: String,
    },
}

impl TableState {
    /// Every state's word.
    pub const WORDS: [&str; 7] = ["waiting", "copying", "copied", "catching_up", "live", "paused", "broken"];

    /// The word used in the target's table, in messages and in the API.
    pub fn word(&self) -> &'static str {
        match self {
            TableState::Waiting => "waiting",
            TableState::Copying => "copying",
            TableState::Copied => "copied",
            TableState::CatchingUp => "catching_up",
            TableState::Live => "live",
            TableState::Paused => "paused",
            TableState::Broken { .. } => "broken",
        }
    }

    /// Whether changes of the stream go to this table.
    pub fn takes_changes(&self) -> bool {
        matches!(self, TableState::CatchingUp | TableState::Live)
    }
}

/// What the target holds of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableProgress {
    /// The table in the source.
    pub name: TableName,
    /// Where it is in its life.
    pub state: TableState,
    /// Its cut: the snapshot it was copied from holds every commit at or before it, so the stream's transactions at or
    /// before it are skipped for this table. `None` before its first copy.
    pub cut: Option<Position>,
    /// Chunks of the current copy that are durable, by number.
    pub chunks_done: Vec<u32>,
}

/// What the target holds of a task.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    /// Raised by every `open`; a commit under an older one is refused.
    pub epoch: u64,
    /// Every change at or before it is durable in the target. `None`: the stream was never started.
    pub position: Option<Position>,
    /// What the position belongs to.
    pub source: Option<SourceIdentity>,
    /// The tables that the target knows.
    pub tables: Vec<TableProgress>,
}

impl Progress {
    /// The progress of one table.
    pub fn table(&self, name: &TableName) -> Option<&TableProgress> {
        self.tables.iter().find(|table| &table.name == name)
    }
}
