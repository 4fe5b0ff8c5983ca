//! The list of failpoints is the list of passages in the code: a passage that the list lacks would never be tried.
#![allow(clippy::expect_used, reason = "tests stop at the first surprise")]

use std::collections::BTreeSet;
use std::path::Path;

use pgferry_pipeline::failpoint;

const CALL: &str = "failpoint::pass(";

fn passages(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the repository") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            passages(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            for (at, _) in text.match_indices(CALL) {
                let argument = text[at + CALL.len()..].split(");").next().unwrap_or_default();
                found.extend(argument.split('"').skip(1).step_by(2).map(str::to_owned));
            }
        }
    }
}

#[test]
fn every_passage_in_the_code_is_listed_and_every_listed_one_is_passed() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(crates).expect("the crates") {
        let source = entry.expect("a crate").path().join("src");
        if source.is_dir() {
            passages(&source, &mut found);
        }
    }
    let listed: BTreeSet<String> = failpoint::NAMES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, listed);
    assert_eq!(listed.len(), failpoint::NAMES.len(), "each name is listed once");
}
