//! The task file and the task that an error came from: with them a cure's commands can be pasted.
//!
//! Libraries say which command cures; only here a file's path gets into it, quoted for a shell.

use std::path::{Path, PathBuf};

use pgferry_model::{Cure, TableName, TaskCommand, shell_word};
use pgferry_task::spec::{Spec, TaskSpec};

/// Where an error came from. Without a file the commands read the default one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    file: Option<PathBuf>,
    /// The task, where the file has several.
    task: Option<String>,
}

impl Place {
    /// A file as a whole.
    pub(crate) fn file(file: &Path) -> Place {
        Place { file: Some(file.to_owned()), task: None }
    }

    /// One task of a file.
    pub(crate) fn task(spec: &Spec, task: &TaskSpec) -> Place {
        let task = (spec.tasks.len() > 1).then(|| task.id.to_string());
        Place { task, ..Place::file(&spec.file) }
    }

    /// A cure's commands, each a line for a shell.
    pub(crate) fn commands(&self, cure: &Cure) -> Vec<String> {
        cure.commands.iter().map(|command| self.command(command)).collect()
    }

    /// One command as a line for a shell.
    pub(crate) fn command(&self, command: &TaskCommand) -> String {
        let mut words = vec!["pgferry".to_owned()];
        let mut task = self.task.clone();
        let mut tables: &[TableName] = &[];
        match command {
            TaskCommand::Run(named) => {
                words.push("run".to_owned());
                task = named.as_ref().map(ToString::to_string).or(task);
            }
            TaskCommand::Resync(wanted) => {
                words.push("resync".to_owned());
                tables = wanted;
            }
        }
        words.extend(self.file.as_deref().map(shell_path));
        if let Some(task) = task {
            words.extend(["--task".to_owned(), shell_word(&task)]);
        }
        for table in tables {
            words.extend(["--table".to_owned(), shell_word(&typed_name(table))]);
        }
        words.join(" ")
    }
}

/// A path as one word of a shell; one that starts like an option gets `./` before it.
pub(crate) fn shell_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.starts_with('-') { shell_word(&format!("./{text}")) } else { shell_word(&text) }
}

/// A table's name as `--table` reads it: parts with a dot or a quote stand in quotes.
fn typed_name(table: &TableName) -> String {
    let part = |part: &str| {
        if part.contains(['.', '"']) { format!("\"{}\"", part.replace('"', "\"\"")) } else { part.to_owned() }
    };
    format!("{}.{}", part(&table.schema), part(&table.name))
}

#[cfg(test)]
mod tests {
    use pgferry_task::spec::scalar::parse_table_name;

    use super::*;

    #[test]
    fn commands_name_file_and_task_and_quote_them() {
        let mut place = Place::file(Path::new("my tasks/it's.toml"));
        let resync = TaskCommand::Resync(vec![TableName::new("public", "My Table")]);
        assert_eq!(
            place.command(&resync),
            r"pgferry resync 'my tasks/it'\''s.toml' --table 'public.My Table'"
        );
        place.task = Some("shop".to_owned());
        assert_eq!(
            place.command(&TaskCommand::Run(None)),
            r"pgferry run 'my tasks/it'\''s.toml' --task shop"
        );
        assert_eq!(Place::default().command(&TaskCommand::Resync(Vec::new())), "pgferry resync");
        assert_eq!(shell_path(Path::new("-f.toml")), "./-f.toml");
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for (schema, name) in [("public", "orders"), ("a.b", "c\"d"), ("Über", "x y")] {
            let table = TableName::new(schema, name);
            assert_eq!(parse_table_name(&typed_name(&table), "other"), Some(table));
        }
    }
}
