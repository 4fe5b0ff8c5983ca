//! Every type with its edge values, as a real server's catalog, COPY and output functions give them.

use anyhow::{Context, Result, ensure};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use pgferry_model::{CellFormat, DataType};
use pgferry_postgres::{ConnectionConfig, Purpose, Session, read_tables};
use tokio_postgres::Client;

use crate::Server;
use crate::compare::{SETTINGS, parse_line};
use crate::server::MAJORS;
use crate::types::{EXTENSION_SQL, cases, create_sql, extension_cases, insert_sql};

/// A value in both forms; no binary form where the type does not send one.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) text: String,
    binary: Option<Vec<u8>>,
}

impl Value {
    /// The value in the form that is wanted, as a snapshot brings it.
    pub(super) fn cell(&self, wanted: CellFormat) -> (CellFormat, &[u8]) {
        match &self.binary {
            Some(bytes) if wanted == CellFormat::Binary => (CellFormat::Binary, bytes),
            _ => (CellFormat::Text, self.text.as_bytes()),
        }
    }
}

/// A type, a column of which is in the source.
pub(super) struct SourceType {
    pub(super) column: &'static str,
    pub(super) data_type: DataType,
    pub(super) values: Vec<Value>,
    /// Whether the source lets it be a key.
    pub(super) keys: bool,
}

/// The source; its database is gone when it is dropped.
pub(super) struct Source {
    client: Client,
    _database: crate::Database,
    pub(super) types: Vec<SourceType>,
}

impl Source {
    /// Every type of the newest server.
    pub(super) async fn read() -> Result<Source> {
        let newest = MAJORS.into_iter().max().context("a server")?;
        let server = Server::shared(newest).await?;
        let database = server.create_database().await?;
        let client = database.client().await?;
        let version = server.version_num();
        client.batch_execute(EXTENSION_SQL).await?;
        let mut all = cases(version);
        all.extend(extension_cases());
        client.batch_execute(&create_sql("every_type", &all, version)).await?;
        for row in insert_sql("every_type", &all) {
            client.batch_execute(&row).await?;
        }
        let mut session =
            Session::connect(&ConnectionConfig::from_url(&database.url())?, Purpose::Query).await?;
        let tables = read_tables(&mut session, |name| &*name.name == "every_type").await?;
        session.close().await?;
        let table = tables.first().context("the table is not in the catalog")?;
        let keys = keyable(&client, all.iter().map(|case| case.column)).await?;
        client.batch_execute(SETTINGS).await?;
        let mut types = Vec::with_capacity(all.len());
        for (case, keys) in all.iter().zip(keys) {
            let column = table.columns.iter().find(|column| column.name == case.column);
            let data_type = column.context("a column is not in the catalog")?.data_type.clone();
            let values = values(&client, case.column, data_type.sends_binary).await?;
            types.push(SourceType { column: case.column, data_type, values, keys });
        }
        Ok(Source { client, _database: database, types })
    }

    /// Whether the source calls two texts of a type equal.
    pub(super) async fn equal(&self, data_type: &DataType, left: &str, right: &str) -> Result<bool> {
        let literal = |text: &str| format!("'{}'::{}", text.replace('\'', "''"), data_type.name);
        let sql = format!("SELECT {} = {}", literal(left), literal(right));
        Ok(self.client.query_one(&sql, &[]).await?.get(0))
    }
}

/// Which columns can be in a primary key: those whose type has an order, and none that an index entry has no room for.
async fn keyable(client: &Client, columns: impl Iterator<Item = &'static str>) -> Result<Vec<bool>> {
    let mut all = Vec::new();
    client.batch_execute("CREATE TABLE empty (LIKE every_type)").await?;
    for column in columns {
        all.push(client.batch_execute(&format!("CREATE UNIQUE INDEX ON empty ({column})")).await.is_ok());
    }
    Ok(all)
}

async fn values(client: &Client, column: &str, sends_binary: bool) -> Result<Vec<Value>> {
    let select =
        format!("SELECT {column} FROM public.every_type WHERE num_nonnulls({column}) = 1 ORDER BY id");
    let text = copied(client, &format!("COPY ({select}) TO STDOUT")).await?;
    let texts = text.split(|byte| *byte == b'\n').filter(|_| !text.is_empty());
    let mut all = Vec::new();
    for line in texts {
        let cell = parse_line(line)?.pop().flatten().context("a value is NULL")?;
        all.push(Value { text: cell, binary: None });
    }
    // After the last newline there is no line.
    all.pop();
    if sends_binary {
        let binary = copied(client, &format!("COPY ({select}) TO STDOUT (FORMAT binary)")).await?;
        let fields = binary_fields(binary).with_context(|| format!("the binary form of {column}"))?;
        ensure!(
            fields.len() == all.len(),
            "{column} has {} values and {} binary ones",
            all.len(),
            fields.len()
        );
        for (value, field) in all.iter_mut().zip(fields) {
            value.binary = Some(field);
        }
    }
    Ok(all)
}

async fn copied(client: &Client, sql: &str) -> Result<Bytes> {
    let mut stream = Box::pin(client.copy_out(sql).await?);
    let mut all = BytesMut::new();
    while let Some(bytes) = stream.next().await {
        all.extend_from_slice(&bytes?);
    }
    Ok(all.freeze())
}

/// The fields of a COPY of one column (PostgreSQL docs, "COPY", section "Binary Format").
fn binary_fields(mut bytes: Bytes) -> Result<Vec<Vec<u8>>> {
    let signature = b"PGCOPY\n\xff\r\n\0";
    ensure!(bytes.starts_with(signature) && bytes.len() >= 19, "it has no signature");
    bytes.advance(signature.len() + 4);
    let extension = bytes.get_u32() as usize;
    bytes.advance(extension);
    let mut all = Vec::new();
    loop {
        ensure!(bytes.len() >= 2, "it ends early");
        match bytes.get_i16() {
            -1 => return Ok(all),
            1 => {
                ensure!(bytes.len() >= 4, "it ends early");
                let length = usize::try_from(bytes.get_i32()).context("a value is NULL")?;
                ensure!(bytes.len() >= length, "it ends early");
                all.push(bytes.split_to(length).to_vec());
            }
            fields => anyhow::bail!("a row has {fields} fields"),
        }
    }
}
