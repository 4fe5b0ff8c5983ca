//! PostgreSQL's wire values to Arrow arrays, column by column, and Arrow-side values back to PostgreSQL's text.
//!
//! ```text
//!   Batch ──(tuples, column)──> text.rs | binary.rs | list.rs ──> builder.rs ──> ArrayRef      encode.rs
//!   native value ──> PostgreSQL's output text                                                  format.rs
//! ```
//!
//! Invariants: a value is taken over exactly or refused as [`Unfit`]; nothing is rounded, clipped or replaced. No
//! allocation per cell. No value appears in an error.
//!
//! Why own date arithmetic: PostgreSQL's dates run from 4713 BC to 5874897 AD; the usual crates stop near year 9999.

mod binary;
mod builder;
mod calendar;
mod encode;
mod encoding;
pub mod format;
mod list;
mod text;

pub use encode::{Tuples, encode_column};
pub use encoding::{Encoding, Reason, Unfit};
