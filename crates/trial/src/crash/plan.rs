//! What one seed does: decided by the seed alone, before anything runs.
//!
//! Invariant: the failpoints of `NAMES` take turns, so that as many seeds in a row as there are names try each at least once, at a
//! moment at which a run can meet it.

use std::time::Duration;

use pgferry_pipeline::failpoint;
use pgferry_testkit::random::SeededRandom;

/// When a disturbance comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// A while after the process began, whatever it does by then.
    Start,
    /// While rows are being copied.
    Snapshot,
    /// Between the copy and the stream, or while a start finds its way on what an earlier one left. Told afterwards, never waited for.
    Handover,
    /// While the stream is open.
    Stream,
}

impl Moment {
    /// The word in the summary.
    pub fn word(self) -> &'static str {
        match self {
            Moment::Start => "start and recovery",
            Moment::Snapshot => "snapshot",
            Moment::Handover => "handover",
            Moment::Stream => "stream",
        }
    }
}

/// One run of the program, and how it is disturbed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It aborts at the `nth` passage of a failpoint; ended by force where it does not get there.
    Failpoint { name: &'static str, nth: u32 },
    /// SIGKILL, `after` the moment was reached.
    Kill { moment: Moment, after: Duration },
    /// SIGTERM: it has to end well.
    Stop { moment: Moment, after: Duration },
    /// PostgreSQL ends at once and comes back; the program is killed some time later, or has to go on by itself.
    Shutdown { moment: Moment, after: Duration, killed: bool },
    /// A table's columns change; the run sets it aside. Then `resync`, which aborts at a failpoint if one is named, and again without.
    Columns { failpoint: Option<&'static str>, nth: u32 },
}

/// A seed's settings and steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    /// PostgreSQL's major.
    pub major: u32,
    /// Whether the server is the seed's own.
    pub own_server: bool,
    pub narrow_tables: usize,
    /// Rows of each table before the first run.
    pub rows: u64,
    pub sessions: u64,
    /// Rows of the transactions that are streamed while they are open.
    pub large_rows: u64,
    pub batch_size: u64,
    pub memory_mib: u64,
    pub workers: u64,
    pub sync_interval_ms: u64,
    pub steps: Vec<Step>,
}

/// Where a failpoint can be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the first run of a task.
    First,
    /// While tables are unfinished.
    Copy,
    /// In any run that opens the stream while others write.
    Stream,
    /// With transactions that the server streams while they are open (PostgreSQL 14 and later).
    Streamed,
    /// In a run that finds changed columns.
    Columns,
    /// In `resync`.
    Resync,
    /// In a run that ends well.
    End,
}

fn place(name: &str) -> Place {
    match name {
        "source.after_publication_created" | "source.after_slot_created" | "target.file_made" => Place::First,
        "source.spool_written" | "source.spool_replayed" | "source.mid_transaction" | "target.slice_kept" => {
            Place::Streamed
        }
        "run.before_set_aside" | "run.after_set_aside" => Place::Columns,
        "run.stream_ended" | "target.before_checkpoint" => Place::End,
        _ if name.starts_with("resync.") => Place::Resync,
        _ if name.starts_with("handover.") || name.starts_with("target.load_") => Place::Copy,
        "source.mid_copy" | "source.after_cut_created" => Place::Copy,
        "target.table_created" | "target.begin_before_commit" => Place::Copy,
        _ => Place::Stream,
    }
}

/// Whether a failpoint is met with streamed transactions only: they have to begin after the stream did.
pub(super) fn streamed(name: &str) -> bool {
    place(name) == Place::Streamed
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Plan {
        let random = &mut SeededRandom::member(seed, 0x6b69_6c6c);
        let names = failpoint::NAMES.len() as u64;
        let own = failpoint::NAMES[(seed % names) as usize];
        let own_server = random.chance(9);
        let major = match random.below(100) {
            _ if place(own) == Place::Streamed => 15,
            0..70 => 15,
            70..85 => 18,
            85..95 => 13,
            _ => 10,
        };
        // The first round takes the passage that every run comes to.
        let own_nth = if seed < names { 1 } else { nth(random, own) };
        let mut steps = steps(random, (own, own_nth), own_server);
        steps.truncate(8);
        // Large enough to be kept in files, and more than a delivery holds.
        let streamed = place(own) == Place::Streamed;
        let large_rows = [3_000, 12_000, 25_000][random.index(3)];
        let memory_mib = [4, 4, 16][random.index(3)];
        Plan {
            seed,
            major,
            own_server,
            narrow_tables: random.between(1, 5) as usize,
            rows: [40, 120, 300][random.index(3)],
            sessions: random.between(1, 2),
            large_rows: if streamed { 30_000 } else { large_rows },
            batch_size: [50, 400, 100_000][random.index(3)],
            memory_mib: if streamed { 4 } else { memory_mib },
            workers: [1, 2, 4][random.index(3)],
            sync_interval_ms: [20, 100, 400][random.index(3)],
            steps,
        }
    }
}

/// First what happens while tables are unfinished, then what happens in the stream.
fn steps(random: &mut SeededRandom, (own, nth): (&'static str, u32), own_server: bool) -> Vec<Step> {
    let (mut early, mut late) = (Vec::new(), Vec::new());
    match place(own) {
        Place::First => early.push(Step::Failpoint { name: own, nth: 1 }),
        Place::Copy => {
            // A temporary slot is made only where an earlier run has begun to copy.
            if own == "source.after_cut_created" {
                early.push(Step::Failpoint { name: "handover.after_begin_copy", nth: 1 });
            }
            early.push(Step::Failpoint { name: own, nth });
        }
        Place::Stream | Place::Streamed | Place::End => {
            late.push(Step::Failpoint { name: own, nth });
        }
        Place::Columns | Place::Resync => late.push(Step::Columns { failpoint: Some(own), nth: 1 }),
    }
    for _ in 0..random.below(3) {
        early.push(match random.below(10) {
            0..4 => kill(random, Moment::Snapshot),
            4..7 => kill(random, Moment::Start),
            _ => other(random, &[Place::Copy]),
        });
    }
    for _ in 0..random.between(1, 3) {
        late.push(match random.below(10) {
            0..3 => kill(random, Moment::Stream),
            3..5 => kill(random, Moment::Start),
            5 => Step::Stop { moment: Moment::Stream, after: after(random, 600) },
            _ => other(random, &[Place::Stream, Place::Streamed, Place::End]),
        });
    }
    if own_server {
        let moment = [Moment::Snapshot, Moment::Stream, Moment::Stream][random.index(3)];
        let shutdown = Step::Shutdown { moment, after: after(random, 300), killed: random.chance(50) };
        if moment == Moment::Snapshot { early.insert(0, shutdown) } else { late.insert(0, shutdown) }
    } else if !late.iter().any(|step| matches!(step, Step::Columns { .. })) && random.chance(8) {
        late.push(Step::Columns { failpoint: None, nth: 1 });
    }
    // Several in a row: nothing comes between a kill and the next one but the time to start.
    if random.chance(35) {
        let at = random.index(late.len() + 1);
        for _ in 0..random.between(2, 3) {
            late.insert(at, Step::Kill { moment: Moment::Start, after: after(random, 250) });
        }
    }
    early.append(&mut late);
    early
}

fn kill(random: &mut SeededRandom, moment: Moment) -> Step {
    let most = if moment == Moment::Start { 500 } else { 900 };
    Step::Kill { moment, after: after(random, most) }
}

fn after(random: &mut SeededRandom, most_ms: u64) -> Duration {
    Duration::from_micros(random.below(most_ms * 1_000))
}

fn other(random: &mut SeededRandom, places: &[Place]) -> Step {
    let fitting: Vec<&'static str> =
        failpoint::NAMES.iter().copied().filter(|name| places.contains(&place(name))).collect();
    let name = fitting[random.index(fitting.len())];
    Step::Failpoint { name, nth: nth(random, name) }
}

/// A passage that a run of the trial's size reaches.
fn nth(random: &mut SeededRandom, name: &str) -> u32 {
    let most = match name {
        "run.opened" | "run.prepared" | "source.after_cut_created" | "handover.before_stream" => 1,
        "run.stream_ended" | "target.before_checkpoint" | "target.slice_kept" => 1,
        // Tables are begun together.
        "handover.before_begin_copy" | "handover.after_begin_copy" | "target.begin_before_commit" => 1,
        "source.mid_transaction" | "source.spool_replayed" => 12,
        _ => 4,
    };
    random.between(1, most) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_has_one_plan_and_the_names_take_turns() {
        assert_eq!(Plan::of(7), Plan::of(7));
        let names = failpoint::NAMES.len() as u64;
        let mut tried = BTreeSet::new();
        for seed in 1_000..1_000 + names {
            for step in Plan::of(seed).steps {
                match step {
                    Step::Failpoint { name, .. } | Step::Columns { failpoint: Some(name), .. } => {
                        tried.insert(name);
                    }
                    _ => {}
                }
            }
        }
        assert_eq!(tried.len() as u64, names);
    }

    #[test]
    fn seeds_differ_in_what_they_do() {
        let plans: Vec<Plan> = (0..300).map(Plan::of).collect();
        let share = |holds: &dyn Fn(&Plan) -> bool| plans.iter().filter(|plan| holds(plan)).count();
        assert!((10..60).contains(&share(&|plan| plan.own_server)), "own servers");
        for major in [10, 13, 15, 18] {
            assert!(share(&|plan| plan.major == major) > 5, "PostgreSQL {major}");
        }
        let disturbed: usize = plans.iter().map(|plan| plan.steps.len()).sum();
        assert!(disturbed > 1_000, "{disturbed} steps in 300 seeds");
    }
}
