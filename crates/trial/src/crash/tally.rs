//! What was done and found, per seed and in sum.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use pgferry_pipeline::failpoint;

use super::plan::Moment;

/// Counts of one seed or of many.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub seeds: u64,
    pub failed: u64,
    /// Seeds by PostgreSQL's major.
    pub majors: BTreeMap<u32, u64>,
    /// Ends at a failpoint, by its name.
    pub met: BTreeMap<&'static str, u64>,
    /// Armed failpoints that the run did not come to.
    pub not_met: u64,
    /// SIGKILL, by what the program was doing.
    pub killed: BTreeMap<Moment, u64>,
    pub stopped: u64,
    /// Times that the server could not decode its own log, and everything was copied again.
    pub undecodable: u64,
    pub shutdowns: u64,
    pub starts: u64,
    pub transactions: u64,
    pub rows_changed: u64,
    pub rows_compared: u64,
    pub differences: u64,
    /// Of all seeds together.
    pub took: Duration,
}

impl Tally {
    /// Ends by force.
    pub fn kills(&self) -> u64 {
        self.met.values().sum::<u64>() + self.killed.values().sum::<u64>()
    }

    /// Counts an end at a failpoint.
    pub fn count_met(&mut self, name: &'static str) {
        *self.met.entry(name).or_default() += 1;
    }

    /// Adds what another counted.
    pub fn add(&mut self, other: &Tally) {
        self.seeds += other.seeds;
        self.failed += other.failed;
        for (major, count) in &other.majors {
            *self.majors.entry(*major).or_default() += count;
        }
        for (name, count) in &other.met {
            *self.met.entry(name).or_default() += count;
        }
        self.not_met += other.not_met;
        for (moment, count) in &other.killed {
            *self.killed.entry(*moment).or_default() += count;
        }
        self.stopped += other.stopped;
        self.undecodable += other.undecodable;
        self.shutdowns += other.shutdowns;
        self.starts += other.starts;
        self.transactions += other.transactions;
        self.rows_changed += other.rows_changed;
        self.rows_compared += other.rows_compared;
        self.differences += other.differences;
        self.took += other.took;
    }

    /// Failpoints at which no run has ended.
    pub fn never_met(&self) -> Vec<&'static str> {
        failpoint::NAMES.iter().copied().filter(|name| !self.met.contains_key(name)).collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let majors: Vec<String> =
            self.majors.iter().map(|(major, count)| format!("{count} on {major}")).collect();
        let failpoints: u64 = self.met.values().sum();
        writeln!(f, "seeds                        {:>9}   {}", self.seeds, majors.join(", "))?;
        writeln!(f, "seeds that failed            {:>9}", self.failed)?;
        writeln!(f, "kills                        {:>9}", self.kills())?;
        writeln!(
            f,
            "  at failpoints              {failpoints:>9}   armed and not reached: {}",
            self.not_met
        )?;
        for moment in [Moment::Start, Moment::Snapshot, Moment::Handover, Moment::Stream] {
            let count = self.killed.get(&moment).copied().unwrap_or(0);
            writeln!(f, "  at random: {:<16}{count:>9}", moment.word())?;
        }
        writeln!(f, "PostgreSQL ended at once     {:>9}", self.shutdowns)?;
        writeln!(f, "asked to stop                {:>9}", self.stopped)?;
        writeln!(
            f,
            "log that PostgreSQL could not decode {:>2}   cured by a new slot and copy",
            self.undecodable
        )?;
        writeln!(f, "starts of the program        {:>9}", self.starts)?;
        writeln!(f, "transactions known committed {:>9}", self.transactions)?;
        writeln!(f, "rows changed at the source   {:>9}", self.rows_changed)?;
        writeln!(f, "rows compared                {:>9}", self.rows_compared)?;
        writeln!(f, "differences                  {:>9}", self.differences)?;
        writeln!(f, "seconds, all seeds together  {:>9}", self.took.as_secs())?;
        writeln!(f, "\n{:<34} ends there", "failpoint")?;
        for name in failpoint::NAMES {
            writeln!(f, "{name:<34} {:>9}", self.met.get(name).copied().unwrap_or(0))?;
        }
        Ok(())
    }
}
