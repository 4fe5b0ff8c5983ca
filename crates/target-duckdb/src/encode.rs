//! Batches to Arrow: what DuckDB eats.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use pgferry_columnar::encode_column;
use pgferry_model::{Batch, Error, Result, Table};

use crate::error::{STATEMENT, mistake, unfit};
use crate::mapping::ColumnType;

/// The columns of one table, ready to encode.
pub(crate) struct Encoder {
    types: Vec<ColumnType>,
    schema: SchemaRef,
    key_schema: SchemaRef,
    /// The target's columns are in the source's order.
    pub(crate) in_order: bool,
}

impl Encoder {
    pub(crate) fn new(table: &Table, types: Vec<ColumnType>, in_order: bool) -> Self {
        let field = |at: usize| types[at].encoding.field(&table.columns[at].name);
        let schema = Schema::new((0..types.len()).map(field).collect::<Vec<_>>());
        let key_schema = Schema::new(table.key.iter().map(|&at| field(at)).collect::<Vec<_>>());
        Encoder { types, schema: Arc::new(schema), key_schema: Arc::new(key_schema), in_order }
    }

    pub(crate) fn types(&self) -> &[ColumnType] {
        &self.types
    }

    /// All columns of the tuples.
    pub(crate) fn rows(&self, batch: &Batch, tuples: &[u32]) -> Result<RecordBatch> {
        self.columns(batch, tuples, &(0..self.types.len()).collect::<Vec<_>>(), &self.schema)
    }

    /// The key's columns of the tuples.
    pub(crate) fn keys(&self, batch: &Batch, tuples: &[u32]) -> Result<RecordBatch> {
        self.columns(batch, tuples, &batch.table().key, &self.key_schema)
    }

    fn columns(
        &self,
        batch: &Batch,
        tuples: &[u32],
        columns: &[usize],
        schema: &SchemaRef,
    ) -> Result<RecordBatch> {
        let table = batch.table();
        let mut arrays = Vec::with_capacity(columns.len());
        for &column in columns {
            let kind = &self.types[column];
            let array = encode_column(batch, tuples, column, &kind.encoding)
                .map_err(|wrong| unfit(&table.name, &table.columns[column].name, &kind.name, wrong.reason))?;
            arrays.push(array);
        }
        RecordBatch::try_new(Arc::clone(schema), arrays).map_err(|failure| {
            Error::table_broken(
                STATEMENT,
                table.name.clone(),
                format!("rows of {} do not make a batch", table.name),
            )
            .with_cure(mistake().resync_table(&table.name))
            .with_origin(failure)
        })
    }
}
