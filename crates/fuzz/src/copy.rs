//! Any bytes as what COPY sends: rows in binary and text form, and their values as Arrow columns.
//!
//! ```text
//!   binary:  columns(1) { encoding(1) }* cut(1)  stream of COPY ... (FORMAT binary)
//!   text:    encoding(1)                         lines of COPY ... (FORMAT text)
//! ```

use std::sync::Arc;

use pgferry_columnar::{Encoding, encode_column};
use pgferry_model::{Batch, CellFormat, Column, DataType, Op, Table, TableId, TableName, TypeKind};
use pgferry_source_postgres::fuzzing::copy_binary;
use pgferry_testkit::compare::parse_line;

const COLUMNS_MAX: u8 = 8;

fn encoding(choice: u8) -> Encoding {
    let list = |element| Encoding::List(Box::new(element));
    match choice % 24 {
        0 => Encoding::Bool,
        1 => Encoding::Int16,
        2 => Encoding::Int32,
        3 => Encoding::Int64,
        4 => Encoding::UInt32,
        5 => Encoding::Float32,
        6 => Encoding::Float64,
        7 => Encoding::Decimal { precision: 12, scale: 2 },
        8 => Encoding::Decimal { precision: 38, scale: 0 },
        9 => Encoding::Decimal { precision: 38, scale: 38 },
        10 => Encoding::Utf8,
        11 => Encoding::JsonbText,
        12 => Encoding::Binary,
        13 => Encoding::Date,
        14 => Encoding::Time,
        15 => Encoding::Timestamp,
        16 => Encoding::TimestampTz,
        17 => Encoding::Uuid,
        18 => list(Encoding::Int32),
        19 => list(Encoding::Utf8),
        20 => list(Encoding::Decimal { precision: 20, scale: 6 }),
        21 => list(Encoding::TimestampTz),
        22 => list(Encoding::Bool),
        _ => list(Encoding::Binary),
    }
}

fn table(columns: usize) -> Arc<Table> {
    let column = |at: usize| Column {
        name: format!("c{at}").into(),
        data_type: DataType {
            oid: 25,
            name: "text".into(),
            kind: TypeKind::Text,
            sends_binary: true,
            output_function: "pg_catalog.textout".into(),
        },
        nullable: true,
    };
    let name = TableName::new("public", "t");
    Arc::new(Table {
        id: TableId(0),
        target_name: name.clone(),
        name,
        columns: (0..columns).map(column).collect(),
        key: Vec::new(),
        key_enforced: false,
        full_identity: false,
        rows_estimated: 0,
        bytes: 0,
    })
}

fn encode(batch: &Batch, encodings: &[Encoding]) {
    let tuples: Vec<u32> = (0..batch.len()).filter_map(|row| batch.new_tuple_at(row)).collect();
    for (column, encoding) in encodings.iter().enumerate() {
        if let Ok(array) = encode_column(batch, &tuples, column, encoding) {
            assert_eq!(array.len(), tuples.len(), "a column of another length than its rows");
            assert_eq!(array.data_type(), &encoding.arrow_type(), "a column of another type");
        }
    }
}

/// A stream cut in two ways has to give the same rows.
pub(crate) fn binary(bytes: &[u8]) {
    let Some((&columns, rest)) = bytes.split_first() else { return };
    let columns = usize::from(columns % COLUMNS_MAX + 1);
    let Some((choices, rest)) = rest.split_at_checked(columns) else { return };
    let Some((&cut, stream)) = rest.split_first() else { return };
    let (table, encodings) = (table(columns), choices.iter().map(|&choice| encoding(choice)));
    let encodings: Vec<Encoding> = encodings.collect();
    let format = |choice: &u8| if *choice < 128 { CellFormat::Binary } else { CellFormat::Text };
    let formats: Vec<CellFormat> = choices.iter().map(format).collect();
    let whole = copy_binary(&table, formats.clone(), std::iter::once(stream));
    let pieces = copy_binary(&table, formats, stream.chunks(usize::from(cut) + 1));
    match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => {
            let cells = |batch: &Batch| format!("{:?}", rows(batch));
            assert_eq!(cells(&whole), cells(&pieces), "a cut changes rows");
            encode(&whole, &encodings);
        }
        (whole, pieces) => {
            assert_eq!(whole.is_ok(), pieces.is_ok(), "a cut decides whether a stream is whole")
        }
    }
}

fn rows(batch: &Batch) -> Vec<Vec<pgferry_model::Cell<'_>>> {
    batch.rows().filter_map(|row| Some(row.new?.cells().collect())).collect()
}

pub(crate) fn text(bytes: &[u8]) {
    let Some((&choice, lines)) = bytes.split_first() else { return };
    let rows: Vec<_> = lines.split(|byte| *byte == b'\n').filter_map(|line| parse_line(line).ok()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0).min(COLUMNS_MAX.into());
    let mut batch = Batch::new(table(columns));
    for row in rows.iter().filter(|row| row.len() >= columns) {
        batch.start_row(Op::Insert, 0);
        batch.start_new();
        for cell in &row[..columns] {
            match cell {
                Some(text) => batch.push_value(CellFormat::Text, text.as_bytes()),
                None => batch.push_null(),
            }
        }
    }
    let encodings: Vec<Encoding> = (0..columns).map(|at| encoding(choice.wrapping_add(at as u8))).collect();
    encode(&batch, &encodings);
}
