//! Deliveries: keys that swap and move, unchanged values, truncates, slices, odd keys.

use std::sync::Arc;

use pgferry_model::{Batch, Class, Slice, Table, TableState, TypeKind};
use pgferry_pipeline::{Receipt, Target};
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
async fn inserts_updates_and_deletes() {
    let (people, made) = three().await;
    let batch = changes(
        &people,
        &[
            Change::Insert(person("4", "d", "four", "4")),
            Change::Update(person("2", "B", "<null>", "22")),
            Change::Delete(key("1")),
            Change::Insert(person("1", "A", "new", "11")),
            Change::Delete(key("3")),
            Change::Delete(key("99")),
        ],
    );
    assert_eq!(apply(&made.target, 200, batch).await.unwrap(), Receipt::Durable(at(200)));
    assert_eq!(rows(&made.target, &people).await, ["1|A|new|11", "2|B|<null>|22", "4|d|four|4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_values_stay_also_when_keys_swap_or_move() {
    let (people, made) = three().await;
    let update = changes(
        &people,
        &[Change::Update(lacking("1", "A", "11")), Change::Update(person("3", "C", "3!", "33"))],
    );
    apply(&made.target, 200, update).await.unwrap();
    assert_eq!(rows(&made.target, &people).await, ["1|A|one|11", "2|b|two|2", "3|C|3!|33"]);
    let swap = changes(
        &people,
        &[
            Change::Move(key("1"), lacking("-1", "A", "11")),
            Change::Move(key("2"), lacking("1", "b", "2")),
            Change::Move(key("-1"), lacking("2", "A", "11")),
        ],
    );
    apply(&made.target, 201, swap).await.unwrap();
    assert_eq!(rows(&made.target, &people).await, ["1|b|two|2", "2|A|one|11", "3|C|3!|33"]);
    let onto_deleted = changes(
        &people,
        &[
            Change::Delete(key("3")),
            Change::Move(key("2"), lacking("3", "A", "12")),
            Change::Insert(person("2", "n", "n", "0")),
        ],
    );
    apply(&made.target, 202, onto_deleted).await.unwrap();
    assert_eq!(rows(&made.target, &people).await, ["1|b|two|2", "2|n|n|0", "3|A|one|12"]);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_removes_what_was_there_before_it() {
    let (people, made) = three().await;
    let batch = changes(
        &people,
        &[
            Change::Insert(person("4", "d", "x", "4")),
            Change::Truncate,
            Change::Insert(person("2", "new", "x", "2")),
        ],
    );
    apply(&made.target, 200, batch).await.unwrap();
    assert_eq!(rows(&made.target, &people).await, ["2|new|x|2"]);
    apply(&made.target, 201, changes(&people, &[Change::Truncate])).await.unwrap();
    assert!(rows(&made.target, &people).await.is_empty());
}

fn slice(
    after: u64,
    through: u64,
    slice: Slice,
    batch: Batch,
) -> Arc<pgferry_model::Delivery<pgferry_pipeline::TableChanges>> {
    delivery(after, through, slice, vec![batch])
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_become_visible_together() {
    let (people, made) = three().await;
    let target = &made.target;
    let one = changes(
        &people,
        &[Change::Insert(person("4", "d", "four", "4")), Change::Update(lacking("1", "A", "1"))],
    );
    assert_eq!(target.apply(slice(100, 100, Slice::Part, one)).await.unwrap(), Receipt::Accepted);
    let two = changes(&people, &[Change::Update(lacking("4", "D", "44")), Change::Delete(key("2"))]);
    assert_eq!(target.apply(slice(100, 100, Slice::Part, two)).await.unwrap(), Receipt::Accepted);
    assert_eq!(rows(target, &people).await.len(), 3, "nothing is visible yet");
    // The state of a table can be stored while slices are kept.
    target.set_state(&people, TableState::Live).await.unwrap();
    let three = changes(&people, &[Change::Move(key("4"), lacking("5", "E", "5"))]);
    assert_eq!(target.apply(slice(100, 200, Slice::Last, three)).await.unwrap(), Receipt::Durable(at(200)));
    assert_eq!(rows(target, &people).await, ["1|A|one|1", "3|c|three|3", "5|E|four|5"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_slices_are_dropped_by_discard_by_a_whole_delivery_and_by_an_error() {
    let (people, made) = three().await;
    let target = &made.target;
    let insert = |id: &str| changes(&people, &[Change::Insert(person(id, "x", "x", "0"))]);
    target.apply(slice(100, 100, Slice::Part, insert("4"))).await.unwrap();
    target.discard().await.unwrap();
    target.apply(slice(100, 100, Slice::Part, insert("5"))).await.unwrap();
    target.apply(slice(100, 150, Slice::Whole, insert("6"))).await.unwrap();
    target.apply(slice(150, 150, Slice::Part, insert("7"))).await.unwrap();
    let misfit = changes(&people, &[Change::Insert(person("bad", "x", "x", "0"))]);
    assert_eq!(
        target.apply(slice(150, 150, Slice::Part, misfit)).await.unwrap_err().class(),
        Class::TableBroken
    );
    // The rest of that transaction cannot be committed without its beginning.
    let rest = target.apply(slice(150, 200, Slice::Last, insert("8"))).await.unwrap_err();
    assert_eq!(rest.class(), Class::Transient);
    target.discard().await.unwrap();
    target.apply(slice(150, 150, Slice::Part, insert("7"))).await.unwrap();
    target.apply(slice(150, 200, Slice::Last, insert("8"))).await.unwrap();
    let ids: Vec<String> =
        rows(target, &people).await.iter().map(|row| row.split('|').next().unwrap().to_owned()).collect();
    assert_eq!(ids, ["1", "2", "3", "6", "7", "8"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_slices_die_with_their_holder() {
    let (people, made) = three().await;
    let insert = changes(&people, &[Change::Insert(person("4", "x", "x", "0"))]);
    made.target.apply(slice(100, 100, Slice::Part, insert)).await.unwrap();
    assert_eq!(made.target.open(&task()).await.unwrap().position, Some(at(100)));
    assert_eq!(rows(&made.target, &people).await.len(), 3);
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

#[tokio::test(flavor = "multi_thread")]
async fn several_tables_and_large_deliveries_in_one_commit() {
    let (people, made) = three().await;
    let other = table("other", &[("id", TypeKind::Int8)], &[0]);
    made.target.prepare(&plan(&other, pgferry_pipeline::IfTargetExists::Error)).await.unwrap();
    let many: Vec<Change> = (0..20_000).map(|id| Change::Insert(texts(&[&id.to_string()]))).collect();
    let batches = vec![changes(&people, &[Change::Delete(key("1"))]), changes(&other, &many)];
    made.target.apply(delivery(100, 200, Slice::Whole, batches)).await.unwrap();
    let gone: Vec<Change> =
        (0..20_000).step_by(2).map(|id| Change::Delete(texts(&[&id.to_string()]))).collect();
    apply(&made.target, 300, changes(&other, &gone)).await.unwrap();
    assert_eq!(rows(&made.target, &people).await.len(), 2);
    assert_eq!(pgferry_pipeline::Inspect::count(&*made.target, &other).await.unwrap(), 10_000);
}
