//! Any bytes as a stream of frames. Seeds: `tests/recorded/`, for example `cargo fuzz run frames ../tests/recorded`.
#![no_main]

#[path = "../drive.rs"]
mod drive;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = drive::run(bytes, &drive::Pace::default());
});
