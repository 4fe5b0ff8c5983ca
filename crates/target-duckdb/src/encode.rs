//! Tuples of a batch to the Arrow batch that DuckDB's appender takes.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{Field, Schema};
use arrow::record_batch::RecordBatch;
use pgferry_columnar::{Tuples, encode_column};
use pgferry_model::{Batch, Error, Result};

use crate::error;
use crate::mapping::Mapped;

/// Columns on their way into an Arrow batch.
#[derive(Default)]
pub(crate) struct Columns {
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl Columns {
    /// Adds columns of the tuples, by their indexes in the batch.
    pub(crate) fn encode(
        &mut self,
        batch: &Batch,
        tuples: Tuples<'_>,
        mapped: &[Mapped],
        indexes: impl IntoIterator<Item = usize>,
    ) -> Result<()> {
        for index in indexes {
            let Some(mapped) = mapped.get(index) else { continue };
            let array = encode_column(batch, tuples, index, &mapped.encoding)
                .map_err(|unfit| error::unfit(batch.table(), unfit))?;
            self.fields.push(mapped.encoding.field_of(&format!("c{index}"), array.data_type().clone()));
            self.arrays.push(array);
        }
        Ok(())
    }

    /// Adds a column that is made here.
    pub(crate) fn push(&mut self, name: &str, array: ArrayRef) {
        self.fields.push(Field::new(name, array.data_type().clone(), true));
        self.arrays.push(array);
    }

    pub(crate) fn finish(self) -> Result<RecordBatch> {
        RecordBatch::try_new(Arc::new(Schema::new(self.fields)), self.arrays)
            .map_err(|failure| Error::task_broken(error::FAILED, "rows cannot be encoded").with_origin(failure))
    }
}

/// All columns of the tuples.
pub(crate) fn record_batch(batch: &Batch, tuples: Tuples<'_>, mapped: &[Mapped]) -> Result<RecordBatch> {
    let mut columns = Columns::default();
    columns.encode(batch, tuples, mapped, 0..mapped.len())?;
    columns.finish()
}
