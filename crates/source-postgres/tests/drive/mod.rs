//! Drives a recorded (or made up, or damaged) stream of frames through the decoder into an assembler and reads the rows back.
//!
//! Shared by the fuzz target and the tests, so that what is fuzzed is what is tested.

#![allow(unreachable_pub)]

use std::sync::Arc;

use pgferry_model::{
    Cell, Column, DataType, Op, Position, Result, Row, Slice, Table, TableId, TableName, TypeKind,
};
use pgferry_pipeline::{Assembler, Limits};
use pgferry_source_postgres::decode::pgoutput::{Message, RelationMessage, decode};
use pgferry_source_postgres::decode::relation_cache::{Question, RelationCache, TableBinding};
use pgferry_source_postgres::replication::spool::SpoolSettings;
use pgferry_source_postgres::replication::transaction::{Flow, Statistics, Transactions};

/// How much is taken at once.
pub struct Pace {
    pub buffer_bytes_max: usize,
    pub spool_bytes_max: usize,
    pub after: Position,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { buffer_bytes_max: 64 << 20, spool_bytes_max: 8 << 20, after: Position::ZERO }
    }
}

/// What came of it: a line per change and per commit.
#[derive(Debug, Default)]
pub struct Driven {
    pub lines: Vec<String>,
    pub questions: usize,
    pub slices: usize,
    pub statistics: Statistics,
    pub spilled_bytes: u64,
    pub spools_left: usize,
    pub spool_memory_left: usize,
}

/// Frames with their lengths before them; the last may be cut short.
pub fn frames(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(rest.len().min(u32::from_be_bytes(*len) as usize));
        frames.push(frame);
        bytes = rest;
    }
    frames
}

/// The tables `shop.*` as the stream describes them first, without `shop.other`.
pub fn tables(frames: &[&[u8]]) -> Vec<Arc<Table>> {
    let mut tables: Vec<Arc<Table>> = Vec::new();
    let mut streamed = false;
    for frame in frames {
        let decoded = decode(frame, streamed).map(|decoded| decoded.message);
        match decoded {
            Ok(Message::StreamStart { .. }) => streamed = true,
            Ok(Message::StreamStop) => streamed = false,
            Ok(Message::Relation(relation)) => {
                let known = tables.iter().any(|table| *table.name.name == *relation.name);
                if relation.schema == "shop" && relation.name != "other" && !known {
                    tables.push(Arc::new(table(TableId(tables.len() as u32), &relation)));
                }
            }
            _ => {}
        }
    }
    tables
}

pub fn table(id: TableId, relation: &RelationMessage<'_>) -> Table {
    let column = |name: &str, oid| Column {
        name: name.into(),
        data_type: DataType {
            oid,
            name: "".into(),
            kind: TypeKind::Other,
            sends_binary: false,
            output_function: "".into(),
        },
        nullable: true,
    };
    let name = TableName::new(relation.schema, relation.name);
    Table {
        id,
        name: name.clone(),
        target_name: name,
        columns: relation.columns().map(|c| column(c.name, c.type_oid)).collect(),
        key: relation.columns().enumerate().filter(|(_, c)| c.identity).map(|(at, _)| at).collect(),
        key_enforced: true,
        full_identity: false,
        rows_estimated: 0,
        bytes: 0,
    }
}

/// Questions are answered with "as it is"; cuts are made where asked for and after each transaction.
pub fn run(bytes: &[u8], pace: &Pace) -> Result<Driven> {
    let frames = frames(bytes);
    let tables = tables(&frames);
    let spool = SpoolSettings { memory_bytes_max: pace.spool_bytes_max, ..SpoolSettings::default() };
    let relations = RelationCache::new(tables.iter().cloned().map(TableBinding::new).collect());
    let mut transactions = Transactions::new(relations, spool);
    let limits = Limits {
        batch_bytes_max: pace.buffer_bytes_max,
        batch_rows_max: usize::MAX,
        buffer_bytes_max: pace.buffer_bytes_max,
    };
    let mut assembler = Assembler::open_to_all(limits, tables, pace.after);
    let mut driven = Driven::default();
    for frame in frames {
        let mut flow = transactions.frame(frame, &mut assembler)?;
        loop {
            match flow {
                Flow::Stop => take(&mut assembler, &mut driven),
                Flow::SchemaChanged => answer(&mut transactions, &mut driven),
                Flow::Continue => {}
            }
            if !transactions.pending() {
                break;
            }
            // The recordings hold every rollback.
            transactions.settle(usize::MAX, &[]);
            flow = transactions.resume(&mut assembler)?;
        }
        if !transactions.in_transaction() {
            take(&mut assembler, &mut driven);
        }
    }
    take(&mut assembler, &mut driven);
    driven.statistics = transactions.statistics();
    driven.spilled_bytes = transactions.spools().spilled_bytes();
    driven.spools_left = transactions.spools().len();
    driven.spool_memory_left = transactions.spools().memory_bytes();
    Ok(driven)
}

fn answer(transactions: &mut Transactions, driven: &mut Driven) {
    while let Some(question) = transactions.relations().question() {
        driven.questions += 1;
        match question {
            Question::Changed(diff) => {
                let table = diff.table;
                transactions.relations().tolerate(table);
            }
            Question::Unknown(described) => {
                let oid = described.oid;
                transactions.relations().ignore(oid);
            }
        }
    }
}

fn take(assembler: &mut Assembler, driven: &mut Driven) {
    let delivery = assembler.take();
    driven.slices += usize::from(delivery.slice == Slice::Part);
    let mut lines: Vec<(u32, String)> = Vec::new();
    for batch in &delivery.tables {
        for row in batch.rows() {
            let op = match row.op {
                Op::Insert => "I",
                Op::Update => "U",
                Op::Delete => "D",
                Op::Truncate => "T",
            };
            let mut line = format!("{op} {}", batch.table().name.name);
            if let Some(old) = row.old {
                line += if row.old_is_full { " old " } else { " key " };
                line += &cells(old);
            }
            if let Some(new) = row.new {
                line += " new ";
                line += &cells(new);
            }
            lines.push((row.sequence, line));
        }
    }
    lines.sort();
    driven.lines.extend(lines.into_iter().map(|(_, line)| line));
    // The last one of a part is not at its end.
    let ended = delivery.transactions.len() - usize::from(delivery.slice == Slice::Part);
    for mark in &delivery.transactions[..ended] {
        driven.lines.push(format!("commit {} {}", mark.xid, mark.position));
    }
}

/// NULL is `-`, an unchanged value `~`; long values by their first byte and length.
fn cells(row: Row<'_>) -> String {
    let cell = |cell: Cell<'_>| match cell {
        Cell::Null => "-".to_owned(),
        Cell::Unchanged => "~".to_owned(),
        Cell::Text(bytes) if bytes.len() > 100 => format!("{}*{}", bytes[..1].escape_ascii(), bytes.len()),
        Cell::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Cell::Binary(bytes) => {
            format!("0x{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }
    };
    row.cells().map(cell).collect::<Vec<_>>().join("|")
}
