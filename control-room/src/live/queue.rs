//! What waits for one viewer.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What a viewer gets next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// A trace, ready for the wire.
    Trace(Bytes),
    /// So many traces did not fit here; 0: not known how many.
    Missed(u64),
}

/// A bounded queue that counts what does not fit. The count stands in the queue where the traces would.
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Notify,
    capacity: usize,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    /// Traces that came after the last item and did not fit.
    missed: u64,
    /// How many came through in a gap whose size nobody knows.
    unknown: bool,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), filled: Notify::new(), capacity }
    }

    /// Puts a trace in, or counts it as missed.
    pub(super) fn push(&self, frame: Bytes) {
        let mut state = self.state.lock();
        if state.items.len() >= self.capacity {
            state.missed += 1;
            metrics::counter!("panopticon_live_missed_total").increment(1);
        } else {
            state.settle();
            state.items.push_back(Item::Trace(frame));
        }
        drop(state);
        self.filled.notify_one();
    }

    /// Traces are missing from here on, and nobody knows how many.
    pub(super) fn lose_track(&self) {
        self.state.lock().unknown = true;
        self.filled.notify_one();
    }

    /// The next item, once there is one. Safe to cancel.
    pub(super) async fn pop(&self) -> Item {
        loop {
            {
                let mut state = self.state.lock();
                if state.items.is_empty() {
                    state.settle();
                }
                if let Some(item) = state.items.pop_front() {
                    return item;
                }
            }
            self.filled.notified().await;
        }
    }
}

impl State {
    /// Puts what was missed into the queue, now that there is room after it.
    fn settle(&mut self) {
        if self.missed > 0 {
            self.items.push_back(Item::Missed(self.missed));
            self.missed = 0;
        }
        if self.unknown {
            self.items.push_back(Item::Missed(0));
            self.unknown = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(n: u8) -> Bytes {
        Bytes::from(vec![n])
    }

    #[tokio::test]
    async fn what_did_not_fit_is_told_in_its_place_and_exactly() {
        let queue = Queue::new(2);
        (1..=5).for_each(|n| queue.push(frame(n)));
        assert_eq!(queue.pop().await, Item::Trace(frame(1)));
        // Now there is room: the three that were missed come before what follows them.
        queue.push(frame(6));
        for wanted in [Item::Trace(frame(2)), Item::Missed(3), Item::Trace(frame(6))] {
            assert_eq!(queue.pop().await, wanted);
        }
    }

    #[tokio::test]
    async fn a_viewer_hears_of_what_it_missed_even_when_nothing_follows() {
        let queue = Queue::new(1);
        (1..=3).for_each(|n| queue.push(frame(n)));
        assert_eq!(queue.pop().await, Item::Trace(frame(1)));
        assert_eq!(queue.pop().await, Item::Missed(2));
    }
}
