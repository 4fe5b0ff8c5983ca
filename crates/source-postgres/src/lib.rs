//! Reads a PostgreSQL server: the snapshot by COPY, the changes by logical replication.

pub mod decode;
pub mod replication;
