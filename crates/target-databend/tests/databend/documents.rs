//! The published mapping table is what the code does.

use anyhow::Result;
use pgferry_target_databend::map_type;
use pgferry_testkit::published_types::{data_type, kinds, verify, words};

#[test]
fn the_published_table_is_what_the_code_does() -> Result<()> {
    let mut table =
        String::from("| PostgreSQL | Databend | in a key | values | note |\n|---|---|---|---|---|\n");
    for (name, kind) in kinds() {
        let (mapping, key) = (
            map_type(&data_type("x", kind.clone()), None, false),
            map_type(&data_type("x", kind), None, true),
        );
        let in_key = if key.name == mapping.name { "" } else { key.name.as_str() };
        let fidelity = words(mapping.fidelity);
        table
            .push_str(&format!("| {name} | {} | {in_key} | {fidelity} | {} |\n", mapping.name, mapping.note));
    }
    verify("databend", &table)
}
