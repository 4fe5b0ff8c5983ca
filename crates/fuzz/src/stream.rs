//! Any bytes as a stream of pgoutput's messages: decoded, put into commit order, assembled, read back.

#[path = "../../source-postgres/tests/drive/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of the source")]
mod drive;

use drive::Pace;

/// Frames with their lengths before them, as in the recordings. A transaction cut into slices has to hold what a whole one does.
pub(crate) fn pgoutput(bytes: &[u8]) {
    let whole = drive::run(bytes, &Pace::default());
    let sliced = drive::run(bytes, &Pace { buffer_bytes_max: 256, ..Pace::default() });
    if let (Ok(whole), Ok(sliced)) = (whole, sliced) {
        assert_eq!(whole.lines, sliced.lines, "slices hold other changes");
    }
}
