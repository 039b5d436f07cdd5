//! Taking a partition over from whoever had it before, on a thread of its own.

use std::{
    io,
    sync::{Arc, mpsc::Sender},
    thread,
};

use panopticon_core::log::{Committed, LogError};

use super::{member::Shared, txn::TxnProducer};

/// Taken over: who writes for the partition, and where it goes on.
pub(super) struct Takeover {
    pub(super) producer: TxnProducer,
    pub(super) committed: Committed,
    /// The first offset that is still there.
    pub(super) low: u64,
}

/// The partition, which of its assignments it was for, and what came of it.
pub(super) type Outcome = (u32, u64, Result<Takeover, LogError>);

/// Begins to take `partition` over; the outcome goes to `done`.
pub(super) fn start(
    shared: &Arc<Shared>,
    partition: u32,
    assignment: u64,
    done: Sender<Outcome>,
) -> io::Result<()> {
    let shared = Arc::clone(shared);
    let work = move || {
        // The thread of the group may have ended.
        let _ = done.send((partition, assignment, take_over(&shared, partition)));
        shared.wake.call();
    };
    thread::Builder::new().name("kafka-takeover".to_owned()).spawn(work).map(|_| ())
}

/// Fences the former owner, which ends what it had begun, and only then looks how far the group has come.
fn take_over(shared: &Shared, partition: u32) -> Result<Takeover, LogError> {
    let mut producer = TxnProducer::open(&shared.clients, &shared.transactional_id(partition))?;
    let (committed, low) = shared.claim(&mut producer, partition)?;
    Ok(Takeover { producer, committed, low })
}
