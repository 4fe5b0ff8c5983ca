//! Writes the transactions of one session: which operations, on which rows, with which values.
//!
//! Invariants: no look at the database, so that the seed alone decides; a fresh key is of one run and one session only,
//! so that only key swaps and re-inserted keys can meet another session.

use std::collections::BTreeMap;

use super::schema::{Kind, Table};
use super::{Operation, Options};
use crate::random::SeededRandom;

/// Fresh keys lie above every filled one, with this room for each run.
const RUN_ROOM: u64 = 1 << 24;
pub(super) const FRESH_FROM: u64 = 1 << 20;
/// A key that no row has outside of a key swap.
pub(super) const ASIDE: u64 = 1 << 30;

/// Which session of which run, among how many, over how many filled rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    pub(super) run: u64,
    pub(super) session: u64,
    pub(super) sessions: u64,
    pub(super) filled: u64,
}

/// One transaction, ready to be sent, again if need be.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) statements: Vec<String>,
    pub(super) commits: bool,
    pub(super) operations: BTreeMap<Operation, u64>,
}

pub(super) struct Transactions {
    random: SeededRandom,
    lane: Lane,
    options: Options,
    tables: Vec<Table>,
    fresh: u64,
}

impl Transactions {
    pub(super) fn new(seed: u64, lane: Lane, options: Options, tables: Vec<Table>) -> Self {
        let random = SeededRandom::member(seed, lane.run << 16 | lane.session);
        Self { random, lane, options, tables, fresh: 0 }
    }

    pub(super) fn next(&mut self) -> Transaction {
        let commits = !self.random.chance(self.options.rolled_back_percent);
        let mut transaction =
            Transaction { statements: vec!["BEGIN".to_owned()], commits, operations: BTreeMap::new() };
        let count = self.random.between(1, self.options.operations_max.max(1));
        for _ in 0..count {
            let operation = self.operation();
            if operation == Operation::Empty {
                // Empty means the whole transaction; a number of its own makes it leave a commit in WAL half of the time.
                transaction.statements.truncate(1);
                transaction.operations.clear();
                if self.random.chance(50) {
                    transaction.statements.push("SELECT txid_current()".to_owned());
                }
                transaction.operations.insert(operation, 1);
                break;
            }
            self.write(operation, &mut transaction.statements);
            *transaction.operations.entry(operation).or_default() += 1;
        }
        transaction.statements.push(if commits { "COMMIT" } else { "ROLLBACK" }.to_owned());
        transaction
    }

    fn operation(&mut self) -> Operation {
        let total = self.options.weights.values().sum();
        let mut chosen = self.random.below(total);
        for (operation, weight) in &self.options.weights {
            if chosen < *weight {
                return *operation;
            }
            chosen -= weight;
        }
        Operation::Empty
    }

    fn write(&mut self, operation: Operation, out: &mut Vec<String>) {
        match operation {
            Operation::Insert => self.insert(1, out),
            Operation::InsertMany => {
                let rows = self.random.between(2, 50);
                self.insert(rows, out);
            }
            Operation::Update => self.update(out),
            Operation::UpdateMany => self.update_many(out),
            Operation::Delete => {
                let table = self.table(|_| true);
                let key = self.key(&table);
                out.push(format!("DELETE FROM {} WHERE {}", table.name, table.at(key)));
            }
            Operation::KeyChange => self.key_change(out),
            Operation::KeySwap => self.key_swap(out),
            Operation::DeleteAndInsert => self.delete_and_insert(out),
            Operation::InsertUpdateDelete => self.insert_update_delete(out),
            Operation::SavepointRolledBack => self.savepoint(out, false),
            Operation::SavepointReleased => self.savepoint(out, true),
            Operation::Truncate => self.truncate(out, 1),
            Operation::TruncateMany => self.truncate(out, usize::MAX),
            Operation::Large => self.large(out),
            Operation::Message => {
                let transactional = self.random.chance(50);
                let text = self.random.next();
                out.push(format!(
                    "SELECT pg_logical_emit_message({transactional}, 'testkit', 'message {text:x} ä')"
                ));
            }
            Operation::Empty => {}
        }
    }

    /// A table that takes rows and fits.
    fn table(&mut self, fits: impl Fn(&Table) -> bool) -> Table {
        let fitting: Vec<&Table> =
            self.tables.iter().filter(|table| table.kind.filled() && fits(table)).collect();
        // Large rows are chosen less often: they would take all the time.
        let mut table = fitting[self.random.index(fitting.len())];
        if table.kind.large() && self.random.chance(50) {
            table = fitting[self.random.index(fitting.len())];
        }
        table.clone()
    }

    /// The key of a row that was there at the start, or of one of our own; it may be gone by now.
    fn key(&mut self, table: &Table) -> u64 {
        if self.fresh > 0 && self.random.chance(30) {
            let number = self.random.below(self.fresh);
            return self.fresh_key(number);
        }
        let filled =
            if table.kind.large() { (self.lane.filled / 10).clamp(1, 1000) } else { self.lane.filled.max(1) };
        self.random.between(1, filled)
    }

    fn fresh_key(&self, number: u64) -> u64 {
        FRESH_FROM.max(self.lane.filled + 1)
            + self.lane.run * RUN_ROOM
            + number * self.lane.sessions
            + self.lane.session
    }

    fn new_key(&mut self) -> u64 {
        self.fresh += 1;
        self.fresh_key(self.fresh - 1)
    }

    fn insert(&mut self, rows: u64, out: &mut Vec<String>) {
        let table = self.table(|_| true);
        let rows = if table.kind.large() { rows.min(5) } else { rows };
        let keys: Vec<u64> = (0..rows).map(|_| self.new_key()).collect();
        out.extend(table.insert_sql(&keys, &mut self.random));
    }

    fn update(&mut self, out: &mut Vec<String>) {
        let table = self.table(|_| true);
        let key = self.key(&table);
        let set = table.set_sql(&mut self.random);
        out.push(format!("UPDATE {} SET {set} WHERE {}", table.name, table.at(key)));
    }

    fn update_many(&mut self, out: &mut Vec<String>) {
        let table = self.table(|table| !table.kind.large());
        let (first, count) = (self.key(&table), self.random.between(2, 40));
        let set = table.set_sql(&mut self.random);
        let key = table.key_column();
        out.push(format!(
            "UPDATE {} SET {set} WHERE {key} BETWEEN {first} AND {}",
            table.name,
            first + count
        ));
    }

    fn key_change(&mut self, out: &mut Vec<String>) {
        let table = self.table(Table::keyed);
        let (old, new) = (self.key(&table), self.new_key());
        let key = table.key_column();
        out.push(format!("UPDATE {} SET {key} = {new} WHERE {key} = {old}", table.name));
    }

    fn key_swap(&mut self, out: &mut Vec<String>) {
        let table = self.table(Table::keyed);
        let (one, two) = (self.key(&table), self.key(&table));
        let (name, key, aside) = (&table.name, table.key_column(), ASIDE + self.lane.session);
        if one == two {
            return;
        }
        for (from, to) in [(one, aside), (two, one), (aside, two)] {
            out.push(format!("UPDATE {name} SET {key} = {to} WHERE {key} = {from}"));
        }
    }

    fn delete_and_insert(&mut self, out: &mut Vec<String>) {
        let table = self.table(Table::keyed);
        let key = self.key(&table);
        out.push(format!("DELETE FROM {} WHERE {} = {key}", table.name, table.key_column()));
        out.extend(table.insert_sql(&[key], &mut self.random));
    }

    fn insert_update_delete(&mut self, out: &mut Vec<String>) {
        let table = self.table(|_| true);
        let key = self.new_key();
        out.extend(table.insert_sql(&[key], &mut self.random));
        let set = table.set_sql(&mut self.random);
        out.push(format!("UPDATE {} SET {set} WHERE {}", table.name, table.at(key)));
        out.push(format!("DELETE FROM {} WHERE {} = {key}", table.name, table.key_column()));
    }

    /// Changes within a savepoint, a second one nested in it half of the time, with the opposite end.
    fn savepoint(&mut self, out: &mut Vec<String>, released: bool) {
        let end = |name: &str, released: bool| {
            if released {
                format!("RELEASE SAVEPOINT {name}")
            } else {
                format!("ROLLBACK TO SAVEPOINT {name}")
            }
        };
        out.push("SAVEPOINT outer_point".to_owned());
        self.insert(2, out);
        self.update(out);
        if self.random.chance(50) {
            out.push("SAVEPOINT inner_point".to_owned());
            self.update(out);
            self.insert(1, out);
            out.push(end("inner_point", !released));
            self.update(out);
        }
        out.push(end("outer_point", released));
    }

    fn truncate(&mut self, out: &mut Vec<String>, most: usize) {
        let tables: Vec<Table> = self
            .tables
            .iter()
            .filter(|table| matches!(table.kind, Kind::Truncated | Kind::Empty))
            .take(most)
            .cloned()
            .collect();
        if tables.is_empty() {
            return;
        }
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        out.push(format!("TRUNCATE {}", names.join(", ")));
        if let Some(table) = tables.iter().find(|table| table.kind.filled()) {
            let keys: Vec<u64> = (0..20).map(|_| self.new_key()).collect();
            out.extend(table.insert_sql(&keys, &mut self.random));
        }
    }

    fn large(&mut self, out: &mut Vec<String>) {
        let mut left = self.options.large_rows;
        while left > 0 {
            let table = self.table(|table| !table.kind.large());
            let rows = left.min(250);
            let keys: Vec<u64> = (0..rows).map(|_| self.new_key()).collect();
            let point = self.random.chance(30);
            if point {
                out.push("SAVEPOINT large_point".to_owned());
            }
            out.extend(table.insert_sql(&keys, &mut self.random));
            if point {
                let end = if self.random.chance(50) { "RELEASE SAVEPOINT" } else { "ROLLBACK TO SAVEPOINT" };
                out.push(format!("{end} large_point"));
            }
            left -= rows;
        }
    }
}
