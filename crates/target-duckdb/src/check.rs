//! Looks at everything that a run will need, without leaving anything behind.

use std::collections::HashMap;
use std::path::Path;

use pgferry_model::{Cure, Error, Finding, Outcome, Result};
use pgferry_pipeline::{Fidelity, TablePlan};

use crate::Inner;
use crate::database::resolved;
use crate::error;
use crate::mapping::column_mappings;

/// Findings about the file, then about each table.
pub(crate) fn check(inner: &Inner, plans: &[TablePlan]) -> Result<Vec<Finding>> {
    let path = &inner.config.path;
    let shown = path.display().to_string();
    let mut findings = Vec::new();
    let usable = match file(inner, path) {
        Ok(detail) => {
            findings.push(Finding::passed("target.file", shown, detail));
            true
        }
        Err(failure) => {
            findings.push(Finding::from_error("target.file", shown, Outcome::Failed, &failure));
            false
        }
    };
    let mut targets: HashMap<(String, String), String> = HashMap::new();
    for plan in plans {
        let target = inner.target_name(&plan.table);
        let subject = plan.table.name.to_string();
        let at = (target.schema.to_lowercase(), target.name.to_lowercase());
        if let Some(other) = targets.insert(at, subject.clone()) {
            let failure = collision(&subject, &other);
            findings.push(Finding::from_error("target.table", subject.clone(), Outcome::Failed, &failure));
        }
        table(inner, plan, usable, &mut findings);
    }
    Ok(findings)
}

fn collision(one: &str, other: &str) -> Error {
    Error::task_broken(error::NAME_COLLISION, format!("{one} and {other} would be one table in the target"))
        .with_cause("DuckDB compares names without regard to upper and lower case")
        .with_cure(Cure::advice("give one of them another name in the target, or exclude it"))
}

/// Whether the file can be opened; one that is not there yet is not made.
fn file(inner: &Inner, path: &Path) -> Result<String> {
    if path.exists() {
        inner.database()?;
        return Ok("the file can be written".to_owned());
    }
    let resolved = resolved(path)?;
    let folder = resolved.parent().unwrap_or(Path::new("/"));
    let probe = folder.join(format!(".pgferry-check-{}", std::process::id()));
    let written = std::fs::File::create_new(&probe).and_then(|_| std::fs::remove_file(&probe));
    written.map_err(|failure| error::not_writable(&path.display().to_string(), failure.to_string()))?;
    Ok("the file will be made; its volume has to hold about half of the source's table bytes".to_owned())
}

fn table(inner: &Inner, plan: &TablePlan, usable: bool, findings: &mut Vec<Finding>) {
    let subject = plan.table.name.to_string();
    match column_mappings(&plan.table, &inner.wanted) {
        Err(failure) => {
            findings.push(Finding::from_error("target.mapping", subject, Outcome::Failed, &failure));
            return;
        }
        Ok(columns) => {
            let guarded = columns.into_iter().filter(|column| column.fidelity == Fidelity::Guarded);
            for column in guarded {
                findings.push(Finding {
                    check: "target.mapping",
                    subject: format!("{subject}.{}", column.column),
                    outcome: Outcome::Warning,
                    code: Some(error::NOT_REPRESENTABLE),
                    detail: format!("{} becomes {}: {}", column.source_type, column.target_type, column.note),
                    cause: None,
                    cure: Some(
                        Cure::advice("where such values are possible, take the column as text")
                            .line(format!("columns.{} = {{ type = \"string\" }}", column.column)),
                    ),
                });
            }
        }
    }
    let described = if usable { inner.describe(plan) } else { return };
    findings.push(match described {
        Ok(statements) if statements.is_empty() => Finding::passed("target.table", subject, "the table fits"),
        Ok(_) => Finding::passed("target.table", subject, "the table will be made"),
        Err(failure) => Finding::from_error("target.table", subject, Outcome::Failed, &failure),
    });
}
