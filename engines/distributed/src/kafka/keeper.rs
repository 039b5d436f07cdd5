//! Takes the events of clients that nobody polls at the moment.
//!
//! A client queues its log lines and errors until it is polled; an idle one would collect them for as
//! long as a broker is away.

use std::{
    sync::{
        Arc, Weak,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;

/// How often idle clients are looked after.
const ROUND: Duration = Duration::from_millis(500);
/// Events of an idle client that are taken in a round.
const EVENTS: usize = 100;

/// Takes what has collected. A look of no time takes one event at most and does not say whether there are more; the
/// driver burns the last millisecond of a longer one.
pub(super) fn drain(look: impl Fn(Duration)) {
    (0..EVENTS).for_each(|_| look(Duration::ZERO));
}

/// A client that may sit idle.
pub(super) trait Idle: Send + Sync {
    /// Takes what has collected, unless somebody uses the client now.
    fn drain(&self);
}

/// The thread that looks after idle clients; it ends with this value.
pub(super) struct Keeper {
    idle: Arc<Mutex<Vec<Weak<dyn Idle>>>>,
    /// Tells the thread to look at once; dropping it ends the thread.
    added: Sender<()>,
}

impl Keeper {
    pub(super) fn start() -> std::io::Result<Self> {
        let idle: Arc<Mutex<Vec<Weak<dyn Idle>>>> = Arc::default();
        let (added, news) = channel::<()>();
        let list = Arc::clone(&idle);
        thread::Builder::new().name("kafka-keeper".to_owned()).spawn(move || {
            while news.recv_timeout(ROUND) != Err(RecvTimeoutError::Disconnected) {
                let clients: Vec<Arc<dyn Idle>> = {
                    let mut list = list.lock();
                    list.retain(|client| client.strong_count() > 0);
                    list.iter().filter_map(Weak::upgrade).collect()
                };
                clients.iter().for_each(|client| client.drain());
            }
        })?;
        Ok(Self { idle, added })
    }

    /// Looks after `client` for as long as it lives, and at once: it may need a token before it can do anything.
    pub(super) fn keep(&self, client: Weak<dyn Idle>) {
        self.idle.lock().push(client);
        // The thread ends after its sender only.
        let _ = self.added.send(());
    }
}

/// Destroys a client on a thread of its own: that joins the driver's threads, and may take a while.
pub(super) fn dispose<T: Send + 'static>(client: T) {
    // Without a thread to be had the closure is dropped here, which also destroys the client.
    let _ = thread::Builder::new().name("kafka-dispose".to_owned()).spawn(move || drop(client));
}
