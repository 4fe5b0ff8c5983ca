//! What a server's refusal means to a person: code, cause and cure, by SQLSTATE and routine.
//!
//! Limits: texts of PostgreSQL 10 to 18; a translated server costs the name of the object in a cure, never the code.

use pgferry_model::{Class, Cure, Error, Restart};

use crate::error::{
    AUTHENTICATION, DATABASE_MISSING, HBA_REJECTED, LOCK_WAIT, NO_REPLICATION_ROLE, PERMISSION, POOLER,
    STATEMENT, ServerError, TLS, TOO_MANY_CONNECTIONS, UNAVAILABLE, VERSION, WALSENDERS_EXHAUSTED,
};
use crate::{quote_identifier, quote_literal};

/// The oldest server that has publications and pgoutput.
const VERSION_MIN: u32 = 10;
/// Ports that poolers listen on by default: PgBouncer, Supavisor's transaction mode.
const POOLER_PORTS: [u16; 2] = [6432, 6543];

/// Who asked whom, for texts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) database: String,
    pub(crate) user: String,
    /// Our own address as the socket knows it.
    pub(crate) own_address: Option<String>,
    pub(crate) encrypted: bool,
}

impl Place {
    pub(crate) fn looks_like_pooler(&self) -> bool {
        POOLER_PORTS.contains(&self.port) || self.host.contains("pooler")
    }
}

/// An ErrorResponse to `sql` as an error of pgferry.
pub(crate) fn explain(failure: ServerError, doing: &str, place: &Place, sql: &str) -> Error {
    let routine = failure.routine.as_deref().unwrap_or_default();
    let error = match failure.sqlstate.as_str() {
        "28000" if routine == "ClientAuthentication" || failure.message.contains("pg_hba.conf") => {
            admission(&failure, place)
        }
        "28P01" | "28000" => authentication(&failure, place),
        "3D000" | "57P04" => database_missing(place),
        "42501" if may_not_replicate(&failure) => no_replication_role(place),
        "42501" => permission(&failure, doing, place, sql),
        "53300" if failure.message.contains("max_wal_senders") => walsenders_exhausted(&failure),
        "53300" => too_many_connections(&failure, place),
        "08P01" if failure.message.contains("unsupported startup parameter") => pooler(place),
        // Nobody but us prepares anything in a session of ours.
        "42P05" => shared_connections(place),
        "55P03" => locked(doing),
        state if state.starts_with("57P") => unavailable(doing, &failure),
        state => {
            let problem = format!("{doing}: the server refused ({state}): {}", failure.shown_message());
            let hint = failure.hint.as_deref().filter(|_| !matches!(state.get(..2), Some("22" | "23")));
            let advice = hint.unwrap_or(
                "see the server's log for the statement; PostgreSQL's appendix \"Error Codes\" tells what the SQLSTATE means",
            );
            Error::new(STATEMENT, failure.class(), problem).with_cure(Cure::advice(advice))
        }
    };
    error.with_origin(failure)
}

/// Where a statement has a limit on waiting for locks.
fn locked(doing: &str) -> Error {
    Error::transient(LOCK_WAIT, format!("{doing}: another session holds a lock, and did not give it back in time"))
        .with_cause("ALTER TABLE, TRUNCATE, VACUUM FULL, CLUSTER and LOCK TABLE hold a table's strongest lock until their transaction ends")
        .with_cure(
            Cure::advice("wait for its end, or commit it; the statement shows who waits for whom").sql(
                "SELECT pid, pg_blocking_pids(pid) AS waits_for, usename, state, query FROM pg_stat_activity WHERE state <> 'idle'",
            ),
        )
}

fn may_not_replicate(failure: &ServerError) -> bool {
    let routine = failure.routine.as_deref().unwrap_or_default();
    let in_start = routine == "InitPostgres" && failure.severity == "FATAL";
    // 10 to 13 name it `check_permissions`, 14 and later `CheckSlotPermissions` (PostgreSQL source, `slot.c`, `slotfuncs.c`).
    in_start || matches!(routine, "check_permissions" | "CheckSlotPermissions")
}

fn no_replication_role(place: &Place) -> Error {
    let user = quote_identifier(&place.user);
    Error::task_broken(NO_REPLICATION_ROLE, format!("role {user} may not open a replication connection"))
        .with_cause("it is neither a superuser nor has it the attribute REPLICATION")
        .with_cure(
            Cure::advice(format!(
                "give it the attribute; it counts at the next connection. On Amazon RDS: GRANT rds_replication TO {user};"
            ))
            .sql(format!("ALTER ROLE {user} WITH REPLICATION"))
            .run_as("superuser"),
        )
}

/// `ClientAuthentication` refuses for a missing line of `pg_hba.conf` and for a missing client certificate.
fn admission(failure: &ServerError, place: &Place) -> Error {
    if failure.message.contains("client certificate") {
        return Error::task_broken(TLS, "the server wants a client certificate")
            .with_cause(format!(
                "{}:{} accepts {} with a certificate only, and none was sent",
                place.host, place.port, place.user
            ))
            .with_cure(
                Cure::advice("name the certificate and its key in the connection")
                    .line("ssl_cert = \"client.crt\"")
                    .line("ssl_key = \"client.key\""),
            );
    }
    let named = failure.message.split_once("host \"").and_then(|(_, rest)| rest.split('"').next());
    let address = named.or(place.own_address.as_deref());
    let (database, user) = (hba_word(&place.database), hba_word(&place.user));
    let line = match address.filter(|address| address.parse::<std::net::IpAddr>().is_ok()) {
        Some(address) => {
            let kind = if place.encrypted { "hostssl" } else { "host" };
            let bits = if address.contains(':') { 128 } else { 32 };
            format!("{kind} {database} {user} {address}/{bits} scram-sha-256")
        }
        None => format!("local {database} {user} scram-sha-256"),
    };
    let encryption = if place.encrypted { "with" } else { "without" };
    Error::task_broken(HBA_REJECTED, "pg_hba.conf of the server does not let us in")
        .with_cause(format!(
            "no line of it admits role {} to database {} from {} {encryption} encryption, or a line rejects this",
            place.user,
            place.database,
            address.unwrap_or("this machine")
        ))
        .with_cure(
            Cure::advice(
                "add the line to pg_hba.conf before any line that rejects, then reload. A logical replication connection \
                 matches the database's name, not the word replication",
            )
            .line(line)
            .sql("SELECT pg_reload_conf()")
            .run_as("superuser")
            .restart(Restart::Reload),
        )
}

/// A name as `pg_hba.conf` reads it: quoted, so that `all` or a comma in it has no meaning.
fn hba_word(name: &str) -> String {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let keyword = matches!(name, "all" | "sameuser" | "samerole" | "samegroup" | "replication");
    if plain && !keyword { name.to_owned() } else { quote_identifier(name) }
}

fn authentication(failure: &ServerError, place: &Place) -> Error {
    let user = quote_identifier(&place.user);
    let (cause, advice) = if failure.sqlstate == "28P01" {
        ("the password is wrong, has expired, or the role has none", "correct the password, or set one")
    } else {
        (
            "the role does not exist, may not log in, or its certificate names another role",
            "correct the user; these statements show the role and let it log in",
        )
    };
    let cure = if failure.sqlstate == "28P01" {
        Cure::advice(format!("{advice}: as superuser in psql, the line sends it without showing it"))
            .line(format!("\\password {user}"))
    } else {
        let literal = quote_literal(&place.user);
        Cure::advice(advice)
            .sql(format!("SELECT rolname, rolcanlogin FROM pg_catalog.pg_roles WHERE rolname = {literal}"))
            .sql(format!("ALTER ROLE {user} WITH LOGIN"))
            .run_as("superuser")
    };
    Error::task_broken(AUTHENTICATION, format!("the server did not accept role {user}"))
        .with_cause(format!("{cause}; the server says: {}", failure.message))
        .with_cure(cure)
}

fn database_missing(place: &Place) -> Error {
    let database = quote_identifier(&place.database);
    Error::task_broken(DATABASE_MISSING, format!("database {database} does not exist"))
        .with_cause(format!("the server at {}:{} has no database of this name", place.host, place.port))
        .with_cure(
            Cure::advice("correct the database's name; upper and lower case count. This shows the names")
                .sql("SELECT datname FROM pg_catalog.pg_database WHERE datallowconn ORDER BY datname")
                .run_as("any role"),
        )
}

fn permission(failure: &ServerError, doing: &str, place: &Place, sql: &str) -> Error {
    let user = quote_identifier(&place.user);
    let error = Error::task_broken(PERMISSION, format!("{doing}: role {user} lacks a privilege"))
        .with_cause(failure.message.clone());
    let name = failure.message.rsplit(' ').next().unwrap_or_default();
    let kind = failure.message.strip_suffix(name).and_then(|rest| rest.trim_end().rsplit(' ').next());
    let schema = match kind {
        Some("database") => {
            let grant = format!("GRANT CONNECT ON DATABASE {} TO {user}", quote_identifier(&place.database));
            return error.with_cure(
                Cure::advice("let the role connect").sql(grant).run_as("owner of the database, or superuser"),
            );
        }
        Some("schema") => Some(quote_identifier(name)),
        Some("table" | "relation" | "view" | "sequence") => schema_in(sql, name),
        _ => None,
    };
    let Some(schema) = schema else {
        return error.with_cure(
            Cure::advice(format!("grant role {user} what the cause names")).run_as("the object's owner"),
        );
    };
    error.with_cure(
        Cure::advice("let the role read the schema's tables, those of later times too")
            .sql(format!("GRANT USAGE ON SCHEMA {schema} TO {user}"))
            .sql(format!("GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {user}"))
            .sql(format!("ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO {user}"))
            .run_as("owner of the tables, or superuser"),
    )
}

/// The quoted schema that stands before table `name` in our own statement; the server's message leaves it out.
fn schema_in(sql: &str, name: &str) -> Option<String> {
    let table = format!(".{}", quote_identifier(name));
    let before = &sql[..sql.find(&table)?];
    let inside = before.strip_suffix('"')?;
    let mut from = inside.len();
    loop {
        let quote = inside[..from].rfind('"')?;
        if !inside[..quote].ends_with('"') {
            return Some(before[quote..].to_owned());
        }
        from = quote - 1;
    }
}

fn walsenders_exhausted(failure: &ServerError) -> Error {
    Error::transient(WALSENDERS_EXHAUSTED, "every walsender of the server is taken")
        .with_cause(format!("{}; standbys, backups and other consumers use them, too", failure.message))
        .with_cure(
            Cure::advice("end a consumer that nobody needs (the first statement shows them), or allow more")
                .sql("SELECT pid, usename, application_name, state FROM pg_catalog.pg_stat_replication")
                .sql("ALTER SYSTEM SET max_wal_senders = 20")
                .run_as("superuser")
                .restart(Restart::Server),
        )
}

fn too_many_connections(failure: &ServerError, place: &Place) -> Error {
    Error::transient(TOO_MANY_CONNECTIONS, format!("{}:{} takes no more connections", place.host, place.port))
        .with_cause(failure.message.clone())
        .with_cure(
            Cure::advice("it is tried again; if it stays so, end sessions that nobody needs, or allow more")
                .sql("SELECT usename, datname, state, count(*) FROM pg_catalog.pg_stat_activity GROUP BY 1, 2, 3 ORDER BY 4 DESC")
                .sql("ALTER SYSTEM SET max_connections = 200")
                .run_as("superuser")
                .restart(Restart::Server),
        )
}

/// The server's end, start or crash: PostgreSQL ends every session with 57P01, 57P02 or 57P03.
fn unavailable(doing: &str, failure: &ServerError) -> Error {
    Error::new(UNAVAILABLE, Class::Transient, format!("{doing}: the server is not available just now"))
        .with_cause(format!("{} ({})", failure.message, failure.sqlstate))
        .with_cure(Cure::advice("it is tried again; see the server's log if it does not come back"))
}

fn pooler(place: &Place) -> Error {
    let cause = "the change stream needs a connection of its own to the server; a pooler shares connections";
    refused_pooler(place, "does not pass replication", cause)
}

fn refused_pooler(place: &Place, what: &str, cause: &str) -> Error {
    let problem = format!("{}:{} is a connection pooler that {what}", place.host, place.port);
    Error::task_broken(POOLER, problem).with_cause(cause).with_cure(
        Cure::advice(
            "use the server's own host and port, mostly 5432: for Supabase db.<ref>.supabase.co, for Neon the host without -pooler",
        )
        .line("port = 5432"),
    )
}

/// A session that is not one: its statements go to whichever connection is free.
pub(crate) fn shared_connections(place: &Place) -> Error {
    refused_pooler(
        place,
        "gives each transaction another connection",
        "a snapshot needs sessions that stay: settings that make values exact, and statements that are prepared, would go astray",
    )
}

/// A replication startup that a likely pooler refused in other words.
pub(crate) fn likely_pooler(error: Error, place: &Place) -> Error {
    if place.looks_like_pooler() && error.code() == STATEMENT && error.class() == Class::TaskBroken {
        return pooler(place).with_origin(error);
    }
    error
}

/// Refuses servers below [`VERSION_MIN`], by the text of the parameter `server_version`, such as `15.18 (Debian 15.18-1)`.
pub(crate) fn verify_version(text: &str) -> Result<(), Error> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    match text[..digits].parse::<u32>() {
        Ok(major) if major < VERSION_MIN => {
            Err(Error::task_broken(VERSION, format!("the server is PostgreSQL {text}, too old"))
                .with_cause(format!(
                    "logical replication with pgoutput exists from PostgreSQL {VERSION_MIN} on"
                ))
                .with_cure(Cure::advice(format!("upgrade the server to PostgreSQL {VERSION_MIN} or later"))))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_comes_from_the_statement() {
        assert_eq!(schema_in("COPY (SELECT 1 FROM \"a\"\"b\".\"t\") TO", "t").as_deref(), Some("\"a\"\"b\""));
        assert_eq!(schema_in("SELECT FROM ONLY \"s\".\"t\"", "t").as_deref(), Some("\"s\""));
        for sql in ["", "SELECT FROM t", ".\"t\"", "\".\"t\"", "s.\"t\""] {
            assert_eq!(schema_in(sql, "t"), None, "{sql}");
        }
    }

    #[test]
    fn names_in_hba_lines_lose_their_special_meaning() {
        assert_eq!(hba_word("shop_1"), "shop_1");
        assert_eq!(hba_word("all"), "\"all\"");
        assert_eq!(hba_word("a,b"), "\"a,b\"");
    }

    #[test]
    fn old_servers_are_refused_by_their_text() {
        for text in ["9.6.24", "8.0.2"] {
            assert_eq!(verify_version(text).unwrap_err().code(), VERSION);
        }
        for text in ["10.23", "15.18 (Debian 15.18-1)", "19devel", "strange"] {
            assert!(verify_version(text).is_ok(), "{text}");
        }
    }
}
