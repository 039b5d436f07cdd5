//! What places and marks promise holds in every interleaving; and each part of the protocol is needed: without
//! it, an interleaving is found in which a promise is broken.

use panopticon_model::places::*;
use stateright::{Checker as _, HasDiscoveries, Model as _};

/// More than any batch here has.
const ANY: u8 = u8::MAX;

fn holds(requests: &[Id], marks_per_call: u8, takeovers: u8, losses: u8) {
    let faults = Faults { takeovers, losses };
    let model = Places { requests: requests.to_vec(), faults, marks_per_call, without: None };
    let checker = model.checker().spawn_bfs().join();
    println!("{requests:?} with {faults:?}: {} states", checker.unique_state_count());
    checker.assert_properties();
}

fn breaks(without: Part, promise: &'static str) {
    let faults = Faults { takeovers: 1, losses: 2 };
    let marks_per_call = if without == Part::UnbrokenBatch { 1 } else { ANY };
    let requests = if without == Part::Claim { vec![1, 1, 1] } else { vec![1, 1] };
    let model = Places { requests, faults, marks_per_call, without: Some(without) };
    let found = HasDiscoveries::AllOf([promise].into());
    let checker = model.checker().finish_when(found).spawn_bfs().join();
    checker.assert_any_discovery(promise);
}

#[test]
fn two_sends_at_once_end_as_one_row_through_two_takeovers_and_two_losses_of_marks() {
    holds(&[1, 1], ANY, 2, 2);
}

#[test]
fn batches_of_several_calls_end_as_one_row_through_a_takeover_and_two_losses_of_marks() {
    holds(&[1, 1], 1, 1, 2);
}

#[test]
fn three_sends_of_one_id_end_as_one_row_through_a_takeover_and_a_loss_of_marks() {
    holds(&[1, 1, 1], ANY, 1, 1);
}

#[test]
fn each_of_two_ids_ends_as_one_row_through_a_takeover_and_a_loss_of_marks() {
    holds(&[1, 2, 1], ANY, 1, 1);
}

#[test]
fn a_mark_before_the_append_makes_a_duplicate_of_nothing() {
    breaks(Part::AppendFirst, DUPLICATE_OF_SOMETHING);
}

#[test]
fn marks_without_places_take_a_replay_after_a_crash_for_duplicates() {
    breaks(Part::OwnPlace, NOTHING_LOST);
}

#[test]
fn lost_marks_that_nobody_notices_let_a_trace_in_twice() {
    breaks(Part::Progress, NEVER_TWICE);
}

#[test]
fn a_zombie_that_is_not_told_from_the_owner_hides_a_loss_of_marks() {
    breaks(Part::Owner, NEVER_TWICE);
}

#[test]
fn a_mark_that_outlived_the_loss_of_a_better_one_loses_a_trace() {
    breaks(Part::Floor, NOTHING_LOST);
}

#[test]
fn a_rebuild_further_on_than_what_is_committed_lets_a_trace_in_twice() {
    breaks(Part::AtCommitted, NEVER_TWICE);
}

#[test]
fn a_loss_of_marks_in_the_midst_of_their_rebuilding_lets_a_trace_in_twice() {
    breaks(Part::Unbroken, NEVER_TWICE);
}

#[test]
fn a_loss_of_marks_between_two_calls_of_a_batch_lets_a_trace_in_twice() {
    breaks(Part::UnbrokenBatch, NEVER_TWICE);
}

#[test]
fn a_note_that_was_made_while_marks_were_missing_lets_a_trace_in_twice() {
    breaks(Part::Epoch, NEVER_TWICE);
}

#[test]
fn a_zombie_that_is_not_fenced_lets_a_trace_in_twice() {
    breaks(Part::Fence, NEVER_TWICE);
}

#[test]
fn a_worker_that_goes_on_after_its_commit_was_undone_loses_a_trace() {
    breaks(Part::Rewind, NOTHING_LOST);
}

#[test]
fn a_zombie_that_begins_anew_at_its_successors_commit_hides_a_loss_of_marks() {
    breaks(Part::Claim, NEVER_TWICE);
}
