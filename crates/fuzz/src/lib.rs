//! What pgferry reads from others, given anything at all: no panic, no room for what has not arrived, no hang.
//!
//! ```text
//!   corpus/NAME/* ──> TARGETS[NAME](bytes)      in `cargo test` as it is; in `cargo xtask fuzz` as the seed of libFuzzer
//! ```
//!
//! Invariant: a target is a function of its bytes; nothing is kept between two inputs, nothing is read but the input.
//! An input that libFuzzer finds becomes a test of the crate that it broke, by its meaning; here it stays only as seed.

mod bounded;
mod copy;
mod stream;
mod task_file;
mod wire;

pub use bounded::Bounded;

/// Reads an input; panics where something breaks.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also the name of its folder of seeds.
pub const TARGETS: &[(&str, Target)] = &[
    ("pgoutput", stream::pgoutput),
    ("copy-binary", copy::binary),
    ("copy-text", copy::text),
    ("wire", wire::server),
    ("lsn", wire::lsn),
    ("task-file", task_file::read),
];

/// Runs a target on an input within its bounds of memory.
///
/// # Panics
/// When the input breaks something, which is what is looked for.
pub fn run(target: Target, input: &[u8]) {
    let before = bounded::live_bytes();
    bounded::limit(before + bounded::INPUT_BYTES_MAX);
    target(input);
    bounded::limit(usize::MAX);
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use super::{Bounded, TARGETS, run};

    #[global_allocator]
    static ALLOCATOR: Bounded = Bounded;

    #[test]
    fn every_input_of_the_corpus_is_read_or_refused() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        let mut folders: Vec<_> = std::fs::read_dir(&corpus)
            .expect("a corpus")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .collect();
        folders.sort_unstable();
        let mut names: Vec<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        names.sort_unstable();
        assert_eq!(folders, names);
        for (name, target) in TARGETS {
            let inputs: Vec<_> = std::fs::read_dir(corpus.join(name))
                .unwrap_or_else(|failure| panic!("{name} has no corpus: {failure}"))
                .map(|entry| std::fs::read(entry.expect("an entry").path()).expect("an input"))
                .collect();
            assert!(inputs.len() >= 5, "{name}: {} inputs", inputs.len());
            for input in inputs {
                assert!(input.len() <= 4 << 10, "{name}: an input of {} bytes", input.len());
                run(*target, &input);
            }
        }
    }
}
