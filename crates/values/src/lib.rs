//! PostgreSQL's values: from their text and binary forms to numbers, dates and bytes, and back to PostgreSQL's own text.
//!
//! ```text
//!   cell's bytes ──number, time, bytes, array──> native value ──..._text──> the text that the source's output function writes
//! ```
//!
//! Invariants: a value is read exactly or the answer says why not; nothing is rounded, clamped or replaced. A reason never holds a
//! value; it is to be read after "a value".

pub mod array;
pub mod bytes;
pub mod number;
pub mod time;
