//! One error for every floor: a stable code, a class that decides what happens next, a cause and a cure.
//!
//! ```text
//!   Transient    belongs to the world        retry with backoff; the budget comes back on progress
//!   TableBroken  belongs to one table        the table is set aside, the others go on
//!   TaskBroken   needs a person              the task stops, the slot and the position stay
//! ```
//!
//! Invariants: `Display` prints the problem only, never the cause chain; no message holds a row's value or a secret;
//! every code has a page in `docs/errors/` (checked by `cargo xtask tidy`).

use std::fmt;

use crate::{TableName, TaskId};

/// The result of everything that can fail in pgferry.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A stable dotted word that names a kind of error, such as `source.slot_missing`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(&'static str);

impl Code {
    /// Declares a code. Each declared code has a page `docs/errors/<code>.md`.
    pub const fn new(code: &'static str) -> Self {
        Code(code)
    }

    /// The dotted word.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What an error belongs to; it alone decides between retrying, setting a table aside and stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The world: a connection, a lock, a restart. Retried.
    Transient,
    /// One table's data or schema. That table is set aside.
    TableBroken,
    /// The task as a whole needs a person.
    TaskBroken,
}

/// Whether a cure needs the server to be restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Restart {
    /// Takes effect at once.
    #[default]
    No,
    /// Takes effect after a reload of the server's settings.
    Reload,
    /// Takes effect after a restart of the server.
    Server,
}

/// A command of pgferry that cures. It names no file: the task file that an error came from is known, and written into the
/// command, by the program only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskCommand {
    /// Starts a task; `None`: the one that the error belongs to.
    Run(Option<TaskId>),
    /// Has the next run copy tables again; none named: every table of the task.
    Resync(Vec<TableName>),
}

/// What a person does about an error or a finding: the statements first, then the lines, then the commands. All of them work when
/// pasted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Cure {
    /// What to do, in a sentence.
    pub advice: String,
    /// Statements to run on the server that `run_as` names, in order, each without its final semicolon.
    pub sql: Vec<String>,
    /// Who has to run the statements, such as `superuser` or `owner of public.orders`.
    pub run_as: Option<String>,
    /// Whether a restart is needed.
    pub restart: Restart,
    /// Lines for a shell, a task file or `pg_hba.conf`; `advice` says which.
    pub lines: Vec<String>,
    /// Commands on the task that the error came from, in order.
    pub commands: Vec<TaskCommand>,
}

/// A text as one word of a POSIX shell.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl Cure {
    /// A cure that is a sentence only.
    pub fn advice(text: impl Into<String>) -> Self {
        Cure { advice: text.into(), ..Cure::default() }
    }

    /// Adds a statement.
    #[must_use]
    pub fn sql(mut self, statement: impl Into<String>) -> Self {
        self.sql.push(statement.into());
        self
    }

    /// Says who runs the statements.
    #[must_use]
    pub fn run_as(mut self, who: impl Into<String>) -> Self {
        self.run_as = Some(who.into());
        self
    }

    /// Says whether a restart is needed.
    #[must_use]
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// Adds a line for a shell, a task file or `pg_hba.conf`.
    #[must_use]
    pub fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Adds a line for a shell: a command whose last word is a path or a name.
    #[must_use]
    pub fn shell(self, command: &str, last: &str) -> Self {
        let line = format!("{command} {}", shell_word(last));
        self.line(line)
    }

    /// Adds a command on the task that the error came from.
    #[must_use]
    pub fn command(mut self, command: TaskCommand) -> Self {
        self.commands.push(command);
        self
    }

    /// Adds that every table of the task is copied again.
    #[must_use]
    pub fn resync(self) -> Self {
        self.command(TaskCommand::Resync(Vec::new()))
    }

    /// Adds that one table is copied again.
    #[must_use]
    pub fn resync_table(self, table: &TableName) -> Self {
        self.command(TaskCommand::Resync(vec![table.clone()]))
    }
}

#[derive(Debug)]
struct Inner {
    code: Code,
    class: Class,
    problem: String,
    cause: Option<String>,
    cure: Option<Cure>,
    table: Option<TableName>,
    origin: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What went wrong, why, and what to do about it.
///
/// One pointer wide, so that `Result` stays small on hot paths.
#[derive(Debug)]
pub struct Error(Box<Inner>);

impl Error {
    /// A new error; `problem` is one lower-case line without a full stop, with names but no row values.
    pub fn new(code: Code, class: Class, problem: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            code,
            class,
            problem: problem.into(),
            cause: None,
            cure: None,
            table: None,
            origin: None,
        }))
    }

    /// Of class [`Class::Transient`].
    pub fn transient(code: Code, problem: impl Into<String>) -> Self {
        Error::new(code, Class::Transient, problem)
    }

    /// Of class [`Class::TaskBroken`].
    pub fn task_broken(code: Code, problem: impl Into<String>) -> Self {
        Error::new(code, Class::TaskBroken, problem)
    }

    /// Of class [`Class::TableBroken`], for `table`.
    pub fn table_broken(code: Code, table: TableName, problem: impl Into<String>) -> Self {
        Error::new(code, Class::TableBroken, problem).with_table(table)
    }

    /// Adds why it happened, in a sentence.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<String>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_cure(mut self, cure: Cure) -> Self {
        self.0.cure = Some(cure);
        self
    }

    /// Adds the table that it belongs to.
    #[must_use]
    pub fn with_table(mut self, table: TableName) -> Self {
        self.0.table = Some(table);
        self
    }

    /// Adds the error of a lower floor, for the log; it is never part of `Display`.
    #[must_use]
    pub fn with_origin(mut self, origin: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.origin = Some(origin.into());
        self
    }

    /// The same error with another class, for callers that know better what it belongs to.
    #[must_use]
    pub fn with_class(mut self, class: Class) -> Self {
        self.0.class = class;
        self
    }

    /// The stable code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What the error belongs to.
    pub fn class(&self) -> Class {
        self.0.class
    }

    /// The problem in one line.
    pub fn problem(&self) -> &str {
        &self.0.problem
    }

    /// Why it happened; the text of the lower floor's error chain where nothing better is known.
    pub fn cause(&self) -> Option<String> {
        if let Some(cause) = &self.0.cause {
            return Some(cause.clone());
        }
        let mut next = self.0.origin.as_deref().map(|origin| origin as &dyn std::error::Error);
        let mut parts: Vec<String> = Vec::new();
        while let Some(error) = next {
            let text = error.to_string();
            if !parts.iter().any(|part| part.contains(&text)) {
                parts.push(text);
            }
            next = error.source();
        }
        if parts.is_empty() { None } else { Some(parts.join(": ")) }
    }

    /// What to do about it.
    pub fn cure(&self) -> Option<&Cure> {
        self.0.cure.as_ref()
    }

    /// The table that it belongs to.
    pub fn table(&self) -> Option<&TableName> {
        self.0.table.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.problem)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.origin.as_deref().map(|origin| origin as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_pointer_wide_and_displays_its_problem_only() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        let error = Error::transient(Code::new("connection.unreachable"), "cannot reach the server")
            .with_origin(std::io::Error::other("refused"));
        assert_eq!(error.to_string(), "cannot reach the server");
        assert_eq!(error.cause().as_deref(), Some("refused"));
        assert_eq!(error.class(), Class::Transient);
    }
}
