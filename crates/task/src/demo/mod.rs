//! What `pgferry demo` needs around a real task: a PostgreSQL server of its own, a shop in it, and customers who buy.
//!
//! Everything is bounded: the shop's size, the number of clients, their statements and their time.

mod proof;
mod server;
mod shop;
mod traffic;

use std::path::Path;

use pgferry_model::Code;

use crate::spec::{Faults, Spec, read_text};

pub use proof::{Proof, Seller, prove};
pub use server::{DemoServer, Stopper};
pub use shop::{TABLES, fill};
pub use traffic::Traffic;

/// No PostgreSQL to start.
pub const NO_SERVER: Code = Code::new("demo.no_server");
/// The server did not start, or a program of it failed.
pub const SERVER_FAILED: Code = Code::new("demo.server_failed");
/// The DuckDB file is there already.
pub const FILE_EXISTS: Code = Code::new("demo.file_exists");
/// The target did not reach the source's end in time.
pub const NOT_CAUGHT_UP: Code = Code::new("demo.not_caught_up");

/// The task file of the demo: a real one, so that the demo shows what a user writes.
pub fn task_file(server: &DemoServer, duckdb: &Path) -> String {
    let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let connection = server.connection("shop");
    let password = connection.password.as_ref().map_or("", |password| password.expose());
    let mut file = format!(
        "version = 1\n\n[connections.shop]\nkind = \"postgres\"\nhost = \"127.0.0.1\"\nport = {}\ndatabase = \"shop\"\n\
         user = \"postgres\"\npassword = {}\n\
         ssl_mode = \"disable\"\n\n[connections.lake]\nkind = \"duckdb\"\npath = {}\n\n[tasks.demo]\nsource = \"shop\"\n\
         target = \"lake\"\nsync_mode = \"snapshot_cdc\"\nsync_interval = \"500ms\"\nduckdb = {{ schema = \"main\" }}\n",
        connection.port,
        text(password),
        text(&duckdb.to_string_lossy()),
    );
    for table in TABLES {
        file.push_str(&format!("\n[[tasks.demo.tables]]\nsource = \"public.{table}\"\n"));
    }
    file
}

/// The demo's task, read as any other.
pub fn spec(server: &DemoServer, duckdb: &Path) -> Result<Spec, Faults> {
    read_text(Path::new("demo.toml"), &task_file(server, duckdb))
}
