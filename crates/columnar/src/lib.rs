//! Wire values to Arrow arrays: one column of many tuples at a time.
//!
//! ```text
//!   Batch + tuples + column ──Encoding──> ArrayRef         text and binary cells alike, the form is per cell
//! ```
//!
//! Invariants: a value arrives exactly or the answer is [`Unfit`]; nothing is rounded, clamped or replaced. No message holds a value.

mod encode;

pub use encode::{Encoding, Unfit, encode_column};
