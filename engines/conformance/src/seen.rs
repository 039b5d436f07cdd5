//! The seen set.

use panopticon_core::{
    ids::Place,
    seen::{Mark, Marked, Move, Owner, Progress, Rebuild, Restored},
};

use crate::{
    EngineUnderTest, Ports,
    fixtures::{key, place},
};

async fn mark(ports: &Ports, marks: &[(u128, u64)]) -> Vec<Place> {
    let marks = marks.iter().map(|(n, offset)| Mark { key: key(*n), place: place(*offset) }).collect();
    match ports.seen.mark(marks, None).await.unwrap() {
        Marked::First(places) => places,
        Marked::Lost => panic!("marks without progress cannot be found lost"),
    }
}

fn places(offsets: &[u64]) -> Vec<Place> {
    offsets.iter().map(|offset| place(*offset)).collect()
}

/// Whoever comes later is told who was first.
pub async fn the_place_that_came_first_is_remembered<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    assert_eq!(mark(&ports, &[(1, 10), (2, 20)]).await, places(&[10, 20]));
    assert_eq!(mark(&ports, &[(3, 30), (2, 21), (1, 11)]).await, places(&[30, 20, 10]));
    assert_eq!(mark(&ports, &[(1, 10)]).await, places(&[10]));
    assert_eq!(mark(&ports, &[]).await, []);
}

/// The answers are in the order of the marks.
pub async fn within_a_batch_the_first_of_a_key_counts<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    assert_eq!(mark(&ports, &[(1, 10), (1, 11), (2, 20), (1, 12)]).await, places(&[10, 10, 20, 10]));
    assert_eq!(mark(&ports, &[(1, 13)]).await, places(&[10]));
}

/// One place wins, and everybody is told the same.
pub async fn concurrent_marks_agree_on_one_place<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let tasks: Vec<_> = (0..16_u64)
        .map(|task| {
            let ports = ports.clone();
            tokio::spawn(async move {
                let marks: Vec<_> = (0..50).map(|n| (n, task)).collect();
                mark(&ports, &marks).await
            })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    for answer in &answers {
        assert_eq!(answer, &answers[0]);
    }
    let last: Vec<_> = (0..50).map(|n| (n, 99)).collect();
    assert_eq!(mark(&ports, &last).await, answers[0]);
}

/// A new process remembers.
pub async fn marks_are_there_after_a_reopen<E: EngineUnderTest>(engine: E) {
    mark(&engine.ports(), &[(1, 10), (2, 20)]).await;
    let engine = engine.reopen().await;
    assert_eq!(mark(&engine.ports(), &[(1, 11), (2, 21), (3, 30)]).await, places(&[10, 20, 30]));
}

/// What is rebuilt from the log counts.
pub async fn a_restored_mark_stands_over_what_was_there<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    mark(&ports, &[(1, 10), (2, 20)]).await;
    let marks = [(1, 11), (3, 31)].map(|(n, offset)| Mark { key: key(n), place: place(offset) });
    let Place { log_id, partition, .. } = place(0);
    let reached = Progress { log_id, partition, from: 15, to: 15, owner: Owner::after(None), trusts: None };
    let mut rebuild = Rebuild::new(reached);
    assert_eq!(ports.seen.restore(&mut rebuild, Vec::new()).await.unwrap(), Restored::Whole);
    assert_eq!(ports.seen.restore(&mut rebuild, marks.to_vec()).await.unwrap(), Restored::Whole);
    assert_eq!(ports.seen.end_rebuild(rebuild).await.unwrap(), Restored::Whole);
    assert_eq!(mark(&ports, &[(1, 12), (2, 22), (3, 32)]).await, places(&[11, 20, 31]));
}

/// A replayed trace takes its mark along once, and nobody else's.
pub async fn a_mark_moves_only_from_the_place_it_is_said_to_have<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let shift = async |moves: &[(u128, u64, u64)]| {
        let moves =
            moves.iter().map(|(n, from, to)| Move { key: key(*n), from: place(*from), to: place(*to) });
        ports.seen.shift(moves.collect()).await.unwrap();
    };
    mark(&ports, &[(1, 10), (2, 20)]).await;
    shift(&[(1, 10, 11), (2, 21, 22), (3, 30, 31)]).await;
    // The second had another place, and the third had none: that is not for this to set.
    assert_eq!(mark(&ports, &[(1, 12), (2, 22), (3, 33)]).await, places(&[11, 20, 33]));
    shift(&[(1, 10, 13), (3, 33, 34), (3, 34, 35)]).await;
    shift(&[]).await;
    assert_eq!(mark(&ports, &[(1, 13), (3, 36)]).await, places(&[11, 35]));
    let engine = engine.reopen().await;
    assert_eq!(mark(&engine.ports(), &[(1, 14), (3, 37)]).await, places(&[11, 35]));
}

/// Remembered through the window; forgotten some time after it.
pub async fn marks_are_kept_for_the_window_and_not_for_ever<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    mark(&ports, &[(1, 10)]).await;
    engine.let_time_pass(E::SEEN_WINDOW / 2).await;
    ports.seen.expire().await.unwrap();
    assert_eq!(mark(&ports, &[(1, 11), (2, 20)]).await, places(&[10, 20]));
    for _ in 0..3 {
        engine.let_time_pass(E::SEEN_WINDOW).await;
        ports.seen.expire().await.unwrap();
    }
    assert_eq!(mark(&ports, &[(1, 12), (2, 22)]).await, places(&[12, 22]));
}

/// None of many is taken for another, and none is lost.
pub async fn many_marks_are_told_apart<E: EngineUnderTest>(engine: E) {
    const MARKS: u128 = 150_000;
    const BATCH: usize = 500;
    let ports = engine.ports();
    let all: Vec<(u128, u64)> = (0..MARKS).map(|n| (n, n as u64)).collect();
    for batch in all.chunks(BATCH) {
        let wanted: Vec<_> = batch.iter().map(|(_, offset)| place(*offset)).collect();
        assert_eq!(mark(&ports, batch).await, wanted);
    }
    for batch in all.chunks(BATCH) {
        let again: Vec<_> = batch.iter().map(|(n, _)| (*n, u64::MAX >> 20)).collect();
        let wanted: Vec<_> = batch.iter().map(|(_, offset)| place(*offset)).collect();
        assert_eq!(mark(&ports, &again).await, wanted);
    }
}
