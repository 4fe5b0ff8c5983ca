//! How long a narrow change takes from its frame into the assembler: `cargo run --release --example decode_speed`.
#![allow(clippy::expect_used, clippy::print_stdout)]

#[allow(dead_code)]
#[path = "../tests/drive/mod.rs"]
mod drive;

use std::time::Instant;

use pgferry_model::Position;
use pgferry_pipeline::{Assembler, Limits};
use pgferry_source_postgres::decode::relation_cache::{RelationCache, TableBinding};
use pgferry_source_postgres::replication::spool::SpoolSettings;
use pgferry_source_postgres::replication::transaction::Transactions;

const ROWS: u64 = 10_000_000;

fn measure(name: &str, file: &str, skipped: bool) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
    let bytes = std::fs::read(folder.join(file)).expect("the recording");
    let frames = drive::frames(&bytes);
    let mut tables = drive::tables(&frames);
    let lanes = tables.clone();
    if skipped {
        tables.clear();
    }
    let limits = Limits { batch_bytes_max: 16 << 20, batch_rows_max: usize::MAX, buffer_bytes_max: 64 << 20 };
    let relations = RelationCache::new(tables.into_iter().map(TableBinding::new).collect());
    let mut transactions = Transactions::new(relations, SpoolSettings::default());
    let mut assembler = Assembler::open_to_all(limits, lanes, Position::ZERO);
    let rows = frames.iter().filter(|frame| matches!(frame.first(), Some(b'I' | b'U' | b'D'))).count() as u64;
    let (mut seen, mut spent) = (0, std::time::Duration::ZERO);
    while seen < ROWS {
        // A fresh assembler each time: positions repeat with the recording. Making it is not what is measured.
        let started = Instant::now();
        for frame in &frames {
            transactions.frame(frame, &mut assembler).expect("taken");
            while transactions.pending() {
                if let Some(diff) = transactions.relations().question().cloned() {
                    answer(&mut transactions, &diff);
                }
                transactions.settle(usize::MAX, &[]);
                transactions.resume(&mut assembler).expect("taken");
            }
            if let Some(question) = transactions.relations().question().cloned() {
                answer(&mut transactions, &question);
            }
        }
        spent += started.elapsed();
        seen += rows;
        transactions.reset();
        let lanes = drive::tables(&frames);
        assembler = Assembler::open_to_all(limits, lanes, Position::ZERO);
    }
    println!("{name}: {:.0} ns per change, {seen} changes", spent.as_nanos() as f64 / seen as f64);
}

fn answer(
    transactions: &mut Transactions,
    question: &pgferry_source_postgres::decode::relation_cache::Question,
) {
    if let pgferry_source_postgres::decode::relation_cache::Question::Changed(diff) = question {
        transactions.relations().tolerate(diff.table);
    }
}

fn main() {
    measure("not streamed", "v18-p1-streamed.frames", false);
    measure("streamed, in memory, with a rolled back third", "v18-p2-on-streamed.frames", false);
    measure("tables that the task does not carry", "v18-p1-streamed.frames", true);
}
