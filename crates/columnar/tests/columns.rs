//! Columns of hand-made batches: both cell forms, edge values, refusals, and random values against other arithmetic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, Decimal128Array, Int64Array, ListArray, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::Int32Type;
use bytes::Bytes;
use pgferry_columnar::{Encoding, Unfit, encode_column};
use pgferry_model::{Batch, CellFormat, Column, DataType, Op, Table, TableId, TableName, TypeKind};
use proptest::prelude::*;

enum In<'a> {
    Null,
    Unchanged,
    Text(&'a str),
    Raw(&'a [u8]),
    Binary(Vec<u8>),
}

fn data_type(kind: TypeKind) -> DataType {
    DataType { oid: 0, name: "x".into(), kind, sends_binary: true, output_function: "x".into() }
}

fn batch(kind: TypeKind, cells: &[In<'_>]) -> Batch {
    let column = Column { name: "c".into(), data_type: data_type(kind), nullable: true };
    let mut batch = Batch::new(Arc::new(Table {
        id: TableId(0),
        name: TableName::new("public", "t"),
        target_name: TableName::new("public", "t"),
        columns: vec![column],
        key: vec![0],
        key_enforced: true,
        full_identity: false,
        rows_estimated: 0,
        bytes: 0,
    }));
    for cell in cells {
        batch.start_row(Op::Insert, 0);
        batch.start_new();
        match cell {
            In::Null => batch.push_null(),
            In::Unchanged => batch.push_unchanged(),
            In::Text(text) => batch.push_value(CellFormat::Text, text.as_bytes()),
            In::Raw(bytes) => batch.push_value(CellFormat::Text, bytes),
            In::Binary(bytes) => batch.push_value(CellFormat::Binary, bytes),
        }
    }
    batch
}

fn encoded(kind: TypeKind, encoding: &Encoding, cells: &[In<'_>]) -> Result<ArrayRef, &'static str> {
    let batch = batch(kind, cells);
    let tuples: Vec<u32> = (0..batch.len()).filter_map(|row| batch.new_tuple_at(row)).collect();
    encode_column(&batch, &tuples, 0, encoding).map_err(|unfit| unfit.reason)
}

#[test]
fn a_value_apart_becomes_an_array_without_a_copy_where_it_is_alone() {
    let apart = |cells: &[(CellFormat, &[u8])], encoding: &Encoding| {
        let mut batch = batch(TypeKind::Text, &[]);
        let values: Vec<Bytes> = cells.iter().map(|cell| Bytes::copy_from_slice(cell.1)).collect();
        for (&(format, _), value) in cells.iter().zip(&values) {
            batch.start_row(Op::Insert, 0);
            batch.start_new();
            batch.push_apart(format, value.clone());
        }
        let tuples: Vec<u32> = (0..batch.len()).filter_map(|row| batch.new_tuple_at(row)).collect();
        let array = encode_column(&batch, &tuples, 0, encoding)?;
        let memory = values[0].as_ptr_range();
        let shared = array.to_data().buffers()[1].as_ptr();
        Ok::<_, Unfit>((memory.contains(&shared), array))
    };
    let (text, binary) = (CellFormat::Text, CellFormat::Binary);
    for (encoding, format, bytes, shared, expected) in [
        (Encoding::Utf8, text, "wert ä".as_bytes(), true, "wert ä".as_bytes()),
        (Encoding::Utf8, binary, b"value", true, b"value"),
        (Encoding::JsonbText, text, b"{}", true, b"{}"),
        (Encoding::JsonbText, binary, b"\x01{}", true, b"{}"),
        (Encoding::Binary, binary, b"\x00\xff", true, b"\x00\xff"),
        (Encoding::Binary, text, b"\\x00ff", false, b"\x00\xff"),
    ] {
        let (is_shared, array) = apart(&[(format, bytes)], &encoding).unwrap();
        assert_eq!(is_shared, shared, "{encoding:?} {format:?}");
        let value = array.as_string_opt::<i32>().map(|array| array.value(0).as_bytes());
        let value = value.unwrap_or_else(|| array.as_binary::<i32>().value(0));
        assert_eq!(value, expected, "{encoding:?} {format:?}");
    }
    let (shared, array) = apart(&[(text, b"one"), (text, b"two")], &Encoding::Utf8).unwrap();
    assert!(!shared);
    assert_eq!(array.as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["one", "two"]);
    assert!(apart(&[(text, b"\xff")], &Encoding::Utf8).is_err());
    assert!(apart(&[(binary, b"\x02{}")], &Encoding::JsonbText).is_err(), "an unknown version");
}

/// Words of the reasons; the first that occurs in a reason stands for it.
const FRACTION: &str = "fractional digits";
const RANGE: &str = "range";
const FINITE: &str = "finite";
const SHAPE: &str = "shape";
const UTF8: &str = "UTF-8";
const MALFORMED: &str = "malformed";

fn refused(kind: TypeKind, encoding: &Encoding, cell: In<'_>) -> &'static str {
    let reason = encoded(kind, encoding, &[cell]).unwrap_err();
    let words = [
        ("fractional digits", FRACTION),
        ("digits", RANGE),
        ("range", RANGE),
        ("NaN", FINITE),
        ("infinite", FINITE),
        ("dimension", SHAPE),
        ("first index", SHAPE),
        ("UTF-8", UTF8),
    ];
    words.into_iter().find(|(word, _)| reason.contains(word)).map_or(MALFORMED, |(_, meaning)| meaning)
}

fn numeric(precision: u8, scale: u8) -> (TypeKind, Encoding) {
    (
        TypeKind::Numeric { precision_and_scale: Some((precision.into(), scale.into())) },
        Encoding::Decimal { precision, scale: scale as i8 },
    )
}

/// What `numeric_send` writes for a decimal text, by its own string arithmetic: digits in groups of four around the point.
fn numeric_send(text: &str) -> Vec<u8> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (0x4000u16, digits),
        None => (0, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = format!("{}{whole}", "0".repeat((4 - whole.len() % 4) % 4));
    let padded = format!("{fraction}{}", "0".repeat((4 - fraction.len() % 4) % 4));
    let mut weight = (whole.len() / 4) as i16 - 1;
    let all = format!("{whole}{padded}");
    let mut groups: Vec<u16> =
        all.as_bytes().chunks(4).map(|four| std::str::from_utf8(four).unwrap().parse().unwrap()).collect();
    while groups.first() == Some(&0) {
        groups.remove(0);
        weight -= 1;
    }
    while groups.last() == Some(&0) {
        groups.pop();
    }
    if groups.is_empty() {
        weight = 0;
    }
    let head = [groups.len() as u16, weight as u16, sign, fraction.len() as u16];
    head.iter().chain(&groups).flat_map(|word| word.to_be_bytes()).collect()
}

#[test]
fn scalars_in_both_forms() {
    let cells = [In::Text("-5"), In::Binary((-5i64).to_be_bytes().to_vec()), In::Null, In::Unchanged];
    let array = encoded(TypeKind::Int8, &Encoding::Int64, &cells).unwrap();
    assert_eq!(
        array.as_any().downcast_ref::<Int64Array>().unwrap(),
        &Int64Array::from(vec![Some(-5), Some(-5), None, None])
    );
    let cells = [In::Text("t"), In::Binary(vec![0]), In::Null];
    let array = encoded(TypeKind::Bool, &Encoding::Bool, &cells).unwrap();
    assert_eq!(array.as_boolean().iter().collect::<Vec<_>>(), [Some(true), Some(false), None]);
    let cells = [In::Text("4294967295"), In::Binary(vec![0xFF; 4])];
    let array = encoded(TypeKind::Oid, &Encoding::UInt32, &cells).unwrap();
    assert_eq!(array.as_primitive::<arrow::datatypes::UInt32Type>().values(), &[u32::MAX, u32::MAX]);
    let cells =
        [In::Text("-0"), In::Binary((-0.0f64).to_be_bytes().to_vec()), In::Text("5e-324"), In::Text("NaN")];
    let array = encoded(TypeKind::Float8, &Encoding::Float64, &cells).unwrap();
    let bits: Vec<u64> = array
        .as_primitive::<arrow::datatypes::Float64Type>()
        .values()
        .iter()
        .map(|value| value.to_bits())
        .collect();
    assert_eq!(bits[..3], [(-0.0f64).to_bits(), (-0.0f64).to_bits(), 1]);
    let id = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    let raw = u128::from_str_radix(&id.replace('-', ""), 16).unwrap().to_be_bytes().to_vec();
    let array = encoded(TypeKind::Uuid, &Encoding::Uuid, &[In::Text(id), In::Binary(raw.clone())]).unwrap();
    assert_eq!(
        (array.as_fixed_size_binary().value(0), array.as_fixed_size_binary().value(1)),
        (&raw[..], &raw[..])
    );
    let cells = [In::Text("\\x00ff"), In::Binary(vec![0, 0xFF]), In::Text("\\x")];
    let array = encoded(TypeKind::Bytes, &Encoding::Binary, &cells).unwrap();
    assert_eq!(
        array.as_binary::<i32>().iter().collect::<Vec<_>>(),
        [Some(&[0u8, 255][..]); 2].into_iter().chain([Some(&[][..])]).collect::<Vec<_>>()
    );
}

#[test]
fn date_and_time_edges_in_binary_form() {
    let days = |days: i32| In::Binary(days.to_be_bytes().to_vec());
    let cells = [days(0), days(i32::MAX), days(i32::MIN), days(-2_451_545 + 1)];
    let array = encoded(TypeKind::Date, &Encoding::Date, &cells).unwrap();
    let expected = Date32Array::from(vec![10_957, i32::MAX, -i32::MAX, 10_957 - 2_451_544]);
    assert_eq!(array.as_any().downcast_ref::<Date32Array>().unwrap(), &expected);
    let us = |us: i64| In::Binary(us.to_be_bytes().to_vec());
    let cells = [us(0), us(i64::MAX), us(i64::MIN)];
    let array = encoded(TypeKind::Timestamp, &Encoding::Timestamp, &cells).unwrap();
    let expected = TimestampMicrosecondArray::from(vec![946_684_800_000_000, i64::MAX, -i64::MAX]);
    assert_eq!(array.as_any().downcast_ref::<TimestampMicrosecondArray>().unwrap(), &expected);
    let late = us(i64::MAX - 946_684_800_000_000);
    assert_eq!(refused(TypeKind::Timestamp, &Encoding::Timestamp, late), RANGE);
    let cells = [us(86_400_000_000), In::Text("24:00:00")];
    let array = encoded(TypeKind::Time, &Encoding::Time, &cells).unwrap();
    let values = array.as_primitive::<arrow::datatypes::Time64MicrosecondType>().values();
    assert_eq!(values, &[86_400_000_000, 86_400_000_000]);
    assert_eq!(refused(TypeKind::Time, &Encoding::Time, us(-1)), MALFORMED);
}

#[test]
fn numerics_that_do_not_fit_are_refused_in_both_forms() {
    let (kind, encoding) = numeric(10, 2);
    for (text, reason) in [
        ("1.005", FRACTION),
        ("0.001", FRACTION),
        ("0.00001", FRACTION),
        ("100000000", RANGE),
        ("100000000000000000000000000000000000000000000", RANGE),
    ] {
        assert_eq!(refused(kind.clone(), &encoding, In::Text(text)), reason, "{text}");
        let binary = In::Binary(numeric_send(text));
        assert_eq!(refused(kind.clone(), &encoding, binary), reason, "{text}");
    }
    for sign in [0xC000u16, 0xD000, 0xF000] {
        let special = [0u16, 0, sign, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
        assert_eq!(refused(kind.clone(), &encoding, In::Binary(special)), FINITE);
    }
    for broken in [
        vec![],
        vec![0; 7],
        vec![0, 1, 0, 0, 0, 0, 0, 0],
        vec![0, 1, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF],
        vec![0, 0, 0, 0, 0x12, 0, 0, 0],
    ] {
        assert_eq!(refused(kind.clone(), &encoding, In::Binary(broken)), MALFORMED);
    }
}

#[test]
fn wide_numerics_are_read_from_their_texts() {
    let kind = numeric(10, 2).0;
    let encoding = Encoding::WideDecimal { precision: 76, scale: 2 };
    let wide = format!("-{}.25", "9".repeat(74));
    // One that fills the lower half of the 32 bytes, and one more.
    let half = "3402823669209384634633746074317682114.55";
    let more = "3402823669209384634633746074317682114.56";
    let cells = [In::Text(&wide), In::Null, In::Text(half), In::Text(more), In::Text("0"), In::Unchanged];
    let array = encoded(kind.clone(), &encoding, &cells).unwrap();
    let array = array.as_primitive::<arrow::datatypes::Decimal256Type>();
    assert_eq!(array.data_type(), &arrow::datatypes::DataType::Decimal256(76, 2));
    let texts: Vec<Option<String>> =
        (0..cells.len()).map(|at| array.is_valid(at).then(|| array.value_as_string(at))).collect();
    let expected = [Some(wide.as_str()), None, Some(half), Some(more), Some("0.00"), None];
    assert_eq!(texts, expected.map(|text| text.map(str::to_owned)));
    assert_eq!(array.value(2).to_parts(), (u128::MAX, 0));
    assert_eq!(array.value(3).to_parts(), (0, 1));
    let long = "9".repeat(75);
    for (cell, reason) in [
        (In::Text("1.005"), FRACTION),
        (In::Text(&long), RANGE),
        (In::Text("NaN"), FINITE),
        (In::Text("-Infinity"), FINITE),
        (In::Text("1e5"), MALFORMED),
        (In::Binary(numeric_send("1.25")), MALFORMED),
    ] {
        assert_eq!(refused(kind.clone(), &encoding, cell), reason);
    }
}

#[test]
fn text_is_the_sources_text_in_both_forms() {
    let one = |kind: TypeKind, cell: In<'_>| -> String {
        encoded(kind, &Encoding::Utf8, &[cell]).unwrap().as_string::<i32>().value(0).to_owned()
    };
    assert_eq!(one(TypeKind::FixedText, In::Binary(b"ab   ".to_vec())), "ab   ");
    assert_eq!(one(TypeKind::Text, In::Text("a\u{1F980}")), "a\u{1F980}");
    let jsonb = |cell| encoded(TypeKind::Jsonb, &Encoding::JsonbText, &[cell]);
    for cell in [In::Binary(b"\x01{\"a\": 1}".to_vec()), In::Text("{\"a\": 1}")] {
        assert_eq!(jsonb(cell).unwrap().as_string::<i32>().value(0), "{\"a\": 1}");
    }
    assert!(jsonb(In::Binary(b"\x02{}".to_vec())).is_err());
    assert_eq!(refused(TypeKind::Text, &Encoding::Utf8, In::Raw(b"\xFF")), UTF8);
    // Halves of one character in two cells are not text, although the column's bytes together are.
    let halves = [In::Raw(b"\xC3"), In::Raw(b"\xA9")];
    assert!(encoded(TypeKind::Text, &Encoding::Utf8, &halves).is_err());
}

fn array_send(lower: i32, elements: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut out: Vec<u8> =
        [1, 1, 23, elements.len() as i32, lower].iter().flat_map(|word: &i32| word.to_be_bytes()).collect();
    for element in elements {
        match element {
            None => out.extend((-1i32).to_be_bytes()),
            Some(bytes) => {
                out.extend((bytes.len() as i32).to_be_bytes());
                out.extend(bytes);
            }
        }
    }
    out
}

#[test]
fn lists_in_both_forms() {
    let kind = |element| TypeKind::Array(Box::new(data_type(element)), 1);
    let encoding = Encoding::List(Box::new(Encoding::Int32));
    let four = |value: i32| Some(value.to_be_bytes().to_vec());
    let empty: Vec<u8> = [0i32, 0, 23].iter().flat_map(|word| word.to_be_bytes()).collect();
    let cells = [
        In::Text("{1,NULL,-3}"),
        In::Binary(array_send(1, &[four(1), None, four(-3)])),
        In::Text("{}"),
        In::Binary(empty),
        In::Null,
    ];
    let array = encoded(kind(TypeKind::Int4), &encoding, &cells).unwrap();
    let three = Some(vec![Some(1), None, Some(-3)]);
    let expected = ListArray::from_iter_primitive::<Int32Type, _, _>([
        three.clone(),
        three,
        Some(vec![]),
        Some(vec![]),
        None,
    ]);
    assert_eq!(array.as_list::<i32>(), &expected);
    let encoding = Encoding::List(Box::new(Encoding::Utf8));
    let text = "{a,\"\",\"NULL\",NULL,\"a \\\"b\\\" \\\\ {c},\",null}";
    let array = encoded(kind(TypeKind::Text), &encoding, &[In::Text(text)]).unwrap();
    let strings = array.as_list::<i32>().value(0);
    let expected = StringArray::from(vec![
        Some("a"),
        Some(""),
        Some("NULL"),
        None,
        Some("a \"b\" \\ {c},"),
        Some("null"),
    ]);
    assert_eq!(strings.as_string::<i32>(), &expected);
    for text in ["{{1,2},{3,4}}", "[0:1]={1,2}"] {
        assert_eq!(refused(kind(TypeKind::Text), &encoding, In::Text(text)), SHAPE);
    }
    for text in ["", "{", "{1", "{1,}", "{\"a}", "{\"a\"b}", "{1}x", "{,}", "{\"a\\"] {
        let refused = refused(kind(TypeKind::Text), &encoding, In::Text(text));
        assert_eq!(refused, MALFORMED, "{text}");
    }
    let int4 = Encoding::List(Box::new(Encoding::Int32));
    let shifted = In::Binary(array_send(0, &[four(1)]));
    assert_eq!(refused(kind(TypeKind::Int4), &int4, shifted), SHAPE);
    let mut cut = array_send(1, &[four(1)]);
    cut.pop();
    assert_eq!(refused(kind(TypeKind::Int4), &int4, In::Binary(cut)), MALFORMED);
}

#[test]
fn chosen_tuples_come_in_the_chosen_order() {
    let batch = batch(TypeKind::Int4, &[In::Text("1"), In::Text("2"), In::Text("3")]);
    let array = encode_column(&batch, &[2, 0, 0], 0, &Encoding::Int32).unwrap();
    assert_eq!(array.as_primitive::<Int32Type>().values(), &[3, 1, 1]);
}

/// PostgreSQL's text of a timestamp, by going through the years one by one within their 400-year cycle.
fn timestamp_text(us: i64, zone: &str) -> String {
    let (mut days, time) = (us.div_euclid(86_400_000_000) + 719_162, us.rem_euclid(86_400_000_000));
    let mut year = 1 + 400 * days.div_euclid(146_097);
    days = days.rem_euclid(146_097);
    let leap =
        |year: i64| year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0);
    while days >= 365 + i64::from(leap(year)) {
        days -= 365 + i64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    let (seconds, fraction) = (time / 1_000_000, time % 1_000_000);
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = if fraction == 0 { String::new() } else { format!(".{fraction:06}") };
    format!("{year:04}-{month:02}-{:02} {clock}{}{zone}{era}", days + 1, fraction.trim_end_matches('0'))
}

proptest! {
    #[test]
    fn random_numerics_agree_with_string_arithmetic(
        negative: bool, whole in "[1-9][0-9]{0,23}|0", fraction in "[0-9]{0,14}", scale in 0u8..=14
    ) {
        let kept = &fraction[..fraction.len().min(scale as usize)];
        let lost = fraction[kept.len()..].bytes().any(|digit| digit != b'0');
        let sign = if negative { "-" } else { "" };
        let point = if fraction.is_empty() { "" } else { "." };
        let text = format!("{sign}{whole}{point}{fraction}");
        let (kind, encoding) = numeric(38, scale);
        let from_text = encoded(kind.clone(), &encoding, &[In::Text(&text)]);
        let from_binary = encoded(kind, &encoding, &[In::Binary(numeric_send(&text))]);
        if lost {
            prop_assert!(from_text.unwrap_err().contains(FRACTION));
            prop_assert!(from_binary.unwrap_err().contains(FRACTION));
        } else {
            let zeros = "0".repeat(scale as usize - kept.len());
            let expected: i128 = format!("{sign}{whole}{kept}{zeros}").parse().unwrap();
            let expected = Decimal128Array::from(vec![expected]);
            let from_text = from_text.unwrap();
            prop_assert_eq!(from_text.as_primitive::<arrow::datatypes::Decimal128Type>().values(), expected.values());
            let from_binary = from_binary.unwrap();
            prop_assert_eq!(from_binary.as_primitive::<arrow::datatypes::Decimal128Type>().values(), expected.values());
        }
    }

    #[test]
    fn timestamps_come_back_from_their_text(us in -210_866_803_200_000_000i64..9_223_371_331_200_000_000, zone: bool) {
        let text = timestamp_text(us, if zone { "+00" } else { "" });
        let array = encoded(TypeKind::TimestampTz, &Encoding::TimestampTz, &[In::Text(&text)]).unwrap();
        prop_assert_eq!(array.as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(0), us);
    }

    #[test]
    fn floats_come_back_from_their_text(bits: u64, short: u32) {
        let (long, short) = (f64::from_bits(bits), f32::from_bits(short));
        prop_assume!(long.is_finite() && short.is_finite());
        let array = encoded(TypeKind::Float8, &Encoding::Float64, &[In::Text(&format!("{long:e}"))]).unwrap();
        prop_assert_eq!(array.as_primitive::<arrow::datatypes::Float64Type>().value(0).to_bits(), long.to_bits());
        let array = encoded(TypeKind::Float4, &Encoding::Float32, &[In::Text(&format!("{short:e}"))]).unwrap();
        prop_assert_eq!(array.as_primitive::<arrow::datatypes::Float32Type>().value(0).to_bits(), short.to_bits());
    }

    #[test]
    fn array_elements_come_back_from_their_text(elements in prop::collection::vec(prop::option::of(".{0,12}"), 0..6)) {
        let mut text = vec![b'{'];
        for (at, element) in elements.iter().enumerate() {
            if at > 0 { text.push(b','); }
            match element {
                Some(element) => {
                    let escaped = element.replace('\\', "\\\\").replace('"', "\\\"");
                    text.extend(format!("\"{escaped}\"").into_bytes());
                }
                None => text.extend(b"NULL"),
            }
        }
        text.push(b'}');
        let kind = TypeKind::Array(Box::new(data_type(TypeKind::Text)), 1);
        let array = encoded(kind, &Encoding::List(Box::new(Encoding::Utf8)), &[In::Raw(&text)]).unwrap();
        let values = array.as_list::<i32>().value(0);
        let back: Vec<Option<String>> = values.as_string::<i32>().iter().map(|value| value.map(str::to_owned)).collect();
        prop_assert_eq!(back, elements);
    }

    #[test]
    fn any_bytes_are_taken_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let list = |element| TypeKind::Array(Box::new(data_type(element)), 0);
        let (numeric_kind, decimal) = numeric(20, 4);
        for (kind, encoding) in [
            (numeric_kind, decimal),
            (TypeKind::Numeric { precision_and_scale: None }, Encoding::Utf8),
            (TypeKind::Date, Encoding::Date),
            (TypeKind::Timestamp, Encoding::Timestamp),
            (TypeKind::Time, Encoding::Time),
            (TypeKind::Uuid, Encoding::Uuid),
            (TypeKind::Bytes, Encoding::Binary),
            (list(TypeKind::Text), Encoding::List(Box::new(Encoding::Utf8))),
            (list(TypeKind::Int4), Encoding::List(Box::new(Encoding::Int32))),
        ] {
            let _ = encoded(kind.clone(), &encoding, &[In::Raw(&bytes)]);
            let _ = encoded(kind, &encoding, &[In::Binary(bytes.clone())]);
        }
    }
}
