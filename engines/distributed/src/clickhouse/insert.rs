//! How a batch gets in, exactly once.
//!
//! The first time it is simply sent, with a deduplication token made of its range. A batch whose outcome is
//! not known, because the answer did not come or because someone else began it, is [settled](super::settle).

use std::collections::BTreeMap;

use bytes::Bytes;
use panopticon_core::store::{BatchRange, RefusedRow};

use super::{
    batch::Batch,
    server::{Failure, Insert, Server},
};

/// More refused rows than this in a batch, and it is not the rows that are wrong.
const MAX_REFUSED_ROWS: usize = 1_000;

/// The names by which an insert can be found again, the same after every crash.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// All statements of this partition begin with it.
    pub(super) partition: String,
    range: String,
}

impl Names {
    pub(super) fn new(server: &Server, range: &BatchRange) -> Self {
        let BatchRange { topic, log_id, partition, from, to } = range;
        Self {
            partition: format!("panopticon:{}:{topic}:{log_id}:{partition}:", server.database),
            range: format!("{from}-{to}"),
        }
    }

    /// The token of a part of the work, also what distinguishes its query_id.
    pub(super) fn token(&self, part: &str) -> String {
        format!("{}{}{part}", self.partition, self.range)
    }
}

/// Sends a batch; rows that the server refuses are found by halving the batch and answered, by number.
///
/// Halves go in in the order of the log, so that what usage rows have reached stays true throughout.
pub(super) async fn send(
    server: &Server,
    batch: &Batch,
    token: &str,
) -> Result<BTreeMap<usize, String>, Failure> {
    let mut refused = BTreeMap::new();
    let mut left = vec![(0..batch.len(), token.to_owned())];
    while let Some((rows, token)) = left.pop() {
        if rows.is_empty() {
            continue;
        }
        let table = batch.table;
        let sent =
            send_block(server, table.name, table.columns, rows.len(), &token, batch.bytes(rows.clone()));
        match sent.await {
            Ok(()) => {}
            Err(Failure::Refused(error)) if rows.len() == 1 => {
                refused.insert(rows.start, error);
                if refused.len() > MAX_REFUSED_ROWS {
                    return Err(Failure::Broken(format!(
                        "more than {MAX_REFUSED_ROWS} rows of a batch were refused; the last: {}",
                        refused.into_values().next_back().unwrap_or_default()
                    )));
                }
            }
            Err(Failure::Refused(_)) => {
                let middle = rows.start + rows.len() / 2;
                for half in [middle..rows.end, rows.start..middle] {
                    let token = format!("{token}/{}+{}", half.start, half.len());
                    left.push((half, token));
                }
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(refused)
}

/// Sends one block under a token, which is the query's name too.
pub(super) async fn send_block(
    server: &Server,
    table: &str,
    columns: &str,
    rows: usize,
    token: &str,
    body: Bytes,
) -> Result<(), Failure> {
    server.insert(&Insert { table, columns, rows, query_id: token, token, body }).await
}

/// Refused rows as the port names them.
pub(super) fn named(batch: &Batch, refused: BTreeMap<usize, String>) -> Vec<RefusedRow> {
    refused
        .into_iter()
        .map(|(row, error)| {
            let entry = &batch.entries[row];
            RefusedRow { offset: entry.offset, index: entry.index, error }
        })
        .collect()
}
