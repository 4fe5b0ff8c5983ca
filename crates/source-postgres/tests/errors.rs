//! Every error of slot, publication and tables, provoked on a real server: it says code, cause and cure, and the cure works when pasted.

mod ferrying;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferrying::{check, config, failing, ferry, finding, found, paste, succeeding, told, troubles};
use pgferry_model::Outcome;
use pgferry_pipeline::{Source, StreamStart};
use pgferry_source_postgres::{Manage, PostgresSource, PostgresSourceConfig, TableOptions};
use pgferry_testkit::memory_target::MemoryTarget;
use pgferry_testkit::{Database, Server, ServerOptions};

const TABLES: &str = "CREATE TABLE orders(id int PRIMARY KEY, note text); INSERT INTO orders SELECT g, 'x' FROM generate_series(1, 50) g; \
                      CREATE TABLE items(id int PRIMARY KEY, n int); INSERT INTO items VALUES (1, 1)";

async fn database(major: u32) -> Result<Database> {
    on(&Server::shared(major).await?).await
}

async fn on(server: &Server) -> Result<Database> {
    let database = server.create_database().await?;
    database.execute(TABLES).await?;
    Ok(database)
}

/// As a DBA has it: publication and slot are made beforehand.
fn never(database: &Database) -> PostgresSourceConfig {
    let mut config = config(database);
    config.replication.manage = Manage::Never;
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_level_is_turned_on() -> Result<()> {
    for major in [10, 15, 18] {
        let server = Server::start(ServerOptions::new(major).set("wal_level", "replica")).await?;
        let database = on(&server).await?;
        let (config, target) = (config(&database), MemoryTarget::default());
        let findings = check(&config).await?;
        found(finding(&findings, "server.wal_level")?, "source.wal_level")?;
        let cure = told(&failing(&config, &target).await?, "source.wal_level")?;
        paste(&database, &cure).await?;
        succeeding(&config, &target).await.with_context(|| format!("PostgreSQL {major}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn used_up_slots_are_named_with_what_they_hold() -> Result<()> {
    let server = Server::start(ServerOptions::new(15).set("max_replication_slots", 1)).await?;
    let database = on(&server).await?;
    database.execute("SELECT pg_create_logical_replication_slot('old_cdc', 'pgoutput')").await?;
    let (config, target) = (config(&database), MemoryTarget::default());
    let findings = check(&config).await?;
    found(finding(&findings, "server.slots")?, "source.slots_exhausted")?;
    let error = failing(&config, &target).await?;
    let cure = told(&error, "source.slots_exhausted")?;
    let cause = error.cause().unwrap_or_default();
    ensure!(cause.contains("old_cdc holding"), "{cause}");
    paste(&database, &cure).await?;
    succeeding(&config, &target).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn used_up_walsenders_are_raised() -> Result<()> {
    let server = Server::start(ServerOptions::new(15).set("max_wal_senders", 0)).await?;
    let database = on(&server).await?;
    let (config, target) = (config(&database), MemoryTarget::default());
    let findings = check(&config).await?;
    found(finding(&findings, "server.walsenders")?, "source.walsenders_exhausted")?;
    // Another walsender may end at any moment, so a run tries again for a while first.
    let error = failing(&config, &target).await?;
    let cure = told(&error, "pipeline.retries_exhausted")?;
    ensure!(error.problem().contains("every walsender"), "{error}");
    paste(&database, &cure).await?;
    succeeding(&config, &target).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dba_makes_publication_and_slot_as_told() -> Result<()> {
    for major in [10, 15, 18] {
        let database = database(major).await?;
        let (config, target) = (never(&database), MemoryTarget::default());
        let findings = check(&config).await?;
        found(finding(&findings, "publication.exists")?, "source.publication_missing")?;
        found(finding(&findings, "slot.exists")?, "source.slot_missing")?;
        let cure = told(&failing(&config, &target).await?, "source.publication_missing")?;
        paste(&database, &cure).await?;
        let cure = told(&failing(&config, &target).await?, "source.slot_missing")?;
        paste(&database, &cure).await?;
        succeeding(&config, &target).await?;
        let findings = check(&config).await?;
        ensure!(
            findings.iter().all(|finding| finding.outcome != Outcome::Failed),
            "{:?}",
            troubles(&findings)
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_not_published_is_added() -> Result<()> {
    for major in [10, 15] {
        let database = database(major).await?;
        database.execute("CREATE PUBLICATION pgferry_test FOR TABLE orders").await?;
        let (config, target) = (never(&database), MemoryTarget::default());
        let slot = &config.replication.slot;
        database.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await?;
        let findings = check(&config).await?;
        found(finding(&findings, "publication.tables")?, "source.table_not_in_publication")?;
        let error = failing(&config, &target).await?;
        ensure!(error.problem().contains("public.items") && !error.problem().contains("orders"), "{error}");
        paste(&database, &told(&error, "source.table_not_in_publication")?).await?;
        succeeding(&config, &target).await?;
        // One that leaves the publication later is not put back in silence: what changed meanwhile is not in the stream.
        database.execute("ALTER PUBLICATION pgferry_test DROP TABLE items; UPDATE items SET n = 2").await?;
        let mut managed = config.clone();
        managed.replication.manage = Manage::Create;
        let error = failing(&managed, &target).await?;
        let cure = told(&error, "source.table_not_in_publication")?;
        ensure!(!cure.commands.is_empty(), "{cure:?}");
        paste(&database, &cure).await?;
        succeeding(&config, &MemoryTarget::default()).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_gone_or_foreign_is_told() -> Result<()> {
    let server = Server::shared(15).await?;
    let (database, other) = (on(&server).await?, on(&server).await?);
    let mut config = config(&database);
    let target = MemoryTarget::default();
    succeeding(&config, &target).await?;
    let slot = config.replication.slot.clone();
    database.execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await?;
    let error = failing(&config, &target).await?;
    told(&error, "source.slot_missing")?;
    let start = StreamStart { after: target.progress().await.position.context("a position")? };
    let Err(error) = PostgresSource::new(config.clone()).changes(start).await else {
        anyhow::bail!("a stream without a slot")
    };
    told(&error, "source.slot_missing")?;

    config.replication.slot = format!("foreign_{}", other.name());
    let slot = &config.replication.slot;
    other.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await?;
    let error = failing(&config, &MemoryTarget::default()).await?;
    paste(&database, &told(&error, "source.slot_other_database")?).await?;
    ensure!(error.problem().contains(other.name()), "{error}");
    found(finding(&check(&config).await?, "slot.usable")?, "source.slot_other_database")?;
    other.execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await?;
    database.execute(&format!("SELECT pg_create_physical_replication_slot('{slot}')")).await?;
    let error = failing(&config, &MemoryTarget::default()).await?;
    paste(&database, &told(&error, "source.slot_other_plugin")?).await?;
    database.execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await?;
    succeeding(&config, &MemoryTarget::default()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_lost_its_log_is_told_and_its_cure_lets_a_resync_begin() -> Result<()> {
    for major in [13, 15, 18] {
        let options =
            ServerOptions::new(major).set("max_slot_wal_keep_size", "1MB").set("checkpoint_timeout", "1h");
        let server = Server::start(options.set("max_wal_size", "32MB").set("min_wal_size", "32MB")).await?;
        let database = on(&server).await?;
        let (config, target) = (config(&database), MemoryTarget::default());
        succeeding(&config, &target).await?;
        for _ in 0..4 {
            database.execute("INSERT INTO items SELECT g, 1 FROM generate_series(2, 2000) g; DELETE FROM items WHERE id > 1").await?;
            database.execute("SELECT pg_switch_wal()").await?;
            database.execute("CHECKPOINT").await?;
        }
        let start = StreamStart { after: target.progress().await.position.context("a position")? };
        let Err(error) = PostgresSource::new(config.clone()).changes(start).await else {
            anyhow::bail!("PostgreSQL {major}: a stream from a lost slot")
        };
        told(&error, "source.slot_invalidated").with_context(|| format!("PostgreSQL {major}"))?;
        found(finding(&check(&config).await?, "slot.usable")?, "source.slot_invalidated")?;
        let cure = told(&failing(&config, &target).await?, "source.slot_invalidated")?;
        paste(&database, &cure).await?;
        succeeding(&config, &MemoryTarget::default()).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_in_use_names_who_uses_it() -> Result<()> {
    let database = database(15).await?;
    let (config, target) = (config(&database), MemoryTarget::default());
    succeeding(&config, &target).await?;
    let start = StreamStart { after: target.progress().await.position.context("a position")? };
    let holder = PostgresSource::new(config.clone());
    let held = holder.changes(start.clone()).await?;
    found(finding(&check(&config).await?, "slot.active")?, "source.slot_active")?;
    let Err(error) = PostgresSource::new(config.clone()).changes(start).await else {
        anyhow::bail!("two readers of one slot")
    };
    let cure = told(&error, "source.slot_active")?;
    ensure!(error.problem().contains("pgferry"), "{error} does not say who");
    paste(&database, &cure).await?;
    succeeding(&config, &target).await?;
    drop(held);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_waits_for_a_transaction_goes_on_when_that_ends() -> Result<()> {
    let server = Server::start(ServerOptions::new(15)).await?;
    let database = on(&server).await?;
    let (config, target) = (config(&database), MemoryTarget::default());
    let blocker = database.client().await?;
    blocker.batch_execute("BEGIN; INSERT INTO items VALUES (9, 9)").await?;
    let running = tokio::spawn({
        let (config, target) = (config.clone(), target.clone());
        async move { ferry(&config, &target).await }
    });
    tokio::time::sleep(Duration::from_secs(7)).await;
    ensure!(!running.is_finished(), "the run does not wait");
    // The slot is half made by now; the transactions that hold up are found for one that is to be made.
    let mut second = config.clone();
    second.replication.slot = "second".into();
    let findings = check(&second).await?;
    let blocked = finding(&findings, "slot.creation")?;
    let cure = found(blocked, "source.slot_creation_blocked")?;
    ensure!(blocked.detail.contains("postgres"), "{blocked:?}");
    paste(&database, &cure).await?;
    let end = running.await?.map_err(|failure| anyhow::anyhow!("{failure}"))?;
    ensure!(end.set_aside.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_made_anew_is_never_taken_for_the_old_one() -> Result<()> {
    for major in [10, 15, 18] {
        let database = database(major).await?;
        let (config, target) = (config(&database), MemoryTarget::default());
        succeeding(&config, &target).await?;
        database.execute("DROP PUBLICATION pgferry_test; INSERT INTO items VALUES (2, 2)").await?;
        let cure = told(&failing(&config, &target).await?, "source.publication_missing")?;
        ensure!(cure.sql.len() == 2, "{cure:?}");
        database.execute("CREATE PUBLICATION pgferry_test FOR TABLE items, orders").await?;
        found(finding(&check(&config).await?, "publication.age")?, "source.publication_after_slot")?;
        let error = failing(&config, &target).await.with_context(|| format!("PostgreSQL {major}"))?;
        let cure = told(&error, "source.publication_after_slot")?;
        paste(&database, &cure).await?;
        succeeding(&config, &MemoryTarget::default()).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_table_without_identity_is_told_before_it_hurts_the_application() -> Result<()> {
    let database = database(15).await?;
    database.execute("CREATE TABLE log(line text); INSERT INTO log VALUES ('a')").await?;
    let config = config(&database);
    let findings = check(&config).await?;
    let unpublished = finding(&findings, "tables.identity")?;
    ensure!(unpublished.outcome == Outcome::Warning, "{unpublished:?}");
    database.execute("CREATE PUBLICATION pgferry_test FOR ALL TABLES").await?;
    ensure!(
        database.execute("UPDATE log SET line = 'b'").await.is_err(),
        "the application's update succeeds"
    );
    let findings = check(&config).await?;
    let published = finding(&findings, "tables.identity")?;
    ensure!(published.outcome == Outcome::Failed, "{published:?}");
    let cure = found(published, "source.no_replica_identity")?;
    paste(&database, &cure).await?;
    database.execute("UPDATE log SET line = 'b'").await?;
    succeeding(&config, &MemoryTarget::default()).await
}

/// A role of the test's database; roles are the whole server's, so the name is, too.
async fn role(database: &Database, config: &mut PostgresSourceConfig, attributes: &str) -> Result<()> {
    let name = format!("cdc_{}", database.name());
    database.execute(&format!("CREATE ROLE {name} LOGIN {attributes}")).await?;
    database
        .execute(&format!("CREATE PUBLICATION {} FOR TABLE orders, items", config.replication.publication))
        .await?;
    let slot = &config.replication.slot;
    database.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await?;
    config.connection.user = name;
    Ok(())
}

async fn drop_role(database: &Database, config: &PostgresSourceConfig) -> Result<()> {
    let user = &config.connection.user;
    database.execute(&format!("DROP OWNED BY {user}; DROP ROLE {user}")).await
}

/// A role that owns nothing cannot make the publication, and is told so before the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_that_the_role_may_not_make_is_made_by_the_owner() -> Result<()> {
    for major in [10, 18] {
        let database = database(major).await?;
        let (mut config, target) = (never(&database), MemoryTarget::default());
        config.replication.manage = Manage::Create;
        config.connection.user = format!("cdc_{}", database.name());
        let user = config.connection.user.clone();
        database.execute(&format!("CREATE ROLE {user} LOGIN REPLICATION")).await?;
        database.execute(&format!("GRANT SELECT ON orders, items TO {user}")).await?;
        found(finding(&check(&config).await?, "publication.exists")?, "source.publication_missing")?;
        database.execute("CREATE PUBLICATION pgferry_test FOR TABLE orders").await?;
        let findings = check(&config).await?;
        let table = finding(&findings, "publication.tables")?;
        found(table, "source.table_not_in_publication")?;
        ensure!(table.outcome == Outcome::Failed, "{table:?}");
        database.execute("DROP PUBLICATION pgferry_test").await?;
        let cure = told(&failing(&config, &target).await?, "source.publication_missing")?;
        paste(&database, &cure).await?;
        succeeding(&config, &target).await?;
        drop_role(&database, &config).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_replication_is_given_it() -> Result<()> {
    for major in [10, 18] {
        let database = database(major).await?;
        let mut config = never(&database);
        role(&database, &mut config, "").await?;
        database.execute(&format!("GRANT SELECT ON orders, items TO {}", config.connection.user)).await?;
        found(finding(&check(&config).await?, "role.replication")?, "source.no_replication_role")?;
        let target = MemoryTarget::default();
        let cure = told(&failing(&config, &target).await?, "source.no_replication_role")?;
        paste(&database, &cure).await?;
        succeeding(&config, &target).await.with_context(|| format!("PostgreSQL {major}"))?;
        drop_role(&database, &config).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_the_role_may_not_read_are_set_aside_with_the_grant() -> Result<()> {
    let database = database(15).await?;
    let mut config = never(&database);
    role(&database, &mut config, "REPLICATION").await?;
    let user = config.connection.user.clone();
    database.execute(&format!("GRANT SELECT ON orders TO {user}")).await?;
    found(finding(&check(&config).await?, "tables.select")?, "source.permission")?;
    let end = ferry(&config, &MemoryTarget::default()).await?;
    let [aside] = end.set_aside.as_slice() else { anyhow::bail!("{end:?}") };
    ensure!(aside.table.to_string() == "public.items");
    paste(&database, &told(aside.error.as_ref().context("its error")?, "source.permission")?).await?;

    database.execute("ALTER TABLE items ENABLE ROW LEVEL SECURITY").await?;
    found(finding(&check(&config).await?, "tables.row_security")?, "source.row_security")?;
    let end = ferry(&config, &MemoryTarget::default()).await?;
    let [aside] = end.set_aside.as_slice() else { anyhow::bail!("{end:?}") };
    paste(&database, &told(aside.error.as_ref().context("its error")?, "source.row_security")?).await?;
    succeeding(&config, &MemoryTarget::default()).await?;
    drop_role(&database, &config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_tells_everything_at_once_and_stops_at_nothing() -> Result<()> {
    for major in [10, 13, 15, 18] {
        let options = ServerOptions::new(major).set("wal_level", "replica").set("max_wal_senders", 0);
        let server = Server::start(options.set("wal_sender_timeout", 0)).await?;
        let database = on(&server).await?;
        database
            .execute(
                "CREATE TABLE nokey(a int); CREATE UNLOGGED TABLE u(id int PRIMARY KEY); CREATE VIEW v AS SELECT 1 AS a; \
                 CREATE TABLE parent(id int PRIMARY KEY); CREATE TABLE child(PRIMARY KEY (id)) INHERITS (parent); \
                 CREATE PUBLICATION pgferry_test FOR TABLE orders WITH (publish = 'insert')",
            )
            .await?;
        let mut config = never(&database);
        let options = |name: &str| TableOptions {
            source: Some(pgferry_model::TableName::new("public", name)),
            ..TableOptions::default()
        };
        config.tables = vec![
            TableOptions { snapshot_where: Some("no_such_column > 1".into()), ..options("orders") },
            TableOptions { primary_key: vec!["n".into()], ..options("items") },
        ];
        let findings = check(&config).await?;
        let told = troubles(&findings);
        let wanted = [
            "server.wal_level source.wal_level",
            "server.walsenders source.walsenders_exhausted",
            "server.wal_sender_timeout source.setting",
            "tables.kind source.table_kind",
            "publication.tables source.table_not_in_publication",
            "publication.operations source.publication_operations",
            "slot.exists source.slot_missing",
            "tables.identity source.no_replica_identity",
            "tables.named_key source.key_not_enforced",
            "tables.children source.not_in_stream",
            "tables.snapshot_where source.snapshot_where",
        ];
        for wanted in wanted {
            ensure!(told.iter().any(|told| told == wanted), "PostgreSQL {major}: no {wanted} in {told:?}");
        }
        ensure!(told.iter().any(|told| told.starts_with("server.truncate")) == (major == 10), "{told:?}");
        for finding in findings.iter().filter(|finding| finding.outcome != Outcome::Passed) {
            ensure!(finding.cause.is_some() && finding.cure.is_some(), "{finding:?}");
        }
    }
    Ok(())
}
