//! What every engine must hold: the promises of the ports in `panopticon-core` as tests, each named after
//! the promise. Knows no engine. Offsets may have gaps, and leases may take seconds to move.
//!
//! An engine implements [`EngineUnderTest`] and calls [`run_all!`], which makes one test a promise.

// Everything here runs in tests only.
#![allow(clippy::unwrap_used)]

pub mod commits;
pub mod erasure;
pub mod events;
mod fixtures;
pub mod inserts;
pub mod leases;
pub mod queries;
pub mod reads;
pub mod seen;
pub mod tables;
pub mod tails;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use panopticon_core::{
    log::EventLog,
    seen::SeenSet,
    store::TraceStore,
    time::{Clock, SystemClock, Time},
    topic::Topic,
};

/// The system's clock, shifted.
#[derive(Debug, Default)]
pub struct ShiftedClock(AtomicI64);

impl ShiftedClock {
    /// Shifts it into the future, further than it is.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }
}

impl Clock for ShiftedClock {
    fn now(&self) -> Time {
        Time::from_micros(SystemClock.now().micros() + self.0.load(Ordering::SeqCst))
    }
}

/// The ports of an engine.
#[derive(Clone)]
pub struct Ports {
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// The seen set.
    pub seen: Arc<dyn SeenSet>,
    /// The trace store.
    pub store: Arc<dyn TraceStore>,
    /// The clock that the engine was given.
    pub clock: Arc<ShiftedClock>,
}

/// An engine, set up for one test, with the default retention but for the seen window.
#[async_trait]
pub trait EngineUnderTest: Sized + Send + Sync + 'static {
    /// How long the seen set remembers in this set-up.
    const SEEN_WINDOW: Duration;

    /// An empty engine of its own, at least two partitions to a topic that is cut; `None` when what it needs
    /// is not here, and the test is skipped.
    async fn fresh() -> Option<Self>;

    /// Its ports.
    fn ports(&self) -> Ports;

    /// Ends the engine and starts it again on what it has kept, as a new process does.
    async fn reopen(self) -> Self;

    /// Has time pass for everything that forgets. Engines whose servers have clocks of their own do what
    /// that takes: waiting for the seen set, for example.
    async fn let_time_pass(&self, by: Duration) {
        self.ports().clock.advance(by);
    }

    /// Ends all leases of a group without asking their holders, as is done to a member that is taken for
    /// dead; false where the engine cannot, and the test is skipped.
    async fn take_leases(&self, _stage: &'static str, _topic: Topic) -> bool {
        false
    }

    /// Has retention take the records of a partition before `offset`, all of which are older than
    /// `retention.log_hours` allows by the engine's clock, while none after it is; false where the engine
    /// cannot, and the test is skipped.
    async fn delete_before(&self, _topic: Topic, _partition: u32, _offset: u64) -> bool {
        false
    }
}

/// Makes one `#[tokio::test]` a promise for an engine. Attributes before its type go to every test.
#[macro_export]
macro_rules! run_all {
    ($(#[$attribute:meta])* $engine:ty) => {
        $crate::run_all! { @promises [$(#[$attribute])*] $engine;
            reads: appended_records_are_read_back_in_order_with_growing_offsets
                an_appended_record_is_there_after_a_reopen
                a_topic_keeps_its_partitions_and_identity
                concurrent_appends_are_all_kept_once
                a_key_a_tombstone_and_the_replay_come_back_as_written
                a_read_keeps_to_its_range_and_its_bytes
                a_record_that_is_too_large_is_refused_and_hurts_nobody
                reading_what_is_gone_is_a_hole;
            commits: outputs_offset_and_metadata_become_visible_together
                nothing_of_a_failed_commit_is_visible
                nothing_of_a_commit_after_the_lease_was_taken_is_visible
                a_commit_without_an_offset_leaves_the_position
                a_newer_writer_fences_the_older
                a_writers_records_are_visible_once_it_is_answered
                what_was_not_committed_is_processed_again
                lag_is_what_is_left_to_process;
            leases: a_partition_has_one_lease_in_a_group_at_a_time
                groups_do_not_share_positions
                a_poll_waits_for_a_record_and_no_longer_than_it_may
                a_poll_keeps_to_its_limits;
            tails: a_tail_from_the_start_brings_everything_and_goes_on
                a_tail_from_the_end_brings_only_what_comes
                a_tail_from_offsets_brings_what_is_there_from_them_on;
            tables: a_table_holds_the_latest_value_of_each_key
                a_table_is_the_same_after_a_reopen
                a_replayed_record_is_read_but_is_no_row_of_a_table
                a_tail_of_a_compacted_topic_brings_the_latest_of_each_key_and_tombstones;
            seen: the_place_that_came_first_is_remembered
                within_a_batch_the_first_of_a_key_counts
                concurrent_marks_agree_on_one_place
                marks_are_there_after_a_reopen
                a_restored_mark_stands_over_what_was_there
                a_mark_moves_only_from_the_place_it_is_said_to_have
                marks_are_kept_for_the_window_and_not_for_ever
                many_marks_are_told_apart;
            inserts: a_batch_is_in_once_however_often_it_is_sent
                a_batch_is_in_once_even_after_a_reopen
                batches_of_several_partitions_do_not_mix
                a_trace_comes_back_as_it_was_put_in
                usage_equals_a_count_over_the_rows;
            queries: a_timeline_is_newest_first_and_pages_have_no_gap_and_no_repeat
                a_timeline_shows_what_its_filters_let_through
                the_activity_of_users_and_of_tools_is_told_by_quarters_of_an_hour
                activity_comes_in_parts_and_each_user_once
                traces_arrive_again_in_the_order_in_which_they_were_received
                a_trace_is_found_by_its_id_and_known_by_app_and_id
                usage_goes_by_days_of_the_zone
                an_unknown_zone_is_refused
                the_latest_receipt_of_an_app_is_known
                no_row_is_shown_past_its_time_and_usage_stays;
            events: an_episode_is_one_detection_and_ends
                detections_are_filtered_and_paged
                kills_are_counted_and_actions_listed
                a_delivery_is_listed_in_its_latest_state
                audit_entries_are_listed_newest_first
                events_are_in_once_however_often_they_are_sent;
            erasure: an_erased_persons_traces_are_gone_and_the_sums_stay
                erasing_again_changes_nothing
                a_batch_under_way_is_left_alone_by_an_erasure
                an_erased_person_has_a_pseudonym_in_what_happened;
        }
    };
    (@promises $attributes:tt $engine:ty; $($module:ident: $($promise:ident)+;)+) => {
        $(mod $module {
            #[allow(unused_imports)]
            use super::*;
            $($crate::run_all! { @promise $attributes $engine, $module, $promise })+
        })+
    };
    (@promise [$($attribute:tt)*] $engine:ty, $module:ident, $promise:ident) => {
        $($attribute)*
        #[tokio::test(flavor = "multi_thread")]
        async fn $promise() {
            match <$engine as $crate::EngineUnderTest>::fresh().await {
                Some(engine) => $crate::$module::$promise(engine).await,
                None => println!("skipped: what the engine needs is not here"),
            }
        }
    };
}
