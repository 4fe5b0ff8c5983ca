//! Whether a target holds exactly what its source holds, while both are at rest.
//!
//! ```text
//!   source rows (text) ──> fingerprints, sorted ──┐
//!                                                 ├──> in step? only here? only there?
//!   target rows (text) ──> fingerprints, sorted ──┘
//! ```
//!
//! Both sides give every value in the source's own text form, so equal rows are equal bytes. A row's fingerprint is two
//! 64-bit hashes under keys drawn anew for each comparison; sets of equal fingerprints are sets of equal rows but for a
//! chance of about rows² / 2^128. Why not row by row in key order: the two sides need not agree on an order, tables
//! without a key compare the same way, and nothing but 16 bytes a row is held in memory.
//!
//! Where they differ, both sides are read once more for the keys of the first few rows that only one of them has: keys only, as an
//! answer to whoever asked for the comparison, never for a log.
//!
//! Limits: [`ROWS_MAX`] rows per table.

use std::hash::{BuildHasher, Hasher, RandomState};

use pgferry_model::{Code, Cure, Error, Result, Table};
use pgferry_pipeline::{Inspect, TextRow};
use pgferry_postgres::{ConnectionConfig, Purpose, Session};

use crate::preview::select;

/// The two sides differ.
pub const DIFFERENT: Code = Code::new("compare.different");
/// The table has more rows than a comparison takes.
pub const TOO_LARGE: Code = Code::new("compare.too_large");

/// Rows per table at most: 16 bytes each, twice.
pub const ROWS_MAX: usize = 50_000_000;
const ROWS_PER_FETCH: usize = 5_000;
/// Keys that are named, per side.
const KEYS_MAX: usize = 5;

/// How a table's two sides compare.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Compared {
    /// Rows of the source.
    pub source_rows: u64,
    /// Rows of the target.
    pub target_rows: u64,
    /// Rows that only the source has.
    pub only_source: u64,
    /// Rows that only the target has.
    pub only_target: u64,
    /// Keys of some rows that only the source has, as `id=7`. Not for logs: a key is a value.
    pub keys_source: Vec<String>,
    /// Keys of some rows that only the target has.
    pub keys_target: Vec<String>,
}

impl Compared {
    /// Whether both sides hold the same rows.
    pub fn equal(&self) -> bool {
        self.only_source == 0 && self.only_target == 0
    }
}

/// Compares one table. Nothing may write to either side meanwhile.
pub async fn compare(source: &ConnectionConfig, target: &dyn Inspect, table: &Table) -> Result<Compared> {
    let print = Fingerprint::new();
    let mut theirs: Vec<u128> = Vec::new();
    let mut each = |row: TextRow| add(&mut theirs, &print, &row, table);
    target.rows(table, None, &mut each).await?;
    let mut ours: Vec<u128> = Vec::new();
    read_source(source, table, &mut |row| add(&mut ours, &print, row, table)).await?;
    ours.sort_unstable();
    theirs.sort_unstable();
    let (mut compared, only) = difference(&ours, &theirs);
    if !compared.equal() && !table.key.is_empty() {
        let mut keys = Vec::new();
        read_source(source, table, &mut |row| name_key(&mut keys, &print, row, table, &only.source)).await?;
        compared.keys_source = std::mem::take(&mut keys);
        let mut each = |row: TextRow| name_key(&mut keys, &print, &row, table, &only.target);
        target.rows(table, None, &mut each).await?;
        compared.keys_target = keys;
    }
    Ok(compared)
}

/// Fingerprints of some rows that only one side has.
#[derive(Default)]
struct Only {
    source: Vec<u128>,
    target: Vec<u128>,
}

impl Only {
    fn note(prints: &mut Vec<u128>, print: u128) {
        if prints.len() < KEYS_MAX {
            prints.push(print);
        }
    }
}

fn name_key(
    keys: &mut Vec<String>,
    print: &Fingerprint,
    row: &[Option<String>],
    table: &Table,
    wanted: &[u128],
) -> Result<()> {
    if keys.len() < KEYS_MAX && wanted.contains(&print.of(row)) {
        let part = |&at: &usize| {
            let value = row.get(at).and_then(Option::as_deref).unwrap_or("NULL");
            format!("{}={value}", table.columns.get(at).map_or("?", |column| &column.name))
        };
        keys.push(table.key.iter().map(part).collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

struct Fingerprint(RandomState, RandomState);

impl Fingerprint {
    fn new() -> Self {
        Fingerprint(RandomState::new(), RandomState::new())
    }

    fn of(&self, row: &[Option<String>]) -> u128 {
        let half = |state: &RandomState| {
            let mut hasher = state.build_hasher();
            for cell in row {
                match cell {
                    // The length keeps cells apart; no value has this one.
                    None => hasher.write_u64(u64::MAX),
                    Some(text) => {
                        hasher.write_u64(text.len() as u64);
                        hasher.write(text.as_bytes());
                    }
                }
            }
            u128::from(hasher.finish())
        };
        (half(&self.0) << 64) | half(&self.1)
    }
}

fn add(prints: &mut Vec<u128>, print: &Fingerprint, row: &[Option<String>], table: &Table) -> Result<()> {
    if prints.len() >= ROWS_MAX {
        let problem =
            format!("{} has more than {ROWS_MAX} rows, which a comparison takes at most", table.name);
        return Err(Error::task_broken(TOO_LARGE, problem)
            .with_table(table.name.clone())
            .with_cause("16 bytes of each row are held in memory, twice")
            .with_cure(Cure::advice(
                "compare the number of rows, or parts of the table by a query of your own",
            )));
    }
    prints.push(print.of(row));
    Ok(())
}

async fn read_source(
    source: &ConnectionConfig,
    table: &Table,
    each: &mut (dyn FnMut(&[Option<String>]) -> Result<()> + Send),
) -> Result<()> {
    let mut session = Session::connect(source, Purpose::Query).await?;
    session.simple_query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    session.simple_query(&format!("DECLARE rows NO SCROLL CURSOR FOR {}", select(table))).await?;
    loop {
        let rows = session.simple_query(&format!("FETCH {ROWS_PER_FETCH} FROM rows")).await?;
        for row in &rows {
            each(row)?;
        }
        if rows.len() < ROWS_PER_FETCH {
            break;
        }
    }
    session.simple_query("COMMIT").await?;
    session.close().await
}

/// Walks two sorted lists in step.
fn difference(source: &[u128], target: &[u128]) -> (Compared, Only) {
    let mut compared = Compared {
        source_rows: source.len() as u64,
        target_rows: target.len() as u64,
        ..Compared::default()
    };
    let mut only = Only::default();
    let (mut here, mut there) = (0, 0);
    while here < source.len() || there < target.len() {
        match (source.get(here), target.get(there)) {
            (Some(a), Some(b)) if a == b => {
                here += 1;
                there += 1;
            }
            (Some(&a), theirs) if theirs.is_none_or(|&b| a < b) => {
                compared.only_source += 1;
                Only::note(&mut only.source, a);
                here += 1;
            }
            (_, Some(&b)) => {
                compared.only_target += 1;
                Only::note(&mut only.target, b);
                there += 1;
            }
            (_, None) => break,
        }
    }
    (compared, only)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(source: &[&[Option<&str>]], target: &[&[Option<&str>]]) -> Compared {
        let print = Fingerprint::new();
        let prints = |rows: &[&[Option<&str>]]| {
            let row = |row: &&[Option<&str>]| {
                print.of(&row.iter().map(|v| v.map(str::to_owned)).collect::<Vec<_>>())
            };
            let mut prints: Vec<u128> = rows.iter().map(row).collect();
            prints.sort_unstable();
            prints
        };
        difference(&prints(source), &prints(target)).0
    }

    #[test]
    fn equal_rows_in_another_order_are_equal_and_doubles_count() {
        let (a, b): (&[_], &[_]) = (&[Some("1"), None], &[Some("2"), Some("x")]);
        assert!(compared(&[a, b, b], &[b, a, b]).equal());
        let doubled = compared(&[a, b, b], &[a, a, b]);
        assert_eq!((doubled.only_source, doubled.only_target), (1, 1));
        assert_eq!(compared(&[a], &[]).only_source, 1);
        assert_eq!(compared(&[], &[b]).only_target, 1);
    }

    #[test]
    fn null_is_no_empty_text_and_cells_do_not_run_together() {
        assert!(!compared(&[&[None]], &[&[Some("")]]).equal());
        assert!(!compared(&[&[Some("ab"), Some("c")]], &[&[Some("a"), Some("bc")]]).equal());
        assert!(!compared(&[&[None, Some("a")]], &[&[Some("a"), None]]).equal());
    }
}
