//! Every type with its edge values: exact in the target, or the table is set aside and says why.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use pgferry_testkit::types;
use pgferry_trial::duckdb_file::guarded;
pub(crate) use pgferry_trial::duckdb_file::text_overrides;

use crate::scene::{MAJORS, Scene};

/// A table per type; a table per value where a value may set its table aside.
fn tables(major: u32) -> Vec<(String, String, Vec<&'static str>)> {
    let mut tables = Vec::new();
    for case in types::cases(major * 10_000) {
        if guarded(&case) {
            for (at, value) in case.values.iter().enumerate() {
                tables.push((format!("{}_{at}", case.column), case.sql_type.to_owned(), vec![*value]));
            }
        } else {
            tables.push((case.column.to_owned(), case.sql_type.to_owned(), case.values.clone()));
        }
    }
    tables
}

/// Whether DuckDB's native type cannot hold a value, by the rules that `docs/reference/type-mapping-duckdb.md` states.
fn does_not_fit(sql_type: &str, value: &str) -> bool {
    let bare = value.trim_matches('\'');
    let year: Option<u32> = bare.split('-').next().and_then(|year| year.parse().ok());
    if sql_type.starts_with("timestamp") && !sql_type.ends_with("[]") {
        return !bare.contains("BC") && year.is_some_and(|year| year > 294_246);
    }
    // Declared with two dimensions, or with more digits than a DECIMAL holds: carried as text.
    let digits = sql_type.strip_prefix("numeric(").and_then(|rest| rest.split(',').next()?.parse().ok());
    if sql_type.ends_with("[][]") || digits.is_some_and(|digits: u32| digits > 38) {
        return false;
    }
    if sql_type.ends_with("[]") {
        return bare.starts_with('[') || bare.contains("{{");
    }
    sql_type.starts_with("numeric(") && bare.contains("NaN")
}

async fn every_type(major: u32) -> Result<()> {
    let scene = Scene::new(major, "").await?;
    let client = scene.database.client().await?;
    // The enums, domains and composites that the cases name come with the kit's own table of all of them.
    let all = types::cases(major * 10_000);
    client.batch_execute(&types::create_sql("public.with_types", &all, major * 10_000)).await?;
    client.batch_execute("DROP TABLE public.with_types").await?;
    let tables = tables(major);
    for (name, sql_type, values) in &tables {
        let sql_type = sql_type.as_str();
        let create = format!("CREATE TABLE public.{name} (id int PRIMARY KEY, v {sql_type})");
        client.batch_execute(&create).await.with_context(|| create.clone())?;
        for (id, value) in values.iter().enumerate() {
            let insert = format!("INSERT INTO public.{name} VALUES ({id}, ({value})::{sql_type})");
            client.batch_execute(&insert).await.with_context(|| insert.clone())?;
        }
    }
    let first = scene.ferry().run().await?;
    for (name, sql_type, values) in &tables {
        for (id, value) in values.iter().enumerate() {
            client
                .batch_execute(&format!(
                    "INSERT INTO public.{name} VALUES ({}, NULL), ({}, ({value})::{sql_type}); \
                     UPDATE public.{name} SET v = NULL WHERE id = {id}; UPDATE public.{name} SET v = ({value})::{sql_type} WHERE id = {id}",
                    1_000 + id,
                    2_000 + id
                ))
                .await?;
        }
    }
    let second = scene.ferry().run().await?;
    let expected: BTreeSet<&str> = tables
        .iter()
        .filter(|(_, sql_type, values)| values.iter().any(|value| does_not_fit(sql_type, value)))
        .map(|(name, ..)| name.as_str())
        .collect();
    let told = format!("{}{}", second.stdout, second.stderr);
    let set_aside: BTreeSet<&str> = tables
        .iter()
        .map(|(name, ..)| name.as_str())
        .filter(|name| told.contains(&format!("set aside: public.{name}\n")))
        .collect();
    ensure!(
        set_aside == expected,
        "set aside: {set_aside:?}\nexpected: {expected:?}\n{}\n{told}",
        first.stdout
    );
    ensure!(tables.len() > 80, "{} tables are too few", tables.len());
    let report = scene.compare(true, |table| !expected.contains(table.name.as_str())).await?;
    report.assert_equal()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_value_of_every_type_is_exact_or_sets_its_table_aside() -> Result<()> {
    for major in MAJORS {
        every_type(major).await.with_context(|| format!("PostgreSQL {major}"))?;
    }
    Ok(())
}
