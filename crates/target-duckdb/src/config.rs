//! What a user says of a DuckDB target.

use std::collections::HashMap;
use std::path::PathBuf;

/// A DuckDB file as a target of one task.
#[derive(Clone, Debug)]
pub struct DuckdbConfig {
    /// The file; made when it is missing.
    pub path: PathBuf,
    /// Puts every table into this schema; `None`: the source's schema names.
    pub schema: Option<String>,
    /// DuckDB's own memory, such as `1GB`; apart from pgferry's.
    pub memory_limit: String,
    /// DuckDB's threads; 0: as many as the machine has.
    pub threads: usize,
    /// Columns whose target type the user sets, by source schema, table and column: `string` or `decimal(p,s)`.
    pub type_overrides: HashMap<(String, String, String), String>,
}

impl DuckdbConfig {
    /// A file with the defaults.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        DuckdbConfig {
            path: path.into(),
            schema: None,
            // Four workers' row groups of wide tables and a delivery's staging fit well; the default, 80 % of the machine, is not ours to take.
            memory_limit: "1GB".to_owned(),
            threads: 0,
            type_overrides: HashMap::new(),
        }
    }
}
