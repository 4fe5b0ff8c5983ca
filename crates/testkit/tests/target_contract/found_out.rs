//! The suite can fail: each broken target breaks the promises that its fault is about, and a whole one none.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use pgferry_model::{Table, TypeKind};
use pgferry_pipeline::{Target, TextRow};
use pgferry_testkit::memory_target::MemoryTarget;
use pgferry_testkit::target_contract::{PROMISES, Scene, Scenery, Verdict, test};
use tokio::sync::Mutex;

use crate::broken::{Broken, Fault};

struct Faulty {
    fault: Fault,
    place: MemoryTarget,
    newest: Arc<Mutex<Option<Arc<MemoryTarget>>>>,
}

#[async_trait]
impl Scene for Faulty {
    async fn fresh() -> Result<Self> {
        Ok(Faulty::of(Fault::None))
    }

    async fn holder(&self) -> Result<Arc<dyn Target>> {
        Ok(Arc::new(Broken::new(self.fault, self.place.reopened(), Arc::clone(&self.newest))))
    }

    async fn put_foreign(&self, table: &Table, rows: &[TextRow]) -> Result<Scenery> {
        self.place.put_foreign(table, rows).await;
        Ok(Scenery::Set)
    }

    async fn remove_table(&self, table: &Table) -> Result<Scenery> {
        self.place.remove_table(table).await;
        Ok(Scenery::Set)
    }

    fn misfit(&self) -> Option<(TypeKind, &'static str)> {
        Some((TypeKind::Text, "secret\0value"))
    }
}

impl Faulty {
    fn of(fault: Fault) -> Self {
        Faulty { fault, place: MemoryTarget::default(), newest: Arc::default() }
    }
}

/// Each fault, and promises that are about it. Faults break others along the way; those are not listed.
const FAULTS: &[(Fault, &[&str])] = &[
    (Fault::PositionLeftBehind, &["rows_and_position_are_one_commit", "a_durable_receipt_survives_a_crash"]),
    (Fault::DurableTooEarly, &["a_durable_receipt_survives_a_crash", "inserts_updates_and_deletes"]),
    (Fault::TableLeftOut, &["rows_and_position_are_one_commit", "large_deliveries_of_several_tables"]),
    (
        Fault::AppliedTwice,
        &[
            "what_is_at_or_before_the_position_is_not_applied_again",
            "a_last_slice_at_or_before_the_position_changes_nothing",
        ],
    ),
    (Fault::ChunkNotRecorded, &["a_chunk_loaded_again_is_drained_and_not_written"]),
    (Fault::ChunkWithoutRows, &["a_chunk_is_recorded_with_its_rows", "as_many_loads_at_once_as_wanted"]),
    (
        Fault::EndMarkIgnored,
        &[
            "rows_without_their_end_mark_are_not_committed",
            "tables_loaded_together_are_whole_with_their_state_or_not_at_all",
        ],
    ),
    (
        Fault::Unfenced,
        &[
            "an_older_holder_writes_nothing",
            "a_load_begun_before_the_takeover_is_refused",
            "a_delivery_under_way_at_the_takeover_is_whole_or_refused",
            "slices_begun_before_the_takeover_are_refused",
        ],
    ),
    (Fault::PositionInvented, &["a_new_place_holds_nothing_and_has_epoch_one"]),
    (Fault::LookTakesLease, &["looking_tells_what_is_held_and_takes_no_lease"]),
    (Fault::EpochNotRaised, &["open_raises_the_epoch_and_changes_nothing_else"]),
    (Fault::SlicesVisible, &["slices_become_visible_together", "kept_slices_die_with_their_holder"]),
    (Fault::SlicesNotDiscarded, &["discard_drops_what_is_kept", "a_whole_delivery_drops_what_is_kept"]),
    (Fault::OldCopyKept, &["a_copy_begun_again_drops_what_the_last_one_left"]),
    (
        Fault::EverythingDropped,
        &["append_keeps_the_rows_of_others", "a_table_of_others_is_left_alone_unless_told"],
    ),
    (
        Fault::ForeignTableReplaced,
        &["a_table_of_others_is_left_alone_unless_told", "a_table_of_others_with_other_columns_is_refused"],
    ),
    (Fault::ToldAndDone, &["what_prepare_would_do_is_told_and_not_done"]),
    (Fault::EmptiedWhenPrepared, &["preparing_again_changes_nothing"]),
    (Fault::DeletesIgnored, &["inserts_updates_and_deletes", "a_truncate_removes_what_was_before_it"]),
    (
        Fault::UnchangedLost,
        &["unchanged_cells_are_left_alone", "keys_move_and_swap_with_their_unchanged_cells"],
    ),
    (
        Fault::MisfitChanged,
        &["a_misfit_in_a_chunk_is_its_tables_error", "a_misfit_sets_its_table_aside_and_no_other"],
    ),
    (
        Fault::WrongClass,
        &["a_misfit_sets_its_table_aside_and_no_other", "a_table_that_is_gone_is_its_own_error"],
    ),
    (
        Fault::StateNotStored,
        &["every_state_of_a_table_survives", "a_table_can_be_set_aside_before_it_is_prepared"],
    ),
    (Fault::SourceNotStored, &["the_source_of_positions_is_kept"]),
    (
        Fault::ForgetsWrongly,
        &["forgetting_a_table_leaves_its_rows_and_the_others", "forgetting_everything_forgets_the_position"],
    ),
    (Fault::OrderReversed, &["rows_are_shown_in_the_order_of_their_keys_text"]),
    (Fault::RowsHidden, &["three_hundred_columns", "a_table_without_a_key_keeps_every_row"]),
    (Fault::EvolveNotDone, &["a_change_of_columns_is_done_or_refused"]),
    (Fault::TasksMixed, &["tasks_of_one_place_do_not_disturb_each_other"]),
    (Fault::CloseFails, &["close_makes_everything_durable_and_lets_go"]),
    (Fault::Ascii, &["a_chunk_is_recorded_with_its_rows"]),
    (Fault::MappingChanges, &["the_mapping_names_every_column_and_never_changes"]),
];

/// The promises that start a server, each with a fault that breaks it.
const WITH_SERVER: [(Fault, &str); 2] = [
    (Fault::Ascii, "every_value_of_every_type_arrives_or_is_refused"),
    (Fault::DeletesIgnored, "keys_of_every_type_find_their_rows"),
];

/// The promises that a target with this fault breaks; without those that start a server.
async fn broken_by(fault: Fault) -> BTreeSet<&'static str> {
    let mut broken = BTreeSet::new();
    for (name, _) in PROMISES {
        if WITH_SERVER.iter().all(|(_, other)| other != name)
            && !matches!(test(name, &Faulty::of(fault)).await, Ok(Verdict::Kept))
        {
            broken.insert(*name);
        }
    }
    broken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_target_breaks_no_promise() {
    assert_eq!(broken_by(Fault::None).await, BTreeSet::new());
}

/// Every promise is broken by some fault, too: none of them holds of everything.
#[tokio::test(flavor = "multi_thread")]
async fn every_fault_is_found_and_every_promise_can_fail() {
    let mut failed: BTreeSet<&str> = WITH_SERVER.iter().map(|(_, name)| *name).collect();
    for (fault, promises) in FAULTS {
        let broken = broken_by(*fault).await;
        for promise in *promises {
            assert!(broken.contains(promise), "{fault:?} keeps {promise}; it breaks {broken:?}");
        }
        failed.extend(broken);
    }
    let never: Vec<&str> =
        PROMISES.iter().map(|(name, _)| *name).filter(|name| !failed.contains(name)).collect();
    assert!(never.is_empty(), "no fault breaks {never:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_spoilt_and_keys_that_are_not_found_are_noticed() {
    for (fault, promise) in WITH_SERVER {
        assert!(test(promise, &Faulty::of(fault)).await.is_err(), "{fault:?} keeps {promise}");
    }
}
