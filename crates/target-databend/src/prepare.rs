//! A table's place before its rows come: what is there, whose it is, and what has to be done.
//!
//! ```text
//!   Entries (one look for many tables) ──> decision ──> note that the table is the task's ─> statements
//! ```
//!
//! Databend ends a transaction before a statement that makes or drops a table. So the note comes first: a crash after it leaves a table
//! of the task that is made when the task starts again.
//!
//! Invariant: nothing is dropped or emptied that the task has not noted, or was not told to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use pgferry_model::{Cure, Error, Result, Table, TableName, TableState, TaskId};
use pgferry_pipeline::{IfTargetExists, TablePlan, failpoint};

use crate::error::{NAME_COLLISION, TABLE_EXISTS, table_exists, table_gone};
use crate::holder::{Commit, Holder, Staged, Step};
use crate::progress::{self, Moved, Owner};
use crate::schema::{
    Found, SEQ, among, copy_name, create_copy, create_raw, create_statements, qualified, quote, raw_name,
    remake_statements, stored_type, target_name, verify_existing, verify_names, verify_storage,
};
use crate::session::{Session, first_number, text};
use crate::settings::Settings;

/// What is at the places of some tables, and what tasks have noted.
pub(crate) struct Entries {
    columns: HashMap<TableName, Vec<Found>>,
    views: Vec<TableName>,
    /// Tables of the storage format `native`.
    native: Vec<TableName>,
    owners: Vec<Owner>,
}

/// What is to be done for a table.
pub(crate) struct Decision {
    pub(crate) target: TableName,
    /// The table of another task that this one takes over.
    pub(crate) taken_from: Option<(TaskId, TableName)>,
    /// It is to be noted as the task's.
    pub(crate) note: bool,
    /// Its rows are those of others, and stay.
    pub(crate) keeps_rows: bool,
    /// Its rows are removed.
    pub(crate) emptied: bool,
    /// The statements that make it.
    pub(crate) statements: Vec<String>,
}

impl Entries {
    /// Looks at the places of the plans' tables.
    pub(crate) async fn read(session: &Session, settings: &Settings, plans: &[TablePlan]) -> Result<Entries> {
        let doing = "looking for the tables";
        let names: Vec<TableName> = plans.iter().map(|plan| target_name(settings, &plan.table)).collect();
        let mut entries =
            Entries { columns: HashMap::new(), views: Vec::new(), native: Vec::new(), owners: Vec::new() };
        if progress::is_made(session, settings).await? {
            entries.owners = progress::owners(session, settings, None).await?;
        }
        if plans.is_empty() {
            return Ok(entries);
        }
        let asked = format!(
            "SELECT database, name, engine, table_option FROM system.tables WHERE {}",
            among(&names, "name")
        );
        for row in session.ask(doing, &asked).await? {
            let name = TableName::new(text(&row, 0), text(&row, 1));
            if text(&row, 3).contains("STORAGE_FORMAT='native'") {
                entries.native.push(name.clone());
            }
            match text(&row, 2).as_str() {
                "VIEW" => entries.views.push(name),
                _ => drop(entries.columns.insert(name, Vec::new())),
            }
        }
        let asked = format!(
            "SELECT database, table, name, type FROM system.columns WHERE {}",
            among(&names, "table")
        );
        for row in session.ask(doing, &asked).await? {
            let name = TableName::new(text(&row, 0), text(&row, 1));
            if let Some(columns) = entries.columns.get_mut(&name) {
                columns.push((text(&row, 2), stored_type(&text(&row, 3))));
            }
        }
        Ok(entries)
    }

    /// What the task has noted of a source table. Before a task is open, what any task has noted of it for the same place.
    fn noted(&self, task: Option<&TaskId>, source: &TableName, target: &TableName) -> Option<&Owner> {
        let mut own = self.owners.iter().filter(|owner| owner.is(task, source) && owner.has_target());
        own.find(|owner| task.is_some() || owner.target == *target)
    }

    pub(crate) fn is_there(&self, name: &TableName) -> bool {
        self.columns.contains_key(name)
    }

    /// What has to be done for a table, or the error that it is set aside with.
    pub(crate) fn decide(
        &self,
        settings: &Settings,
        task: Option<&TaskId>,
        plan: &TablePlan,
    ) -> Result<Decision> {
        let table = &plan.table;
        let target = target_name(settings, table);
        verify_names(settings, table, &target)?;
        if self.views.contains(&target) {
            let problem = format!("Databend has a view {target}, not a table");
            return Err(Error::table_broken(TABLE_EXISTS, table.name.clone(), problem)
                .with_cause("rows can be written to a table only")
                .with_cure(Cure::advice("drop or rename the view, or give the table another target name")));
        }
        let taken_from = self.owner_before(task, plan, &target)?;
        let found = self.columns.get(&target).map(Vec::as_slice);
        let noted = self.noted(task, &table.name, &target);
        let mut decision = Decision {
            target: target.clone(),
            taken_from,
            note: noted.is_none(),
            keeps_rows: false,
            emptied: false,
            statements: Vec::new(),
        };
        if let Some(noted) = noted {
            if noted.progress.state == TableState::Waiting {
                if settings.keeps_history() && self.native.contains(&target) {
                    verify_storage(settings, &target, table)?;
                }
                decision.statements = remake_statements(settings, &target, plan, found);
                if !decision.statements.is_empty() {
                    return Ok(decision);
                }
            }
            let found = found.ok_or_else(|| table_gone(&table.name, &target))?;
            self.verify(settings, &target, table, found)?;
            decision.keeps_rows = noted.rows_before > 0;
            return Ok(decision);
        }
        let Some(found) = found else {
            decision.statements = create_statements(settings, &target, table);
            return Ok(decision);
        };
        match plan.if_exists {
            IfTargetExists::Error => return Err(table_exists(&table.name, &target)),
            IfTargetExists::Append => {
                self.verify(settings, &target, table, found)?;
                decision.keeps_rows = true;
            }
            IfTargetExists::Truncate => {
                self.verify(settings, &target, table, found)?;
                decision.emptied = true;
            }
            IfTargetExists::Replace => {
                decision.statements = vec![format!("DROP TABLE {}", qualified(&target))];
                decision.statements.extend(create_statements(settings, &target, table));
            }
        }
        Ok(decision)
    }

    fn verify(&self, settings: &Settings, name: &TableName, table: &Table, found: &[Found]) -> Result<()> {
        verify_existing(settings, name, table, found)?;
        if self.native.contains(name) { verify_storage(settings, name, table) } else { Ok(()) }
    }

    /// Who held the table before this task, which takes it over; a table takes the rows of one source table.
    fn owner_before(
        &self,
        task: Option<&TaskId>,
        plan: &TablePlan,
        target: &TableName,
    ) -> Result<Option<(TaskId, TableName)>> {
        let table = &plan.table;
        let others =
            self.owners.iter().filter(|owner| owner.target == *target && !owner.is(task, &table.name));
        let Some(owner) = others.min_by_key(|owner| Some(&owner.task) != task) else { return Ok(None) };
        if Some(&owner.task) == task || plan.if_exists == IfTargetExists::Append {
            let problem = format!(
                "{} would go to {target}, which takes {} of task {}",
                table.name,
                owner.source(),
                owner.task
            );
            return Err(Error::table_broken(NAME_COLLISION, table.name.clone(), problem)
                .with_cause("a table takes the rows of one source table")
                .with_cure(Cure::advice(
                    "give one of them another target name in its entry of the task file",
                )));
        }
        if self.is_there(target) && plan.if_exists == IfTargetExists::Error {
            return Err(table_exists(&table.name, target));
        }
        Ok(Some((owner.task.clone(), owner.source().clone())))
    }

    /// The other tables of the same call see what was decided.
    fn add(&mut self, task: &TaskId, plan: &TablePlan, decision: &Decision) {
        if let Some((owner, source)) = &decision.taken_from {
            self.owners.retain(|known| !known.is(Some(owner), source));
        }
        self.owners.retain(|known| !known.is(Some(task), &plan.table.name));
        self.owners.push(Owner {
            task: task.clone(),
            target: decision.target.clone(),
            rows_before: u64::from(decision.keeps_rows),
            copying: None,
            progress: pgferry_model::TableProgress {
                name: plan.table.name.clone(),
                state: TableState::Waiting,
                cut: None,
                chunks_done: Vec::new(),
            },
        });
    }
}

/// Prepares tables: decides for all of them, then does it one by one. An error before anything is done leaves nothing behind.
pub(crate) async fn prepare(holder: &Holder, plans: &[TablePlan]) -> Result<()> {
    let (settings, task) = (&*holder.settings, &holder.task);
    // An older holder makes no table.
    holder.commit(&Commit::of("preparing the tables", Vec::new())).await?;
    let session = holder.session().await?;
    let mut entries = Entries::read(&session, settings, plans).await?;
    session.give_back();
    let mut decisions = Vec::with_capacity(plans.len());
    for plan in plans {
        let decision = entries.decide(settings, Some(task), plan)?;
        entries.add(task, plan, &decision);
        decisions.push(decision);
    }
    let mut steps = Vec::new();
    for (plan, decision) in plans.iter().zip(&decisions) {
        note(holder, plan, decision, &mut steps).await?;
    }
    if !steps.is_empty() {
        // With the note that a history goes on comes the number from which on it does.
        let seq = settings.keeps_history().then(|| holder.view.lock().seq);
        let moved = Moved { position: None, seq };
        holder.commit(&Commit { moved, ..Commit::of("preparing the tables", steps) }).await?;
    }
    for (plan, decision) in plans.iter().zip(&decisions) {
        make(holder, plan, decision).await?;
    }
    Ok(())
}

async fn note(holder: &Holder, plan: &TablePlan, decision: &Decision, steps: &mut Vec<Step>) -> Result<()> {
    if !decision.note {
        return Ok(());
    }
    let (settings, task, source) = (&*holder.settings, &holder.task, &plan.table.name);
    if let Some((owner, table)) = &decision.taken_from {
        steps.push(Step::new(progress::drop_table(settings, owner, table)));
        steps.push(Step::new(progress::forget_chunks(settings, owner, std::iter::once(table))));
    }
    let doing = format!("preparing {}", decision.target);
    let rows_before = if decision.keeps_rows && settings.keeps_history() {
        continue_numbers(holder, &doing, &decision.target).await?;
        0
    } else if decision.keeps_rows {
        let counted = format!("SELECT count(*) FROM {}", qualified(&decision.target));
        first_number(&holder.ask(&doing, &counted).await?)
    } else {
        0
    };
    let notes = progress::note_table(settings, task, source, &decision.target, rows_before);
    steps.extend(notes.into_iter().map(Step::new));
    if decision.emptied {
        steps.push(Step::on(source, format!("DELETE FROM {}", qualified(&decision.target))));
    }
    if rows_before > 0 {
        holder.view.lock().appending.insert(source.clone());
    }
    Ok(())
}

/// What is appended to a history has greater numbers than what is there.
async fn continue_numbers(holder: &Holder, doing: &str, target: &TableName) -> Result<()> {
    let asked = format!("SELECT coalesce(max({}), 0) FROM {}", quote(SEQ), qualified(target));
    let last = first_number(&holder.ask(doing, &asked).await?);
    let mut view = holder.view.lock();
    view.seq = view.seq.max(last);
    Ok(())
}

async fn make(holder: &Holder, plan: &TablePlan, decision: &Decision) -> Result<()> {
    let (settings, task, source) = (&*holder.settings, &holder.task, &plan.table.name);
    let doing = format!("preparing {}", decision.target);
    let raw = raw_name(settings, task, source);
    let made = !decision.statements.is_empty();
    let mut statements = decision.statements.clone();
    let history = settings.keeps_history();
    if (made || decision.note) && !history {
        // What an earlier task of this name has left may have other columns.
        statements.push(format!("DROP TABLE IF EXISTS {}", qualified(&raw)));
    }
    if !history {
        statements.push(create_raw(settings, &raw, &plan.table));
    }
    if decision.keeps_rows && !history {
        let copy = copy_name(settings, task, source);
        statements.push(create_copy(settings, &copy, &decision.target, &plan.table));
    }
    for statement in &statements {
        holder.ask(&doing, statement).await.map_err(|failure| crate::error::of_table(failure, source))?;
        failpoint::pass("target.table_created");
    }
    if made {
        holder.view.lock().made.insert(source.clone());
    }
    let table = Arc::clone(&plan.table);
    let mut view = holder.view.lock();
    view.deletes.insert(source.clone(), plan.deletes);
    if !made && !decision.note && !history && !view.staged.contains_key(source) {
        // A process before this one may have left staged rows.
        let seq = view.seq;
        let now = Instant::now();
        view.staged.insert(source.clone(), Staged { table, seq, due: now, since: now });
        drop(view);
        holder.wake.notify_one();
    }
    Ok(())
}
