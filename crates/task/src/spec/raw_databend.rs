//! What a task file says of Databend, as it is written: the connection, and a task's own settings.

use schemars::JsonSchema;
use serde::Deserialize;

use super::scalar::SecretSource;

/// A Databend server, by `dsn` or by its parts.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawDatabend {
    /// `databend://user:password@host:port/database?warehouse=...`, instead of `host`, `port`, `ssl_mode`, `ssl_root_cert`, `user`,
    /// `password`, `token` and `private_key`. A secret, as it may hold a password.
    pub dsn: Option<SecretSource>,
    /// Host name or address. Required without `dsn`.
    pub host: Option<String>,
    /// Port of the server's HTTP handler. Default: `443`, and `80` with `ssl_mode = "disable"`.
    pub port: Option<u16>,
    /// How the connection is protected: `disable`, or `verify-full` (encrypted, and the server is always verified).
    /// Default: `verify-full`.
    pub ssl_mode: Option<RawDatabendSslMode>,
    /// File with the certificates of authorities to trust beside the built-in ones, PEM. Default: none. Relative to the task file.
    pub ssl_root_cert: Option<String>,
    /// User to connect as. Default: the server's `root`, without a password.
    pub user: Option<String>,
    /// The user's password. Default: none.
    pub password: Option<SecretSource>,
    /// A token, such as a JSON web token, instead of a user. Default: none.
    pub token: Option<SecretSource>,
    /// File with the user's private key, PEM, instead of a password. Default: none. Relative to the task file.
    pub private_key: Option<String>,
    /// File with the private key's password. Default: none. Relative to the task file.
    pub private_key_password_file: Option<String>,
    /// The warehouse that runs the statements. Default: the one that `dsn` names, else the server's own.
    pub warehouse: Option<String>,
    /// The role that the session takes. Default: the one that `dsn` names, else the user's own.
    pub role: Option<String>,
    /// The database that all tables go to; with `include`, every table has to come from one schema. Default: the one that `dsn` names,
    /// else each table goes to the database that is named as its schema.
    pub database: Option<String>,
    /// How files reach the server's storage: `auto` (to the storage itself at Databend Cloud, else through the server), `detect` (to the
    /// storage itself where the server signs an address for it), `presigned` (always so) or `direct` (always through the server).
    /// Default: what `dsn` says, else `auto`.
    pub upload: Option<RawUpload>,
}

/// How a connection to Databend is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawDatabendSslMode {
    /// Not encrypted.
    Disable,
    /// Encrypted; the server's certificate comes from a trusted authority and is for this host.
    VerifyFull,
}

/// How files reach the server's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawUpload {
    /// To the storage itself at Databend Cloud, else through the server.
    Auto,
    /// To the storage itself where the server signs an address for it, else through the server.
    Detect,
    /// Always to the storage itself.
    Presigned,
    /// Always through the server.
    Direct,
}

/// Settings of a Databend target.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawDatabendTask {
    /// The warehouse that runs the task's statements. Default: the connection's.
    pub warehouse: Option<String>,
    /// The database that all tables go to; with `include`, every table has to come from one schema. Default: the connection's.
    pub database: Option<String>,
    /// The database of what pgferry keeps for itself: raw tables, and what the task has done. Letters, digits and `_`; the
    /// stage for files is named `STAGING_stage`. Made when they are not there. Default: `pgferry`.
    pub staging: Option<String>,
}

/// What becomes of a value that the column's type in the target does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawOutOfRange {
    /// The table is set aside.
    Error,
    /// The value becomes NULL.
    Null,
    /// The column is carried as text, which holds every value.
    String,
}

/// What the target's tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawMode {
    /// Each row as it is at the source.
    Latest,
    /// Every change of each row, one after the other.
    History,
}
