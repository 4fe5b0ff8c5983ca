//! How the memory that a run may use for rows is divided.
//!
//! ```text
//!   stream:    one delivery being written │ one being filled          half each
//!   snapshot:  per worker: one batch being read │ two waiting │ one being encoded
//! ```
//!
//! Reading stops when a share is used up (backpressure reaches the source through its socket); nothing is dropped.

use crate::{Limits, Settings};

/// Batches of one snapshot worker that can be in memory at once: read, waiting twice, encoded.
const BATCHES_PER_WORKER: usize = 4;
/// Smaller batches cost more per row than they save in memory.
const SNAPSHOT_BATCH_BYTES_MIN: usize = 64 << 10;
/// A batch is encoded column by column: one that stays in the processor's cache takes a fifth less time than one of 4 MiB.
const SNAPSHOT_BATCH_BYTES_MAX: usize = 1 << 20;

/// The assembler's share.
pub(crate) fn stream_limits(settings: &Settings) -> Limits {
    let buffer_bytes_max = (settings.buffer_bytes_max / 2).max(1);
    Limits {
        batch_bytes_max: settings.batch_bytes_max.min(buffer_bytes_max),
        batch_rows_max: settings.batch_rows_max.max(1),
        buffer_bytes_max,
    }
}

/// Bytes of one snapshot batch when `workers` copy at once.
pub(crate) fn snapshot_batch_bytes(settings: &Settings, workers: usize) -> usize {
    (settings.buffer_bytes_max / (workers.max(1) * BATCHES_PER_WORKER))
        .clamp(SNAPSHOT_BATCH_BYTES_MIN, SNAPSHOT_BATCH_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_exceed_the_whole() {
        let settings = Settings { buffer_bytes_max: 64 << 20, ..Settings::default() };
        assert_eq!(stream_limits(&settings).buffer_bytes_max * 2, 64 << 20);
        assert!(stream_limits(&settings).batch_bytes_max <= stream_limits(&settings).buffer_bytes_max);
        for workers in [1, 4, 16] {
            assert!(snapshot_batch_bytes(&settings, workers) * workers * BATCHES_PER_WORKER <= 64 << 20);
        }
    }
}
