//! Every mapped type with edge values, through load and apply, in both cell forms.

use std::sync::Arc;

use pgferry_model::{CellFormat, Table, TypeKind};
use pgferry_pipeline::{Fidelity, IfTargetExists, Target};
use pgferry_target_duckdb::{DuckdbTarget, error};

use crate::making::*;

/// A text form, and the binary form of the same value where there is one here.
type Form = (&'static str, Option<Vec<u8>>);

fn be<const N: usize>(bytes: [u8; N]) -> Option<Vec<u8>> {
    Some(bytes.to_vec())
}

fn words(words: &[u16]) -> Option<Vec<u8>> {
    Some(words.iter().flat_map(|word| word.to_be_bytes()).collect())
}

fn array_of(kind: TypeKind) -> TypeKind {
    TypeKind::Array(Box::new(data_type("element", kind)), 1)
}

fn int_array(values: &[i32]) -> Option<Vec<u8>> {
    let mut words: Vec<i32> = vec![1, 0, 23, values.len() as i32, 1];
    words.extend(values.iter().flat_map(|value| [4, *value]));
    Some(words.iter().flat_map(|word| word.to_be_bytes()).collect())
}

fn numbers() -> Vec<(TypeKind, &'static str, Vec<Form>)> {
    let numeric = |precision_and_scale| TypeKind::Numeric { precision_and_scale };
    vec![
        (TypeKind::Bool, "BOOLEAN", vec![("t", be([1])), ("f", be([0]))]),
        (TypeKind::Int2, "SMALLINT", vec![("-32768", be(i16::MIN.to_be_bytes())), ("32767", None)]),
        (TypeKind::Int4, "INTEGER", vec![("-2147483648", be(i32::MIN.to_be_bytes())), ("2147483647", None)]),
        (
            TypeKind::Int8,
            "BIGINT",
            vec![("-9223372036854775808", be(i64::MIN.to_be_bytes())), ("9223372036854775807", None)],
        ),
        (TypeKind::Oid, "UINTEGER", vec![("4294967295", be([0xFF; 4])), ("0", None)]),
        (
            TypeKind::Float4,
            "FLOAT",
            vec![
                ("-0", be((-0.0f32).to_be_bytes())),
                ("NaN", be(f32::NAN.to_be_bytes())),
                ("1e-45", None),
                ("3.4028235e+38", None),
                ("-Infinity", None),
            ],
        ),
        (
            TypeKind::Float8,
            "DOUBLE",
            vec![
                ("-0", be((-0.0f64).to_be_bytes())),
                ("NaN", be(f64::NAN.to_be_bytes())),
                ("5e-324", None),
                ("0.30000000000000004", None),
                ("Infinity", None),
            ],
        ),
        (
            numeric(Some((38, 38))),
            "DECIMAL(38,38)",
            vec![
                ("-0.99999999999999999999999999999999999999", None),
                ("0.00000000000000000000000000000000000000", None),
            ],
        ),
        (
            numeric(Some((10, 2))),
            "DECIMAL(10,2)",
            vec![
                ("-12345678.90", words(&[3, 1, 0x4000, 2, 1234, 5678, 9000])),
                ("0.05", words(&[1, 0xFFFF, 0, 2, 500])),
            ],
        ),
        (numeric(Some((4, 1))), "DECIMAL(4,1)", vec![("-999.9", None), ("0.0", None)]),
        (numeric(Some((18, 0))), "DECIMAL(18,0)", vec![("999999999999999999", None)]),
        (numeric(Some((5, -3))), "DECIMAL(8,0)", vec![("12345000", words(&[2, 1, 0, 0, 1234, 5000]))]),
        (numeric(Some((2, 5))), "DECIMAL(5,5)", vec![("0.00012", None)]),
        (numeric(Some((39, 1))), "VARCHAR", vec![("99999999999999999999999999999999999999.9", None)]),
        (numeric(None), "VARCHAR", vec![("NaN", None), ("1.500", None), ("-Infinity", None)]),
    ]
}

fn texts_and_times() -> Vec<(TypeKind, &'static str, Vec<Form>)> {
    let us = |us: i64| be(us.to_be_bytes());
    vec![
        (
            TypeKind::Text,
            "VARCHAR",
            vec![
                ("", be([])),
                ("a\nb\u{1F980}", Some("a\nb\u{1F980}".into())),
                ("a string longer than the twelve bytes that DuckDB keeps inline", None),
            ],
        ),
        (TypeKind::FixedText, "VARCHAR", vec![("ab   ", be(*b"ab   "))]),
        (TypeKind::Bytes, "BLOB", vec![("\\x", be([])), ("\\x00ff5c27", be([0, 0xFF, 0x5C, 0x27]))]),
        (
            TypeKind::Date,
            "DATE",
            vec![
                ("infinity", be(i32::MAX.to_be_bytes())),
                ("-infinity", be(i32::MIN.to_be_bytes())),
                ("4714-11-24 BC", be((-2_451_545i32).to_be_bytes())),
                ("5874897-12-31", None),
                ("0001-01-01", None),
            ],
        ),
        (
            TypeKind::Time,
            "TIME",
            vec![("24:00:00", us(86_400_000_000)), ("00:00:00.000001", us(1)), ("23:59:59.999999", None)],
        ),
        (
            TypeKind::Timestamp,
            "TIMESTAMP",
            vec![
                ("infinity", us(i64::MAX)),
                ("-infinity", us(i64::MIN)),
                ("4714-11-24 00:00:00 BC", us(-211_813_488_000_000_000)),
                ("294247-01-10 04:00:54.775806", None),
                ("10000-01-01 00:00:00.1", None),
                ("2000-01-01 00:00:00", us(0)),
            ],
        ),
        (
            TypeKind::TimestampTz,
            "TIMESTAMP WITH TIME ZONE",
            vec![
                ("infinity", us(i64::MAX)),
                ("-infinity", us(i64::MIN)),
                ("0044-03-15 12:00:00+00 BC", None),
                ("2024-02-29 23:59:59.999999+00", None),
                ("1999-12-31 23:59:59.999999+00", us(-1)),
            ],
        ),
        (
            TypeKind::Uuid,
            "UUID",
            vec![
                ("00000000-0000-0000-0000-000000000000", be([0; 16])),
                ("ffffffff-ffff-ffff-ffff-ffffffffffff", be([0xFF; 16])),
                ("80000000-0000-0000-0000-000000000001", None),
            ],
        ),
    ]
}

/// Types that come as PostgreSQL's own text.
fn as_text() -> Vec<(TypeKind, &'static str, Vec<Form>)> {
    vec![
        (TypeKind::SingleByte, "VARCHAR", vec![("x", None)]),
        (TypeKind::TimeTz, "VARCHAR", vec![("24:00:00+15:59:59", None)]),
        (TypeKind::Interval, "VARCHAR", vec![("-1 years -2 mons +3 days -04:05:06.789", None)]),
        (TypeKind::Json, "VARCHAR", vec![("{ \"a\" : 1.0 }", Some("{ \"a\" : 1.0 }".into()))]),
        (TypeKind::Jsonb, "VARCHAR", vec![("{\"a\": 1.0}", Some("\u{1}{\"a\": 1.0}".into()))]),
        (TypeKind::Xml, "VARCHAR", vec![("<a/>", None)]),
        (TypeKind::Bits, "VARCHAR", vec![("0101", None)]),
        (TypeKind::Money, "VARCHAR", vec![("-$1,000.00", None)]),
        (TypeKind::Network, "VARCHAR", vec![("::1/128", None)]),
        (TypeKind::Enum, "VARCHAR", vec![("happy", be(*b"happy"))]),
        (TypeKind::Composite, "VARCHAR", vec![("(1,\"a b\")", None)]),
        (TypeKind::Range, "VARCHAR", vec![("[1,5)", None), ("empty", None)]),
        (TypeKind::Other, "VARCHAR", vec![("(1,2)", None)]),
    ]
}

fn arrays() -> Vec<(TypeKind, &'static str, Vec<Form>)> {
    let numeric = TypeKind::Numeric { precision_and_scale: Some((5, 2)) };
    let two = TypeKind::Array(Box::new(data_type("element", TypeKind::Int4)), 2);
    vec![
        (
            array_of(TypeKind::Int4),
            "INTEGER[]",
            vec![
                ("{}", Some([0i32, 0, 23].iter().flat_map(|word| word.to_be_bytes()).collect())),
                ("{1,-2}", int_array(&[1, -2])),
                ("{NULL}", None),
            ],
        ),
        (array_of(TypeKind::Bool), "BOOLEAN[]", vec![("{t,NULL,f}", None)]),
        (array_of(TypeKind::Text), "VARCHAR[]", vec![("{a,\"\",\"NULL\",NULL,\"q\\\"\\\\ {},\",é}", None)]),
        (array_of(TypeKind::Bytes), "BLOB[]", vec![("{\"\\\\x00ff\",\"\\\\x\"}", None)]),
        (array_of(TypeKind::Float8), "DOUBLE[]", vec![("{NaN,-0,1e+15}", None)]),
        (array_of(numeric), "DECIMAL(5,2)[]", vec![("{-1.50,NULL}", None)]),
        (array_of(TypeKind::Uuid), "UUID[]", vec![("{ffffffff-ffff-ffff-ffff-ffffffffffff,NULL}", None)]),
        (array_of(TypeKind::Date), "DATE[]", vec![("{infinity,\"0044-03-15 BC\"}", None)]),
        (array_of(TypeKind::Time), "TIME[]", vec![("{24:00:00}", None)]),
        (
            array_of(TypeKind::TimestampTz),
            "TIMESTAMP WITH TIME ZONE[]",
            vec![("{\"2024-01-01 00:00:00+00\",-infinity}", None)],
        ),
        (array_of(TypeKind::Json), "VARCHAR", vec![("{\"{\\\"a\\\": 1}\"}", None)]),
        (array_of(TypeKind::Numeric { precision_and_scale: None }), "VARCHAR", vec![("{NaN,1.0}", None)]),
        (two, "VARCHAR", vec![("{{1,2},{3,4}}", None), ("[0:1]={1,2}", None)]),
    ]
}

fn all() -> Vec<(TypeKind, &'static str, Vec<Form>)> {
    numbers().into_iter().chain(texts_and_times()).chain(as_text()).chain(arrays()).collect()
}

/// A table of one column per type, and its rows: the first form of each, the second, …; NULL where there are no more.
fn wide(binary: bool) -> (Arc<Table>, Vec<Vec<In>>, Vec<String>) {
    let types = all();
    let names: Vec<String> = (0..types.len()).map(|at| format!("c{at}")).collect();
    let mut columns: Vec<(&str, TypeKind)> = vec![("id", TypeKind::Int4)];
    columns.extend(names.iter().zip(&types).map(|(name, (kind, ..))| (name.as_str(), kind.clone())));
    let table = table("wide", &columns, &[0]);
    let (mut rows, mut shown) = (Vec::new(), Vec::new());
    for at in 0..7 {
        let mut row = vec![t(&at.to_string())];
        let mut text = at.to_string();
        for (_, _, forms) in &types {
            text.push('|');
            match forms.get(at) {
                None => {
                    row.push(In::Null);
                    text.push_str("<null>");
                }
                Some((form, bytes)) => {
                    row.push(bytes.clone().filter(|_| binary).map_or_else(|| t(form), In::Binary));
                    text.push_str(form);
                }
            }
        }
        rows.push(row);
        shown.push(text);
    }
    (table, rows, shown)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_comes_back_through_load_and_apply_in_both_forms() {
    for binary in [false, true] {
        let (table, cells, shown) = wide(binary);
        let made = live(&table, &cells).await;
        for (mapping, (_, sql_type, _)) in made.target.mapping(&table).unwrap()[1..].iter().zip(all()) {
            assert_eq!(mapping.target_type, sql_type, "{}", mapping.source_type);
        }
        compare(&rows(&made.target, &table).await, &shown);
        let updates: Vec<Change> = cells.iter().map(|row| Change::Update(row.clone())).collect();
        apply(&made.target, 200, changes(&table, &updates)).await.unwrap();
        compare(&rows(&made.target, &table).await, &shown);
        // Every value is taken over from the target's own row.
        let lacking = |at: usize| {
            let mut row = vec![In::Unchanged; all().len() + 1];
            row[0] = t(&at.to_string());
            Change::Update(row)
        };
        let updates: Vec<Change> = (0..cells.len()).map(lacking).collect();
        apply(&made.target, 201, changes(&table, &updates)).await.unwrap();
        made.target.close().await.unwrap();
        compare(&rows(&made.target, &table).await, &shown);
    }
}

fn compare(rows: &[String], shown: &[String]) {
    assert_eq!(rows.len(), shown.len());
    for (row, shown) in rows.iter().zip(shown) {
        for (at, (cell, expected)) in row.split('|').zip(shown.split('|')).enumerate() {
            assert_eq!(cell, expected, "column {at}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_sets_the_table_aside() {
    let numeric = TypeKind::Numeric { precision_and_scale: Some((5, 2)) };
    for (kind, value) in [
        (numeric.clone(), "NaN"),
        (numeric, "1.234"),
        (TypeKind::Timestamp, "294276-12-31 00:00:00"),
        (array_of(TypeKind::Int4), "{{1},{2}}"),
        (array_of(TypeKind::Int4), "[0:0]={1}"),
    ] {
        let one = table("one", &[("id", TypeKind::Int4), ("v", kind)], &[0]);
        let made = live(&one, &[]).await;
        let mapping = &made.target.mapping(&one).unwrap()[1];
        assert_eq!(mapping.fidelity, Fidelity::Guarded);
        assert!(!mapping.note.is_empty());
        let failure = load(&made.target, &one, 1, &[texts(&["1", value])]).await.unwrap_err();
        assert_eq!(failure.code(), error::NOT_REPRESENTABLE, "{value}");
        assert!(failure.problem().contains("one.v ") && failure.cure().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wanted_types_win() {
    let made = opened().await;
    made.target.close().await.unwrap();
    let price = TypeKind::Numeric { precision_and_scale: None };
    let table = table("t", &[("id", TypeKind::Int4), ("price", price), ("at", TypeKind::Timestamp)], &[0]);
    let mut config = config(&made.path);
    for (column, wanted) in [("price", "decimal(10,3)"), ("at", "string")] {
        config.type_overrides.insert(("public".into(), "t".into(), column.into()), wanted.into());
    }
    config.schema = Some("landing".into());
    let target = DuckdbTarget::connect(config).unwrap();
    target.open(&task()).await.unwrap();
    target.prepare(&plan(&table, IfTargetExists::Error)).await.unwrap();
    let types: Vec<String> =
        target.mapping(&table).unwrap().into_iter().map(|column| column.target_type).collect();
    assert_eq!(types, ["INTEGER", "DECIMAL(10,3)", "VARCHAR"]);
    load(&target, &table, 0, &[texts(&["1", "1.5", "294276-12-31 00:00:00"])]).await.unwrap();
    assert_eq!(rows(&target, &table).await, ["1|1.500|294276-12-31 00:00:00"]);
    assert!(target.describe(&plan(&table, IfTargetExists::Error)).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_ask_for_the_form_that_costs_least() {
    let made = opened().await;
    let format = |kind: TypeKind| {
        let table = table("t", &[("c", kind)], &[]);
        made.target.snapshot_format(&table, &table.columns[0])
    };
    let free = TypeKind::Numeric { precision_and_scale: None };
    for kind in [
        TypeKind::Int4,
        TypeKind::Text,
        TypeKind::FixedText,
        TypeKind::Jsonb,
        TypeKind::Enum,
        array_of(TypeKind::Int4),
    ] {
        assert_eq!(format(kind.clone()), CellFormat::Binary, "{kind:?}");
    }
    for kind in [free, TypeKind::Interval, TypeKind::SingleByte, TypeKind::Other, array_of(TypeKind::Json)] {
        assert_eq!(format(kind.clone()), CellFormat::Text, "{kind:?}");
    }
}

/// Why floats are mapped as equal and not as exact: a column of zeros of both signs, after a checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn the_sign_of_zero_is_what_floats_may_lose() {
    let zeros = table("zeros", &[("id", TypeKind::Int4), ("v", TypeKind::Float8)], &[0]);
    let cells: Vec<Vec<In>> =
        (0..4000).map(|id: i32| texts(&[&id.to_string(), if id % 2 == 0 { "0" } else { "-0" }])).collect();
    let made = live(&zeros, &cells).await;
    assert_eq!(made.target.mapping(&zeros).unwrap()[1].fidelity, Fidelity::Equal);
    made.target.close().await.unwrap();
    let all = rows(&made.target, &zeros).await;
    let signed = all.iter().filter(|row| row.ends_with("|-0")).count();
    let plain = all.iter().filter(|row| row.ends_with("|0")).count();
    assert_eq!(signed + plain, 4000);
    assert_ne!(signed, 2000, "DuckDB keeps the sign of zero now: map floats as exact");
}
