//! What a run will need of the server: findings, in the order of work.

use pgferry_model::{Class, Finding, Outcome, Result};
use pgferry_pipeline::{Fidelity, TablePlan, Target};

use crate::DatabendTarget;
use crate::error::NOT_REPRESENTABLE;
use crate::prepare::{Decision, Entries};
use crate::schema::qualified;
use crate::session::{Session, text};

/// Looks at the server and at every table's place in it.
pub(crate) async fn findings(target: &DatabendTarget, plans: &[TablePlan]) -> Result<Vec<Finding>> {
    let place = target.settings.place.clone();
    let connected = match Session::connect(&target.settings).await {
        Ok(session) => match session.ask("asking for the version", "SELECT version()").await {
            Ok(rows) => Ok((session, rows)),
            Err(failure) => Err(failure),
        },
        Err(failure) => Err(failure),
    };
    let (session, rows) = match connected {
        Ok(connected) => connected,
        Err(failure) => {
            return Ok(vec![Finding::from_error("target.connection", place, Outcome::Failed, &failure)]);
        }
    };
    let version = rows.first().map(|row| text(row, 0)).unwrap_or_default();
    let version = version.split(['(', '-']).next().unwrap_or_default().trim().to_owned();
    let mut findings = vec![Finding::passed("target.connection", place, version)];
    let entries = Entries::read(&session, &target.settings, plans).await?;
    let task = target.holder().map(|holder| holder.task.clone());
    for plan in plans {
        let subject = plan.table.name.to_string();
        findings.extend(mapping(target, plan, &subject));
        findings.push(match entries.decide(&target.settings, task.as_ref(), plan) {
            Ok(decision) => Finding::passed("target.table", subject, told(&decision, &entries)),
            // What belongs to the table is a finding; what keeps from looking is not.
            Err(failure) if failure.class() == Class::TableBroken => {
                Finding::from_error("target.table", subject, Outcome::Failed, &failure)
            }
            Err(failure) => return Err(failure),
        });
    }
    Ok(findings)
}

fn told(decision: &Decision, entries: &Entries) -> String {
    let target = &decision.target;
    match (decision.statements.is_empty(), entries.is_there(target)) {
        (true, _) => format!("{target} is there"),
        (false, true) => format!("{target} will be made anew"),
        (false, false) => format!("{target} will be made"),
    }
}

/// The statements that `prepare` would run on the table.
pub(crate) async fn statements(target: &DatabendTarget, plan: &TablePlan) -> Result<Vec<String>> {
    let session = Session::connect(&target.settings).await?;
    let entries = Entries::read(&session, &target.settings, std::slice::from_ref(plan)).await?;
    let task = target.holder().map(|holder| holder.task.clone());
    match entries.decide(&target.settings, task.as_ref(), plan) {
        Ok(decision) if decision.emptied => Ok(vec![format!("DELETE FROM {}", qualified(&decision.target))]),
        Ok(decision) => Ok(decision.statements),
        // `check` tells it.
        Err(failure) if failure.class() == Class::TableBroken => Ok(Vec::new()),
        Err(failure) => Err(failure),
    }
}

/// Columns whose type does not hold every value of the source's.
fn mapping(target: &DatabendTarget, plan: &TablePlan, subject: &str) -> Vec<Finding> {
    let columns = match target.mapping(&plan.table) {
        Ok(columns) => columns,
        Err(failure) => {
            return vec![Finding::from_error("target.mapping", subject, Outcome::Failed, &failure)];
        }
    };
    let guarded: Vec<String> = columns
        .iter()
        .filter(|column| column.fidelity == Fidelity::Guarded)
        .map(|column| format!("{} {} ({})", column.column, column.target_type, column.note))
        .collect();
    if guarded.is_empty() {
        let detail = format!("{} columns, every value fits", columns.len());
        return vec![Finding::passed("target.mapping", subject, detail)];
    }
    let detail = format!("a value that does not fit would set the table aside: {}", guarded.join("; "));
    vec![Finding {
        outcome: Outcome::Passed,
        code: Some(NOT_REPRESENTABLE),
        ..Finding::passed("target.mapping", subject, detail)
    }]
}
