//! The contract of a target. The comments here are its specification; `testkit`'s contract suite tests them.
//!
//! ```text
//!   open ──> prepare* ──> begin_copy ──> load* ──> end_copy ──> apply* ──> close
//!                             ^            │ (crash, or a new cut)
//!                             └────────────┘
//! ```
//!
//! Invariants: a position is stored in the same commit as the data it covers; the stored position never moves back; a
//! commit under an older epoch than the stored one is refused with class `TaskBroken`; nothing of a failed call is visible. A target that
//! says so ([`Wants::atomic`]) stores the position after its data instead, and rows of a failed call may be visible.

use std::sync::Arc;

use async_trait::async_trait;
use pgferry_model::{
    Batch, CellFormat, Column, Delivery, Error, Finding, Position, Progress, Result, SourceIdentity, Table,
    TableName, TableState, TaskId,
};

use crate::settings::IfTargetExists;
use crate::{ChunkRows, Compacted, DeletePolicy, Inspect};

/// Which form of changes a target takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeForm {
    /// Every change, in commit order ([`TableChanges::Every`]).
    EveryChange,
    /// One final change per key ([`TableChanges::Latest`]).
    LatestPerKey,
}

/// What a target wants to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    /// The form of changes.
    pub changes: ChangeForm,
    /// How many chunks may be loaded at the same time.
    pub loads_max: usize,
    /// Whether slices of one large transaction can be committed together. Without it the engine does not slice.
    pub slices: bool,
    /// Whether rows and what is stored with them (a position, a chunk record, a dropped copy) are one commit. Without it the rows come
    /// first: after an error or a crash they may be there already, and come again.
    pub atomic: bool,
}

/// One table's changes within a delivery.
#[derive(Clone, Debug)]
pub enum TableChanges {
    /// Every change in commit order.
    Every(Batch),
    /// One final change per key.
    Latest(Compacted),
}

impl TableChanges {
    /// The table, in the version that the rows have.
    pub fn table(&self) -> &Arc<Table> {
        match self {
            TableChanges::Every(batch) => batch.table(),
            TableChanges::Latest(compacted) => compacted.batch().table(),
        }
    }
}

/// What a target has to have before rows of a table come.
#[derive(Clone, Debug)]
pub struct TablePlan {
    /// The table.
    pub table: Arc<Table>,
    /// What to do where the target has a table of that name that this task has not made or taken over.
    pub if_exists: IfTargetExists,
    /// Whether deletes and truncates are carried.
    pub deletes: DeletePolicy,
}

/// What is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// Taken over, not yet durable; a later durable receipt covers it.
    Accepted,
    /// Everything at or before it is durable. Cumulative.
    Durable(Position),
}

/// A change of a table's columns, found in the stream.
#[derive(Clone, Debug)]
pub struct SchemaChange {
    /// As the target knows it.
    pub before: Arc<Table>,
    /// As it is from now on.
    pub after: Arc<Table>,
}

/// The start of a table's copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyMark {
    /// The snapshot's position.
    pub cut: Position,
    /// Where the stream starts when the target holds no position of this task yet; stored by the first mark.
    pub stream_start: Option<Position>,
}

/// Whether values arrive as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fidelity {
    /// In a native type that holds every value.
    Exact,
    /// As the source's own text: exact, but another type.
    ExactAsText,
    /// In a native type that keeps every value but not every form of it; the note says what differs.
    Equal,
    /// In a native type that some possible values do not fit; such a value sets the table aside, it is never changed.
    Guarded,
    /// In a type that the user has chosen although it loses digits; the note says which.
    Rounded,
}

/// What becomes of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnMapping {
    /// The column's name in the source and in the target.
    pub column: String,
    /// The source's type.
    pub source_type: String,
    /// The target's type.
    pub target_type: String,
    /// Whether values arrive as they are.
    pub fidelity: Fidelity,
    /// What a user should know before the start; empty when there is nothing.
    pub note: String,
}

/// A target of rows and changes.
///
/// Every method may be retried after a `Transient` error with the same arguments. Methods that write are called by one task
/// of the engine at a time, except `load`, of which up to [`Wants::loads_max`] run at once.
#[async_trait]
pub trait Target: Send + Sync {
    /// What it wants to be given. Constant.
    fn wants(&self) -> Wants;

    /// In which form a snapshot's values of a column are wanted. Constant per column.
    fn snapshot_format(&self, table: &Table, column: &Column) -> CellFormat;

    /// What becomes of a table's columns, in their order. An error where a table cannot be carried at all.
    fn mapping(&self, table: &Table) -> Result<Vec<ColumnMapping>>;

    /// What holds a table in the target, for people.
    fn place_of(&self, table: &Table) -> String {
        table.target_name.to_string()
    }

    /// Takes the lease: raises the epoch, and tells what it holds of the task. Idempotent but for the epoch. An older holder's
    /// next commit fails.
    async fn open(&self, task: &TaskId) -> Result<Progress>;

    /// What it holds of the task, as `open` would tell it, but for the raised epoch: no lease is taken and nothing is written. `None`:
    /// it knows nothing of the task.
    async fn held(&self, task: &TaskId) -> Result<Option<Progress>>;

    /// Stores what positions belong to. Called once, before the first copy or delivery of a new task.
    async fn identify(&self, source: &SourceIdentity) -> Result<()>;

    /// Creates or takes over the target's table. Idempotent. Another task's table is left alone, unless `if_exists` empties or
    /// replaces it: then that task does not know it any more.
    async fn prepare(&self, plan: &TablePlan) -> Result<()>;

    /// [`Target::prepare`] for many tables. A target that commits at a price does it in one commit; an error then leaves nothing behind, and
    /// each table is prepared on its own.
    async fn prepare_all(&self, plans: &[TablePlan]) -> Result<()> {
        for plan in plans {
            self.prepare(plan).await?;
        }
        Ok(())
    }

    /// Starts a copy of a table: in one commit, what an unfinished copy of this task left is gone, chunk records too, the cut is
    /// stored and the state is `copying`. Rows that were there before this task (`append`) stay.
    async fn begin_copy(&self, table: &Arc<Table>, mark: CopyMark) -> Result<()>;

    /// [`Target::begin_copy`] for many tables under one mark; in one commit where commits have a price.
    async fn begin_copies(&self, tables: &[Arc<Table>], mark: CopyMark) -> Result<()> {
        for table in tables {
            self.begin_copy(table, mark).await?;
        }
        Ok(())
    }

    /// Loads a chunk: its rows and the record that it is done, in one commit. A chunk that is recorded as done is not
    /// loaded again: the rows are drained and nothing is written. Rows that end without their end mark are not committed.
    async fn load(&self, chunk: ChunkRows) -> Result<u64>;

    /// Loads small tables whose copy has one chunk each, and stores the state that each has then; in one commit where commits have a
    /// price. Answers with the rows of each, in order; of a table that is missing at the answer's end nothing is loaded, or it is
    /// recorded as done and has its old state: it is then loaded on its own. After an error nothing is loaded.
    async fn load_tables(&self, tables: Vec<(ChunkRows, TableState)>) -> Result<Vec<u64>> {
        let mut rows = Vec::with_capacity(tables.len());
        for (chunk, state) in tables {
            let table = Arc::clone(&chunk.chunk.table);
            let loaded = match self.load(chunk).await {
                Ok(loaded) => self.set_state(&table, state).await.map(|()| loaded),
                Err(failure) => Err(failure),
            };
            match loaded {
                Ok(loaded) => rows.push(loaded),
                Err(failure) if rows.is_empty() => return Err(failure),
                Err(_) => break,
            }
        }
        Ok(rows)
    }

    /// Stores a table's state, for instance at the end of its copy or when it is set aside.
    async fn set_state(&self, table: &Arc<Table>, state: TableState) -> Result<()>;

    /// [`Target::set_state`] for many tables; in one commit where commits have a price.
    async fn set_states(&self, tables: &[Arc<Table>], state: TableState) -> Result<()> {
        for table in tables {
            self.set_state(table, state.clone()).await?;
        }
        Ok(())
    }

    /// Forgets what it holds of a table: state `waiting`, no cut, no chunks, no error. Its rows stay until its next `prepare`, which
    /// makes a table of this task anew where its columns differ, or its next copy. `None`: every table, and the position and
    /// what it belongs to, in one commit. Refused where rows from before the task could not be told from copied ones.
    async fn forget(&self, table: Option<&TableName>) -> Result<()>;

    /// Applies a delivery and stores `through` in the same commit. A delivery whose `through` is at or before the stored
    /// position is answered with that position and changes nothing. An empty delivery moves the position only. Slices: a
    /// `Part` is kept invisible until the `Last` commits all of them; a `Whole` or a first `Part` after an unfinished
    /// sequence, and [`Target::discard`], drop what was kept. An error of class `TableBroken` names its table and leaves
    /// nothing of the delivery behind.
    async fn apply(&self, delivery: Arc<Delivery<TableChanges>>) -> Result<Receipt>;

    /// Drops the slices kept of an unfinished delivery.
    async fn discard(&self) -> Result<()>;

    /// Changes a table's columns. Nothing is in flight. Idempotent. A target that cannot do it refuses with class `TableBroken`, and
    /// has changed nothing.
    async fn evolve(&self, change: &SchemaChange) -> Result<()>;

    /// Looks at everything that a run will need.
    async fn check(&self, plans: &[TablePlan]) -> Result<Vec<Finding>>;

    /// The statements that `prepare` would run for a table, for `plan`; empty where nothing is to be done.
    async fn describe(&self, plan: &TablePlan) -> Result<Vec<String>>;

    /// The read side, for preview, verify and tests.
    fn inspect(&self) -> &dyn Inspect;

    /// Whether an error of `apply` or `load` leaves the outcome of the commit unknown: the engine then reads the position by
    /// opening again before it retries.
    fn outcome_unknown(&self, error: &Error) -> bool {
        let _ = error;
        false
    }

    /// Ends: everything durable, connections closed, the file released.
    async fn close(&self) -> Result<()>;
}
