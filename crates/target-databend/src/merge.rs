//! What is staged becomes what users query: one transaction per table and merge.
//!
//! ```text
//!   raw:  1a 2b | truncate | 3c 1d | 1e …       hi: the last number of this merge
//!   BEGIN ─> DELETE FROM table (a truncate) ─> MERGE the last row per key ─> DELETE FROM raw up to hi ─> COMMIT
//! ```
//!
//! A value that the source did not send is looked for where it was last sent: in an earlier staged row of the key, else in the table
//! itself. A row that has changed its key and still has such values (it names its old key) is merged with its delivery alone, after all
//! that was staged before: then the table holds what the source left out.
//!
//! Invariants: what a merge takes from the raw table and what it puts into the table are one commit, so that a merge done twice finds
//! nothing the second time; rows that are staged meanwhile have higher numbers, and stay.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pgferry_model::{Class, Error, Result, Table, TableName, TaskId};

use crate::error::{FENCED, REFUSED, mistake, of_table, row_missing, table_gone};
use crate::holder::{Commit, Holder, Step};
use crate::schema::{OP, ORIGIN, SEQ, UNCHANGED, literal, qualified, quote, raw_name, target_name};
use crate::session::{first_number, number, text};

/// Between two tries of a merge that failed for a while.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Between two looks at how far merges are behind.
const LAG_TOLD_EVERY: Duration = Duration::from_secs(1);
/// The longest that the last merges may take, all of them together: whoever stops the program waits for them, and nothing is lost
/// without them.
const LAST_MERGES_WITHIN: Duration = Duration::from_secs(30);
/// The longest sleep of the merging task: it then sees that its holder is gone.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Merges in the background until the holder is gone.
pub(crate) fn begin(holder: &Arc<Holder>) {
    let weak = Arc::downgrade(holder);
    tokio::spawn(tell_lag(holder.task.clone(), Weak::clone(&weak)));
    tokio::spawn(async move { while step(&weak).await {} });
}

/// Tells metrics how old each table's oldest staged rows are, also while a merge takes long; 0 where none are left.
async fn tell_lag(task: TaskId, weak: Weak<Holder>) {
    let mut told: HashSet<TableName> = HashSet::new();
    loop {
        let holder = weak.upgrade().filter(|holder| !holder.has_ended());
        let ages: HashMap<TableName, Duration> = holder.as_ref().map_or_else(HashMap::new, |holder| {
            let view = holder.view.lock();
            view.staged.iter().map(|(name, staged)| (name.clone(), staged.since.elapsed())).collect()
        });
        let ended = holder.is_none();
        drop(holder);
        told.extend(ages.keys().cloned());
        told.retain(|name| {
            let age = ages.get(name);
            metrics::gauge!("pgferry_merge_lag_seconds", "task" => task.to_string(), "table" => name.to_string())
                .set(age.map_or(0.0, Duration::as_secs_f64));
            age.is_some()
        });
        if ended {
            return;
        }
        tokio::time::sleep(LAG_TOLD_EVERY).await;
    }
}

/// Merges what is due, then waits for the next.
async fn step(weak: &Weak<Holder>) -> bool {
    let Some(holder) = weak.upgrade().filter(|holder| !holder.has_ended()) else { return false };
    let now = Instant::now();
    let next = {
        let view = holder.view.lock();
        view.staged.values().min_by_key(|staged| staged.due).map(|next| (Arc::clone(&next.table), next.due))
    };
    match next {
        Some((table, due)) if due <= now => return merge_due(&holder, &table).await,
        Some((_, due)) => wait(holder, due - now).await,
        None => wait(holder, SLEEP_MAX).await,
    }
    true
}

async fn wait(holder: Arc<Holder>, within: Duration) {
    let _woken = tokio::time::timeout(within.min(SLEEP_MAX), holder.wake.notified()).await;
}

/// Merges one table; `false`: this holder writes no more.
async fn merge_due(holder: &Holder, table: &Arc<Table>) -> bool {
    let merging = holder.merging.lock().await;
    order(holder, table).await;
    let began = Instant::now();
    let merged = merge_through(holder, table).await.map_err(|failure| of_table(failure, &table.name));
    drop(merging);
    let took = began.elapsed();
    metrics::histogram!("pgferry_merge_seconds", "task" => holder.task.to_string())
        .record(took.as_secs_f64());
    let mut view = holder.view.lock();
    // Merging takes the server's time: at most a third of it.
    let rested = Instant::now() + holder.settings.merge_interval.max(2 * took);
    view.rested.insert(table.name.clone(), rested);
    let Some(staged) = view.staged.get_mut(&table.name) else { return true };
    match merged {
        Ok(through) if staged.seq <= through => {
            view.staged.remove(&table.name);
        }
        Ok(_) => (staged.due, staged.since) = (rested, began),
        Err(failure) if failure.code() == FENCED => {
            if !holder.has_ended() {
                tracing::warn!("nothing is merged any more: {failure}");
            }
            return false;
        }
        // What keeps the whole task from the server, deliveries tell.
        Err(failure) if failure.class() != Class::TableBroken => {
            tracing::warn!(table = %table.name, code = failure.code().as_str(), cause = failure.cause(), "a merge is tried again: {failure}");
            staged.due = Instant::now() + RETRY_AFTER;
        }
        Err(failure) => {
            tracing::warn!(table = %table.name, code = failure.code().as_str(), cause = failure.cause(), "a table cannot be merged: {failure}");
            view.staged.remove(&table.name);
            view.failed.insert(table.name.clone(), failure);
        }
    }
    true
}

/// Puts a table that was copied just now into the order of its key: a merge then touches fewer blocks.
async fn order(holder: &Holder, table: &Arc<Table>) {
    let unordered = holder.view.lock().unordered.remove(&table.name);
    let Some(table) = unordered.filter(|table| crate::schema::is_clustered(table)) else { return };
    let target = target_name(&holder.settings, &table);
    let statement = format!("ALTER TABLE {} RECLUSTER FINAL", qualified(&target));
    if let Err(failure) = holder.ask(&format!("ordering {target}"), &statement).await {
        tracing::warn!(table = %table.name, "the table stays in the order of its copy: {failure}");
    }
}

/// Merges what is staged of a table now, where somebody wants to read it.
pub(crate) async fn flush(holder: &Holder, table: &Table) -> Result<()> {
    let merging = holder.merging.lock().await;
    let table = Arc::new(table.clone());
    let through = merge_through(holder, &table).await?;
    drop(merging);
    let mut view = holder.view.lock();
    if view.staged.get(&table.name).is_some_and(|staged| staged.seq <= through) {
        view.staged.remove(&table.name);
    }
    Ok(())
}

/// Merges what is left, the oldest first, within a limit: what is staged is durable, and the next holder merges it.
pub(crate) async fn finish(holder: &Holder) {
    let until = tokio::time::Instant::now() + LAST_MERGES_WITHIN;
    let mut left: Vec<(Instant, Arc<Table>)> =
        holder.view.lock().staged.values().map(|staged| (staged.since, Arc::clone(&staged.table))).collect();
    left.sort_by_key(|(since, _)| *since);
    for (at, (_, table)) in left.iter().enumerate() {
        match tokio::time::timeout_at(until, flush(holder, table)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                tracing::warn!(table = %table.name, code = failure.code().as_str(), cause = failure.cause(), "the last merge was not done: {failure}");
            }
            Err(_) => {
                let tables = left.len() - at;
                let seconds = LAST_MERGES_WITHIN.as_secs();
                tracing::warn!(
                    tables,
                    "the last merges take longer than {seconds} s: the next start does what is left"
                );
                return;
            }
        }
    }
}

/// What a raw table holds.
#[derive(Debug)]
struct Content {
    /// Of the rows that are merged now.
    first: u64,
    last: u64,
    truncate: Option<u64>,
    /// The first rows that name an old key.
    moved: Option<u64>,
    /// Some row lacks values that the source did not send.
    partial: bool,
}

/// Merges everything that is staged of a table; gives a number up to which nothing is left. `merging` is held.
async fn merge_through(holder: &Holder, table: &Arc<Table>) -> Result<u64> {
    // Looked at first: what is known to be staged by now is seen by what is asked next.
    let mut through = holder.view.lock().seq;
    while let Some(content) = content(holder, table).await? {
        let hi = match content.moved {
            // Its delivery alone; a truncate of the same delivery has the number before.
            Some(moved) if moved <= content.first + 1 => moved,
            Some(moved) => moved - 2,
            None => content.last,
        };
        let truncate = content.truncate.filter(|&seq| seq <= hi);
        let (moved, partial) = (content.moved == Some(hi), content.partial);
        Merge { holder, table, truncate, hi, moved, partial }.run().await?;
        through = through.max(hi);
        if hi == content.last {
            break;
        }
    }
    Ok(through)
}

async fn content(holder: &Holder, table: &Table) -> Result<Option<Content>> {
    let raw = raw_name(&holder.settings, &holder.task, &table.name);
    let (seq, op) = (quote(SEQ), quote(OP));
    let moved = match table.key.is_empty() {
        true => "NULL".to_owned(),
        false => format!("min(IF({} IS NOT NULL, {seq}, NULL))", quote(&format!("{ORIGIN}0"))),
    };
    let truncate = format!("max(IF({op} = 'truncate', {seq}, NULL))");
    let asked = format!(
        "SELECT count(*), min({seq}), max({seq}), {truncate}, {moved}, count({}) FROM {}",
        quote(UNCHANGED),
        qualified(&raw)
    );
    let session = holder.session().await?;
    let rows = match session.run(&asked).await {
        Ok(rows) => rows,
        Err(failure) => match crate::error::answered(&failure) {
            Some((crate::error::server::UNKNOWN_TABLE | crate::error::server::UNKNOWN_DATABASE, _)) => {
                session.give_back();
                return Ok(None);
            }
            _ => return Err(crate::error::refused("looking at what is staged", &failure)),
        },
    };
    session.give_back();
    let Some(row) = rows.first().filter(|row| number(row.first()) > 0) else { return Ok(None) };
    let known = |at: usize| row.get(at).and_then(Option::as_deref).and_then(|text| text.parse().ok());
    Ok(Some(Content {
        first: number(row.get(1)),
        last: number(row.get(2)),
        truncate: known(3),
        moved: known(4),
        partial: number(row.get(5)) > 0,
    }))
}

/// One merge.
struct Merge<'a> {
    holder: &'a Holder,
    table: &'a Arc<Table>,
    truncate: Option<u64>,
    hi: u64,
    /// Rows of it name old keys.
    moved: bool,
    /// Rows of it may lack values.
    partial: bool,
}

impl Merge<'_> {
    fn target(&self) -> TableName {
        target_name(&self.holder.settings, self.table)
    }

    fn raw(&self) -> String {
        qualified(&raw_name(&self.holder.settings, &self.holder.task, &self.table.name))
    }

    /// The staged rows that are merged: those after the last truncate.
    fn window(&self) -> String {
        let after = self.truncate.map_or_else(String::new, |seq| format!(" AND {} > {seq}", quote(SEQ)));
        format!("{} <= {}{after} AND {} <> 'truncate'", quote(SEQ), self.hi, quote(OP))
    }

    async fn run(&self) -> Result<()> {
        let doing = format!("merging {}", self.table.name);
        if self.table.key.is_empty() {
            return Err(without_key(self.table));
        }
        let absent = self.absent_columns(&doing).await?;
        let source = self.source(&absent);
        if !absent.is_empty() {
            self.verify_rows_there(&doing, &source, &absent).await?;
        }
        let (target, raw) = (qualified(&self.target()), self.raw());
        let mut steps = Vec::new();
        if self.truncate.is_some() {
            steps.push(Step::on(&self.table.name, format!("DELETE FROM {target}")));
        }
        steps.push(Step::on(&self.table.name, self.statement(&target, &source, &absent)));
        // In its turn: a delivery that is staged meanwhile would have all of the merge done again.
        let done = format!("DELETE FROM {raw} WHERE {} <= {}", quote(SEQ), self.hi);
        steps.push(Step::on(&self.table.name, done).in_turn());
        let id = self.table_id(&doing).await?;
        self.holder.commit(&Commit::of(&doing, steps)).await?;
        // A table that is dropped under a merge takes the merge's rows along, and the commit says nothing of it.
        if id.is_none() || self.table_id(&doing).await? != id {
            return Err(table_gone(&self.table.name, &self.target()));
        }
        Ok(())
    }

    async fn table_id(&self, doing: &str) -> Result<Option<String>> {
        let target = self.target();
        let asked = format!(
            "SELECT table_id FROM system.tables WHERE database = {} AND name = {}",
            literal(&target.schema),
            literal(&target.name)
        );
        let rows = self.holder.ask(doing, &asked).await?;
        Ok(rows.first().and_then(|row| row.first().cloned().flatten()))
    }

    /// The columns that some staged row lacks, by their place in the table.
    async fn absent_columns(&self, doing: &str) -> Result<Vec<usize>> {
        if !self.partial {
            return Ok(Vec::new());
        }
        let unchanged = quote(UNCHANGED);
        let asked = format!(
            "SELECT DISTINCT unnest({unchanged}) FROM {} WHERE {} AND {unchanged} IS NOT NULL",
            self.raw(),
            self.window()
        );
        let rows = self.holder.ask(doing, &asked).await?;
        let names: Vec<String> = rows.iter().map(|row| text(row, 0)).collect();
        let columns = self.table.columns.iter().enumerate();
        Ok(columns
            .filter(|(at, column)| {
                !self.table.key.contains(at) && names.iter().any(|name| **name == *column.name)
            })
            .map(|(at, _)| at)
            .collect())
    }

    fn column(&self, at: usize) -> String {
        quote(&self.table.columns[at].name)
    }

    /// `left.k1 = right.k1 AND …`
    fn keys_equal(&self, left: &str, right: &str) -> String {
        let equal = |&at: &usize| format!("{left}.{0} = {right}.{0}", self.column(at));
        self.table.key.iter().map(equal).collect::<Vec<_>>().join(" AND ")
    }

    /// The last staged row of each key, with every value that was staged for it. Besides the table's columns: `_pgferry_op`, and for each
    /// column that may be absent `_pgferry_keep_N`: whether the table's own value stays.
    fn source(&self, absent: &[usize]) -> String {
        let mut columns = vec![format!("l.{0} AS {0}", quote(OP))];
        for at in 0..self.table.columns.len() {
            let column = self.column(at);
            if !absent.contains(&at) {
                columns.push(format!("l.{column} AS {column}"));
                continue;
            }
            let lacking = self.lacks("l.", at);
            let (value, nowhere) = if self.moved {
                (format!("o.{column}"), format!("o.{} IS NULL", self.column(self.table.key[0])))
            } else {
                (format!("f.v{at}[1]"), format!("f.v{at} IS NULL"))
            };
            columns.push(format!("IF({lacking}, {value}, l.{column}) AS {column}"));
            columns.push(format!("{lacking} AND {nowhere} AS _pgferry_keep_{at}"));
        }
        let joined = match (absent.is_empty(), self.moved) {
            (true, _) => String::new(),
            (false, true) => self.old_rows(),
            (false, false) => self.last_sent(absent),
        };
        let last = format!(
            "SELECT * FROM {} WHERE {} QUALIFY ROW_NUMBER() OVER (PARTITION BY {} ORDER BY {} DESC) = 1",
            self.raw(),
            self.window(),
            self.keys(),
            quote(SEQ)
        );
        format!("SELECT {} FROM ({last}) AS l{joined}", columns.join(", "))
    }

    fn keys(&self) -> String {
        self.table.key.iter().map(|&at| self.column(at)).collect::<Vec<_>>().join(", ")
    }

    /// Whether a staged row lacks a column.
    fn lacks(&self, row: &str, at: usize) -> String {
        let name = literal(&self.table.columns[at].name);
        format!("coalesce(contains({row}{}, {name}), false)", quote(UNCHANGED))
    }

    /// The values that were sent last, of keys with more than one staged row; each in a list, as NULL is a value, too.
    fn last_sent(&self, absent: &[usize]) -> String {
        let values: Vec<String> = absent
            .iter()
            .map(|&at| {
                let (column, lacking) = (self.column(at), self.lacks("", at));
                format!("arg_max([{column}], IF({lacking}, NULL, {})) AS v{at}", quote(SEQ))
            })
            .collect();
        let keys = self.keys();
        format!(
            " LEFT JOIN (SELECT {keys}, {} FROM {} WHERE {} AND {} = 'upsert' GROUP BY {keys} HAVING count(*) > 1) AS f ON {}",
            values.join(", "),
            self.raw(),
            self.window(),
            quote(OP),
            self.keys_equal("l", "f")
        )
    }

    /// The table's own rows, under the keys that the staged ones had.
    fn old_rows(&self) -> String {
        let equal = self.table.key.iter().enumerate().map(|(number, &at)| {
            let (column, origin) = (self.column(at), quote(&format!("{ORIGIN}{number}")));
            format!("o.{column} = coalesce(l.{origin}, l.{column})")
        });
        let equal: Vec<String> = equal.collect();
        format!(" LEFT JOIN {} AS o ON {}", qualified(&self.target()), equal.join(" AND "))
    }

    /// Refuses a merge of rows whose absent values are nowhere.
    async fn verify_rows_there(&self, doing: &str, source: &str, absent: &[usize]) -> Result<()> {
        let absent: Vec<String> = absent.iter().map(|at| format!("s._pgferry_keep_{at}")).collect();
        let absent = absent.join(" OR ");
        let live = "s._pgferry_op <> 'delete'";
        let asked = if self.moved {
            // The table was asked for them already, under their old keys.
            format!("SELECT count(*) FROM ({source}) AS s WHERE {live} AND ({absent})")
        } else {
            format!(
                "SELECT count(*) FROM ({source}) AS s LEFT JOIN {} AS t ON {} WHERE {live} AND ({absent}) AND t.{} IS NULL",
                qualified(&self.target()),
                self.keys_equal("t", "s"),
                self.column(self.table.key[0])
            )
        };
        let rows = self.holder.ask(doing, &asked).await?;
        match first_number(&rows) {
            0 => Ok(()),
            _ => Err(row_missing(&self.table.name, &self.target())),
        }
    }

    fn statement(&self, target: &str, source: &str, absent: &[usize]) -> String {
        let all: Vec<usize> = (0..self.table.columns.len()).collect();
        let names: Vec<String> = all.iter().map(|&at| self.column(at)).collect();
        let values: Vec<String> = names.iter().map(|name| format!("s.{name}")).collect();
        let set: Vec<String> = all
            .iter()
            .map(|&at| {
                let column = self.column(at);
                if absent.contains(&at) {
                    format!("t.{column} = IF(s._pgferry_keep_{at}, t.{column}, s.{column})")
                } else {
                    format!("t.{column} = s.{column}")
                }
            })
            .collect();
        format!(
            "MERGE INTO {target} AS t USING ({source}) AS s ON {} \
             WHEN MATCHED AND s._pgferry_op = 'delete' THEN DELETE \
             WHEN MATCHED THEN UPDATE SET {} \
             WHEN NOT MATCHED AND s._pgferry_op <> 'delete' THEN INSERT ({}) VALUES ({})",
            self.keys_equal("t", "s"),
            set.join(", "),
            names.join(", "),
            values.join(", ")
        )
    }
}

/// Changes of a table without a key cannot be merged; the engine does not send any.
fn without_key(table: &Table) -> Error {
    Error::table_broken(
        REFUSED,
        table.name.clone(),
        format!("{}: changes without a key cannot be merged", table.name),
    )
    .with_cure(mistake().resync_table(&table.name))
}
