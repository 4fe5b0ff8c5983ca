//! From a task file to a running task: reads it, builds its source and target, checks, previews and plans.
//!
//! Start reading at [`spec`].

pub mod spec;
