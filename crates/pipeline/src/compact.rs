//! One final change per key: what a batch of changes leaves behind, without copying a value.
//!
//! ```text
//!   +1a  ~1b  -2  ~3c→4c  +5  -5      changes in commit order (key, value)
//!   ────────────────────────────
//!   delete 2, 3, 5     upsert 1b, 4c  what the target has to do, in any order
//! ```
//!
//! Invariants: a key is in the result once, as a delete or as an upsert; an unchanged TOAST cell is filled from the old row or
//! from an earlier change of the same row, or else the upsert names the key under which the target holds the row
//! (`origin`), so that the target's own value stays, also when the key changes or two rows swap keys. A truncate drops what was before it.
//!
//! Keys are compared as bytes. That is exact: the source sends a row's stored key, and a change between two forms of an
//! equal key (`1.0`, `1.00`) comes as a key change.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use pgferry_model::{Batch, Cell, Cure, Error, Op, Result, Row};

use crate::error;

/// Whether deletes and truncates reach the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeletePolicy {
    /// They do.
    #[default]
    Carry,
    /// They are ignored: the target keeps every row. A key change still moves its row.
    Ignore,
}

/// A tuple of the batch whose key cells name a row of the target; for [`Batch::tuple`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTuple(pub u32);

/// A row that the target has to hold in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upsert {
    /// The row; for [`Batch::tuple`].
    pub tuple: u32,
    /// Where the row has unchanged TOAST cells: the key under which the target holds their values before this delivery.
    pub origin: Option<KeyTuple>,
    /// The target holds no row under this key before this delivery: there is nothing to remove first.
    pub new_to_target: bool,
}

/// One table's changes with one final change per key.
#[derive(Clone, Debug)]
pub struct Compacted {
    batch: Batch,
    /// The target's table is to be emptied first.
    pub truncate: bool,
    /// Rows to remove, by key; none of these keys is in `upserts`.
    pub deletes: Vec<KeyTuple>,
    /// Rows to put, replacing what the target holds under their keys.
    pub upserts: Vec<Upsert>,
}

impl Compacted {
    /// The batch that tuples and keys refer to.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }
}

#[derive(Clone, Copy)]
enum Origin {
    /// The row was inserted in this batch.
    Fresh,
    /// The target held the row under this key before the batch.
    InTarget(u32),
}

#[derive(Clone, Copy)]
enum Final {
    Absent,
    Present { tuple: u32, origin: Origin },
}

struct Entry {
    hash: u64,
    key: u32,
    /// The target may hold a row under this key from before the batch.
    held: bool,
    state: Final,
}

struct Compaction {
    batch: Batch,
    key: Vec<usize>,
    deletes: DeletePolicy,
    truncated: bool,
    entries: Vec<Entry>,
    by_key: HashTable<u32>,
    hasher: FixedState,
}

/// Compacts a batch of a table with a key. Fails with class `TableBroken` when a row's key is NULL or unknown.
pub fn compact(batch: Batch, deletes: DeletePolicy) -> Result<Compacted> {
    let key = batch.table().key.clone();
    let rows = batch.len();
    let mut compaction = Compaction {
        batch,
        key,
        deletes,
        truncated: false,
        entries: Vec::with_capacity(rows),
        by_key: HashTable::with_capacity(rows),
        hasher: FixedState::default(),
    };
    for index in 0..rows {
        compaction.row(index)?;
    }
    compaction.finish()
}

impl Compaction {
    fn row(&mut self, index: usize) -> Result<()> {
        let Some(op) = self.batch.row(index).map(|row| row.op) else {
            return Ok(());
        };
        let (new, old) = (self.batch.new_tuple_at(index), self.batch.old_tuple_at(index));
        let old_is_full = self.batch.row(index).is_some_and(|row| row.old_is_full);
        match (op, new, old) {
            (Op::Insert, Some(new), _) => self.insert(new),
            (Op::Update, Some(new), old) => self.update(new, old, old_is_full),
            (Op::Delete, _, Some(old)) => self.delete(old),
            (Op::Truncate, ..) => {
                self.truncate();
                Ok(())
            }
            _ => Err(self.malformed("a change lacks the tuple that its kind needs")),
        }
    }

    fn insert(&mut self, new: u32) -> Result<()> {
        let at = self.entry(new, false)?;
        self.entries[at].state = Final::Present { tuple: new, origin: Origin::Fresh };
        Ok(())
    }

    fn update(&mut self, new: u32, old: Option<u32>, old_is_full: bool) -> Result<()> {
        if let Some(old) = old {
            self.fill_from_old(new, old, old_is_full);
        }
        let before = old.unwrap_or(new);
        let at_before = self.entry(before, true)?;
        let origin = match self.entries[at_before].state {
            Final::Present { tuple, origin } if tuple != before => {
                self.fill_from_earlier(new, tuple);
                origin
            }
            Final::Present { origin, .. } => origin,
            Final::Absent => Origin::InTarget(before),
        };
        let moved = old.is_some_and(|old| !self.keys_equal(old, new));
        let at = if moved {
            self.entries[at_before].state = Final::Absent;
            self.entry(new, false)?
        } else {
            at_before
        };
        self.entries[at].state = Final::Present { tuple: new, origin };
        Ok(())
    }

    fn delete(&mut self, old: u32) -> Result<()> {
        if self.deletes == DeletePolicy::Ignore {
            return Ok(());
        }
        let at = self.entry(old, true)?;
        self.entries[at].state = Final::Absent;
        Ok(())
    }

    fn truncate(&mut self) {
        if self.deletes == DeletePolicy::Carry {
            self.truncated = true;
            self.entries.clear();
            self.by_key.clear();
        }
    }

    /// The entry of a tuple's key. `held`: whether a key that is seen for the first time is one that the target holds.
    fn entry(&mut self, tuple: u32, held: bool) -> Result<usize> {
        let hash = self.hash(tuple)?;
        let (batch, key, entries) = (&self.batch, &self.key, &self.entries);
        let found = self.by_key.find(hash, |&at| {
            let entry = &entries[at as usize];
            entry.hash == hash && tuples_agree(batch, key, entry.key, tuple)
        });
        if let Some(&at) = found {
            return Ok(at as usize);
        }
        let at = self.entries.len();
        let trusted = self.deletes == DeletePolicy::Carry && self.batch.table().key_enforced;
        let held = if trusted { held && !self.truncated } else { true };
        let state =
            if held { Final::Present { tuple, origin: Origin::InTarget(tuple) } } else { Final::Absent };
        self.entries.push(Entry { hash, key: tuple, held, state });
        self.by_key.insert_unique(hash, at as u32, |&at| self.entries[at as usize].hash);
        Ok(at)
    }

    fn hash(&self, tuple: u32) -> Result<u64> {
        let Some(row) = self.batch.tuple(tuple) else {
            return Err(self.malformed("a change refers to a tuple that is not there"));
        };
        let mut hasher = self.hasher.build_hasher();
        for &column in &self.key {
            match row.cell(column) {
                Cell::Text(bytes) | Cell::Binary(bytes) => {
                    hasher.write(bytes);
                    hasher.write_usize(bytes.len());
                }
                Cell::Null | Cell::Unchanged => {
                    return Err(self.malformed("a change's key is not known"));
                }
            }
        }
        Ok(hasher.finish())
    }

    fn keys_equal(&self, left: u32, right: u32) -> bool {
        tuples_agree(&self.batch, &self.key, left, right)
    }

    fn fill_from_old(&mut self, new: u32, old: u32, old_is_full: bool) {
        if old_is_full {
            self.fill_from_earlier(new, old);
        } else {
            for at in 0..self.key.len() {
                let column = self.key[at];
                if self.batch.is_unchanged(new, column) {
                    self.batch.share_cell(old, new, column);
                }
            }
        }
    }

    fn fill_from_earlier(&mut self, new: u32, earlier: u32) {
        for column in 0..self.batch.table().columns.len() {
            if self.batch.is_unchanged(new, column) {
                self.batch.share_cell(earlier, new, column);
            }
        }
    }

    fn finish(self) -> Result<Compacted> {
        let mut deletes = Vec::new();
        let mut upserts = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            match entry.state {
                Final::Absent if entry.held => deletes.push(KeyTuple(entry.key)),
                Final::Absent => {}
                Final::Present { tuple, origin } => {
                    let partial = self.batch.tuple(tuple).is_some_and(|row: Row<'_>| row.has_unchanged());
                    let origin = match (partial, origin) {
                        (false, _) => None,
                        (true, Origin::InTarget(key)) => Some(KeyTuple(key)),
                        (true, Origin::Fresh) => {
                            return Err(self.malformed("a row that is new lacks a value"));
                        }
                    };
                    upserts.push(Upsert { tuple, origin, new_to_target: !entry.held });
                }
            }
        }
        Ok(Compacted { batch: self.batch, truncate: self.truncated, deletes, upserts })
    }

    fn malformed(&self, problem: &str) -> Error {
        let table = self.batch.table().name.clone();
        Error::table_broken(error::ROW_MALFORMED, table.clone(), format!("{table}: {problem}"))
            .with_cause(
                "a mistake in pgferry: what was decoded does not fit the table; nothing of it was written",
            )
            .with_cure(
                Cure::advice(
                    "report it with the table's definition; copying the table again may get past it",
                )
                .resync_table(&table),
            )
    }
}

fn tuples_agree(batch: &Batch, key: &[usize], left: u32, right: u32) -> bool {
    match (batch.tuple(left), batch.tuple(right)) {
        (Some(left), Some(right)) => key.iter().all(|&column| left.cell(column) == right.cell(column)),
        _ => false,
    }
}
