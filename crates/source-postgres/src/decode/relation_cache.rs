//! Knows, for every relation that the stream speaks of, which table of the task it is and where its columns go.
//!
//! ```text
//!   R message ── same bytes as before ──────────────> nothing to do
//!       ├─────── not in the task ────────────────────> skipped
//!       ├─────── the task's columns ─────────────────> bound: table and projection
//!       └─────── other columns, or an unknown relation > a question; the caller answers
//!                                                        adopt · tolerate · set_aside · map_leaf · ignore
//! ```
//!
//! Invariants: a relation that was described again with the same content is not a change (PostgreSQL does so after any
//! invalidation of its cache); rows of a relation whose question is open are refused; a table's projections always fit the
//! table's present version. Descriptions of a streamed transaction come here at its commit only, so that one that rolls back
//! leaves nothing behind.
//!
//! Limits: an R message has no column numbers. A rename is a guess, and the last column dropped and added again with the same
//! type cannot be told from no change at all; the caller asks the catalog where that matters.

use std::sync::Arc;

use hashbrown::HashMap;
use pgferry_model::{Table, TableId, TableName};

use super::pgoutput::{Identity, RelationMessage};

type ByOid<V> = HashMap<u32, V, foldhash::fast::RandomState>;

/// A table of the task and what the stream has to know about it besides.
#[derive(Clone, Debug)]
pub struct TableBinding {
    /// The table. Its id is its index in the list of bindings.
    pub table: Arc<Table>,
    /// Its OID, where known: a table of the same name with another OID is then noticed.
    pub oid: Option<u32>,
    /// Columns that the task leaves out; they are skipped and are no change.
    pub excluded: Vec<Arc<str>>,
    /// Each column's type modifier (`pg_attribute.atttypmod`), parallel to the table's columns. `None` or missing: unknown,
    /// taken from the first description.
    pub modifiers: Vec<Option<i32>>,
}

impl TableBinding {
    /// A table without excluded columns, nothing known besides.
    pub fn new(table: Arc<Table>) -> Self {
        TableBinding { table, oid: None, excluded: Vec::new(), modifiers: Vec::new() }
    }
}

/// A column as the stream describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedColumn {
    /// Its name.
    pub name: Arc<str>,
    /// Its type's OID.
    pub type_oid: u32,
    /// Its type's modifier; -1: none.
    pub modifier: i32,
    /// Whether it belongs to the identity.
    pub identity: bool,
}

/// A relation as the stream describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
    /// How it identifies old rows.
    pub identity: Identity,
    /// Its published columns.
    pub columns: Vec<DescribedColumn>,
}

/// How a description differs from the task's table. Indexes are into `described.columns` and the table's columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaDiff {
    /// The table.
    pub table: TableId,
    /// The relation as described; of a partition, where a leaf is carried as its root's table.
    pub described: Described,
    /// Columns that the table does not have, as indexes into the description.
    pub added: Vec<usize>,
    /// Columns that the description does not have, as indexes into the table.
    pub dropped: Vec<usize>,
    /// Columns of another type or modifier: (in the table, in the description).
    pub retyped: Vec<(usize, usize)>,
    /// Pairs of `dropped` and `added` that look like a rename: same place, same type.
    pub renamed: Vec<(usize, usize)>,
    /// Whether columns come in another order: one was dropped and added again, its old values are gone.
    pub reordered: bool,
    /// Key columns that old rows no longer have: updates of the key and deletes cannot be carried, and two rows may have one key.
    pub identity_lost: Vec<usize>,
    /// The table's new name, where its OID has another name now.
    pub new_name: Option<TableName>,
    /// Whether it is another table of the same name: the old one and its rows are gone.
    pub recreated: bool,
}

impl SchemaDiff {
    fn same(&self) -> bool {
        self.added.is_empty()
            && self.dropped.is_empty()
            && self.retyped.is_empty()
            && !self.reordered
            && self.identity_lost.is_empty()
            && self.new_name.is_none()
            && !self.recreated
    }
}

/// What the caller has to decide before the next frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// A table's description differs.
    Changed(Box<SchemaDiff>),
    /// A relation that is not in the task; asked only where [`RelationCache::ask_unknown`] was set.
    Unknown(Described),
}

impl Question {
    fn oid(&self) -> u32 {
        match self {
            Question::Changed(diff) => diff.described.oid,
            Question::Unknown(described) => described.oid,
        }
    }
}

/// Where a row's cells go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Projection {
    /// Cell `i` is column `i`.
    Identity,
    /// In order; the cells marked `false` are left out.
    Some(Box<[bool]>),
    /// Per column its cell; `None`: the relation does not have it.
    Scattered(Box<[Option<u16>]>),
}

impl Projection {
    /// Whether every column of the table has a cell.
    #[inline]
    pub fn complete(&self) -> bool {
        match self {
            Projection::Identity | Projection::Some(_) => true,
            Projection::Scattered(cells) => cells.iter().all(Option::is_some),
        }
    }
}

/// A relation of the task.
#[derive(Clone, Debug)]
pub struct Binding {
    /// The table.
    pub table: TableId,
    /// How many cells its tuples have.
    pub cells: usize,
    /// Where they go.
    pub projection: Projection,
    /// Whether it is a partition whose rows go to its root's table.
    pub leaf: bool,
}

/// What is known of a relation.
#[derive(Clone, Debug)]
pub enum Known {
    /// Not in the task, or set aside.
    Skipped,
    /// In the task.
    Bound(Binding),
    /// A question about it is open.
    Undecided,
}

struct Entry {
    known: Known,
    description: Box<[u8]>,
}

struct Carried {
    binding: TableBinding,
    set_aside: bool,
}

/// From a relation's OID to what the task carries of it.
pub struct RelationCache {
    carried: Vec<Carried>,
    by_name: HashMap<TableName, TableId, foldhash::fast::RandomState>,
    by_oid: ByOid<TableId>,
    leaves: ByOid<TableId>,
    ask_unknown: bool,
    index: ByOid<u32>,
    entries: Vec<Entry>,
    last: Option<(u32, u32)>,
    questions: Vec<Question>,
}

impl RelationCache {
    /// For the tables of a run, by their ids.
    pub fn new(tables: Vec<TableBinding>) -> Self {
        let mut cache = RelationCache {
            carried: Vec::with_capacity(tables.len()),
            by_name: HashMap::default(),
            by_oid: ByOid::default(),
            leaves: ByOid::default(),
            ask_unknown: false,
            index: ByOid::default(),
            entries: Vec::new(),
            last: None,
            questions: Vec::new(),
        };
        for binding in tables {
            let id = TableId(cache.carried.len() as u32);
            cache.by_name.insert(binding.table.name.clone(), id);
            if let Some(oid) = binding.oid {
                cache.by_oid.insert(oid, id);
            }
            cache.carried.push(Carried { binding, set_aside: false });
        }
        cache
    }

    /// Whether an unknown relation is a question rather than skipped: for partitions that are published one by one and may
    /// be added while the task runs. The caller answers with [`RelationCache::map_leaf`] or [`RelationCache::ignore`].
    pub fn ask_unknown(&mut self, ask: bool) {
        self.ask_unknown = ask;
    }

    /// The rows of the partition `leaf` belong to a table of the task.
    pub fn map_leaf(&mut self, leaf: u32, table: TableId) {
        self.leaves.insert(leaf, table);
        self.again(leaf);
    }

    /// The relation is none of the task's: its rows are skipped.
    pub fn ignore(&mut self, oid: u32) {
        self.answered(oid);
        if let Some(entry) = self.entry(oid) {
            entry.known = Known::Skipped;
        }
    }

    /// The table goes on with a new version. The relation that was asked about is compared again: where it still differs, the
    /// question stays open and `false` is returned. Other partitions of the table go on by the names of their columns.
    pub fn adopt(&mut self, binding: TableBinding) -> bool {
        let id = binding.table.id;
        let Some(carried) = self.carried.get_mut(id.index()) else { return false };
        self.by_name.remove(&carried.binding.table.name);
        self.by_name.insert(binding.table.name.clone(), id);
        if let Some(oid) = carried.binding.oid {
            self.by_oid.remove(&oid);
        }
        if let Some(oid) = binding.oid {
            self.by_oid.insert(oid, id);
        }
        carried.binding = binding;
        let asked: Vec<u32> = self.asked_about(id);
        self.questions.retain(|question| !asked.contains(&question.oid()));
        for oid in self.bound_to(id) {
            self.bind_as_is(oid, id);
        }
        for &oid in &asked {
            self.again(oid);
        }
        self.asked_about(id).is_empty()
    }

    /// The table stays as it is although the stream's rows differ, for the time being: columns are found by name, one that is
    /// missing is NULL in an insert and unchanged in an update. For descriptions that are older than the task's table.
    pub fn tolerate(&mut self, table: TableId) {
        for oid in self.asked_about(table) {
            self.answered(oid);
            self.bind_as_is(oid, table);
        }
    }

    /// The table's rows are skipped from now on.
    pub fn set_aside(&mut self, table: TableId) {
        for oid in self.asked_about(table) {
            self.ignore(oid);
        }
        for oid in self.bound_to(table) {
            self.ignore(oid);
        }
        if let Some(carried) = self.carried.get_mut(table.index()) {
            carried.set_aside = true;
        }
    }

    /// What the caller has to decide next.
    pub fn question(&self) -> Option<&Question> {
        self.questions.first()
    }

    /// How many partitions of the table are known.
    pub fn leaves_of(&self, table: TableId) -> usize {
        self.leaves.values().filter(|&&id| id == table).count()
    }

    /// Forgets every description: a new connection describes anew. The answers stay.
    pub fn reset(&mut self) {
        self.index.clear();
        self.entries.clear();
        self.questions.clear();
        self.last = None;
    }

    /// Whether rows of the relation may matter to the task, without taking note of it.
    pub fn wants(&self, message: &RelationMessage<'_>) -> bool {
        self.ask_unknown || self.table_of(message).is_some()
    }

    /// What is known of a relation; `None`: it was never described.
    #[inline]
    pub fn get(&mut self, oid: u32) -> Option<&Known> {
        let at = match self.last {
            Some((last, at)) if last == oid => at,
            _ => {
                let at = *self.index.get(&oid)?;
                self.last = Some((oid, at));
                at
            }
        };
        self.entries.get(at as usize).map(|entry| &entry.known)
    }

    /// Takes note of a description. A difference opens a question, see [`RelationCache::question`].
    pub fn describe(&mut self, message: &RelationMessage<'_>) {
        let oid = message.oid;
        if let Some(entry) = self.entry(oid)
            && *entry.description == *message.bytes
        {
            return;
        }
        self.answered(oid);
        let known = match self.table_of(message) {
            None if self.ask_unknown => {
                self.questions.push(Question::Unknown(owned(message)));
                Known::Undecided
            }
            None => Known::Skipped,
            Some((id, _)) if self.carried[id.index()].set_aside => Known::Skipped,
            Some((id, leaf)) => self.compared(message, id, leaf),
        };
        let entry = Entry { known, description: message.bytes.into() };
        match self.index.get(&oid) {
            Some(&at) => self.entries[at as usize] = entry,
            None => {
                self.index.insert(oid, self.entries.len() as u32);
                self.entries.push(entry);
            }
        }
    }

    fn entry(&mut self, oid: u32) -> Option<&mut Entry> {
        let at = *self.index.get(&oid)?;
        self.entries.get_mut(at as usize)
    }

    fn answered(&mut self, oid: u32) {
        self.questions.retain(|question| question.oid() != oid);
    }

    /// Looks at a relation's description again, after what it is compared with has changed.
    fn again(&mut self, oid: u32) {
        let Some(entry) = self.entry(oid) else { return };
        let description = std::mem::take(&mut entry.description);
        if let Some(message) = RelationMessage::again(&description) {
            self.describe(&message);
        }
    }

    fn asked_about(&self, table: TableId) -> Vec<u32> {
        let asked = self.questions.iter().filter_map(|question| match question {
            Question::Changed(diff) if diff.table == table => Some(diff.described.oid),
            _ => None,
        });
        asked.collect()
    }

    fn bound_to(&self, table: TableId) -> Vec<u32> {
        let known = |at: u32| self.entries.get(at as usize).map(|entry| &entry.known);
        let bound = self.index.iter().filter_map(|(&oid, &at)| match known(at) {
            Some(Known::Bound(binding)) if binding.table == table => Some(oid),
            _ => None,
        });
        bound.collect()
    }

    fn bind_as_is(&mut self, oid: u32, id: TableId) {
        let leaf = self.leaves.get(&oid) == Some(&id);
        let table = Arc::clone(&self.carried[id.index()].binding.table);
        if let Some(entry) = self.entry(oid)
            && let Some(message) = RelationMessage::again(&entry.description)
        {
            let cells = message.column_count();
            let projection = projection(&places(&message, &table), table.columns.len());
            entry.known = Known::Bound(Binding { table: id, cells, projection, leaf });
        }
    }

    /// The table of the task, and whether the relation is a leaf of it.
    fn table_of(&self, message: &RelationMessage<'_>) -> Option<(TableId, bool)> {
        if let Some(&id) = self.by_oid.get(&message.oid) {
            return Some((id, false));
        }
        if let Some(&id) = self.leaves.get(&message.oid) {
            return Some((id, true));
        }
        let name = TableName::new(message.schema, message.name);
        self.by_name.get(&name).map(|&id| (id, false))
    }

    fn compared(&mut self, message: &RelationMessage<'_>, id: TableId, leaf: bool) -> Known {
        let carried = &mut self.carried[id.index()].binding;
        let places = places(message, &carried.table);
        let diff = difference(message, carried, &places, leaf);
        if !diff.same() {
            self.questions.push(Question::Changed(Box::new(diff)));
            return Known::Undecided;
        }
        carried.modifiers.resize(carried.table.columns.len(), None);
        for (column, place) in message.columns().zip(&places) {
            if let Some(modifier) = place.and_then(|place| carried.modifiers.get_mut(place)) {
                *modifier = Some(column.modifier);
            }
        }
        if !leaf {
            carried.oid = Some(message.oid);
            self.by_oid.insert(message.oid, id);
        }
        let projection = projection(&places, carried.table.columns.len());
        Known::Bound(Binding { table: id, cells: message.column_count(), projection, leaf })
    }
}

fn owned(message: &RelationMessage<'_>) -> Described {
    let columns = message.columns().map(|column| DescribedColumn {
        name: column.name.into(),
        type_oid: column.type_oid,
        modifier: column.modifier,
        identity: column.identity,
    });
    Described {
        oid: message.oid,
        name: TableName::new(message.schema, message.name),
        identity: message.identity,
        columns: columns.collect(),
    }
}

/// Per described column its place in the table.
fn places(message: &RelationMessage<'_>, table: &Table) -> Vec<Option<usize>> {
    let place = |(at, name): (usize, &str)| match table.columns.get(at) {
        Some(column) if *column.name == *name => Some(at),
        _ => table.columns.iter().position(|column| *column.name == *name),
    };
    message.columns().enumerate().map(|(at, column)| place((at, column.name))).collect()
}

fn difference(
    message: &RelationMessage<'_>,
    carried: &TableBinding,
    places: &[Option<usize>],
    leaf: bool,
) -> SchemaDiff {
    let table = &carried.table;
    let described = owned(message);
    let carried_places: Vec<usize> = places.iter().flatten().copied().collect();
    let added: Vec<usize> = (0..places.len())
        .filter(|&at| places[at].is_none() && !carried.excluded.contains(&described.columns[at].name))
        .collect();
    let dropped: Vec<usize> = (0..table.columns.len()).filter(|at| !carried_places.contains(at)).collect();
    let retyped = places.iter().enumerate().filter_map(|(at, place)| {
        let place = (*place)?;
        let column = &described.columns[at];
        let modifier = carried.modifiers.get(place).copied().flatten();
        let same = column.type_oid == table.columns[place].data_type.oid
            && modifier.is_none_or(|modifier| modifier == column.modifier);
        if same { None } else { Some((place, at)) }
    });
    let retyped = retyped.collect();
    let renamed = renames(&described, carried, &added, &dropped);
    // Without a key of its own a relation marks no column. A partition then still has the key of its root.
    let identifies = !leaf || described.columns.iter().any(|column| column.identity);
    let covered = |place: usize| {
        places.iter().zip(&described.columns).any(|(at, column)| *at == Some(place) && column.identity)
    };
    let identity_lost =
        table.key.iter().copied().filter(|&place| identifies && !dropped.contains(&place) && !covered(place));
    SchemaDiff {
        table: table.id,
        identity_lost: identity_lost.collect(),
        new_name: (!leaf && described.name != table.name).then(|| described.name.clone()),
        recreated: !leaf && carried.oid.is_some_and(|oid| oid != message.oid),
        reordered: !leaf && !carried_places.is_sorted(),
        described,
        added,
        dropped,
        retyped,
        renamed,
    }
}

/// Pairs of a dropped and an added column that stand at the same place with the same type.
fn renames(
    described: &Described,
    carried: &TableBinding,
    added: &[usize],
    dropped: &[usize],
) -> Vec<(usize, usize)> {
    if added.len() != dropped.len() {
        return Vec::new();
    }
    let counted = |at: usize| {
        let before = described.columns[..at].iter();
        before.filter(|column| !carried.excluded.contains(&column.name)).count()
    };
    let pairs = dropped.iter().copied().zip(added.iter().copied()).filter(|&(place, at)| {
        counted(at) == place && carried.table.columns[place].data_type.oid == described.columns[at].type_oid
    });
    pairs.collect()
}

fn projection(places: &[Option<usize>], width: usize) -> Projection {
    let mut carried = places.iter().flatten().copied();
    if !(0..width).all(|column| carried.next() == Some(column)) || carried.next().is_some() {
        let cell = |column| places.iter().position(|&place| place == Some(column)).map(|cell| cell as u16);
        return Projection::Scattered((0..width).map(cell).collect());
    }
    if places.len() == width {
        Projection::Identity
    } else {
        Projection::Some(places.iter().map(Option::is_some).collect())
    }
}

#[cfg(test)]
#[path = "relation_cache_tests.rs"]
mod tests;
