//! The program between a real PostgreSQL and Databend's engine: every way in, what users say of columns, and who reads the tables.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod choices;
mod lag;
mod reading;
mod scene;
mod ways_in;
