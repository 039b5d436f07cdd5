//! What dedupe tells the seen set of itself, and what it does when marks were lost.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use async_trait::async_trait;
use panopticon_core::{
    log::Commit,
    seen::{Mark, Marked, Move, Owner, Progress, Rebuild, Restored, SeenError, SeenSet},
    topic::Topic,
};

use crate::house::House;

/// A seen set that loses marks when it is told to.
struct Forgetful {
    inner: Arc<dyn SeenSet>,
    /// How dedupe has asked.
    asked: Mutex<Vec<Progress>>,
    /// When a batch begins here or later, marks are lost, until they are rebuilt.
    lost_from: AtomicU64,
    /// How often they are lost again meanwhile.
    losses_in_rebuilds: AtomicU32,
    /// Where rebuilds have drawn the line.
    rebuilt: Mutex<Vec<u64>>,
}

const NEVER: u64 = u64::MAX;

#[async_trait]
impl SeenSet for Forgetful {
    async fn mark(&self, marks: Vec<Mark>, progress: Option<Progress>) -> Result<Marked, SeenError> {
        self.asked.lock().unwrap().extend(progress);
        if progress.is_some_and(|progress| progress.from >= self.lost_from.load(Ordering::SeqCst)) {
            self.lost_from.store(0, Ordering::SeqCst);
            return Ok(Marked::Lost);
        }
        self.inner.mark(marks, progress).await
    }

    async fn restore(&self, rebuild: &mut Rebuild, marks: Vec<Mark>) -> Result<Restored, SeenError> {
        let left = self.losses_in_rebuilds.load(Ordering::SeqCst);
        if !marks.is_empty() && left > 0 {
            self.losses_in_rebuilds.store(left - 1, Ordering::SeqCst);
            return Ok(Restored::LostAgain);
        }
        self.inner.restore(rebuild, marks).await
    }

    async fn end_rebuild(&self, rebuild: Rebuild) -> Result<Restored, SeenError> {
        self.rebuilt.lock().unwrap().push(rebuild.progress.to);
        self.lost_from.store(NEVER, Ordering::SeqCst);
        self.inner.end_rebuild(rebuild).await
    }

    async fn shift(&self, moves: Vec<Move>) -> Result<(), SeenError> {
        self.inner.shift(moves).await
    }

    async fn expire(&self) -> Result<(), SeenError> {
        self.inner.expire().await
    }
}

fn open() -> (House, Arc<Forgetful>) {
    let mut house = House::open();
    let seen = Arc::new(Forgetful {
        inner: house.seen.clone(),
        asked: Mutex::default(),
        lost_from: AtomicU64::new(NEVER),
        losses_in_rebuilds: AtomicU32::new(0),
        rebuilt: Mutex::default(),
    });
    house.seen = seen.clone();
    // Every record is a batch of its own.
    house.config.stages.batch_records = 1;
    house.config.stages.pace_ms = 0;
    (house, seen)
}

#[tokio::test]
async fn an_owner_trusts_the_last_committer_and_from_the_first_answer_on_itself() {
    let (house, seen) = open();
    for numbers in [[1, 2], [3, 4]] {
        for number in numbers {
            house.append(&[house.trace(number)], None).await;
        }
        house.kept().await;
    }
    let asked: Vec<_> = seen.asked.lock().unwrap().iter().map(|p| (p.owner, p.trusts)).collect();
    let (first, second) = (asked[0].0, asked[2].0);
    assert_eq!(asked, [(first, None), (first, Some(first)), (second, Some(first)), (second, Some(second))]);
    assert_eq!((first.number, second.number), (1, 2));
}

#[tokio::test]
async fn a_commit_of_an_older_build_is_one_of_the_owner_without_a_name() {
    let (house, seen) = open();
    let next = house.append(&[house.trace(1)], None).await + 1;
    let mut subscription = house.engine.log.subscribe("dedupe", Topic::TracesRaw).await.unwrap();
    loop {
        let mut lease = subscription.next_lease().await.unwrap();
        if lease.partition() == 0 {
            lease.commit(Commit { next: Some(next), ..Commit::default() }).await.unwrap();
            break;
        }
    }
    drop(subscription);
    house.append(&[house.trace(2)], None).await;
    assert_eq!(house.kept().await, [2]);
    assert_eq!(seen.asked.lock().unwrap()[0].trusts, Some(Owner::UNNAMED));
}

#[tokio::test]
async fn marks_that_are_lost_again_while_they_are_rebuilt_are_rebuilt_once_more() {
    let (house, seen) = open();
    house.append(&[house.trace(1)], None).await;
    assert_eq!(house.kept().await, [1]);
    seen.losses_in_rebuilds.store(1, Ordering::SeqCst);
    let at = house.append(&[house.trace(1), house.trace(2)], None).await;
    seen.lost_from.store(at, Ordering::SeqCst);
    assert_eq!(house.kept().await, [1, 2]);
    assert_eq!(*seen.rebuilt.lock().unwrap(), [at]);
}

#[tokio::test]
async fn marks_are_rebuilt_up_to_what_is_committed_and_not_up_to_what_is_passed() {
    let (mut house, seen) = open();
    // Longer than this takes.
    house.config.stages.commit_ms = 60_000;
    house.append(&[house.trace(1)], None).await;
    let duplicate = house.append(&[house.trace(1)], None).await;
    let next = house.append(&[house.trace(2)], None).await;
    seen.lost_from.store(next, Ordering::SeqCst);
    assert_eq!(house.kept().await, [1, 2]);
    let froms: Vec<u64> = seen.asked.lock().unwrap().iter().map(|progress| progress.from).collect();
    assert_eq!(froms[2..], [next, duplicate, duplicate, next]);
    assert_eq!(*seen.rebuilt.lock().unwrap(), [duplicate]);
}
