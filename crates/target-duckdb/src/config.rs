//! What a user sets about a DuckDB file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// DuckDB's memory limit where the user sets none: loading needs some 150 MB per chunk in flight and a delivery's join a few
/// tens; 512 MB keeps four loads of 20 columns from spilling, twice that leaves room for long values.
const MEMORY_LIMIT_DEFAULT: &str = "1GB";

/// A DuckDB file as a target.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DuckdbConfig {
    /// The database file; made when it is not there (its folder is not).
    pub path: PathBuf,
    /// The schema that takes every table; default: each table's own target schema. Made when it is not there.
    #[serde(default)]
    pub schema: Option<String>,
    /// DuckDB's memory limit, such as `512MB`.
    #[serde(default = "memory_limit_default")]
    pub memory_limit: String,
    /// DuckDB's threads; default: as many as the machine has processors.
    #[serde(default)]
    pub threads: Option<u16>,
    /// How many chunks are loaded at the same time.
    #[serde(default = "loads_max_default")]
    pub loads_max: usize,
    /// Types that the user wants instead of the mapping's: source table (`schema.table`), column, type; a type is `string`
    /// (also `varchar`) or `decimal(precision,scale)`.
    #[serde(default)]
    pub column_types: BTreeMap<String, BTreeMap<String, String>>,
}

fn memory_limit_default() -> String {
    MEMORY_LIMIT_DEFAULT.to_owned()
}

fn loads_max_default() -> usize {
    4
}

impl DuckdbConfig {
    /// A file with the default settings.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        DuckdbConfig {
            path: path.into(),
            schema: None,
            memory_limit: memory_limit_default(),
            threads: None,
            loads_max: loads_max_default(),
            column_types: BTreeMap::new(),
        }
    }
}
