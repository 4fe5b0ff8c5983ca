//! The target's error codes, and what the server's and its client's own errors mean.

use databend_client::Error as Failure;
use pgferry_model::{Class, Code, Cure, Error, TableName};
pub use pgferry_pipeline::error::{
    APPEND_INTERRUPTED, FENCED, NAME_COLLISION, NOT_REPRESENTABLE, ROW_MISSING, SCHEMA_INCOMPATIBLE,
    SLICES_LOST, TABLE_EXISTS, TABLE_GONE,
};

/// The server does not answer.
pub const UNREACHABLE: Code = Code::new("target.databend_unreachable");
/// The server does not let the user in.
pub const AUTHENTICATION: Code = Code::new("target.databend_authentication");
/// The address or a setting of the connection is not one.
pub const SETTINGS: Code = Code::new("target.databend_settings");
/// The user lacks a privilege.
pub const DENIED: Code = Code::new("target.databend_denied");
/// Something else writes the same tables.
pub const CONFLICT: Code = Code::new("target.databend_conflict");
/// The warehouse is not there, or does not run.
pub const NO_WAREHOUSE: Code = Code::new("target.databend_no_warehouse");
/// Another error of the server.
pub const REFUSED: Code = Code::new("target.databend_refused");
/// Changes are staged that nobody has merged.
pub const UNMERGED: Code = Code::new("target.databend_unmerged");

/// The server's own codes (Databend source, `exception_code.rs`).
pub(crate) mod server {
    pub(crate) const UNKNOWN_DATABASE: u16 = 1003;
    pub(crate) const BAD_ARGUMENTS: u16 = 1006;
    pub(crate) const UNKNOWN_TABLE: u16 = 1025;
    pub(crate) const BAD_BYTES: u16 = 1046;
    pub(crate) const PERMISSION_DENIED: u16 = 1063;
    pub(crate) const TABLE_VERSION_MISMATCHED: u16 = 2009;
    pub(crate) const UNRESOLVABLE_CONFLICT: u16 = 4001;
    pub(crate) const TRANSACTION_TIMEOUT: u16 = 4003;
    pub(crate) const SESSION_LOST: u16 = 5111;
    pub(crate) const SESSION_TIMEOUT: u16 = 5110;
    pub(crate) const AUTHENTICATE_FAILURE: std::ops::RangeInclusive<u16> = 5100..=5103;
}

/// What to do about a mistake of our own.
pub(crate) fn mistake() -> Cure {
    Cure::advice("report it with the log and the table's definition: a mistake in pgferry, not in your data")
}

/// The server's code and words of a failure, where it has answered.
pub(crate) fn answered(failure: &Failure) -> Option<(u16, &str)> {
    match failure {
        Failure::WithContext { inner, .. } => answered(inner),
        Failure::QueryFailed(told) | Failure::Logic(_, told) | Failure::AuthFailure(told) => {
            Some((told.code, told.message.as_str()))
        }
        _ => None,
    }
}

/// An error of the server or its client while doing something.
pub(crate) fn refused(doing: &str, failure: &Failure) -> Error {
    if let Failure::WithContext { inner, .. } = failure {
        return refused(doing, inner);
    }
    let problem = |what: &str| format!("{doing}: {what}");
    match failure {
        Failure::AuthFailure(told) => not_let_in(doing, &told.message),
        Failure::QueryFailed(told) | Failure::Logic(_, told) => by_code(doing, told.code, &told.message),
        Failure::Response { status, .. } if matches!(status.as_u16(), 401 | 403) => {
            not_let_in(doing, &status.to_string())
        }
        Failure::Response { status, msg } if status.as_u16() < 500 => {
            Error::task_broken(REFUSED, problem("the server refused the request"))
                .with_cause(format!("{status}: {}", first_line(msg)))
                .with_cure(Cure::advice("check that the address is that of a Databend server's HTTP handler"))
        }
        Failure::Response { status, msg } => {
            unreachable(&problem("the server cannot answer now"), &format!("{status}: {}", first_line(msg)))
        }
        Failure::QueryNotFound(told) => unreachable(&problem("the server has forgotten the statement"), told),
        Failure::Request(told) if told.contains("certificate") => {
            Error::task_broken(AUTHENTICATION, problem("the server's certificate is not accepted"))
                .with_cause(told.clone())
                .with_cure(Cure::advice(
                    "set ssl_root_cert to the authority's certificate, and take the host's name as the certificate has it",
                ))
        }
        Failure::IO(told) if told.contains("private key") || doing.starts_with("connecting") => {
            Error::task_broken(SETTINGS, problem("a file of the connection cannot be used"))
                .with_cause(first_line(told))
                .with_cure(Cure::advice(
                    "check that the files of the connection are there, can be read by this user, and are PEM",
                ))
        }
        Failure::Request(told) | Failure::IO(told) => {
            unreachable(&problem("the server does not answer"), told)
        }
        Failure::BadArgument(told) | Failure::Decode(told) => {
            Error::task_broken(SETTINGS, problem("the client does not take this"))
                .with_cause(first_line(told))
                .with_cure(Cure::advice(
                    "check the connection's dsn or its parts; an answer that is not Databend's ends here, too",
                ))
        }
        Failure::WithContext { .. } => Error::task_broken(REFUSED, problem("the server refused it")),
    }
}

fn by_code(doing: &str, code: u16, told: &str) -> Error {
    let problem = |what: &str| format!("{doing}: {what}");
    let cause = format!("[{code}] {}", first_line(told));
    match code {
        code if server::AUTHENTICATE_FAILURE.contains(&code) => not_let_in(doing, told),
        server::PERMISSION_DENIED => denied(doing, told),
        server::UNRESOLVABLE_CONFLICT if !told.contains("multi rows from source") => conflict(doing, &cause),
        server::TABLE_VERSION_MISMATCHED => conflict(doing, &cause),
        server::TRANSACTION_TIMEOUT | server::SESSION_LOST | server::SESSION_TIMEOUT => {
            unreachable(&problem("the server has lost the session"), &cause)
        }
        _ if told.to_ascii_lowercase().contains("warehouse") => no_warehouse(doing, &cause),
        // Their words may hold a value.
        server::BAD_ARGUMENTS | server::BAD_BYTES if doing.starts_with("loading") => {
            other(&problem("the server does not take the rows"), &format!("code {code}"))
        }
        _ => other(&problem("the server refused a statement"), &cause),
    }
}

/// The server's words in one line; a statement that is shown with them is left out.
fn first_line(told: &str) -> String {
    let words = told.lines().map(str::trim).filter(|line| !line.starts_with(|c: char| c.is_ascii_digit()));
    let line: Vec<&str> = words.filter(|line| !line.is_empty()).collect();
    line.join(" ").chars().take(400).collect()
}

fn other(problem: &str, cause: &str) -> Error {
    Error::task_broken(REFUSED, problem).with_cause(cause).with_cure(Cure::advice(
        "where the cause names a table that something else altered, copy that table again; else report it with the log",
    ))
}

fn unreachable(problem: &str, cause: &str) -> Error {
    Error::transient(UNREACHABLE, problem).with_cause(first_line(cause)).with_cure(Cure::advice(
        "check the host and the port, that the server runs, and that it can be reached from here",
    ))
}

fn not_let_in(doing: &str, told: &str) -> Error {
    Error::task_broken(AUTHENTICATION, format!("{doing}: the server does not let the user in"))
        .with_cause(first_line(told))
        .with_cure(Cure::advice("check user and password, token or private key of the connection"))
}

fn denied(doing: &str, told: &str) -> Error {
    Error::task_broken(DENIED, format!("{doing}: the user lacks a privilege"))
        .with_cause(first_line(told))
        .with_cure(
            Cure::advice(
                "let an administrator grant it to a role, and name the role in the connection: the task makes the database `staging` and a stage, \
                 and makes and writes the tables of the target database",
            )
            .sql("GRANT CREATE DATABASE ON *.* TO ROLE pgferry")
            .sql("GRANT SUPER ON *.* TO ROLE pgferry")
            .sql("GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP ON analytics.* TO ROLE pgferry")
            .run_as("an administrator, in Databend"),
        )
}

fn conflict(doing: &str, cause: &str) -> Error {
    Error::transient(CONFLICT, format!("{doing}: a conflict with another transaction"))
        .with_cause(cause)
        .with_cure(Cure::advice("it is tried again; let nothing else write the tables of a task"))
}

fn no_warehouse(doing: &str, cause: &str) -> Error {
    Error::task_broken(NO_WAREHOUSE, format!("{doing}: no warehouse runs the statement"))
        .with_cause(cause)
        .with_cure(Cure::advice(
            "name a warehouse that is there and may be resumed: `warehouse` of the connection or of the task's section databend",
        ))
}

/// What the client says of an address before it connects.
pub(crate) fn no_address(why: &str) -> Error {
    Error::task_broken(SETTINGS, "the Databend connection cannot be used")
        .with_cause(why.to_owned())
        .with_cure(
            Cure::advice("write the address as Databend's own clients take it")
                .line("dsn = \"databend://USER:PASSWORD@HOST:443/DATABASE?warehouse=NAME\""),
        )
}

/// A value that its column cannot hold.
pub(crate) fn unfit(table: &TableName, column: &str, target_type: &str, reason: &str) -> Error {
    let key = toml_key(column);
    Error::table_broken(
        NOT_REPRESENTABLE,
        table.clone(),
        format!("a value of {table}.{column} {reason}, and does not fit {target_type}"),
    )
    .with_cause("values are never changed to make them fit")
    .with_cure(
        Cure::advice(
            "carry the column as text, or let such values be NULL: add one of the lines to the table's entry under [[tasks.NAME.tables]], \
             then copy the table again",
        )
        .line(format!("columns.{key} = {{ type = \"string\" }}"))
        .line(format!("columns.{key} = {{ out_of_range = \"null\" }}"))
        .resync_table(table),
    )
}

/// A column's name as a key of the task file.
pub(crate) fn toml_key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !name.is_empty() && name.chars().all(bare) { name.to_owned() } else { format!("{name:?}") }
}

/// Another process has raised the epoch.
pub(crate) fn fenced() -> Error {
    Error::task_broken(FENCED, "another process runs this task: nothing of this one is written any more")
        .with_cause(
            "the other one was started later and has taken the task over, so that no row is written twice",
        )
        .with_cure(Cure::advice("let one process run a task; stop one of the two"))
}

/// Slices were dropped after an error.
pub(crate) fn slices_lost() -> Error {
    Error::transient(SLICES_LOST, "earlier slices of a transaction were dropped after an error")
        .with_cause("the rest of a transaction is never written without its beginning")
        .with_cure(Cure::advice("nothing: the transaction is read and written again from its beginning"))
}

/// A table of others is where a table is to be made.
pub(crate) fn table_exists(table: &TableName, target: &TableName) -> Error {
    Error::table_broken(
        TABLE_EXISTS,
        table.clone(),
        format!("Databend has a table {target} that this task has not made"),
    )
    .with_cause("its rows are somebody else's, and are left alone unless the task file says otherwise")
    .with_cure(Cure::advice(
        "set if_target_exists to append, truncate or replace, or give the table another target name",
    ))
}

/// A table of the task is not there any more.
pub(crate) fn table_gone(table: &TableName, target: &TableName) -> Error {
    Error::table_broken(TABLE_GONE, table.clone(), format!("{target} is not in Databend any more"))
        .with_cause("something else has dropped or renamed it")
        .with_cure(Cure::advice("copy the table again").resync_table(table))
}

/// A row whose unchanged values the target should hold is not there.
pub(crate) fn row_missing(table: &TableName, target: &TableName) -> Error {
    Error::table_broken(
        ROW_MISSING,
        table.clone(),
        format!("a row of {table} that was changed is not in {target}"),
    )
    .with_cause("the source did not send its large unchanged values, because the target should have them")
    .with_cure(
        Cure::advice("something else has removed rows of the table: copy it again").resync_table(table),
    )
}

/// An error of the class that belongs to a table where it can.
pub(crate) fn of_table(error: Error, table: &TableName) -> Error {
    match error.class() {
        Class::TaskBroken if matches!(error.code(), REFUSED | DENIED) => {
            error.with_class(Class::TableBroken).with_table(table.clone())
        }
        _ => error,
    }
}
