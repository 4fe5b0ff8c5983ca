//! A history read back: the rows as they are now.
//!
//! ```text
//!   … │ copy │ snapshot 1a  snapshot 2b  update 1c  delete 2  update 3 (was 1)        since the last copy or truncate
//!                                                                    ──> 3c
//! ```
//!
//! Limit: all of these rows are read, and folded in memory.

use std::collections::HashMap;

use pgferry_model::{Result, Table};
use pgferry_pipeline::TextRow;

use crate::document;
use crate::error::row_missing;
use crate::history::{HistoryOp, beginnings};
use crate::inspect::{as_text, text_row};
use crate::schema::{OLD_KEY, OP, SEQ, UNCHANGED, column_types, qualified, quote, target_name};
use crate::session::{Session, first_number, text};
use crate::settings::Settings;

type Key = Vec<Option<String>>;

/// The condition that a row was written since the table was last told anew, and tells of a row of the table.
fn since_beginning(target: &str) -> String {
    let (op, seq, beginnings) = (quote(OP), quote(SEQ), beginnings());
    format!(
        "{seq} >= (SELECT coalesce(max({seq}), 0) FROM {target} WHERE {op} IN ({beginnings})) AND {op} NOT IN ({beginnings})"
    )
}

/// The number of rows.
pub(crate) async fn count(session: &Session, settings: &Settings, table: &Table) -> Result<u64> {
    let target = qualified(&target_name(settings, table));
    let key: Vec<String> = table.key_columns().map(|column| quote(&column.name)).collect();
    let last = match key.is_empty() {
        true => String::new(),
        false => {
            let (key, seq) = (key.join(", "), quote(SEQ));
            format!(" QUALIFY ROW_NUMBER() OVER (PARTITION BY {key} ORDER BY {seq} DESC) = 1")
        }
    };
    let (op, since) = (quote(OP), since_beginning(&target));
    let asked = format!(
        "SELECT count(*) FROM (SELECT {op} FROM {target} WHERE {since}{last}) WHERE {op} <> 'delete'"
    );
    Ok(first_number(&session.ask("counting rows", &asked).await?))
}

/// The rows, in no order.
pub(crate) async fn rows(session: &Session, settings: &Settings, table: &Table) -> Result<Vec<TextRow>> {
    let target = qualified(&target_name(settings, table));
    let types = column_types(settings, table);
    let list = |name: &str| format!("to_string(CAST({} AS VARIANT NULL))", quote(name));
    let mut columns = vec![quote(OP), list(UNCHANGED), list(OLD_KEY)];
    columns
        .extend(table.columns.iter().zip(&types).map(|(column, kind)| as_text(&quote(&column.name), kind)));
    let asked = format!(
        "SELECT {} FROM {target} WHERE {} ORDER BY {}",
        columns.join(", "),
        since_beginning(&target),
        quote(SEQ)
    );
    let mut folded = Folded { table, held: HashMap::new(), keyless: Vec::new(), removed: None };
    for mut row in session.ask("reading rows", &asked).await? {
        let cells = row.split_off(3.min(row.len()));
        let names = |at: usize| row.get(at).and_then(Option::as_deref).and_then(document::texts);
        let (unchanged, old_key) = (names(1).unwrap_or_default(), names(2));
        let row_of_table = text_row(cells, &types)?;
        let known = folded.take(&text(&row, 0), row_of_table, &unchanged, old_key.as_deref());
        known.ok_or_else(|| row_missing(&table.name, &target_name(settings, table)))?;
    }
    Ok(folded.held.into_values().chain(folded.keyless).collect())
}

/// Rows as they are after what was read so far.
struct Folded<'t> {
    table: &'t Table,
    held: HashMap<Key, TextRow>,
    /// Rows of a table without a key.
    keyless: Vec<TextRow>,
    /// The row that was removed last: an update that changes the key follows the removal of the old one.
    removed: Option<(Key, TextRow)>,
}

impl Folded<'_> {
    /// Takes the next row of the history. `None`: a value that it does not have is nowhere.
    fn take(
        &mut self,
        op: &str,
        mut row: TextRow,
        unchanged: &[Option<String>],
        old_key: Option<&[Option<String>]>,
    ) -> Option<()> {
        if self.table.key.is_empty() {
            self.keyless.push(row);
            return Some(());
        }
        let key: Key = self.table.key.iter().map(|&at| row[at].clone()).collect();
        if op == HistoryOp::Delete.word() {
            self.removed = self.held.remove(&key).map(|row| (key, row));
            return Some(());
        }
        if !unchanged.is_empty() {
            let before = match old_key {
                Some(old) => {
                    self.removed.as_ref().filter(|(key, _)| key.as_slice() == old).map(|(_, row)| row)
                }
                None => self.held.get(&key),
            }?;
            for (at, column) in self.table.columns.iter().enumerate() {
                if unchanged.iter().flatten().any(|name| **name == *column.name) {
                    row[at].clone_from(&before[at]);
                }
            }
        }
        self.held.insert(key, row);
        Some(())
    }
}
