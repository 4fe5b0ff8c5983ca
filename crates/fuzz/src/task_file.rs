//! Any text as a task file: read, validated, and every fault told with a line that the text has.

use std::path::Path;

use pgferry_task::spec::read_text;

pub(crate) fn read(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match read_text(Path::new("task.toml"), text) {
        Ok(spec) => drop(format!("{spec:?}")),
        Err(faults) => {
            assert!(!faults.faults.is_empty(), "refused without a fault");
            let lines = text.lines().count().max(1);
            for fault in &faults.faults {
                assert!(fault.line <= lines + 1, "a fault in line {} of {lines}", fault.line);
                assert!(!fault.problem.is_empty(), "a fault without words");
            }
            drop(faults.to_string());
        }
    }
}
