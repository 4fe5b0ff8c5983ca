//! Ctrl-C and SIGTERM: the first asks for a graceful stop, the second ends at once.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::errors::{Failure, START_FAILED};
use crate::output::Output;

const EXIT_INTERRUPTED: i32 = 130;
const EXIT_TERMINATED: i32 = 143;

/// A token that the first signal cancels. `last` runs before a second signal ends the process.
pub(crate) fn stop_on_signals(
    output: &Arc<Output>,
    last: impl Fn() + Send + 'static,
) -> Result<CancellationToken, Failure> {
    let no_signals = |failure: std::io::Error| {
        let problem = "cannot listen for signals";
        let cure = pgferry_model::Cure::advice(
            "raise the system's limits for this process, such as open files: ulimit -n",
        );
        let error = pgferry_model::Error::task_broken(START_FAILED, problem).with_cure(cure);
        Failure::from(error.with_origin(failure))
    };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let stop = CancellationToken::new();
    let (token, output) = (stop.clone(), Arc::clone(output));
    tokio::spawn(async move {
        loop {
            let code = tokio::select! {
                _ = interrupt.recv() => EXIT_INTERRUPTED,
                _ = terminate.recv() => EXIT_TERMINATED,
            };
            if token.is_cancelled() {
                last();
                std::process::exit(code);
            }
            output.say("stopping: what is open is finished first; once more ends at once (nothing is lost)");
            token.cancel();
        }
    });
    Ok(stop)
}
