//! Values: every type at its edges, as a snapshot and as a change, as keys too; and wide rows.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pgferry_model::{Batch, Class, Column, Op, Table, TableId, TypeKind};
use pgferry_pipeline::Fidelity;

use super::source_values::{Source, SourceType, Value};
use super::stage::{Changes, KEPT, Stage, data_type, load, table, text_row};
use super::{Scene, Verdict};

/// Values in keys stay below this many bytes: an index entry of PostgreSQL holds at most 2704.
const KEY_BYTES_MAX: usize = 2_000;

/// A type's table: id, v, n; the values of `v` that the target holds, with their ids.
struct Carried<'t> {
    found: &'t SourceType,
    table: Arc<Table>,
    fidelity: Fidelity,
    fitting: Vec<(String, &'t Value)>,
    misfits: Vec<&'t Value>,
}

fn table_of(at: usize, found: &SourceType, key: &[usize]) -> Arc<Table> {
    let made = table(found.column, &[("id", TypeKind::Int4), ("n", TypeKind::Int4)], key);
    let value = Column { name: "v".into(), data_type: found.data_type.clone(), nullable: true };
    let mut columns = made.columns.clone();
    columns.insert(1, value);
    Arc::new(Table { id: TableId(at as u32), columns, ..made })
}

/// Loads values as a snapshot brings them; the rows' ids are given.
async fn load_values(
    stage: &Stage<'_>,
    table: &Arc<Table>,
    number: u32,
    rows: &[(String, &Value)],
) -> pgferry_model::Result<u64> {
    let mut batch = Batch::new(Arc::clone(table));
    let formats: Vec<_> =
        table.columns.iter().map(|column| stage.target.snapshot_format(table, column)).collect();
    for (id, value) in rows {
        batch.start_row(Op::Insert, 0);
        batch.start_new();
        let number = id.parse::<i32>().unwrap_or_default().to_be_bytes();
        for (at, text) in [(0, id.as_str()), (1, ""), (2, "0")] {
            let wanted = formats[at];
            let (format, bytes) = match (at, wanted) {
                (1, _) => value.cell(wanted),
                (_, pgferry_model::CellFormat::Text) => (wanted, text.as_bytes()),
                (0, _) => (wanted, &number[..]),
                _ => (wanted, &[0; 4][..]),
            };
            batch.push_value(format, bytes);
        }
    }
    load(&*stage.target, number, batch).await
}

/// Loads a type's values: together, or, where some do not fit, each as a chunk of its own.
async fn carry<'t>(
    stage: &Stage<'_>,
    found: &'t SourceType,
    table: Arc<Table>,
    values: Vec<&'t Value>,
) -> Result<Carried<'t>> {
    let mapping = stage.target.mapping(&table)?;
    let mapped = mapping.get(1).context("a mapping of the column")?;
    let fidelity = mapped.fidelity;
    let noted = matches!(fidelity, Fidelity::Exact | Fidelity::ExactAsText) || !mapped.note.is_empty();
    ensure!(noted, "{fidelity:?} without a note");
    stage.copying(&table, &[]).await?;
    let rows: Vec<(String, &Value)> =
        values.iter().enumerate().map(|(at, value)| ((at + 1).to_string(), *value)).collect();
    let mut carried = Carried { found, table, fidelity, fitting: Vec::new(), misfits: Vec::new() };
    match load_values(stage, &carried.table, 1, &rows).await {
        Ok(_) => carried.fitting = rows,
        Err(failure) if failure.class() == Class::TableBroken && fidelity == Fidelity::Guarded => {
            for (at, row) in rows.into_iter().enumerate() {
                match load_values(stage, &carried.table, at as u32 + 2, std::slice::from_ref(&row)).await {
                    Ok(_) => carried.fitting.push(row),
                    Err(failure) => {
                        ensure!(failure.class() == Class::TableBroken, "a misfit is {failure}");
                        ensure!(failure.table() == Some(&carried.table.name), "a misfit of another table");
                        carried.misfits.push(row.1);
                    }
                }
            }
        }
        Err(failure) => return Err(failure).with_context(|| format!("{fidelity:?} values were refused")),
    }
    stage.target.set_state(&carried.table, pgferry_model::TableState::Live).await?;
    Ok(carried)
}

/// The rows are those that fit, as the source shows them; only [`Fidelity::Equal`] may show another form of the same value.
async fn verify(
    stage: &Stage<'_>,
    source: &Source,
    carried: &Carried<'_>,
    wanted: &[(String, &str, &str)],
) -> Result<()> {
    let rows = stage.rows(&carried.table).await?;
    ensure!(rows.len() == wanted.len(), "{} rows, not {}", rows.len(), wanted.len());
    for (id, value, n) in wanted {
        let row = rows.iter().find(|row| row[0].as_deref() == Some(id)).context("a row is missing")?;
        ensure!(row[2].as_deref() == Some(*n), "n of row {id} is {:?}", row[2]);
        let found = row[1].as_deref().with_context(|| format!("row {id} became NULL"))?;
        let same = found == *value
            || (carried.fidelity == Fidelity::Equal
                && source.equal(&carried.found.data_type, value, found).await?);
        ensure!(same, "{:?}: {:.200} became {found:.200}", carried.fidelity, value);
    }
    Ok(())
}

/// A snapshot brings each value in the form that the target wants, a change in its text; both have to arrive, or, where the
/// mapping says that some do not fit, to be refused as the table's error.
pub(super) async fn every_value_of_every_type_arrives_or_is_refused(scene: &dyn Scene) -> Result<Verdict> {
    let source = Source::read().await?;
    ensure!(source.types.len() > 100, "{} types", source.types.len());
    let mut stage = Stage::open(scene).await?;
    let mut all = Vec::new();
    let mut position = 1000;
    for (at, found) in source.types.iter().enumerate() {
        let table = table_of(at, found, &[0]);
        let carried = carry(&stage, found, table, found.values.iter().collect()).await;
        let carried = carried.with_context(|| format!("loading {}", found.data_type.name))?;
        let told = || format!("changing {}", found.data_type.name);
        for value in &carried.misfits {
            position += 100;
            let changes = Changes::of(&carried.table).insert(&["9999", &value.text, "1"]);
            let refused = stage.apply(position, vec![changes]).await?;
            super::stage::table_broken(refused, &carried.table, "applying a misfit").with_context(told)?;
        }
        let mut changes = Changes::of(&carried.table);
        for (id, value) in &carried.fitting {
            // The row of the snapshot changes elsewhere, and keeps its value; a new one brings it as text.
            changes = changes.update(&[id, KEPT, "1"]).insert(&[&format!("1{id:0>5}"), &value.text, "2"]);
        }
        position += 100;
        stage.deliver(position, vec![changes]).await.with_context(told)?;
        all.push(carried);
    }
    // What a target stores may be written anew when it is closed.
    stage.target.close().await?;
    (stage, _) = stage.restart().await?;
    for carried in &all {
        let mut wanted = Vec::new();
        for (id, value) in &carried.fitting {
            wanted.push((id.clone(), value.text.as_str(), "1"));
            wanted.push((format!("1{id:0>5}"), value.text.as_str(), "2"));
        }
        let verified = verify(&stage, &source, carried, &wanted).await;
        verified.with_context(|| format!("reading {} back", carried.found.data_type.name))?;
    }
    Ok(Verdict::Kept)
}

/// Rows whose key has a column of the type are found by it: one is changed, one is deleted, in turns.
pub(super) async fn keys_of_every_type_find_their_rows(scene: &dyn Scene) -> Result<Verdict> {
    let source = Source::read().await?;
    let stage = Stage::open(scene).await?;
    let mut position = 1000;
    let mut tested = 0;
    for (at, found) in source.types.iter().enumerate().filter(|(_, found)| found.keys) {
        let table = table_of(at, found, &[0, 1]);
        let values = found.values.iter().filter(|value| value.text.len() < KEY_BYTES_MAX).collect();
        let told = || format!("a key of {}", found.data_type.name);
        let carried = carry(&stage, found, table, values).await.with_context(told)?;
        let mut changes = Changes::of(&carried.table);
        let mut wanted = Vec::new();
        for (at, (id, value)) in carried.fitting.iter().enumerate() {
            if at % 3 == 1 {
                changes = changes.delete(&[id, &value.text]);
            } else {
                changes = changes.update(&[id, &value.text, "7"]);
                wanted.push((id.clone(), value.text.as_str(), "7"));
            }
        }
        position += 100;
        stage.deliver(position, vec![changes]).await.with_context(told)?;
        verify(&stage, &source, &carried, &wanted).await.with_context(told)?;
        tested += 1;
    }
    ensure!(tested > 50, "{tested} types were keys");
    Ok(Verdict::Kept)
}

pub(super) async fn three_hundred_columns(scene: &dyn Scene) -> Result<Verdict> {
    let made = table("broad", &[], &[0]);
    let columns = (0..300).map(|at| Column {
        name: format!("c{at}").into(),
        data_type: data_type("text", TypeKind::Text),
        nullable: true,
    });
    let broad = Arc::new(Table { columns: columns.collect(), ..made });
    let texts: Vec<Vec<String>> =
        (10..60).map(|row| (0..300).map(|column| format!("{row}-{column}")).collect()).collect();
    let rows: Vec<Vec<&str>> = texts.iter().map(|row| row.iter().map(String::as_str).collect()).collect();
    let slices: Vec<&[&str]> = rows.iter().map(Vec::as_slice).collect();
    let stage = Stage::live(scene, &[(&broad, &slices)]).await?;
    let mut change = vec![KEPT; 300];
    (change[0], change[150], change[299]) = ("17-0", super::stage::NULL, "new");
    stage.deliver(200, vec![Changes::of(&broad).update(&change).delete(&["10-0"])]).await?;
    let mut wanted: Vec<_> = slices[1..].iter().map(|row| text_row(row)).collect();
    (wanted[6][150], wanted[6][299]) = (None, Some("new".into()));
    ensure!(stage.rows(&broad).await? == wanted, "a row of 300 columns changed where it must not");
    Ok(Verdict::Kept)
}
