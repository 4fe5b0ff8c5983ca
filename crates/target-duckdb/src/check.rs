//! What a run will need of the file: findings, in the order of work.

use pgferry_model::{Finding, Outcome, Result};
use pgferry_pipeline::{Fidelity, IfTargetExists, TablePlan, Target};

use crate::DuckdbTarget;
use crate::error::{NOT_REPRESENTABLE, TABLE_EXISTS};
use crate::schema::{column_types, existing, target_name, verify_existing};

/// Looks at the file and at every table's place in it.
pub(crate) fn findings(target: &DuckdbTarget, plans: &[TablePlan]) -> Result<Vec<Finding>> {
    let file = target.config.path.display().to_string();
    let connection = match target.reading() {
        Ok(connection) => connection,
        Err(failure) => return Ok(vec![Finding::from_error("target.file", file, Outcome::Failed, &failure)]),
    };
    let mut findings = vec![Finding::passed("target.file", file, "opened for writing")];
    let known = connection
        .query_row("SELECT count(*) FROM duckdb_tables() WHERE schema_name = 'pgferry'", [], |row| {
            row.get::<_, i64>(0)
        })
        .is_ok_and(|count| count > 0);
    for plan in plans {
        let subject = plan.table.name.to_string();
        findings.extend(mapping(target, plan, &subject));
        let (name, types) =
            (target_name(&target.config, &plan.table), column_types(&target.config, &plan.table));
        match existing(&connection, &name)? {
            None => findings.push(Finding::passed("target.table", subject, format!("{name} will be made"))),
            Some(columns) => match verify_existing(&name, &plan.table, &types, &columns) {
                Err(failure) if plan.if_exists != IfTargetExists::Replace => {
                    findings.push(Finding::from_error("target.table", subject, Outcome::Failed, &failure));
                }
                _ if known || plan.if_exists != IfTargetExists::Error => {
                    findings.push(Finding::passed("target.table", subject, format!("{name} is there")));
                }
                _ => findings.push(Finding {
                    outcome: Outcome::Failed,
                    code: Some(TABLE_EXISTS),
                    ..Finding::passed(
                        "target.table",
                        subject,
                        format!("{name} is there already, and this task did not make it"),
                    )
                }),
            },
        }
    }
    Ok(findings)
}

/// Columns whose type does not hold every value of the source's.
fn mapping(target: &DuckdbTarget, plan: &TablePlan, subject: &str) -> Vec<Finding> {
    match target.mapping(&plan.table) {
        Err(failure) => vec![Finding::from_error("target.mapping", subject, Outcome::Failed, &failure)],
        Ok(columns) => {
            let guarded: Vec<String> = columns
                .iter()
                .filter(|column| column.fidelity == Fidelity::Guarded)
                .map(|column| format!("{} {} ({})", column.column, column.target_type, column.note))
                .collect();
            if guarded.is_empty() {
                return vec![Finding::passed(
                    "target.mapping",
                    subject,
                    format!("{} columns, every value fits", columns.len()),
                )];
            }
            vec![Finding {
                outcome: Outcome::Passed,
                code: Some(NOT_REPRESENTABLE),
                ..Finding::passed(
                    "target.mapping",
                    subject,
                    format!("a value that does not fit would set the table aside: {}", guarded.join("; ")),
                )
            }]
        }
    }
}
