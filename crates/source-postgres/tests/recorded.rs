//! What real servers sent, decoded: against expectations written by hand, against another decoder, streamed against not
//! streamed, and damaged.

#![allow(clippy::expect_used, clippy::panic)]

mod drive;

use std::path::Path;

use drive::{Pace, frames, run};
use pg_walstream::{ColumnData, LogicalReplicationMessage as Theirs, LogicalReplicationParser};
use pgferry_model::{Cell, Class, Op};
use pgferry_source_postgres::decode::PROTOCOL;
use pgferry_source_postgres::decode::pgoutput::{Message, TupleData, TwoPhase, decode};
use proptest::prelude::*;

const UNIX_US: i64 = 946_684_800_000_000;

fn recordings() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
    let mut found: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .expect("recordings")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| {
            (entry.file_name().into_string().expect("a name"), std::fs::read(entry.path()).expect("read"))
        })
        .filter(|(name, _)| name.ends_with(".frames"))
        .collect();
    found.sort();
    assert!(found.len() >= 16, "recordings are missing");
    found
}

fn recording(name: &str) -> Vec<u8> {
    let found = recordings().into_iter().find(|(found, _)| found == &format!("{name}.frames"));
    found.unwrap_or_else(|| panic!("no recording {name}")).1
}

fn changes_of(lines: &[String]) -> Vec<&str> {
    lines.iter().map(String::as_str).filter(|line| !line.starts_with("commit")).collect()
}

const CHANGES: &[&str] = &[
    "I plain new 1|Ada|glad|12.50|x*2500|2024-02-29 12:00:00.5+00|\\xdead",
    "I plain new 2|-|-|-||infinity|\\x",
    "U plain new 1|Ada L.|glad|12.50|~|2024-02-29 12:00:00.5+00|\\xdead",
    "U plain key 1|-|-|-|-|-|- new 3|Ada L.|glad|12.50|~|2024-02-29 12:00:00.5+00|\\xdead",
    "D plain key 2|-|-|-|-|-|-",
    "I whole new 1|first|y*2200",
    "I whole new 2|-|-",
    "U whole old 1|first|y*2200 new 1|second|~",
    "D whole old 2|-|-",
    "I indexed new 1|one|c",
    "U indexed new 1|one|d",
    "U indexed key 1|one|- new 2|one|d",
    "D indexed key 2|one|-",
    "I plain new 10|-|-|-|-|-|-",
    "I plain new 21|committed first|-|-|-|-|-",
    "I plain new 20|began first|-|-|-|-|-",
    "I plain new 30|-|-|-|-|-|-",
    "I plain new 31|-|-|-|-|-|-",
    "T plain",
    "T whole",
    "I parted new 1|east|a",
    "I parted new 2|west|b",
    "D parted key 1|east|-",
    "I parted new 1|west|a",
    "D parted key 2|west|-",
    "T parted",
    "I indexed new 7|seven|c",
];

#[test]
fn changes_are_what_was_done() {
    let without = |left_out: &[&str]| -> Vec<&str> {
        CHANGES.iter().copied().filter(|line| !left_out.iter().any(|out| line.contains(out))).collect()
    };
    let old = without(&["parted", "new 31|", "T "]);
    let no_message = without(&["new 31|"]);
    let no_origin = without(&["new 30|"]);
    for (name, expected) in [
        ("v10-p1-changes", &old),
        ("v13-p1-changes", &no_message),
        ("v15-p1-changes", &CHANGES.to_vec()),
        ("v15-p3-messages-changes", &CHANGES.to_vec()),
        ("v18-p1-changes", &CHANGES.to_vec()),
        ("v18-p4-none-changes", &no_origin),
    ] {
        let driven =
            run(&recording(name), &Pace::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(&changes_of(&driven.lines), expected, "{name}");
        assert_eq!(driven.questions, 1, "{name}: only the added column is a change");
        assert_eq!(driven.statistics.with_origin, u64::from(!name.contains("none")), "{name}");
    }
}

#[test]
fn binary_cells_are_kept_as_they_came() {
    for name in ["v15-p1-binary-changes", "v18-p1-binary-changes"] {
        let driven = run(&recording(name), &Pace::default()).expect(name);
        let changes = changes_of(&driven.lines);
        assert_eq!(changes.len(), CHANGES.len(), "{name}");
        // int4 1, text, enum (its label), numeric 12.50 (2 digits, weight 0, scale 2), bytea.
        assert!(
            changes[0]
                .starts_with("I plain new 0x00000001|0x416461|0x676c6164|0x0002000000000002000c1388|0x")
        );
        assert!(changes[0].ends_with("|0xdead"), "{name}");
        assert_eq!(changes[3].matches('~').count(), 1, "{name}");
    }
}

#[test]
fn streamed_transactions_give_what_they_give_when_not_streamed() {
    for (streamed, plain) in [
        ("v15-p2-on-streamed", "v15-p1-streamed"),
        ("v18-p2-on-streamed", "v18-p1-streamed"),
        ("v18-p4-parallel-streamed", "v18-p1-streamed"),
    ] {
        let expected = run(&recording(plain), &Pace::default()).expect(plain);
        let changes = changes_of(&expected.lines);
        let of = |start: &str| changes.iter().filter(|line| line.starts_with(start)).count();
        // By hand from the scenario: kept rows only.
        assert_eq!((of("I plain"), of("D plain"), of("I whole"), of("U whole")), (361, 6, 350 + 260, 20));
        assert_eq!((of("I indexed"), of("T whole")), (200, 1));
        assert_eq!(expected.statistics.streamed, 0);
        let bytes = recording(streamed);
        let whole = run(&bytes, &Pace::default()).expect(streamed);
        assert!(whole.lines == expected.lines, "{streamed}");
        assert!(whole.statistics.streamed >= 2, "{streamed}: {:?}", whole.statistics);
        assert_eq!((whole.slices, whole.spilled_bytes), (0, 0), "{streamed}");
        assert_eq!((whole.spools_left, whole.spool_memory_left), (0, 0), "{streamed}");
        let tight = Pace { buffer_bytes_max: 2000, spool_bytes_max: 3000, ..Pace::default() };
        let tight = run(&bytes, &tight).expect(streamed);
        assert!(tight.lines == expected.lines, "{streamed}, in slices and through files");
        assert!(tight.slices > 10 && tight.spilled_bytes > 10_000, "{streamed}");
        assert_eq!((tight.spools_left, tight.spool_memory_left), (0, 0), "{streamed}");
    }
}

#[test]
fn a_stream_that_starts_again_skips_exactly_what_was_delivered() {
    for name in ["v18-p2-on-streamed", "v18-p1-streamed", "v15-p1-changes"] {
        let bytes = recording(name);
        let all = run(&bytes, &Pace { buffer_bytes_max: 1, ..Pace::default() }).expect(name).lines;
        let commits: Vec<usize> = (0..all.len()).filter(|&at| all[at].starts_with("commit")).collect();
        for &at in &commits {
            let position = all[at].rsplit(' ').next().expect("a position").parse().expect("a position");
            let after = run(&bytes, &Pace { buffer_bytes_max: 1, after: position, ..Pace::default() });
            assert!(after.expect(name).lines == all[at + 1..], "{name} after {position}");
        }
    }
}

#[test]
fn two_phase_messages_are_decoded_and_refused() {
    for name in ["v15-p3-prepared", "v18-p3-prepared"] {
        let bytes = recording(name);
        let mut streamed = false;
        let mut seen = Vec::new();
        for frame in frames(&bytes) {
            match decode(frame, streamed).expect(name).message {
                Message::StreamStart { .. } => streamed = true,
                Message::StreamStop => streamed = false,
                Message::BeginPrepare(two) => seen.push(format!("b {}", two.gid)),
                Message::Prepare(two) => seen.push(format!("P {}", two.gid)),
                Message::CommitPrepared(two) => seen.push(format!("K {}", two.gid)),
                Message::RollbackPrepared(two) => seen.push(format!("r {}", two.gid)),
                Message::StreamPrepare(two) => seen.push(format!("p {}", two.gid)),
                _ => {}
            }
        }
        assert_eq!(
            seen,
            ["b one", "P one", "K one", "b two", "P two", "r two", "p large", "K large"],
            "{name}"
        );
        let refused = run(&bytes, &Pace::default()).expect_err("never asked for");
        assert_eq!((refused.code(), refused.class()), (PROTOCOL, Class::TaskBroken));
        assert!(refused.problem().contains("two-phase"), "{refused}");
    }
}

fn our_cells(tuple: Option<TupleData<'_>>) -> String {
    let cell = |cell: Cell<'_>| match cell {
        Cell::Null => "n".to_owned(),
        Cell::Unchanged => "u".to_owned(),
        Cell::Text(bytes) => format!("t{bytes:?}"),
        Cell::Binary(bytes) => format!("b{bytes:?}"),
    };
    tuple.map_or_else(|| "none".into(), |tuple| tuple.cells().map(cell).collect::<Vec<_>>().join(","))
}

fn their_cells(tuple: Option<&pg_walstream::TupleData>) -> String {
    let cell = |cell: &ColumnData| match cell.data_type {
        b'n' => "n".to_owned(),
        b'u' => "u".to_owned(),
        kind => format!("{}{:?}", char::from(kind), cell.as_bytes()),
    };
    tuple.map_or_else(|| "none".into(), |tuple| tuple.columns.iter().map(cell).collect::<Vec<_>>().join(","))
}

fn our_two_phase(kind: char, two: &TwoPhase<'_>) -> String {
    format!("{kind} {} {} {} {} {}", two.lsn, two.end_lsn, two.at_us - UNIX_US, two.xid, two.gid)
}

fn ours(message: &Message<'_>) -> String {
    match message {
        Message::Begin { final_lsn, committed_at_us, xid } => {
            format!("B {final_lsn} {} {xid}", committed_at_us - UNIX_US)
        }
        Message::Commit(c) => format!("C {} {} {}", c.commit_lsn, c.end_lsn, c.committed_at_us - UNIX_US),
        Message::Origin { lsn, name } => format!("O {lsn} {name}"),
        Message::Relation(r) => {
            let columns =
                r.columns().map(|c| format!("{} {} {} {}", c.identity, c.name, c.type_oid, c.modifier));
            let columns: Vec<_> = columns.collect();
            assert_eq!(columns.len(), r.column_count());
            format!("R {} {}.{} {:?} {columns:?}", r.oid, r.schema, r.name, r.identity)
        }
        Message::Type { oid, schema, name } => format!("Y {oid} {schema}.{name}"),
        Message::Row(row) => {
            let tuples = row.tuples().expect("whole");
            let op = match row.op {
                Op::Insert => 'I',
                Op::Update => 'U',
                _ => 'D',
            };
            let old = our_cells(tuples.old.map(|old| old.tuple));
            let full = tuples.old.map(|old| old.full);
            format!("{op} {} {full:?} {old} {}", row.oid, our_cells(tuples.new))
        }
        Message::Truncate(t) => {
            let flags = u8::from(t.cascade) | u8::from(t.restart_identity) << 1;
            format!("T {:?} {flags}", t.oids().collect::<Vec<_>>())
        }
        Message::Logical { transactional, lsn, prefix, content } => {
            format!("M {transactional} {lsn} {prefix} {content:?}")
        }
        Message::StreamStart { xid, first } => format!("S {xid} {first}"),
        Message::StreamStop => "E".into(),
        Message::StreamCommit { xid, commit: c } => {
            format!("c {xid} {} {} {}", c.commit_lsn, c.end_lsn, c.committed_at_us - UNIX_US)
        }
        Message::StreamAbort { xid, subxid, abort } => {
            format!("A {xid} {subxid} {:?}", abort.map(|(lsn, at)| (lsn, at - UNIX_US)))
        }
        Message::BeginPrepare(two) => our_two_phase('b', two),
        Message::Prepare(two) => our_two_phase('P', two),
        Message::CommitPrepared(two) => our_two_phase('K', two),
        Message::RollbackPrepared(two) => our_two_phase('r', two),
        Message::StreamPrepare(two) => our_two_phase('p', two),
    }
}

#[rustfmt::skip]
fn theirs(message: &Theirs) -> String {
    match message {
        Theirs::Begin { final_lsn, timestamp, xid } => format!("B {final_lsn} {timestamp} {xid}"),
        Theirs::Commit { commit_lsn, end_lsn, timestamp, .. } => format!("C {commit_lsn} {end_lsn} {timestamp}"),
        Theirs::Origin { origin_lsn, origin_name } => format!("O {origin_lsn} {origin_name}"),
        Theirs::Relation { relation_id, namespace, relation_name, replica_identity, columns } => {
            let identity = match replica_identity { b'd' => "Default", b'n' => "Nothing", b'f' => "Full", _ => "Index" };
            let columns: Vec<_> = columns.iter()
                .map(|c| format!("{} {} {} {}", c.is_key(), c.name, c.type_id, c.type_modifier)).collect();
            format!("R {relation_id} {namespace}.{relation_name} {identity} {columns:?}")
        }
        Theirs::Type { type_id, namespace, type_name } => format!("Y {type_id} {namespace}.{type_name}"),
        Theirs::Insert { relation_id, tuple } => format!("I {relation_id} None none {}", their_cells(Some(tuple))),
        Theirs::Update { relation_id, old_tuple, new_tuple, key_type } => format!(
            "U {relation_id} {:?} {} {}", key_type.map(|kind| kind == 'O'), their_cells(old_tuple.as_ref()),
            their_cells(Some(new_tuple))),
        Theirs::Delete { relation_id, old_tuple, key_type } =>
            format!("D {relation_id} {:?} {} none", Some(*key_type == 'O'), their_cells(Some(old_tuple))),
        Theirs::Truncate { relation_ids, flags } => format!("T {relation_ids:?} {flags}"),
        Theirs::Message { flags, lsn, prefix, content } =>
            format!("M {} {lsn} {prefix} {:?}", flags & 1 == 1, &content[..]),
        Theirs::StreamStart { xid, first_segment } => format!("S {xid} {first_segment}"),
        Theirs::StreamStop => "E".into(),
        Theirs::StreamCommit { xid, commit_lsn, end_lsn, timestamp, .. } =>
            format!("c {xid} {commit_lsn} {end_lsn} {timestamp}"),
        Theirs::StreamAbort { xid, subtransaction_xid, abort_lsn, abort_timestamp } =>
            format!("A {xid} {subtransaction_xid} {:?}", abort_lsn.zip(*abort_timestamp)),
        Theirs::BeginPrepare { prepare_lsn, end_lsn, timestamp, xid, gid } =>
            format!("b {prepare_lsn} {end_lsn} {timestamp} {xid} {gid}"),
        Theirs::Prepare { prepare_lsn, end_lsn, timestamp, xid, gid, .. } =>
            format!("P {prepare_lsn} {end_lsn} {timestamp} {xid} {gid}"),
        Theirs::CommitPrepared { commit_lsn, end_lsn, timestamp, xid, gid, .. } =>
            format!("K {commit_lsn} {end_lsn} {timestamp} {xid} {gid}"),
        Theirs::RollbackPrepared { prepare_end_lsn, rollback_end_lsn, rollback_timestamp, xid, gid, .. } =>
            format!("r {prepare_end_lsn} {rollback_end_lsn} {rollback_timestamp} {xid} {gid}"),
        Theirs::StreamPrepare { prepare_lsn, end_lsn, timestamp, xid, gid, .. } =>
            format!("p {prepare_lsn} {end_lsn} {timestamp} {xid} {gid}"),
    }
}

#[test]
fn another_decoder_says_the_same_of_every_frame() {
    for (name, bytes) in recordings() {
        let version = name.split("-p").nth(1).and_then(|rest| rest[..1].parse().ok()).expect("a version");
        let mut parser = LogicalReplicationParser::with_protocol_version(version);
        let mut streamed = false;
        for (number, frame) in frames(&bytes).into_iter().enumerate() {
            let decoded = decode(frame, streamed).unwrap_or_else(|error| panic!("{name} {number}: {error}"));
            let other = parser.parse_wal_message(frame).unwrap_or_else(|e| panic!("{name} {number}: {e:?}"));
            assert_eq!(ours(&decoded.message), theirs(&other.message), "{name}, frame {number}");
            if streamed && !matches!(decoded.message, Message::StreamStop) {
                assert_eq!(Some(decoded.xid), other.xid, "{name}, frame {number}");
            }
            match decoded.message {
                Message::StreamStart { .. } => streamed = true,
                Message::StreamStop => streamed = false,
                _ => {}
            }
        }
    }
}

#[test]
fn no_part_of_a_frame_passes_for_the_whole() {
    for (name, bytes) in recordings() {
        let mut streamed = false;
        let mut kinds = std::collections::HashMap::<u8, u32>::new();
        for frame in frames(&bytes) {
            let seen = kinds.entry(frame[0]).or_default();
            *seen += 1;
            let longer = [frame, b"\0"].concat();
            let whole = |bytes: &[u8]| {
                let message = decode(bytes, streamed)?.message;
                if let Message::Row(row) = message { row.tuples().map(|_| ()) } else { Ok(()) }
            };
            whole(frame).expect(&name);
            if *seen <= 8 {
                // An abort with its LSN and time cut off is an abort without.
                let shorter = |len: &usize| !(frame[0] == b'A' && *len == 9);
                for len in (0..frame.len()).filter(shorter) {
                    let error = whole(&frame[..len]).expect_err("a part");
                    assert_eq!((error.code(), error.class()), (PROTOCOL, Class::TaskBroken), "{name} {len}");
                }
                assert_eq!(whole(&longer).expect_err("too long").code(), PROTOCOL, "{name}");
            }
            match frame[0] {
                b'S' => streamed = true,
                b'E' => streamed = false,
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_streams_end_in_an_error_or_not_at_all(
        which in 0usize..16,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        left_out in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        tight in any::<bool>(),
    ) {
        let mut bytes = recordings()[which].1.clone();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let mut kept: Vec<&[u8]> = frames(&bytes);
        for at in left_out {
            if !kept.is_empty() {
                kept.remove(at.index(kept.len()));
            }
        }
        let again: Vec<u8> =
            kept.iter().flat_map(|f| [&(f.len() as u32).to_be_bytes()[..], f].concat()).collect();
        let pace = if tight { Pace { buffer_bytes_max: 500, spool_bytes_max: 2000, ..Pace::default() } } else { Pace::default() };
        if let Err(error) = run(&again, &pace) {
            prop_assert_eq!(error.code(), PROTOCOL);
        }
    }

    #[test]
    fn random_frames_are_refused_or_taken(bytes in prop::collection::vec(any::<u8>(), 0..200), streamed: bool) {
        if let Ok(Message::Row(row)) = decode(&bytes, streamed).map(|decoded| decoded.message) {
            let _ = row.tuples();
        }
        let _ = run(&bytes, &Pace::default());
    }
}
