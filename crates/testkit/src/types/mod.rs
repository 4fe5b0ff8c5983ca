//! Every PostgreSQL type pgferry carries, with the values at its edges.
//!
//! ```text
//!   cases(version) ──> create_sql: types, domains, one table with a column per case
//!                 └──> insert_sql: row n holds value n of every column; shorter columns hold NULL
//! ```
//!
//! Invariants: a value is an SQL expression that the column takes as it stands; every column has at least one NULL row;
//! a case is listed only for servers that have the type and take all its values.
//!
//! Limits by version: jsonpath 12; xid8, pg_snapshot, regcollation 13; multirange, infinite numeric 14; negative scale 15.

mod numbers;
mod special;
mod structured;
mod text;
mod times;

/// One column type with its edge values.
#[derive(Clone, Debug)]
pub struct TypeCase {
    /// The column's name in the table of [`create_sql`].
    pub column: &'static str,
    /// The type as SQL writes it.
    pub sql_type: &'static str,
    /// SQL expressions.
    pub values: Vec<&'static str>,
    /// What is particular about it; empty when nothing is.
    pub note: &'static str,
}

pub(crate) fn case(column: &'static str, sql_type: &'static str, values: &[&'static str]) -> TypeCase {
    TypeCase { column, sql_type, values: values.to_vec(), note: "" }
}

impl TypeCase {
    pub(crate) fn note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }
}

/// The cases a server of this `server_version_num` has, without extensions.
pub fn cases(version_num: u32) -> Vec<TypeCase> {
    let mut cases = numbers::cases(version_num);
    cases.extend(text::cases());
    cases.extend(times::cases());
    cases.extend(special::cases(version_num));
    cases.extend(structured::cases(version_num));
    cases
}

/// The cases of hstore and citext; a server has them when `pg_available_extensions` lists both.
pub fn extension_cases() -> Vec<TypeCase> {
    vec![
        case(
            "c_hstore",
            "hstore",
            &["''", r#"'a=>1, b=>NULL, "c d"=>"e \"f\" => g"'"#, "hstore('ä', repeat('x', 3000))"],
        ),
        case("c_citext", "citext", &["''", "'MiXed Ä'", "E'tab\\tnew\\nline'"]),
        case("c_hstore_array", "hstore[]", &["ARRAY['a=>1'::hstore, NULL]"]),
    ]
}

/// The statements of [`extension_cases`] that make their types.
pub const EXTENSION_SQL: &str =
    "CREATE EXTENSION IF NOT EXISTS hstore; CREATE EXTENSION IF NOT EXISTS citext;";

/// Makes the types and `table` (SQL, quoted if need be): `id int PRIMARY KEY` and a column per case.
pub fn create_sql(table: &str, cases: &[TypeCase], version_num: u32) -> String {
    let columns: Vec<String> =
        cases.iter().map(|case| format!("  {} {}", case.column, case.sql_type)).collect();
    format!(
        "{}\nCREATE TABLE {table} (\n  id int PRIMARY KEY,\n{}\n);",
        structured::types_sql(version_num),
        columns.join(",\n")
    )
}

/// One INSERT per row; the last row is NULL in every column but the key.
pub fn insert_sql(table: &str, cases: &[TypeCase]) -> Vec<String> {
    let rows = cases.iter().map(|case| case.values.len()).max().unwrap_or(0) + 1;
    (0..rows).map(|row| insert_row_sql(table, cases, row as i64 + 1, row)).collect()
}

/// One INSERT with key `id` and the values of `row` (NULL where a column has fewer).
pub fn insert_row_sql(table: &str, cases: &[TypeCase], id: i64, row: usize) -> String {
    let mut names = vec!["id"];
    let mut values = vec![id.to_string()];
    for case in cases {
        if let Some(value) = case.values.get(row) {
            names.push(case.column);
            values.push((*value).to_owned());
        }
    }
    format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), values.join(", "))
}
