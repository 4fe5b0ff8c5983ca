//! The catalog as real servers of four majors tell it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgferry_model::{TableName, TypeKind};
use pgferry_postgres::{
    CatalogTable, ConnectionConfig, Identity, Purpose, RelationKind, Session, catalog_is_unchanged,
    mark_catalog, read_tables,
};
use pgferry_testkit::{Database, Server, ServerOptions};

const MAJORS: [u32; 4] = [10, 13, 15, 18];

async fn session(database: &Database) -> Result<Session> {
    let config = ConnectionConfig::new("127.0.0.1", database.server().port(), database.name(), "postgres");
    Ok(Session::connect(&config, Purpose::Query).await?)
}

async fn read(database: &Database) -> Result<Vec<CatalogTable>> {
    let reading = async { Ok(read_tables(&mut session(database).await?, |_| true).await?) };
    tokio::time::timeout(Duration::from_secs(30), reading).await.context("the catalog took too long")?
}

fn find<'a>(tables: &'a [CatalogTable], schema: &str, name: &str) -> Result<&'a CatalogTable> {
    let wanted = TableName::new(schema, name);
    tables.iter().find(|table| table.name == wanted).with_context(|| format!("{wanted} is missing"))
}

fn kind<'a>(table: &'a CatalogTable, column: &str) -> Result<&'a TypeKind> {
    let found = table.columns.iter().find(|known| known.name == column);
    Ok(&found.with_context(|| format!("column {column} is missing"))?.data_type.kind)
}

#[tokio::test]
async fn types_are_resolved_to_what_is_behind_them() -> Result<()> {
    for major in MAJORS {
        let database = Server::shared(major).await?.create_database().await?;
        database
            .execute(
                "CREATE SCHEMA \"Übel.\"; \
                 CREATE TYPE \"Übel.\".\"Mo\"\"od\" AS ENUM ('a', 'b'); \
                 CREATE TYPE pair AS (a int, b text); \
                 CREATE DOMAIN price AS numeric(10, 2); CREATE DOMAIN net_price AS price; \
                 CREATE DOMAIN prices AS numeric(12, 3)[]; \
                 CREATE TYPE \"text\" AS (not_the_text int); \
                 CREATE TABLE t (e \"Übel.\".\"Mo\"\"od\", es \"Übel.\".\"Mo\"\"od\"[], p pair, d net_price, ds prices, \
                   n numeric, n2 numeric(10, 2), nn numeric(7, 3)[][], v varchar(20)[], iv int2vector, ov oidvector, nm name, \
                   pt point, r int4range, c \"char\", bp char(3), b bit varying(3), other public.\"text\", j jsonb, \
                   ts timestamptz(3), mac macaddr8, gone int); \
                 ALTER TABLE t DROP COLUMN gone",
            )
            .await?;
        let tables = read(&database).await?;
        let table = find(&tables, "public", "t")?;
        let numeric = |precision, scale| TypeKind::Numeric { precision_and_scale: Some((precision, scale)) };
        ensure!(*kind(table, "e")? == TypeKind::Enum && *kind(table, "p")? == TypeKind::Composite);
        ensure!(*kind(table, "d")? == numeric(10, 2), "a domain over a domain keeps its modifier on {major}");
        ensure!(*kind(table, "n")? == TypeKind::Numeric { precision_and_scale: None });
        let element = |column: &str| match kind(table, column) {
            Ok(TypeKind::Array(element, dimensions)) => Some((element.kind.clone(), *dimensions)),
            _ => None,
        };
        ensure!(element("es") == Some((TypeKind::Enum, 1)), "{:?}", kind(table, "es"));
        ensure!(element("nn") == Some((numeric(7, 3), 2)), "{:?}", kind(table, "nn"));
        ensure!(element("ds") == Some((numeric(12, 3), 1)), "{:?}", kind(table, "ds"));
        ensure!(element("v") == Some((TypeKind::Text, 1)), "{:?}", kind(table, "v"));
        for (column, wanted) in [
            ("iv", TypeKind::Other),
            ("ov", TypeKind::Other),
            ("pt", TypeKind::Other),
            ("nm", TypeKind::Text),
            ("r", TypeKind::Range),
            ("c", TypeKind::SingleByte),
            ("bp", TypeKind::FixedText),
            ("b", TypeKind::Bits),
            ("other", TypeKind::Composite),
            ("j", TypeKind::Jsonb),
            ("ts", TypeKind::TimestampTz),
            ("mac", TypeKind::Network),
        ] {
            ensure!(*kind(table, column)? == wanted, "{column} on {major}: {:?}", kind(table, column)?);
        }
        ensure!(table.columns.len() == 21, "a dropped column is no column");
        let named = table.columns.iter().find(|column| column.name == "v").context("v")?;
        ensure!(&*named.data_type.name == "character varying(20)[]", "{}", named.data_type.name);
    }
    Ok(())
}

#[tokio::test]
async fn keys_and_identities_come_in_index_order() -> Result<()> {
    for major in MAJORS {
        let database = Server::shared(major).await?.create_database().await?;
        database
            .execute(
                "CREATE TABLE two (a int, b int, c int, PRIMARY KEY (c, a)); \
                 CREATE TABLE by_index (a int NOT NULL, b int NOT NULL, c text); \
                 CREATE UNIQUE INDEX by_index_i ON by_index (b, a); \
                 ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_i; \
                 CREATE TABLE whole (a int); ALTER TABLE whole REPLICA IDENTITY FULL; \
                 CREATE TABLE none (a int PRIMARY KEY); ALTER TABLE none REPLICA IDENTITY NOTHING; \
                 CREATE TABLE late (a int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)",
            )
            .await?;
        if major >= 11 {
            database.execute("CREATE TABLE wide (a int, b int, PRIMARY KEY (a) INCLUDE (b))").await?;
        }
        let tables = read(&database).await?;
        ensure!(find(&tables, "public", "two")?.primary_key == ["c", "a"]);
        let by_index = find(&tables, "public", "by_index")?;
        ensure!(by_index.identity == Identity::Index && by_index.identity_index == ["b", "a"]);
        ensure!(find(&tables, "public", "whole")?.identity == Identity::Full);
        let none = find(&tables, "public", "none")?;
        ensure!(none.identity == Identity::Nothing && none.primary_key == ["a"]);
        let late = find(&tables, "public", "late")?;
        ensure!(late.primary_key.is_empty(), "a deferrable key does not identify old rows");
        if major >= 11 {
            ensure!(find(&tables, "public", "wide")?.primary_key == ["a"], "INCLUDE columns are not the key");
        }
    }
    Ok(())
}

#[tokio::test]
async fn relations_say_what_they_are_and_where_their_rows_lie() -> Result<()> {
    for major in MAJORS {
        let database = Server::shared(major).await?.create_database().await?;
        database
            .execute(
                "CREATE TABLE plain (a int); CREATE UNLOGGED TABLE unlogged (a int); CREATE VIEW v AS SELECT 1 AS a; \
                 CREATE MATERIALIZED VIEW m AS SELECT 1 AS a; \
                 CREATE TABLE root (a int NOT NULL, b int) PARTITION BY RANGE (a); \
                 CREATE TABLE root_1 PARTITION OF root FOR VALUES FROM (0) TO (10); \
                 CREATE TABLE root_2 PARTITION OF root FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (b); \
                 CREATE TABLE root_2_1 PARTITION OF root_2 FOR VALUES FROM (0) TO (10); \
                 INSERT INTO root SELECT 1, 1 FROM generate_series(1, 2000); \
                 CREATE TABLE parent (a int); CREATE TABLE child () INHERITS (parent); \
                 ALTER TABLE plain ENABLE ROW LEVEL SECURITY",
            )
            .await?;
        let tables = read(&database).await?;
        for (name, wanted) in [
            ("plain", RelationKind::Table),
            ("unlogged", RelationKind::Unlogged),
            ("v", RelationKind::Other),
            ("m", RelationKind::Other),
            ("root", RelationKind::PartitionedTable),
            ("root_1", RelationKind::Partition),
            ("root_2", RelationKind::PartitionedTable),
            ("child", RelationKind::Table),
        ] {
            let found = find(&tables, "public", name)?;
            ensure!(found.kind == wanted, "{name} on {major} is {:?}", found.kind);
        }
        let root = find(&tables, "public", "root")?;
        let heaps: Vec<&str> = root.heaps.iter().map(|heap| &*heap.name.name).collect();
        ensure!(heaps == ["root_1", "root_2_1"], "{heaps:?}");
        ensure!(root.heaps[0].pages > 0 && root.heaps[0].bytes >= root.heaps[0].pages * 8192);
        ensure!(find(&tables, "public", "plain")?.row_security);
        ensure!(find(&tables, "public", "parent")?.has_children && !root.has_children);
        ensure!(!find(&tables, "public", "child")?.has_children);
    }
    Ok(())
}

#[tokio::test]
async fn partitions_elsewhere_are_named_and_not_forgotten() -> Result<()> {
    for major in MAJORS {
        let database = Server::shared(major).await?.create_database().await?;
        database
            .execute(
                "CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER elsewhere FOREIGN DATA WRAPPER nowhere; \
                 CREATE TABLE root (a int NOT NULL) PARTITION BY RANGE (a); \
                 CREATE TABLE near PARTITION OF root FOR VALUES FROM (0) TO (10); \
                 CREATE FOREIGN TABLE far PARTITION OF root FOR VALUES FROM (10) TO (20) SERVER elsewhere",
            )
            .await?;
        let tables = read(&database).await?;
        let root = find(&tables, "public", "root")?;
        ensure!(root.heaps.len() == 1);
        ensure!(root.unreadable_partitions == [TableName::new("public", "far")], "on {major}");
    }
    Ok(())
}

#[tokio::test]
async fn a_locked_table_does_not_hold_up_the_catalog() -> Result<()> {
    for major in MAJORS {
        let database = Server::shared(major).await?.create_database().await?;
        database
            .execute(
                "CREATE TABLE busy (a int PRIMARY KEY); INSERT INTO busy SELECT generate_series(1, 10000); \
                 CREATE TABLE idle (a int); INSERT INTO idle SELECT generate_series(1, 10000); ANALYZE",
            )
            .await?;
        let mut holder = session(&database).await?;
        holder.simple_query("BEGIN; LOCK TABLE public.busy IN ACCESS EXCLUSIVE MODE").await?;
        let tables = read(&database).await?;
        for name in ["busy", "idle"] {
            let heap = &find(&tables, "public", name)?.heaps[0];
            ensure!(heap.pages > 40 && heap.bytes >= heap.pages * 8192, "{name} on {major}: {heap:?}");
        }
        // The limit on waiting was for that one question only.
        let mut asking = session(&database).await?;
        read_tables(&mut asking, |_| true).await?;
        let rows = asking.simple_query("SHOW lock_timeout").await?;
        ensure!(rows == [vec![Some("0".to_owned())]], "{rows:?}");
    }
    Ok(())
}

#[tokio::test]
async fn tables_that_come_and_go_do_not_disturb_the_others() -> Result<()> {
    let database = Server::shared(18).await?.create_database().await?;
    database.execute("CREATE TABLE stays (a int PRIMARY KEY)").await?;
    let mut making = session(&database).await?;
    let churn = tokio::spawn(async move {
        for round in 0..150 {
            let sql = format!(
                "CREATE TABLE public.fleeting_{round} (a int PRIMARY KEY, b text); COMMIT; DROP TABLE public.fleeting_{round}"
            );
            making.simple_query(&sql).await?;
        }
        anyhow::Ok(())
    });
    let mut asking = session(&database).await?;
    let mut reads = 0;
    while !churn.is_finished() {
        let tables = read_tables(&mut asking, |_| true).await?;
        ensure!(find(&tables, "public", "stays")?.primary_key == ["a"]);
        for table in &tables {
            ensure!(!table.columns.is_empty() && table.heaps.len() == 1, "half of a table: {table:?}");
        }
        reads += 1;
    }
    churn.await??;
    ensure!(reads > 3, "only {reads} reads beside the changes");
    Ok(())
}

#[tokio::test]
async fn every_change_of_the_catalog_since_a_mark_is_noticed() -> Result<()> {
    for major in MAJORS {
        // Of its own: transactions of other databases count, too.
        let server = Server::start(ServerOptions::new(major)).await?;
        let database = server.create_database().await?;
        database
            .execute("CREATE TABLE t (a int PRIMARY KEY); CREATE TABLE gone (); CREATE TABLE p (a int) PARTITION BY RANGE (a)")
            .await?;
        let mut asking = session(&database).await?;
        for change in [
            "CREATE TABLE made ()",
            "DROP TABLE gone",
            "ALTER TABLE t ADD b text",
            "ALTER TABLE t ALTER b TYPE varchar(10)",
            "ALTER TABLE t DROP b",
            "ALTER TABLE t RENAME TO u",
            "ALTER TABLE u DROP CONSTRAINT t_pkey",
            "ALTER TABLE u REPLICA IDENTITY FULL",
            "TRUNCATE u",
            "VACUUM FULL u",
            "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (2)",
            "ALTER TABLE p DETACH PARTITION p1",
            "CREATE DOMAIN d AS int",
            "ALTER SCHEMA public RENAME TO other",
        ] {
            let mark = mark_catalog(&mut asking).await?;
            database.execute("SELECT count(*) FROM pg_class").await?;
            ensure!(
                catalog_is_unchanged(&mut asking, &mark).await?,
                "nothing was done before {change} on {major}"
            );
            asking
                .simple_query("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
                .await?;
            database.execute(change).await?;
            ensure!(
                catalog_is_unchanged(&mut asking, &mark).await?,
                "{change} is later than the snapshot, on {major}"
            );
            asking.simple_query("COMMIT").await?;
            ensure!(!catalog_is_unchanged(&mut asking, &mark).await?, "{change} on {major}");
        }
        // What was in progress at the mark counts as new, whether it was read or not.
        let mut open = session(&database).await?;
        open.simple_query("BEGIN; CREATE TABLE other.open ()").await?;
        let mark = mark_catalog(&mut asking).await?;
        ensure!(catalog_is_unchanged(&mut asking, &mark).await?);
        open.simple_query("COMMIT").await?;
        ensure!(!catalog_is_unchanged(&mut asking, &mark).await?);
    }
    Ok(())
}

#[tokio::test]
async fn a_thousand_tables_take_a_handful_of_questions() -> Result<()> {
    let database = Server::shared(15).await?.create_database().await?;
    database
        .execute(
            "DO $$ BEGIN FOR i IN 1..1000 LOOP \
             EXECUTE format('CREATE TABLE t%s (id bigint PRIMARY KEY, a text, b numeric(10,2), c timestamptz)', i); \
             IF i % 100 = 0 THEN COMMIT; END IF; END LOOP; END $$",
        )
        .await?;
    database.execute(&format!("ALTER DATABASE {} SET log_statement = 'all'", database.name())).await?;
    let mut asking = session(&database).await?;
    let process = format!("[{}] ", asking.backend_pid());
    let tables = read_tables(&mut asking, |_| true).await?;
    ensure!(tables.len() == 1000 && tables.iter().all(|table| table.columns.len() == 4));
    let log = String::from_utf8_lossy(&tokio::fs::read(database.server().log_path()).await?).into_owned();
    let asked =
        log.lines().filter(|line| line.contains(&process) && line.contains("LOG:  statement:")).count();
    ensure!((5..=12).contains(&asked), "{asked} questions");
    Ok(())
}
