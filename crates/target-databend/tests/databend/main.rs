//! Databend as a target, on the real engine behind Databend's protocol.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod connecting;
mod contract;
mod documents;
mod faults;
mod history;
mod making;
mod merging;
mod stopping;
mod turns;
mod values;
mod wide;
