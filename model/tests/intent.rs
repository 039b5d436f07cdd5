//! What the store's intent promises holds in every interleaving; and each part of the protocol is needed:
//! without it, an interleaving is found in which a promise is broken.

use panopticon_model::intent::*;
use stateright::{Checker as _, HasDiscoveries, Model as _};

fn breaks(without: Part, promise: &'static str) {
    let faults = Faults { takeovers: 1, kills: 1, timeouts: 1 };
    let found = HasDiscoveries::AllOf([promise].into());
    let model = Intent { faults, without: Some(without) };
    let checker = model.checker().finish_when(found).spawn_bfs().join();
    checker.assert_any_discovery(promise);
}

#[test]
fn each_row_is_there_and_counted_once_through_takeovers_kills_and_timeouts() {
    let faults = Faults { takeovers: 2, kills: 2, timeouts: 1 };
    let checker = Intent { faults, without: None }.checker().spawn_bfs().join();
    println!("{faults:?}: {} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn without_the_intent_another_workers_limits_put_a_row_in_twice() {
    breaks(Part::Intent, NEVER_TWICE);
}

#[test]
fn a_token_that_is_trusted_alone_loses_a_row() {
    breaks(Part::Look, NOTHING_LOST);
}

#[test]
fn without_tokens_an_old_owners_late_statement_puts_a_row_in_twice() {
    breaks(Part::Tokens, NEVER_TWICE);
}

#[test]
fn a_repair_before_the_own_token_is_used_up_counts_a_row_twice() {
    breaks(Part::OwnTokenFirst, COUNTED_ONCE);
}

#[test]
fn a_zombie_that_is_not_fenced_puts_a_row_in_twice() {
    breaks(Part::Fence, NEVER_TWICE);
}

#[test]
fn a_worker_that_goes_back_further_than_what_is_committed_puts_a_row_in_twice() {
    breaks(Part::Rewind, NEVER_TWICE);
}

#[test]
fn a_zombie_that_settles_its_successors_batch_beside_it_loses_a_count() {
    breaks(Part::Claim, NOTHING_LOST);
}
