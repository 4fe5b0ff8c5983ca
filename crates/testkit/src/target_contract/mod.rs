//! The contract suite: what every target promises (`pgferry_pipeline::Target`), one named test per promise.
//!
//! ```text
//!   target_contract!(MyScene) ──> #[test] per promise ──> Scene::fresh ──> promise ──> kept | untested, with its reason | broken
//! ```
//!
//! A target's tests implement [`Scene`] and call [`target_contract!`](macro@crate::target_contract). What a target wants
//! ([`Wants`](pgferry_pipeline::Wants)) decides the form in which it is tested; a promise that cannot be tested on it is printed
//! with its reason, also where the test runner keeps the output of tests back.
//!
//! Invariants: a promise sees a target through its contract and its scene only; each runs on a place of its own and within
//! a time limit; what a restarted process finds is read after every handle is gone.

mod copies;
mod deliveries;
mod forgetting;
mod lease;
mod slices;
mod source_values;
mod stage;
mod tables;
mod values;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use pgferry_model::{Table, TypeKind};
use pgferry_pipeline::{Target, TextRow};

/// The longest that one promise may take: some ask a server many hundred times, on a machine with other work.
const WITHIN: Duration = Duration::from_secs(600);

/// Whether a scene could do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenery {
    /// It is done.
    Set,
    /// It cannot be done with this target; the reason.
    Impossible(&'static str),
}

/// A place that targets write to: a file, a database, a broker.
#[async_trait]
pub trait Scene: Send + Sync + 'static {
    /// Why there is no such place on this machine; `None`: there is one. Its promises are then not tested, and that is printed.
    fn unavailable() -> Result<Option<String>>
    where
        Self: Sized,
    {
        Ok(None)
    }

    /// A fresh, empty place of its own; gone when it is dropped.
    async fn fresh() -> Result<Self>
    where
        Self: Sized;

    /// A handle on the place, not opened yet: a restarted process when the handles before it are gone, else a second writer.
    async fn holder(&self) -> Result<Arc<dyn Target>>;

    /// Makes the place what a crash at this moment would leave of it, for the handles to come: a file without what was not
    /// written yet, a server without the sessions. One handle is open, perhaps in the middle of a call, and is dropped next.
    async fn crash(&self) -> Result<()> {
        Ok(())
    }

    /// Makes a table that belongs to no task, with the types that the target would take, and rows in the source's text form.
    /// No handle is open.
    async fn put_foreign(&self, table: &Table, rows: &[TextRow]) -> Result<Scenery> {
        let _ = (table, rows);
        Ok(Scenery::Impossible("its place has no tables of others"))
    }

    /// Removes a table behind the target's back. No handle is open.
    async fn remove_table(&self, table: &Table) -> Result<Scenery> {
        let _ = table;
        Ok(Scenery::Impossible("its tables cannot be removed by others"))
    }

    /// Whether its tables have columns of their own, in which one of others can differ.
    fn has_columns(&self) -> bool {
        true
    }

    /// Whether it shows the rows of others beside its own where it appends to their table.
    fn shows_rows_of_others(&self) -> bool {
        true
    }

    /// A type and the text of a value that it can have in the source and the target cannot hold. `None`: every value fits.
    fn misfit(&self) -> Option<(TypeKind, &'static str)> {
        None
    }
}

/// How a promise was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Kept.
    Kept,
    /// It cannot be tested on this target; the reason.
    Untested(String),
}

/// A test's future.
pub type Held<'s> = Pin<Box<dyn Future<Output = Result<Verdict>> + Send + 's>>;

/// The test of a promise.
pub type Promise = for<'s> fn(&'s dyn Scene) -> Held<'s>;

/// Tests one promise on a fresh place.
///
/// # Errors
/// When it is broken, not known, or takes longer than ten minutes.
pub async fn test(name: &str, scene: &dyn Scene) -> Result<Verdict> {
    let found = PROMISES.iter().find(|(known, _)| *known == name);
    let (_, promise) = found.with_context(|| format!("there is no promise {name}"))?;
    tokio::time::timeout(WITHIN, promise(scene)).await.context("it took too long")?
}

/// Tests one promise on a runtime of its own; what [`target_contract!`](macro@crate::target_contract) calls.
///
/// # Errors
/// As [`test()`].
pub fn run<S: Scene>(name: &str) -> Result<()> {
    if let Some(reason) = S::unavailable()? {
        return say(&format!("NOT RUN on {}: {name}: {reason}", std::any::type_name::<S>()));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let tested = runtime.block_on(async { test(name, &S::fresh().await?).await });
    match tested? {
        Verdict::Untested(reason) => {
            say(&format!("UNTESTED on {}: {name}: {reason}", std::any::type_name::<S>()))
        }
        Verdict::Kept => Ok(()),
    }
}

/// Not with a macro: what those print, the test runner shows of failed tests only.
fn say(line: &str) -> Result<()> {
    use std::io::Write;
    Ok(writeln!(std::io::stderr().lock(), "{line}")?)
}

macro_rules! promises {
    (($d:tt) $($module:ident: $($name:ident)*;)*) => {
        /// Every promise, with its test.
        pub const PROMISES: &[(&str, Promise)] =
            &[$($((stringify!($name), |scene| Box::pin($module::$name(scene)))),*),*];

        /// One `#[test]` per promise of a target's contract, on places of the given type, which implements
        /// `target_contract::Scene`.
        #[macro_export]
        macro_rules! target_contract {
            ($d scene:ty) => {
                $($(
                    #[test]
                    fn $name() -> ::std::result::Result<(), ::std::boxed::Box<dyn ::std::error::Error>> {
                        Ok($crate::target_contract::run::<$d scene>(stringify!($name))?)
                    }
                )*)*
            };
        }
    };
}

promises! { ($)
    lease:
        a_new_place_holds_nothing_and_has_epoch_one
        open_raises_the_epoch_and_changes_nothing_else
        looking_tells_what_is_held_and_takes_no_lease
        an_older_holder_writes_nothing
        a_load_begun_before_the_takeover_is_refused
        a_delivery_under_way_at_the_takeover_is_whole_or_refused
        slices_begun_before_the_takeover_are_refused
        tasks_of_one_place_do_not_disturb_each_other
        the_source_of_positions_is_kept
        every_state_of_a_table_survives
        a_table_can_be_set_aside_before_it_is_prepared
        close_makes_everything_durable_and_lets_go
        close_works_after_an_error;
    tables:
        the_mapping_names_every_column_and_never_changes
        what_prepare_would_do_is_told_and_not_done
        what_another_task_does_elsewhere_is_not_told
        preparing_again_changes_nothing
        a_table_of_others_is_left_alone_unless_told
        append_keeps_the_rows_of_others
        truncate_and_replace_take_the_table_over_empty
        a_table_of_others_with_other_columns_is_refused
        two_source_tables_never_share_a_table
        another_tasks_table_is_taken_over_only_when_told
        a_table_is_written_under_its_target_name
        a_table_that_is_gone_is_its_own_error
        rows_are_shown_in_the_order_of_their_keys_text
        a_change_of_columns_is_done_or_refused
        odd_names_are_carried;
    forgetting:
        forgetting_a_table_leaves_its_rows_and_the_others
        forgetting_everything_forgets_the_position
        a_forgotten_table_is_made_anew_with_other_columns
        forgetting_never_costs_the_rows_of_others;
    copies:
        begin_copy_stores_the_cut_and_the_first_start
        a_chunk_is_recorded_with_its_rows
        a_chunk_loaded_again_is_drained_and_not_written
        rows_without_their_end_mark_are_not_committed
        a_crash_leaves_a_chunk_whole_or_not_at_all
        tables_loaded_together_are_whole_with_their_state_or_not_at_all
        as_many_loads_at_once_as_wanted
        a_copy_begun_again_drops_what_the_last_one_left
        a_misfit_in_a_chunk_is_its_tables_error;
    deliveries:
        inserts_updates_and_deletes
        rows_and_position_are_one_commit
        an_empty_delivery_moves_the_position_only
        the_first_delivery_may_be_the_first_position
        what_is_at_or_before_the_position_is_not_applied_again
        a_durable_receipt_survives_a_crash
        unchanged_cells_are_left_alone
        keys_move_and_swap_with_their_unchanged_cells
        keys_of_several_columns
        a_key_that_is_not_enforced_is_replaced
        a_truncate_removes_what_was_before_it
        deletes_that_are_not_carried_leave_every_row
        a_misfit_sets_its_table_aside_and_no_other
        large_deliveries_of_several_tables
        a_table_without_a_key_keeps_every_row;
    slices:
        slices_become_visible_together
        an_empty_last_slice_commits_what_is_kept
        discard_drops_what_is_kept
        a_whole_delivery_drops_what_is_kept
        kept_slices_die_with_their_holder
        a_last_slice_at_or_before_the_position_changes_nothing
        a_broken_slice_takes_its_whole_transaction_along;
    values:
        every_value_of_every_type_arrives_or_is_refused
        keys_of_every_type_find_their_rows
        three_hundred_columns;
}
