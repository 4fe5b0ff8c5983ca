//! What a description changes, and what it does not.

use pgferry_model::{Column, DataType, TypeKind};

use super::*;

type Described<'a> = &'a [(&'a str, u32, i32)];

/// The first column is the identity.
fn relation(oid: u32, name: &str, columns: Described<'_>) -> Vec<u8> {
    let mut bytes = oid.to_be_bytes().to_vec();
    bytes.extend_from_slice(format!("shop\0{name}\0d").as_bytes());
    bytes.extend_from_slice(&(columns.len() as u16).to_be_bytes());
    for (at, (name, type_oid, modifier)) in columns.iter().enumerate() {
        bytes.push(u8::from(at == 0));
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(&type_oid.to_be_bytes());
        bytes.extend_from_slice(&modifier.to_be_bytes());
    }
    bytes
}

fn table(id: u32, name: &str, columns: &[(&str, u32)]) -> Arc<Table> {
    let column = |&(name, oid): &(&str, u32)| Column {
        name: name.into(),
        data_type: DataType {
            oid,
            name: "t".into(),
            kind: TypeKind::Other,
            sends_binary: false,
            output_function: "f".into(),
        },
        nullable: true,
    };
    Arc::new(Table {
        id: TableId(id),
        name: TableName::new("shop", name),
        target_name: TableName::new("shop", name),
        columns: columns.iter().map(column).collect(),
        key: vec![0],
        key_enforced: true,
        full_identity: false,
        rows_estimated: 0,
        bytes: 0,
    })
}

fn cache() -> RelationCache {
    let orders = TableBinding {
        excluded: vec!["secret".into()],
        ..TableBinding::new(table(0, "orders", &[("id", 23), ("name", 25), ("note", 25)]))
    };
    RelationCache::new(vec![orders])
}

fn describe(cache: &mut RelationCache, oid: u32, name: &str, columns: Described<'_>) {
    cache.describe(&RelationMessage::again(&relation(oid, name, columns)).expect("well-formed"));
}

fn diff(cache: &RelationCache) -> SchemaDiff {
    match cache.question() {
        Some(Question::Changed(diff)) => (**diff).clone(),
        other => panic!("no difference but {other:?}"),
    }
}

const SAME: Described<'_> = &[("id", 23, -1), ("name", 25, -1), ("note", 25, -1)];

#[test]
fn the_same_columns_are_no_change_and_excluded_ones_are_skipped() {
    let mut cache = cache();
    describe(&mut cache, 7, "orders", SAME);
    describe(&mut cache, 7, "orders", SAME);
    assert!(cache.question().is_none());
    assert!(matches!(cache.get(7), Some(Known::Bound(b)) if b.projection == Projection::Identity));
    describe(
        &mut cache,
        7,
        "orders",
        &[("id", 23, -1), ("secret", 25, -1), ("name", 25, -1), ("note", 25, -1)],
    );
    assert!(cache.question().is_none());
    let expected = Projection::Some([true, false, true, true].into());
    assert!(matches!(cache.get(7), Some(Known::Bound(b)) if b.projection == expected && b.cells == 4));
    describe(&mut cache, 8, "elsewhere", SAME);
    assert!(matches!(cache.get(8), Some(Known::Skipped)));
    assert!(cache.get(9).is_none());
}

#[test]
fn every_difference_is_told_apart() {
    let ask = |oid, name: &str, columns: Described<'_>| {
        let mut cache = cache();
        describe(&mut cache, 7, "orders", SAME);
        describe(&mut cache, oid, name, columns);
        assert!(matches!(cache.get(oid), Some(Known::Undecided)));
        diff(&cache)
    };
    let added = ask(7, "orders", &[SAME[0], SAME[1], SAME[2], ("more", 23, -1)]);
    assert_eq!((added.added.as_slice(), added.dropped.len(), added.retyped.len()), (&[3][..], 0, 0));
    let dropped = ask(7, "orders", &[SAME[0], SAME[2]]);
    assert_eq!((dropped.added.len(), dropped.dropped.as_slice()), (0, &[1][..]));
    let renamed = ask(7, "orders", &[SAME[0], ("title", 25, -1), SAME[2]]);
    assert_eq!((renamed.renamed.as_slice(), renamed.dropped.as_slice()), (&[(1, 1)][..], &[1][..]));
    let retyped = ask(7, "orders", &[SAME[0], ("name", 1043, 24), SAME[2]]);
    assert_eq!(retyped.retyped, [(1, 1)]);
    let modified = ask(7, "orders", &[SAME[0], ("name", 25, 9), SAME[2]]);
    assert_eq!(modified.retyped, [(1, 1)], "the first description's modifier is remembered");
    let again = ask(7, "orders", &[SAME[0], SAME[2], SAME[1]]);
    assert!(again.reordered && again.added.is_empty());
    let lost = ask(7, "orders", &[SAME[1], SAME[0], SAME[2]]);
    assert_eq!(lost.identity_lost, [0]);
    let moved = ask(7, "old_orders", SAME);
    assert_eq!(moved.new_name, Some(TableName::new("shop", "old_orders")));
    assert!(ask(70, "orders", SAME).recreated);
}

#[test]
fn a_change_is_adopted_tolerated_or_set_aside() {
    let more: Described<'_> = &[SAME[0], SAME[1], SAME[2], ("more", 23, -1)];
    let mut adopted = cache();
    describe(&mut adopted, 7, "orders", more);
    let wider = table(0, "orders", &[("id", 23), ("name", 25), ("note", 25), ("more", 23)]);
    assert!(!adopted.adopt(TableBinding::new(table(0, "orders", &[("id", 23)]))), "it still differs");
    assert!(adopted.adopt(TableBinding::new(wider)) && adopted.question().is_none());
    assert!(matches!(adopted.get(7), Some(Known::Bound(b)) if b.projection == Projection::Identity));
    let mut tolerated = cache();
    describe(&mut tolerated, 7, "orders", &[SAME[2], SAME[0]]);
    tolerated.tolerate(TableId(0));
    let expected = Projection::Scattered([Some(1), None, Some(0)].into());
    assert!(matches!(tolerated.get(7), Some(Known::Bound(b)) if b.projection == expected));
    let mut aside = cache();
    describe(&mut aside, 7, "orders", more);
    aside.set_aside(TableId(0));
    describe(&mut aside, 7, "orders", SAME);
    assert!(aside.question().is_none() && matches!(aside.get(7), Some(Known::Skipped)));
}

#[test]
fn a_leaf_goes_to_its_root_in_any_order_and_an_unknown_one_is_asked_about() {
    let mut cache = cache();
    cache.ask_unknown(true);
    cache.map_leaf(11, TableId(0));
    describe(&mut cache, 11, "orders_east", &[SAME[0], SAME[2], SAME[1]]);
    let expected = Projection::Scattered([Some(0), Some(2), Some(1)].into());
    assert!(matches!(cache.get(11), Some(Known::Bound(b)) if b.leaf && b.projection == expected));
    describe(&mut cache, 12, "orders_west", SAME);
    assert!(matches!(cache.question(), Some(Question::Unknown(described)) if described.oid == 12));
    cache.map_leaf(12, TableId(0));
    assert!(cache.question().is_none() && cache.leaves_of(TableId(0)) == 2);
    assert!(matches!(cache.get(12), Some(Known::Bound(b)) if b.leaf && b.table == TableId(0)));
    cache.reset();
    assert!(cache.get(12).is_none() && cache.leaves_of(TableId(0)) == 2);
}
