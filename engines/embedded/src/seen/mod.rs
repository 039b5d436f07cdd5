//! The seen set. It lies in the same file as the log, so it never loses marks that the log still has, and
//! has no use for the progress of partitions.

mod filter;
mod runs;

use std::sync::Arc;

use async_trait::async_trait;
use panopticon_core::seen::{Mark, Marked, Move, Progress, Rebuild, Restored, SeenError, SeenSet};
use rusqlite::params;

pub(crate) use self::runs::Runs;
use crate::{Core, fault::Fault, writer::Durability};

/// Parts in which an expired run is deleted, so that nobody waits long for it.
const DELETE_PARTS: u8 = 8;

/// The seen set of a data directory.
pub(crate) struct Seen {
    core: Arc<Core>,
    runs: Arc<Runs>,
}

impl Seen {
    pub(crate) fn new(core: Arc<Core>, runs: Runs) -> Self {
        Self { core, runs: Arc::new(runs) }
    }

    /// Deletes a run, the row that names it last, so that a crash in between leaves nothing behind.
    async fn delete_run(&self, number: i64) -> Result<(), Fault> {
        for part in 1..DELETE_PARTS {
            let below = [u8::MAX / DELETE_PARTS * part];
            let delete = move |tx: &mut crate::writer::Tx<'_>| {
                tx.conn
                    .prepare_cached("DELETE FROM seen_places WHERE run = ?1 AND key < ?2")?
                    .execute(params![number, below])?;
                Ok(())
            };
            self.core.writer.run(Durability::Lazy, delete).await?;
        }
        let delete = move |tx: &mut crate::writer::Tx<'_>| {
            tx.conn.prepare_cached("DELETE FROM seen_places WHERE run = ?1")?.execute([number])?;
            tx.conn.prepare_cached("DELETE FROM seen_runs WHERE run = ?1")?.execute([number])?;
            Ok(())
        };
        self.core.writer.run(Durability::Lazy, delete).await?;
        self.runs.forget(number);
        Ok(())
    }
}

#[async_trait]
impl SeenSet for Seen {
    async fn mark(&self, marks: Vec<Mark>, _: Option<Progress>) -> Result<Marked, SeenError> {
        if marks.is_empty() {
            return Ok(Marked::First(Vec::new()));
        }
        let runs = Arc::clone(&self.runs);
        let window = self.core.config.retention.seen_window();
        let job = self.core.writer.run(Durability::Lazy, move |tx| runs.mark(tx, &marks, window));
        Ok(Marked::First(job.await?))
    }

    async fn restore(&self, _: &mut Rebuild, marks: Vec<Mark>) -> Result<Restored, SeenError> {
        let runs = Arc::clone(&self.runs);
        let window = self.core.config.retention.seen_window();
        let job = self.core.writer.run(Durability::Lazy, move |tx| runs.restore(tx, &marks, window));
        job.await?;
        Ok(Restored::Whole)
    }

    async fn end_rebuild(&self, _: Rebuild) -> Result<Restored, SeenError> {
        Ok(Restored::Whole)
    }

    async fn shift(&self, moves: Vec<Move>) -> Result<(), SeenError> {
        let runs = Arc::clone(&self.runs);
        let window = self.core.config.retention.seen_window();
        let job = self.core.writer.run(Durability::Lazy, move |tx| runs.shift(tx, &moves, window));
        Ok(job.await?)
    }

    async fn expire(&self) -> Result<(), SeenError> {
        let before = self.core.clock.now().minus(self.core.config.retention.seen_window());
        for number in self.runs.expired(before) {
            self.delete_run(number).await?;
        }
        Ok(())
    }
}
