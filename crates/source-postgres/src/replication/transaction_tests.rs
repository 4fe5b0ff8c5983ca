//! Frames into transactions: order, streams, aborts, replays.

use std::sync::Arc;

use pgferry_model::{Cell, Class, Column, DataType, Op, Table, TableName, TypeKind};
use pgferry_pipeline::Limits;

use super::*;
use crate::decode::relation_cache::TableBinding;

fn table(id: u32, name: &str, columns: &[&str]) -> Arc<Table> {
    let column = |name: &&str| Column {
        name: (*name).into(),
        data_type: DataType {
            oid: 25,
            name: "text".into(),
            kind: TypeKind::Text,
            sends_binary: true,
            output_function: "f".into(),
        },
        nullable: true,
    };
    Arc::new(Table {
        id: TableId(id),
        name: TableName::new("shop", name),
        target_name: TableName::new("shop", name),
        columns: columns.iter().map(column).collect(),
        key: vec![0],
        key_enforced: true,
        full_identity: false,
        rows_estimated: 0,
        bytes: 0,
    })
}

/// Frames as a server of version 1 writes them.
fn begin(lsn: u64) -> Vec<u8> {
    [&b"B"[..], &lsn.to_be_bytes(), &[0; 8], &7u32.to_be_bytes()].concat()
}

fn commit(lsn: u64) -> Vec<u8> {
    [&b"C\0"[..], &lsn.to_be_bytes(), &(lsn + 8).to_be_bytes(), &[0; 8]].concat()
}

fn relation(oid: u32, name: &str, columns: &[&str]) -> Vec<u8> {
    let mut frame = [&b"R"[..], &oid.to_be_bytes(), b"shop\0", name.as_bytes(), b"\0d"].concat();
    frame.extend_from_slice(&(columns.len() as u16).to_be_bytes());
    for (at, column) in columns.iter().enumerate() {
        frame.push(u8::from(at == 0));
        frame.extend_from_slice(column.as_bytes());
        frame.extend_from_slice(&[&b"\0"[..], &25u32.to_be_bytes(), &(-1i32).to_be_bytes()].concat());
    }
    frame
}

fn tuple(cells: &[&str]) -> Vec<u8> {
    let mut bytes = (cells.len() as u16).to_be_bytes().to_vec();
    for cell in cells {
        bytes.extend_from_slice(&[&b"t"[..], &(cell.len() as u32).to_be_bytes(), cell.as_bytes()].concat());
    }
    bytes
}

fn row(kind: u8, oid: u32, cells: &[&str]) -> Vec<u8> {
    [&[kind][..], &oid.to_be_bytes(), b"N", &tuple(cells)].concat()
}

fn truncate(oids: &[u32]) -> Vec<u8> {
    let mut frame = [&b"T"[..], &(oids.len() as u32).to_be_bytes(), b"\0"].concat();
    oids.iter().for_each(|oid| frame.extend_from_slice(&oid.to_be_bytes()));
    frame
}

fn start(tables: &[Arc<Table>]) -> (Transactions, Assembler) {
    let limits = Limits { batch_bytes_max: 1 << 20, batch_rows_max: usize::MAX, buffer_bytes_max: 1 << 20 };
    let assembler = Assembler::open_to_all(limits, tables.to_vec(), Position::ZERO);
    let cache = RelationCache::new(tables.iter().cloned().map(TableBinding::new).collect());
    (Transactions::new(cache, SpoolSettings::default()), assembler)
}

#[test]
fn a_truncated_partition_breaks_its_table_only() {
    let tables = [table(0, "orders", &["id"]), table(1, "notes", &["id"])];
    let (mut transactions, mut assembler) = start(&tables);
    transactions.relations().map_leaf(11, TableId(0));
    transactions.relations().map_leaf(12, TableId(0));
    let frames = [
        begin(80),
        relation(11, "east", &["id"]),
        relation(12, "west", &["id"]),
        relation(2, "notes", &["id"]),
    ];
    for frame in &frames {
        assert_eq!(transactions.frame(frame, &mut assembler).expect("taken"), Flow::Continue);
    }
    let error = transactions.frame(&truncate(&[11, 2]), &mut assembler).expect_err("one of two partitions");
    assert_eq!((error.code(), error.class()), (PARTITION_TRUNCATED, Class::TableBroken));
    assert_eq!(error.table(), Some(&tables[0].name));
    transactions.frame(&truncate(&[12, 11]), &mut assembler).expect("both");
    transactions.frame(&commit(80), &mut assembler).expect("taken");
    let delivery = assembler.take();
    let emptied: Vec<_> = delivery
        .tables
        .iter()
        .map(|batch| (batch.table().id.0, batch.len(), batch.row(0).map(|r| r.op)))
        .collect();
    assert_eq!(emptied, [(0, 1, Some(Op::Truncate)), (1, 1, Some(Op::Truncate))]);
    assert_eq!(delivery.through, Position::from_lsn(88));
}

#[test]
fn a_missing_column_is_null_in_an_insert_and_unchanged_in_an_update() {
    let (mut transactions, mut assembler) = start(&[table(0, "orders", &["id", "later", "note"])]);
    transactions.frame(&begin(80), &mut assembler).expect("taken");
    let older = relation(1, "orders", &["id", "note"]);
    assert_eq!(transactions.frame(&older, &mut assembler).expect("taken"), Flow::SchemaChanged);
    let early = transactions.frame(&row(b'I', 1, &["1", "a"]), &mut assembler).expect_err("not answered");
    assert_eq!(early.code(), crate::decode::PROTOCOL);
    transactions.relations().tolerate(TableId(0));
    for kind in [b'I', b'U'] {
        transactions.frame(&row(kind, 1, &["1", "a"]), &mut assembler).expect("taken");
    }
    let short = transactions.frame(&row(b'I', 1, &["1"]), &mut assembler).expect_err("a cell is missing");
    assert_eq!(short.code(), crate::decode::PROTOCOL);
    transactions.frame(&commit(80), &mut assembler).expect("taken");
    let delivery = assembler.take();
    let cells: Vec<Vec<Cell<'_>>> =
        delivery.tables[0].rows().map(|row| row.new.expect("new").cells().collect()).collect();
    let (one, a) = (Cell::Text(b"1"), Cell::Text(b"a"));
    assert_eq!(cells, [vec![one, Cell::Null, a], vec![one, Cell::Unchanged, a]]);
}

#[test]
fn a_change_in_an_unwanted_transaction_is_asked_about_at_the_next_wanted_one() {
    let tables = [table(0, "orders", &["id"])];
    let (mut transactions, _) = start(&tables);
    let limits = Limits { batch_bytes_max: 1 << 20, batch_rows_max: usize::MAX, buffer_bytes_max: 1 << 20 };
    let mut assembler = Assembler::open_to_all(limits, tables.to_vec(), Position::from_lsn(100));
    let wider = relation(1, "orders", &["id", "note"]);
    for frame in [begin(80), wider, row(b'I', 1, &["1", "a"]), commit(80)] {
        assert_eq!(transactions.frame(&frame, &mut assembler).expect("taken"), Flow::Continue);
    }
    assert_eq!(transactions.frame(&begin(120), &mut assembler).expect("taken"), Flow::SchemaChanged);
    assert_eq!(transactions.statistics().unwanted, 1);
}

#[test]
fn messages_out_of_place_are_refused() {
    let (mut transactions, mut assembler) = start(&[table(0, "orders", &["id"])]);
    for frame in [commit(80), row(b'I', 1, &["1"]), truncate(&[1]), b"E".to_vec(), b"S\0\0\0\x01\0".to_vec()]
    {
        let error = transactions.frame(&frame, &mut assembler).expect_err("between transactions");
        assert_eq!(error.code(), crate::decode::PROTOCOL, "{error}");
    }
    transactions.frame(&begin(80), &mut assembler).expect("taken");
    for frame in [begin(80), commit(90), row(b'I', 1, &["1"]), b"S\0\0\0\x01\x01".to_vec(), Vec::new()] {
        let error = transactions.frame(&frame, &mut assembler).expect_err("inside a transaction");
        assert_eq!(error.code(), crate::decode::PROTOCOL, "{error}");
    }
}
