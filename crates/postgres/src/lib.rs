//! Speaks to any PostgreSQL server: configuration, sessions, catalog, quoting. No replication logic, nothing of the pipeline.

mod catalog;
mod config;
mod connection_thread;
pub mod error;
mod explain;
#[doc(hidden)]
pub mod fuzzing;
mod liveness;
mod pgpass;
mod read_ahead;
mod session;
mod sql;
mod startup;
mod stream;
mod tls;
mod url;

pub use catalog::{
    CatalogColumn, CatalogHeap, CatalogMark, CatalogTable, Identity, RelationKind, catalog_is_unchanged,
    mark_catalog, read_tables, read_tables_as_of,
};
pub use config::{ChannelBinding, ConnectionConfig, Secret, SslMode, TlsConfig};
pub use connection_thread::ConnectionThread;
pub use error::{server_error, sqlstate};
pub use read_ahead::ReadAhead;
pub use session::{Frame, Purpose, ResultRow, Session, SessionReader, SessionWriter, result_row};
pub use sql::{quote_identifier, quote_literal};
