//! A table's columns change in the middle of the stream.
//!
//! Nothing is in flight when this runs: what came before the change is durable. The change is not applied by itself: a new column's
//! default would be missing in the rows that are there, so the table is set aside and says what to do.

use std::sync::Arc;

use pgferry_model::{Cure, Error, Result, Slice, Table};

use crate::deliver::Courier;
use crate::error;

/// Sets a table aside because its columns changed.
///
/// In the middle of a sliced transaction the slices are dropped and the stream starts over, with the table's gate closed.
pub(crate) async fn block(courier: &Courier, table: &Arc<Table>, slice: Slice) -> Result<()> {
    let failure = blocked(table);
    if courier.settings.stop_on_table_error {
        return Err(failure.with_class(pgferry_model::Class::TaskBroken));
    }
    if slice == Slice::Part {
        courier.target.discard().await?;
        courier.set_aside(table, &failure).await?;
        return Err(failure.with_class(pgferry_model::Class::Transient));
    }
    courier.set_aside(table, &failure).await
}

/// The error of a table that followed the stream and has no key any more: its changes could not be told apart, nor may they be left
/// out in silence.
pub(crate) fn key_lost(table: &Table) -> Error {
    Error::table_broken(
        error::SCHEMA_CHANGE_BLOCKED,
        table.name.clone(),
        format!("{} has no key any more that the source sends with its changes", table.name),
    )
    .with_cause("its primary key was dropped, or its replica identity was changed: updates and deletes no longer say which row they mean")
    .with_cure(Cure::advice("give it its key back, then copy it again").resync_table(&table.name))
}

/// The error of a table whose columns changed.
pub(crate) fn blocked(table: &Table) -> Error {
    let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_ref()).collect();
    Error::table_broken(
        error::SCHEMA_CHANGE_BLOCKED,
        table.name.clone(),
        format!("the columns of {} changed at the source; they are now: {}", table.name, columns.join(", ")),
    )
    .with_cause(
        "rows that are in the target already may lack the new values, so the change is not applied by itself",
    )
    .with_cure(Cure::advice("stop the task, copy the table again, start it").resync_table(&table.name))
}
