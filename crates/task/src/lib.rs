//! From a task file to a running task: reads it, builds its source and target, checks, previews, plans and compares.
//!
//! ```text
//!   spec (text -> Spec) ──> registry (kinds) ──> build ──> pipeline::run
//!                             │
//!                             └──> check, preview, plan, slots, resync, compare
//! ```
//!
//! Start reading at [`spec`], then [`registry`].

pub mod build;
pub mod check;
pub mod compare;
pub mod connect;
pub mod demo;
pub mod plan;
pub mod preview;
pub mod registry;
pub mod resync;
pub mod slots;
pub mod spec;
