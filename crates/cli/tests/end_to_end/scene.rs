//! The scene of every test here: one database, one task file, one DuckDB file.

pub(crate) use pgferry_trial::{MAJORS, Scene, options, undecodable};
