//! Every value of every case goes into every server and is there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

use pgferry_testkit::Server;
use pgferry_testkit::server::MAJORS;
use pgferry_testkit::types::{EXTENSION_SQL, cases, create_sql, extension_cases, insert_sql};

#[tokio::test]
async fn every_server_takes_every_value_of_its_cases() {
    for major in MAJORS {
        let server = Server::shared(major).await.unwrap();
        let database = server.create_database().await.unwrap();
        let client = database.client().await.unwrap();
        let mut all = cases(server.version_num());
        client.batch_execute(EXTENSION_SQL).await.unwrap();
        all.extend(extension_cases());
        client.batch_execute(&create_sql("every_type", &all, server.version_num())).await.unwrap();
        // One value at a time first, so that a refused one is named.
        let mut refused = Vec::new();
        for case in &all {
            for value in &case.values {
                let sql = format!("INSERT INTO every_type (id, {}) VALUES (0, {value})", case.column);
                if let Err(error) = client.batch_execute(&format!("BEGIN; {sql}; ROLLBACK")).await {
                    refused.push(format!(
                        "{major} {} {value}: {}",
                        case.sql_type,
                        error.as_db_error().unwrap()
                    ));
                    client.batch_execute("ROLLBACK").await.unwrap();
                }
            }
        }
        assert!(refused.is_empty(), "{}", refused.join("\n"));
        let rows = insert_sql("every_type", &all);
        for row in &rows {
            client.batch_execute(row).await.unwrap();
        }
        for case in &all {
            let sql = format!(
                "SELECT count(*) FROM every_type WHERE {0}::text IS NOT NULL AND id <= {1}",
                case.column,
                case.values.len()
            );
            let filled: i64 = client.query_one(&sql, &[]).await.unwrap().get(0);
            assert_eq!(filled as usize, case.values.len(), "{major} {}", case.column);
        }
        assert!(all.len() > 100, "{major} has {} cases", all.len());
    }
}

#[test]
fn newer_servers_have_more_cases_and_names_are_unique() {
    let counts: Vec<usize> = [100_023, 130_023, 150_000, 180_004].map(|version| cases(version).len()).into();
    assert!(counts[0] < counts[1] && counts[1] < counts[2] && counts[2] == counts[3], "{counts:?}");
    let mut names: Vec<&str> = cases(180_004).iter().map(|case| case.column).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), counts[3]);
}
