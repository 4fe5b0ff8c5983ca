//! The change stream: frames in, committed changes out.

mod project;
pub mod spool;
pub mod transaction;
