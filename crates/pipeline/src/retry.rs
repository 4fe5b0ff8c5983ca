//! How long to wait before another try, and when to give up.
//!
//! Waits double from 100 ms with up to half of each as jitter. The budget is time without any progress: as soon as something
//! became durable since the last error, both start anew, so a run of months survives any number of disconnects. A table that
//! was rewritten while it was copied is tried again soon, however often that was: nothing is down, and the next one may come as soon.

use std::time::{Duration, Instant};

use pgferry_model::{Class, Cure, Error, Result};
use rand::Rng;

use crate::{Settings, error};

const WAIT_MIN: Duration = Duration::from_millis(100);
/// For a table that the snapshot no longer shows.
const REWRITTEN_WAIT_MAX: Duration = Duration::from_millis(200);

/// The state of retrying one thing.
#[derive(Debug)]
pub(crate) struct Retry {
    wait_max: Duration,
    budget: Duration,
    attempt: u32,
    failing_since: Option<Instant>,
    progress_seen: u64,
}

impl Retry {
    pub(crate) fn new(settings: &Settings) -> Self {
        Retry {
            wait_max: settings.retry_wait_max,
            budget: settings.retry_budget,
            attempt: 0,
            failing_since: None,
            progress_seen: 0,
        }
    }

    /// How long to wait after an error; the error itself where it is not transient, and an error of class `TaskBroken` when
    /// the budget is used up. `progress` is any counter that rises when something became durable.
    pub(crate) fn after(&mut self, failure: Error, progress: u64) -> Result<Duration> {
        if failure.class() != Class::Transient {
            return Err(failure);
        }
        if progress != self.progress_seen {
            self.progress_seen = progress;
            self.attempt = 0;
            self.failing_since = None;
        }
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if self.attempt > 0 && since.elapsed() >= self.budget {
            return Err(exhausted(failure, since.elapsed()));
        }
        let exponential = WAIT_MIN.saturating_mul(1 << self.attempt.min(16));
        self.attempt += 1;
        let rewritten = failure.code() == error::SNAPSHOT_LOST && failure.table().is_some();
        let wait = exponential.min(if rewritten { REWRITTEN_WAIT_MAX } else { self.wait_max });
        let wait = wait.mul_f64(rand::rng().random_range(0.5..=1.0));
        tracing::warn!(
            code = failure.code().as_str(),
            attempt = self.attempt,
            retry_in_ms = wait.as_millis() as u64,
            cause = failure.cause().unwrap_or_default(),
            "{failure}"
        );
        Ok(wait)
    }
}

fn exhausted(failure: Error, elapsed: Duration) -> Error {
    let cure = failure.cure().cloned().unwrap_or_else(|| {
        Cure::advice("mend what the cause names, then start the task again: it goes on where it stopped")
    });
    let problem = format!("gave up after {} s of retries without progress: {failure}", elapsed.as_secs());
    Error::task_broken(error::RETRIES_EXHAUSTED, problem).with_cure(cure).with_origin(failure)
}

#[cfg(test)]
mod tests {
    use pgferry_model::TableName;

    use super::*;

    fn transient() -> Error {
        Error::transient(error::COPY_INTERRUPTED, "x")
    }

    #[test]
    fn waits_grow_to_the_maximum_and_start_anew_on_progress() {
        let settings = Settings { retry_wait_max: Duration::from_secs(2), ..Settings::default() };
        let mut retry = Retry::new(&settings);
        let first = retry.after(transient(), 0).expect("within the budget");
        assert!(first <= WAIT_MIN);
        for _ in 0..20 {
            let wait = retry.after(transient(), 0).expect("within the budget");
            assert!(wait <= Duration::from_secs(2));
        }
        assert!(retry.after(transient(), 0).expect("late") >= Duration::from_secs(1));
        assert!(retry.after(transient(), 1).expect("after progress") <= WAIT_MIN);
    }

    #[test]
    fn a_table_that_is_rewritten_again_and_again_is_tried_soon() {
        let mut retry = Retry::new(&Settings::default());
        let lost = || Error::transient(error::SNAPSHOT_LOST, "x");
        let table = || TableName::new("public", "t");
        for _ in 0..9 {
            let wait = retry.after(lost().with_table(table()), 0).expect("within the budget");
            assert!(wait <= REWRITTEN_WAIT_MAX);
        }
        assert!(retry.after(lost(), 0).expect("within the budget") > REWRITTEN_WAIT_MAX);
    }

    #[test]
    fn the_budget_ends_and_other_classes_are_not_retried() {
        let settings = Settings { retry_budget: Duration::ZERO, ..Settings::default() };
        let mut retry = Retry::new(&settings);
        assert!(retry.after(transient(), 0).is_ok(), "one retry is always made");
        let end = retry.after(transient(), 0).expect_err("used up");
        assert_eq!((end.code(), end.class()), (error::RETRIES_EXHAUSTED, Class::TaskBroken));
        let broken = Error::task_broken(error::NO_TABLE_LEFT, "y");
        assert_eq!(retry.after(broken, 9).expect_err("as it is").code(), error::NO_TABLE_LEFT);
    }
}
