//! libFuzzer on one target; `PGFERRY_FUZZ_TARGET` names it. Started by `cargo xtask fuzz`.
#![no_main]

use std::sync::LazyLock;

use pgferry_fuzz::{Bounded, TARGETS, Target, run};

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

#[allow(clippy::panic, reason = "nothing to run")]
static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let wanted = std::env::var("PGFERRY_FUZZ_TARGET").unwrap_or_default();
    match TARGETS.iter().find(|(name, _)| *name == wanted) {
        Some((_, target)) => *target,
        None => panic!("PGFERRY_FUZZ_TARGET names no target: {wanted:?}"),
    }
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(*TARGET, bytes));
