//! What a user says of a Databend target.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use pgferry_model::TableName;

/// How files reach the server's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Upload {
    /// To the storage itself where the server is one of Databend Cloud's, else through the server.
    #[default]
    Auto,
    /// To the storage itself where the server signs an address for it, else through the server.
    Detect,
    /// Always to the storage itself.
    Presigned,
    /// Always through the server.
    Direct,
}

/// Who connects.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Login {
    /// Nobody in particular: the server's `root` without a password.
    #[default]
    Nobody,
    /// A user with a password.
    Password {
        /// The user's name.
        user: String,
        /// The password; may be empty.
        password: String,
    },
    /// A token, such as a JSON web token.
    Token(String),
    /// A user with a private key.
    KeyPair {
        /// The user's name.
        user: String,
        /// File with the key, PEM.
        private_key: PathBuf,
        /// File with the key's password; `None`: it has none.
        password_file: Option<PathBuf>,
    },
}

impl std::fmt::Debug for Login {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Login::Nobody => "Nobody",
            Login::Password { .. } => "Password",
            Login::Token(_) => "Token",
            Login::KeyPair { .. } => "KeyPair",
        })
    }
}

/// Where the server is, part by part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerParts {
    /// Its name or address.
    pub host: String,
    /// Its port; `None`: 443, and 80 without TLS.
    pub port: Option<u16>,
    /// Whether the connection is encrypted and the server verified.
    pub tls: bool,
    /// File with the certificates of the authorities to trust beside the built-in ones, PEM.
    pub root_cert: Option<PathBuf>,
    /// Who connects.
    pub login: Login,
}

/// A Databend server.
#[derive(Clone, PartialEq, Eq)]
pub enum Server {
    /// By the address that Databend's own clients take: `databend://user:password@host:port/database?…`.
    Dsn(String),
    /// Part by part.
    Parts(ServerParts),
}

impl std::fmt::Debug for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // It may hold a password.
            Server::Dsn(_) => formatter.write_str("Dsn"),
            Server::Parts(parts) => parts.fmt(formatter),
        }
    }
}

/// What the target's tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Each row as it is at the source.
    #[default]
    Latest,
    /// Every change of each row, one after the other.
    History,
}

/// What becomes of a value that the column's type does not hold, such as a date before the year 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Misfit {
    /// The table is set aside with an error.
    #[default]
    Error,
    /// The value becomes NULL, and is counted.
    Null,
}

/// What the user says of one column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnChoice {
    /// The target type: `string`, or `decimal(p,s)` for numbers.
    pub target_type: Option<String>,
    /// What becomes of values that do not fit.
    pub misfit: Misfit,
}

/// A Databend server as a target of one task.
#[derive(Clone, Debug)]
pub struct DatabendConfig {
    /// The server.
    pub server: Server,
    /// The warehouse that runs the statements; `None`: the server's own, or the one that the address names.
    pub warehouse: Option<String>,
    /// The role that the session takes; `None`: the user's default.
    pub role: Option<String>,
    /// Puts every table into this database; `None`: the one that the address names, else the source's schema names are databases.
    pub database: Option<String>,
    /// The database of what pgferry keeps for itself: raw tables, the stage, what tasks have done. Made when it is missing.
    pub staging: String,
    /// How files reach the storage.
    pub upload: Upload,
    /// What the tables hold.
    pub mode: Mode,
    /// The shortest time between two merges of one table; a merge that takes long makes it twice its own duration.
    pub merge_interval: Duration,
    /// Chunks that are loaded at once.
    pub loads_max: usize,
    /// What the user says of columns, by the source's table and the column.
    pub columns: HashMap<(TableName, String), ColumnChoice>,
}

impl DatabendConfig {
    /// A server with the defaults.
    pub fn new(server: Server) -> Self {
        DatabendConfig {
            server,
            warehouse: None,
            role: None,
            database: None,
            staging: "pgferry".to_owned(),
            upload: Upload::default(),
            mode: Mode::default(),
            merge_interval: Duration::from_secs(3),
            loads_max: 4,
            columns: HashMap::new(),
        }
    }
}
