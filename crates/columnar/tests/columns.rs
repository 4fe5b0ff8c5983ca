//! Columns of hand-made batches: both cell forms, edge values, refusals, and random values against other arithmetic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, Decimal128Array, Int64Array, ListArray, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::Int32Type;
use pgferry_columnar::{Encoding, encode_column};
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

fn encoded(kind: TypeKind, encoding: &Encoding, cells: &[In<'_>]) -> Result<ArrayRef, Reason> {
    encode_column(&batch(kind, cells), Tuples::New, 0, encoding).map_err(|unfit| {
        assert_eq!(unfit, Unfit { column: 0, reason: unfit.reason });
        unfit.reason
    })
}

fn numeric(precision: u8, scale: u8) -> (TypeKind, Encoding) {
    (
        TypeKind::Numeric { precision_and_scale: Some((precision.into(), scale.into())) },
        Encoding::Decimal128 { precision, scale },
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
    assert_eq!(array.as_any().downcast_ref::<Int64Array>().unwrap(), &Int64Array::from(vec![
        Some(-5),
        Some(-5),
        None,
        None
    ]));
    let cells = [In::Text("t"), In::Binary(vec![0]), In::Null];
    let array = encoded(TypeKind::Bool, &Encoding::Bool, &cells).unwrap();
    assert_eq!(array.as_boolean().iter().collect::<Vec<_>>(), [Some(true), Some(false), None]);
    let cells = [In::Text("4294967295"), In::Binary(vec![0xFF; 4])];
    let array = encoded(TypeKind::Oid, &Encoding::UInt32, &cells).unwrap();
    assert_eq!(array.as_primitive::<arrow::datatypes::UInt32Type>().values(), &[u32::MAX, u32::MAX]);
    let cells = [In::Text("-0"), In::Binary((-0.0f64).to_be_bytes().to_vec()), In::Text("5e-324"), In::Text("NaN")];
    let array = encoded(TypeKind::Float8, &Encoding::Float64, &cells).unwrap();
    let bits: Vec<u64> =
        array.as_primitive::<arrow::datatypes::Float64Type>().values().iter().map(|value| value.to_bits()).collect();
    assert_eq!(bits[..3], [(-0.0f64).to_bits(), (-0.0f64).to_bits(), 1]);
    let id = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    let raw = u128::from_str_radix(&id.replace('-', ""), 16).unwrap().to_be_bytes().to_vec();
    let array = encoded(TypeKind::Uuid, &Encoding::Uuid, &[In::Text(id), In::Binary(raw.clone())]).unwrap();
    assert_eq!((array.as_fixed_size_binary().value(0), array.as_fixed_size_binary().value(1)), (&raw[..], &raw[..]));
    let cells = [In::Text("\\x00ff"), In::Binary(vec![0, 0xFF]), In::Text("\\x")];
    let array = encoded(TypeKind::Bytes, &Encoding::Binary, &cells).unwrap();
    assert_eq!(array.as_binary::<i32>().iter().collect::<Vec<_>>(), [Some(&[0u8, 255][..]); 2].into_iter().chain([Some(
        &[][..]
    )]).collect::<Vec<_>>());
}

#[test]
fn date_and_time_edges_in_binary_form() {
    let days = |days: i32| In::Binary(days.to_be_bytes().to_vec());
    let cells = [days(0), days(i32::MAX), days(i32::MIN), days(-2_451_545 + 1)];
    let array = encoded(TypeKind::Date, &Encoding::Date32, &cells).unwrap();
    let expected = Date32Array::from(vec![10_957, i32::MAX, -i32::MAX, 10_957 - 2_451_544]);
    assert_eq!(array.as_any().downcast_ref::<Date32Array>().unwrap(), &expected);
    let us = |us: i64| In::Binary(us.to_be_bytes().to_vec());
    let cells = [us(0), us(i64::MAX), us(i64::MIN)];
    let array = encoded(TypeKind::Timestamp, &Encoding::TimestampMicros, &cells).unwrap();
    let expected = TimestampMicrosecondArray::from(vec![946_684_800_000_000, i64::MAX, -i64::MAX]);
    assert_eq!(array.as_any().downcast_ref::<TimestampMicrosecondArray>().unwrap(), &expected);
    let late = us(i64::MAX - 946_684_800_000_000);
    assert_eq!(encoded(TypeKind::Timestamp, &Encoding::TimestampMicros, &[late]).unwrap_err(), Reason::OutOfRange);
    let cells = [us(86_400_000_000), In::Text("24:00:00")];
    let array = encoded(TypeKind::Time, &Encoding::TimeMicros, &cells).unwrap();
    let values = array.as_primitive::<arrow::datatypes::Time64MicrosecondType>().values();
    assert_eq!(values, &[86_400_000_000, 86_400_000_000]);
    assert_eq!(encoded(TypeKind::Time, &Encoding::TimeMicros, &[us(-1)]).unwrap_err(), Reason::Malformed);
}

#[test]
fn numerics_that_do_not_fit_are_refused_in_both_forms() {
    let (kind, encoding) = numeric(10, 2);
    for (text, reason) in [
        ("1.005", Reason::FractionTooLong),
        ("0.001", Reason::FractionTooLong),
        ("0.00001", Reason::FractionTooLong),
        ("100000000", Reason::OutOfRange),
        ("100000000000000000000000000000000000000000000", Reason::OutOfRange),
    ] {
        assert_eq!(encoded(kind.clone(), &encoding, &[In::Text(text)]).unwrap_err(), reason, "{text}");
        let binary = In::Binary(numeric_send(text));
        assert_eq!(encoded(kind.clone(), &encoding, &[binary]).unwrap_err(), reason, "{text}");
    }
    for sign in [0xC000u16, 0xD000, 0xF000] {
        let special = [0u16, 0, sign, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
        assert_eq!(encoded(kind.clone(), &encoding, &[In::Binary(special)]).unwrap_err(), Reason::NotFinite);
    }
    for broken in [vec![], vec![0; 7], vec![0, 1, 0, 0, 0, 0, 0, 0], vec![0, 1, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]] {
        assert_eq!(encoded(kind.clone(), &encoding, &[In::Binary(broken)]).unwrap_err(), Reason::Malformed);
    }
}

#[test]
fn text_is_the_sources_text_in_both_forms() {
    let one = |kind: TypeKind, cell: In<'_>| -> String {
        encoded(kind, &Encoding::Utf8, &[cell]).unwrap().as_string::<i32>().value(0).to_owned()
    };
    let free = || TypeKind::Numeric { precision_and_scale: None };
    for text in ["0", "-1", "12345678901234567890.000100", "0.00000001", "10000", "NaN"] {
        let binary = match text {
            "NaN" => vec![0, 0, 0, 0, 0xC0, 0, 0, 0],
            _ => numeric_send(text),
        };
        assert_eq!(one(free(), In::Binary(binary)), text);
        assert_eq!(one(free(), In::Text(text)), text);
    }
    assert_eq!(one(TypeKind::Jsonb, In::Binary(b"\x01{\"a\": 1}".to_vec())), "{\"a\": 1}");
    assert_eq!(one(TypeKind::FixedText, In::Binary(b"ab   ".to_vec())), "ab   ");
    assert_eq!(one(TypeKind::Bool, In::Binary(vec![1])), "t");
    assert_eq!(one(TypeKind::Float8, In::Binary(1e15f64.to_be_bytes().to_vec())), "1e+15");
    assert_eq!(one(TypeKind::TimestampTz, In::Binary(0i64.to_be_bytes().to_vec())), "2000-01-01 00:00:00+00");
    assert_eq!(one(TypeKind::Bytes, In::Binary(vec![1, 0xAB])), "\\x01ab");
    let refused = |kind, cell| encoded(kind, &Encoding::Utf8, &[cell]).unwrap_err();
    assert_eq!(refused(TypeKind::Jsonb, In::Binary(b"\x02{}".to_vec())), Reason::Malformed);
    assert_eq!(refused(TypeKind::Interval, In::Binary(vec![0; 16])), Reason::NoTextForm);
    assert_eq!(refused(TypeKind::Text, In::Raw(b"\xFF")), Reason::NotUtf8);
    // Halves of one character in two cells are not text, although the column's bytes together are.
    let halves = [In::Raw(b"\xC3"), In::Raw(b"\xA9")];
    assert_eq!(encoded(TypeKind::Text, &Encoding::Utf8, &halves).unwrap_err(), Reason::NotUtf8);
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
    let expected =
        ListArray::from_iter_primitive::<Int32Type, _, _>([three.clone(), three, Some(vec![]), Some(vec![]), None]);
    assert_eq!(array.as_list::<i32>(), &expected);
    let encoding = Encoding::List(Box::new(Encoding::Utf8));
    let text = "{a,\"\",\"NULL\",NULL,\"a \\\"b\\\" \\\\ {c},\",null}";
    let array = encoded(kind(TypeKind::Text), &encoding, &[In::Text(text)]).unwrap();
    let strings = array.as_list::<i32>().value(0);
    let expected =
        StringArray::from(vec![Some("a"), Some(""), Some("NULL"), None, Some("a \"b\" \\ {c},"), Some("null")]);
    assert_eq!(strings.as_string::<i32>(), &expected);
    for text in ["{{1,2},{3,4}}", "[0:1]={1,2}"] {
        assert_eq!(encoded(kind(TypeKind::Text), &encoding, &[In::Text(text)]).unwrap_err(), Reason::ArrayShape);
    }
    for text in ["", "{", "{1", "{1,}", "{\"a}", "{\"a\"b}", "{1}x", "{,}", "{\"a\\"] {
        let refused = encoded(kind(TypeKind::Text), &encoding, &[In::Text(text)]).unwrap_err();
        assert_eq!(refused, Reason::Malformed, "{text}");
    }
    let int4 = Encoding::List(Box::new(Encoding::Int32));
    let shifted = In::Binary(array_send(0, &[four(1)]));
    assert_eq!(encoded(kind(TypeKind::Int4), &int4, &[shifted]).unwrap_err(), Reason::ArrayShape);
    let mut cut = array_send(1, &[four(1)]);
    cut.pop();
    assert_eq!(encoded(kind(TypeKind::Int4), &int4, &[In::Binary(cut)]).unwrap_err(), Reason::Malformed);
}

#[test]
fn chosen_tuples_come_in_the_chosen_order() {
    let batch = batch(TypeKind::Int4, &[In::Text("1"), In::Text("2"), In::Text("3")]);
    let array = encode_column(&batch, Tuples::At(&[2, 0, 0]), 0, &Encoding::Int32).unwrap();
    assert_eq!(array.as_primitive::<Int32Type>().values(), &[3, 1, 1]);
}

proptest! {
    #[test]
    fn random_numerics_agree_with_string_arithmetic(
        negative: bool, whole in "[1-9][0-9]{0,23}|0", fraction in "[0-9]{0,14}", scale in 0u8..=14
    ) {
        let digits = fraction.len() as u8;
        let sign = if negative { "-" } else { "" };
        let point = if fraction.is_empty() { "" } else { "." };
        let text = format!("{sign}{whole}{point}{fraction}");
        let (kind, encoding) = numeric(38, scale);
        let from_text = encoded(kind.clone(), &encoding, &[In::Text(&text)]);
        let from_binary = encoded(kind, &encoding, &[In::Binary(numeric_send(&text))]);
        if digits > scale {
            prop_assert_eq!(from_text.unwrap_err(), Reason::FractionTooLong);
            prop_assert_eq!(from_binary.unwrap_err(), Reason::FractionTooLong);
        } else {
            let zeros = "0".repeat((scale - digits) as usize);
            let expected: i128 = format!("{sign}{whole}{fraction}{zeros}").parse().unwrap();
            let expected = Decimal128Array::from(vec![expected]);
            let from_text = from_text.unwrap();
            prop_assert_eq!(from_text.as_primitive::<arrow::datatypes::Decimal128Type>().values(), expected.values());
            let from_binary = from_binary.unwrap();
            prop_assert_eq!(from_binary.as_primitive::<arrow::datatypes::Decimal128Type>().values(), expected.values());
        }
    }

    #[test]
    fn timestamps_come_back_from_their_text(us in -210_866_803_200_000_000i64..9_223_371_331_200_000_000, zone: bool) {
        let mut text = Vec::new();
        format::timestamp(us, zone, &mut text);
        let text = String::from_utf8(text).unwrap();
        let array = encoded(TypeKind::TimestampTz, &Encoding::TimestampTzMicros, &[In::Text(&text)]).unwrap();
        prop_assert_eq!(array.as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(0), us);
    }

    #[test]
    fn floats_come_back_from_their_text(bits: u64, short: u32) {
        let (long, short) = (f64::from_bits(bits), f32::from_bits(short));
        prop_assume!(!long.is_nan() && !short.is_nan());
        let mut text = Vec::new();
        format::float8(long, &mut text);
        let array = encoded(TypeKind::Float8, &Encoding::Float64, &[In::Raw(&text)]).unwrap();
        prop_assert_eq!(array.as_primitive::<arrow::datatypes::Float64Type>().value(0).to_bits(), long.to_bits());
        text.clear();
        format::float4(short, &mut text);
        let array = encoded(TypeKind::Float4, &Encoding::Float32, &[In::Raw(&text)]).unwrap();
        prop_assert_eq!(array.as_primitive::<arrow::datatypes::Float32Type>().value(0).to_bits(), short.to_bits());
    }

    #[test]
    fn array_elements_come_back_from_their_text(elements in prop::collection::vec(prop::option::of(".{0,12}"), 0..6)) {
        let mut text = vec![b'{'];
        for (at, element) in elements.iter().enumerate() {
            if at > 0 { text.push(b','); }
            match element {
                Some(element) => format::array_element(element.as_bytes(), &mut text),
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
            (TypeKind::Date, Encoding::Date32),
            (TypeKind::Timestamp, Encoding::TimestampMicros),
            (TypeKind::Time, Encoding::TimeMicros),
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
