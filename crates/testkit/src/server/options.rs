//! What a test may ask of a server of its own, and the configuration files that follow from it.
//!
//! Limits: `max_slot_wal_keep_size`, `wal_keep_size`, `logical_decoding_work_mem` exist from PostgreSQL 13; a
//! setting the major does not know keeps the server from starting, with the server's own words.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::certificates::Certificates;
use super::installation::Installation;

/// Settings of a server; the later of two values for one setting counts.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    pub(crate) major: u32,
    pub(crate) tls: bool,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) hba: Vec<String>,
}

impl ServerOptions {
    /// A server of `major` made for logical decoding: 50 slots, 50 walsenders, 200 connections, little memory, no fsync.
    pub fn new(major: u32) -> Self {
        let defaults = [
            ("wal_level", "logical"),
            ("max_wal_senders", "50"),
            ("max_replication_slots", "50"),
            ("max_connections", "200"),
            ("max_prepared_transactions", "10"),
            ("shared_buffers", "32MB"),
            ("fsync", "off"),
            ("autovacuum_naptime", "1h"),
            ("log_line_prefix", "%m [%p] %d "),
            ("log_min_messages", "info"),
            ("timezone", "UTC"),
            ("listen_addresses", "127.0.0.1"),
        ];
        let settings = defaults.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { major, tls: false, settings, hba: Vec::new() }
    }

    /// Sets `name` in `postgresql.conf`.
    #[expect(clippy::needless_pass_by_value, reason = "numbers and texts are given as they stand")]
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds a line of `pg_hba.conf` ahead of the last ones, which trust every local connection over TCP. The Unix
    /// socket always trusts, whatever these lines say: the test itself must get in.
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_owned());
        self
    }

    /// TLS on, with certificates of an authority made for this server ([`super::Server::certificates`]).
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Writes what is committed through to the disk, for tests that end the server by force.
    pub fn durable(self) -> Self {
        self.set("fsync", "on")
    }

    /// Decodes with 64 kB of memory (PostgreSQL 13+), so that even small transactions spill or stream.
    pub fn small_decoding_memory(self) -> Self {
        if self.major >= 13 { self.set("logical_decoding_work_mem", "64kB") } else { self }
    }

    /// Writes `postgresql.conf`, `pg_hba.conf` and the certificates into a data folder copied from the template.
    pub(crate) fn write(
        &self,
        installation: &Installation,
        data: &Path,
        socket: &Path,
    ) -> Result<Option<Certificates>> {
        let mut conf = fs::read_to_string(data.join("postgresql.conf"))?;
        conf.push('\n');
        let mut add = |name: &str, value: &str| {
            conf.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        };
        add("unix_socket_directories", &socket.to_string_lossy());
        let certificates = if self.tls { Some(Certificates::write(installation, data)?) } else { None };
        if certificates.is_some() {
            add("ssl", "on");
            add("ssl_cert_file", "server.crt");
            add("ssl_key_file", "server.key");
            add("ssl_ca_file", "ca.crt");
        }
        for (name, value) in &self.settings {
            add(name, value);
        }
        fs::write(data.join("postgresql.conf"), conf)?;
        fs::write(data.join("pg_hba.conf"), self.hba_text())?;
        Ok(certificates)
    }

    fn hba_text(&self) -> String {
        let mut lines = vec!["local all all trust", "local replication all trust"];
        lines.extend(self.hba.iter().map(String::as_str));
        lines.extend(["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"]);
        lines.join("\n") + "\n"
    }
}
