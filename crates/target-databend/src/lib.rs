//! Databend as a target: staged promptly, merged by key, everything of a commit in one transaction.

mod config;
pub mod error;

pub use config::{ColumnChoice, DatabendConfig, Login, Misfit, Mode, Server, ServerParts, Upload};
