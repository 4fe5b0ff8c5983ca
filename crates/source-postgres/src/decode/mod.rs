//! Turns the bytes of a logical decoding plugin into messages and says which table and columns they are about.
//!
//! ```text
//!   frame ──> pgoutput.rs ──> message (borrows the frame) ──> relation_cache.rs ──> table and projection of its columns
//! ```
//!
//! Invariants: functions of bytes only, no clock, no network; whatever the bytes are, the answer is a message or an error
//! with the code [`PROTOCOL`], never a panic, and no memory is taken on the word of a length field.

pub mod pgoutput;
pub mod relation_cache;

use pgferry_model::{Code, Cure, Error};

/// The server sent bytes that do not follow the protocol that was asked for.
///
/// Of class `TaskBroken`: the same bytes would come again after a reconnect, so a retry would only loop.
pub const PROTOCOL: Code = Code::new("source.protocol");

/// An error of the code [`PROTOCOL`]; `problem` names message kinds and offsets, never values.
#[cold]
#[inline(never)]
pub(crate) fn protocol_error(problem: impl Into<String>) -> Error {
    Error::task_broken(PROTOCOL, problem)
        .with_cause("the bytes do not follow the logical replication protocol that was asked for; a pooler or proxy between, or a server that speaks another dialect, can do that")
        .with_cure(Cure::advice(
            "connect to the server itself, without a pooler or proxy; if it comes back, report the server's version and this message",
        ))
}
