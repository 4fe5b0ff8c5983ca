//! Error codes of connecting and asking, and what the server's own errors mean.

use pgferry_model::{Class, Code, Error};

/// The server cannot be reached.
pub const UNREACHABLE: Code = Code::new("connection.unreachable");
/// User or password are wrong.
pub const AUTHENTICATION: Code = Code::new("connection.authentication");
/// The server sent something that the protocol does not allow.
pub const PROTOCOL: Code = Code::new("connection.protocol");
/// The server refused a statement.
pub const STATEMENT: Code = Code::new("source.statement_refused");

/// An ErrorResponse's fields.
#[derive(Clone, Debug, Default, thiserror::Error)]
#[error("{severity} {sqlstate}: {message}")]
pub struct ServerError {
    /// SQLSTATE.
    pub sqlstate: String,
    /// ERROR, FATAL, PANIC.
    pub severity: String,
    /// Primary message.
    pub message: String,
    /// Detail.
    pub detail: Option<String>,
    /// Hint.
    pub hint: Option<String>,
    /// The server's C function.
    pub routine: Option<String>,
}

impl ServerError {
    /// From an ErrorResponse's body (PostgreSQL docs, "Error and Notice Message Fields").
    pub fn parse(body: &[u8]) -> ServerError {
        let mut error = ServerError::default();
        for field in body.split(|&byte| byte == 0) {
            let Some((&kind, text)) = field.split_first() else { continue };
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                b'C' => error.sqlstate = text,
                b'V' => error.severity = text,
                b'S' if error.severity.is_empty() => error.severity = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                b'R' => error.routine = Some(text),
                _ => {}
            }
        }
        error
    }

    /// As an error of pgferry: what the world does is transient, the rest needs a person.
    pub fn into_error(self, doing: &str) -> Error {
        let state = self.sqlstate.as_str();
        let world = state.starts_with("08")
            || state.starts_with("57P")
            || matches!(state, "53300" | "40001" | "40P01" | "55P03" | "57014");
        let class = if world { Class::Transient } else { Class::TaskBroken };
        let code = match state {
            "28P01" | "28000" => AUTHENTICATION,
            _ => STATEMENT,
        };
        let problem = format!("{doing}: the server refused ({}): {}", self.sqlstate, self.message);
        Error::new(code, class, problem).with_origin(self)
    }
}
