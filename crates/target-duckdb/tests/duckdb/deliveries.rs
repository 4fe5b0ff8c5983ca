//! Deliveries: what DuckDB tells when one fails, and odd keys. What every target promises is in `contract`.

use std::sync::Arc;

use pgferry_model::{Class, Slice, Table, TypeKind};
use pgferry_pipeline::Target;
use pgferry_target_duckdb::error;

use crate::making::*;

fn person(id: &str, name: &str, body: &str, n: &str) -> Vec<In> {
    texts(&[id, name, body, n])
}

fn key(id: &str) -> Vec<In> {
    texts(&[id, "<null>", "<null>", "<null>"])
}

/// A new tuple whose body is unchanged.
fn lacking(id: &str, name: &str, n: &str) -> Vec<In> {
    vec![t(id), t(name), In::Unchanged, t(n)]
}

async fn three() -> (Arc<Table>, Made) {
    let people = people();
    let made = live(
        &people,
        &[person("1", "a", "one", "1"), person("2", "b", "two", "2"), person("3", "c", "three", "3")],
    )
    .await;
    (people, made)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_row_is_told_and_nothing_is_left_behind() {
    let (people, made) = three().await;
    let batch = changes(&people, &[Change::Delete(key("1")), Change::Update(lacking("77", "x", "1"))]);
    let failure = apply(&made.target, 200, batch).await.unwrap_err();
    assert_eq!((failure.code(), failure.class()), (error::ROW_MISSING, Class::TableBroken));
    assert_eq!(failure.table(), Some(&people.name));
    assert_eq!(rows(&made.target, &people).await.len(), 3);
    assert_eq!(made.target.open(&task()).await.unwrap().position, Some(at(100)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misfit_in_one_table_leaves_nothing_of_the_delivery() {
    let (people, made) = three().await;
    let batch = changes(
        &people,
        &[Change::Insert(person("8", "x", "y", "1")), Change::Insert(person("9", "x", "y", "secret"))],
    );
    let failure = apply(&made.target, 200, batch).await.unwrap_err();
    assert_eq!((failure.code(), failure.class()), (error::NOT_REPRESENTABLE, Class::TableBroken));
    assert!(!format!("{failure} {:?}", failure.cause()).contains("secret"));
    assert_eq!(failure.cure().unwrap().lines, ["columns.n = { type = \"string\" }"]);
    apply(&made.target, 200, changes(&people, &[Change::Insert(person("8", "x", "y", "1"))])).await.unwrap();
    assert_eq!(rows(&made.target, &people).await.len(), 4);
}

/// The engine starts the stream over then, and does not stop the task.
#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_broken_slice_is_refused_as_transient() {
    let (people, made) = three().await;
    let slice = |slice, id: &str| {
        let batch = changes(&people, &[Change::Insert(person(id, "x", "x", "0"))]);
        made.target.apply(delivery(100, 200, slice, vec![batch]))
    };
    slice(Slice::Part, "7").await.unwrap();
    assert_eq!(slice(Slice::Part, "bad").await.unwrap_err().class(), Class::TableBroken);
    let rest = slice(Slice::Last, "8").await.unwrap_err();
    assert_eq!((rest.code(), rest.class()), (error::SLICES_LOST, Class::Transient));
}

/// Two rows per key type, one updated and one deleted by its key.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_kind_find_their_rows() {
    let numeric = |precision_and_scale| TypeKind::Numeric { precision_and_scale };
    for (kind, kept, gone) in [
        (TypeKind::Float8, "NaN", "-0"),
        (TypeKind::Float4, "1e-45", "Infinity"),
        (TypeKind::Other, "Straße", "straße"),
        (TypeKind::Text, "", " "),
        (TypeKind::FixedText, "a  ", "b  "),
        (TypeKind::Bytes, "\\x", "\\x00"),
        (numeric(Some((38, 10))), "9999999999999999999999999999.9999999999", "0.0000000001"),
        (numeric(None), "1.0", "1.00"),
        (TypeKind::Timestamp, "infinity", "0044-03-15 12:00:00 BC"),
        (TypeKind::Date, "5874897-12-31", "-infinity"),
        (TypeKind::Time, "24:00:00", "00:00:00"),
        (TypeKind::Uuid, "ffffffff-ffff-ffff-ffff-ffffffffffff", "00000000-0000-0000-0000-000000000000"),
        (TypeKind::Bool, "t", "f"),
        (TypeKind::Array(Box::new(data_type("text", TypeKind::Text)), 1), "{a,NULL}", "{}"),
    ] {
        let odd = table("odd", &[("v", TypeKind::Text), ("k", kind.clone()), ("j", TypeKind::Int4)], &[1, 2]);
        let made = live(&odd, &[texts(&["a", kept, "1"]), texts(&["b", gone, "1"])]).await;
        let batch = changes(
            &odd,
            &[
                Change::Update(vec![In::Unchanged, t(kept), t("1")]),
                Change::Delete(texts(&["<null>", gone, "1"])),
            ],
        );
        apply(&made.target, 200, batch).await.unwrap();
        assert_eq!(rows(&made.target, &odd).await, [format!("a|{kept}|1")], "{kind:?}");
    }
}
