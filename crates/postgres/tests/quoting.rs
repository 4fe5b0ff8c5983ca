//! Names and texts of every kind come back from real servers as they were given.

use anyhow::{Context, Result, ensure};
use pgferry_model::TableName;
use pgferry_postgres::{ConnectionConfig, Purpose, Session, quote_identifier, quote_literal, read_tables};
use pgferry_testkit::random::SeededRandom;
use pgferry_testkit::{Database, Server};

const PIECES: [&str; 22] = [
    "\"", "'", "\\", "\\\\'", "''", "\"\"", ".", "$$", "$1", "--", "/*", ";", " ", "\t", "\n", "%s", "ä",
    "€", "🦀", "A", "select", "{",
];

/// Up to 63 bytes, PostgreSQL's limit for names.
fn text(random: &mut SeededRandom) -> String {
    let mut text = String::new();
    for _ in 0..random.between(1, 9) {
        text.push_str(PIECES[random.index(PIECES.len())]);
    }
    text
}

async fn session(database: &Database) -> Result<Session> {
    let config = ConnectionConfig::new("127.0.0.1", database.server().port(), database.name(), "postgres");
    Ok(Session::connect(&config, Purpose::Query).await?)
}

#[tokio::test]
async fn literals_come_back_as_they_were_given() -> Result<()> {
    for major in [10, 18] {
        let database = Server::shared(major).await?.create_database().await?;
        let mut session = session(&database).await?;
        let mut random = SeededRandom::new(7);
        let texts: Vec<String> = (0..2_000).map(|_| text(&mut random)).collect();
        let list: Vec<String> = texts.iter().map(|text| quote_literal(text)).collect();
        let rows = session.simple_query(&format!("VALUES ({})", list.join("),("))).await?;
        ensure!(rows.len() == texts.len());
        for (row, text) in rows.iter().zip(&texts) {
            ensure!(
                row.first().and_then(Option::as_deref) == Some(text.as_str()),
                "{text:?} came back as {row:?}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn names_come_back_from_the_catalog_as_they_were_given() -> Result<()> {
    for major in [10, 18] {
        let database = Server::shared(major).await?.create_database().await?;
        let mut session = session(&database).await?;
        let mut random = SeededRandom::new(11);
        let mut made = Vec::new();
        for number in 0..40 {
            let mut name = || format!("{number}{}", text(&mut random));
            let (schema, table, column) = (name(), name(), name());
            let qualified = format!("{}.{}", quote_identifier(&schema), quote_identifier(&table));
            let column_name = quote_identifier(&column);
            session
                .simple_query(&format!(
                    "CREATE SCHEMA {}; CREATE TABLE {qualified} ({column_name} integer PRIMARY KEY); \
                     INSERT INTO {qualified} ({column_name}) VALUES ({number})",
                    quote_identifier(&schema)
                ))
                .await?;
            made.push((TableName::new(schema, table), column));
        }
        let tables = read_tables(&mut session, |_| true).await?;
        ensure!(tables.len() == made.len());
        for (name, column) in made {
            let found = tables
                .iter()
                .find(|table| table.name == name)
                .with_context(|| format!("{name:?} is missing"))?;
            ensure!(found.columns[0].name == column && found.primary_key == [column]);
        }
    }
    Ok(())
}
