//! A database of one test: unique name, gone with its sessions, slots and prepared transactions at the end.
//!
//! Why the destructor has a thread and a runtime of its own: a destructor cannot wait in the test's runtime, and that
//! runtime may already be on its way down.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio_postgres::Client;

use super::Server;
use crate::run_folder;

static NEXT: AtomicU64 = AtomicU64::new(1);
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(20);

/// A database that is dropped, with its slots, at the end of its test.
#[derive(Debug)]
pub struct Database {
    server: Server,
    name: String,
}

impl Database {
    pub(super) async fn create(server: &Server) -> Result<Self> {
        let name = format!("test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let client = server.client("postgres").await?;
        client.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0")).await?;
        Ok(Self { server: server.clone(), name })
    }

    /// The same database on a server that was copied from its own: a standby, promoted or not.
    pub fn on(&self, server: &Server) -> Self {
        Self { server: server.clone(), name: self.name.clone() }
    }

    /// The database's name; it needs no quoting.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The server it is on.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// A URL over TCP for the superuser.
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// A URL over another port, that of a [`crate::proxy::Proxy`] for example.
    pub fn url_over(&self, port: u16) -> String {
        format!("postgresql://postgres@127.0.0.1:{port}/{}", self.name)
    }

    /// A session of the superuser over the Unix socket.
    pub async fn client(&self) -> Result<Client> {
        self.server.client(&self.name).await
    }

    /// Runs statements in a session of their own.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        self.client().await?.batch_execute(sql).await.with_context(|| format!("in database {}", self.name))
    }

    /// Drops the database now and says what kept it from going; the destructor can only print it.
    pub async fn drop_now(self) -> Result<()> {
        clean_up(&self.server, &self.name).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if std::thread::panicking() {
            run_folder::keep_logs();
        }
        if !self.server.running() {
            return;
        }
        let (server, name) = (self.server.clone(), self.name.clone());
        let cleaner = std::thread::spawn(move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { tokio::time::timeout(CLEAN_UP_LIMIT, clean_up(&server, &name)).await? })
        });
        match cleaner.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                run_folder::warn(&format!("database {} stays until its server ends: {error:#}", self.name))
            }
            Err(_) => run_folder::warn(&format!("database {} stays: its clean-up panicked", self.name)),
        }
    }
}

async fn clean_up(server: &Server, name: &str) -> Result<()> {
    let client = server.client("postgres").await?;
    let exists = client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&name]).await?;
    if exists.is_none() {
        return Ok(());
    }
    client.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await?;
    roll_back_prepared(server, &client, name).await?;
    let mut last = String::new();
    for _ in 0..200 {
        client
            .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", &[&name])
            .await?;
        client
            .execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
                 WHERE database = $1 AND active_pid IS NOT NULL",
                &[&name],
            )
            .await?;
        match drop_slots_and_database(&client, name).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                last =
                    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
            }
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    bail!("{last}")
}

async fn drop_slots_and_database(client: &Client, name: &str) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1",
            &[&name],
        )
        .await?;
    client.batch_execute(&format!("DROP DATABASE {name}")).await
}

/// A prepared transaction outlives its session and can only be ended inside its own database.
async fn roll_back_prepared(server: &Server, client: &Client, name: &str) -> Result<()> {
    let prepared = client.query("SELECT gid FROM pg_prepared_xacts WHERE database = $1", &[&name]).await?;
    if prepared.is_empty() {
        return Ok(());
    }
    client.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await?;
    let inside = server.client(name).await?;
    for row in prepared {
        let id: String = row.get(0);
        inside.batch_execute(&format!("ROLLBACK PREPARED '{}'", id.replace('\'', "''"))).await?;
    }
    client.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await?;
    Ok(())
}
