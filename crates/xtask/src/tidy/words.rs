//! Rule `word`: one word for one thing, and no names that say nothing.
//!
//! Looks at identifiers (each part of snake and camel case), comments, texts and file names, in any case, singular
//! and plural. Exceptions are in `crates/xtask/tidy-allow.toml`.

use super::Finding;
use super::allow::AllowList;
use super::tree::Tree;

/// The word, and what to write.
const BANNED: &[(&str, &str)] = &[
    ("util", "the name of what the code owns"),
    ("common", "`shared` or `usual`, or the name of what the code owns"),
    ("helper", "the name of what it does"),
    ("manager", "the duty, such as registry, pool or supervisor"),
    ("core", "the name of what the code owns; `std` for paths"),
    ("misc", "the name of what the code owns"),
    ("sink", "`target`, or `outlet` for the receiving end of a channel"),
    ("dest", "`target`"),
    ("job", "`task`"),
    ("connector", "`source` or `target`"),
    ("mirror", "`copy`, or `keep in step`"),
    ("pipe", "`stream`, `channel` or `pipeline`"),
];

pub(crate) fn check(tree: &Tree, allow: &AllowList) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| file.written_by_us()) {
        for (word, instead) in banned_in(&file.path) {
            if !allow.permits(word, &file.path, &file.path) {
                let what = format!("`{word}` in a file name");
                findings.push(Finding::new(&file.path, 1, "word", what, instead));
            }
        }
        for (number, line) in file.lines() {
            for (word, instead) in banned_in(line) {
                if !allow.permits(word, &file.path, line) {
                    findings.push(Finding::new(&file.path, number, "word", format!("`{word}`"), instead));
                }
            }
        }
    }
    findings.dedup();
    findings
}

fn banned_in(line: &str) -> Vec<(&'static str, &'static str)> {
    let mut found: Vec<(&str, &str)> = parts(line).filter_map(banned).collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn banned(part: &str) -> Option<(&'static str, &'static str)> {
    let is = |word: &str| {
        part.eq_ignore_ascii_case(word)
            || part.strip_suffix(['s', 'S']).is_some_and(|singular| singular.eq_ignore_ascii_case(word))
    };
    BANNED.iter().find(|(word, _)| is(word)).copied()
}

/// The words of a line: runs of ASCII letters, cut where camel case begins a new word (`RowTarget`, `HTTPApi`).
fn parts(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_ascii_alphabetic()).filter(|run| !run.is_empty()).flat_map(|run| {
        let bytes = run.as_bytes();
        let starts_word = |i: &usize| {
            let next_is_lower = bytes.get(i + 1).is_some_and(u8::is_ascii_lowercase);
            bytes[*i].is_ascii_uppercase() && (bytes[i - 1].is_ascii_lowercase() || next_is_lower)
        };
        let mut cuts: Vec<usize> = std::iter::once(0).chain((1..bytes.len()).filter(starts_word)).collect();
        cuts.push(bytes.len());
        cuts.windows(2).map(|pair| &run[pair[0]..pair[1]]).collect::<Vec<_>>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<Finding> {
        check(&Tree::fixture(&[(path, text)]), &AllowList::default())
    }

    #[test]
    fn finds_parts_of_names_comments_and_paths() {
        for line in ["fn row_sink() {}", "struct RowSink;", "// The helpers.", "HTTPPipe", "JOB", "dest"] {
            assert_eq!(findings("a.rs", line).len(), 1, "{line}");
        }
        assert_eq!(findings("crates/x/src/common/mod.rs", "").len(), 1);
    }

    #[test]
    fn passes_longer_words() {
        for line in ["pipeline", "destination", "Stdio::piped()", "score", "mirroring", "utility", "sinking"]
        {
            assert_eq!(findings("a.rs", line), [], "{line}");
        }
    }

    #[test]
    fn says_what_to_write() {
        assert_eq!(
            findings("a.md", "x\na sink")[0].to_string(),
            "a.md:2: word: `sink`; instead: `target`, or `outlet` for the receiving end of a channel"
        );
    }
}
