//! One reading of the aggregates for all partitions that begin at about the same time: each would have to read
//! all of them, since they are not kept by partition.

use std::{mem, sync::Arc, time::Duration};

use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{
    ids::partition_of,
    store::{Activity, Parts, StoreError, Whose},
    time::Time,
};

/// How far back what is known of a user or a tool matters.
const REACH: Duration = Duration::from_secs(400 * 86_400);
/// How long whoever comes first waits for the others.
const GATHERING: Duration = Duration::from_millis(300);
/// Parts that lie ready for a partition.
const AHEAD: usize = 1;
/// The aggregates are by quarters of an hour.
const QUARTER: Duration = Duration::from_secs(900);

/// Asks for all activity from one time until another.
type Ask = dyn Fn(Time, Time) -> Parts<Activity> + Send + Sync;

/// Of what a partition wants to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) partition: u32,
    pub(super) partitions: u32,
    /// Of the time before this.
    pub(super) until: Time,
}

/// The readings for a stage.
#[derive(Clone)]
pub(super) struct Readings {
    ask: Arc<Ask>,
    whose: Whose,
    /// Those for whom the next one is.
    waiting: Arc<Mutex<Vec<Waiting>>>,
}

struct Waiting {
    wanted: Wanted,
    parts: mpsc::Sender<Result<Vec<Activity>, StoreError>>,
}

impl Readings {
    pub(super) fn new(
        whose: Whose,
        ask: impl Fn(Time, Time) -> Parts<Activity> + Send + Sync + 'static,
    ) -> Self {
        Self { ask: Arc::new(ask), whose, waiting: Arc::default() }
    }

    /// What is wanted, in parts; an error is the last.
    pub(super) fn join(&self, wanted: Wanted) -> mpsc::Receiver<Result<Vec<Activity>, StoreError>> {
        let (parts, receiver) = mpsc::channel(AHEAD);
        let mut waiting = self.waiting.lock();
        waiting.push(Waiting { wanted, parts });
        if waiting.len() == 1 {
            tokio::spawn(self.clone().read());
        }
        receiver
    }

    async fn read(self) {
        tokio::time::sleep(GATHERING).await;
        let waiting = mem::take(&mut *self.waiting.lock());
        let untils = || waiting.iter().map(|one| one.wanted.until);
        let (Some(earliest), Some(latest)) = (untils().min(), untils().max()) else { return };
        let mut parts = (self.ask)(earliest.minus(REACH), latest);
        while let Some(part) = parts.next().await {
            let mut awaited = false;
            for one in &waiting {
                let theirs = part.as_ref().map_err(Clone::clone).map(|part| {
                    part.iter().filter(|activity| one.wanted.holds(self.whose, activity)).cloned().collect()
                });
                awaited |= one.parts.send(theirs).await.is_ok();
            }
            if !awaited {
                break;
            }
        }
    }
}

impl Wanted {
    fn holds(&self, whose: Whose, activity: &Activity) -> bool {
        let Activity { client_id, name, since, .. } = activity;
        let partition = match whose {
            Whose::Users => partition_of(&[client_id, name], self.partitions),
            Whose::Tools => partition_of(&[client_id], self.partitions),
        };
        partition == self.partition && since.plus(QUARTER) <= self.until
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    /// A quarter of an hour of each of forty users, one after the other, in two parts.
    fn part(from: i64) -> Vec<Activity> {
        let activity = |n: i64| Activity {
            client_id: "app".to_owned(),
            name: format!("user_{n}"),
            since: Time::from_secs(n * 900),
            traces: 1,
            denied: 0,
        };
        (from..from + 20).map(activity).collect()
    }

    fn wanted(partition: u32, quarters: i64) -> Wanted {
        Wanted { partition, partitions: 2, until: Time::from_secs(quarters * 900) }
    }

    async fn names(mut parts: mpsc::Receiver<Result<Vec<Activity>, StoreError>>) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(part) = parts.recv().await {
            names.extend(part.unwrap().into_iter().map(|activity| activity.name));
        }
        names
    }

    #[tokio::test]
    async fn partitions_that_begin_together_share_a_reading_and_each_gets_its_own() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let readings = Readings::new(Whose::Users, {
            let asked = Arc::clone(&asked);
            move |since, until| {
                asked.lock().push((since, until));
                stream::iter([Ok(part(0)), Ok(part(20))]).boxed()
            }
        });
        // One who has left keeps nobody.
        drop(readings.join(wanted(0, 40)));
        let (zero, one) = (readings.join(wanted(0, 40)), readings.join(wanted(1, 30)));
        let (zero, one) = tokio::join!(names(zero), names(one));
        let of = |partition, quarters: i64| {
            let users = (0..quarters).map(|n| format!("user_{n}"));
            users.filter(|user| partition_of(&["app", user], 2) == partition).collect::<Vec<_>>()
        };
        assert_eq!((zero, one), (of(0, 40), of(1, 30)));
        let (earliest, latest) = (wanted(1, 30).until, wanted(0, 40).until);
        assert_eq!(*asked.lock(), [(earliest.minus(REACH), latest)]);
        // Who comes later is not forgotten.
        assert_eq!(names(readings.join(wanted(1, 30))).await, of(1, 30));
        assert_eq!(asked.lock().len(), 2);
    }

    #[tokio::test]
    async fn everyone_is_told_that_it_failed() {
        let readings = Readings::new(Whose::Tools, |_, _| {
            stream::iter([Err(StoreError::Unavailable("away".to_owned()))]).boxed()
        });
        let mut joined = [readings.join(wanted(0, 1)), readings.join(wanted(1, 1))];
        for parts in &mut joined {
            assert!(matches!(parts.recv().await, Some(Err(StoreError::Unavailable(_)))));
            assert!(parts.recv().await.is_none());
        }
    }
}
