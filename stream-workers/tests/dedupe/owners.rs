//! What dedupe tells the seen set of itself, and what it does when marks were lost.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
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
    /// How often it still answers that marks were lost, and that they were lost again.
    losses: AtomicU32,
    losses_in_rebuilds: AtomicU32,
    rebuilt: AtomicU32,
}

/// Counts down to nothing.
fn take(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[async_trait]
impl SeenSet for Forgetful {
    async fn mark(&self, marks: Vec<Mark>, progress: Option<Progress>) -> Result<Marked, SeenError> {
        self.asked.lock().unwrap().extend(progress);
        if take(&self.losses) { Ok(Marked::Lost) } else { self.inner.mark(marks, progress).await }
    }

    async fn restore(&self, rebuild: &mut Rebuild, marks: Vec<Mark>) -> Result<Restored, SeenError> {
        if !marks.is_empty() && take(&self.losses_in_rebuilds) {
            return Ok(Restored::LostAgain);
        }
        self.inner.restore(rebuild, marks).await
    }

    async fn end_rebuild(&self, rebuild: Rebuild) -> Result<Restored, SeenError> {
        self.rebuilt.fetch_add(1, Ordering::SeqCst);
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
        losses: AtomicU32::new(0),
        losses_in_rebuilds: AtomicU32::new(0),
        rebuilt: AtomicU32::new(0),
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
    seen.losses.store(2, Ordering::SeqCst);
    seen.losses_in_rebuilds.store(1, Ordering::SeqCst);
    house.append(&[house.trace(1), house.trace(2)], None).await;
    assert_eq!(house.kept().await, [1, 2]);
    assert_eq!(seen.rebuilt.load(Ordering::SeqCst), 1);
}
