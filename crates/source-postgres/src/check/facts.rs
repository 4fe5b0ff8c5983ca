//! What the checks look at, gathered in a few set-based queries.
//!
//! Invariant: gathering fails only when the server cannot be asked; what is missing or wrong on the server is a fact, not an error.

use std::collections::{BTreeSet, HashMap};

use pgferry_model::{Error, Result, Table, TableName};
use pgferry_postgres::{CatalogTable, Purpose, quote_literal, read_tables};

use crate::config::PostgresSourceConfig;
use crate::control::{PostgresControl, column, optional};
use crate::refused;
use crate::replication::publication::{self, Missing, Publication};
use crate::replication::slot::{self, SlotState};
use crate::selection::{Selection, Wanted, select};

/// Settings that checks read, in the unit of `pg_settings.setting`.
const SETTINGS: &str = "'wal_level', 'max_wal_senders', 'max_replication_slots', 'max_connections', \
    'superuser_reserved_connections', 'reserved_connections', 'max_slot_wal_keep_size', 'wal_sender_timeout', \
    'logical_decoding_work_mem', 'hot_standby_feedback', 'idle_replication_slot_timeout'";

/// A slot of the server.
#[derive(Clone, Debug)]
pub(super) struct ServerSlot {
    pub(super) name: String,
    pub(super) active: bool,
    /// Bytes of log that it holds back.
    pub(super) retained: u64,
}

/// An open transaction that a slot's creation would wait for.
#[derive(Clone, Debug)]
pub(super) struct OpenTransaction {
    pub(super) pid: String,
    pub(super) user: String,
    pub(super) open_for: String,
    pub(super) state: String,
}

/// What the role may do with a table, and what else is special about it.
#[derive(Clone, Debug, Default)]
pub(super) struct TableFacts {
    /// Columns that it may not read.
    pub(super) unreadable: Vec<String>,
    pub(super) may_use_schema: bool,
    /// Row-level security applies to this role.
    pub(super) row_security: bool,
    /// Inheritance children, of a table that is not partitioned.
    pub(super) children: u32,
    /// Sets of columns that a unique, immediate, whole index covers.
    pub(super) unique: Vec<Vec<String>>,
}

/// Everything that the checks look at.
pub(super) struct Facts {
    pub(super) config: PostgresSourceConfig,
    pub(super) version: u32,
    pub(super) version_text: String,
    pub(super) user: String,
    pub(super) in_recovery: bool,
    pub(super) settings: HashMap<String, String>,
    pub(super) may_replicate: bool,
    /// Whether a replication connection gets through; `None`: none is needed.
    pub(super) stream_connection: Option<std::result::Result<(), Error>>,
    pub(super) walsenders: u64,
    pub(super) connections: u64,
    pub(super) slots: Vec<ServerSlot>,
    pub(super) slot: Option<SlotState>,
    /// Transactions since the slot's catalog horizon.
    pub(super) slot_age: Option<i64>,
    pub(super) slot_user: Error,
    pub(super) publication: Option<Publication>,
    pub(super) missing: Vec<Missing>,
    pub(super) statement: String,
    /// Whether the role may run the statement.
    pub(super) may_publish: bool,
    pub(super) transactions: Vec<OpenTransaction>,
    pub(super) selection: std::result::Result<Selection, Error>,
    pub(super) catalog: Vec<CatalogTable>,
    pub(super) tables: HashMap<u32, TableFacts>,
    /// Conditions that the server refuses, with its words.
    pub(super) refused_conditions: Vec<(TableName, String, Error)>,
    pub(super) conditions: usize,
}

impl Facts {
    pub(super) fn streams(&self) -> bool {
        self.config.sync_mode != pgferry_pipeline::SyncMode::Snapshot
    }

    pub(super) fn number(&self, setting: &str) -> Option<i64> {
        self.settings.get(setting)?.parse().ok()
    }

    /// The catalog's entry of a selected table.
    pub(super) fn entry(&self, oid: u32) -> Option<&CatalogTable> {
        self.catalog.iter().find(|table| table.oid == oid)
    }

    /// Selected tables with the catalog's entry of each.
    pub(super) fn selected(&self) -> impl Iterator<Item = (&Table, &CatalogTable)> {
        let pairs =
            self.selection.iter().flat_map(|selection| selection.tables.iter().zip(&selection.bindings));
        pairs.filter_map(|(table, (oid, _))| Some((table.as_ref(), self.entry(*oid)?)))
    }

    /// What is known of a relation besides.
    pub(super) fn of(&self, oid: u32) -> Option<&TableFacts> {
        self.tables.get(&oid)
    }

    /// Bytes that the copy has to read.
    pub(super) fn copy_bytes(&self) -> u64 {
        self.selection.iter().flat_map(|selection| &selection.tables).map(|table| table.bytes).sum()
    }
}

/// Opens a connection as the change stream's is, and ends it. Where the slot is being read, one has got through already, and
/// may be the last that the server has.
async fn stream_connection(
    control: &PostgresControl,
    slot: Option<&SlotState>,
) -> Option<std::result::Result<(), Error>> {
    let read = slot.is_some_and(|slot| slot.active_pid.is_some());
    if read || control.config.sync_mode == pgferry_pipeline::SyncMode::Snapshot {
        return None;
    }
    Some(match control.connect(Purpose::Replication).await {
        Ok(session) => session.close().await,
        Err(failure) => Err(failure),
    })
}

/// Asks the server.
pub(super) async fn gather(control: &PostgresControl) -> Result<Facts> {
    let config = control.config.clone();
    let version = control.server_version_num().await?;
    let server = server(control).await?;
    let publication = publication::find(control, &config.replication.publication).await?;
    let (catalog, selection) = selected(control, &config, publication.as_ref(), version).await?;
    let needed = selection.as_ref().map(|selection| selection.published.clone()).unwrap_or_default();
    let missing = publication::missing(publication.as_ref(), &needed);
    let statement = publication::statement(control, publication.is_some(), &missing).await?;
    let may_publish = publication::may_make(control, publication.is_some(), &missing).await?;
    let selected = selection.iter().flat_map(|found| found.bindings.iter().map(|(oid, _)| *oid));
    let heaps = catalog.iter().flat_map(|table| table.heaps.iter().map(|heap| heap.oid));
    let oids: BTreeSet<u32> = selected.chain(heaps).collect();
    let tables = table_facts(control, &oids, version).await?;
    let (conditions, refused_conditions) = explain(control, &config).await?;
    let slot_name = &config.replication.slot;
    let slot = slot::find(control, slot_name).await?;
    Ok(Facts {
        version,
        version_text: column(&server, 0, 0)?,
        user: column(&server, 0, 1)?,
        in_recovery: optional(&server, 0, 2).as_deref() == Some("t"),
        may_replicate: optional(&server, 0, 3).as_deref() == Some("t"),
        walsenders: column(&server, 0, 4)?.parse().unwrap_or(0),
        connections: column(&server, 0, 5)?.parse().unwrap_or(0),
        settings: settings(control).await?,
        slots: slots(control).await?,
        stream_connection: stream_connection(control, slot.as_ref()).await,
        slot,
        slot_age: slot_age(control, slot_name).await?,
        slot_user: slot::active(control, slot_name).await,
        publication,
        missing,
        statement,
        may_publish,
        transactions: transactions(control).await?,
        selection,
        catalog,
        tables,
        refused_conditions,
        conditions,
        config,
    })
}

async fn server(control: &PostgresControl) -> Result<Vec<pgferry_postgres::ResultRow>> {
    control
        .ask(
            "SELECT pg_catalog.current_setting('server_version'), current_user, pg_catalog.pg_is_in_recovery(), \
             (SELECT r.rolsuper OR r.rolreplication FROM pg_catalog.pg_roles r WHERE r.rolname = current_user) \
             OR EXISTS (SELECT 1 FROM pg_catalog.pg_roles g WHERE g.rolname IN ('rds_replication', 'rds_superuser') \
             AND pg_catalog.pg_has_role(current_user, g.oid, 'USAGE')), \
             (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication), \
             (SELECT pg_catalog.sum(d.numbackends) FROM pg_catalog.pg_stat_database d)",
        )
        .await
}

async fn settings(control: &PostgresControl) -> Result<HashMap<String, String>> {
    let rows = control
        .ask(&format!("SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ({SETTINGS})"))
        .await?;
    let pair = |row: Vec<Option<String>>| {
        let mut row = row.into_iter();
        Some((row.next()??, row.next()??))
    };
    Ok(rows.into_iter().filter_map(pair).collect())
}

async fn slots(control: &PostgresControl) -> Result<Vec<ServerSlot>> {
    let rows = control
        .ask(
            "SELECT s.slot_name, s.active, coalesce(pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery() \
             THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, s.restart_lsn), 0)::bigint \
             FROM pg_catalog.pg_replication_slots s ORDER BY 3 DESC",
        )
        .await?;
    let slot = |row: &Vec<Option<String>>| match row.as_slice() {
        [Some(name), Some(active), Some(retained)] => Some(ServerSlot {
            name: name.clone(),
            active: active == "t",
            retained: retained.parse().unwrap_or(0),
        }),
        _ => None,
    };
    Ok(rows.iter().filter_map(slot).collect())
}

async fn slot_age(control: &PostgresControl, name: &str) -> Result<Option<i64>> {
    let rows = control
        .ask(&format!(
            "SELECT pg_catalog.age(s.catalog_xmin) FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = {}",
            quote_literal(name)
        ))
        .await?;
    Ok(optional(&rows, 0, 0).and_then(|age| age.parse().ok()))
}

/// Transactions that have written something and are open for longer than a moment.
async fn transactions(control: &PostgresControl) -> Result<Vec<OpenTransaction>> {
    let rows = control
        .ask(
            "SELECT a.pid::text, coalesce(a.usename, '?'), pg_catalog.date_trunc('second', pg_catalog.now() - a.xact_start), \
             coalesce(a.state, '?') FROM pg_catalog.pg_stat_activity a \
             WHERE a.backend_xid IS NOT NULL AND a.pid <> pg_catalog.pg_backend_pid() \
             AND a.xact_start < pg_catalog.now() - interval '5 seconds' \
             UNION ALL SELECT 'prepared ' || p.gid, p.owner, pg_catalog.date_trunc('second', pg_catalog.now() - p.prepared), \
             'prepared' FROM pg_catalog.pg_prepared_xacts p \
             ORDER BY 3 DESC LIMIT 10",
        )
        .await?;
    let transaction = |row: Vec<Option<String>>| {
        let mut row = row.into_iter();
        Some(OpenTransaction {
            pid: row.next()??,
            user: row.next()??,
            open_for: row.next()??,
            state: row.next()??,
        })
    };
    Ok(rows.into_iter().filter_map(transaction).collect())
}

/// The catalog and what the task selects of it; relations that it cannot carry are in the catalog, too.
async fn selected(
    control: &PostgresControl,
    config: &PostgresSourceConfig,
    publication: Option<&Publication>,
    version: u32,
) -> Result<(Vec<CatalogTable>, std::result::Result<Selection, Error>)> {
    let wanted = match Wanted::new(config, publication, true) {
        Ok(wanted) => wanted,
        Err(failure) => return Ok((Vec::new(), Err(failure))),
    };
    let mut session = control.connect(pgferry_postgres::Purpose::Query).await?;
    let catalog = read_tables(&mut session, |name| wanted.accepts(name)).await?;
    session.close().await?;
    let restricts = config.sync_mode != pgferry_pipeline::SyncMode::Snapshot
        || config.replication.from == crate::SelectFrom::Publication;
    let selection = select(config, &wanted, catalog.clone(), publication.filter(|_| restricts), version);
    Ok((catalog, selection))
}

async fn table_facts(
    control: &PostgresControl,
    oids: &BTreeSet<u32>,
    version: u32,
) -> Result<HashMap<u32, TableFacts>> {
    if oids.is_empty() {
        return Ok(HashMap::new());
    }
    let list: Vec<String> = oids.iter().map(u32::to_string).collect();
    let list = list.join(",");
    let rows = control
        .ask(&format!(
            "SELECT c.oid, pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'), c.relrowsecurity AND NOT \
             (SELECT r.rolsuper OR r.rolbypassrls FROM pg_catalog.pg_roles r WHERE r.rolname = current_user) \
             AND (c.relforcerowsecurity OR NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')), \
             CASE WHEN c.relkind = 'r' THEN (SELECT pg_catalog.count(*) FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid) \
             ELSE 0 END FROM pg_catalog.pg_class c WHERE c.oid IN ({list})"
        ))
        .await?;
    let mut facts = HashMap::new();
    for (at, _) in rows.iter().enumerate() {
        let yes = |column: usize| optional(&rows, at, column).as_deref() == Some("t");
        let table = TableFacts {
            unreadable: Vec::new(),
            may_use_schema: yes(1),
            row_security: yes(2),
            children: optional(&rows, at, 3).and_then(|count| count.parse().ok()).unwrap_or(0),
            unique: Vec::new(),
        };
        facts.insert(column(&rows, at, 0)?.parse().unwrap_or(0), table);
    }
    let rows = control
        .ask(&format!(
            "SELECT a.attrelid, a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid IN ({list}) AND a.attnum > 0 \
             AND NOT a.attisdropped AND NOT pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT')"
        ))
        .await?;
    for (at, _) in rows.iter().enumerate() {
        if let Some(table) = facts.get_mut(&column(&rows, at, 0)?.parse().unwrap_or(0)) {
            table.unreadable.push(column(&rows, at, 1)?);
        }
    }
    unique_columns(control, &list, version, &mut facts).await?;
    Ok(facts)
}

async fn unique_columns(
    control: &PostgresControl,
    list: &str,
    version: u32,
    facts: &mut HashMap<u32, TableFacts>,
) -> Result<()> {
    let key_columns = if version >= 110_000 { "i.indnkeyatts" } else { "i.indnatts" };
    let rows = control
        .ask(&format!(
            "SELECT i.indrelid, i.indexrelid, a.attname FROM pg_catalog.pg_index i, \
             LATERAL pg_catalog.unnest(i.indkey::smallint[]) WITH ORDINALITY k(attnum, place), pg_catalog.pg_attribute a \
             WHERE i.indrelid IN ({list}) AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL \
             AND i.indexprs IS NULL AND a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.place <= {key_columns} \
             ORDER BY 1, 2, k.place"
        ))
        .await?;
    let mut last: Option<String> = None;
    for (at, _) in rows.iter().enumerate() {
        let Some(table) = facts.get_mut(&column(&rows, at, 0)?.parse().unwrap_or(0)) else { continue };
        let index = column(&rows, at, 1)?;
        if last.as_ref() != Some(&index) {
            table.unique.push(Vec::new());
            last = Some(index);
        }
        if let Some(columns) = table.unique.last_mut() {
            columns.push(column(&rows, at, 2)?);
        }
    }
    Ok(())
}

/// Has the server plan every `snapshot_where`.
async fn explain(
    control: &PostgresControl,
    config: &PostgresSourceConfig,
) -> Result<(usize, Vec<(TableName, String, Error)>)> {
    let mut refusals = Vec::new();
    let conditions =
        config.tables.iter().filter_map(|table| Some((table.source.clone()?, table.snapshot_where.clone()?)));
    let conditions: Vec<(TableName, String)> = conditions.collect();
    for (table, condition) in &conditions {
        let sql = format!("EXPLAIN SELECT FROM {} WHERE ({condition})", publication::qualified(table));
        let Err(failure) = control.ask(&sql).await else { continue };
        match refused::words(&failure).map(|words| words.sqlstate.as_str()) {
            None => return Err(failure),
            // Of the table, not of the condition: other checks tell it.
            Some("42P01" | "42501" | "3F000") => {}
            Some(_) => refusals.push((table.clone(), condition.clone(), failure)),
        }
    }
    Ok((conditions.len(), refusals))
}
