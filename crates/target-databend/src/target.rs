//! The target's contract on Databend: every call on a thread of its own, so that nothing that was begun is cut off in its middle.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use pgferry_model::{
    CellFormat, Class, Column, Cure, Delivery, Error, Finding, Position, Progress, Result, SourceIdentity,
    Table, TableName, TableState, TaskId,
};
use pgferry_pipeline::error::{SCHEMA_CHANGE_BLOCKED, worker_lost};
use pgferry_pipeline::{
    ChangeForm, ChunkRows, ColumnMapping, CopyMark, Inspect, Receipt, SchemaChange, TableChanges, TablePlan,
    Target, Wants,
};

use crate::config::DatabendConfig;
use crate::error::{APPEND_INTERRUPTED, fenced, table_exists};
use crate::history::Copying;
use crate::holder::{Commit, Holder, Step};
use crate::progress::{self, Begun, Moved, Owner};
use crate::schema::{column_type, column_types, copy_name, qualified, raw_name, target_name, verify_names};
use crate::session::Session;
use crate::settings::Settings;
use crate::write::Waiting;
use crate::{check, history, merge, prepare, write};

/// A Databend server as a target.
#[derive(Clone)]
pub struct DatabendTarget {
    pub(crate) settings: Arc<Settings>,
    open: Arc<Mutex<Option<Arc<Holder>>>>,
    /// Slices of an unfinished transaction.
    waiting: Arc<tokio::sync::Mutex<Waiting>>,
}

impl DatabendTarget {
    /// A target; nothing is connected yet. Fails with `target.databend_settings` where the address cannot be used.
    pub fn connect(config: DatabendConfig) -> Result<DatabendTarget> {
        let settings = Arc::new(Settings::new(config)?);
        Ok(DatabendTarget { settings, open: Arc::default(), waiting: Arc::default() })
    }

    /// Who holds the task in this process.
    pub(crate) fn holder(&self) -> Option<Arc<Holder>> {
        self.open.lock().clone()
    }

    fn held_here(&self) -> Result<Arc<Holder>> {
        self.holder().ok_or_else(fenced)
    }

    /// Runs to its end, also where the caller is gone: encoding takes a thread's time, and a commit is not cut off.
    async fn detached<T, F>(&self, work: impl FnOnce(DatabendTarget) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>>,
    {
        let (target, runtime) = (self.clone(), tokio::runtime::Handle::current());
        let done = tokio::task::spawn_blocking(move || runtime.block_on(work(target))).await;
        done.unwrap_or_else(|lost| {
            Err(worker_lost("a thread of the Databend target ended without a result").with_origin(lost))
        })
    }

    /// Commits steps of a holder.
    async fn record(
        &self,
        doing: &'static str,
        steps: impl FnOnce(&Holder) -> Vec<Step> + Send + 'static,
    ) -> Result<()> {
        self.detached(move |target| async move {
            let holder = target.held_here()?;
            holder.commit(&Commit::of(doing, steps(&holder))).await
        })
        .await
    }

    async fn open_here(&self, task: &TaskId) -> Result<Progress> {
        let settings = &self.settings;
        let session = Session::connect(settings).await?;
        let doing = "opening the task";
        if !progress::is_made(&session, settings).await? {
            for statement in progress::create_statements(settings) {
                session.ask_again("making pgferry's own tables", &statement).await?;
            }
        }
        let mine = new_lease();
        session.ask_again(doing, &progress::take_lease(settings, task, &mine)).await?;
        let stored = progress::read(&session, settings, task).await?.ok_or_else(fenced)?;
        if stored.lease.holder != mine {
            return Err(fenced());
        }
        let holder = Holder::new(settings, task, stored.lease, session, stored.progress.position, stored.seq);
        let unfinished = |owner: &&Owner| {
            owner.rows_before > 0 && matches!(owner.progress.state, TableState::Waiting | TableState::Copying)
        };
        let appending = stored.owners.iter().filter(unfinished).map(|owner| owner.source().clone());
        holder.view.lock().appending.extend(appending);
        holder.view.lock().copying.extend(stored.owners.iter().filter_map(copy_under_way));
        if let Some(old) = self.holder().filter(|old| old.task == *task) {
            holder.succeed(&old);
        }
        let holder = Arc::new(holder);
        clean_stage(&holder).await;
        if !settings.keeps_history() {
            merge::begin(&holder);
        }
        *self.open.lock() = Some(holder);
        Ok(stored.progress)
    }
}

/// A copy into a history that is not whole.
fn copy_under_way(owner: &Owner) -> Option<(TableName, Copying)> {
    owner.copying.map(|copying| (owner.source().clone(), copying))
}

/// A name for this holding of a task that no other one has.
fn new_lease() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{}-{number}", std::process::id(), now.as_nanos())
}

/// Removes files that earlier holders have left: what was not copied then is staged anew.
async fn clean_stage(holder: &Holder) {
    let statement = format!("REMOVE {}/", holder.folder());
    if let Err(failure) = holder.ask("removing old files of the stage", &statement).await {
        tracing::debug!("old files stay in the stage: {failure}");
    }
}

fn append_interrupted(table: &TableName, target: &TableName) -> Error {
    let problem =
        format!("rows that were in {target} before the task cannot be told from those that it has copied");
    Error::table_broken(APPEND_INTERRUPTED, table.clone(), problem)
        .with_cause("the task took the table over with if_target_exists = \"append\"; another copy would double its rows")
        .with_cure(
            Cure::advice("keep a copy of the rows that you need, empty the table, then resync again")
                .sql(format!("DELETE FROM {}", qualified(target)))
                .run_as("you, in Databend"),
        )
}

async fn begin_copies(
    holder: &Holder,
    waiting: &mut Waiting,
    tables: &[Arc<Table>],
    mark: CopyMark,
) -> Result<()> {
    let (settings, task) = (&*holder.settings, &holder.task);
    let merging = holder.merging.lock().await;
    let session = holder.session().await?;
    let doing = "starting a copy";
    let owners = progress::owners(&session, settings, Some(task)).await?;
    session.give_back();
    let copying = settings.keeps_history().then(|| Copying {
        seq: waiting.next_number(holder),
        cut: mark.cut,
        began_us: history::now_us(),
    });
    let mut steps = Vec::new();
    for table in tables {
        let noted = owners.iter().find(|owner| owner.is(Some(task), &table.name) && owner.has_target());
        let target = target_name(settings, table);
        // A table that the task has not taken over is somebody else's: not one row of it is deleted.
        let noted = noted.ok_or_else(|| table_exists(&table.name, &target))?;
        if let Some(copying) = copying {
            steps.extend(history::begin_steps(holder, table, noted.copying, copying));
            continue;
        }
        let unfinished = matches!(noted.progress.state, TableState::Waiting | TableState::Copying);
        let emptied = match noted.rows_before {
            0 if holder.view.lock().made.contains(&table.name) => continue,
            0 => target,
            _ if unfinished => copy_name(settings, task, &table.name),
            _ => return Err(append_interrupted(&table.name, &target)),
        };
        let raw = raw_name(settings, task, &table.name);
        steps.push(Step::on(&table.name, format!("DELETE FROM {}", qualified(&emptied))));
        steps.push(Step::on(&table.name, format!("DELETE FROM {}", qualified(&raw))));
    }
    let names = || tables.iter().map(|table| &table.name);
    steps.push(Step::new(progress::forget_chunks(settings, task, names())));
    steps.push(Step::new(progress::set_states(
        settings,
        task,
        names(),
        &TableState::Copying,
        Some(Begun { cut: mark.cut, copying }),
    )));
    let first = holder.view.lock().position == Position::ZERO;
    let start = mark.stream_start.filter(|_| first);
    let moved = Moved { position: start, seq: copying.map(|copying| copying.seq) };
    let points = ["target.begin_before_commit", "target.record_after_commit"];
    holder.commit(&Commit { doing, steps, moved, points }).await?;
    drop(merging);
    let mut view = holder.view.lock();
    for table in tables {
        view.staged.remove(&table.name);
        view.failed.remove(&table.name);
        view.made.remove(&table.name);
        view.copying.extend(copying.map(|copying| (table.name.clone(), copying)));
    }
    if let Some(copying) = copying {
        view.seq = view.seq.max(copying.seq);
    }
    if let Some(start) = start {
        view.position = start;
    }
    Ok(())
}

async fn set_states(holder: &Holder, tables: &[Arc<Table>], state: &TableState) -> Result<()> {
    let (settings, task) = (&*holder.settings, &holder.task);
    let session = holder.session().await?;
    let owners = progress::owners(&session, settings, Some(task)).await?;
    session.give_back();
    let mut steps = Vec::new();
    for table in tables.iter().filter(|table| !owners.iter().any(|owner| owner.is(Some(task), &table.name))) {
        let nowhere = TableName::new("", "");
        let notes = progress::note_table(settings, task, &table.name, &nowhere, 0);
        steps.extend(notes.into_iter().map(Step::new));
    }
    steps.extend(write::state_steps(holder, tables, state));
    holder.commit(&Commit::of("storing the tables' state", steps)).await?;
    write::note_states(holder, tables, state);
    Ok(())
}

async fn forget(holder: &Holder, table: Option<&TableName>) -> Result<()> {
    let (settings, task) = (&*holder.settings, &holder.task);
    let _merging = holder.merging.lock().await;
    let session = holder.session().await?;
    let owners = progress::owners(&session, settings, Some(task)).await?;
    session.give_back();
    let of_it = owners.iter().filter(|owner| table.is_none_or(|table| owner.source() == table));
    for owner in of_it {
        let joined = !matches!(owner.progress.state, TableState::Waiting | TableState::Copying);
        if owner.rows_before > 0 && joined {
            return Err(append_interrupted(owner.source(), &owner.target));
        }
    }
    let steps = progress::forget(settings, task, table).into_iter().map(Step::new).collect();
    holder.commit(&Commit::of("forgetting what was copied", steps)).await?;
    if table.is_none() {
        holder.view.lock().position = Position::ZERO;
    }
    Ok(())
}

#[async_trait]
impl Target for DatabendTarget {
    fn wants(&self) -> Wants {
        Wants {
            changes: if self.settings.keeps_history() {
                ChangeForm::EveryChange
            } else {
                ChangeForm::LatestPerKey
            },
            loads_max: self.settings.loads_max,
            slices: true,
            atomic: true,
        }
    }

    fn snapshot_format(&self, table: &Table, column: &Column) -> CellFormat {
        let at = table.columns.iter().position(|known| known.name == column.name).unwrap_or(0);
        column_type(&self.settings, table, at).snapshot_format(&column.data_type)
    }

    fn mapping(&self, table: &Table) -> Result<Vec<ColumnMapping>> {
        verify_names(&self.settings, table, &target_name(&self.settings, table))?;
        let types = column_types(&self.settings, table);
        let mapping = |(column, kind): (&Column, crate::ColumnType)| ColumnMapping {
            column: column.name.to_string(),
            source_type: column.data_type.name.to_string(),
            target_type: kind.name,
            fidelity: kind.fidelity,
            note: kind.note.to_owned(),
        };
        Ok(table.columns.iter().zip(types).map(mapping).collect())
    }

    fn place_of(&self, table: &Table) -> String {
        target_name(&self.settings, table).to_string()
    }

    async fn open(&self, task: &TaskId) -> Result<Progress> {
        let task = task.clone();
        self.waiting.lock().await.discard();
        self.detached(move |target| async move { target.open_here(&task).await }).await
    }

    async fn held(&self, task: &TaskId) -> Result<Option<Progress>> {
        let task = task.clone();
        self.detached(move |target| async move {
            let session = Session::connect(&target.settings).await?;
            if !progress::is_made(&session, &target.settings).await? {
                return Ok(None);
            }
            let stored = progress::read(&session, &target.settings, &task).await?;
            Ok(stored.map(|stored| stored.progress))
        })
        .await
    }

    async fn identify(&self, source: &SourceIdentity) -> Result<()> {
        let source = source.clone();
        let steps = move |holder: &Holder| {
            vec![Step::new(progress::identify(&holder.settings, &holder.task, &source))]
        };
        self.record("storing the source's identity", steps).await
    }

    async fn prepare(&self, plan: &TablePlan) -> Result<()> {
        self.prepare_all(std::slice::from_ref(plan)).await
    }

    async fn prepare_all(&self, plans: &[TablePlan]) -> Result<()> {
        let plans = plans.to_vec();
        self.detached(move |target| async move {
            let holder = target.held_here()?;
            prepare::prepare(&holder, &plans).await
        })
        .await
    }

    async fn begin_copy(&self, table: &Arc<Table>, mark: CopyMark) -> Result<()> {
        self.begin_copies(std::slice::from_ref(table), mark).await
    }

    async fn begin_copies(&self, tables: &[Arc<Table>], mark: CopyMark) -> Result<()> {
        let tables = tables.to_vec();
        self.detached(move |target| async move {
            let holder = target.held_here()?;
            let mut waiting = target.waiting.lock().await;
            begin_copies(&holder, &mut waiting, &tables, mark).await
        })
        .await
    }

    async fn load(&self, chunk: ChunkRows) -> Result<u64> {
        self.detached(move |target| async move {
            let holder = target.held_here()?;
            write::load(&holder, chunk).await
        })
        .await
    }

    async fn load_tables(&self, tables: Vec<(ChunkRows, TableState)>) -> Result<Vec<u64>> {
        self.detached(move |target| async move {
            let holder = target.held_here()?;
            write::load_tables(&holder, tables).await
        })
        .await
    }

    async fn set_state(&self, table: &Arc<Table>, state: TableState) -> Result<()> {
        self.set_states(std::slice::from_ref(table), state).await
    }

    async fn set_states(&self, tables: &[Arc<Table>], state: TableState) -> Result<()> {
        let tables = tables.to_vec();
        self.detached(move |target| async move {
            let holder = target.held_here()?;
            set_states(&holder, &tables, &state).await
        })
        .await
    }

    async fn forget(&self, table: Option<&TableName>) -> Result<()> {
        let table = table.cloned();
        self.detached(move |target| async move {
            let holder = target.held_here()?;
            forget(&holder, table.as_ref()).await
        })
        .await
    }

    async fn apply(&self, delivery: Arc<Delivery<TableChanges>>) -> Result<Receipt> {
        self.detached(move |target| async move {
            let holder = target.held_here()?;
            let mut waiting = target.waiting.lock().await;
            write::apply(&holder, &mut waiting, &delivery).await
        })
        .await
    }

    async fn discard(&self) -> Result<()> {
        self.waiting.lock().await.discard();
        Ok(())
    }

    async fn evolve(&self, change: &SchemaChange) -> Result<()> {
        let table = &change.after.name;
        let problem = format!("the columns of {table} changed");
        Err(Error::table_broken(SCHEMA_CHANGE_BLOCKED, table.clone(), problem)
            .with_cause(
                "rows that are there already may lack the new values, so the change is not applied by itself",
            )
            .with_cure(Cure::advice("stop the task, copy the table again, start it").resync_table(table)))
    }

    async fn check(&self, plans: &[TablePlan]) -> Result<Vec<Finding>> {
        let plans = plans.to_vec();
        self.detached(move |target| async move { check::findings(&target, &plans).await }).await
    }

    async fn describe(&self, plan: &TablePlan) -> Result<Vec<String>> {
        let plan = plan.clone();
        self.detached(move |target| async move { check::statements(&target, &plan).await }).await
    }

    fn inspect(&self) -> &dyn Inspect {
        self
    }

    fn outcome_unknown(&self, error: &Error) -> bool {
        error.class() == Class::Transient
    }

    async fn close(&self) -> Result<()> {
        self.waiting.lock().await.discard();
        self.detached(|target| async move {
            let Some(holder) = target.open.lock().take() else { return Ok(()) };
            merge::finish(&holder).await;
            holder.end();
            Ok(())
        })
        .await
    }
}
