//! What the memory holds: tables with their rows, and per task its progress and the tables that it made or took over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pgferry_model::{
    Batch, Cell, Error, Position, Progress, Result, Row, Table, TableName, TableProgress, TableState, TaskId,
};
use pgferry_pipeline::{Compacted, IfTargetExists, TablePlan, TextRow};

use super::{promise, unfit};

pub(super) type Key = Vec<Option<String>>;

#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) columns: Vec<Arc<str>>,
    pub(super) rows: BTreeMap<Key, TextRow>,
    /// Keys of rows that were there before the task.
    before: BTreeSet<Key>,
    /// Rows of a table without a key so far; the number is such a row's place in `rows`.
    keyless: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    pub(super) progress: Progress,
    /// The tables that the task made or took over, by their name in the source: their name here.
    pub(super) tables: BTreeMap<TableName, TableName>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) tasks: BTreeMap<TaskId, Held>,
    pub(super) tables: BTreeMap<TableName, Content>,
}

impl Content {
    pub(super) fn of(table: &Table) -> Content {
        let columns = table.columns.iter().map(|column| Arc::clone(&column.name)).collect();
        Content { columns, ..Content::default() }
    }

    fn fits(&self, table: &Table) -> bool {
        self.columns.iter().eq(table.columns.iter().map(|column| &column.name))
    }

    pub(super) fn put(&mut self, table: &Table, row: TextRow) -> bool {
        let key = if table.key.is_empty() {
            self.keyless += 1;
            vec![Some(format!("{:020}", self.keyless))]
        } else {
            key_of(table, &row)
        };
        self.rows.insert(key, row).is_none()
    }

    /// Removes what the task put there.
    pub(super) fn remove_copied(&mut self) {
        self.rows.retain(|key, _| self.before.contains(key));
    }

    /// The rows under other columns: by name, NULL where a row has no value.
    pub(super) fn reshape(&mut self, table: &Table) {
        let from: Vec<Option<usize>> = table
            .columns
            .iter()
            .map(|column| self.columns.iter().position(|had| *had == column.name))
            .collect();
        for row in self.rows.values_mut() {
            *row = from.iter().map(|at| at.and_then(|at| row[at].clone())).collect();
        }
        self.columns = Content::of(table).columns;
    }

    pub(super) fn load(&mut self, batch: &Batch) -> Result<u64> {
        let table = Arc::clone(batch.table());
        for row in batch.rows() {
            let row = texts(row.new.ok_or_else(|| promise(&table.name, "a snapshot's row without a tuple"))?);
            verify_values(&table, &row)?;
            if !self.put(&table, row) {
                return Err(promise(&table.name, "a row was loaded twice"));
            }
        }
        Ok(batch.len() as u64)
    }

    pub(super) fn apply(&mut self, compacted: &Compacted) -> Result<()> {
        let batch = compacted.batch();
        let table = batch.table();
        let tuple =
            |at: u32| batch.tuple(at).ok_or_else(|| promise(&table.name, "a tuple that is not there"));
        if compacted.truncate {
            self.rows.clear();
            self.before.clear();
        }
        let mut staged = Vec::new();
        for upsert in &compacted.upserts {
            let row = tuple(upsert.tuple)?;
            let mut cells = texts(row);
            if let Some(origin) = upsert.origin {
                let origin = key_of(table, &texts(tuple(origin.0)?));
                let held = self
                    .rows
                    .get(&origin)
                    .ok_or_else(|| promise(&table.name, "the origin of an unchanged value is missing"))?;
                for (at, cell) in row.cells().enumerate() {
                    if cell == Cell::Unchanged {
                        cells[at].clone_from(&held[at]);
                    }
                }
            }
            verify_values(table, &cells)?;
            let key = key_of(table, &cells);
            if upsert.new_to_target && self.rows.contains_key(&key) {
                return Err(promise(&table.name, "an insert of a key that is there"));
            }
            staged.push((key, cells));
        }
        for delete in &compacted.deletes {
            let key = key_of(table, &texts(tuple(delete.0)?));
            self.before.remove(&key);
            if self.rows.remove(&key).is_none() && table.key_enforced {
                return Err(promise(&table.name, "a delete of a key that is not there"));
            }
        }
        for (key, row) in staged {
            self.before.remove(&key);
            self.rows.insert(key, row);
        }
        Ok(())
    }
}

impl Held {
    pub(super) fn known(&mut self, table: &TableName) -> &mut TableProgress {
        let tables = &mut self.progress.tables;
        let at = tables.iter().position(|known| known.name == *table).unwrap_or_else(|| {
            tables.push(TableProgress {
                name: table.clone(),
                state: TableState::Waiting,
                cut: None,
                chunks_done: Vec::new(),
            });
            tables.len() - 1
        });
        &mut tables[at]
    }
}

impl State {
    pub(super) fn held_position(&self, task: &TaskId) -> Option<Position> {
        self.tasks.get(task).and_then(|held| held.progress.position)
    }

    /// The task's own progress, and the content of a table that it made or took over.
    pub(super) fn held(&mut self, task: &TaskId, table: &Table) -> Result<(&mut Held, &mut Content)> {
        let held = self.tasks.entry(task.clone()).or_default();
        let content = held.tables.get(&table.name).and_then(|name| self.tables.get_mut(name));
        match content {
            Some(content) if content.fits(table) => Ok((held, content)),
            Some(_) => Err(broken(table, "the table here has other columns")),
            None => Err(broken(table, "the task has no such table here")),
        }
    }

    pub(super) fn prepare(&mut self, task: &TaskId, plan: &TablePlan) -> Result<()> {
        let (table, name) = (&plan.table, &plan.table.target_name);
        for (other, held) in &mut self.tasks {
            let owner = held
                .tables
                .iter()
                .find(|(source, target)| *target == name && (other != task || **source != table.name))
                .map(|(source, _)| source.clone());
            let Some(source) = owner else { continue };
            if other == task || matches!(plan.if_exists, IfTargetExists::Append | IfTargetExists::Error) {
                return Err(broken(table, "another source table's rows go there"));
            }
            held.tables.remove(&source);
            held.progress.tables.retain(|known| known.name != source);
        }
        let held = self.tasks.entry(task.clone()).or_default();
        let waits = held.known(&table.name).state == TableState::Waiting;
        let fits = self.tables.get(name).map(|content| content.fits(table));
        if held.tables.contains_key(&table.name) {
            return match fits {
                Some(true) => Ok(()),
                _ if waits => {
                    self.tables.insert(name.clone(), Content::of(table));
                    Ok(())
                }
                Some(false) => Err(broken(table, "the table here has other columns")),
                None => Err(broken(table, "the table that the task made is gone")),
            };
        }
        match (fits, plan.if_exists) {
            (Some(_), IfTargetExists::Error) => return Err(broken(table, "there is a table of that name")),
            (Some(false), IfTargetExists::Append | IfTargetExists::Truncate) => {
                return Err(broken(table, "the table here has other columns"));
            }
            (None, _) | (Some(_), IfTargetExists::Replace | IfTargetExists::Truncate) => {
                self.tables.insert(name.clone(), Content::of(table));
            }
            (Some(true), IfTargetExists::Append) => {
                let content = self.tables.entry(name.clone()).or_default();
                content.before = content.rows.keys().cloned().collect();
            }
        }
        held.tables.insert(table.name.clone(), name.clone());
        held.known(&table.name).state = TableState::Waiting;
        Ok(())
    }
}

fn broken(table: &Table, what: &str) -> Error {
    promise(&table.name, what).with_class(pgferry_model::Class::TableBroken).with_table(table.name.clone())
}

/// Text cannot hold a zero byte; no value of PostgreSQL has one.
fn verify_values(table: &Table, row: &TextRow) -> Result<()> {
    let misfit = row.iter().position(|cell| cell.as_ref().is_some_and(|text| text.contains('\0')));
    misfit.map_or(Ok(()), |at| Err(unfit(table, &table.columns[at].name)))
}

fn texts(row: Row<'_>) -> TextRow {
    row.cells()
        .map(|cell| match cell {
            Cell::Null | Cell::Unchanged => None,
            Cell::Text(bytes) | Cell::Binary(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        })
        .collect()
}

fn key_of(table: &Table, row: &TextRow) -> Key {
    table.key.iter().map(|&at| row[at].clone()).collect()
}
