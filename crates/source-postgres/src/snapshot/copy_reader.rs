//! A snapshot's rows enter here: one COPY per chunk, on a worker's own connection and thread.
//!
//! ```text
//!   COPY (SELECT columns FROM ONLY relation WHERE range) TO STDOUT (FORMAT binary)
//!      ──frames──> BinaryRows ──cells──> Batch ──RowSender──> the target's loader
//!   SELECT is it still the same relation; give its lock back      one message with the COPY: a chunk costs one round trip
//! ```
//!
//! Invariants: the batch is handed over when it is full by rows or bytes, and the reader then waits for the loader; the end mark is the
//! caller's to send, after the server's own end of the COPY and a look at what was read from. A text-mapped column is read through its type's output function, never by a
//! cast: casts of `inet`, `character(n)` and `boolean` give other text than the change stream does.

use std::sync::Arc;

use pgferry_model::{Batch, CellFormat, Cure, Error, Result, Table};
use pgferry_pipeline::{RowSender, failpoint};
use pgferry_postgres::{ResultRow, Session, quote_identifier, result_row};

use super::copy_binary::BinaryRows;
use super::plan::{Heap, PageRange};
use crate::error;

/// The statement that reads a range of a relation: of a whole one without a query where that says the same, because planning a query
/// takes as long as reading a small table.
pub(crate) fn copy_statement(
    table: &Table,
    heap: &Heap,
    range: &PageRange,
    formats: &[CellFormat],
    filters: &[&str],
    generates: bool,
) -> String {
    let columns: Vec<String> = table
        .columns
        .iter()
        .zip(formats)
        .map(|(column, format)| {
            let name = quote_identifier(&column.name);
            match format {
                CellFormat::Binary => name,
                CellFormat::Text => {
                    format!("pg_catalog.textin({}({name}))", column.data_type.output_function)
                }
            }
        })
        .collect();
    let relation = relation(heap);
    let conditions: Vec<String> =
        range.condition().into_iter().chain(filters.iter().map(|filter| format!("({filter})"))).collect();
    let plain = conditions.is_empty() && !generates && !formats.contains(&CellFormat::Text);
    if plain && !columns.is_empty() {
        // It reads this relation's own rows only, as ONLY does (PostgreSQL docs, "COPY").
        return format!("COPY {relation} ({}) TO STDOUT (FORMAT binary)", columns.join(", "));
    }
    let where_clause =
        if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    format!(
        "COPY (SELECT {} FROM ONLY {relation}{where_clause}) TO STDOUT (FORMAT binary)",
        columns.join(", ")
    )
}

/// The relation's name as SQL.
pub(crate) fn relation(heap: &Heap) -> String {
    format!("{}.{}", quote_identifier(&heap.schema), quote_identifier(&heap.name))
}

/// Runs the COPY and what follows it, in one message, and sends the COPY's rows. Returns their number, and the rows of what follows.
pub(crate) async fn copy_rows(
    session: &mut Session,
    statements: &str,
    table: &Arc<Table>,
    formats: Vec<CellFormat>,
    out: &RowSender,
) -> Result<(u64, Vec<ResultRow>)> {
    session.copy_out(statements).await?;
    let (rows_max, bytes_max) = (out.batch_rows_max(), out.batch_bytes_max());
    let mut rows = BinaryRows::new(formats);
    let (mut batch, mut answers) = (out.empty_batch(table), Vec::new());
    loop {
        while let Some(frame) = session.peek_frame()? {
            if frame.tag == b'd' && frame.is_large() {
                // A batch of its own, so that the target's form of it can be the memory in which it came.
                flush(&mut batch, table, out).await?;
                rows.take_large(&session.take_frame(), &mut batch)?;
                flush(&mut batch, table, out).await?;
                continue;
            }
            let done = match frame.tag {
                b'd' => {
                    rows.take(frame.body, &mut batch)?;
                    false
                }
                b'D' => {
                    answers.push(result_row(frame.body)?);
                    false
                }
                b'E' => return Err(session.server_error(frame.body, "reading a table")),
                b'Z' => true,
                _ => false,
            };
            session.consume_frame();
            if done {
                let count = rows.end()?;
                flush(&mut batch, table, out).await?;
                return Ok((count, answers));
            }
            if batch.len() >= rows_max || batch.bytes() >= bytes_max {
                failpoint::pass("source.mid_copy");
                flush(&mut batch, table, out).await?;
            }
        }
        if session.read_gathered().await? == 0 {
            return Err(Error::transient(
                error::STREAM_ENDED,
                "the server closed the connection in the middle of a COPY",
            )
            .with_cause("it was restarted, or the session was ended by a person, a timeout or the network")
            .with_cure(Cure::advice("nothing: the chunk is copied again")));
        }
    }
}

/// Hands over what is gathered.
async fn flush(batch: &mut Batch, table: &Arc<Table>, out: &RowSender) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let next = out.empty_batch(table);
    out.send(std::mem::replace(batch, next)).await
}

#[cfg(test)]
mod tests {
    use pgferry_model::{Column, DataType, TableId, TableName, TypeKind};

    use super::*;

    #[test]
    fn the_statement_quotes_names_and_joins_conditions() {
        let column = |name: &str, function: &str| Column {
            name: name.into(),
            data_type: DataType {
                oid: 869,
                name: "inet".into(),
                kind: TypeKind::Network,
                sends_binary: true,
                output_function: function.into(),
            },
            nullable: true,
        };
        let name = TableName::new("s", "t");
        let table = Table {
            id: TableId(0),
            target_name: name.clone(),
            name,
            columns: vec![column("a b", "pg_catalog.inet_out"), column("c", "x")],
            key: Vec::new(),
            key_enforced: false,
            full_identity: false,
            rows_estimated: 0,
            bytes: 0,
        };
        let heap = Heap {
            oid: 1,
            schema: "s".into(),
            name: "Käse".into(),
            bytes: 0,
            pages: 9,
            splittable: true,
            filter: None,
        };
        let range = PageRange { oid: 1, pages: Some((3, None)) };
        let formats = [CellFormat::Text, CellFormat::Binary];
        assert_eq!(
            copy_statement(&table, &heap, &range, &formats, &["x > 1"], false),
            "COPY (SELECT pg_catalog.textin(pg_catalog.inet_out(\"a b\")), \"c\" FROM ONLY \"s\".\"Käse\" \
             WHERE ctid >= '(3,0)'::pg_catalog.tid AND (x > 1)) TO STDOUT (FORMAT binary)"
        );
        let whole = PageRange { oid: 1, pages: None };
        let of = |formats: &[CellFormat], filters: &[&str], generates| {
            copy_statement(&table, &heap, &whole, formats, filters, generates)
        };
        let binary = [CellFormat::Binary; 2];
        let plain = "COPY \"s\".\"Käse\" (\"a b\", \"c\") TO STDOUT (FORMAT binary)";
        assert_eq!(of(&binary, &[], false), plain);
        for queried in [of(&formats, &[], false), of(&binary, &["x > 1"], false), of(&binary, &[], true)] {
            assert!(queried.starts_with("COPY (SELECT "), "{queried}");
        }
    }
}
