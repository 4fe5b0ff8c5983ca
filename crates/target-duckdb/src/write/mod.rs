//! Where rows leave: chunks of a snapshot (`load`) and deliveries of changes (`apply`).

pub(crate) mod apply;
pub(crate) mod load;

use duckdb::Appender;
use pgferry_model::{Result, Table, TableName};

use crate::database::Session;
use crate::mapping::Mapped;
use crate::schema;

/// A table with all that writing to it needs.
pub(crate) struct Destined {
    pub(crate) target: TableName,
    pub(crate) columns: Vec<Mapped>,
    /// The target's columns are in the source's order.
    pub(crate) in_order: bool,
}

/// An appender to a table of the file, in this session's transaction.
pub(crate) fn appender<'a>(session: &'a Session, table: &Table, to: &Destined) -> Result<Appender<'a>> {
    let connection = &session.connection;
    let (schema, name) = (&to.target.schema, &to.target.name);
    let appender = if to.in_order {
        connection.appender_to_db(name, schema)
    } else {
        let names: Vec<&str> = schema::column_names(table).collect();
        connection.appender_with_columns_to_db(name, schema, &names)
    };
    appender.map_err(|failure| session.database.failed(&failure, &format!("writing to {}", to.target)))
}
