//! What every measurement takes: how much, how often, against which server; and where its figures go.

use clap::Args;

#[derive(Args, Clone, Debug)]
pub(crate) struct Effort {
    /// Part of the full amount of rows and changes
    #[arg(long, default_value_t = 1.0)]
    pub(crate) scale: f64,
    /// How often each contestant runs; all take turns
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Major version of the server
    #[arg(long, default_value_t = 15)]
    pub(crate) major: u32,
    /// Leave docs/reference/benchmarks.md as it is
    #[arg(long)]
    pub(crate) print_only: bool,
}

impl Effort {
    /// A number at this scale, at least 1.
    pub(crate) fn of(&self, full: u64) -> u64 {
        ((full as f64 * self.scale) as u64).max(1)
    }
}
