//! The source's side: tables of PostgreSQL read through COPY, in order, as one snapshot.
//!
//! ```text
//!   REPEATABLE READ transaction ──COPY (SELECT … ORDER BY text of key) TO STDOUT──> lines ──> rows
//! ```
//!
//! Invariant: all tables of one [`SourceRows`] are read from one snapshot. The server sorts (on its disk if need be); here
//! at most one network buffer and one row are held.
//!
//! Why `format('%s', …)` in ORDER BY: a cast to text differs from the output function for char(n), inet and boolean. Why
//! `num_nulls`: IS NULL holds for a composite value whose fields are all NULL, which is not NULL.

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use tokio_postgres::{Client, CopyOutStream};

use super::{ComparedTable, Row, RowStream, TargetRows, parse_line};

/// Settings that make a value's text depend on the value alone. 3 is the most `extra_float_digits` takes; from 12 on
/// it means the shortest exact text.
pub(crate) const SETTINGS: &str = "SET datestyle = 'ISO, YMD'; SET timezone = 'UTC'; SET intervalstyle = 'postgres'; \
    SET extra_float_digits = 3; SET bytea_output = 'hex'; SET client_encoding = 'UTF8'; SET xmloption = 'content'; \
    SET search_path = pg_catalog; SET lock_timeout = '30s'; \
    BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Reads tables of a PostgreSQL database. Also a target's side, when the target is PostgreSQL.
pub struct SourceRows {
    client: Client,
}

impl SourceRows {
    /// Takes a session over; its snapshot begins with the first table read.
    pub async fn new(client: Client) -> Result<Self> {
        client.batch_execute(SETTINGS).await.context("cannot prepare the session")?;
        Ok(Self { client })
    }

    /// The tables of the database, as of the snapshot.
    pub async fn tables(&self) -> Result<Vec<ComparedTable>> {
        tables(&self.client).await
    }
}

#[async_trait]
impl TargetRows for SourceRows {
    async fn rows<'a>(&'a mut self, table: &ComparedTable) -> Result<Option<RowStream<'a>>> {
        let qualified = format!("{}.{}", quoted(&table.schema), quoted(&table.name));
        let row = self.client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&qualified]).await?;
        if !row.get::<_, bool>(0) {
            return Ok(None);
        }
        let columns: Vec<String> = table.columns.iter().map(|name| quoted(name)).collect();
        let order: Vec<String> = table
            .order()
            .into_iter()
            .filter_map(|at| columns.get(at))
            .map(|name| format!("num_nulls(t.{name}), format('%s', t.{name}) COLLATE \"C\""))
            .collect();
        let order = if order.is_empty() { String::new() } else { format!(" ORDER BY {}", order.join(", ")) };
        let list: Vec<String> = columns.iter().map(|name| format!("t.{name}")).collect();
        let sql = format!("COPY (SELECT {} FROM {qualified} AS t{order}) TO STDOUT", list.join(", "));
        let copy = self.client.copy_out(&sql).await.with_context(|| format!("cannot read {table}"))?;
        Ok(Some(lines(copy)))
    }
}

/// Rows of a COPY. A message usually holds one line, but the protocol does not promise it.
fn lines(copy: CopyOutStream) -> RowStream<'static> {
    let state = (Box::pin(copy), BytesMut::new());
    Box::pin(stream::try_unfold(state, |(mut copy, mut held)| async move {
        let mut searched = 0;
        loop {
            if let Some(end) = held[searched..].iter().position(|byte| *byte == b'\n') {
                let line = held.split_to(searched + end);
                held.advance(1);
                let row: Row = parse_line(&line)?;
                return Ok(Some((row, (copy, held))));
            }
            searched = held.len();
            let next: Option<Bytes> = copy.next().await.transpose()?;
            match next {
                Some(bytes) => held.extend_from_slice(&bytes),
                None => {
                    anyhow::ensure!(held.is_empty(), "COPY ended within a line");
                    return Ok(None);
                }
            }
        }
    }))
}

/// An identifier for SQL.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The ordinary and partitioned tables of a database with their columns and primary keys, by schema and name; no
/// partitions (their rows are their parent's) and no system tables.
pub async fn tables(client: &Client) -> Result<Vec<ComparedTable>> {
    let sql = "SELECT n.nspname::text, c.relname::text, \
          ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 \
                AND NOT a.attisdropped ORDER BY a.attnum), \
          ARRAY(SELECT a.attname::text FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place), \
                pg_attribute a WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid \
                AND a.attnum = k.attnum ORDER BY k.place) \
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition \
          AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1, 2";
    let mut tables = Vec::new();
    for row in client.query(sql, &[]).await? {
        let (columns, key): (Vec<String>, Vec<String>) = (row.get(2), row.get(3));
        let key = key.iter().filter_map(|name| columns.iter().position(|column| column == name)).collect();
        tables.push(ComparedTable { schema: row.get(0), name: row.get(1), columns, key });
    }
    Ok(tables)
}
