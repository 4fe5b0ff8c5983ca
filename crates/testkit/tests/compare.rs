//! The comparer finds each kind of difference, and none where there is none.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

use anyhow::Result;
use async_trait::async_trait;
use futures_util::stream;
use pgferry_testkit::compare::{
    ComparedTable, DifferenceKind, Report, RowStream, SourceRows, TargetRows, compare,
};
use pgferry_testkit::server::MAJORS;
use pgferry_testkit::types::{cases, create_sql, insert_sql};
use pgferry_testkit::{Database, Server};

async fn compared(source: &Database, target: &Database, most: usize) -> Report {
    let mut source = SourceRows::new(source.client().await.unwrap()).await.unwrap();
    let mut target = SourceRows::new(target.client().await.unwrap()).await.unwrap();
    let tables = source.tables().await.unwrap();
    compare(&mut source, &mut target, &tables, most).await.unwrap()
}

async fn twins(major: u32, sql: &str) -> (Database, Database) {
    let server = Server::shared(major).await.unwrap();
    let (one, two) = (server.create_database().await.unwrap(), server.create_database().await.unwrap());
    one.execute(sql).await.unwrap();
    two.execute(sql).await.unwrap();
    (one, two)
}

const KEYED: &str = "CREATE TABLE t (a int, b text, c text, PRIMARY KEY (b, a)); \
    INSERT INTO t SELECT n, chr(64 + n % 50) || E'\\t\\\\' || n, CASE WHEN n % 3 = 0 THEN NULL ELSE md5(n::text) END \
    FROM generate_series(1, 2000) AS n";

#[tokio::test]
async fn equal_databases_with_every_type_are_equal() {
    for major in MAJORS {
        let version = Server::shared(major).await.unwrap().version_num();
        let all = cases(version);
        let mut sql = create_sql("every_type", &all, version);
        for row in insert_sql("every_type", &all) {
            sql += ";";
            sql += &row;
        }
        // The same rows without a key: ordered by every column of every type.
        sql += ";CREATE TABLE keyless AS SELECT * FROM every_type";
        let (one, two) = twins(major, &sql).await;
        let report = compared(&one, &two, 10).await;
        report.assert_equal().unwrap();
        assert_eq!(report.tables, 2);
        assert!(report.rows > 20, "{major}: {} rows", report.rows);
        // And each single column is looked at.
        for case in &all {
            let sql = format!("UPDATE every_type SET {} = NULL WHERE id = 1", case.column);
            two.execute(&sql).await.unwrap();
        }
        let report = compared(&one, &two, usize::MAX).await;
        assert_eq!(report.found as usize, all.len(), "{major}");
        assert!(report.differences.iter().all(|difference| difference.column.is_some()));
    }
}

#[tokio::test]
async fn a_changed_missing_extra_row_and_table_are_each_found() {
    let (one, two) =
        twins(15, &format!("{KEYED}; CREATE TABLE u (n int PRIMARY KEY); INSERT INTO u VALUES (1)")).await;
    compared(&one, &two, 10).await.assert_equal().unwrap();
    two.execute("UPDATE t SET c = c || ' ' WHERE a = 1").await.unwrap();
    two.execute("UPDATE t SET c = '' WHERE a = 3").await.unwrap();
    two.execute("DELETE FROM t WHERE a IN (5, 2000); INSERT INTO t VALUES (9999, 'zz', NULL), (0, '', ''); DROP TABLE u").await.unwrap();
    let report = compared(&one, &two, 100).await;
    assert_eq!((report.found, report.tables, report.rows), (7, 2, 2000));
    let of = |key: &str| {
        let found =
            report.differences.iter().find(|difference| difference.key.get(1) == Some(&Some(key.to_owned())));
        found.unwrap_or_else(|| panic!("{key}: {:?}", report.differences))
    };
    assert!(
        matches!(&of("1").kind, DifferenceKind::Cell { source: Some(one), target: Some(two) } if format!("{one} ") == *two)
    );
    assert_eq!(of("1").column.as_deref(), Some("c"));
    assert_eq!(of("3").kind, DifferenceKind::Cell { source: None, target: Some(String::new()) });
    assert_eq!(of("5").kind, DifferenceKind::MissingRow);
    assert_eq!(of("2000").kind, DifferenceKind::MissingRow);
    assert_eq!(of("9999").kind, DifferenceKind::ExtraRow);
    assert_eq!(of("0").kind, DifferenceKind::ExtraRow);
    assert!(
        report
            .differences
            .iter()
            .any(|found| found.table == "public.u" && found.kind == DifferenceKind::MissingTable)
    );
    let listed = compared(&one, &two, 2).await;
    assert_eq!((listed.found, listed.differences.len()), (7, 2));
    assert!(listed.assert_equal().is_err());
}

#[tokio::test]
async fn rows_without_a_key_are_counted() {
    let (one, two) = twins(
        18,
        "CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, NULL), (1, NULL), (NULL, 'x'), (2, '')",
    )
    .await;
    compared(&one, &two, 10).await.assert_equal().unwrap();
    two.execute("DELETE FROM t WHERE ctid = '(0,1)'").await.unwrap();
    let report = compared(&one, &two, 10).await;
    assert_eq!(report.found, 1);
    assert_eq!(report.differences[0].kind, DifferenceKind::MissingRow);
    two.execute("INSERT INTO t VALUES (1, NULL), (1, NULL); UPDATE t SET b = NULL WHERE a = 2")
        .await
        .unwrap();
    let kinds: Vec<DifferenceKind> =
        compared(&one, &two, 10).await.differences.into_iter().map(|found| found.kind).collect();
    assert_eq!(kinds, [DifferenceKind::ExtraRow, DifferenceKind::MissingRow, DifferenceKind::ExtraRow]);
}

/// A target that gives fixed rows.
struct Fixed(Vec<&'static str>);

#[async_trait]
impl TargetRows for Fixed {
    async fn rows<'a>(&'a mut self, _: &ComparedTable) -> Result<Option<RowStream<'a>>> {
        let rows: Vec<_> = self.0.iter().map(|cell| Ok(vec![Some((*cell).to_owned())])).collect();
        Ok(Some(Box::pin(stream::iter(rows))))
    }
}

#[tokio::test]
async fn a_target_out_of_order_is_an_error_and_a_key_twice_is_an_extra_row() {
    let server = Server::shared(13).await.unwrap();
    let database = server.create_database().await.unwrap();
    database
        .execute("CREATE TABLE t (n int PRIMARY KEY); INSERT INTO t VALUES (1), (2), (10)")
        .await
        .unwrap();
    let mut source = SourceRows::new(database.client().await.unwrap()).await.unwrap();
    let tables = source.tables().await.unwrap();
    let error = compare(&mut source, &mut Fixed(vec!["1", "2", "10"]), &tables, 9).await.unwrap_err();
    assert!(format!("{error:#}").contains("order"), "{error:#}");
    compare(&mut source, &mut Fixed(vec!["1", "10", "2"]), &tables, 9).await.unwrap().assert_equal().unwrap();
    let twice = compare(&mut source, &mut Fixed(vec!["1", "10", "10", "2"]), &tables, 9).await.unwrap();
    assert_eq!((twice.found, &twice.differences[0].kind), (1, &DifferenceKind::ExtraRow));
}

#[tokio::test]
async fn a_source_is_one_snapshot() {
    let (one, two) =
        twins(10, "CREATE TABLE a (n int PRIMARY KEY); CREATE TABLE b (n int PRIMARY KEY)").await;
    let mut source = SourceRows::new(one.client().await.unwrap()).await.unwrap();
    let tables = source.tables().await.unwrap();
    one.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)").await.unwrap();
    let mut target = SourceRows::new(two.client().await.unwrap()).await.unwrap();
    compare(&mut source, &mut target, &tables, 9).await.unwrap().assert_equal().unwrap();
}
