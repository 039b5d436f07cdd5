//! Who holds which partition, and who has the right to write under a name. All in memory: no other process
//! can have the file open.

use std::{collections::HashMap, sync::Arc};

use panopticon_core::topic::Topic;
use parking_lot::Mutex;
use tokio::sync::watch;

/// One partition in a group.
#[derive(Debug, Clone, Copy, Default)]
struct Seat {
    /// Grows with every lease.
    epoch: u64,
    held: bool,
}

/// The members of a stage that share a topic's partitions.
pub(super) struct Group {
    pub(super) stage: &'static str,
    pub(super) topic: Topic,
    seats: Mutex<Vec<Seat>>,
    /// Changes whenever a lease ends.
    ended: watch::Sender<u64>,
}

impl Group {
    /// Leases a partition that nobody holds.
    pub(super) fn lease(self: &Arc<Self>) -> Option<SeatHeld> {
        let mut seats = self.seats.lock();
        let (partition, seat) = (0_u32..).zip(seats.iter_mut()).find(|(_, seat)| !seat.held)?;
        seat.held = true;
        seat.epoch += 1;
        Some(SeatHeld { group: Arc::clone(self), partition, epoch: seat.epoch })
    }

    /// Follows the ends of leases.
    pub(super) fn ends(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    fn is_free(&self) -> bool {
        self.seats.lock().iter().all(|seat| !seat.held)
    }

    fn take_all(&self) {
        for seat in self.seats.lock().iter_mut() {
            seat.held = false;
            // What the lease still commits is older than this.
            seat.epoch += 1;
        }
        self.ended.send_modify(|ends| *ends += 1);
    }
}

/// A partition held; dropping it frees the partition.
pub(super) struct SeatHeld {
    group: Arc<Group>,
    pub(super) partition: u32,
    epoch: u64,
}

impl SeatHeld {
    pub(super) fn group(&self) -> &Arc<Group> {
        &self.group
    }

    pub(super) fn pass(&self) -> Pass {
        Pass { group: Arc::clone(&self.group), partition: self.partition, epoch: self.epoch }
    }

    pub(super) fn is_valid(&self) -> bool {
        is_valid(&self.group, self.partition, self.epoch)
    }
}

impl Drop for SeatHeld {
    fn drop(&mut self) {
        if let Some(seat) = self.group.seats.lock().get_mut(self.partition as usize)
            && seat.epoch == self.epoch
        {
            seat.held = false;
        }
        self.group.ended.send_modify(|ends| *ends += 1);
    }
}

/// Lets a commit tell whether the lease that it was made under is still the newest. A lease that has been
/// dropped remains valid until the next: nobody has built on what was there before.
#[derive(Clone)]
pub(super) struct Pass {
    group: Arc<Group>,
    partition: u32,
    epoch: u64,
}

impl Pass {
    pub(super) fn is_valid(&self) -> bool {
        is_valid(&self.group, self.partition, self.epoch)
    }
}

fn is_valid(group: &Group, partition: u32, epoch: u64) -> bool {
    group.seats.lock().get(partition as usize).is_some_and(|seat| seat.epoch == epoch)
}

/// All groups, and all writers' rights.
#[derive(Default)]
pub(crate) struct Groups {
    groups: Mutex<HashMap<(&'static str, Topic), Arc<Group>>>,
    writers: Arc<Mutex<HashMap<&'static str, u64>>>,
}

impl Groups {
    /// The group of `stage` on `topic`.
    pub(super) fn join(&self, stage: &'static str, topic: Topic, partitions: u32) -> Arc<Group> {
        let mut groups = self.groups.lock();
        let group = groups.entry((stage, topic)).or_insert_with(|| {
            let seats = Mutex::new(vec![Seat::default(); partitions as usize]);
            Arc::new(Group { stage, topic, seats, ended: watch::Sender::new(0) })
        });
        Arc::clone(group)
    }

    /// Ends all leases of a group without asking their holders.
    pub(crate) fn take_all(&self, stage: &'static str, topic: Topic) {
        let group = self.groups.lock().get(&(stage, topic)).cloned();
        if let Some(group) = group {
            group.take_all();
        }
    }

    /// Waits until no lease is held.
    pub(crate) async fn all_freed(&self) {
        let groups: Vec<_> = self.groups.lock().values().cloned().collect();
        for group in groups {
            let mut ends = group.ends();
            while !group.is_free() {
                if ends.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    /// Takes the right to write as `id` from whoever had it.
    pub(super) fn take_writer(&self, id: &'static str) -> WriterPass {
        let mut writers = self.writers.lock();
        let epoch = writers.entry(id).or_default();
        *epoch += 1;
        WriterPass { writers: Arc::clone(&self.writers), id, epoch: *epoch }
    }
}

/// Lets a commit tell whether its writer still has the right.
#[derive(Clone)]
pub(super) struct WriterPass {
    writers: Arc<Mutex<HashMap<&'static str, u64>>>,
    pub(super) id: &'static str,
    epoch: u64,
}

impl WriterPass {
    pub(super) fn is_valid(&self) -> bool {
        self.writers.lock().get(self.id) == Some(&self.epoch)
    }
}
