//! The published mapping table is what the code does.

use pgferry_target_duckdb::map_type;
use pgferry_testkit::published_types::{data_type, kinds, verify, words};

#[test]
fn the_published_table_is_what_the_code_does() {
    let mut table = String::from("| PostgreSQL | DuckDB | values | note |\n|---|---|---|---|\n");
    for (name, kind) in kinds() {
        let mapping = map_type(&data_type("x", kind), None);
        let fidelity = words(mapping.fidelity);
        table.push_str(&format!("| {name} | {} | {fidelity} | {} |\n", mapping.name, mapping.note));
    }
    verify("duckdb", &table).unwrap();
}
