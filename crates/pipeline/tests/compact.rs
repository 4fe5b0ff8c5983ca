//! Compaction against a plain model: whatever the changes, what a target is told to do leads to the same rows.

#![allow(clippy::expect_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::sync::Arc;

use pgferry_model::{
    Batch, Cell, CellFormat, Column, DataType, Op, Row, Table, TableId, TableName, TypeKind,
};
use pgferry_pipeline::{Compacted, DeletePolicy, compact};
use proptest::prelude::*;

fn table(key_enforced: bool, full_identity: bool) -> Arc<Table> {
    let data_type = DataType {
        oid: 25,
        name: "text".into(),
        kind: TypeKind::Text,
        sends_binary: true,
        output_function: "pg_catalog.textout".into(),
    };
    let column = |name: &str| Column { name: name.into(), data_type: data_type.clone(), nullable: true };
    Arc::new(Table {
        id: TableId(0),
        name: TableName::new("public", "t"),
        target_name: TableName::new("public", "t"),
        columns: vec![column("id"), column("small"), column("large")],
        key: vec![0],
        key_enforced,
        full_identity,
        rows_estimated: 0,
        bytes: 0,
    })
}

/// key -> (small, large)
type Rows = BTreeMap<u8, (u8, u8)>;

#[derive(Clone, Debug)]
enum Wish {
    Insert { key: u8, small: u8, large: u8 },
    Update { key: u8, small: u8, large: Option<u8> },
    Move { key: u8, to: u8, large: Option<u8> },
    Swap { left: u8, right: u8 },
    Delete { key: u8 },
    Truncate,
}

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let key = 0..6u8;
    let wish = prop_oneof![
        4 => (key.clone(), any::<u8>(), any::<u8>())
            .prop_map(|(key, small, large)| Wish::Insert { key, small, large }),
        6 => (key.clone(), any::<u8>(), any::<Option<u8>>())
            .prop_map(|(key, small, large)| Wish::Update { key, small, large }),
        3 => (key.clone(), key.clone(), any::<Option<u8>>())
            .prop_map(|(key, to, large)| Wish::Move { key, to, large }),
        2 => (key.clone(), key.clone()).prop_map(|(left, right)| Wish::Swap { left, right }),
        4 => key.prop_map(|key| Wish::Delete { key }),
        1 => Just(Wish::Truncate),
    ];
    proptest::collection::vec(wish, 0..40)
}

struct Recorder {
    batch: Batch,
    rows: Rows,
    full: bool,
}

impl Recorder {
    fn text(&mut self, value: u8) {
        self.batch.push_value(CellFormat::Text, value.to_string().as_bytes());
    }

    fn new_tuple(&mut self, key: u8, small: u8, large: Option<u8>) {
        self.batch.start_new();
        self.text(key);
        self.text(small);
        match large {
            Some(large) => self.text(large),
            None => self.batch.push_unchanged(),
        }
    }

    fn old_tuple(&mut self, key: u8, row: (u8, u8)) {
        self.batch.start_old(self.full);
        self.text(key);
        if self.full {
            self.text(row.0);
            self.text(row.1);
        } else {
            self.batch.push_null();
            self.batch.push_null();
        }
    }

    fn insert(&mut self, key: u8, small: u8, large: u8) {
        if self.rows.contains_key(&key) {
            return;
        }
        self.start(Op::Insert);
        self.new_tuple(key, small, Some(large));
        self.rows.insert(key, (small, large));
    }

    fn update(&mut self, key: u8, to: u8, small: Option<u8>, large: Option<u8>) {
        let Some(&before) = self.rows.get(&key) else { return };
        if to != key && self.rows.contains_key(&to) {
            return;
        }
        let after = (small.unwrap_or(before.0), large.unwrap_or(before.1));
        self.start(Op::Update);
        if self.full || to != key {
            self.old_tuple(key, before);
        }
        self.new_tuple(to, after.0, large);
        self.rows.remove(&key);
        self.rows.insert(to, after);
    }

    fn delete(&mut self, key: u8, policy: DeletePolicy) {
        let Some(&before) = self.rows.get(&key) else { return };
        self.start(Op::Delete);
        self.old_tuple(key, before);
        if policy == DeletePolicy::Carry {
            self.rows.remove(&key);
        }
    }

    fn start(&mut self, op: Op) {
        let sequence = self.batch.len() as u32;
        self.batch.start_row(op, sequence);
    }

    fn wish(&mut self, wish: &Wish, policy: DeletePolicy) {
        match *wish {
            Wish::Insert { key, small, large } => self.insert(key, small, large),
            Wish::Update { key, small, large } => self.update(key, key, Some(small), large),
            Wish::Move { key, to, large } => self.update(key, to, None, large),
            Wish::Swap { left, right } => {
                self.update(left, 99, None, None);
                self.update(right, left, None, None);
                self.update(99, right, None, None);
            }
            Wish::Delete { key } => self.delete(key, policy),
            Wish::Truncate => {
                self.start(Op::Truncate);
                if policy == DeletePolicy::Carry {
                    self.rows.clear();
                }
            }
        }
    }
}

fn number(cell: Cell<'_>) -> Option<u8> {
    match cell {
        Cell::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

fn key_of(row: Row<'_>) -> u8 {
    number(row.cell(0)).expect("a key")
}

/// What a target does by the contract.
fn apply(compacted: &Compacted, target: &mut Rows) {
    let batch = compacted.batch();
    let before = if compacted.truncate { Rows::new() } else { target.clone() };
    let mut staged = Rows::new();
    for upsert in &compacted.upserts {
        let row = batch.tuple(upsert.tuple).expect("a tuple");
        let small = number(row.cell(1)).expect("small is always sent");
        let large = match row.cell(2) {
            Cell::Unchanged => {
                let origin = batch.tuple(upsert.origin.expect("an origin").0).expect("a tuple");
                before.get(&key_of(origin)).expect("the target holds the origin").1
            }
            cell => number(cell).expect("large"),
        };
        let key = key_of(row);
        assert!(!upsert.new_to_target || !before.contains_key(&key), "new_to_target is true");
        assert!(staged.insert(key, (small, large)).is_none(), "a key is upserted once");
    }
    if compacted.truncate {
        target.clear();
    }
    for delete in &compacted.deletes {
        let key = key_of(batch.tuple(delete.0).expect("a tuple"));
        assert!(!staged.contains_key(&key), "no key is both deleted and upserted");
        target.remove(&key);
    }
    target.extend(staged);
}

fn check(start: &Rows, rounds: &[Vec<Wish>], policy: DeletePolicy, enforced: bool, full: bool) {
    let mut target = start.clone();
    let mut rows = start.clone();
    for wishes in rounds {
        let mut recorder = Recorder { batch: Batch::new(table(enforced, full)), rows, full };
        for wish in wishes {
            // A source never inserts a key that it holds; with deletes ignored the model keeps what the source dropped, so
            // only changes to rows that both hold are made up.
            recorder.wish(wish, policy);
        }
        rows = recorder.rows;
        let compacted = compact(recorder.batch, policy).expect("well-formed changes");
        apply(&compacted, &mut target);
        assert_eq!(target, rows, "{wishes:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_target_that_obeys_ends_with_the_sources_rows(
        start in proptest::collection::btree_map(0..6u8, any::<(u8, u8)>(), 0..6),
        rounds in proptest::collection::vec(wishes(), 1..4),
        policy in prop_oneof![Just(DeletePolicy::Carry), Just(DeletePolicy::Ignore)],
        enforced in any::<bool>(),
        full in any::<bool>(),
    ) {
        check(&start, &rounds, policy, enforced, full);
    }
}

#[test]
fn a_swap_of_two_rows_keeps_their_large_values() {
    let start = Rows::from([(1, (10, 11)), (2, (20, 21))]);
    for full in [false, true] {
        let swap = [vec![Wish::Swap { left: 1, right: 2 }]];
        check(&start, &swap, DeletePolicy::Carry, true, full);
    }
}

#[test]
fn a_key_that_is_not_known_breaks_the_table_and_nothing_else() {
    for unknown in [true, false] {
        let mut batch = Batch::new(table(true, false));
        batch.start_row(Op::Insert, 0);
        batch.start_new();
        if unknown {
            batch.push_null();
        } else {
            batch.push_unchanged();
        }
        batch.push_null();
        batch.push_null();
        let failure = compact(batch, DeletePolicy::Carry).expect_err("no key");
        assert_eq!(failure.class(), pgferry_model::Class::TableBroken);
        assert_eq!(failure.table().map(ToString::to_string).as_deref(), Some("public.t"));
    }
}
