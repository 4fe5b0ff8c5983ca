//! The data: a wide table, a narrow one, and a backlog of changes in five sections.
//!
//! `wide`: 20 columns of mixed types, about 570 bytes a row as text. `accounts`: 4 narrow columns. Sections of the backlog: batched
//! narrow inserts, batched wide inserts, transactions of one row, one large update, batched deletes.

use anyhow::Result;
use pgferry_testkit::Database;

/// A wide row's columns after its key, and how each comes from `i`.
const WIDE: [(&str, &str, &str); 19] = [
    ("amount", "integer", "i % 100000"),
    ("total", "bigint", "i * 7919"),
    ("small", "smallint", "i % 30000"),
    ("flag", "boolean", "i % 3 = 0"),
    ("ratio", "double precision", "i / 7.0"),
    ("share", "real", "i / 3.0"),
    ("price", "numeric(12,2)", "(i % 1000000) / 100.0"),
    ("rate", "numeric(20,6)", "i / 1024.0"),
    ("made_at", "timestamptz", "timestamptz '2024-01-01' + i * interval '1 second'"),
    ("changed_at", "timestamp", "timestamp '2024-01-01' + i * interval '3 seconds'"),
    ("day", "date", "date '2000-01-01' + (i % 9000)::int"),
    ("token", "uuid", "md5(i::text)::uuid"),
    ("name", "text", "'customer ' || i"),
    ("street", "text", "md5(i::text) || ' street'"),
    ("note", "text", "repeat(md5((i % 1000)::text), 4)"),
    ("code", "varchar(20)", "'C' || (i % 500)"),
    (
        "document",
        "jsonb",
        "jsonb_build_object('id', i, 'tags', jsonb_build_array('a', i % 10), 'name', 'n' || i)",
    ),
    ("numbers", "integer[]", "ARRAY[i % 10, i % 100, i % 1000]::int[]"),
    ("payload", "bytea", "decode(md5(i::text), 'hex')"),
];

fn wide_columns() -> String {
    WIDE.iter().map(|(name, kind, _)| format!(", {name} {kind}")).collect()
}

fn wide_values() -> String {
    WIDE.iter().map(|(_, _, value)| format!(", {value}")).collect()
}

/// Makes `wide` with that many rows.
pub(crate) async fn make_wide(database: &Database, rows: u64) -> Result<()> {
    let (columns, values) = (wide_columns(), wide_values());
    database
        .execute(&format!(
            "CREATE TABLE wide (id bigint PRIMARY KEY{columns}); \
             INSERT INTO wide SELECT i{values} FROM generate_series(1::bigint, {rows}) AS i"
        ))
        .await?;
    database.execute("VACUUM (FREEZE, ANALYZE) wide").await
}

/// Makes `accounts` with that many rows.
pub(crate) async fn make_accounts(database: &Database, rows: u64) -> Result<()> {
    database
        .execute(&format!(
            "CREATE TABLE accounts (aid integer PRIMARY KEY, bid integer, abalance integer, filler char(84)); \
             INSERT INTO accounts SELECT i, i / 100000, 0, '' FROM generate_series(1, {rows}) AS i"
        ))
        .await?;
    database.execute("VACUUM (FREEZE, ANALYZE) accounts").await
}

/// A section of the backlog.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    /// Changes where the scale is 1.
    pub(crate) changes: u64,
    /// Whether the changes come in transactions of many.
    pub(crate) batched: bool,
}

/// The sections, in the order in which they build on each other.
pub(crate) const SECTIONS: [Section; 5] = [
    Section { name: "narrow-inserts", changes: 500_000, batched: true },
    Section { name: "wide-inserts", changes: 200_000, batched: true },
    Section { name: "single-rows", changes: 400_000, batched: false },
    Section { name: "large-update", changes: 1_000_000, batched: true },
    Section { name: "deletes", changes: 500_000, batched: true },
];

const TRANSACTION_ROWS: u64 = 1_000;

/// Makes the tables that the sections change.
pub(crate) async fn make_backlog_tables(database: &Database, scale: f64) -> Result<()> {
    let wide = wide_columns();
    database
        .execute(&format!(
            "CREATE TABLE wide (id bigint PRIMARY KEY{wide}); \
             CREATE TABLE narrow (id integer PRIMARY KEY, value integer, name text)"
        ))
        .await?;
    make_accounts(database, scaled(1_000_000, scale)).await?;
    database.execute("CREATE PUBLICATION bench FOR TABLE wide, narrow, accounts").await
}

/// A number of changes at a scale: whole transactions.
pub(crate) fn scaled(changes: u64, scale: f64) -> u64 {
    let transactions = (changes as f64 * scale / TRANSACTION_ROWS as f64).ceil();
    (transactions as u64).max(1) * TRANSACTION_ROWS
}

/// Writes a section's changes.
pub(crate) async fn write_section(database: &Database, section: &Section, scale: f64) -> Result<()> {
    let changes = scaled(section.changes, scale);
    let batches = |statement: String| {
        format!(
            "DO $$ BEGIN FOR low IN 1..{changes} BY {TRANSACTION_ROWS} LOOP {statement}; COMMIT; END LOOP; END $$"
        )
    };
    let last = format!("low + {}", TRANSACTION_ROWS - 1);
    let statement = match section.name {
        "narrow-inserts" => batches(format!(
            "INSERT INTO narrow SELECT i, i * 3, 'row ' || i FROM generate_series(low, {last}) AS i"
        )),
        "wide-inserts" => {
            let values = wide_values();
            batches(format!(
                "INSERT INTO wide SELECT i{values} FROM generate_series(low::bigint, {last}) AS i"
            ))
        }
        "single-rows" => {
            let accounts = scaled(1_000_000, scale);
            format!(
                "DO $$ BEGIN FOR i IN 1..{changes} LOOP UPDATE accounts SET abalance = abalance + i \
                 WHERE aid = 1 + (i * 7919::bigint) % {accounts}; COMMIT; END LOOP; END $$"
            )
        }
        "large-update" => format!("UPDATE accounts SET abalance = abalance + 1 WHERE aid <= {changes}"),
        _ => batches(format!("DELETE FROM narrow WHERE id BETWEEN low AND {last}")),
    };
    database.execute(&statement).await
}

/// Makes `ledger` with that many rows, and publishes it: 4 columns, 64 bytes that do not compress.
pub(crate) async fn make_ledger(database: &Database, rows: u64) -> Result<()> {
    database
        .execute(&format!(
            "CREATE TABLE ledger (id bigint PRIMARY KEY, branch integer, amount bigint, note text); \
             INSERT INTO ledger SELECT i, i % 1000, i * 7, md5(i::text) || md5((-i)::text) \
             FROM generate_series(1::bigint, {rows}) AS i; \
             CREATE PUBLICATION bench FOR TABLE ledger"
        ))
        .await?;
    database.execute("VACUUM (FREEZE, ANALYZE) ledger").await
}

/// Changes `ledger` in one transaction: 80 % updates, 10 % deletes, 10 % inserts; the keys are scattered over all rows.
pub(crate) async fn change_ledger(database: &Database, rows: u64, changes: u64) -> Result<()> {
    let tenth = (changes / 10).max(1);
    let (updated, deleted) = ((rows / (tenth * 8)).max(1), (rows / tenth).max(1));
    database
        .execute(&format!(
            "BEGIN; \
             UPDATE ledger SET amount = amount + 1, note = md5(note) || md5(id::text) WHERE id % {updated} = 0; \
             DELETE FROM ledger WHERE id % {deleted} = 1; \
             INSERT INTO ledger SELECT i, i % 1000, i, md5(i::text) FROM generate_series({rows} + 1, {rows} + {tenth}) AS i; \
             COMMIT"
        ))
        .await
}

/// Makes tables `prefix_1` to `prefix_N` with that many rows each.
pub(crate) async fn make_many(database: &Database, prefix: &str, tables: u64, rows: u64) -> Result<()> {
    // A transaction per 100 tables: each holds a lock until its end.
    database
        .execute(&format!(
            "DO $$ BEGIN FOR t IN 1..{tables} LOOP \
             EXECUTE format('CREATE TABLE {prefix}_%s (id bigint PRIMARY KEY, amount integer, price numeric(12,2), \
             made_at timestamptz, note text)', t); \
             EXECUTE format('INSERT INTO {prefix}_%s SELECT i, i, i / 7.0, timestamptz ''2024-01-01'' + i * interval ''1 second'', \
             md5(i::text) FROM generate_series(1, {rows}) AS i', t); \
             IF t % 100 = 0 THEN COMMIT; END IF; END LOOP; END $$"
        ))
        .await?;
    database.execute("VACUUM (FREEZE, ANALYZE)").await
}

/// Updates rows of those tables, 1,000 in a transaction: in one table, or in ten.
pub(crate) async fn change_many(
    database: &Database,
    prefix: &str,
    tables: u64,
    rows: u64,
    changes: u64,
) -> Result<()> {
    let touched = tables.min(10);
    let each = TRANSACTION_ROWS / touched;
    let transactions = (changes / TRANSACTION_ROWS).max(1);
    database
        .execute(&format!(
            "DO $$ DECLARE t bigint; low bigint; BEGIN FOR x IN 0..{transactions} - 1 LOOP \
             FOR k IN 0..{touched} - 1 LOOP \
             t := 1 + (x * {touched} + k) % {tables}; \
             low := 1 + ((x * {touched} + k) / {tables} * {each}) % greatest({rows} - {each} + 1, 1); \
             EXECUTE format('UPDATE {prefix}_%s SET amount = amount + 1 WHERE id BETWEEN %s AND %s', t, low, low + {each} - 1); \
             END LOOP; COMMIT; END LOOP; END $$"
        ))
        .await
}
