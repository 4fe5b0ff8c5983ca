//! What can be typed. Help, completions and `docs/reference/cli.md` are made from this file.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Carries PostgreSQL tables into DuckDB, Kafka and Databend: a consistent snapshot, then every change.
#[derive(Debug, Parser)]
#[command(name = "pgferry", version, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Settings of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Print JSON: one object, or one line each for commands that go on
    #[arg(long, global = true)]
    pub json: bool,
    /// Show less: errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Show more: -v progress of the engine, -vv every step
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// No colours; the environment variable NO_COLOR does the same
    #[arg(long, global = true)]
    pub no_color: bool,
    /// Never ask: what needs an answer fails
    #[arg(long, global = true)]
    pub no_input: bool,
    /// Answer every question with yes
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// How logs are written [default: pretty on a terminal, json elsewhere]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    Pretty,
    /// One JSON object a line
    Json,
}

/// A task file and the tasks in it.
#[derive(Debug, Args)]
pub(crate) struct FileAndTasks {
    /// The task file
    #[arg(value_name = "FILE", default_value = "pgferry.toml")]
    pub file: PathBuf,
    /// Only this task; may be given several times [default: every task of the file]
    #[arg(short, long = "task", value_name = "TASK")]
    pub tasks: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the tasks of a file, in the foreground
    Run(RunArguments),
    /// Look at everything that a run will need; change nothing
    Check(FileAndTasks),
    /// Show columns, types and some rows as the target would hold them
    Preview(PreviewArguments),
    /// Show what a run would make and how much it would copy; change nothing
    Plan(FileAndTasks),
    /// Forget what the target holds of tables: the next run copies them again
    Resync(ResyncArguments),
    /// Watch pgferry at work on a PostgreSQL server of its own
    Demo(DemoArguments),
    /// Write a task file with comments
    Init(InitArguments),
    /// Read a task file and tell what is wrong, without connecting
    Validate {
        /// The task file
        #[arg(value_name = "FILE", default_value = "pgferry.toml")]
        file: PathBuf,
    },
    /// Print the JSON Schema of task files
    Schema,
    /// Replication slots of a server
    #[command(subcommand)]
    Slot(SlotCommand),
    /// Tell what an error code means and what to do
    Explain {
        /// The code, such as source.slot_missing [default: list all]
        code: Option<String>,
    },
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
}

impl Command {
    /// The word typed.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Command::Run(_) => "run",
            Command::Check(_) => "check",
            Command::Preview(_) => "preview",
            Command::Plan(_) => "plan",
            Command::Resync(_) => "resync",
            Command::Demo(_) => "demo",
            Command::Init(_) => "init",
            Command::Validate { .. } => "validate",
            Command::Schema => "schema",
            Command::Slot(SlotCommand::List { .. }) => "slot list",
            Command::Slot(SlotCommand::Drop { .. }) => "slot drop",
            Command::Explain { .. } => "explain",
            Command::Completions { .. } => "completions",
            Command::Version => "version",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub selection: FileAndTasks,
    /// End when everything that was there at the start has arrived
    #[arg(long)]
    pub until_caught_up: bool,
    /// Serve metrics for Prometheus at this address, such as 127.0.0.1:9187
    #[arg(long, value_name = "ADDRESS", env = "PGFERRY_METRICS")]
    pub metrics: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct PreviewArguments {
    #[command(flatten)]
    pub selection: FileAndTasks,
    /// Only this table, as schema.table
    #[arg(long, value_name = "TABLE")]
    pub table: Option<String>,
    /// Rows per table; 0 shows columns only
    #[arg(long, value_name = "ROWS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub rows: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ResyncArguments {
    #[command(flatten)]
    pub selection: FileAndTasks,
    /// Only this table, as schema.table; may be given several times [default: every table of the tasks]
    #[arg(long = "table", value_name = "TABLE")]
    pub tables: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// How long the shop is busy while its changes are carried
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// The DuckDB file to write; it stays
    #[arg(long, value_name = "FILE", default_value = "demo.duckdb")]
    pub output: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct InitArguments {
    /// The file to write
    #[arg(value_name = "FILE", default_value = "pgferry.toml")]
    pub file: PathBuf,
    /// What to start from
    #[arg(long, value_enum, default_value_t = Template::Duckdb)]
    pub template: Template,
}

/// What to start a task file from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Template {
    /// PostgreSQL to a DuckDB file
    Duckdb,
    /// An entire PostgreSQL database to Kafka topics
    Kafka,
    /// PostgreSQL to Databend
    Databend,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SlotCommand {
    /// List every slot of a server; ours are marked
    List {
        /// The connection [default: every PostgreSQL connection of the file]
        connection: Option<String>,
        /// The task file
        #[arg(short, long, value_name = "FILE", default_value = "pgferry.toml")]
        file: PathBuf,
    },
    /// Drop a slot: the server then no longer keeps the changes that it waits for
    Drop {
        /// The connection
        connection: String,
        /// The slot
        slot: String,
        /// The task file
        #[arg(short, long, value_name = "FILE", default_value = "pgferry.toml")]
        file: PathBuf,
        /// End the reader of a slot that is in use
        #[arg(long)]
        force: bool,
    },
}
