//! Keeps a [`ControlState`] up to date by following the topic.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::ControlState;
use crate::{
    health::{Health, PartHealth},
    log::{EventLog, LogError, Stored, TailFrom},
    topic::Topic,
};

/// How often the log is asked whether it is still there.
const CONTACT_EVERY: Duration = Duration::from_secs(5);
/// After this long without contact a process is not ready: it may miss a kill.
const OUT_OF_TOUCH: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 4 << 20;
const REJOIN_PAUSE: Duration = Duration::from_millis(500);

/// The control table of this process.
#[derive(Clone)]
pub struct ControlView {
    shared: Arc<Shared>,
}

struct Shared {
    log: Arc<dyn EventLog>,
    state: RwLock<ControlState>,
    /// The next offset to take in; the lock orders the two readers (the tail and a writer).
    next: Mutex<u64>,
    changed: watch::Sender<u64>,
    contact: Mutex<Instant>,
}

impl ControlView {
    /// Reads the whole table, then follows it until `shutdown`. A part `control` of `health` says whether
    /// the process is in touch with it.
    pub async fn open(
        log: Arc<dyn EventLog>,
        health: &Health,
        shutdown: CancellationToken,
    ) -> Result<Self, LogError> {
        let part = health.part("control");
        let low = log.bounds(Topic::Control, 0).await?.low;
        let view = Self {
            shared: Arc::new(Shared {
                log,
                state: RwLock::default(),
                next: Mutex::new(low),
                changed: watch::Sender::new(low),
                contact: Mutex::new(Instant::now()),
            }),
        };
        view.read_to_end().await?;
        part.progressed();
        tokio::spawn(view.clone().follow(part, shutdown));
        Ok(view)
    }

    /// The table as it is now. Do not hold it across an await.
    pub fn state(&self) -> RwLockReadGuard<'_, ControlState> {
        self.shared.state.read()
    }

    /// Sees every change: the value is the offset up to which changes have been taken in.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Takes in everything that was committed before this call.
    pub async fn read_to_end(&self) -> Result<(), LogError> {
        let high = self.shared.log.bounds(Topic::Control, 0).await?.high;
        loop {
            let next = *self.shared.next.lock();
            if next >= high {
                break;
            }
            let records = self.shared.log.read(Topic::Control, 0, next, high, READ_BYTES).await?;
            if records.is_empty() {
                break;
            }
            self.take_in(&records);
        }
        *self.shared.contact.lock() = Instant::now();
        Ok(())
    }

    fn take_in(&self, records: &[Stored]) {
        let mut next = self.shared.next.lock();
        {
            let mut state = self.shared.state.write();
            for stored in records.iter().filter(|stored| stored.offset >= *next) {
                state.apply(&stored.record.key, stored.record.payload.as_deref());
            }
        }
        if let Some(last) = records.last() {
            *next = (*next).max(last.offset + 1);
            self.shared.changed.send_replace(*next);
        }
    }

    async fn follow(self, part: PartHealth, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                error = self.tail(&part) => {
                    warn!(%error, "control: lost touch with the log; trying again");
                    part.waiting(error.to_string());
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(REJOIN_PAUSE) => {}
            }
        }
    }

    /// Follows the topic until it fails.
    async fn tail(&self, part: &PartHealth) -> LogError {
        let next = *self.shared.next.lock();
        let mut tail = match self.shared.log.tail(Topic::Control, TailFrom::Offsets(vec![next])).await {
            Ok(tail) => tail,
            Err(error) => return error,
        };
        let mut contact = tokio::time::interval(CONTACT_EVERY);
        let mut lost = false;
        loop {
            tokio::select! {
                record = tail.next() => match record {
                    Some(Ok((_, stored))) => self.take_in(&[stored]),
                    Some(Err(error)) => return error,
                    None => return LogError::Unavailable("the tail of `control` ended".to_owned()),
                },
                _ = contact.tick() => match self.read_to_end().await {
                    Ok(()) => {
                        if lost {
                            info!("control: in touch with the log again");
                        }
                        lost = false;
                        part.progressed();
                    }
                    Err(error) => {
                        lost = true;
                        if self.shared.contact.lock().elapsed() > OUT_OF_TOUCH {
                            part.waiting(format!("out of touch with the log for {} s: {error}", OUT_OF_TOUCH.as_secs()));
                        }
                    }
                },
            }
        }
    }
}
