//! The tables of a workload: narrow, TOASTed, wide, oddly named, partitioned, keyless, of every type, empty.
//!
//! Invariant: the key of row `k` is a function of `k` alone, so that statements can name rows without asking.

use std::ops::Range;

use super::Options;
use crate::random::SeededRandom;
use crate::types::{self, TypeCase};

/// What a table is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Narrow,
    /// Narrow, and truncated now and then.
    Truncated,
    /// Two columns of 10 kB and more that do not compress, stored outside the row.
    Toast,
    CompositeKey,
    OddNames,
    /// By hash of its key: a changed key moves the row to another partition.
    Partitioned,
    /// No key; the whole row is its identity, and some rows are there twice.
    Keyless,
    Wide,
    EveryType,
    Empty,
}

impl Kind {
    pub(super) fn filled(self) -> bool {
        self != Self::Empty
    }

    pub(super) fn large(self) -> bool {
        matches!(self, Self::Toast | Self::Wide | Self::EveryType)
    }
}

/// A table of the workload.
#[derive(Clone, Debug)]
pub struct Table {
    /// As SQL writes it: schema-qualified and quoted.
    pub name: String,
    pub kind: Kind,
    /// Columns that updates change, quoted, with what they hold.
    columns: Vec<(String, Value)>,
    cases: Vec<TypeCase>,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Number,
    Text,
    Amount,
    Time,
    /// 10 to 30 kB of hexadecimal text.
    External,
}

impl Table {
    fn new(name: &str, kind: Kind, columns: &[(&str, Value)]) -> Self {
        let columns = columns.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Self { name: name.to_owned(), kind, columns, cases: Vec::new() }
    }

    /// The key column that changes when a row's key changes.
    pub(super) fn key_column(&self) -> &'static str {
        if self.kind == Kind::OddNames { "\"der Schlüssel.🔑 \"\"\"" } else { "id" }
    }

    /// The condition that finds row `key`.
    pub(super) fn at(&self, key: u64) -> String {
        match self.kind {
            Kind::CompositeKey => format!("id = {key} AND part = '{}'", part(key)),
            // One of several equal rows.
            Kind::Keyless => format!("ctid = (SELECT ctid FROM {} WHERE id = {key} LIMIT 1)", self.name),
            _ => format!("{} = {key}", self.key_column()),
        }
    }

    /// Whether its rows have keys to change.
    pub(super) fn keyed(&self) -> bool {
        self.kind != Kind::Keyless
    }

    /// A DELETE of the rows whose key is in `keys` and more than `keep` below the largest one there.
    pub(super) fn trim_sql(&self, keys: Range<u64>, keep: u64) -> String {
        let (name, key, Range { start, end }) = (&self.name, self.key_column(), keys);
        format!(
            "DELETE FROM {name} WHERE {key} >= {start} AND {key} < (SELECT max({key}) FROM {name} WHERE {key} < {end}) - {keep}"
        )
    }

    /// INSERTs of these keys: one of many rows where the columns allow it.
    pub(super) fn insert_sql(&self, keys: &[u64], random: &mut SeededRandom) -> Vec<String> {
        if self.kind == Kind::EveryType {
            let rows = self.cases.iter().map(|case| case.values.len()).max().unwrap_or(0) as u64;
            let row = |key: &u64| {
                types::insert_row_sql(&self.name, &self.cases, *key as i64, random.below(rows + 1) as usize)
            };
            return keys.iter().map(row).collect();
        }
        let mut names = vec![self.key_column()];
        if self.kind == Kind::CompositeKey {
            names.push("part");
        }
        names.extend(self.columns.iter().map(|(name, _)| name.as_str()));
        let mut rows = Vec::new();
        for key in keys {
            let mut cells = vec![key.to_string()];
            if self.kind == Kind::CompositeKey {
                cells.push(format!("'{}'", part(*key)));
            }
            cells.extend(self.columns.iter().map(|(_, value)| value.sql(random)));
            let row = format!("({})", cells.join(", "));
            if self.kind == Kind::Keyless && random.chance(10) {
                rows.push(row.clone());
            }
            rows.push(row);
        }
        vec![format!("INSERT INTO {} ({}) VALUES {}", self.name, names.join(", "), rows.join(", "))]
    }

    /// The SET list of an update of one to three columns.
    pub(super) fn set_sql(&self, random: &mut SeededRandom) -> String {
        if self.kind == Kind::EveryType {
            let case = &self.cases[random.index(self.cases.len())];
            let value = case.values.get(random.index(case.values.len() + 1)).unwrap_or(&"NULL");
            return format!("{} = {value}", case.column);
        }
        // External values stay alone mostly: that an unchanged one is not sent is what the table is for.
        let small: Vec<_> =
            self.columns.iter().filter(|(_, value)| !matches!(value, Value::External)).collect();
        let all: Vec<_> = self.columns.iter().collect();
        let from = if random.chance(80) { &small } else { &all };
        let (first, count) = (random.index(from.len()), random.between(1, 3).min(from.len() as u64) as usize);
        let set = (0..count).map(|step| from[(first + step) % from.len()]);
        let set: Vec<String> = set.map(|(name, value)| format!("{name} = {}", value.sql(random))).collect();
        set.join(", ")
    }
}

/// The second half of a composite key: text that needs care, the same for the same number.
fn part(key: u64) -> String {
    format!("{} ä''\"{}", ["", "a", "B\\", "ß,"][(key % 4) as usize], key % 97)
}

impl Value {
    fn sql(self, random: &mut SeededRandom) -> String {
        if random.chance(5) {
            return "NULL".to_owned();
        }
        match self {
            Self::Number => (random.next() as i64 >> random.below(63)).to_string(),
            Self::Text => format!(
                "'{:x} {}'",
                random.next(),
                ["", "ä 漢 🧀", "it''s", "tab\tnew\nline", "\\N"][random.index(5)]
            ),
            Self::Amount => format!("{}.{:02}", random.below(1_000_000), random.below(100)),
            Self::Time => format!("to_timestamp({}.{:03})", random.below(1 << 32), random.below(1000)),
            Self::External => {
                let pieces = random.between(10_000 / 32 + 1, 30_000 / 32);
                format!(
                    "(SELECT string_agg(md5('{:x}' || n), '') FROM generate_series(1, {pieces}) AS n)",
                    random.next()
                )
            }
        }
    }

    fn sql_type(self) -> &'static str {
        match self {
            Self::Number => "bigint",
            Self::Text | Self::External => "text",
            Self::Amount => "numeric(18,2)",
            Self::Time => "timestamptz",
        }
    }
}

pub(super) fn tables(options: &Options, version: u32) -> Vec<Table> {
    use Value::{Amount, External, Number, Text, Time};
    let narrow: &[(&str, Value)] = &[("n", Number), ("t", Text), ("amount", Amount), ("at", Time)];
    let count = options.narrow_tables.max(1);
    let truncated = if count > 1 { (count / 4).max(1) } else { 0 };
    let mut tables: Vec<Table> = (0..count)
        .map(|number| {
            let kind = if number >= count - truncated { Kind::Truncated } else { Kind::Narrow };
            Table::new(&format!("public.narrow_{number}"), kind, narrow)
        })
        .collect();
    tables.push(Table::new(
        "public.toasted",
        Kind::Toast,
        &[("n", Number), ("big", External), ("t", Text), ("bigger", External)],
    ));
    tables.push(Table::new("public.composite_key", Kind::CompositeKey, narrow));
    let odd = [
        ("\"Käse & \"\"Mäuse\"\"\"", Text),
        ("\"with blank\"", Number),
        ("\"dot.ted\"", Amount),
        ("\"🧀\"", Time),
        ("\"SELECT\"", Text),
    ];
    tables.push(Table::new("\"Odd schema.ü\".\"Mäuse & \"\"Käse\"\" 🐭.x\"", Kind::OddNames, &odd));
    tables.push(Table::new("public.keyless", Kind::Keyless, narrow));
    if version >= 130_000 {
        tables.push(Table::new("public.partitioned", Kind::Partitioned, narrow));
    }
    let wide: Vec<String> = (1..options.wide_columns.max(2)).map(|number| format!("c{number}")).collect();
    let wide: Vec<(&str, Value)> =
        wide.iter().enumerate().map(|(at, name)| (name.as_str(), [Number, Text, Amount][at % 3])).collect();
    tables.push(Table::new("public.wide", Kind::Wide, &wide));
    let mut every = Table::new("public.every_type", Kind::EveryType, &[]);
    every.cases = types::cases(version);
    tables.push(every);
    tables.extend(
        (0..options.empty_tables)
            .map(|number| Table::new(&format!("public.empty_{number}"), Kind::Empty, narrow)),
    );
    tables
}

pub(super) fn create_sql(tables: &[Table], version: u32) -> String {
    let mut sql = "CREATE SCHEMA \"Odd schema.ü\";\n".to_owned();
    for table in tables {
        sql += &create_table_sql(table, version);
        sql += "\n";
    }
    sql
}

fn create_table_sql(table: &Table, version: u32) -> String {
    if table.kind == Kind::EveryType {
        return types::create_sql(&table.name, &table.cases, version);
    }
    let mut columns = vec![format!("{} bigint", table.key_column())];
    if table.kind == Kind::CompositeKey {
        columns.insert(0, "part text".to_owned());
    }
    columns.extend(table.columns.iter().map(|(name, value)| format!("{name} {}", value.sql_type())));
    match table.kind {
        Kind::Keyless => {}
        Kind::CompositeKey => columns.push("PRIMARY KEY (id, part)".to_owned()),
        _ => columns.push(format!("PRIMARY KEY ({})", table.key_column())),
    }
    let name = &table.name;
    let body = format!("CREATE TABLE {name} ({})", columns.join(", "));
    match table.kind {
        Kind::Partitioned => {
            let partition = |rest: u32| {
                format!(
                    "CREATE TABLE {name}_{rest} PARTITION OF {name} FOR VALUES WITH (MODULUS 3, REMAINDER {rest});"
                )
            };
            format!("{body} PARTITION BY HASH (id);{}{}{}", partition(0), partition(1), partition(2))
        }
        Kind::Keyless => format!("{body}; ALTER TABLE {name} REPLICA IDENTITY FULL;"),
        Kind::Toast => {
            format!(
                "{body}; ALTER TABLE {name} ALTER big SET STORAGE EXTERNAL, ALTER bigger SET STORAGE EXTERNAL;"
            )
        }
        _ => format!("{body};"),
    }
}
