//! Records what real servers send, into `tests/recorded/`. Does nothing unless `PGFERRY_RECORD=1` is set.
//!
//! Each file: frames, each a length (4 bytes, big-endian) and the payload of a `w` message. The name says server, protocol
//! version, options and scenario: `v18-p4-parallel-streamed.frames`. What the scenarios do is below, in SQL.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod wire;

use std::path::Path;

use wire::{Connection, Server};

/// Larger files do not belong into a repository.
const FILE_BYTES_MAX: usize = 64 << 10;

const SETUP: &str = "
CREATE SCHEMA shop;
CREATE TYPE shop.mood AS ENUM ('sad', 'glad');
CREATE DOMAIN shop.price AS numeric(10,2);
CREATE TABLE shop.plain (id int PRIMARY KEY, name varchar(40), mood shop.mood, price shop.price, doc text,
                         at timestamptz, raw bytea);
CREATE TABLE shop.whole (id int, note text, doc text);
CREATE TABLE shop.indexed (a int NOT NULL, b text NOT NULL, c text);
CREATE TABLE shop.other (id int PRIMARY KEY, v text);
CREATE UNIQUE INDEX indexed_key ON shop.indexed (a, b);
ALTER TABLE shop.plain ALTER doc SET STORAGE EXTERNAL;
ALTER TABLE shop.whole ALTER doc SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
ALTER TABLE shop.indexed REPLICA IDENTITY USING INDEX indexed_key;";

const PARTITIONED: &str = "
CREATE TABLE shop.parted (id int, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE shop.east PARTITION OF shop.parted FOR VALUES IN ('east');
CREATE TABLE shop.west (v text, region text NOT NULL, id int NOT NULL, PRIMARY KEY (id, region));
ALTER TABLE shop.parted ATTACH PARTITION shop.west FOR VALUES IN ('west');";

/// Who does what: session, from which major on, statements.
type Step = (usize, u32, &'static str);

const CHANGES: &[Step] = &[
    (0, 10, "INSERT INTO shop.plain VALUES (1, 'Ada', 'glad', 12.5, repeat('x', 2500), '2024-02-29 12:00:00.5+00', '\\xdead'),
             (2, NULL, NULL, NULL, '', 'infinity', '')"),
    (0, 10, "UPDATE shop.plain SET name = 'Ada L.' WHERE id = 1"),
    (0, 10, "UPDATE shop.plain SET id = 3 WHERE id = 1"),
    (0, 10, "DELETE FROM shop.plain WHERE id = 2"),
    (0, 10, "INSERT INTO shop.whole VALUES (1, 'first', repeat('y', 2200)), (2, NULL, NULL)"),
    (0, 10, "UPDATE shop.whole SET note = 'second' WHERE id = 1"),
    (0, 10, "DELETE FROM shop.whole WHERE id = 2"),
    (0, 10, "INSERT INTO shop.indexed VALUES (1, 'one', 'c')"),
    (0, 10, "UPDATE shop.indexed SET c = 'd'"),
    (0, 10, "UPDATE shop.indexed SET a = 2"),
    (0, 10, "DELETE FROM shop.indexed"),
    // Described again with the same content.
    (0, 10, "ALTER TABLE shop.plain SET (fillfactor = 90); INSERT INTO shop.plain (id) VALUES (10)"),
    (0, 10, "INSERT INTO shop.other VALUES (1, 'not carried')"),
    // Commit order is not begin order; a rolled back part; an empty transaction.
    (0, 10, "BEGIN; INSERT INTO shop.plain (id, name) VALUES (20, 'began first')"),
    (1, 10, "BEGIN; INSERT INTO shop.plain (id, name) VALUES (21, 'committed first')"),
    (1, 10, "SAVEPOINT s; INSERT INTO shop.plain (id) VALUES (22); ROLLBACK TO s; COMMIT"),
    (0, 10, "COMMIT"),
    (0, 10, "BEGIN; CREATE TABLE shop.nothing (); DROP TABLE shop.nothing; COMMIT"),
    (0, 10, "SELECT pg_replication_origin_create('elsewhere'); SELECT pg_replication_origin_session_setup('elsewhere')"),
    (0, 10, "BEGIN; SELECT pg_replication_origin_xact_setup('0/ABCD', now()); INSERT INTO shop.plain (id) VALUES (30); COMMIT"),
    (0, 10, "SELECT pg_replication_origin_session_reset()"),
    (0, 14, "SELECT pg_logical_emit_message(false, 'outside', 'of any transaction')"),
    (0, 14, "BEGIN; SELECT pg_logical_emit_message(true, 'inside', 'of one'); INSERT INTO shop.plain (id) VALUES (31); COMMIT"),
    (0, 14, "BEGIN; SELECT pg_logical_emit_message(false, 'stays', 'though rolled back'); ROLLBACK"),
    (0, 11, "TRUNCATE shop.plain, shop.whole, shop.other RESTART IDENTITY CASCADE"),
    (0, 13, "INSERT INTO shop.parted VALUES (1, 'east', 'a'), (2, 'west', 'b')"),
    (0, 13, "UPDATE shop.parted SET region = 'west' WHERE id = 1"),
    (0, 13, "DELETE FROM shop.parted WHERE id = 2"),
    (0, 13, "TRUNCATE shop.parted"),
    (0, 10, "ALTER TABLE shop.indexed ADD e int; INSERT INTO shop.indexed VALUES (7, 'seven', 'c', 77)"),
];

/// Two large transactions in progress at once, with parts rolled back, and one that is rolled back as a whole.
const STREAMED: &[Step] = &[
    (0, 14, "BEGIN; INSERT INTO shop.plain (id, name) SELECT i, 'a' || i FROM generate_series(1, 300) i"),
    (1, 14, "BEGIN; INSERT INTO shop.whole SELECT i, 'b' || i FROM generate_series(1, 250) i"),
    (0, 14, "SAVEPOINT s1; INSERT INTO shop.plain (id) SELECT i FROM generate_series(1001, 1250) i"),
    (2, 14, "INSERT INTO shop.plain (id, name) VALUES (5000, 'in between')"),
    (0, 14, "ROLLBACK TO s1; INSERT INTO shop.plain (id) SELECT i FROM generate_series(301, 350) i"),
    (1, 14, "INSERT INTO shop.other SELECT i, 'o' FROM generate_series(1, 150) i"),
    (0, 14, "SAVEPOINT s2; INSERT INTO shop.plain (id) SELECT i FROM generate_series(2001, 2100) i;
             SAVEPOINT s3; INSERT INTO shop.plain (id) SELECT i FROM generate_series(2101, 2300) i; RELEASE s3"),
    (1, 14, "SAVEPOINT kept; INSERT INTO shop.whole SELECT i, 'k' FROM generate_series(251, 350) i; RELEASE kept"),
    (0, 14, "ROLLBACK TO s2; INSERT INTO shop.plain (id) SELECT i FROM generate_series(351, 360) i"),
    (2, 14, "BEGIN; INSERT INTO shop.indexed SELECT i, 'gone', 'x' FROM generate_series(1, 400) i; ROLLBACK"),
    (1, 14, "UPDATE shop.whole SET note = 'last' WHERE id <= 20"),
    (1, 14, "SELECT pg_logical_emit_message(true, 'streamed', 'inside')"),
    (1, 14, "COMMIT"),
    (0, 14, "DELETE FROM shop.plain WHERE id <= 5 OR id = 5000"),
    (0, 14, "ALTER TABLE shop.indexed ADD e int; INSERT INTO shop.indexed SELECT i, 'n', 'x', i FROM generate_series(1, 200) i"),
    (0, 14, "COMMIT"),
    (2, 14, "BEGIN; TRUNCATE shop.whole; INSERT INTO shop.whole SELECT i, 't' FROM generate_series(1, 260) i; COMMIT"),
];

const PREPARED: &[Step] = &[
    (0, 15, "BEGIN; INSERT INTO shop.plain (id) VALUES (1); PREPARE TRANSACTION 'one'"),
    (0, 15, "COMMIT PREPARED 'one'"),
    (0, 15, "BEGIN; INSERT INTO shop.plain (id) VALUES (2); PREPARE TRANSACTION 'two'"),
    (0, 15, "ROLLBACK PREPARED 'two'"),
    (
        0,
        15,
        "BEGIN; INSERT INTO shop.plain (id) SELECT i FROM generate_series(10, 700) i; PREPARE TRANSACTION 'large'",
    ),
    (0, 15, "COMMIT PREPARED 'large'"),
];

/// Name of the scenario, its steps, and per recording: the majors, its label, the stream's options.
type Recording = (&'static [u32], &'static str, &'static str);

const CHANGES_RECORDED: &[Recording] = &[
    (&[10, 13, 15, 18], "p1", "proto_version '1'"),
    (&[15, 18], "p1-binary", "proto_version '1', binary 'true', messages 'true'"),
    (&[15], "p3-messages", "proto_version '3', messages 'true'"),
    (&[18], "p4-none", "proto_version '4', messages 'true', origin 'none'"),
];
const STREAMED_RECORDED: &[Recording] = &[
    (&[15, 18], "p2-on", "proto_version '2', streaming 'on', messages 'true'"),
    (&[15], "p3-on-binary", "proto_version '3', streaming 'on', binary 'true'"),
    (&[18], "p4-parallel", "proto_version '4', streaming 'parallel', messages 'true'"),
    (&[15, 18], "p1", "proto_version '1'"),
];
const PREPARED_RECORDED: &[Recording] = &[(&[15, 18], "p3", "proto_version '3', streaming 'on'")];

fn record(major: u32, scenario: &str, steps: &[Step], recordings: &[Recording], two_phase: bool) {
    let Some(server) = Server::start(major) else {
        println!("no server of major {major}: its recordings stay as they are");
        return;
    };
    let mut session = server.connect();
    session.run(SETUP);
    let mut tables = "shop.plain, shop.whole, shop.indexed, shop.other".to_owned();
    let mut with = "";
    if major >= 13 {
        session.run(PARTITIONED);
        tables += ", shop.parted";
        with = "WITH (publish_via_partition_root = true)";
    }
    session.run(&format!("CREATE PUBLICATION p FOR TABLE {tables} {with}"));
    let wanted = || recordings.iter().filter(|(majors, ..)| majors.contains(&major)).enumerate();
    for (number, _) in wanted() {
        let more = if two_phase { ", false, true" } else { "" };
        session.run(&format!("SELECT pg_create_logical_replication_slot('s{number}', 'pgoutput'{more})"));
    }
    let mut sessions: Vec<Connection> = (0..3).map(|_| server.connect()).collect();
    for (at, _, sql) in steps.iter().filter(|(_, from, _)| major >= *from) {
        // Statement by statement: several in one message would be one transaction, and ALTER could not be alone.
        for statement in sql.split(';') {
            sessions[*at].run(statement);
        }
    }
    let function = "SELECT pg_current_wal_lsn()";
    let until = session.run(function).remove(0);
    let (high, low) = until.split_once('/').expect("an LSN");
    let number = |digits| u64::from_str_radix(digits, 16).expect("hexadecimal digits");
    let until = number(high) << 32 | number(low);
    for (number, (_, label, options)) in wanted() {
        let options = format!("{options}, publication_names 'p'");
        let frames = server.connect_for_replication().stream(&format!("s{number}"), &options, until);
        let mut bytes = Vec::new();
        for frame in &frames {
            bytes.extend_from_slice(&(frame.len() as u32).to_be_bytes());
            bytes.extend_from_slice(frame);
        }
        let name = format!("v{major}-{label}-{scenario}.frames");
        println!("{name}: {} frames, {} bytes", frames.len(), bytes.len());
        assert!(!frames.is_empty() && bytes.len() < FILE_BYTES_MAX, "{name} has {} bytes", bytes.len());
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
        std::fs::write(folder.join(name), bytes).expect("written");
    }
}

#[test]
fn record_what_servers_send() {
    if std::env::var_os("PGFERRY_RECORD").is_none() {
        return;
    }
    for major in [10, 13, 15, 18] {
        record(major, "changes", CHANGES, CHANGES_RECORDED, false);
    }
    for major in [15, 18] {
        record(major, "streamed", STREAMED, STREAMED_RECORDED, false);
        record(major, "prepared", PREPARED, PREPARED_RECORDED, true);
    }
}
