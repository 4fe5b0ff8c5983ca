//! `pgferry init`: a task file with comments, to be filled in.

use std::fs;

use pgferry_model::{Cure, Error};
use serde_json::json;

use super::Ended;
use crate::arguments::{InitArguments, Template};
use crate::errors::{FILE_EXISTS, FILE_UNWRITABLE, Failure};
use crate::exit_code::ExitCode;
use crate::output::Output;
use crate::place::shell_path;

const DUCKDB: &str = include_str!("../../../../examples/duckdb.toml");
const DATABEND: &str = include_str!("../../../../examples/databend.toml");
const KAFKA: &str = include_str!("../../../../examples/kafka.toml");

pub(super) fn run(arguments: &InitArguments, output: &Output) -> Ended {
    let (file, path) = (&arguments.file, arguments.file.display());
    if file.exists() && !overwrite(arguments, output)? {
        return Ok(ExitCode::Failure);
    }
    let text = match arguments.template {
        Template::Duckdb => DUCKDB,
        Template::Kafka => KAFKA,
        Template::Databend => DATABEND,
    };
    fs::write(file, text).map_err(|failure| {
        let cure = Cure::advice("choose another place, or have the folder made and writable");
        Error::task_broken(FILE_UNWRITABLE, format!("cannot write {path}"))
            .with_origin(failure)
            .with_cure(cure)
    })?;
    let word = shell_path(file);
    let next = [format!("edit {path}"), format!("pgferry check {word}"), format!("pgferry run {word}")];
    output.data(&format!("{path} is written. Next:\n  1. {}\n  2. {}\n  3. {}", next[0], next[1], next[2]));
    output.result(true, &format!("{path} is written"), &json!({ "file": path.to_string(), "next": next }));
    Ok(ExitCode::Success)
}

fn overwrite(arguments: &InitArguments, output: &Output) -> Result<bool, Failure> {
    let path = arguments.file.display();
    match output.confirm(&format!("{path} is there already; overwrite it?")) {
        Ok(answer) => Ok(answer),
        Err(_) => {
            let cure = Cure::advice("name another file, or overwrite it with --yes")
                .line(format!("pgferry init {} --yes", shell_path(&arguments.file)));
            let error = Error::task_broken(FILE_EXISTS, format!("{path} is there already"))
                .with_cause("init never overwrites a file without a yes");
            Err(error.with_cure(cure).into())
        }
    }
}
