//! What the target holds of tasks: statements on pgferry's own tables, and what their rows mean.
//!
//! ```text
//!   task          epoch, lease, position, number of the last staged rows, what positions belong to
//!   table_state   each table's target, state, cut, error
//!   chunk         loaded chunks of unfinished copies
//! ```
//!
//! Invariant: every commit ends with an update of the task's own row under its epoch and lease; one that finds no such row is an older
//! holder's, and two at the same time conflict, so that one of them is taken back.

use pgferry_model::{
    Cure, Error, Position, Progress, Result, SourceIdentity, TableName, TableProgress, TableState, TaskId,
};

use crate::error::REFUSED;
use crate::history::Copying;
use crate::schema::{literal, quote};
use crate::session::{Rows, Session, first_number, number, text};
use crate::settings::Settings;

/// The form of what is stored; a newer pgferry may use another one.
const FORMAT: u64 = 1;

/// The tables, in the order of [`create_statements`].
const TABLES: [&str; 3] = ["task", "table_state", "chunk"];

/// The statements that make what pgferry keeps for itself.
pub(crate) fn create_statements(settings: &Settings) -> Vec<String> {
    let own = |name: &str| own(settings, name);
    // Transient: without older versions of their few rows, of which there would be one per commit.
    vec![
        format!("CREATE DATABASE IF NOT EXISTS {}", quote(&settings.staging)),
        format!("CREATE STAGE IF NOT EXISTS {} FILE_FORMAT = (TYPE = PARQUET)", settings.stage()),
        format!(
            "CREATE TRANSIENT TABLE IF NOT EXISTS {} (task_name STRING NOT NULL, form UINT64 NOT NULL, epoch UINT64 NOT NULL, \
             lease STRING NOT NULL, \"position\" STRING NULL, seq UINT64 NOT NULL, system_id STRING NULL, timeline UINT64 NULL, \
             source_database STRING NULL, slot STRING NULL, updated_at TIMESTAMP NOT NULL)",
            own("task")
        ),
        format!(
            "CREATE TRANSIENT TABLE IF NOT EXISTS {} (task_name STRING NOT NULL, source_schema STRING NOT NULL, \
             source_table STRING NOT NULL, target_database STRING NOT NULL, target_table STRING NOT NULL, rows_before UINT64 NOT NULL, \
             state STRING NOT NULL, cut STRING NULL, copy_seq UINT64 NULL, copy_began INT64 NULL, code STRING NULL, problem STRING NULL)",
            own("table_state")
        ),
        format!(
            "CREATE TRANSIENT TABLE IF NOT EXISTS {} (task_name STRING NOT NULL, source_schema STRING NOT NULL, \
             source_table STRING NOT NULL, number UINT64 NOT NULL, row_count UINT64 NOT NULL)",
            own("chunk")
        ),
    ]
}

/// The qualified name of a table of pgferry's own.
fn own(settings: &Settings, table: &str) -> String {
    format!("{}.{}", quote(&settings.staging), quote(table))
}

/// Whether everything is there already.
pub(crate) async fn is_made(session: &Session, settings: &Settings) -> Result<bool> {
    let asked = format!(
        "SELECT count(*) FROM system.tables WHERE database = {} AND name IN ({})",
        literal(&settings.staging),
        TABLES.map(literal).join(", ")
    );
    let found = session.ask("looking for pgferry's own tables", &asked).await?;
    Ok(first_number(&found) == TABLES.len() as u64)
}

/// Takes the lease: raises the epoch, and stores who holds it.
pub(crate) fn take_lease(settings: &Settings, task: &TaskId, lease: &str) -> String {
    let (task, lease) = (literal(task.as_str()), literal(lease));
    format!(
        "MERGE INTO {} t USING (SELECT {task} AS task_name) s ON t.task_name = s.task_name \
         WHEN MATCHED THEN UPDATE SET t.epoch = t.epoch + 1, t.lease = {lease}, t.updated_at = now() \
         WHEN NOT MATCHED THEN INSERT (task_name, form, epoch, lease, seq, updated_at) VALUES (s.task_name, {FORMAT}, 1, {lease}, 0, now())",
        own(settings, "task")
    )
}

/// Which holder of a task writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) epoch: u64,
    pub(crate) holder: String,
}

/// What a commit stores in the task's row, beside that it was there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moved {
    pub(crate) position: Option<Position>,
    pub(crate) seq: Option<u64>,
}

/// The last statement of every commit: answers with one row, or the holder is an older one.
pub(crate) fn fence(settings: &Settings, task: &TaskId, lease: &Lease, moved: Moved) -> String {
    let mut sets = vec!["updated_at = now()".to_owned()];
    sets.extend(moved.position.map(|position| format!("\"position\" = {}", literal(&position.to_string()))));
    sets.extend(moved.seq.map(|seq| format!("seq = {seq}")));
    format!("UPDATE {} SET {} WHERE {}", own(settings, "task"), sets.join(", "), held_by(task, lease))
}

fn held_by(task: &TaskId, lease: &Lease) -> String {
    format!(
        "task_name = {} AND epoch = {} AND lease = {}",
        literal(task.as_str()),
        lease.epoch,
        literal(&lease.holder)
    )
}

/// Stores what positions belong to, under the lease.
pub(crate) fn identify(settings: &Settings, task: &TaskId, source: &SourceIdentity) -> String {
    format!(
        "UPDATE {} SET system_id = {}, timeline = {}, source_database = {}, slot = {} WHERE task_name = {}",
        own(settings, "task"),
        literal(&source.system_id),
        source.timeline,
        literal(&source.database),
        literal(&source.slot),
        literal(task.as_str())
    )
}

/// Who holds a task now.
pub(crate) async fn read_lease(
    session: &Session,
    settings: &Settings,
    task: &TaskId,
) -> Result<Option<Lease>> {
    let asked = format!(
        "SELECT epoch, lease FROM {} WHERE task_name = {}",
        own(settings, "task"),
        literal(task.as_str())
    );
    let rows = session.ask("reading the task's progress", &asked).await?;
    Ok(rows.first().map(|row| Lease { epoch: number(row.first()), holder: text(row, 1) }))
}

/// What is stored of a task.
pub(crate) struct Stored {
    pub(crate) progress: Progress,
    /// Its source tables; without chunks.
    pub(crate) owners: Vec<Owner>,
    pub(crate) lease: Lease,
    pub(crate) seq: u64,
}

/// Reads what is stored of a task; `None`: nothing.
pub(crate) async fn read(session: &Session, settings: &Settings, task: &TaskId) -> Result<Option<Stored>> {
    let doing = "reading the task's progress";
    let name = literal(task.as_str());
    let asked = format!(
        "SELECT form, epoch, lease, \"position\", seq, system_id, timeline, source_database, slot FROM {} WHERE task_name = {name}",
        own(settings, "task")
    );
    let rows = session.ask(doing, &asked).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    if number(row.first()) > FORMAT {
        return Err(Error::task_broken(
            REFUSED,
            "what Databend holds of the task was written by a newer pgferry",
        )
        .with_cause(format!("it is in form {}; this version knows {FORMAT} at most", number(row.first())))
        .with_cure(Cure::advice("use that version or a later one, or name another database as staging")));
    }
    let source = row.get(5).cloned().flatten().map(|system_id| SourceIdentity {
        system_id,
        timeline: number(row.get(6)) as u32,
        database: text(row, 7),
        slot: text(row, 8),
    });
    let position = row.get(3).cloned().flatten().map(|position| parse(&position)).transpose()?;
    let lease = Lease { epoch: number(row.get(1)), holder: text(row, 2) };
    let chunks = session
        .ask(
            doing,
            &format!(
                "SELECT source_schema, source_table, number FROM {} WHERE task_name = {name}",
                own(settings, "chunk")
            ),
        )
        .await?;
    let owners = owners(session, settings, Some(task)).await?;
    let mut tables: Vec<TableProgress> = owners.iter().map(|owner| owner.progress.clone()).collect();
    for chunk in &chunks {
        let of = TableName::new(text(chunk, 0), text(chunk, 1));
        if let Some(known) = tables.iter_mut().find(|known| known.name == of) {
            known.chunks_done.push(number(chunk.get(2)) as u32);
        }
    }
    let progress = Progress { epoch: lease.epoch, position, source, tables };
    Ok(Some(Stored { progress, owners, lease, seq: number(row.get(4)) }))
}

fn parse(text: &str) -> Result<Position> {
    text.parse().map_err(|wrong| {
        Error::task_broken(REFUSED, "the stored position is damaged")
            .with_cure(Cure::advice("name another database as staging: every table is copied again"))
            .with_origin(wrong)
    })
}

/// A source table whose rows go to a table of the server.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) task: TaskId,
    /// Empty: the task has not taken a table for it; one of that name is somebody else's.
    pub(crate) target: TableName,
    /// Rows that the table held before the task.
    pub(crate) rows_before: u64,
    /// Of a history: a copy that is not whole.
    pub(crate) copying: Option<Copying>,
    /// Its state; without chunks.
    pub(crate) progress: TableProgress,
}

impl Owner {
    pub(crate) fn source(&self) -> &TableName {
        &self.progress.name
    }

    /// Whether it is that source table, of that task where one is open.
    pub(crate) fn is(&self, task: Option<&TaskId>, source: &TableName) -> bool {
        self.progress.name == *source && task.is_none_or(|task| self.task == *task)
    }

    pub(crate) fn has_target(&self) -> bool {
        !self.target.name.is_empty()
    }
}

/// The source tables of a task, or of all.
pub(crate) async fn owners(
    session: &Session,
    settings: &Settings,
    task: Option<&TaskId>,
) -> Result<Vec<Owner>> {
    let only = task.map_or_else(String::new, |task| format!(" WHERE task_name = {}", literal(task.as_str())));
    let asked = format!(
        "SELECT task_name, source_schema, source_table, target_database, target_table, rows_before, state, cut, code, problem, copy_seq, copy_began FROM {}{only}",
        own(settings, "table_state")
    );
    let rows: Rows = session.ask("reading the tables' state", &asked).await?;
    rows.iter()
        .map(|row| {
            let cut = row.get(7).cloned().flatten().map(|cut| parse(&cut)).transpose()?;
            Ok(Owner {
                task: TaskId::new(text(row, 0)),
                target: TableName::new(text(row, 3), text(row, 4)),
                rows_before: number(row.get(5)),
                copying: copying(row, cut),
                progress: TableProgress {
                    name: TableName::new(text(row, 1), text(row, 2)),
                    state: state_of(&text(row, 6), text(row, 8), text(row, 9)),
                    cut,
                    chunks_done: Vec::new(),
                },
            })
        })
        .collect()
}

fn state_of(word: &str, code: String, problem: String) -> TableState {
    match word {
        "copying" => TableState::Copying,
        "copied" => TableState::Copied,
        "catching_up" => TableState::CatchingUp,
        "live" => TableState::Live,
        "paused" => TableState::Paused,
        "broken" => TableState::Broken { code, problem },
        _ => TableState::Waiting,
    }
}

/// Whether the copy of a table in that state is whole.
pub(crate) fn copy_is_whole(state: &TableState) -> bool {
    matches!(state, TableState::Copied | TableState::CatchingUp | TableState::Live)
}

/// A row's unfinished copy into a history.
fn copying(row: &[Option<String>], cut: Option<Position>) -> Option<Copying> {
    let known = |at: usize| row.get(at).and_then(Option::as_deref);
    let (seq, began_us) = (known(10)?.parse().ok()?, known(11)?.parse().ok()?);
    // A forgotten copy has no cut; its rows are still there.
    Some(Copying { seq, cut: cut.unwrap_or(Position::ZERO), began_us })
}

/// The condition that a row is one of those tables' of a task.
fn of_tables<'a>(task: &TaskId, tables: impl Iterator<Item = &'a TableName>) -> String {
    let names: Vec<String> =
        tables.map(|name| format!("({}, {})", literal(&name.schema), literal(&name.name))).collect();
    format!(
        "task_name = {} AND (source_schema, source_table) IN ({})",
        literal(task.as_str()),
        names.join(", ")
    )
}

/// Notes a table, in place of what was noted of it. `target` is empty where the task has not taken one.
pub(crate) fn note_table(
    settings: &Settings,
    task: &TaskId,
    source: &TableName,
    target: &TableName,
    rows_before: u64,
) -> Vec<String> {
    vec![
        drop_table(settings, task, source),
        format!(
            "INSERT INTO {} (task_name, source_schema, source_table, target_database, target_table, rows_before, state) \
             VALUES ({}, {}, {}, {}, {}, {rows_before}, 'waiting')",
            own(settings, "table_state"),
            literal(task.as_str()),
            literal(&source.schema),
            literal(&source.name),
            literal(&target.schema),
            literal(&target.name)
        ),
    ]
}

/// Takes the note of a table away.
pub(crate) fn drop_table(settings: &Settings, task: &TaskId, source: &TableName) -> String {
    let of = of_tables(task, std::iter::once(source));
    format!("DELETE FROM {} WHERE {of}", own(settings, "table_state"))
}

/// A copy that begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    pub(crate) cut: Position,
    /// Of a history: what its rows share.
    pub(crate) copying: Option<Copying>,
}

/// Stores the state of tables that are noted, and what begins.
pub(crate) fn set_states<'a>(
    settings: &Settings,
    task: &TaskId,
    tables: impl Iterator<Item = &'a TableName>,
    state: &TableState,
    begun: Option<Begun>,
) -> String {
    let (code, problem) = match state {
        TableState::Broken { code, problem } => (literal(code), literal(problem)),
        _ => ("NULL".to_owned(), "NULL".to_owned()),
    };
    let (seq, began) = match begun.and_then(|begun| begun.copying) {
        Some(copying) => (copying.seq.to_string(), copying.began_us.to_string()),
        None => ("NULL".to_owned(), "NULL".to_owned()),
    };
    let mut more =
        begun.map_or_else(String::new, |begun| format!(", cut = {}", literal(&begun.cut.to_string())));
    if begun.is_some() || copy_is_whole(state) {
        more.push_str(&format!(", copy_seq = {seq}, copy_began = {began}"));
    }
    format!(
        "UPDATE {} SET state = {}, code = {code}, problem = {problem}{more} WHERE {}",
        own(settings, "table_state"),
        literal(state.word()),
        of_tables(task, tables)
    )
}

/// Forgets a table's copy, or with `None` every table's, and the position and what it belongs to. A table that still waits for its first
/// copy keeps the note of the rows that were there before; so does one whose copy is unfinished, as it goes to a table of its own.
pub(crate) fn forget(settings: &Settings, task: &TaskId, table: Option<&TableName>) -> Vec<String> {
    let of = match table {
        Some(table) => of_tables(task, std::iter::once(table)),
        None => format!("task_name = {}", literal(task.as_str())),
    };
    let mut statements = vec![
        format!(
            "UPDATE {} SET rows_before = IF(state IN ('waiting', 'copying'), rows_before, 0), state = 'waiting', cut = NULL, \
             code = NULL, problem = NULL WHERE {of}",
            own(settings, "table_state")
        ),
        format!("DELETE FROM {} WHERE {of}", own(settings, "chunk")),
    ];
    if table.is_none() {
        statements.push(format!(
            "UPDATE {} SET \"position\" = NULL, system_id = NULL, timeline = NULL, source_database = NULL, slot = NULL WHERE {of}",
            own(settings, "task")
        ));
    }
    statements
}

/// Notes a loaded chunk.
pub(crate) fn add_chunk(
    settings: &Settings,
    task: &TaskId,
    table: &TableName,
    number: u32,
    rows: u64,
) -> String {
    format!(
        "INSERT INTO {} (task_name, source_schema, source_table, number, row_count) VALUES ({}, {}, {}, {number}, {rows})",
        own(settings, "chunk"),
        literal(task.as_str()),
        literal(&table.schema),
        literal(&table.name)
    )
}

/// Whether a chunk is loaded already.
pub(crate) fn chunk_done(settings: &Settings, task: &TaskId, table: &TableName, number: u32) -> String {
    let of = of_tables(task, std::iter::once(table));
    format!("SELECT count(*) FROM {} WHERE {of} AND number = {number}", own(settings, "chunk"))
}

/// Forgets the chunks of tables.
pub(crate) fn forget_chunks<'a>(
    settings: &Settings,
    task: &TaskId,
    tables: impl Iterator<Item = &'a TableName>,
) -> String {
    format!("DELETE FROM {} WHERE {}", own(settings, "chunk"), of_tables(task, tables))
}
