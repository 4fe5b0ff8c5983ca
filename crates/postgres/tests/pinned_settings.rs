//! Whatever a database's settings are, every session reads the same text forms and no time limit ends it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgferry_postgres::{ConnectionConfig, Purpose, Session, read_tables};
use pgferry_testkit::{Database, Server};

const MAJORS: [u32; 4] = [10, 13, 15, 18];
const PURPOSES: [Purpose; 3] = [Purpose::Query, Purpose::Copy, Purpose::Replication];

async fn session(database: &Database, purpose: Purpose) -> Result<Session> {
    let config = ConnectionConfig::new("127.0.0.1", database.server().port(), database.name(), "postgres");
    Ok(Session::connect(&config, purpose).await?)
}

async fn set_against_us(database: &Database) -> Result<()> {
    let mut settings = vec![
        ("DateStyle", "German"),
        ("TimeZone", "Asia/Kathmandu"),
        ("IntervalStyle", "iso_8601"),
        ("extra_float_digits", "-10"),
        ("bytea_output", "escape"),
        ("standard_conforming_strings", "off"),
        ("xmloption", "document"),
        ("search_path", "trap"),
        ("quote_all_identifiers", "on"),
        ("client_encoding", "LATIN1"),
        ("lock_timeout", "300ms"),
        ("statement_timeout", "300ms"),
        ("idle_in_transaction_session_timeout", "300ms"),
    ];
    if database.server().major() >= 14 {
        settings.push(("idle_session_timeout", "300ms"));
    }
    if database.server().major() >= 17 {
        settings.push(("transaction_timeout", "300ms"));
    }
    for (name, value) in settings {
        database.execute(&format!("ALTER DATABASE {} SET {name} = '{value}'", database.name())).await?;
    }
    Ok(())
}

#[tokio::test]
async fn text_forms_do_not_depend_on_the_database() -> Result<()> {
    for major in MAJORS {
        let database = Server::shared(major).await?.create_database().await?;
        database
            .execute(
                "CREATE SCHEMA trap; CREATE FUNCTION trap.now() RETURNS text LANGUAGE sql AS $$ SELECT 'trapped'::text $$; \
                 CREATE TABLE t (id int PRIMARY KEY, tags int[], mood text)",
            )
            .await?;
        set_against_us(&database).await?;
        for purpose in PURPOSES {
            let mut session = session(&database, purpose).await?;
            let rows = session
                .simple_query(
                    "SELECT date '2024-02-29', timestamptz '2024-02-29 12:00:00+02', interval '1 day 2 hours', \
                     float8 '0.1' + float8 '0.2', bytea '\\x00ff', 'a\\b', xml 'two<a/>', 'Mäuse €'",
                )
                .await?;
            let row: Vec<&str> = rows[0].iter().map(|value| value.as_deref().unwrap_or("NULL")).collect();
            let wanted = [
                "2024-02-29",
                "2024-02-29 10:00:00+00",
                "1 day 02:00:00",
                // The shortest exact form exists from 12; below, as many digits as it ever takes.
                if major >= 12 { "0.30000000000000004" } else { "0.300000000000000044" },
                "\\x00ff",
                "a\\b",
                "two<a/>",
                "Mäuse €",
            ];
            ensure!(row == wanted, "{purpose:?} on {major}: {row:?}");
        }
        let tables = read_tables(&mut session(&database, Purpose::Query).await?, |_| true).await?;
        let names: Vec<&str> = tables[0].columns.iter().map(|column| &*column.data_type.name).collect();
        ensure!(names == ["integer", "integer[]", "text"], "on {major}: {names:?}");
        let output = &tables[0].columns[0].data_type.output_function;
        ensure!(&**output == "pg_catalog.int4out", "on {major}: {output}");
    }
    Ok(())
}

#[tokio::test]
async fn no_time_limit_of_the_database_ends_a_session() -> Result<()> {
    for major in MAJORS {
        let database = Server::shared(major).await?.create_database().await?;
        set_against_us(&database).await?;
        let mut open = Vec::new();
        for purpose in PURPOSES {
            let mut session = session(&database, purpose).await?;
            session.simple_query("BEGIN").await?;
            open.push(session);
        }
        let mut idle = session(&database, Purpose::Replication).await?;
        tokio::time::sleep(Duration::from_millis(600)).await;
        for session in open.iter_mut().chain([&mut idle]) {
            session
                .simple_query("SELECT pg_catalog.pg_sleep(0.4)")
                .await
                .with_context(|| format!("on {major}"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_session_that_the_server_ends_says_why() -> Result<()> {
    for major in [10, 18] {
        let database = Server::shared(major).await?.create_database().await?;
        let mut session = session(&database, Purpose::Query).await?;
        let pid = session.backend_pid();
        let ending = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            database.execute(&format!("SELECT pg_terminate_backend({pid})")).await
        };
        let (asked, ended) =
            tokio::join!(session.simple_query("SELECT pg_catalog.pg_sleep(30)"), ended(ending));
        ended?;
        let failure = asked.err().context("the session was ended")?;
        let text = format!("{failure} {}", failure.cause().unwrap_or_default());
        ensure!(text.contains("57P01"), "on {major}: {text}");
        ensure!(failure.class() == pgferry_model::Class::Transient);
    }
    Ok(())
}

async fn ended(ending: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::time::timeout(Duration::from_secs(10), ending).await?
}
