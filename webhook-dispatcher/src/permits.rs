//! How many attempts may be under way at once: per endpoint, and in the whole process.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Endpoints beyond which those that nothing waits for are forgotten.
const PRUNE_ABOVE: usize = 1_024;

/// Hands out permits, in the order in which they were asked for.
#[derive(Debug)]
pub struct Permits {
    per_endpoint: usize,
    process: Arc<Semaphore>,
    endpoints: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// The right to make one attempt, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    _endpoint: OwnedSemaphorePermit,
    _process: OwnedSemaphorePermit,
}

impl Permits {
    /// At most `per_endpoint` attempts at once to one endpoint, and `in_process` in all.
    pub fn new(per_endpoint: usize, in_process: usize) -> Self {
        Self { per_endpoint, process: Arc::new(Semaphore::new(in_process)), endpoints: Mutex::default() }
    }

    /// Waits for the right to make an attempt. Who waits for a slow endpoint holds no right of the process.
    pub async fn acquire(&self, endpoint_id: &str) -> Option<Permit> {
        // The semaphores are never closed, so `None` does not occur.
        let endpoint = self.endpoint(endpoint_id).acquire_owned().await.ok()?;
        let process = self.process.clone().acquire_owned().await.ok()?;
        Some(Permit { _endpoint: endpoint, _process: process })
    }

    fn endpoint(&self, endpoint_id: &str) -> Arc<Semaphore> {
        let mut endpoints = self.endpoints.lock();
        if let Some(semaphore) = endpoints.get(endpoint_id).and_then(Weak::upgrade) {
            return semaphore;
        }
        if endpoints.len() >= PRUNE_ABOVE {
            endpoints.retain(|_, semaphore| semaphore.strong_count() > 0);
        }
        let semaphore = Arc::new(Semaphore::new(self.per_endpoint));
        endpoints.insert(endpoint_id.to_owned(), Arc::downgrade(&semaphore));
        semaphore
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn now(permits: &Permits, endpoint_id: &str) -> Option<Permit> {
        permits.acquire(endpoint_id).now_or_never().flatten()
    }

    #[test]
    fn a_full_endpoint_leaves_the_process_to_the_others() {
        let permits = Permits::new(2, 3);
        let slow: Vec<_> = (0..2).map(|_| now(&permits, "slow").unwrap()).collect();
        assert!(now(&permits, "slow").is_none());
        let other = now(&permits, "other");
        assert!(other.is_some());
        assert!(now(&permits, "third").is_none(), "the process is full");
        drop(slow);
        assert!(now(&permits, "slow").is_some());
    }

    #[test]
    fn endpoints_that_nothing_waits_for_are_forgotten() {
        let permits = Permits::new(1, 10);
        for n in 0..3 * PRUNE_ABOVE {
            now(&permits, &n.to_string()).unwrap();
        }
        assert!(permits.endpoints.lock().len() <= PRUNE_ABOVE);
    }
}
