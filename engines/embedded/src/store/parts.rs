//! Rows that are read on a thread of its own while somebody takes them: long reads hold nobody else up.

use futures::{StreamExt as _, stream};
use panopticon_core::store::Parts;
use tokio::sync::mpsc;

use crate::fault::Fault;

/// Parts that are read ahead.
const AHEAD: usize = 1;

/// Where the reading thread puts its parts.
pub(super) struct Sending<T>(mpsc::Sender<Result<Vec<T>, Fault>>);

impl<T> Sending<T> {
    /// Waits until there is room; `false` when nobody wants more.
    pub(super) fn send(&self, part: Vec<T>) -> bool {
        part.is_empty() || self.0.blocking_send(Ok(part)).is_ok()
    }
}

/// Has `read` send parts until it ends or fails.
pub(super) fn in_parts<T: Send + 'static>(
    read: impl FnOnce(&Sending<T>) -> Result<(), Fault> + Send + 'static,
) -> Parts<T> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let parts = Sending(sender);
        if let Err(fault) = read(&parts) {
            // Nobody may be listening any more.
            let _ = parts.0.blocking_send(Err(fault));
        }
    });
    let next = |mut receiver: mpsc::Receiver<Result<Vec<T>, Fault>>| async move {
        let part = receiver.recv().await?;
        Some((part.map_err(Into::into), receiver))
    };
    stream::unfold(receiver, next).boxed()
}
