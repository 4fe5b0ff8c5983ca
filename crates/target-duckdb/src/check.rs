//! What a run will need of the file: findings, in the order of work.

use duckdb::Connection;
use pgferry_model::{Class, Cure, Error, Finding, Outcome, Result, TableState};
use pgferry_pipeline::{Fidelity, IfTargetExists, TablePlan, Target};

use crate::DuckdbTarget;
use crate::error::{MEMORY_SHORT, NOT_REPRESENTABLE, refused, table_exists};
use crate::schema::{
    Entries, column_types, create_statements, owner_before, qualified, remake_statements, target_name,
    verify_existing,
};

/// What a column of a table that has changed holds until the next checkpoint, however little it is: a block (DuckDB source,
/// `ColumnData::AppendTransientSegment`).
const BLOCK_BYTES: u64 = 1 << 18;

/// Looks at the file and at every table's place in it.
pub(crate) fn findings(target: &DuckdbTarget, plans: &[TablePlan]) -> Result<Vec<Finding>> {
    let file = target.config.path.display().to_string();
    let connection = match target.reading() {
        Ok(connection) => connection,
        Err(failure) => return Ok(vec![Finding::from_error("target.file", file, Outcome::Failed, &failure)]),
    };
    let entries = Entries::read(&connection)?;
    let mut findings = vec![Finding::passed("target.file", &*file, "opened for writing")];
    findings.push(memory(&connection, plans, &file)?);
    for plan in plans {
        let subject = plan.table.name.to_string();
        findings.extend(mapping(target, plan, &subject));
        findings.push(match place(target, &connection, plan, &entries)? {
            Ok(detail) => Finding::passed("target.table", subject, detail),
            Err(failure) => Finding::from_error("target.table", subject, Outcome::Failed, &failure),
        });
    }
    Ok(findings)
}

/// Whether DuckDB can hold what it needs where every table changes: it writes to disk what it cannot, and reads it again.
fn memory(connection: &Connection, plans: &[TablePlan], file: &str) -> Result<Finding> {
    let asked = "SELECT parse_formatted_bytes(current_setting('memory_limit'))";
    let limit: u64 = connection
        .query_row(asked, [], |row| row.get(0))
        .map_err(|failure| refused("asking for the memory limit", failure))?;
    let columns: u64 = plans.iter().map(|plan| plan.table.columns.len() as u64).sum();
    let (held, gigabytes) = (columns * BLOCK_BYTES, |bytes: u64| bytes as f64 / 1e9);
    if held <= limit / 4 * 3 {
        let detail = format!("{columns} columns change within DuckDB's {:.1} GB", gigabytes(limit));
        return Ok(Finding::passed("target.memory", file, detail));
    }
    let problem = format!(
        "{columns} columns of {} tables can hold {:.1} GB, and DuckDB's memory limit is {:.1} GB",
        plans.len(),
        gigabytes(held),
        gigabytes(limit)
    );
    let wanted = (held * 3 / 2).div_ceil(1_000_000_000);
    let short = Error::task_broken(MEMORY_SHORT, problem)
        .with_cause("a table that has changed holds 256 kB for each of its columns until the next checkpoint; what has no room goes to disk and comes back")
        .with_cure(
            Cure::advice("let DuckDB hold more, where all of them change: the line belongs to the connection in the task file")
                .line(format!("memory_limit = \"{wanted}GB\"")),
        );
    Ok(Finding::from_error("target.memory", file, Outcome::Warning, &short))
}

/// What `prepare` would find where the table goes: that it is as it has to be, or the error that it would end with.
fn place(
    target: &DuckdbTarget,
    connection: &Connection,
    plan: &TablePlan,
    entries: &Entries,
) -> Result<std::result::Result<String, Error>> {
    let table = &plan.table;
    let (name, types) = (target_name(&target.config, table), column_types(&target.config, table));
    let task = target.task();
    let found = entries.existing(connection, &name)?;
    let free =
        entries.verify_no_view(table, &name).and_then(|()| owner_before(task.as_ref(), plan, &name, entries));
    match free {
        Ok(_) => {}
        // What belongs to the table is a finding; what keeps from looking is not.
        Err(failure) if failure.class() == Class::TableBroken => return Ok(Err(failure)),
        Err(failure) => return Err(failure),
    }
    let Some(columns) = found else {
        return Ok(Ok(format!("{name} will be made")));
    };
    let owner = entries.owners(&name).find(|owner| owner.is(task.as_ref(), &table.name));
    let remade = match &owner {
        Some(owner) => {
            owner.state == TableState::Waiting
                && !remake_statements(&name, plan, &types, Some(&columns)).is_empty()
        }
        None => plan.if_exists == IfTargetExists::Replace,
    };
    if remade {
        return Ok(Ok(format!("{name} will be made anew")));
    }
    if owner.is_none() && plan.if_exists == IfTargetExists::Error {
        return Ok(Err(table_exists(&table.name, &name)));
    }
    Ok(verify_existing(&name, table, &types, &columns).map(|()| format!("{name} is there")))
}

/// The statements that `prepare` would run.
pub(crate) fn statements(target: &DuckdbTarget, plan: &TablePlan) -> Result<Vec<String>> {
    let table = &plan.table;
    let (name, types) = (target_name(&target.config, table), column_types(&target.config, table));
    let connection = target.reading()?;
    let entries = Entries::read(&connection)?;
    let (found, task) = (entries.existing(&connection, &name)?, target.task());
    if let Some(owner) = entries.owners(&name).find(|owner| owner.is(task.as_ref(), &table.name)) {
        let waits = owner.state == TableState::Waiting;
        return Ok(if waits { remake_statements(&name, plan, &types, found.as_deref()) } else { Vec::new() });
    }
    Ok(match (found, plan.if_exists) {
        (Some(_), IfTargetExists::Replace) => {
            let mut statements = vec![format!("DROP TABLE {}", qualified(&name))];
            statements.extend(create_statements(&name, table, &types));
            statements
        }
        (Some(_), IfTargetExists::Truncate) => vec![format!("DELETE FROM {}", qualified(&name))],
        (Some(_), IfTargetExists::Error | IfTargetExists::Append) => Vec::new(),
        (None, _) => create_statements(&name, table, &types),
    })
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
