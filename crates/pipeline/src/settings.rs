//! What a user can set about a run, validated: no `Option` that the engine must interpret.

use std::collections::HashMap;
use std::time::Duration;

use pgferry_model::TableName;

use crate::DeletePolicy;

/// What a task carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// The rows as of one point; then the task ends.
    Snapshot,
    /// Changes only, from the slot's position.
    CdcOnly,
    /// The rows, then every change.
    SnapshotCdc,
}

/// What to do where the target has a table of that name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IfTargetExists {
    /// Stop with an error.
    #[default]
    Error,
    /// Keep its rows and add to them.
    Append,
    /// Empty it first.
    Truncate,
    /// Drop it and make it anew.
    Replace,
}

/// A run's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the task carries.
    pub sync_mode: SyncMode,
    /// How many chunks are copied at once, at least 1.
    pub workers: usize,
    /// The longest that a committed change waits before it is written.
    pub sync_interval: Duration,
    /// Rows per delivery and per snapshot batch at most; `usize::MAX` where the user leaves it to the system.
    pub batch_rows_max: usize,
    /// Bytes of changes at which a delivery is closed.
    pub batch_bytes_max: usize,
    /// Bytes of rows in flight at most, snapshot or stream; reading stops when they are used up.
    pub buffer_bytes_max: usize,
    /// Whether deletes and truncates are carried.
    pub deletes: DeletePolicy,
    /// What to do where the target has a table of that name already.
    pub if_target_exists: IfTargetExists,
    /// The same for single tables, by their name in the source.
    pub if_target_exists_by_table: HashMap<TableName, IfTargetExists>,
    /// End as soon as the source's position at the start (or at the snapshot's end, if later) is durable.
    pub until_caught_up: bool,
    /// Stop the whole task when a table breaks, instead of setting the table aside.
    pub stop_on_table_error: bool,
    /// The longest wait between retries.
    pub retry_wait_max: Duration,
    /// How long a transient error may repeat without any progress before the task gives up.
    pub retry_budget: Duration,
    /// How long a graceful stop may take before what is open is abandoned.
    pub stop_within: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            sync_mode: SyncMode::SnapshotCdc,
            workers: 4,
            sync_interval: Duration::from_secs(1),
            batch_rows_max: usize::MAX,
            batch_bytes_max: 16 << 20,
            buffer_bytes_max: 64 << 20,
            deletes: DeletePolicy::Carry,
            if_target_exists: IfTargetExists::Error,
            if_target_exists_by_table: HashMap::new(),
            until_caught_up: false,
            stop_on_table_error: false,
            retry_wait_max: Duration::from_secs(30),
            retry_budget: Duration::from_secs(15 * 60),
            stop_within: Duration::from_secs(30),
        }
    }
}

impl Settings {
    /// What to do where the target has this table already.
    pub fn if_target_exists_for(&self, table: &TableName) -> IfTargetExists {
        self.if_target_exists_by_table.get(table).copied().unwrap_or(self.if_target_exists)
    }
}
