//! The server that is measured against: its own, thrown away afterwards, with settings that leave it the disk and the memory.

use anyhow::{Context, Result};
use clap::Args;
use pgferry_testkit::{Database, Server, ServerOptions};

/// Where a contestant connects, as arguments.
#[derive(Args)]
pub(crate) struct Place {
    /// A folder of a Unix socket, or an address
    #[arg(long)]
    pub(crate) host: String,
    #[arg(long)]
    pub(crate) port: u16,
    #[arg(long)]
    pub(crate) database: String,
}

/// A server with a database.
pub(crate) struct Scene {
    pub(crate) server: Server,
    pub(crate) database: Database,
}

impl Scene {
    pub(crate) async fn new(major: u32) -> Result<Self> {
        let options = ServerOptions::new(major)
            .set("shared_buffers", "2GB")
            .set("max_wal_size", "8GB")
            .set("checkpoint_timeout", "1h")
            .set("synchronous_commit", "off")
            .set("autovacuum", "off")
            .set("maintenance_work_mem", "512MB");
        let server = Server::start(options).await?;
        let database = server.create_database().await?;
        Ok(Scene { server, database })
    }

    pub(crate) fn postmaster(&self) -> Result<u32> {
        self.server.pid().context("the server has ended")
    }

    /// Where contestants connect.
    pub(crate) fn host(&self, socket: bool) -> String {
        if socket { self.server.socket_dir().display().to_string() } else { "127.0.0.1".to_owned() }
    }

    /// [`Place`] as it is written on a command line.
    pub(crate) fn place(&self, socket: bool) -> Vec<String> {
        let port = self.server.port().to_string();
        ["--host", &self.host(socket), "--port", &port, "--database", self.database.name()]
            .map(str::to_owned)
            .to_vec()
    }
}
